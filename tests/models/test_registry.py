from __future__ import annotations

import datetime
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from autoad.database import Database
from autoad.errors import ArtifactError, FileStoreError, UnknownNameError, UsageError
from autoad.models import read_manifest, write_manifest
from autoad.models.registry import Registry
from autoad.schema import RouteEntry
from autoad.settings import Settings
from tests.models.registering import (
    Change,
    die_while,
    make_artifact,
    promote_in_turns,
    register_several,
    register_the_same,
    run_together,
)

WHY = {"reason": "better", "actor": "ann"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "state")


@pytest.fixture
def open_registry() -> Iterator[Callable[[Settings], Registry]]:
    databases = []

    def opened(settings: Settings) -> Registry:
        databases.append(Database(settings))
        return Registry(databases[-1], settings)

    yield opened
    for database in databases:
        database.close()


@pytest.fixture
def registry(settings: Settings, open_registry: Callable[[Settings], Registry]) -> Registry:
    return open_registry(settings)


@pytest.fixture
def three(registry: Registry, tmp_path: Path) -> Registry:
    """With three versions of ``bottle``, whose tensors hold their numbers."""
    for number in (1, 2, 3):
        registry.register(make_artifact(tmp_path / "new", value=number, trial=number), "bottle")
    return registry


def value(folder: Path) -> float:
    return float(safetensors.torch.load_file(folder / "model.safetensors")["t"])


def aliases(registry: Registry, name: str = "bottle") -> dict[int, list[str]]:
    return {version.version: version.aliases for version in registry.model(name).versions}


# Versions


def test_versions_are_numbered_by_model_and_hold_what_was_made(
    registry: Registry, settings: Settings, tmp_path: Path
) -> None:
    before = datetime.datetime.now(datetime.UTC)
    made = [
        registry.register(make_artifact(tmp_path / "new", value=trial, trial=trial), name)
        for trial, name in enumerate(["bottle", "tire", "bottle"])
    ]
    assert [(entry.name, entry.version) for entry in made] == [("bottle", 1), ("tire", 1), ("bottle", 2)]
    assert not (tmp_path / "new").exists(), "it was moved"
    newest = registry.resolve("bottle/2")
    assert newest == made[2]
    assert (newest.algorithm, newest.search, newest.trial, newest.threshold) == ("dfm", "5ea4c4", 2, 1.5)
    assert (newest.threshold_method, newest.false_positive_rate, newest.false_positive_rate_upper) == (
        "conformal",
        0.1,
        0.25,
    )
    assert newest.validation is not None
    assert newest.test is not None
    assert (newest.validation.image_auroc, newest.test.image_auroc) == (0.75, 0.625)
    assert before <= newest.created <= datetime.datetime.now(datetime.UTC), "with a time zone"
    folder = registry.open("bottle", 2)
    assert folder == settings.data_dir / "models" / "default" / "bottle" / "2"
    assert value(folder) == 2
    assert newest.size == sum(file.stat().st_size for file in folder.iterdir())
    assert [(m.name, [v.version for v in m.versions]) for m in registry.models()] == [("bottle", [2, 1]), ("tire", [1])]


def test_a_trial_is_registered_once_and_another_trial_of_its_search_anew(registry: Registry, tmp_path: Path) -> None:
    """A resumed search may find that another trial wins, or that one can now be refitted."""
    first = registry.register(make_artifact(tmp_path / "a", value=1), "bottle")
    again = registry.register(make_artifact(tmp_path / "b", value=2), "bottle")
    assert again == first
    assert value(registry.open("bottle", 1)) == 1
    assert not (tmp_path / "b").exists()
    assert registry.register(make_artifact(tmp_path / "c", trial=7), "bottle").version == 2
    assert registry.register(make_artifact(tmp_path / "d"), "tire").version == 1
    assert registry.made_of("5ea4c4", [7], "bottle") == registry.resolve("bottle/2")
    assert registry.made_of("5ea4c4", [8], "bottle") is None
    registry.delete("bottle", 1, **WHY)
    assert registry.register(make_artifact(tmp_path / "e"), "bottle").version == 3


def test_projects_are_apart(registry: Registry, tmp_path: Path) -> None:
    registry.register(make_artifact(tmp_path / "a", value=1), "bottle")
    assert registry.register(make_artifact(tmp_path / "b", value=2), "bottle", project="other").version == 1
    registry.promote("bottle", 1, project="other", **WHY)
    assert value(registry.open("bottle", 1)) == 1
    assert value(registry.open("bottle", 1, project="other")) == 2
    assert registry.model("bottle").route.champion is None
    assert registry.model("bottle").history == []
    assert registry.model("bottle", "other").route.champion == 1
    with pytest.raises(UnknownNameError, match="There is none yet"):
        registry.model("bottle", "third")


def test_what_cannot_be_registered_is_refused_and_left_where_it_is(registry: Registry, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "a")
    with pytest.raises(UsageError, match="a model's name must be"):
        registry.register(folder, "../up")
    write_manifest(folder, read_manifest(folder).model_copy(update={"calibration": None}))
    with pytest.raises(ArtifactError, match="never calibrated"):
        registry.register(folder, "bottle")
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="not a saved model"):
        registry.register(folder, "bottle")
    assert (folder / "model.safetensors").exists()
    assert registry.models() == []


def test_a_folder_that_somebody_left_is_replaced(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    left = make_artifact(settings.data_dir / "models" / "default" / "bottle" / "1", value=5)
    (left / "stray").write_text("")
    registry.register(make_artifact(tmp_path / "new", value=6), "bottle")
    assert value(registry.open("bottle", 1)) == 6
    assert not (left / "stray").exists()


def test_an_address_finds_its_version(three: Registry) -> None:
    def number(address: str) -> int:
        return three.resolve(address).version

    assert number("bottle") == 3, "the newest, for nothing was promoted"
    with pytest.raises(UsageError, match="no version of 'bottle' is champion"):
        three.resolve("bottle@champion")
    three.promote("bottle", 1, **WHY)
    three.promote("bottle", 2, **WHY)
    three.set_canary("bottle", 3, 0.1, **WHY)
    found = [number(a) for a in ("bottle", "bottle/3", "bottle@champion", "bottle@previous", "models:/bottle@canary")]
    assert found == [2, 3, 2, 1, 3]
    for wrong, message in (
        ("bottle/4", r"unknown version of 'bottle' '4'.*Choices: 1, 2, 3"),
        ("bottel/1", "unknown model 'bottel'. Did you mean 'bottle'"),
        ("bottle@shadow", "no version of 'bottle' is shadow"),
    ):
        with pytest.raises(UsageError, match=message):
            three.resolve(wrong)


# Files


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json", "README.md"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
def test_a_damaged_file_is_noticed(
    three: Registry,
    settings: Settings,
    open_registry: Callable[[Settings], Registry],
    damage: Callable[[Path], object],
    file: str,
) -> None:
    damage(three.open("bottle", 2) / file)
    later = open_registry(settings)
    with pytest.raises(ArtifactError, match=rf"{file}.*missing or damaged; put the file back"):
        later.open("bottle", 2)
    assert value(later.open("bottle", 1)) == 1


def test_another_machine_fetches_from_the_file_store_what_it_lacks(
    settings: Settings, tmp_path: Path, open_registry: Callable[[Settings], Registry]
) -> None:
    shared = {"files_url": str(tmp_path / "store"), "database_url": settings.sqlalchemy_url}
    here, there = (Settings(data_dir=tmp_path / name, **shared) for name in ("state", "there"))
    one = open_registry(here)
    one.register(make_artifact(tmp_path / "new", value=4), "bottle")
    mine = one.open("bottle", 1)
    folder = open_registry(there).open("bottle", 1)
    assert folder == tmp_path / "there" / "models" / "default" / "bottle" / "1"
    contents = {file.name: file.read_bytes() for file in mine.iterdir()}
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents
    (folder / "model.safetensors").write_bytes(b"damaged")
    (folder / "manifest.json").unlink()
    assert open_registry(there).open("bottle", 1) == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents, "put right"

    shutil.rmtree(folder)
    stored = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert {path.read_bytes() for path in stored} == set(contents.values())
    for path in stored:
        path.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"on this machine, and the file store .* is damaged"):
        open_registry(there).open("bottle", 1)
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(ArtifactError, match=r"on this machine, and the file store .* has no file"):
        open_registry(there).open("bottle", 1)


def test_a_file_store_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, open_registry: Callable[[Settings], Registry]
) -> None:
    (tmp_path / "store").write_text("a file where a folder should be")
    registry = open_registry(Settings(data_dir=tmp_path / "state", files_url=str(tmp_path / "store")))
    folder = make_artifact(tmp_path / "new")
    with pytest.raises(FileStoreError, match="could not be written"):
        registry.register(folder, "bottle")
    assert folder.exists()
    assert registry.models() == []
    wrong = open_registry(Settings(data_dir=tmp_path / "state", files_url="ftp://host/x"))
    with pytest.raises(UsageError, match="AUTOAD_FILES_URL must be"):
        wrong.check_store()


# Aliases and history


def test_promotion_moves_champion_and_previous(three: Registry) -> None:
    assert three.promote("bottle", 1, **WHY) == RouteEntry(project="default", name="bottle", generation=1, champion=1)
    three.promote("bottle", 2, **WHY)
    route = three.promote("bottle", 3, **WHY)
    assert (route.champion, route.previous, route.generation) == (3, 2, 3)
    assert three.model("bottle").route == route == three.routes()["default", "bottle"]
    assert aliases(three) == {3: ["champion"], 2: ["previous"], 1: []}
    with pytest.raises(UsageError, match="champion already"):
        three.promote("bottle", 3, **WHY)
    with pytest.raises(UnknownNameError, match="unknown version of 'bottle' '9'"):
        three.promote("bottle", 9, **WHY)
    assert three.model("bottle").route == route, "a refusal changes nothing"


def test_rollback_lets_champion_and_previous_change_places(three: Registry) -> None:
    with pytest.raises(UsageError, match="no previous champion"):
        three.rollback("bottle", **WHY)
    three.promote("bottle", 1, **WHY)
    with pytest.raises(UsageError, match="no previous champion"):
        three.rollback("bottle", **WHY)
    three.promote("bottle", 2, **WHY)
    three.set_canary("bottle", 3, 0.5, **WHY)
    three.set_shadow("bottle", 1, **WHY)
    route = three.rollback("bottle", **WHY)
    assert (route.champion, route.previous, route.canary, route.canary_share) == (1, 2, None, 0.0)
    assert route.shadow is None, "the champion is not its own shadow"
    route = three.rollback("bottle", **WHY)
    assert (route.champion, route.previous) == (2, 1)


def test_canary_and_shadow_stand_beside_a_champion(three: Registry) -> None:
    for begin in (lambda v: three.set_canary("bottle", v, 0.2, **WHY), lambda v: three.set_shadow("bottle", v, **WHY)):
        with pytest.raises(UsageError, match="without another champion"):
            begin(2)
    three.promote("bottle", 1, **WHY)
    with pytest.raises(UsageError, match="without another champion"):
        three.set_canary("bottle", 1, 0.2, **WHY)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            three.set_canary("bottle", 2, share, **WHY)
    three.set_canary("bottle", 2, 0.2, **WHY)
    route = three.set_shadow("bottle", 3, **WHY)
    assert (route.champion, route.canary, route.canary_share, route.shadow) == (1, 2, 0.2, 3)
    assert aliases(three) == {1: ["champion"], 2: ["canary"], 3: ["shadow"]}
    route = three.promote("bottle", 2, **WHY)
    assert (route.champion, route.canary, route.canary_share, route.shadow) == (2, None, 0.0, 3)
    assert three.end_shadow("bottle", **WHY).shadow is None
    three.end_canary("bottle", **WHY)
    actions = [line.action for line in three.model("bottle").history]
    assert actions == ["end_shadow", "promote", "shadow", "canary", "promote"], "none for what was not there"


def test_history_says_who_did_what_when_and_why(three: Registry) -> None:
    before = datetime.datetime.now(datetime.UTC)
    three.promote("bottle", 1, reason="first", actor="ann")
    three.promote("bottle", 2, reason="finds scratches", actor="ben")
    three.rollback("bottle", reason="false alarms", actor="eve")
    three.delete("bottle", 3, reason="a try", actor="ann")
    lines = three.model("bottle").history
    assert [(line.generation, line.action, line.before, line.after, line.reason, line.actor) for line in lines] == [
        (4, "delete", 3, None, "a try", "ann"),
        (3, "rollback", 2, 1, "false alarms", "eve"),
        (2, "promote", 1, 2, "finds scratches", "ben"),
        (1, "promote", None, 1, "first", "ann"),
    ]
    times = [line.at for line in lines]
    assert times == sorted(times, reverse=True)
    assert before <= times[-1] <= times[0] <= datetime.datetime.now(datetime.UTC)


def test_models_are_listed_with_histories_or_without_asking_for_them(
    three: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.promote("bottle", 1, **WHY)
    [full] = three.models()
    assert full == three.model("bottle")
    assert len(full.history) == 1

    def asked(*_: object) -> None:
        raise AssertionError("the history was asked for")

    monkeypatch.setattr(three._tables, "history", asked)
    assert three.models(histories=False) == [full.model_copy(update={"history": []})]


def test_staging_is_for_one_version_at_a_time_and_leaves_no_history(three: Registry) -> None:
    assert three.stage("bottle", 2).staged == 2
    assert three.stage("bottle", 3).staged == 3
    assert three.unstage("bottle", 2).staged == 3, "somebody else's"
    assert three.unstage("bottle", 3).staged is None
    three.stage("bottle", 1)
    assert three.promote("bottle", 1, **WHY).staged is None
    assert len(three.model("bottle").history) == 1
    with pytest.raises(UnknownNameError):
        three.stage("bottle", 9)


@pytest.mark.parametrize("move", ["promote", "set_canary", "set_shadow"])
def test_no_alias_moves_while_another_version_is_being_checked(three: Registry, move: str) -> None:
    three.promote("bottle", 1, **WHY)
    three.stage("bottle", 3)
    more = {"share": 0.5} if move == "set_canary" else {}
    with pytest.raises(UsageError, match="version 3 of 'bottle' is being promoted"):
        getattr(three, move)("bottle", 2, **more, **WHY)
    assert getattr(three, move)("bottle", 3, **more, **WHY).staged is None


def test_the_mark_differs_after_every_change_of_a_route(three: Registry, tmp_path: Path) -> None:
    three.register(make_artifact(tmp_path / "new"), "tire")
    changes: list[Callable[[], Any]] = [
        lambda: three.promote("bottle", 1, **WHY),
        lambda: three.promote("tire", 1, project="default", **WHY),
        lambda: three.stage("bottle", 2),
        lambda: three.unstage("bottle", 2),
        lambda: three.set_canary("bottle", 2, 0.1, **WHY),
        lambda: three.set_canary("bottle", 2, 0.2, **WHY),
        lambda: three.end_canary("bottle", **WHY),
        lambda: three.register(make_artifact(tmp_path / "new"), "new"),
    ]
    marks = [three.mark()]
    for change in changes:
        assert three.mark() == marks[-1], "reading changes nothing"
        change()
        marks.append(three.mark())
    assert len(set(marks)) == len(marks)


def test_what_answers_is_not_deleted_and_numbers_are_not_given_again(three: Registry, tmp_path: Path) -> None:
    three.promote("bottle", 1, **WHY)
    three.promote("bottle", 2, **WHY)
    roles: list[tuple[int, str, Callable[[], Any]]] = [
        (2, "champion", lambda: None),
        (1, "previous", lambda: None),
        (3, "canary", lambda: three.set_canary("bottle", 3, 0.1, **WHY)),
        (3, "shadow", lambda: (three.end_canary("bottle", **WHY), three.set_shadow("bottle", 3, **WHY))),
        (3, "staged", lambda: (three.end_shadow("bottle", **WHY), three.stage("bottle", 3))),
    ]
    for version, role, begin in roles:
        begin()
        with pytest.raises(UsageError, match=f"version {version} of 'bottle' is {role} and cannot be deleted"):
            three.delete("bottle", version, **WHY)
        assert value(three.open("bottle", version)) == version
    three.unstage("bottle", 3)
    folder = three.open("bottle", 3)
    three.delete("bottle", 3, **WHY)
    assert not folder.exists()
    assert sorted(aliases(three)) == [1, 2]
    for gone in (lambda: three.open("bottle", 3), lambda: three.delete("bottle", 3, **WHY)):
        with pytest.raises(UnknownNameError, match="unknown version of 'bottle' '3'"):
            gone()
    assert three.register(make_artifact(tmp_path / "new", trial=9), "bottle").version == 4


# Processes


@pytest.mark.parametrize(
    "death", ["before anything", "route made", "uploaded", "not moved yet", "moved, not committed"]
)
def test_a_process_that_dies_while_it_registers_leaves_no_version(
    settings: Settings, open_registry: Callable[[Settings], Registry], tmp_path: Path, death: str
) -> None:
    folder = make_artifact(tmp_path / "new", value=1)
    die_while(settings, Change("register", (folder, "bottle")), death)
    registry = open_registry(settings)
    assert registry.models() == []
    assert folder.exists() == (death != "moved, not committed")
    assert registry.register(make_artifact(tmp_path / "again", value=2), "bottle").version == 1
    assert value(registry.open("bottle", 1)) == 2
    assert len(registry.model("bottle").versions) == 1


@pytest.mark.parametrize(
    ("death", "champion"), [("before anything", 1), ("route changed, not committed", 1), ("committed", 2)]
)
def test_a_process_that_dies_while_it_promotes_leaves_the_old_route_or_the_new(
    three: Registry, settings: Settings, death: str, champion: int
) -> None:
    three.promote("bottle", 1, **WHY)
    die_while(settings, Change("promote", ("bottle", 2), WHY), death)
    model = three.model("bottle")
    assert model.route.champion == champion
    assert model.route.previous == (1 if champion == 2 else None)
    assert model.route.generation == champion == len(model.history)
    assert three.promote("bottle", 3, **WHY).previous == champion, "nothing is locked"


@pytest.mark.parametrize(
    ("death", "deleted"),
    [("route changed, not committed", False), ("committed", True), ("files not removed yet", True)],
)
def test_a_process_that_dies_while_it_deletes_leaves_a_whole_version_or_none(
    three: Registry, settings: Settings, tmp_path: Path, death: str, deleted: bool
) -> None:
    die_while(settings, Change("delete", ("bottle", 3), WHY), death)
    assert sorted(aliases(three)) == ([1, 2] if deleted else [1, 2, 3])
    assert len(three.model("bottle").history) == deleted
    if not deleted:
        assert value(three.open("bottle", 3)) == 3
    assert three.register(make_artifact(tmp_path / "new", value=4, trial=4), "bottle").version == 4
    assert value(three.open("bottle", 4)) == 4


def test_processes_that_promote_at_once_lose_nothing(three: Registry, settings: Settings) -> None:
    generations = sorted(generation for made in run_together(promote_in_turns, settings, 4, 12) for generation in made)
    model = three.model("bottle")
    lines = model.history[::-1]
    assert generations == [line.generation for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= 12
    assert len({line.actor for line in lines}) > 1, "they did come at once"
    assert lines[0].before is None
    for earlier, later in itertools.pairwise(lines):
        assert later.before == earlier.after != later.after
    assert (model.route.champion, model.route.previous) == (lines[-1].after, lines[-1].before)
    assert model.route.generation == len(lines)


def test_processes_that_register_at_once_get_a_number_each(
    registry: Registry, settings: Settings, tmp_path: Path
) -> None:
    made = [one for its in run_together(register_several, settings, 4, tmp_path, 3) for one in its]
    assert sorted(number for number, _ in made) == list(range(1, 13))
    for number, held in made:
        assert value(registry.open("bottle", number)) == held


def test_processes_that_register_the_same_trial_get_the_same_version(
    registry: Registry, settings: Settings, tmp_path: Path
) -> None:
    assert len(set(run_together(register_the_same, settings, 4, tmp_path))) == 1
    assert len(registry.model("bottle").versions) == 1


def test_entries_survive_json(three: Registry) -> None:
    """What the command line prints and a server sends."""
    three.promote("bottle", 2, **WHY)
    model = three.model("bottle")
    assert type(model).model_validate(json.loads(model.model_dump_json())) == model
