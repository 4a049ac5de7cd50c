"""Commands that use an exported model: predict, evaluate."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compiler.errors import GraphspecError
from graphspec.cli import options
from graphspec.cli.options import JsonOpt, QuietOpt, TrustOpt, print_json, say
from runtime.inference import TOP

if TYPE_CHECKING:
    from runtime.inference.predict import Prediction

BatchOpt = Annotated[int | None, typer.Option("--batch", min=1, help="Images at a time: 256, fewer of large ones.")]
MODEL = "MODEL|RUN"


def predict(
    target: Annotated[Path, typer.Argument(help="An exported ONNX file, or a run that was exported.", metavar=MODEL)],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders or patterns; - reads such names, one a line, from stdin.", metavar="FILES..."
        ),
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes for each image.")] = TOP,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV to stdout.")] = False,
    batch: BatchOpt = None,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Say what images show: the most probable classes of each, with their probabilities."""
    if as_csv and as_json:
        raise typer.BadParameter("there is one output: leave --csv or --json out", param_hint="--csv")
    from runtime.inference.images import find_images, listed
    from runtime.inference.model import open_model
    from runtime.inference.predict import predict
    from runtime.jobs.logs import Console
    from runtime.rundir.study import rendered

    model, _ = open_model(target)
    paths = find_images(typed for name in images for typed in (_lines(sys.stdin.buffer) if name == "-" else [name]))
    with Console(quiet).progress("images", len(paths)) as advance:
        found = predict(model, paths, top=top, batch=batch, advance=advance)
    if as_json:
        print_json({"model": str(model.path), "images": [asdict(each) for each in found]})
    elif as_csv:
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(_rows(found))
        typer.echo(file.getvalue().encode(errors="surrogateescape"), nl=False)
    else:
        options.tell(rendered(_rows(found)))
    if failed := {each.image: each.error for each in found if each.error}:
        where = f"{len(failed)} of {len(found)} images cannot be read: {listed(failed)}"
        raise GraphspecError(f"{where}\n  try: mend them, or leave them out")


def _lines(file: Iterable[bytes]) -> list[str]:
    return [os.fsdecode(line.rstrip(b"\r\n")) for line in file if line.strip()]


def _rows(found: Sequence[Prediction]) -> list[list[str]]:
    """A head, and a row for each image that can be read: its name, then classes and scores."""
    most = max((len(each.classes) for each in found), default=0)
    head = ["image", *(f"{what}{n}" for n in range(1, most + 1) for what in ("class", "score"))]
    return [head, *([each.image, *_cells(each)] for each in found if not each.error)]


def _cells(one: Prediction) -> list[str]:
    return [cell for guess in one.classes for cell in (guess.label, f"{guess.score:.6f}")]


def evaluate(
    target: Annotated[
        Path | None,
        typer.Argument(help="A run that was exported (default: runs/latest) or an ONNX file.", metavar=MODEL),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Folders of classes, an archive, a table or arrays; default: the test images of the run.",
            metavar="DATA",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="HTML page to write, with pictures of the mistakes.")
    ] = None,
    batch: BatchOpt = None,
    trust_code: TrustOpt = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Say how often an exported model is right, for which classes, and what it gets wrong."""
    from runtime.inference.evaluate import run_evaluate
    from runtime.jobs.logs import Console
    from runtime.reporting.evaluation import lines, page
    from runtime.rundir.directory import RUNS

    console = Console(quiet)
    said: dict[str, Any] = {"warn": console.warn, "tell": console.line, "progress": console.progress}
    found = run_evaluate(target, data, trust_code=trust_code, batch=batch, **said)
    record = asdict(found)
    if as_json:
        print_json(record)
    else:
        options.tell(lines(record))
    if output:
        options.deliver(page(record), output)
    elif data is None and not quiet:
        say(f"pictures of the mistakes: graphspec report {target or RUNS / 'latest'}")
