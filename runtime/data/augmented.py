"""What augmentation makes of some images of a set, to be looked at: by the loader of the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from compiler.language.config import Configuration
from runtime.data.augment import Augment, Normalise
from runtime.data.dataset import Loader, augment_of, retraining
from runtime.data.health import Health, Item
from runtime.data.named_sets import reading_of
from runtime.data.pixels import fit
from runtime.data.sources import FileImages, Images, MemoryImages

IMAGES, EPOCHS = 4, 5
_LARGEST = 224  # pixels of a side where no spec says it
_PLAIN = Normalise((0.0,) * 3, (1 / 255,) * 3)  # x comes out as the pixels' values


def augmented(health: Health, config: Configuration, sizes: Sequence[int]) -> Iterator[tuple[str, list[Image.Image]]]:
    """Paths of some images of the first part, each with what it is in some epochs; nothing where training changes none.

    `sizes` are height and width of the network's input; empty: unknown.
    """
    augment = retraining(augment_of(config.data, 3), config.retrain)
    items = [item for item in health.readable if item.part == health.parts[0]]
    chosen = items[:: max(1, len(items) // IMAGES)][:IMAGES]
    if not chosen or augment == Augment():
        return
    height, width = sizes or [min(side, _LARGEST) for side in reversed(chosen[0].look.size)]
    images, rows = _images(health, config, chosen, (3, height, width)), torch.arange(len(chosen))
    loader = Loader(
        images, rows, _PLAIN, len(rows), training=True, purpose="weights", seed=config.seed, augment=augment
    )
    made: list[list[Image.Image]] = [[] for _ in chosen]
    for epoch in range(EPOCHS):
        for x, rows in loader.batches(epoch):
            for pixels, row in zip(x.movedim(1, -1).round().clamp(0, 255).byte().numpy(), rows.tolist(), strict=True):
                made[row].append(Image.fromarray(np.ascontiguousarray(pixels)))
    yield from zip((item.path for item in chosen), made, strict=True)


def _images(health: Health, config: Configuration, items: Sequence[Item], shape: tuple[int, ...]) -> Images:
    """These in colour; their targets are their numbers."""
    rows, reading = torch.arange(len(items)), reading_of(config.data)
    if config.data.name == "imagenet":
        return FileImages([item.path for item in items], rows, shape, random_parts=True, reading=reading)
    pictures = [np.asarray(fit(health.picture(item.path), shape, reading)) for item in items]
    return MemoryImages(torch.from_numpy(np.stack(pictures)), rows)
