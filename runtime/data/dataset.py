"""Data for search and retrain: a data set checked against the spec, and loaders whose batches can be made again.

Which images a batch holds and how they are augmented is a pure function of (seed, purpose, epoch, batch number), so a
job resumes at any batch without saved loader state, and many processes cut their slices out of the same global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data.augment import NO_AUGMENTATION, Augment, Normalise, crop_and_flip, draw, to_float
from runtime.data.named_sets import Opened, Shape, open_dataset
from runtime.data.sources import Fetched, Images, Request
from runtime.data.split import Split, balanced_order, split_images
from runtime.data.transforms import GROUP, erased, transformed
from runtime.seeds import generator, mix
from runtime.tasks.base import Task


@dataclass(frozen=True)
class Share:
    """Where batches go: a device, and which of how many processes that share each of them."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009  a device is a value
    rank: int = 0
    world_size: int = 1


HERE = Share()

_STATISTICS_SAMPLE = 4096  # images of a streamed set that mean and standard deviation are computed on
_STATISTICS_CHUNK = 512


@dataclass(frozen=True)
class Loader:
    """Batches of the images `rows` of a set.

    A training loader shuffles (or draws, see `strata`) anew each epoch, augments, and drops the last incomplete batch
    unless it is the only one. Any other gives every image once, in the order of `rows`, unchanged. Each process gets
    its slice of every global batch: in training equal ones (RunError where they cannot be), otherwise they may differ
    by one image.
    """

    images: Images
    rows: Tensor  # (N,) int64
    normalise: Normalise
    batch_size: int  # of the global batch
    training: bool
    purpose: str = "evaluation"  # loaders of one seed with different purposes shuffle and augment differently
    seed: int = 0
    augment: Augment = NO_AUGMENTATION
    place: Share = HERE
    strata: Tensor | None = None  # (N,) int64 of all images: an epoch has as many of each; None: every image once

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise RunError(f"there are no images for {self.purpose}")
        batch, size = min(self.batch_size, len(self.rows)), self.place.world_size
        if self.training and batch % size:
            raise RunError(
                f"{self.purpose}: a batch of {batch} images cannot be shared evenly by {size} processes; "
                f"make batch_size a multiple of {size} (there are {len(self.rows)} images)"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        if self.training:
            return max(1, len(self.rows) // self.batch_size)
        return -(-len(self.rows) // self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches number `start` and on of this epoch, both counted from 0.

        Yields x: (N, C, H, W) or (N, C, T) float32, normalised, channels-last, and the targets y: (N, ...), both on
        the device.
        """
        order = self._order(epoch)
        mine = ((batch, *self._slice(batch)) for batch in range(start, len(self)))
        plan = [(batch, first, end) for batch, first, end in mine if first < end]
        requests = (self._request(order, epoch, *step) for step in plan)
        for step, fetched in zip(plan, self.images.fetch(requests, self.place.device), strict=True):
            if len(fetched.rows):
                yield self._finish(fetched, order, epoch, *step)
            elif self.training:
                raise RunError("every image of a batch is unreadable: mend or remove the files, or use a larger batch")

    def _order(self, epoch: int) -> Tensor:
        if not self.training:
            return self.rows
        random = generator(self.seed, f"{self.purpose} order", epoch)
        if self.strata is not None:
            return self.rows[balanced_order(self.strata[self.rows], random)]
        return self.rows[torch.randperm(len(self.rows), generator=random)]

    def _slice(self, batch: int) -> tuple[int, int]:
        """First and end of this process's images among all of the epoch."""
        first = batch * self.batch_size
        size, place = min(self.batch_size, len(self.rows) - first), self.place
        return first + size * place.rank // place.world_size, first + size * (place.rank + 1) // place.world_size

    def _request(self, order: Tensor, epoch: int, batch: int, first: int, end: int) -> Request:
        if not (self.training and self.images.random_parts):
            return Request(order[first:end])
        keys = (mix(self.seed, f"{self.purpose} image", epoch, place) for place in range(first, end))
        return Request(order[first:end], tuple(keys))

    def _finish(
        self, fetched: Fetched, order: Tensor, epoch: int, batch: int, first: int, end: int
    ) -> tuple[Tensor, Tensor]:
        rows = order[first:end]
        augment = self.augment if self.training else NO_AUGMENTATION
        # Drawn for the global batch, so that each image's draws do not depend on the number of processes.
        size = min(self.batch_size, len(order) - batch * self.batch_size)
        random = generator(self.seed, f"{self.purpose} augmentation", epoch, batch)
        height, width = (1, *self.images.size)[-2:]
        draws = draw(augment, size, height, width, random)
        offset = batch * self.batch_size
        draws = draws.take(slice(first - offset, end - offset))
        places = torch.arange(first - offset, end - offset)
        if fetched.kept is not None:
            rows, draws, places = rows[fetched.kept], draws.take(fetched.kept), places[fetched.kept]
        draws = draws.to(self.place.device)
        pixels = crop_and_flip(fetched.pixels, fetched.rows, augment.crop_padding, draws)
        targets = self.images.targets[rows].to(self.place.device, non_blocking=True)
        if not augment.transforms:
            return to_float(pixels, self.normalise, draws, augment.cutout), targets
        groups = (places // GROUP).tolist()
        keys, more = (
            [mix(self.seed, f"{self.purpose} {what}", epoch, batch, group) for group in groups]
            for what in ("transforms", "erasing")
        )
        x = to_float(transformed(pixels, keys, augment), self.normalise, draws, augment.cutout)
        return erased(x, more, augment.erasing), targets


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(Opened):
    """A data set that fits the spec, with what is needed to make loaders of it."""

    name: str
    task: Task  # what its targets are for
    normalise: Normalise
    seed: int
    validation_share: float
    balanced: bool = False  # whether training has as many images of every class
    white: float = 0.0  # the largest value of images of more than 8 bits; 0: none is

    @property
    def skipped(self) -> dict[str, str]:
        """Unreadable images left out so far: path -> reason."""
        return self.train.skipped | self.test.skipped

    def split(self, weight_part: float) -> Split:
        """The training images divided for search; `.training` of it for retraining."""
        targets = self.train.targets
        strata, share = self.task.strata(targets), self.validation_share
        return split_images(targets, strata, weight_part, share, self.seed, self.held)

    def training_loader(
        self, rows: Tensor, batch_size: int, purpose: str, place: Share = HERE, *, cutout: int = 0
    ) -> Loader:
        """Shuffled, augmented batches of these training images; see `Loader`."""
        return Loader(
            self.train,
            rows,
            self.normalise,
            batch_size,
            training=True,
            purpose=purpose,
            seed=self.seed,
            augment=replace(self.augment, cutout=cutout),
            place=place,
            strata=self.task.strata(self.train.targets) if self.balanced else None,
        )

    def evaluation_loader(self, rows: Tensor | None, batch_size: int, place: Share = HERE) -> Loader:
        """Unchanged batches of these training images (the validation part), or of the test images where None."""
        images = self.train if rows is not None else self.test
        chosen = rows if rows is not None else torch.arange(len(self.test.targets))
        return Loader(images, chosen, self.normalise, batch_size, training=False, place=place)


def load_dataset(config: DataConfig, input_shape: Shape, task: Task, *, seed: int, trust_code: bool = False) -> Dataset:
    """Open the data set, check it against the spec and compute what normalisation needs.

    `input_shape` is (C, H, W) or (C, T). Mean and deviation are those of the training images outside the validation
    part (of a seeded sample where images are streamed), unless the configuration gives them. Raises RunError when the
    set is missing, damaged or does not fit, or when it is code and `trust_code` is false.
    """
    opened = open_dataset(config, input_shape, task, seed=seed, trust_code=trust_code)
    mean, std = config.mean, config.std
    if mean is None or std is None:
        # The parts for weights and gates together do not depend on how they share the images.
        targets = opened.train.targets
        training = split_images(targets, task.strata(targets), 0.5, config.validation, seed, opened.held).training
        own_mean, own_std = channel_statistics(opened.train, training, seed)
        mean, std = mean or own_mean, std or own_std
    return Dataset(
        **vars(opened) | {"augment": augment_of(config, opened.augment)},
        name=config.name,
        task=task.fitted(opened.train.targets, opened.labels),
        normalise=Normalise(mean, std),
        seed=seed,
        validation_share=config.validation,
        balanced=config.sampling == "balanced",
        white=(opened.train.found + opened.test.found).white,
    )


def augment_of(config: DataConfig, own: Augment) -> Augment:
    """What training images get by the section `data`, besides what the set always gets."""
    return replace(
        own,
        crop_padding=config.crop_padding,
        flip=config.flip or own.flip,
        resized_crop=config.resized_crop,
        policy=config.augment,
        colour_jitter=config.colour_jitter,
        erasing=config.erasing,
    )


def channel_statistics(images: Images, rows: Tensor, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in 0..1, from exact counts of the 256 values; of more than 8 bits, from
    counts of 65,536.

    A channel that never changes gets a deviation of 1, because there is nothing to scale.
    """
    if images.streams:
        sample = torch.randperm(len(rows), generator=generator(seed, "statistics sample"))
        rows = rows[sample[:_STATISTICS_SAMPLE]]
    requests = (Request(chunk) for chunk in torch.split(rows, _STATISTICS_CHUNK))
    counts = dict.fromkeys((256, 65_536), torch.zeros(()))
    for fetched in images.fetch(requests, HERE.device):
        pixels = fetched.pixels.index_select(0, fetched.rows)
        levels, numbers = (65_536, (pixels * 257).round().int()) if pixels.is_floating_point() else (256, pixels)
        by_channel = numbers.view(-1, pixels.shape[-1]).T.contiguous()
        chunk = torch.stack([torch.bincount(channel, minlength=levels) for channel in by_channel])
        counts[levels] = counts[levels] + chunk
    if (found := counts[65_536]).ndim:
        found[:, ::257] += counts[256]
    found = found if found.ndim else counts[256]
    values = torch.arange(found.shape[1], dtype=torch.float64) / (found.shape[1] - 1)
    shares = found / found.sum(dim=1, keepdim=True).double()
    mean = shares @ values
    deviation = (shares * (values - mean[:, None]) ** 2).sum(dim=1).sqrt()
    return tuple(mean.tolist()), tuple(d if d > 0 else 1.0 for d in deviation.tolist())
