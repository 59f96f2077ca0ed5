"""What a latency model is: milliseconds, with an honest error bar, for a list of calls."""

import abc
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from search_spaces.ops import Call, Shape
from search_spaces.program import Program


class Whole(NamedTuple):
    """A network as one: compiled, run and priced as a whole, and not call by call."""

    program: Program
    inputs: Mapping[str, Shape]


PROBABILITIES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)


class Spread(NamedTuple):
    """What lies behind a measured latency: `repeats` runs, and their quantiles.

    The quantiles are at the probabilities `PROBABILITIES`, least first.
    """

    repeats: int
    quantiles_ms: tuple[float, ...]

    @property
    def p90(self) -> float:
        """What nine of ten runs kept to, in milliseconds."""
        return self.quantiles_ms[PROBABILITIES.index(0.9)]


class Latency(NamedTuple):
    """`ms ± std`: an estimate in milliseconds and its standard error.

    A measured latency keeps its spread; a predicted one has none.
    """

    ms: float
    std: float
    spread: Spread | None = None

    def half_width(self, confidence: float = 0.95) -> float:
        """How far the truth may be to either side, in milliseconds.

        Predictions are off normally. A measurement's error is found from the measurements, so it is
        itself uncertain, and Student's distribution with five degrees of freedom is what then holds
        the truth as often as it says, for five rounds as for fifty.
        """
        from scipy.special import stdtrit  # Not with the module: it takes long to import.

        if self.spread is None:
            return statistics.NormalDist().inv_cdf(0.5 + confidence / 2) * self.std
        return float(stdtrit(5, 0.5 + confidence / 2)) * self.std

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The milliseconds that hold the truth with this confidence."""
        aside = self.half_width(confidence)
        return self.ms - aside, self.ms + aside

    def __str__(self) -> str:
        return f"{self.ms:.3f} ± {self.std:.3f} ms"


class LatencyModel(abc.ABC):
    """Predicts how long one device takes to run a list of calls once.

    The order of the calls does not matter, and removing one never makes the rest slower.
    """

    @abc.abstractmethod
    def predict(self, calls: Iterable[Call]) -> Latency:
        """Latency of the calls. Raises `UnknownCall` if there is one it cannot price."""

    @property
    def parts(self) -> "LatencyModel":
        """This model without what a network costs as a whole, which is no part's."""
        return self

    @property
    def alone(self) -> "LatencyModel":
        """What calls take that are measured one by one, not as parts of a network."""
        return self


class UnknownCall(ValueError):
    """A model was asked about a call it has no basis to price."""


def total(parts: Iterable[Latency]) -> Latency:
    """Latency of running `parts` one after another, their errors independent."""
    parts = tuple(parts)
    # fsum rounds once, so the order of the parts does not matter to the last bit.
    return Latency(
        math.fsum(part.ms for part in parts),
        math.sqrt(math.fsum(part.std**2 for part in parts)),
    )
