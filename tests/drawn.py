"""Weights, inputs and a network that are made from little, here and in PyTorch alike."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from search_spaces import recording
from search_spaces.model import Weights
from search_spaces.ops import model
from search_spaces.program import Program, calls


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(shapes: Mapping[str, jax.ShapeDtypeStruct], seed: int) -> Weights:
    """Weights of which none is zero, one, or equal to another's, so that no fault hides."""
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(_weight(rng, name, shapes[name].shape)) for name in sorted(shapes)}


def _weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape)
    leaf = name.rpartition(".")[2]
    if leaf == "kernel":
        values *= np.prod(shape[:-1]) ** -0.5
    elif leaf == "scale":
        values = 1 + 0.2 * values
    else:
        values *= 0.2
    return np.asarray(values, np.float32)


def fake_network(xp: ModuleType, z: Any, t: Any) -> Any:
    """A bounded nonlinear function of latents and time; `xp` is numpy, jax.numpy or torch."""
    return xp.cos(1.5 * z + 0.01 * t) - 0.3 * xp.tanh(z) * (t / 1000)


def relative_error(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def stepwise(
    program: Program, weights: Mapping[str, jax.Array], inputs: Mapping[str, Any]
) -> jax.Array:
    """What a program gives, run call by call: most calls of a network are repeated, and XLA takes
    minutes with whole networks of full depth."""
    values = {name: jnp.asarray(value) for name, value in inputs.items()}
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in values.items()}
    for name, call in calls(program, shapes).items():
        own = {leaf: weights[f"{name}.{leaf}"] for leaf in model(call).shapes}
        reads = next(step.reads for step in program if step.name == name)
        values[name] = recording.compiled(call)(own, *(values[read] for read in reads))
    return values[program[-1].name]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for one call: XLA optimises little, and is ready in half the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
