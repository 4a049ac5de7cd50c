"""What a spec leaves out and its data says: `classes`, `input`, or the channels of it, `[auto, H, W]`.

It must not import torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from compiler.elaborate.builder import load
from compiler.errors import RunError, SpecError
from compiler.ir.graph import Graph
from compiler.language.config import DataConfig
from compiler.language.overrides import Override
from compiler.language.parse import parse
from compiler.language.spec import Spec
from runtime.data.layouts import LAYOUTS, data_root, find_parts
from runtime.data.survey import BUILT_IN, COUNTED

if TYPE_CHECKING:
    from runtime.data.looks import Look

SOURCE = "data"  # of the overrides that are made here
AUTO = "auto"
_LOOKED_AT = 64  # images whose sizes and modes are looked at
_SIZES = (32, 224)  # the smallest and the largest input that is chosen
_GREY = ("1", "L", "LA", "La", "I", "F")


def load_filled(path: str | os.PathLike[str], overrides: Sequence[Override] = ()) -> tuple[Spec, Graph]:
    """Parse and elaborate a spec file, with what its data says of the keys that it leaves out.

    SpecError with every mistake in it; RunError if a key is left out and the data is not there.
    """
    try:
        return load(path, overrides)
    except SpecError:
        spec = parse(path, overrides).spec
        found = [] if spec is None else list(_left_out(spec))
        if not found:
            raise
    return load(path, (*overrides, *found))


def _left_out(spec: Spec) -> Iterator[Override]:
    """What the data says of the keys that a spec leaves out; RunError if the data is not there to say it."""
    given = spec.root.plain()
    sizes = given.get("input")
    lacks_channels = isinstance(sizes, list) and sizes[:1] == [AUTO]
    missing = [key for key in ("classes", "input") if given.get(key) is None] + ["input"] * lacks_channels
    if not missing:
        return
    try:
        found = _looked_up(spec.config.data, "input" in missing)
    except RunError as error:
        raise RunError(f"the spec leaves out {' and '.join(missing)}, and the data cannot say it: {error}") from error
    if found is None:
        return
    if "classes" in missing:
        yield Override.of("classes", found[0], SOURCE)
    if lacks_channels:
        yield Override.of("input.0", found[1][0], SOURCE)
    elif "input" in missing:
        yield Override.of("input", list(found[1]), SOURCE)


def said_by_data(spec: Spec) -> str:
    """Which values of a spec its data has said, for people; empty if none."""
    values = {("classes",): spec.classes, ("input", 0): list(spec.input)}
    found = [(path[0], value) for path, value in values.items() if spec.root.find(path)[0].origin.name == SOURCE]
    return ", ".join(f"{key}: {value}" for key, value in found)


def _looked_up(config: DataConfig, sizes: bool) -> tuple[int, tuple[int, ...]] | None:
    """Classes, and the input (C, H, W) where `sizes` are wanted; None of a set that does not say them."""
    if known := BUILT_IN.get(config.name):
        return known.classes, known.shape
    if config.name == "arrays":
        from runtime.data.arrays import read_arrays  # and with it numpy

        arrays = read_arrays(data_root(config), None, config.ignore, look=True)
        return len(arrays.names), next(iter(arrays.parts.values())).shape
    if config.name not in LAYOUTS:
        return None
    from runtime.data.looks import look_at_all

    train = find_parts(config, COUNTED).train
    paths = train.paths
    looks = look_at_all(paths[:: -(-len(paths) // _LOOKED_AT)]) if sizes else []
    readable = [look for look in looks if not look.error]
    if looks and not readable:
        raise RunError(f"none of {len(looks)} images that were looked at can be read: {paths[0]}: {looks[0].error}")
    return len(train.images), _input_for(readable)


def _input_for(looks: list[Look]) -> tuple[int, ...]:
    """Channels as the images, arrays or stacks of pages have; their size where it is one and small, else a square of
    about their shorter sides.
    """
    stacked = {look.channels for look in looks}
    channels = 1 if all(re.split("[; ]", look.mode)[0] in _GREY for look in looks) else 3
    if len(stacked) == 1 and (of_all := stacked.pop()):
        channels = of_all
    smallest, largest = _SIZES
    found = {look.size for look in looks}
    if len(found) == 1 and max(width_height := found.pop()) <= largest:
        return channels, width_height[1], width_height[0]
    shorter = sorted(min(look.size) for look in looks) or [smallest]
    side = shorter[len(shorter) // 2] // smallest * smallest
    return channels, *[min(max(side, smallest), largest)] * 2
