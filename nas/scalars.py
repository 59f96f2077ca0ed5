"""Scalars for TensorBoard, made of the journal: scores, latencies, the budget and losses.

    tensorboard --logdir FOLDER

A point's step is a network's number: 0 is the seed, and every training makes the next. Names have
no spaces, which TensorBoard does not take.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nas.evolution import Evolution, Measure, Profile, Reference, Score, Train, Validate
from nas.journal import Journal
from nas.search import Done, states

SUFFIX = ".nas"


class Scalars:
    """Writes the scalars of the search `name` into a run of its own under `folder`.

    A search that is gone on with writes all of its points again, in place of those that an earlier
    session left, so none is missing and none is there twice. Raises `ValueError` if the package
    that writes is not installed.
    """

    def __init__(self, folder: Path, name: str):
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise ValueError(
                f"--tensorboard needs the package {error.name}; "
                "install it with pip install 'nas[tensorboard]'"
            ) from None
        self._folder, self._make = folder / name, SummaryWriter
        self._writer: Any = None
        self._strategy: Evolution | None = None

    def begin(self, strategy: Evolution, journal: Journal) -> None:
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
        assert self._strategy is not None
        for name, step, value in points(self._strategy, done):
            self._writer.add_scalar(name, value, step)


def points(strategy: Evolution, done: Done) -> Iterator[tuple[str, int, float]]:
    """Yields the scalars that a finished task tells: name, step and value."""
    task, outcome, state = done
    match task:
        case Profile():
            yield "latency/budget_ms", 0, strategy.limit_ms(state)
            yield "latency/predicted_ms", 0, state.seed_ms.ms
        case Reference():
            yield "score/real_pictures", 0, statistics.mean(outcome["real"])
            yield "score/wrong_prompts", 0, statistics.mean(outcome["mismatched"])
        case Score(number, None):
            yield "score/CLIP", number, statistics.mean(outcome["cosines"])
            yield "score/recall_at_5", number, outcome["recall"]
        case Train(number):
            predicted = strategy.predict(state, state.networks[number].spec)
            yield "latency/budget_ms", number, strategy.limit_ms(state)
            yield "latency/predicted_ms", number, predicted.ms
            yield "loss/training", number, outcome["losses"][-1]
            each = outcome["steps"] / len(outcome["losses"])
            for part, loss in enumerate(outcome["losses"], 1):
                yield f"training/network_{number}", round(part * each), loss
        case Measure(number):
            yield "latency/whole_ms", number, state.measured[number].ms
        case Validate(number):
            yield "loss/held_out", number, outcome["loss"]
