"""The front end for ONNX: the nodes of a file by the rows of `onnx_rows`, constants folded."""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from compiler.errors import GraphspecError
from compiler.importing.calls import Network, Origin
from compiler.importing.onnx_rows import ONNX, OnnxNode
from compiler.importing.values import TorchRecorder, require
from compiler.ir.graph import INPUT
from compiler.ops import Shape

LAST = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}


def image_shape(model: onnx.ModelProto) -> tuple[int | None, ...]:
    """The sizes of the one input, the batch first; None where the file leaves them open. GraphspecError if it reads
    something else than images or signals of float32.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        found = f"it has {len(inputs)} inputs and {len(model.graph.output)} outputs, not one of each"
        raise GraphspecError(f"{found}\n  try: a model that reads images and gives its logits alone")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT or len(kind.shape.dim) not in (3, 4):
        raise GraphspecError("it does not read float32 of shape [N, C, H, W] or [N, C, T]\n  try: a model that does")
    return tuple(d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim)


def without_end(model: onnx.ModelProto) -> str:
    """Remove a softmax or sigmoid that a model ends in; its name, empty if there is none."""
    last = model.graph.output[0].name
    node = next((node for node in model.graph.node if last in node.output), None)
    if node is None or node.op_type not in LAST:
        return ""
    model.graph.node.remove(node)
    del model.graph.output[:]
    model.graph.output.append(helper.make_empty_tensor_value_info(node.input[0]))
    return LAST[node.op_type]


def read_onnx(model: onnx.ModelProto, shape: Shape) -> Network:
    """What a file computes of images of this shape, without the batch; GraphspecError for what has no op of ours."""
    return _Reader(model, shape).read()


class _Reader:
    def __init__(self, model: onnx.ModelProto, shape: Shape) -> None:
        self.model, self.graph, self.recorder = model, model.graph, TorchRecorder(shape)
        self.opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.values: dict[str, Any] = {"": None}
        self.values |= {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in self.graph.initializer}
        self.values |= {v.name: INPUT for v in self.graph.input if v.name not in self.values}
        self.guessed: set[str] = set()  # values that may have another shape than noted

    def read(self) -> Network:
        """The network."""
        for node in self.graph.node:
            self._node(node)
        return self.recorder.network_of(self.values[self.graph.output[0].name])

    def _node(self, node: onnx.NodeProto) -> None:
        recorder = self.recorder
        inputs = [self.values[name] for name in node.input]
        recorder.origin = Origin(node.op_type, _path(node), "")
        recorder.name = node.output[0]
        doubtful = not self.guessed.isdisjoint(node.input)
        make, noted = functools.partial(self._value, node, inputs), not (doubtful and node.op_type in ONNX)
        found, refused = recorder.attempt(make, recorder.shapes[INPUT], noted=noted)
        if refused and node.output[0] in self.inferred:
            recorder.shapes[found] = self.inferred[node.output[0]]
            self.guessed |= set(node.output[1:])
        elif refused or doubtful:
            self.guessed |= set(node.output)
        self.values |= zip(node.output, found if isinstance(found, list) else [found] * len(node.output), strict=False)

    @functools.cached_property
    def inferred(self) -> dict[str, Shape]:
        """The shapes of values without the batch, as far as ONNX itself infers them, for what cannot be read."""
        found: dict[str, Shape] = {}
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        image = next(value for value in model.graph.input if self.values[value.name] is INPUT)
        for dim, size in zip(image.type.tensor_type.shape.dim, (1, *self.recorder.shapes[INPUT]), strict=True):
            dim.dim_value = size
        del model.graph.value_info[:]  # which may say less
        with suppress(Exception):  # where a damaged file has no shapes, fewer of its faults are told
            for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info:
                sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
                found |= {value.name: tuple(sizes[1:])} if sizes and all(sizes) else {}
        return found

    def _value(self, node: onnx.NodeProto, inputs: list[Any]) -> Any:
        """What a node gives; UnsupportedError if no op of ours gives it."""
        if all(value is None or isinstance(value, Tensor) for value in inputs):
            return self._folded(node, inputs)
        require(node.op_type in ONNX, "there is no such op")
        attrs = {attribute.name: _attribute(attribute) for attribute in node.attribute}
        return ONNX[node.op_type](OnnxNode(node.op_type, attrs, inputs, self.recorder))

    def _folded(self, node: onnx.NodeProto, inputs: list[Any]) -> list[Tensor]:
        """What a node makes of constants alone."""
        feeds = {name: value.numpy() for name, value in zip(node.input, inputs, strict=True) if value is not None}
        kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
        given = [helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in feeds.items()]
        results = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "constants", given, results)
        evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)]))
        made = evaluator.run(None, feeds)
        return [torch.from_numpy(np.array(value)) for value in made]


def _attribute(attribute: onnx.AttributeProto) -> Any:
    """Its value; a number of float32 as the shortest decimal for it."""
    value = helper.get_attribute_value(attribute)
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _path(node: onnx.NodeProto) -> tuple[str, ...]:
    """The modules that a node's name tells of: `/layer1/layer1.0/conv1/Conv` is of `layer1.0.conv1`."""
    found: list[str] = []
    before = ""
    for part in filter(None, (node.name or node.output[0]).split("/")):
        own = part.removeprefix(f"{before}.") if before else part
        before = part
        found += filter(None, own.split("."))
    return (*found[:-1], f"{found[-1]}()")
