"""All passes by name: the registry is this literal."""

from __future__ import annotations

from compiler.passes.base import Pass
from compiler.passes.infer_types import InferTypes
from compiler.passes.prune_zero_edges import PruneZeroEdges

PASSES: dict[str, type[Pass]] = {p.name: p for p in (InferTypes, PruneZeroEdges)}
