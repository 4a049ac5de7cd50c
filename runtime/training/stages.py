"""Where a job stands: stages of epochs of steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A run of epochs with one schedule."""

    name: str
    epochs: int
    steps_per_epoch: int
    images_per_step: int

    def images(self, epochs: int, steps: int = 0) -> int:
        """How many images are gone through in so many epochs and steps."""
        return (epochs * self.steps_per_epoch + steps) * self.images_per_step

    def share(self, epochs: int, steps: int = 0) -> float:
        """The share of the stage that is over after so many epochs and steps."""
        return (epochs * self.steps_per_epoch + steps) / (self.epochs * self.steps_per_epoch)


@dataclass(frozen=True)
class Position:
    """The next step: index of the stage, epoch and step within it, all from 0."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
