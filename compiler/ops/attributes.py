"""Attributes that several ops have, and the rules that follow from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from compiler.ir.graph import AttrValue, attrs_of
from compiler.ops.definition import OpAttrs, PartsRule, Shape, Step
from compiler.ops.windows import Window

Epsilon = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(gt=0, le=10**9)]
Activation = Literal[
    "none", "relu", "relu6", "hard_swish", "silu", "gelu", "sigmoid", "hard_sigmoid", "tanh", "leaky_relu", "elu",
    "prelu",
]  # fmt: skip


class BatchNormSettings(OpAttrs):
    """How batch norm computes."""

    eps: Epsilon = 2e-5
    """Of batch norm: added to the variance."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Of batch norm: share of the newest batch in the running statistics."""


class Finish(BatchNormSettings):
    """What may follow the op itself inside the same node."""

    norm: Literal["batch", "none"] = "none"
    """`batch`: batch norm follows."""
    act: Activation = "none"
    """Activation that comes last."""


def same(attrs: OpAttrs, ins: list[Shape]) -> Shape:
    """The shape rule of ops that keep the shape."""
    return ins[0]


def step(name: str, op: str, **attrs: AttrValue) -> Step:
    """A part with these attributes."""
    return Step(name, op, attrs_of(attrs))


def finish(a: Any) -> tuple[Step, ...]:
    """The parts that follow an op in its node, as its attributes `norm` and `act` say."""
    settings = [(key, getattr(a, key), field.default) for key, field in BatchNormSettings.model_fields.items()]
    written = {key: value for key, value, default in settings if value != default}
    norms = (step("norm", "batch_norm", **written),) if getattr(a, "norm", "none") == "batch" else ()
    return (*norms, Step("act", a.act)) if a.act != "none" else norms


def alone_then_finish(name: str, op: str, **off: AttrValue) -> PartsRule:
    """The parts rule of an op that norm and activation may follow: the op alone as the step `name`, then those.

    None at all where nothing follows, because the op is primitive then. `off` are attributes of the op alone.
    """

    def rule(a: Any) -> tuple[Step, ...]:
        follow = finish(a)
        of_others = {"norm", "act"} | (BatchNormSettings.model_fields.keys() if hasattr(a, "norm") else set())
        own: dict[str, AttrValue] = {key: value for key, value in a if key not in of_others} | off
        if isinstance(a, Window):
            own["padding"] = a.pad
        if own.get("bias", True) is None:
            own["bias"] = a.norm == "none"
        return (step(name, op, **own), *follow) if follow else ()

    return rule
