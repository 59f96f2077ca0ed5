"""Campaigns on a runtime that is made up: what it takes is known, and so is what it refuses."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from latency_models import campaign, store
from latency_models.fitting import together
from latency_models.latency import Latency, Whole
from latency_models.measure import Plan, Target, TooNoisy
from latency_models.provenance import Method, Provenance
from latency_models.rows import Network, brief
from latency_models.runtimes import Loaded, Row, Runtime, Subject
from latency_models.store import Measurements
from latency_models.table import Table
from search_spaces.blocks import Conv, Downsample
from search_spaces.export.part import Part
from search_spaces.ops import Call
from search_spaces.program import Step

IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 4), "float32")
BLOCKS = [Call(Conv(width), (IMAGE,)) for width in range(1, 41)]
REFUSED = Call(Downsample(), (IMAGE,))
TWICE: dict[str, Any] = {"seconds": 0.0, "rounds": 6, "loop_s": 0.0}
NETWORKS = {
    f"n{width}": Whole((Step("first", Conv(width), ("image",)),), {"image": IMAGE})
    for width in range(1, 7)
}


class Clock:
    """Time goes on when something runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Ready(Loaded):
    def __init__(self, runtime: "MadeUp", subject: Subject):
        self.runtime_, self.subject, self.rng = runtime, subject, np.random.default_rng(0)

    def run(self) -> None:
        self.runtime_.runs += 1
        if self.runtime_.runs == self.runtime_.killed_at:
            raise KeyboardInterrupt
        noise = self.runtime_.noise * self.rng.standard_normal()
        self.runtime_.clock.now += 1e-3 * _ms(self.subject) * float(np.exp(noise))

    def outputs(self) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def profile(self, passes: int = 20) -> list[Row]:
        raise NotImplementedError


def _ms(subject: Subject) -> float:
    op = subject.program[0].op if isinstance(subject, Whole) else subject.op
    assert isinstance(op, Conv)
    return float(op.width)


@dataclasses.dataclass
class MadeUp(Runtime):
    clock: Clock = dataclasses.field(default_factory=Clock)
    noise: float = 0.0
    killed_at: int | None = None
    runs: int = 0
    compared: int = 0
    precision = None

    @property
    def provenance(self) -> Provenance:
        return Provenance("made up", "made up", (), "any", "any", 1, Method.MEASURED)

    def load(self, part: Part, values: Mapping[str, np.ndarray]) -> Loaded:
        raise NotImplementedError

    def prepare(self, subject: Subject, *, compare: bool = True) -> Loaded:
        self.compared += compare
        if subject == REFUSED:
            raise ValueError("it has no strides")
        return Ready(self, subject)


def measure(path: Path, runtime: MadeUp, *, minutes: float | None = None, **target: float):
    plan = Plan(**TWICE, repeats=2, target=Target(**target), clock=runtime.clock)
    return campaign.measure(
        path, runtime, [*BLOCKS, REFUSED], NETWORKS, plan, minutes=minutes, clock=runtime.clock
    )


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Of a file that takes several portions."""
    monkeypatch.setattr(campaign, "CALLS", 16)
    monkeypatch.setattr(campaign, "NETWORKS", 4)
    return tmp_path / "measured.json"


def test_everything_that_can_be_measured_is(path):
    done = measure(path, MadeUp())
    found = store.load(path)
    assert {call: round(row.ms, 6) for call, row in found.table.rows.items()} == {
        call: _ms(call) for call in BLOCKS
    }
    assert {n.name: round(n.latency.ms, 6) for n in found.networks} == {
        name: _ms(whole) for name, whole in NETWORKS.items()
    }
    assert (done.measured, done.known, done.left) == (46, 0, 0)
    assert done.refused == {brief(REFUSED): "it has no strides"}


def test_portions_are_of_what_memory_holds_at_once(path, monkeypatch):
    monkeypatch.setattr(campaign, "_memory", lambda: 2.5 / campaign._MEMORY)
    monkeypatch.setattr(Ready, "held", 1)
    runtime, said = MadeUp(), []
    plan = Plan(**TWICE, repeats=2, target=Target(), clock=runtime.clock)
    done = campaign.measure(path, runtime, BLOCKS, NETWORKS, plan, report=said.append)
    over = [0, *(int(line.split()[0]) for line in said)]
    assert done.measured == over[-1] == len(BLOCKS) + len(NETWORKS)
    assert max(after - before for before, after in itertools.pairwise(over)) == 3


def test_what_is_there_is_not_measured_again(path):
    measure(path, MadeUp())
    again = MadeUp()
    done = measure(path, again)
    assert (done.measured, done.known, again.runs) == (0, 46, 0)


def test_what_was_measured_for_less_is_measured_again_where_it_means_nothing(path):
    vague, sure = Latency(1.0, 0.5), Latency(_ms(BLOCKS[1]), 0.001)
    store.write(path, MadeUp().provenance, Table({BLOCKS[0]: vague, BLOCKS[1]: sure}))
    done = measure(path, MadeUp())
    assert (done.measured, done.known) == (45, 1)
    assert store.load(path).table.rows[BLOCKS[0]].ms == pytest.approx(_ms(BLOCKS[0]))


def test_one_name_is_of_one_network(path):
    measure(path, MadeUp())
    first, *_, name = NETWORKS
    other = Network(name, NETWORKS[first], Latency(1.0, 0.1))
    with pytest.raises(ValueError, match=f"another network that is called {name}"):
        campaign.measure(path, MadeUp(), [], {name: other.whole}, Plan())
    with pytest.raises(ValueError, match=f"{name} is one network in one file and another"):
        together([store.load(path), Measurements(MadeUp().provenance, Table({}), (other,))])
    assert len(together(2 * [store.load(path)]).networks) == len(NETWORKS)


@pytest.mark.parametrize("killed_at", [1, 1000, 1450])
def test_a_campaign_that_was_killed_goes_on_with_what_is_missing(path, killed_at):
    whole = MadeUp()
    measure(path, whole)
    wanted = store.load(path)
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        measure(path, MadeUp(killed_at=killed_at))
    rest = MadeUp()
    done = measure(path, rest)
    assert (done.known == 46 - done.measured and rest.runs < whole.runs) or killed_at == 1
    assert store.load(path).table.rows.keys() == wanted.table.rows.keys()
    assert {n.name for n in store.load(path).networks} == {n.name for n in wanted.networks}


def test_networks_need_not_be_compared_with_what_jax_computes(path):
    runtime = MadeUp()
    plan = Plan(**TWICE, repeats=2, target=Target(), clock=runtime.clock)
    campaign.measure(path, runtime, BLOCKS[:16], NETWORKS, plan, compare=False, clock=runtime.clock)
    assert runtime.compared == 16


def test_nothing_is_begun_after_the_time_is_over(path):
    done = measure(path, MadeUp(), minutes=0.03)
    assert done.left == 47 - done.measured - len(done.refused) and 0 < done.measured < 46
    assert len(store.load(path).table.rows) == done.measured


def test_calls_leave_networks_their_part_of_the_time(path):
    runtime = MadeUp()
    measure(path, runtime, minutes=1e-9)  # One portion.
    one = runtime.clock.now / 60
    path.unlink()
    done = measure(path, MadeUp(), minutes=1.5 * one)
    found = store.load(path)
    assert 0 < len(found.table.rows) < len(BLOCKS) and found.networks and done.left


def test_every_kind_of_block_comes_first_and_then_what_networks_are_made_of():
    small = tuple(Step(f"s{i}", Conv(1 + i), ("image",)) for i in range(30))
    program = (*small, Step("last", Downsample(), ("image",)))
    large = Whole((Step("big", Conv(900), ("image",)),), {"image": IMAGE})
    found = campaign.blocks([Whole(program, {"image": IMAGE}), large])
    assert len(found) == len(set(found)) == 32
    assert REFUSED in found[:2]
    assert found.index(Call(Conv(900), (IMAGE,))) < 14
    assert found == campaign.blocks([Whole(program, {"image": IMAGE}), large])
    assert found != campaign.blocks([Whole(program, {"image": IMAGE}), large], seed=1)


def test_what_is_too_noisy_is_named_with_the_reason_and_not_kept(path):
    strict = {"relative": 0.001, "useless": 0.01, "limit_s": 0.5, "drift": 9.0, "corrected": 1e9}
    known = measure(path, MadeUp(), minutes=1e-9).measured  # One portion.
    done = measure(path, MadeUp(noise=1.0), **strict)
    assert len(done.refused) == 47 - known - done.measured > 10
    reason = done.refused[brief(BLOCKS[-1])]
    assert "is known within" in reason and "of 1% allowed" in reason
    kept = store.load(path).table.rows if path.exists() else {}
    assert BLOCKS[-1] not in kept


def test_a_machine_too_restless_to_set_a_pace_begins_no_file(path):
    with pytest.raises(TooNoisy, match="4 of 4 measurements mean nothing"):
        measure(path, MadeUp(noise=1.0), relative=0.001, useless=0.01, limit_s=0.5, drift=9.0)
    assert not path.exists()


def test_the_largest_keep_the_pace_where_none_is_moderate(path):
    measure(path, MadeUp())
    pace = store.load(path).yardsticks.rows
    assert {call: row.ms for call, row in pace.items()} == {
        call: pytest.approx(_ms(call)) for call in BLOCKS[-campaign.YARDSTICKS :]
    }
    store.write(path, MadeUp().provenance, networks=())
    assert store.load(path).yardsticks.rows == pace


def test_a_file_that_does_not_say_its_pace_is_said_not_to(path):
    rows = Table({call: Latency(_ms(call), 0.0) for call in BLOCKS[:3]})
    store.write(path, MadeUp().provenance, rows)
    for times in (1, 0):  # And from then on it does.
        said: list[str] = []
        runtime = MadeUp()
        plan = Plan(**TWICE, repeats=2, target=Target(), clock=runtime.clock)
        wanted = BLOCKS[: 5 if times else 9]
        campaign.measure(path, runtime, wanted, {}, plan, report=said.append, clock=runtime.clock)
        assert sum("does not say at which pace" in line for line in said) == times


class Paced(MadeUp):
    """Slower by a half between two runs, counted from its first."""

    slow_from = slow_until = 0

    def prepare(self, subject: Subject, *, compare: bool = True) -> Loaded:
        ready = super().prepare(subject)
        run = ready.run

        def paced() -> None:
            before = self.clock.now
            run()
            if self.slow_from <= self.runs < self.slow_until:
                self.clock.now += 0.5 * (self.clock.now - before)

        ready.run = paced
        return ready


def test_a_portion_at_another_pace_is_measured_later(path):
    runtime = Paced()
    runtime.slow_from, runtime.slow_until = 0, 0
    measure(path, runtime, minutes=0.0)  # Nothing.
    measure(path, runtime, minutes=0.03)
    known = len(store.load(path).table.rows)
    runtime.slow_from, runtime.slow_until = 0, runtime.runs + 400
    said: list[str] = []
    plan = Plan(
        0.0, rounds=6, loop_s=0.0, repeats=2, target=Target(limit_s=0.2), clock=runtime.clock
    )
    done = campaign.measure(
        path, runtime, BLOCKS, NETWORKS, plan, report=said.append, clock=runtime.clock
    )
    assert "are tried again at the end" in said[0] and "1.50 times as long" in said[0]
    assert done.measured == 46 - known and not done.refused
    found = store.load(path).table.rows
    assert all(row.ms == pytest.approx(_ms(call)) for call, row in found.items())


def test_a_machine_that_is_another_one_now_is_said_to_be(path):
    measure(path, MadeUp(), minutes=0.03)
    slower = Paced()
    slower.slow_until = 10**9
    before = path.read_text()
    with pytest.raises(campaign.OffPace, match=r"in 3 portions on end .* 1\.50 times as long"):
        measure(path, slower, limit_s=0.2)
    assert path.read_text() == before


def test_networks_are_held_against_calls_of_another_file(path, tmp_path):
    measure(path, MadeUp())
    slower = Paced()
    slower.slow_until = 10**9
    with pytest.raises(campaign.OffPace):
        plan = Plan(
            0.0, rounds=6, loop_s=0.0, repeats=2, target=Target(limit_s=0.2), clock=slower.clock
        )
        many = {f"{name} {i}": whole for name, whole in NETWORKS.items() for i in range(2)}
        campaign.measure(
            tmp_path / "networks.json",
            slower,
            [],
            many,
            plan,
            beside=store.load(path),
            clock=slower.clock,
        )


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_the_longest_calls_keep_the_pace_of_a_small_network(path, scale):
    class Small(Paced):
        def prepare(self, subject: Subject, *, compare: bool = True) -> Loaded:
            ready = super().prepare(subject, compare=compare)
            run = ready.run

            def scaled() -> None:
                before = self.clock.now
                run()
                self.clock.now = before + scale * (self.clock.now - before)

            ready.run = scaled
            return ready

    runtime = Small()
    runtime.slow_from, runtime.slow_until = 678, 1308
    done = measure(path, runtime, limit_s=40.0 * scale)
    found = store.load(path).table.rows
    assert runtime.runs > 1308 and done.measured == 46
    assert all(row.ms == pytest.approx(scale * _ms(call)) for call, row in found.items())


def test_networks_are_held_against_networks_that_were_measured_before(path):
    """Others who use the memory slow networks alone, and not the calls that are yardsticks."""

    class Memory(MadeUp):
        slower = 1.0

        def prepare(self, subject: Subject, *, compare: bool = True) -> Loaded:
            ready = super().prepare(subject, compare=compare)
            run = ready.run

            def shared() -> None:
                before = self.clock.now
                run()
                if isinstance(subject, Whole):
                    self.clock.now = before + self.slower * (self.clock.now - before)

            ready.run = shared
            return ready

    wholes = {
        f"n{width}": Whole((Step("first", Conv(width), ("image",)),), {"image": IMAGE})
        for width in range(50, 62)
    }
    runtime = Memory()
    plan = Plan(**TWICE, repeats=1, target=Target(), clock=runtime.clock)
    some = dict(list(wholes.items())[:4])
    campaign.measure(path, runtime, BLOCKS[:8], some, plan, clock=runtime.clock)
    runtime.slower = 1.15
    beside, other = store.load(path), path.with_name("other.json")
    for file, known in (path, None), (other, beside):
        campaign.measure(file, runtime, [], wholes, plan, beside=known, clock=runtime.clock)
        found = store.load(file).networks
        assert len(found) == 12
        assert [n.latency.ms for n in found] == pytest.approx([_ms(n.whole) for n in found])


def test_a_slow_start_does_not_set_the_pace(path):
    slow = Paced()
    slow.slow_until = 4 * (3 + 2 * 2 * 5)  # The first 5 rounds of the yardsticks, of 12.
    measure(path, slow)
    found = store.load(path).table.rows
    assert all(row.ms == pytest.approx(_ms(call)) for call, row in found.items())


def test_what_a_network_does_to_the_first_run_after_it_does_not_matter(path):
    """The first run of each after a network takes five times as long, and the next as ever."""

    @dataclasses.dataclass
    class Upset(MadeUp):
        warm: set[Subject] = dataclasses.field(default_factory=set)

        def prepare(self, subject: Subject, *, compare: bool = True) -> Loaded:
            ready = super().prepare(subject, compare=compare)
            run = ready.run

            def followed() -> None:
                run()
                if isinstance(subject, Whole):
                    self.warm.clear()
                elif subject not in self.warm:
                    self.warm.add(subject)
                    self.clock.now += 4e-3 * _ms(subject)

            ready.run = followed
            return ready

    wholes = {
        f"n{width}": Whole((Step("first", Conv(width), ("image",)),), {"image": IMAGE})
        for width in range(60, 63)
    }
    runtime = Upset()
    plan = Plan(
        0.0, rounds=6, loop_s=0.0, repeats=1, target=Target(limit_s=5.0), clock=runtime.clock
    )
    done = campaign.measure(path, runtime, BLOCKS[:16], wholes, plan, clock=runtime.clock)
    assert done.measured == 19
    found = store.load(path).networks
    assert [n.latency.ms for n in found] == pytest.approx([_ms(n.whole) for n in found])


def test_portions_are_held_against_calls_that_were_measured_before(path):
    runtime = Paced()
    runtime.slow_from, runtime.slow_until = 678, 1308  # From the second portion on, for a while.
    done = measure(path, runtime, limit_s=40.0)
    found = store.load(path).table.rows
    assert runtime.runs > 1308 and done.measured == 46
    assert all(row.ms == pytest.approx(_ms(call)) for call, row in found.items())
