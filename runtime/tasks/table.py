"""The tasks by name: the built-in ones, and those of installed packages (entry points `graphspec.tasks`).

It must not import torch: `graphspec compile` checks a spec's task, and reports read its metrics.
"""

from __future__ import annotations

from compiler.errors import Diagnostic, SpecError
from compiler.ir.graph import OUTPUT, Graph, TensorType
from compiler.language.spec import Spec
from runtime.installed import Installed
from runtime.tasks.base import Task

TASKS: Installed[Task] = Installed(
    "task",
    "graphspec.tasks",
    "runtime.tasks.base:Task",
    {"classification": "runtime.tasks.classification:Classification"},
)


def task_of(spec: Spec) -> Task:
    """The task of a spec; SpecError if there is none of its name, or if its settings do not fit."""
    TASKS.check(spec, spec.config.task, "task")
    task = TASKS.load(spec.config.task)(spec.classes, spec.config)
    _check_settings(spec, task)
    return task


def check_task(spec: Spec, graph: Graph) -> None:
    """SpecError if the spec's task is unknown, does not fit its settings or asks for another output."""
    shape = graph.node(OUTPUT).shape
    problem = task_of(spec).shape_problem(shape)
    if problem:
        message = f"the network gives {TensorType(shape)}, but the task {spec.config.task} {problem}"
        raise SpecError([Diagnostic(spec.place(*spec.network[-1].path), message)])


def _check_settings(spec: Spec, task: Task) -> None:
    """SpecError for settings that other tasks read and this one does not."""
    config = spec.config
    given = {
        ("search", "label_smoothing"): config.search.label_smoothing > 0 and not task.smooths_labels,
        ("retrain", "label_smoothing"): config.retrain.label_smoothing > 0 and not task.smooths_labels,
        ("export", "probabilities"): config.export.probabilities and task.head is None,
    }
    wrong = [path for path, is_wrong in given.items() if is_wrong]
    if wrong:
        raise SpecError(
            Diagnostic(spec.place(*path), f"{'.'.join(path)} means nothing for the task {config.task}; leave it out")
            for path in wrong
        )
