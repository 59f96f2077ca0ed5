"""Workers that need no weights, and may be told to misbehave; a search by them on Ray.

    python -m tests.fake_workers FOLDER [ADDRESS REGISTRY]

runs, or goes on with, a search in FOLDER on a cluster of its own, or on the one at ADDRESS with
workers that write their processes into the folder REGISTRY: a process to be killed.
"""

import dataclasses
import functools
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from nas import cli
from nas.conduct import Conductor
from nas.evolution import Evolution, Network, Outcome, State, Task, Train
from nas.executors import Executor, Pool
from nas.journal import Journal
from nas.on_ray import OnRay
from nas.perform import Embedded, silent
from nas.recipe import Pools, Recipe, Sampling
from nas.search import replay, search_abreast
from search_spaces.unet import UNetSpec
from tests import tiny

SPACE = tiny.unet_space(tiny.UNET)
WORTH = {name: 0.01 * (1 + number % 4) for number, name in enumerate(tiny.REMOVABLE)}
STRATEGY = Evolution(SPACE, 0.7, group=3, rounds=3)
PROMPTS, BATCH = 8, 2


@dataclasses.dataclass(frozen=True)
class Trouble:
    """What happens to a worker that scores a network without these blocks."""

    poison: tuple[str, ...] = ()  # It is killed.
    hanging: tuple[str, ...] = ()  # It never ends.
    no_number: tuple[str, ...] = ()  # The score is NaN.


NONE = Trouble()


class FakeWorker:
    """Performs the parts of tasks as `tiny.FakePerformer` performs the whole."""

    def __init__(
        self,
        trouble: Trouble = NONE,
        seconds: float = 0.0,
        deadline: float = 60.0,
        tries: int = 2,
        registry: Path | None = None,
        workers: int = 2,
        cpus: float = 0.0,
    ):
        """Takes so many seconds for a shard; writes its process into a folder if one is given."""
        if registry is not None:
            (registry / str(os.getpid())).touch()
        scoring = Pool(workers=workers, cpus=cpus, deadline=deadline)
        self.recipe = Recipe(
            pipeline=Path(),
            evaluator=Path(),
            pictures=lambda: (tiny.PIXELS, tiny.PROMPTS),
            prompts=tiny.PROMPTS,
            references=lambda: tiny.PIXELS,
            bench=tiny.BENCH,
            sampling=Sampling(prompts=PROMPTS, batch=BATCH),
            pools=Pools(scoring, Pool(), Pool(), tries=tries),
        )
        self.watch = silent
        self._fake = tiny.FakePerformer(SPACE, WORTH, noise=0.001, slower=1.05, prompts=PROMPTS)
        self._trouble, self._seconds = trouble, seconds

    def profile(self) -> Outcome:
        return self._fake.profile()

    def reference(self) -> Outcome:
        return {"real": [1.0], "mismatched": [0.0], "real_recall": 1.0}

    def train(self, task: Train, parent: Network, edited: Network) -> Outcome:
        return {"steps": 1, "losses": [1.0]}

    def measure(self, spec: UNetSpec) -> Outcome:
        return self._fake.measure(spec)

    def own_weights(self, network: Network, number: int) -> dict[str, np.ndarray]:
        return {"number": np.array(number, np.float32)}

    def embedded(
        self,
        network: Network,
        weights: dict[str, np.ndarray] | None,
        removed: str | None,
        shard: int,
    ) -> Embedded:
        time.sleep(self._seconds)
        if removed in self._trouble.poison:
            os.kill(os.getpid(), signal.SIGKILL)
        while removed in self._trouble.hanging:
            time.sleep(1)
        spec = tiny.without(network.spec, removed) if removed else network.spec
        cosines = np.array(self._fake.cosines(spec), np.float32)[shard * BATCH :][:BATCH, None]
        if removed in self._trouble.no_number:
            cosines[-1] = np.nan
        # Another network's weights would give another score.
        by = 0 if weights is None else weights["number"]
        return Embedded(cosines + np.float32(0.001) * by, np.ones_like(cosines))


def entries(folder: Path) -> dict[Task, Outcome]:
    """The tasks of a search and their outcomes, without what they cost."""
    with Journal(folder / "journal.jsonl", {}) as journal:
        found = [
            (task, {k: x for k, x in outcome.items() if k != "cost"}) for task, outcome in journal
        ]
    assert len(dict(found)) == len(found), "a task was performed twice"
    return dict(found)


def go_on(folder: Path, executor: Executor[FakeWorker], ours: FakeWorker) -> State:
    """Goes on with a search in `folder`; returns its last state."""
    with Journal(folder / "journal.jsonl", {}) as journal:
        for _ in search_abreast(STRATEGY, Conductor(ours, executor), journal):  # pyright: ignore
            pass
        return replay(STRATEGY, journal)


def main(folder: str, address: str | None = None, registry: str | None = None) -> int:
    ours = functools.partial(FakeWorker, seconds=0.1)
    noted = functools.partial(ours, registry=Path(registry) if registry else None)
    with OnRay(noted, address=address) as on_ray:
        go_on(Path(folder), on_ray, ours())
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: main(*sys.argv[1:])))
