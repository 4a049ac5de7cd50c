"""Tables and figures of the report: costs against the full space, timings, settings, commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from compiler.analysis.costs import CostTable, Row, cost_table
from compiler.ir.graph import Graph
from compiler.language.config import Configuration
from compiler.language.overrides import changes
from compiler.ops import Cost
from runtime.reporting.record import Record, RunRecord


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
    full = cost_table(graph)
    left = cost_table(kept) if kept is not None else None
    rows = []
    stage_of = {block.id: block.stage for block in graph.blocks}
    for stage in full.stages:
        blocks = [row for row in full.blocks if stage_of[row.name] == stage.name]
        if [row.name for row in blocks] != [stage.name]:
            rows.append(_cost_row(stage, "stage", _by_name(left, "stages")))
        rows += [_cost_row(row, "block", _by_name(left, "blocks")) for row in blocks]
    total = {full.total.name: left.total} if left is not None else None
    return [*rows, _cost_row(full.total, "total", total)]


def _by_name(table: CostTable | None, part: str) -> dict[str, Row] | None:
    return None if table is None else {row.name: row for row in getattr(table, part)}


def _cost_row(row: Row, kind: str, left: Mapping[str, Row] | None) -> CostRow:
    if left is None:
        return CostRow(row.name, kind, row.edges, None, row.cost, None)
    found = left.get(row.name)
    after = (found.edges, found.cost) if found else (0, Cost())
    return CostRow(row.name, kind, row.edges, after[0], row.cost, after[1])


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
    stages: dict[str, list[Record]] = {}
    for record in timings:
        stages.setdefault(str(record["stage"]), []).append(record)
    rows = []
    for stage, records in stages.items():
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
    if isinstance(value, list):
        if value and all(isinstance(item, Mapping) for item in value):
            heads = tuple(dict.fromkeys(key for item in value for key in item))
            return [Grid(title, heads, tuple(tuple(cell(item.get(head)) for head in heads) for item in value))]
        return [Grid(title, (), ((cell(value),),))]
    if not isinstance(value, Mapping):
        return [Grid(title, (), ((cell(value),),))]
    deep = {k: v for k, v in value.items() if isinstance(v, Mapping) or _is_table(v)}
    plain = tuple((str(k), cell(v)) for k, v in value.items() if k not in deep)
    found = [Grid(title, (), plain)] if plain else []
    if _are_rows(list(deep.values())):
        heads = tuple(dict.fromkeys(key for item in deep.values() for key in item))
        rows = tuple((str(k), *(cell(item.get(head)) for head in heads)) for k, item in deep.items())
        return [*found, Grid(title if not found else "", ("", *heads), rows)]
    for key, item in deep.items():
        found += grids(item, f"{title} / {key}" if title else str(key))
    return found


def _are_rows(values: list[Any]) -> bool:
    """Whether these are several maps with the same plain entries: rows of one table."""
    if len(values) < 2 or not all(isinstance(value, Mapping) and value.keys() == values[0].keys() for value in values):
        return False
    return not any(isinstance(item, Mapping) or _is_table(item) for value in values for item in value.values())


def _is_table(value: Any) -> bool:
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


__all__ = [
    "CostRow", "Grid", "Setting", "TimingRow", "cell", "commands", "cost_rows", "flat", "grids", "settings",
    "timing_rows",
]  # fmt: skip
