"""Commands around a run: init, report, derive. Importing this file adds them to the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphspec.cli import (
    AROUND_A_RUN,
    JsonOpt,
    RunArg,
    SeedOpt,
    SetOpt,
    app,
    overrides_of,
    print_json,
    say,
)


@app.command(rich_help_panel=AROUND_A_RUN)
def init(
    name: Annotated[
        str, typer.Argument(help="A shipped spec, e.g. digits; without it, they are listed.", metavar="NAME")
    ] = "",
    folder: Annotated[Path, typer.Option("--into", help="Folder to copy it to.")] = Path(),
) -> None:
    """Copy a commented starter spec (and what it extends) into this folder."""
    from graphspec.starters import copy_starter, starters

    if not name:
        for shipped, summary in starters().items():
            typer.echo(f"{shipped:<22} {summary}")
        return
    for path in copy_starter(name, folder):
        say(f"wrote {path}")
    say(f"next: graphspec compile {folder / name}.yaml")


@app.command(rich_help_panel=AROUND_A_RUN)
def report(target: RunArg = None, as_json: JsonOpt = False) -> None:
    """Write one self-contained HTML page about a run, also while it is running; sum up what was reached."""
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
        typer.echo(f"{name:<10} {text}")


@app.command("derive", rich_help_panel=AROUND_A_RUN)
def derive_command(
    architecture: Annotated[Path, typer.Argument(help="The arch.yaml of a search.", metavar="ARCH")],
    into: Annotated[
        Path, typer.Option("--into", help="Spec of the network to re-stack the found block in.", metavar="SPEC")
    ],
    block: Annotated[
        str | None, typer.Option("--block", help="Block of a full-space result, e.g. stage0.block3.")
    ] = None,
    settings: SetOpt = None,
    seed: SeedOpt = None,
) -> None:
    """Re-stack a found block in another network; writes a run directory ready for retrain."""
    from graphspec import api

    derived = api.derive(architecture, into, block=block, overrides=overrides_of(settings, seed))
    for note in derived.notes:
        say(note)
    say(f"wrote {derived.run.path}; next: graphspec retrain")
