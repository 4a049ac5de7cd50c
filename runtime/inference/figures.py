"""Figures of a classifier from what it said of images whose classes are known. It must not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

EVALUATION = "evaluation.json"  # in the folder `export` of a run
Numbers = NDArray[np.int64]
SCORE_OF_95 = 1.959963984540054  # so many standard deviations leave 2.5% on either side
BINS = 15  # of equal width, as Guo et al. (2017) take them


class _Checked:
    """What is read back from a file must have the types that were written."""

    __pydantic_config__ = ConfigDict(strict=True)


@dataclass(frozen=True)
class ClassFigures(_Checked):
    """How often one class is found, and found rightly; None where there is nothing to divide by."""

    label: str
    images: int  # that show it
    answers: int  # images of which the model says it
    precision: float | None  # share of the answers that are right
    recall: float | None  # share of the images that are found


@dataclass(frozen=True)
class Bin(_Checked):
    """The images whose confidence, the probability of the answer, lies above `low`, up to `high`."""

    low: float
    high: float
    images: int
    confidence: float  # mean
    accuracy: float


@dataclass(frozen=True)
class Figures(_Checked):
    """What a classifier reaches on a set of images."""

    images: int
    accuracy: float
    interval: tuple[float, float]  # Wilson's, 95%: where the accuracy on all images of this kind lies
    balanced_accuracy: float  # mean recall of the classes that there are images of
    confidence: float  # mean
    calibration_error: float  # expected: mean over images of how far confidence and accuracy of their bin are apart
    calibration: tuple[Bin, ...]  # bins with images
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]  # images by class (row) and answer (column)


@dataclass(frozen=True)
class Mistake(_Checked):
    """An image of which the model says what it is not."""

    image: str
    truth: str
    answer: str
    confidence: float  # the probability of the answer
    picture: Annotated[str, Field(pattern=r"^(data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+)?$")]  # empty of signals


@dataclass(frozen=True)
class Evaluation(Figures):
    """What a model reaches on a set of images; `RUN/export/evaluation.json` holds one."""

    model: str
    data: str
    mistakes: tuple[Mistake, ...]  # the most confident first
    unreadable: dict[str, str]  # files left out, with the reasons


def figures_of(truths: Numbers, answers: Numbers, confidences: NDArray[np.float64], labels: Sequence[str]) -> Figures:
    """From the class, the answer and its probability of at least one image, (N,) each."""
    size, count = len(labels), len(truths)
    confusion = np.bincount(truths * size + answers, minlength=size * size).reshape(size, size)
    right = int(np.trace(confusion))
    counts = np.stack((confusion.sum(1), confusion.sum(0), confusion.diagonal()), axis=1).tolist()
    classes = tuple(
        ClassFigures(label, images, answers, found / answers if answers else None, found / images if images else None)
        for label, (images, answers, found) in zip(labels, counts, strict=True)
    )
    recalls = [each.recall for each in classes if each.recall is not None]
    bins = _bins(truths == answers, confidences)
    return Figures(
        images=count,
        accuracy=right / count,
        interval=wilson(right, count),
        balanced_accuracy=math.fsum(recalls) / len(recalls),
        confidence=float(confidences.mean()),
        calibration_error=math.fsum(each.images * abs(each.confidence - each.accuracy) for each in bins) / count,
        calibration=bins,
        classes=classes,
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share of which `right` of `count` were seen (Wilson 1927)."""
    share, squared = right / count, SCORE_OF_95**2
    centre = (share + squared / (2 * count)) / (1 + squared / count)
    half = SCORE_OF_95 * math.sqrt(share * (1 - share) / count + squared / (4 * count**2)) / (1 + squared / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _bins(right: NDArray[np.bool_], confidences: NDArray[np.float64]) -> tuple[Bin, ...]:
    places = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
    found = [(place / BINS, (place + 1) / BINS, places == place) for place in np.unique(places).tolist()]
    means = (
        (low, high, int(there.sum()), confidences[there].mean(), right[there].mean()) for low, high, there in found
    )
    return tuple(Bin(low, high, count, float(sure), float(share)) for low, high, count, sure, share in means)
