"""Workers of Ray on hosts that go out of reach: packets are lost, and no process is told."""

import contextlib
import functools
import sys
import time
from collections.abc import Iterator

import pytest

from nas.executors import Pool, finish
from nas.on_ray import OnRay
from tests import clusters, namespaces
from tests.diary import Diary, begun, noted, plod
from tests.namespaces import Host

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

FAR = Pool(resources={"far": 1.0})
WELL = {"health_check_period_ms": 1000, "health_check_initial_delay_ms": 1000}


@contextlib.contextmanager
def cluster(hosts: list[Host], patience: float) -> Iterator[str]:
    """The address of a cluster of these hosts, which gives up one that is silent for so long."""
    health = {**WELL, "health_check_timeout_ms": int(1000 * patience)}
    own = {"num_cpus": 0, "node_ip_address": namespaces.HERE, "_system_config": health}
    with clusters.cluster(**own) as head, contextlib.ExitStack() as nodes:
        for host in hosts:
            nodes.callback(host.kill)
            join(host, str(head.address))
        yield str(head.address)


def join(host: Host, address: str) -> None:
    own = f"--address={address} --node-ip-address={host.address} --num-cpus=1"
    lean = "--disable-usage-stats --include-log-monitor=false"
    start = ["start", *own.split(), '--resources={"far": 1}', *lean.split()]
    host.run(sys.executable, "-m", "ray.scripts.scripts", *start)


def test_what_a_host_does_that_is_out_of_reach_for_long_is_not_counted_again(tmp_path):
    """Its worker goes on and ends its call, and nobody hears of it."""
    with (
        namespaces.network(2) as hosts,
        cluster(hosts, patience=3.0) as address,
        OnRay(functools.partial(Diary, tmp_path), address=address, tries=1) as executor,
    ):
        futures = [executor.submit(FAR, plod, n, 3.0) for n in range(3)]
        (_, worker) = begun(executor, tmp_path, 1)[0]
        (host,) = (host for host in hosts if worker in host.processes())
        host.unplug()
        found = finish(executor, futures)
        assert (0, worker) in noted(tmp_path, "ended")
        host.plug()
        more = [executor.submit(FAR, plod, n) for n in range(3, 8)]
        assert found + finish(executor, more) == [n**2 for n in range(8)]
    # The call that was cut off is all that was made twice.
    made = [n for n, _ in noted(tmp_path, "begun")]
    assert sorted(made) == sorted([*range(8), 0])


def test_a_host_that_is_out_of_reach_for_a_moment_is_waited_for(tmp_path):
    with (
        namespaces.network(1) as hosts,
        cluster(hosts, patience=30.0) as address,
        OnRay(functools.partial(Diary, tmp_path), address=address, tries=1) as executor,
    ):
        futures = [executor.submit(FAR, plod, n) for n in range(6)]
        begun(executor, tmp_path, 2)
        hosts[0].unplug()
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            executor.step()
        hosts[0].plug()
        assert finish(executor, futures) == [n**2 for n in range(6)]
    assert [n for n, _ in noted(tmp_path, "begun")] == list(range(6))
