"""Torch modules of single ops: values, names of tensors and costs, against definitions that share no code with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from compiler import ops
from compiler.errors import GraphspecError
from compiler.ir.graph import Node, TensorType, attrs_of
from compiler.lowering.torch.batch_parts import BatchNorm, frozen_statistics
from compiler.lowering.torch.fused import channels_last
from compiler.lowering.torch.lean import LEAN
from compiler.lowering.torch.modules import TORCH, torch_module
from compiler.ops import Op, Shape, infer, known_ops, op
from tests import interpreter

IMAGE: Shape = (6, 8, 7)
CASES: tuple[tuple[str, dict[str, Any], tuple[Shape, ...]], ...] = (
    ("conv", {"kernel": 3, "channels": 4, "stride": 2}, (IMAGE,)),
    ("conv", {"kernel": 1, "eps": 0.5, "momentum": 0.3}, (IMAGE,)),
    ("concat", {"norm": "batch", "eps": 0.3}, (IMAGE, IMAGE)),
    ("conv", {"kernel": 3, "groups": 2, "dilation": 2, "norm": "none", "act": "gelu"}, (IMAGE,)),
    ("conv", {"kernel": 2, "norm": "none", "act": "none", "bias": False}, (IMAGE,)),
    ("conv", {"kernel": 1, "stride": 2, "channels": 4}, (IMAGE,)),
    ("conv", {"kernel": 1, "stride": 3, "padding": 2, "norm": "none", "act": "none"}, (IMAGE,)),
    ("conv", {"kernel": 5, "stride": 4, "dilation": 2, "channels": 4}, (IMAGE,)),
    ("depthwise_conv", {"kernel": 5}, (IMAGE,)),
    ("depthwise_conv", {"kernel": 3, "stride": 2, "dilation": 2, "norm": "none", "act": "none"}, (IMAGE,)),
    ("depthwise_conv", {"kernel": 3, "stride": 2, "dilation": 2, "padding": 1}, (IMAGE,)),
    ("depthwise_conv", {"kernel": 3, "stride": 2, "norm": "none", "act": "none"}, (IMAGE,)),
    ("sep_conv", {"kernel": 3, "channels": 5}, (IMAGE,)),
    ("max_pool", {"kernel": 3, "norm": "batch", "act": "relu"}, (IMAGE,)),
    ("max_pool", {"kernel": 3, "stride": 2, "dilation": 2, "padding": 1}, (IMAGE,)),
    ("avg_pool", {"kernel": 3}, (IMAGE,)),
    ("avg_pool", {"kernel": 2, "stride": 2, "act": "relu"}, (IMAGE,)),
    ("avg_pool", {"kernel": 3, "dilation": 2, "padding": 1}, (IMAGE,)),
    ("group_norm", {"groups": 3}, (IMAGE,)),
    ("group_norm", {"groups": 2}, ((6,),)),
    ("instance_norm", {}, (IMAGE,)),
    ("layer_norm", {"over": "channels"}, (IMAGE,)),
    ("layer_norm", {"over": "channels"}, ((6,),)),
    ("lrn", {"size": 3, "alpha": 0.5, "k": 2.0}, (IMAGE,)),
    ("multiply", {}, (IMAGE, (6,), (6, 1, 1))),
    ("multiply", {}, ((6, 1), (6, 5), (6, 5))),
    ("channel_shuffle", {"groups": 3}, (IMAGE,)),
    ("channel_shuffle", {"groups": 2}, ((6,),)),
    ("slice", {"start": 1, "stop": 4}, (IMAGE,)),
    ("pad", {"padding": [[0, 2], 1]}, (IMAGE,)),
    ("pad", {"padding": [[-1, 2], -2]}, (IMAGE,)),
    ("pad", {"padding": 3, "mode": "reflect"}, ((6, 5),)),
    ("pad", {"padding": [[3, 0]], "mode": "edge"}, ((6, 5),)),
    ("resize", {"scale": (2, 3)}, (IMAGE,)),
    ("resize", {"size": 5, "mode": "bilinear"}, (IMAGE,)),
    ("resize", {"size": 9, "mode": "bilinear"}, ((6, 4),)),
    *((name, {}, (IMAGE,)) for name in ("hard_sigmoid", "tanh", "leaky_relu", "elu", "prelu", "softmax")),
    ("leaky_relu", {"slope": 0.5}, ((6,),)),
    ("elu", {"alpha": 0.5}, ((6, 4),)),
    ("prelu", {}, ((6,),)),
    ("conv", {"kernel": 3, "act": "prelu"}, ((6, 9),)),
    ("conv_transpose", {"kernel": 3, "stride": 2, "channels": 4, "output_padding": 1}, (IMAGE,)),
    ("adaptive_avg_pool", {"size": (3, 7)}, (IMAGE,)),
    ("global_max_pool", {}, (IMAGE,)),
    ("identity", {}, (IMAGE,)),
    ("zero", {}, (IMAGE,)),
    ("zero", {"channels": 2}, (IMAGE,)),
    ("scale", {"factor": -0.5}, (IMAGE,)),
    ("linear", {"channels": 3}, ((6,),)),
    ("linear", {"channels": 3, "norm": "batch", "act": "relu"}, ((6, 1, 1),)),
    ("global_avg_pool", {}, (IMAGE,)),
    ("flatten", {}, (IMAGE,)),
    ("add", {"act": "relu"}, (IMAGE,)),
    ("add", {}, (IMAGE,)),
    ("concat", {"norm": "batch"}, (IMAGE, (2, 8, 7))),
    ("project", {"channels": 3}, (IMAGE, (2, 8, 7))),
    ("project", {"channels": 3, "norm": "none", "act": "none"}, (IMAGE,)),
    ("batch_norm", {}, (IMAGE,)),
    ("batch_norm", {"act": "relu"}, ((6,),)),
    ("layer_norm", {}, (IMAGE,)),
    *((name, {}, (IMAGE,)) for name in ("relu", "relu6", "hard_swish", "silu", "gelu", "sigmoid")),
    ("squeeze_excite", {"reduction": 2}, (IMAGE,)),
    ("dropout", {"p": 0.3}, (IMAGE,)),
    ("drop_path", {"p": 0.3}, (IMAGE,)),
    ("mean", {"dims": (2,)}, (IMAGE,)),
    ("mean", {"dims": (1, 2, 3), "keep": True}, (IMAGE,)),
    ("mean", {"dims": (1, 2, 3)}, (IMAGE,)),
)
NAMES = [f"{name}-{index}" for index, (name, _, _) in enumerate(CASES)]
every_case = pytest.mark.parametrize(("name", "attrs", "shapes"), CASES, ids=NAMES)


def node_of(name: str, attrs: dict[str, Any], shapes: tuple[Shape, ...]) -> Node:
    return Node("it", name, attrs_of(attrs), infer(name, attrs_of(attrs), [TensorType(s) for s in shapes]))


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 with random parameters and statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.double().state_dict().items():
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.3)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return module


def values_for(shapes: tuple[Shape, ...], batch: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in shapes]


def assert_same(mine: nn.Module, right: nn.Module, x: Tensor) -> None:
    """Their values at `x` and all gradients agree."""
    found = []
    for module in (right, mine):
        value = x.clone().requires_grad_()
        out = module(value)
        (out * torch.arange(out[0].numel(), dtype=out.dtype).view_as(out[0])).sum().backward()
        found.append((out, value.grad, *(p.grad for p in module.parameters() if p.requires_grad)))
    for expected, got in zip(*found, strict=True):
        assert expected is not None
        assert got is not None
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-12 * (1 + expected.abs().max())


def test_every_op_is_tried_below() -> None:
    assert {name for name, _, _ in CASES} == set(known_ops()) - {"input", "output"}


@every_case
def test_values_follow_the_definition_and_inputs_stay(
    name: str, attrs: dict[str, Any], shapes: tuple[Shape, ...]
) -> None:
    node, values = node_of(name, attrs, shapes), values_for(shapes)
    module = filled(torch_module(node, shapes)).eval()
    params = {f"it.{key}": tensor for key, tensor in module.state_dict().items()}
    expected = interpreter.apply(node, list(values), params)
    found = module(*(v.clone() for v in values))
    assert found.shape == (3, *node.shape)
    assert (found - expected).abs().max() <= 1e-12 * (1 + expected.abs().max())
    module.train()(*values)
    assert all(map(torch.equal, values, values_for(shapes)))


@every_case
def test_tensors_and_costs_are_those_of_the_op(name: str, attrs: dict[str, Any], shapes: tuple[Shape, ...]) -> None:
    node = node_of(name, attrs, shapes)
    module = torch_module(node, shapes)
    tensors = ops.tensors(name, node.attrs, shapes)
    assert {key: tuple(p.shape) for key, p in module.named_parameters()} == tensors.params
    assert {key: tuple(t.shape) for key, t in module.state_dict().items()} == tensors.params | tensors.buffers
    if attrs.get("dilation", 1) > 1 and name == "avg_pool":
        return  # torch has no such pool; it is made of convolutions with fixed weights
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module.eval()(*(v[:1].float() for v in values_for(shapes)))
    assert counter.get_total_flops() == 2 * ops.cost(name, node.attrs, shapes, 1).flops


# -- convolutions -----------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.none() | st.integers(0, 5),
)  # fmt: skip
def test_a_convolution_that_leaves_out_pixels_is_the_whole_one(
    size: tuple[int, int], kernel: int, stride: int, dilation: int, padding: int | None
) -> None:
    attrs = {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding}
    pad = dilation * (kernel - 1) // 2 if padding is None else padding
    assume(all(side + 2 * pad > dilation * (kernel - 1) for side in size))
    shapes: tuple[Shape, ...] = ((2, *size),)
    conv = filled(
        torch_module(node_of("conv", {**attrs, "channels": 3, "norm": "none", "act": "none"}, shapes), shapes)
    )
    whole = nn.Conv2d(2, 3, kernel, stride, pad, dilation).double()
    whole.load_state_dict(conv.state_dict())
    assert_same(conv, whole, values_for(shapes)[0])


@pytest.mark.parametrize("table", [TORCH, LEAN], ids=["torch", "lean"])
@pytest.mark.parametrize(
    ("attrs", "reaches"),
    [
        ({"kernel": 1, "stride": 2}, (1, [1, 1], [0, 0], [1, 1])),  # otherwise its gradient can overwrite memory
        ({"kernel": 1, "stride": 2, "padding": 1}, (1, [1, 1], [0, 0], [1, 1])),
        ({"kernel": 3, "stride": 2, "dilation": 2}, (3, [1, 1], [1, 1], [1, 1])),
        ({"kernel": 3, "stride": 2, "dilation": 4}, (3, [1, 1], [2, 2], [2, 2])),
        ({"kernel": 3, "stride": 2, "dilation": 2, "padding": 1}, (3, [2, 2], [1, 1], [2, 2])),
        ({"kernel": 3, "stride": 2}, (3, [2, 2], [1, 1], [1, 1])),
    ],
)
def test_which_convolutions_reach_torch(table: dict[str, Any], attrs: dict[str, Any], reaches: tuple[int, ...]) -> None:
    found = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "convolution" in str(func):
                found.append((args[1].shape[-1], *args[3:6]))
            return func(*args, **(kwargs or {}))

    node = node_of("conv", attrs, (IMAGE,))
    with Note():
        torch_module(node, (IMAGE,), table)(torch.randn(2, *IMAGE))
    assert found == [reaches]


# -- lean rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [False, True], ids=["trained", "fixed"])
@pytest.mark.parametrize(
    ("name", "attrs", "shapes"), [c for c in CASES if c[0] in {*LEAN, "sep_conv"}], ids=lambda value: str(value)
)
def test_lean_rows_agree_with_torch(name: str, attrs: dict[str, Any], shapes: tuple[Shape, ...], fixed: bool) -> None:
    node = node_of(name, attrs, shapes)
    right, mine = (filled(torch_module(node, shapes, table)).requires_grad_(not fixed) for table in (TORCH, LEAN))
    assert_same(mine, right, channels_last(*values_for(shapes)))


def test_a_pool_of_many_pixels_counts_them_in_32_bits() -> None:
    node = node_of("max_pool", {"kernel": 3}, ((1, 260, 260),))
    grads = []
    for table in (TORCH, LEAN):
        x = torch.arange(260.0 * 260).view(1, 1, 260, 260).requires_grad_()
        torch_module(node, ((1, 260, 260),), table)(x).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


# -- batch norm -------------------------------------------------------------------------------------------------------


def test_batch_norm_is_that_of_torch() -> None:
    mine, right = BatchNorm(6, 2e-5, 0.1).double(), nn.BatchNorm2d(6, 2e-5, 0.1).double()
    for x in values_for((IMAGE, IMAGE)):
        assert (mine(x) - right(x)).abs().max() < 1e-12
    assert (mine.running_mean - right.running_mean).abs().max() < 1e-12
    assert (mine.running_var - right.running_var).abs().max() < 1e-12


def test_frozen_statistics_stay_and_values_do_not_change() -> None:
    norm, (x,) = BatchNorm(6, 2e-5, 0.1).double(), values_for((IMAGE,))
    right = norm(x)
    before = norm.running_mean.clone()
    with frozen_statistics():
        assert torch.equal(norm(x), right)
    assert torch.equal(norm.running_mean, before)
    norm(x)
    assert not torch.equal(norm.running_mean, before)


# -- custom ops -------------------------------------------------------------------------------------------------------


class Halve(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def halve(attrs: Any, ins: tuple[Shape, ...], out: Shape) -> nn.Module:
    return Halve()


@pytest.fixture
def custom(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Adds an op with this torch row for the time of a test."""
    known_ops()

    def add(torch_row: str | None) -> Node:
        row = Op("halve", "half of its input", infer=lambda a, ins: ins[0], torch=torch_row)
        monkeypatch.setitem(known_ops(), "halve", row)
        return node_of("halve", {}, (IMAGE,))

    yield add
    op.cache_clear()


def test_a_custom_op_is_imported_when_it_is_lowered(custom: Any) -> None:
    node = custom(f"{__name__}:halve")
    assert torch.equal(torch_module(node, (IMAGE,))(torch.ones(1, *IMAGE)), torch.full((1, *IMAGE), 0.5))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (None, "has no torch row"),
        ("no_such_package:build", "cannot be imported"),
        ("math:no_such_function", "cannot be imported"),
    ],
)
def test_a_custom_op_without_a_usable_row_says_so(custom: Any, row: str | None, message: str) -> None:
    with pytest.raises(GraphspecError, match=message) as error:
        torch_module(custom(row), (IMAGE,))
    assert "'halve'" in str(error.value)
    assert "try:" in str(error.value)
