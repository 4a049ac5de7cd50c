"""What a search step does besides the network: data and optimizers, each alone and as a share of the step.

    python -m benchmarks.overhead [--spec SPEC] [--data FOLDER] [--rounds N] [--json]

A step here is one cycle of the search: a weight step and a gate step, with their two batches and both optimizers. All
parts take turns in one process. Batches come from memory, cropped and flipped as the spec says; `streamed` decodes
JPEG files in worker processes (files drawn for the occasion, or those of `--data`: train/ and test/ with a folder per
class) and is alone on the machine while it is measured.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.common import ROOT, Bar, Step, Timing, as_json, interleave, parser, show, table
from benchmarks.jobs import search_job
from runtime.data.dataset import Loader
from runtime.jobs.logs import Console
from runtime.search.search_job import SearchJob
from runtime.strategies.dso import Dso
from runtime.strategies.penalties import set_gammas
from runtime.training.heap import freed_memory_kept
from runtime.training.stages import Position
from runtime.training.step import Feed

CPU = torch.device("cpu")
STEP, DATA, WEIGHTS, GATES, LOOK = "whole step", "two batches", "weight optimizer", "gate optimizer", "new gammas"
FILES = 16384  # drawn where none are given


# -- the parts of a step ----------------------------------------------------------------------------------------------


def parts(job: SearchJob) -> dict[str, Step]:
    """A cycle of the search and what it is made of, the network left out."""
    stage = next(stage for stage in job.stages if stage.name == "search")
    feeds = [Feed(job.context.weights.loader), Feed(job.context.gates.loader)]
    cycles, batches = itertools.count(), itertools.count()
    net, strategy = job.net, job.strategy
    assert isinstance(strategy, Dso)

    def whole() -> None:
        job.step(stage, Position(1, 0, next(cycles)))

    def data() -> None:
        index = next(batches)
        for feed in feeds:
            feed.batch(0, index)

    whole()  # leaves gradients behind, which the optimizers then apply again and again
    return {
        STEP: whole,
        DATA: data,
        WEIGHTS: standing_still(net.weights),
        GATES: standing_still(strategy.gates),
        LOOK: new_gammas(strategy),
    }


def standing_still(optimizer: torch.optim.Optimizer) -> Step:
    """The optimizer's whole update at a rate of zero: it takes the same time, and the network stays as it is."""

    def step() -> None:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    return step


def new_gammas(strategy: Dso) -> Step:
    """The sparsity weights where the set of zero gates has changed since the step before: the worst case."""
    vectors = strategy.net.gate_vectors
    vector = next(iter(vectors.values())).detach()
    values = itertools.cycle([0.0, float(vector[0])])

    def step() -> None:
        vector[0] = next(values)
        set_gammas(strategy.penalty, strategy.gates, vectors)

    return step


# -- data alone -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pipeline:
    """A loader measured alone: median over its epochs."""

    name: str
    images: int  # in an epoch
    images_per_second: float  # from the first batch on
    seconds_to_first: float  # until the first batch is there: workers start


def pipeline(name: str, loader: Loader, epochs: int) -> Pipeline:
    """Run a training loader and do nothing with its batches."""
    rates, starts = [], []
    count = len(loader) * loader.batch_size
    for epoch in range(epochs):
        start = time.perf_counter()
        batches = loader.batches(epoch)
        next(batches)
        first = time.perf_counter()
        for _ in batches:
            pass
        rates.append((count - loader.batch_size) / (time.perf_counter() - first))
        starts.append(first - start)
    return Pipeline(name, count, statistics.median(rates), statistics.median(starts))


def draw_files(folder: Path, size: tuple[int, int], count: int) -> None:
    """JPEG files of random pixels, which cost the most to decode: ten classes in train/, one image each in test/."""
    generator = torch.Generator().manual_seed(0)
    for part, each in (("train", count // 10 + 1), ("test", 1)):
        for label in range(10):
            (folder / part / f"class{label}").mkdir(parents=True)
            for index in range(each):
                pixels = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / part / f"class{label}" / f"{index:05d}.jpg")


def streamed(spec: str, files: Path, workers: int, epochs: int, batch: int) -> Pipeline:
    """The same pipeline with every image decoded from its file."""
    settings = ["data.name=folder", f"data.root={files}", "data.in_memory=false", f"data.workers={workers}"]
    job, _ = search_job(spec, [*settings, f"search.batch_size={batch}"], files, CPU, Console(quiet=True))
    return pipeline(f"streamed, {workers} workers", job.context.weights.loader, epochs)


# -- the report -------------------------------------------------------------------------------------------------------


def shares(timings: dict[str, Timing]) -> dict[str, float]:
    """Each part's share of a step: the median over the rounds."""
    whole = timings[STEP].seconds
    return {
        name: statistics.median(own / all_ for own, all_ in zip(timing.seconds, whole, strict=True))
        for name, timing in timings.items()
    }


@freed_memory_kept()  # as in every search
def measure(job: SearchJob, rounds: int) -> dict[str, Timing]:
    """All parts in turns."""
    return interleave(parts(job), rounds)


def pipelines(job: SearchJob, args: argparse.Namespace) -> list[Pipeline]:
    """From memory, and streamed by so many workers."""
    loader, data = job.context.weights.loader, args.data
    found = [pipeline("memory", loader, args.epochs)]
    with tempfile.TemporaryDirectory(prefix="graphspec-bench-") as folder:
        if data is None:
            data = Path(folder)
            draw_files(data, loader.images.size, FILES)
        found += [streamed(args.spec, data, workers, args.epochs, loader.batch_size) for workers in args.workers]
    return found


def report(timings: dict[str, Timing], found: list[Pipeline]) -> list[str]:
    """A table of the parts and one of the pipelines."""
    share = shares(timings)
    rows = [
        [name, *(1000 * x for x in (t.median, min(t.seconds), max(t.seconds))), 100 * share[name]]
        for name, t in timings.items()
    ]
    return [
        table(["part", "median ms", "min", "max", "% of a step"], rows),
        table(
            ["data alone", "images an epoch", "images/s", "ms to the first batch"],
            [[p.name, p.images, p.images_per_second, 1000 * p.seconds_to_first] for p in found],
        ),
    ]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--spec", default=str(ROOT / "specs" / "dso_nas_cifar10_small.yaml"))
    options.add_argument("--data", type=Path, help="image files to stream; default: some are drawn")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--epochs", type=int, default=3, help="epochs of every data pipeline")
    options.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="processes that decode files")
    options.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="graphspec-bench-") as folder:
        fake = ["data.name=fake", "data.fake_size=4096"]
        job, _ = search_job(args.spec, [*fake, *args.settings], Path(folder), CPU, Console(quiet=True))
        timings = measure(job, args.rounds)
    found = pipelines(job, args)
    share = shares(timings)
    together = 100 * (share[DATA] + share[WEIGHTS] + share[GATES] + share[LOOK])
    record: dict[str, Any] = {
        "parts": {name: as_json(timing) | {"share": share[name]} for name, timing in timings.items()},
        "pipelines": [vars(p) for p in found],
    }
    show(args.json, record, report(timings, found), [Bar("data and optimizers, % of a step", together, 8.0)])


if __name__ == "__main__":
    main()
