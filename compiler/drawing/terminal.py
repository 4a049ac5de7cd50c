"""Figures as text for a terminal: one line a node by level, and what it reads, by name or as a matrix."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.drawing.layout import ranked
from compiler.drawing.scene import Card, Figure, Wire

NAMED = 3  # nodes that read at most this many values name them
WIDEST_MATRIX = 72  # sources; wider drawings number what is read
KEY = {
    "-": "plain",
    "*": "gated",
    "1..9": "gated, in ninths of the largest gate",
    "o": "closed (gate 0)",
    "x": "pruned",
}


def listing(figure: Figure) -> str:
    """The figure as lines of text; reads are named where nodes read few values, else shown as a matrix."""
    levels = ranked([card.id for card in figure.cards], [(w.src, w.dst) for w in figure.wires])
    cards = {card.id: card for card in figure.cards}
    order = [cards[name] for level in levels for name in level]
    reads: dict[str, list[Wire]] = {card.id: [] for card in order}
    for wire in figure.wires:
        reads[wire.dst].append(wire)
    if max(map(len, reads.values())) <= NAMED:
        heads, cells, key = ["reads"], {i: _named(ws, cards) for i, ws in reads.items()}, ""
    else:
        heads, cells = _matrix(levels, reads, figure.largest)
        key = _key(figure.wires, figure.largest)
    rows = _table(levels, order, heads, cells)
    return "\n".join([figure.title, figure.subtitle, "", *rows, *([key] if key else []), ""])


def _name(card: Card) -> str:
    return f"{card.group}.{card.lines[0]}" if card.group else card.lines[0]


def _named(wires: Sequence[Wire], cards: dict[str, Card]) -> str:
    def mark(wire: Wire) -> str:
        if wire.pruned:
            return " (pruned)"
        if wire.value is not None:
            return f" ({wire.value:.3g})"
        return " (gated)" if wire.gated else f" ({wire.label})" if wire.label else ""

    return ", ".join(_name(cards[wire.src]) + mark(wire) for wire in wires)


def _sign(wire: Wire | None, largest: float) -> str:
    if wire is None:
        return " "
    if wire.pruned:
        return "x"
    if wire.closed:
        return "o"
    if wire.value is not None:
        return str(min(9, max(1, round(9 * abs(wire.value) / largest))))
    return "*" if wire.gated else "-"


def _matrix(levels: list[list[str]], reads: dict[str, list[Wire]], largest: float) -> tuple[list[str], dict[str, str]]:
    """Header lines and one line a node: a column for every node that is read, a space between levels."""
    number = {name: i for i, name in enumerate(name for level in levels for name in level)}
    read = {wire.src for wires in reads.values() for wire in wires}
    shown = [kept for level in levels if (kept := [name for name in level if name in read])]
    if sum(map(len, shown)) > WIDEST_MATRIX:
        return ["reads"], {
            dst: " ".join(f"{number[w.src]}{_sign(w, largest)}" for w in wires) for dst, wires in reads.items()
        }
    heads = [" ".join("".join(f"{number[n]:2}"[digit] for n in level) for level in shown) for digit in (0, 1)]
    cells = {}
    for dst, wires in reads.items():
        by_source = {wire.src: wire for wire in wires}
        cells[dst] = " ".join("".join(_sign(by_source.get(n), largest) for n in level) for level in shown)
    return [head for head in heads if head.strip()], cells


def _table(levels: list[list[str]], order: list[Card], heads: list[str], cells: dict[str, str]) -> list[str]:
    names = [_name(card) + (" (pruned)" if card.faint else "") for card in order]
    more = ["  ".join(card.lines[1:]) for card in order]
    wide, wider = max(map(len, [*names, "node"])), max(map(len, more))
    rank = {name: i for i, level in enumerate(levels) for name in level}
    rows = [("", "", "", "", head) for head in heads[:-1]] + [("#", "level", "node", "", heads[-1])]
    rows += [(str(i), str(rank[c.id]), names[i], more[i], cells[c.id]) for i, c in enumerate(order)]
    return [f"{i:>3}  {level:5}  {name:{wide}}  {rest:{wider}}  {cell}".rstrip() for i, level, name, rest, cell in rows]


def _key(wires: Sequence[Wire], largest: float) -> str:
    signs = {_sign(wire, largest) for wire in wires}
    signs = {"1..9" if sign.isdigit() else sign for sign in signs}
    return "reads: " + ", ".join(f"{sign} {meaning}" for sign, meaning in KEY.items() if sign in signs)
