"""Gates over time: an SVG matrix for every share scope, and the values by epoch, from which the script repaints it."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from compiler.ir.graph import Graph, gate_scope
from runtime.reporting.record import GateHistory

SMALL, LARGE = 9.0, 17.0  # side of a cell, in pixels
LABELLED = 4  # up to so many scopes get large cells with names
GROUP_GAP = 4.0  # between levels
LETTER = 6.1  # width of a letter of the names
FULL = 32767  # the largest value in 16 bits, of which one is the sign


@dataclass(frozen=True)
class Matrix:
    """The gates of one scope: rows read, columns are read."""

    scope: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[str, str, str], ...]  # (row, column, gate)


@dataclass(frozen=True)
class HeatMap:
    """What the page shows of the gates."""

    payload: str  # JSON for the script
    matrices: tuple[str, ...]  # `<svg>` elements
    epochs: tuple[int, ...]
    largest: float


def heat_map(graph: Graph, history: GateHistory) -> HeatMap:
    """The heat map of a run's gates on edges; `graph` is the whole search space."""
    edges = set(graph.edge_gates())
    gates = [gate for scope in graph.gate_scopes().values() for gate in scope if gate in edges]
    largest = max((abs(values[gate]) for values in history.values() for gate in gates), default=0.0) or 1.0
    matrices, index = gate_matrices(graph), {gate: i for i, gate in enumerate(gates)}
    epochs, side = tuple(history), LARGE if len(matrices) <= LABELLED else SMALL
    return HeatMap(
        payload=_payload(gates, history, largest),
        matrices=tuple(_matrix(m, index, history[epochs[-1]], largest, side) for m in matrices),
        epochs=epochs,
        largest=largest,
    )


def gate_matrices(graph: Graph) -> list[Matrix]:
    """One matrix a share scope, names in the order of the graph."""
    order = {node.id: i for i, node in enumerate(graph.nodes())}
    cells: dict[str, dict[tuple[str, str, str], None]] = {}  # keys in the order of the graph
    rank: dict[tuple[str, str], int] = {}
    for edge in graph.edges():
        if edge.gate is None:
            continue
        scope = gate_scope(edge.gate)
        row, _, column = edge.gate.removeprefix(scope + "/").partition("<")
        cells.setdefault(scope, {})[row, column, edge.gate] = None
        for name, end in ((row, edge.dst), (column, edge.src)):
            rank[scope, name] = min(rank.get((scope, name), order[end]), order[end])
    found = []
    for scope, listed in cells.items():
        rows, columns = (sorted({c[i] for c in listed}, key=lambda name: rank[scope, name]) for i in (0, 1))
        found.append(Matrix(scope, tuple(rows), tuple(columns), tuple(listed)))
    return found


def shade(value: float, largest: float) -> float:
    """Opacity of a value: 0 for exactly zero, else from 0.15 up to 1, so that zero and small differ."""
    return 0.0 if value == 0 else 0.15 + 0.85 * min(1.0, abs(value) / largest)


def _payload(gates: Sequence[str], history: GateHistory, largest: float) -> str:
    """Values as 16-bit shares of the largest, epoch by epoch; no value but zero becomes 0."""
    rows = [[values[gate] for gate in gates] for values in history.values()]
    sizes = [math.copysign(max(1, FULL * min(1.0, abs(v) / largest)), v) if v else 0 for row in rows for v in row]
    packed = base64.b64encode(struct.pack(f"<{len(sizes)}h", *map(round, sizes))).decode("ascii")
    payload = {"gates": list(gates), "epochs": list(history), "largest": largest, "values": packed}
    return json.dumps(payload).replace("<", "\\u003c")


def _offsets(names: Sequence[str], side: float) -> dict[str, float]:
    """Where each row or column begins, a gap between levels."""
    found: dict[str, float] = {}
    at, before = 0.0, None
    for name in names:
        group = name.rpartition(".")[0]
        at += GROUP_GAP if before is not None and group != before else 0.0
        found[name], before = at, group
        at += side
    return found


def _matrix(matrix: Matrix, index: dict[str, int], values: Mapping[str, float], largest: float, side: float) -> str:
    labelled = side == LARGE
    left = LETTER * max(map(len, matrix.rows)) + 10 if labelled else 1.0
    head = 20 + (LETTER * 0.72 * max(map(len, matrix.columns)) + 14 if labelled else 2)
    xs, ys = _offsets(matrix.columns, side), _offsets(matrix.rows, side)
    parts = [f'<text class="hm-scope" x="0" y="12">{escape(matrix.scope)}</text>']
    if labelled:
        parts += _names(xs, ys, left, head, side)
    for row, column, gate in matrix.cells:
        value = values[gate]
        place = f'x="{left + xs[column]:.1f}" y="{head + ys[row]:.1f}" width="{side - 1:g}" height="{side - 1:g}"'
        tip = f'data-tip="{escape(gate)} = {value:.4g}"'
        look = f'style="fill-opacity:{shade(value, largest):.3f}"'
        parts.append(f'<rect class="hm-cell" {place} data-gate="{index[gate]}" {tip} {look}/>')
    slant = LETTER * 0.72 * len(matrix.columns[-1]) if labelled else 0.0
    width = max(left + max(xs.values()) + side + slant, LETTER * len(matrix.scope) + 8)
    height = head + max(ys.values()) + side + 1
    label = f"gates of {escape(matrix.scope)}: {len(matrix.cells)}"
    return (
        f'<svg class="hm" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'tabindex="0" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _names(xs: dict[str, float], ys: dict[str, float], left: float, head: float, side: float) -> list[str]:
    found = []
    for name, y in ys.items():
        at = f'x="{left - 6:.1f}" y="{head + y + side * 0.7:.1f}"'
        found.append(f'<text class="hm-name" text-anchor="end" {at}>{escape(name)}</text>')
    for name, x in xs.items():
        at = f"translate({left + x + side * 0.6:.1f},{head - 5:.1f}) rotate(-45)"
        found.append(f'<text class="hm-name" transform="{at}">{escape(name)}</text>')
    return found
