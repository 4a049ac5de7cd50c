"""The command `import`: a trained network as a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compiler.errors import GraphspecError
from graphspec.cli.options import JsonOpt, print_json, say


def import_(
    source: Annotated[
        str,
        typer.Argument(help="torchvision:NAME, timm:NAME, package.module:function or an .onnx file.", metavar="SOURCE"),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Spec to write; the weights go beside it.", metavar="SPEC")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="DEFAULT: those the library has; or a .safetensors or .pth file."),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--input", help="Size of an image, e.g. 3,224,224; default: that of the weights.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, help="Replace the last layer by a fresh one of N outputs.")
    ] = None,
    gates: Annotated[str | None, typer.Option("--gates", help="channels, blocks (or both): what has gates.")] = None,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Allow package.module:function.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Write a trained network as a spec, with its weights; both are checked to compute the same."""
    shape = _shape(size)
    from runtime.importing import import_source  # and with it torch

    made = import_source(
        source, output, weights=weights, shape=shape, classes=classes, gates=gates, trust_code=trust_code
    )
    if as_json:
        record = {"spec": str(made.spec), "weights": str(made.weights), "difference": made.difference}
        print_json(record | {"notes": list(made.notes)})
        return
    for note in made.notes:
        say(f"note: {note}")
    say(f"outputs differ by at most {made.difference:.1e} of the largest")
    say(f"wrote {made.spec} and {made.weights}; next: graphspec compile {made.spec}")


def _shape(size: str | None) -> tuple[int, ...] | None:
    if size is None:
        return None
    parts = size.split(",")
    if len(parts) not in (2, 3) or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise GraphspecError(f"--input {size}: is no size of an image\n  try: channels,height,width such as 3,224,224")
    return tuple(map(int, parts))
