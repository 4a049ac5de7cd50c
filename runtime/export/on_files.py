"""Whether a model that takes images of any size sees in a file what the reference reader sees.

Test images are written as files of other sizes, every other one lying on its side as cameras write them. The model
scales with float32 products where Pillow has whole numbers, so that some pixels differ by 1 of 255; where Pillow takes
the height first, as newer versions do with tall images, by some more.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from compiler.lowering.onnx.resize import Resize
from runtime.data.dataset import Dataset
from runtime.data.pixels import MODES, Pixels, Reading, as_raw, read_pixels, read_whole
from runtime.export.parity import Case, ImageForm, Judge, Network, Parity, Reference, some_pixels

FILES = 16
TOLERANCE = 0.02  # largest error of an output, relative to the largest output
STRETCH = ((1.0, 1.0), (2.3, 2.3), (0.7, 0.9), (1.9, 3.1), (3.3, 1.4), (5.2, 4.6))  # of height and width
ORIENTATION, ON_ITS_SIDE = 0x0112, 6  # EXIF's tag, and the value for an image that is to be turned to the right


def resize_of(reading: Reading, channels: int, white: float = 255.0) -> Resize:
    """The resize of the reference reader, for a model of images in 0..white."""
    grey = np.asarray(Image.new("RGB", (1, 1), tuple(reading.background)).convert("L")).item()
    colour = reading.background if channels == 3 else [grey] * channels
    return Resize(reading.resize, reading.margin, [tone * white / 255 for tone in colour], white)


def compare_on_files(
    network: Network,
    torch_network: Reference,
    form: ImageForm,
    dataset: Dataset,
    reading: Reading,
    judge: Judge,
    folder: Path,
) -> Parity:
    """Write test images to the new `folder`, give the model whole files and torch what the reference reader makes of
    them; the folder is removed. OSError if it cannot be written.
    """
    folder.mkdir()
    shape, cases = (len(dataset.normalise.mean), *dataset.test.size), []
    own = replace(reading, range=form.white if form.kind != "uint8" else None)
    for number, pixels in enumerate(some_pixels(dataset.test, FILES).numpy()):
        path = _written(as_raw(pixels, form.kind, form.white), folder / f"{number}", number)
        fitted, whole = read_pixels(path, shape, own)[0], read_whole(path, shape[0], own)
        path.unlink()
        x, (_, fed) = form.both(torch.from_numpy(fitted)[None])[0], form.both(torch.from_numpy(whole)[None])
        cases.append(Case.of("file", torch_network(x), network(fed), judge))
    folder.rmdir()
    return Parity.of(TOLERANCE, tuple(cases))


def _written(pixels: Pixels, path: Path, number: int) -> Path:
    """An image (H, W, C) as a file of another size: PNG, or an array of floats or of neither grey nor three colours."""
    height, width, channels = pixels.shape
    tall, wide = STRETCH[number % len(STRETCH)]
    size = (max(1, round(width * wide)), max(1, round(height * tall)))
    planes = [Image.fromarray(plane).resize(size) for plane in np.moveaxis(pixels.astype(np.float32), -1, 0)]
    values = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    values = values.clip(0, pixels.max()).round(0 if pixels.dtype.kind == "u" else 6).astype(pixels.dtype)
    if channels not in MODES or pixels.dtype.kind == "f":
        np.save(path.with_suffix(".npy"), values)
        return path.with_suffix(".npy")
    turn = ON_ITS_SIDE if number % 2 else 1
    path.with_suffix(".png").write_bytes(_png(np.rot90(values) if number % 2 else values, turn))
    return path.with_suffix(".png")


def _png(values: Pixels, orientation: int) -> bytes:
    """A PNG file of grey or colours (H, W, C); Pillow writes no colours of 16 bits."""
    height, width, channels = values.shape
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lines = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    kind = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, 0 if channels == 1 else 2, 0, 0, 0)
    content = {
        b"IHDR": kind,
        b"eXIf": exif.tobytes().removeprefix(b"Exif\0\0"),
        b"IDAT": zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines)),
        b"IEND": b"",
    }
    chunks = ((name + data, len(data)) for name, data in content.items())
    packed = (struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk, size in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
