"""All passes by name: the registry is this literal."""

from __future__ import annotations

from compiler.passes.base import Pass
from compiler.passes.collapse_identities import CollapseIdentities
from compiler.passes.drop_gates import DropGates
from compiler.passes.expand_parts import ExpandParts
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.fold_gates import FoldGates
from compiler.passes.infer_types import InferTypes
from compiler.passes.prune_zero_edges import PruneZeroEdges
from compiler.passes.reuse_sums import ReuseSums
from compiler.passes.share_equal_nodes import ShareEqualNodes
from compiler.passes.split_sums import SplitSums
from compiler.passes.training_parts import AddTrainingParts
from compiler.passes.widen import Widen

PASSES: dict[str, type[Pass]] = {
    p.name: p
    for p in (
        InferTypes,
        PruneZeroEdges,
        DropGates,
        FoldGates,
        ExpandParts,
        SplitSums,
        FoldBatchNorm,
        CollapseIdentities,
        ShareEqualNodes,
        ReuseSums,
        Widen,
        AddTrainingParts,
    )
}
