"""What a long search costs the process that runs it: its journal, its state, and going on with it.

    python -m benchmarks.journal [--trials 100000] [--folder FOLDER]

For an eighth, a quarter, a half and all of so many trials, milliseconds a trial and their sum:

- append: an entry written and on disk (`fsync`) at the end of the journal, which is in FOLDER;
- tell: the outcome folded into the state, and what follows from it proposed;
- resume: the journal opened, read, decoded and folded, as a search does that goes on;
- live: a search that goes on from there, its tasks done at once, 256 of them under way.

What is linear has the same milliseconds a trial in every row. Prints Markdown.
"""

import dataclasses
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from latency_models.latency import Latency
from nas.executors import ended
from nas.journal import Journal, Outcome
from nas.search import replay, search_abreast
from nas.strategies.exploration import Evaluate, Exploration, Policy
from nas.strategies.local import LocalSearch
from nas.strategies.nsga2 import NSGA2
from nas.strategies.outcomes import scored
from nas.strategies.problem import Device, Problem
from nas.strategies.random import Random
from nas.strategies.regularised import RegularisedEvolution
from search_spaces.values import encode

LETTERS, LENGTH = 4, 9
ABREAST = 256
SOME = 512  # Trials that are appended, or searched live, at the end of so many.


@dataclasses.dataclass(frozen=True)
class Word:
    letters: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Replace:
    place: int
    letter: int

    def apply(self, spec: Word) -> Word:
        before, after = spec.letters[: self.place], spec.letters[self.place + 1 :]
        return Word((*before, self.letter, *after))


@dataclasses.dataclass(frozen=True)
class Words:
    """Words of nine letters, a quarter of a million."""

    def initial(self) -> Word:
        return Word((0,) * LENGTH)

    def actions(self, spec: Word) -> Iterator[Replace]:
        for place, now in enumerate(spec.letters):
            yield from (Replace(place, x) for x in range(LETTERS) if x != now)


def latency(spec: Word) -> Latency:
    return Latency(1.0 + sum(spec.letters), 0.0)


def outcome(task: Evaluate) -> Outcome:
    letters = np.array(task.spec.letters)
    return scored([float(np.cos(letters * (1 + np.arange(LENGTH))).sum())])


class AtOnce:
    """A crew that is done with everything at once."""

    def start(self, strategy: Any, state: Any, task: Evaluate) -> Future[Outcome]:
        return ended(outcome(task))

    def wait(self) -> None:
        pass


@functools.cache
def problem() -> Problem[Word]:
    every = tuple(map(Word, itertools.product(range(LETTERS), repeat=LENGTH)))
    return Problem(Words(), {"device": Device(latency, 1.0 + 2 * LENGTH)}, specs=every)


def strategy(policy: Policy, trials: int, window: int = 4096) -> Exploration[Word]:
    return Exploration(problem(), policy, trials, window=window)


def told(search: Exploration[Word]) -> tuple[list[Evaluate], float]:
    """The tasks of a whole search, and the seconds of telling it their outcomes."""
    done: list[Evaluate] = []
    begun = time.perf_counter()
    state = search.init()
    seconds = time.perf_counter() - begun
    while tasks := search.ask(state):
        outcomes = [outcome(task) for task in tasks]
        begun = time.perf_counter()
        for task, found in zip(tasks, outcomes, strict=True):
            state = search.tell(state, task, found)
        seconds += time.perf_counter() - begun
        done += tasks
    return done, seconds


def written(path: Path, tasks: list[Evaluate]) -> None:
    """Writes a journal of these tasks, on disk once."""
    path.unlink(missing_ok=True)
    Journal(path, {}).__exit__()
    with path.open("a") as file:
        for task in tasks:
            line = {"task": encode(task), "outcome": dict(outcome(task))}
            file.write(f"{json.dumps(line)}\n")


def measured(policy: Policy, trials: int, path: Path) -> tuple[float, float, float, float]:
    """Seconds a trial of appending, telling, resuming, and of a live search."""
    tasks, tell = told(strategy(policy, trials))
    written(path, tasks)
    begun = time.perf_counter()
    with Journal(path, {}) as journal:
        replay(strategy(policy, trials), journal)
        resume = time.perf_counter() - begun
        begun = time.perf_counter()
        for task in tasks[:SOME]:
            journal.append(task, outcome(task))
        append = time.perf_counter() - begun
    written(path, tasks)
    with Journal(path, {}) as journal:
        further = strategy(policy, trials + SOME, window=ABREAST)
        steps = search_abreast(further, AtOnce(), journal)
        next(steps)  # It has replayed the journal.
        begun = time.perf_counter()
        live = sum(1 for _ in steps)
        went = time.perf_counter() - begun
    return append / SOME, tell / len(tasks), resume / len(tasks), went / live


STRATEGIES = {
    "random": Random(),
    "regularised": RegularisedEvolution(ahead=16),
    "nsga2": NSGA2(64),
    "local": LocalSearch(),
}


def main(
    *,
    trials: int = 100_000,
    strategies: tuple[str, ...] = tuple(STRATEGIES),
    folder: Path | None = None,
) -> None:
    assert problem().fitting  # Listed once, before anything is timed.
    print("| strategy | trials | append, ms | tell, ms | resume, ms (all, s) | live, ms |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for name in strategies:
            for count in (trials // 8, trials // 4, trials // 2, trials):
                found = measured(STRATEGIES[name], count, Path(scratch) / "journal.jsonl")
                append, tell, resume, live = (f"{1e3 * seconds:.3f}" for seconds in found)
                whole = f"{resume} ({count * found[2]:.1f})"
                print(f"| {name} | {count} | {append} | {tell} | {whole} | {live} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
