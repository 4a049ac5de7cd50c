"""The arithmetic of the fused lowering: gated sums and projections over a stack of values.

A *stack* is one buffer with a slot for every value that several gated sums read, filled as the values are computed.
All sums whose sources are there are one small matrix product: `sums[n] = sum over k of gate[n, k] * slot[k]`. Copies
and additions are saved in both directions: a value is written once, into its slot, and the gradients of all readers
are added up in one gradient buffer of the same shape. For that, the readers of a stack form a chain: each takes the
stack and gives it on, and what comes back in the backward pass is the gradient of all later readers, to which a
reader adds its own in place. Only slots, gates and weights are kept for the backward pass.

Under `torch.compile` the same functions are written out as plain sums, which the compiler fuses by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from compiler.lowering.torch.windows import convolve

Rows = tuple[tuple[int, ...], ...]
"""For every sum and slot: the position of the gate in its vector, `OPEN` or `ABSENT`."""

OPEN, ABSENT = -1, -2  # coefficients 1 and 0
aten = torch.ops.aten


def _index(rows: Rows, device: torch.device, first: int = 0) -> Tensor:
    """`rows` counted from `first`."""
    return (_new_index if torch.compiler.is_compiling() else _kept_index)(rows, device, first)


def _new_index(rows: Rows, device: torch.device, first: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device) - first


_kept_index = functools.cache(_new_index)  # copying to a device waits for it


def coefficients(rows: Rows, *gates: Tensor) -> Tensor:
    """`(sums, slots)`: the gate that `rows` names (counted through all vectors), 1 if `OPEN`, 0 if `ABSENT`."""
    one = gates[0].new_ones(1)
    values = torch.cat([torch.zeros_like(one), one, *gates])  # at ABSENT, OPEN, 0 and on
    index = _index(rows, one.device, ABSENT)
    # the gradient of `index_select` takes fewer kernels than that of `values[index]`
    return values.index_select(0, index.flatten()).view_as(index)


class Stack(NamedTuple):
    """A buffer `(slots, N, ...)`, and the part of it that is filled, through which gradients flow."""

    buffer: Tensor
    filled: Tensor


def _new_slots(count: int, like: Tensor) -> Tensor:
    """Memory for `count` values like `(N, C, ...)`, each kept channels last."""
    n, c, *sides = like.shape
    return like.new_empty(count, n, *sides, c).movedim(-1, 2)


def _flat(slots: Tensor) -> Tensor:
    """`(K, N, C, ...)` as `(K, N, pixels * C)`, without copying."""
    return slots.movedim(2, -1).flatten(2)


def _matrix(slots: Tensor) -> Tensor:
    """`(K, N, C, ...)` as `(K, N * pixels * C)`, without copying."""
    return _flat(slots).flatten(1)


def _pixels(x: Tensor, first: int = 0) -> Tensor:
    """`(N, C, ...)` as `(N * pixels, C)`, without copying if it is kept channels last; N is dimension `first`."""
    return x.movedim(first + 1, -1).flatten(first, -2)


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


class _Push(Function):
    """Write values into the next slots, some through a ReLU: `(buffer, filled, relu, *values) -> filled`."""

    @staticmethod
    def forward(ctx: Any, buffer: Tensor, filled: Tensor | None, relu: tuple[bool, ...], *values: Tensor) -> Tensor:
        start = 0 if filled is None else len(filled)
        memory = buffer.data  # earlier slots, which others have saved, stay as they are: no version to count
        for slot, through_relu, value in zip(memory[start:], relu, values, strict=False):
            if through_relu:
                torch.clamp_min(value, 0, out=slot)
            else:
                slot.copy_(value)
        ctx.start, ctx.relu = start, relu
        ctx.save_for_backward(memory[start : start + len(values)] if any(relu) else None)
        return memory[: start + len(values)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (slots,) = ctx.saved_tensors
        grads: list[Tensor | None] = []
        for i, through_relu in enumerate(ctx.relu):
            value = grad[ctx.start + i]
            if through_relu:
                aten.threshold_backward.grad_input(value, slots[i], 0, grad_input=value)
            grads.append(value if ctx.needs_input_grad[3 + i] else None)
        return None, grad[: ctx.start] if ctx.start else None, None, *grads


def push(stack: Stack | int, relu: tuple[bool, ...], *values: Tensor) -> Stack:
    """The stack with further values `(N, C, ...)`, those with `relu` through a ReLU.

    Instead of a stack, the number of slots of a new one.
    """
    if torch.compiler.is_compiling():
        fresh = torch.stack([F.relu(v) if r else v for v, r in zip(values, relu, strict=True)])
        return Stack(fresh, fresh if isinstance(stack, int) else torch.cat([stack.filled, fresh]))
    buffer, filled = (_new_slots(stack, values[0].detach()), None) if isinstance(stack, int) else stack
    alike = (value.to(buffer.dtype) for value in values)  # autocast leaves pools in float32 and convolutions in bf16
    return Stack(buffer, _Push.apply(buffer, filled, relu, *alike))


def _span(rows: Rows) -> slice:
    """The slots from the first to the last that is read."""
    slots = [k for row in rows for k, position in enumerate(row) if position != ABSENT]
    return slice(min(slots), max(slots) + 1)


class _GatedSums(Function):
    """`(filled, coefs (sums, slots), rows, apart) -> filled, *sums`."""

    @staticmethod
    def forward(ctx: Any, filled: Tensor, coefs: Tensor, rows: Rows, apart: tuple[bool, ...]) -> tuple[Tensor, ...]:
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(filled, coefs)
        sums = _new_slots(len(rows), filled[0])
        factors = coefs.to(filled.dtype)
        span = _span(rows)
        with _no_autocast(filled):
            torch.mm(factors[:, span], _matrix(filled)[span], out=_matrix(sums))
        copies = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]  # a weight step, whose readers keep some sums
        own = (value.clone() if copies and alone else value.data for value, alone in zip(sums, apart, strict=True))
        return filled.data, *own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor | None, *grads: Tensor | None) -> tuple[Any, ...]:
        filled, coefs = ctx.saved_tensors
        span = _span(ctx.rows)
        given = _slots_of(grads, filled[0])
        coefs_grad = None
        if ctx.needs_input_grad[1]:
            coefs_grad = torch.zeros_like(coefs)
            coefs_grad[:, span] = _dots(given, filled[span]).to(coefs.dtype)
        if not ctx.needs_input_grad[0]:
            return None, coefs_grad, None, None
        if total is None:
            total = _new_slots(len(filled), filled[0]).zero_()
        _matrix(total)[span].addmm_(coefs.to(filled.dtype)[:, span].t(), _matrix(given))
        return total, coefs_grad, None, None


def _slots_of(values: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """Copies of values like `(N, C, ...)` in slots; zeros for None."""
    given = [torch.zeros_like(like) if value is None else value for value in values]
    return torch.stack([value.movedim(1, -1) for value in given]).movedim(-1, 2)


def _dots(given: Tensor, slots: Tensor) -> Tensor:
    """`sum of given[n] * slots[k]` for all n and k: image by image, and the images added in float32 or wider."""
    images = torch.bmm(_flat(given).transpose(0, 1), _flat(slots).permute(1, 2, 0))
    return images.sum(0, dtype=torch.promote_types(images.dtype, torch.float32))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """`_dots` of two values `(N, C, ...)`, without copying them if both are kept channels last.

    On the CPU a product of matrices of one row and one column takes ten times as long.
    """
    a, b = (x.movedim(1, -1).flatten() for x in (a, b))
    if a.dtype in (torch.float32, torch.float64):
        return torch.dot(a, b)
    return (a * b).sum(dtype=torch.float32)  # `dot` would round its result


def gated_sums(stack: Stack, coefs: Tensor, rows: Rows, apart: tuple[bool, ...]) -> tuple[Any, ...]:
    """`(stack, *sums)`: for every row the sum of coefficient times slot `(N, C, ...)`; the stack is to be used on.

    Sums share their memory, but in a weight step for those `apart`, so that it does not stay where a reader keeps some.
    """
    if torch.compiler.is_compiling():
        factors = coefs.to(stack.filled.dtype)
        reads = [[k for k, position in enumerate(row) if position != ABSENT] for row in rows]
        terms = ([stack.filled[k] * factors[n, k] for k in slots] for n, slots in enumerate(reads))
        return stack, *(functools.reduce(torch.add, each) for each in terms)
    filled, *sums = _GatedSums.apply(stack.filled, coefs, rows, apart)
    return Stack(stack.buffer, filled), *sums


class _GatedSum(Function):
    """`(coefs (values,), *values) -> sum`: the same for values that lie apart."""

    @staticmethod
    def forward(ctx: Any, coefs: Tensor, *values: Tensor) -> Tensor:
        keep = values if ctx.needs_input_grad[0] else ()
        ctx.save_for_backward(coefs, *keep)
        dtype = functools.reduce(torch.promote_types, [v.dtype for v in values])
        factors = coefs.to(dtype)
        total: Tensor = values[0].to(dtype) * factors[0]
        for value, factor in zip(values[1:], factors[1:], strict=True):
            total.addcmul_(value, factor)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        coefs, *values = ctx.saved_tensors
        factors = coefs.to(grad.dtype)
        needed = ctx.needs_input_grad[1:]
        grads = [grad * factor if need else None for factor, need in zip(factors, needed, strict=True)]
        if not values:
            return None, *grads
        dots = [_dot(grad, value.to(grad.dtype)) for value in values]
        return torch.stack(dots).to(coefs.dtype), *grads


def gated_sum(coefs: Tensor, *values: Tensor) -> Tensor:
    """The sum of coefficient times value: `coefs` is `(1, values)`."""
    total: Tensor
    if torch.compiler.is_compiling():
        dtype = functools.reduce(torch.promote_types, [v.dtype for v in values])
        terms = [value * factor for value, factor in zip(values, coefs[0].to(dtype), strict=True)]
        total = functools.reduce(torch.Tensor.add, terms)
    else:
        total = _GatedSum.apply(coefs[0], *values)
    return total


class _Projection(Function):
    """`(filled, weight (outputs, values, channels), positions) -> filled, y`: y sums every value times its matrix."""

    @staticmethod
    def forward(ctx: Any, filled: Tensor, weight: Tensor, positions: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        ctx.positions = positions
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(filled, weight)
        matrices, values = weight.to(filled.dtype), [filled[k] for k in positions]
        with _no_autocast(filled):
            if _in_a_chain(filled):
                y = _products(values, matrices.permute(1, 2, 0).unbind())
            else:
                y = _image(torch.cat([_pixels(x) for x in values], 1) @ matrices.flatten(1).t(), filled[0])
        return filled.data, y.data

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor | None, grad: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return total, None, None
        filled, weight = ctx.saved_tensors
        given = _pixels(grad)
        weight_grad = None
        if ctx.needs_input_grad[1]:
            low, high = min(ctx.positions), max(ctx.positions)
            slots = _pixels(filled, 1)[low : high + 1]  # those in between, too: copying the others would take longer
            weight_grads = torch.bmm(given.t().expand(len(slots), -1, -1), slots)
            weight_grad = weight_grads[_index((ctx.positions,), given.device, low)[0]].transpose(0, 1)
        if not ctx.needs_input_grad[0]:
            return None, weight_grad, None
        first = total is None
        if total is None:
            total = _new_slots(len(filled), filled[0])
            for k in set(range(len(filled))) - set(ctx.positions):
                total[k].zero_()
        for k, matrix in zip(ctx.positions, weight.to(filled.dtype).unbind(1), strict=True):
            if first:
                torch.mm(given, matrix, out=_pixels(total[k]))
            else:
                _pixels(total[k]).addmm_(given, matrix)
        return total, weight_grad, None


def _in_a_chain(x: Tensor) -> bool:
    """Whether to project by a chain of products, each added to the last, which spares joining what is projected.

    Half precision would round after every addition, and off the CPU starting kernels costs more than a copy.
    """
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")


def _products(values: Sequence[Tensor], matrices: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """The sum over values `(N, C, ...)` of pixels times matrix `(C, outputs)`, plus the bias: `(N, outputs, ...)`."""
    first = _pixels(values[0])
    y = torch.mm(first, matrices[0]) if bias is None else torch.addmm(bias, first, matrices[0])
    for value, matrix in zip(values[1:], matrices[1:], strict=True):
        y.addmm_(_pixels(value), matrix)
    return _image(y, values[0])


def _image(pixels: Tensor, like: Tensor) -> Tensor:
    """`(N * pixels, outputs)` as `(N, outputs, ...)`, for a value `(N, C, ...)`."""
    n, _, *sides = like.shape
    return pixels.view(n, *sides, -1).movedim(-1, 1)


def scaled(weight: Tensor, coefs: Tensor, channels: tuple[int, ...]) -> Tensor:
    """The 1x1 weight `(outputs, sum of channels, 1, ...)`, each input's columns times its coefficient `(1, inputs)`."""
    counts = _index((channels,), weight.device)[0]
    return weight * coefs[0].repeat_interleave(counts, output_size=sum(channels)).to(weight.dtype).view(
        1, -1, *weight.shape[2:]
    )


def projection(stack: Stack, weight: Tensor, bias: Tensor | None, positions: tuple[int, ...]) -> tuple[Stack, Tensor]:
    """`(stack, y)`: the 1x1 convolution over the slots at `positions`, in the order of the weight's columns.

    `weight` is `(outputs, len(positions) * C, 1, ...)`, y is `(N, outputs, ...)`.
    """
    if torch.compiler.is_compiling():
        return stack, convolve(torch.cat([stack.filled[k] for k in positions], 1), weight, bias)
    outputs = len(weight)
    filled, y = _Projection.apply(stack.filled, weight.view(outputs, len(positions), -1), positions)
    return Stack(stack.buffer, filled), y if bias is None else y + bias.to(y.dtype).view(-1, *weight.shape[2:])


def joint_projection(weight: Tensor, bias: Tensor | None, *values: Tensor) -> Tensor:
    """The 1x1 convolution `(N, outputs, ...)` over values `(N, C, ...)` of any channels, joined in this order."""
    if torch.compiler.is_compiling() or not all(map(_in_a_chain, values)):
        return convolve(torch.cat(values, 1), weight, bias)
    matrices = torch.split(weight.flatten(1), [value.shape[1] for value in values], 1)
    return _products(values, [matrix.t() for matrix in matrices], bias)
