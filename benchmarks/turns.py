"""Processes that take turns, so that each has memory and packages of its own and all see the same machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.common import ROOT, Growth


class Turns:
    """The worker's side: it says what it is, then makes one step for every line it reads, and answers each with JSON.

    Whatever else the worker prints goes to stderr.
    """

    def __init__(self, **about: Any) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.answer(**about)
        self.growth = Growth()

    def wait(self) -> None:
        """Until it is this worker's turn; SystemExit when there will be no more."""
        if not sys.stdin.readline():
            raise SystemExit

    def answer(self, **found: Any) -> None:
        """End the turn."""
        self._answers.write(json.dumps(found) + "\n")


class Worker:
    """The other side: a process started with `python -m module *arguments`; RuntimeError when it fails."""

    def __init__(self, module: str, arguments: Sequence[str] = (), python: str = sys.executable) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (open as long as the process runs)
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self.about = self._read()
        self.last: dict[str, Any] = {}

    def turn(self) -> None:
        """Let it make a step; its answer is `last`."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        self.last = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read()
            self.end()
            raise RuntimeError(f"a worker ended: {self._process.args!r}\n{said[-4000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """No more turns."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()
