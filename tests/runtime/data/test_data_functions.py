"""Data that a function of the user gives: when it runs, what it may give, and what is said when that is wrong."""

import sys
from pathlib import Path

import pytest
import torch

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data.dataset import load_dataset
from runtime.data.sources import MemoryImages
from tests.tasks import class_task

OWN = """
import numpy as np
def make(config):
    def half(count):
        return np.zeros((count, 3, 4, 4), np.uint8), np.arange(count) % 5
    return half(50), half(20)
def words(config):
    return (np.full((5, 3, 4, 4), "a"), np.arange(5)), (np.full((5, 3, 4, 4), "a"), np.arange(5))
def unknown(config):
    return (np.full((5, 3, 4, 4), np.inf), np.arange(5)), (np.zeros((5, 3, 4, 4)), np.arange(5))
def deep(config):
    def half(count):
        values = np.linspace(0, 1, count * 48).reshape(count, 3, 4, 4)
        return values if config.range is None else (values * config.range).astype(np.uint16), np.arange(count) % 5
    return half(50), half(20)
def short(config):
    return (np.zeros((5, 3, 4, 4), np.uint8), np.arange(4)), (np.zeros((5, 3, 4, 4), np.uint8), np.arange(5))
def nothing(config):
    return None
def broken(config):
    raise KeyError("lost")
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "graphspec_test_own_images"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_the_users_function_runs_only_when_code_is_trusted(own_module: str) -> None:
    config = DataConfig(name=f"{own_module}:make")
    with pytest.raises(RunError, match="--trust-code"):
        load_dataset(config, (3, 4, 4), class_task(5), seed=0)
    assert own_module not in sys.modules
    dataset = load_dataset(config, (3, 4, 4), class_task(5), seed=0, trust_code=True)
    assert isinstance(dataset.train, MemoryImages)
    assert dataset.train.images.shape == (50, 3, 4, 4)
    assert dataset.test.targets.tolist() == [0, 1, 2, 3, 4] * 4


@pytest.mark.parametrize("white", [None, 1000.0, 65535.0])
def test_arrays_of_the_users_function_are_scaled_by_their_range(own_module: str, white: float | None) -> None:
    config = DataConfig(name=f"{own_module}:deep", range=white)
    dataset = load_dataset(config, (3, 4, 4), class_task(5), seed=0, trust_code=True)
    assert isinstance(dataset.train, MemoryImages)
    assert len(dataset.train.images.unique()) > 900
    wanted = torch.linspace(0, 255, 50 * 48).view(50, 3, 4, 4)
    assert (dataset.train.images - wanted).abs().max() <= 255 / (white or 1e6)
    assert dataset.normalise.mean == pytest.approx((0.5,) * 3, abs=0.05)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("words", r"images are \(5, 3, 4, 4\) <U1"),
        ("unknown", r"has values that are no numbers"),
        ("short", r"5 images come with targets \(4,\)"),
        ("nothing", r"must return"),
        ("broken", r"raised KeyError: 'lost'"),
        ("missing", r"cannot be imported.*PYTHONPATH"),
    ],
)
def test_what_is_wrong_with_the_users_function_is_said(own_module: str, function: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        load_dataset(DataConfig(name=f"{own_module}:{function}"), (3, 4, 4), class_task(5), seed=0, trust_code=True)
    with pytest.raises(RunError, match="has 5 classes, the spec says 6"):
        load_dataset(DataConfig(name=f"{own_module}:make"), (3, 4, 4), class_task(6), seed=0, trust_code=True)
