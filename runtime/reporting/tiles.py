"""The figures at the top of a report: accuracies, costs, latency and parity, as far as a run has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from compiler.analysis.limits import MEASURES
from compiler.drawing.scene import counted
from runtime.reporting.record import RunRecord
from runtime.reporting.summary import COUNT, ERROR, MILLISECONDS, PERCENT, Summary
from runtime.reporting.tables import CostRow

ACCURACIES = {
    "accuracy.supernet": ("supernet", PERCENT, "validation accuracy, before the search"),
    "accuracy.pruned": ("pruned supernet", PERCENT, "validation accuracy"),
    "accuracy.retrained": ("retrained", PERCENT, "test accuracy, {images} images"),
    "accuracy.onnxruntime": ("onnxruntime", PERCENT, "test accuracy of the ONNX file"),
}
CHECKS = {
    "latency_ms.onnxruntime": ("latency", MILLISECONDS, "onnxruntime, one image, one thread"),
    "parity.max_rel": ("parity", ERROR, "largest error against torch, relative"),
}


@dataclass(frozen=True)
class Tile:
    """One figure."""

    name: str
    value: str
    note: str


def tiles(record: RunRecord, summary: Summary, total: CostRow) -> list[Tile]:
    """All tiles of a run; `total` is what its search has left so far."""
    return [*_listed(summary, ACCURACIES), *_newest(record), *_costs(summary, total), *_listed(summary, CHECKS)]


def _listed(summary: Summary, wanted: Mapping[str, tuple[str, str, str]]) -> list[Tile]:
    images = summary.mean("test_images", COUNT)
    found = [(name, summary.text(key, form), note.format(images=images)) for key, (name, form, note) in wanted.items()]
    return [Tile(name, text, note) for name, text, note in found if text]


def _newest(record: RunRecord) -> list[Tile]:
    """The validation accuracy that unfinished jobs have come to."""
    last = [job.epochs[-1] for job in record.jobs.values() if job.result is None and job.epochs]
    return [
        Tile(f"{epoch['stage']}, epoch {epoch['epoch']}", f"{epoch['accuracy']:.2%}", "validation accuracy")
        for epoch in last
        if epoch.get("accuracy") is not None
    ]


def _costs(summary: Summary, total: CostRow) -> list[Tile]:
    """Costs of the network that was trained last, where there is one, else of what the search has left so far."""
    before, after = asdict(total.before), {} if total.after is None else asdict(total.after)
    left = [(m.unit, before[m.name], _mean(summary, f"{m.name}.found", after.get(m.name))) for m in MEASURES]
    return [_cost(name, full, found) for name, full, found in [*left, ("edges", total.edges, total.kept_edges)]]


def _mean(summary: Summary, name: str, otherwise: float | None) -> float | None:
    return summary.figures[name].mean if name in summary.figures else otherwise


def _cost(name: str, full: float, found: float | None) -> Tile:
    if found is None:
        return Tile(name, counted(full), "full space")
    return Tile(name, f"{counted(full)} → {counted(found)}", f"{found / max(full, 1):.1%} of the full space")


__all__ = ["Tile", "tiles"]
