"""What a person should know of the images of a set: what a setting has decided, and what was passed over.

It must not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from runtime.data.folders import passed_over
from runtime.data.pixels import DARK, Found
from runtime.data.survey import class_doubt

if TYPE_CHECKING:
    from runtime.data.dataset import Dataset

CUT = "have colours of more than 8 bits, of which 8 are read: save them as PNG or TIFF of 16 bits, or as .npy files"


def tell(dataset: Dataset, warn: Callable[[str], None], told: Collection[str] = ()) -> list[str]:
    """Warn of what was not told yet; all kinds that are told now."""
    found = remarks(dataset)
    for kind in sorted(found.keys() - set(told)):
        warn(found[kind])
    return list(found)


def remarks(dataset: Dataset) -> dict[str, str]:
    """Warnings by kind about the images read so far, of which a stream reads more later."""
    found, texts = {"train": dataset.train.found, "test": dataset.test.found}, {}
    if passed := passed_over(dataset.listings):
        texts["passed"] = passed
    targets, task, name = dataset.train.targets, dataset.task, dataset.config.name
    if task.outputs_are_classes and task.strata(targets) is targets and name != "fake":  # a class an image
        counts = targets.bincount(minlength=len(dataset.labels)).tolist()
        if uneven := class_doubt(dict(zip(dataset.labels, counts, strict=True))):
            texts["classes"] = uneven
    if counted := _counted(found, "transparent"):
        texts["transparent"] = f"{counted} are transparent: they are put on data.background, white unless it is set"
    if counted := _counted(found, "cut"):
        texts["cut"] = f"{counted} {CUT}"
    if doubt := range_doubt(found["train"] + found["test"], _counted(found, "deep")):
        texts["range"] = doubt
    return texts


def _counted(found: dict[str, Found], what: str) -> str:
    counts = {part: getattr(one, what) for part, one in found.items()}
    return " and ".join(f"{count:,} images in {part}" for part, count in counts.items() if count)


def range_doubt(found: Found, counted: str) -> str:
    """What is doubtful about the values of images of more than 8 bits, so many: that their range is another one."""
    low, high = found.low * found.white, found.high * found.white
    if not found.deep or (found.low >= 0 and DARK <= found.high <= 1):
        return ""
    problem = f"uses less than a quarter of its range: the largest value is {high:g}, white is {found.white:g}"
    if found.low < 0 or found.high > 1:
        problem = f"has values from {low:g} to {high:g}: those outside of 0 to {found.white:g} become black or white"
    white = 2 ** math.ceil(math.log2(high + 1)) - 1 if high > 1 else high
    advice = f"; if {white:.6g} is white, set data.range: {white:.6g}" if high > 0 else ""
    return f"the set ({counted} of more than 8 bits or of floats) {problem}{advice}"
