"""`graphspec report`: a run, also one in progress, as one HTML page that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from functools import partial
from itertools import accumulate
from pathlib import Path

from markupsafe import Markup

from compiler.analysis.limits import MEASURES
from compiler.drawing.formats import paint_all
from compiler.drawing.html import figure_element
from compiler.drawing.plain import asset
from compiler.drawing.scene import counted, figures, view_of
from compiler.ops import Cost
from runtime.reporting import tables
from runtime.reporting.channels import channel_rows
from runtime.reporting.charts import Chart, Series, draw_chart
from runtime.reporting.evaluation import shown
from runtime.reporting.heatmap import heat_map
from runtime.reporting.record import Record, RunRecord, by_stage, number_at, read_run
from runtime.reporting.summary import summarise, tiles
from runtime.reporting.tables import CostRow, cell, flat, grids
from runtime.reporting.templates import resource, template
from runtime.rundir.directory import RunDir
from runtime.rundir.files import write_text
from runtime.rundir.trials import Trials
from runtime.tasks.base import Metric

MAX_CURVES = 6  # of seeds in one chart: more cannot be told apart
SPEED = "Training speed, images per second", {"images_per_second": "images/s"}


def write_report(run: RunDir) -> Path:
    """Write the report of what a run holds so far; its path. RunError if a file is damaged: an earlier one stays."""
    write_text(run.report, render(read_run(run), run.resolved))
    return run.report


def render(record: RunRecord, spec: Path) -> str:
    """The page; `spec` is the resolved spec, which the commands to reproduce name."""
    made = template("page.html.j2", counted=counted, percent=_percent, clock=clock, figure_element=figure_element)
    said, stages = record.section, by_stage(record.epochs)
    summary, costs = summarise(record), tables.cost_rows(record.graph, record.kept)
    timings = tables.timing_rows(record.timings)
    return made.render(
        record=record,
        script=Markup(asset("figure.js") + resource("report.js")),
        tiles=tiles(record, summary, costs[-1]),
        data=None if record.data is None else tables.data_table(record.data),
        evaluation=None if record.evaluation is None else shown(record.evaluation),
        trial_tables={name: tables.trials_table(each) for name, each in record.trials.items()},
        probe_chart=_drawn([_probe_chart(record.probe, record.task.metrics[0])] if record.probe else []),
        seed_tables=tables.seed_tables(record),
        seed_charts=_drawn(_seed_charts(record)),
        figures=paint_all(figures(view_of(record.graph, record.last_gates, record.kept), None)),
        heat=heat_map(record.graph, record.gates) if record.gates else None,
        channels=channel_rows(record.graph, record.gates, record.kept) if record.gates else [],
        strategy_tables=[table for title, value in said.get("tables", {}).items() for table in grids(value, title)],
        strategy_charts=_drawn([_chart(record.epochs, *curves) for curves in said.get("curves", {}).items()]),
        charts=_drawn(_charts(record)),
        rate_charts=_drawn([_chart(record.timings, *SPEED, counted, from_zero=True)]),
        costs=costs,
        total=costs[-1],
        widest={kind: _widest([row for row in costs if row.kind == kind]) for kind in ("stage", "block")},
        timings=timings,
        pruning=next((row.speed_up for row in timings if row.stage == "search" and row.epochs > 1), None),
        parity=tables.parity_tables(record),
        latency=tables.latency_tables(record),
        summary=dict(summary.lines()),
        results=[(name, grids(job.result)) for name, job in record.jobs.items() if job.result],
        settings=tables.settings(record.config),
        environments=_environments(record),
        commands=tables.commands(record, spec),
        table=[table for stage, epochs in stages.items() for table in grids(_without_gates(epochs), stage)],
    )


def clock(seconds: float) -> str:
    """`75.3` as `1 min 15 s`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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


def _without_gates(epochs: Sequence[Record]) -> list[Record]:
    """Epoch records without the long list of gate values."""
    return [{key: value for key, value in record.items() if key != "gate_values"} for record in epochs]


def _widest(rows: Sequence[CostRow]) -> Cost:
    """The largest of every cost: what the bars of these rows are drawn against."""
    return Cost(*map(max, zip(*(astuple(row.before) for row in rows), strict=True)))


def _charts(record: RunRecord) -> list[Chart]:
    """Loss, metrics, zero gates and FLOPs over all epochs, stages after each other."""
    losses = {"train_loss": "training (weights)", "gate_loss": "training (gates)", "loss": "validation"}
    edges = {"zero_gates": "zero gates", "edges": "edges left"}
    chart = partial(_chart, record.epochs)
    return [
        chart("Loss", losses),
        *(chart(f"Validation {m.title}", {m.name: m.title}, m.short) for m in record.task.metrics),
        chart("Zero gates and edges left", edges, counted, from_zero=True),
        *(chart(measure.title, {measure.name: measure.unit}, counted, from_zero=True) for measure in MEASURES),
    ]


def _chart(
    records: Sequence[Record],
    title: str,
    names: Mapping[str, str],
    show: Callable[[float], str] = "{:.4g}".format,
    from_zero: bool = False,
) -> Chart:
    """Entries of records over all epochs; `names` says what each key is called."""
    stages = by_stage(records)
    starts = accumulate((float(len(part)) for part in stages.values()), initial=1.0)
    lines = tuple(Series(text, _points(records, key)) for key, text in names.items())
    return Chart(title, "epoch", lines, show, tuple(zip(starts, stages, strict=False)), from_zero)


def _seed_charts(record: RunRecord) -> list[Chart]:
    """Curves with a line for every seed, over the epochs of all stages; the first few seeds where there are many."""
    shown = list(record.seeds.items())[:MAX_CURVES]
    metric, found = record.task.metrics[0], []
    first = (metric.name, f"Validation {metric.title}", metric.short, False)
    flops = ("flops", "FLOPs per image", counted, True)
    for job, curves in (("search", (first, flops)), ("retrain", (first,))):
        for key, title, show, from_zero in () if record.jobs[job].started else curves:
            lines = tuple(Series(f"seed {seed}", _points(one.jobs[job].epochs, key)) for seed, one in shown)
            found.append(Chart(f"{title}, {job}", "epoch", lines, show, from_zero=from_zero))
    return found


def _probe_chart(probe: Trials, metric: Metric) -> Chart:
    """The random networks from the worst to the best, and a line for the mean of every plain one."""
    drawn = sorted(probe.drawn(), reverse=not metric.higher_is_better)
    last = float(len(drawn))
    plain = (Series(row.network, ((1.0, mean := row.figure.mean), (last, mean))) for row in probe.plain())
    lines = (Series("random", tuple(enumerate(drawn, start=1))), *plain)
    return Chart(f"Random networks: {probe.what}", "network", lines[:MAX_CURVES], metric.short)


def _points(records: Sequence[Record], key: str) -> tuple[tuple[float, float], ...]:
    """(epoch counted over all stages, value) where there is a value."""
    found = enumerate((number_at(record, key) for record in records), start=1)
    return tuple((float(index), value) for index, value in found if value is not None)
