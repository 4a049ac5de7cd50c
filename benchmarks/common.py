"""Measuring on a shared machine: interleaved variants, ratios within a round, memory in child processes.

Absolute times drift with what else the machine does; variants that take turns in one process see the same drift, so
the ratio of two of them in the same round is what to trust.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from compiler.ir.graph import Graph
    from compiler.language.spec import Spec

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


def shipped(name: str) -> tuple[Spec, Graph]:
    """A spec that ships, and its graph; of those that leave the number of classes to their data, with three."""
    from compiler.elaborate.builder import load
    from compiler.language.overrides import overrides_of

    path = ROOT / "specs" / f"{name}.yaml"
    counted = name not in ("own_images", "photos")
    return load(path, () if counted else overrides_of(["classes=3"]))


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
        self._before = resident()

    @property
    def peak_mib(self) -> float:
        """The most so far."""
        return _status("VmHWM") - self._before


def resident() -> float:
    """MiB of this process that are in memory now; needs Linux."""
    return _status("VmRSS")


def account(run: Callable[[], object]) -> tuple[int, int]:
    """By how many bytes what torch has allocated on the CPU grows until the end, and at most on the way."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    assert profiler.profiler is not None
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return now, most


def in_child(module: str, arguments: Sequence[str], settings: Mapping[str, str] | None = None) -> Any:
    """The JSON that `python -m module *arguments` prints as its last line; a fresh process has fresh memory.

    `settings` go into its environment.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict(settings or {})
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


# -- ceilings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches at best."""

    flops: dict[str, float]  # floating-point operations a second of a large matrix product, 2 per multiply-add
    bandwidth: float  # bytes a second of a copy, read and written bytes added up


def ceilings(device: torch.device, size: int | None = None, copied: int | None = None) -> Ceilings:
    """Measure a product of `size` x `size` matrices in fp32, tf32 (CUDA only) and bf16, and a copy of `copied` bytes.

    By default both are large for the device: 8192 and 1 GiB on CUDA, 2048 and 256 MiB on a CPU. A ceiling is the best
    of several rounds, over random numbers: zeros can run faster than real values.
    """
    import torch

    on_gpu = device.type == "cuda"
    size, copied = size or (8192 if on_gpu else 2048), copied or (2**30 if on_gpu else 2**28)
    flops = {}
    for name in ("fp32", "tf32", "bf16") if on_gpu else ("fp32", "bf16"):
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        with tensor_float(name == "tf32"):
            flops[name] = 2 * size**3 / best_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device)
    source = torch.randn(copied // 4, device=device)
    target = torch.empty_like(source)
    return Ceilings(flops, 2 * copied / best_seconds(lambda: target.copy_(source), device))


def best_seconds(step: Step, device: torch.device, rounds: int = 5, least: float = 0.05) -> float:
    """Smallest mean seconds of a step over rounds of so many runs in a row that each takes at least `least`."""
    step()
    times = 1
    while (taken := seconds_for(step, device, times)) < least:
        times = max(times + 1, round(1.2 * times * least / max(taken, 1e-6)))
    return min(taken, *(seconds_for(step, device, times) for _ in range(rounds - 1))) / times


def seconds_for(step: Step, device: torch.device, times: int = 1) -> float:
    """Seconds of wall clock until the device has done so many steps."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(times):
        step()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Wait until the device has done everything it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def finished(step: Step, device: torch.device) -> Step:
    """The step and the wait until the device has done it."""

    def run() -> None:
        step()
        wait_for(device)

    return run


@contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Within, float32 products and convolutions on CUDA use the tf32 units, or none of them do."""
    import torch

    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = allowed
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


class Clock:
    """How many seconds a benchmark still has; it stops by itself."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def is_over(self, what: str) -> bool:
        """Whether there is no time for something, which is said then."""
        if self.left <= 0:
            print(f"\nthe time is over: {what} comes another time")
        return self.left <= 0


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


def reason(error: Exception) -> str:
    """Why something failed: the first line of what the error says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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
