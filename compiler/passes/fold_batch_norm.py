"""`fold-batch-norm`: batch norm disappears into a convolution or linear layer before or after it.

At inference batch norm is affine, channel by channel:  BN(x) = a x + c  with  a = w / sqrt(var + eps),
c = b - a mean.

Backward, into the conv, depthwise conv, linear layer or batch norm that makes x and that nobody else reads:
    a (W x + b) + c = (a W) x + (a b + c)
also past averages between the two that nobody else reads: f(a x + c) = a f(x) + c, as of an average pool (the padding
is not counted), and where a >= 0 in every channel, of a max pool.

and past joins and sums that nobody else reads, if every part is made by such a layer:
    a [x1; x2] + c = [a1 x1 + c1; a2 x2 + c2]        a (x1 + x2) + c = (a x1 + c) + a x2

Forward, into the conv, depthwise conv or linear layer that alone reads the result, past averages:
    W (a x + c) + b = (W a) x + (W c + b)
only without padding (padding adds zeros, which stand for x = -c/a, not for 0) and without groups.

Batch norm stays after an activation, a max pool with a negative a, a sum or a join of such, and wherever the value in
between has another reader.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import PassError
from compiler.ir.graph import Model, Node, attrs_of
from compiler.ops import Affine, Channels, Numbers, Pixels, Reads, op, read_attrs, traits_alone
from compiler.passes.base import Pass
from compiler.passes.draft import Draft, Weights

Array = NDArray[Any]
Taken = tuple[Node, slice, bool]  # a layer, its channels of the norm, whether it takes c as well as a


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold batch norm into the convolution or linear layer before it, or after it where nothing is padded."""

    def run(self, model: Model) -> Model:
        """The model with fewer batch norms; the folded layers have a bias. PassError without weights."""
        norms = [n for n in model.graph.nodes() if traits_alone(n.op, n.attrs).affine is Affine.STATISTICS]
        if norms and not model.weights:
            raise PassError(self.name, norms[0].id, "there are no weights to fold", "load the run's weights first")
        draft, weights = Draft(model.graph), dict(model.weights)
        for norm in norms:
            scale, shift = affine_form(norm, weights)
            whole, sources = slice(0, len(scale)), draft.reads[norm.id]
            makers = _makers(draft, sources[0][0], scale, whole) if len(sources) == 1 else None
            reader = _reader(draft, norm) if makers is None else None
            takers = makers or ([(reader, whole, True)] if reader is not None else [])
            for layer, part, shifted in takers:
                _take_up(layer, weights, scale[part], shift[part] * shifted, of_output=makers is not None)
                draft.nodes[layer.id] = _with_bias(layer)
            if not takers:
                continue
            draft.redirect(norm.id, draft.reads[norm.id][0][0])
            for name in ("weight", "bias", "running_mean", "running_var"):
                del weights[f"{norm.id}.{name}"]
        return Model(draft.graph(), model.gates, weights)


def affine_form(norm: Node, weights: Weights) -> tuple[Array, Array]:
    """`a` and `c` of BN(x) = a x + c, in float64, one of each per channel."""
    weight, bias, mean, var = (
        np.asarray(weights[f"{norm.id}.{name}"], np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(var + read_attrs(norm.op, norm.attrs).eps)
    return scale, bias - scale * mean


def _makers(draft: Draft, source: str, scale: Array, part: slice, *, shifted: bool = True) -> list[Taken] | None:
    """The layers that make the value that is normalised and what each takes up; None if one cannot take its part."""
    if len(draft.users[source]) != 1:
        return None
    node, sources = draft.nodes[source], [src for src, _ in draft.reads[source]]
    traits = traits_alone(node.op, node.attrs)
    if traits.affine is Affine.STATISTICS or (traits.affine is Affine.WEIGHT and _may_have_bias(node)):
        return [(node, part, shifted)] if len(sources) == 1 else None
    if len(sources) > 1 and traits.unchanged is Numbers.ALL and op(node.op).reads is not Reads.TOGETHER:
        joined, begin, found = traits.channels is Channels.JOINED, part.start, []
        for slot, src in enumerate(sources):
            own = slice(begin, begin + draft.nodes[src].shape[0]) if joined else part
            taken = _makers(draft, src, scale, own, shifted=shifted and (joined or slot == 0))
            if taken is None:
                return None
            found += taken
            begin = own.stop if joined else begin
        return found
    if len(sources) != 1 or not all(traits.averages.has(a) for a in (scale[part].min(), scale[part].max())):
        return None
    return _makers(draft, sources[0], scale, part, shifted=shifted)


def _reader(draft: Draft, norm: Node) -> Node | None:
    """The layer that alone reads the normalised value; None if it cannot take the norm up."""
    node = norm
    while len(draft.users[node.id]) == 1:
        node = draft.nodes[draft.users[node.id][0]]
        traits = traits_alone(node.op, node.attrs)
        if len(draft.reads[node.id]) != 1:
            return None
        whole = traits.pixels in (Pixels.KEPT, Pixels.WINDOW) and traits.channels in (Channels.KEPT, Channels.MIXED)
        if whole and traits.affine is Affine.WEIGHT and _may_have_bias(node):
            return node
        if traits.averages is not Numbers.ALL:
            return None
    return None


def _take_up(layer: Node, weights: Weights, scale: Array, shift: Array, *, of_output: bool) -> None:
    """Put `a x + c` of the layer's output, or else of its input, into its weight and bias."""
    weight = weights[f"{layer.id}.weight"]
    bias = np.asarray(weights.get(f"{layer.id}.bias", 0.0), np.float64)
    kept = traits_alone(layer.op, layer.attrs).channels is Channels.KEPT
    dim = 0 if of_output or kept else 1
    if of_output:
        bias = bias * scale + shift
    else:
        bias = bias + (weight * _along(shift, dim, weight)).sum(axis=tuple(range(1, weight.ndim)))
    weights[f"{layer.id}.weight"] = (weight * _along(scale, dim, weight)).astype(weight.dtype)
    weights[f"{layer.id}.bias"] = bias.astype(weight.dtype)


def _may_have_bias(node: Node) -> bool:
    return "bias" in op(node.op).attrs.model_fields


def _with_bias(node: Node) -> Node:
    return replace(node, attrs=attrs_of(dict(node.attrs) | {"bias": True})) if _may_have_bias(node) else node


def _along(values: Array, dim: int, weight: Array) -> Array:
    """One value per index of `dim`, shaped to multiply `weight`."""
    return values.reshape([-1 if d == dim else 1 for d in range(weight.ndim)])
