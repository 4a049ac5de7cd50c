"""Windows that slide over signals `(C, T)` and images `(C, H, W)`: their attributes, axis by axis, and their sizes.

An attribute is one number for all axes, or a list of one per axis. Sizes follow torch:
`floor((size + before + after - dilation * (kernel - 1) - 1) / stride) + 1`, where `before` and `after` are the padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from pydantic import PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from compiler.ir.graph import AttrValue, frozen
from compiler.ops.definition import OpAttrs, Shape, TypeMismatchError
from compiler.ops.traits import Pixels

MOST_AXES = 2
LARGEST = 2**16  # of a kernel, a stride, a dilation, a padding


def numbers(value: Any) -> Iterator[Any]:
    """The numbers of an attribute, however deep they stand."""
    if isinstance(value, tuple):
        for item in value:
            yield from numbers(item)
    else:
        yield value


def _attribute(lowest: int, *, pairs: bool = False) -> tuple[Any, Any]:
    """How an attribute of a window is read, and its JSON schema."""
    kinds = f"a whole number from {lowest} to {LARGEST}, or a list of one per axis" + (
        " or [before, after]" if pairs else ""
    )

    def read(value: Any) -> Any:
        value = frozen(value)
        listed = isinstance(value, tuple)
        depth_fits = not listed or all(not isinstance(v, tuple) or (pairs and len(v) == 2) for v in value)
        fits = all(type(n) is int and lowest <= n <= LARGEST for n in numbers(value))
        if not fits or not depth_fits or (listed and not 1 <= len(value) <= MOST_AXES):
            raise PydanticCustomError("per_axis", "expected {kinds}", {"kinds": kinds})
        return value

    number = {"type": "integer", "minimum": lowest, "maximum": LARGEST}
    item = {"anyOf": [number, {"type": "array", "items": number, "minItems": 2, "maxItems": 2}]} if pairs else number
    several = {"type": "array", "items": item, "minItems": 1, "maxItems": MOST_AXES}
    return PlainValidator(read), WithJsonSchema({"anyOf": [number, several]})


PerAxis = Annotated[int | tuple[int, ...], *_attribute(1)]
NotNegative = Annotated[int | tuple[int, ...], *_attribute(0)]
Padding = Annotated[int | tuple[int | tuple[int, int], ...], *_attribute(0, pairs=True)]
Border = Annotated[int | tuple[int | tuple[int, int], ...], *_attribute(-LARGEST, pairs=True)]


def each_axis(value: Any, rank: int, name: str) -> tuple[Any, ...]:
    """What the attribute `name` says of each of `rank` axes; TypeMismatchError if it names another number of axes."""
    if not isinstance(value, tuple):
        return (value,) * rank
    if len(value) != rank:
        axes, pair = ("axis", "; before and after one axis are [[before, after]]") if rank == 1 else ("axes", "")
        hint = pair if name == "padding" else ""
        raise TypeMismatchError(f"{name} has {len(value)} numbers for a value of {rank} {axes}{hint}")
    return value


def sides(padding: Any, rank: int) -> tuple[tuple[int, int], ...]:
    """Padding before and after each axis."""
    return tuple(side if isinstance(side, tuple) else (side, side) for side in each_axis(padding, rank, "padding"))


@dataclass(frozen=True, slots=True)
class Axis:
    """A window along one axis of what it slides over; all in pixels."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0  # padding in front of the first pixel
    after: int = 0  # and behind the last

    @property
    def reach(self) -> int:
        """From the first tap to the last."""
        return self.dilation * (self.kernel - 1) + 1

    def count(self, size: int, *, ceil: bool = False) -> int:
        """How many windows fit; with `ceil`, also a last one that reaches over the end but does not start behind it."""
        room = size + self.before + self.after - self.reach
        count = -(-room // self.stride) + 1 if ceil else room // self.stride + 1
        return count - int(ceil and (count - 1) * self.stride >= size + self.before)

    def reaching(self, size: int, *, ceil: bool) -> Axis:
        """With `ceil`, the axis with as much padding behind as its last window reaches."""
        end = (self.count(size, ceil=ceil) - 1) * self.stride + self.reach - self.before
        return replace(self, after=end - size) if ceil and end - size > self.after else self

    def taps_inside(self, size: int, *, before: int = 0, after: int = 0) -> list[int]:
        """For every window, how many taps lie on the pixels, widened by so many on either side."""
        starts = range(-self.before, self.count(size) * self.stride - self.before, self.stride)
        return [sum(-before <= s + tap < size + after for tap in range(0, self.reach, self.dilation)) for s in starts]


def spatial(op: str, shape: Shape) -> Shape:
    """The shape of a signal or an image; TypeMismatchError if it is neither."""
    if len(shape) not in (2, 3):
        raise TypeMismatchError(f"{op} takes an image [C, H, W] or a signal [C, T], found {list(shape)}")
    return shape


class Window(OpAttrs):
    """A sliding window. Each attribute is one number for all axes, or a list of one per axis."""

    kernel: PerAxis
    """Side of the window in pixels."""
    stride: PerAxis = 1
    """Step of the window in pixels."""
    dilation: PerAxis = 1
    """Distance between neighbouring taps."""
    padding: Padding | None = None
    """Zeros added on each side, or [before, after] in the place of an axis's number; default
    `dilation * (kernel - 1) // 2`, which keeps odd kernels' size at stride 1."""

    @model_validator(mode="after")
    def _one_number_of_axes(self) -> Self:
        if len({len(v) for v in self._attributes if isinstance(v, tuple)}) > 1:
            raise PydanticCustomError("axes", "the lists of kernel, stride, dilation and padding differ in length")
        return self

    @property
    def _attributes(self) -> tuple[Any, ...]:
        return self.kernel, self.stride, self.dilation, self.padding

    @property
    def pad(self) -> AttrValue:
        """The padding, its default written out."""
        if self.padding is not None:
            return self.padding
        rank = next((len(v) for v in self._attributes if isinstance(v, tuple)), 1)
        sides = tuple(axis.before for axis in self.axes(rank))
        return sides if rank > 1 else sides[0]

    def axes(self, rank: int) -> tuple[Axis, ...]:
        """The window along each of `rank` axes; TypeMismatchError if the attributes name another number of axes."""
        kernels, strides, dilations = (
            each_axis(getattr(self, name), rank, name) for name in ("kernel", "stride", "dilation")
        )
        kept = tuple(dilation * (kernel - 1) // 2 for kernel, dilation in zip(kernels, dilations, strict=True))
        borders = sides(kept if self.padding is None else self.padding, rank)
        each = zip(kernels, strides, dilations, borders, strict=True)
        return tuple(Axis(kernel, stride, dilation, *border) for kernel, stride, dilation, border in each)

    def kernels(self, shape: Shape) -> tuple[int, ...]:
        """The sides of the window over a value of this shape."""
        return each_axis(self.kernel, len(shape) - 1, "kernel")

    @property
    def is_one_pixel(self) -> bool:
        """Whether it is one pixel wide."""
        return all(n == 1 for n in numbers(self.kernel))

    @property
    def is_point(self) -> bool:
        """Whether it is one pixel wide, at every pixel."""
        return self.is_one_pixel and all(n == 1 for n in numbers(self.stride))

    @property
    def pixels(self) -> Pixels:
        """From which pixels one is made, where the border is read as zeros."""
        if any(numbers(self.pad)):
            return Pixels.PADDED
        return Pixels.KEPT if self.is_point else Pixels.WINDOW


def windowed(op: str, a: Window, shape: Shape, channels: int, *, ceil: bool = False) -> Shape:
    """The shape after sliding a window over a signal or an image; TypeMismatchError if it does not fit."""
    sizes = spatial(op, shape)[1:]
    counts = [axis.count(size, ceil=ceil) for axis, size in zip(a.axes(len(sizes)), sizes, strict=True)]
    if min(counts) < 1:
        found = "x".join(map(str, sizes))
        raise TypeMismatchError(
            f"{op} with kernel {_shown(a.kernel)} does not fit into {found} with padding {_shown(a.pad)}"
        )
    return (channels, *counts)


def _shown(value: AttrValue) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
