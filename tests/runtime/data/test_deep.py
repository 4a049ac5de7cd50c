"""Colours of 16 bits: all their bits are read, or a person is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compiler.language.config import DataConfig
from runtime.data.dataset import load_dataset
from runtime.data.decode import decode
from runtime.data.health import examine
from runtime.data.looks import look
from runtime.data.pixels import READING, Reading, UnreadableError, read_pixels
from runtime.data.remarks import remarks
from tests.runtime.data.deep import FORMS, as_deep_file
from tests.tasks import class_task

GREY = np.array((0.299, 0.587, 0.114))


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    see_through=st.booleans(),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    white=st.sampled_from([None, 4095.0]),
    seed=st.integers(0, 99),
)
def test_every_bit_of_colours_is_read(
    form: str, see_through: bool, size: tuple[int, int], white: float | None, seed: int
) -> None:
    channels = 4 if see_through and form != "ppm" else 3
    values = np.random.default_rng(seed).integers(0, 4096 if white else 65536, (*size, channels), np.uint16)
    reading = Reading((255, 120, 0), white)
    seen = values[..., 3:] / 65535 if channels == 4 else 1.0
    wanted = values[..., :3] / (white or 65535) * 255 * seen + np.array(reading.background) * (1 - seen)
    file = as_deep_file(values, form)
    pixels, found = read_pixels(file, (3, *size), reading)
    assert np.abs(pixels - wanted).max() < 1e-3  # a step of 16 bits is 0.004
    assert (found.deep, found.cut, found.transparent) == (1, 0, channels - 3)
    assert np.abs(read_pixels(file, (1, *size), reading)[0][..., 0] - wanted @ GREY).max() < 1e-3


@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
def test_each_colour_is_scaled_as_grey_is_and_lies_on_its_background(resize: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 14, 3), np.uint16)
    pixels = read_pixels(as_deep_file(values, "png"), (3, 5, 6), Reading((250, 120, 3), None, 1.0, resize))[0]
    for channel, tone in enumerate((250, 120, 3)):
        alone = as_deep_file(values[..., channel : channel + 1], "png")
        grey = read_pixels(alone, (1, 5, 6), Reading((tone,) * 3, None, 1.0, resize))[0]
        assert np.abs(pixels[..., channel] - grey[..., 0]).max() < 1e-3


def test_grey_of_16_bits_with_transparency_is_read_whole() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (6, 7, 2), np.uint16)
    pixels = read_pixels(as_deep_file(values, "png"), (1, 6, 7), Reading((0, 0, 0)))[0]
    assert np.abs(pixels[..., 0] - values[..., 0] / 65535.0 * 255 * (values[..., 1] / 65535.0)).max() < 1e-3


def test_random_parts_of_deep_colours_are_those_of_their_high_bytes(tmp_path: Path) -> None:
    """Which part is taken and how it is changed does not depend on the bits; the low ones are kept."""
    values = np.random.default_rng(1).integers(0, 65536, (40, 50, 3), np.uint16)
    (tmp_path / "deep.png").write_bytes(as_deep_file(values, "png").getvalue())
    Image.fromarray((values // 257).astype(np.uint8)).save(tmp_path / "flat.png")
    for key in range(8):
        deep, flat = (decode(str(tmp_path / name), (3, 24, 24), READING, key)[0] for name in ("deep.png", "flat.png"))
        assert deep.shape == flat.shape
        # 8 bits are cut off in the file and after each of three changes: half a step, and later factors of up to 1.4
        assert np.abs(deep - flat.astype(float)).mean() < 0.5 * sum(1.4**changes for changes in range(4))
        assert np.abs(deep - deep.round()).max() > 0.2


def test_a_look_names_16_bits_and_what_is_cut_is_told(tmp_path: Path) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "images"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(8):
            values = rng.integers(0, 65536, (8, 8, 3), np.uint16)
            file = as_deep_file(values, "tiff < zip", planar=number < 3)
            (root / name / f"{number}.tif").write_bytes(file.getvalue())
    assert look(str(root / "cat" / "7.tif")).mode == "RGB;16"
    config = DataConfig(name="folder", root=str(root))
    assert "6 images have colours of more than 8 bits" in "".join(examine(config, print, print).warnings())
    told = remarks(load_dataset(config, (3, 8, 8), class_task(2), seed=0))["cut"]
    assert "have colours of more than 8 bits, of which 8 are read: save them as" in told


def test_planes_that_pillow_would_mix_up_are_refused() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), np.uint16)
    with pytest.raises(UnreadableError, match="interleave them"):
        read_pixels(as_deep_file(values, "tiff <", planar=True), (3, 8, 8), READING)


@pytest.mark.parametrize(
    ("channels", "says"),
    [(4, "has 4 channels in one page, of which Pillow reads fewer"), (5, "is damaged or of a kind")],
)
def test_channels_of_a_page_that_pillow_does_not_give_are_never_dropped(
    channels: int, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = as_deep_file(np.random.default_rng(0).integers(0, 65536, (4, 4, channels)), "tiff <", extra=0)
    with pytest.raises(
        UnreadableError, match=rf"^{says}.*: save its channels as pages of their own, or as an \.npy file"
    ):
        read_pixels(file, (channels, 4, 4), READING)
    assert not caplog.records, "Pillow logs a line a file"


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_are_unreadable(form: str) -> None:
    file = as_deep_file(np.random.default_rng(0).integers(0, 65536, (8, 8, 3), np.uint16), form)
    file.truncate(len(file.getvalue()) - 60 if form == "ppm" else 70)
    with pytest.raises(UnreadableError):
        read_pixels(file, (3, 8, 8), READING)
