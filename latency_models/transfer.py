"""Latency of a new device from a few measurements, with what other devices teach.

    prior = learn(components, latencies)       # Of source devices; NaN where not measured.
    archs = prior.encode(components)
    indices = choose(prior.beliefs(), archs, 20)
    predictor = adapt(prior, archs[indices], ms)
    prediction = predictor.predict(archs)      # Log latency, mean and standard deviation.

The model: a latency, over the device's typical one, is 1 plus a sum of Gaussian processes, one for
each component of the architecture (its op counts, its ops by position, its FLOPs...) and one in
the span of the source devices' own latency functions, plus heavy-tailed noise (`robust`). Devices
differ in *how large* each part is. Those sizes are found on every source device (by the evidence
of its measurements, the other sources being its sources), and what they turn out to be there is
the prior for the next device. On a new device they are integrated out by sampling from that prior,
never fitted, so five measurements do not overfit ten sizes and the intervals know what is unknown.

Latencies and not their logarithms are added up: a network's time is the sum of its layers'.

Hyper-parameters of a family of tasks learnt from its members: Perrone et al., "Scalable
hyperparameter transfer learning", NeurIPS 2018, and Wang et al., "Pre-trained Gaussian processes
for Bayesian optimization", JMLR 2024. The constants below are the same for every space and device.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from latency_models import robust
from latency_models.components import Basis, Component, Part, diagonals, grams, standardise

# Before any device is known: variance of a component, and of the noise, over the typical latency
# squared, and how many factors of e either may be off.
_COMPONENT, _NOISE, _WIDTH = 0.02, 0.002, 2.5
# How far a device's sizes may be from those seen on one source device, and the size of all its
# components together; and how far from each other where none of the sources is like it.
_NEAR, _OVERALL, _UNLIKE = 0.7, 1.5, 2.0
# Shares of the prior: around the mean of the sources, around each, and unlike any.
_SHARES = (0.5, 0.25, 0.25)
# Measurements of a source on which its sizes are found, and of which its function is made.
_SIZED_ON, _LEARNT_FROM = 128, 1024
_STEPS = 40
# Sizes drawn, those looked at again, those kept; and those that `choose` averages over. The first
# look takes in the first so many measurements, for the time's sake.
_SCREENED_ON = 32
_DRAWN, _PROMISING, _KEPT, _BELIEFS = 2048, 192, 64, 8
# The first look is quick, so it decides by a power of its evidence.
_TEMPERED = 0.5
_FEWEST = 5
# Predictions are made for so many architectures at once: two sizes to compile.
_FEW, _CHUNK = 256, 4096


class Prediction(NamedTuple):
    """What a measurement would show: mean and standard deviation of the log of ms, `[n]` each.

    The deviation has the noise of one measurement in it.
    """

    mean: np.ndarray
    std: np.ndarray

    @property
    def ms(self) -> np.ndarray:
        return np.exp(self.mean)

    def bound_ms(self, deviations: float) -> np.ndarray:
        """Milliseconds so many standard deviations above the mean; below it if negative."""
        return np.exp(self.mean + deviations * self.std)


class Beliefs(NamedTuple):
    """How large the parts of a latency may be, and where it is measured already."""

    sizes: np.ndarray  # [h, components + 1], logs of variances; the noise's last.
    measured: np.ndarray  # [m, width]
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """A density of sizes: normals with a common factor, `centre ± width ± overall for all`."""

    centres: np.ndarray  # [k, components + 1]
    widths: np.ndarray  # [k, components + 1]
    shares: np.ndarray  # [k]

    def draw(self, count: int) -> np.ndarray:
        """`[count, components + 1]`, always the same: a Sobol sequence, not random numbers."""
        width = self.centres.shape[1]
        uniform = scipy.stats.qmc.Sobol(width + 2, scramble=True, rng=0).random(count)
        which = np.searchsorted(np.cumsum(self.shares)[:-1], uniform[:, 0])
        normal = scipy.stats.norm.ppf(0.001 + 0.998 * uniform[:, 1:])
        return self.centres[which] + self.widths[which] * normal[:, 1:] + _OVERALL * normal[:, :1]


@dataclasses.dataclass(frozen=True, eq=False)
class Sources:
    """Latency functions of the source devices: what their measurements say of any architecture.

    Each is over its device's typical latency: constant, linear and, in the components of degree
    2, quadratic. `centre` and `scale` standardise them over the architectures learnt from.
    """

    constant: np.ndarray  # [devices]
    linear: np.ndarray  # [devices, width]
    quadratic: np.ndarray  # [devices, sum of k * k of the components of degree 2]
    typical_ms: np.ndarray  # [devices]
    centre: np.ndarray  # [devices]
    scale: np.ndarray  # [devices]

    def latencies(self, features: np.ndarray, parts: tuple[Part, ...]) -> np.ndarray:
        """`[n, devices]`, over each device's typical latency, of `features` `[n, width]`."""
        latency = self.constant + features @ self.linear.T
        for (start, stop), place in _squares(parts):
            block = features[:, start:stop]
            for device, packed in enumerate(self.quadratic[:, place]):
                form = packed.reshape(stop - start, stop - start)
                latency[:, device] += np.sum(block @ form * block, axis=1)
        return latency


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """What the source devices teach about a device of which nothing is measured yet."""

    basis: Basis
    sources: Sources
    mixture: Mixture

    @property
    def parts(self) -> tuple[Part, ...]:
        return _with_sources(self.basis, len(self.sources.constant))

    def encode(
        self, components: Sequence[Component], latencies: np.ndarray | None = None
    ) -> np.ndarray:
        """Architectures as rows `[n, width]` for `adapt`, `Adapted.predict` and `choose`.

        A source device enters by what its function says of an architecture. `latencies`
        `[devices, n]`, in ms and NaN where not measured, replaces that by what was measured.
        """
        features = self.basis.matrix(components)
        said = self.sources.latencies(features, self.basis.parts)
        if latencies is not None:
            latencies = _checked(latencies, len(features))
            if len(latencies) != said.shape[1]:
                raise ValueError(f"{len(latencies)} devices; this knows {said.shape[1]}")
            measured = (latencies / self.sources.typical_ms[:, None]).T
            said = np.where(np.isnan(measured), said, measured)
        return np.hstack([features, _span((said - self.sources.centre) / self.sources.scale)])

    def beliefs(self) -> Beliefs:
        sizes = self.mixture.draw(_BELIEFS)
        width = self.parts[-1][1]
        return Beliefs(sizes, np.zeros((0, width)), self.parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
    """Predicts the latency of one device from `m` measurements of it."""

    prior: Prior
    typical_ms: float
    fastest_ms: float
    measured: np.ndarray  # [m, width]
    sizes: np.ndarray  # [h, components + 1], drawn given the measurements; all weigh the same.
    dual: np.ndarray  # [h, m]
    inverse: np.ndarray  # [h, m, m]

    def predict(self, archs: np.ndarray) -> Prediction:
        """Prediction for every row of `archs`, which `prior.encode` made."""
        if archs.ndim != 2 or archs.shape[1] != self.measured.shape[1]:
            raise ValueError(
                f"archs of shape {archs.shape}, but rows have {self.measured.shape[1]} numbers; "
                "make them with `prior.encode`"
            )
        means, variances = [], []
        with jax.enable_x64(True):
            for start in range(0, len(archs), _CHUNK):
                chunk = archs[start : start + _CHUNK]
                size = _FEW if len(archs) <= _FEW else _CHUNK
                rows = np.pad(chunk, ((0, size - len(chunk)), (0, 0)))
                known = (self.measured, self.sizes, self.dual, self.inverse)
                mean, variance = _moments(rows, *known, parts=self.prior.parts)
                means.append(np.asarray(mean)[: len(chunk)])
                variances.append(np.asarray(variance)[: len(chunk)])
        mean, variance = np.concatenate(means), np.concatenate(variances)
        # A sum of Gaussians may be negative, a latency not. This is `mean` where that is far above
        # `least`, never falls as `mean` rises, and stays positive.
        least = self.fastest_ms / self.typical_ms / 8
        positive = (mean + np.hypot(mean, least)) / 2
        return Prediction(
            np.log(positive * self.typical_ms), np.sqrt(np.log1p(variance / positive**2))
        )

    def beliefs(self) -> Beliefs:
        some = self.sizes[:: len(self.sizes) // _BELIEFS]
        return Beliefs(some, self.measured, self.prior.parts)


def learn(components: Sequence[Component], latencies: np.ndarray) -> Prior:
    """The prior that source devices give for a new one.

    `components` describe `n` architectures; `latencies` `[devices, n]` are in ms and NaN where a
    device did not measure. No device, an array `[0, n]`, is possible: then only the components
    speak. Raises `ValueError` if a device has fewer than five measurements.
    """
    basis = standardise(components)
    features = basis.matrix(components)
    latencies = _checked(latencies, len(features))
    samples = [_sample(features, row, device) for device, row in enumerate(latencies)]
    count = len(basis.parts)
    start = np.append(np.full(count, math.log(_COMPONENT)), math.log(_NOISE))
    with jax.enable_x64(True):
        alone = [_sizes(sample, basis.parts, start, start) for sample in samples]
        sources = _sources(basis, features, samples, alone)
        said = sources.latencies(features, basis.parts)
        said = (said - sources.centre) / sources.scale
        with_source = np.insert(start, count, math.log(_COMPONENT))
        sizes = []
        for device, (sample, found) in enumerate(zip(samples, alone, strict=True)):
            others = np.delete(said[sample.indices], device, axis=1)
            begin = np.insert(found, count, math.log(_COMPONENT))
            rows = sample._replace(features=np.hstack([sample.features, _span(others)]))
            parts = _with_sources(basis, others.shape[1])
            sizes.append(_sizes(rows, parts, with_source, begin))
    return Prior(basis, sources, _mixture(np.array(sizes), with_source))


def adapt(prior: Prior, archs: np.ndarray, ms: Sequence[float] | np.ndarray) -> Adapted:
    """Fits a new device to its measured latencies `ms` `[m]` of `archs` `[m, width]`.

    `archs` are rows of `prior.encode`; the same one may be there twice. Any number of measurements
    will do, one included; twenty are a good deal. Raises `ValueError` on latencies that are not
    positive.
    """
    ms = np.asarray(ms, float)
    if ms.ndim != 1 or archs.shape != (len(ms), prior.parts[-1][1]) or not len(ms):
        raise ValueError(
            f"{ms.shape} latencies of archs {archs.shape}; give at least one, a latency for every "
            f"row, rows of the {prior.parts[-1][1]} numbers that `prior.encode` makes"
        )
    if not (np.isfinite(ms).all() and ms.min() > 0):
        raise ValueError(f"latencies {ms} must be finite and positive; leave failed runs out")
    typical = float(np.median(ms))
    pad = robust.padded(archs, ms / typical)
    drawn = prior.mixture.draw(_DRAWN)
    with jax.enable_x64(True):
        kernels = grams(pad.features, pad.features, parts=prior.parts)
        few = slice(_SCREENED_ON)
        first = robust.condition_each(
            drawn, kernels[:, few, few], pad.latency[few], pad.real[few], rounds=2
        )
        looked = np.asarray(first.evidence)
        promising = _resampled(_TEMPERED * looked, _PROMISING)
        sizes = drawn[promising]
        found = robust.condition_each(sizes, kernels, pad.latency, pad.real, rounds=5)
    evidence, dual, inverse = map(np.asarray, found)
    kept = _resampled(evidence - _TEMPERED * looked[promising], _KEPT)
    count = len(ms)
    return Adapted(
        prior,
        typical,
        float(ms.min()),
        np.asarray(archs, float),
        sizes[kept],
        dual[kept, :count],
        inverse[kept, :count, :count],
    )


def _resampled(log_weights: np.ndarray, count: int) -> np.ndarray:
    """`count` indices, each as often as its weight says, to within one: systematic resampling."""
    weights = np.cumsum(np.exp(log_weights - log_weights.max()))
    return np.searchsorted(weights / weights[-1], (np.arange(count) + 0.5) / count)


def _moments(rows, measured, sizes, dual, inverse, *, parts):
    """Mean and variance `[n]`, noise included, over the typical latency."""
    kernels = grams(rows, measured, parts=parts)
    own = diagonals(rows, parts=parts)

    def add(total, one):
        size, dual, inverse = one
        variances = jnp.exp(size)
        kernel = jnp.tensordot(variances[:-1], kernels, 1) + 1.0
        mean = kernel @ dual
        known = jnp.sum(kernel @ inverse * kernel, axis=1)
        signal = jnp.maximum(variances[:-1] @ own + 1.0 - known, 0.0)
        noise = variances[-1] * robust.variance_of_t() * robust.spread(mean)
        first, second = total
        return (first + mean, second + signal + noise + mean**2), None

    zeros = jnp.zeros(len(rows))
    (first, second), _ = jax.lax.scan(add, (zeros, zeros), (sizes, dual, inverse))
    mean, second = first / len(sizes), second / len(sizes)
    return mean, jnp.maximum(second - mean**2, 0.0)


_moments = jax.jit(_moments, static_argnames="parts")


class _Sample(NamedTuple):
    """Measurements of a source device."""

    indices: np.ndarray  # [m]
    features: np.ndarray  # [m, width]
    latency: np.ndarray  # [m], over the typical one.
    typical_ms: float


def _sample(features: np.ndarray, row: np.ndarray, device: int) -> _Sample:
    indices = np.flatnonzero(~np.isnan(row))
    if len(indices) < _FEWEST:
        raise ValueError(
            f"source device {device} has {len(indices)} measurements; "
            f"measure at least {_FEWEST} or leave it out"
        )
    # Tables come sorted in all kinds of ways; the first few must be like the rest.
    indices = np.random.default_rng(device).permutation(indices)[:_LEARNT_FROM]
    typical = float(np.median(row[indices]))
    return _Sample(indices, features[indices], row[indices] / typical, typical)


def _sizes(
    sample: _Sample, parts: tuple[Part, ...], centre: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Sizes of a source's components that its measurements find likely."""
    pad = robust.padded(sample.features[:_SIZED_ON], sample.latency[:_SIZED_ON])
    kernels = grams(pad.features, pad.features, parts=parts)
    width = np.full(len(centre), _WIDTH)
    found = robust.likely_sizes(start, centre, width, kernels, pad.latency, pad.real, steps=_STEPS)
    return np.asarray(found)


def _sources(
    basis: Basis, features: np.ndarray, samples: Sequence[_Sample], sizes: Sequence[np.ndarray]
) -> Sources:
    """The function of every source device, given the sizes of its components."""
    width = sum(basis.widths)
    constant, linear = np.zeros(len(samples)), np.zeros((len(samples), width))
    places = dict(_squares(basis.parts))
    total = max((place.stop for place in places.values()), default=0)
    quadratic = np.zeros((len(samples), total))
    for device, (sample, size) in enumerate(zip(samples, sizes, strict=True)):
        pad = robust.padded(sample.features, sample.latency)
        kernels = grams(pad.features, pad.features, parts=basis.parts)
        found = robust.condition(size, kernels, pad.latency, pad.real, rounds=4)
        dual = np.asarray(found.dual)
        constant[device] = dual[pad.real].sum()
        for (start, stop, degree), variance in zip(basis.parts, np.exp(size[:-1]), strict=True):
            block = pad.features[:, start:stop]
            if degree == 1:
                linear[device, start:stop] = variance * block.T @ dual
            else:
                form = variance * block.T @ (dual[:, None] * block)
                quadratic[device, places[start, stop]] = form.ravel()
    typical = np.array([sample.typical_ms for sample in samples])
    zeros, ones = np.zeros(len(samples)), np.ones(len(samples))
    raw = Sources(constant, linear, quadratic, typical, zeros, ones)
    said = raw.latencies(features, basis.parts)
    scale = said.std(0)
    # A device as fast on everything says nothing of another.
    scale = np.where(scale > 1e-9, scale, 1.0)
    return dataclasses.replace(raw, centre=said.mean(0), scale=scale)


def _squares(parts: tuple[Part, ...]) -> list[tuple[tuple[int, int], slice]]:
    """Columns of every component of degree 2, and where among all its `k * k` numbers are."""
    found, begin = [], 0
    for start, stop, degree in parts:
        if degree == 2:
            end = begin + (stop - start) ** 2
            found.append(((start, stop), slice(begin, end)))
            begin = end
    return found


def _mixture(sizes: np.ndarray, start: np.ndarray) -> Mixture:
    """The density of the next device's sizes, having found those of the sources."""
    if not len(sizes):
        return Mixture(start[None], np.full((1, len(start)), _UNLIKE), np.ones(1))
    centre = sizes.mean(0)
    width = np.sqrt(sizes.var(0) + _NEAR**2)
    unlike = np.append(np.full(len(centre) - 1, centre[:-1].mean()), centre[-1])
    common, each, other = _SHARES
    return Mixture(
        np.vstack([centre, sizes, unlike]),
        np.vstack([width, np.full_like(sizes, _NEAR), np.maximum(width, _UNLIKE)]),
        np.concatenate([[common], np.full(len(sizes), each / len(sizes)), [other]]),
    )


def _with_sources(basis: Basis, devices: int) -> tuple[Part, ...]:
    width = sum(basis.widths)
    return (*basis.parts, (width, width + max(devices, 1), 1))


def _span(said: np.ndarray) -> np.ndarray:
    """Features whose kernel is the sources' covariance; without sources, one that is zero."""
    rows, devices = said.shape
    return said / math.sqrt(devices) if devices else np.zeros((rows, 1))


def _checked(latencies: np.ndarray, count: int) -> np.ndarray:
    latencies = np.asarray(latencies, float)
    if latencies.ndim != 2 or latencies.shape[1] != count:
        raise ValueError(
            f"latencies of shape {latencies.shape} for {count} architectures; give a row for "
            "every source device and a column for every architecture, NaN where not measured"
        )
    if np.isinf(latencies).any() or (latencies <= 0).any():
        raise ValueError("source latencies must be positive, or NaN where not measured")
    return latencies
