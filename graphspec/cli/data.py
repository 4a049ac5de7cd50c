"""The command data: what is in a set of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphspec.cli.options import JsonOpt, SetOpt, overrides_of, print_json, say, tell

if TYPE_CHECKING:
    from compiler.language.config import DataConfig
    from compiler.language.overrides import Override


def data(
    target: Annotated[
        Path,
        typer.Argument(
            help="A spec file, a folder of images, a zip or tar file, a table or an .npz file.", metavar="SPEC|FOLDER"
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="HTML page to write; default: data.html, with --json none.")
    ] = None,
    settings: SetOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Look at every image of a set: classes, sizes, kinds, near-duplicates across parts, files that cannot be read."""
    from compiler.errors import one_line
    from runtime.data.health import examine
    from runtime.jobs.logs import Console
    from runtime.reporting.data_page import render
    from runtime.rundir.files import write_text

    config = _config(target, overrides_of(settings))
    with Console().progress("images", 1) as advance:
        health = examine(config, advance, lambda total: advance(0, total=total))
    if as_json:
        print_json(health.as_json())
    else:
        for warning in health.warnings():
            say(f"warning: {warning}")
        for name, text in health.lines():
            tell(f"{name:<16} {text}")
        for name, counts in health.counts().items():
            tell(f"  {one_line(name):<14} {', '.join(f'{part} {count:,}'.strip() for part, count in counts.items())}")
    if output or not as_json:
        page = output or Path("data.html")
        write_text(page, render(health))
        say(f"wrote {page}")


def _config(target: Path, overrides: tuple[Override, ...]) -> DataConfig:
    """The section `data` of a spec, or the one that reads what lies at a path."""
    from pydantic import ValidationError

    from compiler.errors import GraphspecError, SpecError
    from compiler.language.config import Configuration
    from compiler.language.findings import first_of
    from compiler.language.parse import parse
    from graphspec.api import SUFFIXES
    from runtime.data.health import settings_for

    if target.suffix in SUFFIXES:
        parsed = parse(target, overrides)
        if parsed.spec is None or ("data",) in parsed.spec.broken:
            raise SpecError(parsed.diagnostics)
        return parsed.spec.config.data
    given = {one.path[1]: one.value.plain() for one in overrides if one.path[:1] == ("data",) and len(one.path) == 2}
    try:
        return Configuration.model_validate({"data": settings_for(target) | given}).data
    except ValidationError as error:
        raise GraphspecError(first_of(error)) from error
