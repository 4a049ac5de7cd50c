"""What an op is: its attributes, how it reads its inputs, its shape rule, parameters and cost, or its parts.

An op is either *primitive* (its row says shapes, parameters and multiply-adds, and each backend table has a row for
it) or *made of parts*: a chain of primitive ops, from which everything else follows. `sep_conv` is depthwise conv,
pointwise conv, batch norm, relu; its weights are called `<node>.depthwise.weight`, ..., exactly as the nodes that the
`expand-parts` pass puts in its place. The rows themselves are in `compiler.catalogue`. No torch, no onnx here.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from compiler.errors import GraphspecError, did_you_mean
from compiler.ir.graph import Attrs, Graph, Node, TensorType, attrs_of
from compiler.language.findings import describe

BYTES = 4  # float32


class OpAttrs(BaseModel):
    """Base of all attribute models: unknown attributes are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Reads(enum.Enum):
    """How an op takes several inputs."""

    SUM = "sum"  # they are added (each times its gate), then the op is applied
    APART = "apart"  # each is taken on its own, in slot order; one may be dropped (concat, project)


class TypeMismatchError(GraphspecError):
    """The types an op reads do not fit it; the message says what was found and expected."""


@dataclass(frozen=True, slots=True)
class Step:
    """One part of an op: its name inside the node, the primitive op and that op's attributes."""

    name: str
    op: str
    attrs: Attrs = ()


Shape = tuple[int, ...]
InferRule = Callable[[Any, list[Shape]], Shape]
ParamRule = Callable[[Any, list[Shape], Shape], dict[str, Shape]]
FlopRule = Callable[[Any, list[Shape], Shape], int]
PartsRule = Callable[[Any], tuple[Step, ...]]


@dataclass(frozen=True)
class Op:
    """A row of the catalogue.

    Primitive ops give `infer` (and `params`, `buffers`, `flops` where they have any); ops with parts give `parts`,
    which may answer `()` when the attributes make the op primitive (a conv without norm and activation).
    Shape rules get the shapes of all inputs (already one for ops that sum) and raise `TypeMismatchError`.
    """

    name: str
    doc: str
    attrs: type[OpAttrs] = OpAttrs
    reads: Reads = Reads.SUM
    infer: InferRule | None = None
    params: ParamRule = lambda attrs, ins, out: {}
    buffers: ParamRule = lambda attrs, ins, out: {}
    flops: FlopRule = lambda attrs, ins, out: 0
    parts: PartsRule = lambda attrs: ()
    sets_channels: bool = False  # has an attribute `channels`; otherwise channels follow from the inputs
    training_only: bool = False  # computes nothing at inference (dropout)
    torch: str | None = None  # custom ops: "module:function" of the row for the torch lowering
    onnx: str | None = None  # custom ops: "module:function" of the row for the ONNX lowering

    def read_attrs(self, attrs: Mapping[str, Any]) -> Any:
        """The validated attribute model; pydantic's ValidationError if an attribute is unknown or wrong."""
        return self.attrs.model_validate(dict(attrs))


class UnknownOpError(GraphspecError):
    """No op of that name is in the catalogue or offered by an installed package."""


_ROWS: dict[str, Op] = {}


def register(*rows: Op) -> None:
    """Add rows to the catalogue; ValueError if a name is taken by a different row."""
    for row in rows:
        if _ROWS.get(row.name, row) is not row:
            raise ValueError(f"an op called {row.name!r} is registered already")
        _ROWS[row.name] = row


@functools.cache
def _load_installed_ops() -> None:
    """Register the ops that installed packages offer under the entry point group `graphspec.ops`."""
    for entry in entry_points(group="graphspec.ops"):
        try:
            row = entry.load()
        except Exception as error:
            raise GraphspecError(
                f"the custom op {entry.name!r} ({entry.value}) cannot be imported: {error}\n"
                f"  try: mend or uninstall the package that offers it"
            ) from error
        if not isinstance(row, Op) or row.name != entry.name:
            raise GraphspecError(
                f"the entry point {entry.name!r} ({entry.value}) must be a compiler.ops.Op called {entry.name!r}, "
                f"not {row!r}"
            )
        if row.name in _ROWS:
            raise GraphspecError(
                f"the custom op {entry.name!r} ({entry.value}) has the name of an op that is there already\n"
                f"  try: rename it, or uninstall one of the packages that offer it"
            )
        register(row)


def known_ops() -> dict[str, Op]:
    """Every op by name: the built-in catalogue, then installed custom ops."""
    import compiler.catalogue  # noqa: F401  (registers the built-in rows; imports this module)

    _load_installed_ops()
    return _ROWS


@functools.cache
def op(name: str) -> Op:
    """The row of this name; UnknownOpError with a suggestion if there is none."""
    if name not in known_ops():
        raise UnknownOpError(f"unknown op {name!r}{did_you_mean(name, _ROWS)}")
    return _ROWS[name]


@functools.lru_cache(maxsize=65536)
def read_attrs(name: str, attrs: Attrs) -> Any:
    """A node's attributes as its op's model (cached: graphs repeat the same few)."""
    return op(name).read_attrs(dict(attrs))


@functools.lru_cache(maxsize=65536)
def parts(name: str, attrs: Attrs) -> tuple[Step, ...]:
    """The chain of primitive ops a node stands for; empty if the node is primitive itself.

    GraphspecError if a custom op is made of ops that have parts themselves, or has neither parts nor a shape rule.
    """
    found = op(name).parts(read_attrs(name, attrs))
    for step in found:
        if op(step.op).parts(read_attrs(step.op, step.attrs)):
            raise GraphspecError(
                f"the part {step.name!r} of the op {name!r} is made of parts itself\n"
                f"  try: primitive ops only; for {step.op}, norm and act `none` and steps of their own for both"
            )
    for primitive in [step.op for step in found] or [name]:
        if op(primitive).infer is None:
            raise GraphspecError(
                f"the op {primitive!r} has neither parts nor a shape rule\n  try: give its Op `infer` or `parts`"
            )
    return found


def steps(name: str, attrs: Attrs) -> tuple[Step, ...]:
    """The primitive ops a node runs: its parts, or itself as the only step (with an empty name)."""
    return parts(name, attrs) or (Step("", name, attrs),)


def infer(name: str, attrs: Attrs, inputs: list[TensorType]) -> TensorType:
    """The type a node gives for the types it reads; TypeMismatchError with what was found and expected."""
    if op(name).reads is Reads.SUM and inputs:
        inputs = [_common_type(name, inputs)]
    return _infer_chain(name, attrs, tuple(inputs))


def _common_type(name: str, inputs: list[TensorType]) -> TensorType:
    for other in inputs[1:]:
        if other is not inputs[0] and other != inputs[0]:
            raise TypeMismatchError(f"{name} adds its inputs, which must have one type; found {inputs[0]} and {other}")
    return inputs[0]


@functools.lru_cache(maxsize=65536)
def _infer_chain(name: str, attrs: Attrs, inputs: tuple[TensorType, ...]) -> TensorType:
    shapes = [t.shape for t in inputs]
    for step in steps(name, attrs):
        row = op(step.op)
        assert row.infer is not None
        shapes = [row.infer(read_attrs(step.op, step.attrs), shapes)]
        if min(shapes[0], default=1) < 1:
            raise TypeMismatchError(
                f"{name} would give {TensorType(shapes[0])} from {inputs[0]}: every size must be at least 1"
            )
    return TensorType(shapes[0])


@dataclass(frozen=True)
class Cost:
    """What one node costs per image. Costs add up."""

    params: int = 0  # trainable numbers
    flops: int = 0  # multiply-adds of convolutions and linear layers (torch.utils.flop_counter counts 2 for each)
    mac_bytes: int = 0  # memory access cost: inputs read + output written + weights read
    activation_bytes: int = 0  # outputs of all steps: what a training step keeps for its backward pass

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.params + other.params,
            self.flops + other.flops,
            self.mac_bytes + other.mac_bytes,
            self.activation_bytes + other.activation_bytes,
        )


@dataclass(frozen=True)
class NodeTensors:
    """Names and shapes of what a node keeps: `<step>.<param>` (or `<param>` where the node is primitive)."""

    params: dict[str, Shape] = field(default_factory=dict)
    buffers: dict[str, Shape] = field(default_factory=dict)


Walked = tuple[Step, Op, Any, list[Shape], Shape]
"""A step with its row, attributes, input shapes and output shape."""


def walk(name: str, attrs: Attrs, inputs: tuple[Shape, ...]) -> list[Walked]:
    """Every step of a node with its row, attributes, input shapes and output shape."""
    rows = []
    shapes = list(inputs)
    for step in steps(name, attrs):
        row, model = op(step.op), read_attrs(step.op, step.attrs)
        assert row.infer is not None
        out = row.infer(model, shapes)
        rows.append((step, row, model, shapes, out))
        shapes = [out]
    return rows


def input_shapes(graph: Graph, node: Node) -> tuple[Shape, ...]:
    """Shapes a node's first step reads: one for ops that sum, one per edge for ops that read apart."""
    edges = graph.inputs(node.id)
    if op(node.op).reads is Reads.SUM:
        edges = edges[:1]
    return tuple(graph.node(e.src).shape for e in edges)


@functools.lru_cache(maxsize=65536)
def tensors(name: str, attrs: Attrs, inputs: tuple[Shape, ...]) -> NodeTensors:
    """Parameters and buffers of a node for the shapes its first step reads."""
    found = NodeTensors()
    for step, row, model, shapes, out in walk(name, attrs, inputs):
        prefix = f"{step.name}." if step.name else ""
        found.params.update({prefix + k: v for k, v in row.params(model, shapes, out).items()})
        found.buffers.update({prefix + k: v for k, v in row.buffers(model, shapes, out).items()})
    return found


@functools.lru_cache(maxsize=65536)
def cost(name: str, attrs: Attrs, inputs: tuple[Shape, ...], reads: int) -> Cost:
    """Cost of a node; `reads` is the number of values it reads (a sum of k inputs reads all k).

    Norms and activations inside a node run in the registers of the step before, so they add no memory access: the
    convention behind the paper's published MAC ratios (0.986 : 1.0 : 0.447 for sep 3x3, sep 5x5, pool at 16x16x96).
    """
    total = Cost()
    for index, (step, row, model, shapes, out) in enumerate(walk(name, attrs, inputs)):
        weights = sum(math.prod(s) for s in row.params(model, shapes, out).values())
        read = sum(math.prod(s) for s in shapes)
        if index == 0 and op(name).reads is Reads.SUM:
            read *= reads
        fused = index > 0 and step.name in FUSED_STEPS
        moved = 0 if fused else (read + math.prod(out) + weights) * BYTES
        total += Cost(weights, row.flops(model, shapes, out), moved, math.prod(out) * BYTES)
    return total


FUSED_STEPS = frozenset({"norm", "act"})


def node_cost(graph: Graph, node: Node) -> Cost:
    """Cost of a node where it stands."""
    if node.op in ("input", "output"):
        return Cost()
    return cost(node.op, node.attrs, input_shapes(graph, node), len(graph.inputs(node.id)))


def node_tensors(graph: Graph, node: Node) -> NodeTensors:
    """Parameters and buffers of a node where it stands."""
    if node.op == "input":
        return NodeTensors()
    return tensors(node.op, node.attrs, input_shapes(graph, node))


def is_scale_invariant(name: str, attrs: Attrs) -> bool:
    """Whether scaling all inputs together leaves the output (to eps) as it is: batch norm follows a linear step."""
    for step in steps(name, attrs):
        if step.op == "batch_norm":
            return True
        if step.op not in (
            "conv",
            "depthwise_conv",
            "max_pool",
            "avg_pool",
            "linear",
            "concat",
            "add",
            "identity",
            "global_avg_pool",
        ):
            return False
        if getattr(read_attrs(step.op, step.attrs), "bias", False):
            return False
    return False


def explain_attr_errors(name: str, error: ValidationError) -> list[tuple[str, str]]:
    """Pydantic's findings as (attribute, message) pairs with suggestions for misspelt attributes."""
    known = list(op(name).attrs.model_fields)
    found, near = [], set()
    for item in error.errors():
        attr = str(item["loc"][0]) if item["loc"] else ""
        if item["type"] == "extra_forbidden":
            hint = did_you_mean(attr, known)
            near |= {other for other in known if hint == did_you_mean(attr, (other,))}
            allowed = f"; {name} takes {', '.join(known)}" if known else f"; {name} takes no attributes"
            found.append((attr, f"unknown attribute {attr!r}{hint or allowed}"))
        elif item["type"] != "missing":
            found.append((attr, f"{attr}: {describe(item)}"))
    missing = [str(item["loc"][0]) for item in error.errors() if item["type"] == "missing"]
    found += [("", f"{name} needs the attribute {attr!r}") for attr in missing if attr not in near]
    return found


__all__ = [
    "Cost", "NodeTensors", "Op", "OpAttrs", "Reads", "Step", "TypeMismatchError", "UnknownOpError", "attrs_of", "cost",
    "explain_attr_errors", "infer", "input_shapes", "is_scale_invariant", "known_ops", "node_cost", "node_tensors",
    "op", "parts", "read_attrs", "register", "steps", "tensors", "walk",
]  # fmt: skip
