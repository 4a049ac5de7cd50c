"""Layered layout of a small DAG, left to right: pure geometry, lengths in pixels, y grows downwards.

A node's column is the length of the longest path to it. Edges that pass columns run in *lanes* between the nodes of
those columns; all long edges of one source share its lane, so that a block with hundreds of edges shows one line per
value and fans out only before the nodes that read it. Everything is derived from the order of the arguments: the same
graph gives the same picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

Point = tuple[float, float]
Pair = tuple[str, str]
Size = tuple[float, float]

LANE = 7.0  # between neighbouring lanes
CLEARANCE = 11.0  # between a node and the nearest lane or node
PORT = 5.0  # between neighbouring arrivals at a node
CROWDING = 0.3  # rows of detour that one more lane in a gap is worth
SWEEPS = 4  # of the crossing reduction; more change nothing on the graphs we draw


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle by its top left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """x of the right side."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """y of the lower side."""
        return self.y + self.height

    @property
    def middle(self) -> float:
        """y half-way down."""
        return self.y + self.height / 2


@dataclass(frozen=True)
class Layout:
    """Where everything stands. A route is the points of an edge: curves between columns, straight inside them.

    A route has an even number of points: departure, then (arrival, departure) for every column it passes, arrival.
    """

    boxes: dict[str, Box]
    routes: dict[Pair, tuple[Point, ...]]
    columns: tuple[tuple[str, ...], ...]
    width: float
    height: float


def lay_out(sizes: Mapping[str, Size], edges: Sequence[Pair], gap: float = 90.0) -> Layout:
    """The layout of nodes with these sizes (in an order of dependency); `gap` is the space between columns."""
    columns = _ordered(ranked(list(sizes), edges), edges)
    lanes = _lanes(columns, edges)
    pitch = _pitch(columns, lanes, sizes)
    boxes = _boxes(columns, sizes, pitch, gap)
    tracks = _tracks(columns, lanes, boxes)
    return _framed(columns, boxes, _routes(columns, boxes, tracks, edges))


def ranked(names: Sequence[str], edges: Sequence[Pair]) -> list[list[str]]:
    """Nodes by the length of the longest path that leads to them."""
    sources: dict[str, list[str]] = {name: [] for name in names}
    for src, dst in edges:
        sources[dst].append(src)
    rank: dict[str, int] = {}
    columns: list[list[str]] = []
    for name in names:
        rank[name] = 1 + max((rank[src] for src in sources[name]), default=-1)
        columns += [[]] if rank[name] == len(columns) else []
        columns[rank[name]].append(name)
    return columns


def _rows(columns: Sequence[Sequence[str]]) -> dict[str, float]:
    """Each node's place in its column in units of rows, 0 in the middle."""
    return {name: i - (len(column) - 1) / 2 for column in columns for i, name in enumerate(column)}


def _ordered(columns: list[list[str]], edges: Sequence[Pair]) -> list[list[str]]:
    """Fewer crossings: every node near the mean row of its neighbours (ties stay as they are)."""
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for src, dst in edges:
        before.setdefault(dst, []).append(src)
        after.setdefault(src, []).append(dst)
    for sweep in range(SWEEPS):
        neighbours, order = (before, 1) if sweep % 2 == 0 else (after, -1)
        for index in range(len(columns))[::order]:
            at = _rows(columns)
            mean = {n: round(fmean([at[o] for o in neighbours.get(n, [n])]), 6) for n in columns[index]}
            columns[index] = sorted(columns[index], key=mean.__getitem__)
    return columns


def _lanes(columns: list[list[str]], edges: Sequence[Pair]) -> list[list[list[str]]]:
    """For every column and every gap in it (above the first node, ..., below the last) the sources that pass there."""
    rank = {name: i for i, column in enumerate(columns) for name in column}
    row = _rows(columns)
    targets: dict[str, list[str]] = {}
    for src, dst in edges:
        targets.setdefault(src, []).append(dst)
    at = dict(row)  # where each passing value came from last, in rows
    lanes: list[list[list[str]]] = []
    for index, column in enumerate(columns):
        gaps: list[list[str]] = [[] for _ in range(len(column) + 1)]
        wish: dict[str, float] = {}
        for src in targets:
            ahead = [row[dst] for dst in targets[src] if rank[dst] > index]
            if rank[src] < index and ahead:
                wish[src] = (at[src] + fmean(ahead)) / 2
        for src in sorted(wish, key=wish.__getitem__):
            distance = [abs(g - len(column) / 2 - wish[src]) + CROWDING * len(taken) for g, taken in enumerate(gaps)]
            gap = distance.index(min(distance))
            gaps[gap].append(src)
            at[src] = gap - len(column) / 2
        lanes.append(gaps)
    return lanes


def _pitch(columns: list[list[str]], lanes: list[list[list[str]]], sizes: Mapping[str, Size]) -> float:
    """Height of a row: the tallest node of a shared column and the lanes beside it."""
    needed = [0.0]
    for column, gaps in zip(columns, lanes, strict=True):
        for between in gaps[1:-1]:
            tallest = max(sizes[name][1] for name in column)
            needed.append(tallest + (2 * CLEARANCE + max(0, len(between) - 1) * LANE))
    return max(needed)


def _boxes(columns: list[list[str]], sizes: Mapping[str, Size], pitch: float, gap: float) -> dict[str, Box]:
    boxes: dict[str, Box] = {}
    row = _rows(columns)
    x = 0.0
    for column in columns:
        width = max(sizes[name][0] for name in column)
        for name in column:
            own, height = sizes[name]
            boxes[name] = Box(x + (width - own) / 2, row[name] * pitch - height / 2, own, height)
        x += width + gap
    return boxes


def _tracks(columns: list[list[str]], lanes: list[list[list[str]]], boxes: dict[str, Box]) -> list[dict[str, float]]:
    """For every column the y at which each passing source crosses it."""
    at = {name: box.middle for name, box in boxes.items()}
    tracks: list[dict[str, float]] = []
    for column, gaps in zip(columns, lanes, strict=True):
        track: dict[str, float] = {}
        for index, sources in enumerate(gaps):
            first = _first_lane([boxes[name] for name in column], index, len(sources))
            for k, src in enumerate(sorted(sources, key=at.__getitem__)):
                track[src] = first + k * LANE
        at.update(track)
        tracks.append(track)
    return tracks


def _first_lane(column: list[Box], index: int, count: int) -> float:
    """y of the topmost lane of a gap: centred between two nodes, close to the node at either end of the column."""
    span = (count - 1) * LANE
    if index == 0:
        return column[0].y - CLEARANCE - span
    if index == len(column):
        return column[-1].bottom + CLEARANCE
    return (column[index - 1].bottom + column[index].y) / 2 - span / 2


def _routes(
    columns: list[list[str]], boxes: dict[str, Box], tracks: list[dict[str, float]], edges: Sequence[Pair]
) -> dict[Pair, tuple[Point, ...]]:
    rank = {name: i for i, column in enumerate(columns) for name in column}
    sides = [(min(boxes[n].x for n in column), max(boxes[n].right for n in column)) for column in columns]
    ways: dict[Pair, list[Point]] = {}
    arrivals: dict[str, list[Pair]] = {}
    for src, dst in edges:
        way = [(boxes[src].right, boxes[src].middle)]
        for index in range(rank[src] + 1, rank[dst]):
            y = tracks[index][src]
            way += [(sides[index][0], y), (sides[index][1], y)]
        ways[src, dst] = way
        arrivals.setdefault(dst, []).append((src, dst))
    for dst, pairs in arrivals.items():
        pairs.sort(key=lambda pair: ways[pair][-1][1])
        step = min(PORT, (boxes[dst].height - 8.0) / len(pairs))
        top = boxes[dst].middle - (len(pairs) - 1) * step / 2
        for k, pair in enumerate(pairs):
            ways[pair].append((boxes[dst].x, top + k * step))
    return {pair: tuple(ways[pair]) for pair in edges}


def _framed(columns: list[list[str]], boxes: dict[str, Box], routes: dict[Pair, tuple[Point, ...]]) -> Layout:
    """Everything moved so that the drawing starts at (0, 0)."""
    ys = [y for box in boxes.values() for y in (box.y, box.bottom)]
    ys += [y for route in routes.values() for _, y in route]
    top = min(ys, default=0.0)
    moved = {name: Box(box.x, box.y - top, box.width, box.height) for name, box in boxes.items()}
    width = max((box.right for box in moved.values()), default=0.0)
    shifted = {pair: tuple((x, y - top) for x, y in route) for pair, route in routes.items()}
    return Layout(moved, shifted, tuple(map(tuple, columns)), width, max(ys, default=0.0) - top)


def svg_path(route: Sequence[Point]) -> str:
    """A route as SVG path data: a curve from column to column, a straight line past each column."""
    parts = [f"M{_xy(route[0])}"]
    for index, ((x0, y0), (x1, y1)) in enumerate(pairwise(route)):
        if index % 2:
            parts.append(f"L{_xy((x1, y1))}")
        else:
            bend = (x1 - x0) / 2
            parts.append(f"C{_xy((x0 + bend, y0))} {_xy((x1 - bend, y1))} {_xy((x1, y1))}")
    return "".join(parts)


def _xy(point: Point) -> str:
    return f"{point[0]:.1f},{point[1]:.1f}"
