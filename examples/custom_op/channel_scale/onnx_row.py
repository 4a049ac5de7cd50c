"""The ONNX row: the same arithmetic as ONNX nodes. No torch here."""

from __future__ import annotations

from channel_scale.op import ChannelScaleAttrs
from compiler.ir.graph import Node
from compiler.lowering.onnx.writer import Writer


def emit(writer: Writer, node: Node, attrs: ChannelScaleAttrs, inputs: list[str]) -> str:
    """Write the nodes and give the name of the result, which is the node's id."""

    def per_channel(name: str) -> str:
        values = writer.array(node, name).reshape(-1, *[1] * (len(node.shape) - 1))
        return writer.constant(f"{node.id}.{name}", values)

    if not attrs.bias:
        return writer.emit("Mul", [inputs[0], per_channel("weight")], node.id)
    scaled = writer.emit("Mul", [inputs[0], per_channel("weight")], f"{node.id}.scaled")
    return writer.emit("Add", [scaled, per_channel("bias")], node.id)
