"""The errors every layer raises: one class per kind of mistake, each naming a place and the next thing to try.

This file is the bottom of the import order and imports nothing of the project.
"""

from __future__ import annotations

import difflib
import errno
import math
import re
import resource
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MAX_DIAGNOSTICS = 20  # are shown
MAX_PROBLEMS = 1000  # are looked for
EXCERPT_WIDTH = 72  # characters of a source line that are shown
COLUMNS = 80  # of a terminal
_WHOLE = re.compile(r"^ *\d* \| |graphspec [a-z]+ ")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A position in a spec file or in a `--set` override; `line` and `column` count from 1."""

    file: str
    line: int
    column: int
    excerpt: str = ""  # the source line, shown with a caret under `column`

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake in a spec: where it is, what was found and expected, and what to try."""

    place: Place
    message: str

    def render(self) -> str:
        """The message with its source line and a caret, as a compiler prints it."""
        head = f"{self.place}: error: {self.message}"
        if not self.place.excerpt:
            return head
        gutter = f"{self.place.line:>5} | "
        excerpt, column = _window(self.place.excerpt, self.place.column - 1)
        caret = " " * (len(gutter) - 2) + "| " + " " * column + "^"
        return f"{head}\n{gutter}{excerpt}\n{caret}"


def _window(line: str, column: int) -> tuple[str, int]:
    """The part of a long line around `column`, what a terminal would not print as one column each made blank."""
    start = max(0, column - EXCERPT_WIDTH // 2) if len(line) > EXCERPT_WIDTH else 0
    shown = line[start : start + EXCERPT_WIDTH]
    return "".join(c if c.isprintable() else " " for c in shown), column - start


class GraphspecError(Exception):
    """The user's input or the job is at fault: printed without a traceback, exit code 1."""

    exit_code = 1
    told = False  # another process of the job has said it already


class SpecError(GraphspecError):
    """A spec file is wrong. `diagnostics` holds every independent mistake, in file order."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        unique = dict.fromkeys(sorted(diagnostics, key=lambda d: d.place))
        self.diagnostics = tuple(unique)
        shown = [d.render() for d in self.diagnostics[:MAX_DIAGNOSTICS]]
        hidden = len(self.diagnostics) - len(shown)
        if hidden > 0:
            shown.append(f"... and {hidden} more errors; mend these first")
        super().__init__("\n".join(shown))


def refusal(place: Place, message: str, problems: Iterable[Diagnostic] = ()) -> SpecError:
    """The error that ends the reading at this place, with the problems found before."""
    return SpecError([*problems, Diagnostic(place, message)])


class RuleError(GraphspecError):
    """A graph breaks a verification rule. `rule` is the rule's name, `where` the node or graph."""

    def __init__(self, rule: str, where: str, message: str, hint: str = "") -> None:
        self.rule, self.where, self.hint = rule, where, hint
        super().__init__(f"[{rule}] {where}: {message}" + (f"\n  try: {hint}" if hint else ""))


class PassError(GraphspecError):
    """A pass cannot do its job on this graph. `name` is the pass, `where` the node or graph."""

    def __init__(self, name: str, where: str, message: str, hint: str = "") -> None:
        self.name, self.where, self.hint = name, where, hint
        super().__init__(f"{name}: {where}: {message}" + (f"\n  try: {hint}" if hint else ""))


class RunError(GraphspecError):
    """A job failed or was asked for something impossible; the message says what to do next."""


_FULL = "free some space there, then give the same command again (search, retrain: with --resume)"
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "a folder that is yours to read and write"),
    errno.ELOOP: "put what the link names in its place: nothing in a run is read or written through links",
}
_LIMITS = {
    errno.EMFILE: (resource.RLIMIT_NOFILE, "-n", "open files"),
    errno.EFBIG: (resource.RLIMIT_FSIZE, "-f", "bytes a file"),
    errno.ENOMEM: (resource.RLIMIT_AS, "-v", "bytes of memory"),
}  # of a process: of what, its letter, in which unit


def advice_on(code: int | None) -> str:
    """What to do where the system refuses with this error number; empty if that says too little."""
    kind, letter, unit = _LIMITS.get(code or 0, (None, "", ""))
    most = resource.RLIM_INFINITY if kind is None else resource.getrlimit(kind)[0]
    if most != resource.RLIM_INFINITY:
        return f"a shell that allows more: here `ulimit {letter}` allows {most:,} {unit}"
    return _FULL if code == errno.EFBIG else _ADVICE.get(code or 0, "")


_UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def printable(text: str) -> str:
    """The text with control characters, and those that turn the writing round, written as Python escapes them.

    Names, paths and what files hold may contain them, and a terminal would obey.
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(name: object) -> str:
    """A name as part of a message: `printable`, and line breaks and tabs are escaped too, so that it forges no line."""
    return printable(str(name)).replace("\n", "\\n").replace("\t", "\\t")


def folded(text: str) -> str:
    """The text for a terminal: long lines are broken between words, but those that show a source line or a command."""
    return "\n".join(line if len(line) <= COLUMNS or _WHOLE.search(line) else _fold(line) for line in text.split("\n"))


def _fold(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


class _Suggestions:
    left: float = math.inf  # words that may still be compared


@contextmanager
def few_suggestions() -> Iterator[None]:
    """Within, suggestions end after about a second: of thousands of mistakes few are shown."""
    before, _Suggestions.left = _Suggestions.left, min(_Suggestions.left, 50_000)
    try:
        yield
    finally:
        _Suggestions.left = before


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known word, or the empty string."""
    words = list(known)
    _Suggestions.left -= len(words)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6) if _Suggestions.left > 0 else []
    return f"; did you mean {near[0]!r}?" if near else ""
