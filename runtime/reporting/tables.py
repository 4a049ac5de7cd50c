"""Tables of the report: costs against the full space, timings, settings, commands, seeds, exported files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from compiler.analysis.costs import CostLine, cost_table
from compiler.ir.graph import Graph
from compiler.language.config import Configuration
from compiler.language.overrides import changes
from compiler.ops import Cost
from runtime.reporting.record import Record, RunRecord, by_stage
from runtime.rundir.facts import DataFacts
from runtime.rundir.study import at, summary_table
from runtime.rundir.trials import Trials

PERCENT = "{:.2%}"
NOTHING = CostLine("", "", 0, 0, 0, Cost())


@dataclass(frozen=True)
class CostRow:
    """A block, a stage or the total, in the full space and as found (None while nothing is found)."""

    name: str
    kind: str  # `block`, `stage` or `total`
    edges: int
    kept_edges: int | None
    before: Cost
    after: Cost | None


def cost_rows(graph: Graph, kept: Graph | None) -> list[CostRow]:
    """Stages with their blocks, then the total. A block of which nothing is left costs nothing."""
    full, left = cost_table(graph), None if kept is None else cost_table(kept)
    found = {row.name: row for row in (*left.stages, *left.blocks)} if left else None
    stage_of = {block.id: block.stage for block in graph.blocks}
    rows = []
    for stage in full.stages:
        blocks = [row for row in full.blocks if stage_of[row.name] == stage.name]
        if [row.name for row in blocks] != [stage.name]:
            rows.append(_cost_row("stage", stage, found))
        rows += [_cost_row("block", row, found) for row in blocks]
    return [*rows, _cost_row("total", full.total, {full.total.name: left.total} if left else None)]


def _cost_row(kind: str, row: CostLine, left: Mapping[str, CostLine] | None) -> CostRow:
    if left is None:
        return CostRow(row.name, kind, row.edges, None, row.cost, None)
    found = left.get(row.name, NOTHING)
    return CostRow(row.name, kind, row.edges, found.edges, row.cost, found.cost)


@dataclass(frozen=True)
class TimingRow:
    """How long one stage of one job took so far."""

    stage: str
    epochs: int
    seconds: float
    first_rate: float  # images per second in the first tenth of the epochs
    last_rate: float  # and in the last tenth

    @property
    def speed_up(self) -> float:
        """How much faster the last epochs were than the first."""
        return self.last_rate / self.first_rate


def timing_rows(timings: Sequence[Record]) -> list[TimingRow]:
    """One row a stage, in the order they ran; medians over tenths keep one slow epoch from deciding."""
    rows = []
    for stage, records in by_stage(timings).items():
        tenth = max(1, len(records) // 10)
        rates = [float(record["images_per_second"]) for record in records]
        seconds = sum(float(record["seconds"]) for record in records)
        rows.append(TimingRow(stage, len(records), seconds, median(rates[:tenth]), median(rates[-tenth:])))
    return rows


@dataclass(frozen=True)
class Setting:
    """One key of the configuration."""

    key: str
    value: str
    default: bool


def settings(config: Record) -> list[Setting]:
    """Every key with its value, dotted, and whether it is the default."""
    defaults = dict(flat(Configuration().model_dump(mode="json")))
    return [Setting(key, json.dumps(value), defaults.get(key) == value) for key, value in flat(config)]


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested maps by dotted key."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flat(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item


def commands(record: RunRecord, spec: Path) -> list[str]:
    """What to type to get this run again; `spec` is the resolved spec that the run directory keeps."""
    export = f" {shlex.quote(f'{record.path}/seeds/{next(iter(record.seeds))}')}" if record.seeds else ""
    return [
        f"graphspec compile {shlex.quote(str(spec))}",
        *(command for job in record.jobs for command in _job_commands(record, job)),
        f"graphspec export{export}",
        "graphspec report",
    ]


def _job_commands(record: RunRecord, job: str) -> list[str]:
    """The command of a job; of a study, one for all seeds that ran with the same settings."""
    if record.jobs[job].started or not record.seeds:
        return [" ".join(["graphspec", job, *_overrides(record.config, record.jobs[job].config)])]
    seeds: dict[tuple[str, ...], list[str]] = {}
    for seed, run in record.seeds.items():
        seeds.setdefault(_overrides(record.config, run.jobs[job].config, without=("seed",)), []).append(str(seed))
    return [" ".join(["graphspec", job, "--seeds", ",".join(some), *words]) for words, some in seeds.items()]


def _overrides(compiled: Record, ran_with: Record | None, without: Sequence[str] = ()) -> tuple[str, ...]:
    """`--set` for what a job ran with and what was not compiled into its run."""
    changed = [each for each in changes(compiled, ran_with or compiled) if each.key not in without]
    return tuple(shlex.quote(word) for override in changed for word in override.words)


@dataclass(frozen=True)
class Grid:
    """A plain table made of JSON."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(value: Any, title: str = "") -> list[Grid]:
    """Any JSON as tables: maps as key and value, lists of maps as rows, deeper maps as tables of their own."""
    if _is_table(value):
        return [_grid(title, value)]
    if not isinstance(value, Mapping):
        return [Grid(title, (), ((cell(value),),))]
    deep = {k: v for k, v in value.items() if isinstance(v, Mapping) or _is_table(v)}
    plain = tuple((str(k), cell(v)) for k, v in value.items() if k not in deep)
    found = [Grid(title, (), plain)] if plain else []
    if _are_rows(list(deep.values())):
        return [*found, _grid(title if not found else "", [{"": key, **item} for key, item in deep.items()])]
    for key, item in deep.items():
        found += grids(item, f"{title} / {key}" if title else str(key))
    return found


def _grid(title: str, items: Sequence[Record]) -> Grid:
    """A row for each item, a column for each key."""
    heads = tuple(dict.fromkeys(key for item in items for key in item))
    return Grid(title, heads, tuple(tuple(cell(item.get(head)) for head in heads) for item in items))


def _are_rows(values: list[Any]) -> bool:
    """Whether these are several maps with the same plain entries: rows of one table."""
    if len(values) < 2 or not all(isinstance(value, Mapping) and value.keys() == values[0].keys() for value in values):
        return False
    return not any(isinstance(item, Mapping) or _is_table(item) for value in values for item in value.values())


def _is_table(value: Any) -> bool:
    """Whether this is a list of maps."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def cell(value: Any) -> str:
    """A JSON value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    return str(value)


def data_table(facts: DataFacts) -> Grid:
    """Images by class and part; of a task without classes, or where a part lacks one, all of them together."""
    parts = (facts.train, facts.test)
    rows = [("all", *(f"{part.images:,}" for part in parts))]
    if all(len(part.counts) == len(facts.labels) for part in parts):
        counts = zip(facts.labels, facts.train.counts, facts.test.counts, strict=True)
        rows += [(label, f"{train:,}", f"{test:,}") for label, train, test in counts]
    return Grid("", ("class", "training and validation", "test"), tuple(rows))


def seed_tables(record: RunRecord) -> list[Grid]:
    """For each job a row for every seed that finished it, then mean and sample standard deviation."""
    found = []
    for name, job in record.jobs.items():
        results = {seed: one.jobs[name].result for seed, one in record.seeds.items()}
        finished = {seed: result for seed, result in results.items() if result is not None}
        if finished and not job.started:
            heads, *rows = summary_table(name, record.task, finished)
            found.append(Grid(name, heads, tuple(rows)))
    return found


def trials_table(trials: Trials) -> Grid:
    """What plain and other networks reached and cost."""
    heads, *rows = trials.table()
    return Grid("", heads, tuple(rows))


FILE = ("kind", "path", "bytes", "nodes")
COMPARED = ("images", "network", "threads", "batch", "max_abs", "max_rel", "agreement")
TIMES = ("median_ms", "p90_ms", "p99_ms", "images_per_second", "runs")
HEADS = {
    "kind": "form",
    "path": "file",
    "max_abs": "absolute error",
    "max_rel": "relative error",
    "median_ms": "median, ms",
    "p90_ms": "90%, ms",
    "p99_ms": "99%, ms",
    "images_per_second": "images/s",
}
"""Of the keys in the files that `graphspec export` writes; the task has more."""


def parity_tables(record: RunRecord) -> list[Grid]:
    """The files with their metrics, then every comparison of outputs; empty before the export."""
    parts = {"Files": ("files",), "Outputs beside those of torch": ("parity", "cases")}
    return [grid for title, keys in parts.items() for grid in _exported(record, title, at(record.parity, *keys))]


def latency_tables(record: RunRecord) -> list[Grid]:
    """Times of torch and of every file; empty where none were measured."""
    device = at(record.latency, "device")
    return _exported(record, f"Latency, {device}" if device else "Latency", at(record.latency, "latencies"))


def _exported(record: RunRecord, title: str, rows: Any) -> list[Grid]:
    """A table of JSON rows, known keys in their order; none if there are no such rows."""
    if not _is_table(rows):
        return []
    metrics = record.task.metrics
    heads = {**HEADS, "agreement": f"{record.task.same} as torch", **{m.name: f"test {m.title}" for m in metrics}}
    forms = {"agreement": PERCENT, **{m.name: m.form for m in metrics}}
    known = (*FILE, *(m.name for m in metrics), *COMPARED, *TIMES)
    keys = [key for key in known if all(key in row for row in rows)]
    body = tuple(tuple(formatted(row[key], forms.get(key)) for key in keys) for row in rows)
    return [Grid(title, tuple(heads.get(key, key) for key in keys), body)]


def formatted(value: Any, form: str | None) -> str:
    """A number in this form; whatever else as `cell` shows it."""
    return form.format(value) if form and isinstance(value, int | float) else cell(value)
