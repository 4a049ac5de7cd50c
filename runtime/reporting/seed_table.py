"""The part of a report that compares the seeds of a study: what each reached, mean and deviation, curves."""

from __future__ import annotations

from runtime.reporting.charts import Chart, Series
from runtime.reporting.record import RunRecord
from runtime.reporting.tables import Grid
from runtime.rundir.study import summary_table

MAX_CURVES = 6  # more in one chart cannot be told apart


def seed_tables(record: RunRecord) -> list[Grid]:
    """For each job a row for every seed that finished it, then mean and sample standard deviation."""
    found = []
    for name in record.jobs:
        reached = {seed: one.jobs[name].result for seed, one in record.seeds.items()}
        results = {seed: result for seed, result in reached.items() if result is not None}
        if results and not record.jobs[name].started:
            heads, *rows = summary_table(name, record.task, results)
            found.append(Grid(name, heads, tuple(rows)))
    return found


def seed_charts(record: RunRecord) -> list[Chart]:
    """Curves with a line for every seed, over the epochs of all stages; the first few seeds where there are many."""
    shown = list(record.seeds.items())[:MAX_CURVES]
    metric, found = record.task.metrics[0], []
    first = (metric.name, f"Validation {metric.title}", metric.form, False)
    flops = ("flops", "FLOPs per image", "{:,.0f}", True)
    for job, curves in (("search", (first, flops)), ("retrain", (first,))):
        for key, title, form, from_zero in () if record.jobs[job].started else curves:
            lines = tuple(Series(f"seed {seed}", tuple(_points(one, job, key))) for seed, one in shown)
            found.append(Chart(f"{title}, {job}", "epoch", lines, form.format, from_zero=from_zero))
    return found


def _points(record: RunRecord, job: str, key: str) -> list[tuple[float, float]]:
    epochs = enumerate((epoch.get(key) for epoch in record.jobs[job].epochs), start=1)
    return [(float(index), float(value)) for index, value in epochs if value is not None]


def status_of(record: RunRecord, job: str) -> str:
    """How far a job is: of a study, in how many of the seeds."""
    if record.jobs[job].started or not record.seeds:
        return record.jobs[job].status
    done = sum(one.jobs[job].result is not None for one in record.seeds.values())
    return f"finished for {done} of {len(record.seeds)} seeds"


__all__ = ["seed_charts", "seed_tables", "status_of"]
