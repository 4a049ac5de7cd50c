"""What an exported model says of image files. It must not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.inference import TOP, usual_batch
from runtime.inference.images import read_batches
from runtime.inference.model import ExportedModel


@dataclass(frozen=True)
class Guess:
    """A class, and the share of the probability that it gets."""

    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image: the most probable classes, the best first; or why it cannot be read."""

    image: str
    classes: tuple[Guess, ...]
    error: str = ""


def predict(
    model: ExportedModel,
    images: Sequence[str],
    *,
    top: int = TOP,
    batch: int | None = None,
    advance: Callable[[int], object] = lambda images: None,
) -> list[Prediction]:
    """Of every image in order, the `top` classes; `advance` is told of so many more images.

    RunError if the model does not read image files, or onnxruntime fails.
    """
    model.check_reads_files()
    found: dict[int, Prediction] = {}
    for part in read_batches(images, model.shape, model.reading, batch or usual_batch(model.shape[1:])):
        found |= {row: Prediction(images[row], (), why) for row, why in part.failed.items()}
        if part.rows:
            outputs = model.outputs(part.pixels)
            probabilities = model.probabilities(outputs)
            order = np.argsort(-outputs, axis=1, kind="stable")[:, :top]
            for row, best, scores in zip(part.rows, order.tolist(), probabilities.tolist(), strict=True):
                found[row] = Prediction(images[row], tuple(Guess(model.labels[c], scores[c]) for c in best))
        advance(len(part.rows) + len(part.failed))
    return [found[row] for row in range(len(images))]
