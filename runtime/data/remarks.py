"""What a person should know of the images of a set: what they have that was decided by a setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from runtime.data.dataset import Dataset
from runtime.data.pixels import Found

DARK = 0.25  # a set that uses less of its range is dark, mostly because the range is another one


def remarks(dataset: Dataset) -> dict[str, str]:
    """Warnings by kind about the images read so far, of which a stream reads more later."""
    parts = {"train": dataset.train.found, "test": dataset.test.found}
    passed = [f"{one.folder.name}/ ({text})" for one in dataset.listings if (text := one.passed_over())]
    background, found = list(dataset.reading.background), parts["train"] + parts["test"]
    texts = {
        "passed": f"passed over in {', '.join(passed)}" if passed else "",
        "transparent": f"{_counted(parts, lambda part: part.transparent)}are transparent: they are put on the colour "
        f"{background}; data.background sets another one"
        if found.transparent
        else "",
        "range": _of_the_range(found, _counted(parts, lambda part: part.deep)) if found.deep else "",
    }
    return {kind: text for kind, text in texts.items() if text}


def tell(dataset: Dataset, warn: Callable[[str], None], told: Collection[str] = ()) -> list[str]:
    """Warn of what was not told yet; all kinds that are told now."""
    found = remarks(dataset)
    for kind, text in found.items():
        if kind not in told:
            warn(text)
    return list(found)


def _counted(parts: dict[str, Found], count: Callable[[Found], int]) -> str:
    numbers = [f"{count(found):,} images in {name}" for name, found in parts.items() if count(found)]
    return " and ".join(numbers) + " "


def _of_the_range(found: Found, counted: str) -> str:
    low, high = found.low * found.white, found.high * found.white
    if found.low < 0 or found.high > 1:
        problem = f"has values from {low:g} to {high:g}: those outside of 0 to {found.white:g} become black or white"
    elif found.high < DARK:
        problem = f"uses less than a quarter of its range: the largest value is {high:g}, white is {found.white:g}"
    else:
        return ""
    better = 2 ** math.ceil(math.log2(high + 1)) - 1 if high > 1 else high
    advice = f"; if {better:.6g} is white, set data.range: {better:.6g}" if high > 0 else ""
    return f"the set ({counted}of more than 8 bits or of floats) {problem}{advice}"
