"""Ops: what one is, the rows of the built-in ones, and what follows from a row.

`definition` and `traits` know no op; `weighted` and `weightless` are rows; `registry` reads them; `measures` and
`chains` say what follows for a node. Other packages, those of custom ops too, import all of it from here.
"""

from compiler.ir.graph import attrs_of
from compiler.ops.chains import (
    Scale,
    chain_of,
    gives_zeros,
    is_projection,
    joins_into_weight,
    only_merges,
    scale_after,
    traits_alone,
)
from compiler.ops.definition import Op, OpAttrs, Reads, Shape, Step, TypeMismatchError
from compiler.ops.measures import BYTES, Cost, cost, infer, input_shapes, node_cost, node_tensors, tensors, walk
from compiler.ops.registry import (
    UnknownOpError,
    explain_attr_errors,
    known_ops,
    op,
    parts,
    read_attrs,
    register,
    steps,
    traits_of,
)
from compiler.ops.traits import IDENTITY, NOTHING, Affine, Channels, Numbers, Pixels, Traits, Values

__all__ = [
    "BYTES", "IDENTITY", "NOTHING", "Affine", "Channels", "Cost", "Numbers", "Op", "OpAttrs", "Pixels", "Reads",
    "Scale", "Shape", "Step", "Traits", "TypeMismatchError", "UnknownOpError", "Values", "attrs_of", "chain_of", "cost",
    "explain_attr_errors", "gives_zeros", "infer", "input_shapes", "is_projection", "joins_into_weight",
    "known_ops", "node_cost", "node_tensors", "only_merges", "op", "parts", "read_attrs", "register", "scale_after",
    "steps", "tensors", "traits_alone", "traits_of", "walk",
]  # fmt: skip
