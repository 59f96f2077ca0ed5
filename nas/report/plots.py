"""Plots that are files of their own: how right a latency model is, and how sure it should be."""

import html
import math
from collections.abc import Mapping, Sequence

from nas.report import charts
from nas.report.charts import Scale

_STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #333 }
.grid { stroke: #ddd } .axis { stroke: #555 } .ideal { stroke: #999; stroke-dasharray: 5 4 }
polyline { fill: none; stroke-width: 2 }
.s0 { stroke: #2b6cb0; fill: #2b6cb0 } .s1 { stroke: #c05621; fill: #c05621 }
.s2 { stroke: #2f855a; fill: #2f855a } .s3 { stroke: #805ad5; fill: #805ad5 }
polyline.s0, polyline.s1, polyline.s2, polyline.s3 { fill: none }
circle { fill-opacity: .55; stroke: none }
</style>"""
_COLOURS = 4
_SIDE, _LEFT, _TOP = 420, 62, 16


def reliability(lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """How often intervals hold, against how often they should: a line for each name.

    Above the diagonal intervals are wider than they need be, below it they are too narrow.
    """
    x, y = _scales(0.0, 1.0)
    parts = [_frame(x, y, charts.ticks(0, 1), "level of the interval", "share measured inside")]
    for number, (name, points) in enumerate(lines.items()):
        drawn = " ".join(f"{x(level):.1f},{y(share):.1f}" for level, share in points)
        parts.append(f'<polyline class="s{number % _COLOURS}" points="{drawn}"/>')
        parts.append(_key(number, name))
    return _file(parts, "reliability")


def agreement(groups: Mapping[str, Sequence[tuple[float, float]]], unit: str = "ms") -> str:
    """What was predicted against what was measured, both on logarithmic axes: `(measured,
    predicted)` for each point of each group. Points on the diagonal are right."""
    values = [value for points in groups.values() for point in points for value in point]
    if not values:
        raise ValueError("no points to draw")
    low, high = math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1
    x, y = _scales(low, high)
    powers = range(math.ceil(low), math.floor(high) + 1)
    marks = [(float(power), f"{10.0**power:g}") for power in powers]
    parts = [_frame(x, y, marks, f"measured, {unit}", f"predicted, {unit}")]
    for number, (name, points) in enumerate(groups.items()):
        parts += [
            f'<circle class="s{number % _COLOURS}" cx="{x(math.log10(measured)):.1f}" '
            f'cy="{y(math.log10(predicted)):.1f}" r="3.5"/>'
            for measured, predicted in points
        ]
        parts.append(_key(number, name))
    return _file(parts, "predicted against measured")


def _scales(low: float, high: float) -> tuple[Scale, Scale]:
    right, bottom = _LEFT + _SIDE - 90, _TOP + _SIDE - 90
    return Scale(low, high, _LEFT, right), Scale(low, high, bottom, _TOP)


def _frame(x: Scale, y: Scale, marks: Sequence[tuple[float, str]], x_name: str, y_name: str) -> str:
    parts = []
    for value, shown in marks:
        parts += [
            _line("grid", x.start, y(value), x.end, y(value)),
            _line("grid", x(value), y.start, x(value), y.end),
            _text(x.start - 6, y(value) + 4, shown, "end"),
            _text(x(value), y.start + 17, shown, "middle"),
        ]
    middle = (y.start + y.end) / 2
    parts += [
        _line("axis", x.start, y.start, x.end, y.start),
        _line("axis", x.start, y.start, x.start, y.end),
        _line("ideal", x.start, y.start, x.end, y.end),
        _text((x.start + x.end) / 2, y.start + 36, x_name, "middle"),
        f'<text transform="translate(14,{middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{y_name}</text>",
    ]
    return "".join(parts)


def _key(number: int, name: str) -> str:
    at = _TOP + 14 + 16 * number
    dot = f'<circle class="s{number % _COLOURS}" cx="{_LEFT + 14}" cy="{at - 4}" r="4"/>'
    return dot + _text(_LEFT + 24, at, name, "start")


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, shown: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(shown)}</text>'


def _file(parts: Sequence[str], name: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIDE} {_SIDE - 30}" '
        f'width="{_SIDE}" role="img" aria-label="{html.escape(name)}">{_STYLE}'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
