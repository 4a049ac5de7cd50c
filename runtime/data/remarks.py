"""What a person should know of the images of a set: what a setting has decided, and what was passed over."""

from __future__ import annotations

from collections.abc import Callable, Collection

from runtime.data.dataset import Dataset
from runtime.data.survey import class_doubt, range_doubt


def tell(dataset: Dataset, warn: Callable[[str], None], told: Collection[str] = ()) -> list[str]:
    """Warn of what was not told yet; all kinds that are told now."""
    found = remarks(dataset)
    for kind in sorted(found.keys() - set(told)):
        warn(found[kind])
    return list(found)


def remarks(dataset: Dataset) -> dict[str, str]:
    """Warnings by kind about the images read so far, of which a stream reads more later."""
    parts, texts = {"train": dataset.train.found, "test": dataset.test.found}, {}
    if passed := [f"{one.folder.name}/ ({one.passed})" for one in dataset.listings if one.passed.counts]:
        texts["passed"] = f"passed over in {', '.join(passed)}"
    targets, task = dataset.train.targets, dataset.task
    if task.outputs_are_classes and task.strata(targets) is targets and dataset.name != "fake":  # a class an image
        counts = targets.bincount(minlength=len(dataset.labels)).tolist()
        if uneven := class_doubt(dict(zip(dataset.labels, counts, strict=True))):
            texts["classes"] = uneven
    if counted := _counted({name: part.transparent for name, part in parts.items()}):
        texts["transparent"] = f"{counted} are transparent: they are put on data.background, white unless it is set"
    if doubt := range_doubt(parts["train"] + parts["test"]):
        counted = _counted({name: part.deep for name, part in parts.items()})
        texts["range"] = f"the set ({counted} of more than 8 bits or of floats) {doubt}"
    return texts


def _counted(counts: dict[str, int]) -> str:
    return " and ".join(f"{count:,} images in {name}" for name, count in counts.items() if count)
