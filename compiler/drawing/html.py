"""Figures as one self-contained page: SVG inside, hovering tells types and costs, zoom and pan by mouse and keys."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from compiler.drawing.plain import asset
from compiler.drawing.svg import Picture, page_style

HINT = "+ / - zoom, arrows pan, 0 resets, n / p step through nodes, Esc lets go"


def figure_element(picture: Picture) -> str:
    """A figure that can be zoomed and walked through; its page carries figure.css, page.css and figure.js."""
    figure, width, height = picture.figure, f"{picture.width:.0f}", f"{picture.height:.0f}"
    svg = f'role="img" aria-label="{escape(f"{figure.title}: {figure.subtitle}")}" width="{width}" height="{height}"'
    return (
        f'<figure class="gs-view" tabindex="0" aria-label="{escape(f"{figure.title}. {HINT}")}">\n'
        f'<svg class="gs" {svg} viewBox="0 0 {width} {height}">\n{picture.body}\n</svg>\n</figure>'
    )


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
{page_style()}</style>
</head>
<body>
<main>
<p class="gs-hint">Hover for types and costs. Click a figure or tab to it, then: {escape(HINT)}.</p>
{figures}
</main>
<script>
{asset("figure.js")}</script>
</body>
</html>
"""
