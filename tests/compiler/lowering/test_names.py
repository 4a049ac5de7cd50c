"""No name that a spec may give meets one that a lowering makes, or one that the language makes of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compiler.analysis.weights import weight_shapes
from compiler.elaborate.builder import load
from compiler.errors import SpecError
from compiler.ir.graph import INPUT, Model
from compiler.language.names import name_problem
from compiler.lowering.onnx.model import check, emit
from compiler.lowering.torch.fx import Lowering, gate_values, load_gates, load_weights, lower, weights_of
from compiler.passes.pipeline import TO_INHERIT
from compiler.passes.prune_zero_edges import prune
from tests.compiler.passes.test_prune import close_by_hand
from tests.graphs import graph_of, random_gates
from tests.interpreter import evaluate, random_input, random_weights

MERGES = (
    "op: add", "op: add, act: relu", "op: add, norm: batch", "op: relu", "op: concat, norm: batch, act: relu",
    "op: concat", "op: project, channels: 4", "op: project, channels: 4, norm: none, act: none",
    "op: conv, kernel: 1, channels: 4", "op: conv, kernel: 3, channels: 4, norm: none, act: none", "op: layer_norm",
    "op: conv, kernel: 3, channels: 4, bias: true", "op: sep_conv, kernel: 3, channels: 4", "op: scale, factor: 0.5",
    "op: squeeze_excite, reduction: 2", "op: max_pool, kernel: 3", "op: batch_norm, act: silu", "op: gelu",
)  # fmt: skip
OPS = (
    "max_pool, kernel: 3", "conv, kernel: 3, channels: 4", "identity", "sep_conv, kernel: 3", "batch_norm, act: relu",
    "conv, kernel: 1, channels: 4, norm: none, act: none", "squeeze_excite, reduction: 2", "avg_pool, kernel: 3",
)  # fmt: skip
NAMES = (
    "weight", "bias", "conv", "norm", "act", "join", "concat", "depthwise", "pointwise", "running_mean", "running_var",
    "reduce_weight", "sum", "total", "taps", "shape", "flat", "stride", "groups", "window", "step", "border",
    "function", "inplace", "kernel_size", "padding", "eps", "momentum", "rank", "ranks", "self", "torch", "operator",
    "getitem", "image", "planes", "logits", "from_in", "append", "pop", "extend", "dict", "convolve", "gate", "scale",
    "declared", "a", "a_gate0", "b_zero0", "a_sum", "weight_conv", "block", "stage", "root", "id", "len", "inner",
)  # fmt: skip
SPEC = """\
graphspec: 1
name: hostile
input: [4, 5, 5]
classes: 3
blocks:
  {block}:
    type: "[C, H, W] -> [C, H, W]"
    nodes:
      {first}: {{op: {op}, from: in}}
      {merge}: {{{how}, choose: [{{name: {one}, op: {op}}}, {{name: {two}, op: {other}}}], from: [in, {first}]}}
      {after}: {{op: conv, kernel: 1, channels: 4, from: {merge}}}
      out: {{op: add, from: [{{node: {after}, gated: true}}, in]}}
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      pool: {{op: global_avg_pool, from: in}}
      out: {{op: linear, from: pool}}
network:
  {entry}: {{block: {block}, from: in}}
  tail: {{block: head, from: {entry}}}
"""


@st.composite
def hostile_specs(draw: st.DrawFn) -> str:
    first = draw(st.sampled_from(["from_in", "conv", "norm", "depthwise"]) | st.sampled_from(NAMES))
    one = draw(st.sampled_from(["weight", "bias", "sum"]) | st.sampled_from(NAMES))
    others = st.sampled_from([name for name in NAMES if name not in (first, one)])
    two, merge, after = draw(st.lists(others, min_size=3, max_size=3, unique=True))
    block, entry = (draw(st.sampled_from(NAMES)) for _ in range(2))
    op, other = (draw(st.sampled_from(OPS)) for _ in range(2))
    how = draw(st.sampled_from(MERGES))
    return SPEC.format(**locals())


CONV = {"how": "op: conv, kernel: 3, channels: 4, bias: true", "op": OPS[0], "other": OPS[1], "first": "conv"}
CONV |= {"merge": "merge", "after": "after", "block": "cell", "entry": "cell", "two": "two"}


def test_a_node_called_declared_is_no_obstacle_to_an_error_in_its_block(tmp_path: Path) -> None:
    text = SPEC.format(**CONV | {"after": "declared", "one": "a"}).replace('[C, H, W]"', '[2*C, H, W]"')
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(SpecError, match="gives 8x5x5"):
        load(tmp_path / "wrong.yaml")


def test_zeros_for_a_lost_input_have_a_name_of_their_own() -> None:
    sources: list[str | tuple[str, str]] = [("blk.b_zero0", "blk/b<zero"), "blk.a"]
    nodes = {"blk.b_zero0": ("conv", {"kernel": 1, "channels": 4}, [INPUT]), "blk.a": ("relu", {}, ["blk.b_zero0"])}
    joined = {"blk.b": ("concat", {"norm": "batch"}, sources), "pool": ("global_avg_pool", {}, ["blk.b"])}
    pruned = prune(graph_of({**nodes, **joined, "logits": ("linear", {"channels": 3}, ["pool"])}), {"blk/b<zero"})
    assert [node.op for node in pruned.nodes()].count("zero") == 1


def test_hostile_names_are_allowed() -> None:
    assert [name for name in NAMES if name_problem(name)] == []


@settings(max_examples=150)
@example(SPEC.format(**CONV, one="weight"), "fused", False, False, 0)
@example(SPEC.format(**CONV, one="sum"), "reference", True, False, 0)
@given(hostile_specs(), st.sampled_from(["fused", "reference"]), st.booleans(), st.booleans(), st.integers(0, 3))
def test_names_never_meet(
    tmp_path_factory: pytest.TempPathFactory, text: str, lowering: Lowering, recompute: bool, apart: bool, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.yaml"
    path.write_text(text)
    graph = load(path)[1]
    gates = random_gates(graph, seed, zeros=0.1 * seed)
    model = Model(graph, gates, random_weights(graph, seed, np.float32))
    x = random_input(graph, seed, 2, np.float32)
    expected = evaluate(graph, model.weights, x, gates)
    module = lower(graph, lowering=lowering, recompute=recompute, apart=apart).eval()
    assert {name: array.shape for name, array in weights_of(module).items()} == weight_shapes(graph)
    load_weights(module, model.weights)
    load_gates(module, graph, gates)
    assert gate_values(module, graph) == pytest.approx(gates)
    with torch.no_grad():
        found = module(torch.from_numpy(x)).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()

    edges = close_by_hand(graph, {gate for gate, value in gates.items() if value == 0.0})
    proto = emit(TO_INHERIT.run(model))
    check(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = evaluate(graph, model.weights, x, gates, edges)
    assert np.abs(session.run(None, {"image": x})[0] - expected).max() <= 1e-4 * np.abs(expected).max()
