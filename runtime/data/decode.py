"""Decoding of image files with Pillow: what one file becomes, and which errors mean that it cannot be read.

This runs in worker processes: it imports nothing that is slow to import and keeps no state.
"""

from __future__ import annotations

import contextlib
import math
import struct
import warnings
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

Pixels = NDArray[np.uint8]
View = Literal["fit", "fb_resnet"]

# What Pillow's readers raise on damaged files (SyntaxError: a PNG's chunks).
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
warnings.filterwarnings("ignore", "(Possibly )?[Cc]orrupt EXIF data", UserWarning)  # turning images is all it is for
MODES = {1: "L", 3: "RGB"}  # channel count -> Pillow's name

_TEST_MARGIN = 256 / 224  # fb.resnet tests on the central 224 pixels of images whose short side is 256
_AREA = (0.08, 1.0)  # fb.resnet trains on a random part with this share of the image's area ...
_ASPECT = (3 / 4, 4 / 3)  # ... and this ratio of width to height
_TRIES = 10
_JITTER = 0.4  # brightness, contrast and saturation change by a factor in 1 +- this


def decode(path: str, shape: tuple[int, ...], view: View, key: int | None) -> Pixels:
    """The image at `path` as (H, W, C) uint8, for a network input `shape` (C, H, W).

    Photographs are turned upright first. View `fit`, or no key: scaled until it just covers HxW, then cropped in the
    middle (with fb.resnet's margin where that is the view). View `fb_resnet` with a key: a random part, scaled to HxW,
    with random brightness, contrast and saturation, all decided by the key. Raises one of UNREADABLE when the file is
    damaged.
    """
    channels, height, width = shape
    with Image.open(path) as file:
        if view == "fit":
            enough = 2 * max(width, height)  # of either side: it may lie on its side
            file.draft(MODES[channels], (enough, enough))  # lets a large JPEG be decoded at reduced size
        file.load()  # damage shows here
        image = _eight_bits(_upright(file)).convert(MODES[channels])
    if view == "fb_resnet" and key is not None:
        choices = torch.Generator().manual_seed(key)
        image = _jitter(_random_part(image, height, width, choices), choices)
    else:
        image = _fit(image, height, width, _TEST_MARGIN if view == "fb_resnet" else 1.0)
    return np.asarray(image, dtype=np.uint8).reshape(height, width, channels)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says: cameras write that instead of turning pixels. Damaged EXIF data says nothing."""
    with contextlib.suppress(Exception):  # a damaged tag can raise almost anything
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; Pillow's own conversion makes everything above 255 white."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _fit(image: Image.Image, height: int, width: int, margin: float) -> Image.Image:
    """Scale so that the image just covers HxW times `margin`, then crop HxW in the middle, in one resampling."""
    if margin == 1.0 and image.size == (width, height):
        return image
    factor = min(image.width / width, image.height / height) / margin
    box_width, box_height = width * factor, height * factor
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (max(left, 0.0), max(top, 0.0), min(left + box_width, image.width), min(top + box_height, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _random_part(image: Image.Image, height: int, width: int, choices: torch.Generator) -> Image.Image:
    """fb.resnet's random sized crop: a part of random area and aspect, or the central one when none fits."""
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
    return _fit(image, height, width, 1.0)


def _jitter(image: Image.Image, choices: torch.Generator) -> Image.Image:
    """Random brightness, contrast and saturation in random order, rounded to 8 bits after each."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    order = torch.randperm(len(enhancers), generator=choices).tolist()
    factors = (1 + _JITTER * (2 * torch.rand(len(enhancers), generator=choices, dtype=torch.float64) - 1)).tolist()
    for which in order:
        image = enhancers[which](image).enhance(factors[which])
    return image
