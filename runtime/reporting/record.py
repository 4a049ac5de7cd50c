"""What a report is made of: everything a run directory holds so far. Files that are not there yet are left out.

Another process may write at the same time: a file is whole, or a log whose last line is left for the next reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compiler.errors import PassError
from compiler.ir.graph import Graph
from compiler.language.config import SearchConfig
from compiler.passes.prune_zero_edges import prune
from runtime.inference.figures import EVALUATION, Evaluation
from runtime.rundir.directory import JobDir, RunDir
from runtime.rundir.facts import DataFacts, read_facts
from runtime.rundir.files import MissingFileError, read_json, read_lines, read_text
from runtime.rundir.network import read_graph
from runtime.rundir.records import (
    Environment,
    Epoch,
    Exported,
    Latencies,
    Result,
    Section,
    Settings,
    Timing,
)
from runtime.rundir.trials import Trials, read_trials
from runtime.tasks.base import Task
from runtime.tasks.table import TASKS

T = TypeVar("T")
Record = Mapping[str, Any]
GateHistory = dict[int, dict[str, float]]
"""Gate values at the end of the epochs of the search stage, oldest first; pruned gates are zero."""


@dataclass(frozen=True)
class JobRecord:
    """What one job (search or retrain) has left so far."""

    epochs: Sequence[Record]  # metrics.jsonl
    timings: Sequence[Record]  # timings.jsonl
    result: Record | None
    arch: str | None  # the found architecture as written
    graph: Graph | None
    environment: Record | None
    config: Record | None  # that the job runs with; overrides may make it another than the compiled one
    started: bool


@dataclass(frozen=True)
class RunRecord:
    """What a run directory holds so far."""

    path: Path
    graph: Graph
    config: Record
    spec: str
    environment: Record
    search: JobRecord
    retrain: JobRecord
    gates: GateHistory
    section: Record  # what the strategy says of the search: `runtime.strategies.base.ReportSection`; empty before that
    parity: Any  # as export/parity.json has it; None before the export
    latency: Any
    data: DataFacts | None  # as the first job found it; None before that
    evaluation: Record | None  # as export/evaluation.json has it; None before `graphspec evaluate`
    seeds: Mapping[int, RunRecord]  # of a study: the run of every seed
    baseline: Trials | None = None  # plain networks beside what was found
    probe: Trials | None = None  # random networks of the space beside plain ones

    @property
    def task(self) -> type[Task]:
        """What the network is for; runs of earlier versions do not say it."""
        return TASKS.load(self.config.get("task", "classification"))

    @property
    def jobs(self) -> dict[str, JobRecord]:
        """Both jobs by name, in the order they run."""
        return {"search": self.search, "retrain": self.retrain}

    @property
    def trials(self) -> dict[str, Trials]:
        """What it is compared with, by title."""
        found = {"Plain networks": self.baseline, "Before the search": self.probe}
        return {title: trials for title, trials in found.items() if trials is not None}

    @property
    def epochs(self) -> list[Record]:
        """Those of both jobs."""
        return [*self.search.epochs, *self.retrain.epochs]

    @property
    def timings(self) -> list[Record]:
        """Those of both jobs."""
        return [*self.search.timings, *self.retrain.timings]

    @property
    def is_study(self) -> bool:
        """Whether all the work lies in the runs of several seeds."""
        return bool(self.seeds) and not (self.search.started or self.retrain.started)

    def status_of(self, job: str) -> str:
        """How far a job is: of a study, in how many of the seeds."""
        own = self.jobs[job]
        if self.seeds and not own.started:
            done = sum(one.jobs[job].result is not None for one in self.seeds.values())
            return f"finished for {done} of {len(self.seeds)} seeds"
        return "finished" if own.result is not None else "in progress" if own.started else "not started"

    @property
    def strategy(self) -> str:
        """Name of the strategy that was searched with; before that, of the one that was compiled."""
        jobs = [self.search, *(run.search for run in self.seeds.values())]
        config = next((job.config for job in jobs if job.config is not None), self.config)
        return SearchConfig(strategy=config["search"]["strategy"]).strategy

    @property
    def last_gates(self) -> Mapping[str, float] | None:
        """The newest gate values; None before there are any."""
        return next(reversed(self.gates.values()), None)

    @property
    def kept(self) -> Graph | None:
        """What the search has left of the graph so far, with the node ids of the search space; None before it began."""
        if self.search.graph is not None:
            return self.search.graph
        values = self.last_gates
        if values is None:
            return None
        closed = [gate for gate in self.graph.gates() if values[gate] == 0.0]
        try:
            return prune(self.graph, closed)
        except PassError:  # for a moment nothing reaches the output: no architecture to show
            return None


def by_stage(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by the stage that they are of, in the order the stages ran."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(str(record["stage"]), []).append(record)
    return found


def number_at(record: Record, key: str) -> float | None:
    """The number that a record has at a key; None if there is none."""
    value = record.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_run(run: RunDir, graph: Graph | None = None) -> RunRecord:
    """Everything in a run; RunError if a file is damaged, or what compiling wrote is missing. `graph`: of its space."""
    graph, search = graph or read_graph(run.graph_json), _job(run.search)
    return RunRecord(
        path=run.path,
        graph=graph,
        config=read_json(run.config, Settings),
        spec=read_text(run.spec),
        environment=_there(read_json, run.environment, Environment) or {},
        search=search,
        retrain=_job(run.retrain),
        gates=_gates(graph, search.epochs),
        section=_there(read_json, run.search.strategy, Section) or {},
        parity=_there(read_json, run.export / "parity.json", Exported),
        latency=_there(read_json, run.export / "latency.json", Latencies),
        data=read_facts(run.search) or read_facts(run.retrain),
        evaluation=_there(read_json, run.export / EVALUATION, Evaluation),
        seeds={seed: read_run(one, graph) for seed, one in run.seed_runs().items()},
        baseline=read_trials(run.baseline),
        probe=read_trials(run.probe),
    )


def _job(job: JobDir) -> JobRecord:
    return JobRecord(
        epochs=_there(read_lines, job.metrics, Epoch) or (),
        timings=_there(read_lines, job.timings, Timing) or (),
        result=_there(read_json, job.result, Result),
        arch=_there(read_text, job.arch),
        graph=_there(read_graph, job.graph_json),
        environment=_there(read_json, job.environment, Environment),
        config=_there(read_json, job.config, Settings),
        started=job.is_started,
    )


def _there(read: Callable[..., T], *what: Any) -> T | None:
    """What a reader gives; None if there is no such file yet."""
    try:
        return read(*what)
    except MissingFileError:
        return None


def _gates(graph: Graph, epochs: Sequence[Record]) -> GateHistory:
    """The gate values in the search's epoch records, which list them in the order of the graph."""
    gates = graph.gates()
    return {
        record["epoch"]: dict(zip(gates, record["gate_values"], strict=True))
        for record in epochs
        if record["stage"] == "search" and len(record.get("gate_values", ())) == len(gates) > 0
    }
