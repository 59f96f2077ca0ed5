"""Latency on phones' GPUs, learned from kernels that were measured one by one, and from networks.

A kernel's latency is that of a roofline with three parameters for its kind, times what trees say
of its shape: beyond the shapes that were measured the roofline goes on where trees stand still.
A network takes longer than its kernels together, by what it costs to start, to launch each kernel,
and to run what no profile lists.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from latency_models import trees
from latency_models.kernels import FEATURES, KINDS, Graph, Kernel, Kind, features, strata, work
from latency_models.latency import Latency, LatencyModel, UnknownCall
from latency_models.lowering import graph
from latency_models.trees import Stratified
from search_spaces.ops import Call


@dataclasses.dataclass(frozen=True)
class Overhead:
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
    kernel of kind `kinds[k]`; they are not numbers where none of its kind was measured. `kinds` and
    `columns` are the kinds and features there were when it was fitted: with others its numbers
    would mean something else, so `ValueError`.
    """

    rooflines: np.ndarray  # [kinds, 3]
    regressor: Stratified
    overhead: Overhead
    kinds: tuple[str, ...] = tuple(map(str, KINDS))
    columns: tuple[str, ...] = FEATURES

    def __post_init__(self) -> None:
        if self.kinds != tuple(map(str, KINDS)) or self.columns != FEATURES:
            raise ValueError(
                "a predictor of other kinds of kernels or other features than this version has; "
                "fit it again"
            )

    @property
    def known(self) -> set[Kind]:
        """Kinds that were measured."""
        return {kind for kind, rates in zip(KINDS, self.rooflines, strict=True) if rates[0] >= 0}

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
        if unknown := {kernel.kind for kernel in kernels} - self.known:
            raise ValueError(
                f"no {', '.join(sorted(unknown))} was measured on this device; measured were "
                f"{', '.join(sorted(self.known))}"
            )
        base = (work(kernels) * self.rooflines[kinds]).sum(axis=1)
        mean, std = self.regressor(features(kernels), kinds)
        return np.log(base) + mean, std

    def network(self, graph: Graph) -> Latency:
        """Latency of a network as a whole."""
        summed = math.fsum(latency.ms for latency in self.kernels(graph.kernels))
        ms = float(np.dot(graph.costs(summed), self.overhead.rates))
        return Latency(ms, self.overhead.std * ms)


class Measured(NamedTuple):
    """A network that was measured: its kernels one by one, and as a whole."""

    name: str
    graph: Graph
    kernels_ms: tuple[float, ...]
    ms: float


class Fitted(NamedTuple):
    """A predictor, and what was predicted of each network by fits that had left it out."""

    predictor: Predictor
    kernels_ms: np.ndarray  # [kernels], those of all networks one after another.
    networks_ms: np.ndarray  # [networks]


def fit(networks: Sequence[Measured], **options: Any) -> Fitted:
    """Fits to the device that all of `networks` were measured on.

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
    overhead, whole = _overhead(networks, sums)
    return Fitted(Predictor(rooflines, regressor, overhead), predicted, whole)


def roofline(done: np.ndarray, ms: np.ndarray) -> np.ndarray:
    """Rates, not negative, of the columns of `done` that explain `ms` best: least squares of
    relative errors. Those that would be zero everywhere leave a fixed cost."""
    scale = np.maximum(done.max(axis=0), 1e-30)
    rates, _ = nnls(done / scale / ms[:, None], np.ones(len(ms)))
    return rates / scale


def _overhead(networks: Sequence[Measured], sums: Sequence[float]) -> tuple[Overhead, np.ndarray]:
    """The overhead that fits best, and the networks as predicted by fits that left them out."""
    costs = np.array([n.graph.costs(ms) for n, ms in zip(networks, sums, strict=True)])
    ms = np.array([network.ms for network in networks])
    fold = np.random.default_rng(0).permutation(len(ms)) % trees.FOLDS
    predicted = np.empty(len(ms))
    for k in range(trees.FOLDS):
        rates = _robust(costs[fold != k], ms[fold != k])
        predicted[fold == k] = costs[fold == k] @ rates
    off = np.abs(ms / predicted - 1)
    distance = tuple(float(trees.conformal(off, coverage)) for coverage in trees.COVERAGES)
    std = float(np.sqrt(np.mean(off**2)))
    fixed, scale, *others = _robust(costs, ms).tolist()
    kernel, unlisted, unlisted_element, element = others
    rates = fixed, scale, kernel, unlisted, unlisted_element, element
    return Overhead(*rates, std, distance), predicted


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


class Reach(NamedTuple):
    """How large the measured kernels of each kind were, `[kinds]`; zero where there were none."""

    macs: np.ndarray
    elements: np.ndarray

    def beyond(self, kernel: Kernel) -> bool:
        kind = KINDS.index(kernel.kind)
        return kernel.macs > self.macs[kind] or kernel.elements > self.elements[kind]


def reach(networks: Sequence[Measured]) -> Reach:
    macs, elements = np.zeros(len(KINDS)), np.zeros(len(KINDS))
    for kernel in (kernel for network in networks for kernel in network.graph.kernels):
        kind = KINDS.index(kernel.kind)
        macs[kind] = max(macs[kind], kernel.macs)
        elements[kind] = max(elements[kind], kernel.elements)
    return Reach(macs, elements)


_SMALL = 0.9


def beyond(networks: Sequence[Measured], **options: Any) -> np.ndarray:
    """Logarithms of measured over predicted kernels that are larger than all that were fitted on:
    the largest tenth of each kind with 200 or more, predicted from the rest."""
    kernels = [kernel for network in networks for kernel in network.graph.kernels]
    ms = np.array([time for network in networks for time in network.kernels_ms])
    kinds, done, x = strata(kernels), work(kernels), features(kernels)
    large, base = np.zeros(len(ms), bool), np.zeros(len(ms))
    for kind in np.unique(kinds):
        mine = kinds == kind
        if mine.sum() >= 200:
            large |= mine & (done[:, 1] > np.quantile(done[mine, 1], _SMALL))
        rates = roofline(done[mine & ~large], ms[mine & ~large])
        base[mine] = np.log(done[mine] @ rates)
    y = np.log(ms) - base
    fitted = trees.fit(x[~large], y[~large], **options)
    return y[large] - fitted(x[large])


_MOVING = (Kind.CONCAT, Kind.MAX_POOL, Kind.AVERAGE_POOL, Kind.ADD, Kind.MUL, Kind.RELU)


def moving_ms(networks: Sequence[Measured]) -> float:
    """Milliseconds that an element moved costs where little else is done: for each kind that only
    moves, the rate beside a fixed cost; of those, the median."""
    kernels = [kernel for network in networks for kernel in network.graph.kernels]
    ms = np.array([time for network in networks for time in network.kernels_ms])
    kinds, done = strata(kernels), work(kernels)[:, [0, 2]]
    places = [KINDS.index(kind) for kind in _MOVING if KINDS.index(kind) in kinds]
    rates = [roofline(done[kinds == k], ms[kinds == k])[1] for k in places]
    found = [rate for rate in rates if rate > 0]
    if not found:
        raise ValueError("no kernel that only moves elements was measured on this device")
    return float(np.median(found))


@dataclasses.dataclass(frozen=True, eq=False)
class PhoneGpu(LatencyModel):
    """Prices calls as the kernels a phone's GPU runs for them; see `lowering.graph`.

    What no kernel was measured for is bound by memory: `element_ms` for each number read or
    written, beside what the overhead says of a launch. So are concatenations where none was
    measured, and links where the device's runtime does not link (`linking`). `overhead.fixed_ms` is
    that of a network and is left out, since calls are parts of one. Kernels larger than `macs` and
    `elements` (those of the largest that was measured, by kind) are off by `beyond`, all in the
    same direction.
    """

    predictor: Predictor
    element_ms: float
    macs: np.ndarray  # [kinds]
    elements: np.ndarray  # [kinds]
    beyond: float
    linking: bool

    def predict(self, calls: Iterable[Call]) -> Latency:
        counts = Counter(calls)
        prices = self._prices(tuple(counts))
        ms = math.fsum(n * price.ms for n, price in zip(counts.values(), prices, strict=True))
        # Errors of kernels beyond what was measured go together; so does that of the overhead.
        std = math.fsum(n * price.std for n, price in zip(counts.values(), prices, strict=True))
        return Latency(ms, math.hypot(std, self.predictor.overhead.std * ms))

    def _prices(self, calls: Sequence[Call]) -> list[Latency]:
        graphs = [self._as_run(graph(call)) for call in calls]
        for call, found in zip(calls, graphs, strict=True):
            unknown = {kernel.kind for kernel in found.kernels} - self.predictor.known
            if unknown:
                raise UnknownCall(
                    f"{call} cannot be priced: no {', '.join(sorted(unknown))} was measured on "
                    f"this device; measured were {', '.join(sorted(self.predictor.known))}"
                )
        # All at once: the trees are slow to start and fast to run.
        kernels = iter(self.predictor.kernels([k for found in graphs for k in found.kernels]))
        return [self._price(g, list(itertools.islice(kernels, len(g.kernels)))) for g in graphs]

    def _price(self, found: Graph, kernels: Sequence[Latency]) -> Latency:
        rates, reach = self.predictor.overhead, Reach(self.macs, self.elements)
        far = [reach.beyond(kernel) for kernel in found.kernels]
        near = [k.std for k, out in zip(kernels, far, strict=True) if not out]
        wide = math.fsum(self.beyond * k.ms for k, out in zip(kernels, far, strict=True) if out)
        moved = max(self.element_ms, rates.per_unlisted_element_ms)
        per = dataclasses.replace(rates, fixed_ms=0.0, per_unlisted_element_ms=moved).rates
        ms = float(np.dot(found.costs(math.fsum(kernel.ms for kernel in kernels)), per))
        return Latency(ms, rates.scale * math.hypot(wide, *near))

    def _as_run(self, graph: Graph) -> Graph:
        """`graph` without what was not measured on this device but moves elements only."""
        joins = bool(np.isfinite(self.predictor.rooflines[KINDS.index(Kind.CONCAT), 0]))
        kept, unlisted, elements = [], graph.unlisted, graph.unlisted_elements
        for kernel in graph.kernels:
            if kernel.kind is Kind.CONCAT and not joins:
                unlisted, elements = unlisted + 1, elements + kernel.elements
            elif kernel.links and not self.linking:
                outputs = kernel.pixels_out * kernel.channels_out
                read = sum(2 if link == "add" else 1 for link in kernel.links)
                unlisted += len(kernel.links)
                elements += outputs * (read + len(kernel.links))
                kept.append(dataclasses.replace(kernel, links=()))
            else:
                kept.append(kernel)
        return Graph(tuple(kept), unlisted, elements)
