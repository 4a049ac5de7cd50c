"""Every op without a window, at random attributes, ranks and sizes: torch and onnxruntime against the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.errors import GraphspecError
from compiler.ir.graph import Model, Phase
from compiler.lowering.onnx.model import emit
from compiler.lowering.torch.modules import torch_module
from compiler.ops import known_ops
from tests import interpreter
from tests.compiler.lowering.test_onnx import assert_parity
from tests.compiler.lowering.test_torch_ops import filled, values_for
from tests.compiler.lowering.test_windows import OPS as WINDOWED
from tests.compiler.lowering.test_windows import OPSETS
from tests.graphs import graph_of
from tests.interpreter import random_weights

Attrs = dict[str, Any]
GROUPS = st.sampled_from((1, 2, 3, 6))
FACTOR = st.floats(0.25, 2.0)


@st.composite
def borders(draw: Any, axes: int) -> Attrs:
    mode = draw(st.sampled_from(("zeros", "reflect", "edge")))
    side = st.integers(-3 if mode == "zeros" else 0, 3)
    each = st.lists(side | st.lists(side, min_size=2, max_size=2), min_size=axes, max_size=axes)
    return {"padding": draw(side | each), "mode": mode}


@st.composite
def resizings(draw: Any, axes: int) -> Attrs:
    key, numbers = draw(st.sampled_from((("size", st.integers(1, 12)), ("scale", st.integers(1, 3)))))
    value = draw(numbers | st.lists(numbers, min_size=axes, max_size=axes))
    return {key: value, "mode": draw(st.sampled_from(("nearest", "bilinear")))}


NONE = st.just(Attrs())
ATTRS: dict[str, Callable[[int], st.SearchStrategy[Attrs]]] = {
    "linear": lambda axes: st.fixed_dictionaries({"channels": st.integers(1, 4)}, optional={"bias": st.booleans()}),
    "layer_norm": lambda axes: st.fixed_dictionaries({"over": st.sampled_from(("all", "channels"))}),
    "group_norm": lambda axes: st.fixed_dictionaries({"groups": GROUPS}),
    "lrn": lambda axes: st.fixed_dictionaries(
        {"size": st.sampled_from((1, 3, 5, 9)), "alpha": FACTOR, "beta": FACTOR, "k": FACTOR}
    ),
    "squeeze_excite": lambda axes: st.fixed_dictionaries({"reduction": st.integers(1, 8)}),
    "mean": lambda axes: st.fixed_dictionaries(
        {"dims": st.lists(st.integers(1, axes + 1), min_size=1, unique=True), "keep": st.booleans()}
    ),
    "scale": lambda axes: st.fixed_dictionaries({"factor": st.floats(-2, 2)}),
    "zero": lambda axes: st.fixed_dictionaries({}, optional={"channels": st.integers(1, 4)}),
    "project": lambda axes: st.fixed_dictionaries({"channels": st.integers(1, 4)}),
    "leaky_relu": lambda axes: st.fixed_dictionaries({"slope": st.floats(0.1, 0.9)}),
    "elu": lambda axes: st.fixed_dictionaries({"alpha": FACTOR}),
    "channel_shuffle": lambda axes: st.fixed_dictionaries({"groups": GROUPS}),
    "slice": lambda axes: st.fixed_dictionaries({"start": st.integers(0, 5), "stop": st.integers(1, 6)}),
    "pad": borders,
    "resize": resizings,
}  # fmt: skip
NAMES = sorted(known_ops().keys() - {"input", "output", *WINDOWED})
UNFIT = (
    "takes an image",
    "takes a vector",
    "of single numbers",
    "takes no channels",
    "mirrors at most",
    "cuts off all",
)


def model_of(name: str, data: st.DataObject) -> Model:
    """One op over a value of random rank and sizes; those that read several values read three."""
    axes = data.draw(st.integers(1 if name in ("pad", "resize") else 0, 2))
    shape = (6, *data.draw(st.lists(st.integers(1, 7), min_size=axes, max_size=axes)))
    attrs = data.draw(ATTRS.get(name, lambda axes: NONE)(axes))
    nodes: dict[str, Any] = {}
    sources = ["input"]
    if name in ("add", "concat", "project", "multiply"):
        nodes = {"other": ("sigmoid", {}, ["input"])}
        sources += ["other"]
    if name == "multiply" and axes:
        nodes["means"] = ("mean", {"dims": list(range(2, axes + 2)), "keep": data.draw(st.booleans())}, ["other"])
        sources.insert(data.draw(st.integers(0, 2)), "means")
    try:
        graph = graph_of(nodes | {"it": (name, attrs, sources)}, shape=shape, phase=Phase.COMPACT)
    except GraphspecError as error:  # sizes that do not fit together
        assume(not any(reason in str(error) for reason in UNFIT))
        raise
    return Model(graph, {}, random_weights(graph, 3, np.float32))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12)
@given(data=st.data())
def test_torch_follows_the_definition(name: str, data: st.DataObject) -> None:
    graph = model_of(name, data).graph
    node = graph.node("it")
    shapes = tuple(graph.node(edge.src).shape for edge in graph.inputs("it"))
    shapes = shapes[:1] if name == "add" else shapes
    values = values_for(shapes)
    module = filled(torch_module(node, shapes)).eval()
    expected = interpreter.apply(node, list(values), {f"it.{key}": t for key, t in module.state_dict().items()})
    found = module(*(value.clone() for value in values))
    assert found.shape == (3, *node.shape)
    assert (found - expected).abs().max() <= 1e-11 * (1 + expected.abs().max())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12)
@given(data=st.data(), opset=OPSETS)
def test_onnxruntime_follows_the_definition(name: str, data: st.DataObject, opset: int) -> None:
    model = model_of(name, data)
    assert_parity(model, emit(model, opset=opset))
