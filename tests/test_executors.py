"""The executor of this process obeys the laws of all; what it can do beside them."""

import subprocess
import sys
import threading

import pytest

from nas.executors import Here, Pool, ended, finish, together
from nas.recipe import Pools
from nas.testing.executors import ALONE, SOME, TRIES, ExecutorLaws, Tally, square


class TestOneThread(ExecutorLaws):
    @pytest.fixture
    def executor(self):
        with Here(Tally(), tries=TRIES) as executor:
            yield executor


class TestThreads(ExecutorLaws):
    @pytest.fixture
    def executor(self):
        with Here(Tally(), threads=2, tries=TRIES) as executor:
            yield executor


def meet(barrier: threading.Barrier) -> int:
    return barrier.wait(timeout=60)


def thread(_: Tally) -> int:
    return threading.get_ident()


def test_calls_of_a_pool_of_many_run_at_once_up_to_the_threads():
    with Here(threading.Barrier(2), threads=2) as executor:
        assert sorted(finish(executor, [executor.submit(SOME, meet) for _ in range(4)])) == [
            0,
            0,
            1,
            1,
        ]


def test_a_call_that_must_be_alone_is_made_by_the_thread_that_waits():
    with Here(Tally(), threads=2) as executor:
        (found,) = finish(executor, [executor.submit(ALONE, thread)])
    assert found == threading.get_ident()


def test_what_was_not_begun_is_cancelled_at_the_end():
    with Here(Tally()) as executor:
        future = executor.submit(SOME, square, 2)
    assert future.cancelled()


def test_cancelling_a_whole_cancels_its_parts():
    with Here(Tally()) as executor:
        parts = [executor.submit(SOME, square, n) for n in range(3)]
        together(parts, sum).cancel()
    assert all(part.cancelled() for part in parts)
    assert together([ended(1), ended(2)], sum).result() == 3


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"deadline": 0.0}, {"hosts": 0}])
def test_a_pool_that_could_do_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} is 0"):
        Pool(**wrong)


def test_a_worker_of_several_hosts_must_ask_for_something_and_only_trains():
    with pytest.raises(ValueError, match="hosts is 2, and nothing is asked of them"):
        Pool(hosts=2)
    with pytest.raises(ValueError, match="scoring has workers of 2 hosts; only training"):
        Pools(scoring=Pool(cpus=1.0, hosts=2))
    assert Pools(training=Pool(cpus=1.0, hosts=2)).training.hosts == 2


def test_the_embedded_default_imports_no_ray_and_workers_import_jax_when_told():
    code = """
import sys
import nas.executors
assert "jax" not in sys.modules
import nas.commands.search, nas.conduct
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
