"""The reference reader: what the pixels of an image file are for a network, in training and behind an exported model.

It needs numpy and Pillow and nothing else, so that this file can be copied there (`examples/use_onnx.py`).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[Any]  # uint8, or float32 in 0..255 where a file has more than 8 bits
MODES = {1: "L", 3: "RGB"}  # channel count -> Pillow's name
_BITS, _SAMPLE_FORMAT = 258, 339  # TIFF's tags; a sample format of 2 is a signed integer
warnings.filterwarnings("ignore", "(Possibly )?[Cc]orrupt EXIF data", UserWarning)  # turning images is all it is for


class UnreadableError(Exception):
    """An image file that cannot be read, with the reason."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How image files become pixels: the section `data` of a spec, and an exported file's metadata, say it."""

    background: Sequence[int] = (255, 255, 255)  # what shows through where an image is transparent
    range: float | None = None  # the value that is white, of more than 8 bits; None: the largest of the file's type
    margin: float = 1.0  # the part that is cropped out is so many times smaller than the scaled image
    resize: str = "crop"  # or squash, letterbox: see `fit`


READING = Reading()


@dataclass(frozen=True, slots=True)
class Found:
    """What images had that a person should know of; sums are over images."""

    transparent: int = 0  # images with transparent pixels
    deep: int = 0  # images of more than 8 bits, or of floats
    low: float = 0.0  # the lowest and the highest value in those, before clipping; 1 is the end of the range
    high: float = 0.0
    white: float = 0.0  # the largest range that was assumed

    def __add__(self, other: Found) -> Found:
        transparent, deep = self.transparent + other.transparent, self.deep + other.deep
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Found(transparent, deep, low, high, max(self.white, other.white))


def read_pixels(path: Any, shape: tuple[int, ...], reading: Reading) -> tuple[Pixels, Found]:
    """The image file as (H, W, C), for a network input `shape` (C, H, W); see `read_image` and `fit`."""
    image, found = read_image(path, shape[0], reading)
    return as_pixels(fit(image, shape, reading), shape[0]), found


def read_image(path: Any, channels: int, reading: Reading) -> tuple[Image.Image, Found]:
    """The whole image, upright, the first of several: of 8 bits in the mode of `channels`, of more in mode F (grey),
    0..255. UnreadableError when the file is damaged.
    """
    try:
        with Image.open(path) as file:
            return load(file, channels, reading)
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UnreadableError(str(error) or type(error).__name__) from error


def load(file: Image.Image, channels: int, reading: Reading) -> tuple[Image.Image, Found]:
    """As `read_image`, of a file that Pillow has opened; almost any exception if it is damaged."""
    file.load()  # damage shows here
    image = _upright(file)
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image, reading)
    if image.has_transparency_data:
        return _on_background(image, channels, reading)
    return image.convert(MODES[channels]), Found()


def fit(image: Image.Image, shape: tuple[int, ...], reading: Reading = READING) -> Image.Image:
    """Bring an image to HxW, in one resampling, as `reading.resize` says.

    `crop`: scale so that it just covers HxW times the margin, then crop HxW in the middle. `squash`: scale both sides
    apart. `letterbox`: scale so that it just fits into HxW, in the middle of the background.
    """
    _, height, width = shape
    if reading.margin == 1.0 and image.size == (width, height):
        return image
    if reading.resize == "squash":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    if reading.resize == "letterbox":
        return _letterbox(image, height, width, reading)
    factor = min(image.width / width, image.height / height) / reading.margin
    box_width, box_height = width * factor, height * factor
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (max(left, 0.0), max(top, 0.0), min(left + box_width, image.width), min(top + box_height, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _letterbox(image: Image.Image, height: int, width: int, reading: Reading) -> Image.Image:
    factor = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    ground = Image.new("RGB", (width, height), tuple(reading.background))
    ground = ground.convert("L").convert("F") if image.mode == "F" else ground.convert(image.mode)
    ground.paste(image.resize(size, Image.Resampling.BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2))
    return ground


def as_pixels(image: Image.Image, channels: int) -> Pixels:
    """An image as an array (H, W, C); grey of more than 8 bits is the same in every channel."""
    if image.mode == "F":
        return np.asarray(image).clip(0, 255)[..., None].repeat(channels, axis=2)  # resampling overshoots
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def scaled(values: NDArray[Any], white: float) -> tuple[NDArray[np.float32], Found]:
    """Values of any type, `white` becoming 255, as float32 in 0..255; ValueError where one is no number."""
    shares = np.asarray(values, np.float64) / white
    if not np.isfinite(shares).all():
        raise ValueError("has values that are no numbers")
    found = Found(deep=1, low=float(shares.min(initial=0)), high=float(shares.max(initial=0)), white=white)
    return (shares.clip(0, 1) * 255).astype(np.float32), found


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says: cameras write that instead of turning pixels. Damaged EXIF data says nothing."""
    with contextlib.suppress(Exception):  # a damaged tag can raise almost anything
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _scaled(image: Image.Image, reading: Reading) -> tuple[Image.Image, Found]:
    """Grey of 12, 16 or 32 bits, or of floats, over its range."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})  # only TIFF has tags; others have 16 bits
    bits, signed = int(tags.get(_BITS, [16])[0]), tags.get(_SAMPLE_FORMAT, [1])[0] == 2
    if bits == 32 and not signed and image.mode == "I":
        values = values.view(np.uint32)  # Pillow takes them for signed ones
    white = reading.range or (1.0 if image.mode == "F" else 2.0 ** (bits - signed) - 1)
    grey, found = scaled(values, white)
    if isinstance(seen_through := image.info.get("transparency"), int):
        hidden = values == seen_through
        grey[hidden] = np.asarray(Image.new("RGB", (1, 1), tuple(reading.background)).convert("L"))[0, 0]
        found += Found(transparent=int(hidden.any()))
    return Image.fromarray(grey), found


def _on_background(image: Image.Image, channels: int, reading: Reading) -> tuple[Image.Image, Found]:
    layers = image.convert("RGBA")
    ground = Image.new("RGBA", layers.size, (*reading.background, 255))
    flat = Image.alpha_composite(ground, layers).convert("RGB").convert(MODES[channels])
    return flat, Found(transparent=int(any(layers.getchannel("A").histogram()[:255])))
