"""Plots that are files of their own: of latency models, and of strategies in a race."""

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
.s4 { stroke: #b7791f; fill: #b7791f } .s5 { stroke: #d53f8c; fill: #d53f8c }
.s6 { stroke: #319795; fill: #319795 } .s7 { stroke: #718096; fill: #718096 }
polyline[class] { fill: none } polyline.late { stroke-dasharray: 6 3 }
circle { fill-opacity: .55; stroke: none }
</style>"""
_COLOURS = 8
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


def race(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], x_name: str, y_name: str
) -> str:
    """Panels side by side, a line for each name in each, both axes logarithmic.

    A value of 0 or below the least of the axis is drawn at its foot. Names beyond the eighth are
    dashed.
    """
    points = [p for lines in panels.values() for line in lines.values() for p in line]
    if not points:
        raise ValueError("no points to draw")
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    least, most = 0.02, max(y for _, y in points)
    ends = math.log10(min(x for x, _ in points)), math.log10(max(x for x, _ in points))
    width, bottom = 330.0, 320.0
    parts = []
    for number, (title, lines) in enumerate(panels.items()):
        left = _LEFT + number * (width + _LEFT)
        x = Scale(*ends, left, left + width)
        y = Scale(math.log10(least), math.log10(most), bottom, _TOP + 20)
        parts.append(_text((x.start + x.end) / 2, _TOP + 4, title, "middle"))
        parts += _log_axes(x, y, x_name, y_name)
        for name, line in lines.items():
            drawn = " ".join(
                f"{x(math.log10(at)):.1f},{y(math.log10(max(value, least))):.1f}"
                for at, value in line
            )
            parts.append(f'<polyline class="{_line_style(names.index(name))}" points="{drawn}"/>')
    for number, name in enumerate(names):
        across, down = _LEFT + number % 3 * 250, bottom + 66 + number // 3 * 18
        style = _line_style(number)
        parts.append(
            f'<polyline class="{style}" points="{across},{down - 4} {across + 24},{down - 4}"/>'
        )
        parts.append(_text(across + 30, down, name, "start"))
    size = _LEFT + len(panels) * (width + _LEFT), bottom + 70 + (len(names) + 2) // 3 * 18
    return _file(parts, f"{y_name} against {x_name}", size)


def _line_style(number: int) -> str:
    return f"s{number % _COLOURS}" + (" late" if number >= _COLOURS else "")


def _log_axes(x: Scale, y: Scale, x_name: str, y_name: str) -> list[str]:
    """Both axes in powers of ten, with lines at 1, 2 and 5 of each."""
    parts = []
    for scale, across in ((x, True), (y, False)):
        for power in range(math.floor(scale.low), math.ceil(scale.high) + 1):
            for digit in (1, 2, 5):
                at = math.log10(digit) + power
                if scale.low - 1e-9 <= at <= scale.high + 1e-9:
                    value = f"{digit * 10.0**power:g}"
                    if across:
                        parts.append(_line("grid", x(at), y.start, x(at), y.end))
                        parts.append(_text(x(at), y.start + 17, value, "middle"))
                    else:
                        parts.append(_line("grid", x.start, y(at), x.end, y(at)))
                        parts.append(_text(x.start - 6, y(at) + 4, value, "end"))
    middle = (y.start + y.end) / 2
    return [
        *parts,
        _line("axis", x.start, y.start, x.end, y.start),
        _text((x.start + x.end) / 2, y.start + 36, x_name, "middle"),
        f'<text transform="translate({x.start - 46:.1f},{middle:.1f}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(y_name)}</text>',
    ]


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


def _file(parts: Sequence[str], name: str, size: tuple[float, float] = (_SIDE, _SIDE - 30)) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:g} {size[1]:g}" '
        f'width="{size[0]:g}" role="img" aria-label="{html.escape(name)}">{_STYLE}'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
