"""Arguments and options that several commands take, and how commands print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compiler.errors import folded, printable

if TYPE_CHECKING:
    from compiler.language.overrides import Override

SpecArg = Annotated[Path, typer.Argument(help="A spec file.", metavar="SPEC")]
TargetArg = Annotated[
    Path | None, typer.Argument(help="A run directory or a spec file; default: runs/latest.", metavar="RUN|SPEC")
]
RunArg = Annotated[Path | None, typer.Argument(help="A run directory; default: runs/latest.", metavar="RUN")]
SetOpt = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key, e.g. --set search.epochs=5.", metavar="KEY=VALUE")
]
SeedOpt = Annotated[int | None, typer.Option("--seed", help="Short for --set seed=N.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings only.")]
TrustOpt = Annotated[bool, typer.Option("--trust-code", help="Allow data.name: package.module:function.")]


def say(message: str) -> None:
    """A line for people, to stderr."""
    message = printable(message)
    typer.echo(folded(message) if sys.stderr.isatty() else message, err=True)


def tell(text: str) -> None:
    """What was asked for, as text, to stdout."""
    text = printable(text)
    typer.echo(folded(text) if sys.stdout.isatty() else text)


def print_json(value: Any) -> None:
    """One JSON object for programs, to stdout."""
    typer.echo(json.dumps(value, indent=2))


def print_record(result: Any) -> None:
    """The result of a job as one JSON object for programs."""
    from runtime.tasks.results import as_record

    print_json(as_record(result))


def deliver(content: str, output: Path | None) -> None:
    """Print, or write to a file in one step."""
    if output is None:
        typer.echo(printable(content), nl=not content.endswith("\n"))
        return
    from runtime.rundir.files import write_text

    write_text(output, content)
    say(f"wrote {output}")


def overrides_of(settings: list[str] | None, *short: tuple[str, str, Any]) -> tuple[Override, ...]:
    """What `--set` says, and the options that are short for it: option, key and value (None: not given)."""
    from compiler.language.overrides import Override, overrides_of

    given = [Override.of(key, value, option) for option, key, value in short if value is not None]
    return (*overrides_of(settings or ()), *given)
