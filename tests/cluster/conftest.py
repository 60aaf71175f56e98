"""Two machines on one: nodes with their own network, processes, host name, /tmp and shared memory.

Each node is a process that holds its namespaces and ends with the test run; with it end all processes of the node and
its end of the cable. Nothing has a name that could be left behind. A node's /tmp is a folder that the test can look
into from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
HEAD_ADDRESS, NODE_ADDRESS, S3_PORT, POSTGRES_PORT, RAY_PORT = "10.203.0.1", "10.203.0.2", 5000, 5432, 6379
# As README.md says for clusters whose nodes may be cut off; the defaults take over a minute to notice.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


def wait_for(what: str, happened: Callable[[], Any], seconds: float = 120.0) -> Any:
    """The first true value of ``happened()``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := happened():
            return value
        time.sleep(0.1)
    raise TimeoutError(f"waited {seconds:g} s for {what}")


class Started:
    """A process whose streams are files, so that it never waits for a reader."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.out, self.err = log.with_suffix(".out"), log.with_suffix(".err")
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(command, env=environment, cwd="/", stdout=out, stderr=err)

    def running(self) -> bool:
        return self.process.poll() is None

    def end(self, seconds: float) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"still running after {seconds:g} s: {self.err.read_text()}") from None
        return self.process.returncode, self.out.read_text(), self.err.read_text()


class Node:
    """A machine of its own; ``root`` is its /tmp."""

    def __init__(self, name: str, address: str, root: Path, environment: dict[str, str]) -> None:
        self.name, self.address, self.root = name, address, root
        (root / "home").mkdir(parents=True)
        self.environment = environment | {"HOME": "/tmp/home", "TMPDIR": "/tmp", "AUTOAD_DATA_DIR": "/tmp/state"}
        # The code must stay visible where it lies below /tmp; everything else there is the node's own.
        kept = [path for path in (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)) if path.is_relative_to("/tmp")]
        binds = ""
        for number, path in enumerate(dict.fromkeys(kept)):
            (root / path.relative_to("/tmp")).mkdir(parents=True, exist_ok=True)
            # By a descriptor: the path itself is hidden once the node's /tmp lies over it.
            seen, here = f"/proc/self/fd/{number + 3}", root / path.relative_to("/tmp")
            binds += f"exec {number + 3}<{path}; mount --bind {seen} {here}; "
        script = (
            f"hostname {name}; {binds} mount --rbind {root} /tmp; mount -t tmpfs tmpfs /dev/shm; ip link set lo up; "
            f"if [ -d {root} ]; then mount -t tmpfs tmpfs {root.parent}; fi; echo up; sleep infinity & wait"
        )
        own = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
        holder = ("setpriv", "--pdeathsig", "KILL", "unshare", *own)
        self._started: list[Started] = []
        self._holder = subprocess.Popen(
            [*holder, "sh", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "up\n":
            assert self._holder.stderr is not None
            raise RuntimeError(f"these tests need root, for namespaces: {self._holder.stderr.read()}")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self.pid = int(children[0])

    def command(self, *command: object, **environment: str) -> tuple[list[str], dict[str, str]]:
        """What runs a command on this node, and the environment to run it in."""
        entered = ["nsenter", "-t", str(self.pid), "--net", "--mount", "--uts", "--ipc", "--pid", *map(str, command)]
        # Importing autoad.search sets variables for a Ray on one machine.
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_", "AUTOAD_"))}
        return entered, mine | self.environment | environment

    def run(self, *command: object, **environment: str) -> str:
        """Run a command on this node to its end."""
        entered, variables = self.command(*command, **environment)
        done = subprocess.run(entered, env=variables, capture_output=True, text=True, check=False, timeout=120, cwd="/")
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *command: object, **environment: str) -> Started:
        """Start a command on this node; it ends with the node at the latest."""
        entered, variables = self.command(*command, **environment)
        started = Started(entered, variables, self.root / f"{secrets.token_hex(4)}")
        self._started.append(started)
        return started

    def processes(self, name: str) -> list[int]:
        """Ids, in this node's own count, of processes whose command line holds ``name``."""
        listed = self.run("ps", "-eo", "pid=,args=")
        return [int(line.split()[0]) for line in listed.splitlines() if name in line and "ps -eo" not in line]

    def kill(self) -> None:
        """Switch the machine off."""
        if self._holder.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self._holder.communicate()
        for process in self._started:
            process.end(10)


class Testbed:
    """A head, where drivers run, and a node; S3 on the head's address, PostgreSQL on the head's loopback alone."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.key, password = secrets.token_hex(8), secrets.token_hex(8)
        common = HEALTH_CHECKS | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "AWS_ACCESS_KEY_ID": "autoad",
            "AWS_SECRET_ACCESS_KEY": self.key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{HEAD_ADDRESS}:{S3_PORT}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "PYTHONPATH": str(REPOSITORY),
        }
        self.address = f"{HEAD_ADDRESS}:{RAY_PORT}"
        self.database_url = f"postgresql+psycopg://autoad:{password}@127.0.0.1:{POSTGRES_PORT}/postgres"
        self.head = Node("head", HEAD_ADDRESS, folder / "head", common)
        self.node = Node("node", NODE_ADDRESS, folder / "node", common)
        head, node = str(self.head.pid), str(self.node.pid)
        cable = ("netns", head, "type", "veth", "peer", "cable", "netns", node)
        subprocess.run(["ip", "link", "add", "cable", *cable], check=True)
        for each in (self.head, self.node):
            each.run("ip", "address", "add", f"{each.address}/24", "dev", "cable")
        self.plug()
        self._start_postgres(password)
        self.head.start(sys.executable, "-m", "moto.server", "-H", HEAD_ADDRESS, "-p", S3_PORT)
        self._ray(self.head, "--head", "--port", RAY_PORT, "--include-dashboard=false")

    def close(self) -> None:
        self.node.kill()
        self.head.kill()

    def _ray(self, node: Node, *arguments: object) -> None:
        ray = Path(sys.executable).with_name("ray")
        resources = ("--num-cpus", 1, "--num-gpus", 0, "--object-store-memory", 100_000_000, "--disable-usage-stats")
        node.run(ray, "start", *arguments, "--node-ip-address", node.address, "--node-name", node.name, *resources)

    def join(self) -> None:
        """The node joins the cluster."""
        self._ray(self.node, "--address", self.address)

    def plug(self) -> None:
        """Connect the node."""
        for node in (self.head, self.node):
            node.run("ip", "link", "set", "cable", "up")

    def cut(self) -> None:
        """Cut the node off: it runs on, but nothing reaches it."""
        self.node.run("ip", "link", "set", "cable", "down")

    def lose(self) -> None:
        """Kill the node's part of Ray."""
        (raylet,) = self.node.processes("/raylet/raylet ")
        self.node.run("kill", "-9", raylet)

    def clear(self) -> None:
        """End all that Ray left on the node; Ray may have given the node up while it was running on."""
        for pid in {*self.node.processes("ray"), *self.node.processes("/ray/")}:
            self.node.run("sh", "-c", f"kill -9 {pid} || true")
        self.plug()
        shutil.rmtree(self.node.root / "state", ignore_errors=True)
        shutil.rmtree(self.head.root / "state", ignore_errors=True)

    def rows(self, database_url: str = "") -> list[dict[str, Any]]:
        """All trials in the head's own database or in the one at that address, as they stand."""
        if database_url:
            address = database_url.replace("+psycopg", "")
            lines = self.head.run("sh", "-c", f"psql {address} -At -c 'SELECT row FROM trials' 2>/dev/null || true")
            return [json.loads(line) for line in lines.splitlines()]
        path = self.head.root / "state" / "autoad.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            try:
                return [json.loads(row) for (row,) in database.execute("SELECT row FROM trials")]
            except sqlite3.OperationalError:  # not migrated yet
                return []

    def make_bucket(self, name: str) -> None:
        """An S3 bucket."""
        self.head.run(sys.executable, "-c", f"import boto3; boto3.client('s3').create_bucket(Bucket={name!r})")

    def objects(self, bucket: str) -> list[str]:
        """Keys in a bucket."""
        code = f"import boto3; [print(o.key) for o in boto3.resource('s3').Bucket({bucket!r}).objects.all()]"
        return self.head.run(sys.executable, "-c", code).split()

    def _start_postgres(self, password: str) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        assert programs, "these tests need PostgreSQL: apt-get install postgresql"
        folder = self.head.root / "postgres"
        folder.mkdir()
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
        as_user = ("setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--")
        initdb = (programs[-1] / "initdb", "-D", "/tmp/postgres/data", "-U", "autoad", "--no-sync")
        self.head.run(*as_user, *initdb, "--auth", "scram-sha-256", "--pwfile", "/tmp/postgres/password")
        server = (programs[-1] / "postgres", "-D", "/tmp/postgres/data", "-k", "/tmp/postgres")
        options = ("-c", "listen_addresses=127.0.0.1", "-p", POSTGRES_PORT, "-F")
        self.head.start(*as_user, *server, *options)
        ready = (programs[-1] / "pg_isready", "-h", "127.0.0.1", "-p", POSTGRES_PORT, "-t", 30)
        wait_for("PostgreSQL", lambda: "accepting" in self.head.run("sh", "-c", f"{' '.join(map(str, ready))} || true"))


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """Two machines, and on the head a small dataset in /tmp/pictures."""
    bed = Testbed(tmp_path_factory.mktemp("machines"))
    try:
        rng = np.random.default_rng(0)
        for folder, count, dark in (("train/good", 30, 0), ("test/good", 8, 0), ("test/hole", 8, 1)):
            for number in range(count):
                pixels = rng.integers(120, 136, (96, 96, 3), dtype=np.uint8)
                mask = np.zeros((96, 96), np.uint8)
                if dark:
                    mask[40:60, 20 + 5 * number : 40 + 5 * number] = 255
                    pixels[mask > 0] = 20
                path = bed.head.root / "pictures" / folder / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
                if dark:
                    mask_path = bed.head.root / "pictures" / "ground_truth" / "hole" / f"{number:03d}_mask.png"
                    mask_path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(mask_path)
        yield bed
    finally:
        bed.close()
