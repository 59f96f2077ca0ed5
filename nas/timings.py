"""Who did what when: a record of what workers do, beside the journal.

Every session, from one start of the search to its end, has a file `timings/NUMBER.jsonl`: its first
line says when and where it began, every other is an event with the seconds since. No result comes
from them, so they are not of the journal, which is the same however many workers there were. A
session that is killed loses no more than the line that it was writing.
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from nas.executors import LOADING, End, Label, Observer
from nas.places import Place

FOLDER = "timings"
SEARCH = "search"  # The process of the search, as a worker.
OFTEN = 30.0  # Seconds between writings of an object.

How: TypeAlias = End | Literal["cut"]
"""How something ended: as a call does, or with the session that was stopped in the middle."""


@dataclasses.dataclass(frozen=True)
class Span:
    """What a worker did from `begun` to `ended`, seconds since its session began."""

    worker: str
    label: Label
    begun: float
    ended: float
    how: How = "done"
    compiling: float = 0.0
    """Seconds of it that went into compiling."""
    node: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


@dataclasses.dataclass(frozen=True)
class Session:
    """A search from one start to its end, or until it was stopped."""

    begun: float
    """Seconds since 1970."""
    seconds: float
    """To its last event."""
    host: str
    spans: Sequence[Span]
    held: Mapping[str, float]
    """Seconds that each worker was there for, idle or not."""
    closed: bool
    """Whether it ended itself, and was not killed."""

    @property
    def threads(self) -> bool:
        """Whether its workers are threads of the process of the search, and not apart from it."""
        return not any(span.node for span in self.spans)


@dataclasses.dataclass
class Tally:
    """What a worker, or all that had its name, did so far."""

    since: float | None = None  # When it came; gone if none.
    held: float = 0.0  # Of those before.
    busy: float = 0.0
    calls: int = 0
    doing: tuple[Label, float] | None = None


@dataclasses.dataclass(frozen=True)
class Rate:
    """How much of its time a worker uses."""

    worker: str
    held: float
    busy: float
    calls: int
    doing: Label | None = None

    @property
    def per_minute(self) -> float:
        """Calls that ended, for every minute that it was there."""
        return 60 * self.calls / self.held if self.held else 0.0

    @property
    def idle(self) -> float:
        """Share of the time that it was there in which it did nothing."""
        return max(0.0, 1 - self.busy / self.held) if self.held else 0.0


class Timings(Observer):
    """Takes note of what workers do; on disk once it is told where.

    `clock` gives seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._start = clock, clock()
        self._begun = time.time()
        self._tallies: dict[str, Tally] = {}
        self._compiled: dict[Label, tuple[int, float]] = {}
        self._waiting: list[str] = []  # Lines for a file that is not open.
        self._write_line: Callable[[str], object] = self._waiting.append

    # What happens.

    def begin(self, worker: str, label: Label, node: str = "") -> None:
        now = self._now()
        tally = self._tallies.setdefault(worker, Tally())
        if tally.since is None:
            tally.since = now
        tally.doing = label, now
        self._write(now, worker, begin=list(label), **({"node": node} if node else {}))

    def end(self, worker: str, how: End) -> None:
        now, tally = self._now(), self._tallies[worker]
        assert tally.doing is not None, f"{worker} does nothing"
        label, begun = tally.doing
        tally.busy += now - begun
        tally.calls += how == "done" and label != LOADING
        tally.doing = None
        compiles, seconds = self._compiled.pop(label, (0, 0.0))
        cost = {"compiles": compiles, "compiling": round(seconds, 3)} if compiles else {}
        self._write(now, worker, end=how, **cost)

    def leave(self, worker: str) -> None:
        if self._tallies[worker].doing is not None:
            self.end(worker, "lost")
        now, tally = self._now(), self._tallies[worker]
        assert tally.since is not None, f"{worker} is not there"
        tally.held += now - tally.since
        tally.since = None
        self._write(now, worker, leave=True)

    def compiled(self, label: Label, compiles: int, seconds: float) -> None:
        """Is told, before it is told of the end, how much of a call was compiling."""
        self._compiled[label] = (compiles, seconds)

    @contextlib.contextmanager
    def doing(self, label: Label) -> Iterator[None]:
        """Something that the process of the search does itself."""
        self.begin(SEARCH, label)
        how: End = "failed"
        try:
            yield
            how = "done"
        finally:
            self.end(SEARCH, how)

    # What it comes to.

    def rates(self) -> list[Rate]:
        """What each worker makes of its time, in the order of their names; those that are gone are
        not among them, and neither is the process of the search."""
        now, found = self._now(), []
        for name, tally in sorted(list(self._tallies.items()), key=lambda item: _order(item[0])):
            # Another thread may show this while the search takes note: each is read once.
            since, doing = tally.since, tally.doing
            if name != SEARCH and since is not None:
                busy = tally.busy + (now - doing[1] if doing else 0.0)
                label = doing[0] if doing else None
                found.append(Rate(name, tally.held + now - since, busy, tally.calls, label))
        return found

    # The file.

    @contextlib.contextmanager
    def recorded(self, folder: Place) -> Iterator[None]:
        """Writes a session's file under `folder`, from what happened before on, and closes it. One
        process at a time may do so for a folder."""
        names = _names(folder)
        number = max((int(name.partition(".")[0]) for name in names), default=0) + 1
        first = {"timings": 1, "begun": self._begun, "host": platform.node(), "pid": os.getpid()}
        waiting, self._waiting = self._waiting, []
        with _open(folder / FOLDER / f"{number:04d}.jsonl") as self._write_line:
            for line in (json.dumps(first), *waiting):
                self._write_line(line)
            try:
                yield
            finally:
                self._write(self._now(), SEARCH, closed=True)
                self._write_line = self._waiting.append

    def _now(self) -> float:
        return self._clock() - self._start

    def _write(self, at: float, worker: str, **event: Any) -> None:
        self._write_line(json.dumps({"at": round(at, 4), "worker": worker, **event}))


@contextlib.contextmanager
def _open(path: Place) -> Iterator[Callable[[str], object]]:
    """Writes lines into a new file: on disk at once, or as an object that is replaced now and then,
    which a kill leaves as it was then."""
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", buffering=1) as file:  # Flushed at every line.
            yield lambda line: file.write(line + "\n")
        return
    lines: list[str] = []
    written = -math.inf

    def add(line: str) -> None:
        nonlocal written
        lines.append(line + "\n")
        if time.monotonic() >= written + OFTEN:
            path.write_bytes("".join(lines).encode())
            written = time.monotonic()

    try:
        yield add
    finally:
        path.write_bytes("".join(lines).encode())


def read(folder: Place) -> list[Session]:
    """The sessions of the search in `folder`, oldest first; none if none was recorded.

    Raises `ValueError` naming a line that is no event.
    """
    paths = [folder / FOLDER / name for name in _names(folder)]
    return [found for path in paths if (found := _session(path))]


def rates(session: Session) -> list[Rate]:
    """What each worker made of its time in a session, loading counted as work."""
    busy: dict[str, float] = {}
    calls: dict[str, int] = {}
    for span in session.spans:
        busy[span.worker] = busy.get(span.worker, 0.0) + span.seconds
        ended = span.how == "done" and span.label != LOADING
        calls[span.worker] = calls.get(span.worker, 0) + ended
    return [
        Rate(name, held, busy.get(name, 0.0), calls.get(name, 0))
        for name, held in session.held.items()
    ]


def _names(folder: Place) -> list[str]:
    """The names of the sessions' files, oldest first."""
    files = folder / FOLDER
    if isinstance(files, Path):
        found = [path.name for path in files.glob("*.jsonl")]
    else:
        found = [name for name in files.names() if name.endswith(".jsonl")]
    return sorted(found, key=lambda name: int(name.partition(".")[0]))


def _session(path: Place) -> Session | None:
    """The session of a file; none if it was stopped before its first line was written."""
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()  # It was being written.
    if not lines:
        return None
    events = []
    for number, line in enumerate(lines, 1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is damaged: {error}; delete the file"
            ) from None
    try:
        return _told(events[0], events[1:])
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is no record of a session ({type(error).__name__}: {error}); delete the file"
        ) from error


def _told(first: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Session:
    """The session that the events of a file tell of."""
    spans: list[Span] = []
    came: dict[str, float] = {}
    held: dict[str, float] = {}
    doing: dict[str, Span] = {}
    last = max((event["at"] for event in events), default=0.0)
    for event in events:
        at, worker = event["at"], event["worker"]
        if "begin" in event:
            came.setdefault(worker, at)
            label = Label(*event["begin"])
            doing[worker] = Span(worker, label, at, at, node=event.get("node", ""))
        elif "end" in event:
            compiling = event.get("compiling", 0.0)
            begun = doing.pop(worker)
            spans.append(
                dataclasses.replace(begun, ended=at, how=event["end"], compiling=compiling)
            )
        elif "leave" in event:
            held[worker] = held.get(worker, 0.0) + at - came.pop(worker)
    for span in doing.values():
        spans.append(dataclasses.replace(span, ended=last, how="cut"))
    for worker, at in came.items():
        held[worker] = held.get(worker, 0.0) + last - at
    held.pop(SEARCH, None)
    closed = bool(events) and "closed" in events[-1]
    names = sorted(held, key=_order)
    return Session(
        first["begun"],
        last,
        first["host"],
        tuple(sorted(spans, key=lambda span: (span.begun, span.worker))),
        {name: held[name] for name in names},
        closed,
    )


def _order(worker: str) -> tuple[str, int]:
    """Sorts "worker 10" after "worker 9"."""
    kind, _, number = worker.rpartition(" ")
    return (kind, int(number)) if number.isdecimal() else (worker, 0)
