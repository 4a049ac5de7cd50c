"""What a run reached, in at most six lines for people and as JSON for programs, as far as it has come.

Of a study (several seeds) every figure is a mean with its standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from compiler.analysis.limits import MEASURES, measured
from compiler.drawing.scene import counted
from runtime.reporting.record import RunRecord, number_at
from runtime.reporting.tables import PERCENT, CostRow
from runtime.rundir.study import Figure, at
from runtime.tasks.base import Metric

COUNT, MILLISECONDS, ERROR = "{:,.0f}", "{:.3f} ms", "{:.1e}"
BATCH = THREADS = 1  # of the latency in the summary; the report has all of them
NETWORKS = {
    "supernet": ("supernet", "validation {metric}, before the search", "{value} before the search"),
    "pruned": ("pruned supernet", "validation {metric}", "{value} pruned (validation)"),
    "retrained": ("retrained", "test {metric}, {images} images", "{value} test {metric}"),
    "onnxruntime": ("onnxruntime", "test {metric} of the ONNX file", "{value} by onnxruntime"),
}
"""Networks that the deciding metric is known of: name and note of their tile, and what the summary says of them."""
CHECKS = {
    "latency_ms.onnxruntime": ("latency", MILLISECONDS, "onnxruntime, one image, one thread"),
    "parity.max_rel": ("parity", ERROR, "largest error against torch, relative"),
}


@dataclass(frozen=True)
class Summary:
    """Figures by dotted name, such as `params.found` and, of networks, `<metric>.pruned`; only those that there are."""

    figures: Mapping[str, Figure]
    metric: Metric
    same: str  # what it is called when networks agree
    source: str  # the job whose network was exported; empty before the export

    def as_json(self) -> dict[str, Any]:
        """Figures by name as mean, sample standard deviation (null for a single value) and number of values."""
        return {name: asdict(figure) for name, figure in self.figures.items()}

    def lines(self) -> list[tuple[str, str]]:
        """(what, figures): supernet, retrained network, parameters, FLOPs, latency, parity, as far as there are."""
        found = {
            "supernet": self._reached("supernet", "pruned"),
            "retrained" if f"{self.metric.name}.retrained" in self.figures else "exported": self._tested(),
            **{measure.unit: self._change(measure.name) for measure in MEASURES},
            "latency": self._latency(),
            "parity": self._parity(),
        }
        return [(name, text) for name, text in found.items() if text]

    def text(self, name: str, form: str) -> str:
        """A figure as people read it; the empty string if there is none."""
        return self.figures[name].text(form) if name in self.figures else ""

    def mean(self, name: str, form: str) -> str:
        """As `text`, without the deviation: for what does not depend on the seed."""
        return form.format(self.figures[name].mean) if name in self.figures else ""

    def _reached(self, *names: str) -> str:
        texts = {name: self.text(f"{self.metric.name}.{name}", self.metric.form) for name in names}
        title = self.metric.title
        return ", ".join(NETWORKS[name][2].format(value=text, metric=title) for name, text in texts.items() if text)

    def _tested(self) -> str:
        found = self._reached("retrained", "onnxruntime")
        network = "the pruned supernet on " if self.source == "search" else ""
        return found and f"{found} ({network}{self.mean('test_images', COUNT)} images)"

    def _change(self, cost: str) -> str:
        full, found = self.figures.get(f"{cost}.full"), self.figures.get(f"{cost}.found")
        if full is None:
            return ""
        if found is None:
            return f"{full.text(COUNT)} in the whole space"
        return f"{full.text(COUNT)} -> {found.text(COUNT)} ({found.mean / max(full.mean, 1):.1%})"

    def _latency(self) -> str:
        onnx = self.text("latency_ms.onnxruntime", MILLISECONDS)
        if not onnx:
            return ""
        return f"{onnx} by onnxruntime, {self.text('latency_ms.torch', MILLISECONDS)} by torch (one image, one thread)"

    def _parity(self) -> str:
        error = self.text("parity.max_rel", ERROR)
        if not error:
            return ""
        allowed, same = self.mean("parity.tolerance", ERROR), self.text("parity.agreement", PERCENT)
        return f"onnxruntime and torch differ by {error} of the largest output ({allowed} allowed), {self.same} {same}"


def summarise(record: RunRecord) -> Summary:
    """The summary of a run: of what it did itself, else of what its seeds did."""
    search, retrain = _results(record, lambda one: one.search.result), _results(record, lambda one: one.retrain.result)
    parity, latency = _results(record, lambda one: one.parity), _results(record, lambda one: one.latency)
    decides = record.task.metrics[0]
    metric = decides.name
    found, costs = retrain or search, dict[str, list[float]]()
    for name, full in measured(record.graph).items():
        costs |= {f"{name}.full": [float(full)], f"{name}.found": _numbers(found, "found", name)}
    values = {
        f"{metric}.supernet": _numbers(search, f"full_{metric}"),
        f"{metric}.pruned": _numbers(search, metric),
        f"{metric}.retrained": _numbers(retrain, metric),
        f"{metric}.onnxruntime": _numbers([_row(one, "files", kind="fp32") for one in parity], metric),
        "test_images": _numbers(retrain, "test_images") or _numbers(parity, "test_images"),
        **costs,
        "parity.max_rel": _numbers(parity, "parity", "max_rel"),
        "parity.tolerance": _numbers(parity, "parity", "tolerance"),
        "parity.agreement": _numbers(parity, "parity", "agreement"),
    }
    for name, network in (("onnxruntime", "fp32"), ("torch", "torch")):
        timed = [_row(one, "latencies", network=network, batch=BATCH, threads=THREADS) for one in latency]
        values[f"latency_ms.{name}"] = _numbers(timed, "median_ms")
    sources = {str(at(one, "source")) for one in parity}
    figures = {name: Figure.of(several) for name, several in values.items() if several}
    return Summary(figures, decides, record.task.same, *(sources if len(sources) == 1 else ("",)))


def _results(record: RunRecord, read: Callable[[RunRecord], Any]) -> list[Any]:
    """What the run itself has, else what its seeds have."""
    own = read(record)
    return [own] if own is not None else [found for one in record.seeds.values() if (found := read(one)) is not None]


def _row(value: Any, key: str, **wanted: object) -> Any:
    """The first of the maps in the list at `key` that has these entries; None if there is none."""
    rows = at(value, key)
    return next((row for row in rows or () if all(at(row, name) == want for name, want in wanted.items())), None)


def _numbers(records: Sequence[Any], *keys: str) -> list[float]:
    """The numbers at these keys of the records that have one."""
    found = [at(record, *keys) for record in records]
    return [float(value) for value in found if isinstance(value, int | float)]


class Tile(NamedTuple):
    """One figure."""

    name: str
    value: str
    note: str


def tiles(record: RunRecord, summary: Summary, total: CostRow) -> list[Tile]:
    """All tiles of a run; `total` is what its search has left so far."""
    metric = record.task.metrics[0]
    networks = {f"{metric.name}.{key}": (name, metric.form, note) for key, (name, note, _) in NETWORKS.items()}
    return [*_listed(summary, networks), *_newest(record, metric), *_costs(summary, total), *_listed(summary, CHECKS)]


def _listed(summary: Summary, wanted: Mapping[str, tuple[str, str, str]]) -> list[Tile]:
    words = {"images": summary.mean("test_images", COUNT), "metric": summary.metric.title}
    found = [(name, summary.text(key, form), note.format(**words)) for key, (name, form, note) in wanted.items()]
    return [Tile(name, text, note) for name, text, note in found if text]


def _newest(record: RunRecord, metric: Metric) -> list[Tile]:
    """What unfinished jobs have come to in validation."""
    last = [job.epochs[-1] for job in record.jobs.values() if job.result is None and job.epochs]
    known = [(epoch, value) for epoch in last if (value := number_at(epoch, metric.name)) is not None]
    note = f"validation {metric.title}"
    return [Tile(f"{epoch['stage']}, epoch {epoch['epoch']}", metric.text(value), note) for epoch, value in known]


def _costs(summary: Summary, total: CostRow) -> list[Tile]:
    """Costs of the network that was trained last, where there is one, else of what the search has left so far."""
    before, after = asdict(total.before), asdict(total.after) if total.after else {}
    found = {name.removesuffix(".found"): figure.mean for name, figure in summary.figures.items()}
    left = [_cost(m.unit, before[m.name], found.get(m.name, after.get(m.name))) for m in MEASURES]
    return [*left, _cost("edges", total.edges, total.kept_edges)]


def _cost(name: str, full: float, found: float | None) -> Tile:
    if found is None:
        return Tile(name, counted(full), "full space")
    return Tile(name, f"{counted(full)} → {counted(found)}", f"{found / max(full, 1):.1%} of the full space")
