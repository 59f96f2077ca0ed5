"""A network to be exported: a program, its weights, and the names of what goes in and comes out."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from search_spaces.ops import Shape
from search_spaces.program import Program, network

Dtype = Literal["float32", "float16", "bfloat16"]

CLOSE: Mapping[Dtype, float] = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}
"""How far a sound export may be off, relative to the output's largest value: twice a network's
rounding errors, as two runtimes add up in different orders."""


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A network to be exported. `outputs` maps the names of what comes out to the steps that make
    it. `weights` are on the host, with our names and order of axes, in the precision to export."""

    name: str
    program: Program
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, str]
    weights: Mapping[str, np.ndarray]
    dtype: Dtype = "float32"

    def __call__(
        self, weights: Mapping[str, Any], values: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        """What the network computes of `values`, by the names of the outputs."""
        model = network(self.program, self.inputs)
        _, found = model(weights, values, also=tuple(self.outputs.values()))
        return {name: found[step] for name, step in self.outputs.items()}

    @property
    def results(self) -> dict[str, Shape]:
        """Shapes of the outputs."""
        return jax.eval_shape(self, shapes(self.weights), dict(self.inputs))


def shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    return {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}


def in_precision(part: Part, dtype: Dtype) -> Part:
    """`part` with weights and values in `dtype`. Timesteps, sizes and whole numbers keep theirs:
    bfloat16 has no 999, and float16 no 2049."""
    kept = {
        name
        for name, shape in part.inputs.items()
        if name in ("timestep", "sizes") or not jax.numpy.issubdtype(shape.dtype, np.inexact)
    }
    return dataclasses.replace(
        part,
        inputs={
            name: shape if name in kept else jax.ShapeDtypeStruct(shape.shape, dtype)
            for name, shape in part.inputs.items()
        },
        weights={
            name: np.asarray(weight).astype(jax.numpy.dtype(dtype))
            for name, weight in part.weights.items()
        },
        dtype=dtype,
    )


def compared(
    part: Part, values: Mapping[str, Any], found: Mapping[str, Any], runtime: str
) -> dict[str, float]:
    """How far each output that `runtime` found is from the original's, relative to the original's
    largest value.

    Raises `ValueError` where that is further than `CLOSE`.
    """
    original = jax.jit(lambda weights, values: part(weights, values))(part.weights, values)
    differences = {name: _difference(found[name], value) for name, value in original.items()}
    worst = max(differences.values())
    if not worst <= CLOSE[part.dtype]:  # Not a number is far off, too.
        raise ValueError(
            f"{runtime} computes something else than the original: {worst:.2g} of its scale away, "
            f"where {CLOSE[part.dtype]} is allowed in {part.dtype}"
        )
    return differences


def _difference(found: Any, original: Any) -> float:
    ours, theirs = (np.asarray(x, np.float64) for x in (found, original))
    if ours.shape != theirs.shape:
        return math.inf
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))
