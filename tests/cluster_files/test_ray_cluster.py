from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "cluster" / name for name in ("ray-cluster.yaml", "ray-cluster-aws.yaml")]


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_takes_the_file(path: Path) -> None:
    """As ``ray up`` does it: the file with the provider's defaults filled in, against Ray's own schema."""
    config = prepare_config(load(path))
    validate_config(config)
    if path.name == "ray-cluster.yaml":
        workers = config["available_node_types"]["local.cluster.node"]
        assert workers["min_workers"] == workers["max_workers"] == 2
    for spoiled in ({**config, "max_worker": 1}, {**config, "file_mounts": ["a"]}, {**config, "max_workers": "all"}):
        with pytest.raises(jsonschema.ValidationError):
            validate_config(spoiled)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_starts_with_options_that_it_has_and_the_tokens_environment(path: Path) -> None:
    config = load(path)
    known = {option for parameter in ray_cli.commands["start"].params for option in parameter.opts}
    for role in ("head", "worker"):
        stop, start = config[f"{role}_start_ray_commands"]
        assert stop == "~/autoad/venv/bin/ray stop"
        assert start.startswith("set -a; . ~/autoad/cluster.env; set +a;"), "settings and the token come from there"
        words = shlex.split(start)
        assert words[words.index("start") - 1] == "~/autoad/venv/bin/ray"
        options = {word.split("=")[0] for word in words[words.index("start") + 1 :]}
        assert options <= known | {"--head"}
        assert ("--head" in options) == (role == "head")
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    assert not re.search(r"(TOKEN|PASSWORD|SECRET|DATABASE_URL)\w*=[^,\s]", yaml.safe_dump(config)), "no secret here"


def test_both_files_start_ray_alike() -> None:
    one, other = map(load, FILES)
    for key in ("head_start_ray_commands", "worker_start_ray_commands", "setup_commands", "file_mounts"):
        assert one[key] == other[key]
