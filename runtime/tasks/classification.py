"""Classification: every image belongs to one of `classes` classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compiler.errors import RunError
from compiler.language.config import TrainingConfig
from runtime.tasks.base import Metric, Task, refuse_classes

if TYPE_CHECKING:
    from torch import Tensor


class Classification(Task):
    """Cross-entropy of logits (N, classes), or (N, classes, 1, 1), and class numbers (N,) int64."""

    metrics = (Metric("accuracy", "accuracy", "{:.2%}"),)  # share of right answers
    same = "same class"
    output_name = "logits"
    head = "softmax"
    outputs_are_classes = True
    smooths_labels = True

    def targets(self, given: Tensor) -> Tensor:
        """Class numbers from 0 on."""
        if given.is_floating_point() or given.ndim != 1:
            raise ValueError(f"labels are {tuple(given.shape)} {given.dtype}, not one integer an image")
        if len(given) and int(given.min()) < 0:
            raise ValueError(f"there is a label {int(given.min())}")
        return given.long()

    def fake(self, numbers: Tensor) -> Tensor:
        """Every class comes equally often."""
        return numbers % self.outputs

    def labels(self, data_set: str, train: Tensor, test: Tensor, classes: Sequence[str] | None) -> tuple[str, ...]:
        """The names of the classes; their numbers where they have none."""
        if classes is None:
            classes = [str(number) for number in range(int(train.max()) + 1)]
            if int(test.max()) >= len(classes):
                last = len(classes) - 1
                raise RunError(
                    f"data.name: {data_set} gives test label {int(test.max())}, training labels end at {last}"
                )
        refuse_classes(data_set, len(classes), self)
        return tuple(classes)

    def strata(self, targets: Tensor) -> Tensor:
        """The classes."""
        return targets

    def chance(self, targets: Tensor) -> float:
        """The share of the most frequent class."""
        return int(targets.bincount().max()) / len(targets)

    def loss(
        self, output: Tensor, targets: Tensor, training: TrainingConfig | None = None, reduction: str = "mean"
    ) -> Tensor:
        """Cross-entropy, with label smoothing in training."""
        from torch.nn.functional import cross_entropy  # here, so that reports do without torch

        smoothing = training.label_smoothing if training else 0.0
        return cross_entropy(output.flatten(1), targets, label_smoothing=smoothing, reduction=reduction)

    def answers(self, output: Tensor, *, probabilities: bool = False) -> Tensor:
        """The class of the largest logit or probability, (N,) int64."""
        return output.flatten(1).argmax(1)

    def measure(self, answers: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """The number of right answers."""
        return {"accuracy": (answers == targets).sum()}
