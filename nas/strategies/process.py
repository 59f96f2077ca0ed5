"""A Gaussian process of few rows, refitted at every step (Rasmussen & Williams, 2006).

`latency_models.gaussian` learns a length for every feature by gradients; a search has fewer rows
than features and fits anew for every proposal, so here one length and the noise are chosen from a
grid, and covariances can be kept from step to step.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from scipy.linalg import solve_triangular

NOISES = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8)  # Of the standard deviation of what was seen.


@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """A function seen at some rows; of mean zero before anything is seen.

    `factor` is the lower triangle of the rows' covariance, `pull` its inverse times what was seen.
    """

    length: float
    noise: float
    amplitude: float
    factor: np.ndarray  # [rows, rows]
    pull: np.ndarray  # [rows]

    def mean(self, covariances: np.ndarray) -> np.ndarray:
        """Means at points of these covariances with the rows, `[rows, points]`."""
        return self.pull.astype(covariances.dtype) @ covariances

    def deviation(self, covariances: np.ndarray) -> np.ndarray:
        """Standard deviations there of what would be seen, noise included."""
        half = solve_triangular(self.factor, covariances, lower=True)
        left = np.maximum(1 - (half**2).sum(0), 0.0) + self.noise**2
        return self.amplitude * np.sqrt(left)


def fit(covariances: Mapping[float, np.ndarray], seen: np.ndarray) -> Process:
    """The process most likely to give `seen` `[rows]`, of covariances `[rows, rows]` by length."""
    found: list[tuple[float, Process]] = []
    for length, covariance in covariances.items():
        for noise in NOISES:
            factor = np.linalg.cholesky(covariance + noise**2 * np.eye(len(seen)))
            half = solve_triangular(factor, seen, lower=True)
            # The amplitude that is likeliest, given the rest.
            variance = max(float(half @ half) / len(seen), 1e-12)
            likelihood = -0.5 * len(seen) * math.log(variance) - np.log(np.diag(factor)).sum()
            pull = solve_triangular(factor.T, half)
            process = Process(length, noise, math.sqrt(variance), factor, pull)
            found.append((likelihood, process))
    return max(found, key=lambda each: each[0])[1]


def matern(distances: np.ndarray, length: float) -> np.ndarray:
    """Matern's covariance of smoothness 3/2: of functions that are smooth, but not very."""
    scaled = distances * distances.dtype.type(math.sqrt(3) / length)
    return (1 + scaled) * np.exp(-scaled)
