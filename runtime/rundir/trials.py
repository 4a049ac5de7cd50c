"""Networks that a run's own is compared with: plain ones in `RUN/baseline`, random and plain ones in `RUN/probe`.

Each training is an ordinary run `<network>-s<seed>` there, and `trials.json` says what they reached. It must not import
torch: reports read it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from runtime.rundir.directory import JobDir, RunDir
from runtime.rundir.files import read_json, read_lines, write_json
from runtime.rundir.records import Positive, Result, Seconds, Timing
from runtime.rundir.study import Figure, at, rendered, results_of
from runtime.tasks.base import Metric, Task

FOUND, RANDOM = "found", "random"
BEYOND = 2.0  # standard errors from which on a difference counts as clear
HEADS = ("network", "trainings", "{}", "params", "FLOPs", "ms", "CPU s")


class Row(BaseModel, allow_inf_nan=False):
    """A network, or the random ones together, over all trainings."""

    network: str
    runs: tuple[str, ...]  # names of the trainings
    values: Annotated[tuple[float, ...], Field(min_length=1)]  # the deciding metric, one a training
    images: Annotated[int, Field(gt=0)]  # test images
    params: float  # mean
    flops: float
    ms: Positive | None  # median of one image in onnxruntime on one thread
    cpu_seconds: Seconds | None  # mean of a training; of the found network with its search

    @property
    def figure(self) -> Figure:
        """Mean and deviation of the metric."""
        return Figure.of(self.values)

    def cells(self, form: str) -> tuple[str, ...]:
        """For a table under `HEADS`."""
        ms = "-" if self.ms is None else f"{self.ms:.3f}"
        seconds = "-" if self.cpu_seconds is None else f"{self.cpu_seconds:,.1f}"
        counts = (f"{self.params:,.0f}", f"{self.flops:,.0f}")
        return (self.network, str(len(self.values)), self.figure.text(form), *counts, ms, seconds)


class Trials(BaseModel):
    """`trials.json`: all rows, and a sentence on them."""

    what: str  # the metric, for people
    form: str  # how its values are written
    said: str
    rows: list[Row]
    figures: dict[str, float] = {}  # of a probe: `figures_of`

    def table(self) -> list[tuple[str, ...]]:
        """A head and the rows."""
        heads = tuple(head.format(self.what) for head in HEADS)
        return [heads, *(row.cells(self.form) for row in self.rows)]

    def render(self) -> str:
        """For a terminal."""
        return "\n".join(filter(None, [rendered(self.table(), numbers=True), self.detail, self.said]))

    @property
    def detail(self) -> str:
        """The figures of a probe."""
        if not self.figures:
            return ""
        median, best, spread = (self.form.format(self.figures[key]) for key in ("median", "best", "spread"))
        better = self.figures["better_than_plain"]
        return f"random networks: median {median}, best {best}, spread {spread}; {better:.0%} beat the best plain one"

    def row(self, network: str) -> Row | None:
        """The row of a network, if it is there."""
        return next((row for row in self.rows if row.network == network), None)

    def drawn(self) -> tuple[float, ...]:
        """What the random networks reached."""
        row = self.row(RANDOM)
        return row.values if row else ()

    def plain(self) -> list[Row]:
        """The rows of plain networks."""
        return [row for row in self.rows if row.network not in (FOUND, RANDOM)]


def read_trials(folder: Path) -> Trials | None:
    """What lies in the folder of the trainings; None before there is anything. RunError if it is damaged."""
    file = folder / "trials.json"
    return Trials.model_validate(read_json(file, Trials)) if file.is_file() else None


def write_trials(folder: Path, trials: Trials) -> None:
    """Put `trials.json` there."""
    write_json(folder / "trials.json", trials.model_dump(mode="json"))


def row_of(network: str, trained: Mapping[str, tuple[RunDir, Mapping[str, Any]]], key: str, ms: Sequence[float]) -> Row:
    """From runs and their results of retraining by name; `key` is the metric's, on test or `validation_` images."""
    known = [seconds for run, _ in trained.values() if (seconds := cpu_seconds(run.search, run.retrain)) is not None]
    results = [result for _, result in trained.values()]
    return Row(
        network=network,
        runs=tuple(trained),
        values=tuple(result[key] for result in results),
        images=results[0]["test_images"],
        params=statistics.fmean(at(result, "found", "params") for result in results),
        flops=statistics.fmean(at(result, "found", "flops") for result in results),
        ms=statistics.median(ms) if ms else None,
        cpu_seconds=statistics.fmean(known) if len(known) == len(trained) else None,
    )


def cpu_seconds(*jobs: JobDir) -> float | None:
    """What the trainings of these jobs took; None where an earlier version ran them."""
    files = [job.timings for job in jobs if job.timings.is_file()]
    lines = [line for file in files for line in read_lines(file, Timing)]
    known = [line["cpu_seconds"] for line in lines if line.get("cpu_seconds") is not None]
    return math.fsum(known) if len(known) == len(lines) else None


def found_row(
    run: RunDir, task: type[Task], ms: Sequence[float], result: Mapping[str, Any] | None = None
) -> Row | None:
    """What the run itself (`result`: the one that is being written), else its seeds, reached on the test images."""
    own = result or (read_json(run.retrain.result, Result) if run.retrain.is_finished else None)
    found = {FOUND: (run, own)} if own else {
        f"seed {seed}": (run.seed_run(seed), one) for seed, one in results_of(run, "retrain").items()
    }  # fmt: skip
    return row_of(FOUND, found, task.metrics[0].name, ms) if found else None


# -- what the rows say ------------------------------------------------------------------------------------------------


def best_of(rows: Sequence[Row], metric: Metric) -> Row:
    """The row with the best mean."""
    return (max if metric.higher_is_better else min)(rows, key=lambda row: row.figure.mean)


def standard_error(metric: Metric, one: Row, other: Row) -> float | None:
    """Of the difference of two means: of shares what the number of test images leaves open, and what seeds move.

    None where neither is known.
    """
    squares = [figure.std**2 / figure.n for figure in (one.figure, other.figure) if figure.std is not None]
    if metric.is_share:
        squares += [row.figure.mean * (1 - row.figure.mean) / row.images for row in (one, other)]
    return math.sqrt(sum(squares)) if squares else None


def verdict(metric: Metric, found: Row | None, plain: Sequence[Row], folder: Path) -> str:
    """Whether the found network is better than the best plain one, whose run lies in `folder`, in a sentence."""
    best = best_of(plain, metric)
    export = f"graphspec export {folder / best.runs[0]}"
    if found is None:
        return f"the best plain network is {best.network}: {metric.text(best.figure.mean)}; to ship it: {export}"
    before, after = best.figure.mean, found.figure.mean
    gain, error = -metric.lost(before, after), standard_error(metric, found, best)
    unit = 100.0 if metric.is_share or not before else 100.0 / abs(before)
    sure = "one training each, so chance is not known" if error is None else f"standard error {unit * error:.1f}"
    texts = f"{metric.text(after)} against {metric.text(before)}, {gain:+.1f} {metric.unit}, {sure}"
    if error is not None and gain > unit * error:
        return f"the found network is better than the best plain one, {best.network}: {texts}"
    worse = "worse" if error is not None and -gain > unit * error else "no better"
    return f"the found network is {worse} than the plain one {best.network}: {texts}; to ship the plain one: {export}"


def compared(run: RunDir, task: type[Task], result: Mapping[str, Any] | None = None) -> str:
    """The verdict on what the run has found now, also written to its baseline; empty without a baseline."""
    trials = read_trials(run.baseline)
    if trials is None:
        return ""
    before, metric = trials.row(FOUND), task.metrics[0]
    now = found_row(run, task, (), result)
    if before and now and (now.params, now.flops) == (before.params, before.flops):
        now = now.model_copy(update={"ms": before.ms})  # of the same size: it was not measured again
    said = verdict(metric, now, trials.plain(), run.baseline)
    rows = [*filter(None, [now]), *trials.plain()]
    write_trials(run.baseline, trials.model_copy(update={"said": said, "rows": rows}))
    return said


def outlook(metric: Metric, drawn: Row, plain: Sequence[Row]) -> tuple[str, bool]:
    """What random networks of a space beside plain ones say of a search, in a sentence, and whether it is clear."""
    best = best_of(plain, metric)
    values, before = drawn.values, best.figure.mean
    middle = statistics.median(values)
    unit = 100.0 if metric.is_share or not before else 100.0 / abs(before)
    moved = _pooled(plain)
    spread = drawn.figure.std or 0.0
    behind = metric.lost(before, middle)
    error = unit * math.sqrt(math.pi / 2 * spread**2 / len(values) + moved**2 / len(best.values))
    points, of_seed = f"{unit * spread:.1f} {metric.unit}", f"{unit * moved:.1f}"
    if behind > BEYOND * error:
        place = f"the space's median is {behind:.1f} {metric.unit} below a plain network ({best.network})"
        return f"{place}: change the space", behind > 2 * BEYOND * error
    if spread <= moved:
        less = f"its choices differ by {points}, not more than a seed does ({of_seed})"
        return f"{less}: a search cannot win much", spread < moved / 2
    where = f"{abs(behind):.1f} {metric.unit} {'below' if behind > 0 else 'above'}"
    text = f"its choices differ by {points}, a seed by {of_seed}, and the median is {where} the plain {best.network}"
    return f"{text}: a search can pay", spread > 2 * moved


def _pooled(rows: Sequence[Row]) -> float:
    """How much a seed moves a network: the deviation within the rows that have several trainings."""
    several = [row.values for row in rows if len(row.values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    return math.sqrt(sum(statistics.variance(v) * (len(v) - 1) for v in several) / freedom) if freedom else 0.0


def figures_of(metric: Metric, drawn: Row, plain: Sequence[Row]) -> dict[str, float]:
    """Median, best and deviation of random networks, and the share of them that is better than the best plain one."""
    before, best = best_of(plain, metric).figure.mean, max if metric.higher_is_better else min
    return {
        "median": statistics.median(drawn.values),
        "best": best(drawn.values),
        "spread": drawn.figure.std or 0.0,
        "better_than_plain": statistics.fmean(metric.is_better(value, before) for value in drawn.values),
    }
