"""The reference reader: what the pixels of an image file are for a network, in training and behind an exported model.

It needs numpy and Pillow and nothing else, so that this file can be copied there (`examples/use_onnx.py`).
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[Any]  # uint8, or float32 in 0..255 where a file has more than 8 bits
MODES = {1: "L", 3: "RGB"}  # channel count -> Pillow's name
_ARRAY_KINDS = ("uint8", "uint16", "float32")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_BITS, _SAMPLE_FORMAT = 258, 339  # TIFF's tags; a sample format of 2 is a signed integer
warnings.filterwarnings("ignore", "(Possibly )?[Cc]orrupt EXIF data", UserWarning)  # turning images is all it is for


class UnreadableError(Exception):
    """An image file that cannot be read, with the reason."""


class ChannelsError(UnreadableError):
    """An image file of other channels than the network reads."""


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
    """The image file as (H, W, C), for a network input `shape` (C, H, W); see `read_planes` and `fit`."""
    planes, found = read_planes(path, shape[0], reading)
    return _together([fit(plane, shape, reading) for plane in planes], shape[0]), found


def read_whole(path: Any, channels: int, reading: Reading) -> Pixels:
    """The image file as (H, W, C) in its own size."""
    return _together(read_planes(path, channels, reading)[0], channels)


def _together(planes: Sequence[Image.Image], channels: int) -> Pixels:
    return np.concatenate([as_pixels(plane, channels // len(planes)) for plane in planes], axis=-1)


def read_planes(path: Any, channels: int, reading: Reading) -> tuple[list[Image.Image], Found]:
    """The whole image, as `read_image` gives it; of an array, a stack of TIFF pages or where a network reads neither
    grey nor colours, a grey image for each channel. UnreadableError when the file is damaged or has other channels.
    """
    with _unreadable(), opened(path) as file:
        if isinstance(file, Image.Image) and channels in MODES and not _is_stack(file, channels):
            image, found = load(file, channels, reading)
            return [image], found
        return _planes(file, channels, reading)


def read_image(path: Any, channels: int, reading: Reading) -> tuple[Image.Image, Found]:
    """The whole image, upright, the first of several: of 8 bits in the mode of `channels`, of more in mode F (grey),
    0..255; of an array its first channels. UnreadableError when the file is damaged.
    """
    with _unreadable(), opened(path) as file:
        return load(file, channels, reading) if isinstance(file, Image.Image) else first_channels(file, reading)


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UnreadableError(str(error) or type(error).__name__) from error


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Image.Image | NDArray[Any]]:
    """An image file, or the array (H, W, C) or (C, H, W) of an .npy file."""
    try:
        file = Image.open(path)
    except UnidentifiedImageError:
        with contextlib.nullcontext(path) if hasattr(path, "read") else open(path, "rb") as source:
            source.seek(0)
            start = source.read(12)
            source.seek(0)
            if start.startswith(b"\x93NUMPY"):
                yield _array(np.load(source, allow_pickle=False))
                return
        if start[4:8] != b"ftyp" or start[8:] not in _HEIF_BRANDS:
            raise
        _learn_heif()
        file = Image.open(path)
    with file:
        yield file


def _learn_heif() -> None:
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise UnreadableError("HEIC images need a package: pip install pillow-heif") from error


def _array(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.name not in _ARRAY_KINDS or values.ndim not in (2, 3) or not values.size:
        kinds = ", ".join(_ARRAY_KINDS)
        raise UnreadableError(f"is {values.shape} {values.dtype}, not (H, W), (H, W, C) or (C, H, W) of {kinds}")
    return values[..., None] if values.ndim == 2 else values


def channels_last(values: NDArray[Any]) -> NDArray[Any]:
    """An array as `opened` gives it, (H, W, C): there are fewer channels than lines."""
    return values if values.shape[-1] <= values.shape[0] else np.moveaxis(values, 0, -1)


def first_channels(values: NDArray[Any], reading: Reading) -> tuple[Image.Image, Found]:
    """A picture of an array as `opened` gives it: its first three channels, or the first one."""
    last = channels_last(values)
    shown, found = _in_range(last[..., : 3 if last.shape[-1] >= 3 else 1], reading)
    pixels = shown.astype(np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), found


def _in_range(values: NDArray[Any], reading: Reading) -> tuple[NDArray[Any], Found]:
    if values.dtype == np.uint8:
        return values, Found()
    return scaled(values, reading.range or (1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)))


def pages_of(file: Image.Image) -> int:
    """How many pages a TIFF file has; 1 of any other."""
    return int(getattr(file, "n_frames", 1)) if file.format == "TIFF" else 1


def _is_stack(file: Image.Image, channels: int) -> bool:
    """Whether the pages of a TIFF file are the channels."""
    return channels > 1 and pages_of(file) == channels


def _pages(file: Image.Image) -> Iterator[Image.Image]:
    """The pages of a TIFF file, one after the other the same object; of others the first image."""
    for page in range(pages_of(file)):
        file.seek(page)
        yield file


def _bands(page: Image.Image, reading: Reading) -> list[tuple[Image.Image, Found]]:
    bands = page.getbands()
    return [load(page, 1, reading)] if len(bands) == 1 else [(band, Found()) for band in _upright(page).split()]


def _planes(file: Image.Image | NDArray[Any], channels: int, reading: Reading) -> tuple[list[Image.Image], Found]:
    """A grey image for each channel."""
    if isinstance(file, Image.Image):
        loaded = [one for page in _pages(file) for one in _bands(page, reading)]
        planes, found = [image for image, _ in loaded], sum((each for _, each in loaded), Found())
        says = f"{len(planes)} channels"
    else:
        last = file if file.shape[-1] == channels else np.moveaxis(file, 0, -1)
        values, found = _in_range(last, reading)
        planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(values, -1, 0)]
        says = f"shape {file.shape}"
    if len(planes) != channels:
        raise ChannelsError(f"has {says}, the network reads {channels} channels")
    if len({plane.size for plane in planes}) > 1:
        raise UnreadableError("has pages of different sizes")
    return planes, replace(found, deep=min(found.deep, 1), transparent=min(found.transparent, 1))


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
