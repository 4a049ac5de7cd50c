"""Transforms of torchvision for training batches: neighbours in a batch share what is drawn, so that one call changes
several. What is drawn is a function of a key, whatever the device and the number of processes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from runtime.data.augment import Augment

GROUP = 4  # images that share draws: batches are shuffled, so over the epochs every image gets every change
MAGNITUDE = 9  # of RandAugment's operations, of 30

Change = Callable[[Tensor], Tensor]  # of images (n, C, H, W)


def in_groups(images: Tensor, keys: Sequence[int], change: Change) -> Tensor:
    """`change` applied to each run of images (N, C, H, W) with one key of `keys` (N), torch's CPU generator seeded by
    it; the generator is left as it was.
    """
    before, first, parts = torch.random.get_rng_state(), 0, []
    for key, run in groupby(keys):
        count = len(list(run))
        torch.default_generator.manual_seed(key)
        parts.append(change(images[first : first + count]))
        first += count
    torch.random.set_rng_state(before)
    return torch.cat(parts)


def transformed(pixels: Tensor, keys: Sequence[int], augment: Augment) -> Tensor:
    """Pixels (N, H, W, C), uint8 or float32 in 0..255, cropped and changed in operation and colour: the same form."""
    change = _of_pixels(augment, tuple(pixels.shape[1:3]))
    if change is None:
        return pixels
    images, scale = pixels.movedim(-1, 1), 255.0 if pixels.is_floating_point() else 1  # floats are in 0..1 there
    return in_groups(images.div(scale) if scale != 1 else images, keys, change).mul(scale).movedim(1, -1)


def erased(x: Tensor, keys: Sequence[int], chance: float) -> Tensor:
    """Normalised images (N, C, H, W), with this chance a rectangle of them at zero, the mean colour."""
    if not chance:
        return x
    from torchvision.transforms import v2

    return in_groups(x, keys, v2.RandomErasing(chance))


@functools.lru_cache(maxsize=8)
def _of_pixels(augment: Augment, size: tuple[int, int]) -> Change | None:
    from torchvision.transforms import InterpolationMode, v2  # here, because it takes a second to import

    smooth, steps = InterpolationMode.BILINEAR, list[v2.Transform]()
    if augment.resized_crop:
        steps.append(v2.RandomResizedCrop(size, scale=(augment.resized_crop, 1.0), antialias=True))
    if augment.policy == "trivial":
        steps.append(v2.TrivialAugmentWide(interpolation=smooth))
    if augment.policy == "rand":
        steps.append(v2.RandAugment(magnitude=MAGNITUDE, interpolation=smooth))
    if share := augment.colour_jitter:
        steps.append(v2.ColorJitter(share, share, share))
    return v2.Compose(steps) if steps else None
