"""XLA: what JAX itself runs networks by, on any of its platforms."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from latency_models.provenance import Provenance, local
from latency_models.runtimes import Loaded, Row, Runtime, tally
from search_spaces.export.part import Dtype, Part


@dataclasses.dataclass(frozen=True)
class XLA(Runtime):
    """JAX's default device. Its threads on a CPU are as many as the cores that the process may use
    when JAX starts: see `latency_models.affinity`. Weights are arguments and not constants, as they
    are wherever the network is trained or sampled from."""

    precision: Dtype | None = None

    @property
    def provenance(self) -> Provenance:
        here = local()
        if self.precision is None:
            return here
        precision = here.precision.replace("as the inputs", self.precision)
        return dataclasses.replace(here, precision=precision)

    def load(self, part: Part, values: Mapping[str, np.ndarray]) -> Loaded:
        return _Compiled(part, values)


class _Compiled(Loaded):
    def __init__(self, part: Part, values: Mapping[str, np.ndarray]):
        super().__init__(part, values, f"jax {jax.__version__} on {jax.default_backend()}")
        self._weights, self._values = jax.device_put((dict(part.weights), dict(values)))
        lowered = jax.jit(lambda weights, values: part(weights, values)).lower(
            self._weights, self._values
        )
        self._compiled = lowered.compile()

    def compare(self) -> None:
        self.difference = 0.0  # It is what others are compared to.

    def run(self) -> None:
        jax.block_until_ready(self._compiled(self._weights, self._values))

    def outputs(self) -> dict[str, np.ndarray]:
        return jax.tree.map(np.asarray, self._compiled(self._weights, self._values))

    def profile(self, passes: int = 20) -> list[Row]:
        self.run()
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, profiler_options=options):
                for _ in range(passes):
                    self.run()
            (file,) = Path(folder).rglob("*.xplane.pb")
            trace = jax.profiler.ProfileData.from_file(str(file))
        rows = tally(_operations(trace), passes)
        if not rows:
            raise ValueError(
                f"{self.runtime} names no operators in its traces; measure blocks, or the whole"
            )
        return rows


def _operations(trace: Any) -> list[tuple[str, str, float]]:
    """Name, kind and milliseconds of every operator that a trace saw, in the order of starts."""
    found = []
    for plane in trace.planes:
        for line in plane.lines:
            for event in line.events:
                # Other events tell of the thread that an operator ran on.
                if dict(event.stats).get("hlo_op") == event.name:
                    found.append((event.start_ns, event.name, event.duration_ns))
    return [(name, _kind(name), 1e-6 * duration) for _, name, duration in sorted(found)]


def _kind(name: str) -> str:
    """`fusion.3` is a `fusion`."""
    stem, dot, number = name.rpartition(".")
    return stem if dot and number.isdigit() else name
