"""Data for search and retrain: a data set checked against the spec, and loaders whose batches can be made again.

Which images a batch holds and how they are augmented is a pure function of (seed, purpose, epoch, batch number), so a
job resumes at any batch without saved loader state, and many processes cut their slices out of the same global batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from compiler.errors import RunError
from compiler.language.config import DataConfig, RetrainConfig
from runtime.data.augment import NO_AUGMENTATION, Augment, Draws, Normalise, crop_and_flip, draw, joined, to_float
from runtime.data.named_sets import Opened, Shape, open_dataset
from runtime.data.sources import Fetched, FileImages, Images, MemoryImages, Request, pushed
from runtime.data.split import Split, balanced_order, split_images
from runtime.data.transforms import GROUP, erased, transformed
from runtime.seeds import generator, mix
from runtime.tasks.base import Task
from runtime.training.free_memory import available_memory


@dataclass(frozen=True)
class Share:
    """Where batches go: a device, and which of how many processes that share each of them."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009  a device is a value
    rank: int = 0
    world_size: int = 1


HERE = Share()

_Part = tuple[int, int, int]  # number of a batch, first and end of this process's images among all of the epoch
SMALL = 2**18  # bytes of pixels: calling torch for fewer takes longer than what it computes
_STATISTICS_SAMPLE = 4096  # images of a streamed set that mean and standard deviation are computed on
_STATISTICS_CHUNK = 512


@dataclass(frozen=True)
class Loader:
    """Batches of the images `rows` of a set.

    A training loader shuffles (or draws, see `strata`) anew each epoch, augments, and with `drop_last` drops the last
    incomplete batch unless it is the only one; one of a single image, of which batch norm makes nothing, it always
    drops. Any other gives every image once, in the order of `rows`, unchanged. Each process gets
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
    augment: Augment = NO_AUGMENTATION  # of training
    place: Share = HERE
    strata: Tensor | None = None  # (N,) int64 of all images: an epoch has as many of each; None: every image once
    drop_last: bool = True  # of training
    at_once: int = 0  # batches that are cropped and flipped together; 0: see `fitting`

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise RunError(f"there are no images for {self.purpose}")
        size = self.place.world_size
        uneven = [count for count in (self._size(0), self._size(len(self) - 1)) if count % size]
        if self.training and uneven:
            raise RunError(
                f"{self.purpose}: a batch of {uneven[0]} images cannot be shared evenly by {size} processes; "
                f"make batch_size a multiple of {size} (there are {len(self.rows)} images)"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(len(self.rows), self.batch_size)
        is_dropped = rest == 1 or self.drop_last if self.training else rest == 0
        return max(1, whole) if is_dropped else whole + (rest > 0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches number `start` and on of this epoch, both counted from 0.

        Yields x: (N, C, H, W) or (N, C, T) float32, normalised, channels-last, and the targets y: (N, ...), both on
        the device.
        """
        order = self._order(epoch)
        mine = ((batch, *self._slice(batch)) for batch in range(start, len(self)))
        plan = [(batch, first, end) for batch, first, end in mine if first < end]
        together = self.at_once or self.fitting()
        chunks = [plan[n : n + together] for n in range(0, len(plan), together)]
        requests = (self._request(order, epoch, chunk) for chunk in chunks)
        for chunk, fetched in zip(chunks, self.images.fetch(requests, self.place.device), strict=True):
            if len(fetched.rows):
                yield from self._finished(fetched, order, epoch, chunk)
            elif self.training:
                raise RunError("every image of a batch is unreadable: mend or remove the files, or use a larger batch")

    def fitting(self) -> int:
        """Batches to crop and flip together: on a GPU as many as take a quarter of its free memory, else `SMALL`."""
        images, device = self.images, self.place.device
        if not self.training or not isinstance(images, MemoryImages):
            return 1
        one = images.images[0]
        if device.type == "cpu":
            return max(1, SMALL // (one.nbytes * self.batch_size))
        free = available_memory(device)
        needed = 16 * one[0].numel() + 4 * one.nbytes  # of an image: where its pixels come from, and copies of them
        return max(1, (free or 0) // (4 * needed * self.batch_size)) if images.lie_on(device) else 1

    def _order(self, epoch: int) -> Tensor:
        if not self.training:
            return self.rows
        random = generator(self.seed, f"{self.purpose} order", epoch)
        if self.strata is not None:
            return self.rows[balanced_order(self.strata[self.rows], random)]
        return self.rows[torch.randperm(len(self.rows), generator=random)]

    def _slice(self, batch: int) -> tuple[int, int]:
        """First and end of this process's images among all of the epoch."""
        first, size, place = batch * self.batch_size, self._size(batch), self.place
        return first + size * place.rank // place.world_size, first + size * (place.rank + 1) // place.world_size

    def _size(self, batch: int) -> int:
        """Images of a global batch."""
        return min(self.batch_size, len(self.rows) - batch * self.batch_size)

    def _request(self, order: Tensor, epoch: int, chunk: Sequence[_Part]) -> Request:
        rows = torch.cat([order[first:end] for _, first, end in chunk])
        if not (self.training and self.images.random_parts):
            return Request(rows)
        places = (place for _, first, end in chunk for place in range(first, end))
        return Request(rows, tuple(mix(self.seed, f"{self.purpose} image", epoch, place) for place in places))

    def _finished(
        self, fetched: Fetched, order: Tensor, epoch: int, chunk: Sequence[_Part]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a chunk, cropped and flipped together; of images that are decoded anew it is a single one."""
        device, padding = self.place.device, self.augment.crop_padding
        rows = torch.cat([order[first:end] for _, first, end in chunk])
        draws = joined([self._draws(epoch, *part) for part in chunk])
        places = torch.cat([torch.arange(first, end) - batch * self.batch_size for batch, first, end in chunk])
        ends = [*accumulate(end - first for _, first, end in chunk)]
        if fetched.kept is not None:
            rows, draws, places = rows[fetched.kept], draws.take(fetched.kept), places[fetched.kept]
            ends = [len(rows)]
        draws = draws.to(device)
        pixels = crop_and_flip(fetched.pixels, fetched.rows, padding, draws)
        targets = pushed(self.images.targets[rows], device)
        for (batch, *_), first, end in zip(chunk, [0, *ends], ends, strict=False):
            own = slice(first, end)
            yield self._changed(pixels[own], draws.take(own), places[own], epoch, batch), targets[own]

    def _draws(self, epoch: int, batch: int, first: int, end: int) -> Draws:
        """Drawn for the global batch, so that each image's draws do not depend on the number of processes."""
        random = generator(self.seed, f"{self.purpose} augmentation", epoch, batch)
        height, width = (1, *self.images.size)[-2:]
        offset = batch * self.batch_size
        return draw(self.augment, self._size(batch), height, width, random).take(slice(first - offset, end - offset))

    def _changed(self, pixels: Tensor, draws: Draws, places: Tensor, epoch: int, batch: int) -> Tensor:
        """Pixels of a batch as what a network reads, after the changes that are not made for many batches together."""
        augment = self.augment
        if not augment.transforms:
            return to_float(pixels, self.normalise, draws, augment.cutout)
        groups = (places // GROUP).tolist()
        keys, more = (
            [mix(self.seed, f"{self.purpose} {what}", epoch, batch, group) for group in groups]
            for what in ("transforms", "erasing")
        )
        x = to_float(transformed(pixels, keys, augment), self.normalise, draws, augment.cutout)
        return erased(x, more, augment.erasing)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(Opened):
    """A data set that fits the spec, with what is needed to make loaders of it."""

    config: DataConfig
    task: Task  # what its targets are for
    normalise: Normalise
    seed: int
    augment: Augment = NO_AUGMENTATION  # of training batches
    white: float = 0.0  # the largest value of images of more than 8 bits; 0: none is

    @property
    def skipped(self) -> dict[str, str]:
        """Unreadable images left out so far: path -> reason."""
        return self.train.skipped | self.test.skipped

    def split(self, weight_part: float) -> Split:
        """The training images divided for search; `.training` of it for retraining."""
        targets = self.train.targets
        strata, share = self.task.strata(targets), self.config.validation
        return split_images(targets, strata, weight_part, share, self.seed, self.held)

    def training_loader(
        self, rows: Tensor, batch_size: int, purpose: str, place: Share = HERE, augment: Augment | None = None
    ) -> Loader:
        """Shuffled batches of these training images, augmented as `data` says where `augment` is None; see `Loader`."""
        return Loader(
            self.train,
            rows,
            self.normalise,
            batch_size,
            training=True,
            purpose=purpose,
            seed=self.seed,
            augment=self.augment if augment is None else augment,
            place=place,
            strata=self.task.strata(self.train.targets) if self.config.sampling == "balanced" else None,
            drop_last=self.config.drop_last,
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
        **vars(opened),
        config=config,
        augment=augment_of(config, input_shape[0]),
        task=task.fitted(opened.train.targets, opened.labels),
        normalise=Normalise(mean, std),
        seed=seed,
        white=(opened.train.found + opened.test.found).white,
    )


def augment_of(config: DataConfig, channels: int) -> Augment:
    """What training images get by the section `data`; those of ImageNet always flips and noise, as fb.resnet.torch."""
    streamed = config.name == "imagenet"
    same = config.model_dump(include={"crop_padding", "resized_crop", "colour_jitter", "erasing"})
    return Augment(flip=config.flip or streamed, lighting=streamed and channels == 3, policy=config.augment, **same)


def retraining(augment: Augment, config: RetrainConfig) -> Augment:
    """What becomes of the augmentation of a set while retraining."""
    return replace(augment, cutout=config.cutout, policy=config.augment or augment.policy)


def channel_statistics(images: Images, rows: Tensor, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in 0..1, from exact counts of the 256 values; of more than 8 bits, from
    counts of 65,536.

    A channel that never changes gets a deviation of 1, because there is nothing to scale.
    """
    if isinstance(images, FileImages):
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
