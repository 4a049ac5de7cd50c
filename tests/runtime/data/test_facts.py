"""The record of a data set: what it holds, that it is the same whenever the set is, and what it notices."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data.dataset import Dataset, load_dataset
from runtime.data.facts import facts_of, recorded_dataset, write_facts
from runtime.data.survey import survey
from runtime.rundir.directory import JobDir
from runtime.rundir.facts import DataFacts, read_facts
from tests.tasks import class_task
from tests.test_facts_of_a_run import make_set

MODULE = "import numpy as np\ndef make(config):\n    x = np.full((8, 3, 8, 8), {value}, np.uint8)\n"
ODD = r"\\udcff.*: is no UTF-8 text, and is written down\n  try: rename"
MODULE += "    return (x, np.arange(8) % 3), (x[:4], np.arange(4) % 3)\n"


def opened(shape: tuple[int, ...] = (3, 8, 8), classes: int = 3, **settings: object) -> tuple[Dataset, DataFacts]:
    config = DataConfig(validation=0.2, **settings)  # type: ignore[arg-type]  # as a spec gives them
    dataset = load_dataset(config, shape, class_task(classes), seed=0, trust_code=True)
    return dataset, facts_of(dataset, config)


def test_it_says_what_the_set_is(tmp_path: Path) -> None:
    make_set(tmp_path / "a")
    dataset, facts = opened(name="folder", root=str(tmp_path / "a"))
    assert (facts.labels, facts.mean, facts.std) == (dataset.labels, dataset.normalise.mean, dataset.normalise.std)
    assert (facts.root, facts.train.images, facts.test.counts) == (str(tmp_path / "a"), 30, (4, 4, 4))


def test_a_set_is_the_same_however_it_is_read_and_wherever_it_lies(tmp_path: Path) -> None:
    make_set(tmp_path / "a", ("café", "dog", "owl"))
    shutil.copytree(tmp_path / "a", tmp_path / "b/c")
    for part in ("train", "test"):  # as another file system may write the name
        (tmp_path / "b/c" / part / "café").rename(tmp_path / "b/c" / part / unicodedata.normalize("NFD", "café"))
    held = opened(name="folder", root=str(tmp_path / "a"))[1]
    streamed = opened(name="folder", root=str(tmp_path / "a"), in_memory=False)[1]
    moved = opened(name="folder", root=str(tmp_path / "b/c"), in_memory=False)[1]
    assert held.changes(streamed) == ""
    assert (held.train, held.test) == (moved.train, moved.test)


@pytest.mark.skipif(sys.platform == "darwin", reason="its disks have no such names")
def test_names_that_are_no_text_are_told_of_before_anything_is_trained(tmp_path: Path) -> None:
    """Folders of sets and of classes are recorded; files only where their set is divided."""
    odd = os.fsdecode(b"\xff.png")
    make_set(tmp_path / "files")
    shutil.copytree(tmp_path / "files", tmp_path / odd)
    shutil.copytree(tmp_path / "files", tmp_path / "classes")
    for part in ("train", "test"):
        (tmp_path / "classes" / part / "dog").rename(tmp_path / "classes" / part / odd)
    next((tmp_path / "files/train/dog").iterdir()).rename(tmp_path / "files/train/dog" / odd)
    for number, name in enumerate(("files", "files/train", "classes", odd)):
        settings, folder = {"name": "folder", "root": str(tmp_path / name)}, JobDir(tmp_path / str(number))
        dataset, facts = opened(**settings)
        with nullcontext() if name == "files" else pytest.raises(RunError, match=ODD):
            write_facts(folder, None, facts, dataset, lambda text: None)
        with pytest.raises(RunError, match=ODD) if name in ("classes", odd) else nullcontext():
            survey(DataConfig.model_validate(settings), (3, 8, 8), class_task(3))


@pytest.mark.parametrize("kind", ["digits", "fake", "function"])
def test_sets_without_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_facts", raising=False)
    (tmp_path / "own_facts.py").write_text(MODULE.format(value=7))
    name = "own_facts:make" if kind == "function" else kind
    shape, classes = ((1, 8, 8), 10) if kind == "digits" else ((3, 8, 8), 3)
    facts = opened(shape, classes, name=name)[1]
    assert facts.root is None
    assert facts.changes(opened(shape, classes, name=name)[1]) == ""
    if kind == "function":
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        monkeypatch.delitem(sys.modules, "own_facts")
        (tmp_path / "own_facts.py").write_text(MODULE.format(value=88))
        assert "other files or images" in facts.changes(opened(shape, classes, name=name)[1])


def test_the_kept_images_are_test_images_and_the_record_is_read_as_written(tmp_path: Path) -> None:
    make_set(tmp_path / "a")
    dataset, facts = opened(name="folder", root=str(tmp_path / "a"))
    folder = JobDir(tmp_path / "job")
    write_facts(folder, None, facts, dataset, pytest.fail)
    assert read_facts(folder) == facts
    kept = recorded_dataset(facts, folder, dataset.task, (3, 8, 8), 0, 0.2)
    assert (kept.labels, kept.normalise) == (dataset.labels, dataset.normalise)
    assert kept.test.targets.equal(dataset.test.targets)
    assert kept.test.images.equal(dataset.test.images)  # type: ignore[union-attr]  # both are in memory


def test_the_kept_signals_have_all_their_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_signals.py").write_text(
        "import numpy as np\ndef make(config):\n    x = np.random.default_rng(0).random((6, 2, 16), np.float32)\n"
        "    return (x, np.arange(6) % 3), (x[:3], np.arange(3))\n"
    )
    dataset, facts = opened((2, 16), name="own_signals:make")
    write_facts(JobDir(tmp_path), None, facts, dataset, pytest.fail)
    kept = recorded_dataset(facts, JobDir(tmp_path), dataset.task, (2, 16), 0, 0.2).test
    assert kept.images.equal(dataset.test.images)  # type: ignore[union-attr]  # both are in memory
    assert kept.found.deep == 3


@pytest.mark.parametrize("damage", [
    {"pixels": torch.zeros(4, 8, 8, 1, dtype=torch.uint8)}, {"pixels": torch.zeros(4, 8, 8, 3, dtype=torch.int64)},
    {"pixels": torch.zeros(3, 8, 8, 3, dtype=torch.uint8)}, {"targets": torch.zeros(0)}, {"mean": (0.5,)},
    {"labels": ("a", "b")},
], ids=str)  # fmt: skip
def test_a_record_that_does_not_fit_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    make_set(tmp_path / "a")
    dataset, facts = opened(name="folder", root=str(tmp_path / "a"))
    folder = JobDir(tmp_path)
    kept = {"pixels": torch.zeros(4, 8, 8, 3, dtype=torch.uint8), "targets": torch.zeros(4, dtype=torch.int64)}
    changed = {key: damage.get(key, value) for key, value in kept.items()}
    folder.samples.write_bytes(safetensors.torch.save(changed))
    facts = facts.model_copy(update={key: value for key, value in damage.items() if key not in kept})
    with pytest.raises(RunError, match=r"is damaged|has 2 classes"):
        recorded_dataset(facts, folder, dataset.task, (3, 8, 8), 0, 0.2)
