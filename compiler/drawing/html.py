"""Figures as one self-contained page: SVG inside, hovering tells types and costs, zoom and pan by mouse and keys."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from compiler.drawing.svg import Picture, element, stylesheet

HINT = "+ / - zoom, arrows pan, 0 resets, n / p step through nodes, Esc lets go"


def script() -> str:
    """The behaviour all drawings share."""
    return (files("compiler.drawing") / "figure.js").read_text(encoding="utf-8")


def page_style() -> str:
    """The style of figures on a page, on top of that of the drawings themselves."""
    return (files("compiler.drawing") / "page.css").read_text(encoding="utf-8")


def figure_element(picture: Picture) -> str:
    """A figure that can be zoomed and walked through; needs `stylesheet`, `page_style` and `script` on its page."""
    label = escape(f"{picture.figure.title}. {HINT}")
    return f'<figure class="gs-view" tabindex="0" aria-label="{label}">\n{element(picture)}\n</figure>'


def page(title: str, pictures: Sequence[Picture]) -> str:
    """A whole page of figures."""
    figures = "\n".join(figure_element(picture) for picture in pictures)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{stylesheet()}{page_style()}</style>
</head>
<body>
<main>
<p class="gs-hint">Hover for types and costs. Click a figure or tab to it, then: {escape(HINT)}.</p>
{figures}
</main>
<script>
{script()}</script>
</body>
</html>
"""
