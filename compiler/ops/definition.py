"""What an op is: attributes, how it reads its inputs, shape rule, parameters and cost, or its parts; its traits.

An op is either *primitive* (its row says shapes, parameters, multiply-adds and traits, and each backend table has a row
for it) or *made of parts*: a chain of primitive ops, from which everything else follows. `sep_conv` is depthwise conv,
pointwise conv, batch norm, relu; its weights are called `<node>.depthwise.weight`, ..., exactly as the nodes that the
`expand-parts` pass puts in its place. Knows no op; the rows are in `weighted` and `weightless`. No torch, no onnx here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from compiler.docstrings import describe
from compiler.errors import GraphspecError
from compiler.ir.graph import Attrs
from compiler.ops.traits import NOTHING, Traits


class OpAttrs(BaseModel):
    """Base of all attribute models: unknown attributes are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, json_schema_extra=describe, allow_inf_nan=False)


class Reads(enum.Enum):
    """How an op takes several inputs."""

    SUM = "sum"  # they are added (each times its gate), then the op is applied
    APART = "apart"  # each is taken on its own, in slot order; one may be dropped (concat, project)
    TOGETHER = "together"  # each is taken on its own; without one of them there is no value (multiply)


class TypeMismatchError(GraphspecError):
    """The types an op reads do not fit it; the message says what was found and expected."""


@dataclass(frozen=True, slots=True)
class Step:
    """One part of an op: its name inside the node, the primitive op and that op's attributes."""

    name: str
    op: str
    attrs: Attrs = ()


Shape = tuple[int, ...]
ParamRule = Callable[[Any, list[Shape], Shape], dict[str, Shape]]
PartsRule = Callable[[Any], tuple[Step, ...]]
TraitsRule = Callable[[Any], Traits]


@dataclass(frozen=True)
class Op:
    """A row of the catalogue.

    Primitive ops give `infer` (and `params`, `buffers`, `flops`, `traits` where they have any); ops with parts give
    `parts`, which may answer `()` when the attributes make the op primitive (a conv without norm and activation).
    Shape rules get the shapes of all inputs (already one for ops that sum) and raise `TypeMismatchError`. Traits that
    depend on the attributes are a function of them, whose docstring says how.
    """

    name: str
    doc: str
    attrs: type[OpAttrs] = OpAttrs
    reads: Reads = Reads.SUM
    infer: Callable[[Any, list[Shape]], Shape] | None = None
    params: ParamRule = lambda attrs, ins, out: {}
    buffers: ParamRule = lambda attrs, ins, out: {}
    flops: Callable[[Any, list[Shape], Shape], int] = lambda attrs, ins, out: 0
    parts: PartsRule = lambda attrs: ()
    traits: Traits | TraitsRule = NOTHING
    sets_channels: bool = False  # has an attribute `channels`; otherwise channels follow from the inputs
    torch: str | None = None  # custom ops: "module:function" of the row for the torch lowering
    onnx: str | None = None  # custom ops: "module:function" of the row for the ONNX lowering

    def read_attrs(self, attrs: Mapping[str, Any]) -> Any:
        """The validated attribute model; pydantic's ValidationError if an attribute is unknown or wrong."""
        return self.attrs.model_validate(dict(attrs))

    def describe_traits(self) -> str:
        """The traits in words, for the catalogue that people read."""
        if self.infer is None:
            return "those of its parts"
        return str(self.traits) if isinstance(self.traits, Traits) else " ".join((self.traits.__doc__ or "").split())
