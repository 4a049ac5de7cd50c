"""What the front ends make of a foreign network: calls of our ops, each with its weights and where it comes from."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from compiler.errors import GraphspecError
from compiler.ir.graph import INPUT, TensorType, attrs_of
from compiler.language.findings import first_of
from compiler.ops import Shape, TypeMismatchError, infer, op, read_attrs, tensors

Array = NDArray[np.float32]
UNFINISHED: dict[str, Any] = {"norm": "none", "act": "none"}
"""What an op may do besides its own work, turned off."""


MOST_KINDS = 4  # are named in the first line of a refusal
ENDS = ("softmax", "log_softmax", "sigmoid")


class UnsupportedError(Exception):
    """A call that no op of ours computes; the text says why."""


@dataclass
class Call:
    """An op applied to values; `path` are the modules it was called in, outermost first; the last ends in `()` where it
    is no module but a function that the one before calls."""

    path: tuple[str, ...]
    op: str
    attrs: dict[str, Any]
    inputs: list[str]  # keys of the calls that it reads, or `input`
    shape: Shape  # of what it gives
    weights: dict[str, Array] = field(default_factory=dict)  # by `<param>` or `<step>.<param>`


@dataclass(frozen=True)
class Origin:
    """Where a call of the source stands: its name there, the modules around it, and the line of code if known."""

    kind: str
    path: tuple[str, ...]
    place: str


@dataclass
class Unknown:
    """A call of the source that cannot be expressed, and its multiply-adds."""

    origin: Origin
    why: str
    flops: float = 0.0


@dataclass
class Network:
    """Calls by key, each after those it reads; `output` is the key of the last one."""

    input: Shape
    calls: dict[str, Call]
    output: str
    end: str = ""  # what the source ends in and the spec leaves out, because the loss and export have it: one of ENDS

    def shape(self, key: str) -> Shape:
        """The shape of a value, without the batch."""
        return self.input if key == INPUT else self.calls[key].shape

    @functools.cached_property
    def readers(self) -> dict[str, list[str]]:
        """Which calls read a value, by its key; of calls that stay as they are."""
        found: dict[str, list[str]] = {key: [] for key in (INPUT, *self.calls)}
        for key, call in self.calls.items():
            for source in call.inputs:
                found[source].append(key)
        return found

    def needed(self) -> Network:
        """The network without calls that the output does not need."""
        wanted = {self.output}
        for key in reversed(self.calls):
            wanted |= set(self.calls[key].inputs) if key in wanted else set()
        calls = {key: call for key, call in self.calls.items() if key in wanted}
        return Network(self.input, calls, self.output, self.end)


class Recorder:
    """Collects calls; what cannot be expressed is noted, and a stand-in of its shape lets the reading go on."""

    def __init__(self, shape: Shape) -> None:
        self.shapes: dict[str, Shape] = {INPUT: shape}
        self.calls: dict[str, Call] = {}
        self.unknown: list[Unknown] = []
        self.origin = Origin("", (), "")
        self.name = ""  # what the next call is called

    def call(self, kind: str, inputs: list[str], weights: Mapping[str, Any] | None = None, **attrs: Any) -> str:
        """The key of a new call; UnsupportedError if the op does not take such inputs, attributes or weights."""
        given = {key: value for key, value in UNFINISHED.items() if key in op(kind).attrs.model_fields} | attrs
        for i, source in enumerate(inputs):
            if source in inputs[:i]:
                inputs = [*inputs[:i], self.call("identity", [source]), *inputs[i + 1 :]]
        types = [TensorType(self.shapes[source]) for source in inputs]
        try:
            read_attrs(kind, attrs_of(given))
            shape = infer(kind, attrs_of(given), types).shape
            wanted = tensors(kind, attrs_of(given), tuple(t.shape for t in types))
        except ValidationError as error:
            raise UnsupportedError(first_of(error)) from error
        except TypeMismatchError as error:
            raise UnsupportedError(str(error)) from error
        arrays = {name: np.asarray(value, np.float32) for name, value in (weights or {}).items()}
        if {name: array.shape for name, array in arrays.items()} != wanted.params | wanted.buffers:
            raise UnsupportedError("its weights have another shape than ours")
        key = self._free_key()
        self.calls[key] = Call(self.origin.path, kind, given, inputs, shape, arrays)
        self.shapes[key] = shape
        return key

    def _free_key(self) -> str:
        number = 1
        while (key := f"{self.name}.{number}" if number > 1 else self.name) in self.shapes:
            number += 1
        return key

    def attempt(self, make: Callable[[], Any], shape: Shape, *, noted: bool = True) -> tuple[Any, Unknown | None]:
        """The value that `make` records; if it cannot, a stand-in of this shape, and what is `noted` of the call."""
        try:
            return make(), None
        except UnsupportedError as error:
            refused = Unknown(self.origin, str(error))
        except Exception as error:  # what reads a stand-in, or a damaged file, may meet anything
            refused = Unknown(self.origin, f"cannot be read: {type(error).__name__}: {error}")
        self.unknown += [refused] if noted else []
        key = self._free_key()
        self.shapes[key] = shape
        self.calls[key] = Call(self.origin.path, "identity", {}, [], shape)
        return key, refused

    def network(self, output: str, end: str = "") -> Network:
        """What was collected; GraphspecError with everything that cannot be expressed."""
        if self.unknown:
            raise GraphspecError(_listing(self.unknown))
        if len(self.shapes[output]) > 1 and math.prod(self.shapes[output][1:]) == 1:  # an image of one pixel
            self.origin, self.name = Origin("", ("flatten()",), ""), "flatten"
            output = self.call("flatten", [output])
        return Network(self.shapes[INPUT], self.calls, output, end).needed()


def per_axis(values: Any) -> Any:
    """One number where all axes have the same, else a list of one per axis."""
    found = list(values)
    return found[0] if all(value == found[0] for value in found) else found


def affine(recorder: Recorder, source: str, scale: Any, shift: Any = None) -> str:
    """Every channel times a constant, and another one added: a depthwise convolution of one pixel."""
    channels, *axes = recorder.shapes[source]
    if not axes:
        raise UnsupportedError("constants times the numbers of a vector")
    weights = {"weight": np.broadcast_to(np.ravel(scale), (channels,)).reshape(channels, 1, *[1] * len(axes))}
    if shift is not None:
        weights["bias"] = np.broadcast_to(np.ravel(shift), (channels,))
    return recorder.call("depthwise_conv", [source], weights, kernel=1, bias=shift is not None)


def _listing(unknown: list[Unknown]) -> str:
    """Every call that cannot be expressed, by kind and place, the dearest first."""
    groups: dict[tuple[str, str, str], list[Unknown]] = {}
    for one in unknown:
        groups.setdefault((one.origin.kind, one.origin.place, one.why), []).append(one)
    rows = sorted(groups.items(), key=lambda item: -sum(one.flops for one in item[1]))
    kinds = list(dict.fromkeys(kind for (kind, _, _), _ in rows))
    named = ", ".join([*kinds[:MOST_KINDS], *(["..."] if len(kinds) > MOST_KINDS else [])])
    lines = [f"no op of ours computes {len(unknown)} of its calls{_share(unknown)}: {named}"]
    for (kind, place, why), found in rows:
        modules = ".".join(found[0].origin.path) or "the network itself"
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        where = f" at {place}" if place else ""
        lines += [f"  {len(found)} x {kind}{_share(found)}: {why}", f"      in {modules}{more}{where}"]
    lines.append("  try: a network without them, or a custom op for each (docs/custom_ops.md) in a spec of your own")
    return "\n".join(lines)


def _share(unknown: list[Unknown]) -> str:
    """Which share of the multiply-adds calls have, as far as that is known."""
    share = sum(one.flops for one in unknown)
    return f" ({share:.1%} of the multiply-adds)" if share else ""
