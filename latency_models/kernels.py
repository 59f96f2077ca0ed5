"""What a phone's GPU runs as one kernel, as data, and the features its latency is predicted from.

The features are those of the shapes and of what the delegates make of them: channels go in slices
of four (a texel), work groups are tiles of pixels by slices, and element-wise ops that follow a
kernel are linked into it. Cf. nn-Meter (Zhang et al., 2021) on predicting kernels and not ops.
"""

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Kind(enum.StrEnum):
    CONV = "convolution"
    GROUPED = "grouped convolution"
    DEPTHWISE = "depthwise convolution"
    DENSE = "fully connected"
    MEAN = "mean"
    MAX_POOL = "max pooling"
    AVERAGE_POOL = "average pooling"
    CONCAT = "concatenation"
    ADD = "add"
    MUL = "mul"
    RELU = "relu"
    CLAMP = "clamp"
    SIGMOID = "sigmoid"
    HARD_SWISH = "hard swish"
    BATCH_NORM = "batch normalisation"


KINDS = tuple(Kind)
_WITH_WEIGHTS = {Kind.CONV, Kind.GROUPED, Kind.DENSE, Kind.DEPTHWISE}
LINKS = ("add", "mul", "relu", "sigmoid", "hard_swish", "minimum")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel. `pixels_in` and `pixels_out` count those of the batch, before padding is cut.

    `window` is the side of what an output pixel sees, and `inputs` how many tensors are joined.
    `links` are the element-wise ops linked into it, in their order.
    """

    kind: Kind
    pixels_in: int
    pixels_out: int
    channels_in: int
    channels_out: int
    window: int = 1
    stride: int = 1
    groups: int = 1
    inputs: int = 1
    links: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = (self.pixels_in, self.pixels_out, self.channels_in, self.channels_out)
        if min(*sizes, self.window, self.stride, self.groups, self.inputs) < 1:
            raise ValueError(f"{self}: sizes are one or more")
        if unknown := set(self.links) - set(LINKS):
            raise ValueError(f"links {sorted(unknown)}; known are {', '.join(LINKS)}")

    @property
    def macs(self) -> float:
        """Multiply-accumulates, or element operations of what multiplies nothing."""
        per_output = 1.0 if self.kind is Kind.CONCAT else float(self.window**2)
        if self.kind in (Kind.CONV, Kind.GROUPED, Kind.DENSE):
            per_output *= self.channels_in / self.groups
        return float(self.pixels_out * self.channels_out * per_output)

    @property
    def weights(self) -> float:
        if self.kind not in _WITH_WEIGHTS:
            return 0.0
        depth = 1.0 if self.kind is Kind.DEPTHWISE else self.channels_in / self.groups
        return self.window**2 * depth * self.channels_out

    @property
    def elements(self) -> float:
        """Numbers read and written: inputs, weights, outputs, and what linked additions read."""
        wide = self.channels_out if self.kind is Kind.CONCAT else self.channels_in
        outputs = float(self.pixels_out * self.channels_out)
        linked = outputs * sum(link == "add" for link in self.links)
        joined = self.inputs if self.kind in (Kind.ADD, Kind.MUL) else 1
        return self.pixels_in * wide * joined + self.weights + outputs + linked


class Graph(NamedTuple):
    """A network as a phone runs it. Nodes that no profile lists are `unlisted`: so many, of so many
    elements together."""

    kernels: tuple[Kernel, ...]
    unlisted: int = 0
    unlisted_elements: float = 0.0

    def costs(self, kernels_ms: float) -> tuple[float, ...]:
        """What `phones.Overhead`'s rates multiply, in their order."""
        moved = math.fsum(kernel.elements - kernel.weights for kernel in self.kernels)
        counts = len(self.kernels), self.unlisted, self.unlisted_elements, moved
        return (1.0, kernels_ms, *map(float, counts))


def work(kernels: Sequence[Kernel]) -> np.ndarray:
    """What a roofline reads, `[kernels, 3]`: one, multiply-accumulates, elements moved."""
    return np.array([(1.0, k.macs, k.elements) for k in kernels]).reshape(-1, 3)


def strata(kernels: Sequence[Kernel]) -> np.ndarray:
    """The place of each kernel's kind among `KINDS`, `[kernels]`."""
    return np.array([KINDS.index(kernel.kind) for kernel in kernels], np.int64)


def features(kernels: Sequence[Kernel]) -> np.ndarray:
    """What trees read, `[kernels, len(FEATURES)]`; each kind is a column of its own."""
    return np.array([list(_features(kernel).values()) for kernel in kernels], np.float32)


def _features(k: Kernel) -> dict[str, float]:
    slices_in, slices_out = math.ceil(k.channels_in / 4), math.ceil(k.channels_out / 4)
    side = math.sqrt(k.pixels_out)
    outputs = k.pixels_out * k.channels_out
    return {
        **{kind: float(k.kind is kind) for kind in KINDS},
        "pixels in": k.pixels_in,
        "pixels out": k.pixels_out,
        "channels in": k.channels_in,
        "channels out": k.channels_out,
        "window": k.window,
        "stride": k.stride,
        "groups": k.groups,
        "inputs": k.inputs,
        "multiply-accumulates": k.macs,
        "elements read": k.pixels_in * k.channels_in,
        "elements written": outputs,
        "weights": k.weights,
        "elements": k.elements,
        "intensity": k.macs / k.elements,
        **{f"linked {link}": float(k.links.count(link)) for link in LINKS},
        "links": len(k.links),
        "slices in": slices_in,
        "slices out": slices_out,
        "padding in": 4 * slices_in / k.channels_in,
        "padding out": 4 * slices_out / k.channels_out,
        "slices written": k.pixels_out * slices_out,
        "work groups of 8x4": math.ceil(side / 8) * math.ceil(side / 4) * slices_out,
        "work groups of 64x4": math.ceil(k.pixels_out / 64) * math.ceil(slices_out / 4),
        "work groups of 2x2": math.ceil(side / 2) ** 2 * slices_out,
        "slices in a window": k.window**2 * slices_in,
        "multiply-accumulates a slice": k.macs / (k.pixels_out * slices_out),
        "weights an output": k.weights / outputs,
        "eights out": k.channels_out % 8 == 0,
        "sixteens out": k.channels_out % 16 == 0,
        "eights in": k.channels_in % 8 == 0,
        "odd pixels": k.pixels_out % 2,
    }


FEATURES = tuple(map(str, _features(Kernel(Kind.CONV, 1, 1, 1, 1))))
"""Names of the columns of `features`."""
