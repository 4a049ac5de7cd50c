"""Cuts a network into blocks: the modules that people wrote, and runs of what lies between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compiler.importing.calls import Network
from compiler.ir.graph import INPUT

Path = tuple[str, ...]


@dataclass
class Piece:
    """Calls that become one block, in order, and the module that made them (none: they lie between modules).

    `is_way`: they are all ways between two points that one value passes, which no name tells of.
    """

    keys: list[str]
    path: Path = ()
    is_way: bool = False

    @property
    def is_loose(self) -> bool:
        """Whether no module stands for it."""
        return not self.path


def cut(network: Network) -> list[Piece]:
    """All calls in pieces with one value each that others read, every piece after those it reads."""
    modules = [Piece(keys, path) for path, keys in _modules(network, (), list(network.calls))]
    inside = {key for piece in modules for key in piece.keys}
    loose = [Piece([key]) for key in network.calls if key not in inside]
    ordered = _ordered(network, [*modules, *loose]) or [Piece([key]) for key in network.calls]
    return _joined(network, ordered)


def _modules(network: Network, above: Path, keys: list[str]) -> Iterable[tuple[Path, list[str]]]:
    """The modules below `above` that are blocks: the outermost ones that are no mere chains of blocks."""
    for path, own in _children(network, above, keys).items():
        if path[-1].endswith("()"):
            continue
        if len(own) > 1 and not _holds_blocks(network, path, own) and _is_block(network, own):
            yield path, own
        elif len(own) > 1:
            yield from _modules(network, path, own)


def _holds_blocks(network: Network, path: Path, keys: list[str]) -> bool:
    """Whether a module only runs others one after the other, some of them being blocks."""
    parts = _children(network, path, keys)
    compound = [own for own in parts.values() if len(own) > 1]
    if compound and all(part[-1].isdigit() for part in parts):
        return True
    calls_itself = any(part[-1].endswith("()") for part in parts)
    return len(compound) > 1 and not calls_itself and all(len(entrances(network, own)) == 1 for own in parts.values())


def _children(network: Network, above: Path, keys: list[str]) -> dict[Path, list[str]]:
    """The calls below a module by its parts; the module's own calls are left out."""
    depth = len(above) + 1
    found: dict[Path, list[str]] = {}
    for key in keys:
        path = network.calls[key].path
        if len(path) >= depth:
            found.setdefault(path[:depth], []).append(key)
    return found


def exits(network: Network, keys: list[str]) -> list[str]:
    """The calls among these whose value is read by others, or is the network's."""
    own, readers = set(keys), network.readers
    return [key for key in keys if key == network.output or not own.issuperset(readers[key])]


def entrances(network: Network, keys: list[str]) -> list[str]:
    """The values of other calls that these read, in the order of reading."""
    own = set(keys)
    return list(dict.fromkeys(s for key in keys for s in network.calls[key].inputs if s not in own))


def _is_block(network: Network, keys: list[str]) -> bool:
    """Whether others read one value of these calls, on which nothing that they read depends."""
    out = exits(network, keys)
    if len(out) != 1:
        return False
    above, waiting = set[str](), entrances(network, keys)
    while waiting:
        key = waiting.pop()
        if key not in above and key != INPUT:
            above.add(key)
            waiting += network.calls[key].inputs
    return above.isdisjoint(keys)


def _ordered(network: Network, pieces: list[Piece]) -> list[Piece]:
    """The pieces, each after those it reads; none if they read each other in a circle."""
    home = {key: number for number, piece in enumerate(pieces) for key in piece.keys}
    reads = [{home[s] for s in entrances(network, piece.keys) if s != INPUT} for piece in pieces]
    order = {key: i for i, key in enumerate(network.calls)}
    waiting = sorted(range(len(pieces)), key=lambda number: order[pieces[number].keys[-1]])
    done: list[int] = []
    while waiting:
        ready = next((number for number in waiting if reads[number].issubset(done)), None)
        if ready is None:
            return []
        done.append(ready)
        waiting.remove(ready)
    return [pieces[number] for number in done]


def _joined(network: Network, pieces: list[Piece]) -> list[Piece]:
    """Loose calls joined: those on the one way there is, and those between two points that all ways pass."""
    found: list[Piece] = []
    runs = False  # whether the last piece is a run of calls that the next may join
    for segment in _segments(network, pieces):
        keys = [key for piece in segment for key in piece.keys]
        is_loose = all(piece.is_loose for piece in segment)
        if is_loose and len(segment) == 1 and runs:
            found[-1].keys += keys
        else:
            found += [Piece(keys, is_way=len(segment) > 1)] if is_loose else segment
            runs = is_loose and len(segment) == 1
    return found


def _segments(network: Network, pieces: list[Piece]) -> Iterable[list[Piece]]:
    """The pieces between points where one value alone goes on."""
    last_read: dict[str, int] = {INPUT: -1, network.output: len(pieces)}
    for number, piece in enumerate(pieces):
        last_read |= dict.fromkeys(entrances(network, piece.keys), number)
    segment: list[Piece] = []
    live: set[str] = {INPUT}
    for number, piece in enumerate(pieces):
        segment.append(piece)
        live = {key for key in (*live, *piece.keys) if last_read.get(key, -1) > number}
        if live.issubset(piece.keys) and len(live) <= 1:
            yield segment
            segment = []
