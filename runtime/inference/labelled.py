"""Images whose classes are known: a folder of class folders, or the test set that a run was trained beside.

Test images in files are found without torch; other sets are opened as in training, and with them torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compiler.errors import RunError, one_line
from compiler.language.config import Configuration, DataConfig
from runtime.data.arrays import over_range, read_arrays
from runtime.data.folders import Listing, list_images, passed_over, refuse_empty
from runtime.data.layouts import LAYOUTS, PART_NAMES, TEST, TRAIN, data_root, find_parts, settings_for
from runtime.data.pixels import Pixels
from runtime.data.survey import check_shape
from runtime.data.tables import read_table
from runtime.inference.figures import Numbers
from runtime.inference.images import Batch, read_batches
from runtime.inference.model import ExportedModel
from runtime.rundir.directory import JobDir, RunDir
from runtime.rundir.facts import read_facts
from runtime.rundir.given import read_settings
from runtime.tasks.table import TASKS

_PARTS = ("test", "val")  # of a folder that holds a training part too
_SHOWN = 5  # classes that a message names


@dataclass(frozen=True)
class Labelled:
    """Images in order, with the numbers of their classes."""

    says: str  # where they are from, for people
    names: Sequence[str]  # paths, or `test image 7` where there are no files
    truths: Numbers  # (N,)
    pixels: Pixels | None = None  # (N, H, W, C) or (N, T, C); None: they are files
    expected: int | None = None  # images of it that the run has recorded
    passed: str = ""  # what was passed over, for people

    def batches(self, model: ExportedModel, batch: int) -> Iterator[Batch]:
        """All of them, as the model's training read them."""
        if self.pixels is None:
            model.check_reads_files()
            yield from read_batches(self.names, model.shape, model.reading, batch)
            return
        for start in range(0, len(self.names), batch):
            pixels = self.pixels[start : start + batch]
            yield Batch(range(start, start + len(pixels)), pixels, {})


def given_images(path: Path, model: ExportedModel, run: RunDir | None) -> Labelled:
    """The images of a folder, an archive, a table (with the columns of the training's; of a file alone with `path` and
    `label`) or arrays, or of the test part of those that have parts; RunError where the model lacks a class.
    """
    config = DataConfig.model_validate(settings_for(path))
    if config.name == "arrays":
        return _in_arrays(path, model)
    if path.is_dir():
        return in_folder(path, model.labels, model.metadata.ignored)
    own = _settings(run, model).data if run is not None and config.name == "table" else config
    columns = {"image": own.image, "label": own.label, "part": own.part} if own.name == "table" else {}
    more = {"ignore": tuple(model.metadata.ignored), "nested": _are_nested(model.labels)}  # they need not be there
    parts = LAYOUTS[config.name](config.model_copy(update=columns | more), None)
    listing = parts.test or parts.train
    _refuse_unknown(path, listing.images, model.labels)
    return replace(_listed(str(path), listing, model.labels), passed=passed_over(parts.listings))


def _in_arrays(path: Path, model: ExportedModel) -> Labelled:
    found = read_arrays(path, model.shape, model.metadata.ignored, all_there=False)
    part = found.parts[TEST if TEST in found.parts else ""]
    check_shape("arrays", part.shape, model.shape)
    _refuse_unknown(path, [found.names[number] for number in np.unique(part.labels)], model.labels)
    known = {name: number for number, name in enumerate(model.labels)}
    truths = np.array([known.get(name, -1) for name in found.names])[part.labels]
    try:
        pixels = over_range(part.images, model.reading.range)[0]
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error
    return Labelled(str(path), [f"image {row}" for row in range(len(truths))], truths, pixels)


def _refuse_unknown(where: Path, names: Iterable[str], labels: Sequence[str]) -> None:
    """RunError if there are classes that the model lacks."""
    if unknown := [name for name in names if name not in labels]:
        shown = [", ".join(map(one_line, some[:_SHOWN])) + ", ..." * (len(some) > _SHOWN) for some in (unknown, labels)]
        raise RunError(
            f"{where}: has classes that the model does not know: {shown[0]}; it knows {shown[1]}\n"
            f"  try: images of classes that are called as the model calls them"
        )


def in_folder(folder: Path, labels: Sequence[str], ignored: Sequence[str] = ()) -> Labelled:
    """The images of a folder with a folder per class, or of its test part, but for those of classes that were left out
    of the training; RunError where the model lacks a class.
    """
    parts = [part for part in _PARTS if (folder / part).is_dir() and part not in labels]
    folder = folder / parts[0] if parts and (folder / TRAIN).is_dir() else folder
    listing = list_images(folder, nested=_are_nested(labels), ignore=ignored)
    _refuse_unknown(folder, listing.images, labels)
    return _listed(str(folder), refuse_empty(listing), labels)


def _are_nested(labels: Sequence[str]) -> bool:
    """Whether classes are called by the way to their folder (`data.nested`)."""
    return any("/" in label for label in labels)


def own_test_images(
    run: RunDir, model: ExportedModel, tell: Callable[[str], None], *, trust_code: bool = False
) -> Labelled:
    """The test images of the training of a run's model; RunError if they are not where the run says."""
    job, settings = JobDir(run.path / model.metadata.source), _settings(run, model)
    facts = read_facts(job)
    data = settings.data.model_copy(update={"root": facts.root}) if facts and facts.root else settings.data
    expected = facts.test.images if facts else None
    says = f"the test images of {data.name}" + (f" in {data_root(data)}" if facts and facts.root else "")
    try:
        listing = _test_files(data, model.labels, job)
        if listing is not None:
            return _listed(says, listing, model.labels, expected)
        tell(f"{data.name} is opened as in training, with torch: that takes some seconds")
        return _opened(says, settings.model_copy(update={"data": data}), model, expected, trust_code)
    except RunError as error:
        reason = str(error).partition("\n  try:")[0]
        raise RunError(
            f"{run.path}: its test images cannot be opened: {reason}\n"
            f"  try: graphspec evaluate {run.path} FOLDER, with a folder of images for each class"
        ) from error


def _settings(run: RunDir, model: ExportedModel) -> Configuration:
    return Configuration.model_validate(read_settings(JobDir(run.path / model.metadata.source).config))


def _test_files(data: DataConfig, labels: Sequence[str], job: JobDir) -> Listing | None:
    """The test images of a set of files, divided as the job has written down where the set has no parts; None if it is
    no such set, or has other classes.
    """
    if data.name not in LAYOUTS or not data_root(data).exists():
        return None
    whole, _, test, _ = find_parts(data)
    if test is None and job.split.exists():
        rows = read_table(job.split, data_root(data), "path", "label", "part", PART_NAMES)
        chosen = {row.path for row in rows if row.part == TEST}
        images = {name: [path for path in paths if path in chosen] for name, paths in whole.images.items()}
        test = replace(whole, images=images, part=TEST)
    return test if test and list(test.images) == list(labels) else None


def _listed(says: str, listing: Listing, labels: Sequence[str], expected: int | None = None) -> Labelled:
    pairs = [(path, number) for number, name in enumerate(labels) for path in listing.images.get(name, ())]
    names, truths = [path for path, _ in pairs], np.array([truth for _, truth in pairs])
    return Labelled(says, names, truths, expected=expected, passed=passed_over([listing]))


def _opened(
    says: str, settings: Configuration, model: ExportedModel, expected: int | None, trust_code: bool
) -> Labelled:
    from runtime.data.named_sets import open_dataset  # and with it torch

    task = TASKS.load(settings.task)(len(model.labels), settings)
    opened = open_dataset(settings.data, model.shape, task, seed=settings.seed, trust_code=trust_code)
    if list(opened.labels) != model.labels:
        raise RunError(f"the classes of {settings.data.name} are not those of the model")
    images = opened.test.in_memory()
    pixels = images.images.movedim(1, -1).numpy()
    read = [path for path in images.paths if path not in images.skipped]
    names = read or [f"test image {number}" for number in range(len(pixels))]
    return Labelled(says, names, images.targets.numpy(), pixels, expected)
