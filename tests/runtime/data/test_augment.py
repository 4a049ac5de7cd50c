"""Batch augmentation against plain loops over images and pixels."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.data.augment import Augment, Draws, Normalise, crop_and_flip, draw, to_float
from runtime.seeds import generator, mix


def random_pixels(count: int, height: int, width: int, channels: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, height, width, channels), dtype=torch.uint8, generator=random)


def crop_one(image: torch.Tensor, top: int, left: int, padding: int, flip: bool) -> torch.Tensor:
    """image: (H, W, C). Pad, crop, then mirror, as torchvision's RandomCrop and RandomHorizontalFlip do."""
    height, width, channels = image.shape
    padded = torch.zeros(height + 2 * padding, width + 2 * padding, channels, dtype=torch.uint8)
    padded[padding : padding + height, padding : padding + width] = image
    cropped = padded[top : top + height, left : left + width]
    return cropped.flip(1) if flip else cropped


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3])),
    padding=st.integers(0, 5),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_crop_and_flip_equals_a_loop_over_images(
    size: tuple[int, int, int], padding: int, flip: bool, seed: int
) -> None:
    height, width, channels = size
    pixels = random_pixels(7, height, width, channels, seed)
    rows = torch.tensor([6, 0, 3, 3])
    draws = draw(Augment(crop_padding=padding, flip=flip), len(rows), height, width, generator(seed, "test"))
    got = crop_and_flip(pixels, rows, padding, draws)
    for i, row in enumerate(rows.tolist()):
        top, left = draws.offset[i].tolist() if draws.offset is not None else (0, 0)
        mirrored = draws.flip is not None and bool(draws.flip[i])
        assert torch.equal(got[i], crop_one(pixels[row], top, left, padding, mirrored))


@settings(max_examples=40)
@given(side=st.integers(1, 9), seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]))
def test_cutout_clears_one_square_per_image_after_normalising(side: int, seed: int, channels: int) -> None:
    pixels = random_pixels(4, 6, 5, channels, seed)
    normalise = Normalise((0.45,) * channels, (0.2,) * channels)
    draws = draw(Augment(cutout=side), 4, 6, 5, generator(seed, "test"))
    got = to_float(pixels, normalise, draws, side)
    whole = to_float(pixels, normalise, Draws(), 0)
    assert draws.centre is not None
    for i, (row, column) in enumerate(draws.centre.tolist()):
        first_row, first_column = row - side // 2, column - side // 2
        expected = whole[i].clone()
        expected[
            :, max(first_row, 0) : max(first_row + side, 0), max(first_column, 0) : max(first_column + side, 0)
        ] = 0.0
        assert torch.equal(got[i], expected)
        assert not torch.equal(got[i], whole[i])


def test_normalising_gives_channels_last_floats_of_the_formula() -> None:
    pixels = random_pixels(3, 4, 5, 3, seed=1)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    got = to_float(pixels, Normalise(mean, std), Draws(), 0)
    plain = (pixels.double().permute(0, 3, 1, 2) / 255 - torch.tensor(mean, dtype=torch.float64)[:, None, None]) / (
        torch.tensor(std, dtype=torch.float64)[:, None, None]
    )
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.double(), plain, rtol=1e-5, atol=1e-5)


def test_lighting_adds_one_colour_per_image_in_the_scale_of_the_pixels() -> None:
    pixels = random_pixels(2, 3, 3, 3, seed=1)
    normalise = Normalise((0.5, 0.5, 0.5), (0.2, 0.25, 0.5))
    draws = draw(Augment(lighting=True), 2, 3, 3, generator(3, "test"))
    assert draws.shift is not None
    added = to_float(pixels, normalise, draws, 0) - to_float(pixels, normalise, Draws(), 0)
    expected = (draws.shift / torch.tensor(normalise.std))[:, :, None, None].expand_as(added)
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-6)


def test_lighting_has_the_covariance_of_the_published_components() -> None:
    shift = draw(Augment(lighting=True), 200_000, 1, 1, generator(0, "test")).shift
    assert shift is not None
    # Krizhevsky's components: sum over k of (0.1 * value_k)^2 * vector_k vector_k^T, worked out by hand for red-red.
    red = 0.01 * ((0.2175 * 0.5675) ** 2 + (0.0188 * 0.7192) ** 2 + (0.0045 * 0.4009) ** 2)
    assert abs(float(shift[:, 0].double().var()) / red - 1) < 0.02


def test_offsets_reach_both_ends_of_the_padding() -> None:
    draws = draw(Augment(crop_padding=2, flip=True), 2000, 8, 8, generator(0, "test"))
    assert draws.offset is not None
    assert draws.flip is not None
    counts = torch.bincount(draws.offset.flatten())
    assert len(counts) == 5
    assert counts.min() > 700
    assert 900 < int(draws.flip.sum()) < 1100


def test_taking_a_slice_keeps_each_images_draws() -> None:
    draws = draw(Augment(2, True, 3, True), 10, 8, 8, generator(0, "test"))
    part = draws.take(slice(4, 7))
    for whole, taken in (
        (draws.offset, part.offset),
        (draws.flip, part.flip),
        (draws.centre, part.centre),
        (draws.shift, part.shift),
    ):
        assert whole is not None
        assert taken is not None
        assert torch.equal(taken, whole[4:7])


def test_mix_is_pinned_and_tells_arguments_apart() -> None:
    assert mix(0, "weights order", 1, 23) == 159520592788846195
    calls = [
        mix(0, "a", 1, 23),
        mix(0, "a", 12, 3),
        mix(1, "a", 1, 23),
        mix(0, "b", 1, 23),
        mix(0, "a", 1),
        mix(0, "a"),
    ]
    assert len(set(calls)) == len(calls)
    assert all(0 <= number < 2**63 for number in calls)
