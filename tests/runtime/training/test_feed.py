"""Epochs of a number of steps: which batches they hold, and that a job runs so many, whatever number of images."""

from __future__ import annotations

import json
from contextlib import chdir
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphspec import api
from graphspec.trials import total_epochs
from runtime.data.augment import Normalise
from runtime.data.dataset import Loader
from runtime.data.sources import MemoryImages
from runtime.rundir.directory import RunDir
from runtime.training.step import Feed
from tests.tiny import write_spec


def feed(images: int, per_epoch: int | None) -> Feed:
    """Batches of 4, whose targets are the images' numbers."""
    pixels = torch.zeros(images, 2, 2, 1, dtype=torch.uint8)
    source = MemoryImages(pixels, torch.arange(images))
    loader = Loader(source, torch.arange(images), Normalise((0.5,), (0.5,)), 4, training=True, purpose="test")
    return Feed(loader, per_epoch)


@settings(max_examples=50)
@given(passes=st.integers(1, 4), batches=st.integers(1, 6), per_epoch=st.integers(1, 30))
def test_epochs_of_steps_go_through_the_images_pass_by_pass(passes: int, batches: int, per_epoch: int) -> None:
    steps, fed = passes * batches, feed(4 * batches, per_epoch)
    epochs = -(-steps // per_epoch)
    seen = [fed.batch(epoch, step)[1].tolist() for epoch, step in product(range(epochs), range(per_epoch))]
    whole = feed(4 * batches, None)
    assert seen[:steps] == [whole.batch(epoch, step)[1].tolist() for epoch in range(passes) for step in range(batches)]
    for number in range(passes):
        one = seen[number * batches : (number + 1) * batches]
        assert sorted(image for batch in one for image in batch) == list(range(4 * batches))


@pytest.mark.parametrize("images", [40, 400])
def test_a_job_takes_as_many_steps_whatever_the_number_of_images(images: int, tmp_path: Path) -> None:
    each = [f"{job}.{key}" for job in ("search", "retrain") for key in ("batch_size=4", "steps_per_epoch=6")]
    more = ["data.name=fake", f"data.fake_size={images}", "search.pretrain_epochs=1", "search.epochs=2"]
    with chdir(tmp_path):
        run = api.compile(write_spec(tmp_path), overrides=[*each, *more, "search.weight_steps=2"]).run
        api.search(run, quiet=True)
        api.retrain(run, overrides=["retrain.epochs=2"], quiet=True)
    found = RunDir(tmp_path / run.path)
    for job, expected in ((found.search, [24, 36, 36]), (found.retrain, [24, 24])):
        epochs = [json.loads(line) for line in job.timings.read_text().splitlines()]
        assert [round(epoch["images_per_second"] * epoch["seconds"]) for epoch in epochs] == expected


def test_as_many_steps_as_search_and_retraining_take_are_counted_in_epochs_of_retraining(tmp_path: Path) -> None:
    lengths = {"search.steps_per_epoch": 12, "search.weight_steps": 4, "retrain.steps_per_epoch": 20}
    with chdir(tmp_path):
        opened = api.open_run(api.compile(write_spec(tmp_path)).run, {**lengths, "search.epochs": 3})
    assert opened.spec.config.search.pretrain_epochs == 2
    assert (
        total_epochs(opened) == opened.spec.config.retrain.epochs + 4
    )  # (2 + 3) * 12 steps of weights and 3 * 3 of gates
