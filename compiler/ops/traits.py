"""Traits: what is true of an op as a function, so that passes, penalties, lowerings and drawings need no names.

A trait is a statement about `f`, what one primitive op makes of its input (summed, where it sums) at inference, for
given attributes. It is stated in the op's row and holds for all weights. What a row does not state is taken not to
hold, which is always safe. `tests/compiler/ops/test_traits.py` checks every row by arithmetic.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass


class Numbers(enum.IntEnum):
    """A set of numbers, each set inside the next, for which an equation holds."""

    NONE = 0
    ZERO = 1
    NONNEGATIVE = 2
    ALL = 3

    def has(self, number: float) -> bool:
        """Whether the number is in the set."""
        return self >= (Numbers.ZERO if number == 0 else Numbers.NONNEGATIVE if number > 0 else Numbers.ALL)


class Affine(enum.Enum):
    """As which affine map of its tensors an op may be written."""

    NO = enum.auto()
    WEIGHT = enum.auto()  # W x + b: W made of `weight`, b is `bias`; an attribute `bias` says whether there is one
    STATISTICS = enum.auto()  # weight (x - running_mean) / sqrt(running_var + eps) + bias; `eps` is an attribute


class Values(enum.Enum):
    """What is known of the values an op gives."""

    ANY = enum.auto()
    SIGN_KEPT = enum.auto()  # not negative where no value of the input is
    NONNEGATIVE = enum.auto()
    ZERO = enum.auto()


class Channels(enum.Enum):
    """Which of the channels that an op reads reach which of the channels that it gives."""

    UNKNOWN = enum.auto()
    KEPT = enum.auto()  # each is made of the one in its place alone; every tensor of the op has the channels first
    JOINED = enum.auto()  # those of the first input, of the second, ...; each as it is
    FLATTENED = enum.auto()  # each becomes as many, next to each other, as it has pixels
    MIXED = enum.auto()  # each is made of all; an affine op's `weight` is (channels given, channels read, ...)
    GROUPED = enum.auto()  # each is made of those of its group; the attribute `groups` says how many groups
    SHUFFLED = enum.auto()  # each is one of those read, in another place; the attribute `groups` divides their number
    SLICED = enum.auto()  # each is one of those read, which the attributes count
    SCALED = enum.auto()  # each is the one in its place times a number that weights make of all; zeros may be left out
    AVERAGED = enum.auto()  # they are gone: what comes first afterwards are not channels


class Pixels(enum.Enum):
    """From which pixels an op makes a pixel."""

    UNKNOWN = enum.auto()
    KEPT = enum.auto()  # from the one in its place
    WINDOW = enum.auto()  # from a window, or all, inside the image: of equal pixels it makes equal pixels
    PADDED = enum.auto()  # from a window that reaches over the border, where it reads zeros


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What is true of a primitive op for given attributes."""

    affine: Affine = Affine.NO
    """f(x) = W x + b. Read to fold gates and batch norm, to cut weights, to let a ReLU overwrite the value (the
    gradient of an affine map does not depend on its value, and its torch module gives new memory)."""
    homogeneous: Numbers = Numbers.NONE
    """The factors c with f(c x) = c f(x); `ZERO`: f(0) = 0. Read to fold gates, and by pruning: zeros stay zeros."""
    averages: Numbers = Numbers.NONE
    """The factors a with f(a x + c) = a f(x) + c, an a and a c per channel. Read to move batch norm past the op."""
    unchanged: Numbers = Numbers.NONE
    """The numbers x (`NONNEGATIVE`: all values at least 0) with f(x) = x, for a single input and wherever the shape
    stays. Read to remove nodes, and to tell sums and joins from ops that compute something."""
    values: Values = Values.ANY
    """What is known of f(x). Read to remove a ReLU, and by pruning: zeros feed nobody."""
    channels: Channels = Channels.UNKNOWN
    """Read by pruning (which weights shrink), by the widths, by elaboration (channels that a spec leaves out)."""
    pixels: Pixels = Pixels.UNKNOWN
    """Read to fold batch norm forward, to find 1x1 convolutions, by costs (what runs with the step before)."""
    normalises: bool = False
    """In training, f(c x) = f(x) for c > 0, up to eps. Read by penalties: a lone input's gate has no gradient."""
    training_only: bool = False
    """In training f does more than at inference, where f(x) = x."""

    @property
    def keeps_zero(self) -> bool:
        """Whether channels of zeros give channels of zeros, however many other channels there are."""
        apart = self.channels in (Channels.KEPT, Channels.JOINED, Channels.FLATTENED)
        return apart and self.homogeneous >= Numbers.ZERO

    @property
    def is_elementwise(self) -> bool:
        """Whether every number is made of the one in its place."""
        return self.channels is Channels.KEPT and self.pixels is Pixels.KEPT

    @property
    def mixes_by_weight(self) -> bool:
        """Whether f(x) = W x + b with a `weight` of (channels given, channels read, ...)."""
        return self.affine is Affine.WEIGHT and self.channels is Channels.MIXED

    def __str__(self) -> str:
        """What the row states, in words."""
        stated = {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default}
        words = (name if value is True else f"{name}: {value.name}" for name, value in stated.items())
        return "; ".join(words).lower().replace("_", " ") or "none stated"


NOTHING = Traits()
"""Of an op about which nothing is stated."""
IDENTITY = Traits(
    homogeneous=Numbers.ALL, averages=Numbers.ALL, unchanged=Numbers.ALL, values=Values.SIGN_KEPT,
    channels=Channels.KEPT, pixels=Pixels.KEPT,
)  # fmt: skip
"""Of an op that gives back its input."""
