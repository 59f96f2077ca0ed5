"""What is said of a worker that spans hosts, by what its members say. No process is started."""

from concurrent.futures import Future
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from nas.dispatch import Died, Lost, Report, Worker
from nas.executors import Call, Pool
from nas.on_ray import _Actors, _Members

PAIR = Pool(resources={"trainer": 1.0}, hosts=2)
NODES = ("here", "there")
CALL = Call(PAIR, len, ())


class Actors(_Actors):
    """Those of a cluster of which the test says what nodes live, at a time that it says."""

    living, clock = NODES, 0.0

    def now(self) -> float:
        return self.clock

    def nodes(self):
        return {name: {} for name in self.living}

    def after(self, seconds: float) -> list[Report]:
        self.clock += seconds
        return self.wait(0.0)


@pytest.fixture
def actors() -> Actors:
    return Actors(b"")


@pytest.fixture
def worker() -> Worker:
    members = _Members([None, None], None, [frozenset({node}) for node in NODES])
    return Worker(PAIR, 0.0, handle=members, node=NODES[0], call=CALL)


@pytest.fixture
def doing(actors, worker) -> list[Future[Any]]:
    found: list[Future[Any]] = [Future(), Future()]
    actors._follow(worker, CALL, found)
    return found


def raised(error: BaseException) -> RayTaskError:
    return RayTaskError("f", "", error)  # pyright: ignore[reportArgumentType]


def only(reports: list[Report]) -> Report:
    (report,) = reports
    return report


def test_a_call_ends_when_every_member_made_it_with_what_the_first_returned(actors, worker, doing):
    doing[1].set_result("second")
    assert actors.after(1000) == []
    doing[0].set_result("first")
    assert only(actors.after(0)) == Report(worker, CALL, "first")
    assert actors.after(1000) == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_member_that_raises_because_another_died_is_not_why(actors, worker, doing, order):
    errors = [raised(RuntimeError("connection reset")), ActorDiedError()]
    doing[order[0]].set_exception(errors[order[0]])
    assert actors.after(1.0) == []
    doing[order[1]].set_exception(errors[order[1]])
    assert isinstance(only(actors.after(0)).error, Died)


def test_a_lost_node_is_why_a_member_elsewhere_died(actors, worker, doing):
    actors.living = NODES[:1]
    for member in doing:
        member.set_exception(ActorDiedError())
    assert isinstance(only(actors.after(0)).error, Lost)


def test_a_member_that_waits_for_ever_is_not_waited_for(actors, worker, doing):
    doing[1].set_exception(raised(ValueError("no such folder")))
    assert actors.after(1.0) == []
    error = only(actors.after(1000.0)).error
    assert isinstance(error, ValueError) and str(error) == "no such folder"
    assert actors.after(1000.0) == []
    # It still waits, so the next call cannot be made by this worker, which is not to blame.
    actors.call(worker, CALL)
    assert isinstance(only(actors.after(0)).error, Lost)


def test_members_that_all_refuse_can_be_given_another_call(actors, worker, doing):
    for member in doing:
        member.set_exception(raised(ValueError("diverged")))
    assert isinstance(only(actors.after(0)).error, ValueError)
    assert not worker.handle.broken


def test_other_errors_of_all_members_leave_nothing_to_rely_on(actors, worker, doing):
    for member in doing:
        member.set_exception(raised(RuntimeError("timed out")))
    assert isinstance(only(actors.after(0)).error, RuntimeError)
    assert worker.handle.broken


def test_what_becomes_of_a_worker_that_was_given_up_is_not_waited_for(actors, worker, doing):
    worker.gone = True
    doing[0].set_exception(ActorDiedError())
    assert only(actors.after(0)).worker is worker
    assert actors.after(1000) == []


def test_a_worker_that_took_too_much_memory_is_to_blame_for_it(actors, worker):
    alone: list[Future[Any]] = [Future()]
    alone[0].set_exception(OutOfMemoryError("95% of the node's memory is used"))
    actors._follow(worker, CALL, alone)
    assert isinstance(only(actors.after(0)).error, Died)


@pytest.mark.parametrize(("left", "kind"), [(NODES, Died), (NODES[1:], Lost)])
def test_one_that_dies_at_its_start_is_excused_where_a_node_was_lost_meanwhile(actors, left, kind):
    """Where it was to be is not known yet."""
    members = _Members([None], None, [frozenset(NODES)])
    worker = Worker(Pool(), 0.0, handle=members)
    alone: list[Future[Any]] = [Future()]
    alone[0].set_exception(ActorDiedError())
    actors.living = left
    actors._follow(worker, None, alone)
    assert isinstance(only(actors.after(0)).error, kind)
