"""Pictures of 8 bits, for people, of whatever an image file or an array holds. It must not import torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.data.pixels import Found, Reading, in_range, load, opened, unreadable


def read_picture(path: Any, reading: Reading) -> Image.Image:
    """A picture of 8 bits, grey or RGB, of an image, or of the first channels of an array."""
    with unreadable(), opened(path) as file:
        if isinstance(file, Image.Image):
            return picture(load(file, 3, reading)[0])
        return first_channels(file, reading)[0]


def picture(planes: Sequence[Image.Image]) -> Image.Image:
    """A picture of 8 bits of the planes of an image."""
    small = [plane.convert("L") if plane.mode == "F" else plane for plane in planes]
    return Image.merge("RGB", small) if len(small) == 3 else small[0]


def channels_last(values: NDArray[Any]) -> NDArray[Any]:
    """An array as `opened` gives it, (H, W, C): there are fewer channels than lines."""
    return values if values.shape[-1] <= values.shape[0] else np.moveaxis(values, 0, -1)


def first_channels(values: NDArray[Any], reading: Reading) -> tuple[Image.Image, Found]:
    """A picture of an array as `opened` gives it: its first three channels, or the first one."""
    last = channels_last(values)
    shown, found = in_range(last[..., : 3 if last.shape[-1] >= 3 else 1], reading)
    pixels = shown.astype(np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), found


def address(image: Image.Image, side: int, exact: int = 0) -> str:
    """A picture as an address that holds it, at most `side` pixels long; one of at most `exact` to the bit."""
    image.thumbnail((side, side))
    form, file = "png" if max(image.size) <= exact else "jpeg", io.BytesIO()
    image.save(file, form)
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"
