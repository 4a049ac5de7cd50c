"""Parity: what is measured, in which form images go in, and when a comparison fails."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data.augment import Draws, Normalise, to_float
from runtime.data.dataset import Dataset
from runtime.data.sources import FileImages, MemoryImages
from runtime.export.parity import (
    BATCHES,
    Case,
    ImageForm,
    Judge,
    Parity,
    compare,
    raw_batches,
    reference,
    score_all,
    some_pixels,
)
from tests.tasks import class_task

TASK = class_task(4)
NORMALISE = Normalise((0.25, 0.5), (0.5, 0.125))


def dataset(images: int = 20) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 4, 2), generator=generator, dtype=torch.uint8)
    held = MemoryImages(pixels, torch.arange(images) % 4)
    labels, config = ("a", "b", "c", "d"), DataConfig(name="made", validation=0.1)
    return Dataset(held, held, labels, config=config, task=TASK, normalise=NORMALISE, seed=0)


def outputs(*rows: tuple[float, ...]) -> Any:
    return np.array(rows, np.float32)


def test_images_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        Image.new("RGB", (4, 3), (9, 9, 9)).save(path)
    for path in (paths[0], paths[1], paths[3]):
        path.write_bytes(b"damaged")
    images = FileImages(list(map(str, paths)), torch.arange(6) // 6, (3, 3, 4), skip_corrupt=True)
    assert [len(some_pixels(images, count)) for count in (1, 2, 6)] == [1, 1, 3]
    batches = list(raw_batches(images, torch.arange(6), 2))
    assert [len(targets) for _, targets in batches] == [1, 2]
    for path in paths:
        path.write_bytes(b"damaged")
    with pytest.raises(RunError, match="unreadable"):
        some_pixels(images, 1)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_of_more_than_8_bits_both_networks_get_8(layout: Literal["nchw", "nhwc"]) -> None:
    pixels = torch.linspace(0, 255, 2 * 3 * 4 * 2).view(2, 3, 4, 2)
    x, image = ImageForm(layout, NORMALISE).both(pixels)
    whole, raw = ImageForm(layout, NORMALISE).both(pixels.round().to(torch.uint8))
    assert torch.equal(x, whole)
    assert np.array_equal(image, raw)
    assert image.dtype == np.uint8
    assert torch.allclose(ImageForm("none", NORMALISE).both(pixels)[0], to_float(pixels, NORMALISE, Draws(), 0))


# -- one case -------------------------------------------------------------------------------------------------------


def test_a_case_measures_the_largest_error_and_the_same_answers() -> None:
    case = Case.of("test", outputs((1, 2), (-4, 3)), outputs((1, 2.5), (-4, -5)), Judge(TASK))
    assert (case.batch, case.max_abs, case.max_rel, case.agreement) == (2, 8.0, 2.0, 0.5)


@settings(max_examples=50)
@given(st.floats(1e-3, 1e3), st.integers(0, 11), st.floats(-30, 30, width=32).filter(lambda x: abs(x) > 1e-3))
def test_the_relative_error_does_not_depend_on_the_scale(scale: float, place: int, error: float) -> None:
    wanted = np.arange(1, 13, dtype=np.float64).reshape(4, 3)
    found = wanted.copy()
    found.flat[place] += error
    case = Case.of("random", wanted * scale, found * scale, Judge(TASK))
    assert case.max_abs == pytest.approx(abs(error) * scale, rel=1e-9)
    assert case.max_rel == pytest.approx(abs(error) / 12, rel=1e-9)


def test_zeros_equal_zeros_and_nothing_else() -> None:
    assert Case.of("test", outputs((0, 0)), outputs((0, 0)), Judge(TASK)).max_rel == 0
    assert Case.of("test", outputs((0, 0)), outputs((0, 1e-30)), Judge(TASK)).max_rel == math.inf


def test_outputs_of_another_shape_are_an_error() -> None:
    with pytest.raises(RunError, match=r"gives outputs \(1, 3\), torch gives \(1, 2\)"):
        Case.of("test", outputs((0, 0)), outputs((0, 0, 0)), Judge(TASK))


# -- all cases ------------------------------------------------------------------------------------------------------


def parity(*errors: float, tolerance: float = 1e-4) -> Parity:
    return Parity.of(tolerance, tuple(Case("test", i + 1, 2 * error, error, 1.0) for i, error in enumerate(errors)))


def test_the_worst_case_decides() -> None:
    parity(1e-6, 1e-4).check("same class")
    with pytest.raises(RunError, match=r"2\.200e-04 absolute, 1\.100e-04 relative .*allowed 1\.0e-04\n.*batch +2:"):
        parity(1e-6, 1.1e-4, 1e-7).check("same class")


@pytest.mark.parametrize("errors", [(math.nan, 1e-6), (1e-6, math.nan), (1e-6, math.inf)])
def test_what_is_no_number_never_passes(errors: tuple[float, ...]) -> None:
    with pytest.raises(RunError, match="nothing was written"):
        parity(*errors).check("same class")


def test_agreement_is_weighted_by_images() -> None:
    cases = (Case("random", 1, 0, 0, 0.0), Case("test", 3, 0, 0, 1.0))
    assert Parity.of(1e-4, cases).agreement == 0.75


# -- forms of images ------------------------------------------------------------------------------------------------


def test_float_images_are_what_torch_reads() -> None:
    pixels = some_pixels(dataset().test, 5)
    x, image = ImageForm("none", NORMALISE).both(pixels)
    wanted = (pixels.numpy() / 255 - np.array(NORMALISE.mean)) / np.array(NORMALISE.std)
    assert np.abs(x.numpy() - wanted.transpose(0, 3, 1, 2)).max() < 1e-5
    assert (image == x.numpy()).all()


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_raw_images_come_in_the_layout_asked_for(layout: Any) -> None:
    pixels = some_pixels(dataset().test, 5)
    x, image = ImageForm(layout, NORMALISE).both(pixels)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert (image == (pixels.numpy() if layout == "nhwc" else pixels.numpy().transpose(0, 3, 1, 2))).all()
    assert torch.equal(x, ImageForm("none", NORMALISE).both(pixels)[0])


@pytest.mark.parametrize("layout", ["none", "nhwc", "nchw"])
def test_random_images_follow_from_the_seed(layout: Any) -> None:
    form = ImageForm(layout, NORMALISE)
    x, image = form.random(3, (2, 3, 4), seed=1)
    assert x.shape == (3, 2, 3, 4)
    assert image.shape == ((3, 3, 4, 2) if layout == "nhwc" else (3, 2, 3, 4))
    assert torch.equal(x, form.random(3, (2, 3, 4), seed=1)[0])
    assert not torch.equal(x, form.random(3, (2, 3, 4), seed=2)[0])


def test_a_small_set_is_used_over_again() -> None:
    held = dataset(5).test
    assert torch.equal(some_pixels(held, 7)[:5], some_pixels(held, 5))
    assert torch.equal(some_pixels(held, 7)[5:], some_pixels(held, 5)[:2])


def test_a_few_images_are_spread_over_a_large_set() -> None:
    held = dataset(20).test
    every = some_pixels(held, 20)
    assert torch.equal(some_pixels(held, 4), every[[0, 5, 10, 15]])


# -- whole comparisons ----------------------------------------------------------------------------------------------


def linear() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(24, 4))
    nn.init.normal_(module[1].weight, generator=torch.Generator().manual_seed(0))
    return module


def test_compare_runs_every_batch_on_random_and_test_images() -> None:
    torch_network = reference(linear(), None)
    form, made = ImageForm("nhwc", NORMALISE), dataset()

    def network(image: Any) -> Any:
        return torch_network(form.both(torch.from_numpy(image))[0]) * np.float32(1 + 1e-3)

    found = compare(network, torch_network, form, made, Judge(TASK), 1e-2)
    assert [(c.images, c.batch) for c in found.cases] == [(k, b) for k in ("random", "test") for b in BATCHES]
    assert found.max_rel == pytest.approx(1e-3, rel=1e-3)
    assert found.agreement == 1.0
    found.check("same class")


def test_probabilities_are_compared_with_probabilities() -> None:
    x = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    logits, shares = (reference(linear(), head)(x) for head in (None, "softmax"))
    assert np.abs(shares.sum(1) - 1).max() < 1e-6
    assert np.abs(np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - shares).max() < 1e-6


def test_the_reference_is_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Flatten()).train()
    x = torch.ones(2, 2, 3, 4)
    assert (reference(module, None)(x) == 1).all()


@pytest.mark.parametrize(("side", "batches"), [(32, [256, 44]), (128, [16, 16, 2]), (1024, [1] * 5)])
def test_large_images_are_scored_few_at_a_time(side: int, batches: list[int]) -> None:
    """A batch of 256 of 224 x 224 pixels takes gigabytes."""
    count = sum(batches)
    pixels = torch.zeros(count, side, side, 2, dtype=torch.uint8)
    made = replace(dataset(count), test=MemoryImages(pixels, torch.arange(count) % 4))
    seen: list[int] = []

    def network(images: Any) -> Any:
        seen.append(len(images))
        return np.eye(4, dtype=np.float32)[[0] * len(images)]

    score_all({}, network, ImageForm("none", NORMALISE), made, Judge(TASK))
    assert seen == batches


def test_metrics_and_agreement_over_all_test_images() -> None:
    made = replace(dataset(600), test=MemoryImages(torch.zeros(600, 3, 4, 2, dtype=torch.uint8), torch.arange(600) % 4))

    def always(answer: int) -> Any:
        return lambda image: np.eye(4, dtype=np.float32)[[answer] * len(image)]

    form = ImageForm("none", NORMALISE)
    found = score_all({"fp32": always(1), "int8": always(2)}, lambda x: always(1)(x), form, made, Judge(TASK))
    assert {name: (a.metrics["accuracy"], a.agreement, a.images) for name, a in found.items()} == {
        "torch": (0.25, 1.0, 600), "fp32": (0.25, 1.0, 600), "int8": (0.25, 0.0, 600),
    }  # fmt: skip
