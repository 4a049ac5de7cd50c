"""Random specs, all the way: text -> elaborate -> random zero gates -> prune -> fold -> ONNX -> onnxruntime."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from compiler.elaborate.builder import load
from compiler.ir.graph import Model
from compiler.lowering.onnx.model import check, emit
from compiler.passes.pipeline import TO_INHERIT
from tests.compiler.passes.test_prune import close_by_hand
from tests.graphs import random_gates
from tests.interpreter import evaluate, random_input, random_weights

pytestmark = pytest.mark.slow

Entry = dict[str, Any]
SPECS, FEWEST = 260, 200
OPS: tuple[Any, ...] = (
    "sep_conv_3x3", "sep_conv_5x5", "conv_3x3", "conv_1x1", "depthwise_conv_3x3", "pool", "average", "identity", "add",
    {"op": "conv", "kernel": 3, "groups": 2, "act": "hard_swish"}, {"op": "conv", "kernel": 3, "dilation": 2},
    {"op": "squeeze_excite", "reduction": 2}, {"op": "add", "act": "silu"}, {"op": "layer_norm"}, {"op": "gelu"},
    {"op": "max_pool", "kernel": 3}, {"op": "batch_norm", "act": "relu6"}, {"op": "scale", "factor": 0.7},
)  # fmt: skip
SHORT = {
    "pool": {"op": "max_pool", "kernel": 3, "norm": "batch", "act": "relu"},
    "average": {"op": "avg_pool", "kernel": 3, "norm": "batch", "act": "relu"},
}


def random_spec(seed: int) -> dict[str, Any]:
    """A chain of one to three stages of blocks wired at random: levels, choices, sums, joins, gates shared or not."""
    rng = random.Random(seed)
    network: list[Any] = ["stem"]
    for stage in range(rng.randint(1, 2)):
        network += ["reduce"] * min(stage, 1) + [{rng.choice(("dense", "wired")): rng.randint(1, 2)}]
    used = {name for entry in network for name in ([entry] if isinstance(entry, str) else entry)}
    blocks = {
        "stem": _block("[2, H, W] -> [4, H, W]", {"out": {"op": "conv", "kernel": 3, "from": "in"}}),
        "dense": _levels(rng),
        "wired": _wired(rng),
        "reduce": _reduce(rng),
        "head": _head(rng),
    }
    return {
        "graphspec": 1, "name": "random", "input": [2, 6, 6], "classes": 3, "ops": SHORT,
        "gates": {"share": rng.choice(("none", "block", "stage"))},
        "blocks": {name: block for name, block in blocks.items() if name in used | {"head"}},
        "network": [*network, "head"],
    }  # fmt: skip


def _block(type_: str, nodes: dict[str, Entry]) -> Entry:
    return {"type": type_, "nodes": nodes}


def _op(rng: random.Random) -> Entry:
    found = rng.choice(OPS)
    return dict(found) if isinstance(found, dict) else {"op": found}


def _levels(rng: random.Random) -> Entry:
    ops = rng.sample(("sep_conv_3x3", "sep_conv_5x5", "pool", "average", "conv_1x1"), rng.randint(1, 3))
    mix = {"op": rng.choice(("project", "add")), "from": "levels.*", "gated": True}
    block = _block("[C, H, W] -> [C, H, W]", {"mix": mix, "out": {"op": "add", "from": ["mix", "in"]}})
    return block | {"levels": {"count": rng.randint(1, 3), "ops": ops, "gate_input": rng.random() < 0.5}}


def _wired(rng: random.Random) -> Entry:
    """Nodes that read any earlier ones; what nobody reads is joined, and a shortcut keeps the network whole."""
    nodes: dict[str, Entry] = {}
    unread: list[str] = []
    for index in range(rng.randint(1, 4)):
        earlier = ["in", *nodes]
        sources = rng.sample(earlier, rng.randint(1, min(3, len(earlier))))
        unread = [name for name in unread if name not in sources] + [f"n{index}"]
        ops = {"choose": rng.sample(("sep_conv_3x3", "pool", "identity"), 2)} if rng.random() < 0.2 else _op(rng)
        nodes[f"n{index}"] = ops | {"from": [{"node": s, "gated": rng.random() < 0.7} for s in sources]}
    nodes["mix"] = {"op": rng.choice(("project", "add")), "from": unread, "gated": True}
    if rng.random() < 0.4:  # a join that a convolution reads
        nodes["mix"]["op"] = "concat"
        nodes["fit"] = {"op": "conv", "kernel": rng.choice((1, 3)), "channels": "C", "from": "mix"}
    return _block("[C, H, W] -> [C, H, W]", nodes | {"out": {"op": "add", "from": [list(nodes)[-1], "in"]}})


def _reduce(rng: random.Random) -> Entry:
    nodes: dict[str, Entry] = {
        "a": {"op": "conv", "kernel": 1, "stride": 2, "from": "in"},
        "b": {"op": rng.choice(("conv_3x3", "sep_conv_3x3")), "stride": 2, "from": "in"},
        "out": {"op": "add", "from": ["a", "b"], "gated": True},
    }
    return _block("[C, H, W] -> [2*C, H/2, W/2]", nodes)


def _head(rng: random.Random) -> Entry:
    tail = rng.choice(({"op": "global_avg_pool"}, {"op": "mean", "dims": [2, 3]}, {"op": "flatten"}))
    nodes: dict[str, Entry] = {
        "norm": {"op": "batch_norm", "act": rng.choice(("relu", "none")), "from": "in"},
        "tail": tail | {"from": "norm"},
        "drop": {"op": "dropout", "p": 0.3, "from": "tail"},
        "out": {"op": "linear", "from": "drop"},
    }
    return _block("[C, H, W] -> [classes]", nodes)


def test_random_specs_from_text_to_onnxruntime(tmp_path: Path) -> None:
    ran, seen, path = 0, Counter[str](), tmp_path / "random.yaml"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for seed in range(SPECS):
        path.write_text(json.dumps(random_spec(seed)))  # JSON is YAML
        graph = load(path)[1]
        gates = random_gates(graph, seed, zeros=0.1 * (seed % 6))
        edges = close_by_hand(graph, {gate for gate, value in gates.items() if value == 0.0})
        if not edges:
            continue
        model = Model(graph, gates, random_weights(graph, seed, np.float32))
        x = random_input(graph, seed, 2, np.float32)
        expected = evaluate(graph, model.weights, x, gates, edges)
        proto = emit(TO_INHERIT.run(model), opset=13 + seed % 8)
        check(proto)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(None, {"image": x})[0]
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max(), seed
        ran += 1
        seen.update(node.op for node in graph.nodes())
    assert ran >= FEWEST
    assert {"project", "concat", "add", "sep_conv", "max_pool", "avg_pool", "layer_norm", "squeeze_excite"} <= set(seen)
