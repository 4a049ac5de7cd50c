"""File calls that are killed or fail, one by one; what is done again then ends with the same bytes."""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.trials import contents, copied, run

CALLS = ("open", "write", "fsync", "replace", "mkdir", "unlink", "rmdir", "symlink", "ftruncate", "listdir", "scandir")
KINDS = ("kill", "ENOSPC", "EIO", "short")
JOBS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "compile": ("start", ("compile", "tiny.yaml", "--out", "run"), ""),
    "search": ("compiled", ("search", "run"), "--resume"),
    "resumed search": ("searching", ("search", "run", "--resume"), "--resume"),
    "retrain": ("searched", ("retrain", "run"), "--resume"),
    "resumed retrain": ("retraining", ("retrain", "run", "--resume"), "--resume"),
    "export": ("retrained", ("export", "run", "--int8", "--no-latency"), ""),
    "export elsewhere": ("retrained", ("export", "run", "--no-latency", "-o", "models/m.onnx"), ""),
}
"""What is done: the state it begins in, the command, and how the command goes on after a fault."""
TIMES = ("timings.jsonl", "tensorboard", "report.html", ".lock")  # differ from run to run, or mean nothing


@dataclass(frozen=True)
class DiskFault:
    """The `number`-th file call in a job's folder dies or fails."""

    job: str
    number: int
    kind: str

    def __str__(self) -> str:
        return f"{self.job}, file call {self.number}: {self.kind}"

    def problem(self, states: dict[str, Path], wanted: dict[str, dict[str, str]]) -> str:
        """What is wrong after the fault and the same command again; empty if nothing is."""
        state, command, again = JOBS[self.job]
        with copied(states[state]) as folder:
            hurt = run(folder, *command, before=partial(break_call, folder, self.number, self.kind))
            if (hurt.code != -signal.SIGKILL) if self.kind == "kill" else hurt.problem:
                return hurt.problem or "was not killed"
            if hurt.code == 1 and "error: " not in hurt.text:
                return f"failed without a word: {hurt.text[-300:]}"
            done = run(folder, *command, *([again] if again not in command and again else []))
            if done.code == 1 and self.job == "compile" and hurt.code == 0:
                return ""  # what could not be tidied up after the run was complete
            if done.code:
                return f"cannot go on: {done.text[-600:]}"
            found = contents(folder, TIMES)
            differ = sorted(n for n in found.keys() | wanted[self.job] if found.get(n) != wanted[self.job].get(n))
            return f"other bytes: {differ}" if differ else ""


def wanted(states: dict[str, Path]) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """By job what it leaves without a fault, and how many file calls it makes."""
    left, calls = {}, {}
    for job, (state, command, _) in JOBS.items():
        with copied(states[state]) as folder:
            done = run(folder, *command, before=partial(break_call, folder, -1, f"{folder.parent}/count"))
            assert done.code == 0, done.text
            left[job], calls[job] = contents(folder, TIMES), (folder.parent / "count").stat().st_size
    return left, calls


def faults(calls: dict[str, int], most: int | None) -> list[DiskFault]:
    """All faults, or as many of them, spread over everything."""
    every = [DiskFault(job, n, kind) for job, count in calls.items() for n in range(count) for kind in KINDS]
    return every if most is None else random.Random(0).sample(every, min(most, len(every)))


def break_call(folder: Path, number: int, kind: str) -> None:
    """From now on the `number`-th call (from 0) on something in `folder` dies or fails.

    With number -1 none does: `kind` is then a file that grows by a byte for each.
    """
    calls = iter(range(10**9))

    def hurting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not any(path.startswith(str(folder)) for path in _paths(name, arguments, options)):
                return function(*arguments, **options)
            if number < 0:
                with raw_open(kind, "ab") as count:
                    count.write(b"x")
            elif next(calls) == number:
                _hurt(name, kind, function, arguments)
            return function(*arguments, **options)

        return call

    raw_open = io.open
    for name in CALLS:
        setattr(os, name, hurting(name, getattr(os, name)))
    io.open = builtins.open = hurting("open", raw_open)  # type: ignore[assignment]


def _hurt(name: str, kind: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "short":
        if name != "write":
            return
        function(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
    code = errno.EIO if kind == "EIO" else errno.ENOSPC
    raise OSError(code, os.strerror(code))


def _paths(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Iterator[str]:
    """The paths that a call is about: descriptors by what they are of, names from the folder they start at."""
    folders = [options[key] for key in ("dir_fd", "src_dir_fd", "dst_dir_fd") if options.get(key) is not None]
    start = os.readlink(f"/proc/self/fd/{folders[0]}") if folders else os.getcwd()
    for argument in arguments[: 2 if name == "replace" else 1]:
        if isinstance(argument, int) and not isinstance(argument, bool):
            try:
                yield os.readlink(f"/proc/self/fd/{argument}")
            except OSError:
                continue
        elif isinstance(argument, str | os.PathLike):
            yield os.path.join(start, argument)
