"""Who dominates whom: fronts and crowding, as in NSGA-II (Deb et al., 2002).

Costs are `[candidates, costs]`, and all are to be small.
"""

import numpy as np
from numpy.typing import ArrayLike


def dominance(costs: ArrayLike) -> np.ndarray:
    """Whether one is nowhere worse than another and somewhere better, `[candidates, others]`."""
    costs = np.asarray(costs, float)
    one, other = costs[:, None], costs[None]
    return np.logical_and((one <= other).all(-1), (one < other).any(-1))


def nondominated(costs: ArrayLike) -> tuple[int, ...]:
    """Those that no other dominates, and of equal ones the first."""
    costs = np.asarray(costs, float)
    if not len(costs):
        return ()
    _, first = np.unique(costs, axis=0, return_index=True)
    first = np.sort(first)
    return tuple(int(i) for i in first[~dominance(costs[first]).any(0)])


def ranks(costs: ArrayLike) -> np.ndarray:
    """The front that each is on: 0 if none dominates it, 1 if none but those does, and so on."""
    above = dominance(costs)
    found = np.full(len(above), -1)
    rank = 0
    while (left := found < 0).any():
        found[left & ~above[left].any(0)] = rank
        rank += 1
    return found


def crowding(costs: ArrayLike) -> np.ndarray:
    """How far apart the neighbours of each are on a front, as shares of it; infinite at ends."""
    costs = np.asarray(costs, float)
    found = np.zeros(len(costs))
    for values in costs.T:
        order = np.argsort(values, kind="stable")
        gaps = values[order[2:]] - values[order[:-2]]
        found[order[1:-1]] += gaps / (np.ptp(values) or 1.0)
        found[order[[0, -1]]] = np.inf
    return found
