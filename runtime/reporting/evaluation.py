"""What an evaluation says, as a section of a run's report and as a page of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from compiler.drawing.svg import page_style
from runtime.reporting.record import Record
from runtime.reporting.tables import PERCENT, Grid
from runtime.reporting.templates import resource, template

MOST_CLASSES = 30  # of which the whole matrix is shown
MOST_CONFUSED = 20


@dataclass(frozen=True)
class Cell:
    """Images of one class with one answer; `shade`: their share of the class, in percent."""

    images: int
    shade: float
    right: bool


@dataclass(frozen=True)
class Shown:
    """What is shown of `RUN/export/evaluation.json`."""

    record: Record
    lead: str
    labels: Sequence[str]
    matrix: Sequence[tuple[str, Sequence[Cell]]]  # a row for each class; empty where there are too many
    tables: Sequence[Grid]


def shown(record: Record) -> Shown:
    """The section for a record that `runtime.rundir.records.Evaluation` accepts."""
    labels = [each["label"] for each in record["classes"]]
    low, high = record["interval"]
    lead = (
        f"{record['accuracy']:.2%} of {record['images']:,} images are right (95% interval: {low:.2%} to {high:.2%}); "
        f"balanced accuracy {record['balanced_accuracy']:.2%}. {record['model']} on {record['data']}"
        + f"; {len(record['unreadable']):,} images cannot be read"
        * bool(record["unreadable"])
    )
    rows = zip(labels, record["confusion"], strict=True)
    matrix = [(label, _cells(number, row)) for number, (label, row) in enumerate(rows)]
    return Shown(record, lead, labels, matrix if len(labels) <= MOST_CLASSES else (), _tables(record, labels))


def page(record: Record) -> str:
    """The page of an evaluation, which needs nothing from outside."""
    style = Markup(page_style() + resource("report.css"))
    return template("evaluation_page.html.j2").render(evaluation=shown(record), style=style)


def _cells(number: int, row: Sequence[int]) -> list[Cell]:
    total = max(sum(row), 1)
    return [Cell(images, round(100 * images / total, 1), number == column) for column, images in enumerate(row)]


def _tables(record: Record, labels: Sequence[str]) -> list[Grid]:
    classes = [
        (c["label"], f"{c['images']:,}", f"{c['answers']:,}", _share(c["precision"]), _share(c["recall"]))
        for c in record["classes"]
    ]
    counts = enumerate(record["confusion"])
    confused = [(n, labels[i], labels[j]) for i, row in counts for j, n in enumerate(row) if n and i != j]
    worst = sorted(confused, key=lambda item: -item[0])[:MOST_CONFUSED]
    found = record["calibration"]
    bins = [
        (f"{b['low']:.0%} to {b['high']:.0%}", f"{b['images']:,}", _share(b["confidence"]), _share(b["accuracy"]))
        for b in found["bins"]
    ]
    title = (
        f"Calibration: expected error {found['error']:.2%}, mean confidence {found['confidence']:.2%}, "
        f"accuracy {record['accuracy']:.2%}"
    )
    return [
        Grid("Classes", ("class", "images", "answers", "precision", "recall"), tuple(classes)),
        Grid("Most frequent mistakes", ("images", "is", "called"), tuple((f"{n:,}", *pair) for n, *pair in worst)),
        Grid(title, ("confidence", "images", "mean confidence", "accuracy"), tuple(bins)),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else PERCENT.format(value)
