"""The part of a report about the exported model: how far it is from torch, its files, how long a run takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.reporting.record import RunRecord
from runtime.reporting.tables import Grid, cell

COLUMNS = {
    "kind": "form",
    "path": "file",
    "bytes": "bytes",
    "nodes": "nodes",
    "accuracy": "test accuracy",
    "images": "images",
    "network": "network",
    "threads": "threads",
    "batch": "batch",
    "max_abs": "absolute error",
    "max_rel": "relative error",
    "agreement": "same class as torch",
    "median_ms": "median, ms",
    "p90_ms": "90%, ms",
    "p99_ms": "99%, ms",
    "images_per_second": "images/s",
    "runs": "runs",
}
"""Keys of the files that `graphspec export` writes, as the table's heads say them."""
SHARES = ("accuracy", "agreement")


def parity_tables(record: RunRecord) -> list[Grid]:
    """The files with their accuracies, then every comparison of outputs; empty before the export."""
    parity = record.parity if isinstance(record.parity, Mapping) else {}
    compared = parity.get("parity")
    cases = compared.get("cases") if isinstance(compared, Mapping) else None
    return [*_table("Files", parity.get("files")), *_table("Outputs beside those of torch", cases)]


def latency_tables(record: RunRecord) -> list[Grid]:
    """Times of torch and of every file; empty where none were measured."""
    latency = record.latency if isinstance(record.latency, Mapping) else {}
    device = f", {latency['device']}" if "device" in latency else ""
    return _table(f"Latency{device}", latency.get("latencies"))


def _table(title: str, rows: Any) -> list[Grid]:
    """A table of JSON rows, known keys in the order of `COLUMNS`; none if there are no such rows."""
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, Mapping) for row in rows):
        return []
    keys = [key for key in COLUMNS if all(key in row for row in rows)]
    body = tuple(tuple(_shown(key, row[key]) for key in keys) for row in rows)
    return [Grid(title, tuple(COLUMNS[key] for key in keys), body)]


def _shown(key: str, value: Any) -> str:
    return f"{value:.2%}" if key in SHARES and isinstance(value, int | float) else cell(value)


__all__ = ["latency_tables", "parity_tables"]
