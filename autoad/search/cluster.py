"""Where trials run: a Ray instance of our own, or a cluster that somebody else runs.

The nodes of a cluster need nothing in common but Ray's network. A worker knows its node's own folders only: features
are computed once per node, in the ``AUTOAD_DATA_DIR`` that Ray was started with there (:mod:`autoad.search.place`).
autoad itself must be installed on each node, in the driver's version: what a worker needs besides
(PyTorch, weights) is far larger than it.

A node that dies, or that the network cuts off, takes its trials with it. Ray says so when its head misses the node's
health checks; :func:`explain_death` turns that into a sentence, and the search runs the trial again elsewhere.
"""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import os
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
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import autoad
from autoad.errors import AutoADError, StateError, UsageError
from autoad.features import find_weights

__all__ = [
    "ClusterWorkers",
    "Death",
    "LocalWorkers",
    "Workers",
    "check_reachable",
    "explain_death",
    "join_ray",
    "local_ray",
]

_logger = logging.getLogger(__name__)
_TRIALS_PER_GPU = 4
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
_RECOUNT_SECONDS = 1.0
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
