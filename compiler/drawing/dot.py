"""Figures in the DOT language, for those who want graphviz to lay them out."""

from __future__ import annotations

import json
from collections.abc import Sequence

from compiler.drawing.scene import Card, Figure, Wire


def dot(name: str, figures: Sequence[Figure]) -> str:
    """One digraph with a cluster a figure; gated edges are dashed, closed ones grey, widths follow the gates."""
    lines = [f"digraph {_quoted(name)} {{", "  rankdir=LR;", '  node [shape=box, style=rounded, fontname="monospace"];']
    for index, figure in enumerate(figures):
        lines += [f"  subgraph cluster_{index} {{", f"    label={_quoted(figure.title)};"]
        lines += [f"    {_card(card, index)}" for card in figure.cards]
        lines += [f"    {_wire(wire, index)}" for wire in figure.wires]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _id(name: str, figure: int) -> str:
    return _quoted(f"{figure}:{name}")


def _card(card: Card, figure: int) -> str:
    look = ', style="rounded,dashed", fontcolor=gray60, color=gray60' if card.faint else ""
    return f"{_id(card.id, figure)} [label={_quoted(chr(10).join(card.lines))}{look}];"


def _wire(wire: Wire, figure: int) -> str:
    looks = {"style": "dashed"} if wire.gated else {}
    if wire.closed:
        looks["color"] = "gray80"
    elif wire.value is not None:
        looks |= {"penwidth": f"{0.5 + 3 * abs(wire.value):.2f}", "tooltip": _quoted(f"{wire.value:.4g}")}
    if wire.label:
        looks["label"] = _quoted(wire.label)
    attrs = f" [{', '.join(f'{key}={value}' for key, value in looks.items())}]" if looks else ""
    return f"{_id(wire.src, figure)} -> {_id(wire.dst, figure)}{attrs};"
