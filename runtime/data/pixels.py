"""The reference reader: what the pixels of an image file are for a network, in training and behind an exported model.

It needs numpy and Pillow and nothing else, so that this file can be copied there (`examples/use_onnx.py`).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[Any]  # uint8, or float32 in 0..255 where a file has more than 8 bits
MODES = {1: "L", 3: "RGB"}  # channel count -> Pillow's name
ARRAY_KINDS = ("uint8", "uint16", "float32")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_BITS, _SAMPLES, _PLANAR, _SAMPLE_FORMAT = 258, 277, 284, 339  # TIFF's tags; a sample format of 2 is a signed integer
_EXCHANGED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # of Pillow's names for byte orders
_DEPTHS = {"JPEG2000": (b"\xff\x4f\xff\x51", 42, 8), "AVIF": (b"pixi", 9, 9)}  # a mark, how far behind it, more than 8
_HEADER = 2**14  # bytes at the beginning of a file that hold its depth
_DEEP = ("RGB;16", "RGBA;16", "RGBX;16", "LA;16")  # of Pillow's names for how bytes lie, without their order
DARK = 0.25  # of a range: images that use no more of it are likely to have another
GREY = (0.299, 0.587, 0.114)  # how much of it each colour makes
_OTHERWISE = "save its channels as pages of their own, or as an .npy file"
warnings.filterwarnings("ignore", "(Possibly )?[Cc]orrupt EXIF data", UserWarning)  # turning images is all it is for
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # what it says of a file it refuses is said here


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
    cut: int = 0  # images of more than 8 bits, of which 8 can be read
    low: float = 0.0  # the lowest and the highest value in those, before clipping; 1 is the end of the range
    high: float = 0.0
    white: float = 0.0  # the largest range that was assumed

    def __add__(self, other: Found) -> Found:
        transparent, deep, cut = self.transparent + other.transparent, self.deep + other.deep, self.cut + other.cut
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Found(transparent, deep, cut, low, high, max(self.white, other.white))


def read_pixels(path: Any, shape: tuple[int, ...], reading: Reading) -> tuple[Pixels, Found]:
    """The image file as (H, W, C), for a network input `shape` (C, H, W); see `read_planes` and `fit`."""
    planes, found = read_planes(path, shape[0], reading)
    tones = reading.background if len(planes) == 3 else ()  # three are the colours of the background, too
    grounds = [replace(reading, background=(tone,) * 3) for tone in tones] or [reading] * len(planes)
    return _together([fit(plane, shape, own) for plane, own in zip(planes, grounds, strict=True)], shape[0]), found


def read_whole(path: Any, channels: int, reading: Reading) -> Pixels:
    """The image file as (H, W, C) in its own size."""
    return _together(read_planes(path, channels, reading)[0], channels)


def _together(planes: Sequence[Image.Image], channels: int) -> Pixels:
    """Planes as (H, W, C), or one image of all channels."""
    return np.concatenate([as_pixels(plane, channels // len(planes)) for plane in planes], axis=-1)


def read_planes(path: Any, channels: int, reading: Reading) -> tuple[list[Image.Image], Found]:
    """The whole image, upright, the first of several: of 8 bits one in the mode of `channels`, of more one of mode F,
    0..255, or one for each colour. Of an array, a stack of TIFF pages or where a network reads neither grey nor
    colours, a grey image for each channel. UnreadableError when the file is damaged or has other channels.
    """
    with unreadable(), opened(path) as file:
        if isinstance(file, Image.Image) and channels in MODES and (channels == 1 or pages_of(file) != channels):
            return load(file, channels, reading)
        return _planes(file, channels, reading)


@contextlib.contextmanager
def unreadable() -> Iterator[None]:
    """Whatever a damaged file raises in here is an UnreadableError."""
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
        if start.startswith((b"II*\0", b"MM\0*")):
            unknown = "is damaged or of a kind that Pillow does not read (colours of floats, more than 4 of 16 bits)"
            raise UnreadableError(f"{unknown}: {_OTHERWISE}") from None
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
    if values.dtype.name not in ARRAY_KINDS or values.ndim not in (2, 3) or not values.size:
        kinds = ", ".join(ARRAY_KINDS)
        raise UnreadableError(f"is {values.shape} {values.dtype}, not (H, W), (H, W, C) or (C, H, W) of {kinds}")
    return values[..., None] if values.ndim == 2 else values


def in_range(values: NDArray[Any], reading: Reading) -> tuple[NDArray[Any], Found]:
    """An array as `opened` gives it, of uint8, or float32 in 0..255."""
    if values.dtype == np.uint8:
        return values, Found()
    return scaled(values, reading.range or (1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)))


def pages_of(file: Image.Image) -> int:
    """How many pages a TIFF file has; 1 of any other."""
    return int(getattr(file, "n_frames", 1)) if file.format == "TIFF" else 1


def samples_of(file: Image.Image) -> int:
    """How many channels a page of a TIFF file has where Pillow gives fewer, as of satellite images; 0 of any other."""
    samples = int(getattr(file, "tag_v2", {}).get(_SAMPLES, 0))
    return samples if samples > len(file.getbands()) else 0


def _bands(page: Image.Image, reading: Reading) -> tuple[Sequence[Image.Image], Found]:
    if samples := samples_of(page):
        raise ChannelsError(f"has {samples} channels in one page, of which Pillow reads fewer: {_OTHERWISE}")
    if len(page.getbands()) == 1:
        return load(page, 1, reading)
    deep, cut = _deep_colours(page), _is_cut(page)
    if deep is None:
        return _upright(page).split(), Found(cut=int(cut))
    values, found = in_range(deep, reading)
    return [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(values, -1, 0)], found


def _planes(file: Image.Image | NDArray[Any], channels: int, reading: Reading) -> tuple[list[Image.Image], Found]:
    """A grey image for each channel."""
    if isinstance(file, Image.Image):
        loaded = []
        for page in range(pages_of(file)):
            file.seek(page)
            loaded.append(_bands(file, reading))
        planes, found = [image for images, _ in loaded for image in images], sum((each for _, each in loaded), Found())
        says = f"{len(planes)} channels"
    else:
        last = file if file.shape[-1] == channels else np.moveaxis(file, 0, -1)
        values, found = in_range(last, reading)
        planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(values, -1, 0)]
        says = f"shape {file.shape}"
    if len(planes) != channels:
        raise ChannelsError(f"has {says}, the network reads {channels} channels")
    if len({plane.size for plane in planes}) > 1:
        raise UnreadableError("has pages of different sizes")
    once = {name: min(getattr(found, name), 1) for name in ("deep", "cut", "transparent")}
    return planes, replace(found, **once)


def load(file: Image.Image, channels: int, reading: Reading) -> tuple[list[Image.Image], Found]:
    """As `read_planes`, of a file of grey or colours that Pillow has opened; almost any exception if it is damaged."""
    deep, cut = _deep_colours(file), _is_cut(file)
    if deep is not None:
        return _colours(deep, file.info.get("transparency"), channels, reading)
    file.load()  # damage shows here
    image, found = _upright(file), Found(cut=int(cut))
    if image.mode == "F" or image.mode.startswith("I"):
        grey, found = _scaled(image, reading)
        return [grey], found
    if image.has_transparency_data:
        flat, transparent = _on_background(image, channels, reading)
        return [flat], found + transparent
    return [image.convert(MODES[channels])], found


def mode_of(file: Image.Image) -> str:
    """The mode of a file that Pillow has opened, with `;16` where it has colours of 16 bits."""
    name = _raw_mode(file)[:-1]
    return name if name in _DEEP else file.mode


def _raw_mode(file: Any) -> str:
    """How the bytes of a PNG, TIFF or PPM file lie, as Pillow names it; empty of others."""
    none: Any = ("", (), 0, "")
    codec, _, _, args = next(iter(getattr(file, "tile", ())), none)
    if _has_planes(file):
        return ""
    if codec == "ppm":
        return "RGB;16B" if file.mode == "RGB" and args[1] > 255 else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _deep_colours(file: Any) -> NDArray[np.uint16] | None:
    """The numbers (H, W, C) of a file of colours of 16 bits, upright; None of any other.

    Pillow gives the high byte of each. Told that the bytes lie the other way round, it gives the low one.
    """
    name, order = _raw_mode(file)[:-1], _raw_mode(file)[-1:]
    if _has_planes(file) and file.tile[0].codec_name == "raw" and _is_cut(file):
        raise UnreadableError("has colours of 16 bits in planes of their own, which Pillow mixes up: interleave them")
    if name not in _DEEP:
        return None
    content = io.BytesIO(_beginning(file))
    if name == "LA;16":  # four bytes, as RGBA has
        return _as_told(file, content, "RGBA").view(">u2")
    high, low = (_as_told(file, content, f"{name}{each}") for each in (order, _EXCHANGED[order]))
    values = high.astype(np.uint16) * np.uint16(256) + low
    return (values * (65535 / file.tile[0].args[1])).round().astype(np.uint16) if file.format == "PPM" else values


def _has_planes(file: Image.Image) -> bool:
    """Whether a TIFF file has its colours one after the other."""
    return bool(getattr(file, "tag_v2", {}).get(_PLANAR) == 2)


def _beginning(file: Any, most: int = -1) -> bytes:
    """The first bytes of a file that Pillow has opened, or all."""
    place = file.fp.tell()
    file.fp.seek(0)
    start: bytes = file.fp.read(most)
    file.fp.seek(place)
    return start


def _as_told(file: Image.Image, content: io.BytesIO, raw_mode: str) -> NDArray[np.uint8]:
    """The same page of a file of this content, upright, read as if its bytes lay so."""
    content.seek(0)
    with Image.open(content) as twin:
        twin.seek(file.tell())
        twin.tile = [_told(tile, raw_mode) for tile in twin.tile]
        return np.array(_upright(twin))


def _told(tile: Any, raw_mode: str) -> Any:
    if tile.codec_name == "ppm":
        return tile._replace(codec_name="raw", args=(raw_mode, 0, 1))
    return tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)


def _is_cut(file: Any) -> bool:
    """Whether Pillow gives 8 of more bits of colours."""
    if len(file.getbands()) == 1 or _raw_mode(file)[:-1] in _DEEP:
        return False
    if file.format == "TIFF":
        return bool(max(file.tag_v2.get(_BITS, (8,))) > 8)
    mark, far, least = _DEPTHS.get(file.format, (b"", 0, 0))
    start = _beginning(file, _HEADER) if mark else b""
    at = start.find(mark) + far
    return file.info.get("bit_depth", 8) > 8 or (far <= at < len(start) and least <= start[at] < 38)


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


def as_raw(pixels: Pixels, kind: str, white: float) -> Pixels:
    """Pixels in 0..255 as a model takes them that normalises itself: numbers of `kind`, 0 to `white`."""
    if pixels.dtype == kind and white == 255:
        return pixels
    values = pixels * (white / 255)
    return (np.rint(values) if kind.startswith("u") else values).astype(kind)


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


def _colours(
    values: NDArray[np.uint16], seen_through: Any, channels: int, reading: Reading
) -> tuple[list[Image.Image], Found]:
    """Colours (H, W, C), or grey, of 16 bits, the last of four or two how much is seen: as `load` gives them."""
    count = 3 if values.shape[-1] > 2 else 1
    shown = values[..., count:] / 65535 if values.shape[-1] in (2, 4) else np.ones((*values.shape[:2], 1))
    if isinstance(seen_through, tuple):
        shown = (values != np.array(seen_through)).any(-1, keepdims=True).astype(float)
    pixels, found = scaled(values[..., :count], reading.range or 65535.0)
    ground = np.array(reading.background if count == 3 else [reading.background @ np.array(GREY)], np.float32)
    flat = (pixels * shown + ground * (1 - shown)).astype(np.float32)
    if channels == 1 and count == 3:
        flat = (flat @ np.array(GREY))[..., None].astype(np.float32)
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(flat, -1, 0)]
    return planes, found + Found(transparent=int((shown < 1).any()))


def _on_background(image: Image.Image, channels: int, reading: Reading) -> tuple[Image.Image, Found]:
    layers = image.convert("RGBA")
    ground = Image.new("RGBA", layers.size, (*reading.background, 255))
    flat = Image.alpha_composite(ground, layers).convert("RGB").convert(MODES[channels])
    return flat, Found(transparent=int(any(layers.getchannel("A").histogram()[:255])))
