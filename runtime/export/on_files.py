"""Whether a model that takes images of any size sees in a file what the reference reader sees.

Test images are written as files of other sizes, every other one lying on its side as cameras write them. The model
scales with float32 products where Pillow has whole numbers, so that some pixels differ by 1 of 255; where Pillow takes
the height first, as newer versions do with tall images, by some more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from compiler.lowering.onnx.resize import Resize
from runtime.data.dataset import Dataset
from runtime.data.pixels import MODES, Pixels, Reading, read_pixels, read_whole
from runtime.export.parity import Case, ImageForm, Judge, Network, Parity, Reference, some_pixels

FILES = 16
TOLERANCE = 0.02  # largest error of an output, relative to the largest output
STRETCH = ((1.0, 1.0), (2.3, 2.3), (0.7, 0.9), (1.9, 3.1), (3.3, 1.4), (5.2, 4.6))  # of height and width
ORIENTATION, ON_ITS_SIDE = 0x0112, 6  # EXIF's tag, and the value for an image that is to be turned to the right


def resize_of(reading: Reading, channels: int) -> Resize:
    """The resize of the reference reader, for a model."""
    grey = np.asarray(Image.new("RGB", (1, 1), tuple(reading.background)).convert("L")).item()
    colour = reading.background if channels == 3 else [grey] * channels
    return Resize(reading.resize, reading.margin, colour)


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
    for number, pixels in enumerate(some_pixels(dataset.test, FILES).round().to(torch.uint8).numpy()):
        path = _written(pixels, folder / f"{number}", number)
        fitted, whole = read_pixels(path, shape, reading)[0], read_whole(path, shape[0], reading)
        path.unlink()
        x, (_, fed) = form.both(torch.from_numpy(fitted)[None])[0], form.both(torch.from_numpy(whole)[None])
        cases.append(Case.of("file", torch_network(x), network(fed), judge))
    folder.rmdir()
    return Parity.of(TOLERANCE, tuple(cases))


def _written(pixels: Pixels, path: Path, number: int) -> Path:
    """An image (H, W, C) as a file of another size: PNG, or an array where it is neither grey nor of three colours."""
    height, width, channels = pixels.shape
    tall, wide = STRETCH[number % len(STRETCH)]
    size = (max(1, round(width * wide)), max(1, round(height * tall)))
    planes = [Image.fromarray(np.ascontiguousarray(plane)).resize(size) for plane in np.moveaxis(pixels, -1, 0)]
    if channels not in MODES:
        np.save(path.with_suffix(".npy"), np.stack([np.asarray(plane) for plane in planes], axis=-1))
        return path.with_suffix(".npy")
    image, exif = Image.merge(MODES[channels], planes), Image.Exif()
    if number % 2:
        image, exif[ORIENTATION] = image.transpose(Image.Transpose.ROTATE_90), ON_ITS_SIDE
    image.save(path.with_suffix(".png"), exif=exif)
    return path.with_suffix(".png")
