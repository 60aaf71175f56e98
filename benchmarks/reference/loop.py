"""How the comparison talks to the two processes it measures: one JSON object a line, one answer a line.

Needs nothing but the standard library, because it runs in anomalib's environment, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Self

__all__ = ["Worker", "WorkerError", "peak_memory", "serve"]


class WorkerError(RuntimeError):
    """What a side was asked for failed there; holds the last line of its traceback."""


def serve(side: Any) -> None:
    """Carry out requests ``{"call": METHOD, ...arguments}`` from standard input until it closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": getattr(side, request.pop("call"))(**request)}
        except Exception as error:  # the other end decides what a failure means
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def peak_memory() -> float:
    """Most resident memory that this process has had so far, MiB."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


class Worker:
    """One side, in a process of its own that is idle unless it is asked for something.

    Attributes:
        versions: what the side said of itself.
    """

    def __init__(self, python: Path, script: Path, threads: int, log: Path, environment: dict[str, str]) -> None:
        pinned = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [python, script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | pinned | environment,
            )
        self._log = log
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, call: str, *, limit: float | None = None, **arguments: Any) -> Any:
        """What ``call`` gives there.

        Args:
            call: name of a function there.
            limit: seconds after which the process is killed; None for any.
            arguments: of the function.

        Raises:
            WorkerError: it failed, took too long, or the process is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": call} | arguments) + "\n")
        self._process.stdin.flush()
        if limit is not None and not select.select([self._process.stdout], [], [], limit)[0]:
            self._process.kill()
            self._process.wait()
            raise WorkerError(f"it was not done after {limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the process ended with {self._process.wait()}; see {self._log}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["value"]
