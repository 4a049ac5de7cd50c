"""The record of a data set (`runtime.rundir.facts`): how it is made, and the set as far as it knows it."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from compiler.language.config import DataConfig
from runtime.data.archives import beginning, size_of
from runtime.data.augment import Normalise
from runtime.data.dataset import HERE, Dataset
from runtime.data.divide import Division
from runtime.data.layouts import data_root
from runtime.data.named_sets import Shape
from runtime.data.pixels import Found
from runtime.data.sources import FileImages, Images, MemoryImages, Request
from runtime.rundir.directory import JobDir
from runtime.rundir.facts import DataFacts, PartFacts
from runtime.rundir.files import damaged, guarded, read_tensors, write_bytes, write_json, write_text
from runtime.tasks.base import Task

_SIZED, _OPENED, _READ = 20_000, 64, 2**16  # files whose size counts, files whose first bytes do, and how many bytes
_ARRAYS = 1024  # images whose pixels count, of a set without files
_SAMPLES, _SAMPLE_BYTES = 64, 2**20  # test images that are kept: so many, or as many as fit


def facts_of(dataset: Dataset, config: DataConfig) -> DataFacts:
    """What there is to know of an open data set; `config` says where it lies. RunError if a file has gone."""
    root = data_root(config)
    has_root = config.root is not None or (":" not in config.name and root.is_dir())
    return DataFacts(
        name=config.name,
        root=str(root) if has_root else None,
        labels=dataset.labels,
        mean=dataset.normalise.mean,
        std=dataset.normalise.std,
        train=_part(dataset, dataset.train, root),
        test=_part(dataset, dataset.test, root),
        white=dataset.white,
        division=dataset.division.facts if dataset.division else None,
    )


def _part(dataset: Dataset, images: Images, root: Path) -> PartFacts:
    strata = dataset.task.strata(images.targets)
    counts = () if strata is None else tuple(torch.unique(strata, return_counts=True)[1].tolist())
    digest = "" if dataset.config.name == "fake" else _digest(images, root)
    return PartFacts(images=len(images.targets), counts=counts, digest=digest)


def _digest(images: Images, root: Path) -> str:
    """Of the files' names below the root (whatever their Unicode form) and sizes, and of a sample of the images."""
    digest = hashlib.sha256()
    if not images.paths:
        for tensor in _sample(images, _ARRAYS):
            digest.update(tensor.contiguous().numpy().tobytes())
    for path in images.paths:
        name = unicodedata.normalize("NFC", path.removeprefix(str(root)))
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    with guarded(root, "read"):
        for row in _spread(len(images.paths), _SIZED).tolist():
            digest.update(b"%d\0" % size_of(images.paths[row]))
        for row in _spread(len(images.paths), _OPENED).tolist():
            digest.update(beginning(images.paths[row], _READ))
    return digest.hexdigest()


def _spread(total: int, most: int) -> Tensor:
    """At most so many of `total` places, evenly over all of them."""
    count = min(total, most)
    return torch.arange(count) * total // max(count, 1)


def _sample(images: Images, most: int) -> tuple[Tensor, Tensor]:
    """Pixels (N, H, W, C) or (N, T, C) and targets (N, ...) of at most so many images; unreadable ones are left out."""
    images = replace(images, workers=0) if isinstance(images, FileImages) else images  # starting some takes longer
    rows = _spread(len(images.targets), most)
    fetched = next(iter(images.fetch([Request(rows)], HERE.device)))
    kept = rows if fetched.kept is None else rows[fetched.kept]
    return fetched.pixels.index_select(0, fetched.rows), images.targets[kept]


def write_facts(
    folder: JobDir, known: DataFacts | None, now: DataFacts, dataset: Dataset, tell: Callable[[str], None]
) -> None:
    """Write down what a job has found, with a few test images; of what is known, only where the set lies changes.

    Of a run that has begun without the record it is told.
    """
    if known is None:
        if folder.has_results or folder.is_finished:
            tell(f"{folder.path} did not say what its data was; {folder.data} holds what it is now")
        most = _SAMPLE_BYTES // (len(now.mean) * math.prod(dataset.test.size))
        pixels, targets = _sample(dataset.test, max(2, min(_SAMPLES, most)))
        if dataset.division:
            write_text(folder.split, _split_table(dataset, dataset.division, now.root or ""))
        write_bytes(folder.samples, safetensors.torch.save({"pixels": pixels.contiguous(), "targets": targets}))
    if known is None or known.root != now.root:
        write_json(folder.data, (known or now).model_copy(update={"root": now.root}).model_dump(mode="json"))


def _split_table(dataset: Dataset, division: Division, root: str) -> str:
    """The part of every image, also of those left out, as CSV with the columns path, label and part; of arrays the path
    is a number.
    """
    lines = [
        (path.removeprefix(f"{root}/"), name, part.part)
        for part in dataset.listings
        for name, paths in part.images.items()
        for path in paths
    ]
    if not dataset.listings:
        rows = [(str(row), part) for part, rows in division.rows.items() for row in rows]
        targets = torch.cat((dataset.train.targets, dataset.test.targets))
        lines = [(row, dataset.labels[target], part) for (row, part), target in zip(rows, targets, strict=True)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "label", "part"), *lines])
    return text.getvalue()


def recorded_dataset(facts: DataFacts, folder: JobDir, task: Task, shape: Shape, seed: int, share: float) -> Dataset:
    """The set as a job recorded it: labels, normalisation and a few test images, which are all its images.

    `shape` is the network's input, (C, H, W) or (C, T). RunError if the record is damaged or does not fit it.
    """
    if not len(facts.mean) == len(facts.std) == shape[0]:
        raise damaged(folder.data, f"it needs mean and std of {shape[0]} channels each")
    kept = read_tensors(folder.samples, safetensors.torch.load)[0]
    pixels, targets = kept.get("pixels", torch.empty(0)), kept.get("targets", torch.empty(0))
    fits = pixels.dtype in (torch.uint8, torch.float32) and len(pixels) == len(targets) > 0
    if not fits or pixels.shape[1:] != (*shape[1:], shape[0]):
        raise damaged(folder.samples, f"it holds no images of shape {shape} with a target each")
    task.labels(facts.name, targets, targets, facts.labels or None)
    found = Found(deep=len(pixels) * pixels.is_floating_point())
    images = MemoryImages(pixels, targets, found=found)
    return Dataset(
        images,
        images,
        facts.labels,
        config=DataConfig(name=facts.name, validation=share),
        task=task,
        normalise=Normalise(facts.mean, facts.std),
        seed=seed,
        white=facts.white or (65535.0 if found.deep else 0.0),
    )
