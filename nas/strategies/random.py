"""Random search, the yardstick (Li & Talwalkar, 2019)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from nas.strategies.drawing import draw
from nas.strategies.exploration import Proposal, Trial, full, seen
from nas.strategies.problem import Problem


@dataclasses.dataclass(frozen=True)
class Random:
    """Specs within the limits, none twice. It waits for nothing."""

    def propose(
        self, problem: Problem[Any], trials: Sequence[Trial], rng: np.random.Generator
    ) -> Proposal | None:
        return full(problem, draw(problem, rng, seen(trials)))
