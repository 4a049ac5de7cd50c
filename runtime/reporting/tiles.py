"""The figures at the top of a report: metrics, costs, latency and parity, as far as a run has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from compiler.analysis.limits import MEASURES
from compiler.drawing.scene import counted
from runtime.reporting.record import RunRecord
from runtime.reporting.summary import COUNT, ERROR, MILLISECONDS, Summary
from runtime.reporting.tables import CostRow
from runtime.tasks.base import Metric

NETWORKS = {
    "supernet": ("supernet", "validation {metric}, before the search"),
    "pruned": ("pruned supernet", "validation {metric}"),
    "retrained": ("retrained", "test {metric}, {images} images"),
    "onnxruntime": ("onnxruntime", "test {metric} of the ONNX file"),
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
    metric = record.task.metrics[0]
    networks = {f"{metric.name}.{key}": (name, metric.form, note) for key, (name, note) in NETWORKS.items()}
    return [*_listed(summary, networks), *_newest(record, metric), *_costs(summary, total), *_listed(summary, CHECKS)]


def _listed(summary: Summary, wanted: Mapping[str, tuple[str, str, str]]) -> list[Tile]:
    words = {"images": summary.mean("test_images", COUNT), "metric": summary.metric.title}
    found = [(name, summary.text(key, form), note.format(**words)) for key, (name, form, note) in wanted.items()]
    return [Tile(name, text, note) for name, text, note in found if text]


def _newest(record: RunRecord, metric: Metric) -> list[Tile]:
    """What unfinished jobs have come to in validation."""
    last = [job.epochs[-1] for job in record.jobs.values() if job.result is None and job.epochs]
    return [
        Tile(f"{epoch['stage']}, epoch {epoch['epoch']}", metric.text(epoch[metric.name]), f"validation {metric.title}")
        for epoch in last
        if epoch.get(metric.name) is not None
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
