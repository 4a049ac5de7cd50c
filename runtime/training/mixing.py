"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): training images blended with others of their batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compiler.language.config import RetrainConfig
from runtime.data.sources import pushed
from runtime.processes.world import World
from runtime.seeds import mix
from runtime.tasks.base import Task
from runtime.training.step import Batch


@dataclass(frozen=True)
class Mixing:
    """Blends each image with its neighbour: the first with the second and back, the third with the fourth.

    What is drawn is a function of seed, epoch and step, for the whole batch of all processes; of an odd number of
    images in a process the last stays as it is.
    """

    task: Task
    config: RetrainConfig
    seed: int
    world: World

    def __call__(self, batch: Batch, epoch: int, step: int) -> Batch:
        """The batch, images x: (N, C, H, W) or (N, C, T), blended, with the task's `shares` as targets (N, ...)."""
        config, (x, y) = self.config, batch
        if not (config.mixup or config.cutmix):
            return batch
        count, whole, device = len(x), len(x) * self.world.size, x.device
        random = np.random.default_rng(mix(self.seed, "retrain mixing", epoch, step))
        cuts = random.random(whole) < (0.5 if config.mixup else 1.0) if config.cutmix else np.zeros(whole, bool)
        own = np.where(cuts, _drawn(random, config.cutmix, whole), _drawn(random, config.mixup, whole))
        centres = random.random((whole, 2))
        mine = slice(self.world.rank * count, (self.world.rank + 1) * count)
        kept = _kept(own[mine], centres[mine], cuts[mine], (1, *x.shape[2:])[-2:])
        kept = pushed(kept, device)
        partner = torch.arange(count, device=device) ^ 1
        partner.clamp_(max=count - 1)  # the last of an odd number is its own
        pixels, shares = x.movedim(1, -1), self.task.shares(y)  # in the order they have in memory
        weight = kept.flatten(1).mean(1).view(-1, *[1] * (shares.ndim - 1))
        kept = kept if x.ndim == 4 else kept[:, 0]
        blended = torch.lerp(pixels[partner], pixels, kept.to(x.dtype)).movedim(-1, 1)
        return blended, torch.lerp(shares[partner], shares, weight)


def _drawn(random: np.random.Generator, alpha: float, count: int) -> np.ndarray:
    return random.beta(alpha, alpha, count) if alpha else np.ones(count)


def _kept(own: np.ndarray, centres: np.ndarray, cuts: np.ndarray, size: tuple[int, ...]) -> Tensor:
    """(N, H, W, 1) float32: how much of each pixel is the image's own.

    `own` (N,) is the share of the image, `centres` (N, 2) in 0..1 that of the rectangle of those of which `cuts` (N,)
    says so; it has the shape of the image and ends at its border.
    """
    inside = np.ones((len(own), 1, 1), bool)
    for axis, length in enumerate(size):
        half = 0.5 * length * np.sqrt(1 - own)[:, None]
        place, centre = np.arange(length) + 0.5, length * centres[:, axis, None]
        span = np.abs(place - centre) < half
        inside = inside & (span[:, :, None] if axis == 0 else span[:, None, :])
    kept = np.where(cuts[:, None, None], ~inside, own[:, None, None]).astype(np.float32)
    return torch.from_numpy(kept)[..., None]
