"""Trainings on several devices, in processes that have them.

    python -m tests.joint_training alone FOLDER

trains on some of this process's devices after others, and writes what came of it.

    python -m tests.joint_training joined FOLDER STOP COUNT NUMBER COORDINATOR

is one of COUNT processes that together go on with a training in FOLDER until the step STOP.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas.checkpoints import Checkpoints
from nas.training import Trainer, TrainState, adamw
from tests import drawn

STEPS, SIZE, SEED = 6, 4, 5
SHAPES = {
    "first.kernel": jax.ShapeDtypeStruct((6, 32), "float32"),
    "first.bias": jax.ShapeDtypeStruct((32,), "float32"),
    "second.kernel": jax.ShapeDtypeStruct((32, 3), "float32"),
}


class Batch(NamedTuple):
    """As those of U-Nets: rows, a switch, and what all steps have in common."""

    x: Any  # [rows, 6]
    skip: Any  # Boolean scalar.
    teacher: Any  # [6, 3]


ROWS: Any = Batch(x=True, skip=False, teacher=False)


def loss(weights, batch: Batch, key):
    """Every row has its own noise, and a step may skip a layer."""
    x = batch.x + 0.1 * jax.random.normal(key, batch.x.shape)
    hidden = jnp.tanh(x @ weights["first.kernel"] + weights["first.bias"])
    hidden = jax.lax.cond(batch.skip, jnp.zeros_like, lambda h: h, hidden)
    return jnp.mean((hidden @ weights["second.kernel"] - x @ batch.teacher) ** 2)


class Training:
    """A training that is saved after every step."""

    def __init__(self, devices: Sequence[Any] | None = None, size: int = SIZE):
        self._size = size
        self.trainer = Trainer(loss, SHAPES, adamw(), rows=ROWS, devices=devices)
        self._teacher = self.trainer.everywhere(drawn.normal(1, 6, 3))

    def batch(self, step: int) -> Batch:
        x = drawn.normal(10 + step, self._size, 6)
        return Batch(x, np.array(step == 2), self._teacher)

    def go_on(self, folder: Path, stop: int = STEPS) -> TrainState:
        checkpoints = Checkpoints(folder)
        state = self.trainer.start(drawn.weights(SHAPES, seed=0))
        state = checkpoints.latest(state) or state
        for state, _ in self.trainer.run(state, self.batch, lambda _: 1e-2, steps=stop, seed=SEED):
            checkpoints.save(int(state.step), state)
        return state


def flat(state: TrainState) -> np.ndarray:
    """All numbers of a state but the step."""
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(state)[1:]])


def alone(folder: Path) -> None:
    """Writes the last state of trainings, by the numbers of devices that they were done on."""
    devices = jax.devices()
    trainings = {count: Training(devices[:count]) for count in (1, 2, 4)}
    found = {}
    for name, path in {
        "1": [(1, STEPS)],
        "2": [(2, STEPS)],
        "2 again": [(2, STEPS)],
        "4": [(4, STEPS)],
        "2, interrupted": [(2, 3), (2, STEPS)],
        "2, then 4, then 1": [(2, 2), (4, 4), (1, STEPS)],
    }.items():
        for count, stop in path:
            state = trainings[count].go_on(folder / name, stop)
            found[name] = flat(state)
    try:
        Training(devices[:4], size=6).go_on(folder / "refused")
    except ValueError as error:
        found["refused"] = np.array(str(error))
    np.savez(folder / "alone.npz", **found)


def joined(folder: Path, stop: int, count: int, number: int, coordinator: str) -> None:
    jax.distributed.initialize(coordinator, count, number)
    state = Training().go_on(folder, stop)
    own = {"state": flat(state), "devices": jax.device_count()}
    np.savez(folder.parent / f"{folder.name}-{number}.npz", **own)


if __name__ == "__main__":
    kind, where, *others = sys.argv[1:]
    if kind == "alone":
        alone(Path(where))
    else:
        stop, count, number = map(int, others[:3])
        joined(Path(where), stop, count, number, others[3])
