"""The commands that ship: export, bench. Importing this file adds them to the command line."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from graphspec.cli import TO_A_MODEL, JsonOpt, RunArg, SetOpt, app, overrides_of, print_json
from graphspec.training_commands import QuietOpt, TrustOpt
from runtime.tasks.results import as_record


class Layout(Enum):
    """Order of a raw image's sizes."""

    NHWC = "nhwc"
    NCHW = "nchw"


class SourceJob(Enum):
    """The job whose network is exported."""

    RETRAIN = "retrain"
    SEARCH = "search"


@app.command(rich_help_panel=TO_A_MODEL)
def export(
    target: RunArg = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX: the only format there is, but say it.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File; default: RUN/export/model.onnx.")] = None,
    source: Annotated[
        SourceJob, typer.Option("--from", help="search: the pruned supernet without retraining.")
    ] = SourceJob.RETRAIN,
    opset: Annotated[int | None, typer.Option("--opset", help="Short for --set export.opset=N.")] = None,
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Take raw uint8 images; normalisation goes into the model.")
    ] = False,
    layout: Annotated[
        Layout | None, typer.Option("--layout", help="Of raw images; implies --with-preprocessing. Default: nhwc.")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Give probabilities instead of logits.")
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Also write a float16 form.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write an int8 form, calibrated on training images.")
    ] = False,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time the model beside torch.")] = True,
    settings: SetOpt = None,
    trust_code: TrustOpt = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Write the found network as one ONNX file that was checked against torch."""
    from graphspec import api

    if not onnx:
        raise typer.BadParameter("say which format to write; the only one is --onnx", param_hint="--onnx")
    overrides = overrides_of(settings, None)
    overrides += [f"export.opset={opset}"] if opset is not None else []
    if with_preprocessing or layout is not None:
        overrides.append(f"export.with_preprocessing={(layout or Layout.NHWC).value}")
    overrides += ["export.probabilities=true"] if probabilities else []
    result = api.export(
        target,
        overrides=overrides,
        source=source.value,
        output=output,
        fp16=fp16,
        int8=int8,
        latency=latency,
        trust_code=trust_code,
        quiet=quiet,
    )
    if as_json:
        print_json(as_record(result))


@app.command()
def bench(
    target: Annotated[
        Path | None,
        typer.Argument(help="An exported run or any ONNX file; default: runs/latest.", metavar="[RUN|MODEL.onnx]"),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes.", metavar="LIST")] = "1,64",
    threads: Annotated[str, typer.Option("--threads", help="Numbers of threads.", metavar="LIST")] = "1,2",
    seconds: Annotated[float, typer.Option("--seconds", help="To measure each case for, at least three runs.")] = 2.0,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Time an exported model in onnxruntime, and a run's network in torch beside it; size and peak memory."""
    from graphspec import api

    batches, counts = _counts(batch, "--batch"), _counts(threads, "--threads")
    result = api.bench(target, batches=batches, threads=counts, seconds=seconds, quiet=quiet)
    if as_json:
        print_json(result.as_json())
    else:
        typer.echo(result.render())


def _counts(text: str, option: str) -> list[int]:
    """The numbers of a list such as 1,64."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 1,64", param_hint=option)
    return [int(word) for word in words]
