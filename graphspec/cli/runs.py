"""Commands around a run: show, diff, report, derive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compiler.errors import GraphspecError
from graphspec.cli import options
from graphspec.cli.options import JsonOpt, RunArg, SeedOpt, SetOpt, TargetArg, overrides_of, print_json, say


def show(
    target: TargetArg = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; its extension is the format.")
    ] = None,
    block: Annotated[str | None, typer.Option("--block", help="Draw only this block, stage, or kind of block.")] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Draw only what the search has kept.")] = False,
    settings: SetOpt = None,
) -> None:
    """Draw a search space, with what the search pruned if the run has been searched (.svg, .html, .dot, .txt)."""
    from compiler.drawing.formats import FORMATS, draw
    from graphspec.targets import picture_of

    wanted = output.suffix.lstrip(".") if output else "txt"
    kind = next((known for known in FORMATS if known == wanted), None)
    if kind is None:
        raise GraphspecError(f"{output}: cannot draw that; try a file that ends in .{', .'.join(FORMATS)}")
    picture = picture_of(target, overrides_of(settings))
    if kept:
        picture = picture.only_kept()
    drawn = draw(picture.graph, scope=block, gates=picture.gates, kept=picture.kept, format=kind)
    if output is None:
        options.tell(drawn.rstrip("\n"))
    else:
        options.deliver(drawn, output)


def diff(
    a: Annotated[Path, typer.Argument(help="A run directory, a spec or a graph.json.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="The one to compare it with.", metavar="B")],
    as_json: JsonOpt = False,
) -> None:
    """List what A has and B lacks: nodes, edges, parameters and FLOPs per block."""
    from compiler.analysis.diff import diff as difference
    from graphspec.targets import graph_of

    found = difference(graph_of(a), graph_of(b))
    if as_json:
        print_json(found.as_json())
    else:
        typer.echo(found.render())


def report(target: RunArg = None, as_json: JsonOpt = False) -> None:
    """Write an HTML report of a run (also while it is running) and print its main figures."""
    from runtime.reporting.page import write_report
    from runtime.reporting.record import read_run
    from runtime.reporting.summary import summarise
    from runtime.rundir.directory import RunDir

    run = RunDir.latest() if target is None else RunDir.open(target)
    path = write_report(run)
    summary = summarise(read_run(run))
    if as_json:
        print_json({"report": str(path), "summary": summary.as_json()})
        return
    say(f"wrote {path}")
    for name, text in summary.lines():
        options.tell(f"{name:<10} {text}")


def derive(
    architecture: Annotated[Path, typer.Argument(help="The arch.yaml that a search wrote.", metavar="ARCH")],
    into: Annotated[Path, typer.Option("--into", help="Spec of the network to use it in.", metavar="SPEC")],
    block: Annotated[str | None, typer.Option("--block", help="Block to use of several: stage0.block3.")] = None,
    settings: SetOpt = None,
    seed: SeedOpt = None,
) -> None:
    """Use a found block in another network; creates a run directory ready for retrain."""
    from graphspec import api

    derived = api.derive(architecture, into, block=block, overrides=overrides_of(settings, ("--seed", "seed", seed)))
    for note in derived.notes:
        say(note)
    say(f"wrote {derived.run.path}; next: graphspec retrain")
