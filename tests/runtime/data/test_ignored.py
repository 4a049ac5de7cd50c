"""Classes that `data.ignore` names are in no part and not among the labels, whatever the layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
    with pytest.raises(RunError, match=r"data.class_weights: there is no class 'dog'; there are cat, owl"):
        survey(config.model_copy(update={"class_weights": {"dog": 2.0, "cat": 1.0}}), SHAPE, class_task(2))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_labels_that_say_nothing_are_left_out(tmp_path: Path, ending: str) -> None:
    images(tmp_path)
    rows = [{"path": f"{path.parent.name}/{path.name}", "label": path.parent.name} for path in tmp_path.glob("*/*.png")]
    for row, label in zip(rows[::5], ("", "-1", "?", "", ""), strict=True):
        row["label"] = label
    written = [json.dumps(row | {"label": row["label"] or None}) for row in rows]
    if ending == "csv":
        written = ["path,label", *(",".join(row.values()) for row in rows)]
    (tmp_path / f"t.{ending}").write_text("\n".join(written))
    table = {"name": "table", "root": str(tmp_path), "file": f"t.{ending}"}
    config = DataConfig.model_validate({**table, "ignore": ["", -1, "?"]})
    dataset = load_dataset(config, SHAPE, class_task(3), seed=0)
    assert dataset.labels == CLASSES
    assert len(dataset.train.targets) + len(dataset.test.targets) == 24 - 5
    with pytest.raises(RunError, match=rf"t.{ending}:\d+: label is empty or no text\n.*data.ignore: \[''\]"):
        find_parts(DataConfig.model_validate({**table, "ignore": ["?"]}))


@pytest.mark.parametrize("labels", [("cat", "", "owl"), (0, -1, 1), (0, 1, 2), (1, 0, 4)])
def test_arrays_are_those_without_the_ignored_images(tmp_path: Path, labels: tuple[Any, ...]) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8), np.array(labels * 20)
    kept, last = y != labels[1], (labels[0], *range(2, 4), 4) if labels[2] == 4 else (labels[0], labels[2])
    np.savez(tmp_path / "all.npz", x=x, y=y)
    np.savez(tmp_path / "some.npz", x=x[kept], y=np.searchsorted(last, y[kept]))
    whole = DataConfig.model_validate({"name": "arrays", "root": str(tmp_path / "all.npz"), "ignore": [labels[1]]})
    some = whole.model_copy(update={"root": str(tmp_path / "some.npz"), "ignore": ()})
    found, wanted = (load_dataset(config, SHAPE, class_task(len(last)), seed=0) for config in (whole, some))
    assert found.labels == tuple(map(str, last))
    for one, other in ((found.train, wanted.train), (found.test, wanted.test)):
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.in_memory().images, other.in_memory().images)


def test_a_folder_without_images_says_what_lies_there(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.xcf").write_bytes(b"none")
    with pytest.raises(RunError, match=r"must hold the folders train/ .* passed over: 2 \.xcf\n"):
        find_parts(DataConfig(name="folder", root=str(tmp_path)))


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
