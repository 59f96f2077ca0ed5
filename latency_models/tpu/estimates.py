"""Milliseconds made of what the compiler says of calls, before any of it is calibrated."""

import abc
import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from latency_models.latency import Latency, LatencyModel, UnknownCall, total
from latency_models.rows import brief
from latency_models.tpu.compiler import Compiled
from latency_models.tpu.generations import Generation
from latency_models.tpu.hlo import cycles_by_kind
from latency_models.tpu.lowering import in_bfloat16
from search_spaces.ops import Call


class Optimum(NamedTuple):
    """XLA's `optimal_seconds`: kernels at the compiler's own roofline.

    Where it knows no optimum of an operation, as of some since v4, it adds -1 s for it; `unknown`
    counts those, and the time of the rest is in `seconds`.
    """

    seconds: float
    unknown: int


def optimum(optimal_seconds: float) -> Optimum:
    """Decodes `optimal_seconds`. Raises `ValueError` on what is no finite number.

    The compiler adds in 32 bits, so of `unknown` seconds' worth of sentinels the rest is known to
    about 60 ns each.
    """
    if not math.isfinite(optimal_seconds):
        raise ValueError(f"the compiler's optimal_seconds is {optimal_seconds}")
    if optimal_seconds >= 0:
        return Optimum(optimal_seconds, 0)
    unknown = -math.floor(optimal_seconds)
    return Optimum(optimal_seconds + unknown, unknown)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the compiler says of one program, summed over its kernels.

    `flops`, `transcendentals` and `bytes` are XLA's cost analysis, `optimal_ms` and `unknown` its
    optimum, `cycles` its estimates by kind of kernel. `roofline_ms` is ours: each kernel at the
    published peaks, bound by its products of matrices or by its traffic with HBM.
    """

    digest: str
    flops: float
    transcendentals: float
    bytes: float
    optimal_ms: float
    unknown: int
    roofline_ms: float
    cycles: tuple[tuple[str, int], ...]
    kernels: int
    compile_s: float


def summed(compiled: Compiled, generation: Generation) -> Estimate:
    """The sums of what the compiler says."""
    seconds, unknown = optimum(compiled.optimal_seconds)
    roofline = math.fsum(
        max(kernel.flops / generation.flops_per_s, kernel.bytes / generation.bytes_per_s)
        for kernel in compiled.kernels
    )
    return Estimate(
        compiled.digest,
        compiled.flops,
        compiled.transcendentals,
        compiled.bytes,
        1e3 * seconds,
        unknown,
        1e3 * roofline,
        tuple(cycles_by_kind(compiled.kernels).items()),
        len(compiled.kernels),
        compiled.compile_s,
    )


class Estimator(abc.ABC):
    """How an estimate becomes milliseconds, as data."""

    @abc.abstractmethod
    def ms(self, estimate: Estimate, generation: Generation) -> float: ...


@dataclasses.dataclass(frozen=True)
class BlockRoofline(Estimator):
    """The whole call at the published peaks, bound by its arithmetic or by its traffic."""

    def ms(self, estimate: Estimate, generation: Generation) -> float:
        arithmetic = estimate.flops / generation.flops_per_s
        return 1e3 * max(arithmetic, estimate.bytes / generation.bytes_per_s)


@dataclasses.dataclass(frozen=True)
class KernelRoofline(Estimator):
    """Each kernel at the published peaks: what bounds one does not hide behind another."""

    def ms(self, estimate: Estimate, generation: Generation) -> float:
        return estimate.roofline_ms


@dataclasses.dataclass(frozen=True)
class OptimalSeconds(Estimator):
    """XLA's optimum. Operations whose optimum is not known take no time in it."""

    def ms(self, estimate: Estimate, generation: Generation) -> float:
        return estimate.optimal_ms


@dataclasses.dataclass(frozen=True)
class Cycles(Estimator):
    """The compiler's cycles, by which it chooses tiles, at the device's clock."""

    def ms(self, estimate: Estimate, generation: Generation) -> float:
        return 1e3 * sum(cycles for _, cycles in estimate.cycles) / generation.clock_hz


ESTIMATORS = (BlockRoofline(), KernelRoofline(), OptimalSeconds(), Cycles())


@dataclasses.dataclass(frozen=True)
class Estimates(LatencyModel):
    """Prices calls, run in bfloat16 whatever their inputs are, by the compiler's estimates.

    Their error is unknown and `std` is zero: `calibrate.fit` finds it out.
    """

    generation: Generation
    rows: Mapping[Call, Estimate]
    estimator: Estimator = KernelRoofline()

    def predict(self, calls: Iterable[Call]) -> Latency:
        counts = collections.Counter(map(in_bfloat16, calls))
        missing = [call for call in counts if call not in self.rows]
        if missing:
            raise UnknownCall(
                f"{len(missing)} of {len(counts)} distinct calls are not in the table of TPU "
                f"{self.generation.name}, e.g. {brief(missing[0])}; `nas search` and `nas profile` "
                f"with --device tpu-{self.generation.name} compile what it lacks, where the extra "
                "`tpu` is installed"
            )
        return total(
            Latency(count * self.estimator.ms(self.rows[call], self.generation), 0.0)
            for call, count in counts.items()
        )
