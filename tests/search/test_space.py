from __future__ import annotations

import dataclasses
from pathlib import Path

import optuna
import pytest

from autoad.algorithms import ALGORITHMS, get_algorithm
from autoad.errors import SearchSpaceError, UnknownNameError, WeightsError
from autoad.search.space import Parameter, Space, load_spaces, suggest_config

TOY = Space(
    "toy",
    "a space of every type",
    10,
    (
        Parameter("rate", "float", 0.001, 0.25, log=True, default=0.1),
        Parameter("sigma", "float", 0.0, 8.0, step=0.5, default=4.0),
        Parameter("neighbors", "int", 1, 15, default=9),
        Parameter("size", "int", 192, 384, step=64, default=256),
        Parameter("stages", "categorical", choices=((2, 3), (2,), (1, 2, 3)), default=(2, 3)),
        Parameter("score", "categorical", choices=("fre", None, True, 3, 0.5), default=None),
        Parameter("backbone", "categorical", choices=("lite", "resnet18", "wide"), default="resnet18"),
        Parameter("patch_size", "fixed", default=3),
    ),
)


def create_study(seed: int = 0) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=4)
    return optuna.create_study(direction="maximize", sampler=sampler)


pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


# The packaged files


@pytest.mark.parametrize("name", ALGORITHMS)
def test_packaged_space_fits_the_config(name):
    space = load_spaces([name])[name]
    detector = get_algorithm(name)
    config = detector.Config()
    assert {key: getattr(config, key) for key in space.defaults()} == space.defaults()
    assert detector.Config(**space.defaults()) == config
    assert space.algorithm == name
    assert space.help
    assert "\n" not in space.help
    assert space.epochs == (config.epochs if detector.iterative else None)
    assert {"image_size"} <= set(space.defaults()) >= ({"backbone"} if hasattr(config, "backbone") else set())
    for parameter in space.parameters:
        assert parameter.help, f"{name}.{parameter.name} has no line of help"
        assert parameter.type != "fixed"
        assert parameter.refusal(parameter.default) is None


def test_every_algorithm_has_a_space():
    spaces = load_spaces()
    assert tuple(spaces) == ALGORITHMS
    assert tuple(load_spaces(["patchcore", "cflow"])) == ("patchcore", "cflow")
    with pytest.raises(UnknownNameError, match=r"unknown algorithm 'patchcor'\. Did you mean 'patchcore'\?"):
        load_spaces(["patchcor"])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_whatever_is_suggested_makes_a_config(name):
    space, config = load_spaces([name])[name], get_algorithm(name).Config
    study = create_study()
    seen = set()
    for _ in range(30):
        suggested = space.suggest(study.ask())
        assert set(suggested) == set(space.defaults())
        built = config(**suggested)
        seen.add(str(built))
        for parameter in space.parameters:
            assert parameter.refusal(suggested[parameter.name]) is None
            assert type(getattr(built, parameter.name)) is type(parameter.default)
    assert len(seen) > 20


# Optuna


def test_enqueued_defaults_are_suggested_exactly():
    spaces = load_spaces(["patchcore", "cflow", "ganomaly"]) | {"toy": TOY}
    study = create_study()
    for space in spaces.values():
        study.enqueue_trial({"algorithm": space.algorithm} | space.encode(space.defaults()))
    for space in spaces.values():
        trial = study.ask()
        assert suggest_config(trial, spaces) == (space.algorithm, space.defaults())
        searched = {f"{space.algorithm}.{item.name}" for item in space.parameters if item.is_proposed}
        assert set(trial.params) == {"algorithm"} | searched
        study.tell(trial, 0.5)


def test_lists_survive_the_study_and_the_sampler_learns_them():
    study = create_study()
    for _ in range(60):
        trial = study.ask()
        name, config = suggest_config(trial, {"toy": TOY, "other": dataclasses.replace(TOY, algorithm="other")})
        assert config["stages"] in TOY.parameters[4].choices
        assert config["score"] in TOY.parameters[5].choices
        assert config["patch_size"] == 3
        assert TOY.encode(config).keys() == {key.replace("other.", "toy.") for key in trial.params} - {"algorithm"}
        study.tell(trial, (name == "toy") + (config["stages"] == (1, 2, 3)) - abs(config["neighbors"] - 4) / 20)
    last = [trial.params for trial in study.trials[-20:]]
    assert sum(params.get("toy.stages") == "[1, 2, 3]" for params in last) > 10


def test_encoding_takes_what_came_back_from_json():
    assert TOY.encode({"stages": [1, 2, 3], "neighbors": 2}) == {"toy.stages": "[1, 2, 3]", "toy.neighbors": 2}
    assert TOY.encode({"stages": (1, 2, 3)}) == {"toy.stages": "[1, 2, 3]"}
    assert TOY.encode({"patch_size": 3}) == {}
    with pytest.raises(UnknownNameError, match=r"unknown parameter of toy 'neighbours'\. Did you mean 'neighbors'\?"):
        TOY.encode({"neighbours": 2})


# Sweeping


def test_what_is_swept_is_kept_from_optuna_and_compared_around_its_default():
    sigma = Parameter("sigma", "sweep", choices=(0.0, 2.0, 4.0, 8.0), default=4.0)
    combine = Parameter("combine", "sweep", choices=("add", "multiply"), default="add")
    ratio = Parameter("ratio", "float", 0.01, 0.25, log=True, fractions=(0.1, 0.5), default=0.1)
    space = Space("toy", "", None, (sigma, combine, ratio, Parameter("size", "int", 1, 9, default=3)))
    trial = create_study().ask()
    config = space.suggest(trial)
    assert trial.params.keys() == {"toy.ratio", "toy.size"}
    assert (config["sigma"], config["combine"]) == (4.0, "add")
    assert space.encode(config).keys() == trial.params.keys()
    share = config["ratio"]
    assert space.sweep(config) == {
        "sigma": (4.0, 2.0, 8.0, 0.0),
        "combine": ("add", "multiply"),
        "ratio": (share, share * 0.5, share * 0.1),
    }
    assert space.sweep(config | {"sigma": 3.0})["sigma"] == (3.0, 0.0, 2.0, 4.0, 8.0), "a value from elsewhere"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_packaged_spaces_sweep_all_that_a_fit_serves(name):
    space, detector = load_spaces([name])[name], get_algorithm(name)
    swept = space.sweep(space.defaults())
    assert swept.keys() == {*detector.post_fit, *detector.reducible}
    for key, values in swept.items():
        for value in values:
            detector.Config(**space.defaults() | {key: value})


def test_a_file_may_search_or_fix_what_is_packaged_as_swept(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "algorithm: patchcore\nparameters:\n"
        "  sigma: {type: float, low: 0, high: 8}\n"
        "  num_neighbors: {type: sweep, choices: [1, 9]}\n"
        "  coreset_sampling_ratio: {value: 0.02}\n"
    )
    space = load_spaces(["patchcore"], path)["patchcore"]
    trial = create_study().ask()
    config = space.suggest(trial)
    assert "patchcore.sigma" in trial.params
    assert space.sweep(config) == {"num_neighbors": (9, 1)}
    assert config["coreset_sampling_ratio"] == 0.02


# Backbones


def test_unreachable_backbones_are_dropped():
    assert TOY.backbones() == {"lite", "resnet18", "wide"}
    assert TOY.without_backbones(set()) == TOY
    assert TOY.without_backbones({"other"}) == TOY
    assert TOY.without_backbones({"wide"}).defaults() == TOY.defaults()
    left = TOY.without_backbones({"resnet18"})
    assert left.backbones() == {"lite", "wide"}
    assert left.defaults() == TOY.defaults() | {"backbone": "lite"}
    with pytest.raises(WeightsError, match="toy needs one of the backbones lite, resnet18, wide"):
        TOY.without_backbones({"lite", "resnet18", "wide"})


def test_a_fixed_backbone_and_none_at_all():
    fixed = Space("toy", "", None, (Parameter("backbone", "fixed", default="resnet18"),))
    assert fixed.backbones() == {"resnet18"}
    assert fixed.without_backbones({"wide"}) == fixed
    with pytest.raises(WeightsError):
        fixed.without_backbones({"resnet18"})
    pixels = Space("toy", "", None, (Parameter("patch_size", "fixed", default=3),))
    assert pixels.backbones() == set()
    assert pixels.without_backbones({"resnet18"}) == pixels


# Overriding


def test_a_file_replaces_the_parameters_it_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "algorithm: patchcore\nparameters:\n"
        "  num_neighbors: {type: int, low: 1, high: 5, default: 3}\n"
        "  coreset_sampling_ratio: {type: float, low: 1e-3, high: 0.2, log: true}\n"
        "  stages: {value: [2]}\n"
    )
    packaged, mine = load_spaces(["patchcore", "cflow"]), load_spaces(["patchcore", "cflow"], path)
    assert mine["cflow"] == packaged["cflow"]
    assert mine["patchcore"].help == packaged["patchcore"].help
    changed = {item.name: item for item in mine["patchcore"].parameters}
    assert changed["num_neighbors"] == Parameter("num_neighbors", "int", 1, 5, default=3)
    assert changed["coreset_sampling_ratio"] == Parameter(
        "coreset_sampling_ratio", "float", 0.001, 0.2, log=True, default=0.1
    )
    assert changed["stages"] == Parameter("stages", "fixed", default=(2,))
    named = {"num_neighbors", "coreset_sampling_ratio", "stages"}
    kept = [item for item in packaged["patchcore"].parameters if item.name not in named]
    assert [item for item in mine["patchcore"].parameters if item.name not in named] == kept


def test_a_folder_overrides_several_and_any_config_field_may_be_named(tmp_path):
    (tmp_path / "a.yaml").write_text("algorithm: cflow\nepochs: 3\nhelp: short\n")
    (tmp_path / "b.yml").write_text("algorithm: ganomaly\nparameters:\n  wenc: {type: float, low: 0.5, high: 2}\n")
    (tmp_path / "notes.txt").write_text("not a space")
    spaces = load_spaces(["cflow", "ganomaly"], tmp_path)
    assert (spaces["cflow"].epochs, spaces["cflow"].help) == (3, "short")
    assert spaces["ganomaly"].parameters[-1] == Parameter("wenc", "float", 0.5, 2.0, default=1.0)
    assert len(spaces["ganomaly"].parameters) == len(load_spaces(["ganomaly"])["ganomaly"].parameters) + 1


# What is refused

HEAD = "algorithm: patchcore\nparameters:\n"
RATIO = "  coreset_sampling_ratio: {type: float, low: 0.01, high: 0.2, "


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("algorithm: patchcor\n", 1, r"algorithm: unknown algorithm 'patchcor'\. Did you mean 'patchcore'\?"),
        ("help: hm\nparameters: {}\n", 1, "algorithm: must be given"),
        ("algorithm: 3\n", 1, "algorithm: must be text but got '3'"),
        ("algorithm: patchcore\nparamters: {}\n", 2, r"paramters: unknown key 'paramters'\. Did you mean 'parameters'"),
        ("algorithm: patchcore\nparameters: [1]\n", 2, "parameters: must hold 'key: value' lines but got a list"),
        ("- algorithm\n", 1, "must hold 'key: value' lines but got a list"),
        ("algorithm: patchcore\nalgorithm: cflow\n", 2, "algorithm: stands here twice"),
        ("algorithm: patchcore\nepochs: 3\n", 2, "epochs: must be left out: patchcore does not train in epochs"),
        ("algorithm: cflow\nepochs: 0\n", 2, "epochs: must be at least 1 but got 0"),
        ("algorithm: cflow\nepochs: 2.5\n", 2, "epochs: must be a whole number but got '2.5'"),
        (
            "algorithm: cflow\nparameters:\n  epochs: {type: int, low: 1, high: 9}\n",
            3,
            r"parameters\.epochs: is a ceiling and never searched",
        ),
        (HEAD + "  num_neighbours: {value: 3}\n", 3, r"Did you mean 'num_neighbors'\?"),
        (HEAD + "  sigma: {value: 3}\n  sigma: {value: 4}\n", 4, r"parameters\.sigma: stands here twice"),
        (HEAD + "  sigma: 3\n", 3, r"parameters\.sigma: must hold 'key: value' lines but got '3'"),
        (HEAD + "  sigma:\n", 3, r"parameters\.sigma: must hold 'key: value' lines but got nothing"),
        (HEAD + "  sigma:\n    low: 0\n    high: 8\n", 3, r"parameters\.sigma: type: must be one of float, int, categ"),
        (HEAD + "  sigma:\n    type: flaot\n", 4, r"parameters\.sigma\.type: .*Did you mean 'float'\?"),
        (HEAD + "  sigma: {type: float, low: 0, hihg: 8}\n", 3, r"unknown key 'hihg'\. Did you mean 'high'\?"),
        (HEAD + "  sigma: {type: float, low: 0}\n", 3, r"parameters\.sigma: high: must be given with type float"),
        (HEAD + "  sigma: {type: float, low: 0, high: 8, choices: [1]}\n", 3, "choices: does not go with type float"),
        (HEAD + "  sigma: {value: 3, low: 1}\n", 3, "low: does not go with value"),
        (
            HEAD + "  sigma:\n    type: float\n    low: 9\n    high: 8\n",
            5,
            r"low: must be at most high \(8\) but got 9",
        ),
        (HEAD + "  sigma: {type: float, low: zero, high: 8}\n", 3, "low: must be a number but got 'zero'"),
        (HEAD + "  sigma: {type: float, low: .nan, high: 8}\n", 3, "low: must be a number but got '.nan'"),
        (HEAD + "  sigma: {type: float, low: true, high: 8}\n", 3, "low: must be a number but got 'true'"),
        (HEAD + "  sigma: {type: float, low: 0, high: 8, log: true}\n", 3, "low: must be greater than 0 where log"),
        (HEAD + "  sigma: {type: float, low: 1, high: 8, log: 2}\n", 3, "log: must be true or false but got 2"),
        (HEAD + "  sigma: {type: float, low: 1, high: 8, log: true, step: 1}\n", 3, "step: must be left out where log"),
        (HEAD + "  sigma: {type: float, low: 1, high: 8, step: -1}\n", 3, "step: must be greater than 0 but got -1"),
        (HEAD + "  sigma: {type: float, low: 0, high: 8, step: 3}\n", 3, r"high: must be low \(0\) plus a multiple of"),
        (HEAD + "  sigma: {type: float, low: 0, high: 8, default: 9}\n", 3, "default: must lie between low .* got 9"),
        (
            HEAD + "  sigma: {type: float, low: 5, high: 8}\n",
            3,
            r"default: must lie .* but the algorithm's own is 4\.0",
        ),
        (HEAD + "  sigma: {type: int, low: 0, high: 8, default: x}\n", 3, "default: must be a number but got 'x'"),
        (HEAD + "  num_neighbors: {type: int, low: 1, high: 9.5}\n", 3, "high: must be a whole number but got '9.5'"),
        (
            HEAD + "  num_neighbors: {type: float, low: 1, high: 9}\n",
            3,
            "type: must suit the parameter, which is a whole",
        ),
        (HEAD + "  backbone: {type: int, low: 1, high: 9}\n", 3, "type: must suit the parameter, which is text"),
        (HEAD + "  backbone: {type: categorical}\n", 3, "choices: must be given with type categorical"),
        (HEAD + "  backbone: {type: categorical, choices: []}\n", 3, "choices: must be a list of at least one value"),
        (HEAD + "  backbone: {type: categorical, choices: resnet18}\n", 3, "choices: must be a list of at least one"),
        (
            HEAD + "  backbone:\n    type: categorical\n    choices:\n      - a\n      - 3\n",
            7,
            "must be text but got 3",
        ),
        (HEAD + "  backbone: {type: categorical, choices: [a, a], default: a}\n", 3, "'a' stands here twice"),
        (HEAD + "  backbone: {type: categorical, choices: [a], default: b}\n", 3, r"default: must be one of \['a'\]"),
        (HEAD + "  stages: {value: 2}\n", 3, r"stages\.value: must be a list, each item a whole number but got 2"),
        (HEAD + "  stages: {value: [2, x]}\n", 3, r"stages\.value: must be a list, each item a whole number"),
        (HEAD + "  stages: {value: [3, 2]}\n", 3, r"parameters\.stages: \(3, 2\) will not do: .*ascending"),
        (HEAD + "  coreset_sampling_ratio: {type: float, low: 0.1, high: 2}\n", 3, r"2\.0 will not do: .* at most 1"),
        (
            "algorithm: reverse_distillation\nparameters:\n  combine: {value: mul}\n",
            3,
            "must be one of 'add', 'multiply'",
        ),
        (
            HEAD + "  patch_size: {type: sweep, choices: [1, 3]}\n",
            3,
            r"patch_size\.type: must not be sweep, for patch_s",
        ),
        (
            HEAD + "  stages:\n    type: sweep\n    choices: [[2]]\n",
            4,
            r"prediction alone reads: num_neighbors, sigma\)",
        ),
        (HEAD + "  coreset_sampling_ratio: {type: sweep, choices: [0.1]}\n", 3, "use float with 'fractions'"),
        ("algorithm: cflow\nparameters:\n  lr: {type: sweep, choices: [0.1]}\n", 3, r"reads: none\); use another"),
        (HEAD + "  sigma: {type: sweep}\n", 3, "choices: must be given with type sweep"),
        (
            HEAD + "  sigma: {type: sweep, choices: [1.0, 2.0]}\n",
            3,
            r"default: must be one of \[1\.0, 2\.0\] but the al",
        ),
        (HEAD + "  sigma: {type: sweep, choices: [-1.0, 4.0]}\n", 3, r"-1\.0 will not do: .*sigma must be"),
        (HEAD + "  sigma: {type: sweep, low: 0, high: 8}\n", 3, "low: does not go with type sweep"),
        (
            HEAD + "  sigma: {type: float, low: 0, high: 8, fractions: [0.5]}\n",
            3,
            r"fractions: goes only with what .*\(",
        ),
        (HEAD + "  num_neighbors: {type: int, low: 1, high: 9, fractions: [0.5]}\n", 3, "fractions: does not go with"),
        (HEAD + RATIO + "fractions: []}\n", 3, "fractions: must be a list of at least one number"),
        (HEAD + RATIO + "fractions: [1.0]}\n", 3, "fractions: must be greater than 0 and less than 1 but got 1"),
        (HEAD + RATIO + "fractions: [x]}\n", 3, "fractions: must be a number but got 'x'"),
        (HEAD + RATIO + "fractions: [0.5, 0.5]}\n", 3, r"fractions: must differ from each other but 0\.5 stands"),
        ("algorithm: [patchcore\n", 2, "a search space must be YAML but"),
        ("algorithm: patchcore\n\thelp: x\n", 2, "a search space must be YAML but"),
        ("algorithm: patchcore\n---\nalgorithm: cflow\n", 2, "a search space must be YAML but"),
        (HEAD + "  sigma: {value: !!python/name:os.system }\n", 3, "could not determine a constructor"),
    ],
)
def test_a_wrong_file_is_refused_with_file_line_and_key(tmp_path, text, line, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SearchSpaceError, match=message) as caught:
        load_spaces(["patchcore"], path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(SearchSpaceError, match=r"none\.yaml: the search space cannot be read \(No such file"):
        load_spaces(["patchcore"], tmp_path / "none.yaml")
    with pytest.raises(SearchSpaceError, match=r"must hold \.yaml files but has none"):
        load_spaces(["patchcore"], tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"algorithm: \xff\xfe\n")
    with pytest.raises(SearchSpaceError, match=r"a\.yaml: the search space cannot be read \(it is no UTF-8 text\)"):
        load_spaces(["patchcore"], tmp_path)
    (tmp_path / "a.yaml").write_text("# nothing\n")
    with pytest.raises(SearchSpaceError, match=r"a\.yaml: the search space is empty"):
        load_spaces(["patchcore"], tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text("algorithm: patchcore\n")
    with pytest.raises(SearchSpaceError, match=r"b\.yaml: a second space for patchcore; the first is .*a\.yaml"):
        load_spaces(["patchcore"], tmp_path)


def test_the_readme_example_is_a_valid_file(tmp_path):
    readme = (Path(__file__).parent.parent.parent / "search_spaces" / "README.md").read_text()
    example = readme[readme.index("    algorithm: ") : readme.index("Your file is laid")]
    path = tmp_path / "example.yaml"
    path.write_text(example.replace("patchcore  ", "cflow  ").split("    parameters:")[0])
    assert load_spaces(["cflow"], path)["cflow"].epochs == 50
    path.write_text("\n".join(line for line in example.splitlines() if "epochs:" not in line))
    defaults = load_spaces(["patchcore"], path)["patchcore"].defaults()
    assert (defaults["num_neighbors"], defaults["image_size"], defaults["stages"]) == (3, 320, (2, 3))
