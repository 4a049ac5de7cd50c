"""What follows from the traits of a node's steps for the node as a whole."""

from __future__ import annotations

import enum
import functools

from compiler.ir.graph import Attrs
from compiler.ops.registry import parts, steps, traits_of
from compiler.ops.traits import NOTHING, Affine, Channels, Numbers, Pixels, Traits, Values


def traits_alone(name: str, attrs: Attrs) -> Traits:
    """The traits of an op that nothing follows inside its node; of a node of several steps, none."""
    return NOTHING if parts(name, attrs) else traits_of(name, attrs)


def chain_of(name: str, attrs: Attrs) -> tuple[Traits, ...]:
    """The traits of every step."""
    return tuple(traits_of(step.op, step.attrs) for step in steps(name, attrs))


@functools.lru_cache(maxsize=65536)
def only_merges(name: str, attrs: Attrs) -> bool:
    """Whether the op only brings its inputs together (a sum, a join), apart from what works on single numbers after."""
    first, *others = chain_of(name, attrs)
    in_place = first.channels in (Channels.KEPT, Channels.JOINED) and not first.training_only
    return first.unchanged is Numbers.ALL and in_place and all(t.is_elementwise for t in others)


@functools.lru_cache(maxsize=65536)
def is_projection(name: str, attrs: Attrs) -> bool:
    """Whether the op is a 1x1 convolution over its joined inputs, with what works on single numbers after:
    W [x1; x2] = W1 x1 + W2 x2.
    """
    if not joins_into_weight(name, attrs):
        return False
    _, weight, *others = chain_of(name, attrs)
    return weight.pixels is Pixels.KEPT and all(t.is_elementwise for t in others)


def joins_into_weight(name: str, attrs: Attrs) -> bool:
    """Whether the op joins its inputs and multiplies all channels by a weight: a factor of an input may go there."""
    chain = chain_of(name, attrs)
    return len(chain) > 1 and chain[0].channels is Channels.JOINED and chain[1].mixes_by_weight


@functools.lru_cache(maxsize=65536)
def gives_zeros(name: str, attrs: Attrs) -> bool:
    """Whether the value is zero whatever is read."""
    zero = False
    for traits in chain_of(name, attrs):
        zero = traits.values is Values.ZERO or (zero and traits.homogeneous >= Numbers.ZERO)
    return zero


class Scale(enum.Enum):
    """What a value is, in training and to eps, whose network had an input scaled by c > 0."""

    KEPT = enum.auto()  # c times what it was
    SHIFTED = enum.auto()  # that, and a constant per channel
    GONE = enum.auto()  # what it was: a norm has undone the scale
    FELT = enum.auto()  # anything


@functools.lru_cache(maxsize=65536)
def scale_after(name: str, attrs: Attrs, scale: Scale = Scale.KEPT) -> Scale:
    """What the op's value is where all that it reads, together, is this."""
    if scale in (Scale.GONE, Scale.FELT):
        return scale
    for traits in chain_of(name, attrs):
        if traits.normalises and (scale is Scale.KEPT or traits.affine is Affine.STATISTICS):
            return Scale.GONE
        if (traits.homogeneous if scale is Scale.KEPT else traits.averages) >= Numbers.NONNEGATIVE:
            continue
        if traits.affine is not Affine.WEIGHT or (scale is Scale.SHIFTED and traits.pixels is Pixels.PADDED):
            return Scale.FELT
        scale = Scale.SHIFTED
    return scale
