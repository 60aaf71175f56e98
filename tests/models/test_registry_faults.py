"""The registry when processes die in the middle, or several want the same thing at once."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoad.database import Database
from autoad.errors import UsageError
from autoad.models import read_manifest
from autoad.models.registry import Registry
from autoad.settings import Settings
from tests.models.registering import make_artifact
from tests.ports import free_port

STEPS = {"upload": 0, "row": 0, "before-move": 0, "moved": 0, "committed": 1}
"""Where a process dies, and how many versions that leaves."""

# Each child ends itself, as a kill would, before or after a step of register(). Importing once saves seconds a child.
DIE = """
import os, sys
from pathlib import Path
from sqlalchemy.orm import Session
import autoad.files
from autoad.database import Database, ModelVersion
from autoad.models.registry import Registry
from autoad.settings import Settings

STEPS = {
    "upload": (autoad.files.FileStore, "write", True),
    "row": (Session, "flush", True),
    "before-move": (Path, "rename", False),
    "moved": (Path, "rename", True),
    "committed": (Registry, "_entry", False),
}

def register_and_die(project, folder):
    owner, name, after = STEPS[project]
    step = getattr(owner, name)

    def die(*arguments, **options):
        if after:
            step(*arguments, **options)
        if name != "flush" or any(isinstance(row, ModelVersion) for row in arguments[0].identity_map.values()):
            os._exit(9)

    registry = Registry(Database(Settings(project=project)))
    setattr(owner, name, die)
    registry.register(folder, "bottle")

for project, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    child = os.fork()
    if child == 0:
        register_and_die(project, Path(folder))
        os._exit(0)
    print(project, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

# Children that begin in the same moment; each is given what to do as one argument.
AT_ONCE = """
import os, sys, time
from pathlib import Path
from autoad.database import Database
from autoad.models.registry import Registry

def promote(registry, version):
    registry.promote("bottle", int(version), reason=str(os.getpid()), actor="test")

def register(registry, folder):
    registry.register(Path(folder), "bottle")

ready, go = os.pipe(), os.pipe()
children = []
for work in sys.argv[2:]:
    children.append(os.fork())
    if children[-1] == 0:
        registry = Registry(Database())
        os.close(go[1])
        os.write(ready[1], b".")
        os.read(go[0], 1)  # until the parent closes it
        for one in work.split(","):
            {"promote": promote, "register": register}[sys.argv[1]](registry, one)
            time.sleep(0.01)  # or one may be through before the next is let onto a processor
        os._exit(0)
for _ in children:
    os.read(ready[0], 1)
os.close(go[1])
print(sum(os.waitpid(child, 0)[1] for child in children))
"""


def run(code: str, settings: Settings, *arguments: object) -> str:
    """What a process of that code prints."""
    variables = {
        "AUTOAD_DATA_DIR": str(settings.data_dir),
        "AUTOAD_DATABASE_URL": settings.database_url,
        "AUTOAD_FILES_URL": settings.files_url,
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | variables, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


Opened = Callable[[Settings], Registry]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens registries, and closes their databases at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda its: Registry(stack.enter_context(contextlib.closing(Database(its))), its)


def artifact(folder: Path, trial: int, search: str = "5ea4c4") -> Path:
    return make_artifact(folder, value=float(trial), search=search, trial=trial)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Each test has a project, or a model, of its own in it."""
    folder = tmp_path_factory.mktemp(request.param)
    url = request.getfixturevalue("postgres") if request.param == "postgresql" else ""
    return Settings(data_dir=folder / "state", database_url=url, files_url=str(folder / "store"))


@pytest.fixture(scope="module")
def fallen(settings: Settings) -> dict[str, dict[str, str]]:
    """What a process was registering when it died, by the step at which it did; that is the project, too."""
    wanted, arguments = {}, []
    for step in STEPS:
        scratch = settings.data_dir / "models" / step / ".5ea4c4-1"
        scratch.mkdir(parents=True)
        wanted[step] = contents(artifact(scratch / "champion", trial=3))
        arguments += [step, scratch / "champion"]
    assert run(DIE, settings, *arguments).split() == [word for step in STEPS for word in (step, "9")]
    return wanted


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Address of a database of a PostgreSQL server."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert programs, "these tests need PostgreSQL: apt-get install postgresql"
    port = free_port()
    # Not below pytest's folder: its owner is not the server's, which must reach it.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    as_user: list[str] = []
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]
    initdb = [programs[-1] / "initdb", "-D", folder / "data", "-U", "autoad", "--no-sync", "--auth", "trust"]
    subprocess.run([*as_user, *initdb], check=True, stdout=subprocess.DEVNULL, cwd="/")
    options = ["-D", folder / "data", "-k", folder, "-c", "listen_addresses=127.0.0.1", "-p", str(port), "-F"]
    server = subprocess.Popen(
        [*as_user, programs[-1] / "postgres", *options], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/"
    )
    try:
        for _ in range(300):
            ready = [programs[-1] / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            if subprocess.run(ready, check=False).returncode == 0:
                break
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
        yield f"postgresql+psycopg://autoad@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # does not wait for clients, as SIGTERM would
        server.wait()
        shutil.rmtree(folder)


@pytest.mark.parametrize(("step", "registered"), STEPS.items())
def test_who_dies_while_registering_leaves_a_whole_version_or_none(
    opened: Opened, settings: Settings, fallen: dict[str, dict[str, str]], tmp_path: Path, step: str, registered: int
) -> None:
    its = settings.model_copy(update={"project": step})
    registry = opened(its)
    assert [entry.version for model in registry.models() for entry in model.versions] == [1] * registered
    assert registry.register(artifact(tmp_path / "again", trial=3), "bottle").version == 1
    assert contents(registry.open("bottle", 1)) == fallen[step]
    assert [path.name for path in (its.models_dir / "bottle").iterdir()] == ["1"]
    assert not (tmp_path / "again").exists()
    shutil.rmtree(registry.open("bottle", 1))
    assert contents(opened(its).open("bottle", 1)) == fallen[step], "from the file store"


def test_promotions_at_once_come_one_after_the_other(opened: Opened, settings: Settings, tmp_path: Path) -> None:
    registry = opened(settings)
    for trial in range(1, 7):
        registry.register(artifact(tmp_path / "made", trial, search=f"s{trial}"), "bottle")
    assert (
        run(AT_ONCE, settings, "promote", *(",".join(pair * 5) for pair in (["1", "2"], ["3", "4"], ["5", "6"])))
        == "0\n"
    )
    model = registry.model("bottle")
    changes = model.history[::-1]
    assert len(changes) == 30
    assert [change.generation for change in changes] == list(range(1, 31))
    assert [change.before for change in changes] == [None, *(change.after for change in changes[:-1])]
    assert (model.route.generation, model.route.champion) == (30, changes[-1].after)
    assert model.route.previous == changes[-1].before
    actors = [change.reason for change in changes]
    assert len(set(actors)) == 3
    assert sum(one != other for one, other in itertools.pairwise(actors)) > 2, "they did run at once"


def test_versions_registered_at_once_get_numbers_of_their_own(
    opened: Opened, settings: Settings, tmp_path: Path
) -> None:
    its = {worker: [artifact(tmp_path / f"{worker}{n}", n, search=f"{worker}{n}") for n in range(5)] for worker in "ab"}
    wanted = {folder.name: contents(folder) for folders in its.values() for folder in folders}
    one = settings.model_copy(update={"project": "at once"})
    opened(one)  # makes the tables
    code = AT_ONCE.replace("Database()", "Database(Settings(project='at once'))")
    code = code.replace("import os, sys, time", "import os, sys, time\nfrom autoad.settings import Settings")
    assert run(code, settings, "register", *(",".join(map(str, folders)) for folders in its.values())) == "0\n"
    registry = opened(one)
    versions = registry.model("bottle").versions
    assert [entry.version for entry in versions] == list(range(10, 0, -1))
    assert {entry.search: contents(registry.open("bottle", entry.version)) for entry in versions} == wanted


def test_a_number_is_never_given_again_and_what_serves_is_not_deleted(opened: Opened, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "state")
    registry = opened(settings)
    for trial in (1, 2, 3):
        registry.register(artifact(tmp_path / "made", trial), "bottle")
    registry.promote("bottle", 1, reason="", actor="test")
    registry.promote("bottle", 2, reason="", actor="test")
    registry.set_shadow("bottle", 3, reason="", actor="test")
    for version, role in ((1, "previous"), (2, "champion"), (3, "shadow")):
        with pytest.raises(UsageError, match=f"is {role} and cannot be deleted"):
            registry.delete("bottle", version, reason="", actor="test")
    registry.end_shadow("bottle", reason="", actor="test")
    registry.delete("bottle", 3, reason="", actor="test")
    assert not (settings.data_dir / "models" / "default" / "bottle" / "3").exists()
    assert registry.register(artifact(tmp_path / "made", 4), "bottle").version == 4


def test_a_search_makes_one_version_of_a_trial_and_another_of_another(opened: Opened, tmp_path: Path) -> None:
    """A search that was killed is resumed, with nothing new or with a better trial, whose model must be kept."""
    registry = opened(Settings(data_dir=tmp_path / "state"))
    made = [registry.register(artifact(tmp_path / "made", trial), "bottle") for trial in (3, 3, 7, 3, 7)]
    assert [(entry.version, entry.trial) for entry in made] == [(1, 3), (1, 3), (2, 7), (1, 3), (2, 7)]
    for version, trial in ((1, 3), (2, 7)):
        assert read_manifest(registry.open("bottle", version)).provenance.trial == trial
    other = registry.register(artifact(tmp_path / "made", 3, search="another"), "bottle")
    assert (other.version, other.search) == (3, "another")


def test_a_champion_is_not_its_own_shadow_or_canary(opened: Opened, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "state")
    registry = opened(settings)
    for trial in (1, 2):
        registry.register(artifact(tmp_path / "made", trial), "bottle")
        registry.promote("bottle", trial, reason="", actor="test")
    registry.set_shadow("bottle", 1, reason="", actor="test")
    registry.set_canary("bottle", 1, 0.1, reason="", actor="test")
    route = registry.rollback("bottle", reason="", actor="test")
    assert (route.champion, route.previous, route.canary, route.canary_share, route.shadow) == (1, 2, None, 0, None)
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            registry.set_canary("bottle", 2, share, reason="", actor="test")
    assert registry.routes()["default", "bottle"] == route
