"""The commands in the order of the help. Exit codes: 0 success; 1 wrong input or a failed job; 2 wrong usage."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Annotated, Any, NoReturn

import typer
import typer.core

import graphspec
from compiler.errors import GraphspecError, SpecError, advice_on, one_line
from graphspec.cli import data, exporting, importing, inference, inspection, runs, specs, training, trials
from graphspec.cli.options import say
from runtime.processes.little_memory import try_before_torch

LONG = 200  # characters of a command's line in the help
NO_MEMORY = ("allocate memory", "could not create a primitive")  # as torch says it
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "From a spec to a model": (
        specs.init, data.data, importing.import_, specs.compile_, trials.probe, training.search, training.lr,
        training.retrain, trials.baseline, exporting.export, exporting.bench,
    ),
    "With a model": (inference.predict, inference.evaluate),
    "Around a run": (runs.show, runs.diff, runs.report, runs.derive),
    "The language and the compiler": (inspection.opt, inspection.schema, inspection.ops, inspection.rules),
}  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graphspec {graphspec.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when a command fails.")] = False,
) -> None:
    """Options of every command; `run` looks for --debug itself."""


class Commands(typer.core.TyperGroup):
    """The commands by what they are for, as plain text: importing rich for it takes as long as all the rest."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the lists of commands into the help."""
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                names = [_name(command) for command in commands]
                formatter.write_dl([(name, self.commands[name].get_short_help_str(LONG)) for name in names])


def _name(command: Callable[..., None]) -> str:
    return command.__name__.rstrip("_")


app = typer.Typer(
    help="Search for neural architectures: declare a search space in YAML, search it, export the network as ONNX.",
    epilog="To start: graphspec init digits, then graphspec compile digits.yaml.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.callback()(_options)
for _command in chain.from_iterable(COMMANDS.values()):
    app.command(_name(_command))(_command)


def run() -> None:
    """Run the command that `sys.argv` names; with --debug a GraphspecError is let through."""
    debug = "--debug" in sys.argv[1:]
    if debug:
        sys.argv.remove("--debug")
    try:
        _refuse_lost_folder()
        _refuse_unprintable(sys.argv[1:])
        try_before_torch()
        try:
            app()
        finally:
            sys.stdout.flush()  # here a full disk can still be told of
    except GraphspecError as error:
        if debug:
            raise
        if not error.told:
            _tell(error)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        raise SystemExit(130) from None
    except (OSError, MemoryError, ImportError, RuntimeError) as error:
        if debug or (isinstance(error, RuntimeError) and not any(words in str(error) for words in NO_MEMORY)):
            raise
        _give_up(error)


def _refuse_lost_folder() -> None:
    """GraphspecError where the working directory was removed: libraries end the process without a word of ours."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise GraphspecError("the working directory was removed\n  try: cd into one that is there") from error


def _refuse_unprintable(arguments: list[str]) -> None:
    """GraphspecError for control characters in an argument that is no path, and line breaks in any.

    Messages about it would carry them on.
    """
    for argument in arguments:
        if one_line(argument) != argument and ("\n" in argument or not os.path.lexists(argument)):
            raise GraphspecError(f"an argument has control characters: {one_line(argument)}\n  try: it without them")


def _give_up(error: BaseException) -> NoReturn:
    """Say what the system refused; exit code 1. Output that cannot be written is dropped: Python would try again."""
    while error.__cause__:  # numpy's hint covers pages
        error = error.__cause__
    code = error.errno if isinstance(error, OSError) else errno.ENOMEM
    is_output = isinstance(error, OSError) and error.filename is None and code in (errno.ENOSPC, errno.EIO)
    advice = "another place for the output" if is_output else advice_on(code) or "`--debug` to see where"
    with suppress(OSError):
        say(f"error: the system refuses: {str(error) or type(error).__name__}\n  try: {advice}")
        sys.stdout.flush()
    os._exit(1)


def _tell(error: GraphspecError) -> None:
    """Print the message, with the process that says it where several do a job."""
    from runtime.processes.launch import Launch

    stopped = error.exit_code > 128  # Ctrl-C: the checkpoint is written, nothing went wrong
    message = str(error) if stopped or isinstance(error, SpecError) else f"error: {error}"
    rank = Launch.here().rank
    say(f"rank {rank}: {message}" if rank else message)
