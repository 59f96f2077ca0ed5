"""Measuring many calls and networks in portions, each kept as soon as it is measured.

Killed at any moment, the same campaign goes on with what is missing.
"""

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
    minutes: float | None = None,
    report: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> Done:
    """Measures what the file at `path` lacks, calls first, and adds it there.

    No portion is begun after `minutes`. What the runtime cannot run, and what is too noisy to mean
    anything, is named in what comes back, with the reason.
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
    while waiting and (minutes is None or clock() - begin < 60 * minutes):
        portion = waiting.pop(0)
        yardsticks = yardsticks or _yardsticks(known.table, runtime)
        found = list(_measured(portion, yardsticks, runtime, plan, refused))
        if found:
            known = _keep(path, provenance, found)
        measured += len(found)
        over = measured + len(refused)
        report(f"{over} of {len(calls) + len(wholes)} measured, {len(refused)} of them refused")
    left = sum(map(len, waiting))
    return Done(measured, asked - len(calls) - len(wholes), left, refused)


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


def _measured(
    portion: Sequence[Task],
    yardsticks: Sequence[Yardstick],
    runtime: Runtime,
    plan: Plan,
    refused: dict[str, str],
) -> Iterator[tuple[Task, Latency]]:
    """Yields what could be measured of a portion; says in `refused` why the rest could not."""
    ready, runs = [], []
    for task in portion:
        try:
            runs.append(runtime.prepare(task.subject).run)
            ready.append(task)
        except ValueError as error:
            refused[task.name] = str(error)
    if not ready:
        return
    taken = {len(runs) + i: yardstick.ms for i, yardstick in enumerate(yardsticks)}
    runs += [yardstick.run for yardstick in yardsticks]
    try:
        found: Sequence[Latency | None] = measure_all(runs, plan, yardsticks=taken)
    except TooNoisy as noisy:
        found = noisy.latencies
        refused |= {
            task.name: reason
            for task, reason in zip(ready, noisy.reasons, strict=False)
            if reason is not None
        }
    for task, latency in zip(ready, found, strict=False):
        if latency is not None:
            yield task, latency


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
