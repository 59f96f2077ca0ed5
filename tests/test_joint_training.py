"""Training on several devices ends as it does on one, but for the order of sums."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest

from tests.joint_training import STEPS

RTOL, ATOL = 1e-4, 1e-5  # Float32, after six updates by Adam.


def start(devices: int, *arguments: object) -> subprocess.Popen[str]:
    """A process with so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.joint_training", *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> Mapping[str, np.ndarray]:
    """The last states of trainings in a process of four devices."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(4, "alone", folder))
    return dict(np.load(folder / "alone.npz"))


@pytest.mark.parametrize("devices", ["2", "4"])
def test_several_devices_train_as_one_does_but_for_the_order_of_sums(ends, devices):
    np.testing.assert_allclose(ends[devices], ends["1"], rtol=RTOL, atol=ATOL)
    assert not np.array_equal(ends[devices], ends["1"]), "rows were not split"


def test_the_same_devices_train_the_same_to_the_bit(ends):
    assert np.array_equal(ends["2 again"], ends["2"])


def test_interrupted_training_on_several_devices_ends_the_same_to_the_bit(ends):
    assert np.array_equal(ends["2, interrupted"], ends["2"])


def test_training_goes_on_on_another_number_of_devices(ends):
    np.testing.assert_allclose(ends["2, then 4, then 1"], ends["1"], rtol=RTOL, atol=ATOL)


def test_a_batch_that_does_not_divide_is_an_error_that_says_what_does(ends):
    assert str(ends["refused"]) == (
        "a batch of 6 rows does not divide into 4 parts, one for every device; "
        "ask for a multiple of 4 with --training.batch"
    )


@pytest.mark.slow
def test_processes_train_together_through_an_interruption_as_one_does(ends, tmp_path):
    """Two processes of one device each, joined by sockets."""
    for name, stops in {"whole": [STEPS], "interrupted": [3, STEPS]}.items():
        for stop in stops:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                at = f"127.0.0.1:{free.getsockname()[1]}"
            folder = tmp_path / name
            finish(*(start(1, "joined", folder, stop, 2, number, at) for number in range(2)))
    found = {path.stem: np.load(path) for path in tmp_path.glob("*.npz")}
    assert len(found) == 4 and {int(end["devices"]) for end in found.values()} == {2}
    states = [end["state"] for end in found.values()]
    assert all(np.array_equal(state, states[0]) for state in states)
    np.testing.assert_allclose(states[0], ends["1"], rtol=RTOL, atol=ATOL)
