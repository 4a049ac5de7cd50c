"""The commands that train: search and retrain. Importing this file adds them to the command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from graphspec.cli import JsonOpt, SeedOpt, SetOpt, TargetArg, app, overrides_of, print_json, say
from graphspec.errors import RunError

ResumeOpt = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Start anew over an earlier attempt.")]
DeviceOpt = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
TrustOpt = Annotated[bool, typer.Option("--trust-code", help="Allow data.name: package.module:function.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings only.")]
SmokeOpt = Annotated[
    bool, typer.Option("--smoke", help="Two steps of every stage on fake data in a folder of its own, then remove it.")
]


@app.command()
def search(
    target: TargetArg = None,
    resume: ResumeOpt = False,
    overwrite: OverwriteOpt = False,
    smoke: SmokeOpt = False,
    strategy: Annotated[str | None, typer.Option("--strategy", help="apg_nag, or random (control).")] = None,
    match: Annotated[Path | None, typer.Option("--match", help="random: draw at the size that this run found.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Run torch.compile on the network.")] = False,
    settings: SetOpt = None,
    seed: SeedOpt = None,
    device: DeviceOpt = "auto",
    trust_code: TrustOpt = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Pretrain the supernet, search with APG-NAG, prune zero edges; write what was found."""
    overrides = overrides_of(settings, seed)
    overrides += [f"search.strategy={strategy}"] if strategy else []
    overrides += [f"search.random_params={_found_params(match)}"] if match else []
    overrides += ["search.compile=true"] if compile_ else []
    _train("search", target, overrides, smoke, as_json, _options(resume, overwrite, device, trust_code, quiet))


@app.command()
def retrain(
    target: TargetArg = None,
    resume: ResumeOpt = False,
    overwrite: OverwriteOpt = False,
    smoke: SmokeOpt = False,
    inherit: Annotated[bool, typer.Option("--inherit", help="Start from the search's weights, gates folded.")] = False,
    settings: SetOpt = None,
    seed: SeedOpt = None,
    device: DeviceOpt = "auto",
    trust_code: TrustOpt = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Train the found network from scratch, within the budget; report its test accuracy."""
    overrides = overrides_of(settings, seed) + (["retrain.inherit=true"] if inherit else [])
    _train("retrain", target, overrides, smoke, as_json, _options(resume, overwrite, device, trust_code, quiet))


def _found_params(path: Path) -> int:
    """Parameters of the network that a run's search found, before its width was set."""
    from runtime.rundir import RunDir

    result = RunDir.open(path).search.result
    if not result.is_file():
        raise RunError(f"--match {path}: this run has no finished search; try: graphspec search {path}")
    return int(json.loads(result.read_text(encoding="utf-8"))["found"]["params"])


def _options(resume: bool, overwrite: bool, device: str, trust_code: bool, quiet: bool) -> dict[str, Any]:
    return {"resume": resume, "overwrite": overwrite, "device": device, "trust_code": trust_code, "quiet": quiet}


def _train(job: str, target: Any, overrides: list[str], smoke: bool, as_json: bool, options: dict[str, Any]) -> None:
    from graphspec import api

    if smoke:
        api.smoke(target, job, overrides=overrides, **{**options, "quiet": True})
        say(f"smoke run passed: two steps of every stage up to {job} on fake data; nothing was kept")
        return
    result = (api.search if job == "search" else api.retrain)(target, overrides=overrides, **options)
    if as_json:
        print_json(asdict(result))
