"""What a strategy searches: a space, and devices with a limit each."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Generic

from latency_models.latency import Latency
from search_spaces.space import Space, Spec


@dataclasses.dataclass(frozen=True)
class Device(Generic[Spec]):
    """How long a device takes for a spec, and how long it may."""

    latency: Callable[[Spec], Latency]
    limit_ms: float = math.inf


@dataclasses.dataclass(frozen=True, eq=False)
class Problem(Generic[Spec]):
    """The best spec of `space` that keeps to the limits of all `devices`.

    A spec keeps to a limit if the upper bound of its latency, `ms + caution * std`, does. Its
    quality is taken in `shards` parts, say groups of prompts, which may run apart. `specs` are all
    specs of the space where they are few enough to be listed; strategies then draw evenly from
    them, and otherwise walk.

    Latencies and neighbours are asked for once and remembered: both must be pure.
    """

    space: Space[Spec]
    devices: Mapping[str, Device[Spec]]
    shards: int = 1
    caution: float = 0.0
    specs: tuple[Spec, ...] = ()

    def __post_init__(self) -> None:
        if self.shards < 1 or self.caution < 0:
            raise ValueError(
                f"{self.shards} shards and a caution of {self.caution}; "
                "there must be one shard or more, and no negative caution"
            )
        wrong = {name: d.limit_ms for name, d in self.devices.items() if not d.limit_ms > 0}
        if wrong:
            raise ValueError(f"limits must be positive milliseconds, not {wrong}")

    def latencies(self, spec: Spec) -> Mapping[str, Latency]:
        """Latency of `spec` on every device."""
        found = self._latencies.get(spec)
        if found is None:
            found = {name: device.latency(spec) for name, device in self.devices.items()}
            self._latencies[spec] = found
        return found

    def upper_ms(self, spec: Spec, device: str) -> float:
        """The upper bound of the latency, which is held against the limit."""
        latency = self.latencies(spec)[device]
        return latency.ms + self.caution * latency.std

    def overruns(self, spec: Spec) -> Mapping[str, float]:
        """By which share of its limit `spec` is over it, on the devices where it is."""
        shares = self._shares(spec)
        return {name: share - 1 for name, share in shares.items() if share > 1}

    def excess(self, spec: Spec) -> float:
        """The overruns added up; 0 if `spec` keeps to all limits."""
        return math.fsum(self.overruns(spec).values())

    def fits(self, spec: Spec) -> bool:
        """Whether `spec` keeps to all limits."""
        return not self.overruns(spec)

    def used(self, spec: Spec) -> float:
        """The shares of their limits that `spec` takes on all devices, added up."""
        return math.fsum(self._shares(spec).values())

    def _shares(self, spec: Spec) -> Mapping[str, float]:
        return {
            name: self.upper_ms(spec, name) / device.limit_ms
            for name, device in self.devices.items()
        }

    def neighbours(self, spec: Spec) -> tuple[Spec, ...]:
        """What one edit makes of `spec`, each once."""
        # Specs may hold what they are not compared by, which edits must not get from another.
        key = repr(spec)
        found = self._neighbours.get(key)
        if found is None:
            edited = (action.apply(spec) for action in self.space.actions(spec))
            found = tuple(dict.fromkeys(edited))
            self._neighbours[key] = found
        return found

    @functools.cached_property
    def fitting(self) -> tuple[Spec, ...]:
        """Those of `specs` that keep to all limits."""
        return tuple(spec for spec in self.specs if self.fits(spec))

    @functools.cached_property
    def _latencies(self) -> dict[Spec, Mapping[str, Latency]]:
        return {}

    @functools.cached_property
    def _neighbours(self) -> dict[str, tuple[Spec, ...]]:
        return {}
