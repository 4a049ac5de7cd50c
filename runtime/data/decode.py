"""What one image file becomes in training: the reference reader's pixels, or a random part of them.

This runs in worker processes: it imports nothing that is slow to import and keeps no state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance

from runtime.data.archives import source
from runtime.data.pixels import GREY, Found, Pixels, Reading, as_pixels, fit, read_pixels, read_planes

TEST_MARGIN = 256 / 224  # fb.resnet tests on the central 224 pixels of images whose short side is 256
_AREA = (0.08, 1.0)  # fb.resnet trains on a random part with this share of the image's area ...
_ASPECT = (3 / 4, 4 / 3)  # ... and this ratio of width to height
_TRIES = 10
_JITTER = 0.4  # brightness, contrast and saturation change by a factor in 1 +- this
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
_Box = tuple[int, int, int, int]  # left, top, right, bottom


def decode(path: str, shape: tuple[int, ...], reading: Reading, key: int | None) -> tuple[Pixels, Found]:
    """The image at `path` as (H, W, C), for a network input `shape` (C, H, W); UnreadableError if the file is damaged.

    Without a key it is what the reference reader gives. With one it is a random part, scaled to HxW, with random
    brightness, contrast and saturation, all decided by the key.
    """
    if key is None:
        return read_pixels(source(path), shape, reading)
    planes, found = read_planes(source(path), shape[0], reading)
    choices, size = torch.Generator().manual_seed(key), (shape[2], shape[1])
    if part := _random_part(planes[0].size, shape, choices):
        cut = [plane.resize(size, Image.Resampling.BICUBIC, box=part) for plane in planes]
    else:
        cut = [fit(plane, shape) for plane in planes]
    return _jitter(cut, shape[0], choices), found


def _random_part(size: tuple[int, int], shape: tuple[int, ...], choices: torch.Generator) -> _Box | None:
    """fb.resnet's random sized crop: a part of random area and aspect, or None when none fits."""
    full_width, full_height = size
    for _ in range(_TRIES):
        share, aspect, across, down = torch.rand(4, generator=choices, dtype=torch.float64).tolist()
        area = full_width * full_height * (_AREA[0] + share * (_AREA[1] - _AREA[0]))
        ratio = math.exp(math.log(_ASPECT[0]) + aspect * math.log(_ASPECT[1] / _ASPECT[0]))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= full_width and 0 < height <= full_height:
            left = int(across * (full_width - width + 1))
            top = int(down * (full_height - height + 1))
            return left, top, left + width, top + height
    return None


def _jitter(planes: Sequence[Image.Image], channels: int, choices: torch.Generator) -> Pixels:
    """Random brightness, contrast and saturation in random order; 8 bits are rounded after each."""
    order = torch.randperm(len(_ENHANCERS), generator=choices).tolist()
    factors = (1 + _JITTER * (2 * torch.rand(len(_ENHANCERS), generator=choices, dtype=torch.float64) - 1)).tolist()
    if planes[0].mode == "F":
        values = np.stack([np.asarray(plane) for plane in planes], axis=-1)
        for which in order:
            values = _enhanced(values, which, factors[which])
        return values.repeat(channels // len(planes), axis=-1)
    image = planes[0] if len(planes) == 1 else Image.merge("RGB", list(planes))
    for which in order:
        image = _ENHANCERS[which](image).enhance(factors[which])
    return as_pixels(image, channels)


def _enhanced(values: Pixels, which: int, factor: float) -> Pixels:
    """Grey or colours (H, W, C) in 0..255, as Pillow would do it, which does not take these. Grey has no saturation."""
    grey = values @ np.array(GREY, np.float32) if values.shape[-1] == 3 else values[..., 0]
    centre = (0.0, grey.mean(), grey[..., None])[which]
    return (centre + (values - centre) * factor).clip(0, 255).astype(np.float32)
