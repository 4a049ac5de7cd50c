"""`ungroup`: a convolution of few narrow groups becomes one between all channels, with zeros between the groups.

    [W1 x1; W2 x2]   ->   [[W1, 0], [0, W2]] [x1; x2]

onnxruntime's fast kernels want groups of 16 channels or its multiples. For others it takes slower ones, by more than
the multiply-adds with zeros cost where there are at most `MOST_GROUPS` groups and the value is small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from compiler.ir.graph import Model, Node, attrs_of
from compiler.ops import Affine, Channels, read_attrs, traits_alone
from compiler.passes.base import Pass
from compiler.passes.draft import Draft
from compiler.passes.pad_channels import MULTIPLE
from compiler.passes.split_projections import LARGE

MOST_GROUPS = 4


@dataclass(frozen=True)
class Ungroup(Pass):
    """Turn convolutions of few narrow groups into ones between all channels; only where there are weights."""

    def run(self, model: Model) -> Model:
        """The model with fewer groups."""
        draft, weights = Draft(model.graph), dict(model.weights)
        for node in model.graph.nodes() if weights else ():
            traits, key = traits_alone(node.op, node.attrs), f"{node.id}.weight"
            if traits.channels is not Channels.GROUPED or traits.affine is not Affine.WEIGHT:
                continue
            groups = read_attrs(node.op, node.attrs).groups
            if _are_slow(groups, weights[key].shape, node):
                weights[key] = _diagonal(weights[key], groups)
                draft.nodes[node.id] = replace(node, attrs=attrs_of(dict(node.attrs) | {"groups": 1}))
        return replace(model, graph=draft.graph(), weights=weights)


def _are_slow(groups: int, weight: tuple[int, ...], node: Node) -> bool:
    """Whether groups with a weight of this shape are slower than none."""
    narrow = any(channels % MULTIPLE for channels in (weight[0] // groups, weight[1]))
    return narrow and 1 < groups <= MOST_GROUPS and prod(node.shape) <= LARGE


def _diagonal(weight: Any, groups: int) -> Any:
    """(channels given, channels read by a group, ...) -> (channels given, all channels read, ...)."""
    given, read = len(weight) // groups, weight.shape[1]
    wide = np.zeros((len(weight), read * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * given, (group + 1) * given)
        wide[rows, group * read : (group + 1) * read] = weight[rows]
    return wide
