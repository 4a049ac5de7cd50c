"""ONNX files: our own, those of the `onnx` package, and every node that has a row, against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.imports import LIGHT, randomised
from compiler.analysis.costs import total_cost
from compiler.errors import GraphspecError
from compiler.importing.equal import require_equal
from compiler.importing.fuse import fused
from compiler.importing.onnx_file import image_shape, read_onnx, without_end
from compiler.ir.graph import Graph, Model, Phase
from compiler.lowering.onnx.model import emit
from compiler.ops import Shape
from compiler.passes.pipeline import TO_EXPORT
from tests.compiler.importing.models import spec_of
from tests.graphs import EVERY_OP, graph_of, random_graph
from tests.interpreter import random_weights

RNG = np.random.default_rng(0)


def difference(model: onnx.ModelProto, shape: Shape, folder: Path) -> tuple[float, Graph]:
    """How far the spec of a file is from what onnxruntime computes."""
    without_end(model)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])
    batch = image_shape(model)[0] or 1

    def compute(images: torch.Tensor) -> torch.Tensor:
        name = session.get_inputs()[0].name
        return torch.cat(
            [torch.from_numpy(session.run(None, {name: p.numpy()})[0]) for p in torch.split(images, batch)]
        )

    _, graph, module = spec_of(fused(read_onnx(model, shape)), folder)
    return require_equal(compute, module, shape).difference, graph


def model_of(nodes: list[onnx.NodeProto], shape: Shape, weights: dict[str, Any], opset: int = 18) -> onnx.ModelProto:
    """A model of these nodes, from `x` to `y`."""
    kinds = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])]
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    arrays = {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in arrays.items()}
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    results = [helper.make_empty_tensor_value_info("y")]
    graph = helper.make_graph(nodes, "g", kinds, results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    return model


def node(kind: str, inputs: str, output: str = "y", **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attrs)


IMAGE = (4, 7, 6)
W = RNG.normal(0, 0.3, (6, 4, 3, 3))
C4 = np.linspace(0.5, 2, 4)
CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "conv": ([node("Conv", "x w b", pads=[1, 0, 2, 1], strides=[2, 1])], {"w": W, "b": W[:, 0, 0, 0]}),
    "same_upper": ([node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": W}),
    "same_lower": ([node("Conv", "x w", auto_pad="SAME_LOWER", strides=[2, 2])], {"w": W}),
    "valid": ([node("Conv", "x w", auto_pad="VALID", dilations=[2, 2])], {"w": W}),
    "transposed": (
        [node("ConvTranspose", "x w", group=2, strides=[2, 2], output_padding=[1, 1])], {"w": W[:4, :3]}
    ),
    "norm": ([node("BatchNormalization", "x a b c d", epsilon=1e-3)], {"a": C4, "b": C4 - 1, "c": C4 / 9, "d": C4}),
    "norm_scaled": (
        [node("BatchNormalization", "x a b c d", "n"), node("Mul", "n s", "m"), node("Add", "m t")],
        {"a": C4, "b": C4 - 1, "c": C4 / 9, "d": C4, "s": C4.reshape(4, 1, 1), "t": C4.reshape(1, 4, 1, 1)},
    ),
    "instance_norm": ([node("InstanceNormalization", "x a b", epsilon=0.1)], {"a": C4, "b": C4 - 1}),
    "group_norm": (  # as torch exports it
        [node("Reshape", "x s", "r"), node("InstanceNormalization", "r a b", "n"), node("Shape", "x", "e"),
         node("Reshape", "n e", "m"), node("Mul", "m w", "v"), node("Add", "v w")],
        {"s": np.array([0, 2, -1]), "a": C4[:2], "b": C4[2:], "w": C4.reshape(4, 1, 1)},
    ),
    "group_norm_of_groups": ([node("GroupNormalization", "x a b", num_groups=2)], {"a": C4[:2], "b": C4[2:]}),
    "layer_norm": ([node("GlobalAveragePool", "x", "p"), node("Flatten", "p", "f"),
                    node("LayerNormalization", "f a b", epsilon=0.1)], {"a": C4, "b": C4 - 1}),
    "layer_norm_of_pixels": (
        [node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("LayerNormalization", "t a b", "n", axis=3),
         node("MatMul", "n w", "m"), node("Add", "b m", "s"), node("Transpose", "s", perm=[0, 3, 1, 2])],
        {"a": C4, "b": C4 - 1, "w": W[:4, :, 0, 0].T},
    ),
    "bias_apart": ([node("Conv", "x w", "c"), node("Add", "c b")], {"w": W, "b": W[:, :1, :1, 0]}),
    "matmul": (
        [node("GlobalAveragePool", "x", "p"), node("Flatten", "p", "f"), node("MatMul", "f w", "m"),
         node("Add", "m b")],
        {"w": W[:5, :, 0, 0].T, "b": W[:5, 0, 0, 0]},
    ),
    "gemm": (
        [node("Reshape", "x s", "f"), node("Gemm", "f w b", alpha=0.5, beta=2.0, transB=1)],
        {"s": np.array([0, -1]), "w": RNG.normal(0, 0.1, (5, 168)), "b": W[:5, 0, 0, 0]},
    ),
    "max_pool": ([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])], {}),
    "avg_pool": ([node("AveragePool", "x", kernel_shape=[3, 2], pads=[1, 0, 1, 0], count_include_pad=1)], {}),
    "uneven": ([node("AveragePool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[2, 2])], {}),
    "global_max": ([node("GlobalMaxPool", "x")], {}),
    "mean": ([node("ReduceMean", "x a", keepdims=0)], {"a": np.array([2, 3])}),
    "clip": ([node("Clip", "x l h")], {"l": np.float32(0), "h": np.float32(6)}),
    "clip_by_nothing": ([node("Clip", "x l h")], {"l": np.float32(0), "h": np.finfo(np.float32).max}),
    "clip_by_one": ([node("Clip", "x l h")], {"l": np.float32(0), "h": np.float32(0.7)}),
    "hard_swish": (
        [node("Add", "x t", "a"), node("Clip", "a l h", "c"), node("Mul", "x c", "m"), node("Div", "m s")],
        {"t": np.float32(3), "l": np.float32(0), "h": np.float32(6), "s": np.float32(6)},
    ),
    "hard_sigmoid": ([node("HardSigmoid", "x", alpha=0.2)], {}),
    "silu": ([node("Sigmoid", "x", "s"), node("Mul", "x s")], {}),
    "leaky": ([node("LeakyRelu", "x", alpha=0.3)], {}),
    "elu": ([node("Elu", "x", alpha=0.5)], {}),
    "prelu": ([node("PRelu", "x s")], {"s": C4.reshape(4, 1, 1) / 5}),
    "split": (
        [helper.make_node("Split", ["x", "s"], ["a", "b"], axis=1), node("Concat", "b a", axis=1)],
        {"s": np.array([1, 3])},
    ),
    "slice": ([node("Slice", "x s e a")], {"s": np.array([-3]), "e": np.array([100]), "a": np.array([1])}),
    "shortcut": (
        [node("Slice", "x s e a t", "p"), node("Pad", "p b")],
        {"s": np.array([0, 0]), "e": np.array([2**63 - 1, 6]), "a": np.array([2, -1]), "t": np.array([2, 3]),
         "b": np.array([0, 2, 0, 1, 0, 3, 0, 0])},
    ),
    "shuffle": (
        [node("Reshape", "x s", "r"), node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]), node("Reshape", "t e")],
        {"s": np.array([0, 2, 2, 7, 6]), "e": np.array([0, -1, 7, 6])},
    ),
    "cut": (
        [node("Slice", "x s e a t", "p"), node("Pad", "p b")],
        {"s": np.array([1, -4]), "e": np.array([100, -1]), "a": np.array([2, 3]), "t": np.array([2, 1]),
         "b": np.array([0, 0, -1, 0, 0, 0, 0, 1])},
    ),
    "pad": ([node("Pad", "x p", mode="reflect")], {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1])}),
    "resize": (
        [node("Resize", "x r s", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "bilinear": (
        [helper.make_node("Resize", ["x", "", "", "n"], ["y"], mode="linear")], {"n": np.array([1, 4, 10, 9])}
    ),
    "lrn": ([node("LRN", "x", size=3, alpha=0.1, bias=2.0)], {}),
    "squeezed": ([node("GlobalAveragePool", "x", "p"), node("Squeeze", "p a")], {"a": np.array([2, 3])}),
    "expand": (
        [node("GlobalAveragePool", "x", "p"), node("Shape", "x", "s"), node("Expand", "p s", "e"), node("Mul", "e x")],
        {},
    ),
    "dropout": ([node("Dropout", "x", "d"), node("Identity", "d")], {}),
    "sum": ([node("Relu", "x", "r"), node("Sum", "x r x")], {}),
    "flat_by_shape": (
        [
            node("Shape", "x", "s", start=0, end=1), node("Concat", "s m", "t", axis=0), node("Reshape", "x t", "f"),
            node("Relu", "f"),
        ],
        {"m": np.array([-1])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_node_is_the_same_as_our_op(name: str, tmp_path: Path) -> None:
    nodes, weights = CASES[name]
    assert difference(model_of(nodes, IMAGE, weights), IMAGE, tmp_path)[0] <= 1e-5


@pytest.mark.parametrize("seed", range(12))
def test_what_we_export_is_imported_again(seed: int, tmp_path: Path) -> None:
    ops = tuple((n, a) for n, a in EVERY_OP if n != "drop_path" and a.get("over") != "channels")
    graph = random_graph(seed, gated=0, ops=ops)
    model = TO_EXPORT.run(Model(graph.copy(Phase.COMPACT), {}, random_weights(graph, seed)))
    assert difference(emit(model, opset=20), graph.node("input").shape, tmp_path)[0] <= 1e-5


QUICK = ("light_squeezenet", "light_shufflenet")
LARGE = ("light_vgg19",)  # 144 million weights, and no op that the others lack
MODELS = sorted({path.stem for path in LIGHT.glob("*.onnx")} - {*LARGE})


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_the_light_models_of_onnx_are_imported(name: str, tmp_path: Path) -> None:
    model = randomised(LIGHT / f"{name}.onnx")
    error, graph = difference(model, (3, 224, 224), tmp_path)
    assert error <= 1e-5
    assert graph.node("output").shape == (1000,)


def test_a_network_without_names_is_cut_into_its_residual_blocks(tmp_path: Path) -> None:
    graph = difference(randomised(LIGHT / "light_shufflenet.onnx"), (3, 224, 224), tmp_path)[1]
    assert len(graph.blocks) == 17 + 1  # a stem, 16 units, a head
    assert len({block.kind for block in graph.blocks}) < len(graph.blocks)


BAD: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "unknown": ([node("Sin", "x", "a"), node("Cos", "a")], {}),
    "attribute": ([node("Conv", "x w", group=3)], {"w": W}),
    "input": ([node("Conv", "x x")], {}),
    "pool": ([node("MaxPool", "x")], {}),
    "reshape": ([node("Reshape", "x s")], {"s": np.array([-1, 7])}),
    "transpose": ([node("Transpose", "x", perm=[1, 0, 2, 3])], {}),
    "batch": ([node("Slice", "x s e")], {"s": np.array([0]), "e": np.array([1])}),
    "backwards": (
        [node("Slice", "x s e a t")],
        {"s": np.array([-1]), "e": np.array([-99]), "a": np.array([2]), "t": np.array([-1])},
    ),
    "no_step": (
        [node("Slice", "x s e a t")],
        {"s": np.array([0]), "e": np.array([2]), "a": np.array([2]), "t": np.array([0])},
    ),
    "quotient": ([node("Exp", "x", "e"), node("Div", "x e")], {}),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_listed(name: str) -> None:
    nodes, weights = BAD[name]
    with pytest.raises(GraphspecError, match="no op of ours computes"):
        read_onnx(model_of(nodes, IMAGE, weights), IMAGE)


WIDE = {"w": RNG.normal(size=(2, 8, 1, 1)), "s": np.array([1, 8, 4, 3])}
AFTER: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], list[str]]] = {  # what stands there, what is refused
    "another_shape": (
        [node("Transpose", "x", "t", perm=[0, 2, 1, 3]), node("Reshape", "t s", "r"), node("Exp", "r", "e"),
         node("Conv", "e w")], WIDE, ["Transpose", "Reshape", "Exp"]),
    "a_strange_op": (
        [node("Own", "x", "t", domain="own"), node("Conv", "t w", "c"), node("Exp", "c")], WIDE, ["Own", "Exp"]),
    "the_output": ([node("Exp", "x", "e"), node("Transpose", "e", perm=[0, 2, 3, 1])], {}, ["Exp"]),
    "several": ([node("Sin", "x", "s"), node("Sin", "s", "t"), node("Cos", "t")], {}, ["Sin", "Sin", "Cos"]),
}  # fmt: skip


@pytest.mark.parametrize("name", AFTER)
def test_what_follows_from_another_refusal_is_not_listed(name: str) -> None:
    nodes, weights, refused = AFTER[name]
    model = model_of(nodes, IMAGE, weights)
    model.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises(GraphspecError) as caught:
        read_onnx(model, IMAGE)
    listed = [line.split() for line in str(caught.value).splitlines() if " x " in line]
    assert [(int(count), kind) for count, _, kind, *_ in listed] == [
        (refused.count(kind), f"{kind}:") for kind in dict.fromkeys(refused)
    ]


def test_files_of_several_inputs_are_refused() -> None:
    model = model_of([node("Add", "x z")], IMAGE, {})
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", *IMAGE]))
    with pytest.raises(GraphspecError, match="2 inputs and 1 outputs"):
        image_shape(model)


def test_the_small_graphs_of_tests_keep_their_costs(tmp_path: Path) -> None:
    graph = graph_of(
        {"c": ("conv", {"kernel": 3, "channels": 8}, ["input"]), "p": ("global_avg_pool", {}, ["c"]),
         "l": ("linear", {"channels": 3}, ["p"])}
    )  # fmt: skip
    model = TO_EXPORT.run(Model(graph.copy(Phase.COMPACT), {}, random_weights(graph, 0)))
    assert total_cost(difference(emit(model), (4, 6, 6), tmp_path)[1]).flops == total_cost(graph).flops
