"""`graphspec show`: a graph as SVG, HTML, DOT or text.

Drawn from the graph alone: no other program is needed and the same graph gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from compiler.drawing.choices import with_choices
from compiler.drawing.dot import dot
from compiler.drawing.html import page
from compiler.drawing.scene import Figure, figures, view_of
from compiler.drawing.svg import Picture, document, paint
from compiler.drawing.terminal import listing
from compiler.errors import GraphspecError
from compiler.ir.graph import Graph

Format = Literal["svg", "html", "dot", "txt"]
FORMATS: tuple[Format, ...] = get_args(Format)


def draw(
    graph: Graph,
    *,
    scope: str | None = None,
    gates: Mapping[str, float] | None = None,
    kept: Graph | None = None,
    format: Format = "svg",  # noqa: A002  (the word users know from `show -o`)
) -> str:
    """Draw a typed graph.

    `scope` is a block id, a kind of block or a stage; None draws the whole network: an overview, then every distinct
    block. `gates` (by gate id) sets the width of gated edges and makes zero ones faint. With `kept`, a later form of
    `graph` with the same node ids, everything that it has lost is faint: before and after in one picture.
    GraphspecError if there is no such block or format.
    """
    if format not in FORMATS:
        raise GraphspecError(f"cannot draw as {format!r}\n  try: a file that ends in .{', .'.join(FORMATS)}")
    shown = figures(view_of(graph, gates, kept), scope)
    if format == "txt":
        return "\n".join(listing(figure) for figure in shown)
    if format == "dot":
        return dot(graph.name, shown)
    pictures = paint_all(shown)
    return document(pictures) if format == "svg" else page(graph.name, pictures)


def paint_all(shown: list[Figure]) -> list[Picture]:
    """Every figure drawn, choices as one card, gate values to one scale."""
    largest = max((figure.largest for figure in shown), default=0.0)
    return [paint(with_choices(figure), largest) for figure in shown]
