"""Wall-clock latency on the local device, of calls and of whole networks alike.

Things that will be compared are measured in turns (A B C A B C ...), so that a machine that slows
down meanwhile slows all of them and their ratios hold.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from latency_models.latency import Latency, Spread
from search_spaces.ops import Call, Shape, model
from search_spaces.program import Program, network

Run: TypeAlias = Callable[[], None]
# Is told what is being done ("compile", "measure") and the share of it that is done.
Progress: TypeAlias = Callable[[str, float], None]

PROBABILITIES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to measure, and by which clock.

    `seconds` are shared by all that is measured together and split evenly over `rounds`, with
    `pause_s` between them. However slow the runs, every round takes at least `repeats` of each.
    Rounds tell a machine's slow minutes from a slow op: with two or more, the estimate is the
    median of the rounds' medians, and its error is how far those differ.
    """

    seconds: float = 1.0
    rounds: int = 1
    repeats: int = 10
    warmup: int = 3
    pause_s: float = 0.0
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.repeats < 1 or self.rounds * self.repeats < 2:
            raise ValueError(
                f"{self.rounds} rounds of {self.repeats} repeats have no spread; "
                "an error bar takes at least two runs"
            )


PLAN = Plan()


def measure(call: Call, plan: Plan = PLAN) -> Latency:
    """Latency of one forward pass of `call`."""
    return measure_all([prepare(call)], plan)[0]


def measure_network(program: Program, inputs: Mapping[str, Shape], plan: Plan = PLAN) -> Latency:
    """Latency of one forward pass of the whole program, compiled as one."""
    return measure_all([prepare_network(program, inputs)], plan)[0]


def measure_calls(
    calls: Iterable[Call], plan: Plan = PLAN, progress: Progress | None = None
) -> list[Latency]:
    """Latencies of the calls, in their order: all are compiled first, then measured in turns."""
    calls, runs = tuple(calls), []
    for call in calls:
        runs.append(prepare(call))
        if progress:
            progress("compile", len(runs) / len(calls))
    return measure_all(runs, plan, progress)


def measure_all(
    runs: Sequence[Run], plan: Plan = PLAN, progress: Progress | None = None
) -> list[Latency]:
    """Latencies of the runs, in their order, measured in turns. A run returns once it is done."""
    if not runs:
        return []
    for _, run in itertools.product(range(plan.warmup), runs):
        run()
    rounds = []
    for number in range(plan.rounds):
        if number and plan.pause_s:
            plan.sleep(plan.pause_s)
        turns = []
        for turn, share in _turns(runs, plan):
            turns.append(turn)
            if progress:
                progress("measure", (number + share) / plan.rounds)
        rounds.append(np.array(turns))  # [turns, runs]
    return [_summary([times[:, i] for times in rounds]) for i in range(len(runs))]


def _turns(runs: Sequence[Run], plan: Plan) -> Iterator[tuple[list[float], float]]:
    """Yields the milliseconds of each run, once a turn, and the share of the round that is over."""
    begin, span = plan.clock(), plan.seconds / plan.rounds
    for turn in itertools.count(1):
        times = [_timed(run, plan.clock) for run in runs]
        over = (plan.clock() - begin) / span if span > 0 else 1.0
        share = min(1.0, turn / plan.repeats, over)
        yield times, share
        if share == 1.0:
            return


def _timed(run: Run, clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return 1e3 * (clock() - start)


def _summary(rounds: Sequence[np.ndarray]) -> Latency:
    samples = np.concatenate(rounds)
    centres = np.array([np.median(times) for times in rounds]) if len(rounds) > 1 else samples
    quantiles = tuple(float(q) for q in np.quantile(samples, PROBABILITIES))
    return Latency(
        float(np.median(centres)), standard_error(centres), Spread(len(samples), quantiles)
    )


def standard_error(samples: np.ndarray) -> float:
    """Standard error of the median of `samples`.

    It is half the distance of the quantiles one binomial deviation to either side, so neither a
    long tail nor a few interrupted runs widen it. Of few samples it is rather too large.
    """
    aside = 0.5 / math.sqrt(len(samples))
    low, high = np.quantile(samples, [0.5 - aside, 0.5 + aside], method="hazen")
    return float(high - low) / 2


def prepare(call: Call) -> Run:
    """Returns `call`, compiled, as a run."""
    op = model(call)
    return _prepared(op, op.initial(0), call.inputs)


def prepare_network(program: Program, inputs: Mapping[str, Shape]) -> Run:
    """Returns the whole program, compiled as one, as a run."""
    whole = network(program, inputs)
    return _prepared(whole, whole.initial(0), (dict(inputs),))


def _prepared(
    forward: Callable[..., Any], weights: Mapping[str, jax.Array], inputs: tuple[Any, ...]
) -> Run:
    rng = np.random.default_rng(0)
    values = jax.device_put(jax.tree.map(lambda shape: draw(rng, shape), inputs))
    compiled = jax.jit(forward).lower(weights, *values).compile()

    def run() -> None:
        jax.block_until_ready(compiled(weights, *values))

    return run


def draw(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Draws an input on the host: normal numbers, or zeros and ones where it holds integers.

    Normal numbers, since some hardware multiplies zeros faster; zeros and ones, since those are
    indices into any table but the trivial one.
    """
    if jnp.issubdtype(shape.dtype, jnp.inexact):
        return rng.standard_normal(shape.shape).astype(shape.dtype)
    return rng.integers(2, size=shape.shape).astype(shape.dtype)
