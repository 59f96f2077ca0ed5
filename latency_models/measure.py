"""Wall-clock latency on this machine, of calls and of whole networks alike, by any runtime.

Things that will be compared are measured in turns (A B C A B C ...), so that a machine that slows
down meanwhile slows all of them and their ratios hold. In each turn a run is a loop, as a sampler
runs a network, of which the later half is timed: what it takes whatever ran before it. A long
network has the caches to itself after one run, a short one after some (`benchmarks.loops`).
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from latency_models.latency import PROBABILITIES, Latency, Spread, Whole
from latency_models.pages import collapse
from latency_models.runtimes import Run, Runtime, Subject
from latency_models.runtimes.xla import XLA
from search_spaces.ops import Call, Shape
from search_spaces.program import Program

# Is told what is being done ("compile", "measure") and the share of it that is done.
Progress: TypeAlias = Callable[[str, float], None]

# Runs in a loop; the milliseconds that a run took.
Timer: TypeAlias = Callable[[], float]

# Milliseconds of one run, by the number of the round they were taken in.
Rounds: TypeAlias = dict[int, np.ndarray]


def throttled() -> int | None:
    """How often this machine's cores have slowed down for heat since it started; none where the
    kernel does not say, as in virtual machines."""
    counters = Path("/sys/devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count")
    counts = [int(counter.read_text()) for counter in counters]
    return sum(counts) if counts else None


@dataclasses.dataclass(frozen=True)
class Target:
    """How sure a measurement has to be, and when it says that it cannot be.

    Rounds are added until `confidence` holds for the estimate within `relative` of itself, or until
    `limit_s` seconds are over. What is then still further off than `useless`, or became slower or
    faster by more than `drift` from the first third of the rounds to the last, steadily, means
    nothing.
    """

    relative: float = 0.02
    """Half the width of the interval that is wanted, as a share of the latency."""
    confidence: float = 0.95
    """Of that interval."""
    limit_s: float = 120.0
    """Seconds after which no round is added, for all that is measured in turns."""
    useless: float = 0.1
    """Half the width from which on a latency is refused."""
    drift: float = 0.05
    """Change from the first to the last third of the rounds from which on it is refused."""
    pace: float = 0.05
    """Change of all that is measured together from which on a round is left out: see `usual`."""
    corrected: float = 0.25
    """Change of the yardsticks, where there are some, up to which a round is put right by it, and
    from which on it is left out."""

    def __post_init__(self) -> None:
        shares = (
            0 < self.relative <= self.useless and min(self.drift, self.pace, self.corrected) > 0
        )
        if not (0 < self.confidence < 1 and shares):
            raise ValueError(
                f"{self}: a confidence is between 0 and 1, and the accuracy that is wanted is no "
                "coarser than the one that is useless"
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to measure, and by which clock.

    `seconds` are shared by all that is measured together and split evenly over `rounds`, with
    `pause_s` between them. However slow the runs, every round takes at least `repeats` turns, in
    each of which each runs in a loop of `loop_s` seconds, twice at least.
    Rounds tell a machine's slow minutes from a slow op: with two or more, the estimate is the
    median of the rounds' medians, and its error is how far those differ.

    Without a `target` whatever comes out is reported, with its error. With one, there are more
    rounds where they are needed, those in which the whole machine was slow do not count, and
    `TooNoisy` is raised where that does not help. `throttled` counts the times that the machine
    slowed down for heat, and `settle` runs once all that is timed has its memory.
    """

    seconds: float = 1.0
    rounds: int = 1
    repeats: int = 10
    warmup: int = 3
    pause_s: float = 0.0
    loop_s: float = 0.04
    target: Target | None = None
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    throttled: Callable[[], int | None] = throttled
    settle: Callable[[], None] = collapse

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.repeats < 1 or self.rounds * self.repeats < 2:
            raise ValueError(
                f"{self.rounds} rounds of {self.repeats} repeats have no spread; "
                "an error bar takes at least two runs"
            )
        if self.target and self.rounds < 5:
            raise ValueError(
                f"{self.rounds} rounds cannot tell a drift from chance; "
                "a plan with a target has at least five"
            )


PLAN = Plan()


class TooNoisy(ValueError):
    """Measurements came out too uncertain to mean anything. `latencies` are those that did not, in
    their order, with none in place of the others; `reasons` say why of those, and none of these."""

    def __init__(
        self, message: str, latencies: Sequence[Latency | None], reasons: Sequence[str | None]
    ):
        super().__init__(message)
        self.latencies, self.reasons = tuple(latencies), tuple(reasons)


ADVICE = (
    "end what else runs on this machine, pin cores and threads, or give it more time (limit_s) or "
    "longer pauses (pause_s)"
)
"""What to do where measurements are too noisy."""


def measure(call: Call, plan: Plan = PLAN, runtime: Runtime = XLA()) -> Latency:
    """Latency of one forward pass of `call`."""
    return measure_subjects([call], plan, runtime=runtime)[0]


def measure_network(
    program: Program,
    inputs: Mapping[str, Shape],
    plan: Plan = PLAN,
    runtime: Runtime = XLA(),
) -> Latency:
    """Latency of one forward pass of the whole program, compiled as one."""
    return measure_subjects([Whole(program, inputs)], plan, runtime=runtime)[0]


def measure_subjects(
    subjects: Iterable[Subject],
    plan: Plan = PLAN,
    progress: Progress | None = None,
    runtime: Runtime = XLA(),
) -> list[Latency]:
    """Latencies of calls and whole networks, in their order: all are compiled first, then measured
    in turns."""
    subjects, runs = tuple(subjects), []
    for subject in subjects:
        runs.append(runtime.prepare(subject).run)
        if progress:
            progress("compile", len(runs) / len(subjects))
    return measure_all(runs, plan, progress)


def measure_all(
    runs: Sequence[Run],
    plan: Plan = PLAN,
    progress: Progress | None = None,
    yardsticks: Mapping[int, float] = MappingProxyType({}),
) -> list[Latency]:
    """Latencies of the runs, in their order, measured in turns. A run returns once it is done.

    `yardsticks` are milliseconds that some runs, by their indices, took when they were measured
    before: with a target, what a round took is divided by what these took in it over what they took
    then, so what is measured today compares with what was measured then. Raises `TooNoisy` as the
    target asks.
    """
    if not runs:
        return []
    heat = plan.throttled()
    for _, run in itertools.product(range(plan.warmup), runs):
        run()
    plan.settle()
    begin = plan.clock()
    timers = [_timer(run, plan) for run in runs]
    rounds: list[Rounds] = [{} for _ in runs]
    for number in range(plan.rounds):
        _round(number, timers, rounds, plan, progress)
    target = plan.target
    if target is None:
        return [_summary(times, list(times.values())) for times in rounds]
    for number in itertools.count(plan.rounds):
        found = _steady(rounds, target, yardsticks)
        sure = all(_sure(latency, target) for latency in found)
        if sure or plan.clock() - begin >= target.limit_s:
            break
        # All of them, so that they are compared over the same time.
        _round(number, timers, rounds, plan, None)
    return _meaningful(rounds, target, yardsticks, _rise(heat, plan.throttled()))


def _round(
    number: int,
    timers: Sequence[Timer],
    rounds: Sequence[Rounds],
    plan: Plan,
    progress: Progress | None,
) -> None:
    """Measures all in turns, and adds the times of each to its rounds."""
    if number and plan.pause_s:
        plan.sleep(plan.pause_s)
    turns = []
    for turn, share in _turns(timers, plan):
        turns.append(turn)
        if progress:
            progress("measure", (number + share) / plan.rounds)
    for times, column in zip(rounds, np.array(turns).T, strict=True):
        times[number] = column


def _turns(timers: Sequence[Timer], plan: Plan) -> Iterator[tuple[list[float], float]]:
    """Yields the milliseconds of each run, once a turn, and the share of the round that is over."""
    begin, span = plan.clock(), plan.seconds / plan.rounds
    for turn in itertools.count(1):
        times = [timer() for timer in timers]
        over = (plan.clock() - begin) / span if span > 0 else 1.0
        share = min(1.0, turn / plan.repeats, over)
        yield times, share
        if share == 1.0:
            return


def _timer(run: Run, plan: Plan) -> Timer:
    return lambda: 1e3 * steady(loop(run, plan.loop_s, plan.clock))


def loop(run: Run, seconds: float, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each run, one after the other, for so long and twice at least."""
    begin = now = clock()
    times: list[float] = []
    while len(times) < 2 or now - begin < seconds:
        run()
        before, now = now, clock()
        times.append(now - before)
    return times


def steady(times: Sequence[float]) -> float:
    """What a run takes once the caches are its own: the median of the later half of a loop."""
    return float(np.median(times[len(times) // 2 :]))


def _summary(rounds: Rounds, times: Sequence[np.ndarray]) -> Latency:
    """Of the rounds that count, `times`; the spread is that of all."""
    samples = np.concatenate(list(rounds.values()))
    centres = _centres(times) if len(times) > 1 else np.concatenate(times)
    quantiles = tuple(float(q) for q in np.quantile(samples, PROBABILITIES))
    return Latency(
        float(np.median(centres)), standard_error(centres), Spread(len(samples), quantiles)
    )


def _centres(rounds: Iterable[np.ndarray]) -> np.ndarray:
    return np.array([np.median(times) for times in rounds])


_FEWEST = 5  # Rounds, for there to be a median with an error.


def _counted(
    rounds: Sequence[Rounds], target: Target, yardsticks: Mapping[int, float]
) -> list[list[np.ndarray]]:
    """The rounds that count, of each run, put right by what yardsticks say of the pace of each.
    There are fewer than five only where yardsticks say so."""
    if yardsticks:
        at = paces(rounds, yardsticks)
        near = {number for number in at if abs(at[number] - 1) <= target.corrected}
        return [[took / at[i] for i, took in times.items() if i in near] for times in rounds]
    steady = usual(rounds, target.pace)
    own = [[times[number] for number in times if number in steady] for times in rounds]
    return [
        some if len(some) >= _FEWEST else list(times.values())
        for some, times in zip(own, rounds, strict=True)
    ]


def _steady(
    rounds: Sequence[Rounds], target: Target, yardsticks: Mapping[int, float]
) -> list[Latency | None]:
    """Latencies of each run; none where too few rounds count."""
    counted = _counted(rounds, target, yardsticks)
    return [
        _summary(times, some) if len(some) >= _FEWEST else None
        for times, some in zip(rounds, counted, strict=True)
    ]


def usual(rounds: Sequence[Rounds], pace: float) -> frozenset[int]:
    """Numbers of the rounds in which the machine ran as it mostly does.

    Machines that others share are slow for seconds, in all that they run, and what is slow in such
    a round is not the run. All runs are held against what they mostly take, if there are three or
    more, and a round is left out where they took longer or shorter, in the median, by more than
    `pace`. If that leaves out half of the rounds, nothing is usual and all of them count.
    """
    every = sorted({number for times in rounds for number in times})
    mostly = [float(np.median(_centres(times.values()))) for times in rounds]
    found = []
    for number in every:
        ran = [i for i, times in enumerate(rounds) if number in times]
        own = [float(np.median(rounds[i][number])) / mostly[i] for i in ran]
        if len(own) < 3 or abs(float(np.median(own)) - 1) <= pace:
            found.append(number)
    return frozenset(found if 2 * len(found) > len(every) else every)


def paces(rounds: Sequence[Rounds], yardsticks: Mapping[int, float]) -> dict[int, float]:
    """What the yardsticks took in each round over what they took before, in the median."""
    numbers = next(iter(rounds[i] for i in yardsticks))
    return {
        number: float(
            np.median([np.median(rounds[i][number]) / ms for i, ms in yardsticks.items()])
        )
        for number in numbers
    }


def standard_error(samples: np.ndarray) -> float:
    """Standard error of the median of `samples`.

    It is half the distance of the quantiles one binomial deviation to either side, so neither a
    long tail nor a few interrupted runs widen it. Of few samples it is rather too large.
    """
    aside = 0.5 / math.sqrt(len(samples))
    low, high = np.quantile(samples, [0.5 - aside, 0.5 + aside], method="hazen")
    return float(high - low) / 2


def _sure(latency: Latency | None, target: Target) -> bool:
    return (
        latency is not None
        and latency.half_width(target.confidence) <= target.relative * latency.ms
    )


def _rise(before: int | None, after: int | None) -> int:
    return after - before if before is not None and after is not None else 0


def _meaningful(
    rounds: Sequence[Rounds], target: Target, yardsticks: Mapping[int, float], heat: int
) -> list[Latency]:
    """Latencies of the rounds of each run. Raises `TooNoisy` if one means nothing."""
    if heat:
        hot = f"the machine slowed itself down for heat {heat} times while this was measured"
        raise TooNoisy(
            f"{hot}; let it cool, and measure fewer things at once or with longer pauses (pause_s)",
            [None] * len(rounds),
            [hot] * len(rounds),
        )
    found, counted = _steady(rounds, target, yardsticks), _counted(rounds, target, yardsticks)
    pace = float(np.median([*paces(rounds, yardsticks).values()])) if yardsticks else 1.0
    reasons = [
        f"the machine ran about as fast as before in {len(some)} of {len(times)} rounds, and took "
        f"mostly {pace:.2f} times as long"
        if latency is None
        else _meaningless(some, latency, target)
        for times, some, latency in zip(rounds, counted, found, strict=True)
    ]
    if wrong := [reason for reason in reasons if reason]:
        raise TooNoisy(
            f"{len(wrong)} of {len(found)} measurements mean nothing, e.g. {wrong[0]}; {ADVICE}",
            [None if reason else row for reason, row in zip(reasons, found, strict=True)],
            reasons,
        )
    return [latency for latency in found if latency]


def _meaningless(rounds: Sequence[np.ndarray], latency: Latency, target: Target) -> str | None:
    """Why a measurement says nothing; none where it does."""
    moved, aside = drift(_centres(rounds)), latency.half_width(target.confidence) / latency.ms
    if abs(moved) > target.drift:
        way = "slower" if moved > 0 else "faster"
        return f"{latency} became {abs(moved):.0%} {way} meanwhile, of {target.drift:.0%} allowed"
    if aside > target.useless:
        runs = latency.spread.repeats if latency.spread else 0
        known = f"within {aside:.0%} at {target.confidence:.0%}"
        return f"{latency} is known {known} after {runs} runs, of {target.useless:.0%} allowed"
    return None


def drift(centres: np.ndarray) -> float:
    """By how much the last third of the rounds is slower than the first, relative to the first;
    nothing if that may be chance (Mann's test of a trend, at one in twenty)."""
    trend: Any = stats.kendalltau(range(len(centres)), centres)
    if trend.pvalue >= 0.05:
        return 0.0
    third = len(centres) // 3
    return float(np.median(centres[-third:]) / np.median(centres[:third]) - 1)
