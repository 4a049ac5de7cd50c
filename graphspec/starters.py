"""The specs that ship: listed, copied for a start, and made for an image size and a limit."""

from __future__ import annotations

import math
import re
import tempfile
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

import graphspec
from compiler.analysis.limits import budget_share
from compiler.elaborate.builder import load
from compiler.errors import RunError, did_you_mean
from compiler.language.overrides import overrides_of
from compiler.language.values import parse_count
from runtime.rundir.files import write_text

SCHEMA = "graphspec.schema.json"  # what the shipped specs name for editors
SIZED = ("own_images", "photos")  # starters whose stages follow from the size
MADE = (*SIZED, "cifar10_small")  # and whose widths and depth follow from the limit
SIZES = (16, 512)  # pixels for which networks are written
WIDTHS = range(8, 513, 8)  # of the stem
STAND_INS = {"classes": 10, "input": [3, 32, 32]}  # for what a spec leaves to its data
OVER = 3.25  # how many limits the network takes that the search begins with, at most
LAST_MAP = 7  # pixels of the last map, about
SHALLOW, DEEP = "{keep: 3}, head]", "{keep: 2}, down, keep, head]"  # how a network ends
DEEP_FROM = 32  # width of the stem from which on a further, smaller map pays


@dataclass(frozen=True)
class Wishes:
    """What a starter is made for; None: as it ships."""

    size: int | None = None
    """Height and width of the images in pixels."""
    classes: int | None = None
    limits: Mapping[str, str] = field(default_factory=dict)
    """By key of `budget`, as the spec has them."""

    def __bool__(self) -> bool:
        return self.size is not None or self.classes is not None or bool(self.limits)

    def check(self, name: str) -> None:
        """RunError if this starter cannot be made for them."""
        if name not in MADE:
            raise RunError(f"{name} is as it is: networks of your size or limit are made of {', '.join(MADE)}")
        if self.size is not None and name not in SIZED:
            raise RunError(f"--size {self.size}: the images of CIFAR-10 have 32 pixels; own_images takes any size")
        if self.size is not None and not SIZES[0] <= self.size <= SIZES[1]:
            raise RunError(f"--size {self.size}: networks are written for {SIZES[0]} to {SIZES[1]} pixels")
        if self.classes is not None and self.classes < 2:
            raise RunError(f"--classes {self.classes}: expected at least 2")
        for key, written in self.limits.items():
            if not isinstance(most := parse_count(written), int) or most <= 0:
                raise RunError(f"--{key} {written}: expected a number above 0, such as 1.5M")


def _folder() -> Path:
    """`graphspec/specs` of an installed package, or `specs` of a checkout."""
    package = Path(graphspec.__file__).parent
    installed = package / "specs"
    return installed if installed.is_dir() else package.parent / "specs"


def starters() -> dict[str, str]:
    """Names of the shipped specs with the first line of their comments."""
    return {path.stem: _summary(path) for path in sorted(_folder().glob("*.yaml"))}


def _summary(path: Path) -> str:
    lines = (
        line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    )
    return next((line for line in lines if line and "yaml-language-server" not in line), "")


def copy_starter(name: str, folder: Path, wishes: Wishes = Wishes()) -> list[Path]:
    """Copy a shipped spec, what it extends and the schema, made for `wishes`.

    RunError if there is none, a file is in the way, or no network of its kind is as wished.
    """
    known = starters()
    if name not in known:
        hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        raise RunError(f"no shipped spec is called {name!r}{hint}")
    files = _with_bases(f"{name}.yaml")
    taken = [folder / file for file in files if (folder / file).exists()]
    if taken:
        raise RunError(f"{taken[0]} exists already\n  try: another folder (--into), or remove it")
    wanted = [*files, *([] if (folder / SCHEMA).exists() else [SCHEMA])]
    texts = {file: (_folder() / file).read_text(encoding="utf-8") for file in wanted}
    if wishes:
        wishes.check(name)
        texts[files[0]] = _made_for(wishes, texts[files[0]])
        if wishes.size or wishes.limits:
            texts[files[0]] = _fitted(texts, files[0])
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def _with_bases(file: str) -> list[str]:
    base = yaml.safe_load((_folder() / file).read_text(encoding="utf-8")).get("extends")
    return [file, *(_with_bases(base) if base else [])]


def _made_for(wishes: Wishes, text: str) -> str:
    """The text of a starter for this size, number of classes and limit; its widths are left."""
    if wishes.classes:
        text = _with_line(text, "classes", str(wishes.classes))
    if wishes.size:
        text = _with_line(text, "input", f"[3, {wishes.size}, {wishes.size}]")
        text = _with_line(text, "network", _network(wishes.size))
    limits = wishes.limits or ({"flops": f"{_usual_flops(wishes.size) / 1e6:.3g}M"} if wishes.size else {})
    if limits:
        both = {"params": "null", "flops": "null", **limits}
        text = _with_line(text, "budget", f"{{{', '.join(f'{key}: {value}' for key, value in both.items())}}}")
    return text


def _with_line(text: str, key: str, value: str) -> str:
    """The text with this value on the line of a key of the spec, which comes behind `name` where there is none."""
    line = f"{key}: {value}"
    text, count = re.subn(rf"(?m)^{key}:.*$", line, text)
    return text if count else re.sub(r"(?m)^(name:.*)$", rf"\1\n{line}", text)


def _network(size: int) -> str:
    """The chain of blocks: the stem halves an image, and each `down` again until about `LAST_MAP` pixels are left.

    Large maps have no blocks that keep their size: these would take most of the multiply-adds. See `DEEP` for limits
    that allow more.
    """
    halvings = max(1, round(math.log2(size / 2 / LAST_MAP)))
    return f"[stem, {'down, ' * (halvings - 1)}near, down, {SHALLOW}"


def _usual_flops(size: int) -> float:
    """The limit where none is given: 1.5 M of 32 pixels; it grows more slowly than the pixels."""
    return 1.5e6 * math.pow(size / 32, 1.5)


def _fitted(texts: Mapping[str, str], file: str) -> str:
    """The spec as wide as its limit allows, and deeper where that is wide enough; RunError if nothing fits."""
    text, width = _with_width(texts, file)
    if width >= DEEP_FROM and SHALLOW in text:
        text, _ = _with_width({**texts, file: text.replace(SHALLOW, DEEP)}, file)
    return text


def _with_width(texts: Mapping[str, str], file: str) -> tuple[str, int]:
    """The spec with the largest width of which the whole network takes at most `OVER` limits, and that width.

    RunError if even the smallest takes more.
    """
    given = {key for text in texts.values() for key in yaml.safe_load(text)}
    unknown = {key: value for key, value in STAND_INS.items() if key not in given}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            write_text(Path(folder) / name, text)

        def share(width: int) -> float:
            spec, graph = load(Path(folder) / file, overrides_of({"symbols.width": width, **unknown}))
            return budget_share(graph, spec.config.budget)

        fitting = bisect_right(WIDTHS, OVER, key=share)
        if not fitting:
            raise RunError(
                f"the smallest network of this size takes {share(WIDTHS[0]) / OVER:.1f} times what the search may "
                f"begin with\n  try: a larger limit, or a smaller --size"
            )
    width = WIDTHS[fitting - 1]
    return re.sub(r"(?m)^(symbols: {width: )\d+", rf"\g<1>{width}", texts[file]), width
