"""Models as functions of named weights.

Layers are written as Flax NNX modules; everything that trains, stores or edits weights sees them
as `Weights`, one flat dictionary from dotted path to array. Paths are those of the PyTorch
original (`down_blocks.0.resnets.1.conv1`) with Flax's leaf names (`kernel`, `scale`, `embedding`).
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import nnx

Weights: TypeAlias = dict[str, jax.Array]


class _Undrawn:
    """A stream of random numbers for what is only traced: one key for all, and zeros for normal
    numbers. Drawing them would take longer than all else in a trace."""

    def __init__(self, key: jax.Array):
        self._key = key

    def __call__(self) -> jax.Array:
        return self._key

    def normal(self, shape: tuple[int, ...]) -> jax.Array:
        return jax.numpy.zeros(shape)


class _Rngs(nnx.Rngs):
    @property
    def params(self) -> _Undrawn:
        return _Undrawn(self["params"].key[...])


class Model:
    """A module's definition without its weights: `model(weights, *inputs)` runs it.

    `build(rngs)` makes the module; it is only traced, so nothing is allocated. Parameters under
    the attribute path `root` are named without it. Pure, so it may be jitted and differentiated.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module], *, root: tuple[str, ...] = ()):
        graphs: list[nnx.GraphDef[Any]] = []

        def parts() -> Any:
            # `nnx.eval_shape` would go through the module three times for this.
            graph, state = nnx.split(build(_Rngs(0)))
            graphs.append(graph)
            return state

        flat = dict(nnx.to_flat_state(jax.eval_shape(parts)))
        (self.graph,) = graphs
        self._paths = {".".join(str(key) for key in path[len(root) :]): path for path in flat}
        self._kinds = {name: flat[path] for name, path in self._paths.items()}
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in self._kinds.items()
        }

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(shape.size for shape in self.shapes.values())

    def __call__(self, weights: Mapping[str, jax.Array], *inputs: Any, **keywords: Any) -> Any:
        return self.bind(weights)(*inputs, **keywords)

    def bind(self, weights: Mapping[str, jax.Array]) -> Any:
        """Returns the module holding `weights`. Raises `ValueError` on a wrong name or shape."""
        self.check(weights)
        flat = {
            path: self._kinds[name].replace(weights[name]) for name, path in self._paths.items()
        }
        return nnx.merge(self.graph, nnx.from_flat_state(flat))

    def check(self, weights: Mapping[str, Any]) -> None:
        """Raises `ValueError` unless `weights` has exactly this model's names and shapes."""
        missing = sorted(self.shapes.keys() - weights.keys())
        unknown = sorted(weights.keys() - self.shapes.keys())
        if missing or unknown:
            raise ValueError(
                f"these weights are of another architecture: {len(missing)} are missing "
                f"(first: {missing[:2]}), {len(unknown)} are unknown (first: {unknown[:2]})"
            )
        for name, shape in self.shapes.items():
            if tuple(weights[name].shape) != shape.shape:
                raise ValueError(
                    f"{name} has shape {tuple(weights[name].shape)}, "
                    f"but this architecture needs {shape.shape}"
                )

    def initial(self, seed: int, *, zeros: frozenset[str] = frozenset()) -> Weights:
        """Draws fresh weights: LeCun normal kernels, unit scales, zero biases.

        They are drawn on the host, since XLA would compile an initialiser for every shape.
        Sub-layers named in `zeros` start at zero.
        """
        rng = np.random.default_rng(seed)
        return {
            name: jax.numpy.asarray(_draw(rng, name, shape, zeros))
            for name, shape in self.shapes.items()
        }


def _draw(
    rng: np.random.Generator, name: str, shape: jax.ShapeDtypeStruct, zeros: frozenset[str]
) -> np.ndarray:
    layer, _, leaf = name.rpartition(".")
    if layer in zeros or leaf == "bias":
        return np.zeros(shape.shape, shape.dtype)
    if leaf == "scale":
        return np.ones(shape.shape, shape.dtype)
    # What is no kernel is an embedding of tokens, classes or positions, drawn as in CLIP.
    deviation = np.prod(shape.shape[:-1]) ** -0.5 if leaf == "kernel" else 0.02
    return (deviation * rng.standard_normal(shape.shape)).astype(shape.dtype)


def torch_name(name: str) -> str:
    """The name that PyTorch gives the weight we call `name`."""
    layer, dot, leaf = name.rpartition(".")
    leaf = "weight" if leaf in ("kernel", "scale", "embedding") else leaf
    return f"{layer}{dot}{leaf}"


def our_name(name: str, axes: int) -> str:
    """Inverse of `torch_name` for a weight of so many axes that is no embedding."""
    layer, dot, leaf = name.rpartition(".")
    if leaf == "weight":
        leaf = "kernel" if axes > 1 else "scale"
    return f"{layer}{dot}{leaf}"


def to_torch(name: str, weight: np.ndarray) -> np.ndarray:
    """`weight` in PyTorch's order of axes: kernels become `[out, in, ...]`."""
    if name.endswith("kernel"):
        return np.moveaxis(weight, (-1, -2), (0, 1))
    return weight


def from_torch(name: str, weight: np.ndarray) -> np.ndarray:
    """Inverse of `to_torch`."""
    if name.endswith("kernel"):
        return np.moveaxis(weight, (0, 1), (-1, -2))
    return weight
