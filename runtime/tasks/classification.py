"""Classification: every image belongs to one of `classes` classes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compiler.errors import RunError
from compiler.language.config import TrainingConfig
from runtime.tasks.base import Metric, Task, refuse_classes, refuse_unknown

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
    weighs_classes = True
    distils = True
    blends = True
    weights: Tensor | None = None  # (classes,) of `data.class_weights`

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

    def fitted(self, targets: Tensor, labels: Sequence[str]) -> Classification:
        """With the weights of the classes."""
        wanted = self.config.data.class_weights
        if wanted is None:
            return self
        import torch  # here, so that reports do without torch

        counts = targets.bincount(minlength=len(labels))
        weights = torch.ones(len(labels))
        if wanted == "balanced":
            weights = len(targets) / (counts.count_nonzero() * counts.clamp(min=1)).float()
        for name, weight in wanted.items() if isinstance(wanted, dict) else ():
            refuse_unknown("data.class_weights", [name], labels)
            weights[labels.index(name)] = weight
        task = copy.copy(self)
        task.weights = weights
        return task

    def strata(self, targets: Tensor) -> Tensor:
        """The classes."""
        return targets

    def chance(self, targets: Tensor) -> float:
        """The share of the most frequent class."""
        return int(targets.bincount().max()) / len(targets)

    def loss(
        self, output: Tensor, targets: Tensor, training: TrainingConfig | None = None, reduction: str = "mean"
    ) -> Tensor:
        """Cross-entropy; in training with label smoothing, and every image times the weight of its class.

        `targets` may be `shares` then: what an image counts is blended as well.
        """
        from torch.nn.functional import cross_entropy  # here, so that reports do without torch

        smoothing = training.label_smoothing if training else 0.0
        if training is None or self.weights is None:
            return cross_entropy(output.flatten(1), targets, label_smoothing=smoothing, reduction=reduction)
        self.weights = weights = self.weights.to(output.device)  # kept there: a copy to a GPU waits for it
        if targets.is_floating_point():
            targets = targets * weights
            weighs = targets.sum(1)
            targets = targets / weighs[:, None]  # label smoothing takes its part of an image's sum
        else:
            weighs = weights[targets]
        losses = cross_entropy(output.flatten(1), targets, label_smoothing=smoothing, reduction="none")
        losses = losses * weighs  # no mean of weights: shares of a batch add up
        return losses.sum() if reduction == "sum" else losses.mean()

    def shares(self, targets: Tensor) -> Tensor:
        """One for the class, zero for the others: (N, classes) float32; blended, the share of each class."""
        from torch.nn.functional import one_hot

        return one_hot(targets, self.outputs).float()

    def distil(self, output: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """T^2 KL(softmax(wanted / T) || softmax(output / T)), whose gradients do not shrink with T."""
        from torch.nn.functional import kl_div

        found, right = (each.flatten(1).div(temperature).log_softmax(1) for each in (output, wanted))
        return temperature**2 * kl_div(found, right, reduction="batchmean", log_target=True)

    def answers(self, output: Tensor, *, probabilities: bool = False) -> Tensor:
        """The class of the largest logit or probability, (N,) int64."""
        return output.flatten(1).argmax(1)

    def measure(self, answers: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """The number of right answers."""
        return {"accuracy": (answers == targets).sum()}
