"""Dimension arithmetic: `2*C`, `H/2`, and block types such as `[C, H, W] -> [2*C, H/2, W/2]`.

`/` rounds up, `//` rounds down: a stride-2 convolution with its default padding turns 7 pixels into 4, as torch does,
so that `H/2` fits odd sizes as well.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_LENGTH = 200  # characters of a type or a size
MAX_VALUE = 2**40  # sizes beyond this are mistakes, and keep arithmetic on them cheap


class DimError(ValueError):
    """An expression cannot be read, evaluated or solved; the message says why."""


@dataclass(frozen=True, slots=True)
class Dim:
    """A size: an integer, a symbol, or arithmetic (`+ - * / //`) on those."""

    text: str

    @classmethod
    def parse(cls, text: str | int) -> Dim:
        """Read an expression; DimError if it is none."""
        dim = cls(str(text).strip())
        dim.symbols()
        return dim

    def __str__(self) -> str:
        return self.text

    def symbols(self) -> set[str]:
        """Names the expression uses; DimError if it holds anything but integers, names and arithmetic."""
        names = set()
        for part in ast.walk(_parsed(self.text)):
            if isinstance(part, ast.Name):
                names.add(part.id)
            elif not _is_allowed(part):
                raise _unreadable(self.text)
        return names

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The size for these symbol values; DimError for an unknown symbol, a division by zero or a huge result."""
        return _evaluate(_parsed(self.text), values, self.text)

    def bind(self, size: int, values: dict[str, int]) -> None:
        """Make the expression equal `size`, by giving its one unknown symbol a value; DimError if that cannot be."""
        unknown = sorted(self.symbols() - values.keys())
        if len(unknown) > 1:
            raise DimError(f"{self.text!r} has more than one unknown symbol ({', '.join(unknown)})")
        if unknown:
            values[unknown[0]] = _solve(_parsed(self.text), size, values, self.text)
        found = self.evaluate(values)
        if found != size:
            raise DimError(f"{f'{self.text} is' if self.symbols() else 'expected'} {found}, found {size}")


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise DimError(f"a size may have at most {MAX_LENGTH} characters")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(text) from error


def _unreadable(text: str) -> DimError:
    return DimError(f"cannot read the size {text!r}: write integers, symbols and + - * / //")


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: lambda left, right: -(-left // right),
}


def _is_allowed(part: ast.AST) -> bool:
    if isinstance(part, ast.Constant):
        return type(part.value) is int and part.value <= MAX_VALUE
    return isinstance(part, (ast.BinOp, ast.UnaryOp, ast.Load, ast.USub, *_OPERATORS))


def _evaluate(tree: ast.expr, values: Mapping[str, int], text: str) -> int:
    if isinstance(tree, ast.Constant):
        return int(tree.value)  # type: ignore[arg-type]  # _is_allowed lets integers through only
    if isinstance(tree, ast.Name):
        if tree.id not in values:
            raise DimError(f"unknown symbol {tree.id!r} in {text!r}")
        return values[tree.id]
    if isinstance(tree, ast.UnaryOp):
        return -_evaluate(tree.operand, values, text)
    assert isinstance(tree, ast.BinOp)
    try:
        result = _OPERATORS[type(tree.op)](_evaluate(tree.left, values, text), _evaluate(tree.right, values, text))
    except ZeroDivisionError as error:
        raise DimError(f"{text!r} divides by zero") from error
    if abs(result) > MAX_VALUE:
        raise DimError(f"{text!r} is larger than {MAX_VALUE}")
    return result


def _solve(tree: ast.expr, size: int, values: Mapping[str, int], text: str) -> int:
    """The value of the one unknown in `tree` that makes it `size`, undoing one operation a step."""
    if isinstance(tree, ast.Name):
        return size
    if isinstance(tree, ast.UnaryOp):
        return _solve(tree.operand, -size, values, text)
    assert isinstance(tree, ast.BinOp)
    on_left = any(isinstance(p, ast.Name) and p.id not in values for p in ast.walk(tree.left))
    unknown, known_tree = (tree.left, tree.right) if on_left else (tree.right, tree.left)
    known = _evaluate(known_tree, values, text)
    if isinstance(tree.op, ast.Add):
        return _solve(unknown, size - known, values, text)
    if isinstance(tree.op, ast.Sub):
        return _solve(unknown, size + known if on_left else known - size, values, text)
    if isinstance(tree.op, ast.Mult) and known and size % known == 0:
        return _solve(unknown, size // known, values, text)
    raise DimError(f"no whole number makes {text!r} equal {size}")


@dataclass(frozen=True, slots=True)
class BlockType:
    """What a block takes and gives, without the batch."""

    inputs: tuple[tuple[Dim, ...], ...]
    output: tuple[Dim, ...]

    def __str__(self) -> str:
        left = ", ".join(show_dims(dims) for dims in self.inputs)
        return f"{left} -> {show_dims(self.output)}"

    @classmethod
    def parse(cls, text: str) -> BlockType:
        """Read `"[C, H, W] -> [2*C, H/2, W/2]"`; several inputs are separated by commas. DimError if it is no type."""
        if len(text) > MAX_LENGTH:
            raise DimError(f"a type may have at most {MAX_LENGTH} characters")
        shape = r"\[([^\[\]]*)\]"
        match = re.fullmatch(rf"\s*({shape}(?:\s*,\s*{shape})*)\s*->\s*{shape}\s*", text)
        if not match:
            raise DimError(f'cannot read the type {text!r}: write it like "[C, H, W] -> [2*C, H/2, W/2]"')
        inputs = tuple(_dims(part, text) for part in re.findall(shape, match[1]))
        return cls(inputs, _dims(match[4], text))


def _dims(text: str, whole: str) -> tuple[Dim, ...]:
    if not text.strip():
        raise DimError(f"empty brackets in the type {whole!r}")
    return tuple(Dim.parse(part) for part in text.split(","))


def show_dims(dims: tuple[Dim | int, ...]) -> str:
    """Sizes as a type spells them: `[C, H, W]`."""
    return "[" + ", ".join(map(str, dims)) + "]"
