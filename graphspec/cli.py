"""The command line: reads arguments, calls one function each, prints. People's output goes to stderr, data to stdout.

Exit codes: 0 done; 1 the input or the job failed, with one clear message; 2 usage.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import graphspec
from compiler.errors import GraphspecError
from graphspec.shadowing import refuse_shadowed

TO_A_MODEL, AROUND_A_RUN, COMPILER = (
    "From a spec to a model",
    "Around a run",
    "The language and the compiler",
)  # of help

app = typer.Typer(
    help="Declare a search space in YAML, search it, ship the network that was found as ONNX.",
    epilog="To start: graphspec init digits, then graphspec compile digits.yaml.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SpecArg = Annotated[Path, typer.Argument(help="A spec file.", metavar="SPEC")]
TargetArg = Annotated[
    Path | None, typer.Argument(help="A run directory or a spec file; default: runs/latest.", metavar="RUN|SPEC")
]
RunArg = Annotated[Path | None, typer.Argument(help="A run directory; default: runs/latest.", metavar="RUN")]
SetOpt = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: --set search.epochs=5", metavar="KEY=VALUE")
]
SeedOpt = Annotated[int | None, typer.Option("--seed", help="Short for --set seed=N.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
OutFileOpt = Annotated[Path | None, typer.Option("-o", "--output", help="File to write; its ending says the format.")]


def say(message: str) -> None:
    """A line for people, to stderr."""
    typer.echo(message, err=True)


def print_json(value: Any) -> None:
    """One JSON object for programs, to stdout."""
    typer.echo(json.dumps(value, indent=2))


def overrides_of(settings: list[str] | None, seed: int | None) -> list[str]:
    """`--set` and `--seed` as overrides."""
    return [*(settings or ()), *([f"seed={seed}"] if seed is not None else ())]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graphspec {graphspec.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when a command fails.")] = False,
) -> None:
    """Options of every command; `main` looks for --debug itself."""


@app.command("compile", rich_help_panel=TO_A_MODEL)
def compile_command(
    spec: SpecArg,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run directory to write; default: runs/NAME-NUMBER-sSEED.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count only; write nothing.")] = False,
    settings: SetOpt = None,
    seed: SeedOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Check a spec completely, print what it costs, write a run directory."""
    from graphspec import api

    compiled = api.compile(spec, out=out, overrides=overrides_of(settings, seed), dry_run=dry_run)
    for warning in compiled.warnings:
        say(f"warning: {warning}")
    where = str(compiled.run.path) if compiled.run else None
    if as_json:
        print_json({"name": compiled.spec.name, **compiled.costs.as_json(), "run_dir": where})
        return
    typer.echo(compiled.costs.render())
    if where:
        say(f"\nwrote {where}; next: graphspec search")


@app.command(rich_help_panel=AROUND_A_RUN)
def show(
    target: TargetArg = None,
    output: OutFileOpt = None,
    block: Annotated[str | None, typer.Option("--block", help="Draw one block, kind of block or stage only.")] = None,
    settings: SetOpt = None,
) -> None:
    """Draw a search space, or before and after of a searched run (.svg, .html, .dot, .txt)."""
    from compiler.drawing.formats import FORMATS, draw
    from graphspec.targets import picture_of

    wanted = output.suffix.lstrip(".") if output else "txt"
    kind = next((known for known in FORMATS if known == wanted), None)
    if kind is None:
        raise GraphspecError(f"{output}: cannot draw that; try a file that ends in .{', .'.join(FORMATS)}")
    picture = picture_of(target, settings or ())
    drawn = draw(picture.graph, scope=block, gates=picture.gates, kept=picture.kept, format=kind)
    _deliver(drawn, output)


@app.command("diff", rich_help_panel=AROUND_A_RUN)
def diff_command(
    a: Annotated[Path, typer.Argument(help="A run, spec or graph.json.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Another.", metavar="B")],
    as_json: JsonOpt = False,
) -> None:
    """List what B lacks of A: nodes, edges, parameters and FLOPs per block."""
    from compiler.analysis.diff import diff
    from graphspec.targets import graph_of

    found = diff(graph_of(a), graph_of(b))
    if as_json:
        print_json(found.as_json())
    else:
        typer.echo(found.render())


@app.command(rich_help_panel=COMPILER)
def opt(
    spec: SpecArg,
    passes: Annotated[str, typer.Option("-p", "--passes", help="Passes in order, e.g. prune-zero-edges,expand-parts.")],
    print_after_all: Annotated[
        bool, typer.Option("--print-after-all", help="Print the graph after every pass.")
    ] = False,
    settings: SetOpt = None,
) -> None:
    """Run passes over a spec's graph and print the result: the compiler's debugger."""
    from compiler.ir.graph import Model
    from compiler.ir.text import text
    from compiler.passes.pipeline import Printer, parse_pipeline
    from graphspec.targets import graph_of

    graph = graph_of(spec, settings or ())
    pipeline = parse_pipeline(passes)
    model = pipeline.run(Model(graph, dict.fromkeys(graph.gates(), 1.0)), Printer(typer.echo, print_after_all))
    if not print_after_all:
        typer.echo(text(model.graph))


@app.command(rich_help_panel=COMPILER)
def schema(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write instead of printing.")] = None,
) -> None:
    """Print the JSON Schema of the language, for editors."""
    from compiler.language.schema import json_schema

    _deliver(json.dumps(json_schema(), indent=2) + "\n", output)


@app.command(rich_help_panel=COMPILER)
def ops(as_json: JsonOpt = False) -> None:
    """Print the catalogue of ops with their attributes."""
    from graphspec.listings import op_listing, op_records

    if as_json:
        print_json(op_records())
    else:
        typer.echo(op_listing())


@app.command(rich_help_panel=COMPILER)
def rules() -> None:
    """Print the verification rules of each phase."""
    from graphspec.listings import rule_listing

    typer.echo(rule_listing())


def _deliver(content: str, output: Path | None) -> None:
    """Print, or write to a file in one step."""
    if output is None:
        typer.echo(content, nl=not content.endswith("\n"))
        return
    from runtime.rundir.files import write_text

    write_text(output, content)
    say(f"wrote {output}")


def _of_rank(message: str) -> str:
    """The message, with the process that says it where several do a job."""
    from runtime.processes.launch import Launch

    rank = Launch.here().rank
    return f"rank {rank}: {message}" if rank else message


def main() -> None:
    """Run the command line; a GraphspecError becomes one message and its exit code."""
    import graphspec.export_command
    import graphspec.run_commands
    import graphspec.training_commands  # noqa: F401  (these add their commands to `app`)

    debug = "--debug" in sys.argv[1:]
    if debug:
        sys.argv.remove("--debug")
    try:
        refuse_shadowed()
        app()
    except GraphspecError as error:
        if debug:
            raise
        if error.told:
            raise SystemExit(error.exit_code) from None
        message = _of_rank(str(error))
        said = message.startswith(("error", "--set:")) or ": error: " in message
        asked_for = error.exit_code > 128  # Ctrl-C: the checkpoint is written, nothing went wrong
        say(message if said or asked_for else f"error: {message}")
        raise SystemExit(error.exit_code) from None
    except (BrokenPipeError, KeyboardInterrupt):
        raise SystemExit(130) from None
