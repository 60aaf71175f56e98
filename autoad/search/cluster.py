"""Where trials run: a Ray instance of our own, or a cluster that somebody else runs.

The nodes of a cluster need nothing in common but Ray's network. A worker knows its node's own folders only: features
are computed once per node, in the ``AUTOAD_DATA_DIR`` that Ray was started with there; pictures that the node does not
have come from the file store (``AUTOAD_FILES_URL``) or, without one, from a :class:`Desk` on the driver's node, a
picture a message. autoad itself must be installed on each node, in the driver's version: what a worker needs besides
(PyTorch, weights) is far larger than it.

A node that dies, or that the network cuts off, takes its trials with it. Ray says so when its head misses the node's
health checks; :func:`explain_death` turns that into a sentence, and the search runs the trial again elsewhere.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import autoad
from autoad.data import Picture
from autoad.errors import AutoADError, FileStoreError, StateError, UsageError
from autoad.features import find_weights
from autoad.files import FileStore, Source, read_file, use_source
from autoad.settings import Settings, get_settings

__all__ = [
    "ClusterWorkers",
    "Death",
    "Desk",
    "LocalWorkers",
    "Place",
    "Workers",
    "check_reachable",
    "explain_death",
    "join_ray",
    "local_ray",
    "offer_files",
]

_logger = logging.getLogger(__name__)
_TRIALS_PER_GPU = 4
_ANSWER_SECONDS = 60.0
_CONNECT_SECONDS = 5.0
_RECOUNT_SECONDS = 1.0
_READERS = 4
_FOLDER, _LOCK = "autoad-ray-", "lock"
_MACHINERY = frozenset({"raylet", "gcs_server"})


class Workers(Protocol):
    """How many trials run at once, and what each may use; nodes may come and go."""

    @property
    def gpus_each(self) -> float:
        """GPUs of each."""

    @property
    def count(self) -> int:
        """Trials that run side by side, as things stand."""

    def check(self) -> None:
        """Raise :class:`StateError` if Ray itself has died: it would end this process without a word."""


@dataclasses.dataclass(frozen=True)
class LocalWorkers:
    """Workers on this machine.

    Attributes:
        count: trials that run side by side.
        gpus_each: GPUs of each.
        machinery: Ray's own processes, which :func:`local_ray` fills in.
    """

    count: int
    gpus_each: float = 0.0
    machinery: list[psutil.Process] = dataclasses.field(default_factory=list, compare=False)

    def check(self) -> None:
        """Raise :class:`StateError` if one of Ray's own processes has died."""
        for process in self.machinery:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise StateError("a process of Ray's own has died (was it killed, or the machine out of memory?)")

    @classmethod
    def here(cls, *, cuda: bool, alone: bool) -> LocalWorkers:
        """One a processor core, or four a GPU; just one if it is to work ``alone``."""
        cores = os.cpu_count() or 1
        if not cuda:
            return cls(1 if alone else cores)
        import torch

        return cls(1 if alone else min(cores, _TRIALS_PER_GPU * torch.cuda.device_count()), 1 / _TRIALS_PER_GPU)


class ClusterWorkers:
    """Workers on the nodes that the cluster has at the moment."""

    def __init__(self, *, cuda: bool, alone: bool) -> None:
        self.gpus_each = 1 / _TRIALS_PER_GPU if cuda else 0.0
        self._alone = alone
        self._counted = (float("-inf"), 0)

    @property
    def count(self) -> int:
        """As many as the living nodes have processor cores and GPUs for; at least one."""
        now = time.monotonic()
        if now - self._counted[0] > _RECOUNT_SECONDS:
            has = ray.cluster_resources()
            count = int(has.get("CPU", 0))
            if self.gpus_each:
                count = min(count, _TRIALS_PER_GPU * int(has.get("GPU", 0)))
            self._counted = (now, max(1, 1 if self._alone else count))
        return self._counted[1]

    def check(self) -> None:
        """Nothing: Ray's processes belong to whoever runs the cluster."""


@contextmanager
def local_ray(workers: LocalWorkers) -> Iterator[None]:
    """A Ray instance of our own that listens on loopback only, and leaves nothing behind."""
    _remove_leftovers()
    folder, lock = _locked_folder()
    # When this process is killed its Ray is, too; the agents of Ray's node would look for their head for a minute more.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    _keep_off_stdout()
    try:
        _init_ray(
            address="local",
            num_cpus=workers.count,
            num_gpus=None if workers.gpus_each else 0,
            object_store_memory=200 * 2**20,
            include_dashboard=False,
            _temp_dir=str(folder),
        )
        children = psutil.Process().children()
        workers.machinery.extend(child for child in children if child.name() in _MACHINERY)
        yield
    finally:
        workers.machinery.clear()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _init_ray(**options: Any) -> None:
    """Connect to Ray; it would have SIGTERM end this process in a way of its own, now and after it is shut down."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _locked_folder() -> tuple[Path, int]:
    """A folder for Ray's sockets and logs, and the lock in it that says that its driver lives."""
    while True:
        # A Unix socket's path must stay below 108 characters, so this cannot lie in the data folder.
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_WRONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():  # nobody else has tidied it away before it was locked
            return folder, lock
        os.close(lock)


def _remove_leftovers() -> None:
    """Remove the folders of drivers that were killed: nobody holds the lock in them any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*/{_LOCK}"):
        with suppress(OSError), path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)


@contextmanager
def join_ray(address: str, *, backbones: Iterable[str], cuda: bool, alone: bool) -> Iterator[ClusterWorkers]:
    """Be the driver of a search on a running cluster; this machine must be one of its nodes.

    Args:
        address: ``HOST:PORT`` of its head. The token comes from where Ray looks for it: ``RAY_AUTH_TOKEN``,
            ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``. Ask :func:`check_reachable` first.
        backbones: whose weights each node must have, the same as here.
        cuda: whether trials run on GPUs.
        alone: whether trials must run one at a time.

    Raises:
        UsageError: the cluster cannot be reached or refuses, or a node lacks what trials need.
    """
    _keep_off_stdout()
    try:
        _init_ray(address=address)
    except (RayError, RuntimeError, OSError, ValueError) as error:
        raise UsageError(_refusal(address, error)) from error
    try:
        workers = ClusterWorkers(cuda=cuda, alone=alone)
        if cuda and ray.cluster_resources().get("GPU", 0) < 1:
            raise UsageError(f"the cluster {address} has no GPU and the engine is cuda; choose another --engine")
        _check_nodes({name: find_weights(name).sha256 for name in backbones})
        yield workers
    finally:
        ray.shutdown()


class Desk:
    """Hands out files of the driver's node, one at a time; an actor.

    Args:
        files: paths by sha256.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def read(self, sha256: str) -> bytes | str:
        """The file's bytes, or the reason why there are none."""
        try:
            return read_file(self._files[sha256], sha256)
        except KeyError:
            return f"no file with sha256 {sha256} belongs to this search"
        except (OSError, FileStoreError) as error:
            return f"{self._files[sha256]} {error}"


@dataclasses.dataclass(frozen=True)
class Place:
    """What a worker must know to work on a node that has nothing in common with the driver's.

    Attributes:
        version: autoad's, on the driver's node.
        project: whose files they are.
        store: address of the file store; empty if the driver's node hands the files out.
        desk: who does so.
    """

    version: str
    project: str
    store: str = dataclasses.field(repr=False)
    desk: Any

    def settle(self) -> tuple[str, Path]:
        """Make this process at home on its node: files come from where they can be had.

        Returns:
            The node's name, and its feature store.

        Raises:
            UsageError: the node has another version of autoad.
        """
        if autoad.__version__ != self.version:
            raise UsageError(f"node {_here()} must have autoad {self.version} but has {autoad.__version__}")
        settings = _node_settings()
        fetch = FileStore(self.store, self.project).read if self.store else self._ask
        kept = FileStore(str(settings.data_dir / "files"), self.project)
        use_source(_keeping(fetch, kept))
        return _here(), settings.features_dir

    def _ask(self, sha256: str) -> bytes:
        try:
            answer = ray.get(self.desk.read.remote(sha256), timeout=_ANSWER_SECONDS)
        except (RayError, GetTimeoutError) as error:
            raise FileStoreError(f"could not be fetched from the driver's node ({type(error).__name__})") from error
        if isinstance(answer, str):
            raise FileStoreError(f"could not be fetched from the driver's node: {answer}")
        if (digest := hashlib.sha256(answer).hexdigest()) != sha256:
            raise FileStoreError(f"came damaged from the driver's node: sha256 {digest}, not {sha256}")
        return bytes(answer)


def offer_files(pictures: Iterable[Picture], settings: Settings) -> Place:
    """Make pictures and masks of this machine available to all nodes of the cluster that was joined.

    With ``AUTOAD_FILES_URL`` what is missing there is uploaded; otherwise this node hands them out while the search
    runs.

    Raises:
        FileStoreError: the file store cannot be reached or written.
        UsageError: the address of the file store is none.
    """
    files: dict[str, Path] = {}
    for picture in pictures:
        files[picture.sha256] = picture.path
        if picture.mask is not None and picture.mask_sha256 is not None:
            files[picture.mask_sha256] = picture.mask
    if settings.files_url:
        FileStore(settings.files_url, settings.project).upload(files)
        return Place(autoad.__version__, settings.project, settings.files_url, None)
    desk = (
        ray.remote(Desk)
        .options(
            num_cpus=0,
            max_concurrency=_READERS,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
        )
        .remote(files)
    )
    return Place(autoad.__version__, settings.project, "", desk)


@dataclasses.dataclass(frozen=True)
class Death:
    """Why a worker's process ended.

    Attributes:
        node: name of its node, None where Ray does not say.
        node_lost: whether the whole node has gone, rather than the process alone.
        reason: in words.
    """

    node: str | None
    node_lost: bool
    reason: str


def explain_death(text: str) -> Death:
    """What became of a worker, from what Ray says of it."""
    found = re.search(r"^\s*ip: (\S+)", text, re.MULTILINE)
    address = found[1] if found else None
    nodes = [node for node in ray.nodes() if node["NodeManagerAddress"] == address] if address else []
    name = next((str(node["NodeName"]) for node in nodes), address)
    # "its node": Ray's own words. A process may also be seen to die just before its node is, hence the second look.
    if "its node has died" in text or (nodes and not any(node["Alive"] for node in nodes)):
        return Death(name, True, f"the node {name} was lost (it died or was cut off)")
    where = f" on node {name}" if name else ""
    return Death(name, False, f"its process died{where}, most likely out of memory")


def _keep_off_stdout() -> None:
    """Log what Ray says of nodes and workers; it prints that where only results belong, whatever ``log_to_driver``."""

    def log(data: Mapping[str, Any], **_: object) -> None:
        _logger.info("\n".join(data["lines"]))

    ray._private.worker.print_to_stdstream = log


def _keeping(fetch: Source, kept: FileStore) -> Source:
    """Ask this node's own folder first, and keep there what had to be fetched: other trials want other sizes of it."""

    def read(sha256: str) -> bytes:
        with suppress(FileStoreError):  # not there, or damaged
            return kept.read(sha256)
        data = fetch(sha256)
        with suppress(FileStoreError):  # a full disk will be reported by the feature store
            kept.write(data)
        return data

    return read


def _node_settings() -> Settings:
    """The node's settings; without ``AUTOAD_DATA_DIR`` what it keeps lies in a temporary folder, not at home."""
    if not os.environ.get("AUTOAD_DATA_DIR"):
        os.environ["AUTOAD_DATA_DIR"] = str(Path(tempfile.gettempdir(), f"autoad-{os.getuid()}"))
    return get_settings()


def _here() -> str:
    """This node's name in its cluster."""
    here = ray.get_runtime_context().get_node_id()
    return next((str(node["NodeName"]) for node in ray.nodes() if node["NodeID"] == here), platform.node())


def check_reachable(address: str) -> None:
    """Refuse an address at which nothing answers: Ray would try for over a minute, and then end the process.

    Raises:
        UsageError: it is no address, or nobody answers there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--address must be HOST:PORT of a running Ray cluster's head but got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"no Ray cluster answers at {address} ({reason}); start one with `ray start --head`"
        ) from error


def _refusal(address: str, error: Exception) -> str:
    text = f"{error} {error.__cause__ or ''}"
    if "Unauthenticated" in text or "uthentication" in text:
        return (
            f"the Ray cluster {address} refuses the token, or there is none; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
            "to the cluster's (RAY_AUTH_MODE=disabled if it was started without)"
        )
    if "ersion" in text:
        return f"the Ray cluster {address} must run the versions of Ray and Python that are installed here: {error}"
    if "node" in text.lower() and "found" in text.lower():
        return f"this machine must be a node of the Ray cluster {address}: run `ray start --address={address}` first"
    return f"the Ray cluster {address} could not be joined: {error}"


def _describe(backbones: tuple[str, ...]) -> dict[str, Any]:
    """What a node has; runs there."""
    weights: dict[str, str] = {}
    for name in backbones:
        try:
            weights[name] = find_weights(name).sha256
        except AutoADError as error:
            weights[name] = str(error)
    return {"version": autoad.__version__, "weights": weights}


def _check_nodes(weights: Mapping[str, str]) -> None:
    """Refuse a cluster with a node that could not run trials as this machine would.

    Raises:
        UsageError: a node has no autoad, another version of it, or other weights.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    describe = ray.remote(_describe)
    answers = {
        node["NodeName"]: describe.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(tuple(weights))
        for node in nodes
    }
    for name, answer in answers.items():
        try:
            found = ray.get(answer, timeout=_ANSWER_SECONDS)
        except (RayError, RuntimeError) as error:
            if "No module named" in str(error):
                raise UsageError(
                    f"node {name} must have autoad {autoad.__version__} installed where Ray's Python finds it"
                ) from error
            raise UsageError(
                f"node {name} did not answer ({type(error).__name__}); remove it from the cluster"
            ) from error
        if found["version"] != autoad.__version__:
            raise UsageError(f"node {name} must have autoad {autoad.__version__} but has {found['version']}")
        for backbone, sha256 in weights.items():
            if found["weights"][backbone] != sha256:
                raise UsageError(
                    f"node {name} must have the same weights of {backbone} as this machine but has "
                    f"{found['weights'][backbone]}; set AUTOAD_WEIGHTS_DIR before `ray start` there"
                )
