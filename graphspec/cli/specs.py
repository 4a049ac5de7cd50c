"""Commands that start from a spec: init, compile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphspec.cli.options import JsonOpt, SeedOpt, SetOpt, SpecArg, overrides_of, print_json, say, tell


def init(
    name: Annotated[
        str, typer.Argument(help="A starter spec, e.g. digits. Without a name, list all starters.", metavar="NAME")
    ] = "",
    folder: Annotated[Path, typer.Option("--into", help="Folder to copy it to; default: this one.")] = Path(),
    size: Annotated[
        int | None, typer.Option("--size", help="Pixels of a side: stem, stages and limit follow.", metavar="PIXELS")
    ] = None,
    classes: Annotated[int | None, typer.Option("--classes", help="Number of classes.")] = None,
    params: Annotated[
        str | None, typer.Option("--params", help="Most parameters, e.g. 50k: widths follow.", metavar="COUNT")
    ] = None,
    flops: Annotated[
        str | None, typer.Option("--flops", help="Most multiply-adds, e.g. 3M: widths follow.", metavar="COUNT")
    ] = None,
) -> None:
    """Copy a starter spec and the files it extends; without a name, list the starters.

    own_images and photos can be made for an image size, a number of classes and a limit, cifar10_small for a limit.
    """
    from graphspec.starters import Wishes, copy_starter, starters

    if not name:
        for shipped, summary in starters().items():
            tell(f"{shipped:<22} {summary}")
        return
    limits = {key: most for key, most in (("params", params), ("flops", flops)) if most is not None}
    for path in copy_starter(name, folder, Wishes(size, classes, limits)):
        say(f"wrote {path}")
    say(f"next: graphspec compile {folder / name}.yaml")


def compile_(
    spec: SpecArg,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run directory to write; default: runs/NAME-NUMBER-sSEED.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print costs only; write nothing.")] = False,
    settings: SetOpt = None,
    seed: SeedOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Check a spec, print the costs of its search space and create a run directory."""
    from graphspec import api

    compiled = api.compile(spec, out=out, overrides=overrides_of(settings, ("--seed", "seed", seed)), dry_run=dry_run)
    for warning in compiled.warnings:
        say(f"warning: {warning}")
    where = str(compiled.run.path) if compiled.run else None
    if as_json:
        print_json({"name": compiled.spec.name, **compiled.costs.as_json(), "run_dir": where})
        return
    tell(f"{compiled.costs.render()}\ndata       {compiled.data}")
    if where:
        following = "search" if compiled.graph.gates() else "retrain (there are no gates to search)"
        say(f"\nwrote {where}; next: graphspec {following}")
