"""Which units of a layer to keep when it is trimmed."""

import abc
import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Units:
    """Units that lie between two linear maps, such as the hidden channels of an FFN.

    `coupled` are the weights that go or stay together with a unit, `[units, ...]` each, and
    `gradients` theirs. The units' values `[rows, units * size]` are mapped by `out`,
    `[units * size, channels]`.
    """

    size: int
    coupled: tuple[np.ndarray, ...]
    gradients: Callable[[], tuple[np.ndarray, ...]]
    values: np.ndarray
    out: np.ndarray

    @property
    def count(self) -> int:
        return len(self.out) // self.size


class Criterion(abc.ABC):
    """Which units matter most. Subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def keep(self, units: Units, count: int) -> np.ndarray:
        """Numbers of the `count` units to keep, in order."""


@dataclasses.dataclass(frozen=True)
class L1Norm(Criterion):
    """Keeps units whose weights have the largest absolute sum (Li et al., ICLR 2017)."""

    def keep(self, units: Units, count: int) -> np.ndarray:
        return _largest(np.sum([_per_unit(np.abs(w)) for w in units.coupled], axis=0), count)


@dataclasses.dataclass(frozen=True)
class Taylor(Criterion):
    """Keeps units whose removal changes the training loss most, to first order: the absolute sum
    of weight times gradient (Molchanov et al., CVPR 2019)."""

    def keep(self, units: Units, count: int) -> np.ndarray:
        pairs = zip(units.coupled, units.gradients(), strict=True)
        return _largest(np.abs(np.sum([_per_unit(w * g) for w, g in pairs], axis=0)), count)


@dataclasses.dataclass(frozen=True)
class OutputError(Criterion):
    """Keeps units that the others can least make up for on calibration data.

    The squared error that is left when a unit goes and the linear map behind it is refitted has a
    closed form (Hassibi & Stork, NeurIPS 1992). Units go one by one, the least needed first, as of
    two that make up for each other one must stay.
    """

    def keep(self, units: Units, count: int) -> np.ndarray:
        values = units.values.astype(np.float64)
        values -= values.mean(0)
        gram = values.T @ values
        gram[np.diag_indices_from(gram)] += 1e-4 * max(np.trace(gram) / len(gram), 1e-12)
        inverse, out = np.linalg.inv(gram), units.out.astype(np.float64)
        kept = np.ones(units.count, bool)
        for _ in range(units.count - count):
            errors = np.where(kept, _errors(inverse, out, units.size), np.inf)
            gone = int(np.argmin(errors))
            kept[gone] = False
            rows = slice(gone * units.size, (gone + 1) * units.size)
            # The others take over what the unit said, as far as they vary with it.
            share = inverse[:, rows] @ np.linalg.inv(inverse[rows, rows])
            out -= share @ out[rows]
            inverse -= share @ inverse[rows]
        return np.flatnonzero(kept)


def _errors(inverse: np.ndarray, out: np.ndarray, size: int) -> np.ndarray:
    """Squared error that removing each unit leaves after a refit, `[units]`.

    Those of units that are gone already are of no meaning.
    """
    count = len(inverse) // size
    blocks = inverse.reshape(count, size, count, size)[np.arange(count), :, np.arange(count)]
    own = out.reshape(count, size, -1)
    if size == 1:
        return np.square(own[:, 0]).sum(1) / np.maximum(blocks[:, 0, 0], 1e-300)
    return (own * (np.linalg.pinv(blocks) @ own)).sum((1, 2))


def _per_unit(weights: np.ndarray) -> np.ndarray:
    return weights.reshape(len(weights), -1).sum(1)


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the `count` largest scores, in order; of equal scores the first ones."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
