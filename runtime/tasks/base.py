"""What a task is: the targets of the images, loss and metrics, the shape of the output, what counts as the same answer,
and what an export puts behind the network. docs/tasks.md shows how to write one.

It must not import torch, nor must a task at its top: `graphspec compile` and reports read what a task says of itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from compiler.errors import RunError, did_you_mean, one_line
from compiler.language.config import Configuration, TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = "accuracy_tolerance"
"""Key of the section `export`: points of the deciding metric that a small form of a file may lose."""


@dataclass(frozen=True)
class Metric:
    """A figure that tells how good a network is on a set of images."""

    name: str  # a Python name; keys of records and results are made of it, such as `validation_<name>`
    title: str  # for people
    form: str = "{:.4g}"  # how a value is written for people; a share ends in `%}`
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name == "loss":
            raise ValueError(f"{self.name!r} cannot name a metric: take a Python name (`loss` is recorded anyway)")

    @property
    def is_share(self) -> bool:
        """Whether values are shares, 0..1."""
        return self.form.endswith("%}")

    @property
    def unit(self) -> str:
        """Of `lost`."""
        return "points" if self.is_share else "%"

    def text(self, value: float) -> str:
        """A value for people."""
        return self.form.format(value)

    def short(self, value: float) -> str:
        """A value at the axis of a chart."""
        return f"{100 * value:.4g}%" if self.is_share else f"{value:.4g}"

    def is_better(self, value: float, other: float) -> bool:
        """Whether a value is better than another one."""
        return value > other if self.higher_is_better else value < other

    def lost(self, before: float, after: float) -> float:
        """How much worse `after` is: in points (hundredths) of a share, else in percent of `before`."""
        worse = before - after if self.higher_is_better else after - before
        return 100 * worse if self.is_share or not before else 100 * worse / abs(before)


class Task(ABC):
    """What a network with so many `outputs` (`classes` in the spec) is for."""

    metrics: ClassVar[tuple[Metric, ...]]
    """The first one decides."""
    same: ClassVar[str] = "same answer"
    """What people call it when two networks agree about an image."""
    output_name: ClassVar[str] = "output"
    """Of the network's output in an exported file."""
    head: ClassVar[Literal["softmax", "sigmoid"] | None] = None
    """What `export.probabilities` puts behind the network; None: the task knows no probabilities."""
    outputs_are_classes: ClassVar[bool] = False
    """Whether each output stands for a class of the data set; there are at least two then."""
    smooths_labels: ClassVar[bool] = False
    """Whether the loss reads `label_smoothing`."""
    weighs_classes: ClassVar[bool] = False
    """Whether the loss reads `data.class_weights`."""
    distils: ClassVar[bool] = False
    """Whether there is a loss against another network's outputs, `distil`."""

    blends: ClassVar[bool] = False
    """Whether targets can be blended, `shares`: read by `retrain.mixup` and `retrain.cutmix`."""

    def __init__(self, outputs: int, config: Configuration) -> None:
        self.outputs, self.config = outputs, config

    def shape_problem(self, shape: tuple[int, ...]) -> str:
        """What the task wants instead of an output of this shape, whose first size is `outputs`; empty if it fits."""
        if all(size == 1 for size in shape[1:]):
            return ""
        return f"asks for {self.outputs} values; end it with a block of type [C, H, W] -> [classes]"

    @abstractmethod
    def targets(self, given: Tensor) -> Tensor:
        """Targets (N, ...) of N images, on the CPU, from what a data set gives; ValueError that says what is wrong."""

    @abstractmethod
    def fake(self, numbers: Tensor) -> Tensor:
        """Targets of the random images with these numbers: (N,) int64."""

    def labels(self, data_set: str, train: Tensor, test: Tensor, classes: Sequence[str] | None) -> tuple[str, ...]:
        """Names of the outputs, as far as they have any; RunError if the data set does not fit the task.

        `classes` are those of the data set by number; None where it names none.
        """
        return ()

    def fitted(self, targets: Tensor, labels: Sequence[str]) -> Task:
        """This task for training images with these targets and these names of outputs; RunError if they do not fit."""
        return self

    def strata(self, targets: Tensor) -> Tensor | None:
        """(N,) int64: images of one number are spread evenly over the parts of a split; None: drawn without that."""
        return None

    def chance(self, targets: Tensor) -> float | None:
        """What one answer to all these images reaches at best, if the deciding metric is a share of right ones."""
        return None

    @abstractmethod
    def loss(
        self, output: Tensor, targets: Tensor, training: TrainingConfig | None = None, reduction: str = "mean"
    ) -> Tensor:
        """The `mean` (in training) or `sum` (in an evaluation) of the images' losses, a scalar.

        `output`: (N, *shape of the network's output), float32 or wider. `training`: the settings of a training job.
        """

    def shares(self, targets: Tensor) -> Tensor:
        """The targets in a form (N, ...) whose weighted means are targets too; `loss` takes it in training."""
        raise NotImplementedError

    def distil(self, output: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """The mean over the images of how far `output` is from what another network gives, `wanted`, a scalar.

        Both (N, *shape of the network's output). Read by `retrain.distil`.
        """
        raise NotImplementedError

    def answers(self, output: Tensor, *, probabilities: bool = False) -> Tensor:
        """What the network says of each image, (N, ...); `output` is behind the head where it has `probabilities`."""
        return output

    @abstractmethod
    def measure(self, answers: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Scalars by name that add up over batches; what `figures` makes the metrics of."""

    def figures(self, sums: Mapping[str, float], images: int) -> dict[str, float]:
        """The metrics over all images from the sums of `measure`; here each is its mean over the images."""
        return {metric.name: sums[metric.name] / max(images, 1) for metric in self.metrics}

    def agree(self, answers: Tensor, others: Tensor) -> Tensor:
        """(N,) bool: whether two networks say the same of an image."""
        return (answers == others).flatten(1).all(1) if answers.ndim > 1 else answers == others

    def chance_warning(self, value: float, targets: Tensor) -> str:
        """What to say where the deciding metric on images with these targets is within two deviations (binomial) of
        chance; empty if it is better, or the task knows no chance.
        """
        chance, count = self.chance(targets), len(targets)
        if chance is None or value > chance + (noise := 2 * math.sqrt(chance * (1 - chance) / count)):
            return ""
        text, best, more = (self.decides.text(number) for number in (value, chance, noise))
        return (
            f"{self.decides.title} {text} on {count:,} images is within the noise of chance ({best} +- {more}): if the "
            f"training loss stayed high, try more epochs or another learning rate; if it fell, more images"
        )

    @property
    def decides(self) -> Metric:
        """The metric by which networks are compared."""
        return self.metrics[0]

    def text(self, metrics: Mapping[str, float]) -> str:
        """All metrics for people."""
        return ", ".join(f"{metric.title} {metric.text(metrics[metric.name])}" for metric in self.metrics)


def refuse_classes(name: str, classes: int, task: Task) -> None:
    """RunError if the task cannot do with so many classes."""
    if task.outputs_are_classes and classes != task.outputs:
        raise RunError(
            f"data set {name!r} has {classes} classes, the spec says {task.outputs}\n"
            f"  try: `classes: {classes}` in the spec, or other data with data.name"
        )


def refuse_unknown(setting: str, names: Iterable[str], classes: Sequence[str]) -> None:
    """RunError if a setting names a class that there is not."""
    for name in sorted(set(names) - set(classes)):
        hint = did_you_mean(name, classes) or f"; there are {', '.join(map(one_line, classes[:10]))}"
        raise RunError(f"{setting}: there is no class {name!r}{hint}")
