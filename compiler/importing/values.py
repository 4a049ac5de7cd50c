"""The values of a foreign graph while it is read, and the arguments of its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compiler.errors import GraphspecError
from compiler.importing.calls import Network, Recorder, UnsupportedError
from compiler.ir.graph import INPUT
from compiler.ops import Shape

Value = Any  # the key of a call, a tensor that is constant, a list of values, or a `Half`
PADS = {"constant": "zeros", "reflect": "reflect", "replicate": "edge"}
HALVES = {
    "rows": "with its channels in groups", "columns": "with its channels in groups", "last": "with its channels last",
    "pixels": "with its pixels in one row", "bands": "with its channels in groups", "spread": "copied over an image",
}  # fmt: skip
"""What a `Half` is that no call completes."""


@dataclass
class Half:
    """A value on its way to an op of ours that several calls make, which `kind` tells.

    `pad`: a border before a window, `detail` is its mode, its number and its widths per axis. `rows`, `columns`: a
    channel shuffle of `detail` groups. `bands`: each of `detail` groups of channels as one row. `last`: computed with
    the channels last. `pixels`: an image as one row. `spread`: one pixel for all those of an image. `part`: channels
    from `detail[0]` to `detail[1]`.
    """

    kind: str
    source: str
    detail: Any = None


@dataclass
class Arguments:
    """The arguments of a call by name, values in the place of nodes; `shape` is what it gives, without the batch."""

    given: dict[str, Any]
    shape: Shape = ()
    sizes: tuple[Shape, ...] = ()  # of the members, where it gives several values

    def __getattr__(self, name: str) -> Any:
        return self.given.get(name)

    @property
    def first(self) -> Any:
        """The first argument."""
        return next(iter(self.given.values()))

    def but(self, /, **changed: Any) -> Arguments:
        """The same with other arguments."""
        return Arguments({**self.given, **changed}, self.shape, self.sizes)


class TorchRecorder(Recorder):
    """Takes the values of a torch graph."""

    def key(self, value: Value) -> str:
        """The key of a value; UnsupportedError if it is none of one image."""
        if isinstance(value, str):
            return value
        if half(value, "part"):
            return self.call("slice", [value.source], start=value.detail[0], stop=value.detail[1])
        if half(value, "pad"):
            mode, number, widths = value.detail
            require(mode != "constant" or number == 0, f"a border of {number}")
            return self.call("pad", [value.source], padding=widths, mode=PADS[mode])
        what = f"{value.source} {HALVES[value.kind]}" if isinstance(value, Half) else "a constant"
        raise UnsupportedError(f"reads {what}, which no op of ours does")

    def network_of(self, value: Value, end: str = "") -> Network:
        """The network that gives a value; GraphspecError if it is none of one image, or with all that has no op."""
        try:
            output = self.key(value)
        except UnsupportedError as error:
            if not self.unknown:
                raise GraphspecError(f"its output {error}\n  try: a network that computes it from its input") from error
            output = INPUT  # what is unknown comes first
        return self.network(output, end)

    def size(self, value: Value) -> Shape:
        """The shape of a value without the batch."""
        return self.shapes[self.key(value)]

    def plain(self, kind: str, value: Value, **attrs: Any) -> str:
        """The call of an op with one input and no weights."""
        return self.call(kind, [self.key(value)], **attrs)


Row = Callable[[TorchRecorder, Arguments], Value]


def half(value: Value, *kinds: str) -> bool:
    """Whether a value is on its way to one of these."""
    return isinstance(value, Half) and value.kind in kinds


def require(fits: bool, otherwise: str) -> None:
    """UnsupportedError unless it fits."""
    if not fits:
        raise UnsupportedError(otherwise)
