"""The command data: what is in a set of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphspec.cli.options import JsonOpt, SetOpt, deliver, overrides_of, print_json, say, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from compiler.language.config import Configuration
    from compiler.language.overrides import Override
    from runtime.data.health import Health


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

    config, sizes = _settings(target, overrides_of(settings))
    with Console().progress("images", 1) as advance:
        health = examine(config.data, advance, lambda total: advance(0, total=total))
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
        deliver(render(health, _augmented(health, config, sizes)), output or Path("data.html"))


def _augmented(health: Health, config: Configuration, sizes: Sequence[int]) -> list[tuple[str, list[Image]]]:
    """What training makes of some images, if it changes any."""
    changes = ("flip", "crop_padding", "resized_crop", "colour_jitter", "erasing")
    policies = {config.data.augment, config.retrain.augment} - {"none", None}
    changed = any(getattr(config.data, key) for key in changes) or policies or config.retrain.cutout
    if not (changed or config.data.name == "imagenet"):
        return []
    from runtime.data.augmented import augmented  # and with it torch

    return list(augmented(health, config, sizes))


def _settings(target: Path, overrides: tuple[Override, ...]) -> tuple[Configuration, tuple[int, ...]]:
    """The settings of a spec, and height and width of its input; or the section `data` that reads what lies at a path,
    and no sizes.
    """
    from pydantic import ValidationError

    from compiler.errors import GraphspecError, SpecError
    from compiler.language.config import Configuration
    from compiler.language.findings import first_of
    from compiler.language.parse import parse
    from graphspec.api import SUFFIXES
    from runtime.data.layouts import settings_for

    if target.suffix in SUFFIXES:
        parsed = parse(target, overrides)
        if parsed.spec is None or ("data",) in parsed.spec.broken:
            raise SpecError(parsed.diagnostics)
        sizes = () if ("input",) in parsed.spec.broken else parsed.spec.input[1:]
        return parsed.spec.config, sizes if len(sizes) == 2 else ()
    given = {one.path[1]: one.value.plain() for one in overrides if one.path[:1] == ("data",) and len(one.path) == 2}
    try:
        return Configuration.model_validate({"data": settings_for(target) | given}), ()
    except ValidationError as error:
        raise GraphspecError(first_of(error)) from error
