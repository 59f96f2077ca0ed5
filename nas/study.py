"""A space of anybody's own, with how it is evaluated: what `nas explore` searches."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Generic

from latency_models.latency import Latency
from nas import plugins
from nas.conduct import clear, label
from nas.executors import Executor, Pool
from nas.exploring import Limit
from nas.journal import Outcome
from nas.strategies.exploration import Evaluate
from nas.strategies.outcomes import scored
from nas.strategies.problem import Device, Problem
from search_spaces.space import Space, Spec


@dataclasses.dataclass(frozen=True)
class Study(Generic[Spec]):
    """A space, how long its specs take on which devices, and what they are worth.

    `evaluate(spec, shard)` gives the scores of a shard, of which there are `shards`; more is
    better. It and the latencies are pure functions, as a journal is gone on with. `specs` are all
    specs of the space where they are few enough to be listed. `pool` is what workers on Ray are
    given, and how long they may take for a shard; the result does not depend on it.
    """

    space: Space[Spec]
    devices: Mapping[str, Callable[[Spec], Latency]]
    evaluate: Callable[[Spec, int], Iterable[float]]
    shards: int = 1
    specs: tuple[Spec, ...] = ()
    pool: Pool = Pool(workers=None, cpus=1.0)

    def __post_init__(self) -> None:
        if self.pool.hosts > 1:
            raise ValueError(
                f"a study's workers are of one host, not of {self.pool.hosts}; a candidate is "
                "evaluated by one process"
            )

    def problem(self, limits: Mapping[str, Limit], caution: float = 0.0) -> Problem[Spec]:
        """The space within these limits; shares are of what its first spec takes. A device without
        a limit takes no part in the search. Raises `ValueError` on a device that it has not."""
        if unknown := [name for name in limits if name not in self.devices]:
            raise ValueError(
                f"no device {', '.join(unknown)} in this study, which has {', '.join(self.devices)}"
            )
        first = self.space.initial()
        devices = {
            name: Device(self.devices[name], limit.ms(self.devices[name](first)))
            for name, limit in limits.items()
        }
        return Problem(self.space, devices, self.shards, caution, self.specs)


def load(path: str) -> Study[Any]:
    """The study of that name among `nas.search_spaces`, or at an import path. Raises `ValueError`
    saying why there is none."""
    made = plugins.load("nas.search_spaces", path)
    if not callable(made):
        raise ValueError(f"no study {path}: a {type(made).__name__} is no function")
    found = made()
    if not isinstance(found, Study):
        raise ValueError(
            f"{path} gives a {type(found).__name__}, not a nas.study.Study; recipes of U-Nets are "
            "for nas search"
        )
    return found


class Evaluators:
    """A crew of workers that are studies, and evaluate candidates shard by shard."""

    def __init__(self, executor: Executor[Study[Any]], pool: Pool):
        self._executor, self._pool = executor, pool

    def start(self, strategy: Any, state: Any, task: Evaluate) -> Future[Outcome]:
        """Has a shard evaluated. One that raises or kills its worker as often as is allowed has
        failed, and the search does without its candidate."""
        call = self._executor.submit(
            self._pool, evaluated, task.spec, task.shard, label=label(task)
        )
        return clear(task, call)

    def wait(self) -> None:
        """Returns when an evaluation is done."""
        self._executor.wait()


class Raised(Exception):
    """An evaluation raised a `ValueError`. It tells of the candidate, as any other exception does,
    and not of the input of the search, which executors take a `ValueError` for."""


def evaluated(study: Study[Any], spec: Any, shard: int) -> Outcome:
    try:
        scores = study.evaluate(spec, shard)
    except ValueError as error:
        raise Raised(f"{type(error).__name__}: {error}") from error
    return scored(scores)
