"""What every primitive op keeps for its backward pass and needs while it runs, as torch and the lowerings do it.

One row per op, beside the rows of `compiler.lowering.torch.modules` and `torch_lean`; a test compares every row with
what torch really keeps. An op without a row, such as a custom one, is taken to keep what it reads and what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.ir.graph import Graph, Node
from compiler.ops import input_shapes, walk


@dataclass(frozen=True)
class Row:
    """How an op uses memory besides its output. Values are as large as what the op reads (`in`) or gives (`out`)."""

    keeps_in: bool = False
    keeps_out: bool = False
    kept_bytes: int = 0  # further bytes kept for every number of the output
    kept_values: int = 0  # further values kept, as large as the output
    work_bytes: int = 0  # needed while it runs, for every number of the output
    back_values: float = 0.0  # needed while the backward pass runs: values as large as the input
    back_bytes: int = 0  # and bytes for every number of the output
    hands_on: bool = False  # gives what it reads: no memory of its own
    passes_grad: bool = False  # the output's gradient, or a part of it, is the input's


@dataclass(frozen=True)
class Setting:
    """In which step and lowering an op runs."""

    lean: bool  # the rows of the fused lowering
    trained: bool  # its weights get gradients
    inputs_pixels: int  # height times width of what it reads
    on_cpu: bool


Rule = Callable[[Any, Setting], Row]


def pixel_step(a: Any) -> int:
    """A convolution reads every so many-th row and column of pixels, from the first on; the others are left out first.

    Its window moves by strides and its taps lie dilations apart, so that a divisor of both, and of the border, is what
    all that it reads lies apart. A border that it does not divide is added before, where the window is one pixel.
    """
    if a.kernel == 1:
        return int(a.stride)
    common = math.gcd(a.stride, a.dilation)
    return common if a.pad % common == 0 else 1


def _conv(a: Any, s: Setting) -> Row:
    step = pixel_step(a)
    back = 1 / step + 2 / step**2 if step > 1 else 0.0  # two gradients of slices
    if s.lean and not s.trained:
        return Row(back_values=back + 1 / step**2)
    return Row(keeps_in=True, back_values=back)


def _max_pool(a: Any, s: Setting) -> Row:
    if not s.lean:
        return Row(keeps_in=True, kept_bytes=8)
    return Row(kept_bytes=2 if s.inputs_pixels < 2**15 else 4, work_bytes=8, back_values=1, back_bytes=8)


def _avg_pool(a: Any, s: Setting) -> Row:
    if a.dilation > 1:
        return Row(keeps_in=True)
    return Row(back_values=1) if s.lean else Row(keeps_in=True)


def _dropout(a: Any, s: Setting) -> Row:
    return Row(kept_values=1) if s.on_cpu else Row(kept_bytes=1)  # the CPU keeps the noise itself


def _always(**uses: Any) -> Rule:
    row = Row(**uses)
    return lambda a, s: row


ROWS: dict[str, Rule] = {
    "conv": _conv,
    "depthwise_conv": _conv,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "identity": _always(hands_on=True),
    "zero": _always(),
    "scale": _always(),
    "linear": _always(keeps_in=True),
    "global_avg_pool": _always(),
    "flatten": _always(),
    "add": _always(hands_on=True),
    "concat": _always(passes_grad=True),
    "batch_norm": _always(keeps_in=True),
    "layer_norm": _always(keeps_in=True),
    "relu": _always(keeps_out=True),
    "relu6": _always(keeps_in=True),
    "hard_swish": _always(keeps_in=True),
    "silu": _always(keeps_in=True),
    "gelu": _always(keeps_in=True),
    "sigmoid": _always(keeps_out=True),
    "squeeze_excite": _always(keeps_in=True, back_values=2),
    "dropout": _dropout,
    "drop_path": _always(),
    "mean": _always(),
}
UNKNOWN = Row(keeps_in=True, keeps_out=True)


def row_of(op: str, attrs: Any, setting: Setting) -> Row:
    """The row of a primitive op as it runs there."""
    rule = ROWS.get(op)
    return UNKNOWN if rule is None else rule(attrs, setting)


def kept_apart(graph: Graph, readers: Sequence[Node]) -> tuple[bool, ...]:
    """Which of the sums that one product gives these readers lie in memory of their own while weights are trained.

    They are those that their readers keep, where others are not kept, whose memory can then be used again.
    """
    kept = [_keeps_sum(graph, node) for node in readers]
    return tuple(own and not all(kept) for own in kept)


def _keeps_sum(graph: Graph, node: Node) -> bool:
    for step, _, attrs, shapes, _ in walk(node.op, node.attrs, input_shapes(graph, node)):
        pixels = math.prod(shapes[0][1:])
        row = row_of(step.op, attrs, Setting(lean=True, trained=True, inputs_pixels=pixels, on_cpu=True))
        if not row.hands_on:
            return row.keeps_in
    return False
