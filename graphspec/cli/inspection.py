"""Commands that show the language and the compiler: opt, schema, ops, rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from graphspec.cli.options import JsonOpt, SetOpt, SpecArg, deliver, overrides_of, print_json, tell


def opt(
    spec: SpecArg,
    passes: Annotated[str, typer.Option("-p", "--passes", help="Passes in order, e.g. prune-zero-edges,expand-parts.")],
    print_after_all: Annotated[bool, typer.Option("--print-after-all", help="Print after every pass.")] = False,
    settings: SetOpt = None,
) -> None:
    """Run passes over a spec's graph and print the result, to debug the compiler."""
    from compiler.ir.graph import Model
    from compiler.ir.text import text
    from compiler.passes.pipeline import Printer, parse_pipeline
    from graphspec.targets import graph_of

    graph = graph_of(spec, overrides_of(settings))
    pipeline = parse_pipeline(passes)
    model = pipeline.run(Model(graph, dict.fromkeys(graph.gates(), 1.0)), Printer(tell, print_after_all))
    if not print_after_all:
        typer.echo(text(model.graph))


def schema(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write instead of printing.")] = None,
) -> None:
    """Print the JSON Schema of the language, for editors."""
    from compiler.language.schema import json_schema

    deliver(json.dumps(json_schema(), indent=2) + "\n", output)


def ops(as_json: JsonOpt = False) -> None:
    """List all ops with their attributes."""
    from graphspec.cli.listings import op_listing, op_records

    if as_json:
        print_json(op_records())
    else:
        tell(op_listing())


def rules() -> None:
    """List the rules that a graph must obey in each phase."""
    from graphspec.cli.listings import rule_listing

    tell(rule_listing())
