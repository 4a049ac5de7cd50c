"""Windows of random attributes over signals and images: torch, its lean rows and onnxruntime against the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from compiler import ops
from compiler.errors import GraphspecError
from compiler.ir.graph import Graph, Model, Phase
from compiler.lowering.onnx.model import NEWEST_OPSET, OLDEST_OPSET, emit
from compiler.lowering.torch.lean import LEAN
from compiler.lowering.torch.modules import TORCH, torch_module
from tests import interpreter
from tests.compiler.lowering.test_onnx import assert_parity
from tests.compiler.lowering.test_torch_ops import assert_same, filled, values_for
from tests.graphs import graph_of
from tests.interpreter import random_weights

OPS = ("conv", "depthwise_conv", "conv_transpose", "sep_conv", "max_pool", "avg_pool", "adaptive_avg_pool")
OPSETS = st.integers(OLDEST_OPSET, min(NEWEST_OPSET, onnx.defs.onnx_opset_version()))


@st.composite
def windows(draw: Any) -> Graph:
    """A graph of one windowed op over a signal or an image of odd sizes."""
    name = draw(st.sampled_from(OPS))
    axes = draw(st.integers(1, 2))
    shape = (4, *draw(st.lists(st.integers(1, 11), min_size=axes, max_size=axes)))

    def each(values: st.SearchStrategy[Any]) -> Any:
        return draw(values | st.lists(values, min_size=axes, max_size=axes))

    if name == "adaptive_avg_pool":
        return _graph(name, {"size": each(st.integers(1, 12))}, shape)
    side = st.integers(0, 3)
    attrs: dict[str, Any] = {
        "kernel": each(st.integers(1, 4)),
        "stride": each(st.integers(1, 3)),
        "dilation": each(st.integers(1, 3)),
        "padding": draw(
            st.none() | side | st.lists(side | st.tuples(side, side).map(list), min_size=axes, max_size=axes)
        ),
    }
    if name in ("conv", "conv_transpose"):
        attrs |= {"channels": draw(st.sampled_from((2, 6))), "groups": draw(st.integers(1, 2))}
    if name == "conv_transpose":
        attrs["output_padding"] = each(st.integers(0, 2))
    if name.endswith("pool"):
        attrs["ceil_mode"] = draw(st.booleans())
    else:
        attrs |= {"norm": draw(st.sampled_from(("batch", "none"))), "act": draw(st.sampled_from(("relu", "none")))}
    if name == "avg_pool":
        attrs["count_include_pad"] = draw(st.booleans())
    return _graph(name, attrs, shape)


def _graph(name: str, attrs: dict[str, Any], shape: tuple[int, ...]) -> Graph:
    try:
        return graph_of({"it": (name, attrs, ["input"])}, shape=shape, phase=Phase.COMPACT)
    except GraphspecError as error:  # sizes that do not fit together
        reasons = ("does not fit", "on padding only", "output_padding", "every size must be at least 1")
        assume(not any(reason in str(error) for reason in reasons))
        raise


@settings(max_examples=150)
@given(graph=windows())
def test_torch_follows_the_definition(graph: Graph) -> None:
    node, shapes = graph.node("it"), (graph.node("input").shape,)
    (x,) = values_for(shapes)
    reference, lean = (filled(torch_module(node, shapes, table)).eval() for table in (TORCH, LEAN))
    params = {f"it.{key}": tensor for key, tensor in reference.state_dict().items()}
    expected = interpreter.apply(node, [x], params)
    found = reference(x.clone())
    assert found.shape == (3, *node.shape)
    assert (found - expected).abs().max() <= 1e-12 * (1 + expected.abs().max())
    assert_same(lean, reference, x)
    for parameter in lean.parameters():
        parameter.requires_grad_(False)  # as in a gate step, where less is kept
    value = x.clone().requires_grad_()
    again = x.clone().requires_grad_()
    lean(value).square().sum().backward()
    interpreter.apply(node, [again], params).square().sum().backward()
    assert value.grad is not None
    assert again.grad is not None
    assert (value.grad - again.grad).abs().max() <= 1e-10 * (1 + again.grad.abs().max())


@settings(max_examples=100)
@given(graph=windows())
def test_tensors_and_costs_are_those_that_torch_counts(graph: Graph) -> None:
    node, shapes = graph.node("it"), (graph.node("input").shape,)
    assume(not node.op.endswith("pool"))
    module = torch_module(node, shapes).eval()
    assert {key: tuple(p.shape) for key, p in module.named_parameters()} == ops.tensors(
        node.op, node.attrs, shapes
    ).params
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*(v[:1].float() for v in values_for(shapes)))
    assert counter.get_total_flops() == 2 * ops.cost(node.op, node.attrs, shapes, 1).flops


@settings(max_examples=150)
@given(graph=windows(), opset=OPSETS)
def test_onnxruntime_follows_the_definition(graph: Graph, opset: int) -> None:
    model = Model(graph, {}, random_weights(graph, 3, np.float32))
    assert_parity(model, emit(model, opset=opset))


@pytest.mark.parametrize("axes", [1, 2])
def test_a_number_is_the_list_of_it(axes: int) -> None:
    shape = (4, 9, 7)[: 1 + axes]
    for name, attrs in (("conv", {"kernel": 3, "stride": 2}), ("max_pool", {"kernel": 3, "padding": 1})):
        one, several = (
            graph_of({"it": (name, given, ["input"])}, shape=shape)
            for given in (attrs, {key: [value] * axes for key, value in attrs.items()})
        )
        assert one.node("it").shape == several.node("it").shape
        weights = random_weights(one, 0)
        x = interpreter.random_input(one, 1)
        assert np.array_equal(interpreter.evaluate(one, weights, x), interpreter.evaluate(several, weights, x))
