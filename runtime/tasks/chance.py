"""Whether a network does better than one that always gives the same answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from runtime.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor

DEVIATIONS = 2  # of a binomial distribution: a network that guesses is above in 1 of 40 cases


def chance_warning(task: Task, value: float, targets: Tensor) -> str:
    """What to say where `value`, the deciding metric on images with these targets, is within the noise of chance.

    Empty if it is better, or the task knows no chance.
    """
    chance, count = task.chance(targets), len(targets)
    if chance is None:
        return ""
    noise = DEVIATIONS * math.sqrt(chance * (1 - chance) / count)
    metric = task.decides
    if value > chance + noise:
        return ""
    return (
        f"{metric.title} {metric.text(value)} is not better than chance: the most frequent answer alone has "
        f"{metric.text(chance)}, and on {count:,} images {metric.text(noise)} more or less mean nothing\n"
        f"  if the training loss stayed high, try more epochs or another learning rate; if it went down, more images"
    )
