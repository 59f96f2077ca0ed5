"""Workers in real processes of Ray, which are killed, hang and are lost with their nodes."""

import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from nas.executors import Failed, Pool, finish
from nas.on_ray import OnRay
from nas.testing.executors import TRIES, ExecutorLaws, Tally, calls
from tests import clusters
from tests.diary import Diary, begun, noted, plod

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PAIR = Pool(workers=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with clusters.cluster(num_cpus=4) as found:
        yield found


@pytest.fixture(scope="class")
def shared_executor(cluster) -> Iterator[OnRay[Tally]]:
    with OnRay(Tally, address=cluster.address, tries=TRIES) as executor:
        yield executor


class TestOnRay(ExecutorLaws):
    @pytest.fixture
    def executor(self, shared_executor):
        return shared_executor


@pytest.fixture
def on_ray(cluster, tmp_path) -> Iterator[OnRay[Diary]]:
    with OnRay(functools.partial(Diary, tmp_path), address=cluster.address, tries=TRIES) as found:
        yield found


def perish(diary: Diary, number: int) -> None:
    diary.write("begun", number)
    os.kill(os.getpid(), signal.SIGKILL)


def perish_once(diary: Diary, number: int) -> int:
    if number not in dict(noted(diary.folder, "begun")):
        perish(diary, number)
    return plod(diary, number)


def hang(diary: Diary, number: int, times: int) -> int:
    """Hangs so many times."""
    diary.write("begun", number)
    if len(noted(diary.folder, "begun")) <= times:
        time.sleep(10**6)
    return number


def test_the_calls_of_a_killed_worker_go_to_others_and_no_other_is_repeated(on_ray, tmp_path):
    futures = [on_ray.submit(PAIR, perish_once if n == 3 else plod, n) for n in range(8)]
    assert finish(on_ray, futures) == [n**2 for n in range(8)]
    assert sorted(n for n, _ in noted(tmp_path, "ended")) == list(range(8))
    again = [n for n, _ in noted(tmp_path, "begun")]
    assert sorted(again) == sorted([*range(8), 3])


def test_a_call_that_kills_its_workers_is_given_up_and_the_others_go_on(on_ray, tmp_path):
    futures = [on_ray.submit(PAIR, plod, n) for n in range(3)]
    poison = on_ray.submit(PAIR, perish, 99)
    futures += [on_ray.submit(PAIR, plod, n) for n in range(3, 6)]
    assert finish(on_ray, futures) == [n**2 for n in range(6)]
    with pytest.raises(Failed, match=f"tried {TRIES} times: its worker's process died"):
        finish(on_ray, [poison])
    assert [n for n, _ in noted(tmp_path, "begun")].count(99) == TRIES


def test_a_worker_that_hangs_is_replaced_after_the_deadline(on_ray, tmp_path):
    hurried = Pool(workers=1, deadline=2.0)
    assert finish(on_ray, [on_ray.submit(hurried, hang, 5, TRIES - 1)]) == [5]
    with pytest.raises(Failed, match="not ended after the 2 s that a call may take"):
        finish(on_ray, [on_ray.submit(hurried, hang, 5, 10**6)])
    pids = {pid for _, pid in noted(tmp_path, "begun")}
    assert len(pids) == 2 * TRIES - 1


def test_a_worker_that_is_stopped_is_replaced_after_the_deadline(on_ray, tmp_path):
    """As by a machine that has frozen: the process answers nobody."""
    hurried = Pool(workers=1, deadline=4.0)
    future = on_ray.submit(hurried, plod, 3)
    (_, pid) = begun(on_ray, tmp_path, 1)[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert finish(on_ray, [future]) == [9]
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_lost_node_is_not_held_against_its_calls(cluster, tmp_path):
    """With a single try, a call outlives any number of preempted nodes."""
    spot = Pool(workers=2, resources={"spot": 1.0})
    make = functools.partial(Diary, tmp_path)
    lost = cluster.add_node(num_cpus=1, resources={"spot": 2})
    with OnRay(make, address=cluster.address, tries=1) as executor:
        futures = [executor.submit(spot, plod, n) for n in range(6)]
        begun(executor, tmp_path, 3)
        cluster.remove_node(lost, allow_graceful=False)
        cluster.add_node(num_cpus=1, resources={"spot": 2})
        assert finish(executor, futures) == [n**2 for n in range(6)]
    ended = [n for n, _ in noted(tmp_path, "ended")]
    # What ran when the node was lost may have ended there, unseen.
    assert set(ended) == set(range(6)) and len(ended) <= 6 + 2


def test_a_preempted_node_is_not_held_against_its_calls(cluster, tmp_path):
    """It is asked to end, and after a grace period it is ended."""
    spot = Pool(workers=2, resources={"preemptible": 1.0})
    make = functools.partial(Diary, tmp_path)
    lost = cluster.add_node(num_cpus=1, resources={"preemptible": 2})
    with OnRay(make, address=cluster.address, tries=1) as executor:
        futures = [executor.submit(spot, plod, n) for n in range(6)]
        begun(executor, tmp_path, 3)
        os.kill(raylet_of(lost), signal.SIGTERM)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            executor.step()
        cluster.remove_node(lost, allow_graceful=False)
        cluster.add_node(num_cpus=1, resources={"preemptible": 2})
        assert finish(executor, futures) == [n**2 for n in range(6)]
    ended = [n for n, _ in noted(tmp_path, "ended")]
    assert set(ended) == set(range(6)) and len(ended) <= 6 + 2


def raylet_of(node: Any) -> int:
    (raylet,) = node.all_processes["raylet"]
    return raylet.process.pid


def test_what_a_node_says_that_was_given_up_is_not_counted_again(tmp_path):
    """It answers nobody, is taken for dead, and then goes on, as after a network's partition."""
    hasty = {"health_check_period_ms": 1000, "health_check_timeout_ms": 3000}
    make, frail = functools.partial(Diary, tmp_path), Pool(resources={"frail": 1.0})
    with clusters.cluster(num_cpus=0, _system_config=hasty) as cluster:
        for _ in range(2):
            cluster.add_node(num_cpus=1, resources={"frail": 1})
        with OnRay(make, address=cluster.address, tries=1) as executor:
            futures = [executor.submit(frail, plod, n) for n in range(3)]
            (_, worker) = begun(executor, tmp_path, 1)[0]
            frozen = (worker, psutil.Process(worker).ppid())  # Its raylet.
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            found = finish(executor, futures)
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
            more = [executor.submit(frail, plod, n) for n in range(3, 8)]
            assert found + finish(executor, more) == [n**2 for n in range(8)]
    made = [n for n, _ in noted(tmp_path, "begun")]
    # The call that the frozen worker had is all that may have been made twice.
    assert set(made) == set(range(8)) and len(made) <= 9


MEMORY = Path("/sys/fs/cgroup/memory")  # Where the first version of cgroups has it.


@pytest.fixture
def cramped() -> Iterator[Path]:
    """A cgroup whose processes the kernel kills beyond 64 MiB."""
    folder = MEMORY / f"nas-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(64 << 20))
    except OSError as error:
        pytest.skip(f"a memory cgroup needs root and the first version of cgroups: {error}")
    yield folder
    until = time.monotonic() + 60
    while (folder / "cgroup.procs").read_text() and time.monotonic() < until:
        time.sleep(0.2)
    folder.rmdir()


def swell(diary: Diary, number: int, group: Path, times: int) -> int:
    """Takes more memory than there is, so many times."""
    diary.write("begun", number)
    if [n for n, _ in noted(diary.folder, "begun")].count(number) <= times:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        bytes(bytearray(range(256)) * (2**20))
    diary.write("ended", number)
    return number**2


def test_a_worker_that_the_kernel_kills_for_its_memory_is_replaced(on_ray, cramped, tmp_path):
    futures = [on_ray.submit(PAIR, plod, n) for n in range(3)]
    once = on_ray.submit(PAIR, swell, 7, cramped, 1)
    always = on_ray.submit(PAIR, swell, 8, cramped, TRIES)
    assert finish(on_ray, [*futures, once]) == [0, 1, 4, 49]
    with pytest.raises(Failed, match=f"tried {TRIES} times: its worker's process died"):
        finish(on_ray, [always])
    failures = (cramped / "memory.oom_control").read_text()
    assert f"oom_kill {1 + TRIES}" in failures
    assert 8 not in [n for n, _ in noted(tmp_path, "ended")]


def test_many_workers_make_every_call_once(cluster):
    many = Pool(workers=16)
    with OnRay(Tally, address=cluster.address) as executor:
        found = finish(executor, [executor.submit(many, calls, "") for _ in range(400)])
    made = {name: sorted(n for m, n in found if m == name) for name, _ in found}
    assert 1 < len(made) <= 16
    assert all(numbers == list(range(1, 1 + len(numbers))) for numbers in made.values())


def wrong(folder: Path) -> Diary:
    raise ValueError(f"no folder {folder}")


def test_a_worker_that_cannot_be_made_is_a_clear_error(cluster):
    make = functools.partial(wrong, Path("there"))
    with (
        OnRay(make, address=cluster.address) as executor,
        pytest.raises(ValueError, match="no folder there"),
    ):
        finish(executor, [executor.submit(PAIR, plod, 1)])


def test_what_the_cluster_lacks_is_named(cluster, monkeypatch, tmp_path):
    monkeypatch.setattr("nas.dispatch.START", 2.0)
    make = functools.partial(Diary, tmp_path)
    with (
        OnRay(make, address=cluster.address, tries=1) as executor,
        pytest.raises(ValueError, match=r"no worker could be .*asks for \{'GPU': 3.0\}, and the"),
    ):
        finish(executor, [executor.submit(Pool(gpus=3.0), plod, 1)])


def environment(_: Tally) -> dict[str, str]:
    return dict(os.environ)


def test_platform_and_threads_are_set_before_jax_starts(cluster, monkeypatch):
    monkeypatch.setenv("NPROC", "7")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_onednn=false")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")  # The driver's is not the workers'.
    with OnRay(Tally, address=cluster.address) as executor:
        pools = [Pool(), Pool(platform="tpu")]
        found = finish(executor, [executor.submit(pool, environment) for pool in pools])
    assert [there["JAX_PLATFORMS"] for there in found] == ["cpu", "tpu"]
    assert {there["NPROC"] for there in found} == {"7"}
    assert {there["XLA_FLAGS"] for there in found} == {"--xla_cpu_use_onednn=false"}


def test_idle_workers_make_room_for_a_pool_that_needs_what_they_hold(cluster):
    pools = [Pool(cpus=3.0), Pool(cpus=2.0)]
    with OnRay(Tally, address=cluster.address) as executor:
        for pool in (*pools, pools[0]):
            assert finish(executor, [executor.submit(pool, calls, "")])[0][1] == 1
