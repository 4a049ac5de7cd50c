"""`graphspec retrain`: train the found network of a run and write its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from compiler.analysis.costs import total_cost
from compiler.architecture.found import Architecture
from compiler.errors import RunError
from compiler.ir.graph import Graph, Model
from compiler.lowering.torch.fx import gate_values, weights_of
from compiler.ops import Cost
from compiler.passes.pipeline import TO_COMPACT, TO_INHERIT
from compiler.passes.widen import solve_width
from runtime.export.trained import saved_network
from runtime.jobs.runner import JobOptions, Workplace, run_job, write_network
from runtime.rundir.files import guarded
from runtime.rundir.opened import Opened
from runtime.training.memory import require_memory
from runtime.training.retrain_job import RetrainJob, trained_graph


@dataclass(frozen=True)
class RetrainResult:
    """What retraining reached; `retrain/result.json` holds the same."""

    run: str  # the run directory
    accuracy: float  # on the test set
    loss: float  # on the test set
    test_images: int
    validation_accuracy: float
    supernet_accuracy: float | None  # validation accuracy of the full supernet, where there was a search
    pruned_accuracy: float | None  # and of the pruned one
    width: float  # the width multiplier
    full: Cost
    found: Cost

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> RetrainResult:
        """From the JSON record."""
        return cls(**{**record, "full": Cost(**record["full"]), "found": Cost(**record["found"])})


@dataclass(frozen=True)
class Found:
    """The network to train: compact, at its width, with weights to start from where they are inherited."""

    graph: Graph
    width: float
    width_note: str  # one line for people
    weights: Mapping[str, Any] | None  # arrays by `<node>.<param>`
    metrics: Mapping[str, float | int | None]  # of the search; empty where there was none


def found_network(opened: Opened) -> Found:
    """The compact network of a run: what its search found, or all of it where there are no gates to search.

    RunError if it was not searched, PassError if the budget cannot be met.
    """
    config, architecture = opened.spec.config, _architecture(opened)
    metrics = architecture.metrics if architecture else {}
    if config.retrain.inherit:
        return _inherited(opened, metrics)
    compact = architecture.compact(opened.graph) if architecture else TO_COMPACT.run(Model(opened.graph)).graph
    width = solve_width(compact, config.budget)
    return Found(width.graph, width.multiplier, width.describe(), None, metrics)


def _architecture(opened: Opened) -> Architecture | None:
    """What the search found; None for a network without gates, RunError if it was not searched yet."""
    file = opened.run.search.arch
    if not opened.graph.gates():
        return None
    if not file.is_file():
        raise RunError(f"{opened.run.path}: nothing was found yet\n  try: graphspec search {opened.run.path} first")
    with guarded(file, "read"):
        return Architecture.from_yaml(file.read_text(encoding="utf-8"), str(file))


def _inherited(opened: Opened, metrics: Mapping[str, float | int | None]) -> Found:
    """The searched network with its weights, gates folded into them; the widths stay, so they must fit the budget."""
    folder, budget = opened.run.search, opened.spec.config.budget
    if not folder.weights.is_file():
        raise RunError(
            f"{opened.run.path}: there are no weights to inherit: the network was not trained by a search\n"
            f"  try: without --inherit (or retrain.inherit), from scratch"
        )
    module, graph = saved_network(folder)
    model = TO_INHERIT.run(Model(graph, gate_values(module, graph), weights_of(module)))
    cost = total_cost(model.graph)
    for name, amount, limit in (("params", cost.params, budget.params), ("flops", cost.flops, budget.flops)):
        if limit is not None and amount > limit:
            raise RunError(
                f"{opened.run.path}: retrain.inherit keeps the search's widths, and the network's {amount:,} {name} "
                f"are over the budget of {limit:,}\n  try: --set budget.{name}=null, or without --inherit"
            )
    note = f"weights and widths as the search left them: {cost.params:,} params, {cost.flops:,} FLOPs"
    return Found(model.graph, 1.0, note, model.weights, metrics)


def run_retrain(opened: Opened, options: JobOptions | None = None) -> RetrainResult:
    """Train the found network; RunError, PassError or Interrupted if it cannot be finished."""
    found = found_network(opened)

    def make(place: Workplace) -> RetrainJob:
        place.console.line(found.width_note)
        trained = trained_graph(found.graph, place.config.retrain, opened.spec.classes)
        require_memory(trained, place.config.retrain, place)
        return RetrainJob(
            found.graph,
            place.config,
            place.dataset,
            place.device,
            opened.spec.classes,
            found.weights,
            place.world,
        )

    def finish(place: Workplace, job: RetrainJob) -> dict[str, Any]:
        return asdict(_finish(place, job, found))

    return RetrainResult.of(run_job("retrain", opened, options or JobOptions(), make, finish))


def _finish(place: Workplace, job: RetrainJob, found: Found) -> RetrainResult:
    if place.world.is_main:
        write_network(place.folder, job.graph, job.weights())
    test = job.scores(job.test.batches(0))
    validation = job.scores(job.validation.batches(0))
    result = RetrainResult(
        run=str(place.opened.run.path),
        accuracy=test.accuracy,
        loss=test.loss,
        test_images=test.count,
        validation_accuracy=validation.accuracy,
        supernet_accuracy=found.metrics.get("full_accuracy"),
        pruned_accuracy=found.metrics.get("accuracy"),
        width=found.width,
        full=total_cost(place.opened.graph),
        found=total_cost(job.graph),
    )
    place.console.line(
        f"{_verdict(result)}\nwrote {place.folder.weights}; next: graphspec export {place.opened.run.path}"
    )
    return result


def _verdict(result: RetrainResult) -> str:
    """Accuracies and costs beside those of the supernet, for people."""
    supernets = (("full supernet", result.supernet_accuracy), ("pruned supernet", result.pruned_accuracy))
    beside = "".join(f", {name} {accuracy:.2%}" for name, accuracy in supernets if accuracy is not None)
    return (
        f"test accuracy {result.accuracy:.2%} on {result.test_images} images "
        f"(validation {result.validation_accuracy:.2%}{beside})\n"
        f"params {result.full.params:,} -> {result.found.params:,} ({result.found.params / result.full.params:.1%}), "
        f"FLOPs {result.full.flops:,} -> {result.found.flops:,} ({result.found.flops / result.full.flops:.1%})"
    )
