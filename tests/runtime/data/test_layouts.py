"""Layouts of data sets: each gives the same images under the same classes as the folders it was made from."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data.archives import Member, files_in
from runtime.data.dataset import Dataset, load_dataset
from runtime.data.facts import facts_of, write_facts
from runtime.data.folders import Passed
from runtime.data.layouts import find_parts
from runtime.data.survey import survey
from runtime.rundir.directory import JobDir
from tests.tasks import class_task

SHAPE = (3, 8, 8)
CLASSES = ("cat", "dog")


def noise(seed: int, size: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


def make_parts(root: Path, counts: dict[str, int]) -> Path:
    """Images of noise below `root`/PART/CLASS; no part where its name is empty."""
    seed = 0
    for part, count in counts.items():
        for name in CLASSES:
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                noise(seed := seed + 1).save(root / part / name / f"{number:03}.png")
    return root


def opened(root: Path | None, name: str = "folder", shape: tuple[int, ...] = SHAPE, **settings: Any) -> Dataset:
    where = {} if root is None else {"root": str(root)}
    config = DataConfig.model_validate({"name": name, "workers": 0, **where, **settings})
    return load_dataset(config, shape, class_task(2), seed=1)


def content(dataset: Dataset) -> list[Counter[bytes]]:
    """The images of training, validation and test with their classes, whatever their order."""
    held, train, test = dataset.split(0.5).validation, dataset.train, dataset.test
    in_memory = [images.in_memory() for images in (train, test)]
    rows = torch.zeros(len(train.targets), dtype=torch.bool)
    rows[held] = True
    chosen = [(in_memory[0], ~rows), (in_memory[0], rows), (in_memory[1], torch.ones(len(test.targets)).bool())]
    return [
        Counter(
            bytes([int(target)]) + pixels.contiguous().numpy().tobytes()
            for pixels, target in zip(images.images[of], images.targets[of], strict=True)
        )
        for images, of in chosen
    ]


def counts(dataset: Dataset) -> list[int]:
    return [part.total() for part in content(dataset)]


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_each_part_is_used_for_what_its_name_says(tmp_path: Path, name: str) -> None:
    root = make_parts(tmp_path, {"train": 6, name: 3, "test": 2})
    dataset = opened(root, in_memory=False)
    assert counts(dataset) == [12, 6, 4]
    assert not dataset.notes
    held = dataset.split(0.5).validation.tolist()
    assert {Path(dataset.train.paths[row]).parts[-3] for row in held} == {name}
    for weight_part in (0.3, 0.7):  # it is the same for every seed and share
        assert dataset.split(weight_part).validation.tolist() == held
    trained_on = [row for row in range(18) if row not in held]
    mean = dataset.train.in_memory().images[trained_on].float().mean((0, 2, 3)) / 255
    assert torch.allclose(torch.tensor(dataset.normalise.mean), mean, atol=1e-4)


def test_without_test_images_those_for_validation_are_the_test_set(tmp_path: Path) -> None:
    root = make_parts(tmp_path, {"train": 10, "valid": 3})
    dataset = opened(root)
    assert counts(dataset) == [18, 2, 6]
    assert dataset.notes == ("there is no test/, so valid/ is the test set",)
    said = survey(DataConfig(name="folder", root=str(root)), SHAPE, class_task(2))
    assert any("valid/ is the test set" in warning for warning in said.warnings)


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    root = make_parts(tmp_path, {"train": 2, "val": 2, "valid": 2})
    with pytest.raises(RunError, match=r"val/ and valid/ are both for validation"):
        opened(root)


def test_nested_folders_are_classes_by_option(tmp_path: Path) -> None:
    for name in ("cat/wild", "cat/tame", "dog"):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
            noise(len(name)).save(tmp_path / part / name / "a.png")
    config = DataConfig(name="folder", root=str(tmp_path))
    assert list(find_parts(config).train.images) == ["cat", "dog"]
    nested = find_parts(config.model_copy(update={"nested": True}))
    assert list(nested.train.images) == ["cat/tame", "cat/wild", "dog"]
    assert [len(paths) for paths in nested.train.images.values()] == [1, 1, 1]


# -- one folder without parts -----------------------------------------------------------------------------------------


def test_a_folder_of_classes_is_divided_and_the_division_is_recorded(tmp_path: Path) -> None:
    root = make_parts(tmp_path / "set", {"": 50})
    dataset = opened(root)
    assert counts(dataset) == [72, 8, 20]
    for part in (dataset.test.targets, dataset.train.targets[dataset.split(0.5).validation]):
        assert part.bincount().tolist() == [len(part) // 2] * 2
    assert content(dataset) == content(opened(root, in_memory=False))
    config = DataConfig(name="folder", root=str(root))
    other = load_dataset(config, SHAPE, class_task(2), seed=9)  # networks of all seeds are tested on the same images
    assert content(other) == content(dataset)
    assert content(opened(root, split_seed=1)) != content(dataset)
    job, facts = JobDir(tmp_path / "job"), facts_of(dataset, config)
    write_facts(job, None, facts, dataset, pytest.fail)
    assert facts.division is not None
    assert (facts.division.seed, facts.division.bits, facts.division.near_duplicates) == (0, 3, 0)
    table = opened(root, "table", file=str(job.split), part="part")
    assert content(table) == content(dataset)
    assert survey(config, SHAPE, class_task(2)).says.startswith("100 images of 2 classes in")


def test_near_duplicates_stay_on_one_side_and_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for place, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(15):
            image = noise(100 * place + number, 16).resize((64, 64), Image.Resampling.BICUBIC)
            image.save(root / name / f"{number:02}.png")
            image.resize((48, 48)).save(root / name / f"{number:02} small.jpg", quality=80)
            image.point(lambda value: min(255, value + 3)).save(root / name / f"{number:02} bright.png")
    dataset = opened(root, in_memory=False)
    assert dataset.division is not None
    assert len(dataset.division.alike) == 30
    held = set(dataset.split(0.5).validation.tolist())
    parts: dict[str, set[str]] = {}
    places = [("held" if row in held else "train", path) for row, path in enumerate(dataset.train.paths)]
    for part, path in (*places, *(("test", path) for path in dataset.test.paths)):
        parts.setdefault(str(Path(path).parent / Path(path).stem[:2]), set()).add(part)
    assert {len(found) for found in parts.values()} == {1}
    assert {part for found in parts.values() for part in found} == {"held", "train", "test"}
    (note,) = dataset.notes
    assert "90 images are near-duplicates of others, in 30 groups" in note
    assert "cat/00" in note
    apart = opened(root, in_memory=False, near_duplicates=None)
    assert apart.division is not None
    assert not apart.division.alike


def test_a_set_of_one_picture_cannot_be_divided(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for number in range(5):
            noise(0).save(tmp_path / name / f"{number}.png")
    with pytest.raises(RunError, match=r"of 10 images none is left for validation.* 1 images that are no near-dup"):
        opened(tmp_path)


# -- tables -----------------------------------------------------------------------------------------------------------


def _as_csv(rows: list[dict[str, str]], between: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=between)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


TABLES: dict[str, Callable[[list[dict[str, str]]], str]] = {
    "labels.csv": _as_csv,
    "german.csv": lambda rows: "\ufeff" + _as_csv(rows, ";"),
    "labels.tsv": lambda rows: _as_csv(rows, "\t"),
    "labels.jsonl": lambda rows: "\n".join(map(json.dumps, rows)) + "\n\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_folders_it_names(tmp_path: Path, name: str) -> None:
    root = make_parts(tmp_path / "set", {"train": 6, "val": 2, "test": 3})
    rows = [
        {"picture": str(path.relative_to(root)), "kind": path.parts[-2], "where": path.parts[-3].upper()}
        for path in sorted(root.rglob("*.png"))
    ]
    (root / name).write_text(TABLES[name](rows), encoding="utf-8")
    columns = {"image": "picture", "label": "kind", "part": "where"}
    assert content(opened(None, "table", file=str(root / name), **columns)) == content(opened(root))
    assert content(opened(root, "table", file=name, **columns)) == content(opened(root))
    assert counts(opened(root, "table", file=name, **(columns | {"part": None}))) == [16, 2, 4]


def test_a_run_finds_a_table_again_by_the_folder_it_has_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_parts(tmp_path / "set", {"": 10})
    rows = [{"path": str(path.relative_to(root)), "label": path.parts[-2]} for path in sorted(root.rglob("*.png"))]
    (root / "labels.csv").write_text(_as_csv(rows))
    monkeypatch.chdir(tmp_path)
    config = DataConfig(name="table", file="set/labels.csv", workers=0)
    dataset = load_dataset(config, SHAPE, class_task(2), seed=1)
    facts = facts_of(dataset, config)
    monkeypatch.chdir(root)
    again = config.model_copy(update={"root": facts.root})
    assert facts.changes(facts_of(load_dataset(again, SHAPE, class_task(2), seed=1), again)) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,label\na.png,cat\na.png,\n", r"labels.csv:3: label is empty or no text"),
        ("pth,label\na.png,cat\n", r"labels.csv:2: there is no column 'path'; did you mean 'pth'\?"),
        ("path,label\na.png,cat\nb.png,dog\n", r"1 of 2 images are not there, such as .*b.png"),
        ("path,label\n", r"labels.csv: holds no image\n  try: "),
        ("path,label,part\na.png,cat,trian\n", r"labels.csv:2: part is 'trian', not train, val"),
        ('path,label\n"b\nerror: c.png",cat\n', r"such as [^\n]*b\\nerror: c.png"),
    ],
)
def test_a_wrong_table_names_the_line(tmp_path: Path, text: str, says: str) -> None:
    noise(1).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(text)
    part = "part" if "part" in text else None
    with pytest.raises(RunError, match=says):
        opened(tmp_path, "table", file="labels.csv", part=part)


def test_whole_numbers_are_in_their_order(tmp_path: Path) -> None:
    noise(1).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"a.png,{number}\n" for number in (10, 9, 2, 11)))
    found = find_parts(DataConfig(name="table", root=str(tmp_path), file="t.csv"))
    assert list(found.train.images) == ["2", "9", "10", "11"]


# -- archives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["zip", "tar"])
@pytest.mark.parametrize("top", ["", "set"])
@pytest.mark.parametrize("counted", [{"train": 5, "val": 2, "test": 3}, {"": 20}])
def test_an_archive_is_the_folders_in_it(tmp_path: Path, ending: str, top: str, counted: dict[str, int]) -> None:
    root = make_parts(tmp_path / "x" / "set", counted)
    (root / ".DS_Store").write_bytes(b"")
    archive = Path(shutil.make_archive(str(tmp_path / "set"), ending, root.parent if top else root))
    dataset = opened(archive, in_memory=False)
    assert content(dataset) == content(opened(root))
    facts = facts_of(dataset, DataConfig(name="folder", root=str(archive)))
    assert facts.train.digest == facts_of(opened(archive), DataConfig(name="folder", root=str(archive))).train.digest
    path = dataset.train.paths[0]
    again = pickle.loads(pickle.dumps(path))  # noqa: S301  as it goes to a worker
    assert isinstance(again, Member)
    assert again.read() == path.read()  # type: ignore[attr-defined]  # it is one
    if not top:
        streamed = opened(archive, in_memory=False, workers=1)
        batch = next(streamed.evaluation_loader(None, 4).batches(0))[0]
        assert torch.equal(batch, next(dataset.evaluation_loader(None, 4).batches(0))[0])


def test_names_that_lead_out_links_and_giants_are_passed_over(tmp_path: Path) -> None:
    picture = io.BytesIO()
    noise(1).save(picture, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in ("../../cat/a.png", "/cat/b.png", "cat/c.png"):
            file.writestr(name, picture.getvalue())
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, target in (("cat/c.png", ""), ("cat/d.png", "/etc/passwd"), ("../e.png", "")):
            info = tarfile.TarInfo(name)
            info.linkname, info.type = target, tarfile.SYMTYPE if target else tarfile.REGTYPE
            info.size = 0 if target else len(picture.getvalue())
            tar.addfile(info, io.BytesIO(picture.getvalue()))
    out = {"name that leads out": 1}
    for archive, passed in (("a.zip", {"name that leads out": 2}), ("a.tar", out | {"link or device": 1})):
        counted = Passed()
        assert [name for _, name in files_in(tmp_path / archive, counted)] == ["cat/c.png"]
        assert counted.counts == passed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.data.archives.LARGEST", 10)
        assert not [*files_in(tmp_path / "a.zip", Passed())]


def test_archives_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    root = make_parts(tmp_path / "set", {"": 3})
    packed = Path(shutil.make_archive(str(tmp_path / "set"), "xztar", root))
    with pytest.raises(RunError, match=r"cannot be read as a zip or tar file.*\n  try: a \.zip, \.tar or \.tar\.gz"):
        opened(packed)
    (tmp_path / "half.zip").write_bytes(Path(shutil.make_archive(str(tmp_path / "a"), "zip", root)).read_bytes()[:200])
    with pytest.raises(RunError, match=r"cannot be read as a zip or tar file"):
        opened(tmp_path / "half.zip")


# -- what cannot be read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "files", "root"),
    [
        ("table", ["a.csv"], "."),
        ("table", ["a.jsonl"], "."),
        ("arrays", ["x.npy", "y.npy"], "."),
        ("arrays", ["a.npz"], "."),
        ("arrays", ["a.npz"], "a.npz"),
    ],
)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, name: str, files: list[str], root: str) -> None:
    for file in files:
        os.mkfifo(tmp_path / file)
    with pytest.raises(RunError, match="is a pipe and no regular file"):
        opened(tmp_path / root, name, **({"file": files[0]} if name == "table" else {}))


def test_json_that_is_too_deep_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + "[" * 200_000)
    with pytest.raises(RunError, match=r"a.jsonl:2: is no JSON"):
        opened(tmp_path, "table", file="a.jsonl")
