"""The part of a report about the exported model: how far it is from torch, its files, how long a run takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.reporting.record import RunRecord
from runtime.reporting.summary import PERCENT
from runtime.reporting.tables import Grid, cell

FILE = {"kind": "form", "path": "file", "bytes": "bytes", "nodes": "nodes"}
COMPARED = {
    "images": "images",
    "network": "network",
    "threads": "threads",
    "batch": "batch",
    "max_abs": "absolute error",
    "max_rel": "relative error",
}
TIMES = {
    "median_ms": "median, ms",
    "p90_ms": "90%, ms",
    "p99_ms": "99%, ms",
    "images_per_second": "images/s",
    "runs": "runs",
}
"""Keys of the files that `graphspec export` writes, as the table's heads say them; the task has more between them."""


def parity_tables(record: RunRecord) -> list[Grid]:
    """The files with their metrics, then every comparison of outputs; empty before the export."""
    parity = record.parity if isinstance(record.parity, Mapping) else {}
    compared = parity.get("parity")
    cases = compared.get("cases") if isinstance(compared, Mapping) else None
    return [*_table(record, "Files", parity.get("files")), *_table(record, "Outputs beside those of torch", cases)]


def latency_tables(record: RunRecord) -> list[Grid]:
    """Times of torch and of every file; empty where none were measured."""
    latency = record.latency if isinstance(record.latency, Mapping) else {}
    device = f", {latency['device']}" if "device" in latency else ""
    return _table(record, f"Latency{device}", latency.get("latencies"))


def _table(record: RunRecord, title: str, rows: Any) -> list[Grid]:
    """A table of JSON rows, known keys in their order; none if there are no such rows."""
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, Mapping) for row in rows):
        return []
    metrics, same = record.task.metrics, {"agreement": f"{record.task.same} as torch"}
    columns = {**FILE, **{m.name: f"test {m.title}" for m in metrics}, **COMPARED, **same, **TIMES}
    forms = {"agreement": PERCENT, **{m.name: m.form for m in metrics}}
    keys = [key for key in columns if all(key in row for row in rows)]
    body = tuple(tuple(_shown(row[key], forms.get(key)) for key in keys) for row in rows)
    return [Grid(title, tuple(columns[key] for key in keys), body)]


def _shown(value: Any, form: str | None) -> str:
    return form.format(value) if form and isinstance(value, int | float) else cell(value)


__all__ = ["latency_tables", "parity_tables"]
