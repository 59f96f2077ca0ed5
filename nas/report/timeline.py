"""The timeline of a run: which worker did what when, what it made of its time, what it cost."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from nas.executors import LOADING, Label
from nas.report import charts, tables
from nas.report.story import Story
from nas.report.tables import table
from nas.timings import SEARCH, Rate, Session, Span, rates

PHASES = {  # In the order in which they are listed: what they are, in words.
    LOADING.phase: "loading models",
    "measuring": "measuring latency",
    "scoring": "scoring",
    "training": "training",
    "validating": "validation loss",
    "deciding": "deciding",
    "pictures": "pictures of the report",
}
OTHER = "other work"
WASTED = "failed, lost or cut off"
MOST = 64  # Rows that are drawn.
_WIDTH, _LEFT, _RIGHT, _TOP = 900.0, 76.0, 12.0, 14.0
_BREAK = 14.0  # Pixels between sessions, where there is room.
_FINE = 0.6  # Pixels that cannot be told apart.
_POINTED = 6.0  # Pixels that a pointer finds.


class Spent(NamedTuple):
    """Seconds of workers: in all, and of them into compiling; and how many calls."""

    seconds: float = 0.0
    compiling: float = 0.0
    calls: int = 0

    def __add__(self, other: object) -> "Spent":
        assert isinstance(other, Spent)
        return Spent(
            self.seconds + other.seconds,
            self.compiling + other.compiling,
            self.calls + other.calls,
        )


def check_price(price: float) -> None:
    """Raises `ValueError` if that is no price."""
    if not (math.isfinite(price) and price >= 0):
        raise ValueError(f"--price is {price}; it must be what a worker costs an hour, 0 or more")


# What it cost.


def spent(session: Session) -> dict[str, Spent]:
    """What workers spent on every phase, on what came to nothing (`WASTED`), and idle (`"idle"`).

    Threads of one process share its time: of two that work, each takes half of what passes. Of
    other workers each has its own, and the process of the search is not among them.
    """
    found: dict[str, Spent] = {}
    shares = _shared(session.spans) if session.threads else _own(session.spans)
    for span, seconds in shares:
        name = _phase(span.label) if span.how == "done" else WASTED
        compiling = span.compiling * seconds / span.seconds if span.seconds else 0.0
        found[name] = found.get(name, Spent()) + Spent(seconds, compiling, 1)
    paid = session.seconds if session.threads else sum(session.held.values())
    idle = paid - sum(each.seconds for each in found.values())
    return {**found, "idle": Spent(max(0.0, idle))}


def _own(spans: Sequence[Span]) -> Iterator[tuple[Span, float]]:
    return ((span, span.seconds) for span in spans if span.worker != SEARCH)


def _shared(spans: Sequence[Span]) -> Iterator[tuple[Span, float]]:
    """Yields spans and their shares of the time of a process: whenever several are under way, each
    has an equal part."""
    ends = sorted(
        [(span.begun, 1, i) for i, span in enumerate(spans)]
        + [(span.ended, 0, i) for i, span in enumerate(spans)]
    )
    # Of one that has been under way from the beginning on.
    whole, last, active = 0.0, 0.0, 0
    begun: dict[int, float] = {}
    for at, begins, i in ends:
        if active:
            whole += (at - last) / active
        last = at
        if begins:
            active += 1
            begun[i] = whole
        elif i in begun:
            active -= 1
            yield spans[i], whole - begun.pop(i)
    for i in begun:  # They took no time: their end was sorted before.
        yield spans[i], 0.0


def costs(story: Story, price: float | None) -> str:
    """The cost by phase, by the timings where there are any, and what was done for it."""
    if story.sessions:
        return f"{cost(story.sessions, price)}{_NOTE}<p>{tables.work(story)}</p>"
    unknown = "<p>No session was recorded, so what it cost in money is not known.</p>"
    return f"{tables.cost(story)}{unknown if price is not None else ''}"


_NOTE = (
    "<p class=soft>Workers are counted from when they came to when they went, idle or not. Threads "
    "of one process count as one worker together. The process of a search that has its workers "
    "elsewhere is not counted.</p>"
)


def cost(sessions: Sequence[Session], price: float | None) -> str:
    """The cost by phase: calls, hours, share, and money if a price per hour is given."""
    sums: dict[str, Spent] = {}
    for session in sessions:
        for name, each in spent(session).items():
            sums[name] = sums.get(name, Spent()) + each
    whole = sum(sums.values(), Spent())
    rows = [
        _row(words, sums[name], whole, price)
        for name, words in {**PHASES, OTHER: OTHER, WASTED: WASTED, "idle": "idle"}.items()
        if name in sums
    ]
    rows.append(_row("in all", whole, whole, price))
    head = ["phase", "calls", "worker-hours", "of it compiling", "share"]
    return table([*head, *([f"at {price:g} an hour"] if price is not None else [])], rows)


def _row(name: str, each: Spent, whole: Spent, price: float | None) -> list[str]:
    hours = each.seconds / 3600
    cells = [
        name,
        str(each.calls) if each.calls else "",
        _hours(each.seconds),
        _hours(each.compiling) if each.compiling else "",
        f"{each.seconds / (whole.seconds or 1.0):.1%}",
    ]
    return [*cells, *([f"{hours * price:,.2f}"] if price is not None else [])]


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.4f}" if seconds < 3600 else f"{seconds / 3600:,.2f}"


def _phase(label: Label) -> str:
    return label.phase if label.phase in PHASES else OTHER


# Who did what when.


def section(sessions: Sequence[Session]) -> str:
    """The timeline, and what each worker made of its time."""
    if not sessions:
        return "<p>No session was recorded.</p>"
    used = {_style(span) for session in sessions for span in session.spans}
    keys = "".join(
        f'<span class="key {style}">{escape(words)}</span>'
        for name, words in {**PHASES, "other": OTHER, "wasted": WASTED}.items()
        if (style := f"is-{name}") in used
    )
    compiled = any(span.compiling for session in sessions for span in session.spans)
    told = [
        _told(sessions),
        "Compiling is drawn, paler, at the beginning of the call that it was part of, as only its "
        "length is known."
        if compiled
        else "",
        "A worker that takes the place of a lost one has its row. Times are those at which the "
        "process of the search noticed.",
    ]
    note = f"<p class=soft>{escape(' '.join(line for line in told if line))}</p>"
    return f"<p>{keys}</p>{draw(sessions)}{note}{_workers(sessions)}"


def _told(sessions: Sequence[Session]) -> str:
    count = len(sessions)
    if count == 1:
        return "" if sessions[0].closed else "The session was killed, or is still running."
    killed = sum(not session.closed for session in sessions)
    cut = f", {killed} of which were killed or run still" if killed else ""
    return f"The search was run in {count} sessions{cut}; dashed lines are between them."


def _workers(sessions: Sequence[Session]) -> str:
    rows = []
    for number, session in enumerate(sessions, 1):
        rows += [_rate(str(number), rate) for rate in rates(session)]
    head = ("session", "worker", "there, h", "busy, h", "idle", "calls", "a minute")
    listed = table(head, rows, style="left2")
    return f"<details><summary>Worker by worker</summary>{listed}</details>"


def _rate(number: str, rate: Rate) -> tuple[str, ...]:
    return (
        number,
        rate.worker,
        _hours(rate.held),
        _hours(rate.busy),
        f"{rate.idle:.0%}",
        str(rate.calls),
        f"{rate.per_minute:.1f}",
    )


class _Axis:
    """Places of times: sessions one after another, with room between them."""

    def __init__(self, sessions: Sequence[Session]):
        self.sessions = sessions
        between = len(sessions) - 1
        width = _WIDTH - _LEFT - _RIGHT
        self._gap = min(_BREAK, 0.2 * width / between) if between else 0.0
        self.seconds = sum(session.seconds for session in sessions) or 1.0
        self._scale = (width - self._gap * between) / self.seconds
        self.starts, at = [], 0.0
        for session in sessions:
            self.starts.append(at)
            at += session.seconds

    def __call__(self, session: int, seconds: float) -> float:
        return _LEFT + (self.starts[session] + seconds) * self._scale + session * self._gap

    def breaks(self) -> Iterator[tuple[float, float]]:
        """Yields where one session ends and the next begins: a place, and how long it stood."""
        for number in range(1, len(self.sessions)):
            before, after = self.sessions[number - 1], self.sessions[number]
            stood = after.begun - before.begun - before.seconds
            yield self(number, 0.0) - self._gap / 2, stood

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yields places and round times since the beginning, in the unit that suits."""
        _, unit = self.unit
        for value, shown in charts.ticks(0.0, self.seconds / unit, 8):
            session = max(i for i, start in enumerate(self.starts) if start <= value * unit + 1e-9)
            yield self(session, value * unit - self.starts[session]), shown

    @property
    def unit(self) -> tuple[str, float]:
        units = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
        return next((found for found in units if self.seconds >= 2 * found[1]), units[-1])


def draw(sessions: Sequence[Session]) -> str:
    """The timeline as SVG: a row for each worker, at most `MOST`, the search itself first."""
    names = list(dict.fromkeys(name for session in sessions for name in session.held))
    searching = any(span.worker == SEARCH for session in sessions for span in session.spans)
    drawn = [*([SEARCH] if searching else []), *names[:MOST]]
    height = min(22.0, max(7.0, 420.0 / max(1, len(drawn))))
    axis, bottom = _Axis(sessions), _TOP + height * len(drawn)
    every = math.ceil(11.0 / height)
    parts = []
    for row, name in enumerate(drawn):
        top = _TOP + row * height
        if row % every == 0:
            parts.append(charts.text(_LEFT - 7, top + height / 2 + 4, name, "note", anchor="end"))
        for number, session in enumerate(sessions):
            ours = [span for span in session.spans if span.worker == name]
            if ours or name in session.held:
                parts.append(_rail(axis(number, 0), axis(number, session.seconds), top, height))
                parts += _row_of(ours, number, axis, top + 1, height - 2)
    for at, stood in axis.breaks():
        tip = f"stopped for {_lasting(stood)}"
        line = charts.ends(at, _TOP, at, bottom)
        parts.append(f'<line class="bound" {line}><title>{tip}</title></line>')
    for at, shown in axis.ticks():
        parts.append(f'<line class="axis" {charts.ends(at, bottom, at, bottom + 4)}/>')
        parts.append(charts.text(at, bottom + 17, shown, "note", anchor="middle"))
    parts.append(f'<line class="axis" {charts.ends(_LEFT, bottom, _WIDTH - _RIGHT, bottom)}/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        charts.text(middle, bottom + 35, f"{axis.unit[0]} of running", "", anchor="middle")
    )
    if len(names) > MOST:
        more = f"{len(names) - MOST} more workers are in the table only"
        parts.append(charts.text(_LEFT, bottom + 35, more, "note"))
    return charts.svg(_WIDTH, bottom + 46, parts, "what each worker did when")


def _rail(left: float, right: float, top: float, height: float) -> str:
    middle = top + height / 2
    return f'<line class="grid" {charts.ends(left, middle, right, middle)}/>'


def _row_of(
    spans: Sequence[Span], session: int, axis: _Axis, top: float, height: float
) -> Iterator[str]:
    """Yields a worker's spans. Those that a pointer would not find are drawn together."""
    runs: dict[str, list[tuple[float, float]]] = {}
    for span in spans:
        left, right = axis(session, span.begun), axis(session, span.ended)
        style = _style(span)
        if right - left >= _POINTED:
            yield _rect(style, left, right, top, height, _tip(span))
        else:
            ours = runs.setdefault(style, [])
            if ours and left - ours[-1][1] < _FINE:
                ours[-1] = (ours[-1][0], max(right, ours[-1][1]))
            else:
                ours.append((left, max(right, left + _FINE)))
        compiled = left + (right - left) * span.compiling / (span.seconds or 1.0)
        if compiled - left >= _FINE:
            yield _rect("compiling", left, compiled, top, height)
    for style, ours in runs.items():
        path = "".join(
            f"M{left:.1f},{top:.1f}h{right - left:.1f}v{height:.1f}h{left - right:.1f}z"
            for left, right in ours
        )
        yield f'<path class="{style}" d="{path}"/>'


def _rect(style: str, left: float, right: float, top: float, height: float, tip: str = "") -> str:
    told = f"<title>{escape(tip)}</title>" if tip else ""
    return (
        f'<rect class="{style}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
        f'height="{height:.1f}">{told}</rect>'
    )


def _style(span: Span) -> str:
    if span.how != "done":
        return "is-wasted"
    return f"is-{span.label.phase if span.label.phase in PHASES else 'other'}"


def _tip(span: Span) -> str:
    how = "" if span.how == "done" else f", {'cut off' if span.how == 'cut' else span.how}"
    compiled = f", {_lasting(span.compiling)} of it compiling" if span.compiling else ""
    return f"{span.worker}: {span.label}, {_lasting(span.seconds)}{compiled}{how}"


def _lasting(seconds: float) -> str:
    """A length of time in the unit that suits."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
