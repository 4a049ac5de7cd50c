"""What of a folder is a set of images, what is passed over, and that this is said."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data.dataset import Dataset, load_dataset
from runtime.data.facts import facts_of, write_facts
from runtime.data.folders import list_images
from runtime.data.layouts import PART_NAMES, find_parts
from runtime.data.pixels import Reading, read_pixels
from runtime.data.remarks import remarks, tell
from runtime.data.sources import FileImages, MemoryImages
from runtime.data.survey import survey
from runtime.data.tables import read_table
from runtime.inference.images import find_images
from runtime.rundir.directory import JobDir
from tests.runtime.data.awkward import FINE, RAMP, write_images, write_pgm
from tests.tasks import class_task

SHAPE = (3, 16, 24)
SMALL = Image.new("RGB", (24, 16), (9, 9, 9))


def make_set(root: Path, classes: tuple[str, ...] = ("cat", "dog"), train: int = 12, test: int = 4) -> Path:
    for part, count in (("train", train), ("test", test)):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                SMALL.save(root / part / name / f"{number:03}.png")
    return root


def opened(root: Path, shape: tuple[int, ...] = SHAPE, classes: int = 2, **settings: object) -> Dataset:
    config = DataConfig.model_validate({"name": "folder", "root": str(root), "workers": 0, **settings})
    return load_dataset(config, shape, class_task(classes), seed=1)


def test_a_set_of_awkward_images_is_what_the_reader_says(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    files = write_images(root / "train" / "cat")
    dataset = opened(root)
    assert isinstance(dataset.train, MemoryImages)
    assert len(dataset.train.targets) == len(files) + 24
    paths = [path for paths in list_images(root / "train").images.values() for path in paths]
    pixels = dict(zip(paths, dataset.train.images, strict=True))
    for path in files.values():
        wanted = read_pixels(path, SHAPE, Reading())[0]
        assert np.array_equal(pixels[str(path)].permute(1, 2, 0).numpy(), wanted.astype(np.float32)), path.name


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    cat = root / "train" / "cat"
    for name in ("a.heic", "b.HEIC", "notes.txt", "README", ".DS_Store", "._000.png", "._001.png"):
        (cat / name).write_bytes(b"none")
    for hidden in (
        cat / ".ipynb_checkpoints",
        cat / "more" / ".cache",
        root / "train" / "__MACOSX",
        root / "test" / ".x",
    ):
        hidden.mkdir(parents=True)
        SMALL.save(hidden / "000.png")
    SMALL.save(cat / "more" / "deep.jfif", format="JPEG")
    SMALL.save(root / "train" / "beside.png")
    dataset = opened(root)
    assert len(dataset.train.targets) == 25
    assert [listing.line() for listing in dataset.listings] == [
        "train: 25 images of 2 classes (cat 13, dog 12)",
        "test: 8 images of 2 classes (cat 4, dog 4)",
    ]
    said = remarks(dataset)["passed"]
    train, test = said.removeprefix("passed over in ").split("), ")
    assert set(train.removeprefix("train/ (").split(", ")) == {
        "2 .heic until pip install pillow-heif", "1 .txt", "1 file without an ending", "1 .DS_Store", "2 ._* of macOS",
        "1 folder .ipynb_checkpoints", "1 folder .cache", "1 folder __MACOSX", "1 image beside the class folders",
    }  # fmt: skip
    assert test == "test/ (1 folder .x)"


def test_links_that_lead_to_themselves_are_passed_over(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    for place in (root, root / "train", root / "train" / "cat"):
        (place / "loop").symlink_to("loop")
    parts = find_parts(DataConfig(name="folder", root=str(root)))
    assert [len(listing.paths) for listing in parts.listings] == [24, 8]


@pytest.mark.parametrize("look", [list_images, lambda folder: find_images([str(folder)])])
def test_folders_in_each_other_beyond_what_python_follows(tmp_path: Path, look: Callable[[Path], object]) -> None:
    places = [tmp_path / Path(*["a"] * depth) for depth in range(1, 1100)]
    for place in places:
        place.mkdir()
    SMALL.save(places[-1] / "0.png")
    try:
        if sys.version_info >= (3, 12):
            look(tmp_path)
        else:
            with pytest.raises(RunError, match="too many folders in each other"):
                look(tmp_path)
    finally:  # whoever cleans up does not follow either
        (places[-1] / "0.png").unlink()
        for place in reversed(places):
            place.rmdir()


def test_the_order_is_that_of_torchvision(tmp_path: Path) -> None:
    """On which parts and batches depend; a folder's name may be the beginning of another one's."""
    root = make_set(tmp_path, train=2)
    for inner in ("a", "a/x", "a-b", "B", "a/x/1"):
        (root / "train" / "cat" / inner).mkdir(exist_ok=True)
        for name in ("z.png", "Y.png", "10.png", "9.png"):
            SMALL.save(root / "train" / "cat" / inner / name)
    paths = [path for paths in list_images(root / "train").images.values() for path in paths]
    assert paths == [path for path, _ in ImageFolder(str(root / "train")).samples]


def test_many_classes_are_summed_up(tmp_path: Path) -> None:
    root = make_set(tmp_path, tuple(f"class{number:02}" for number in range(12)), train=2, test=1)
    SMALL.save(root / "train" / "class03" / "more.png")
    assert list_images(root / "train").line() == "train: 25 images of 12 classes (2 to 3 each)"
    assert str(list_images(root / "train").passed) == ""


def test_names_that_differ_only_in_their_unicode_form_are_named_as_that(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = make_set(tmp_path, (composed, "dog"))
    (root / "test" / composed).rename(root / "test" / decomposed)
    with pytest.raises(RunError, match=r"differ, some only in the Unicode form of their names \(NFC, NFD\)"):
        opened(root)
    (root / "test" / decomposed).rename(root / "test" / composed)
    assert opened(root).labels == (composed, "dog")
    (root / "train" / decomposed).mkdir()
    SMALL.save(root / "train" / decomposed / "0.png")
    with pytest.raises(RunError, match=r"names of its folders differ only in their Unicode form"):
        opened(root)


def test_folders_of_another_form_are_refused_in_our_words(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    with pytest.raises(RunError, match=r"cannot read: File name too long"):  # as where there is no permission
        opened(tmp_path / ("x" * 300))
    for name in ("cat", "dog"):
        (root / "train" / name).rename(root / f"{name} elsewhere")
    (root / "train" / ".cache").mkdir()
    SMALL.save(root / "train" / "000.png")
    with pytest.raises(RunError, match=r"there is no class folder in it; passed over: .*1 image beside the"):
        opened(root)
    (root / "train" / "cat").mkdir()
    (root / "train" / "cat" / "0.heic").write_bytes(b"")
    with pytest.raises(RunError, match=r"no image is in cat; passed over: .*1 \.heic.*\n  try: put images"):
        opened(root)


# -- what the images have -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
def test_transparency_and_doubtful_ranges_are_told_once(tmp_path: Path, in_memory: bool) -> None:
    root = make_set(tmp_path)
    files = write_images(tmp_path)
    for number in range(3):
        (root / "train" / "cat" / f"a{number}.png").write_bytes(files["rgba_hidden_red.png"].read_bytes())
    (root / "train" / "dog" / "b.png").write_bytes(files["grey_12_of_16_bit.png"].read_bytes())
    dataset = opened(root, in_memory=in_memory, validation=0.05)
    warnings: list[str] = []
    told = tell(dataset, warnings.append)
    list(dataset.evaluation_loader(torch.arange(28), 4).batches(0))
    told = tell(dataset, warnings.append, told)
    assert sorted(told) == ["range", "transparent"]
    assert len(warnings) == 2
    said = remarks(dataset)
    assert said["transparent"].startswith("3 images in train are transparent: they are put on data.background")
    assert "1 images in train of more than 8 bits" in said["range"]
    assert said["range"].endswith("largest value is 4080, white is 65535; if 4095 is white, set data.range: 4095")
    again = opened(root, in_memory=in_memory, range=4095)
    list(again.evaluation_loader(torch.arange(28), 4).batches(0))
    assert list(remarks(again)) == ["transparent"]


def test_values_beyond_the_range_are_told(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    Image.fromarray(RAMP.astype(np.float32) - 1).save(root / "test" / "dog" / "a.tif")
    said = remarks(opened(root))["range"]
    assert said.startswith("the set (1 images in test of more than 8 bits or of floats) has values from -1 to 254")
    assert said.endswith("if 255 is white, set data.range: 255")


def test_sets_of_more_than_8_bits_are_normalised_alike_however_they_are_read(tmp_path: Path) -> None:
    root = make_set(tmp_path, train=4)
    rng = np.random.default_rng(3)
    for number in range(40):
        write_pgm(root / "train" / "cat" / f"{number}.pgm", rng.permuted(FINE))
    held, streamed = (opened(root, (1, 16, 24), in_memory=in_memory) for in_memory in (True, False))
    assert isinstance(held.train, MemoryImages)
    assert isinstance(streamed.train, FileImages)
    assert held.normalise == streamed.normalise
    rows = held.split(0.5).training
    first, second = (list(each.evaluation_loader(rows, 16).batches(0)) for each in (held, streamed))
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(first, second, strict=True))
    x = torch.cat([x for x, _ in first])
    assert len(x.unique()) > 256
    assert abs(float(x.mean())) < 1e-3
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


# -- what cannot be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_that_has_lost_all_its_images_is_an_error(tmp_path: Path, part: str, in_memory: bool) -> None:
    root = make_set(tmp_path)
    for path in (root / part / "dog").iterdir():
        path.write_bytes(b"damaged")

    def read_all() -> None:
        dataset = opened(root, in_memory=in_memory, skip_corrupt=True)
        for rows in (torch.arange(24), None):
            list(dataset.evaluation_loader(rows, 4).batches(0))

    with pytest.raises(RunError, match=rf"every image of a class is unreadable, as .*{part}/dog"):
        read_all()


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("parts", [("",), ("train", "val", "test")])
def test_images_that_are_left_out_leave_the_others_in_their_parts(
    tmp_path: Path, parts: tuple[str, ...], in_memory: bool
) -> None:
    root = tmp_path / "set"
    files = [root / part / name / f"{n:02}.png" for part in parts for name in ("cat", "dog") for n in range(20)]
    for value, path in enumerate(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (value,) * 3).save(path)

    def by_part() -> tuple[Dataset, list[set[int]]]:
        settings = {"near_duplicates": None, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}
        dataset = opened(root, in_memory=in_memory, skip_corrupt=True, **settings)
        split = dataset.split(0.5)
        loaders = [dataset.evaluation_loader(rows, 64) for rows in (split.training, split.validation, None)]
        return dataset, [{round(float(image.mean())) for x, _ in one.batches(0) for image in x} for one in loaders]

    whole = by_part()[1]
    assert sorted(value for values in whole for value in values) == list(range(len(files)))
    gone = {min(values) for values in whole}
    for value in gone:
        files[value].write_bytes(b"damaged")
    dataset, left = by_part()
    assert left == [values - gone for values in whole]
    if dataset.division:
        job, facts = JobDir(tmp_path / "job"), facts_of(dataset, DataConfig(name="folder", root=str(tmp_path / "set")))
        write_facts(job, None, facts, dataset, pytest.fail)
        rows = read_table(job.split, root, "path", "label", "part", PART_NAMES)
        assert {(row.path, row.name) for row in rows} == {(str(path), path.parent.name) for path in files}


def test_a_stream_passes_over_batches_that_cannot_be_read(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    for path in sorted((root / "test" / "cat").iterdir())[:3]:
        path.write_bytes(b"damaged")
    dataset = opened(root, in_memory=False, skip_corrupt=True)
    batches = list(dataset.evaluation_loader(None, 2).batches(0))
    assert [len(y) for _, y in batches] == [1, 2, 2]
    assert len(dataset.skipped) == 3
    for path in sorted((root / "train" / "cat").iterdir())[1:]:
        path.write_bytes(b"damaged")
    dataset = opened(root, in_memory=False, skip_corrupt=True)
    with pytest.raises(RunError, match=r"every image of a batch is unreadable: mend"):
        list(dataset.training_loader(torch.arange(24), 1, "weights").batches(0))


def test_what_is_counted_before_a_set_is_opened_is_what_is_opened(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    cat = root / "train" / "cat"
    for hidden in (cat / ".ipynb_checkpoints", root / "train" / "__MACOSX", root / "test" / ".cache"):
        hidden.mkdir()
        SMALL.save(hidden / "000.png")
    (cat / "._000.png").write_bytes(b"none")
    SMALL.save(cat / "more.jfif", format="JPEG")
    (cat / "back").symlink_to(cat)
    config = DataConfig(name="folder", root=str(root))
    found = survey(config, SHAPE, class_task(2))
    assert found.training == len(opened(root).train.targets) == 25
    with pytest.raises(RunError, match=r"cannot read: File name too long"):
        find_parts(DataConfig(name="folder", root=str(tmp_path / ("x" * 300))))


def test_images_that_are_much_larger_than_the_input_are_told_of(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    config = DataConfig(name="folder", root=str(root))
    said = survey(config, SHAPE, class_task(2)).warnings
    for path in root.glob("train/*/*"):
        path.write_bytes(b"damaged")
    side = 8 * SHAPE[2]
    for path in sorted(root.glob("train/dog/*"))[1:]:
        Image.new("RGB", (side, side + 5)).save(path)
    told = survey(config, SHAPE, class_task(2)).warnings
    assert told[:-1] == said
    assert f"much larger than the input: {side} pixels" in told[-1]
