"""Float16 and int8 forms compute nearly what the model does, with the same input and output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import RunError
from compiler.ir.graph import INPUT, Model, Phase
from compiler.lowering.onnx.model import emit
from runtime.export.quantise import half, int8
from runtime.inference.network import OnnxNetwork
from tests.graphs import graph_of
from tests.interpreter import random_weights
from tests.tiny import environment

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(64, 3, 8, 8)).astype(np.float32)


def hand_built(*, raw: bool = False, weight: float = 1.0, opset: int = 18) -> onnx.ModelProto:
    """Convolution, batch norm, relu, plus zeros of the same shape, mean, linear: what `emit` can write, by hand."""
    rng = np.random.default_rng(1)
    arrays = {
        "conv.weight": rng.normal(size=(4, 3, 3, 3)) * weight,
        "norm.weight": np.ones(4),
        "norm.bias": rng.normal(size=4),
        "norm.running_mean": rng.normal(size=4),
        "norm.running_var": rng.uniform(0.5, 2.0, size=4),
        "linear.weight": rng.normal(size=(5, 4)),
    }
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()]
    tensors.append(numpy_helper.from_array(np.array([2, 3], np.int64), "mean.axes"))
    norm = [name for name in arrays if name.startswith("norm.")]
    nodes = [helper.make_node("Cast", ["image"], ["image.float"], "image.float", to=TensorProto.FLOAT)] if raw else []
    nodes += [
        helper.make_node("Conv", ["image.float" if raw else "image", "conv.weight"], ["conv"], "conv", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["conv", *norm], ["norm"], "norm"),
        helper.make_node("Relu", ["norm"], ["relu"], "relu"),
        helper.make_node("Shape", ["relu"], ["zero.shape"], "zero.shape"),
        helper.make_node("ConstantOfShape", ["zero.shape"], ["zero"], "zero"),
        helper.make_node("Add", ["relu", "zero"], ["sum"], "sum"),
        helper.make_node("ReduceMean", ["sum", "mean.axes"], ["mean"], "mean", keepdims=0),
        helper.make_node("Gemm", ["mean", "linear.weight"], ["logits"], "linear", transB=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8 if raw else TensorProto.FLOAT, ["N", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])
    graph = helper.make_graph(nodes, "by_hand", [image], [logits], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def run(proto: onnx.ModelProto, path: Path, image: Any = IMAGES) -> Any:
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())
    return OnnxNetwork(path, threads=1)(image)


def relative(found: Any, wanted: Any) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


# -- float16 --------------------------------------------------------------------------------------------------------


def test_half_keeps_input_and_output_and_halves_every_float_weight(tmp_path: Path) -> None:
    before = hand_built()
    after = half(before)
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output
    types = {tensor.name: tensor.data_type for tensor in after.graph.initializer}
    assert types.pop("mean.axes") == TensorProto.INT64
    assert set(types.values()) == {TensorProto.FLOAT16}
    found, wanted = run(after, tmp_path / "half.onnx"), run(before, tmp_path / "model.onnx")
    assert found.dtype == np.float32
    assert 0 < relative(found, wanted) < 5e-3


def test_half_leaves_the_model_it_is_made_of_alone() -> None:
    before = hand_built()
    half(before)
    assert before == hand_built()


def test_half_of_a_model_for_raw_images_has_no_second_cast(tmp_path: Path) -> None:
    raw = RNG.integers(0, 256, size=(3, 3, 8, 8), dtype=np.uint8)
    before = hand_built(raw=True, weight=0.01)
    after = half(before)
    assert [node.op_type for node in after.graph.node].count("Cast") == 2  # the model's own, and the output's
    assert relative(run(after, tmp_path / "half.onnx", raw), run(before, tmp_path / "model.onnx", raw)) < 5e-3


def test_a_weight_too_large_for_float16_is_refused_by_name() -> None:
    with pytest.raises(RunError, match=r"conv\.weight: holds .* float16 ends at 65504"):
        half(hand_built(weight=1e5))


# -- int8 -----------------------------------------------------------------------------------------------------------


def quantised(path: Path) -> onnx.ModelProto:
    int8(hand_built(), path, (IMAGES[i : i + 16] for i in range(0, 64, 16)))
    return onnx.load(path)


def test_int8_weights_and_nearly_the_same_outputs(tmp_path: Path) -> None:
    proto = quantised(tmp_path / "int8.onnx")
    types = {t.data_type for t in proto.graph.initializer if t.name.startswith(("conv.weight", "linear.weight"))}
    assert TensorProto.INT8 in types
    assert proto.graph.input == hand_built().graph.input
    assert proto.graph.output == hand_built().graph.output
    found, wanted = run(proto, tmp_path / "again.onnx"), run(hand_built(), tmp_path / "model.onnx")
    assert 0 < relative(found, wanted) < 0.05


def test_int8_leaves_batch_norm_float_and_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    proto = quantised(tmp_path / "int8.onnx")
    (norm,) = (node for node in proto.graph.node if node.op_type == "BatchNormalization")
    assert norm.input[1:] == ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("op", ["group_norm", "instance_norm", "layer_norm"])
def test_int8_of_other_norms_says_nothing(tmp_path: Path, op: str) -> None:
    attrs = {"groups": 2} if op == "group_norm" else {}
    nodes = {"c": ("conv", {"kernel": 3, "channels": 4}, [INPUT]), "n": (op, attrs, ["c"])}
    graph = graph_of(nodes, shape=(3, 8, 8), phase=Phase.COMPACT)
    before = emit(Model(graph, {}, random_weights(graph, 0, np.float32)))
    script = "import sys, numpy, onnx; from pathlib import Path; from runtime.export.quantise import int8; "
    script += "images = numpy.zeros((4, 3, 8, 8), numpy.float32); "
    script += "int8(onnx.load(sys.argv[1]), Path(sys.argv[2]), [images])"
    onnx.save(before, tmp_path / "m.onnx")
    command = [sys.executable, "-c", script, str(tmp_path / "m.onnx"), str(tmp_path / "int8.onnx")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("head", ["Softmax", "Sigmoid"])
def test_int8_computes_probabilities_in_float(tmp_path: Path, head: str) -> None:
    before = hand_built()
    before.graph.node[-1].output[0] = "inner"
    before.graph.node.append(helper.make_node(head, ["inner"], ["logits"], "logits"))
    int8(before, tmp_path / "int8.onnx", (IMAGES[i : i + 16] for i in range(0, 64, 16)))
    after = onnx.load(tmp_path / "int8.onnx")
    assert [node.op_type for node in after.graph.node if "logits" in node.output] == [head]
    found, wanted = run(after, tmp_path / "a.onnx"), run(before, tmp_path / "b.onnx")
    assert 0 < np.abs(found - wanted).max() < 0.05
    if head == "Softmax":
        assert np.abs(found.sum(1) - 1).max() < 1e-6


def test_int8_weights_keep_to_seven_bits(tmp_path: Path) -> None:
    proto = quantised(tmp_path / "int8.onnx")
    values = [numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_type == TensorProto.INT8 and t.dims]
    assert max(int(np.abs(value.astype(int)).max()) for value in values) <= 64


def test_int8_is_the_same_for_the_same_images(tmp_path: Path) -> None:
    assert quantised(tmp_path / "a.onnx") == quantised(tmp_path / "b.onnx")
