"""Classes that `data.ignore` names are in no part and not among the labels, whatever the layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data.dataset import load_dataset
from runtime.data.layouts import find_parts
from runtime.data.survey import survey
from runtime.inference.labelled import in_folder
from tests.tasks import class_task

CLASSES = ("cat", "dog", "owl")
SHAPE = (3, 8, 8)


def images(root: Path, *parts: str) -> None:
    """Images whose red is the number of their class, eight of each."""
    for part in parts or ("",):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for index in range(8):
                pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
                pixels[..., 0] = number
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")


def laid_out(layout: str, folder: Path) -> dict[str, Any]:
    root = folder / "images"
    images(root, *(("train", "val", "test") if layout == "parts" else ()))
    if layout == "table":
        lines = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(root.glob("*/*"))]
        (folder / "labels.csv").write_text("path,label\n" + "\n".join(lines))
        return {"name": "table", "file": str(folder / "labels.csv")}
    if layout == "zip":
        return {"name": "folder", "root": shutil.make_archive(str(folder / "images"), "zip", root)}
    if layout == "arrays":
        paths = sorted(root.glob("*/*"))
        x, y = (
            np.stack([np.asarray(Image.open(path)) for path in paths]),
            np.array([path.parent.name for path in paths]),
        )
        np.savez(folder / "set.npz", x=x, y=y)
        return {"name": "arrays", "root": str(folder / "set.npz")}
    return {"name": "folder", "root": str(root)}


@pytest.mark.parametrize("layout", ["whole", "parts", "zip", "table", "arrays"])
def test_ignored_classes_are_nowhere(layout: str, tmp_path: Path) -> None:
    given = laid_out(layout, tmp_path)
    config = DataConfig(**given, ignore=("dog",), near_duplicates=None)
    dataset = load_dataset(config, SHAPE, class_task(2), seed=0)
    assert dataset.labels == ("cat", "owl")
    for part in (dataset.train.in_memory(), dataset.test.in_memory()):
        assert set(part.images[:, 0].flatten().tolist()) == {0, 2}
        assert (part.images[:, 0, 0, 0] == part.targets * 2).all()
    assert "2 classes" in survey(config, SHAPE, class_task(2)).says
    with pytest.raises(RunError, match=r"no class 'dgo'; did you mean 'dog'"):
        load_dataset(DataConfig(**given, ignore=("dgo",)), SHAPE, class_task(3), seed=0)


def test_an_empty_folder_may_be_ignored_and_one_that_only_a_part_has(tmp_path: Path) -> None:
    images(tmp_path, "train", "test")
    (tmp_path / "train" / "empty").mkdir()
    shutil.rmtree(tmp_path / "test" / "owl")
    parts = find_parts(DataConfig(name="folder", root=str(tmp_path), ignore=("empty", "owl")))
    assert [list(part.images) for part in parts.listings] == [["cat", "dog"]] * 2
    assert str(parts.train.passed) == "8 images of an ignored class (empty, owl)"


def test_evaluate_passes_ignored_folders_over(tmp_path: Path) -> None:
    images(tmp_path)
    found = in_folder(tmp_path, ["cat", "owl"], ["dog"])
    assert len(found.names) == 16
    assert {Path(name).parent.name for name in found.names} == {"cat", "owl"}
    with pytest.raises(RunError, match="does not know: dog"):
        in_folder(tmp_path, ["cat", "owl"])


def test_sets_with_a_name_have_all_their_classes() -> None:
    with pytest.raises(RunError, match=r"the classes of 'digits' cannot be left out"):
        load_dataset(DataConfig(ignore=("3",)), (1, 8, 8), class_task(9), seed=0)
