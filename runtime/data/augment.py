"""Augmentation and normalisation of whole batches on the device, with all random choices drawn beforehand on the CPU.

Pixels travel as uint8, or float32 in 0..255, (N, H, W, C) and leave as float32 (N, C, H, W) in channels-last memory;
signals, (N, T, C) and (N, C, T), are normalised only. Drawing and applying are apart, so that choices are the same on
every device and can be drawn for the global batch of many processes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.data.sources import pushed

# Eigenvectors of the RGB covariance of ImageNet times the roots of its eigenvalues, columns by component: the colour
# noise of fb.resnet.torch, which scales them by N(0, 0.1) per image (Krizhevsky et al. 2012, section 4.1).
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_LIGHTING_DEVIATION = 0.1


@dataclass(frozen=True, slots=True)
class Augment:
    """Which random changes a training batch gets; the default is none."""

    crop_padding: int = 0  # pad with black by this many pixels, then crop at random to the original size
    flip: bool = False  # mirror left to right with probability one half
    cutout: int = 0  # side of the square set to the mean colour, its centre anywhere in the image (DeVries 2017)
    lighting: bool = False  # fb.resnet's colour noise; RGB images only
    resized_crop: float = 0.0  # least share of the area that is cropped and scaled; this and the rest by torchvision
    policy: str = "none"  # trivial: TrivialAugment, rand: RandAugment
    colour_jitter: float = 0.0  # largest share by which brightness, contrast and saturation change
    erasing: float = 0.0  # chance of a rectangle of the mean colour

    @property
    def transforms(self) -> bool:
        """Whether torchvision's transforms have a part in it."""
        return bool(self.resized_crop or self.policy != "none" or self.colour_jitter or self.erasing)


NO_AUGMENTATION = Augment()


@dataclass(frozen=True, slots=True)
class Normalise:
    """Mean and standard deviation per channel, of pixels scaled to 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Draws(NamedTuple):
    """The random choices of one batch of N images; None where the augmentation does not ask for them."""

    offset: Tensor | None = None  # (N, 2) int64: top and left of the crop in the padded image
    flip: Tensor | None = None  # (N,) bool
    centre: Tensor | None = None  # (N, 2) int64: row and column of the centre of the cut-out square
    shift: Tensor | None = None  # (N, 3) float32: added to each channel of pixels in 0..1

    def take(self, rows: slice | Tensor) -> Draws:
        """The choices of these images only."""
        return Draws(*(None if x is None else x[rows] for x in self))

    def to(self, device: torch.device) -> Draws:
        """The same choices on another device, without waiting for what it is doing."""
        return Draws(*(None if x is None else pushed(x, device) for x in self))


def joined(draws: Sequence[Draws]) -> Draws:
    """The choices of several batches, one after the other."""
    each = ([x for x in field if x is not None] for field in zip(*draws, strict=True))
    return Draws(*(torch.cat(found) if found else None for found in each))


def draw(augment: Augment, count: int, height: int, width: int, generator: torch.Generator) -> Draws:
    """Choices for `count` images of height x width, always drawn in the order of the fields of `Draws`."""

    def uniform(bound_y: int, bound_x: int) -> Tensor:
        bounds = torch.tensor([bound_y, bound_x], dtype=torch.float64)
        return (torch.rand(count, 2, generator=generator, dtype=torch.float64) * bounds).long()

    span = 2 * augment.crop_padding + 1
    return Draws(
        offset=uniform(span, span) if augment.crop_padding else None,
        flip=torch.rand(count, generator=generator) < 0.5 if augment.flip else None,
        centre=uniform(height, width) if augment.cutout else None,
        shift=_lighting(count, generator) if augment.lighting else None,
    )


def _lighting(count: int, generator: torch.Generator) -> Tensor:
    strengths = torch.randn(count, 3, generator=generator) * _LIGHTING_DEVIATION
    return (strengths * torch.tensor(_EIGENVALUES)) @ torch.tensor(_EIGENVECTORS).T


def crop_and_flip(pixels: Tensor, rows: Tensor, padding: int, draws: Draws) -> Tensor:
    """Pick images `rows` (N,) out of pixels (M, H, W, C), each moved and mirrored by its draws: (N, H, W, C).

    Pixels from outside the image are black. One gather does the picking, the crop and the flip.
    """
    if draws.offset is None and draws.flip is None:
        return pixels.index_select(0, rows)
    total, height, width, channels = pixels.shape
    count, device = len(rows), pixels.device
    ys = torch.arange(height, device=device).expand(count, -1)
    xs = torch.arange(width, device=device).expand(count, -1)
    if draws.flip is not None:
        xs = torch.where(draws.flip[:, None], width - 1 - xs, xs)
    if draws.offset is not None:
        ys = ys + draws.offset[:, :1] - padding
        xs = xs + draws.offset[:, 1:] - padding
    lines = (rows[:, None] * height + ys.clamp(0, height - 1)) * width
    where = lines[:, :, None] + xs.clamp(0, width - 1)[:, None, :]
    flat = pixels.view(total * height * width, channels)
    picked = flat.index_select(0, where.view(-1)).view(count, height, width, channels)
    if draws.offset is not None:
        inside = _rectangle(_inside(ys, height), _inside(xs, width), channels, torch.uint8)
        picked.view(count, height, width * channels).mul_(inside)
    return picked


def _inside(positions: Tensor, size: int) -> Tensor:
    return (positions >= 0) & (positions < size)


def to_float(pixels: Tensor, normalise: Normalise, draws: Draws, cutout: int) -> Tensor:
    """Normalise pixels (N, H, W, C) or (N, T, C) in 0..255, add the colour shift and cut out: float32, channels second.

    In memory the channels stay last.
    """
    count, *sizes, channels = pixels.shape
    height, width = (1, *sizes)[-2:]
    scale, bias = _scale_and_bias(normalise, width, pixels.device)
    lines = pixels.reshape(count, height, width * channels).float()
    lines = torch.addcmul(bias, lines, scale)
    if draws.shift is not None:
        lines += (draws.shift * scale[:channels] * 255.0).repeat(1, width)[:, None, :]
    if draws.centre is not None:
        lines.mul_(1.0 - _square(draws.centre, cutout, height, width, channels))
    return lines.view(count, *sizes, channels).movedim(-1, 1)


@functools.lru_cache(maxsize=32)
def _scale_and_bias(normalise: Normalise, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand for pixel values, (width * channels,): repeated along a line of the image, so that the inner
    loop of the addition runs over width * channels values and not over 3. Kept, because a copy to a GPU waits for it.
    """
    mean = torch.tensor(normalise.mean, dtype=torch.float64)
    std = torch.tensor(normalise.std, dtype=torch.float64)
    scale, bias = 1.0 / (255.0 * std), -mean / std
    return scale.float().repeat(width).to(device), bias.float().repeat(width).to(device)


def _rectangle(ys: Tensor, xs: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """One inside and zero outside the lines ys (N, H) bool and columns xs (N, W) bool: (N, H, W * C).

    Numbers and whole lines, because torch's loops over booleans, or over 3 channels at a time, are not vectorised.
    """
    count, width = xs.shape
    columns = xs.to(dtype)[:, :, None].expand(count, width, channels).reshape(count, 1, width * channels)
    return ys.to(dtype)[:, :, None] * columns


def _square(centre: Tensor, side: int, height: int, width: int, channels: int) -> Tensor:
    """(N, H, W * C) float32, one inside each image's square; what lies beyond the border is lost."""
    first = centre - side // 2

    def span(axis: int, size: int) -> Tensor:
        distance = torch.arange(size, device=centre.device) - first[:, axis : axis + 1]
        return _inside(distance, side)

    return _rectangle(span(0, height), span(1, width), channels, torch.float32)
