"""Measuring on a shared machine: interleaved variants, ratios within a round, memory in child processes.

Absolute times drift with what else the machine does; variants that take turns in one process see the same drift, so
the ratio of two of them in the same round is what to trust.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Step = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """What one variant took: seconds of wall clock, CPU seconds and page faults of every round."""

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    page_faults: tuple[int, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def speedup_over(self, other: Timing) -> float:
        """Median over the rounds of the other's time divided by this one's."""
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


def interleave(variants: Mapping[str, Step], rounds: int, warmup: int = 2) -> dict[str, Timing]:
    """Run every variant once a round, in an order that turns around from round to round."""
    samples: dict[str, list[tuple[float, float, int]]] = {name: [] for name in variants}
    for name in variants:
        for _ in range(warmup):
            variants[name]()
    for index in range(rounds):
        for name in list(variants)[:: 1 if index % 2 == 0 else -1]:
            samples[name].append(_measure(variants[name]))
    return {name: Timing(*zip(*found, strict=True)) for name, found in samples.items()}


def _measure(step: Step) -> tuple[float, float, int]:
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    cpu, start = time.process_time(), time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    return seconds, time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


# -- memory -----------------------------------------------------------------------------------------------------------


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


class Growth:
    """Watches by how much the resident memory of this process grows from now on; needs Linux."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self._before = _status("VmRSS")

    @property
    def peak_mib(self) -> float:
        """The most so far."""
        return _status("VmHWM") - self._before


def peak_growth(step: Step, times: int = 3) -> float:
    """By how many MiB the resident memory of this process grows at most while the step runs."""
    growth = Growth()
    for _ in range(times):
        step()
    return growth.peak_mib


def in_child(module: str, arguments: Sequence[str]) -> Any:
    """The JSON that `python -m module *arguments` prints as its last line; a fresh process has fresh memory."""
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


# -- processes that take turns ----------------------------------------------------------------------------------------


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
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"a worker ended: {self._process.args!r}\n{self._errors.read()[-4000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """No more turns."""
        self._process.kill()
        self._process.wait()


# -- what runs --------------------------------------------------------------------------------------------------------


def dispatched_ops(step: Step) -> int:
    """How many operators a step sends to the backend."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Count.total += 1
            return func(*args, **(kwargs or {}))

    with Count():
        step()
    return Count.total


def seconds_by_group(step: Step, group_of: Callable[[list[str]], str]) -> dict[str, float]:
    """Self CPU seconds of a step by group; `group_of` gets the names of an event and those around it, inner first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    groups: dict[str, float] = {}
    for event in profiler.events():
        names, around = [event.name], event.cpu_parent
        while around is not None:
            names.append(around.name)
            around = around.cpu_parent
        group = group_of(names)
        groups[group] = groups.get(group, 0.0) + event.self_cpu_time_total / 1e6
    return groups


# -- reporting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One promise: what was found must be at least the limit, or at most."""

    name: str
    found: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the promise is kept."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def row(self) -> list[object]:
        """A line of `bar_table`."""
        return [self.name, f"{'>=' if self.at_least else '<='} {self.limit:g}", self.found, "yes" if self.met else "no"]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line; its own options come on top of --json."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return found


def show(as_json: bool, record: Mapping[str, Any], tables: Sequence[str], bars: Sequence[Bar] = ()) -> None:
    """Print what a benchmark found, and where: the record, or its tables."""
    if as_json:
        kept = [asdict(bar) | {"met": bar.met} for bar in bars]
        print(json.dumps({"machine": machine(), **record, "bars": kept}, indent=1))
    else:
        print("\n\n".join([*tables, *([bar_table(bars)] if bars else []), machine_line()]))


def bar_table(bars: Sequence[Bar]) -> str:
    """A table of promises and what was found."""
    return table(["bar", "asked", "found", "met"], [bar.row() for bar in bars])


def machine() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    import torch

    model = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(str, sys.argv[1:])]),
    }


def machine_line() -> str:
    """`machine` in one line."""
    where = machine()
    gpu = f", {where['gpu']}" if where["gpu"] else ""
    place = f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads{gpu}"
    return f"{where['date']}; {place}; torch {where['torch']}; `{where['command']}`"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats get three significant digits, None is blank."""
    lines = [list(header), ["---"] * len(header), *([_cell(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else str(value)


def as_json(timing: Timing) -> dict[str, Any]:
    """A timing for `--json`."""
    return asdict(timing) | {"median": timing.median, "min": min(timing.seconds), "max": max(timing.seconds)}
