"""Charts as SVG, drawn with a few lines each so that a page needs nothing else."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A point with error bars, `x ± dx` and `y ± dy`; `hollow` ones are estimates."""

    x: float
    y: float
    dx: float
    dy: float
    label: str
    tip: str = ""
    hollow: bool = False


class Mark(NamedTuple):
    """A line across a chart, with its name."""

    at: float
    name: str


class Bar(NamedTuple):
    """A value before and after; `style` is a class of the page's style sheet."""

    name: str
    style: str
    before: float
    after: float


class Scale(NamedTuple):
    """Maps values in `[low, high]` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low or 1.0)
        return self.start + share * (self.end - self.start)


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """At most `count + 1` round numbers in `[low, high]`, each with its text."""
    span = max(high - low, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= count)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(value, f"{value:.{digits}f}") for value in values]


def path(
    points: Sequence[Point],
    *,
    budget: Mark,
    bounds: Sequence[Mark],
    x_name: str,
    y_name: str,
) -> str:
    """The points in order, joined, with error bars and the budget.

    A bound (floor, ceiling) out of the points' range is noted at the edge, as drawing it to scale
    would flatten the rest.
    """
    width, height, left, right, top, bottom = 760, 400, 68, 20, 18, 50
    xs = [x for p in points for x in (p.x - p.dx, p.x + p.dx)] + [budget.at]
    ys = [y for p in points for y in (p.y - p.dy, p.y + p.dy)]
    x = Scale(*_padded(min(xs), max(xs)), left, width - right)
    y = Scale(*_padded(min(ys), max(ys)), height - bottom, top)
    line = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in points)
    parts = [
        _axes(x, y, x_name, y_name, x_ticks=8, y_ticks=6),
        f'<line class="budget" {ends(x(budget.at), y.end, x(budget.at), y.start)}/>',
        text(x(budget.at) + 6, y.start - 8, budget.name, "note budget-name"),
        *(_bound(bound, x, y) for bound in bounds),
        f'<polyline class="way" points="{line}"/>',
        *(_error_bars(p, x, y) for p in points),
        *(_dot(p, x, y) for p in points),
        *_labels(points, x, y, taken=[_budget_box(x(budget.at), y, budget.name)]),
    ]
    return svg(width, height, parts, f"{y_name} against {x_name}")


def _budget_box(at: float, y: Scale, name: str) -> Box:
    return Box(at + 4, y.start - 20, at + 8 + 6.2 * len(name), y.start - 4)


def _bound(bound: Mark, x: Scale, y: Scale) -> str:
    if y.low <= bound.at <= y.high:
        at, arrow = y(bound.at), ""
        line = f'<line class="bound" {ends(x.start, at, x.end, at)}/>'
        return line + text(x.end - 2, at - 5, bound.name, "note", anchor="end")
    above = bound.at > y.high
    at, arrow = (y.end + 10, "↑ ") if above else (y.start - 8, "↓ ")
    return text(x.end - 2, at, f"{arrow}{bound.name}", "note", anchor="end")


def _error_bars(p: Point, x: Scale, y: Scale) -> str:
    parts = []
    if p.dx > 0:
        parts.append(f'<line class="bar" {ends(x(p.x - p.dx), y(p.y), x(p.x + p.dx), y(p.y))}/>')
    if p.dy > 0:
        parts.append(f'<line class="bar" {ends(x(p.x), y(p.y - p.dy), x(p.x), y(p.y + p.dy))}/>')
    return "".join(parts)


def _dot(p: Point, x: Scale, y: Scale) -> str:
    style = "hollow" if p.hollow else "solid"
    return (
        f'<circle class="{style}" cx="{x(p.x):.1f}" cy="{y(p.y):.1f}" r="4.5">'
        f"<title>{html.escape(p.tip or p.label)}</title></circle>"
    )


def _labels(points: Sequence[Point], x: Scale, y: Scale, *, taken: list[Box]) -> Iterable[str]:
    """Yields a label for each point, beside it where nothing else is, if there is such a place."""
    taken = taken + [Box(x(p.x) - 6, y(p.y) - 6, x(p.x) + 6, y(p.y) + 6) for p in points]
    for p in points:
        width = 6.2 * len(p.label)
        places = [
            (left, y(p.y) + down)
            for down in (-9, 17, -23, 31, -37, 45, -51, 59, -65, 73)
            for left in (x(p.x) + 8, x(p.x) - 8 - width)
        ]
        boxes = [Box(left, base - 11, left + width, base + 3) for left, base in places]
        inside = [b for b in boxes if x.start < b.left and b.right < x.end and b.bottom < y.start]
        free = [b for b in inside if not any(b.overlaps(other) for other in taken)]
        box = (free or inside or boxes)[0]
        taken.append(box)
        if boxes.index(box) > 3:  # Too far away to be seen as this point's.
            end = (
                min(max(x(p.x), box.left), box.right),
                box.bottom if box.top < y(p.y) else box.top,
            )
            yield f'<line class="leader" {ends(x(p.x), y(p.y), *end)}/>'
        yield text(box.left, box.bottom - 3, p.label, "label")


def paired_bars(groups: Sequence[tuple[str, Sequence[Bar]]], *, unit: str, title: str) -> str:
    """Horizontal bars in named groups: pale before, solid after, with both numbers."""
    each, gap, left, width, top = 19, 8, 62, 380, 34
    values = [bar.before for _, bars in groups for bar in bars]
    values += [bar.after for _, bars in groups for bar in bars]
    scale = Scale(0.0, max(values, default=1.0) or 1.0, left, width - 112)
    parts, at = [text(left, 16, title, "title")], float(top)
    for name, bars in groups:
        middle = at + each * len(bars) / 2 + 2
        parts.append(text(left - 8, middle, name, "", anchor="end"))
        for bar in bars:
            parts.append(_bar(bar, scale, at, each - 3, unit))
            at += each
        at += gap
    return svg(width, at, parts, title)


def _bar(bar: Bar, scale: Scale, top: float, height: float, unit: str) -> str:
    before, after = scale(bar.before), scale(bar.after)
    shown = f"{short(bar.before)} → {short(bar.after)} {unit}"
    return (
        f"<g><title>{html.escape(f'{bar.name}: {shown}')}</title>"
        f'<rect class="{bar.style} pale" x="{scale.start}" y="{top:.1f}" '
        f'width="{before - scale.start:.1f}" height="{height}"/>'
        f'<rect class="{bar.style}" x="{scale.start}" y="{top + 4:.1f}" '
        f'width="{after - scale.start:.1f}" height="{height - 8}"/>'
        f"{text(max(before, after) + 6, top + height - 4, shown, 'note')}</g>"
    )


def short(value: float) -> str:
    """Three digits, never as a power of ten."""
    if not value:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def curve(values: Sequence[float], steps: int, *, title: str, y_name: str) -> str:
    """One curve, whose values are means of equal consecutive parts of `steps` steps."""
    width, height, left, right, top, bottom = 270, 190, 50, 14, 28, 40
    y = Scale(*_padded(min(values), max(values)), height - bottom, top)
    x = Scale(0, steps, left, width - right)
    places = [steps * (i + 0.5) / len(values) for i in range(len(values))]
    line = " ".join(f"{x(at):.1f},{y(v):.1f}" for at, v in zip(places, values, strict=True))
    parts = [
        text(left, 15, title, "title"),
        _axes(x, y, "step", y_name, x_ticks=4, y_ticks=4),
        f'<polyline class="way" points="{line}"/>',
    ]
    return svg(width, height, parts, title)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _axes(x: Scale, y: Scale, x_name: str, y_name: str, *, x_ticks: int, y_ticks: int) -> str:
    parts = []
    for value, shown in ticks(y.low, y.high, y_ticks):
        parts.append(f'<line class="grid" {ends(x.start, y(value), x.end, y(value))}/>')
        parts.append(text(x.start - 7, y(value) + 4, shown, "note", anchor="end"))
    for value, shown in ticks(x.low, x.high, x_ticks):
        parts.append(f'<line class="axis" {ends(x(value), y.start, x(value), y.start + 4)}/>')
        parts.append(text(x(value), y.start + 17, shown, "note", anchor="middle"))
    middle = (y.start + y.end) / 2
    parts += [
        f'<line class="axis" {ends(x.start, y.start, x.end, y.start)}/>',
        f'<line class="axis" {ends(x.start, y.start, x.start, y.end)}/>',
        text((x.start + x.end) / 2, y.start + 35, x_name, "", anchor="middle"),
        f'<text transform="translate(12,{middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_name)}</text>",
    ]
    return "".join(parts)


def ends(x1: float, y1: float, x2: float, y2: float) -> str:
    """The attributes of a line from one point to another."""
    return f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'


def text(x: float, y: float, shown: str, style: str, *, anchor: str = "start") -> str:
    """A line of text; `style` is a class of the page's style sheet."""
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{html.escape(shown)}</text>"
    )


def svg(width: float, height: float, parts: Sequence[str], name: str) -> str:
    """A picture of that size; `name` says what it shows to those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(name)}">'
        f"{''.join(parts)}</svg>"
    )
