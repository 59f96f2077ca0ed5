"""Latency on phones' GPUs, learned from kernels that were measured one by one, and from networks.

A kernel's latency is that of a roofline with three parameters for its kind, times what trees say
of its shape: beyond the shapes that were measured the roofline goes on where trees stand still.
A network takes longer than its kernels together, by what it costs to start, to launch each kernel,
and to run what no profile lists.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from latency_models import trees
from latency_models.kernels import KINDS, Kernel, Kind, features, strata, work
from latency_models.latency import Latency
from latency_models.trees import Regressor


class Graph(NamedTuple):
    """A network as a phone runs it. Nodes that no profile lists are `unlisted`: so many, of so many
    elements together."""

    kernels: tuple[Kernel, ...]
    unlisted: int = 0
    unlisted_elements: float = 0.0

    def costs(self, kernels_ms: float) -> tuple[float, ...]:
        """What `Whole`'s rates multiply, in their order."""
        moved = math.fsum(kernel.elements - kernel.weights for kernel in self.kernels)
        counts = len(self.kernels), self.unlisted, self.unlisted_elements, moved
        return (1.0, kernels_ms, *map(float, counts))


@dataclasses.dataclass(frozen=True)
class Whole:
    """What a network costs beside its kernels; every rate is in milliseconds and not negative.

    `std` is the deviation of measured over predicted networks that were left out of the fit, as a
    share, and `distance` how far off the shares `trees.COVERAGES` of them are at most.
    """

    fixed_ms: float
    scale: float
    per_kernel_ms: float
    per_unlisted_ms: float
    per_unlisted_element_ms: float
    per_element_ms: float
    std: float
    distance: tuple[float, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        return dataclasses.astuple(self)[:6]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Predicts kernels and networks on one device.

    `rooflines[k]` are milliseconds: fixed, for a multiply-accumulate and for an element moved by a
    kernel of kind `KINDS[k]`; they are not numbers where none of its kind was measured.
    """

    rooflines: np.ndarray  # [kinds, 3]
    regressor: Regressor
    whole: Whole

    def kernels(self, kernels: Sequence[Kernel]) -> list[Latency]:
        """Latencies of the kernels, each by itself. Raises `ValueError` on kinds never measured."""
        if not kernels:
            return []
        logs, std = self._logs(kernels)
        # The mean of what is normal in logarithms is above its median, which is what is predicted.
        return [
            Latency(ms, ms * math.sqrt(math.expm1(s**2)))
            for ms, s in zip(np.exp(logs).tolist(), std.tolist(), strict=True)
        ]

    def intervals(self, kernels: Sequence[Kernel], coverage: float) -> np.ndarray:
        """Least and most milliseconds of each kernel, `[kernels, 2]`."""
        logs, _ = self._logs(kernels)
        aside = self.regressor.interval(strata(kernels), coverage)
        return np.exp(np.stack([logs - aside, logs + aside], axis=1))

    def _logs(self, kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray]:
        kinds = strata(kernels)
        base = (work(kernels) * self.rooflines[kinds]).sum(axis=1)
        if not np.isfinite(base).all():
            unknown = sorted({KINDS[k] for k in kinds[~np.isfinite(base)].tolist()})
            known = [KINDS[k] for k in np.flatnonzero(np.isfinite(self.rooflines[:, 0])).tolist()]
            raise ValueError(
                f"no {', '.join(unknown)} was measured on this device; measured were "
                f"{', '.join(known)}"
            )
        mean, std = self.regressor(features(kernels), kinds)
        return np.log(base) + mean, std

    def network(self, graph: Graph) -> Latency:
        """Latency of a network as a whole."""
        summed = math.fsum(latency.ms for latency in self.kernels(graph.kernels))
        ms = float(np.dot(graph.costs(summed), self.whole.rates))
        return Latency(ms, self.whole.std * ms)


class Measured(NamedTuple):
    """A network that was measured: its kernels one by one, and as a whole."""

    name: str
    graph: Graph
    kernels_ms: tuple[float, ...]
    ms: float


def fit(networks: Sequence[Measured], **options: Any) -> Predictor:
    """A predictor of the device that all of `networks` were measured on.

    Errors are those of networks left out. `options` go to `trees.regress`.
    """
    kernels = [kernel for network in networks for kernel in network.graph.kernels]
    ms = np.array([time for network in networks for time in network.kernels_ms])
    owner = [network.name for network in networks for _ in network.graph.kernels]
    if not (ms > 0).all():
        raise ValueError("a kernel took no time; leave it out, or its network")
    kinds, done = strata(kernels), work(kernels)
    rooflines = np.full((len(KINDS), 3), np.nan)
    for kind in np.unique(kinds):
        rooflines[kind] = roofline(done[kinds == kind], ms[kinds == kind])
    base = np.log((done * rooflines[kinds]).sum(axis=1))
    regressor, left_out = trees.regress(
        features(kernels), np.log(ms) - base, kinds, owner, number=len(KINDS), **options
    )
    predicted, names = np.exp(base + left_out), np.array(owner)
    sums = [math.fsum(predicted[names == network.name]) for network in networks]
    return Predictor(rooflines, regressor, _whole(networks, sums))


def roofline(done: np.ndarray, ms: np.ndarray) -> np.ndarray:
    """Rates, not negative, of the columns of `done` that explain `ms` best: least squares of
    relative errors. Those that would be zero everywhere leave a fixed cost."""
    scale = np.maximum(done.max(axis=0), 1e-30)
    rates, _ = nnls(done / scale / ms[:, None], np.ones(len(ms)))
    return rates / scale


def _whole(networks: Sequence[Measured], sums: Sequence[float]) -> Whole:
    costs = np.array([n.graph.costs(ms) for n, ms in zip(networks, sums, strict=True)])
    ms = np.array([network.ms for network in networks])
    fold = np.random.default_rng(0).permutation(len(ms)) % trees.FOLDS
    ratios = np.empty(len(ms))
    for k in range(trees.FOLDS):
        rates = _robust(costs[fold != k], ms[fold != k])
        ratios[fold == k] = ms[fold == k] / (costs[fold == k] @ rates)
    off = np.abs(ratios - 1)
    distance = tuple(float(trees.conformal(off, coverage)) for coverage in trees.COVERAGES)
    std = float(np.sqrt(np.mean(off**2)))
    fixed, scale, *others = _robust(costs, ms).tolist()
    kernel, unlisted, unlisted_element, element = others
    return Whole(fixed, scale, kernel, unlisted, unlisted_element, element, std, distance)


_ROUNDS, _NEAR = 30, 0.02


def _robust(costs: np.ndarray, ms: np.ndarray) -> np.ndarray:
    """Rates, not negative, with the least sum of absolute relative errors: least squares, with
    rows weighed by their last error. Errors below two percent all weigh the same."""
    scale = np.maximum(costs.mean(axis=0), 1e-30)
    shares, weights, rates = costs / scale / ms[:, None], np.ones(len(ms)), np.zeros(len(scale))
    for _ in range(_ROUNDS):
        rates, _ = nnls(shares * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(shares @ rates - 1), _NEAR))
    return rates / scale


def bandwidth_ms(predictor: Predictor) -> float:
    """Milliseconds that an element moved costs where nothing else is done: the median of those of
    the kinds that only move."""
    moving = [KINDS.index(kind) for kind in (Kind.CONCAT, Kind.MAX_POOL, Kind.AVERAGE_POOL)]
    rates = [predictor.rooflines[kind, 2] for kind in moving]
    found = [rate for rate in rates if np.isfinite(rate) and rate > 0]
    if not found:
        raise ValueError("no kernel that only moves elements was measured on this device")
    return float(np.median(found))
