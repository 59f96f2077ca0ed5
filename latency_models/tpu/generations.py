"""The TPU generations that the compiler knows, and what is published of each."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Generation:
    """What JAX calls one device of this generation: a core of v2 and v3, a whole chip since.

    `topology` is the smallest host that the compiler accepts, with its `chip_config`. `flops_per_s`
    (bfloat16) and `bytes_per_s` are Google's published peaks (cloud.google.com/tpu/docs), of one
    device: half a chip's for v2 and v3. `clock_hz` turns the compiler's cycles into seconds.
    """

    name: str
    topology: str
    chip_config: str | None
    clock_hz: float
    flops_per_s: float
    bytes_per_s: float

    @property
    def device(self) -> str:
        """What the device is called in a provenance."""
        return f"TPU {self.name}{' core' if self.name in ('v2', 'v3') else ''}"


GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("v2", "v2:2x2", None, 0.70e9, 23e12, 350e9),
        Generation("v3", "v3:2x2", None, 0.94e9, 61.5e12, 450e9),
        Generation("v4", "v4:2x2x1", "megacore", 1.05e9, 275e12, 1228e9),
        Generation("v5e", "v5e:2x2", None, 1.50e9, 197e12, 819e9),
        Generation("v5p", "v5p:2x2x1", "megacore", 1.75e9, 459e12, 2765e9),
        Generation("v6e", "v6e:2x2", None, 1.75e9, 918e12, 1640e9),
    )
}


def generation(name: str) -> Generation:
    """The generation called `name`. Raises `ValueError` if there is none."""
    if name not in GENERATIONS:
        raise ValueError(f"no TPU {name!r}; the compiler is asked for {', '.join(GENERATIONS)}")
    return GENERATIONS[name]
