"""Measuring many calls and networks in portions, each kept as soon as it is measured.

Killed at any moment, the same campaign goes on with what is missing.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from latency_models import store
from latency_models.features import WORK, kind, work
from latency_models.latency import Latency, Whole
from latency_models.measure import Plan, TooNoisy, measure_all
from latency_models.provenance import Provenance
from latency_models.rows import Network, brief
from latency_models.runtimes import Run, Runtime, Subject
from latency_models.store import Measurements
from latency_models.table import Table
from search_spaces.counting import macs, working_bytes
from search_spaces.ops import Call
from search_spaces.program import calls as calls_of

CALLS, NETWORKS = 64, 8
"""In a portion: they are measured in turns, so that the machine's drift is theirs together. A
machine that others share is slower for up to a quarter of a minute, small calls above all, so a
portion should last for several times that; what is under way when it is killed is lost."""

YARDSTICKS = 4
"""Calls that are measured again with every portion: `Measurements` has what they took when the file
was begun, and `measure.measure_all` how portions are put right."""

_WHOLES = 3
"""Networks that were measured before and are measured again with every portion of networks, in
place of yardsticks: others who use the memory slow networks and leave those calls alone."""

_FIRST = 2
"""Times as long for the yardsticks when a file is begun: they set the pace for all that follows."""

_MODERATE = (1e8, 6e8)
"""Multiply-accumulates of yardsticks: shorter calls are small change to a clock, longer ones cost
time."""

_SHARE = 0.55
"""Of the minutes, for calls where networks are to be measured, too."""

_EACH = 12
"""Calls of every kind before all others: a kind that was not measured is refused."""

_MEMORY = 0.1
"""Of the machine's, for the weights of a portion: a runtime that loads them has them several times
for a while. What does not fit is a portion of its own."""

_STRANDED = 3
"""Portions on end without one round near the pace of before, after which a campaign gives up."""


class OffPace(ValueError):
    """The machine runs faster or slower than it did when the rest was measured."""

    def __init__(self, path: Path, why: str):
        super().__init__(
            f"in {_STRANDED} portions on end nothing could be measured beside {path}: {why}; end "
            "what else runs on this machine and start again, or begin another file"
        )


class Task(NamedTuple):
    """Something to be measured, by a name that a message may say."""

    name: str
    subject: Subject


class Yardstick(NamedTuple):
    """A call that tells the machine's pace, and what it took when the file was begun."""

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
    beside: Measurements | None = None,
    compare: bool = True,
    minutes: float | None = None,
    report: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> Done:
    """Measures what the file at `path` lacks or has too uncertain, calls first, and adds it there.

    No portion is begun after `minutes`, and of these calls leave networks their part. Calls are
    measured in the order given, by and large: portions are of calls that take about as long. What
    the runtime cannot run, and what is too noisy to mean anything, is named in what comes back,
    with the reason. `beside` is what the same runtime ran here before, at whose pace latencies are
    given; by default the file's own. A portion in which the machine never ran
    about as fast is tried once more, later. Without `compare` what networks as a whole compute is
    not compared with what JAX does, as that of calls is.

    Raises `ValueError` where a network in the file has the name of another one, and `OffPace` where
    the machine keeps another pace: what is measured then does not compare with what is there.
    Raises `TooNoisy` where it keeps none.
    """
    begin, provenance = clock(), runtime.provenance
    known = store.read(path, provenance)
    there = {n.name: n.whole for n in known.networks if _means_something(n.latency, plan)}
    rows = {call for call, row in known.table.rows.items() if _means_something(row, plan)}
    for network in known.networks:
        if networks.get(network.name, network.whole) != network.whole:
            raise ValueError(
                f"{path} has another network that is called {network.name}: begin another file, or "
                "give the one that is wanted another name"
            )
    wanted = list(dict.fromkeys(wanted))
    calls = [Task(brief(call), call) for call in wanted if call not in rows]
    wholes = [Task(name, whole) for name, whole in networks.items() if name not in there]
    waiting = [*_portions(_grouped(calls), CALLS), *_portions(wholes, NETWORKS)]
    measured, refused, asked = 0, dict[str, str](), len(wanted) + len(networks)
    later: list[Sequence[Task]] = []
    left = stranded = 0
    yardsticks: list[Yardstick] = []
    wholes_before: list[Yardstick] = []
    while waiting or later:
        again, portion = not waiting, (waiting or later).pop(0)
        share = _SHARE if wholes and isinstance(portion[0].subject, Call) else 1.0
        if minutes is not None and clock() - begin >= 60 * minutes * share:
            left += len(portion)
            continue
        if not yardsticks:
            pace = (beside or known).yardsticks
            if not pace.rows:
                if known.table.rows or known.networks:
                    report(
                        f"{path} does not say at which pace it was measured: from here on it does"
                    )
                pace = _begun(path, wanted, networks, runtime, plan)
            yardsticks = _yardsticks(runtime, pace.rows.items())
        before, of_networks = (beside or known).networks, isinstance(portion[0].subject, Whole)
        if of_networks and not wholes_before and len(before) >= _WHOLES:
            wholes_before = _yardsticks(runtime, _typical(before))
        held_against = (of_networks and wholes_before) or yardsticks
        found = _measured(portion, held_against, runtime, plan, compare)
        if found.rest:
            waiting.insert(0, found.rest)
            portion = portion[: -len(found.rest)]
        stranded = stranded + 1 if found.nothing else 0
        if stranded == _STRANDED:
            raise OffPace(path, found.why)
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
    return Done(measured, asked - len(calls) - len(wholes), left, refused)


def blocks(networks: Iterable[Whole], seed: int = 0) -> list[Call]:
    """Distinct blocks of the networks, in an order in which to measure as many as there is time
    for: some of every kind first, in turn, then at random, what makes up most of a network early
    more often."""
    shares: dict[Call, float] = {}
    for whole in networks:
        found = list(calls_of(*whole).values())
        total = sum(_size(call) for call in found)
        for call in found:
            shares[call] = max(shares.get(call, 0.0), _size(call) / max(1, total))
    # Gumbel noise on logarithms draws in proportion, without drawing anything twice.
    noise = np.random.default_rng(seed).gumbel(size=len(shares))
    keys = np.log(np.array(list(shares.values())) + 0.01) + noise
    distinct = [list(shares)[i] for i in np.argsort(-keys)]
    kinds = sorted(set(map(kind, distinct)))
    first = [[c for c in distinct if kind(c) == name][:_EACH] for name in kinds]
    turns = (call for turn in itertools.zip_longest(*first) for call in turn if call)
    return list(dict.fromkeys([*turns, *distinct]))


def _means_something(latency: Latency, plan: Plan) -> bool:
    """Whether what was measured before, for whatever it was, is sure enough for the plan."""
    if plan.target is None:
        return True
    return latency.half_width(plan.target.confidence) <= plan.target.useless * latency.ms


def _size(call: Call) -> int:
    return macs(call).total


def _grouped(tasks: Sequence[Task]) -> list[Task]:
    """In the order given, but by size within every so many: what is measured in turns takes about
    as long then, and no turn waits for one."""

    def size(task: Task) -> int:
        return _size(task.subject) if isinstance(task.subject, Call) else 0

    groups = (tasks[start : start + 2 * CALLS] for start in range(0, len(tasks), 2 * CALLS))
    return [task for group in groups for task in sorted(group, key=size)]


def _begun(
    path: Path,
    wanted: Sequence[Call],
    networks: Mapping[str, Whole],
    runtime: Runtime,
    plan: Plan,
) -> Table:
    """Chooses yardsticks, and measures and keeps them: those of moderate calls that do most in
    least memory, or else the largest, since what ran before matters least to them."""
    calls = list(wanted) or blocks(networks.values())
    least, most = _MODERATE
    moderate = [call for call in calls if least <= _size(call) <= most]
    moderate.sort(key=lambda call: (_touched(call) / _size(call), brief(call)))
    runs: dict[Call, Run] = {}
    for call in moderate if len(moderate) >= YARDSTICKS else sorted(calls, key=_size)[::-1]:
        with contextlib.suppress(ValueError):  # Said where it is measured.
            runs[call] = runtime.prepare(call, compare=False).run
        if len(runs) == YARDSTICKS:
            break
    found = measure_all([*runs.values()], _longer(plan))
    pace = Table(dict(zip(runs, found, strict=True)))
    store.write(path, runtime.provenance, yardsticks=pace)
    return pace


def _yardsticks(runtime: Runtime, before: Iterable[tuple[Subject, Latency]]) -> list[Yardstick]:
    return [
        Yardstick(runtime.prepare(subject, compare=False).run, row.ms) for subject, row in before
    ]


def _typical(networks: Sequence[Network]) -> list[tuple[Whole, Latency]]:
    """Those that take about as long as most."""
    typical = np.median([math.log(network.latency.ms) for network in networks])
    aside = {n.name: abs(math.log(n.latency.ms) - typical) for n in networks}
    nearest = sorted(networks, key=lambda network: aside[network.name])
    return [(network.whole, network.latency) for network in nearest[:_WHOLES]]


def _touched(call: Call) -> float:
    """Bytes of memory that it works in, at least."""
    return working_bytes(call) + work(call)[WORK.index("weights")]


def _longer(plan: Plan) -> Plan:
    seconds, rounds, target = _FIRST * plan.seconds, _FIRST * plan.rounds, plan.target
    target = target and dataclasses.replace(target, limit_s=max(seconds, target.limit_s))
    return dataclasses.replace(plan, seconds=seconds, rounds=rounds, target=target)


def _portions(tasks: Sequence[Task], size: int) -> Iterator[Sequence[Task]]:
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]


class Found(NamedTuple):
    """What could be measured of a portion, and why others could not. It was `nothing` where even
    the yardsticks could not be measured again. There was no memory for `rest`."""

    rows: Sequence[tuple[Task, Latency]]
    refused: Mapping[str, str]
    nothing: bool = False
    rest: Sequence[Task] = ()

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
    rest, room = list(portion), _MEMORY * _memory()
    while rest and room > 0:
        task = rest.pop(0)
        try:
            whole = isinstance(task.subject, Whole)
            loaded = runtime.prepare(task.subject, compare=compare or not whole)
        except ValueError as error:
            refused[task.name] = str(error)
        else:
            runs.append(loaded.run)
            ready.append(task)
            room -= loaded.held
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
    return Found(rows, refused, bool(yardsticks) and not any(found), rest)


def _memory() -> int:
    """Bytes that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
