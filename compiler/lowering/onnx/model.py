"""Lower a compact graph and its weights to an ONNX model: no tracing, no torch.

The model takes images `(N, C, H, W)` in float32 (or raw ones, see `Preprocessing`) for any N and gives logits or
probabilities `(N, classes)`, and the other outputs under their own names. Its nodes and values are named by node
ids, so a file reads like the graph it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from onnx import TensorProto, helper

from compiler.errors import GraphspecError
from compiler.ir.graph import INPUT, OUTPUT, Graph, Model, Node
from compiler.lowering.custom import imported_row
from compiler.lowering.onnx.nodes import ONNX
from compiler.lowering.onnx.writer import Writer
from compiler.ops import read_attrs
from compiler.passes.normalise_input import normalise_input
from compiler.passes.pipeline import TO_EXPORT, Pipeline

OLDEST_OPSET, NEWEST_OPSET, DEFAULT_OPSET = 13, 28, 18
PROTOBUF_LIMIT = 2**31 - 2**20  # bytes of a file without external data, with some room for what is not weights
BATCH = "N"
HEADS: Mapping[str, tuple[str, Mapping[str, int]]] = {"softmax": ("Softmax", {"axis": 1}), "sigmoid": ("Sigmoid", {})}


@dataclass(frozen=True)
class Preprocessing:
    """What to bake in before the network: raw images in `layout` are normalised by `mean` and `std` (in 0..1)."""

    layout: Literal["nchw", "nhwc"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: Literal["uint8", "uint16", "float32"] = "uint8"
    white: float = 255.0  # the value that is 1: raw images are numbers of `kind`, 0 to this


def emit(
    model: Model,
    *,
    opset: int = DEFAULT_OPSET,
    input_name: str = "image",
    output_name: str = "logits",
    preprocessing: Preprocessing | None = None,
    head: str | None = None,
    metadata: Mapping[str, str] | None = None,
    passes: Pipeline = TO_EXPORT,
) -> onnx.ModelProto:
    """The ONNX model of a compact model, its arithmetic folded; GraphspecError if opset or names do not fit.

    Weights must be float32 numpy arrays (others are cast). `head`, one of `HEADS`, stands behind the network. `passes`
    must leave primitive nodes without gates.
    """
    check_opset(opset)
    if preprocessing is not None:
        model = normalise_input(model, preprocessing.mean, preprocessing.std, preprocessing.white)
    model = passes.run(model)
    writer = Writer(model.graph, model.weights, opset)
    writer.taken |= {input_name, *_named_outputs(model.graph, output_name)}
    _check_names(model.graph, input_name, output_name)
    image, value = _emit_image(writer, input_name, preprocessing)
    _emit_nodes(writer, {INPUT: value}, {input_name}, output_name, head)
    shapes = {name: node.shape for name, node in _named_outputs(model.graph, output_name).items()}
    graph = helper.make_graph(
        writer.nodes,
        model.graph.name,
        [image],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape]) for name, shape in shapes.items()],
        list(writer.initializers.values()),
    )
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(
        graph, opset_imports=opsets, producer_name="graphspec", ir_version=helper.find_min_ir_version_for(opsets)
    )
    helper.set_model_props(proto, dict(metadata or {}))
    return proto


def check_opset(opset: int) -> None:
    """GraphspecError if models of this operator set cannot be written."""
    newest = min(NEWEST_OPSET, onnx.defs.onnx_opset_version())
    if not OLDEST_OPSET <= opset <= newest:
        raise GraphspecError(f"opset {opset} cannot be written\n  try: {OLDEST_OPSET} to {newest}")


def _check_names(graph: Graph, input_name: str, output_name: str) -> None:
    taken = {node.id for node in graph.nodes() if node.op not in (INPUT, OUTPUT)}
    outputs = _named_outputs(graph, output_name)
    for name in (input_name, *outputs):
        if name in taken and (name not in outputs or name != graph.inputs(outputs[name].id)[0].src):
            raise GraphspecError(f"a node is called {name!r} already\n  try: another name for the model's values")
    if input_name in outputs or len(outputs) < len(graph.outputs()):
        twice = input_name if input_name in outputs else output_name
        raise GraphspecError(f"two inputs or outputs are both called {twice!r}\n  try: another name")


def _named_outputs(graph: Graph, output_name: str) -> dict[str, Node]:
    """The output nodes by their names in the model, where the main one is called `output_name`."""
    return {output_name if node.id == OUTPUT else name: node for name, node in graph.outputs().items()}


def _emit_nodes(writer: Writer, values: dict[str, str], final: set[str], output_name: str, head: str | None) -> None:
    """Emit all nodes and outputs; `values` are those that stand, by node id, `final` the names that do not change."""
    for node in writer.graph.nodes():
        if node.op in (INPUT, OUTPUT):
            continue
        writer.own = node.id
        row = ONNX.get(node.op) or imported_row(node.op, "onnx")
        sources = [values[edge.src] for edge in writer.graph.inputs(node.id)]
        values[node.id] = row(writer, node, read_attrs(node.op, node.attrs), sources)
    for name, node in _named_outputs(writer.graph, output_name).items():
        source = writer.graph.inputs(node.id)[0].src
        value, writer.own = values[source], name
        if head is not None and node.id == OUTPUT:
            op, attributes = HEADS[head]
            writer.emit(op, [value], name, **attributes)
        elif value in final:
            writer.emit("Identity", [value], name)
        else:
            _rename(writer, value, name)
            values[source] = name
        final.add(name)


def _emit_image(writer: Writer, name: str, preprocessing: Preprocessing | None) -> tuple[onnx.ValueInfoProto, str]:
    """The model's input, and the value the network reads: the same, or raw numbers put in order and cast."""
    shape, kind, value = writer.graph.node(INPUT).shape, TensorProto.FLOAT, name
    if preprocessing is not None:
        kind = TensorProto.DataType.Value("FLOAT" if preprocessing.kind == "float32" else preprocessing.kind.upper())
        if preprocessing.layout == "nhwc":
            shape = (*shape[1:], shape[0])
            value = writer.emit("Transpose", [value], "image.planes", perm=[0, len(shape), *range(1, len(shape))])
        if kind != TensorProto.FLOAT:
            value = writer.emit("Cast", [value], "image.float", to=TensorProto.FLOAT)
    return helper.make_tensor_value_info(name, kind, [BATCH, *shape]), value


def _rename(writer: Writer, old: str, new: str) -> None:
    """Call a value by the model's output name, where it is made and wherever it is read."""
    for node in writer.nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def check(proto: onnx.ModelProto) -> None:
    """Full check and strict shape inference; onnx's own error if the model breaks the standard (a bug here)."""
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)


def save(proto: onnx.ModelProto, path: Path) -> None:
    """Check and write a model: one file, its weights in `<path>.data` beside it only where they exceed 2 GB."""
    if proto.ByteSize() <= PROTOBUF_LIMIT:
        check(proto)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return
    onnx.save_model(proto, path, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)
