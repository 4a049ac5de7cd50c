"""Commands for the ONNX file: export, bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from graphspec.cli.options import JsonOpt, QuietOpt, RunArg, SetOpt, TrustOpt, overrides_of, print_json, print_record

if TYPE_CHECKING:
    from runtime.export.bench import BenchResult
    from runtime.export.op_times import OpTimes


def export(
    target: RunArg = None,
    onnx: Annotated[bool, typer.Option("--onnx", hidden=True)] = True,  # accepted: it is the only format
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File; default: RUN/export/model.onnx.")] = None,
    source: Annotated[
        Literal["retrain", "search"], typer.Option("--from", help="search: the pruned supernet.")
    ] = "retrain",
    opset: Annotated[int | None, typer.Option("--opset", help="Short for --set export.opset=N.")] = None,
    with_preprocessing: Annotated[bool, typer.Option("--with-preprocessing", help="Take raw images.")] = False,
    layout: Annotated[
        Literal["nhwc", "nchw"] | None,
        typer.Option("--layout", help="Of raw images (default: nhwc); implies --with-preprocessing."),
    ] = None,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="Resize in the model, too; implies --with-preprocessing.")
    ] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Output probabilities, not logits.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Also write a float16 model.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Also write an int8 model (large networks only).")] = False,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Measure latency.")] = True,
    settings: SetOpt = None,
    trust_code: TrustOpt = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Export the found network as an ONNX file and check it against torch."""
    from graphspec import api

    overrides = overrides_of(
        settings,
        ("--opset", "export.opset", opset),
        ("--layout", "export.with_preprocessing", layout or ("nhwc" if with_preprocessing or any_size else None)),
        ("--any-size", "export.any_size", any_size or None),
        ("--probabilities", "export.probabilities", probabilities or None),
    )
    wanted = {"source": source, "output": output, "fp16": fp16, "int8": int8, "latency": latency}
    result = api.export(target, overrides=overrides, trust_code=trust_code, quiet=quiet, **wanted)
    if as_json:
        print_record(result)


def bench(
    target: Annotated[
        Path | None, typer.Argument(help="An exported run (default: runs/latest) or an ONNX file.", metavar="RUN|ONNX")
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes to measure.", metavar="LIST")] = "1,64",
    threads: Annotated[str, typer.Option("--threads", help="Thread counts to measure.", metavar="LIST")] = "1,2",
    seconds: Annotated[float, typer.Option("--seconds", help="Seconds per measurement; at least three runs.")] = 2.0,
    ops: Annotated[
        bool, typer.Option("--ops", help="Where the time goes, by node and block; the first batch size and threads.")
    ] = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Measure latency, size and peak memory of an ONNX model, and for a run the same network in torch."""
    from runtime.export.bench import run_bench
    from runtime.export.op_times import run_op_times

    batches, counts = _counts(batch, "--batch"), _counts(threads, "--threads")
    result: BenchResult | OpTimes
    if ops:
        result = run_op_times(target, batch=batches[0], threads=counts[0], seconds=seconds)
    else:
        result = run_bench(target, batches=batches, threads=counts, seconds=seconds, quiet=quiet)
    if as_json:
        print_json(result.as_json())
    else:
        typer.echo(result.render())


def _counts(text: str, option: str) -> list[int]:
    """The numbers of a list such as 1,64."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,64", param_hint=option)
    return [int(word) for word in words]
