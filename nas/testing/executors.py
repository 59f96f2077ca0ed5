"""The laws every executor obeys. Subclass `ExecutorLaws` to hold yours to them.

    class TestMine(ExecutorLaws):
        @pytest.fixture
        def executor(self):
            with MyExecutor(Tally, tries=TRIES) as executor:
                yield executor

Its workers are `Tally()`s, and a call is tried `TRIES` times. One executor may serve all laws, so
the fixture may have the scope of the class. pytest finds the laws.
"""

import collections
import uuid
from typing import Any

import numpy as np
import pytest

from nas.executors import Executor, Failed, Pool, finish, together

TRIES = 2
SOME = Pool(workers=2)
ALONE = Pool(workers=1)


class Tally:
    """A worker that counts the calls it had, by test."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self.calls: collections.Counter[str] = collections.Counter()
        self.seen: dict[str, list[Any]] = collections.defaultdict(list)


def square(tally: Tally, number: int) -> int:
    return number**2


def calls(tally: Tally, test: str) -> tuple[str, int]:
    """The name of a worker, and the calls it had."""
    tally.calls[test] += 1
    return tally.name, tally.calls[test]


def total(tally: Tally, test: str, array: np.ndarray) -> tuple[int, float]:
    """How many arrays a worker was given so far, and the sum of this one."""
    if not any(seen is array for seen in tally.seen[test]):
        tally.seen[test].append(array)
    return len(tally.seen[test]), float(array.sum())


def refuse(tally: Tally, test: str) -> None:
    tally.calls[test] += 1
    raise ValueError("seven is no colour; try red")


def stumble(tally: Tally, test: str, times: int) -> int:
    """Raises so many times, and then returns how many calls its worker had."""
    tally.calls[test] += 1
    if tally.calls[test] <= times:
        raise FloatingPointError("it stumbled")
    return tally.calls[test]


class ExecutorLaws:
    @pytest.fixture
    def executor(self) -> Executor[Tally]:
        raise NotImplementedError("give an executor of Tally, with TRIES tries")

    @pytest.fixture
    def test(self) -> str:
        return uuid.uuid4().hex

    @pytest.mark.parametrize("pool", [SOME, ALONE], ids=["some", "alone"])
    def test_every_call_returns_what_its_function_does(self, executor, pool):
        futures = [executor.submit(pool, square, n) for n in range(20)]
        assert finish(executor, futures) == [n**2 for n in range(20)]

    def test_a_worker_is_kept_and_every_call_is_made_once(self, executor, test):
        found = finish(executor, [executor.submit(SOME, calls, test) for _ in range(12)])
        made = {name: sorted(n for m, n in found if m == name) for name, _ in found}
        assert 1 <= len(made) <= 2
        assert all(numbers == list(range(1, 1 + len(numbers))) for numbers in made.values())

    def test_a_shared_value_reaches_a_worker_once(self, executor, test):
        first, second = np.arange(5.0), np.arange(7.0)
        for number, array in enumerate((first, second), 1):
            shared = executor.share(array)
            found = finish(
                executor, [executor.submit(ALONE, total, test, shared) for _ in range(4)]
            )
            assert found == 4 * [(number, array.sum())]

    def test_an_older_value_can_still_be_asked_for(self, executor, test):
        values = [executor.share(np.full(3, n)) for n in range(3)]
        futures = [executor.submit(SOME, total, test, values[n]) for n in (2, 0, 1, 0)]
        assert [value for _, value in finish(executor, futures)] == [6.0, 0.0, 3.0, 0.0]

    def test_wrong_input_is_the_callers_error_after_one_try(self, executor, test):
        (future,) = [executor.submit(ALONE, refuse, test)]
        with pytest.raises(ValueError, match="seven is no colour; try red"):
            finish(executor, [future])
        assert finish(executor, [executor.submit(ALONE, calls, test)])[0][1] == 2

    def test_another_error_is_tried_again(self, executor, test):
        assert finish(executor, [executor.submit(ALONE, stumble, test, TRIES - 1)]) == [TRIES]

    def test_what_fails_every_time_is_failed_and_the_others_go_on(self, executor, test):
        futures = [executor.submit(ALONE, square, 3), executor.submit(ALONE, stumble, test, 10**6)]
        futures.append(executor.submit(ALONE, square, 4))
        with pytest.raises(Failed, match=f"tried {TRIES} times: FloatingPointError: it stumbled"):
            finish(executor, futures)
        assert finish(executor, [futures[0], futures[2]]) == [9, 16]

    def test_a_call_that_is_cancelled_before_it_begins_is_not_made(self, executor, test):
        kept, dropped = [executor.submit(ALONE, calls, test) for _ in range(2)]
        assert dropped.cancel()
        assert finish(executor, [kept, executor.submit(ALONE, calls, test)])[1][1] == 2

    def test_the_parts_of_a_whole_are_combined_in_their_order(self, executor):
        parts = [executor.submit(SOME, square, n) for n in range(8)]
        whole = together(parts, lambda found: "".join(map(str, found)))
        assert finish(executor, [whole]) == ["0149162536" + "49"]

    def test_a_part_that_fails_fails_the_whole_and_spares_the_rest(self, executor, test):
        parts = [executor.submit(ALONE, refuse, test), executor.submit(ALONE, calls, test)]
        with pytest.raises(ValueError, match="no colour"):
            finish(executor, [together(parts, list)])
        assert parts[1].cancelled()

    def test_waiting_for_nothing_is_an_error(self, executor):
        with pytest.raises(ValueError, match="there is no call to wait for"):
            executor.wait()
