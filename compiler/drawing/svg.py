"""Figures as SVG: no script, no outside resource, light and dark by the viewer's preference.

Gated edges end in a dot, plain ones in an arrowhead, closed ones are faint and dashed: nothing rests on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

from compiler.drawing.layout import PORT, Box, Layout, Point, lay_out, svg_path
from compiler.drawing.plain import asset, dark_style, dressed
from compiler.drawing.scene import Card, Figure, Option, Wire

MARGIN = 24.0
NAME_WIDTH, MORE_WIDTH = 6.95, 6.05  # of one letter, in pixels, at the sizes of figure.css
LINE_HEIGHT = 14.0
TEXT_WIDTH = 6.6  # of one letter of title and subtitle, on average and generously
WIDEST = 4.5  # stroke of the largest gate, in pixels
NARROWEST = 0.9
BAR = 36.0  # of the largest gate in a row of a choice
PILE = 8.0  # by how much the last card of a pile sticks out


@dataclass(frozen=True)
class Picture:
    """A drawn figure: the inside of an `<svg>` element of this size, and its layout."""

    figure: Figure
    body: str
    width: float
    height: float
    layout: Layout


def page_style() -> str:
    """The style of a page with figures."""
    return asset("palette.css") + asset("figure.css") + asset("page.css")


def paint(figure: Figure, largest: float | None = None) -> Picture:
    """Draw a figure; `largest` is the gate value that gets the widest stroke (default: the figure's largest)."""
    arrivals = {card.id: 0 for card in figure.cards}
    for wire in figure.wires:
        arrivals[wire.dst] += 1
    sizes = {card.id: _size(card, arrivals[card.id]) for card in figure.cards}
    labels = max((len(wire.label) for wire in figure.wires), default=0)
    gap = max(labels * 6.4 + 16 + PILE, 44.0) if labels else 70.0 + min(50.0, len(figure.wires) / 3)
    layout = lay_out(sizes, [(wire.src, wire.dst) for wire in figure.wires], gap)
    headings = _headings(figure, layout)
    top = MARGIN + 46 + (22 if headings else 0)
    legend = _legend(figure.wires)
    largest = largest or figure.largest
    faint_first = sorted(figure.wires, key=lambda wire: (not wire.closed, abs(wire.value or 0.0)))
    body = [
        f'<text class="gs-title" x="{MARGIN}" y="{MARGIN + 12}">{escape(figure.title)}</text>',
        f'<text class="gs-subtitle" x="{MARGIN}" y="{MARGIN + 31}">{escape(figure.subtitle)}</text>',
        f'<g transform="translate({MARGIN},{top})">',
        *headings,
        *(_wire(wire, layout.routes[wire.src, wire.dst], largest) for wire in faint_first),
        *(_card(card, layout.boxes[card.id], largest) for card in figure.cards),
        *_labels(figure, layout),
        "</g>",
        f'<g class="gs-legend" transform="translate({MARGIN},{top + layout.height + 30})">{legend}</g>'
        if legend
        else "",
    ]
    text = max(len(figure.title) * TEXT_WIDTH * 1.35, len(figure.subtitle) * TEXT_WIDTH, 480.0 if legend else 0.0)
    width = max(layout.width, text) + 2 * MARGIN
    height = top + layout.height + MARGIN + (26 if legend else 0)
    return Picture(figure, "\n".join(filter(None, body)), width, height, layout)


def document(pictures: Sequence[Picture]) -> str:
    """A standalone SVG file with the pictures below each other."""
    width = max(picture.width for picture in pictures)
    tops = list(accumulate((picture.height for picture in pictures), initial=0.0))
    inside = ['<g class="gs"><rect class="gs-back" width="100%" height="100%"/>']
    for picture, top in zip(pictures, tops, strict=False):
        name = escape(picture.figure.name)
        inside.append(f'<g class="gs-figure" id="{name}" transform="translate(0,{top:.1f})">\n{picture.body}\n</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{tops[-1]:.0f}" '
        f'viewBox="0 0 {width:.0f} {tops[-1]:.0f}">\n<style>\n{dark_style()}</style>\n'
        f"{dressed(''.join((*inside, '</g>')))}\n</svg>\n"
    )


def _size(card: Card, arrivals: int) -> tuple[float, float]:
    if card.options:
        names = max(len(option.name) for option in card.options) * MORE_WIDTH + BAR + 34
        return round(max(len(card.lines[0]) * NAME_WIDTH + 22, names)), len(card.options) * LINE_HEIGHT + 28
    more = max((len(line) for line in card.lines[1:]), default=0)
    width = max(len(card.lines[0]) * NAME_WIDTH, more * MORE_WIDTH) + 22
    return round(max(width, 46.0)), max(len(card.lines) * LINE_HEIGHT + 10, arrivals * PORT + 14.0)


def _headings(figure: Figure, layout: Layout) -> list[str]:
    """The name all cards of a column share, above it."""
    group = {card.id: card.group for card in figure.cards}
    found = []
    for column in layout.columns:
        names = {group[card] for card in column}
        if len(names) == 1 and (name := names.pop()):
            boxes = [layout.boxes[card] for card in column]
            x = (min(box.x for box in boxes) + max(box.right for box in boxes)) / 2
            found.append(f'<text class="gs-heading" x="{x:.1f}" y="-16">{escape(name)}</text>')
    return found


def _wire(wire: Wire, route: Sequence[Point], largest: float) -> str:
    width = f"{stroke(wire, largest):.2f}"
    ends = f'data-src="{escape(wire.src)}" data-dst="{escape(wire.dst)}"'
    return (
        f'<g class="{_looks(wire)}" {ends} stroke-width="{width}" style="--w:{width}px">'
        f"<title>{escape(wire.tip)}</title>{_line(wire, route)}</g>"
    )


def _looks(wire: Wire) -> str:
    looks = ["gs-edge", "gs-gated" if wire.gated else "gs-plain"]
    looks += ["gs-closed"] if wire.closed else []
    looks += ["gs-valued"] if wire.value is not None else []
    return " ".join(looks)


def stroke(wire: Wire, largest: float) -> float:
    """Width of a wire in pixels: in proportion to its gate."""
    if wire.closed:
        return NARROWEST
    if wire.value is None:
        return 1.3
    return NARROWEST + (WIDEST - NARROWEST) * min(1.0, abs(wire.value) / largest)


def _line(wire: Wire, route: Sequence[Point]) -> str:
    x, y = route[-1]
    end = (
        f'<circle class="gs-dot" cx="{x - 2:.1f}" cy="{y:.1f}" r="2.6"/>'
        if wire.gated
        else f'<path class="gs-head" d="M{x:.1f},{y:.1f}l-7,-3.2v6.4z"/>'
    )
    return f'<path d="{svg_path(route)}"/>{end}'


def _card(card: Card, box: Box, largest: float) -> str:
    looks = ["gs-node", "gs-plain-op" if card.family == "plain" else f"gs-{card.family}"]
    looks += ["gs-faint"] if card.faint else []
    size = f'width="{box.width:.1f}" height="{box.height:.1f}" rx="6"'
    behind = [f'<rect x="{box.x + d:.1f}" y="{box.y - d:.1f}" {size}/>' for d in (PILE, PILE / 2)] if card.pile else []
    stripe = f'x="{box.x:.1f}" y="{box.y + 6:.1f}" width="3" height="{box.height - 12:.1f}" rx="1.5"'
    first = box.y + 17 if card.options else box.middle - (len(card.lines) - 1) * LINE_HEIGHT / 2 + 4
    lines = [
        f'<text class="{"gs-more" if i else "gs-name"}" x="{box.x + 12:.1f}" y="{first + i * LINE_HEIGHT:.1f}">'
        f"{escape(line)}</text>"
        for i, line in enumerate(card.lines)
    ]
    return "".join(
        [
            f'<g class="{" ".join(looks)}" data-id="{escape(card.id)}"><title>{escape(card.tip)}</title>',
            *behind,
            f'<rect class="gs-box" x="{box.x:.1f}" y="{box.y:.1f}" {size}/><rect class="gs-stripe" {stripe}/>',
            *lines,
            *(_option(option, box, index, largest) for index, option in enumerate(card.options)),
            "</g>",
        ]
    )


def _option(option: Option, box: Box, index: int, largest: float) -> str:
    """A row of a choice: the op's name, and its gate as a bar (a dot where no value is known, hollow where closed)."""
    wire, y = option.wire, box.y + 32 + index * LINE_HEIGHT
    looks = "gs-option" + (" gs-off" if wire.closed else "")
    mark = f'<circle cx="{box.right - BAR - 12:.1f}" cy="{y - 3.5:.1f}" r="2.6"/>' if wire.gated else ""
    if wire.value:
        length = max(1.0, BAR * min(1.0, abs(wire.value) / largest))
        mark += f'<rect x="{box.right - BAR - 8:.1f}" y="{y - 6:.1f}" width="{length:.1f}" height="5"/>'
    return (
        f'<g class="{looks}" data-id="{escape(option.id)}"><title>{escape(option.tip)}</title>'
        f'<text class="gs-more" x="{box.x + 12:.1f}" y="{y:.1f}">{escape(option.name)}</text>{mark}</g>'
    )


def _labels(figure: Figure, layout: Layout) -> list[str]:
    """The type a card hands on, once for all its wires, above the place they leave from."""
    shown = {wire.src: wire for wire in figure.wires if wire.label}
    piles = {card.id for card in figure.cards if card.pile}
    found = []
    for src, wire in shown.items():
        box = layout.boxes[src]
        x = box.right + 6 + PILE * (src in piles) + len(wire.label) * 3.2
        found.append(f'<text class="gs-label" x="{x:.1f}" y="{box.middle - 7:.1f}">{escape(wire.label)}</text>')
    return found


def _legend(wires: Sequence[Wire]) -> str:
    """A sample of every look that occurs, unless all edges are plain."""
    if not any(wire.gated or wire.closed for wire in wires):
        return ""
    parts, x = [], 0.0
    for wire, text in _samples(wires):
        line = f'<g class="{_looks(wire)}" stroke-width="1.3">{_line(wire, ((x, -4.0), (x + 34, -4.0)))}</g>'
        parts.append(f'{line}<text x="{x + 42:.1f}" y="0">{text}</text>')
        x += 66 + len(text) * 6.2
    return "".join(parts)


def _samples(wires: Sequence[Wire]) -> list[tuple[Wire, str]]:
    open_wires, closed = ([wire for wire in wires if wire.closed is is_closed] for is_closed in (False, True))
    found = []
    if not all(wire.gated for wire in open_wires):
        found.append((Wire("", "", ""), "plain edge"))
    if any(wire.gated for wire in open_wires):
        valued = any(wire.value is not None for wire in wires)
        text = "gated edge, width by gate value" if valued else "gated edge"
        found.append((Wire("", "", "", gated=True, value=1.0 if valued else None), text))
    if closed:
        text = "pruned" if any(wire.pruned for wire in closed) else "closed (gate 0)"
        found.append((Wire("", "", "", gated=True, pruned=True), text))
    return found
