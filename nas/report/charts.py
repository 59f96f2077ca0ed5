"""Charts as SVG, drawn with a few lines each so that a page needs nothing else."""

import html
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A point with error bars, `x ± dx` and `y ± dy`."""

    x: float
    y: float
    dx: float
    dy: float
    label: str


class Scale(NamedTuple):
    """Maps values in `[low, high]` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low or 1.0)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in `[low, high]`."""
    span = max(high - low, 1e-12)
    step = 10.0 ** _floor_log10(span / count)
    step = next(step * m for m in (1, 2, 5, 10) if span / (step * m) <= count)
    first = -(-low // step)
    return [i * step for i in range(int(first), int(high // step) + 1)]


def _floor_log10(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def path(points: Sequence[Point], *, budget: float, x_name: str, y_name: str) -> str:
    """Latency against score: the points in order, joined, with error bars and the budget."""
    width, height, left, right, top, bottom = 760, 380, 70, 30, 24, 52
    xs = [p.x - p.dx for p in points] + [p.x + p.dx for p in points] + [budget]
    ys = [p.y - p.dy for p in points] + [p.y + p.dy for p in points]
    x = Scale(*_padded(min(xs), max(xs)), left, width - right)
    y = Scale(*_padded(min(ys), max(ys)), height - bottom, top)
    parts = [_axes(x, y, x_name, y_name, width)]
    parts.append(
        f'<line class="budget" x1="{x(budget):.1f}" x2="{x(budget):.1f}" y1="{top}" '
        f'y2="{height - bottom}"/><text class="note" x="{x(budget) + 5:.1f}" y="{top + 10}">'
        f"budget {budget:.3g}</text>"
    )
    line = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in points)
    parts.append(f'<polyline class="way" points="{line}"/>')
    for number, p in enumerate(points):
        parts.append(
            f'<line class="bar" x1="{x(p.x - p.dx):.1f}" x2="{x(p.x + p.dx):.1f}" '
            f'y1="{y(p.y):.1f}" y2="{y(p.y):.1f}"/>'
            f'<line class="bar" x1="{x(p.x):.1f}" x2="{x(p.x):.1f}" '
            f'y1="{y(p.y - p.dy):.1f}" y2="{y(p.y + p.dy):.1f}"/>'
            f'<circle cx="{x(p.x):.1f}" cy="{y(p.y):.1f}" r="4.5">'
            f"<title>{html.escape(p.label)}</title></circle>"
            f'<text class="note" x="{x(p.x) + 8:.1f}" y="{y(p.y) + (-9, 16)[number % 2]:.1f}">'
            f"{html.escape(p.label.partition(':')[0])}</text>"
        )
    return _svg(width, height, parts)


def bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, unit: str, colours: Sequence[str]
) -> str:
    """Grouped horizontal bars: a name, and its series as `(series, value)`."""
    each, gap, left, width = 15, 12, 190, 760
    series = len(rows[0][1]) if rows else 0
    most = max((value for _, values in rows for _, value in values), default=1.0) or 1.0
    scale = Scale(0.0, most, left, width - 90)
    height = len(rows) * (series * each + gap) + 34
    parts, top = [], 26.0
    for i, (name, _) in enumerate(rows[0][1] if rows else ()):
        parts.append(
            f'<rect x="{left + 170 * i}" y="4" width="11" height="11" class="{colours[i]}"/>'
            f'<text class="note" x="{left + 170 * i + 16}" y="14">{html.escape(name)}</text>'
        )
    for name, values in rows:
        middle = top + series * each / 2 + 4
        parts.append(
            f'<text x="{left - 8}" y="{middle:.1f}" text-anchor="end">{html.escape(name)}</text>'
        )
        for i, (_, value) in enumerate(values):
            parts.append(
                f'<rect class="{colours[i]}" x="{left}" y="{top + i * each:.1f}" '
                f'width="{max(0.0, scale(value) - left):.1f}" height="{each - 3}"/>'
                f'<text class="note" x="{scale(value) + 5:.1f}" y="{top + i * each + 10:.1f}">'
                f"{value:.3g} {unit}</text>"
            )
        top += series * each + gap
    return _svg(width, height, parts)


def lines(curves: Sequence[tuple[str, Sequence[float]]], *, y_name: str) -> str:
    """Curves side by side in time: one after the other on the horizontal axis."""
    width, height, left, right, top, bottom = 760, 240, 70, 20, 16, 44
    values = [v for _, curve in curves for v in curve]
    y = Scale(*_padded(min(values), max(values)), height - bottom, top)
    x = Scale(0, max(1, len(values) - 1), left, width - right)
    parts, at = [_axes(x, y, "trainings in order", y_name, width, numbered=False)], 0
    for name, curve in curves:
        points = " ".join(f"{x(at + i):.1f},{y(v):.1f}" for i, v in enumerate(curve))
        parts.append(
            f'<polyline class="way" points="{points}"/>'
            f'<text class="note" x="{x(at) + 2:.1f}" y="{height - bottom + 14}">'
            f"{html.escape(name)}</text>"
        )
        at += len(curve)
    return _svg(width, height, parts)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _axes(
    x: Scale, y: Scale, x_name: str, y_name: str, width: float, *, numbered: bool = True
) -> str:
    parts = [
        f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{y.start}" y2="{y.start}"/>',
        f'<line class="axis" x1="{x.start}" x2="{x.start}" y1="{y.start}" y2="{y.end}"/>',
        f'<text x="{(x.start + x.end) / 2}" y="{y.start + 38}" text-anchor="middle">'
        f"{html.escape(x_name)}</text>",
        f'<text transform="translate(16,{(y.start + y.end) / 2}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(y_name)}</text>',
    ]
    if numbered:
        for tick in ticks(x.low, x.high, 8):
            parts.append(
                f'<text class="note" x="{x(tick):.1f}" y="{y.start + 17}" text-anchor="middle">'
                f"{tick:.4g}</text>"
            )
    for tick in ticks(y.low, y.high):
        parts.append(
            f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/><text class="note" x="{x.start - 6}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{tick:.4g}</text>'
        )
    return "".join(parts)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
