"""One look at each image of a set: its size and values, whether it can be read, and which others are nearly the same.

Two images are near-duplicates if at most so many of the 64 bits of their dHash differ (is a pixel of a 9x8 thumbnail
brighter than its left neighbour?), and the colours of the thumbnails by at most `NEAR` of 255 on average: of images
without much in them the bits alone say little. Dark images of more than 8 bits are compared as if their largest value
were white. It must not import torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from runtime.data.archives import source
from runtime.data.arrays import over_range
from runtime.data.pictures import channels_last, first_channels, picture
from runtime.data.pixels import DARK, GREY, READING, Found, Reading, load, mode_of, opened, pages_of, samples_of

NEAR = 8.0
_BRIGHTER = 2.0  # of 255: what compression leaves of a plain ground is less
_SMALL = (9, 8)  # width and height of a thumbnail
_ENOUGH = (72, 64)  # JPEG files are decoded at no more than about this
_AT_A_TIME = 256
_Rows = NDArray[np.int64]  # numbers of images
_ON_ITS_SIDE = 5  # of EXIF's orientations, and those above it
_MOST_BESIDE = 1000  # images with equal parts of their bits: each is compared with so many at most


class Look(NamedTuple):
    """What an image file has."""

    size: tuple[int, int] = (0, 0)  # width and height
    mode: str = ""
    found: Found = Found()
    thumbnail: bytes = bytes(3 * _SMALL[0] * _SMALL[1])  # RGB
    error: str = ""  # why it cannot be read
    channels: int = 0  # of an array or of a stack of pages; 0: as the mode says


def look(path: str, reading: Reading = READING) -> Look:
    """Look at an image file."""
    try:
        seen = _look(path, reading)
        white = _own_white(seen.found)
        return _look(path, replace(reading, range=white))._replace(found=seen.found) if white else seen
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        return Look(error=str(error) or type(error).__name__)


def _look(path: str, reading: Reading) -> Look:
    with opened(source(path)) as file:
        if isinstance(file, Image.Image):
            size, mode, pages = _size(file), mode_of(file), pages_of(file)
            channels, mode = (pages * len(file.getbands()), f"{mode} x {pages} pages") if pages > 1 else (0, mode)
            if samples := samples_of(file):
                channels, mode = pages * samples, f"{mode} of {samples} channels"
            file.draft("RGB", _ENOUGH)
            planes, found = load(file, 3, reading)
            return Look(size, mode, found, thumbnail(picture(planes)), channels=channels)
        image, found = first_channels(file, reading)
        channels = channels_last(file).shape[-1]
        return Look(image.size, f"{file.dtype} x {channels}", found, thumbnail(image), channels=channels)


def _size(file: Image.Image) -> tuple[int, int]:
    """Width and height of an image when it is upright; damaged EXIF data says nothing."""
    width, height = file.size
    with contextlib.suppress(Exception):
        if file.getexif().get(ExifTags.Base.Orientation, 1) >= _ON_ITS_SIDE:
            return height, width
    return width, height


def _own_white(found: Found) -> float | None:
    """The largest value of dark images of more than 8 bits, which would all look alike; None of others."""
    return found.high * found.white if found.deep and 0 < found.high < DARK else None


def thumbnail(image: Image.Image) -> bytes:
    """9x8 pixels of an image, RGB."""
    return image.resize(_SMALL, Image.Resampling.BILINEAR).convert("RGB").tobytes()


def look_at_all(
    paths: Sequence[str], reading: Reading = READING, advance: Callable[[int], Any] | None = None
) -> list[Look]:
    """A look at each file, in order, by several threads; `advance` is told of so many more that are done."""
    found: list[Look] = []
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(paths), _AT_A_TIME):
            found += pool.map(lambda path: look(path, reading), paths[first : first + _AT_A_TIME])
            if advance:
                advance(min(_AT_A_TIME, len(paths) - first))
    return found


def array_looks(images: NDArray[Any], white: float | None = None) -> list[Look]:
    """As `look_at_all`, of images (N, H, W, C), over the range `white`; ValueError if one has values that are none."""
    values, found = over_range(images, white)
    if own := _own_white(sum(found, Found())):
        values, _ = over_range(images, own)
    grey = values.shape[-1] not in (1, 3)
    flat = values.mean(-1) if grey else values.squeeze(-1) if values.shape[-1] == 1 else values
    size, mode = (images.shape[2], images.shape[1]), f"{images.dtype} x {images.shape[-1]}"
    small = (thumbnail(Image.fromarray(image)) for image in flat.astype(np.uint8))
    return [Look(size, mode, each, thumb) for each, thumb in zip(found, small, strict=True)]


def near_duplicates(looks: Iterable[Look], bits: int | None) -> NDArray[np.int64]:
    """For each image the number of the first one that it is a near-duplicate of, directly or through others (N,)."""
    looks = list(looks)
    names = np.arange(len(looks))
    numbers = np.array([row for row, each in enumerate(looks) if not each.error], np.int64)
    if bits is not None and len(numbers):
        small = np.frombuffer(b"".join(looks[row].thumbnail for row in numbers), np.uint8)
        for one, other in _pairs(small.reshape(len(numbers), -1), bits):
            names = _joined(names, numbers[one], numbers[other])
    return names


def _joined(names: _Rows, one: _Rows, other: _Rows) -> _Rows:
    """Disjoint sets, each number with the smallest one of its own (N,), after these pairs (M,) came together."""
    while (names[one] != names[other]).any():
        low, high = np.sort((names[one], names[other]), axis=0)
        np.minimum.at(names, high, low)
        while (names != names[names]).any():
            names = names[names]
    return names


def _pairs(small: NDArray[np.uint8], bits: int) -> Iterator[tuple[_Rows, _Rows]]:
    """Pairs of rows of thumbnails (N, 8 * 9 * 3) that are near-duplicates, (M,) and (M,) at a time.

    Of bits + 1 parts of two hashes one at least is equal, so that only images with an equal part are compared.
    """
    grey = small.reshape(-1, _SMALL[1], _SMALL[0], 3) @ np.array(GREY)
    brighter = (grey[:, :, 1:] > grey[:, :, :-1] + _BRIGHTER).reshape(len(small), 64)
    hashes = np.packbits(brighter, axis=1).view(np.uint64).ravel()
    for columns in np.array_split(np.arange(64), bits + 1):
        keys = np.packbits(brighter[:, columns], axis=1)
        order = np.lexsort((hashes, *keys.T))
        same = (keys[order][1:] == keys[order][:-1]).all(1)
        group = np.concatenate(([0], np.cumsum(~same)))
        place = np.arange(len(order) - 1)
        for step in range(1, _MOST_BESIDE):
            place = place[place + step < len(order)]
            place = place[group[place + step] == group[place]]
            if not len(place):
                break
            one, other = order[place], order[place + step]
            near = np.bitwise_count(hashes[one] ^ hashes[other]) <= bits
            one, other = one[near], other[near]
            alike = np.abs(small[one].astype(np.int16) - small[other]).mean(1) <= NEAR
            yield one[alike], other[alike]
