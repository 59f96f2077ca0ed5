"""Measuring many calls and networks in portions, each kept as soon as it is measured.

Killed at any moment, the same campaign goes on with what is missing.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from latency_models import store
from latency_models.latency import Latency, Whole
from latency_models.measure import Plan, TooNoisy, measure_all
from latency_models.provenance import Provenance
from latency_models.rows import Network, brief
from latency_models.runtimes import Run, Runtime, Subject
from latency_models.store import Measurements
from latency_models.table import Table
from search_spaces.ops import Call

CALLS, NETWORKS = 16, 4
"""In a portion: they are measured in turns, so that the machine's drift is theirs together."""

YARDSTICKS, _YARDSTICK_MS = 4, (2.0, 50.0)
"""Calls that were measured before, measured again with every portion: see `measure.measure_all`.
They take some milliseconds: shorter ones take up to three times as long where what ran before them
has emptied the caches, so beside other calls they are others; longer ones cost time."""


_FIRST = 4
"""Times as long for the first portion of a file, which sets the pace for all that follow: slow
seconds come up to a quarter of a minute on end, and most of its rounds should be others."""

_STRANDED = 3
"""Portions on end without one round near the pace of before, after which a campaign gives up."""


class OffPace(ValueError):
    """The machine runs faster or slower than it did when the rest was measured."""


class Task(NamedTuple):
    """Something to be measured, by a name that a message may say."""

    name: str
    subject: Subject


class Yardstick(NamedTuple):
    """A call that was measured before, and what it took."""

    run: Run
    ms: float


class Done(NamedTuple):
    """How far a campaign got: what it measured, what was there before, and what it did not come to.

    `refused` says by name why the rest could not be measured.
    """

    measured: int
    known: int
    left: int
    refused: Mapping[str, str]


def measure(
    path: Path,
    runtime: Runtime,
    wanted: Iterable[Call],
    networks: Mapping[str, Whole],
    plan: Plan,
    *,
    beside: Table | None = None,
    compare: bool = True,
    minutes: float | None = None,
    report: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> Done:
    """Measures what the file at `path` lacks, calls first, and adds it there.

    No portion is begun after `minutes`. What the runtime cannot run, and what is too noisy to mean
    anything, is named in what comes back, with the reason. `beside` are calls that the same runtime
    ran here before, at whose pace latencies are given; by default those of the file. A portion in
    which the machine never ran about as fast is tried once more, later. Without `compare` what
    networks as a whole compute is not compared with what JAX does, as that of calls is.

    Raises `OffPace` where the machine keeps another pace: what is measured then does not compare
    with what is there.
    """
    begin, provenance = clock(), runtime.provenance
    known = store.read(path, provenance)
    there = {network.name for network in known.networks}
    wanted = list(dict.fromkeys(wanted))
    calls = [Task(brief(call), call) for call in wanted if call not in known.table.rows]
    wholes = [Task(name, whole) for name, whole in networks.items() if name not in there]
    waiting = [*_portions(calls, CALLS), *_portions(wholes, NETWORKS)]
    measured, refused, asked = 0, dict[str, str](), len(wanted) + len(networks)
    yardsticks: list[Yardstick] = []
    later: list[Sequence[Task]] = []
    stranded = 0
    while (waiting or later) and (minutes is None or clock() - begin < 60 * minutes):
        again, portion = not waiting, (waiting or later).pop(0)
        yardsticks = yardsticks or _yardsticks(beside or known.table, runtime)
        first = not (yardsticks or known.table.rows)
        found = _measured(portion, yardsticks, runtime, _longer(plan) if first else plan, compare)
        stranded = stranded + 1 if found.nothing else 0
        if stranded == _STRANDED:
            raise OffPace(
                f"in {stranded} portions on end nothing could be measured beside {path}: "
                f"{found.why}; end what else runs on this machine and start again, or begin "
                "another file"
            )
        if found.nothing and not again:
            later.append(portion)
            report(f"{len(portion)} are tried again at the end: {found.why}")
            continue
        if found.rows:
            known = _keep(path, provenance, found.rows)
        refused |= found.refused
        measured += len(found.rows)
        over = measured + len(refused)
        report(f"{over} of {len(calls) + len(wholes)} measured, {len(refused)} of them refused")
    waiting += later
    left = sum(map(len, waiting))
    return Done(measured, asked - len(calls) - len(wholes), left, refused)


def _longer(plan: Plan) -> Plan:
    target = plan.target and dataclasses.replace(plan.target, limit_s=_FIRST * plan.target.limit_s)
    return dataclasses.replace(
        plan, seconds=_FIRST * plan.seconds, rounds=_FIRST * plan.rounds, target=target
    )


def _portions(tasks: Sequence[Task], size: int) -> Iterator[Sequence[Task]]:
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]


def _yardsticks(known: Table, runtime: Runtime) -> list[Yardstick]:
    """The shortest there are; none before there are enough to choose from."""
    least, most = _YARDSTICK_MS
    fit = [(row.ms, call) for call, row in known.rows.items() if least <= row.ms <= most]
    if len(fit) < YARDSTICKS:
        return []
    shortest = sorted(fit, key=lambda pair: pair[0])[:YARDSTICKS]
    return [Yardstick(runtime.prepare(call).run, ms) for ms, call in shortest]


class Found(NamedTuple):
    """What could be measured of a portion, and why the rest could not. It was `nothing` where even
    the yardsticks could not be measured again."""

    rows: Sequence[tuple[Task, Latency]]
    refused: Mapping[str, str]
    nothing: bool = False

    @property
    def why(self) -> str:
        return list(self.refused.values())[-1]


def _measured(
    portion: Sequence[Task],
    yardsticks: Sequence[Yardstick],
    runtime: Runtime,
    plan: Plan,
    compare: bool,
) -> Found:
    ready, runs, refused = [], [], {}
    for task in portion:
        try:
            whole = isinstance(task.subject, Whole)
            runs.append(runtime.prepare(task.subject, compare=compare or not whole).run)
            ready.append(task)
        except ValueError as error:
            refused[task.name] = str(error)
    if not ready:
        return Found([], refused)
    taken = {len(runs) + i: yardstick.ms for i, yardstick in enumerate(yardsticks)}
    runs += [yardstick.run for yardstick in yardsticks]
    found: Sequence[Latency | None]
    try:
        found = measure_all(runs, plan, yardsticks=taken)
    except TooNoisy as noisy:
        found = noisy.latencies
        refused |= {
            task.name: reason
            for task, reason in zip(ready, noisy.reasons, strict=False)
            if reason is not None
        }
    rows = [(task, row) for task, row in zip(ready, found, strict=False) if row is not None]
    return Found(rows, refused, nothing=bool(yardsticks) and not any(found))


def _keep(
    path: Path, provenance: Provenance, found: Sequence[tuple[Task, Latency]]
) -> Measurements:
    """Adds latencies to the file, and returns what it then holds."""
    calls, networks = dict[Call, Latency](), []
    for (name, subject), latency in found:
        if isinstance(subject, Whole):
            networks.append(Network(name, subject, latency))
        else:
            calls[subject] = latency
    store.write(path, provenance, Table(calls), networks)
    return store.read(path, provenance)
