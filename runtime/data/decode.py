"""What one image file becomes in training: the reference reader's pixels, or a random part of them.

This runs in worker processes: it imports nothing that is slow to import and keeps no state.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance

from runtime.data.archives import source
from runtime.data.pixels import Found, Pixels, Reading, as_pixels, fit, read_image, read_pixels

TEST_MARGIN = 256 / 224  # fb.resnet tests on the central 224 pixels of images whose short side is 256
_AREA = (0.08, 1.0)  # fb.resnet trains on a random part with this share of the image's area ...
_ASPECT = (3 / 4, 4 / 3)  # ... and this ratio of width to height
_TRIES = 10
_JITTER = 0.4  # brightness, contrast and saturation change by a factor in 1 +- this
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def decode(path: str, shape: tuple[int, ...], reading: Reading, key: int | None) -> tuple[Pixels, Found]:
    """The image at `path` as (H, W, C), for a network input `shape` (C, H, W); UnreadableError if the file is damaged.

    Without a key it is what the reference reader gives. With one it is a random part, scaled to HxW, with random
    brightness, contrast and saturation, all decided by the key.
    """
    if key is None:
        return read_pixels(source(path), shape, reading)
    image, found = read_image(source(path), shape[0], reading)
    choices = torch.Generator().manual_seed(key)
    return as_pixels(_jitter(_random_part(image, shape, choices), choices), shape[0]), found


def _random_part(image: Image.Image, shape: tuple[int, ...], choices: torch.Generator) -> Image.Image:
    """fb.resnet's random sized crop: a part of random area and aspect, or the central one when none fits."""
    _, height, width = shape
    for _ in range(_TRIES):
        share, aspect, across, down = torch.rand(4, generator=choices, dtype=torch.float64).tolist()
        area = image.width * image.height * (_AREA[0] + share * (_AREA[1] - _AREA[0]))
        ratio = math.exp(math.log(_ASPECT[0]) + aspect * math.log(_ASPECT[1] / _ASPECT[0]))
        part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < part_width <= image.width and 0 < part_height <= image.height:
            left = int(across * (image.width - part_width + 1))
            top = int(down * (image.height - part_height + 1))
            box = (left, top, left + part_width, top + part_height)
            return image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return fit(image, shape)


def _jitter(image: Image.Image, choices: torch.Generator) -> Image.Image:
    """Random brightness, contrast and saturation in random order; 8 bits are rounded after each."""
    order = torch.randperm(len(_ENHANCERS), generator=choices).tolist()
    factors = (1 + _JITTER * (2 * torch.rand(len(_ENHANCERS), generator=choices, dtype=torch.float64) - 1)).tolist()
    for which in order:
        image = _enhanced(image, which, factors[which])
    return image


def _enhanced(image: Image.Image, which: int, factor: float) -> Image.Image:
    """By Pillow; of mode F, which it does not take, as Pillow would do it. Grey has no saturation."""
    if image.mode != "F":
        return _ENHANCERS[which](image).enhance(factor)
    values = np.asarray(image)
    centre = (0.0, values.mean(), values)[which]
    return Image.fromarray((centre + (values - centre) * factor).clip(0, 255).astype(np.float32))
