"""ONNX files run by onnxruntime give what the interpreter says, op by op and for whole random networks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import compiler.lowering.onnx.model as lowering
from compiler import ops
from compiler.errors import GraphspecError
from compiler.ir.graph import Block, Graph, Model, Node, Phase
from compiler.ir.verify import verify
from compiler.lowering.onnx.model import NEWEST_OPSET, OLDEST_OPSET, Preprocessing, check, emit, save
from compiler.lowering.onnx.writer import Writer
from compiler.ops import Op, Reads, known_ops
from compiler.passes.pipeline import TO_INHERIT
from compiler.passes.prune_zero_edges import surviving_edges
from tests.compiler.passes.test_prune import random_joins
from tests.graphs import graph_of, only_output, random_gates, random_graph, with_output
from tests.interpreter import evaluate, random_input, random_weights

ROOT = Path(__file__).parents[3]
Cases = list[dict[str, Any]]
WINDOWS: Cases = [{"kernel": 3}, {"kernel": 3, "stride": 2}, {"kernel": 2, "stride": 2}, {"kernel": 3, "dilation": 2}]
FINISHED: Cases = [{"kernel": 3, "norm": "batch", "act": "relu"}]

ALONE: dict[str, Cases] = {
    "conv": [*WINDOWS, {"kernel": 3, "groups": 2, "channels": 6}, {"kernel": 1, "norm": "none", "act": "none"}],
    "depthwise_conv": [*WINDOWS, {"kernel": 5, "norm": "none", "act": "none"}],
    "sep_conv": [*WINDOWS, {"kernel": 5, "norm": "none"}],
    "max_pool": [w for w in WINDOWS if "dilation" not in w]
    + [{"kernel": 3, "dilation": 2, "padding": 1}, {"kernel": 3, "norm": "batch", "act": "relu"}],
    "avg_pool": [w for w in WINDOWS if "dilation" not in w]
    + [{"kernel": 3, "dilation": 2, "padding": 1}, {"kernel": 3, "norm": "batch", "act": "relu"}],
    "identity": [{}],
    "zero": [{}, {"channels": 2}],
    "scale": [{"factor": -0.3}],
    "linear": [{"channels": 5}, {"channels": 5, "norm": "batch", "act": "relu"}],
    "global_avg_pool": [{}],
    "flatten": [{}],
    "add": [{}, {"act": "silu"}],
    "concat": [{}, {"norm": "batch"}],
    "project": [{}, {"channels": 3, "norm": "none"}],
    "batch_norm": [{}, {"act": "relu", "eps": 1e-3}],
    "layer_norm": [{}, {"over": "channels"}],
    "relu": [{}],
    "relu6": [{}],
    "hard_swish": [{}],
    "silu": [{}],
    "gelu": [{}],
    "sigmoid": [{}],
    "hard_sigmoid": [{}],
    "tanh": [{}],
    "leaky_relu": [{}, {"slope": 0.3}],
    "elu": [{}, {"alpha": 0.3}],
    "prelu": [{}],
    "softmax": [{}],
    "group_norm": [{"groups": 2}],
    "instance_norm": [{}],
    "lrn": [{}, {"size": 3, "alpha": 0.5, "beta": 1.0, "k": 2.0}],
    "multiply": [{}],
    "channel_shuffle": [{"groups": 2}],
    "slice": [{"stop": 3}, {"start": 1, "stop": 4}],
    "pad": [{"padding": 1}, {"padding": [[0, 2], 1], "mode": "edge"}, {"padding": 2, "mode": "reflect"},
            {"padding": [[-1, 1], -1]}],
    "resize": [{"scale": 2}, {"size": [4, 7]}, {"size": 9, "mode": "bilinear"}],
    "conv_transpose": [{"kernel": 3, "stride": 2, "groups": 2}, {"kernel": 2, "padding": [[0, 1], 0]}],
    "adaptive_avg_pool": [{"size": 3}, {"size": [4, 6]}],
    "global_max_pool": [{}],
    "squeeze_excite": [{}, {"reduction": 2}],
    "dropout": [{}],
    "drop_path": [{}],
    "mean": [
        {"dims": [2, 3]}, {"dims": [1], "keep": True}, {"dims": [2]}, {"dims": [1, 2, 3]},
        {"dims": [1, 2, 3], "keep": True},
    ],
}  # fmt: skip


def network(op: str, attrs: dict[str, Any], shape: tuple[int, ...] = (4, 6, 6)) -> Model:
    """One node of this op over the image; ops that join or add read two values."""
    several = op in ("add", "concat", "project", "multiply")
    nodes: dict[str, Any] = {"other": ("sigmoid", {}, ["input"])} if several else {}
    nodes["node"] = (op, attrs, ["input", "other"] if several else ["input"])
    graph = graph_of(nodes, shape=(8, 1, 1) if op == "linear" else shape, phase=Phase.COMPACT)
    return Model(graph, {}, random_weights(graph, 3, np.float32))


def run(proto: onnx.ModelProto, x: Any, name: str = "image") -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: x})[0]


def assert_parity(model: Model, proto: onnx.ModelProto, batch: int = 2) -> None:
    check(proto)
    x = random_input(model.graph, 11, batch, np.float32)
    expected = evaluate(model.graph, model.weights, x)
    found = run(proto, x)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def op_types(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


# -- every op alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", sorted(known_ops().keys() - {"input", "output"}))
def test_every_op_alone(op: str) -> None:
    assert op in ALONE, f"give {op!r} a case in ALONE"
    for attrs in ALONE[op]:
        model = network(op, attrs)
        assert_parity(model, emit(model))


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, min(NEWEST_OPSET, onnx.defs.onnx_opset_version()) + 1))
def test_ops_whose_form_depends_on_the_opset(opset: int) -> None:
    for op in ("avg_pool", "zero", "mean", "layer_norm", "hard_swish", "gelu", "relu6", "squeeze_excite", "max_pool"):
        for attrs in ALONE[op]:
            model = network(op, attrs)
            proto = emit(model, opset=opset)
            assert proto.opset_import[0].version == opset
            assert_parity(model, proto)


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1)])
def test_vectors(shape: tuple[int, ...]) -> None:
    nodes: dict[str, Any] = {
        "a": ("linear", {"channels": 4, "norm": "batch", "act": "gelu"}, ["input"]),
        "b": ("linear", {"channels": 4}, ["input"]),
        "c": ("concat", {}, ["a", "b"]),
        "n": ("layer_norm", {}, ["c"]),
        "z": ("zero", {"channels": 2}, ["n"]),
        "d": ("concat", {}, ["n", "z"]),
        "e": ("batch_norm", {}, ["d"]),
    }
    graph = graph_of(nodes, shape=shape, phase=Phase.COMPACT)
    model = Model(graph, {}, random_weights(graph, 0, np.float32))
    for opset in (13, 18):
        assert_parity(model, emit(model, opset=opset))


# -- whole networks -------------------------------------------------------------------------------------------------


def supernet(graph: Graph, seed: int) -> tuple[Model, set[Any]]:
    """A gated model with random zeros, and the edges that survive them."""
    gates = random_gates(graph, seed, zeros=0.1 * (seed % 5))
    closed = {gate for gate, value in gates.items() if value == 0.0}
    return Model(graph, gates, random_weights(graph, seed, np.float32)), surviving_edges(graph, closed)


@pytest.mark.slow
@pytest.mark.parametrize("make", [random_graph, random_joins])
def test_random_networks_from_supernet_to_onnxruntime(make: Any) -> None:
    ran = 0
    for seed in range(130):
        model, edges = supernet(make(seed), seed)
        if not edges:
            continue
        x = random_input(model.graph, seed, 2, np.float32)
        expected = evaluate(model.graph, model.weights, x, model.gates, edges)
        proto = emit(TO_INHERIT.run(model), opset=13 + seed % 8)
        check(proto)
        assert np.abs(run(proto, x) - expected).max() <= 1e-4 * np.abs(expected).max(), seed
        ran += 1
    assert ran >= 100


def found_network(seed: int = 2) -> Model:
    model, edges = supernet(random_graph(seed), seed)
    assert edges
    return TO_INHERIT.run(model)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_any_batch_size(batch: int) -> None:
    model = found_network()
    assert_parity(model, emit(model), batch)


def test_a_file_is_the_same_for_the_same_model() -> None:
    assert emit(found_network()).SerializeToString() == emit(found_network()).SerializeToString()


def test_nothing_in_the_file_is_idle() -> None:
    for seed in range(0, 40, 5):
        model, edges = supernet(random_graph(seed), seed)
        if not edges:
            continue
        proto = emit(TO_INHERIT.run(model))
        read = {name for node in proto.graph.node for name in node.input}
        made = {name for node in proto.graph.node for name in node.output}
        assert {i.name for i in proto.graph.initializer} <= read
        assert made - read == {"logits"}
        assert not {"Identity", "Dropout"} & set(op_types(proto))
        assert all(node.name == node.output[0] or node.output[0] == "logits" for node in proto.graph.node)


def test_names_come_from_node_ids() -> None:
    nodes: dict[str, Any] = {
        "stem.out": ("conv", {"kernel": 3}, ["input"]),
        "head.pool": ("global_avg_pool", {}, ["stem.out"]),
        "head.out": ("linear", {"channels": 3}, ["head.pool"]),
    }
    graph = graph_of(nodes, phase=Phase.COMPACT, blocks=(Block("stem", "stem", "stem", ("input",), "stem.out"),))
    proto = emit(Model(graph, {}, random_weights(graph, 0, np.float32)), input_name="pixels", output_name="scores")
    assert [node.name for node in proto.graph.node] == ["stem.out.conv", "stem.out.act", "head.pool", "head.out"]
    assert [i.name for i in proto.graph.input] == ["pixels"]
    assert proto.graph.node[-1].output == ["scores"]
    assert {i.name for i in proto.graph.initializer} == {
        "stem.out.conv.weight", "stem.out.conv.bias", "head.pool.axes", "head.out.weight", "head.out.bias",
    }  # fmt: skip
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert len(proto.graph.value_info) == 0


def test_a_value_that_is_also_read_elsewhere_can_be_the_output() -> None:
    nodes: dict[str, Any] = {"a": ("relu", {}, ["input"]), "i": ("identity", {}, ["a"]), "s": ("add", {}, ["i", "a"])}
    model = Model(graph_of(nodes, phase=Phase.COMPACT))
    proto = emit(model)
    assert op_types(proto) == ["Relu", "Add"]
    assert_parity(model, proto)


def test_weights_in_float64_are_cast() -> None:
    model = found_network()
    wide = replace(model, weights={name: np.asarray(v, np.float64) for name, v in model.weights.items()})
    assert_parity(model, emit(wide))


# -- what goes around the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_raw_images_in_probabilities_out(layout: Any) -> None:
    mean, std = (0.2, 0.4, 0.5, 0.6), (0.1, 0.2, 0.3, 0.4)
    model = found_network()
    proto = emit(
        model,
        preprocessing=Preprocessing(layout, mean, std),
        head="softmax",
        output_name="probabilities",
        metadata={"labels": '["a", "b", "c"]', "accuracy": "0.98"},
    )
    check(proto)
    raw = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 6), np.uint8)
    normal = (raw / 255 - np.reshape(mean, (1, 4, 1, 1))) / np.reshape(std, (1, 4, 1, 1))
    logits = evaluate(model.graph, model.weights, normal)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    found = run(proto, raw if layout == "nchw" else np.ascontiguousarray(raw.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert {p.key: p.value for p in proto.metadata_props} == {"labels": '["a", "b", "c"]', "accuracy": "0.98"}


@pytest.mark.parametrize("opset", [OLDEST_OPSET - 1, NEWEST_OPSET + 1])
def test_an_opset_that_cannot_be_written(opset: int) -> None:
    with pytest.raises(GraphspecError, match=f"opset {opset} cannot be written"):
        emit(found_network(), opset=opset)


def test_names_that_are_taken() -> None:
    model = network("relu", {})
    nodes: dict[str, Any] = {"image": ("relu", {}, ["input"]), "out": ("silu", {}, ["image"])}
    with pytest.raises(GraphspecError, match="'image' already"):
        emit(Model(graph_of(nodes, phase=Phase.COMPACT)))
    for graph, name in ((model.graph, "image"), (with_output(model.graph, "input", "logits"), "logits")):
        with pytest.raises(GraphspecError, match="both called"):
            emit(Model(graph), output_name=name)


@pytest.mark.parametrize("head", [None, "softmax"])
def test_every_output_is_emitted_under_its_name(head: str | None) -> None:
    nodes: dict[str, Any] = {
        "a": ("conv", {"kernel": 3, "channels": 4}, ["input"]),
        "pool": ("global_avg_pool", {}, ["a"]),
        "fc": ("linear", {"channels": 3}, ["pool"]),
    }
    graph = graph_of(nodes, phase=Phase.COMPACT)
    for source, name in (("fc", "twin"), ("pool", "embedding"), ("input", "copy"), ("fc", "third")):
        graph = with_output(graph, source, name)
    verify(graph)
    weights = random_weights(graph, 0, np.float32)
    proto = emit(Model(graph, {}, weights), head=head)
    check(proto)
    x = random_input(graph, 0, 2, np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": x}), strict=True))
    assert list(found) == ["logits", "twin", "embedding", "copy", "third"]
    for name, value in found.items():
        output = "output" if name == "logits" else name
        expected = evaluate(only_output(graph, output), weights, x)
        if name == "logits" and head:
            expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_large_weights_go_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("conv", {"kernel": 3, "channels": 64})
    monkeypatch.setattr(lowering, "PROTOBUF_LIMIT", 1000)
    save(emit(model), tmp_path / "big.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    x = random_input(model.graph, 0, 1, np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "big.onnx", providers=["CPUExecutionProvider"])
    expected = evaluate(model.graph, model.weights, x)
    np.testing.assert_allclose(session.run(None, {"image": x})[0], expected, rtol=1e-4, atol=1e-5)


def test_a_usual_model_is_one_file(tmp_path: Path) -> None:
    proto = emit(found_network())
    save(proto, tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == proto.SerializeToString(deterministic=True)


def test_the_lowering_imports_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import numpy as np
from compiler.ir.graph import INPUT, OUTPUT, Graph, Model, Node, Phase, TensorType, attrs_of
from compiler.lowering.onnx.model import emit, save
from compiler.passes.infer_types import infer_types
graph = Graph("plain")
graph.add(Node(INPUT, INPUT, type=TensorType((3, 4, 4))))
graph.add(Node("c", "conv", attrs_of(dict(kernel=3, norm="none"))))
graph.add(Node(OUTPUT, OUTPUT))
graph.connect(INPUT, "c")
graph.connect("c", OUTPUT)
weights = {{"c.conv.weight": np.ones((3, 3, 3, 3), np.float32), "c.conv.bias": np.zeros(3, np.float32)}}
save(emit(Model(infer_types(graph, Phase.COMPACT), {{}}, weights)), Path({str(tmp_path / "m.onnx")!r}))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert (tmp_path / "m.onnx").is_file()


# -- custom ops -----------------------------------------------------------------------------------------------------


def emit_square(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    return w.emit("Mul", [ins[0], ins[0]], node.id)


def emit_product(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    return w.emit("Mul", ins, node.id)


@pytest.fixture
def fresh_caches() -> Iterator[None]:
    """Rows registered for one test are forgotten after it."""
    yield
    ops.op.cache_clear()
    ops.read_attrs.cache_clear()


@pytest.mark.usefixtures("fresh_caches")
def test_custom_ops_bring_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(attrs: Any, ins: list[Any]) -> Any:
        return ins[0]

    rows = [
        Op("square", "x^2", infer=same, onnx=f"{__name__}:emit_square"),
        Op("product", "x y", reads=Reads.APART, infer=same, onnx=f"{__name__}:emit_product"),
        Op("rowless", "no ONNX row", infer=same),
        Op("astray", "a row that is not there", infer=same, onnx="tests.interpreter:nowhere"),
    ]
    for row in rows:
        monkeypatch.setitem(known_ops(), row.name, row)
    nodes: dict[str, Any] = {"s": ("square", {}, ["input"]), "p": ("product", {}, ["s", "input"])}
    x = np.full((1, 4, 6, 6), 2.0, np.float32)
    np.testing.assert_array_equal(run(emit(Model(graph_of(nodes, phase=Phase.COMPACT))), x), x**3)
    for name, complaint in (("rowless", "has no ONNX row"), ("astray", "cannot be imported")):
        with pytest.raises(GraphspecError, match=complaint):
            emit(Model(graph_of({"n": (name, {}, ["input"])}, phase=Phase.COMPACT)))


def test_initializers_hold_the_weights_bit_for_bit() -> None:
    model = network("linear", {"channels": 5})
    kept = {i.name: numpy_helper.to_array(i) for i in emit(model).graph.initializer}
    assert kept.keys() == model.weights.keys()
    for name, value in model.weights.items():
        np.testing.assert_array_equal(kept[name], value)
