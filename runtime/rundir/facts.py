"""What a job learned of its data when it first opened it; made by `runtime.data.facts`. It must not import torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, Field

from compiler.errors import RunError, one_line
from compiler.language.config import DataConfig
from compiler.language.values import Share
from runtime.rundir.directory import JobDir, RunDir
from runtime.rundir.files import read_json
from runtime.rundir.records import Count


class PartFacts(BaseModel):
    """The training or the test images of a set."""

    images: Count
    counts: tuple[Count, ...]  # images of every class, as far as the task has classes
    digest: str  # of the names and sizes of the files and of a sample of the images; empty where the seed draws them


class DivisionFacts(BaseModel):
    """How a set without parts was divided; `split.csv` beside it names the part of every file."""

    seed: Count
    bits: Count | None  # of a dHash in which near-duplicates differ at most; None: images were not compared
    near_duplicates: Count  # images that are one of another


class DataFacts(BaseModel):
    """A data set as a job found it."""

    name: str
    root: str | None  # the absolute folder it lies in; None where it has none
    labels: tuple[str, ...]  # names of the outputs, in order
    mean: tuple[Share, ...]
    std: tuple[Annotated[Share, Field(gt=0.0)], ...]
    train: PartFacts
    test: PartFacts
    white: Annotated[float, Field(ge=0.0)] | None = None  # the largest value of images of more than 8 bits; 0: none is
    division: DivisionFacts | None = None  # None: its parts are those that it came with

    def applied_to(self, config: DataConfig) -> DataConfig:
        """The settings with the recorded normalisation."""
        return config.model_copy(update={"mean": self.mean, "std": self.std})

    def same_classes(self, now: DataFacts) -> bool:
        """Whether the outputs of a network mean the same."""
        return (self.name, self.labels) == (now.name, now.labels)

    def changes(self, now: DataFacts) -> str:
        """What is different now, for people; empty if nothing is. Where it lies does not matter."""
        found = [f"it was {self.name}, now it is {now.name}"] * (self.name != now.name)
        if self.labels != now.labels:
            gone, new = sorted({*self.labels} - {*now.labels}), sorted({*now.labels} - {*self.labels})
            found.append(one_line(f"other classes ({', '.join(gone) or 'none'} gone, {', '.join(new) or 'none'} new)"))
        for part, before, after in (("train", self.train, now.train), ("test", self.test, now.test)):
            if before.images != after.images:
                found.append(f"{part} has {after.images} images, not {before.images}")
            elif before != after:
                found.append(f"{part} has other files or images")
        return "; ".join(found)


def read_facts(folder: JobDir) -> DataFacts | None:
    """What a job learned of its data; None if it has not come so far. RunError if the file is damaged."""
    return DataFacts.model_validate(read_json(folder.data, DataFacts)) if folder.data.is_file() else None


def check_facts(run: RunDir, job: str, now: DataFacts, warn: Callable[[str], None], *, is_anew: bool = False) -> None:
    """RunError if a training job does not find the data that it began with (`is_anew`: it begins), or other seeds had.

    The network of a search may be trained on other images, with a warning, but not for other classes.
    """
    own = run.path.absolute() / job
    for folder in (JobDir(own), *(JobDir(one.path / job) for one in run.siblings()), run.search):
        if is_anew and folder.path.absolute() == own:
            continue
        known = read_facts(folder)
        changes = known.changes(now) if known else ""
        if known and changes and folder.path.name != job and known.same_classes(now):
            warn(f"the data has changed since the search: {changes}")
        elif changes:
            raise RunError(
                f"{folder.data}: the data has changed since then: {changes}\n"
                f"  try: the data as it was (--set data.root=FOLDER if it lies elsewhere), or graphspec compile SPEC "
                f"for a new run"
            )
