"""`graphspec search`: run the search job of a run directory and write what it found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import safetensors.torch

from compiler.analysis.costs import total_cost
from compiler.analysis.limits import compared
from compiler.architecture.found import Architecture
from compiler.errors import RunError
from compiler.ops import Cost
from compiler.passes.prune_zero_edges import prune
from runtime.data.split import Split
from runtime.jobs.logs import Console
from runtime.jobs.options import JobOptions
from runtime.jobs.runner import Workplace, run_drawing, run_job, write_network
from runtime.rundir.directory import JobDir, Opened
from runtime.rundir.files import read_bytes, write_bytes, write_json, write_text
from runtime.rundir.start import start_weights
from runtime.search.search_job import SearchJob
from runtime.search.supernet import MODEL, below
from runtime.strategies.base import Context, Found, Space, Strategy, TrainingStrategy
from runtime.strategies.table import STRATEGIES, check_options, check_strategy
from runtime.tasks.base import Metric
from runtime.tasks.results import Measured, as_record
from runtime.tasks.table import TASKS
from runtime.training.memory import Trial, require_memory
from runtime.training.step import Scores, require_statistics


@dataclass(frozen=True)
class SearchResult(Measured):
    """What a search found; `search/result.json` holds the same."""

    run: str  # the run directory
    architecture: str  # path of arch.yaml
    metrics: Mapping[str, float | None]
    """The task's validation metrics by name of the network found, None where nothing was trained; `full_<name>` of the
    full supernet at the end of pretraining, where there was one."""
    gates: int
    kept_gates: int
    edges: int
    kept_edges: int
    full: Cost
    found: Cost
    weights: str | None = None  # SHA-256 of the file of weights


def run_search(
    opened: Opened, options: JobOptions | None = None, strategy: type[Strategy] | None = None
) -> SearchResult:
    """Search the space of a run; SpecError, RunError, PassError or Interrupted if it cannot be finished.

    `strategy` (default: the one that the spec names) is not recorded, so resuming needs the same one.
    """
    if strategy is None:
        check_strategy(opened.spec)
    kind = strategy or STRATEGIES.load(opened.spec.config.search.strategy)
    check_options(opened.spec, kind)
    options = options or JobOptions()
    if not issubclass(kind, TrainingStrategy):
        return SearchResult.of(run_drawing("search", opened, options, partial(_decide, kind)))

    return SearchResult.of(run_job("search", opened, options, partial(_job, kind), _finish))


def _job(kind: type[TrainingStrategy], place: Workplace) -> SearchJob:
    opened = place.opened
    if not opened.graph.gates():
        raise RunError(
            "the network has no gates: there is nothing to search; put `gated: true` on edges, or retrain it"
        )
    graph, config, gate_init, folder = opened.graph, opened.spec.config, opened.spec.gate_init, place.folder.path
    start = start_weights(opened)
    context = Context(graph, config, place.dataset, place.device, gate_init, place.console, folder, place.world, start)
    strategy = kind(context)
    net = strategy.net
    require_statistics(graph, "search", config.search, place.world.size)
    require_memory(Trial(net.task, net.config, net.module, (net.weights,), net.step), place)
    if place.world.is_main:
        _record_split(place.folder, context.split)
    return SearchJob(strategy)


def _record_split(folder: JobDir, split: Split) -> None:
    """Write down which training images went to which part: sizes and digest to read, row numbers to check."""
    parts = split.tensors()
    write_json(folder.path / "split.json", {name: len(rows) for name, rows in parts.items()} | {"digest": split.digest})
    write_bytes(folder.path / "split.safetensors", safetensors.torch.save(parts))


def _finish(place: Workplace, job: SearchJob) -> dict[str, Any]:
    """Write what the strategy has found, with its scores and weights where there are any; the result."""
    found = job.strategy.found()
    scores = None if found.net is None else job.context.scores(found.net)
    if scores:
        targets = place.dataset.train.targets[job.context.split.validation]
        if doubt := job.task.chance_warning(scores.metrics[job.task.decides.name], targets):
            place.console.warn(f"validation {doubt}")

    def write() -> dict[str, Any]:
        net, weights = found.net, None
        if net is not None:
            weights = write_network(place.folder, net.graph, below(net.tensors(), MODEL))
        return _conclude(place.opened, place.folder, place.console, job.strategy, found, scores) | {"weights": weights}

    return place.world.decided(write)


def _decide(kind: type[Strategy], opened: Opened, folder: JobDir, console: Console) -> dict[str, Any]:
    """Write what a strategy decides that trains nothing; the result."""
    strategy = kind(Space(opened.graph, opened.spec.config, console))
    return _conclude(opened, folder, console, strategy, strategy.found(), None)


def _conclude(
    opened: Opened, folder: JobDir, console: Console, strategy: Strategy, found: Found, scores: Scores | None
) -> dict[str, Any]:
    """Write arch.yaml and the strategy's section of the report, and tell what was found; the result."""
    config, gates = opened.spec.config, opened.graph.gates()
    graph = found.net.graph if found.net else prune(opened.graph, set(gates) - found.gates.keys())
    reached = {} if scores is None else scores.metrics
    images = {} if scores is None else {"validation_images": scores.count}
    metrics = TASKS.load(config.task).metrics
    names = [*(metric.name for metric in metrics), f"full_{metrics[0].name}"]
    costs = {"full": total_cost(opened.graph), "found": total_cost(graph)}
    architecture = Architecture.of(
        opened.graph,
        {gate: found.gates[gate] for gate in graph.gates()},
        strategy=config.search.strategy,
        seed=config.seed,
        spec_hash=hashlib.sha256(read_bytes(opened.run.resolved)).hexdigest(),
        metrics={**reached, **found.figures, **images},
        costs={name: asdict(cost) for name, cost in costs.items()},
    )
    write_text(folder.arch, architecture.to_yaml())
    write_json(folder.strategy, asdict(strategy.report()))
    result = SearchResult(
        run=str(opened.run.path),
        architecture=str(folder.arch),
        metrics={name: architecture.metrics.get(name) for name in names},
        gates=len(gates),
        kept_gates=len(graph.gates()),
        edges=opened.graph.edge_count(),
        kept_edges=graph.edge_count(),
        full=costs["full"],
        found=costs["found"],
    )
    if doubt := strategy.doubt(graph):
        console.warn(doubt)
    _tell(result, metrics[0], console)
    return as_record(result)


def _tell(result: SearchResult, metric: Metric, console: Console) -> None:
    found, supernet = result.metrics[metric.name], result.metrics[f"full_{metric.name}"]
    full = "" if supernet is None else f" (full supernet {metric.text(supernet)})"
    reached = "" if found is None else f"validation {metric.title} of what was found {metric.text(found)}{full}\n"
    console.line(
        f"kept {result.kept_edges} of {result.edges} edges, {result.kept_gates} of {result.gates} gates; "
        f"{compared(asdict(result.full), asdict(result.found))}\n"
        f"{reached}wrote {result.architecture}; next: graphspec retrain {result.run}"
    )
