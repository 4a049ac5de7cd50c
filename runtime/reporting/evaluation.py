"""What an evaluation says: lines for people, a section of a run's report, and a page of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

from runtime.reporting.record import Record
from runtime.reporting.tables import PERCENT, Grid, cell, formatted
from runtime.reporting.templates import template
from runtime.rundir.study import rendered

MOST = 30  # classes of which the whole matrix is shown, and lines of a table in a terminal


def lead(record: Record) -> str:
    """The main figures in a sentence; `record` is the JSON of a `runtime.inference.evaluate.Evaluation`."""
    low, high = record["interval"]
    left_out = len(record["unreadable"])
    return (
        f"{record['accuracy']:.2%} of {record['images']:,} images are right (95% interval: {low:.2%} to {high:.2%}); "
        f"balanced accuracy {record['balanced_accuracy']:.2%}. {record['model']} on {record['data']}"
        + f"; {left_out:,} images cannot be read"
        * bool(left_out)
    )


def tables(record: Record) -> list[Grid]:
    """Classes, those that are found least first; mistakes by frequency; calibration."""
    share = partial(formatted, form=PERCENT)
    found = sorted(record["classes"], key=lambda each: (each["recall"] is None, each["recall"]))
    classes = [(c["label"], c["images"], c["answers"], share(c["precision"]), share(c["recall"])) for c in found]
    labels = [each["label"] for each in record["classes"]]
    pairs = [
        (count, truth, answer)
        for truth, row in zip(labels, record["confusion"], strict=False)
        for answer, count in zip(labels, row, strict=False)
        if count and truth != answer
    ]
    bins = [
        (f"{b['low']:.0%} to {b['high']:.0%}", b["images"], share(b["confidence"]), share(b["accuracy"]))
        for b in record["calibration"]
    ]
    calibration = (
        f"Calibration: expected error {record['calibration_error']:.2%}, mean confidence {record['confidence']:.2%}"
    )
    return [
        _grid("Classes", "class, images, answers, precision, recall", classes),
        _grid("Most frequent mistakes", "images, is, called", sorted(pairs, key=lambda pair: -pair[0])[:MOST]),
        _grid(calibration, "confidence, images, mean confidence, accuracy", bins),
    ]


def lines(record: Record) -> str:
    """All but the matrix and the pictures, for a terminal."""
    parts = [lead(record)]
    for table in tables(record):
        more = [f"... and {len(table.rows) - MOST} more"] * (len(table.rows) > MOST)
        parts.append("\n".join([table.title, rendered([table.heads, *table.rows[:MOST]]), *more]))
    worst = [f"{m['image']}: {m['answer']} ({m['confidence']:.2%}), is {m['truth']}" for m in record["mistakes"][:5]]
    return "\n\n".join([*parts, "\n".join(["Most confident mistakes", *worst])])


def shown(record: Record) -> dict[str, Any]:
    """What the template shows of a record."""
    labels = [each["label"] for each in record["classes"]]
    matrix = list(zip(labels, record["confusion"], strict=False)) if len(labels) <= MOST else []
    return {
        "lead": lead(record), "labels": labels, "matrix": matrix, "tables": tables(record),
        "mistakes": record["mistakes"],
    }  # fmt: skip


def page(record: Record) -> str:
    """The page of an evaluation, which needs nothing from outside."""
    return template("evaluation_page.html.j2").render(evaluation=shown(record))


def _grid(title: str, heads: str, rows: list[tuple[Any, ...]]) -> Grid:
    return Grid(title, tuple(heads.split(", ")), tuple(tuple(map(cell, row)) for row in rows))
