"""`graphspec report`: a run as one self-contained HTML page, also while the run is still in progress.

The page needs nothing from outside: drawings and charts are inline SVG, the script is a few kilobytes. What a run has
not come to yet is said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from compiler.analysis.limits import MEASURES
from compiler.drawing.formats import paint_all
from compiler.drawing.html import figure_element
from compiler.drawing.scene import counted, figures, view_of
from compiler.drawing.svg import Picture, asset
from compiler.ops import Cost
from runtime.reporting.charts import Chart, Series, draw_chart
from runtime.reporting.exported import latency_tables, parity_tables
from runtime.reporting.heatmap import HeatMap, heat_map
from runtime.reporting.record import Record, RunRecord, read_run
from runtime.reporting.seed_table import seed_charts, seed_tables, status_of
from runtime.reporting.summary import summarise
from runtime.reporting.tables import CostRow, cell, commands, cost_rows, flat, grids, settings, timing_rows
from runtime.reporting.tiles import tiles
from runtime.rundir.directory import RunDir
from runtime.rundir.files import write_text

OPEN_FIGURES = 6  # so many blocks are shown at once, the others unfold


def write_report(run: RunDir) -> Path:
    """Write the report of what the run directory holds so far and return its path.

    RunError if the run directory is incomplete or a file in it is damaged; an earlier report then stays.
    """
    write_text(run.report, render(read_run(run), run.resolved))
    return run.report


def render(record: RunRecord, spec: Path) -> str:
    """The page; `spec` is the resolved spec, which the commands to reproduce name."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(counted=counted, percent=_percent, clock=clock)
    template = environment.from_string(_resource("page.html.j2"))
    kept, summary = record.kept, summarise(record)
    costs = cost_rows(record.graph, kept)
    timings = timing_rows([*record.search.timings, *record.retrain.timings])
    return template.render(
        record=record,
        style=Markup(asset("figure.css") + asset("page.css") + _resource("report.css")),
        script=Markup(asset("figure.js") + _resource("report.js")),
        tiles=tiles(record, summary, costs[-1]),
        status_of=status_of,
        seed_tables=seed_tables(record),
        seed_charts=_drawn(seed_charts(record)),
        figures=_figures(record),
        heat=_heat(record),
        strategy_tables=[table for title, value in _said(record, "tables") for table in grids(value, title)],
        strategy_charts=_drawn([_chart(record, title, names) for title, names in _said(record, "curves")]),
        charts=_drawn(_charts(record)),
        rate_charts=_drawn([_rate_chart(record)]),
        costs=costs,
        total=costs[-1],
        widest={kind: _widest([row for row in costs if row.kind == kind]) for kind in ("stage", "block")},
        timings=timings,
        pruning=next((row.speed_up for row in timings if row.stage == "search" and row.epochs > 1), None),
        parity=parity_tables(record),
        latency=latency_tables(record),
        summary=dict(summary.lines()),
        results=[(name, grids(job.result)) for name, job in record.jobs.items() if job.result],
        settings=settings(record.config),
        environments=_environments(record),
        commands=commands(record, spec),
        table=[table for stage, epochs in _stages(record) for table in grids(_without_gates(epochs), stage)],
    )


def clock(seconds: float) -> str:
    """`75.3` as `1 min 15 s`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _resource(name: str) -> str:
    return (files("runtime.reporting") / name).read_text(encoding="utf-8")


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "0"


def _environments(record: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """What compile, search and retrain ran on, by name; jobs that ran where compile did are not repeated."""
    found: list[tuple[str, Record]] = [("compile", record.environment)]
    for name, job in record.jobs.items():
        if job.environment is not None and job.environment != record.environment:
            found.append((name, job.environment))
    return [(name, [(key.removeprefix("packages."), cell(value)) for key, value in flat(one)]) for name, one in found]


def _drawn(charts: Sequence[Chart]) -> list[Markup]:
    """Charts as markup; those without a point are left out."""
    return [Markup(chart) for chart in map(draw_chart, charts) if chart]


def _stages(record: RunRecord) -> list[tuple[str, list[Record]]]:
    """Epoch records by stage, in the order they ran."""
    found: dict[str, list[Record]] = {}
    for epoch in [*record.search.epochs, *record.retrain.epochs]:
        found.setdefault(str(epoch["stage"]), []).append(epoch)
    return list(found.items())


def _without_gates(epochs: Sequence[Record]) -> list[Record]:
    """Epoch records without the long list of gate values."""
    return [{key: value for key, value in record.items() if key != "gate_values"} for record in epochs]


# -- drawings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A figure of the page."""

    title: str
    svg: Markup
    open: bool


def _figures(record: RunRecord) -> list[Drawn]:
    """The overview, then every distinct block, before and after."""
    gates = record.gates.last if record.gates else None
    pictures: list[Picture] = paint_all(figures(view_of(record.graph, gates, record.kept), None))
    return [Drawn(p.figure.title, Markup(figure_element(p)), index <= OPEN_FIGURES) for index, p in enumerate(pictures)]


def _heat(record: RunRecord) -> HeatMap | None:
    return None if record.gates is None else heat_map(record.graph, record.gates)


def _said(record: RunRecord, part: str) -> Iterable[tuple[str, Any]]:
    """A part of the strategy's section: titles with what stands below them."""
    said: Mapping[str, Any] = record.section.get(part, {})
    return said.items()


def _widest(rows: Sequence[CostRow]) -> Cost:
    """The largest of every cost: what the bars of these rows are drawn against."""
    costs = [row.before for row in rows]
    return Cost(
        max((c.params for c in costs), default=0),
        max((c.flops for c in costs), default=0),
        max((c.mac_bytes for c in costs), default=0),
    )


# -- curves ---------------------------------------------------------------------------------------------------------


def _charts(record: RunRecord) -> list[Chart]:
    """Loss, metrics, zero gates and FLOPs over all epochs, stages after each other."""
    losses = {"train_loss": "training (weights)", "gate_loss": "training (gates)", "loss": "validation"}
    edges = {"zero_gates": "zero gates", "edges": "edges left"}
    return [
        _chart(record, "Loss", losses),
        *(_chart(record, f"Validation {m.title}", {m.name: m.title}, m.short) for m in record.task.metrics),
        _chart(record, "Zero gates and edges left", edges, counted, from_zero=True),
        *(_chart(record, measure.title, {measure.name: measure.unit}, counted, from_zero=True) for measure in MEASURES),
    ]


def _chart(
    record: RunRecord,
    title: str,
    names: Mapping[str, str],
    show: Callable[[float], str] = "{:.4g}".format,
    from_zero: bool = False,
) -> Chart:
    """Entries of the epoch records over all epochs; `names` says what each key is called."""
    epochs = [*record.search.epochs, *record.retrain.epochs]
    marks, at = [], 1
    for stage, records in _stages(record):
        marks.append((float(at), stage))
        at += len(records)
    lines = tuple(Series(text, _points(epochs, key)) for key, text in names.items())
    return Chart(title, "epoch", lines, show, tuple(marks), from_zero)


def _rate_chart(record: RunRecord) -> Chart:
    timings = [*record.search.timings, *record.retrain.timings]
    marks = [
        (float(index + 1), str(item["stage"]))
        for index, item in enumerate(timings)
        if index == 0 or timings[index - 1]["stage"] != item["stage"]
    ]
    lines = (Series("images/s", _points(timings, "images_per_second")),)
    return Chart("Training speed, images per second", "epoch", lines, counted, tuple(marks), from_zero=True)


def _points(records: Sequence[Record], key: str) -> tuple[tuple[float, float], ...]:
    """(epoch counted over all stages, value) where there is a value."""
    found = enumerate((record.get(key) for record in records), start=1)
    return tuple((float(index), float(value)) for index, value in found if value is not None)


__all__ = ["clock", "render", "write_report"]
