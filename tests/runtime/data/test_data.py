"""Splits and loaders: pure functions of seed, epoch and batch, in one process or many."""

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data import dataset, sources
from runtime.data.augment import Augment, Normalise
from runtime.data.dataset import Dataset, Loader, Share, channel_statistics, load_dataset
from runtime.data.sources import MemoryImages
from runtime.data.split import Split, balanced_order, split_images
from tests.tasks import class_task

Batch = tuple[torch.Tensor, torch.Tensor]

PLAIN = Normalise((0.0,), (1.0 / 255,))  # x comes out as the pixel's value
RICH = Augment(crop_padding=2, flip=True, cutout=2, policy="trivial", resized_crop=0.5, colour_jitter=0.2, erasing=0.4)


def numbered(count: int) -> MemoryImages:
    """1x4x4 images whose pixels all hold the image's number."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 4, 4, 1)
    return MemoryImages(pixels, torch.arange(count) % 10)


def noise(count: int) -> MemoryImages:
    random = torch.Generator().manual_seed(7)
    return MemoryImages(
        torch.randint(0, 256, (count, 6, 6, 1), dtype=torch.uint8, generator=random), torch.arange(count) % 10
    )


def loader(images: MemoryImages, count: int, batch_size: int, *, training: bool = True, **settings: Any) -> Loader:
    return Loader(
        images, torch.arange(count), PLAIN, batch_size, training=training, purpose="weights", seed=3, **settings
    )


def same(left: list[Batch], right: list[Batch]) -> bool:
    """Whether two lists of (x, y) batches are equal bit by bit."""
    return all(
        torch.equal(a, b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)
    )


def stratified(labels: Tensor, weight_part: float, validation: float, seed: int) -> Split:
    return split_images(labels, labels, weight_part, validation, seed)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataConfig(crop_padding=1), (1, 8, 8), class_task(10), seed=0)


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6).filter(lambda c: sum(c) >= 20),
    weight_part=st.sampled_from([0.2, 0.5, 0.8]),
    validation=st.sampled_from([0.1, 0.25]),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_is_a_stratified_partition(counts: list[int], weight_part: float, validation: float, seed: int) -> None:
    labels = torch.cat([torch.full((n,), number) for number, n in enumerate(counts)])
    split = stratified(labels, weight_part, validation, seed)
    parts = (split.weights, split.gates, split.validation)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(labels)))
    assert torch.equal(split.training, torch.cat((split.weights, split.gates)).sort().values)
    assert len(split.validation) == round(validation * len(labels))
    for part in parts:
        assert torch.equal(part, part.sort().values)
        for number, n in enumerate(counts):
            found = int((labels[part] == number).sum())
            # A class is off by less than one at each end of a part, and the ends by less than one image per class.
            assert abs(found - n * len(part) / len(labels)) < 2 * (1 + n * len(counts) / len(labels))


def test_classes_of_one_size_are_shared_out_exactly_where_that_can_be() -> None:
    split = stratified(torch.arange(1000) % 10, 0.8, 0.1, 4)
    for part, each in ((split.validation, 10), (split.weights, 72), (split.gates, 18)):
        assert torch.bincount(part % 10).tolist() == [each] * 10


def test_rare_classes_do_not_all_fall_into_one_part() -> None:
    labels = torch.cat((torch.zeros(1000, dtype=torch.int64), torch.arange(1, 101)))
    split = stratified(labels, 0.5, 0.2, 0)
    rare = [int((labels[part] > 0).sum()) for part in (split.validation, split.weights, split.gates)]
    assert rare == pytest.approx([20, 40, 40], abs=12)


def test_split_depends_on_the_seed_alone_and_validation_not_on_the_weight_part() -> None:
    labels = torch.arange(200) % 7
    first, again = stratified(labels, 0.5, 0.1, 1), stratified(labels, 0.5, 0.1, 1)
    other, larger = stratified(labels, 0.5, 0.1, 2), stratified(labels, 0.8, 0.1, 1)
    assert first.digest == again.digest
    assert torch.equal(first.weights, again.weights)
    assert first.digest != other.digest
    assert not torch.equal(first.validation, other.validation)
    assert torch.equal(first.validation, larger.validation)
    assert first.digest != stratified(labels.flip(0), 0.5, 0.1, 1).digest


@pytest.mark.parametrize(("weight_part", "validation", "empty"), [(0.5, 0.01, "validation"), (0.99, 0.1, "gates")])
def test_an_empty_part_is_an_error_with_the_settings(weight_part: float, validation: float, empty: str) -> None:
    with pytest.raises(RunError, match=rf"the {empty} part of 20 .* data.validation: {validation}.*weight_part"):
        stratified(torch.arange(20) % 2, weight_part, validation, 0)


def test_digits_are_split_and_normalised_by_their_training_images(digits: Dataset) -> None:
    assert (len(digits.train.targets), len(digits.test.targets)) == (1437, 360)
    assert digits.labels == tuple("0123456789")
    counts = torch.bincount(digits.test.targets)
    shares = (counts + torch.bincount(digits.train.targets)) * 360 / 1797
    assert (counts - shares).abs().max() < 1.5
    assert isinstance(digits.train, MemoryImages)
    rows = digits.split(0.5).training
    pixels = digits.train.images[rows].double().numpy() / 255
    np.testing.assert_allclose(digits.normalise.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(digits.normalise.std, [pixels.std()], rtol=1e-12)


def test_digits_test_images_are_the_same_for_every_seed(digits: Dataset) -> None:
    other = load_dataset(DataConfig(), (1, 8, 8), class_task(10), seed=99)
    assert isinstance(other.test, MemoryImages)
    assert isinstance(digits.test, MemoryImages)
    assert torch.equal(other.test.images, digits.test.images)
    assert not torch.equal(other.split(0.5).validation, digits.split(0.5).validation)


def test_loaders_of_a_dataset_take_its_settings(digits: Dataset) -> None:
    split = digits.split(0.5)
    training = digits.training_loader(split.weights, 64, "weights", augment=replace(digits.augment, cutout=3))
    assert training.augment == Augment(crop_padding=1, cutout=3)
    x, y = next(training.batches(0))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((64, 1, 8, 8), torch.float32, (64,), torch.int64)
    test = list(digits.evaluation_loader(None, 100).batches(0))
    assert torch.equal(torch.cat([y for _, y in test]), digits.test.targets)
    assert [len(y) for _, y in test] == [100, 100, 100, 60]
    held_out = torch.cat([y for _, y in digits.evaluation_loader(split.validation, 64).batches(0)])
    assert torch.equal(held_out, digits.train.targets[split.validation])


def test_given_mean_and_deviation_are_used() -> None:
    dataset = load_dataset(DataConfig(mean=(0.25,), std=(0.5,)), (1, 8, 8), class_task(10), seed=0)
    x, _ = next(dataset.evaluation_loader(None, 4).batches(0))
    assert isinstance(dataset.test, MemoryImages)
    torch.testing.assert_close(x, (dataset.test.images[:4] / 255 - 0.25) / 0.5)


def test_a_channel_that_never_changes_is_only_shifted() -> None:
    images = MemoryImages(torch.full((40, 2, 2, 1), 51, dtype=torch.uint8), torch.arange(40) % 2)
    mean, std = channel_statistics(images, torch.arange(40), 0)
    assert mean == pytest.approx((0.2,))
    assert std == (1.0,)


def test_an_epoch_gives_every_image_once_and_drops_the_incomplete_batch() -> None:
    train = loader(numbered(70), 70, 16)
    batches = list(train.batches(0))
    assert len(batches) == len(train) == 4
    seen = torch.cat([x[:, 0, 0, 0] for x, _ in batches]).round().long()
    assert len(set(seen.tolist())) == 64
    assert torch.equal(torch.cat([y for _, y in batches]), seen % 10)
    evaluation = loader(numbered(70), 70, 16, training=False)
    seen = torch.cat([x[:, 0, 0, 0] for x, _ in evaluation.batches(0)]).round().long()
    assert len(evaluation) == 5
    assert torch.equal(seen, torch.arange(70))


def test_a_part_smaller_than_a_batch_still_gives_one() -> None:
    train = loader(numbered(5), 5, 16)
    ((x, _),) = train.batches(0)
    assert len(train) == 1
    assert sorted(x[:, 0, 0, 0].round().tolist()) == [0, 1, 2, 3, 4]


@settings(max_examples=30)
@given(start=st.integers(0, 4), epoch=st.integers(0, 3), training=st.booleans())
def test_resuming_inside_an_epoch_gives_the_same_batches(start: int, epoch: int, training: bool) -> None:
    images = noise(50)
    whole = list(loader(images, 50, 10, training=training, augment=RICH).batches(epoch))
    resumed = loader(images, 50, 10, training=training, augment=RICH)
    next(resumed.batches(epoch + 1))
    assert same(list(resumed.batches(epoch, start)), whole[start:])


def test_epochs_and_purposes_shuffle_and_augment_differently_and_the_runs_random_state_is_left_alone() -> None:
    images = noise(40)
    before = torch.get_rng_state()
    train = loader(images, 40, 40, augment=RICH)
    gates = Loader(images, torch.arange(40), PLAIN, 40, training=True, purpose="gates", seed=3, augment=RICH)
    orders = [next(one.batches(epoch))[1].tolist() for one, epoch in ((train, 0), (train, 1), (gates, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=30)
@given(world_size=st.integers(1, 4), training=st.booleans(), epoch=st.integers(0, 2))
def test_the_slices_of_all_ranks_make_the_global_batch(world_size: int, training: bool, epoch: int) -> None:
    images = noise(50)
    single = list(loader(images, 50, 12, training=training, augment=RICH).batches(epoch))
    places = [Share(rank=rank, world_size=world_size) for rank in range(world_size)]
    ranks = [list(loader(images, 50, 12, training=training, augment=RICH, place=p).batches(epoch)) for p in places]
    for batch, (x, y) in enumerate(single):
        slices = [rank[batch] for rank in ranks if batch < len(rank)]
        assert torch.equal(torch.cat([part for part, _ in slices]), x)
        assert torch.equal(torch.cat([part for _, part in slices]), y)
        if training:
            assert {len(part) for _, part in slices} == {12 // world_size}


@settings(max_examples=40)
@given(
    at_once=st.integers(2, 9),
    start=st.integers(0, 3),
    world_size=st.integers(1, 3),
    augment=st.sampled_from([Augment(), Augment(flip=True), Augment(crop_padding=2, cutout=2), RICH]),
    drop_last=st.booleans(),
    fits=st.booleans(),
)
def test_batches_that_are_cropped_together_are_those_that_are_cropped_one_by_one(
    at_once: int, start: int, world_size: int, augment: Augment, drop_last: bool, fits: bool
) -> None:
    drop_last = drop_last or world_size == 2  # the last batch has 3 images
    elsewhere = torch.device("cpu:0")  # for the sources another device than the CPU, with memory of its own
    for rank in range(world_size):
        found = []
        for device, together in ((torch.device("cpu"), 1), (elsewhere, at_once)):
            images, place = noise(57), Share(device, rank, world_size)
            with pytest.MonkeyPatch.context() as patch:
                free = 2 * images.images.nbytes - (not fits)
                patch.setattr(sources, "available_memory", lambda _, free=free: free)
                train = loader(images, 57, 6, augment=augment, place=place, drop_last=drop_last, at_once=together)
                found.append(list(train.batches(1, start)))
                assert images.lie_on(elsewhere) is fits
        assert same(*found)
        assert [x.stride() for x, _ in found[0]] == [x.stride() for x, _ in found[1]]
        assert len(found[0]) == (9 if drop_last else 10) - start


@pytest.mark.parametrize(("free", "together"), [(0, 1), (4 * 6 * (16 * 36 + 4 * 36), 1), (10**9, 10**9 // 17280)])
def test_as_many_batches_are_cropped_together_as_fit_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, free: int, together: int
) -> None:
    images = noise(57)
    monkeypatch.setattr(dataset, "available_memory", lambda _: free)
    monkeypatch.setattr(MemoryImages, "lie_on", lambda *_: True)
    assert loader(images, 57, 6, place=Share(torch.device("cuda"))).fitting() == together
    assert loader(images, 57, 6).fitting() == 2**18 // (6 * 36)  # on a CPU so many pixels, however much is free
    assert loader(images, 57, 2**13).fitting() == 1
    assert loader(images, 57, 6, training=False, place=Share(torch.device("cuda"))).fitting() == 1


@pytest.mark.parametrize(("images", "sizes"), [(24, [10, 10, 4]), (21, [10, 10]), (20, [10, 10]), (4, [4]), (1, [1])])
def test_the_last_images_of_an_epoch_may_be_a_smaller_batch(images: int, sizes: list[int]) -> None:
    train = loader(noise(30), images, 10, augment=RICH, drop_last=False)
    assert [len(x) for x, _ in train.batches(2)] == sizes
    assert len(train) == len(sizes)
    with pytest.raises(RunError, match="batch of 3 images cannot be shared evenly by 2"):
        loader(noise(30), 23, 10, drop_last=False, place=Share(world_size=2))


def test_a_batch_that_cannot_be_shared_evenly_is_an_error() -> None:
    with pytest.raises(RunError, match=r"batch of 10 images cannot be shared evenly by 4 processes.*multiple of 4"):
        loader(noise(50), 50, 10, place=Share(world_size=4))
    with pytest.raises(RunError, match=r"batch of 5 images cannot be shared evenly by 2 .*there are 5 images"):
        loader(noise(5), 5, 10, place=Share(world_size=2))


def test_no_images_is_an_error() -> None:
    with pytest.raises(RunError, match="no images for weights"):
        loader(noise(5), 0, 10)


def test_a_loader_can_be_left_in_the_middle_of_an_epoch() -> None:
    train = loader(noise(50), 50, 10, augment=RICH)
    first = list(islice(train.batches(0), 2))
    assert same(first, list(islice(train.batches(0), 2)))


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_a_balanced_epoch_has_as_many_images_of_every_class(counts: list[int], seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)) * 3, torch.tensor(counts))
    order = balanced_order(labels, torch.Generator().manual_seed(seed))
    assert len(order) == len(labels)
    shown = labels[order].bincount(minlength=int(labels.max()) + 1)[::3]
    assert shown.max() - shown.min() <= 1
    times = order.bincount(minlength=len(labels))
    for label in labels.unique():
        assert times[labels == label].max() - times[labels == label].min() <= 1
    assert torch.equal(order, balanced_order(labels, torch.Generator().manual_seed(seed)))


def test_balanced_batches_are_the_same_after_a_resume_and_in_two_processes() -> None:
    images, rows = noise(90), torch.arange(90)[torch.arange(90) % 10 < 3]  # of three classes ...
    rows = torch.cat((rows[rows % 10 == 0], rows[rows % 10 == 1][:2], rows[rows % 10 == 2][:3]))  # ... unevenly

    def balanced(**place: Any) -> Loader:
        given: dict[str, Any] = {"training": True, "seed": 3, "augment": RICH, "strata": images.targets, **place}
        return Loader(images, rows, PLAIN, 2, **given)

    whole = list(balanced().batches(2))
    assert same(whole[1:], list(balanced().batches(2, start=1)))
    ranks = [list(balanced(place=Share(rank=rank, world_size=2)).batches(2)) for rank in (0, 1)]
    joined = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*ranks, strict=True)]
    assert same(whole, joined)  # type: ignore[arg-type]
    shown = torch.cat([y for _, y in whole]).bincount()
    assert len(shown) == 3
    assert shown.min() >= 4  # of 14 images
