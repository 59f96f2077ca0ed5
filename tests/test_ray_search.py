"""A search on Ray ends as it does in one process, whatever is killed on the way."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from nas.diffusion.pipeline import Pipeline
from nas.evolution import Score, State, Task, Train
from nas.executors import Here, Pool, finish
from nas.journal import read
from nas.on_ray import OnRay
from nas.strategies.exploration import Evaluate
from tests import clusters, tiny
from tests.conftest import CACHE
from tests.fake_workers import FakeWorker, Trouble, entries, go_on

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

POISON, HANGING, NO_NUMBER = tiny.REMOVABLE[1], tiny.REMOVABLE[4], tiny.REMOVABLE[6]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with clusters.cluster(num_cpus=4) as found:
        yield found


def on_ray(cluster: Cluster, folder: Path, **settings: Any) -> State:
    make = functools.partial(FakeWorker, **settings)
    ours = FakeWorker(**{name: x for name, x in settings.items() if name != "registry"})
    tries = ours.recipe.pools.tries
    with OnRay(make, address=cluster.address, tries=tries) as executor:
        return go_on(folder, executor, ours)


def here(folder: Path, trouble: Trouble) -> State:
    worker = FakeWorker(trouble)
    with Here(worker, tries=1) as executor:
        return go_on(folder, executor, worker)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict[Task, Any], State]:
    """The entries and the last state of a search in one process."""
    folder = tmp_path_factory.mktemp("whole")
    state = here(folder, Trouble())
    return entries(folder), state


@pytest.mark.parametrize(("workers", "cpus"), [(2, 0.0), (16, 0.25)])
def test_workers_find_what_one_process_does_and_weights_are_sent_once(
    cluster, whole, tmp_path, monkeypatch, workers, cpus
):
    sent, put = [], ray.put
    monkeypatch.setattr("nas.on_ray.ray.put", lambda value: sent.append(value) or put(value))
    state = on_ray(cluster, tmp_path, workers=workers, cpus=cpus)
    assert (entries(tmp_path), state) == whole
    scored = [task.number for task in whole[0] if isinstance(task, Score) and task.number]
    assert [value["number"] for value in sent] == list(dict.fromkeys(scored))
    assert len(scored) > 3 * len(sent) > 0


@contextlib.contextmanager
def killing(registry: Path, times: int) -> Iterator[list[int]]:
    """Kills workers at random moments, so many times in all; yields which were killed."""
    registry.mkdir()
    rng, killed, over = np.random.default_rng(0), [], threading.Event()

    def kill() -> None:
        while len(killed) < times and not over.wait(rng.uniform(0.5, 3.0)):
            ours = {process.pid for process in psutil.Process().children(recursive=True)}
            found = sorted(ours & {int(path.name) for path in registry.iterdir()})
            if found:
                killed.append(int(rng.choice(found)))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(killed[-1], signal.SIGKILL)
                (registry / str(killed[-1])).unlink()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_workers_killed_at_random_change_nothing(cluster, whole, tmp_path):
    registry = tmp_path / "workers"
    with killing(registry, times=5) as killed:
        state = on_ray(cluster, tmp_path, seconds=0.1, tries=20, registry=registry)
    assert len(killed) >= 3
    assert (entries(tmp_path), state) == whole


def test_candidates_that_kill_or_hang_or_score_no_number_are_done_without(cluster, tmp_path):
    trouble = Trouble(poison=(POISON,), hanging=(HANGING,), no_number=(NO_NUMBER,))
    state = on_ray(cluster, tmp_path / "ray", trouble=trouble, deadline=3.0)
    reasons = {(block, why.split("; ")[0]) for (_, block), why in state.failed.items()}
    assert reasons == {
        (POISON, "tried 2 times: its worker's process died"),
        (HANGING, "tried 2 times: it had not ended after the 3 s that a call may take"),
        (NO_NUMBER, "its score is no number for 4 of 8 prompts"),
    }
    # Everything else is as if all three had just been without a score.
    same = here(tmp_path / "here", Trouble(no_number=(POISON, HANGING, NO_NUMBER)))
    assert (state.networks, state.scores) == (same.networks, same.scores)
    assert state.failed.keys() == same.failed.keys()


# A cluster that was started for a search ends with it.


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run after so many seconds."""
    until = time.monotonic() + seconds
    while (left := [p for p in processes if runs(p)]) and time.monotonic() < until:
        time.sleep(0.2)
    return left


def runs(process: psutil.Process) -> bool:
    """Whether it runs; one that is dead may wait for its parent to take note."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def lines(folder: Path) -> int:
    path = folder / "journal.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


@contextlib.contextmanager
def begun(command: list[str], folder: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    """A search of which so many lines are in the journal."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while lines(folder) < count:
            assert process.poll() is None
            time.sleep(0.05)
        yield process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_search_goes_on_after_its_process_was_killed_and_leaves_nothing(whole, tmp_path, number):
    command = [sys.executable, "-m", "tests.fake_workers", str(tmp_path)]
    with begun(command, tmp_path, 12) as process:
        before, ours = lines(tmp_path), family(process)
        assert sum("raylet" in found.name() for found in ours) == 1
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        # Before it, on a machine that takes its time, that what runs ends first.
        assert said.endswith("\nnas: interrupted; nothing is lost: the same command goes on\n")
        assert "Traceback" not in said
    assert not alive(ours, 180)  # Agents of Ray give up its head after a minute.
    done = entries(tmp_path)
    assert before - 1 <= len(done) < len(whole[0])
    assert subprocess.run(command, check=False).returncode == 0
    assert entries(tmp_path) == whole[0]
    assert list(entries(tmp_path))[: len(done)] == list(done)


class Elsewhere:
    """A worker that runs commands on the node it is on."""

    def run(self, command: list[str]) -> tuple[int, str]:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        return done.returncode, done.stderr


def test_a_search_goes_on_from_another_node_after_its_process_was_killed(cluster, whole, tmp_path):
    """On the cluster that is there, whose workers of the dead process end with it."""
    cluster.add_node(num_cpus=1, resources={"elsewhere": 1})
    folder, registry = tmp_path / "shared", tmp_path / "workers"
    registry.mkdir()
    command = [sys.executable, "-m", "tests.fake_workers", str(folder)]
    command += [cluster.address, str(registry)]
    with begun(command, folder, 12) as process:
        workers = [psutil.Process(int(path.name)) for path in registry.iterdir()]
        process.kill()
    assert workers and not alive(workers, 60)
    done = list(entries(folder))
    with OnRay(Elsewhere, address=cluster.address) as executor:
        pool = Pool(resources={"elsewhere": 1.0})
        found = finish(executor, [executor.submit(pool, Elsewhere.run, command)])
    assert found == [(0, "")]
    assert entries(folder) == whole[0] and list(entries(folder))[: len(done)] == done


# All of it, with weights and pictures.


@pytest.fixture
def models(folders, monkeypatch) -> None:
    monkeypatch.setenv("NAS_TEST_MODELS", str(folders.pipeline.parent))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def outcomes(folder: Path) -> dict[Task, Any]:
    _, found = read(folder / "journal.jsonl")
    return {task: {k: x for k, x in outcome.items() if k != "cost"} for task, outcome in found}


EDITS = ["--strategy", "random", "--evaluations", "6", "--edits", "Remove", "Copy", "Choose"]
PHONE = ["--device", "google-pixel-4-pytorch-vulkan=90%", "--caution", "0"]


@pytest.mark.parametrize(
    ("strategy", "task", "most"), [((), Score, 10), ((*EDITS, *PHONE), Evaluate, 5)]
)
def test_the_command_makes_the_same_pipeline_on_ray_as_in_one_process(
    models, tmp_path, capfd, strategy, task, most
):
    for out, where in (("here", []), ("ray", ["--on", "ray", "--workers", "2"])):
        arguments = ["search", "tests.cli_recipe:recipe", "--out", str(tmp_path / out)]
        command = [sys.executable, "-m", "nas", *arguments, *strategy, *where]
        done = subprocess.run(command, check=False)
        assert done.returncode == 0, capfd.readouterr()
    one, other = (outcomes(tmp_path / out) for out in ("here", "ray"))
    assert one == other and sum(isinstance(each, task) for each in one) > most
    nets = [Pipeline.load(tmp_path / out / "pipeline").unet for out in ("here", "ray")]
    assert nets[0].keys() == nets[1].keys()
    assert all(np.array_equal(nets[0][name], nets[1][name]) for name in nets[0])
    for name in ("before.png", "after.png"):
        pictures = [(tmp_path / out / "pictures" / name).read_bytes() for out in ("here", "ray")]
        assert pictures[0] == pictures[1]


def test_a_search_whose_trainer_spans_two_hosts_finds_what_one_process_does(
    models, tmp_path, capfd
):
    def searched(name: str, recipe: str, *where: str) -> tuple[dict[Task, Any], Any]:
        out = tmp_path / name
        command = ["search", f"tests.cli_recipe:{recipe}", "--out", str(out), *where]
        done = subprocess.run([sys.executable, "-m", "nas", *command], check=False)
        assert done.returncode == 0, capfd.readouterr()
        return outcomes(out), Pipeline.load(out / "pipeline").unet

    one, alone = searched("here", "recipe")
    own = {"num_cpus": 2, "resources": {"trainer": 1}}
    with clusters.cluster(**own) as cluster:
        cluster.add_node(**own)
        other, joint = searched("split", "split", "--on", "ray", f"--address={cluster.address}")
    assert one.keys() == other.keys() and alone.keys() == joint.keys()
    # The rows of a batch are summed in another order.
    for task, outcome in one.items():
        if isinstance(task, Train):
            assert other[task]["losses"] == pytest.approx(outcome["losses"], rel=1e-3)
    for name in alone:
        np.testing.assert_allclose(joint[name], alone[name], rtol=1e-2, atol=1e-3)
