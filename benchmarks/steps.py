"""Training steps of the starters against what they must cost: `python -m benchmarks.steps`.

Retraining: CPU seconds an image against the same network written by hand in torch (`benchmarks.by_hand`), of whose two
memory layouts the faster counts; data and optimizer included. Searching: a weight step of the whole supernet against
the sum of its convolutions, each run alone, forward and backward; also without any activation, which is more than
could be had by computing it together with the norm. All take turns in one process; trust the ratios.

`--parallel`: convolutions that read one value, each a call of its own and all as one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.by_hand import Recipe
from benchmarks.common import Bar, Timing, interleave, parser, shipped, show, table
from compiler.ir.graph import Graph, Model, attrs_of
from compiler.language.config import BudgetConfig, Configuration
from compiler.ops.registry import op
from compiler.passes.pipeline import compacted
from compiler.passes.prune_zero_edges import prune
from runtime.data.dataset import load_dataset
from runtime.search.supernet import Supernet
from runtime.strategies.random import closed_at_random, random_levels
from runtime.tasks.table import task_of
from runtime.training.heap import freed_memory_kept
from runtime.training.retrain_job import RetrainJob
from runtime.training.stages import Position

STARTERS = ("own_images", "photos", "cifar10_small", "dso_nas_cifar10_small", "digits")
IMAGES = 320  # of an epoch
OURS, CHANNELS_LAST, CONTIGUOUS = "graphspec", "by hand, channels last", "by hand, contiguous"
STEP, NO_ACT, CONVOLUTIONS = "step", "without activations", "convolutions"
# images, channels, side, kernel, calls
PARALLEL = ((64, 16, 32, 3, 4), (64, 32, 16, 3, 4), (64, 64, 8, 3, 4), (16, 64, 8, 5, 4))
CPU = torch.device("cpu")


# -- retraining -------------------------------------------------------------------------------------------------------


def drawn(graph: Graph, budget: BudgetConfig) -> Model:
    """A network of a space within its budget, drawn at random."""
    closed = closed_at_random(graph, budget, random_levels(graph, 0))
    return compacted(Model(prune(graph, closed)), budget)[0]


def retrainings(name: str, batch: int) -> dict[str, Callable[[], None]]:
    """An epoch of a network of the space within its budget: ours, and by hand in two layouts."""
    spec, graph = shipped(name)
    config = _config(spec.config, batch)
    model = drawn(graph, config.budget)
    dataset = load_dataset(config.data, spec.input, task_of(spec, model.graph), seed=0)
    job = RetrainJob(model.graph, config, dataset, CPU)
    images, labels = dataset.train.images, dataset.train.targets
    by_hand = {
        each: Recipe(model.graph, job.config, layout, images[:IMAGES], labels[:IMAGES])
        for each, layout in ((CHANNELS_LAST, torch.channels_last), (CONTIGUOUS, torch.contiguous_format))
    }
    epochs = iter(range(10**6))

    def ours() -> None:
        (stage,), epoch = job.stages, next(epochs)
        for step in range(IMAGES // batch):
            job.step(stage, Position(0, epoch, step))

    return {OURS: ours, **{each: recipe.epoch for each, recipe in by_hand.items()}}


def _config(config: Configuration, batch: int) -> Configuration:
    """On images that are made up, all of which are trained on, without what the recipe adds to a step."""
    data = config.data.model_copy(update={"name": "fake", "fake_size": IMAGES, "crop_padding": 4, "flip": True})
    added = {
        "batch_size": batch,
        "mixup": 0.0,
        "ema": 0.0,
        "clip": None,
        "all_images": True,
        "drop_path": 0.0,
        "start": "scratch",
    }
    return config.model_copy(update={"data": data, "retrain": config.retrain.model_copy(update=added)})


# -- searching --------------------------------------------------------------------------------------------------------


class Recorded(TorchDispatchMode):
    """Notes every convolution, forward and backward, with what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(func):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def without_activations(graph: Graph) -> Graph:
    """The same network, linear but for its norms and pools."""
    plain = graph.copy()
    for node in plain.nodes():
        if "act" in op(node.op).attrs.model_fields:
            plain.replace(replace(node, attrs=attrs_of({**dict(node.attrs), "act": "none"})))
    return plain


def searching(name: str, batch: int) -> dict[str, Callable[[], object]]:
    """A weight step of the supernet, the same without activations, and its convolutions."""
    spec, graph = shipped(name)
    config = spec.config.search.model_copy(update={"batch_size": batch})

    def start(lowered: Graph, **settings: str) -> Supernet:
        how = config.model_copy(update=settings)
        return Supernet.start(lowered, task_of(spec, graph), how, CPU, seed=0, gate_init=1.0)

    net, linear = start(graph), start(without_activations(graph))
    x = torch.randn(batch, *spec.input).to(memory_format=torch.channels_last)
    given = x, torch.randint(0, spec.classes, (batch,))
    recorded = Recorded()
    with recorded:
        start(graph, lowering="reference").weight_gradients(given)  # which has no convolution as a matrix product

    def convolutions() -> None:
        with torch.no_grad():
            for function, args, kwargs in recorded.calls:
                function(*args, **kwargs)

    return {
        STEP: lambda: net.weight_step(given, config.lr),
        NO_ACT: lambda: linear.weight_step(given, config.lr),
        CONVOLUTIONS: convolutions,
    }


# -- convolutions side by side ----------------------------------------------------------------------------------------


def parallel(images: int, channels: int, side: int, kernel: int, calls: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Forward and backward of convolutions that read one value and give `channels` channels each; what they give.

    Torch's depthwise kernels take one filter a channel, so those that are joined read copies of the value.
    """
    like = torch.randn(images, channels, side, side).to(memory_format=torch.channels_last)
    x, grad = like.clone().requires_grad_(), torch.randn_like(like)
    deep = torch.randn(calls * channels, 1, kernel, kernel, requires_grad=True)
    wide = torch.randn(calls * channels, channels, 1, 1, requires_grad=True)

    def apart(weight: Tensor, groups: int) -> list[Tensor]:
        each = [w.detach().requires_grad_() for w in torch.split(weight, channels)]
        values = [F.conv2d(x, w, padding=w.shape[-1] // 2, groups=groups) for w in each]
        torch.autograd.backward(values, [grad] * calls)
        return values

    def joined(weight: Tensor, copies: int, groups: int) -> list[Tensor]:
        value = F.conv2d(torch.cat([x] * copies, 1), weight, padding=weight.shape[-1] // 2, groups=groups)
        values = [y.contiguous(memory_format=torch.channels_last) for y in torch.split(value, channels, 1)]
        torch.autograd.backward(values, [grad] * calls)
        return values

    return {
        "depthwise": lambda: apart(deep, channels),
        "depthwise as one": lambda: joined(deep, calls, calls * channels),
        "pointwise": lambda: apart(wide, 1),
        "pointwise as one": lambda: joined(wide, 1, 1),
    }


# -- the report -------------------------------------------------------------------------------------------------------


def cpu_ratio(one: Timing, others: list[Timing]) -> float:
    """Of CPU seconds, to the fastest of the others by median."""
    least = min(others, key=lambda timing: statistics.median(timing.cpu_seconds))
    return statistics.median(a / b for a, b in zip(one.cpu_seconds, least.cpu_seconds, strict=True))


@freed_memory_kept()  # as in every job
def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--specs", nargs="+", default=STARTERS)
    options.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--parallel", action="store_true")
    args = options.parse_args()
    torch.set_num_threads(1)
    rows: list[list[object]] = []
    bars: list[Bar] = []
    if args.parallel:
        for shape in PARALLEL:
            timed = interleave(parallel(*shape), args.rounds, warmup=2)
            rows.append([*shape, *(1e3 * min(timing.cpu_seconds) for timing in timed.values())])
        show(args.json, {"rows": rows}, [table(["images", "channels", "side", "kernel", "calls", *timed], rows)], bars)
        return
    for name in args.specs:
        for batch in args.batches:
            trained, searched = (
                interleave(make(name, batch), args.rounds, warmup=1) for make in (retrainings, searching)
            )
            hands = [trained[CHANNELS_LAST], trained[CONTIGUOUS]]
            retrain = cpu_ratio(trained[OURS], hands)
            search, linear = (cpu_ratio(searched[each], [searched[CONVOLUTIONS]]) for each in (STEP, NO_ACT))
            each = [1e6 * min(timing.cpu_seconds) / IMAGES for timing in (trained[OURS], *hands)]
            both = [1e3 * min(searched[each].cpu_seconds) for each in (STEP, CONVOLUTIONS)]
            rows.append([name, batch, *each, retrain, *both, search, linear])
            bars.append(Bar(f"{name}, batch {batch}: retraining against by hand", retrain, 1.0))
            bars.append(Bar(f"{name}, batch {batch}: supernet's step against its convolutions", search, 1.3))
    header = ["starter", "batch", "retrain, us an image", "by hand, channels last", "contiguous", "ratio"]
    header += ["search step, ms", "convolutions, ms", "ratio", "without activations"]
    show(args.json, {"rows": rows}, [table(header, rows)], bars)


if __name__ == "__main__":
    main()
