"""What a measurement holds for: a device, and the software that ran on it."""

import dataclasses
import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path

import jax

from search_spaces.values import encode


@dataclasses.dataclass(frozen=True)
class Device:
    """Measurements mix only if their devices are equal.

    `cores` are those the process may use, `flags` XLA's, `tunables` the C library's, whose
    allocator large arrays depend on, and `precision` that of matrix products.
    """

    platform: str
    kind: str
    cpu: str
    cores: int
    flags: str
    tunables: str
    precision: str
    python: str
    jax: str
    jaxlib: str
    flax: str

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that differ where devices do."""
        text = json.dumps(encode(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def local() -> Device:
    """Returns the device that JAX uses by default in this process."""
    device = jax.devices()[0]
    return Device(
        platform=device.platform,
        kind=device.device_kind,
        cpu=_cpu(),
        cores=_cores(),
        flags=" ".join(sorted(os.environ.get("XLA_FLAGS", "").split())),
        tunables=os.environ.get("GLIBC_TUNABLES", ""),
        precision=_precision() or "default",
        python=platform.python_version(),
        jax=jax.__version__,
        jaxlib=metadata.version("jaxlib"),
        flax=metadata.version("flax"),
    )


def _precision() -> str | None:
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
