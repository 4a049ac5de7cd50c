"""`graphspec retrain`: train the found network of a run and write its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from compiler.architecture import Architecture
from compiler.passes.widen import solve_width
from torch import Tensor

from compiler.costs import total_cost
from compiler.ir import Graph, Model
from compiler.ops import Cost
from compiler.passes.fold_gates import FoldGates
from compiler.text import from_json
from graphspec.errors import RunError
from runtime.jobs import JobOptions, Workplace, read_weights, run_job, write_network
from runtime.opened import Opened
from runtime.retrain import RetrainJob


@dataclass(frozen=True)
class RetrainResult:
    """What retraining reached; `retrain/result.json` holds the same."""

    run: str  # the run directory
    accuracy: float  # on the test set
    loss: float  # on the test set
    test_images: int
    validation_accuracy: float
    supernet_accuracy: float | None  # validation accuracy of the full supernet, where there was a search
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
    weights: Mapping[str, Tensor] | None
    architecture: Architecture


def found_network(opened: Opened) -> Found:
    """The compact network of a searched run; RunError if it was not searched, or the budget cannot be met."""
    folder, config = opened.run.search, opened.spec.config
    if not folder.arch.is_file():
        raise RunError(f"{opened.run.path}: nothing was found yet\n  try: graphspec search {opened.run.path} first")
    architecture = Architecture.from_yaml(folder.arch.read_text(encoding="utf-8"), str(folder.arch))
    compact = architecture.compact(opened.graph)
    if config.retrain.inherit:
        return _inherited(opened, architecture)
    width = solve_width(compact, config.budget)
    return Found(width.graph, float(width.multiplier), width.describe(), None, architecture)


def _inherited(opened: Opened, architecture: Architecture) -> Found:
    """The searched network with its weights, gates folded into them; the width stays."""
    folder, budget = opened.run.search, opened.spec.config.budget
    if budget.params or budget.flops:
        raise RunError(
            "retrain.inherit keeps the search's widths, a budget changes them: choose one "
            "(--set budget.params=null --set budget.flops=null, or without --inherit)"
        )
    graph = from_json(folder.graph_json.read_text(encoding="utf-8"))
    tensors = read_weights(folder.weights)
    scopes = graph.gate_scopes()
    gates = {
        gate: value
        for scope, names in scopes.items()
        for gate, value in zip(names, tensors[f"{scope}.gates"].tolist(), strict=True)
    }
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if not name.endswith(".gates")}
    folded = FoldGates().run(Model(graph, gates, arrays))
    return Found(folded.graph, 1.0, "weights and widths as the search left them", folded.weights, architecture)


def run_retrain(opened: Opened, options: JobOptions | None = None) -> RetrainResult:
    """Train the found network; RunError, PassError or Interrupted if it cannot be finished."""
    found = found_network(opened)

    def make(place: Workplace) -> RetrainJob:
        place.console.line(found.width_note)
        return RetrainJob(found.graph, place.config, place.dataset, place.device, opened.spec.classes, found.weights)

    def finish(place: Workplace, job: RetrainJob) -> dict[str, Any]:
        return asdict(_finish(place, job, found))

    return RetrainResult.of(run_job("retrain", opened, options or JobOptions(), make, finish))


def _finish(place: Workplace, job: RetrainJob, found: Found) -> RetrainResult:
    write_network(place.folder, job.graph, job.weights())
    batch = max(place.config.retrain.batch_size, 256)
    test = job.scores(place.dataset.evaluation_loader(None, batch, device=place.device).batches(0))
    validation = job.scores(job.validation.batches(0))
    full_accuracy = found.architecture.metrics.get("full_accuracy")
    result = RetrainResult(
        run=str(place.opened.run.path),
        accuracy=test.accuracy,
        loss=test.loss,
        test_images=test.count,
        validation_accuracy=validation.accuracy,
        supernet_accuracy=None if full_accuracy is None else float(full_accuracy),
        width=found.width,
        full=total_cost(place.opened.graph),
        found=total_cost(job.graph),
    )
    supernet = "" if result.supernet_accuracy is None else f", full supernet {result.supernet_accuracy:.2%}"
    place.console.line(
        f"test accuracy {result.accuracy:.2%} on {result.test_images} images "
        f"(validation {result.validation_accuracy:.2%}{supernet})\n"
        f"params {result.full.params:,} -> {result.found.params:,}, "
        f"FLOPs {result.full.flops:,} -> {result.found.flops:,}\n"
        f"wrote {place.folder.weights}; next: graphspec export --onnx"
    )
    return result
