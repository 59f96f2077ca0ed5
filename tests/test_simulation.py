"""The engine on a virtual clock: what is decided is as anywhere, and time adds up."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.dispatch import LOSSES, Died, Dispatcher, Lost, Report
from nas.executors import Failed, Here, Pool, finish
from nas.simulation import STEADY, Conditions, VirtualHosts
from nas.testing.executors import TRIES, ExecutorLaws, Tally, square
from tests import tiny
from tests.fake_workers import FakeWorker, entries, go_on

TEN = Pool(workers=10)


def ten_seconds(*_) -> float:
    return 10.0


def virtual(conditions: Conditions = STEADY, seconds=ten_seconds, **settings):
    return VirtualHosts(Tally, seconds, conditions, **settings)


def squares(hosts: VirtualHosts, count: int, pool: Pool = TEN, tries: int = TRIES) -> list[int]:
    with Dispatcher(hosts, tries=tries) as executor:
        return finish(executor, [executor.submit(pool, square, n) for n in range(count)])


class TestOnAVirtualClock(ExecutorLaws):
    @pytest.fixture
    def executor(self):
        with Dispatcher(virtual(), tries=TRIES) as executor:
            yield executor


class TestWhereWorkersAreSlowAndPreempted(ExecutorLaws):
    """But for the laws on one worker being kept, as none is here."""

    test_a_shared_value_reaches_a_worker_once = None  # pyright: ignore
    test_wrong_input_is_the_callers_error_after_one_try = None  # pyright: ignore
    test_another_error_is_tried_again = None  # pyright: ignore
    test_a_call_that_is_cancelled_before_it_begins_is_not_made = None  # pyright: ignore
    test_a_worker_is_kept_and_every_call_is_made_once = None  # pyright: ignore

    @pytest.fixture
    def executor(self):
        hard = Conditions(start=5.0, spread=0.5, stragglers=0.2, lifetime=40.0, engine=0.1)
        with Dispatcher(virtual(hard), tries=TRIES) as executor:
            yield executor


# Time adds up.


@pytest.mark.parametrize(("calls", "waves"), [(10, 1), (11, 2), (40, 4)])
def test_calls_take_as_many_waves_as_workers_leave(calls, waves):
    hosts = virtual(Conditions(start=3.0))
    assert squares(hosts, calls) == [n**2 for n in range(calls)]
    assert hosts.clock == 3.0 + 10.0 * waves
    assert hosts.spent.useful == 10.0 * calls and hosts.spent.lost == 0
    assert hosts.spent.held == 10 * hosts.clock and hosts.spent.starting == 30.0


def test_the_process_of_the_search_is_the_limit_where_it_has_too_many_workers():
    few, many = (virtual(Conditions(engine=0.1)) for _ in range(2))
    squares(few, 1000, Pool(workers=10))
    squares(many, 1000, Pool(workers=1000))
    assert few.clock == pytest.approx(1000 / 10 * 10.0, rel=0.1)
    assert many.clock == pytest.approx(1000 * 0.1 + 10.0)


def test_a_shared_value_takes_its_time_once_for_every_worker():
    hosts = virtual(Conditions(receive=7.0))
    with Dispatcher(hosts) as executor:
        shared = executor.share(3)
        finish(executor, [executor.submit(TEN, square, shared) for _ in range(30)])
    assert hosts.clock == 7.0 + 3 * 10.0


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(15.0, 1000.0),
    st.floats(0, 0.4),
    st.sampled_from([0.0, 0.01]),
    st.integers(1, 60),
)
def test_every_second_of_a_worker_is_accounted_for(seed, lifetime, stragglers, engine, calls):
    hard = Conditions(1.0, 0.5, 0.3, stragglers, lifetime=lifetime, engine=engine)
    hosts = virtual(hard, seed=seed)
    assert squares(hosts, calls) == [n**2 for n in range(calls)]
    spent = hosts.spent
    assert spent.calls == calls and spent.useful > 0
    assert spent.useful + spent.lost + spent.starting <= spent.held * (1 + 1e-9)
    assert 0 < spent.utilisation <= 1
    assert (spent.lost > 0) <= (spent.preempted > 0)


def test_the_same_seed_is_the_same_course_of_events():
    hard = Conditions(1.0, 0.5, 0.3, 0.1, lifetime=50.0)
    one, same, other = (virtual(hard, seed=seed) for seed in (1, 1, 2))
    for hosts in (one, same, other):
        squares(hosts, 100)
    assert (one.clock, one.spent) == (same.clock, same.spent) != (other.clock, other.spent)


def test_spread_leaves_the_mean_as_it_is():
    hosts = virtual(Conditions(spread=0.5))
    squares(hosts, 2000)
    assert hosts.spent.useful / 2000 == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize(
    "wrong", [{"start": -1.0}, {"stragglers": 1.5}, {"slower": 0.5}, {"lifetime": 0.0}]
)
def test_conditions_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="none may be negative"):
        Conditions(**wrong)


# What becomes of calls.


def test_preempted_workers_are_not_held_against_their_calls():
    hosts = virtual(Conditions(lifetime=25.0))
    assert squares(hosts, 100, tries=1) == [n**2 for n in range(100)]
    assert hosts.spent.preempted > 10 and hosts.spent.lost > 0


def test_a_call_that_outlives_no_worker_is_given_up():
    hosts = virtual(Conditions(lifetime=1e-3))
    with pytest.raises(Failed, match="lost 20 times with the node it was on"):
        squares(hosts, 1)


def test_a_worker_that_hangs_is_replaced_after_the_deadline():
    hosts = virtual(Conditions(stragglers=0.3, slower=math.inf))
    pool = Pool(workers=10, deadline=60.0)
    assert squares(hosts, 60, pool, tries=20) == [n**2 for n in range(60)]
    assert hosts.spent.ended > 5
    assert hosts.spent.lost == pytest.approx(60.0 * hosts.spent.ended)
    stuck = virtual(Conditions(stragglers=1.0, slower=math.inf))
    with pytest.raises(Failed, match="tried 2 times: it had not ended after the 60 s that a call"):
        squares(stuck, 1, pool)
    assert stuck.clock == 120.0


def kill(_: Tally) -> None:
    raise Died


def test_a_call_that_kills_its_workers_is_given_up_and_the_others_go_on():
    with Dispatcher(virtual(), tries=TRIES) as executor:
        poison = executor.submit(TEN, kill)
        others = [executor.submit(TEN, square, n) for n in range(50)]
        assert finish(executor, others) == [n**2 for n in range(50)]
        with pytest.raises(Failed, match=f"tried {TRIES} times: its worker's process died"):
            finish(executor, [poison])


def test_a_worker_that_cannot_be_made_is_a_clear_error():
    def wrong() -> Tally:
        raise ValueError("no folder there")

    with pytest.raises(ValueError, match="no folder there"):
        squares(VirtualHosts(wrong, ten_seconds), 1)


@pytest.mark.parametrize(("error", "starts"), [(Died, TRIES), (Lost, LOSSES + TRIES - 1)])
def test_workers_that_never_live_to_be_ready_are_a_clear_error(error, starts):
    begun = []

    def make() -> Tally:
        begun.append(error)
        raise error

    with pytest.raises(ValueError, match="no worker could be started: its process died"):
        squares(VirtualHosts(make, ten_seconds), 1, Pool())
    assert len(begun) == starts


def test_workers_that_are_lost_with_their_nodes_before_they_are_ready_are_replaced():
    begun = []

    def make() -> Tally:
        begun.append(1)
        if len(begun) % 5:
            raise Lost
        return Tally()

    hosts = VirtualHosts(make, ten_seconds, Conditions(lifetime=15.0))
    assert squares(hosts, 20, Pool(), tries=1) == [n**2 for n in range(20)]
    assert len(begun) > 2 * LOSSES


def test_a_worker_that_is_never_ready_is_a_clear_error():
    hosts = virtual(Conditions(start=10**6))
    with pytest.raises(ValueError, match="no worker could be started: it was not ready after 900"):
        squares(hosts, 1)


def test_as_many_workers_as_there_is_room_for():
    nodes = {"one": {"CPU": 3.0}, "other": {"CPU": 1.0}}
    hosts = VirtualHosts(Tally, ten_seconds, nodes=nodes)
    squares(hosts, 8, Pool(workers=None, cpus=1.0))
    assert hosts.clock == 20.0


def test_room_is_looked_for_no_oftener_than_once_a_second():
    class Counted(VirtualHosts):
        looked = 0

        def nodes(self):
            self.looked += 1
            return super().nodes()

    nodes = {"one": {"CPU": 4.0}}
    hosts = Counted(Tally, lambda *_: 0.01, Conditions(spread=0.1), nodes=nodes)
    squares(hosts, 1000, Pool(workers=None, cpus=1.0))
    assert 1 <= hosts.looked <= 2 + hosts.clock


def test_idle_workers_make_room_for_a_pool_that_needs_what_they_hold():
    pools = [Pool(cpus=3.0), Pool(cpus=2.0)]
    hosts = VirtualHosts(Tally, ten_seconds, nodes={"one": {"CPU": 4.0}})
    with Dispatcher(hosts) as executor:
        for pool in (*pools, pools[0]):
            finish(executor, [executor.submit(pool, square, 2)])
    assert hosts.spent.held == 30.0  # None was idle meanwhile.


@pytest.mark.parametrize("takes", [30.0, 4000.0])
def test_workers_that_become_idle_later_make_room_for_a_pool_that_waits(takes):
    """One of four calls ends, the others are given up while they run; another pool then needs
    all that their workers hold."""
    first = iter([10.0])
    hosts = VirtualHosts(
        Tally,
        lambda *_: next(first, takes),
        Conditions(start=1.0),
        nodes={"one": {"CPU": 4.0}},
    )
    with Dispatcher(hosts) as executor:
        shards = [executor.submit(Pool(workers=None, cpus=1.0), square, n) for n in range(4)]
        executor.wait()
        for shard in shards:
            shard.cancel()
        assert finish(executor, [executor.submit(Pool(cpus=4.0), square, 5)]) == [25]
    assert hosts.clock == pytest.approx(2 * takes + 2.0, abs=3.0)


def test_what_ended_beside_a_start_that_failed_is_not_lost():
    class Wrong(VirtualHosts):
        """All that happens is told at once; the second worker has no storage."""

        def wait(self, seconds):
            found = super().wait(seconds)
            if any(report.call for report in found):
                starting = [worker for worker in self._places if worker.node is None]
                error = ValueError("no /shared on this host")
                return [*(Report(worker, None, error=error) for worker in starting), *found]
            return found

        def start(self, worker):
            if self._places:
                self._places[worker] = self._places[next(iter(self._places))]  # It never is ready.
            else:
                super().start(worker)

    with Dispatcher(Wrong(Tally, ten_seconds)) as executor:
        calls = [executor.submit(Pool(workers=2), square, n) for n in (3, 4)]
        with pytest.raises(ValueError, match="no /shared on this host"):
            executor.wait()
        assert calls[0].result() == 9 and not calls[1].done()


# Searches.


def test_a_search_finds_the_same_whatever_happens_to_its_workers(tmp_path):
    worker = FakeWorker()
    with Here(worker) as here:
        whole = go_on(tmp_path / "here", here, worker)
    hosts = VirtualHosts(
        FakeWorker,
        ten_seconds,
        Conditions(start=2.0, spread=0.5, stragglers=0.1, lifetime=100.0, engine=0.01),
    )
    with Dispatcher(hosts) as executor:
        assert go_on(tmp_path / "virtual", executor, worker) == whole
    assert entries(tmp_path / "virtual") == entries(tmp_path / "here")
    assert hosts.spent.preempted > 5


def test_poison_is_journalled_as_failed_and_the_search_goes_on(tmp_path):
    lost = tiny.REMOVABLE[1]
    worker = FakeWorker()

    class Poisoned(FakeWorker):
        def embedded(self, network, weights, removed, shard):
            if removed == lost:
                raise Died
            return super().embedded(network, weights, removed, shard)

    with Dispatcher(VirtualHosts(Poisoned, ten_seconds), tries=2) as executor:
        state = go_on(tmp_path, executor, worker)
    assert {removed for _, removed in state.failed} == {lost}
    assert set(state.failed.values()) == {"tried 2 times: its worker's process died"}
