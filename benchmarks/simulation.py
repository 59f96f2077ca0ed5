"""A round of SnapFusion's size with many evaluators, on a virtual clock, by the real engine.

    python -m benchmarks.simulation [--workers 64 256 1024 4096] [--picture-step 0.0512] [--seed 0]
    python -m benchmarks.simulation --journal FOLDER ...   # task times of a search that was run
    python -m benchmarks.simulation --measure              # what the engine itself takes, for real

Scores 38 networks and the whole one on 2,000 pictures of 50 steps, `--batch` pictures a call, with
the conductor, the search loop, the journal and the dispatcher that a search on Ray uses. Only
workers and time are made up: workers return at once what they would have, and a call takes so many
virtual seconds. Task times are assumed, unless a journal gives them: 51.2 ms for a step of a
picture is what SnapFusion's Table 5 gives for SD-1.5 on an A100; the others are round numbers.

The table has, for each number of workers, the time to finish the round, the ideal (all calls' time
over the workers), the share of held workers' time that was useful, worker-hours lost with calls
that did not end, and workers preempted. It is the same whenever it is printed. With --measure the
real time of the engine a call is printed too, which differs from machine to machine; `--engine`
takes such a number, with what Ray takes (`python -m benchmarks.executor`), into the simulation.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from nas import forecast
from nas.conduct import Conductor
from nas.dispatch import Dispatcher, Report, Worker
from nas.evolution import Score
from nas.executors import Call, Pool
from nas.journal import Journal, Outcome
from nas.perform import Embedded, silent
from nas.recipe import Pools, Sampling
from nas.search import search_abreast
from nas.simulation import Conditions, VirtualHosts

ACTIONS, PICTURES, STEPS = 38, 2000, 50
DEADLINE = 900.0


class Scored(NamedTuple):
    """What a round knows. It has one network, which nothing is known of."""

    networks: tuple[None, ...] = (None,)
    outcomes: Mapping[Score, Outcome] = {}


class Round:
    """The whole network and every single removal, scored at once."""

    tasks = (Score(0), *(Score(0, f"action {number}") for number in range(ACTIONS)))

    def init(self) -> Scored:
        return Scored()

    def ask(self, state: Scored) -> tuple[Score, ...]:
        return tuple(task for task in self.tasks if task not in state.outcomes)

    def tell(self, state: Scored, task: Score, outcome: Outcome) -> Scored:
        return state._replace(outcomes={**state.outcomes, task: outcome})


@dataclasses.dataclass(frozen=True)
class Asked:
    """What of a recipe the conductor reads."""

    sampling: Sampling
    pools: Pools


class Evaluator:
    """A worker that scores a shard at once."""

    watch = staticmethod(silent)

    def __init__(self, recipe: Asked):
        self.recipe = recipe
        self._rows = np.ones((recipe.sampling.batch, 8)) / math.sqrt(8)

    def embedded(self, *_: Any) -> Embedded:
        return Embedded(self._rows, self._rows)


class Timed(VirtualHosts[Evaluator]):
    """Virtual hosts that know the real time that is spent in them."""

    inside = 0.0

    def start(self, worker: Worker) -> None:
        begun = time.perf_counter()
        super().start(worker)
        self.inside += time.perf_counter() - begun

    def call(self, worker: Worker, call: Call) -> None:
        begun = time.perf_counter()
        super().call(worker, call)
        self.inside += time.perf_counter() - begun

    def wait(self, seconds: float) -> list[Report]:
        begun = time.perf_counter()
        found = super().wait(seconds)
        self.inside += time.perf_counter() - begun
        return found


class Ran(NamedTuple):
    hosts: Timed
    real: float  # Seconds of the engine a call, by this machine's clock.


def simulated(
    workers: int, batch: int, picture_step: float, conditions: Conditions, seed: int
) -> Ran:
    """One round."""
    scoring = Pool(workers=workers, deadline=DEADLINE)
    recipe = Asked(Sampling(prompts=PICTURES, batch=batch, steps=STEPS), Pools(scoring=scoring))
    worker = Evaluator(recipe)
    seconds = picture_step * batch * STEPS
    hosts = Timed(lambda: worker, lambda *_: seconds, conditions, seed=seed)
    begun = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(Path(folder) / "journal.jsonl", {}) as journal,
        Dispatcher(hosts, tries=recipe.pools.tries) as executor,
    ):
        conductor = Conductor(worker, executor)  # pyright: ignore[reportArgumentType]
        done = [each.outcome for each in search_abreast(Round(), conductor, journal)]
    assert len(done) == 1 + ACTIONS and not any("failed" in outcome for outcome in done)
    return Ran(hosts, (time.perf_counter() - begun - hosts.inside) / hosts.spent.calls)


def main(
    *,
    workers: tuple[int, ...] = (64, 256, 1024, 4096),
    batch: int = 10,
    picture_step: float = 0.0512,
    journal: Path | None = None,
    start: float = 120.0,
    spread: float = 0.1,
    stragglers: float = 0.01,
    slower: float = 5.0,
    lifetime: float = 3600.0,
    engine: float = 0.002,
    seed: int = 0,
    measure: bool = False,
) -> None:
    if PICTURES % batch:
        raise SystemExit(f"{PICTURES} pictures do not divide into batches of {batch}")
    source = "assumed"
    if journal is not None:
        found = forecast.read(journal).times.picture_step
        if found is None:
            raise SystemExit(f"{journal} has no scores, and so no time of a picture")
        picture_step, source = found, f"of {journal}"
    plain = Conditions(start=start, spread=spread)
    cases = {
        "nothing amiss": plain,
        "stragglers": dataclasses.replace(plain, stragglers=stragglers, slower=slower),
        "preemptions": dataclasses.replace(plain, lifetime=lifetime),
        "all, and the engine": Conditions(start, 0.0, spread, stragglers, slower, lifetime, engine),
    }
    calls = (1 + ACTIONS) * PICTURES // batch
    each = picture_step * batch * STEPS
    print(
        f"{calls:,} calls of {each:.2f} s ({batch} pictures, {STEPS} steps, {picture_step:g} s a "
        f"step of a picture, {source}); a worker starts in {start:g} s; calls' times vary by "
        f"{spread:.0%}; {stragglers:.0%} take {slower:g} times as long; workers live {lifetime:g} "
        f"s on average; the engine takes {1e3 * engine:g} ms a call; seed {seed}.\n\n"
        f"So an engine of {1e3 * engine:g} ms a call feeds {each / engine:,.0f} workers at most.\n"
    )
    real = "| engine, real ms a call |" if measure else "|"
    print(f"| workers | | time, min | ideal, min | useful | lost, h | preempted {real}")
    print("|---" * (8 if measure else 7) + "|")
    for count in workers:
        for name, conditions in cases.items():
            hosts, took = simulated(count, batch, picture_step, conditions, seed)
            spent = hosts.spent
            row = (
                f"| {count:,} | {name} | {hosts.clock / 60:.1f} | {calls * each / count / 60:.1f} "
                f"| {spent.utilisation:.0%} | {spent.lost / 3600:.2f} | {spent.preempted} |"
            )
            print(row + (f" {1e3 * took:.3f} |" if measure else ""), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
