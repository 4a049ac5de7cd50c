"""Image files of the kinds that readers get wrong, 24 wide and 16 high where it is not said otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

RAMP = np.tile(np.linspace(0, 255, 24).astype(np.uint8), (16, 1))
DISC = ((np.indices((16, 24)) - np.array([8, 12])[:, None, None]) ** 2).sum(0) < 36
BLUE = (30, 90, 200)
COLOURS = np.dstack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 80)])
FINE = np.linspace(0, 65535, 16 * 24).astype(np.uint16).reshape(16, 24)  # 384 levels


def write_images(folder: Path) -> dict[str, Path]:
    """One of each kind by name."""
    before = set(folder.iterdir())
    for name, hidden in (("rgba_hidden_black.png", 0), ("rgba_hidden_red.png", (255, 0, 0))):
        pixels = np.zeros((16, 24, 4), np.uint8)
        pixels[..., :3] = hidden
        pixels[DISC] = (*BLUE, 255)
        Image.fromarray(pixels).save(folder / name)
    grey = np.zeros((16, 24, 2), np.uint8)
    grey[DISC] = (90, 255)
    Image.fromarray(grey).save(folder / "grey_alpha.png")
    _write_palettes(folder)
    _write_deep(folder)
    _write_oriented(folder)
    for name, form in (("plain.jfif", "JPEG"), ("plain.gif", "GIF"), ("plain.avif", "AVIF"), ("UPPER.JPG", "JPEG")):
        Image.fromarray(COLOURS).save(folder / name, format=form)
    Image.fromarray(COLOURS).convert("CMYK").save(folder / "cmyk.jpg")
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(folder / "three_frames.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.tile(RAMP[:8], (1, 17))).save(folder / "wide_408x8.png")
    for ending in ("bmp", "webp", "ppm", "tif"):
        Image.fromarray(COLOURS).save(folder / f"plain.{ending}")
    return {path.name: path for path in folder.iterdir() if path not in before}


def _write_palettes(folder: Path) -> None:
    """A palette with a transparent entry, and grey and colour images in which one value means transparent."""
    image = Image.fromarray(DISC.astype(np.uint8), "P")
    image.putpalette([255, 0, 0, *BLUE])
    image.save(folder / "palette_with_trns.png", transparency=0)
    Image.fromarray(np.where(DISC, 90, 7).astype(np.uint8)).save(folder / "grey_with_trns.png", transparency=7)
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[DISC] = BLUE
    Image.fromarray(pixels).save(folder / "colour_with_trns.png", transparency=(0, 0, 0))


def _write_deep(folder: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(folder / "grey_12_of_16_bit.png")
    Image.fromarray(FINE).save(folder / "grey_16_bit.png")
    Image.fromarray(FINE).save(folder / "grey_16_bit.tif")
    write_pgm(folder / "grey_16_bit.pgm", FINE)
    Image.fromarray((RAMP / 255).astype(np.float32)).save(folder / "float_0_to_1.tif")
    Image.fromarray((RAMP / 255 * (2**31 - 1)).astype(np.int32)).save(folder / "grey_32_bit_signed.tif")


def write_pgm(path: Path, values: NDArray[np.uint16]) -> None:
    height, width = values.shape
    path.write_bytes(b"P5 %d %d 65535\n" % (width, height) + values.astype(">u2").tobytes())


def _write_oriented(folder: Path) -> None:
    """The same picture upright, and lying on its side with a tag that says so."""
    upright = np.zeros((24, 16, 3), np.uint8)
    upright[:8] = 250
    Image.fromarray(upright).save(folder / "upright.jpg", quality=95)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.rot90(upright)).save(folder / "lying_with_orientation_6.jpg", quality=95, exif=exif)
