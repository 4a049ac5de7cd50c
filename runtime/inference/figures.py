"""Figures of a classifier from what it said of images whose classes are known. It must not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
SCORE_OF_95 = 1.959963984540054  # so many standard deviations leave 2.5% on either side
BINS = 15  # of equal width, as Guo et al. (2017) take them


@dataclass(frozen=True)
class ClassFigures:
    """How often one class is found, and found rightly; None where there is nothing to divide by."""

    label: str
    images: int  # that show it
    answers: int  # images of which the model says it
    precision: float | None  # share of the answers that are right
    recall: float | None  # share of the images that are found


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies above `low`, up to `high`."""

    low: float
    high: float
    images: int
    confidence: float  # mean
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far the model's confidence, the probability of its answer, is from how often it is right."""

    error: float  # expected: the mean over images of the distance between the two in the image's bin
    confidence: float  # mean
    bins: tuple[Bin, ...]  # those with images


@dataclass(frozen=True)
class Figures:
    """What a classifier reaches on a set of images."""

    images: int
    accuracy: float
    interval: tuple[float, float]  # Wilson's, 95%: where the accuracy on all images of this kind lies
    balanced_accuracy: float  # mean recall of the classes that there are images of
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]  # images by class (row) and answer (column)
    calibration: Calibration

    @classmethod
    def of(cls, truths: Numbers, answers: Numbers, confidences: NDArray[np.float64], labels: Sequence[str]) -> Figures:
        """From the class, the answer and its probability of at least one image, (N,) each."""
        size, count = len(labels), len(truths)
        confusion = np.bincount(truths * size + answers, minlength=size * size).reshape(size, size)
        right = int(np.trace(confusion))
        classes = tuple(_of_class(label, confusion, number) for number, label in enumerate(labels))
        recalls = [each.recall for each in classes if each.recall is not None]
        return cls(
            images=count,
            accuracy=right / count,
            interval=wilson(right, count),
            balanced_accuracy=math.fsum(recalls) / len(recalls),
            classes=classes,
            confusion=tuple(map(tuple, confusion.tolist())),
            calibration=_calibration(truths == answers, confidences),
        )

    def confused(self) -> list[tuple[int, str, str]]:
        """(images, class, answer) of the mistakes that were made, the most frequent first."""
        names = [each.label for each in self.classes]
        wrong = [
            (count, names[truth], names[answer])
            for truth, row in enumerate(self.confusion)
            for answer, count in enumerate(row)
            if count and truth != answer
        ]
        return sorted(wrong, key=lambda item: -item[0])


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share of which `right` of `count` were seen (Wilson 1927)."""
    share, squared = right / count, SCORE_OF_95**2
    centre = (share + squared / (2 * count)) / (1 + squared / count)
    half = SCORE_OF_95 * math.sqrt(share * (1 - share) / count + squared / (4 * count**2)) / (1 + squared / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _of_class(label: str, confusion: NDArray[Any], number: int) -> ClassFigures:
    images, answers = int(confusion[number].sum()), int(confusion[:, number].sum())
    right = int(confusion[number, number])
    return ClassFigures(
        label, images, answers, right / answers if answers else None, right / images if images else None
    )


def _calibration(right: NDArray[np.bool_], confidences: NDArray[np.float64]) -> Calibration:
    places = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
    bins = tuple(
        Bin(place / BINS, (place + 1) / BINS, int(inside.sum()), float(confidences[inside].mean()),
            float(right[inside].mean()))
        for place in range(BINS)
        if (inside := places == place).any()
    )  # fmt: skip
    error = math.fsum(each.images * abs(each.confidence - each.accuracy) for each in bins) / len(right)
    return Calibration(error, float(confidences.mean()), bins)
