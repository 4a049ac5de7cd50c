"""A study: the same job with several seeds, each in an ordinary run directory `RUN/seeds/<seed>`.

`RUN/seeds.json` sums up what they reached. It must not import torch: reports read studies.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from compiler.analysis.limits import MEASURES
from compiler.errors import RunError, one_line
from compiler.language.config import Configuration
from compiler.language.layers import dump
from compiler.language.parse import parse_file
from runtime.rundir import files
from runtime.rundir.directory import Compiled, JobDir, RunDir
from runtime.rundir.files import read_json, read_text, remove, write_json
from runtime.rundir.records import Result
from runtime.tasks.base import Task

R = TypeVar("R")
JOBS = ("search", "retrain")
COSTS = {measure.name: (f"found.{measure.name}", measure.unit, "{:,.0f}") for measure in MEASURES}
Column = tuple[str, str, str]  # key in a result, what people call it, and how it is written for them


def figures_of(job: str, task: type[Task]) -> dict[str, Column]:
    """What is summed up of each job, by name."""
    first = task.metrics[0]
    if job == "search":
        return {
            first.name: (first.name, "pruned supernet", first.form),
            f"full_{first.name}": (f"full_{first.name}", "full supernet", first.form),
            "kept_gates": ("kept_gates", "gates", "{:,.0f}"),
            "kept_edges": ("kept_edges", "edges", "{:,.0f}"),
            **COSTS,
        }
    validation = f"validation_{first.name}"
    return {
        **{metric.name: (metric.name, f"test {metric.title}", metric.form) for metric in task.metrics},
        "loss": ("loss", "test loss", "{:.4f}"),
        validation: (validation, f"validation {first.title}", first.form),
        **COSTS,
    }


@dataclass(frozen=True)
class Figure:
    """One figure over several seeds."""

    mean: float
    std: float | None  # sample standard deviation; None of a single value
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Over at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def text(self, form: str) -> str:
        """`mean ± deviation`, each written in this form; a mean of counts that differ gets a decimal."""
        if self.std is None:
            return form.format(self.mean)
        form = form.replace(".0f", ".1f") if self.std else form
        return f"{form.format(self.mean)} ± {form.format(self.std)}"


@dataclass(frozen=True)
class Study(Generic[R]):
    """What the seeds of a study reached in one job; those not finished yet are left out."""

    run: str  # the study's directory
    seeds: tuple[int, ...]
    results: tuple[R, ...]  # one a seed
    summary: Mapping[str, Figure]  # by the names of `figures_of`; a figure that no seed has is left out


def parse_seeds(text: str) -> tuple[int, ...]:
    """`"0,1,2"` as seeds; RunError if it is no such list."""
    items = [item.strip() for item in text.split(",")]
    if not all(re.fullmatch(r"\d{1,10}", item, re.ASCII) for item in items):
        raise RunError(f"--seeds {text}: is no list of seeds\n  try: whole numbers with commas between, e.g. 0,1,2")
    return checked_seeds([int(item) for item in items])


def checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds; RunError if there are none, one is out of range or one comes twice."""
    listed = ",".join(map(str, seeds))
    if not seeds or not all(0 <= seed < 2**32 for seed in seeds):
        raise RunError(f"seeds {listed or '(none)'}: seeds are whole numbers from 0 to {2**32 - 1}, one at least")
    twice = sorted({seed for seed in seeds if list(seeds).count(seed) > 1})
    if twice:
        raise RunError(f"seeds {listed}: {', '.join(map(str, twice))} is there twice\n  try: each seed once")
    return tuple(seeds)


def is_study(run: RunDir) -> bool:
    """Whether the work of the run lies in the runs of its seeds alone."""
    return bool(run.seed_runs()) and not (run.search.is_started or run.retrain.is_started)


def make_seed_run(study: RunDir, seed: int) -> RunDir:
    """The run of a seed, made in one step if it is missing: the study's with this seed and what its search found."""
    run = study.seed_run(seed)
    if run.path.exists():
        return run
    temporary = run.path.with_name(f".{seed}.tmp")
    remove(temporary)
    made = RunDir.create(_with_seed(study, seed), temporary, name_latest=False)
    copy_search(study.search, made.search)
    files.move(temporary, run.path)
    return run


def copy_search(source: JobDir, target: JobDir) -> None:
    """Let `target` hold what `source` found, without its checkpoints; nothing where nothing was found."""
    target.clear()
    if not source.arch.is_file():
        return
    temporary = target.path.with_name(f".{target.path.name}.tmp")
    remove(temporary)
    for name in files.names_in(source.path):
        if name[0] == "." or (source.path / name).is_dir():  # checkpoints and events of the search stay behind
            continue
        files.write_bytes(temporary / name, files.read_bytes(source.path / name, files.MOST_TENSORS))
    files.move(temporary, target.path)


def _with_seed(study: RunDir, seed: int) -> Compiled:
    """The study's compiled files with another seed, on which the graph does not depend."""
    spec = parse_file(files.checked(study.resolved))
    return Compiled(
        name=spec.name,
        seed=seed,
        spec=read_text(study.spec),
        resolved=dump({**spec.root.plain(), "seed": seed}),
        config=json.dumps({**read_json(study.config, Configuration), "seed": seed}, indent=2) + "\n",
        graph_json=read_text(study.graph_json),
        graph_text=read_text(study.graph_text),
        weights=files.read_bytes(study.weights, files.MOST_TENSORS) if spec.weights else None,
    )


def found_params(run: RunDir) -> int:
    """Parameters of the network that a run's search found, before its width was set; RunError without a search."""
    if is_study(run):
        first = next(iter(run.seed_runs().values()))
        raise RunError(f"--match {run.path}: holds the runs of several seeds\n  try: --seeds, or --match {first.path}")
    if not run.search.is_finished:
        raise RunError(f"--match {run.path}: this run has no finished search; try: graphspec search {run.path}")
    params = value_at(read_json(run.search.result, Result), "found.params")
    if params is None:
        raise files.damaged(run.search.result, "it does not say what was found")
    return int(params)


def found_sizes(match: RunDir, seeds: Sequence[int]) -> dict[int, int]:
    """By seed, the parameters found with the same seed where `match` is a study, else the one number."""
    if is_study(match):
        return {seed: found_params(match.seed_run(seed)) for seed in seeds}
    return dict.fromkeys(seeds, found_params(match))


def results_of(study: RunDir, job: str) -> dict[int, dict[str, Any]]:
    """The result of every seed that has finished the job; RunError if one is damaged."""
    paths = {seed: JobDir(run.path / job).result for seed, run in study.seed_runs().items()}
    return {seed: read_json(file, Result) for seed, file in paths.items() if file.is_file()}


def summary_of(job: str, task: type[Task], results: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Every figure of a job over these results."""
    found = {}
    for name, (key, _, _) in figures_of(job, task).items():
        values = [value for value in (value_at(result, key) for result in results) if value is not None]
        if values:
            found[name] = Figure.of(values)
    return found


def value_at(result: Mapping[str, Any], key: str) -> float | None:
    """The number at a dotted key of a result."""
    value = at(result, *key.split("."))
    return None if value is None else float(value)


def at(value: Any, *keys: str) -> Any:
    """What lies at these keys of nested JSON; None if nothing does."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def write_summary(study: RunDir, task: type[Task]) -> None:
    """Write `seeds.json`: what all jobs of the study reached so far."""
    record: dict[str, Any] = {"seeds": list(study.seed_runs())}
    for job in JOBS:
        results = results_of(study, job)
        if results:
            figures = summary_of(job, task, list(results.values()))
            record[job] = {"seeds": list(results), "figures": {name: asdict(f) for name, f in figures.items()}}
    write_json(study.summary, record)


def summary_table(job: str, task: type[Task], results: Mapping[int, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A head, a row for every seed and, under several, mean and deviation; figures that no seed has are left out."""
    summary = summary_of(job, task, list(results.values()))
    chosen = {name: row for name, row in figures_of(job, task).items() if name in summary}
    rows = [("seed", *(head for _, head, _ in chosen.values()))]
    for seed, result in results.items():
        values = [(value_at(result, key), form) for key, _, form in chosen.values()]
        rows.append((str(seed), *("-" if value is None else form.format(value) for value, form in values)))
    if len(results) > 1:
        rows.append(("mean ± std", *(summary[name].text(form) for name, (_, _, form) in chosen.items())))
    return rows


def rendered(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Rows as aligned lines, for a terminal; with `numbers` all columns but the first end together."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = "<" + (">" if numbers else "<") * (len(widths) - 1)
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    )
