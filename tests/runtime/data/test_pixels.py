"""The reference reader gives the right pixels, and training sees the same ones."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import runtime.data.pixels
from runtime.data.decode import TEST_MARGIN, decode
from runtime.data.pixels import Found, Pixels, Reading, UnreadableError, fit, read_pixels
from runtime.data.sources import FileImages, Request
from tests.runtime.data.awkward import BLUE, COLOURS, DISC, FINE, RAMP, write_images

SHAPE = (3, 16, 24)
USUAL = Reading()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_images(tmp_path_factory.mktemp("images"))


def read(path: Path, reading: Reading = USUAL, shape: tuple[int, ...] = SHAPE) -> Pixels:
    """The pixels (H, W, C) of a file, which are the same in training."""
    pixels, found = read_pixels(path, shape, reading)
    trained, noted = decode(str(path), shape, reading, None)
    assert trained.dtype == pixels.dtype
    assert np.array_equal(trained, pixels)
    assert noted == found
    return pixels


def on(background: tuple[int, ...], colour: tuple[int, ...]) -> Pixels:
    return np.where(DISC[..., None], np.uint8(colour), np.uint8(background))


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("rgba_hidden_black.png", BLUE),
        ("rgba_hidden_red.png", BLUE),
        ("grey_alpha.png", (90, 90, 90)),
        ("palette_with_trns.png", BLUE),
        ("grey_with_trns.png", (90, 90, 90)),
        ("colour_with_trns.png", BLUE),
    ],
)
def test_what_is_transparent_shows_the_background(
    files: dict[str, Path], name: str, colour: tuple[int, ...], background: tuple[int, ...]
) -> None:
    assert np.array_equal(read(files[name], Reading(background)), on(background, colour))
    grey = read(files[name], Reading(background), (1, 16, 24))[..., 0]
    luminance = np.asarray(Image.fromarray(on(background, colour)).convert("L"))
    assert np.array_equal(grey, luminance)
    assert read_pixels(files[name], SHAPE, USUAL)[1] == Found(transparent=1)


def test_half_transparent_pixels_are_mixed_and_opaque_ones_are_taken_as_they_are(tmp_path: Path) -> None:
    pixels = np.dstack([COLOURS, np.full_like(RAMP, 51)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    wanted = COLOURS * 0.2 + 255 * 0.8
    assert np.abs(read(tmp_path / "a.png") - wanted).max() <= 1
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "b.png")
    assert np.array_equal(read(tmp_path / "b.png"), COLOURS)
    assert read_pixels(tmp_path / "b.png", SHAPE, USUAL)[1] == Found()


@pytest.mark.parametrize("name", ["grey_16_bit.png", "grey_16_bit.tif", "grey_16_bit.pgm"])
def test_sixteen_bits_are_kept(files: dict[str, Path], name: str) -> None:
    pixels = read(files[name])
    assert pixels.dtype == np.float32
    assert len(np.unique(pixels)) == FINE.size > 256
    assert np.allclose(pixels, (FINE / 65535 * 255)[..., None], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("float_0_to_1.tif", USUAL),
        ("grey_12_of_16_bit.png", Reading(range=4080)),
        ("grey_32_bit_signed.tif", USUAL),
    ],
)
def test_values_are_scaled_by_their_range(files: dict[str, Path], name: str, reading: Reading) -> None:
    assert np.allclose(read(files[name], reading), RAMP[..., None], atol=1e-3)


def test_32_bits_without_a_sign_are_not_taken_for_signed_ones(tmp_path: Path) -> None:
    image = Image.fromarray((RAMP.astype(np.uint32) * 16843009).view(np.int32))
    image.save(tmp_path / "a.tif")
    signed, unsigned = (b"\x53\x01\x03\x00\x01\x00\x00\x00" + bytes([kind, 0]) for kind in (2, 1))  # tag 339
    content = (tmp_path / "a.tif").read_bytes()
    assert signed in content
    (tmp_path / "a.tif").write_bytes(content.replace(signed, unsigned))
    assert np.allclose(read(tmp_path / "a.tif"), RAMP[..., None], atol=1e-3)


def test_twelve_bits_in_sixteen_are_found_dark(files: dict[str, Path]) -> None:
    found = read_pixels(files["grey_12_of_16_bit.png"], SHAPE, USUAL)[1]
    assert (found.deep, found.high, found.white) == (1, 4080 / 65535, 65535)
    assert read(files["grey_12_of_16_bit.png"]).max() < 16


def test_values_beyond_the_range_are_clipped_and_those_that_are_no_numbers_refused(tmp_path: Path) -> None:
    values = np.linspace(-1, 3, 16 * 24).astype(np.float32).reshape(16, 24)
    Image.fromarray(values).save(tmp_path / "a.tif")
    found = read_pixels(tmp_path / "a.tif", SHAPE, USUAL)[1]
    assert (found.low, found.high) == (-1, 3)
    assert np.allclose(read(tmp_path / "a.tif"), values.clip(0, 1)[..., None] * 255, atol=1e-3)
    values[3, 4] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableError, match="no numbers"):
        read_pixels(tmp_path / "a.tif", SHAPE, USUAL)


def test_sixteen_bits_with_a_transparent_value(tmp_path: Path) -> None:
    values = FINE.copy()
    values[:4] = 777
    Image.fromarray(values).save(tmp_path / "a.png", transparency=777)
    pixels, found = read_pixels(tmp_path / "a.png", SHAPE, Reading((0, 0, 255)))
    assert found.transparent == found.deep == 1
    assert np.unique(pixels[:4]).tolist() == [29]  # the luminance of blue
    assert np.allclose(pixels[4:], (FINE[4:] / 65535 * 255)[..., None], atol=1e-4)


def test_photographs_lying_on_their_side_are_turned(files: dict[str, Path]) -> None:
    shape = (3, 24, 16)
    lying = read(files["lying_with_orientation_6.jpg"], shape=shape)
    assert np.abs(lying.astype(int) - read(files["upright.jpg"], shape=shape)).max() <= 4
    assert lying[:7].min() > 240
    assert lying[9:].max() < 10


@pytest.mark.parametrize(
    "name", ["plain.jfif", "plain.gif", "plain.avif", "UPPER.JPG", "cmyk.jpg", "plain.bmp", "plain.webp", "plain.tif"]
)
def test_every_kind_of_file_is_read(files: dict[str, Path], name: str) -> None:
    assert np.abs(read(files[name]).astype(int) - COLOURS).mean() < 12


def test_of_several_images_the_first_is_taken(files: dict[str, Path]) -> None:
    assert np.array_equal(read(files["three_frames.gif"]), np.full((16, 24, 3), (255, 0, 0)))


def test_of_a_wide_image_the_middle_is_seen(files: dict[str, Path]) -> None:
    pixels = read(files["wide_408x8.png"], shape=(1, 8, 24))[..., 0]
    assert np.array_equal(pixels, np.tile(RAMP[:8], (1, 17))[:, 192:216])


def test_in_a_letterbox_the_whole_of_a_wide_image_is_seen(files: dict[str, Path]) -> None:
    boxed = read(files["wide_408x8.png"], Reading(resize="letterbox"), (1, 20, 408))[..., 0]
    assert np.array_equal(boxed[6:14], np.tile(RAMP[:8], (1, 17)))
    assert np.all(np.delete(boxed, range(6, 14), axis=0) == 255)


def test_of_a_wide_image_all_is_seen_where_it_is_not_cropped(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 408).astype(np.uint8), (8, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("a.png", "deep.png"):
        boxed = read(tmp_path / name, Reading((30, 30, 30), resize="letterbox"), (1, 102, 102))[..., 0]
        row = boxed[50].astype(float)
        assert boxed[50].tolist() == boxed[51].tolist()
        assert np.all(np.diff(row) > 0)
        assert np.abs(row - np.linspace(0, 255, 102)).max() < 3
        assert np.all(np.delete(boxed, [50, 51], axis=0) == 30)
        squashed = read(tmp_path / name, Reading(resize="squash"), (1, 16, 102))[..., 0]
        assert np.all(squashed == row)
        cropped = read(tmp_path / name, shape=(1, 8, 102))[..., 0]
        assert (cropped.min() > 90, cropped.max() < 165) == (True, True)


@given(width=st.integers(1, 60), height=st.integers(1, 60), to=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_a_letterbox_keeps_the_shape_of_the_image(width: int, height: int, to: tuple[int, int]) -> None:
    reading = Reading((0, 0, 255), resize="letterbox")
    seen = np.asarray(fit(Image.new("RGB", (width, height), (255, 0, 0)), (3, *to), reading))
    assert seen.shape == (*to, 3)
    rows, columns = (np.flatnonzero((seen[..., 0] == 255).any(axis)) for axis in (1, 0))
    factor = min(to[0] / height, to[1] / width)
    for found, whole, size in ((rows, to[0], height), (columns, to[1], width)):
        assert abs(len(found) - max(1, size * factor)) <= 0.5
        assert abs(found[0] - (whole - 1 - found[-1])) <= 1  # in the middle
    assert len(rows) == to[0] or len(columns) == to[1]
    assert (seen[..., 0] == 255).sum() == len(rows) * len(columns)


def test_the_margin_is_cut_off(tmp_path: Path) -> None:
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[2:30, 2:30] = COLOURS[:1, :1]  # all but the margin of 2 is one colour
    Image.fromarray(pixels).save(tmp_path / "a.png")
    seen = read(tmp_path / "a.png", Reading(margin=TEST_MARGIN), (3, 28, 28))
    assert np.array_equal(seen[2:-2, 2:-2], pixels[4:28, 4:28])
    assert np.array_equal(seen, pixels[2:30, 2:30])


def test_more_bits_than_eight_are_kept_when_resized_and_augmented(tmp_path: Path) -> None:
    steps = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    Image.fromarray(steps).save(tmp_path / "a.png")
    small = read(tmp_path / "a.png", shape=(1, 24, 24))
    assert len(np.unique(small)) > 256
    part, _ = decode(str(tmp_path / "a.png"), (1, 24, 24), USUAL, 7)
    again, _ = decode(str(tmp_path / "a.png"), (1, 24, 24), USUAL, 7)
    assert np.array_equal(part, again)
    assert part.dtype == np.float32
    assert len(np.unique(part)) > 256
    # Pillow's own enhancers agree about the same picture of 8 bits.
    eight = np.asarray(Image.fromarray((steps / 257).round().astype(np.uint8)))
    Image.fromarray(eight).save(tmp_path / "b.png")
    assert np.abs(decode(str(tmp_path / "b.png"), (1, 24, 24), USUAL, 7)[0].astype(float) - part).max() < 3


def test_large_photographs_are_decoded_at_full_size(tmp_path: Path) -> None:
    """JPEG can be decoded at reduced size, which gives other pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    whole = Image.open(tmp_path / "a.jpg").convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(read(tmp_path / "a.jpg", shape=(3, 16, 16)), np.asarray(whole))


def test_the_reader_needs_neither_torch_nor_the_rest_of_graphspec(files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(runtime.data.pixels.__file__, tmp_path / "pixels.py")
    code = (
        "import sys, pixels\n"
        f"found = pixels.read_pixels({str(files['plain.gif'])!r}, (3, 16, 24), pixels.Reading())[0]\n"
        "assert found.shape == (16, 24, 3)\n"
        "assert not {'torch', 'runtime', 'compiler', 'graphspec'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- damaged files --------------------------------------------------------------------------------------------------


def mutated(content: bytes, rng: random.Random) -> bytes:
    """With some bytes changed, removed or repeated, mostly near the beginning, where a file says what it is."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = int(len(changed) * rng.random() ** 1.5)
        kind = rng.random() if len(changed) > 16 else 0
        if kind < 0.7:
            changed[at] = rng.choice((0, 1, 255, rng.randrange(256), changed[at] ^ (1 << rng.randrange(8))))
        elif kind < 0.8:
            del changed[at : at + rng.randrange(1, 9)]
        elif kind < 0.9:
            changed[at:at] = changed[at : at + rng.randrange(1, 9)]
        else:
            del changed[at + 1 :]
    return bytes(changed)


def test_a_tag_of_another_type_is_damage_whatever_pillow_raises(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    (whole, number) = (b"\x11\x01\x04\x00", b"\x11\x01\x0b\x00")  # where the pixels are, tag 273, as a float
    assert content.count(whole) == 1
    (tmp_path / "a.tif").write_bytes(content.replace(whole, number))
    with pytest.raises(UnreadableError) as caught:
        read_pixels(tmp_path / "a.tif", SHAPE, USUAL)
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_damaged_files_are_read_alike_or_refused_alike(files: dict[str, Path], tmp_path: Path, count: int) -> None:
    """What training leaves out is what the reader refuses, and everything else has the same pixels in both."""
    rng, originals = random.Random(20), sorted(files.values())
    paths = []
    for number in range(count):
        original = originals[number % len(originals)]
        paths.append(tmp_path / f"{number}{original.suffix}")
        paths[-1].write_bytes(mutated(original.read_bytes(), rng))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what is damaged
        stream = FileImages(list(map(str, paths)), torch.zeros(count, dtype=torch.int64), SHAPE, skip_corrupt=True)
        requests = (Request(torch.tensor([number])) for number in range(count))
        for path, trained in zip(paths, stream.fetch(requests, torch.device("cpu")), strict=True):
            wanted = pixels_or_reason(path)
            if isinstance(wanted, str):
                assert (len(trained.rows), stream.skipped[str(path)]) == (0, wanted), path
            else:
                assert np.array_equal(trained.pixels[0].numpy(), wanted), path
    assert count / 10 < len(stream.skipped) < count * 9 / 10


def pixels_or_reason(path: Path) -> Pixels | str:
    try:
        return read_pixels(path, SHAPE, USUAL)[0]
    except UnreadableError as error:
        return str(error)
