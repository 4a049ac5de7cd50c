"""Dividing the training images into parts for weights, gates and validation, stratified as the task says.

A pure function of targets, fractions and seed. Test images are never touched here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compiler.errors import RunError
from runtime.seeds import generator


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Numbers of the training images in each part: sorted int64 tensors that share no number and miss none."""

    weights: Tensor
    gates: Tensor
    validation: Tensor
    digest: str  # SHA-256 over the parts and the targets: changes when the split or the order of the data does

    @property
    def training(self) -> Tensor:
        """All images but the validation part, for training without gates."""
        return torch.cat((self.weights, self.gates)).sort().values

    def tensors(self) -> dict[str, Tensor]:
        """The parts by name, to be saved."""
        return {"weights": self.weights, "gates": self.gates, "validation": self.validation}


def stratified_order(labels: Tensor, random: torch.Generator) -> Tensor:
    """A random order of all images in which every run of neighbours holds the classes in proportion.

    `labels` (N,) int64 gives an (N,) int64 permutation. Number k of a class of n images is placed at (k + u) / n of the
    way, u drawn from 0..1 per class: one value for all would put the only image of every rare class at the same place.
    """
    shuffled = torch.randperm(len(labels), generator=random).numpy()
    by_class = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    _, first, counts = np.unique(labels.numpy()[by_class], return_index=True, return_counts=True)
    number = np.arange(len(labels)) - np.repeat(first, counts)
    start = torch.rand(len(counts), generator=random, dtype=torch.float64).numpy()
    place = (number + np.repeat(start, counts)) / np.repeat(counts, counts)
    return torch.from_numpy(by_class[np.argsort(place, kind="stable")].astype(np.int64))


def balanced_order(labels: Tensor, random: torch.Generator) -> Tensor:
    """As many places as there are images, `labels` (N,) int64 -> (N,) int64, in random order, shared evenly by classes.

    An image comes again only after all others of its class.
    """
    classes, count = torch.unique(labels), len(labels)
    least, more = divmod(count, len(classes))
    first = set(torch.randperm(len(classes), generator=random)[:more].tolist())
    picked = []
    for place, label in enumerate(classes):
        rows, wanted = torch.nonzero(labels == label).flatten(), least + (place in first)
        rounds = [rows[torch.randperm(len(rows), generator=random)] for _ in range(-(-wanted // len(rows)))]
        picked += [torch.cat([rows[:0], *rounds])[:wanted]]
    return torch.cat(picked)[torch.randperm(count, generator=random)]


def split_images(
    targets: Tensor,
    strata: Tensor | None,
    weight_part: float,
    validation: float,
    seed: int,
    held: Tensor | None = None,
) -> Split:
    """Hold out `validation` of the images, give `weight_part` of the rest to the weights and what remains to the gates.

    `targets`: (N, ...); every part holds the numbers of `strata`, (N,) int64, in proportion. The validation part does
    not depend on `weight_part`; `held`, (N,) bool, says which images it is where the set says so. Raises RunError when
    a part is empty.
    """
    if strata is None:
        strata = torch.zeros(len(targets), dtype=torch.int64)
    order = stratified_order(strata, generator(seed, "split"))
    held_out = round(validation * len(order))
    if held is not None:
        order, held_out = torch.cat((order[held[order]], order[~held[order]])), int(held.sum())
    for_weights = round(weight_part * (len(order) - held_out))
    sizes = {"validation": held_out, "weights": for_weights, "gates": len(order) - held_out - for_weights}
    for name, size in sizes.items():
        if size == 0:
            raise RunError(
                f"the {name} part of {len(order)} training images would be empty with data.validation: {validation:g} "
                f"and search.weight_part: {weight_part:g}; change them or use more images"
            )
    parts = {
        name: part.sort().values for name, part in zip(sizes, torch.split(order, list(sizes.values())), strict=True)
    }
    return Split(parts["weights"], parts["gates"], parts["validation"], _digest(parts, targets))


def _digest(parts: dict[str, Tensor], targets: Tensor) -> str:
    hashed = hashlib.sha256()
    for name, numbers in sorted({**parts, "labels": targets}.items()):
        hashed.update(f"{name}:{len(numbers)}:".encode())
        array = numbers.numpy()
        hashed.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return hashed.hexdigest()
