"""`graphspec retrain`: train the found network of a run and write its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from compiler.analysis.costs import total_cost
from compiler.analysis.limits import compared, limits_of, listed, measured
from compiler.architecture.found import Architecture
from compiler.errors import RunError
from compiler.ir.graph import Graph, Model
from compiler.ops import Cost
from compiler.passes.pipeline import compacted
from compiler.passes.widen import describe_width
from runtime.jobs.advice import require_teacher
from runtime.jobs.options import JobOptions
from runtime.jobs.runner import Workplace, run_job, write_network
from runtime.rundir.directory import Opened
from runtime.rundir.network import read_architecture, read_model
from runtime.rundir.start import start_weights
from runtime.rundir.trials import compared as compared_with_plain
from runtime.tasks.base import Metric, Task
from runtime.tasks.results import Measured, as_record
from runtime.training.captured import Capture
from runtime.training.memory import Trial, require_memory
from runtime.training.retrain_job import RetrainJob
from runtime.training.step import Scores, require_statistics


@dataclass(frozen=True)
class RetrainResult(Measured):
    """What retraining reached; `retrain/result.json` holds the same."""

    run: str  # the run directory
    metrics: Mapping[str, float | None]
    """The task's metrics by name on the test set; `validation_<name>`; with a search the validation metrics
    `supernet_<name>` of the full supernet and `pruned_<name>` of the pruned one, as far as they are known."""
    loss: float  # on the test set
    test_images: int
    width: float  # the width multiplier
    full: Cost
    found: Cost
    weights: str | None = None  # SHA-256 of the file of weights
    epochs: int | None = None  # that it has trained
    best_epoch: int | None = None  # whose weights these are, from 1, with `retrain.keep: best`


@dataclass(frozen=True)
class Found:
    """The network to train: compact, at its width, with weights to start from where they are inherited."""

    model: Model
    width: float
    width_note: str  # one line for people
    metrics: Mapping[str, float | int | None]  # of the search; empty where there was none


def found_network(opened: Opened) -> Found:
    """The compact network of a run: what its search found, or all of it where there are no gates to search.

    RunError if it was not searched, PassError if the budget cannot be met.
    """
    config, architecture = opened.spec.config, _architecture(opened)
    untrained = architecture.model(opened.graph) if architecture else Model(opened.graph)
    starts = config.retrain.start or ("search" if opened.spec.weights else "scratch")
    found, origin = _trained(opened, untrained) if starts == "search" else (untrained, "")
    model, width = compacted(found, config.budget, inherit=bool(found.weights))
    if found.weights:
        _check_budget(opened, model.graph)
        note = f"weights and widths as {origin}: {listed(measured(model.graph))}"
    else:
        note = describe_width(model.graph, width, config.budget)
    return Found(model, width, note, architecture.metrics if architecture else {})


def _architecture(opened: Opened) -> Architecture | None:
    """What the search found; None for a network without gates, RunError if it was not searched yet."""
    file = opened.run.search.arch
    if not opened.graph.gates():
        return None
    if not file.is_file():
        raise RunError(f"{opened.run.path}: nothing was found yet\n  try: graphspec search {opened.run.path} first")
    return read_architecture(file)


def _trained(opened: Opened, untrained: Model) -> tuple[Model, str]:
    """The network with weights, and who made them: the search, else the spec's file; RunError if there are none."""
    if untrained.gates and opened.run.search.weights.is_file():
        return read_model(opened.run.search), "the search left them"
    weights = start_weights(opened)
    if weights is None:
        raise RunError(
            f"{opened.run.path}: there are no weights to inherit: the network was not trained by a search, and its "
            f"spec names none\n  try: --from scratch"
        )
    gates = {gate: float(value != 0) for gate, value in untrained.gates.items()}  # the weights are of open gates
    return Model(untrained.graph, gates, weights), "the spec's file has them"


def _teacher(opened: Opened) -> Model | None:
    """The network before it was pruned, where it is to be learnt from; SpecError if it has no trained weights."""
    require_teacher(opened.spec)
    weights = start_weights(opened) if opened.spec.config.retrain.distil.weight else None
    return Model(opened.graph, dict.fromkeys(opened.graph.gates(), 1.0), weights) if weights else None


def _check_budget(opened: Opened, graph: Graph) -> None:
    """RunError if the network is over its budget, since its widths stay."""
    for limit in limits_of(opened.spec.config.budget):
        if limit.share(graph) > 1:
            name, most = limit.measure.name, limit.most
            raise RunError(
                f"{opened.run.path}: trained weights keep their widths, and the network's "
                f"{limit.measure.text(limit.measure.of(graph))} are over the budget of {most:,}\n"
                f"  try: --set budget.{name}=null, or --from scratch"
            )


def run_retrain(opened: Opened, options: JobOptions | None = None) -> RetrainResult:
    """Train the found network; SpecError, RunError, PassError or Interrupted if it cannot be finished."""
    found, teacher = found_network(opened), _teacher(opened)

    def make(place: Workplace) -> RetrainJob:
        place.console.line(found.width_note)
        if opened.spec.config.retrain.all_images:
            place.console.line("retrain.all_images: the validation images are trained on too; there is no validation")
        graph, weights, config = found.model.graph, found.model.weights or None, opened.spec.config
        capture = Capture.on(place.device, config.retrain, place.world.size, place.console.line)
        job = RetrainJob(graph, config, place.dataset, place.device, weights, place.world, teacher, capture)
        require_statistics(job.trained, "retrain", job.config, place.world.size)
        require_memory(Trial(job.task, job.config, job.module, (job.optimizer,), job.weight_step), place)
        return job

    return RetrainResult.of(run_job("retrain", opened, options or JobOptions(), make, partial(_finish, found)))


def _finish(found: Found, place: Workplace, job: RetrainJob) -> dict[str, Any]:
    best = job.take_best()
    weights = write_network(place.folder, job.graph, job.weights()) if place.world.is_main else None
    test = job.scores(job.test.batches(0))
    validation = job.scores(job.validation.batches(0)) if job.validation is not None else None
    result = RetrainResult(
        run=str(place.opened.run.path),
        metrics=_metrics(job.task, test, validation, found),
        loss=test.loss,
        test_images=test.count,
        width=found.width,
        full=total_cost(place.opened.graph),
        found=total_cost(job.graph),
        weights=weights,
        epochs=job.epochs,
        best_epoch=best,
    )
    if job.epochs < job.config.epochs:
        place.console.line(f"stopped after epoch {job.epochs}: no better in validation for {job.config.patience}")
    if best is not None:
        place.console.line(f"kept the weights of epoch {best}, the best in validation")
    following = f"graphspec export {place.opened.run.path}"
    if doubt := job.task.chance_warning(test.metrics[job.task.decides.name], place.dataset.test.targets):
        place.console.warn(f"test {doubt}")
    chance = job.task.chance(place.dataset.test.targets)
    record, reached = as_record(result), _verdict(result, job.task.decides, chance)
    beside = compared_with_plain(place.opened.run, type(job.task), record) if place.world.is_main else ""
    place.console.line("\n".join(filter(None, [reached, beside, f"wrote {place.folder.weights}; next: {following}"])))
    return record


def _metrics(task: Task, test: Scores, validation: Scores | None, found: Found) -> dict[str, float | None]:
    name, searched = task.decides.name, found.metrics
    supernets = {f"supernet_{name}": searched.get(f"full_{name}"), f"pruned_{name}": searched.get(name)}
    validated = validation.metrics if validation else dict.fromkeys(test.metrics)
    return {**test.metrics, **{f"validation_{n}": value for n, value in validated.items()}, **supernets}


def _verdict(result: RetrainResult, metric: Metric, chance: float | None) -> str:
    """The deciding metric and costs beside chance and those of the supernet, for people."""
    words = {"validation": "validation", "supernet": "full supernet", "pruned": "pruned supernet"}
    values = {text: result.metrics[f"{name}_{metric.name}"] for name, text in words.items()}
    test = metric.text(getattr(result, metric.name))
    values["chance"] = chance
    beside = ", ".join(f"{text} {metric.text(value)}" for text, value in values.items() if value is not None)
    return (
        f"test {metric.title} {test} on {result.test_images} images ({beside})\n"
        f"{compared(asdict(result.full), asdict(result.found))}"
    )
