"""Performs tasks with an executor: cuts them into calls, and puts together what comes back.

The calls of a task are independent, and their results are put together in the order of the calls,
so an outcome is the same to the bit however many workers there were and whichever ended first.
"""

import functools
import itertools
import math
import time
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from latency_models.provenance import Provenance
from nas import exploring
from nas.evolution import (
    Evolve,
    Measure,
    Network,
    Outcome,
    Profile,
    Reference,
    Score,
    Train,
    Validate,
)
from nas.executors import (
    Executor,
    Failed,
    Here,
    Label,
    Pool,
    Shared,
    ended,
    finish,
    together,
)
from nas.exploring import ROBUST, Compare, Exploring, Price
from nas.perform import SHOWN, Cost, Embedded, Found, Performer, costed, recall
from nas.scoring import abreast
from nas.strategies.exploration import Evaluate
from nas.timings import Timings


class Conductor:
    """Has tasks performed by the executor's workers, which are performers as `performer` is.

    `performer` itself, of this process, reads weights from the folder and writes the result. A
    worker scores `abreast` shards at once, and is said to spend so much less time on each.
    `timings` are those that the executor's observer keeps.
    """

    def __init__(
        self,
        performer: Performer,
        executor: Executor[Performer],
        *,
        abreast: int = 1,
        timings: Timings | None = None,
    ):
        self.performer, self._executor, self._abreast = performer, executor, abreast
        self._timings = timings or Timings()
        self._pools = performer.recipe.pools
        self._sent: tuple[int, Shared[Any]] | None = None  # The newest weights, and whose.

    def start(self, strategy: Any, state: Any, task: Any) -> Future[Outcome]:
        """Has `task` performed. The outcome says under "cost" what it took, which may differ from
        run to run.

        A candidate that cannot be scored has an outcome too, which says why under "failed": it
        killed a worker or overran the deadline as often as is allowed, or its score is no number.
        `strategy` is an `Evolution` or an `Exploring`, and the others are its own.
        """
        pools = self._pools
        match task:
            case Profile():
                return self._one(task, pools.measuring, Performer.profile)
            case Measure(number):
                return self._one(
                    task, pools.measuring, Performer.measure, state.networks[number].spec
                )
            case Reference():
                return self._one(task, pools.scoring, Performer.reference)
            case Train(_, parent):
                networks = (state.networks[parent], strategy.edited(state, task))
                return self._one(task, pools.training, Performer.train, task, *networks)
            case Validate(number):
                network = state.networks[number]
                return self._one(task, pools.training, Performer.validate, network, number)
            case Score():
                return self._score(state, task)
            case Evaluate():
                return self._evaluate(strategy, state, task)
            case Price(device):
                return self._one(task, pools.measuring, Performer.price, device, strategy.edits)
            case Compare(number, device):
                spec = state.networks[number].spec
                return self._one(task, pools.measuring, Performer.compare, spec, device)
            case Evolve(number):
                begun = time.perf_counter()
                with self._timings.doing(label(task)):
                    decision = strategy.decide(state, number)
                return ended(_with_cost(decision, [Cost(time.perf_counter() - begun, 0, 0.0)]))
            case _:
                raise ValueError(f"no performer knows of {task}")

    def wait(self) -> None:
        """Returns when a call is done, which may be a part of a task."""
        self._executor.wait()

    def provenance(self, device: str | None = None) -> Provenance:
        """What latencies are measured on: the measuring workers' device and software, or one of the
        recipe's devices."""
        asked = Label("measuring", "device and software")
        call = self._executor.submit(
            self._pools.measuring, Performer.provenance, device, label=asked
        )
        (found,) = finish(self._executor, [call])
        return found

    def deliver(self, state: Found) -> None:
        """Writes pictures before and after, then the pipeline with the search's last network."""
        self.performer.deliver(state, self._pictures)

    def _one(self, task: Any, pool: Pool, method: Any, *arguments: Any) -> Future[Outcome]:
        """A task that is one call."""
        call = self._submit(pool, label(task), method, *arguments)
        return together([clear(task, call)], lambda parts: _with_cost(parts[0][0], [parts[0][1]]))

    def _submit(self, pool: Pool, name: Label, method: Any, *arguments: Any) -> Future[Any]:
        """A call of a performer's method; its future is of the value and the cost."""
        call = self._executor.submit(pool, costed, method, *arguments, label=name)
        call.add_done_callback(functools.partial(self._compiled, name))
        return call

    def _compiled(self, name: Label, call: Future[Any]) -> None:
        if not call.cancelled() and call.exception() is None:
            _, cost = call.result()
            self._timings.compiled(name, cost.compiles, cost.compile_seconds)

    def _evaluate(self, strategy: Exploring, state: exploring.State, task: Evaluate) -> Future[Any]:
        """A shard of a candidate."""
        call = self._submit(
            self._pools.scoring,
            label(task),
            Performer.candidate,
            strategy.network(task.spec),
            self._weights(state.networks[ROBUST], ROBUST),
            task.spec,
            task.shard,
        )

        def outcome(parts: list[tuple[Embedded, Cost]]) -> Outcome:
            found = self._scored(parts)
            return {"scores": found["cosines"], "cost": found["cost"]}

        return clear(task, together([call], outcome))

    def _score(self, state: Found, task: Score) -> Future[Outcome]:
        network = state.networks[task.number]
        given = (network, self._weights(network, task.number), task.removed)
        calls = [
            self._submit(
                self._pools.scoring,
                label(task)._replace(shard=shard),
                Performer.embedded,
                *given,
                shard,
            )
            for shard in range(self._shards)
        ]
        done = itertools.count(1)
        for call in calls:
            call.add_done_callback(lambda _: self.performer.watch("score", next(done) / len(calls)))
        return clear(task, together(calls, self._scored))

    def _scored(self, parts: list[tuple[Embedded, Cost]]) -> Outcome:
        """The outcome of a score, of its shards in order."""
        found, costs = zip(*parts, strict=True)
        images, prompts = (np.concatenate(rows) for rows in zip(*found, strict=True))
        cosines = (images * prompts).sum(-1)
        wrong = int((~np.isfinite(cosines)).sum())
        if wrong:
            raise Failed(f"its score is no number for {wrong} of {len(cosines)} prompts")
        outcome = {"cosines": [float(c) for c in cosines], "recall": recall(images, prompts)}
        return _with_cost(outcome, [c._replace(seconds=c.seconds / self._abreast) for c in costs])

    def _weights(self, network: Network, number: int) -> Shared[Any] | None:
        """The weights of network `number` for calls, sent once; `None` for the seed's."""
        if number == 0:
            return None
        if self._sent is None or self._sent[0] != number:
            own = jax.tree.map(np.asarray, self.performer.own_weights(network, number))
            self._sent = (number, self._executor.share(own))
        return self._sent[1]

    @property
    def _shards(self) -> int:
        sampling = self.performer.recipe.sampling
        return sampling.prompts // sampling.batch

    def _pictures(self, network: Network, number: int) -> np.ndarray:
        """The first pictures of network `number`."""
        weights = self._weights(network, number)
        wanted = math.ceil(SHOWN / self.performer.recipe.sampling.batch)
        calls = [
            self._executor.submit(
                self._pools.scoring,
                Performer.pictures,
                network,
                weights,
                shard,
                label=Label("pictures", f"network {number}", shard),
            )
            for shard in range(min(wanted, self._shards))
        ]
        return np.concatenate(finish(self._executor, calls))[:SHOWN]


def in_process(performer: Performer, timings: Timings | None = None) -> Conductor:
    """Performs tasks in this process, shards of scores several at once."""
    threads, timings = abreast(), timings or Timings()
    tries = performer.recipe.pools.tries
    executor = Here(performer, threads=threads, tries=tries, observer=timings)
    return Conductor(performer, executor, abreast=threads, timings=timings)


def label(task: Any) -> Label:
    """What a task is for: of what phase of the search it is, and about what."""
    match task:
        case Profile():
            return Label("measuring", "latency table")
        case Measure(number):
            return Label("measuring", f"network {number}")
        case Reference():
            return Label("scoring", "real pictures")
        case Score(number, removed):
            return Label(
                "scoring", f"network {number}" + (f" without {removed}" if removed else "")
            )
        case Train(number, _, _, objective):
            return Label("training", f"network {number}, {objective}")
        case Validate(number):
            return Label("validating", f"network {number}")
        case Evolve(number):
            return Label("deciding", f"network {number}")
        case Evaluate(number, _, shard):
            return Label("scoring", f"candidate {number + 1}", shard)
        case Price(device):
            return Label("measuring", f"latency table of {device}")
        case Compare(number, device):
            return Label("measuring", f"network {number} on {device}")
        case _:
            raise ValueError(f"no performer knows of {task}")


def _with_cost(outcome: Outcome, costs: list[Cost]) -> Outcome:
    seconds, compiles, compile_seconds = (sum(column) for column in zip(*costs, strict=True))
    cost = {
        "seconds": round(seconds, 3),
        "compiles": compiles,
        "compile_seconds": round(compile_seconds, 3),
    }
    return {**outcome, "cost": cost}


def clear(task: Any, future: Future[Any]) -> Future[Any]:
    """`future`, where a call that failed for good is the outcome of a candidate, as a search can
    do without it, and otherwise an error that says which task cannot be performed."""
    found: Future[Any] = Future()

    def note(_: Future[Any]) -> None:
        if future.cancelled() or found.done():
            found.cancel()
            return
        error = future.exception()
        if error is None:
            found.set_result(future.result())
        elif not isinstance(error, Failed):
            found.set_exception(error)
        elif isinstance(task, Evaluate) or (isinstance(task, Score) and task.removed is not None):
            found.set_result({"failed": str(error), "cost": {"seconds": 0.0}})
        else:
            found.set_exception(ValueError(f"{task} cannot be performed: {error}"))

    found.add_done_callback(lambda _: future.cancel())
    future.add_done_callback(note)
    return found
