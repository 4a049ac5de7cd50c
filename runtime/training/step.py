"""One training step and one evaluation, the same for search and retrain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from compiler.errors import RunError
from compiler.ir.graph import OUTPUT, Graph
from compiler.language.config import Schedule, TrainingConfig
from compiler.lowering.torch.batch_parts import BatchNorm
from compiler.lowering.torch.emit import tensor_name
from compiler.lowering.torch.fx import outputs_by_name
from compiler.ops import Affine, input_shapes, read_attrs, traits_of, walk
from runtime.data.dataset import Loader
from runtime.processes.launch import Launch
from runtime.processes.world import ALONE, World
from runtime.tasks.base import Task
from runtime.training.compiled import CompiledByBlock
from runtime.training.heap import give_back
from runtime.training.schedules import learning_rate
from runtime.training.stages import Position, Stage
from runtime.training.teacher import Teacher

Network = Callable[[Tensor], Tensor | dict[str, Tensor]]  # x: (N, C, H, W) -> the output, or several by name
Batch = tuple[Tensor, Tensor]  # x: (N, C, H, W) float32, normalised; y: the targets (N, ...)


@dataclass(frozen=True)
class Scores:
    """What an evaluation found over `count` images."""

    loss: float  # the mean
    metrics: Mapping[str, float]  # the task's, the one that decides first
    count: int


RECOMPUTES_COMPILED = "2.15"
"""torch 2.11 runs the code that it compiled for the first pass in the second one too, so that batch norm's running
statistics are updated twice. Versions in between have not been tried."""


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` (of several processes each its own) or `cuda:n`; RunError if it is not there."""
    launch = Launch.here()
    if launch.local_size > 1 and name.startswith("cuda:"):
        raise RunError(
            f"--device {name}: {launch.local_size} processes run on this machine; cuda gives each one its own"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if launch.size > 1 and name == "cuda":
        name = f"cuda:{launch.local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise RunError(f"--device {name}: no such device; use auto, cpu, cuda or cuda:n")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; try --device cpu")
    return device


def network_of(module: fx.GraphModule, config: TrainingConfig) -> nn.Module:
    """The module, with its blocks compiled where that is asked for; RunError if torch is too old to recompute them."""
    if not config.compile:
        return module
    if config.recompute and torch.__version__ < RECOMPUTES_COMPILED:
        raise RunError(
            f"compile together with recompute needs torch {RECOMPUTES_COMPILED} or newer, this is {torch.__version__}\n"
            f"  try: one of the two, or a newer torch"
        )
    return CompiledByBlock(module)


def weight_parameters(module: nn.Module) -> dict[str, Parameter]:
    """The trainable parameters by name, gates left out."""
    return {tensor_name(n): p for n, p in module.named_parameters() if p.requires_grad and not n.endswith(".gates")}


def weight_optimizer(module: nn.Module, config: TrainingConfig, *, captured: bool = False) -> Optimizer:
    """NAG over the weights (torch's SGD with Nesterov momentum), or AdamW; no decay of norms and biases (1-d).

    `captured`: one whose steps can be captured; its rates are tensors.
    """
    params = list(weight_parameters(module).values())
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fast, momentum = {"fused": True} if captured else {"foreach": True}, config.momentum
    made: Optimizer
    if config.optimizer == "adamw":
        made = torch.optim.AdamW(groups, config.lr, (momentum, 0.999), capturable=captured, **fast)
    else:
        made = torch.optim.SGD(groups, config.lr, momentum=momentum, nesterov=momentum > 0, **fast)
    if captured:
        with_tensor_rates(made)
    return made


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate; where it is a tensor, in its place, without waiting."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def with_tensor_rates(optimizer: Optimizer) -> None:
    """Let the learning rates be float32 tensors beside the parameters."""
    for group in optimizer.param_groups:
        for parameter in group["params"][:1]:
            group["lr"] = torch.full((), group["lr"], dtype=torch.float32, device=parameter.device)


@contextmanager
def training_only(params: Iterable[Parameter], frozen: Iterable[Parameter]) -> Iterator[None]:
    """Within this context only `params` get gradients: backward does no work for `frozen`."""
    chosen, still = list(params), list(frozen)
    for p in still:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in (*chosen, *still):
            p.requires_grad_(True)


def uses_bf16(config: TrainingConfig, device: torch.device) -> bool:
    """Whether networks run under autocast: with `auto` on a GPU that computes in bf16."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.precision == "bf16"


def set_precision(config: TrainingConfig, device: torch.device) -> None:
    """On CUDA, let float32 products and convolutions of this process round their factors to tf32, with `fp32` not;
    batches have one size, so cuDNN looks for the fastest algorithms.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision != "fp32"
        torch.backends.cudnn.benchmark = True


LossFn = Callable[[Tensor, Tensor], Tensor]  # x, y -> mean loss
LOSS, IMAGES = ".loss", ".images"  # beside the task's sums


def training_loss(
    task: Task,
    graph: Graph,
    network: Network,
    config: TrainingConfig,
    device: torch.device,
    teacher: Teacher | None = None,
) -> LossFn:
    """The task's loss of the output of `graph`, in float32 or wider; further outputs count by their loss weights.

    A `teacher` has its part in the loss of the main output.
    """

    bf16 = uses_bf16(config, device)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            outputs = outputs_by_name(network(x))
        found = {n: output.to(torch.promote_types(output.dtype, torch.float32)) for n, output in outputs.items()}
        main = found.pop(OUTPUT)
        total = task.loss(main, y, config)
        if teacher is not None:
            total = teacher.mixed(total, main, x)
        for name, output in found.items():
            total = total + read_attrs(OUTPUT, graph.outputs()[name].attrs).weight * task.loss(output, y, config)
        return total

    return loss


def backward(loss_fn: LossFn, batch: Batch, params: Sequence[Parameter], config: TrainingConfig) -> Tensor:
    """Gradients of the mean loss over the batch into `params`, in `accumulate` parts; the loss as a scalar tensor."""
    x, y = batch
    for p in params:
        p.grad = None
    parts = min(config.accumulate, len(y))
    total = torch.zeros((), device=y.device)
    for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
        loss = loss_fn(xs, ys) * (len(ys) / len(y))
        if params:
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        total += loss.detach()
    return total


def require_statistics(graph: Graph, name: str, config: TrainingConfig, processes: int) -> None:
    """RunError if a part of a batch would give batch norm one value per channel, which have no variance."""
    images = config.batch_size // processes
    part = min(map(len, torch.empty(images).chunk(min(config.accumulate, images))))
    if part * (processes if config.sync_batch_norm else 1) > 1:
        return
    change = "accumulate=1" if images > 1 else f"batch_size={2 * processes * config.accumulate}"
    for node in graph.nodes()[1:]:
        for step, _, _, _, out in walk(node.op, node.attrs, input_shapes(graph, node)):
            if traits_of(step.op, step.attrs).affine is Affine.STATISTICS and math.prod(out[1:]) == 1:
                raise RunError(
                    f"{node.id}: batch norm would see one image of one pixel at a time in training, which has no "
                    f"variance\n  try: --set {name}.{change}"
                )


def clip_gradients(params: Iterable[Parameter], limit: float | None, norm: float | None = None) -> None:
    """Clip gradients element by element to [-limit, limit], then scale all of them so that their norm is `norm`."""
    chosen = list(params)
    if limit is not None:
        torch.nn.utils.clip_grad_value_(chosen, limit)
    if norm is not None:
        torch.nn.utils.clip_grad_norm_(chosen, norm)


@torch.no_grad()
def evaluate(task: Task, module: nn.Module, batches: Iterable[Batch], world: World = ALONE) -> Scores:
    """Loss and metrics of the main output over the batches of all processes; the module is left in training mode."""
    give_back()  # here and at the end: pieces of memory have other sizes than in a step and fit between those badly
    module.eval()
    found: list[Mapping[str, Tensor | int]] = []
    for x, y in batches:
        output = outputs_by_name(module(x))[OUTPUT].float()
        sums = task.measure(task.answers(output), y)
        found.append({**sums, LOSS: task.loss(output, y, reduction="sum"), IMAGES: len(y)})
    module.train()
    own = added(found)  # read only now, so that the device never waits for a batch to be read
    give_back()
    total = added(world.gathered(own))
    images = int(total[IMAGES])
    return Scores(total[LOSS] / max(images, 1), task.figures(total, images), images)


def added(parts: Iterable[Mapping[str, Tensor | float]]) -> dict[str, float]:
    """The sums of numbers by name; a process without images has none."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Batch]) -> None:
    """Re-estimate batch norm's running statistics, which lag behind gates, as the plain mean over these batches."""
    norms = [m for m in module.modules() if isinstance(m, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    module.train()
    for index, (x, _) in enumerate(batches):
        for norm in norms:
            norm.momentum = 1.0 / (index + 1)  # makes the running average a plain mean
        module(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def follow(module: nn.Module, steps: int) -> None:
    """Let batch norm's running statistics keep up with a training of so many steps.

    Trained networks bring momenta of 0.01 and less, made for long trainings: after a short fine-tuning a good part of
    their statistics would still be those of other images. Now they span a twentieth of the training, or 10 steps.
    """
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.momentum = max(part.momentum, min(0.1, 20 / max(1, steps)))


def rate_now(schedule: Schedule, base: float, stage: Stage, at: Position) -> float:
    """The learning rate at this position of a stage."""
    step = at.epoch * stage.steps_per_epoch + at.step
    return learning_rate(schedule, base, step, stage.steps_per_epoch, stage.epochs)


class Feed:
    """Batches of a loader by position; asked in order, it reads ahead as the loader does.

    `per_epoch`: batches of an epoch, which then may be a part of a pass over the images or several; None: a pass.
    """

    def __init__(self, loader: Loader, per_epoch: int | None = None) -> None:
        self.loader, self.per_epoch = loader, per_epoch or len(loader)
        self._next: tuple[int, int] | None = None
        self._batches: Iterator[Batch] = iter(())

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch number `index` of the epoch; indices past its end go on in the epochs that follow."""
        epoch, index = divmod(epoch * self.per_epoch + index, len(self.loader))
        if self._next != (epoch, index):
            self._batches = self.loader.batches(epoch, index)
        self._next = (epoch, index + 1)
        return next(self._batches)
