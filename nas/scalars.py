"""Scalars for TensorBoard, made of the journal: scores, latencies, the budget and losses.

    tensorboard --logdir FOLDER

A point's step is a network's number: 0 is the seed, and every training makes the next. Of what a
strategy explores it is a candidate's, from 1 on. Names have no spaces, which TensorBoard does not
take.
"""

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from nas.evolution import Evolution, Measure, Profile, Reference, Score, Train, Validate
from nas.exploring import Compare, Exploring, Price
from nas.journal import Journal, Outcome
from nas.search import Done, states
from nas.strategies import exploration
from nas.strategies.exploration import Evaluate, Exploration

SUFFIX = ".nas"


class Point(NamedTuple):
    """A scalar."""

    name: str
    step: int
    value: float


Points: TypeAlias = Callable[[Any, Done], Iterator[Point]]
"""Yields the scalars that a finished task of a strategy tells."""


class Scalars:
    """Writes the scalars of the search `name` into a run of its own under `folder`: `points`.

    A search that is gone on with writes all of its points again, in place of those that an earlier
    session left, so none is missing and none is there twice. Raises `ValueError` if the package
    that writes is not installed.
    """

    def __init__(self, folder: Path, name: str, points: Points):
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise ValueError(
                f"--tensorboard needs the package {error.name}; "
                "install it with pip install 'nas[tensorboard]'"
            ) from None
        self._folder, self._make, self._points = folder / name, SummaryWriter, points
        self._writer: Any = None
        self._strategy: Any = None

    def begin(self, strategy: Any, journal: Journal) -> None:
        """Writes what the journal has. Whoever calls holds its lock."""
        self._strategy = strategy
        for path in self._folder.glob(f"events.out.tfevents.*{SUFFIX}"):
            path.unlink()
        self._writer = self._make(str(self._folder), filename_suffix=SUFFIX)
        found = zip(journal, states(strategy, journal.path, journal), strict=True)
        for (task, outcome), state in found:
            self._add(Done(task, outcome, state))
        self._writer.flush()

    def add(self, done: Done) -> None:
        """Writes what a finished task tells, at once."""
        self._add(done)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> "Scalars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, done: Done) -> None:
        for name, step, value in self._points(self._strategy, done):
            self._writer.add_scalar(name.replace(" ", "_"), value, step)


def evolved(strategy: Evolution, done: Done) -> Iterator[Point]:
    """The `Points` of Algorithm 1's own run."""
    task, outcome, state = done
    match task:
        case Profile():
            yield Point("latency/budget_ms", 0, strategy.limit_ms(state))
            yield Point("latency/predicted_ms", 0, state.seed_ms.ms)
        case Train(number):
            predicted = strategy.predict(state, state.networks[number].spec)
            yield Point("latency/budget_ms", number, strategy.limit_ms(state))
            yield Point("latency/predicted_ms", number, predicted.ms)
        case Measure(number):
            yield Point("latency/whole_ms", number, state.measured[number].ms)
        case Validate(number):
            yield Point("loss/held_out", number, outcome["loss"])
    yield from _of_networks(task, outcome)


def explored(strategy: Exploring, done: Done) -> Iterator[Point]:
    """The `Points` of any other strategy, of U-Nets."""
    task, outcome, state = done
    match task:
        case Price(device):
            yield Point(f"latency/{device}/budget_ms", 0, strategy.limit_ms(state, device))
            yield Point(f"latency/{device}/predicted_ms", 0, state.seed_ms[device].ms)
        case Evaluate():
            yield from candidates(state.search, Done(task, outcome, state.explored))
        case Compare(number, device):
            found = state.measured[number, device].ms
            yield Point(f"latency/{device}/whole_ms", number, found)
    yield from _of_networks(task, outcome)


def candidates(search: Exploration[Any], done: Done) -> Iterator[Point]:
    """The `Points` of candidates, in any space: those of one whose last shard is in."""
    task, _, state = done
    trial: exploration.Trial = state.trials[task.number]
    if not trial.done or (quality := trial.quality) is None:
        return
    step = trial.number + 1
    yield Point("quality/candidate", step, quality.mean)
    if best := search.best(state):
        yield Point("quality/best_within_limits", step, best.quality.mean)
    for name, latency in search.problem.latencies(trial.spec).items():
        yield Point(f"latency/{name}/candidate_ms", step, latency.ms)


def _of_networks(task: Any, outcome: Outcome) -> Iterator[Point]:
    """What any search of U-Nets tells of the networks that it trains."""
    match task:
        case Reference():
            yield Point("score/real_pictures", 0, statistics.mean(outcome["real"]))
            yield Point("score/wrong_prompts", 0, statistics.mean(outcome["mismatched"]))
        case Score(number, None):
            yield Point("score/CLIP", number, statistics.mean(outcome["cosines"]))
            yield Point("score/recall_at_5", number, outcome["recall"])
        case Train(number):
            losses = outcome["losses"]
            yield Point("loss/training", number, losses[-1])
            each = outcome["steps"] / len(losses)
            for part, loss in enumerate(losses, 1):
                yield Point(f"training/network_{number}", round(part * each), loss)
