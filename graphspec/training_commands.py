"""The commands that train: search and retrain. Importing this file adds them to the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compiler.errors import RunError
from graphspec.cli import TO_A_MODEL, JsonOpt, SeedOpt, SetOpt, TargetArg, app, overrides_of, print_json, say
from runtime.processes.launch import Launch
from runtime.tasks.results import as_record

ResumeOpt = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Start anew over an earlier attempt.")]
DeviceOpt = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
TrustOpt = Annotated[bool, typer.Option("--trust-code", help="Allow data.name: package.module:function.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings only.")]
SmokeOpt = Annotated[
    bool, typer.Option("--smoke", help="Two steps of every stage on fake data in a folder of its own, then remove it.")
]
SeedsOpt = Annotated[
    str | None, typer.Option("--seeds", help="Run once for each of several seeds, e.g. 0,1,2.", metavar="LIST")
]


@app.command(rich_help_panel=TO_A_MODEL)
def search(
    target: TargetArg = None,
    resume: ResumeOpt = False,
    overwrite: OverwriteOpt = False,
    smoke: SmokeOpt = False,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="dso, random (control) or an installed one.")
    ] = None,
    match: Annotated[Path | None, typer.Option("--match", help="random: draw at the size that this run found.")] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Run torch.compile on every block: takes minutes, for long searches.")
    ] = False,
    settings: SetOpt = None,
    seed: SeedOpt = None,
    seeds: SeedsOpt = None,
    device: DeviceOpt = "auto",
    trust_code: TrustOpt = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Search the space with a strategy; write what was found."""
    from graphspec import api

    overrides = overrides_of(settings, seed)
    overrides += [f"search.strategy={strategy}"] if strategy else []
    overrides += ["search.compile=true"] if compile_ else []
    options = _options(resume, overwrite, device, trust_code, quiet)
    chosen = _seeds(seeds, smoke)
    if smoke:
        _smoke(target, "search", api.matched(target, overrides, match), options)
    elif chosen is None:
        _print(api.search(target, overrides=overrides, match=match, **options), as_json)
    else:
        _print(api.search(target, overrides=overrides, match=match, seeds=chosen, **options), as_json)


@app.command(rich_help_panel=TO_A_MODEL)
def retrain(
    target: TargetArg = None,
    resume: ResumeOpt = False,
    overwrite: OverwriteOpt = False,
    smoke: SmokeOpt = False,
    inherit: Annotated[bool, typer.Option("--inherit", help="Start from the search's weights, gates folded.")] = False,
    settings: SetOpt = None,
    seed: SeedOpt = None,
    seeds: SeedsOpt = None,
    device: DeviceOpt = "auto",
    trust_code: TrustOpt = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Train the found network from scratch, within the budget; report its test accuracy."""
    from graphspec import api

    overrides = overrides_of(settings, seed) + (["retrain.inherit=true"] if inherit else [])
    options = _options(resume, overwrite, device, trust_code, quiet)
    chosen = _seeds(seeds, smoke)
    if smoke:
        _smoke(target, "retrain", overrides, options)
    elif chosen is None:
        _print(api.retrain(target, overrides=overrides, **options), as_json)
    else:
        _print(api.retrain(target, overrides=overrides, seeds=chosen, **options), as_json)


def _options(resume: bool, overwrite: bool, device: str, trust_code: bool, quiet: bool) -> dict[str, Any]:
    return {"resume": resume, "overwrite": overwrite, "device": device, "trust_code": trust_code, "quiet": quiet}


def _seeds(text: str | None, smoke: bool) -> tuple[int, ...] | None:
    """The seeds asked for; RunError if the list is wrong."""
    from runtime.rundir.study import parse_seeds

    if text is not None and smoke:
        raise RunError("--smoke runs once and keeps nothing, so it takes no --seeds\n  try: one of the two")
    return None if text is None else parse_seeds(text)


def _smoke(target: Any, last: str, overrides: list[str], options: dict[str, Any]) -> None:
    from graphspec import api

    # Two steps say nothing about gates or accuracy, so a warning about either would mislead.
    ran = api.smoke(target, last, overrides=overrides, **{**options, "silent": True})
    say(f"smoke run passed: two steps of every stage of {' and '.join(ran)} on fake data; nothing was kept")


def _print(result: Any, as_json: bool) -> None:
    if as_json and Launch.here().is_main:
        print_json(as_record(result))
