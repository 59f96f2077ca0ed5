"""Training by one worker that spans hosts: it ends as in one process, and fails as one."""

import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from ray.cluster_utils import Cluster

from nas.executors import Pool, finish
from nas.on_ray import OnRay
from tests import clusters
from tests.joint_training import STEPS, Training, flat

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

GROUP = Pool(resources={"trainer": 1.0}, hosts=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    own = {"num_cpus": 1, "resources": {"trainer": 1}}
    with clusters.cluster(**own) as found:
        found.add_node(**own)
        yield found


class Member:
    """One of the processes that train together; notes in a folder the steps that it begins."""

    def __init__(self, folder: Path):
        self.folder = folder

    def train(self, name: str, pause: float) -> tuple[int, np.ndarray]:
        """The number of processes, and the last state."""
        training = Training()
        plain = training.batch

        def batch(step: int):
            (self.folder / f"{name}.{jax.process_index()}.{os.getpid()}.{step}").touch()
            time.sleep(pause)
            return plain(step)

        training.batch = batch
        return jax.process_count(), flat(training.go_on(self.folder / name))

    def refuse(self) -> None:
        """The input is wrong on one of the hosts; the others wait for it."""
        if jax.process_index():
            raise ValueError("no such folder on this host")
        Training().go_on(self.folder / "refused")


def noted(folder: Path, name: str) -> dict[int, list[tuple[int, int]]]:
    """The process and the step of everything that each member began, in order of steps."""
    found: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for path in folder.glob(f"{name}.*.*.*"):
        _, member, pid, step = path.name.split(".")
        found[int(member)].append((int(pid), int(step)))
    return {member: sorted(steps, key=lambda s: (s[1], s[0])) for member, steps in found.items()}


def test_a_worker_of_two_hosts_trains_as_one_process_does_and_restarts_as_one(cluster, tmp_path):
    alone = flat(Training().go_on(tmp_path / "alone"))
    with OnRay(functools.partial(Member, tmp_path), address=cluster.address, tries=2) as executor:
        (whole,) = finish(executor, [executor.submit(GROUP, Member.train, "whole", 0.0)])
        future = executor.submit(GROUP, Member.train, "killed", 0.5)
        while not any(step == 3 for _, step in noted(tmp_path, "killed")[1]):
            executor.step()
        (victim, _) = noted(tmp_path, "killed")[1][0]
        os.kill(victim, signal.SIGKILL)
        (again,) = finish(executor, [future])
    assert whole[0] == again[0] == 2
    np.testing.assert_allclose(whole[1], alone, rtol=1e-4, atol=1e-5)
    assert np.array_equal(again[1], whole[1])
    for steps in noted(tmp_path, "killed").values():
        first, second = dict.fromkeys(pid for pid, _ in steps)  # Both members were replaced.
        began = {pid: [step for p, step in steps if p == pid] for pid in (first, second)}
        assert began[first][0] == 0
        # From the checkpoint before the step that was under way.
        assert 3 <= began[second][0] <= began[first][-1] + 1 and began[second][-1] == STEPS - 1


def test_what_one_member_is_given_wrongly_is_the_callers_error(cluster, monkeypatch, tmp_path):
    monkeypatch.setattr("nas.on_ray.AFTERMATH", 5.0)
    with OnRay(functools.partial(Member, tmp_path), address=cluster.address) as executor:
        with pytest.raises(ValueError, match="no such folder on this host"):
            finish(executor, [executor.submit(GROUP, Member.refuse)])
        # The member that waits for the other is replaced with it.
        future = executor.submit(GROUP, Member.train, "after", 0.0)
        assert finish(executor, [future])[0][0] == 2
