"""`fold-batch-norm`: batch norm disappears into a convolution or linear layer before or after it.

At inference batch norm is affine, channel by channel:  BN(x) = a x + c  with  a = w / sqrt(var + eps),
c = b - a mean.

Backward, into the conv, depthwise conv, linear layer or batch norm that makes x and that nobody else reads:
    a (W x + b) + c = (a W) x + (a b + c)
also past pools between the two that nobody else reads, because an average of a x + c is a (average of x) + c (the
padding is not counted), and so is a maximum where a >= 0 in every channel.

Forward, into the conv, depthwise conv or linear layer that alone reads the result, past averages:
    W (a x + c) + b = (W a) x + (W c + b)
only without padding (padding adds zeros, which stand for x = -c/a, not for 0) and without groups.

Batch norm stays after an activation, a max pool with a negative a, a sum or a join, and wherever the value in between
has another reader.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import PassError
from compiler.ir.graph import Model, Node, attrs_of
from compiler.ops import parts, read_attrs
from compiler.passes.base import Pass
from compiler.passes.draft import Draft

AVERAGES = frozenset({"avg_pool", "global_avg_pool", "identity", "dropout", "drop_path"})
AFFINE = frozenset({"conv", "depthwise_conv", "linear", "batch_norm"})

Array = NDArray[Any]
Weights = dict[str, Array]


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold batch norm into the convolution or linear layer before it, or after it where nothing is padded."""

    name = "fold-batch-norm"

    def run(self, model: Model) -> Model:
        """The model with fewer batch norms; the folded layers have a bias. PassError without weights."""
        norms = [n for n in model.graph.nodes() if n.op == "batch_norm" and _is_bare(n)]
        if norms and not model.weights:
            raise PassError(self.name, norms[0].id, "there are no weights to fold", "load the run's weights first")
        draft, weights = Draft(model.graph), dict(model.weights)
        users = draft.users()
        renamed: dict[str, str] = {}
        for norm in norms:
            scale, shift = _affine_form(norm, weights)
            if not (
                _fold_backward(draft, users, weights, norm, scale, shift)
                or _fold_forward(draft, users, weights, norm, scale, shift)
            ):
                continue
            source = draft.reads[norm.id][0][0]
            draft.redirect(norm.id, source, users)
            renamed[norm.id] = source
            for name in ("weight", "bias", "running_mean", "running_var"):
                del weights[f"{norm.id}.{name}"]
        return Model(draft.graph(renamed=renamed), model.gates, weights)


def _affine_form(norm: Node, weights: Weights) -> tuple[Array, Array]:
    """`a` and `c` of BN(x) = a x + c, in float64, one of each per channel."""
    weight, bias, mean, var = (
        np.asarray(weights[f"{norm.id}.{name}"], np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(var + read_attrs(norm.op, norm.attrs).eps)
    return scale, bias - scale * mean


def _fold_backward(
    draft: Draft, users: dict[str, list[str]], weights: Weights, norm: Node, scale: Array, shift: Array
) -> bool:
    """Into what makes the value that is normalised; False if that cannot be done."""
    past = AVERAGES | ({"max_pool"} if (scale >= 0).all() else set())
    node = norm
    while True:
        sources = draft.reads[node.id]
        if len(sources) != 1 or len(users[sources[0][0]]) != 1:
            return False
        node = draft.nodes[sources[0][0]]
        if node.op in AFFINE and _is_bare(node):
            break
        if node.op not in past or not _is_bare(node):
            return False
    weight = weights[f"{node.id}.weight"]
    bias = np.asarray(weights.get(f"{node.id}.bias", 0.0), np.float64)
    weights[f"{node.id}.weight"] = _like(weight, weight * _along(scale, 0, weight))
    weights[f"{node.id}.bias"] = _like(weight, bias * scale + shift)
    draft.nodes[node.id] = _with_bias(node)
    return True


def _fold_forward(
    draft: Draft, users: dict[str, list[str]], weights: Weights, norm: Node, scale: Array, shift: Array
) -> bool:
    """Into what alone reads the normalised value; False if that cannot be done."""
    node = norm
    while True:
        if len(users[node.id]) != 1:
            return False
        node = draft.nodes[users[node.id][0]]
        if len(draft.reads[node.id]) != 1 or not _is_bare(node):
            return False
        if _takes_an_affine_input(node):
            break
        if node.op not in AVERAGES:
            return False
    weight = weights[f"{node.id}.weight"]
    bias = np.asarray(weights.get(f"{node.id}.bias", 0.0), np.float64)
    dim = 0 if node.op == "depthwise_conv" else 1
    moved = (weight * _along(shift, dim, weight)).sum(axis=tuple(range(1, weight.ndim)))
    weights[f"{node.id}.weight"] = _like(weight, weight * _along(scale, dim, weight))
    weights[f"{node.id}.bias"] = _like(weight, bias + moved)
    draft.nodes[node.id] = _with_bias(node)
    return True


def _takes_an_affine_input(node: Node) -> bool:
    if node.op == "linear":
        return True
    attrs = read_attrs(node.op, node.attrs)
    return (node.op == "depthwise_conv" and attrs.pad == 0) or (
        node.op == "conv" and attrs.pad == 0 and attrs.groups == 1
    )


def _is_bare(node: Node) -> bool:
    """Whether the node is primitive: nothing follows its op inside of it."""
    return not parts(node.op, node.attrs)


def _with_bias(node: Node) -> Node:
    return node if node.op == "batch_norm" else replace(node, attrs=attrs_of(dict(node.attrs) | {"bias": True}))


def _along(values: Array, dim: int, weight: Array) -> Array:
    """One value per index of `dim`, shaped to multiply `weight`."""
    return values.reshape([-1 if d == dim else 1 for d in range(weight.ndim)])


def _like(weight: Array, value: Array) -> Array:
    return value.astype(weight.dtype)
