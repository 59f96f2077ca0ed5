"""Architectures as numbers: what a latency may be made of, part by part.

A latency predictor that has seen few networks learns little about each feature, but it can learn
how much each *kind* of feature matters. A component is such a kind: a block of features whose
joint share of the latency is one number. `Basis` remembers how blocks were standardised, so that
a saved predictor reads new architectures as it read those it was fitted on.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Component:
    """Features `[n, k]` of `n` architectures that act together.

    Degree 1: the latency is a weighted sum of them. Degree 2: of all products of two of them.
    """

    name: str
    features: np.ndarray
    degree: int = 1

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not self.features.size:
            raise ValueError(
                f"component {self.name!r} has features of shape {self.features.shape}; "
                "give a row for every architecture, with at least one column"
            )
        if not np.isfinite(self.features).all():
            raise ValueError(f"component {self.name!r} has features that are not finite")
        if self.degree not in (1, 2):
            raise ValueError(f"component {self.name!r} has degree {self.degree}; it is 1 or 2")


# A component's columns among all, and its degree: start, stop, degree.
Part = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
    """How the features of components become one matrix `[n, width]` on a common scale.

    Every column is centred and every component divided by one number, so that its kernel is 1 for
    the average architecture; columns keep their sizes relative to each other.
    """

    names: tuple[str, ...]
    degrees: tuple[int, ...]
    widths: tuple[int, ...]
    mean: np.ndarray  # [width]
    scale: np.ndarray  # [width]

    @property
    def parts(self) -> tuple[Part, ...]:
        stops = np.cumsum(self.widths).tolist()
        return tuple(
            (stop - width, stop, degree)
            for stop, width, degree in zip(stops, self.widths, self.degrees, strict=True)
        )

    def matrix(self, components: Sequence[Component]) -> np.ndarray:
        """Standardised features `[n, width]`. Raises `ValueError` on other components."""
        given = [(c.name, c.degree, c.features.shape[1]) for c in components]
        known = list(zip(self.names, self.degrees, self.widths, strict=True))
        if given != known:
            raise ValueError(
                f"components {given} (name, degree, columns) are not those fitted on: {known}"
            )
        return (_stack(components) - self.mean) / self.scale


def standardise(components: Sequence[Component]) -> Basis:
    """The basis in which `components` are centred and of unit size."""
    if not components:
        raise ValueError("no components; describe the architectures by at least one")
    everything = _stack(components)
    mean = everything.mean(0)
    widths = tuple(component.features.shape[1] for component in components)
    scales = []
    for component, width in zip(components, widths, strict=True):
        centred = component.features - component.features.mean(0)
        size = float(np.sqrt(np.mean(np.sum(centred**2, axis=1))))
        # A component in which the architectures do not differ stays zero: it explains nothing.
        scales.append(np.full(width, size if size > 1e-9 * np.abs(mean).max() else 1.0))
    return Basis(
        tuple(component.name for component in components),
        tuple(component.degree for component in components),
        widths,
        mean,
        np.concatenate(scales),
    )


def _stack(components: Sequence[Component]) -> np.ndarray:
    counts = {component.name: len(component.features) for component in components}
    if len(set(counts.values())) > 1:
        raise ValueError(f"components differ in how many architectures they describe: {counts}")
    return np.concatenate([np.asarray(c.features, float) for c in components], axis=1)


@functools.partial(jax.jit, static_argnames="parts")
def grams(rows: jax.Array, columns: jax.Array, *, parts: tuple[Part, ...]) -> jax.Array:
    """Kernels of every component, `[components, n, m]`, between `rows` `[n, width]` and
    `columns` `[m, width]`."""
    return jnp.stack(
        [
            (rows[:, start:stop] @ columns[:, start:stop].T) ** degree
            for start, stop, degree in parts
        ]
    )


@functools.partial(jax.jit, static_argnames="parts")
def diagonals(rows: jax.Array, *, parts: tuple[Part, ...]) -> jax.Array:
    """`[components, n]`: every component's kernel of each row with itself."""
    return jnp.stack(
        [jnp.sum(rows[:, start:stop] ** 2, axis=1) ** degree for start, stop, degree in parts]
    )
