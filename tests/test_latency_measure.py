import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest

from latency_models.latency import Latency, Spread, Whole
from latency_models.measure import (
    PROBABILITIES,
    Plan,
    Target,
    TooNoisy,
    drift,
    measure,
    measure_all,
    measure_network,
    measure_subjects,
    standard_error,
    usual,
)
from latency_models.runtimes import draw
from latency_models.runtimes.xla import XLA
from search_spaces.blocks import Conv, ResNet
from search_spaces.model import Model
from search_spaces.ops import Call
from search_spaces.program import Step

IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 4), "float32")
CONV, RESNET = Call(Conv(4), (IMAGE,)), Call(ResNet(4, groups=2), (IMAGE,))
PROGRAM = (Step("conv_in", Conv(4), ("sample",)), Step("conv_out", Conv(4), ("conv_in",)))


@dataclasses.dataclass
class Machine:
    """A clock that only work and sleep advance. Work takes `slowness(now)` times its cost."""

    now: float = 0.0
    slept: int = 0
    log: str = ""

    def plan(self, seconds: float = 0.0, **options: Any) -> Plan:
        options = {"throttled": lambda: None, **options}
        given = {"loop_s": 0.0, **options}
        return Plan(seconds, **given, clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now, self.slept, self.log = self.now + seconds, self.slept + 1, f"{self.log}|"

    def slowness(self) -> float:
        return 1.0

    def work(self, name: str, ms: float) -> None:
        self.now += 1e-3 * ms * self.slowness()
        self.log += name

    def runs(self, **costs: float):
        return [functools.partial(self.work, name, ms) for name, ms in costs.items()]


class Tiring(Machine):
    def slowness(self) -> float:
        return 1.0 + self.now


class Ticking:
    """A clock that advances by `ms` whenever it is read."""

    def __init__(self, ms: float):
        self.ms, self.reads = ms, 0

    def __call__(self) -> float:
        self.reads += 1
        return 1e-3 * self.ms * self.reads


def test_things_measured_together_take_turns():
    machine = Machine()
    plan = machine.plan(warmup=1, repeats=2, rounds=2, pause_s=5.0)
    measure_all(machine.runs(A=1, B=2, C=3), plan)
    assert machine.log == "ABC" + "AABBCCAABBCC" + "|" + "AABBCCAABBCC"


def test_what_ran_before_does_not_matter():
    class Cold(Machine):
        """The first three runs after another take five times as long."""

        def work(self, name: str, ms: float) -> None:
            super().work(name, ms if self.log.endswith(3 * name) else 5 * ms)

    machine = Cold()
    found = measure_all(machine.runs(A=1, B=2), machine.plan(loop_s=0.06))
    assert [row.ms for row in found] == pytest.approx([1, 2])


def test_the_later_half_of_a_loop_counts_and_a_long_run_is_run_twice():
    machine = Machine()
    plan = machine.plan(warmup=0, repeats=2, loop_s=0.006)
    measure_all(machine.runs(A=1, B=10), plan)
    assert machine.log == 2 * ("A" * 6 + "BB")


def test_the_estimate_is_what_the_clock_says():
    machine = Machine()
    a, b = measure_all(machine.runs(A=1.5, B=4), machine.plan())
    assert (a.ms, b.ms) == pytest.approx((1.5, 4))
    assert a.std == pytest.approx(0, abs=1e-9)


def test_ratios_hold_while_the_machine_gets_slower():
    machine = Tiring()
    a, b = measure_all(machine.runs(A=5, B=10), machine.plan(repeats=200))
    assert machine.slowness() > 3
    assert b.ms / a.ms == pytest.approx(2, rel=0.02)


def test_runs_go_on_until_the_time_is_over_but_at_least_as_often_as_asked():
    for seconds, expected in (1.0, 50), (0.01, 10):
        machine = Machine()
        (a,) = measure_all(machine.runs(A=10), machine.plan(seconds=seconds, repeats=10))
        assert a.spread and abs(a.spread.repeats - expected) <= 1


def test_rounds_share_the_time_and_pauses_do_not_count():
    machine = Machine()
    plan = machine.plan(seconds=1.0, rounds=4, pause_s=100.0, warmup=0)
    (a,) = measure_all(machine.runs(A=10), plan)
    assert a.spread and abs(a.spread.repeats - 50) <= 4
    assert machine.slept == 3


def test_one_slow_round_does_not_move_the_estimate_but_shows_in_its_error():
    class Interrupted(Machine):
        def slowness(self) -> float:
            return 3.0 if self.slept == 1 else 1.0

    machine = Interrupted()
    plan = machine.plan(rounds=3, pause_s=1.0, warmup=0)
    (a,) = measure_all(machine.runs(A=10), plan)
    assert a.ms == pytest.approx(10) and 5 < a.std < 15
    assert a.spread and a.spread.quantiles_ms[-1] == pytest.approx(30)


def test_a_few_interrupted_runs_move_neither_the_estimate_nor_its_error():
    class Hiccup(Machine):
        def slowness(self) -> float:
            return 50.0 if len(self.log) % 10 == 9 else 1.0

    machine = Hiccup()
    (a,) = measure_all(machine.runs(A=1), machine.plan(repeats=100))
    assert a.ms == pytest.approx(1) and a.std == pytest.approx(0, abs=1e-9)


def test_the_error_is_that_of_a_median():
    rng = np.random.default_rng(0)
    for count, slack in (100, 1.1), (10, 1.3), (3, 1.4):
        samples = rng.standard_normal((2000, count))
        truth = np.std(np.median(samples, axis=1))
        guess = np.sqrt(np.mean([standard_error(row) ** 2 for row in samples]))
        assert truth <= guess < slack * truth
    assert standard_error(np.array([1.0, 3.0])) == 1


def test_the_spread_is_kept():
    ticks = iter(range(1, 1000))
    machine = Machine()
    run = lambda: machine.work("A", next(ticks))  # noqa: E731
    (a,) = measure_all([run], machine.plan(repeats=101, warmup=0))
    assert a.spread is not None and a.spread.repeats == 101
    assert a.spread.quantiles_ms == pytest.approx([2 + 200 * p for p in PROBABILITIES])


def test_progress_never_goes_back_and_ends_at_one():
    machine, told = Machine(), []
    plan = machine.plan(seconds=0.5, rounds=2)
    measure_subjects([CONV, RESNET], Plan(0.0, repeats=2), lambda *step: told.append(step))
    measure_all(machine.runs(A=10), plan, lambda *step: told.append(step))
    assert told[:2] == [("compile", 0.5), ("compile", 1.0)]
    shares = [share for what, share in told[4:] if what == "measure"]
    assert shares == sorted(shares) and shares[-1] == 1.0 and shares[0] < 0.1


class Noisy(Machine):
    """Takes up to `amount` times as long, by chance and for whole rounds."""

    def __init__(self, amount: float, seed: int = 0):
        super().__init__()
        self.amount, self.rng, self.factor = amount, np.random.default_rng(seed), {}

    def slowness(self) -> float:
        return self.factor.setdefault(self.slept, 1 + self.amount * self.rng.random())


def noisy(amount: float, *, seed: int = 0, **target: Any) -> tuple[Noisy, Latency]:
    machine = Noisy(amount, seed)
    plan = machine.plan(repeats=5, rounds=6, pause_s=1e-9, warmup=0, target=Target(**target))
    return machine, measure_all(machine.runs(A=10), plan)[0]


def test_rounds_are_added_until_the_estimate_is_as_sure_as_asked():
    quiet, loose = noisy(0.001)
    loud, sure = noisy(0.3)
    assert quiet.slept == 5 < loud.slept
    for latency in loose, sure:
        assert latency.half_width(0.95) <= 0.02 * latency.ms
    low, high = sure.interval(0.95)
    assert low < sure.ms < high and high - low == pytest.approx(2 * sure.half_width(0.95))
    assert noisy(0.3, confidence=0.5)[0].slept < loud.slept


def test_where_one_is_not_sure_yet_all_run_on_as_neighbours_are_part_of_what_a_run_takes():
    machine = Noisy(0.3)
    plan = machine.plan(repeats=5, rounds=6, pause_s=1e-9, warmup=0, target=Target())
    steady = lambda: setattr(machine, "now", machine.now + 0.01)  # noqa: E731
    a, b = measure_all([*machine.runs(A=10), steady], plan)
    assert a.spread and b.spread and a.spread.repeats == b.spread.repeats > 30


def test_what_stays_too_noisy_is_refused_with_what_to_do():
    machine = Noisy(30.0)
    plan = machine.plan(rounds=6, pause_s=1e-9, target=Target(limit_s=3.0))
    steady = lambda: setattr(machine, "now", machine.now + 0.01)  # noqa: E731
    with pytest.raises(TooNoisy, match=r"1 of 2 .* known within .* at 95% .* pin cores") as error:
        measure_all([*machine.runs(A=10), steady], plan)
    a, b = error.value.latencies
    assert a is None and b is not None and b.ms == pytest.approx(10)
    assert 3.0 < machine.now < 40.0


def test_what_is_less_sure_than_asked_but_means_something_is_reported():
    machine, latency = noisy(0.1, relative=0.001, limit_s=0.0)
    assert machine.slept == 5 and latency.half_width() > 0.001 * latency.ms


def test_a_machine_that_gets_slower_is_refused_though_the_spread_is_narrow():
    class Warming(Machine):
        def slowness(self) -> float:
            return 1.0 + 0.01 * self.slept

    options = {"rounds": 12, "pause_s": 1e-9, "warmup": 0}
    machine = Warming()
    plan = machine.plan(target=Target(relative=0.05), **options)
    with pytest.raises(TooNoisy, match=r"became \d% slower"):
        measure_all(machine.runs(A=10), plan)
    allowed = Warming()
    plan = allowed.plan(target=Target(relative=0.05, drift=0.2), **options)
    assert measure_all(allowed.runs(A=10), plan)[0].ms > 10


class Shared(Machine):
    """A machine on which somebody else works in some of the rounds."""

    busy = (1, 2, 5)

    def slowness(self) -> float:
        return 1.4 if self.slept in self.busy else 1.0


def test_rounds_in_which_the_whole_machine_was_slow_do_not_count():
    machine = Shared()
    plan = machine.plan(rounds=8, pause_s=1e-9, warmup=0, target=Target())
    found = measure_all(machine.runs(A=1, B=2, C=5), plan)
    assert [latency.ms for latency in found] == pytest.approx([1, 2, 5])
    assert machine.slept == 7 and max(latency.std for latency in found) < 1e-9
    slowest = [latency.spread.quantiles_ms[-1] for latency in found if latency.spread]
    assert slowest == pytest.approx([1.4, 2.8, 7])


def test_what_two_runs_say_is_not_called_the_machines():
    slow = {number: (1 + (number == 3)) * np.ones(3) for number in range(8)}
    assert usual([slow] * 2, 0.05) == set(range(8))
    assert usual([slow] * 3, 0.05) == set(range(8)) - {3}


def test_a_round_in_which_one_run_was_slow_counts():
    flat = {number: np.ones(3) for number in range(8)}
    slow = {**flat, 3: 2 * np.ones(3)}
    assert usual([flat, flat, slow], 0.05) == set(range(8))
    assert usual([slow, slow, flat], 0.05) == set(range(8)) - {3}


def test_a_machine_that_changes_as_often_as_not_has_no_usual_pace():
    rounds = {number: (1 + 0.5 * (number % 2)) * np.ones(3) for number in range(8)}
    assert usual([rounds] * 4, 0.05) == set(range(8))


def test_yardsticks_put_right_what_the_machine_was_slower_or_faster():
    class Uneven(Machine):
        def slowness(self) -> float:
            return (1.0, 1.2, 0.8, 1.4, 1.1)[self.slept % 5]

    machine = Uneven()
    plan = machine.plan(rounds=8, pause_s=1e-9, warmup=0, target=Target(limit_s=10.0))
    found = measure_all(machine.runs(A=1, B=2, C=8), plan, yardsticks={1: 2.0})
    assert [latency.ms for latency in found] == pytest.approx([1, 2, 8])
    assert machine.slept == 7 and max(latency.std for latency in found) < 1e-9


def test_what_is_further_from_the_pace_of_before_does_not_count():
    class Mostly(Machine):
        def slowness(self) -> float:
            return 1.0 if self.slept % 3 == 2 else 1.4

    machine = Mostly()
    plan = machine.plan(rounds=6, pause_s=1e-9, warmup=0, target=Target(limit_s=10.0))
    found = measure_all(machine.runs(A=1, B=2), plan, yardsticks={1: 2.0})
    assert [latency.ms for latency in found] == pytest.approx([1, 2])
    assert machine.slept == 14  # Until there were five that count.


def test_a_run_that_is_slower_than_the_yardsticks_say_shows_in_its_error():
    machine = Machine()
    plan = machine.plan(rounds=8, pause_s=1e-9, warmup=0, target=Target(useless=0.5, limit_s=2.0))

    def uneven() -> None:
        machine.now += 0.01 * (1.2 if machine.slept % 2 else 1.0)

    found = measure_all([uneven, *machine.runs(B=2)], plan, yardsticks={1: 2.0})
    assert found[0].std > 0.02 * found[0].ms


def test_a_machine_that_is_not_what_it_was_is_refused():
    machine = Machine()
    plan = machine.plan(rounds=6, pause_s=1e-9, target=Target(limit_s=1.0))
    with pytest.raises(TooNoisy, match=r"as before in 0 of \d+ rounds.* 1\.33 times as long"):
        measure_all(machine.runs(A=1, B=2), plan, yardsticks={1: 1.5})


def test_a_drift_is_signed_and_not_chance():
    up = np.array([1.0, 1.01, 1.1, 1.12, 1.2, 1.21])
    assert drift(up) == pytest.approx(1.205 / 1.005 - 1)
    assert drift(up[::-1]) == pytest.approx(1.005 / 1.205 - 1)
    assert drift(np.ones(6)) == drift(np.array([1.2, 1.0, 1.3, 1.1, 1.25, 1.15])) == 0
    rng = np.random.default_rng(0)
    found = [drift(rng.random(9)) != 0 for _ in range(400)]
    assert np.mean(found) < 0.08


def test_heat_is_refused():
    machine = Machine()
    counts = iter([7, 9])
    plan = machine.plan(rounds=5, target=Target(), throttled=lambda: next(counts))
    with pytest.raises(TooNoisy, match=r"heat 2 times .* cool") as error:
        measure_all(machine.runs(A=10, B=3), plan)
    assert error.value.latencies == (None, None)
    cool = machine.plan(rounds=5, target=Target(), throttled=lambda: 7)
    assert measure_all(machine.runs(A=10), cool)[0].ms == pytest.approx(10)


def test_without_a_target_anything_is_reported():
    machine = Noisy(30.0)
    counts = itertools.count()
    plan = machine.plan(rounds=6, pause_s=1e-9, throttled=lambda: next(counts))
    (latency,) = measure_all(machine.runs(A=10), plan)
    assert latency.half_width() > 0.1 * latency.ms and machine.slept == 5


def test_nine_of_ten_runs_keep_to_the_p90():
    ticks = iter(range(1, 1000))
    machine = Machine()
    run = lambda: machine.work("A", next(ticks))  # noqa: E731
    (a,) = measure_all([run], machine.plan(repeats=101, warmup=0))
    assert a.spread and a.spread.p90 == pytest.approx(182)


@pytest.mark.parametrize("rounds", [5, 12, 48])
@pytest.mark.parametrize("tail", [0.01, 0.5])
def test_the_interval_holds_the_truth_as_often_as_it_says(rounds: int, tail: float):
    rng = np.random.default_rng(0)
    centres = np.exp(tail * rng.standard_normal((1000, rounds)))  # Their median is one.
    errors = [standard_error(row) for row in centres]
    for confidence in 0.5, 0.9, 0.95:
        held = [
            abs(np.median(row) - 1) < Latency(1.0, error, Spread(rounds, ())).half_width(confidence)
            for row, error in zip(centres, errors, strict=True)
        ]
        assert confidence - 0.025 <= np.mean(held) <= confidence + 0.06


def test_the_interval_of_a_prediction_is_normal():
    assert Latency(10.0, 1.0).interval(0.95) == pytest.approx((10 - 1.96, 10 + 1.96), abs=0.01)


@pytest.mark.parametrize(
    "wrong",
    [{"confidence": 1.0}, {"confidence": 0.0}, {"relative": 0.2}, {"relative": 0.0}, {"drift": 0}],
)
def test_a_target_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="a confidence is between 0 and 1"):
        Target(**wrong)


def test_a_target_needs_rounds_that_can_show_a_drift():
    with pytest.raises(ValueError, match="at least five"):
        Plan(rounds=4, target=Target())


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"rounds": 0}, {"repeats": 1}])
def test_a_plan_that_cannot_tell_its_error_is_refused(wrong):
    with pytest.raises(ValueError, match="at least two runs"):
        Plan(**wrong)


def test_nothing_takes_no_time():
    assert measure_all([]) == [] and measure_subjects([]) == []


@pytest.mark.parametrize("of", [measure, lambda call, plan: measure_subjects([call], plan)[0]])
def test_calls_are_timed_by_the_given_clock(of):
    latency = of(RESNET, Plan(seconds=0.0, clock=Ticking(ms=7)))
    assert latency.ms == pytest.approx(7) and latency.spread and latency.spread.repeats == 10


def test_networks_are_timed_by_the_same_code():
    latency = measure_network(PROGRAM, {"sample": IMAGE}, Plan(0.0, clock=Ticking(ms=7)))
    assert latency.ms == pytest.approx(7) and latency.spread and latency.spread.repeats == 10


def test_a_run_waits_for_its_result(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    XLA().prepare(CONV).run()
    assert waited[0]["result"].shape == (2, 8, 8, 4)
    assert np.isfinite(waited[0]["result"]).all() and np.std(waited[0]["result"]) > 0


def test_a_run_moves_nothing_from_the_host():
    run = XLA().prepare(RESNET).run
    with jax.transfer_guard("disallow"):
        run()


def test_inputs_are_no_zeros_and_ids_are_valid():
    rng = np.random.default_rng(0)
    for dtype in "float32", "bfloat16":
        drawn = draw(rng, jax.ShapeDtypeStruct((4, 100), dtype))
        assert drawn.dtype == dtype and np.count_nonzero(drawn) == 400
    ids = draw(rng, jax.ShapeDtypeStruct((4, 100), "int32"))
    assert ids.dtype == "int32" and set(np.unique(ids)) == {0, 1}


def test_a_run_compiles_nothing(monkeypatch):
    runs = [XLA().prepare(of).run for of in (CONV, Whole(PROGRAM, {"sample": IMAGE}))]
    monkeypatch.setattr(Model, "__call__", None)  # Compiling would trace it.
    for run in runs:
        run()


def test_an_op_that_rejects_its_inputs_says_so():
    with pytest.raises(ValueError, match="groups"):
        measure(Call(ResNet(4, groups=3), (IMAGE,)))
