"""What pruning while searching saves: the same search with and without it, in turns.

    python -m benchmarks.search [--data FOLDER] [--seeds 0,1] [--set KEY=VALUE] [--json]

Both searches are whole ones, with validation and checkpoints, from the same seed; without pruning `search.prune.every`
is 0, so that edges go only at the end. They advance in one process an epoch at a time, so that both see the same
machine. `--data` is a folder with train/ and test/, a folder of images per class in each; without it the digits are
searched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Bar, parser, show, table
from benchmarks.jobs import search_job
from runtime.jobs.logs import Console, MetricsLog
from runtime.jobs.signals import StopFlag
from runtime.processes.world import ALONE
from runtime.rundir.checkpoint import CheckpointStore
from runtime.training.heap import freed_memory_kept
from runtime.training.loop import Loop
from runtime.training.step import choose_device

WITH, WITHOUT = "pruning", "without"
NEVER = "search.prune.every=0"


class _EpochEnds(Exception):  # noqa: N818  (nothing went wrong)
    """An epoch is over, and the other search comes next."""


@dataclass
class Search:
    """A search that advances by epochs; `seconds` holds what each epoch took, validation and checkpoint included."""

    loop: Loop
    folder: Path
    validation_images: int
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, spec: str, settings: list[str], folder: Path, device: str) -> Search:
        """A fresh search in a folder of its own."""
        console = Console(quiet=True)
        job, config = search_job(spec, settings, folder, choose_device(device), console)
        keep = config.search.checkpoint
        store = CheckpointStore(folder / "checkpoints", keep.keep, console.warn)
        log = MetricsLog(folder, console.warn)
        loop = Loop(job, ALONE, store, log, console, StopFlag(), config.seed, keep, "", _end_turn)
        return cls(loop, folder, len(job.context.split.validation))

    def advance(self) -> bool:
        """Another epoch; False if there is none left."""
        before, start = self.loop.position, time.perf_counter()
        with contextlib.suppress(_EpochEnds):
            self.loop.run()
        if self.loop.position.stage == len(self.loop.job.stages):
            return False
        assert self.loop.position != before
        self.seconds.append(time.perf_counter() - start)
        return True

    def records(self) -> list[dict[str, Any]]:
        """What every epoch ended with, and its seconds."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) | {"seconds": s} for line, s in zip(lines, self.seconds, strict=True)]


def _end_turn() -> None:
    raise _EpochEnds


@dataclass(frozen=True)
class Outcome:
    """One search."""

    variant: str
    seed: int
    seconds: float
    search_seconds: float  # of the search stage: without pretraining
    accuracy: float  # of the pruned supernet, on the validation images
    images: int  # validation images
    edges: int
    epochs: list[dict[str, Any]]  # stage, seconds, edges and accuracy

    @classmethod
    def of(cls, variant: str, seed: int, search: Search) -> Outcome:
        """From a search that has ended."""
        records = search.records()
        wanted = ("stage", "epoch", "seconds", "edges", "zero_gates", "flops", "accuracy")
        return cls(
            variant=variant,
            seed=seed,
            seconds=sum(r["seconds"] for r in records),
            search_seconds=sum(r["seconds"] for r in records if r["stage"] == "search"),
            accuracy=records[-1]["accuracy"],
            images=search.validation_images,
            edges=records[-1]["edges"],
            epochs=[{key: r[key] for key in wanted} for r in records],
        )


def duel(args: argparse.Namespace, settings: list[str], seed: int, folder: Path) -> list[Outcome]:
    """Both searches of a seed, an epoch of each in turn; which goes first alternates."""
    seeded = [*settings, f"seed={seed}"]
    searches = {
        WITH: Search.start(args.spec, seeded, folder / f"{WITH}-{seed}", args.device),
        WITHOUT: Search.start(args.spec, [*seeded, NEVER], folder / f"{WITHOUT}-{seed}", args.device),
    }
    order, going = list(searches), True
    with freed_memory_kept():
        while going:
            advanced = [searches[name].advance() for name in order]
            going = any(advanced)
            order.reverse()
    return [Outcome.of(name, seed, search) for name, search in searches.items()]


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{deviation}"


def bars(outcomes: list[Outcome]) -> list[Bar]:
    """Ratios within a seed, their mean over the seeds; accuracy may differ by two standard errors."""
    pairs = list(zip(*[[o for o in outcomes if o.variant == v] for v in (WITH, WITHOUT)], strict=True))
    whole = statistics.mean(slow.seconds / fast.seconds for fast, slow in pairs)
    stage = statistics.mean(slow.search_seconds / fast.search_seconds for fast, slow in pairs)
    lost = statistics.mean(slow.accuracy - fast.accuracy for fast, slow in pairs)
    share = statistics.mean(o.accuracy for o in outcomes)
    noise = 2 * math.sqrt(2 * share * (1 - share) / sum(fast.images for fast, _ in pairs))
    return [
        Bar("speed of the whole search with pruning", whole, 1.5, at_least=True),
        Bar("speed of the search stage with pruning", stage, 1.5, at_least=True),
        Bar("points of accuracy lost by it", 100 * lost, round(100 * noise, 1)),
    ]


def report(outcomes: list[Outcome]) -> list[str]:
    """A table of the searches."""
    rows = []
    for variant in (WITH, WITHOUT):
        own = [o for o in outcomes if o.variant == variant]
        columns = [[o.seconds for o in own], [o.search_seconds for o in own], [100 * o.accuracy for o in own]]
        rows.append([variant, *map(_spread, columns), _spread([float(o.edges) for o in own])])
    return [table(["search", "seconds", "of them the search stage", "validation accuracy %", "edges left"], rows)]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--spec", help="default: specs/dso_nas_cifar10_small.yaml with --data, else specs/digits.yaml")
    options.add_argument("--data", type=Path, help="folder with train/ and test/")
    options.add_argument("--seeds", default="0", help="seeds, separated by commas")
    options.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    args.spec = args.spec or str(ROOT / "specs" / ("dso_nas_cifar10_small.yaml" if args.data else "digits.yaml"))
    data = ["data.name=folder", f"data.root={args.data.resolve()}"] if args.data else []
    with tempfile.TemporaryDirectory(prefix="graphspec-bench-") as folder:
        seeds = [int(seed) for seed in args.seeds.split(",")]
        outcomes = [o for seed in seeds for o in duel(args, [*data, *args.settings], seed, Path(folder))]
    show(args.json, {"outcomes": [asdict(o) for o in outcomes]}, report(outcomes), bars(outcomes))


if __name__ == "__main__":
    main()
