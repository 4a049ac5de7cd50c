"""Commands that train: search, retrain, lr."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compiler.errors import RunError
from graphspec.cli.options import (
    JsonOpt,
    QuietOpt,
    SeedOpt,
    SetOpt,
    TargetArg,
    TrustOpt,
    overrides_of,
    print_record,
    say,
    tell,
)

ResumeOpt = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Discard an earlier attempt and start again.")]
DeviceOpt = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
SmokeOpt = Annotated[bool, typer.Option("--smoke", help="Test two steps of every stage on fake data; keep no files.")]
SeedsOpt = Annotated[
    str | None, typer.Option("--seeds", help="Run once with each of several seeds, e.g. 0,1,2.", metavar="LIST")
]


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
        bool, typer.Option("--compile", help="Run torch.compile on every block. Takes minutes: for long searches.")
    ] = False,
    settings: SetOpt = None,
    seed: SeedOpt = None,
    seeds: SeedsOpt = None,
    device: DeviceOpt = "auto",
    trust_code: TrustOpt = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Search the space with a strategy; write the found network."""
    overrides = overrides_of(
        settings,
        ("--seed", "seed", seed),
        ("--strategy", "search.strategy", strategy),
        ("--compile", "search.compile", compile_ or None),
    )
    options = {"resume": resume, "overwrite": overwrite, "device": device, "trust_code": trust_code, "quiet": quiet}
    _run("search", target, smoke, seeds, as_json, overrides=overrides, match=match, **options)


def retrain(
    target: TargetArg = None,
    resume: ResumeOpt = False,
    overwrite: OverwriteOpt = False,
    smoke: SmokeOpt = False,
    start: Annotated[
        str | None, typer.Option("--from", help="search: go on with its weights; scratch: with random ones.")
    ] = None,
    inherit: Annotated[bool, typer.Option("--inherit", help="The same as --from search.", hidden=True)] = False,
    settings: SetOpt = None,
    seed: SeedOpt = None,
    seeds: SeedsOpt = None,
    device: DeviceOpt = "auto",
    trust_code: TrustOpt = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Train the found network within its budget and measure it on the test images."""
    start = start or ("search" if inherit else None)
    overrides = overrides_of(settings, ("--seed", "seed", seed), ("--from", "retrain.from", start))
    options = {"resume": resume, "overwrite": overwrite, "device": device, "trust_code": trust_code, "quiet": quiet}
    _run("retrain", target, smoke, seeds, as_json, overrides=overrides, **options)


def lr(
    target: TargetArg = None,
    settings: SetOpt = None,
    seed: SeedOpt = None,
    device: DeviceOpt = "auto",
    trust_code: TrustOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Find a learning rate for retrain: a few steps at growing rates; keep no files."""
    from graphspec.rates import find_rate

    overrides = overrides_of(settings, ("--seed", "seed", seed))
    found = find_rate(target, overrides=overrides, device=device, trust_code=trust_code)
    if as_json:
        print_record(found)
    else:
        tell("\n".join(found.lines()))


def _run(job: str, target: Path | None, smoke: bool, seeds: str | None, as_json: bool, **options: Any) -> None:
    """Run a job, or with `smoke` two steps of it; of several processes one prints the result."""
    from graphspec import api
    from runtime.processes.launch import Launch
    from runtime.rundir.study import parse_seeds

    if smoke:
        if seeds is not None:
            raise RunError("--smoke runs once and keeps nothing, so it takes no --seeds\n  try: one of the two")
        # silent: two steps say nothing about gates or metrics, so a warning about either would mislead
        ran = api.smoke(target, job, **options, silent=True)
        say(f"smoke run passed: two steps of every stage of {' and '.join(ran)} on fake data; nothing was kept")
        return
    chosen = None if seeds is None else parse_seeds(seeds)
    options["fit_threads"] = True
    run = api.search if job == "search" else api.retrain
    result = run(target, seeds=chosen, **options)
    if as_json and Launch.here().is_main:
        print_record(result)
