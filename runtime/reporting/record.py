"""What a report is made of: everything a run directory holds so far. Files that are not there yet are left out.

A run in progress is read while another process writes it: every file is either whole (written atomically) or a log of
lines, whose last line may be unfinished and is then left for the next reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import PassError, RunError
from compiler.ir.graph import Graph
from compiler.ir.text import from_json
from compiler.language.config import SearchConfig
from compiler.passes.prune_zero_edges import prune
from runtime.rundir.directory import JobDir, RunDir
from runtime.rundir.files import guarded
from runtime.tasks.base import Task
from runtime.tasks.table import TASKS

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
    seeds: Mapping[int, RunRecord]  # of a study: the run of every seed

    @property
    def task(self) -> type[Task]:
        """What the network is for; runs of earlier versions do not say it."""
        return TASKS.load(self.config.get("task", "classification"))

    @property
    def jobs(self) -> dict[str, JobRecord]:
        """Both jobs by name, in the order they run."""
        return {"search": self.search, "retrain": self.retrain}

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


def at(value: Any, *keys: str) -> Any:
    """What lies at these keys of nested JSON; None if nothing does."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def read_run(run: RunDir) -> RunRecord:
    """Everything in the run directory; RunError if what compiling wrote is missing or a file is damaged."""
    return _read(run, _graph(run.graph_json) or _missing(run.graph_json))


def _read(run: RunDir, graph: Graph) -> RunRecord:
    search = _job(run.search)
    return RunRecord(
        path=run.path,
        graph=graph,
        config=_json(run.config) or _missing(run.config),
        spec=_text(run.spec) or _missing(run.spec),
        environment=_json(run.environment) or {},
        search=search,
        retrain=_job(run.retrain),
        gates=_gates(graph, search.epochs),
        section=_json(run.search.strategy) or {},
        parity=_json(run.export / "parity.json"),
        latency=_json(run.export / "latency.json"),
        seeds={seed: _read(one, graph) for seed, one in run.seed_runs().items()},
    )


def _missing(path: Path) -> Any:
    raise RunError(f"{path}: is missing, so there is nothing to report\n  try: graphspec compile SPEC again")


def _job(job: JobDir) -> JobRecord:
    return JobRecord(
        epochs=_lines(job.metrics),
        timings=_lines(job.timings),
        result=_json(job.result),
        arch=_text(job.arch),
        graph=_graph(job.graph_json),
        environment=_json(job.environment),
        config=_json(job.config),
        started=job.is_started,
    )


def _gates(graph: Graph, epochs: Sequence[Record]) -> GateHistory:
    """The gate values in the search's epoch records, which list them in the order of the graph."""
    gates = graph.gates()
    return {
        int(record["epoch"]): dict(zip(gates, record["gate_values"], strict=True))
        for record in epochs
        if record["stage"] == "search" and len(record.get("gate_values", ())) == len(gates) > 0
    }


def _text(path: Path) -> str | None:
    with guarded(path, "read"):
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None


def _json(path: Path) -> Any:
    text = _text(path)
    return None if text is None else _parsed(path, text)


def _graph(path: Path) -> Graph | None:
    text = _text(path)
    return None if text is None else from_json(text)


def _lines(path: Path) -> list[Record]:
    """The records of a log; an unfinished last line is left out."""
    whole = [line for line in (_text(path) or "").splitlines(keepends=True) if line.endswith("\n")]
    return [_parsed(path, line) for line in whole if line.strip()]


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        message = f"{path}: is damaged ({error})\n  try: remove it; the report then leaves that part out"
        raise RunError(message) from error
