"""A compact network and its training as an expert would write them in torch, module by module: what to match."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compiler.ir.graph import INPUT, OUTPUT, Graph
from compiler.language.config import TrainingConfig
from compiler.ops import Shape, input_shapes, walk
from compiler.ops.attributes import OpAttrs


def _conv(attrs: OpAttrs, shape: Shape, out: Shape) -> nn.Module:
    groups = attrs.groups if hasattr(attrs, "groups") else shape[0]
    padding = attrs.dilation * (attrs.kernel - 1) // 2 if attrs.padding is None else attrs.padding
    return nn.Conv2d(shape[0], out[0], attrs.kernel, attrs.stride, padding, attrs.dilation, groups, attrs.bias)


MODULES: dict[str, Callable[[OpAttrs, Shape, Shape], nn.Module]] = {
    "conv": _conv,
    "depthwise_conv": _conv,
    "batch_norm": lambda attrs, shape, _: nn.BatchNorm2d(shape[0], attrs.eps, attrs.momentum),
    "relu": lambda *_: nn.ReLU(inplace=True),
    "max_pool": lambda attrs, *_: nn.MaxPool2d(attrs.kernel, attrs.stride, attrs.padding, attrs.dilation),
    "avg_pool": lambda a, *_: nn.AvgPool2d(a.kernel, a.stride, a.padding, a.ceil_mode, a.count_include_pad),
    "global_avg_pool": lambda *_: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "linear": lambda attrs, shape, out: nn.Linear(shape[0], out[0]),
}
"""By op, what an expert takes for it; KeyError where a network has another."""
SUMS, JOINS = ("add", OUTPUT), ("concat",)


class ByHand(nn.Module):
    """The network as modules that are called one after the other."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.plan: list[tuple[str, list[str], bool]] = []
        parts = dict[str, nn.Module]()
        for node in graph.nodes():
            if node.id == INPUT:
                continue
            steps = walk(node.op, node.attrs, input_shapes(graph, node))
            chain = [MODULES[s.op](a, shapes[0], out) for s, _, a, shapes, out in steps if s.op not in (*SUMS, *JOINS)]
            parts[node.id.replace(".", "-")] = chain[0] if len(chain) == 1 else nn.Sequential(*chain)
            self.plan.append((node.id, [edge.src for edge in graph.inputs(node.id)], steps[0][0].op in JOINS))
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W) -> (N, classes)."""
        values = {INPUT: x}
        for (name, sources, joined), part in zip(self.plan, self.parts.values(), strict=True):
            found = [values[source] for source in sources]
            values[name] = part(torch.cat(found, 1) if joined else reduce(torch.add, found))
        return values[OUTPUT]


class Recipe:
    """Its training on images that lie in memory: crops and flips of a batch at a time, SGD with momentum."""

    def __init__(
        self, graph: Graph, config: TrainingConfig, layout: torch.memory_format, images: Tensor, labels: Tensor
    ):
        """images: (N, C, H, W) uint8, labels: (N,)."""
        self.net, self.layout, self.config = ByHand(graph).to(memory_format=layout), layout, config
        self.images, self.labels, self.padding = F.pad(images, (4, 4, 4, 4)), labels, 8
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=True
        )

    def epoch(self) -> None:
        """Train on every image once."""
        for x, y in self.batches():
            self.optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(self.net(x), y).backward()
            self.optimizer.step()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised, in random order."""
        size, (height, width) = self.config.batch_size, (side - self.padding for side in self.images.shape[2:])
        for rows in torch.randperm(len(self.images)).split(size):
            if len(rows) == size:
                top, left = torch.randint(0, self.padding + 1, (2, size, 1))
                down, along = top + torch.arange(height), left + torch.arange(width)
                along = torch.where(torch.rand(size, 1) < 0.5, along, along.flip(1))
                x = self.images[rows[:, None, None], :, down[:, :, None], along[:, None, :]].permute(0, 3, 1, 2)
                yield x.to(memory_format=self.layout).float().sub_(127.5).div_(64.0), self.labels[rows]
