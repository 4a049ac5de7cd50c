"""Choices drawn as one card: sibling ops that all read one value and all feed one node.

A DARTS cell has seven ops on every edge; as nodes of their own they would fill a screen each. A row of the card stands
for the op and the edge behind it, with the gate's value as a bar.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from compiler.drawing.scene import Card, Figure, Option, Wire

Group = tuple[str, str, str]  # (name of the siblings' group, what they read, what they feed)


def with_choices(figure: Figure) -> Figure:
    """The figure with every choice as one card; figures without choices come back as they are."""
    into = {wire.dst: wire for wire in figure.wires}
    out = {wire.src: wire for wire in figure.wires}
    groups = _groups(figure, into, out)
    if not groups:
        return figure
    choice_of = {card.id: key for key, cards in groups.items() for card in cards}
    cards = [_choice(choice_of[c.id], groups, out) if c.id in choice_of else c for c in figure.cards]
    wires = [wire for wire in figure.wires if wire.src not in choice_of and wire.dst not in choice_of]
    for key, members in groups.items():
        name = _id(key)
        wires.append(_bundle(key[1], name, [into[c.id] for c in members]))
        wires.append(_bundle(name, key[2], [out[c.id] for c in members]))
    return replace(figure, cards=tuple(dict.fromkeys(cards)), wires=tuple(wires))


def _groups(figure: Figure, into: dict[str, Wire], out: dict[str, Wire]) -> dict[Group, list[Card]]:
    """Named siblings with one input and one user, by what these are."""
    reads, users = Counter(wire.dst for wire in figure.wires), Counter(wire.src for wire in figure.wires)
    found: dict[Group, list[Card]] = {}
    for card in figure.cards:
        if card.group and reads[card.id] == users[card.id] == 1:
            found.setdefault((card.group, into[card.id].src, out[card.id].dst), []).append(card)
    return {key: cards for key, cards in found.items() if len(cards) > 1}


def _id(key: Group) -> str:
    return f"{key[0]} ({key[1]} → {key[2]})"


def _choice(key: Group, groups: dict[Group, list[Card]], out: dict[str, Wire]) -> Card:
    options = []
    for card in groups[key]:
        wire = out[card.id]
        gate = "\n".join(wire.tip.splitlines()[2:]) or "no gate"  # as the wire's tip tells it
        options.append(Option(card.id, card.lines[0], f"{card.tip}\n{gate}", wire))
    closed = all(option.wire.closed for option in options)
    return Card(_id(key), (key[0],), f"{key[0]}: one of {len(options)} ops", faint=closed, options=tuple(options))


def _bundle(src: str, dst: str, wires: Sequence[Wire]) -> Wire:
    """One wire for several: as strong as the strongest."""
    open_wires = [wire for wire in wires if not wire.closed]
    values = [wire.value for wire in wires if wire.value is not None]
    told = wires[:1] if len({wire.tip for wire in wires}) == 1 else open_wires or wires[:1]
    return Wire(
        src, dst, "\n\n".join(wire.tip for wire in told),
        gated=any(wire.gated for wire in wires),
        value=max(values, key=abs, default=None),
        pruned=not open_wires and any(wire.pruned for wire in wires),
    )  # fmt: skip
