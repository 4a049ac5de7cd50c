"""Smaller forms of an ONNX model with the same input and output: float16, and int8 by static quantisation."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import RunError
from compiler.lowering.onnx.model import HEADS

Array = NDArray[Any]
LARGEST = float(np.finfo(np.float16).max)


def half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What `emit` gives, with float16 inside, but for input and output; RunError if a weight is too large for it."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            graph.initializer[index].CopyFrom(_half_tensor(tensor))
    for node in graph.node:
        _half_node(node)
    given, image = graph.output[0].name, graph.input[0]
    inner = _renamed(graph, given)
    graph.node.append(helper.make_node("Cast", [inner], [given], name=f"{given}.float", to=TensorProto.FLOAT))
    if image.type.tensor_type.elem_type == TensorProto.FLOAT:  # raw images are cast by the model itself
        inner = _renamed(graph, image.name)
        graph.node.insert(0, helper.make_node("Cast", [image.name], [inner], name=inner, to=TensorProto.FLOAT16))
    return result


def _half_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    value = numpy_helper.to_array(tensor)
    if np.abs(value).max(initial=0.0) > LARGEST:
        raise RunError(
            f"{tensor.name}: holds {np.abs(value).max():.3g}, float16 ends at {LARGEST:.0f}\n  try: without --fp16"
        )
    return numpy_helper.from_array(value.astype(np.float16), tensor.name)


def _half_node(node: onnx.NodeProto) -> None:
    """What a node says about its type; `emit` casts only to float32, and fills only with float32 zeros."""
    if node.op_type == "Cast":
        node.attribute[0].i = TensorProto.FLOAT16
    if node.op_type == "ConstantOfShape":
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16))))


def _renamed(graph: onnx.GraphProto, old: str) -> str:
    """Give a value of the graph another name, and say which."""
    new = f"{old}.half"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    return new


def int8(proto: onnx.ModelProto, path: Path, calibration: Iterable[Array]) -> None:
    """Write the int8 form of `proto` to `path`: activations uint8 per tensor, weights int8 per channel.

    Ranges of activations are those met on `calibration`, batches of images as the model takes them. Weights use 7 of
    their 8 bits, because processors without VNNI add pairs of 8 x 8 bit products in 16 bits, which would overflow.
    Batch norms that no convolution took in stay float, and so does what turns the network's output into probabilities.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static  # takes a second

    image, nodes, outputs = proto.graph.input[0].name, proto.graph.node, {output.name for output in proto.graph.output}
    heads = {node.name for node in nodes if node.op_type in dict(HEADS.values()) and node.output[0] in outputs}
    feeds = ({image: batch} for batch in calibration)
    inferred = onnx.shape_inference.infer_shapes(proto)
    # Says that shapes are inferred, which is all of onnxruntime's preparation that this model needs.
    helper.set_model_props(inferred, {"onnx.quant.pre_process": "onnxruntime.quant"})
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that norms, whose weights are vectors, get one scale for all of it
    quantize_static(
        inferred,
        path,
        SimpleNamespace(get_next=partial(next, feeds, None)),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[*heads, *(node.name for node in nodes if node.op_type == "BatchNormalization")],
        per_channel=True,
        reduce_range=True,
    )
    logging.disable(before)
