"""Does the search pay? What it finds beside plain networks, random ones of its space and permuted gates, seed by seed.

    python -m benchmarks.proof --data FOLDER --work WORK [--spec SPEC] [--seeds 0 1 2 3 4] [--rows NAME ...]
        [--plain NAME ...] [--set KEY=VALUE ...]

The found network is searched and retrained as SPEC says, on the images in FOLDER (`train/<class>/`, `test/<class>/`).
All others have as many multiply-adds at most. `plain` ones train for as many epochs as search and retraining together,
or (`equal CPU`) for as many CPU seconds; `random` and `permuted` networks of the space (drawn edges and widths; those
that were found, on other places) for as many epochs, from scratch. The metric is that of the test images, latency that
of onnxruntime, one thread, batch 1. Trainings and rows that WORK has already are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Bar, parser, show, table
from compiler.architecture.plain import PLAIN
from graphspec import api
from graphspec.trials import SCRATCH, Trainings, total_epochs
from runtime.jobs.options import JobOptions
from runtime.jobs.run_retrain import found_network
from runtime.rundir.directory import Opened, RunDir
from runtime.rundir.network import read_architecture
from runtime.rundir.trials import FOUND, RANDOM, Row, cpu_seconds, found_row, standard_error
from runtime.strategies.random import permuted_levels, random_levels
from runtime.tasks.base import Metric
from runtime.tasks.table import TASKS

PERMUTED, CPU = "permuted", ", equal CPU"
ROWS = (FOUND, "plain", f"plain{CPU}", RANDOM, PERMUTED)
MEANS = ("params", "flops", "ms", "epochs", "search_s", "training_s")
FAMILIES = ("inverted", "residual", "residual_fine")


@dataclass
class Seed:
    """All trainings of one seed."""

    seed: int
    folder: Path
    opened: Opened  # of the found network, searched and retrained
    found: Row

    @classmethod
    def of(cls, args: argparse.Namespace, seed: int) -> Seed:
        """Search and retrain, unless that is done."""
        folder = args.work / f"seed-{seed}"
        run = RunDir(folder / "found")
        if not run.graph_json.is_file():
            data = [] if args.data is None else ["data.name=folder", f"data.root={args.data.absolute()}"]
            api.compile(args.spec, out=run.path, overrides=[*data, *args.settings, f"seed={seed}"], root=folder)
        api.search(run, resume=True, quiet=True)
        api.retrain(run, resume=True, quiet=True)
        opened = api.open_run(run)
        trainings = cls._trainings(opened, folder, {}, 0)
        found = found_row(run, trainings.task, trainings.ms([found_network(opened).model.graph]))
        assert found is not None
        return cls(seed, folder, opened, found)

    @property
    def metric(self) -> Metric:
        """What networks are compared by."""
        return TASKS.load(self.opened.spec.config.task).metrics[0]

    @staticmethod
    def _trainings(opened: Opened, folder: Path, limit: dict[str, int], epochs: int) -> Trainings:
        return Trainings(opened, folder, limit, epochs, "the benchmark in another folder", JobOptions(quiet=True))

    def rows(self, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
        """Every row that is asked for, as soon as it is known."""
        epochs, limit = total_epochs(self.opened), {"flops": round(self.found.flops)}
        search, training = (cpu_seconds(job) or 0.0 for job in (self.opened.run.search, self.opened.run.retrain))
        if FOUND in args.rows:
            yield self._record(FOUND, self.found, epochs, search, training)
        equal = self._trainings(self.opened, self.folder / "plain", limit, epochs)
        for network in args.plain if {"plain", f"plain{CPU}"} & {*args.rows} else ():
            equal.plain(network, self.seed)
            [row] = [row for row in equal.rows() if row.network == network]
            yield self._record(f"plain {network}", row, epochs)
            if f"plain{CPU}" in args.rows:
                more = max(1, round(epochs * (search + training) / (row.cpu_seconds or math.inf)))
                longer = self._trainings(self.opened, self.folder / f"plain-{network}-cpu", limit, more)
                longer.plain(network, self.seed)
                yield self._record(f"plain {network}{CPU}", longer.rows()[0], more)
        drawn = {"retrain.epochs": epochs, **SCRATCH, "budget.flops": limit["flops"], "budget.params": None}
        space = api.open_run(self.opened.run, drawn)
        gates = read_architecture(space.run.search.arch).model(space.graph).gates
        levels = {
            RANDOM: random_levels(space.graph, self.seed),
            PERMUTED: permuted_levels(space.graph, {g: v for g, v in gates.items() if v}, self.seed),
        }
        for name in (name for name in levels if name in args.rows):
            trainings = self._trainings(space, self.folder / "drawn", limit, epochs)
            trainings.drawn(name, self.seed, levels[name])
            yield self._record(name, trainings.rows()[0], epochs)

    def _record(
        self, name: str, row: Row, epochs: int, search: float = 0.0, training: float | None = None
    ) -> dict[str, Any]:
        return {
            "row": name, "seed": self.seed, "value": row.values[0], "images": row.images, "params": row.params,
            "flops": row.flops, "ms": row.ms, "epochs": epochs, "search_s": search,
            "training_s": row.cpu_seconds if training is None else training,
        }  # fmt: skip


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all seeds, kept in WORK as soon as they are known."""
    kept = args.work / "rows.jsonl"
    results = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {(one["row"], one["seed"]) for one in results}
    for seed in args.seeds:
        for record in Seed.of(args, seed).rows(args):
            if (record["row"], seed) not in known:
                results.append(record)
                with kept.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    return results


def joined(results: Sequence[dict[str, Any]], name: str) -> Row:
    """The row of a network over its seeds."""
    some = [one for one in results if one["row"] == name]
    return Row(
        network=name,
        runs=(),
        values=tuple(one["value"] for one in some),
        images=some[0]["images"],
        **{key: statistics.fmean(one[key] for one in some) for key in ("params", "flops", "ms")},
        cpu_seconds=statistics.fmean(one["search_s"] + one["training_s"] for one in some),
    )


def lines_of(results: Sequence[dict[str, Any]], metric: Metric) -> list[list[object]]:
    """The lines of the table: means over the seeds, and the deviation of the metric."""
    lines: list[list[object]] = []
    for name in dict.fromkeys(one["row"] for one in results):
        some = [one for one in results if one["row"] == name]
        means = [statistics.fmean(one[key] for one in some) for key in MEANS]
        lines.append([name, len(some), joined(results, name).figure.text(metric.form), *means])
    return lines


def bars_of(results: Sequence[dict[str, Any]], metric: Metric) -> list[Bar]:
    """What the found network has to be: better than the best plain one and than drawn ones, and as fast."""
    rows = {name: joined(results, name) for name in dict.fromkeys(one["row"] for one in results)}
    if FOUND not in rows:
        return []
    found, unit = rows[FOUND], metric.unit
    gains = {name: -metric.lost(row.figure.mean, found.figure.mean) for name, row in rows.items()}
    errors = {name: 100 * (standard_error(metric, found, row) or 0.0) for name, row in rows.items()}
    plain = sorted((name for name in rows if name.startswith("plain")), key=gains.__getitem__)
    bars = []
    for name in [name for name in plain if not name.endswith(CPU)][:1]:
        bars.append(Bar(f"{unit} above {name}", gains[name], 1.0, at_least=True))
        bars.append(Bar(f"times the latency of {name}", (found.ms or 0.0) / (rows[name].ms or math.inf), 1.1))
    for name in [name for name in plain if name.endswith(CPU)][:1]:
        bars.append(Bar(f"{unit} below {name}, and the standard error", -gains[name], errors[name]))
    for name in [name for name in rows if name in (RANDOM, PERMUTED)]:
        bars.append(Bar(f"{unit} above {name}, and the standard error", gains[name], errors[name], at_least=True))
    return bars


def main() -> None:
    """Train what is missing, and print."""
    options = parser(__doc__)
    options.add_argument("--data", type=Path, help="folder of images; default: the data of SPEC")
    options.add_argument("--spec", default=str(ROOT / "specs" / "own_images.yaml"), help="default: own_images")
    options.add_argument("--work", required=True, type=Path, help="folder to keep all in")
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    options.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    options.add_argument("--plain", nargs="*", choices=tuple(PLAIN), default=list(FAMILIES), help="plain networks")
    options.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    args = options.parse_args()
    args.work = args.work.absolute()
    args.work.mkdir(parents=True, exist_ok=True)
    results = measured(args)
    metric = Seed.of(args, args.seeds[0]).metric
    header = [
        "row",
        "seeds",
        f"test {metric.title}",
        "params",
        "FLOPs",
        "ms",
        "epochs",
        "search CPU s",
        "training CPU s",
    ]
    show(args.json, {"rows": results}, [table(header, lines_of(results, metric))], bars_of(results, metric))


if __name__ == "__main__":
    main()
