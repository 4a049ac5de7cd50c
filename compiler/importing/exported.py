"""The front end for torch modules: `torch.export` gives their calls with the modules and lines that made them.

It sees what a module computes at inference whatever its code looks like, so that one table of ATen functions serves
modules, functions and methods alike.
"""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from compiler.errors import GraphspecError
from compiler.importing.aten import recorded
from compiler.importing.calls import ENDS, Network, Origin, Unknown, UnsupportedError
from compiler.importing.values import Arguments, TorchRecorder
from compiler.ir.graph import INPUT

_FRAME = re.compile(r'File "(.+)", line (\d+)')
_LIBRARY = str(Path(torch.__file__).parent) + os.sep


def read_module(module: nn.Module, example: Tensor) -> Network:
    """What a module computes at inference, from an example `(N, C, ...)` of what it reads.

    GraphspecError if torch cannot trace it, or with everything in it that no op of ours computes.
    """
    module.eval()
    try:
        with _quiet():
            program = torch.export.export(module, (example,), strict=False)
    except Exception as error:  # of torch and of the module's own code
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise GraphspecError(
            f"torch.export cannot trace {type(module).__name__}: {type(error).__name__}: {first}\n"
            "  try: another size (--input), or a module whose steps do not depend on the values of an image"
        ) from error
    return _Reader(program, example).read()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch prints while it traces: warnings, and the whole graph where it fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Reader:
    """Goes through the calls of an exported program."""

    def __init__(self, program: ExportedProgram, example: Tensor) -> None:
        self.program, self.example = program, example
        self.recorder = TorchRecorder(tuple(example.shape[1:]))
        self.values: dict[fx.Node, Any] = {}
        self.refused: dict[str, Unknown] = {}

    def read(self) -> Network:
        """The network; GraphspecError if it cannot be expressed."""
        signature = self.program.graph_signature
        stored = {**self.program.state_dict, **self.program.constants}
        names = (
            signature.inputs_to_parameters | signature.inputs_to_buffers | signature.inputs_to_lifted_tensor_constants
        )
        result: Any = None
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = stored[names[node.name]].detach() if node.name in names else INPUT
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                result = node.args[0]
        if len(result) != 1:
            raise GraphspecError(f"it gives {len(result)} values\n  try: a module that gives its logits alone")
        if self.refused:
            self._count_flops()
        last, end = result[0], _function(result[0])
        if end in ENDS:
            return self.recorder.network_of(self.values[last.all_input_nodes[0]], end)
        return self.recorder.network_of(self.values[last])

    def _call(self, node: fx.Node) -> None:
        recorder, kind = self.recorder, _function(node)
        recorder.origin, recorder.name = _origin(node, kind), node.name
        if kind in ENDS and all(user.op == "output" for user in node.users):
            return
        made: Any = node.meta["val"]
        several = made if isinstance(made, list | tuple) else [made]
        shapes = [tuple(getattr(value, "shape", ())) for value in several]  # numbers and checks of them have none
        value, refused = recorder.attempt(lambda: self._value(node, kind, shapes), shapes[0][1:])
        if refused is not None:
            self.refused[node.name] = refused
        self.values[node] = [value] * len(made) if refused and isinstance(made, list | tuple) else value
        if _is_in_place(node):
            self.values[node.all_input_nodes[0]] = value

    def _value(self, node: fx.Node, kind: str, shapes: list[tuple[int, ...]]) -> Any:
        """What a call gives; UnsupportedError if no op of ours gives it."""
        read = [self.values[source] for source in node.all_input_nodes]
        if read and all(isinstance(value, Tensor) for value in read):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if any(shape[:1] != self.example.shape[:1] for shape in shapes):
            raise UnsupportedError("it mixes the images of a batch, or makes a number of their values")
        given = fx.node.map_arg(_named(node), self.values.__getitem__)
        return recorded(self.recorder, kind, Arguments(given, shapes[0][1:], tuple(shape[1:] for shape in shapes)))

    def _count_flops(self) -> None:
        """Note the share of the multiply-adds of every call that is refused."""
        counted = _Counting(self.program.module())
        with suppress(Exception):  # a figure of a message only
            counted.run(self.example)
        total = sum(counted.flops.values()) or 1
        for name, unknown in self.refused.items():
            unknown.flops = counted.flops.get(name, 0) / total


class _Counting(fx.Interpreter):
    """Runs a graph and counts the multiply-adds of every node."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.flops: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.flops[n.name] = counter.get_total_flops()
        return value


def _function(node: fx.Node) -> str:
    """The function's name without its overload and the `_` of its form in place."""
    target = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    return target.rstrip("_") if not target.startswith("_") else target


def _is_in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.endswith("_")


def _named(node: fx.Node) -> dict[str, Any]:
    """All arguments by name, defaults too."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # operator.getitem
        return dict(zip(("values", "index"), node.args, strict=False))
    named = {argument.name: argument.default_value for argument in schema.arguments}
    return named | dict(zip(named, node.args, strict=False)) | node.kwargs


def _origin(node: fx.Node, kind: str) -> Origin:
    """The modules that a call was made in, and the line of the user's code, or of a library's outside of torch."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind_of_module = (stack[-1][0], str(stack[-1][1])) if stack else ("", "")
    own = () if "torch.nn.modules" in kind_of_module and "container" not in kind_of_module else (f"{kind}()",)
    frames = [
        frame for frame in _FRAME.findall(node.meta.get("stack_trace") or "") if not frame[0].startswith(_LIBRARY)
    ]
    place = f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""
    return Origin(kind, (*(part for part in path.split(".") if part), *own), place)
