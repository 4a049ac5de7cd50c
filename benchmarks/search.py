"""What pruning while searching saves: the same search with and without it, in turns.

    python -m benchmarks.search [--data FOLDER] [--images N] [--width C] [--epochs N] [--seeds 0,1] [--json]

Both searches are whole ones, with validation and checkpoints, from the same seed; without pruning `search.prune.every`
is 0, so that edges go only at the end. They advance in one process an epoch at a time, so that both see the same
machine. `--data` is a folder with train/ and test/, a folder of images per class in each, of which `--images` takes the
first N of every class; without it the digits are searched. Fewer images mean fewer steps: `--set search.gates.gamma=G`
makes up for them, so that gates reach zero as early in the search as they do with all images.
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
        return cls(loop, folder, len(job.split.validation))

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


def subset(data: Path, images: int, folder: Path) -> Path:
    """Links to the first so many training and test images of every class."""
    for part in ("train", "test"):
        for source in sorted(path for path in (data / part).iterdir() if path.is_dir()):
            target = folder / part / source.name
            target.mkdir(parents=True)
            for image in sorted(source.iterdir())[:images]:
                (target / image.name).symlink_to(image.resolve())
    return folder


def settings_of(args: argparse.Namespace, folder: Path) -> list[str]:
    """The spec's settings for what the command line asks for."""
    chosen = {"symbols.width": args.width, "search.epochs": args.epochs, "search.pretrain_epochs": args.pretrain}
    found = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    if args.data is not None:
        root = subset(args.data, args.images, folder / "images") if args.images else args.data.resolve()
        found += ["data.name=folder", f"data.root={root}"]
    return found + list(args.settings)


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
    """A table of the searches and one of the epochs of the first seed."""
    rows = []
    for variant in (WITH, WITHOUT):
        own = [o for o in outcomes if o.variant == variant]
        columns = [[o.seconds for o in own], [o.search_seconds for o in own], [100 * o.accuracy for o in own]]
        rows.append([variant, *map(_spread, columns), _spread([float(o.edges) for o in own])])
    first, second = outcomes[:2]
    epochs = [
        [f"{a['stage']} {a['epoch']}", a["seconds"], b["seconds"], a["edges"], b["edges"],
         100 * a["accuracy"], 100 * b["accuracy"]]
        for a, b in zip(first.epochs, second.epochs, strict=True)
    ]  # fmt: skip
    both = [f"{name}, {variant}" for name in ("seconds", "living edges", "validation %") for variant in (WITH, WITHOUT)]
    header = ["search", "seconds", "of them the search stage", "validation accuracy %", "edges left"]
    return [table(header, rows), table([f"epoch, seed {first.seed}", *both], epochs)]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--spec", help="default: specs/cifar10_small.yaml with --data, else specs/digits.yaml")
    options.add_argument("--data", type=Path, help="folder with train/ and test/")
    options.add_argument("--images", type=int, help="training images per class; default: all")
    options.add_argument("--width", type=int, help="channels of the first stage")
    options.add_argument("--epochs", type=int, help="of the search stage")
    options.add_argument("--pretrain", type=int, help="epochs before it")
    options.add_argument("--seeds", default="0", help="seeds, separated by commas")
    options.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    args.spec = args.spec or str(ROOT / "specs" / ("cifar10_small.yaml" if args.data else "digits.yaml"))
    with tempfile.TemporaryDirectory(prefix="graphspec-bench-") as name:
        folder = Path(name)
        settings = settings_of(args, folder)
        outcomes = [o for seed in args.seeds.split(",") for o in duel(args, settings, int(seed), folder)]
    show(args.json, {"outcomes": [asdict(o) for o in outcomes]}, report(outcomes), bars(outcomes))


if __name__ == "__main__":
    main()
