"""What a job tells: a metrics log for programs, TensorBoard and the report; lines and a bar on stderr for people."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import rich.console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from compiler.errors import folded, printable
from runtime.rundir.files import append, read_bytes, sync, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from runtime.jobs.events import EventLog

Advance = Callable[..., None]
BAR = 28  # columns of the bar: with name, share and time it stays within 80
STEADY = 600.0  # seconds that the speed is averaged over: validation and pruning lie between epochs
START = {"metrics": 0, "timings": 0}


class MetricsLog:
    """`metrics.jsonl`, `timings.jsonl` and `tensorboard/` in a job's folder: one record an epoch, times apart.

    The log starts empty, unless `rewind` keeps lines of an earlier one: with the position of a checkpoint, metrics end
    byte-identical to those of a job that never stopped. `folder` None: write nothing. RunError if the disk refuses.
    """

    def __init__(self, folder: Path | None, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._lines = dict(START)
        self._events: EventLog | None = None

    def rewind(self, position: Mapping[str, int]) -> None:
        """Keep what was written before `position` was asked for; warns if the files hold less."""
        self._lines = {name: position[name] for name in START}
        if self._folder is None:
            return
        for name in self._lines:
            self._cut(self._folder / f"{name}.jsonl", name)
        from runtime.jobs.events import EventLog  # here, so that what only tells people is quick to import

        self._events = EventLog(self._folder / "tensorboard", self._lines["metrics"] + 1)

    def position(self) -> dict[str, int]:
        """How much is written, and on the disk for good: for a checkpoint's state."""
        if self._folder is not None and self._events is not None:
            for name in self._lines:
                sync(self._folder / f"{name}.jsonl")
        return dict(self._lines)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add an epoch's record. Numbers, also in maps inside, become curves; one that is not finite is null here."""
        self._append("metrics", record)

    def write_timing(self, record: Mapping[str, Any]) -> None:
        """Add how long the epoch took that `write` told of last."""
        self._append("timings", record)

    def histogram(self, name: str, values: Tensor) -> None:
        """Show the distribution of `values` (any shape) in TensorBoard, at the epoch that `write` tells of next."""
        if events := self._started():
            events.histogram(self._lines["metrics"] + 1, name, values)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        events = self._started()
        self._lines[name] += 1
        if self._folder is None or events is None:
            return
        path = self._folder / f"{name}.jsonl"
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        append(path, line.encode())
        events.scalars(self._lines[name], dict(_curves(record)))

    def _started(self) -> EventLog | None:
        if self._events is None:
            self.rewind(self._lines)
        return self._events

    def _cut(self, path: Path, name: str) -> None:
        """Write the file anew with the lines to keep: a copy that shares it (a hard link) stays as it is."""
        lines = read_bytes(path).splitlines(keepends=True) if os.path.lexists(path) else []
        whole = [line for line in lines if line.endswith(b"\n")][: self._lines[name]]
        write_bytes(path, b"".join(whole))
        if len(whole) < self._lines[name]:
            self._warn(f"{path} has lost {self._lines[name] - len(whole)} of {self._lines[name]} lines")
            self._lines[name] = len(whole)


def _finite(value: Any) -> Any:
    """`value` with null for every number that is not finite, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _curves(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a record by its name; names inside a map are joined by `/`. The epoch is the axis, no curve."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _curves(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and prefix + key != "epoch":
            yield prefix + key, float(value)


class Console:
    """What people read, on stderr: lines, and on a terminal a bar. `quiet` leaves only warnings, `silent` nothing."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None, *, silent: bool = False) -> None:
        self._rich = rich.console.Console(file=stream or sys.stderr, highlight=False, soft_wrap=True, quiet=silent)
        self._quiet = quiet or silent

    def line(self, text: str) -> None:
        """Print a line."""
        if not self._quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning, also when quiet."""
        self._print(f"warning: {text}", style="yellow")

    def _print(self, text: str, style: str | None = None) -> None:
        text = printable(text)
        plain = not self._rich.is_terminal or self._rich.is_dumb_terminal
        self._rich.print(text if plain else folded(text), style=style, markup=False)

    @contextmanager
    def progress(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show a bar with `done` of `total` images and the time left, on a terminal and while the block runs.

        Call what it gives with the images to add and, where they change, what is going on and how many there are.
        """
        hidden = self._quiet or not self._rich.is_terminal or self._rich.is_dumb_terminal
        columns = (TextColumn("{task.description}"), BarColumn(BAR), TaskProgressColumn(), TimeRemainingColumn())
        shown = Progress(
            *columns,
            console=self._rich,
            transient=True,
            redirect_stdout=False,
            disable=hidden,
            speed_estimate_period=STEADY,
        )
        with shown as progress:
            task = progress.add_task(name, total=total, completed=done)

            def advance(images: int, now: str | None = None, total: int | None = None) -> None:
                progress.update(task, advance=images, description=now, total=total)

            yield advance
