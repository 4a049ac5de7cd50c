"""Traits by arithmetic: what a row states holds on random inputs, and what it leaves out does not; then the passes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from compiler.ir.graph import Node, attrs_of
from compiler.lowering.torch.modules import torch_module
from compiler.ops import (
    Affine,
    Channels,
    Numbers,
    Pixels,
    Reads,
    Scale,
    Traits,
    Values,
    input_shapes,
    known_ops,
    op,
    read_attrs,
    scale_after,
    traits_of,
)
from tests.compiler.ops.cases import IN_NETWORKS, PRIMITIVE, Case, custom_ops, network

pytestmark = pytest.mark.usefixtures("with_custom_ops")
every_case = pytest.mark.parametrize("case", PRIMITIVE, ids=str)
with custom_ops():
    ONE_SHAPE = [case for case in PRIMITIVE if case.shapes == (case.out,)]
OF_IMAGES = [case for case in PRIMITIVE if all(len(shape) == 3 for shape in case.shapes)]


def traits(case: Case) -> Traits:
    return traits_of(case.op, case.attrs)


def close(a: Tensor, b: Tensor, rtol: float = 1e-9) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= rtol * (1 + b.abs())).all())


def value(case: Case, inputs: list[Tensor]) -> Tensor:
    return case.apply(inputs, case.weights())


def times(inputs: list[Tensor], factor: float) -> list[Tensor]:
    return [factor * x for x in inputs]


def per_channel(numbers: Tensor, x: Tensor) -> Tensor:
    return numbers.view(1, -1, *[1] * (x.dim() - 2))


def test_every_primitive_op_is_tried() -> None:
    primitive = {name for name, row in known_ops().items() if row.infer is not None}
    assert {case.op for case in PRIMITIVE} == primitive - {"input", "output", "silent"}
    assert {name for name, _ in IN_NETWORKS} == set(known_ops()) - {"input", "output"}


# -- numbers ----------------------------------------------------------------------------------------------------------


@every_case
def test_homogeneous(case: Case) -> None:
    x = case.inputs()
    for factor in (0.0, 0.3, -1.7):
        holds = close(value(case, times(x, factor)), factor * value(case, x))
        assert holds == traits(case).homogeneous.has(factor), factor


@every_case
def test_averages(case: Case) -> None:
    x, y = case.inputs(), value(case, case.inputs())
    counts = [shape[0] for shape in case.shapes]
    comparable = y.shape[1] == sum(counts) and traits(case).channels is not Channels.FLATTENED
    generator = torch.Generator().manual_seed(2)
    scale = 0.5 + torch.rand(sum(counts), generator=generator, dtype=torch.float64)
    b = torch.randn(sum(counts), generator=generator, dtype=torch.float64)
    b[0] = -b[0].abs()  # otherwise all may be positive, which some ops leave alone
    for sign in (0.0, 1.0, -1.0):
        a = sign * scale
        moved = [
            per_channel(m, v) * v + per_channel(n, v)
            for v, m, n in zip(x, a.split(counts), b.split(counts), strict=True)
        ]  # fmt: skip
        holds = comparable and close(value(case, moved), per_channel(a, y) * y + per_channel(b, y))
        assert holds == traits(case).averages.has(sign), sign


@pytest.mark.parametrize("case", ONE_SHAPE, ids=str)
def test_unchanged(case: Case) -> None:
    """It speaks of a single input whose shape stays."""
    stated, x = traits(case).unchanged, case.inputs()
    assert close(value(case, x), x[0]) == (stated is Numbers.ALL)
    assert close(value(case, [x[0].abs()]), x[0].abs()) == (stated >= Numbers.NONNEGATIVE)


@every_case
def test_values(case: Case) -> None:
    x, stated = case.inputs(), traits(case).values
    y, kept = value(case, x), value(case, [v.abs() for v in x])
    assert bool((y == 0).all()) == (stated is Values.ZERO)
    assert bool((y >= 0).all()) == (stated in (Values.NONNEGATIVE, Values.ZERO))
    assert bool((kept >= 0).all()) == (stated is not Values.ANY)


# -- affine maps ------------------------------------------------------------------------------------------------------


@every_case
def test_affine(case: Case) -> None:
    stated, weights = traits(case).affine, case.weights()
    x, other = case.inputs(0), case.inputs(5)
    zero = value(case, times(x, 0.0))
    both = value(case, [a + b for a, b in zip(x, other, strict=True)])
    is_affine = close(both + zero, value(case, x) + value(case, other))
    assert (is_affine and bool(weights)) == (stated is not Affine.NO)
    if stated is Affine.WEIGHT:
        assert weights.keys() <= {"weight", "bias"}
        y = case.apply(x, weights)
        assert close(case.apply(x, {name: 3 * tensor for name, tensor in weights.items()}), 3 * y)
        assert close(case.apply(x, weights | {"weight": 3 * weights["weight"]}), value(case, times(x, 3.0)))
        assert close(zero, per_channel(weights.get("bias", torch.zeros(y.shape[1])), y).expand_as(y))
        assert_scales_every_channel_apart(case)
    elif stated is Affine.STATISTICS:
        scale = weights["weight"] / (weights["running_var"] + read_attrs(case.op, case.attrs).eps).sqrt()
        shift = weights["bias"] - scale * weights["running_mean"]
        assert close(value(case, x), per_channel(scale, x[0]) * x[0] + per_channel(shift, x[0]))


def assert_scales_every_channel_apart(case: Case) -> None:
    weights, x = case.weights(), case.inputs()
    y = case.apply(x, weights)
    factors = torch.arange(1.0, y.shape[1] + 1, dtype=torch.float64)
    scaled = {n: factors.view(-1, *[1] * (t.dim() - 1)) * t for n, t in weights.items()}
    assert close(case.apply(x, scaled), per_channel(factors, y) * y)


# -- channels and pixels ----------------------------------------------------------------------------------------------


def reaches(case: Case) -> Tensor:
    """`(channels read, channels given)`: which depend on which."""
    x = case.inputs()
    y, rows = value(case, x), []
    for index, given in enumerate(x):
        for channel in range(given.shape[1]):
            changed = [v.clone() for v in x]
            changed[index][:, channel] = case.inputs(7)[index][:, channel]
            difference = (value(case, changed) - y).abs() > 1e-9
            rows.append(difference.transpose(0, 1).flatten(1).any(1))
    return torch.stack(rows)


@every_case
def test_channels(case: Case) -> None:
    found, stated = reaches(case), traits(case).channels
    own = torch.eye(len(found), dtype=torch.bool)
    if op(case.op).reads is Reads.TOGETHER:
        assert stated is Channels.KEPT
        assert torch.equal(found, own[: found.shape[1], : found.shape[1]].repeat(len(case.shapes), 1))
    elif stated is Channels.KEPT:
        assert found.shape == own.shape
        assert not (found & ~own).any()
        assert torch.equal(found, own) or traits(case).values is Values.ZERO
        assert_channels_are_alike(case)
    elif stated is Channels.JOINED:
        assert torch.equal(found, own)
    elif stated is Channels.FLATTENED:
        assert torch.equal(found, own.repeat_interleave(math.prod(case.shapes[0][1:]), 1))
    elif stated in (Channels.SHUFFLED, Channels.SLICED):
        assert_channels_move(case, found)
    elif stated is Channels.GROUPED:
        groups = read_attrs(case.op, case.attrs).groups
        sizes = [size // groups for size in found.shape]
        assert torch.equal(found, torch.block_diag(*[torch.ones(sizes)] * groups).bool())
    elif stated in (Channels.MIXED, Channels.SCALED):
        assert found.all()
        (assert_weight_takes_up_lost_channels if stated is Channels.MIXED else assert_zeros_may_be_left_out)(case)
    elif stated is Channels.AVERAGED:
        order = torch.randperm(len(found))
        assert found.all()
        assert close(value(case, [case.inputs()[0][:, order]]), value(case, case.inputs()))
    else:
        assert case.op in ("zero", "lrn")
        if case.op == "zero":  # with a number of channels of its own, which nothing that is read reaches
            assert not found.any()


def assert_channels_move(case: Case, found: Tensor) -> None:
    """Every channel given is one of those read, and none is given twice."""
    attrs = read_attrs(case.op, case.attrs)
    assert (found.sum(0) == 1).all()
    if traits(case).channels is Channels.SLICED:
        assert torch.equal(found, torch.eye(len(found), dtype=torch.bool)[:, attrs.start : attrs.stop])
    else:
        assert (found.sum(1) == 1).all()
        assert len(found) % attrs.groups == 0


def assert_channels_are_alike(case: Case) -> None:
    """Fewer channels, with the tensors' slices, give the same channels: they need not know of each other."""
    (x,), weights, left = case.inputs(), case.weights(), [0, 2, 3]
    sliced = {name: tensor[left] for name, tensor in weights.items()}
    assert close(case.apply([x[:, left]], sliced), case.apply([x], weights)[:, left])


def assert_weight_takes_up_lost_channels(case: Case) -> None:
    (x,), weights, left = case.inputs(), case.weights(), [0, 2, 3]
    assert traits(case).mixes_by_weight == ("weight" in weights and traits(case).affine is Affine.WEIGHT)
    if traits(case).mixes_by_weight:
        x[:, [i for i in range(x.shape[1]) if i not in left]] = 0
        sliced = weights | {"weight": weights["weight"][:, left]}
        assert close(case.apply([x[:, left]], sliced), case.apply([x], weights))


def assert_zeros_may_be_left_out(case: Case) -> None:
    """Without channels of zeros, each tensor without what it then has too much of gives the other channels."""
    (x,), weights, sliced, left = case.inputs(), case.weights(), case.weights(), [0, 2, 3]
    inner = read_attrs(case.op, case.attrs).inner_of(x.shape[1])
    fewer = Case(case.op, attrs_of(dict(case.attrs) | {"inner": inner}), ((len(left), *x.shape[2:]),))
    x[:, [i for i in range(x.shape[1]) if i not in left]] = 0
    for name, tensor in fewer.weights().items():
        for dim in range(tensor.dim()):
            if tensor.shape[dim] < weights[name].shape[dim]:
                sliced[name] = sliced[name].index_select(dim, torch.tensor(left))
    assert close(fewer.apply([x[:, left]], sliced), case.apply([x], weights)[:, left])


@pytest.mark.parametrize("case", OF_IMAGES, ids=str)
def test_pixels(case: Case) -> None:
    stated, x = traits(case).pixels, case.inputs()
    y = value(case, x)
    changed = [v.clone() for v in x]
    for v, fresh in zip(changed, case.inputs(9), strict=True):
        v[:, :, 0, 0] = fresh[:, :, 0, 0]
    touched = ((value(case, changed) - y).abs() > 1e-9).flatten(1, max(1, y.dim() - 3)).any(1).any(0)
    stays = y.shape[2:] == x[0].shape[2:]
    is_kept = stays and not touched.flatten()[1:].any()
    if case.shapes[0][1:] != (1, 1) and op(case.op).reads is not Reads.TOGETHER:  # which may read single pixels
        assert is_kept == (stated is Pixels.KEPT)
    even = value(case, [v[:, :, :1, :1].expand_as(v) for v in x])[..., None].flatten(2)
    is_even = close(even, even[:, :, :1].expand_as(even))
    assert is_even or stated in (Pixels.PADDED, Pixels.UNKNOWN)
    assert not is_even or stated is not Pixels.PADDED


# -- training ---------------------------------------------------------------------------------------------------------


def trained(node: Node, inputs: list[Tensor], training: bool = True) -> Tensor:
    """The value of the node's module, with weights of both signs."""
    module = torch_module(node, tuple(tuple(x.shape[1:]) for x in inputs)).double().train(training)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        torch.manual_seed(4)
        found: Tensor = module(*inputs)
    return found


@every_case
def test_what_happens_in_training(case: Case) -> None:
    x, node = [torch.cat([v] * 8) for v in case.inputs()], Node("n", case.op, case.attrs)
    y = trained(node, x)
    invariant = close(trained(node, times(x, 3.0)), y, 1e-4) and not bool((y == 0).all())
    assert invariant == traits(case).normalises
    if traits(case).training_only:
        assert close(trained(node, x, training=False), x[0])
        assert not close(y, x[0])
    elif not traits(case).normalises:
        assert close(trained(node, x, training=False), y)


@pytest.mark.parametrize(("name", "attrs"), IN_NETWORKS, ids=str)
def test_what_is_scale_invariant(name: str, attrs: dict[str, Any]) -> None:
    graph = network(name, attrs)
    node = graph.node("it")
    inputs = [torch.randn(16, *shape, dtype=torch.float64) for shape in input_shapes(graph, node)]
    y = trained(node, inputs)
    found = close(trained(node, times(inputs, 3.0)), y, 1e-3) and not bool((y == 0).all())
    rectified = name == "relu" or dict(attrs).get("factor") == 0
    assert found == (scale_after(name, attrs_of(attrs)) is Scale.GONE) or rectified
