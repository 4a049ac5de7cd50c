"""Commands that compare with plain networks: baseline, probe."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graphspec.cli.options import (
    JsonOpt,
    QuietOpt,
    SetOpt,
    TargetArg,
    TrustOpt,
    overrides_of,
    print_json,
    tell,
)
from graphspec.cli.training import DeviceOpt

FAMILIES = "Plain networks; also inverted_deep, residual_deep, residual_fine"
PlainOpt = Annotated[str, typer.Option("--plain", help=f"{FAMILIES}.", metavar="LIST")]
RivalsOpt = Annotated[
    str, typer.Option("--plain", help=f"{FAMILIES}, or best: who wins short trainings.", metavar="LIST")
]
AnewOpt = Annotated[bool, typer.Option("--overwrite", help="Discard the trainings there are and start again.")]


def baseline(
    target: TargetArg = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Default: those of search and retraining together.")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Train once with each.", metavar="LIST")] = "0,1",
    plain: RivalsOpt = "inverted,residual",
    overwrite: AnewOpt = False,
    settings: SetOpt = None,
    device: DeviceOpt = "auto",
    trust_code: TrustOpt = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Train plain networks of the same size on the same data and compare; finished trainings are kept."""
    from graphspec import trials
    from runtime.rundir.study import parse_seeds

    chosen = {"epochs": epochs, "seeds": parse_seeds(seeds), "networks": plain.split(",")}
    how = {"overwrite": overwrite, "device": device, "trust_code": trust_code, "quiet": quiet}
    _tell(trials.baseline, target, settings, as_json, **chosen, **how)


def probe(
    target: TargetArg = None,
    networks: Annotated[int, typer.Option("--networks", min=2, help="Random networks at most.")] = 16,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of each training.")] = 5,
    plain: PlainOpt = "inverted,residual",
    overwrite: AnewOpt = False,
    settings: SetOpt = None,
    device: DeviceOpt = "auto",
    trust_code: TrustOpt = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Train a few random networks of a space beside plain ones: say before a search whether it can pay."""
    from graphspec import trials

    chosen = {"networks": networks, "epochs": epochs, "plain": plain.split(",")}
    how = {"overwrite": overwrite, "device": device, "trust_code": trust_code, "quiet": quiet}
    _tell(trials.probe, target, settings, as_json, **chosen, **how)


def _tell(compare: Any, target: TargetArg, settings: SetOpt, as_json: bool, **options: Any) -> None:
    """Run the comparison and print what it found."""
    found = compare(target, overrides=overrides_of(settings), **options)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        tell(found.render())
