"""Where a latency comes from. Numbers of different provenance are never mixed silently."""

import dataclasses
import enum
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


class Method(enum.StrEnum):
    """How a latency was come by."""

    MEASURED = "measured"
    COMPILED = "compiler estimate"
    PUBLISHED = "published"
    PREDICTED = "predicted"


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a latency holds for, and how it is known. Latencies mix only where these are equal.

    `versions` are of the software and of the settings that speed depends on, sorted by name.
    `attention` says how it is computed, which alone is worth a factor of nine on phones. `threads`
    and `affinity` are none and empty where the tool does not say. `affinity` and `source` are
    stated and not compared: which cores they were, and where the numbers stand written.
    """

    device: str
    runtime: str
    versions: tuple[tuple[str, str], ...]
    precision: str
    attention: str
    threads: int | None
    method: Method
    affinity: str = dataclasses.field(default="", compare=False)
    source: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", Method(self.method))
        object.__setattr__(self, "versions", tuple(sorted(map(tuple, self.versions))))

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that differ where provenances do."""
        text = json.dumps([self.to_json()[name] for name in _COMPARED], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "versions": dict(self.versions)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Provenance":
        """Inverse of `to_json`. Raises `ValueError` on what it cannot have written."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            found = sorted(data) if isinstance(data, Mapping) else data
            raise ValueError(f"no provenance: {found} where {sorted(names)} belong")
        return cls(**{**data, "versions": tuple(data["versions"].items())})

    def differences(self, other: "Provenance") -> list[str]:
        """What tells this provenance from `other`: the name, theirs and ours."""
        here, there = _flat(self), _flat(other)
        return [
            f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
            for name in sorted(here.keys() | there.keys())
            if there.get(name) != here.get(name)
        ]

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        return f"{self.device}, {self.runtime}{threads} ({self.method})"


_COMPARED = [field.name for field in dataclasses.fields(Provenance) if field.compare]


def _flat(provenance: Provenance) -> dict[str, Any]:
    found = {name: getattr(provenance, name) for name in _COMPARED if name != "versions"}
    return {**found, **dict(provenance.versions)}


AS_WRITTEN = "products of matrices and a softmax, as in search_spaces.layers.attention"


def local() -> Provenance:
    """That of what is measured by JAX in this process, on the device it uses by default."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    settings = {
        "XLA_FLAGS": " ".join(sorted(os.environ.get("XLA_FLAGS", "").split())),
        **_conditions(),
        **installed("jax", "jaxlib", "flax"),
    }
    return Provenance(
        device=cpu() if on_cpu else device.device_kind,
        runtime=f"XLA:{device.platform}",
        versions=tuple(settings.items()),
        precision=f"as the inputs; matrix products {_precision() or 'default'}",
        attention=AS_WRITTEN,
        threads=len(cores()) if on_cpu else None,
        method=Method.MEASURED,
        affinity=",".join(map(str, cores())) if on_cpu else "",
        source=_SOURCE,
    )


def on_cores(
    runtime: str, versions: Mapping[str, str], precision: str | None, threads: int
) -> Provenance:
    """That of what a runtime with threads of its own measures on this machine's processor."""
    return Provenance(
        device=cpu(),
        runtime=runtime,
        versions=tuple({**versions, **_conditions()}.items()),
        precision=precision or "as the inputs",
        attention=AS_WRITTEN,
        threads=threads,
        method=Method.MEASURED,
        affinity=",".join(map(str, cores())),
        source=_SOURCE,
    )


def _conditions() -> dict[str, str]:
    """How the C library's malloc is set: `nas` sets it, and what moves memory is faster then. And
    which run is timed; where a file does not say so, one that came after others."""
    malloc = os.environ.get("GLIBC_TUNABLES", "")
    return {"GLIBC_TUNABLES": malloc, "timed": "in a loop"}


_SOURCE = "measured by latency_models.measure"


def _precision() -> str | None:
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]


def installed(*packages: str) -> dict[str, str]:
    """Versions of Python and of these packages. Raises `PackageNotFoundError` if one is absent."""
    found = {package: metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}


def cpu() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
