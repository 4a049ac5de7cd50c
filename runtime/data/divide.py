"""A set without parts divided into training, validation and test: stratified, seeded, near-duplicates on one side.

It must not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.errors import RunError, one_line
from compiler.language.config import DataConfig
from runtime.data.layouts import TEST, TRAIN, VALIDATION
from runtime.rundir.facts import DivisionFacts

PARTS = (TRAIN, VALIDATION, TEST)
_SHOWN = 3  # groups of near-duplicates that are named


@dataclass(frozen=True, eq=False)
class Division:
    """Which part each image is in."""

    rows: dict[str, NDArray[np.int64]]  # by part, of PARTS: numbers of its images, in order
    facts: DivisionFacts
    alike: tuple[tuple[int, ...], ...] = ()  # numbers of images that are near-duplicates of each other

    def says(self, names: Sequence[str]) -> str:
        """For people; `names` are those of all images."""
        counts = ", ".join(f"{part} {len(rows):,}" for part, rows in self.rows.items())
        said = f"divided here (data.split_seed {self.facts.seed}): {counts}"
        if self.alike:
            near = f"{self.facts.near_duplicates:,} images are near-duplicates of others, in {len(self.alike):,} groups"
            groups = [[names[number] for number in group] for group in self.alike]
            said += f"\n  {near} that stay in one part: {said_alike(groups)}"
        return said


def said_alike(groups: Sequence[Sequence[str]]) -> str:
    """Groups of near-duplicates by their names, the first few of many."""
    shown = "; ".join(" = ".join(group[:_SHOWN]) for group in groups[:_SHOWN])
    return one_line(shown) + " ..." * (len(groups) > _SHOWN)


def divide(labels: NDArray[np.int64], same: NDArray[np.int64], config: DataConfig) -> Division:
    """Divide images of classes `labels` (N,); those with one number in `same` (N,) stay together.

    Of every class each part gets its share as nearly as it can; large groups are placed first. RunError if no image is
    left for a part.
    """
    random = np.random.default_rng(config.split_seed)
    shares = np.array([(1 - config.test) * (1 - config.validation), (1 - config.test) * config.validation, config.test])
    owed = np.bincount(labels)[:, None] * shares
    _, group, sizes = np.unique(same, return_inverse=True, return_counts=True)
    drawn = random.permutation(len(sizes))
    turn = np.lexsort((drawn, -sizes))
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    places = np.zeros(len(labels), np.int64)
    for number in turn.tolist():
        rows = members[number]
        needs = owed[labels[rows]].sum(0)
        part = int(needs.argmax())
        places[rows] = part
        np.subtract.at(owed, (labels[rows], part), 1)
    parts = {name: np.flatnonzero(places == place) for place, name in enumerate(PARTS)}
    for name, rows in parts.items():
        if not len(rows):
            raise RunError(
                f"of {len(labels):,} images none is left for {name}, with data.test: {config.test:g}, data.validation: "
                f"{config.validation:g} and {len(sizes):,} images that are no near-duplicates of others\n"
                f"  try: more images, other shares, or data.near_duplicates: null to compare none"
            )
    alike = tuple(tuple(rows.tolist()) for rows in members if len(rows) > 1)
    counted = sum(map(len, alike))
    facts = DivisionFacts(seed=config.split_seed, bits=config.near_duplicates, near_duplicates=counted)
    return Division(parts, facts, alike)
