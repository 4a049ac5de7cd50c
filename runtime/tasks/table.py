"""The tasks by name: the built-in ones, and those of installed packages (entry points `graphspec.tasks`).

It must not import torch: `graphspec compile` checks a spec's task, and reports read its metrics.
"""

from __future__ import annotations

from compiler.errors import Diagnostic, SpecError
from compiler.ir.graph import OUTPUT, Graph, TensorType
from compiler.language.source import Path
from compiler.language.spec import Spec
from runtime.installed import Installed
from runtime.tasks.base import Task

TASKS: Installed[Task] = Installed(
    "task",
    "graphspec.tasks",
    "runtime.tasks.base:Task",
    {"classification": "runtime.tasks.classification:Classification"},
)


def task_of(spec: Spec, graph: Graph) -> Task:
    """The task of a spec; SpecError if it is unknown, does not know the settings or asks for another output."""
    name, shape, export = spec.config.task, graph.node(OUTPUT).shape, spec.config.export
    TASKS.check(spec, name, "task")
    task = TASKS.load(name)(spec.classes, spec.config)
    smooths = {key for key in ("search", "retrain") if getattr(spec.config, key).label_smoothing > 0}
    unread = [(key, "label_smoothing") for key in smooths if not task.smooths_labels]
    unread += [("export", "probabilities")] if export.probabilities and task.head is None else []
    unread += [("data", "class_weights")] if spec.config.data.class_weights and not task.weighs_classes else []
    unread += [("retrain", "distil")] if spec.config.retrain.distil.weight and not task.distils else []
    blends = [] if task.blends else ["mixup", "cutmix"]
    unread += [("retrain", key) for key in blends if getattr(spec.config.retrain, key)]
    unread += [("data", "sampling")] if spec.config.data.sampling == "balanced" and not task.outputs_are_classes else []
    wrong: list[tuple[Path, str]] = [
        (path, f"{'.'.join(path)} means nothing for the task {name}; leave it out") for path in unread
    ]
    problem = task.shape_problem(shape)
    if problem:
        wrong.append((spec.network[-1].path, f"the network gives {TensorType(shape)}, but the task {name} {problem}"))
    if task.outputs_are_classes and spec.classes < 2:
        wrong.append((("classes",), f"classes: the task {name} tells at least 2 classes apart, found {spec.classes}"))
    if wrong:
        raise SpecError(Diagnostic(spec.place(*path), message) for path, message in wrong)
    return task
