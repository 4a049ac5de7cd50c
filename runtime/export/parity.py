"""Whether an ONNX file computes what the torch network does: outputs side by side, and metrics on the test images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compiler.errors import RunError
from runtime.data.augment import Draws, Normalise, to_float
from runtime.data.dataset import HERE, Dataset
from runtime.data.pixels import as_raw
from runtime.data.sources import Images, Request
from runtime.inference import usual_batch
from runtime.seeds import generator
from runtime.tasks.base import Task
from runtime.training.step import added

Array = NDArray[Any]
Network = Callable[[Array], Array]  # images in the model's own type and layout -> outputs (N, ...)
Reference = Callable[[Tensor], Array]  # x: (N, C, H, W) float32, normalised -> outputs (N, ...)
Layout = Literal["none", "nchw", "nhwc"]
Kind = Literal["uint8", "uint16", "float32"]

BATCHES = (1, 2, 7, 64)
CONSTANT = 1e-6  # outputs that differ by less, relative to the largest, are the rounding of one number


@dataclass(frozen=True)
class ImageForm:
    """What the ONNX model takes: normalised float32 images (N, C, H, W) for `none`, else raw ones in that layout."""

    layout: Layout
    normalise: Normalise
    kind: Kind = "uint8"  # of raw images
    white: float = 255.0  # their largest value

    @classmethod
    def of(cls, layout: Layout, normalise: Normalise, white: float) -> ImageForm:
        """Raw images as the files have them, whose largest value is `white`; 0: of bytes."""
        if not white:
            return cls(layout, normalise)
        return cls(layout, normalise, "uint16" if 255 < white <= 65535 else "float32", white)

    @property
    def input_kind(self) -> Kind:
        """The type of the model's input."""
        return "float32" if self.layout == "none" else self.kind

    def both(self, pixels: Tensor) -> tuple[Tensor, Array]:
        """What the torch network reads and what the ONNX model reads, of raw pixels (N, ..., C) in 0..255."""
        if self.layout == "none":
            x = to_float(pixels, self.normalise, Draws(), 0).contiguous()
            return x, x.numpy()
        raw = as_raw(pixels.numpy(), self.kind, self.white)
        seen = torch.from_numpy((raw * (255 / self.white)).astype(np.float32))  # rounded as the model sees them
        x = to_float(seen, self.normalise, Draws(), 0).contiguous()
        return x, raw if self.layout == "nhwc" else np.ascontiguousarray(np.moveaxis(raw, -1, 1))

    def random(self, count: int, shape: tuple[int, ...], seed: int) -> tuple[Tensor, Array]:
        """As `both`, of random images of this shape (C, ...): normal where they come normalised, else any numbers."""
        random = generator(seed, "parity images", count)
        if self.layout == "none":
            x = torch.randn(count, *shape, generator=random)
            return x, x.numpy()
        sizes = (count, *shape[1:], shape[0])
        if self.kind != "uint8":
            return self.both(torch.rand(sizes, generator=random) * 255)
        return self.both(torch.randint(0, 256, sizes, generator=random, dtype=torch.uint8))


HEADS: Mapping[str, Callable[[Tensor], Tensor]] = {"softmax": lambda x: x.softmax(1), "sigmoid": torch.sigmoid}
"""What stands behind the network where probabilities are asked for, by the names of `runtime.tasks.base.Task.head`."""


def reference(module: nn.Module, head: str | None) -> Reference:
    """The torch network as the ONNX file promises to compute it; the module is put into evaluation mode."""
    module.eval().to(memory_format=torch.channels_last)

    def outputs(x: Tensor) -> Array:
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            output: Tensor = module(x)
            return (HEADS[head](output) if head else output).numpy()

    return outputs


@dataclass(frozen=True)
class Judge:
    """Compares outputs as a task does."""

    task: Task
    probabilities: bool = False  # whether the outputs are behind the task's head

    def answers(self, outputs: Array) -> Tensor:
        """What the network says of each image, (N, ...)."""
        return self.task.answers(torch.from_numpy(outputs), probabilities=self.probabilities)

    def agreements(self, wanted: Tensor, found: Tensor) -> int:
        """For how many images two networks say the same."""
        return int(self.task.agree(wanted, found).sum())


@dataclass(frozen=True)
class Case:
    """How far two networks are apart on one batch."""

    images: str  # `random`, or `test`: images of the test set
    batch: int
    max_abs: float  # largest absolute difference of an output
    max_rel: float  # the same, relative to the largest output in magnitude
    agreement: float  # share of images with the same answer

    @classmethod
    def of(cls, images: str, wanted: Array, found: Array, judge: Judge) -> Case:
        """From outputs (N, ...); NaN where an output is not finite."""
        if wanted.shape != found.shape:
            raise RunError(f"the ONNX model gives outputs {found.shape}, torch gives {wanted.shape}")
        difference = float(np.abs(wanted.astype(np.float64) - found).max())
        largest = float(np.abs(wanted).max())
        relative = difference / largest if largest else (0.0 if difference == 0 else float("inf"))
        same = judge.agreements(judge.answers(wanted), judge.answers(found))
        return cls(images, len(wanted), difference, relative, same / len(wanted))

    def line(self, same: str) -> str:
        """For people; `same` is what the task calls agreement."""
        return (
            f"{self.images:<6} images, batch {self.batch:>3}: absolute error {self.max_abs:.2e}, "
            f"relative {self.max_rel:.2e}, {same} {self.agreement:.2%}"
        )


@dataclass(frozen=True)
class Parity:
    """All cases of one comparison, the worst error of each kind first."""

    tolerance: float
    max_abs: float
    max_rel: float
    agreement: float  # share of all images with the same answer
    cases: tuple[Case, ...]

    @classmethod
    def of(cls, tolerance: float, cases: tuple[Case, ...]) -> Parity:
        """The worst of the cases; NaN counts as worst."""
        worst = np.array([(case.max_abs, case.max_rel) for case in cases]).max(axis=0)  # carries NaN on
        same = sum(case.agreement * case.batch for case in cases) / sum(case.batch for case in cases)
        return cls(tolerance, float(worst[0]), float(worst[1]), same, cases)

    def check(self, same: str) -> None:
        """RunError with both numbers if the error exceeds the tolerance or is no number."""
        if self.max_rel <= self.tolerance:
            return
        worst = max(self.cases, key=lambda case: (np.isnan(case.max_rel), case.max_rel))
        raise RunError(
            f"the ONNX model does not compute what the torch network does: largest error {self.max_abs:.3e} absolute, "
            f"{self.max_rel:.3e} relative to the largest output, allowed {self.tolerance:.1e}\n"
            f"  ({worst.line(same)})\n"
            f"  nothing was written; try: --set export.tolerance=... if this is close enough; otherwise the weights "
            f"or an op's lowering are at fault"
        )


def compare(
    network: Network, torch_network: Reference, form: ImageForm, dataset: Dataset, judge: Judge, tolerance: float
) -> Parity:
    """Run both on random and on test images, in every batch size of `BATCHES`."""
    shape = (len(dataset.normalise.mean), *dataset.test.size)
    inputs = [("random", form.random(batch, shape, dataset.seed)) for batch in BATCHES]
    inputs += [("test", form.both(some_pixels(dataset.test, batch))) for batch in BATCHES]
    cases = [Case.of(images, torch_network(x), network(image), judge) for images, (x, image) in inputs]
    return Parity.of(tolerance, tuple(cases))


def check_outputs(network: Reference, form: ImageForm, dataset: Dataset) -> str:
    """A warning if the network gives the same for all random and test images; RunError if it is not finite."""
    batch, shape = max(BATCHES), (len(dataset.normalise.mean), *dataset.test.size)
    images = [form.random(batch, shape, dataset.seed)[0], form.both(some_pixels(dataset.test, batch))[0]]
    outputs = np.concatenate([network(x) for x in images])
    if not np.isfinite(outputs).all():
        raise RunError(
            "what the network gives for random and test images is not finite\n"
            "  nothing was written; try: train it again, with a lower learning rate"
        )
    if np.ptp(outputs, axis=0).max() > CONSTANT * np.abs(outputs).max():
        return ""
    return "the network gives the same for all images: it has learned nothing or is damaged, and so is the file"


def raw_batches(images: Images, rows: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels (N, H, W, C) and targets (N, ...) of these images, in order; unreadable ones are left out."""
    chunks = torch.split(rows, batch)
    for chunk, fetched in zip(chunks, images.fetch((Request(c) for c in chunks), HERE.device), strict=True):
        kept = chunk if fetched.kept is None else chunk[fetched.kept]
        if len(kept):
            yield fetched.pixels.index_select(0, fetched.rows), images.targets[kept]


def some_pixels(images: Images, count: int) -> Tensor:
    """Pixels (N, H, W, C) of `count` images spread over the set, over again where it has fewer; RunError if none is."""
    total = len(images.targets)
    rows = torch.arange(count) * max(total // count, 1)
    for start in range(total):
        for pixels, _ in raw_batches(images, (rows + start) % total, count):
            return pixels
    raise RunError(f"none of the {total} test images can be read\n  try: mend them, or --set data.root=FOLDER")


@dataclass(frozen=True)
class FileScore:
    """What one network scores on the test images."""

    metrics: Mapping[str, float]  # the task's
    agreement: float  # share of images where it says what torch says
    images: int


def score_all(
    networks: Mapping[str, Network],
    torch_network: Reference,
    form: ImageForm,
    dataset: Dataset,
    judge: Judge,
    advance: Callable[[int], object] = lambda images: None,
) -> dict[str, FileScore]:
    """Of `torch` and every network by name, in one pass over the test images; `advance` is told of so many more."""
    sums: dict[str, dict[str, float]] = {name: {} for name in ("torch", *networks)}
    same, count, batch = dict.fromkeys(sums, 0), 0, usual_batch(dataset.test.size)
    for pixels, targets in raw_batches(dataset.test, torch.arange(len(dataset.test.targets)), batch):
        x, image = form.both(pixels)
        answers = {"torch": judge.answers(torch_network(x))}
        answers |= {name: judge.answers(network(image)) for name, network in networks.items()}
        for name, answer in answers.items():
            sums[name] = added([sums[name], judge.task.measure(answer, targets)])
            same[name] += judge.agreements(answers["torch"], answer)
        count += len(targets)
        advance(len(targets))
    return {name: FileScore(judge.task.figures(sums[name], count), same[name] / count, count) for name in sums}
