"""Sets that are arrays, of images and of signals."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data.facts import facts_of, write_facts
from runtime.data.survey import survey
from runtime.rundir.directory import JobDir
from tests.runtime.data.test_layouts import content, counts, opened
from tests.tasks import class_task


def arrays(kind: str, channels: int = 3, *, first: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for part, count in (("train", 12), ("val", 4), ("test", 6)):
        x = rng.integers(0, 256, (count, 8, 10, channels))
        x = {"uint8": x.astype(np.uint8), "uint16": (x * 257).astype(np.uint16), "float32": x.astype(np.float32) / 255}[
            kind
        ]
        made |= {f"x_{part}": np.moveaxis(x, -1, 1) if first else x, f"y_{part}": np.arange(count) % 2}
    return made


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_arrays_of_all_kinds_are_the_same_images(tmp_path: Path, kind: str, channels: int) -> None:
    shape = (channels, 8, 10)
    np.savez(tmp_path / "set.npz", **arrays(kind, channels))
    dataset = opened(tmp_path / "set.npz", "arrays", shape)
    assert counts(dataset) == [12, 4, 6]
    assert dataset.labels == ("0", "1")
    (tmp_path / "files").mkdir()
    for name, array in arrays(kind, channels, first=True).items():
        np.save(tmp_path / "files" / f"{name}.npy", array[:, None] if name[0] == "y" else array)
    again = opened(tmp_path / "files", "arrays", shape)
    assert content(again) == content(dataset)
    first, last = dataset.train.in_memory().images.float(), arrays("uint8", channels)["x_train"]
    assert (first[:12] - torch.from_numpy(np.moveaxis(last, -1, 1)).float()).abs().max() < 1e-3
    found = survey(DataConfig(name="arrays", root=str(tmp_path / "files")), shape, class_task(2))
    assert found.training == 16
    with pytest.raises(RunError, match=r"are \d+x8x10 \(channels first\), the spec's input is 3x9x9"):
        opened(tmp_path / "files", "arrays", (3, 9, 9))


def test_arrays_without_parts_are_divided_and_names_are_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 8, 8, 3), np.uint8), np.array(["owl", "cat"] * 20)
    x[20] = x[0]
    np.savez(tmp_path / "set.npz", x=x, y=y)
    dataset = opened(tmp_path, "arrays")
    assert counts(dataset) == [28, 4, 8]
    assert dataset.labels == ("cat", "owl")
    assert dataset.division is not None
    assert dataset.division.alike == ((0, 20),)
    job = JobDir(tmp_path / "job")
    write_facts(job, None, facts_of(dataset, DataConfig(name="arrays", root=str(tmp_path))), dataset, pytest.fail)
    assert {row["part"] for row in csv.DictReader(job.split.read_text().splitlines())} == {
        "train",
        "validation",
        "test",
    }


def test_signals_as_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.random((30, 2, 16), np.float32), y=np.arange(30) % 2)
    assert counts(opened(tmp_path / "a.npz", "arrays", (2, 16))) == [22, 2, 6]


X = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"x": X, "y": np.array([0, 1, {}, 1], object)}, r"cannot be read as arrays: .*allow"),
        ({"x": X.astype(np.int64), "y": np.zeros(4, int)}, r"x is \(4, 8, 8, 3\) int64, not .* uint8, uint16"),
        ({"x": X, "y": np.zeros(3, int)}, r"x has 4 images, y 3 labels"),
        ({"x": X}, r"there is no array y; there are x"),
        ({"x": X, "y": -np.ones(4, int)}, r"there is a label -1"),
        ({"x": X, "y": np.arange(4) * 10**12}, r"there is a label 1000000000000\n  try: numbers from 0 to 1,000,000"),
        ({"x": np.full((9, 8, 8, 3), np.nan, np.float32), "y": np.arange(9) % 2}, r"values that are no numbers"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, made: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "a.npz", **made)
    with pytest.raises(RunError, match=says):
        opened(tmp_path / "a.npz", "arrays")
