"""Line charts as inline SVG: axes, grid, one line a series, told apart by colour and by dashes.

The points travel along as JSON in an attribute, from which the page's script shows values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Points = tuple[tuple[float, float], ...]
Scale = Callable[[float], float]

WIDTH, HEIGHT = 560.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 48.0, 34.0
LETTER = 6.3  # width of a letter of the ticks, in pixels, generously


@dataclass(frozen=True)
class Series:
    """A line: its name and its points, x growing."""

    name: str
    points: Points


@dataclass(frozen=True)
class Chart:
    """A chart; `marks` are (x, label) of the places where a stage begins."""

    title: str
    x_name: str
    series: tuple[Series, ...]
    show: Callable[[float], str]  # a value as text
    marks: tuple[tuple[float, str], ...] = ()
    from_zero: bool = False


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """A linear map from values to pixels."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that span the range: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        high = low + (abs(low) / 10 or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def draw_chart(chart: Chart) -> str:
    """The chart as an `<svg>` element; the empty string if no series has a point."""
    shown = [series for series in chart.series if series.points]
    if not shown:
        return ""
    xs = [x for series in shown for x, _ in series.points]
    ys = [y for series in shown for _, y in series.points]
    y_ticks = ticks(min([*ys, 0.0] if chart.from_zero else ys), max(ys))
    left = max(LEFT, 12 + LETTER * max(len(chart.show(value)) for value in y_ticks))
    across = _scale(min(xs) - 0.5, max(xs) + 0.5, left, WIDTH - RIGHT)
    up = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [
        *_grid(chart, across, up, y_ticks, xs),
        *(_line(index, series, across, up) for index, series in enumerate(shown)),
        *_legend(shown),
        f'<line class="ch-cursor" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/>',
    ]
    data = {
        "x": chart.x_name,
        "series": [
            {"name": s.name, "points": [[round(across(x), 1), x, round(up(y), 1), chart.show(y)] for x, y in s.points]}
            for s in shown
        ],
    }
    ends = ", ".join(f"{s.name} {chart.show(s.points[-1][1])}" for s in shown)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" tabindex="0" role="img" '
        f'aria-label="{escape(chart.title)}; at the end: {escape(ends)}" data-chart="{escape(json.dumps(data))}">'
        f'<text class="ch-title" x="0" y="14">{escape(chart.title)}</text>{"".join(parts)}</svg>'
    )


def _grid(chart: Chart, across: Scale, up: Scale, y_ticks: Sequence[float], xs: Sequence[float]) -> list[str]:
    found, left = [], across(min(xs) - 0.5)
    for value in y_ticks:
        y = up(value)
        found.append(f'<line class="ch-grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        found.append(_text(chart.show(value), f"{left - 6}", f"{y + 3.5:.1f}", "end"))
    for value in ticks(min(xs), max(xs), 8):
        if value == int(value) and min(xs) <= value <= max(xs):
            found.append(_text(f"{value:g}", f"{across(value):.1f}", f"{HEIGHT - BOTTOM + 15}", "middle"))
    for start, name in chart.marks:
        if start <= max(xs):
            x = across(start - 0.5)
            found.append(f'<line class="ch-mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            found.append(_text(name, f"{x + 1:.1f}", f"{TOP - 4}"))
    return [*found, _text(chart.x_name, f"{(left + WIDTH - RIGHT) / 2}", f"{HEIGHT - 4}", "middle")]


def _text(text: str, x: str, y: str, anchor: str = "start") -> str:
    return f'<text class="ch-tick" text-anchor="{anchor}" x="{x}" y="{y}">{escape(text)}</text>'


def _line(index: int, series: Series, across: Scale, up: Scale) -> str:
    places = [(across(x), up(y)) for x, y in series.points]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = f'<path class="ch-line ch-{index}" d="{path}"/>'
    if len(places) > 40:
        return line
    return line + "".join(f'<circle class="ch-dot ch-{index}" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in places)


def _legend(shown: Sequence[Series]) -> list[str]:
    if len(shown) < 2:
        return []
    found, x = [], LEFT
    for index, series in enumerate(shown):
        found.append(f'<path class="ch-line ch-{index}" d="M{x:.0f},24h22"/>')
        found.append(_text(series.name, f"{x + 28:.0f}", "28"))
        x += 46 + len(series.name) * LETTER
    return found
