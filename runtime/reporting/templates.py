"""The templates, styles and scripts of pages, which lie beside this file."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from compiler.drawing.svg import page_style
from compiler.errors import printable


def resource(name: str) -> str:
    """The text of a file of the package."""
    return (files("runtime.reporting") / name).read_text(encoding="utf-8")


def template(name: str, **functions: Any) -> Template:
    """A template, which may use these functions and the style of all pages."""
    environment = Environment(
        autoescape=True,
        finalize=lambda value: (
            value if hasattr(value, "__html__") else printable(str(value))
        ),  # a name may be any bytes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(resource),
    )
    return environment.get_template(name, globals={"style": Markup(page_style() + resource("report.css")), **functions})
