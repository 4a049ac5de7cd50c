"""Attributes that several ops have, and the rules that follow from them.

Sizes of windowed ops follow torch: `floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from compiler.ir.graph import AttrValue, attrs_of
from compiler.ops.definition import OpAttrs, PartsRule, Shape, Step, TypeMismatchError
from compiler.ops.traits import Pixels

Positive = Annotated[int, Field(gt=0)]
Activation = Literal["none", "relu", "relu6", "hard_swish", "silu", "gelu", "sigmoid"]


class Finish(OpAttrs):
    """What may follow the op itself inside the same node."""

    norm: Literal["batch", "none"] = "none"
    """`batch`: batch norm follows."""
    act: Activation = "none"
    """Activation that comes last."""


class Window(OpAttrs):
    """A sliding window."""

    kernel: Positive
    """Side of the window in pixels."""
    stride: Positive = 1
    """Step of the window in pixels."""
    dilation: Positive = 1
    """Distance between neighbouring taps."""
    padding: Annotated[int, Field(ge=0)] | None = None
    """Zeros added on each side; default `dilation * (kernel - 1) // 2`, which keeps odd kernels' size at stride 1."""

    @property
    def pad(self) -> int:
        """Padding on each side in pixels."""
        return self.dilation * (self.kernel - 1) // 2 if self.padding is None else self.padding

    @property
    def pixels(self) -> Pixels:
        """From which pixels one is made, where the border is read as zeros."""
        if self.pad:
            return Pixels.PADDED
        return Pixels.KEPT if self.kernel == self.stride == 1 else Pixels.WINDOW


# -- rules ----------------------------------------------------------------------------------------------------------


def image(op: str, shape: Shape) -> Shape:
    """The shape of an image; TypeMismatchError if it is none."""
    if len(shape) != 3:
        raise TypeMismatchError(f"{op} takes an image [C, H, W], found {list(shape)}")
    return shape


def same(attrs: OpAttrs, ins: list[Shape]) -> Shape:
    """The shape rule of ops that keep the shape."""
    return ins[0]


def windowed(op: str, a: Window, shape: Shape, channels: int) -> Shape:
    """The shape after sliding a window over an image; TypeMismatchError if it does not fit."""
    _, height, width = image(op, shape)
    reach = a.dilation * (a.kernel - 1) + 1 - 2 * a.pad
    out = (channels, (height - reach) // a.stride + 1, (width - reach) // a.stride + 1)
    if min(out) < 1:
        raise TypeMismatchError(f"{op} with kernel {a.kernel} does not fit into {height}x{width} with padding {a.pad}")
    return out


def window_attrs(a: Window) -> dict[str, AttrValue]:
    """The attributes of a part that slides the same window."""
    return {"kernel": a.kernel, "stride": a.stride, "dilation": a.dilation, "padding": a.pad}


def step(name: str, op: str, **attrs: AttrValue) -> Step:
    """A part with these attributes."""
    return Step(name, op, attrs_of(attrs))


def finish(norm: str, act: str) -> tuple[Step, ...]:
    """The parts that follow an op in its node."""
    norms = (Step("norm", "batch_norm"),) if norm == "batch" else ()
    return (*norms, Step("act", act)) if act != "none" else norms


def alone_then_finish(name: str, op: str, **off: AttrValue) -> PartsRule:
    """The parts rule of an op that norm and activation may follow: the op alone as the step `name`, then those.

    None at all where nothing follows, because the op is primitive then. `off` are attributes of the op alone.
    """

    def rule(a: Any) -> tuple[Step, ...]:
        follow = finish(getattr(a, "norm", "none"), a.act)
        own: dict[str, AttrValue] = {key: value for key, value in a if key not in ("norm", "act")} | off
        if isinstance(a, Window):
            own["padding"] = a.pad
        if own.get("bias", True) is None:
            own["bias"] = a.norm == "none"
        return (step(name, op, **own), *follow) if follow else ()

    return rule
