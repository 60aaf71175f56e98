"""Starting the process that carries a search out, so that it outlives whoever starts it.

Ray kills the children of an actor that ends, and a terminal's Ctrl-C reaches its whole group. So the driver gets a
session of its own, and a shell in between that ends at once leaves it to the machine's first process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import autoad
from autoad.database import Submission, name_process
from autoad.settings import Settings

__all__ = ["LOG", "Spawner", "driver_environment"]

LOG = "driver.log"
"""What a search's driver says, in the search's folder."""

_SCRIPT = '"$@" </dev/null >>"$0" 2>&1 & echo $!'
_START_SECONDS = 30
_BY_RAY = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


class Spawner:
    """Starts drivers on this machine.

    Args:
        settings: of the server.
        address: ``HOST:PORT`` of the Ray cluster on which they search; empty for this machine alone.
    """

    def __init__(self, settings: Settings, address: str = "") -> None:
        self._settings = settings
        self._address = address

    def __call__(self, row: Submission, starter: str) -> str:
        """Start the driver of a submission that ``starter`` has taken for it.

        Returns:
            The name of its process.

        Raises:
            OSError: it cannot be started.
        """
        folder = self._settings.searches_dir / row.id
        folder.mkdir(parents=True, exist_ok=True)
        environment = driver_environment(os.environ, _environment_of_ray(), cluster=bool(self._address))
        environment |= {
            "AUTOAD_DATA_DIR": str(self._settings.data_dir),
            "AUTOAD_DATABASE_URL": self._settings.database_url,
            "AUTOAD_FILES_URL": self._settings.files_url,
            "AUTOAD_PROJECT": row.project,
        }
        # -P: not from the folder that it happens to be in.
        command = [sys.executable, "-P", "-m", "autoad.serve.driver", row.id, starter, self._address]
        try:
            shell = subprocess.run(  # noqa: S603 - nothing of it is a client's
                ["/bin/sh", "-c", _SCRIPT, str(folder / LOG), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                cwd=folder,
                env=environment,
                start_new_session=True,
                timeout=_START_SECONDS,
                check=True,
            )
        except subprocess.SubprocessError as error:
            raise OSError(f"the driver of {row.id} could not be started ({error})") from error
        driver = name_process(int(shell.stdout))
        if driver.endswith("/"):
            raise OSError(f"the driver of {row.id} ended as soon as it was started; {folder / LOG} may say why")
        return driver


def driver_environment(own: Mapping[str, str], before: Mapping[str, str], *, cluster: bool) -> dict[str, str]:
    """A driver's environment: that of the actor which starts it, without what Ray has set there.

    Args:
        own: the actor's.
        before: that Ray itself was started with.
        cluster: whether the driver joins a running cluster, whose token it needs then.
    """
    kept = {
        name: value
        for name, value in own.items()
        if not name.startswith(("RAY_", "TUNE_")) or (cluster and name.startswith("RAY_AUTH"))
    }
    for name in _BY_RAY:
        kept.pop(name, None)
        if name in before:
            kept[name] = before[name]
    # The code that the server runs, wherever it was found.
    paths = [str(Path(autoad.__file__).parent.parent), *filter(None, own.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _environment_of_ray() -> dict[str, str]:
    """What Ray's own process on this node was started with; empty where that cannot be read."""
    try:
        data = Path(f"/proc/{int(os.environ['RAY_RAYLET_PID'])}/environ").read_bytes()
    except (KeyError, ValueError, OSError):
        return {}
    pairs = (entry.partition("=") for entry in data.decode(errors="surrogateescape").split("\0") if entry)
    return {name: value for name, _, value in pairs}
