"""What a call takes within a network, by what it takes alone: amounts that few networks tell."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from latency_models.features import SHAPE, WORK, shape, work
from search_spaces.ops import Call


class Within(NamedTuple):
    """What networks make of the latency of calls that were measured alone.

    Alone, a call is timed over and over, and those of its weights that the caches hold are still
    there when it comes again. Within a network they come again after all of the network's. Of
    weights that come again after `x` bytes of others and their own, a share `exp(-x / cache)` is
    taken to be held; the rest is fetched from memory.
    """

    scale: float
    """Of what the call takes alone."""
    start_ms: float
    """From one operation to the next."""
    fetch_ms: float
    """Per byte of weights that are held alone, and not within the network."""
    cache: float
    """Bytes."""

    def ms(self, alone: np.ndarray, asked: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Of each call of a network, `[calls]`: what each takes `alone`, what is `asked` of it, as
        the function of this name counts, and how many `times` it is made."""
        operations, weights = asked.T
        fetched = _fetched(weights, times, self.cache)
        return self.scale * alone + self.start_ms * operations + self.fetch_ms * fetched


ALONE = Within(scale=1.0, start_ms=0.0, fetch_ms=0.0, cache=1.0)
"""What is taken of networks where none was measured: that they are the sum of their calls."""


def asked(calls: Iterable[Call]) -> np.ndarray:
    """Operations of each call, and bytes of its weights: `[calls, 2]`."""
    operations, weights = SHAPE.index("primitives"), WORK.index("weights")
    return np.array([(shape(call)[operations], work(call)[weights]) for call in calls])


def fit(alone: np.ndarray, asked: np.ndarray, times: np.ndarray, measured: np.ndarray) -> Within:
    """The likeliest, of networks that took `measured` milliseconds, `[networks]`, and make calls so
    many `times`, `[networks, calls]`. What each call takes `alone` is `[calls]`.

    Least squares of relative errors, with what is usual for as much as a few networks would count.
    """
    summed, operations = times @ alone, times @ asked[:, 0]
    found = []
    for cache in _CACHES:
        fetched = np.array([counts @ _fetched(asked[:, 1], counts, cache) for counts in times])
        amounts = np.stack([summed, operations, fetched], 1)
        # Of the last two, as much as makes the usual share of networks.
        of_sum = (amounts[:, 1:] / summed[:, None]).sum(0) / max(1, len(times))
        shares = np.divide(_SHARE, of_sum, out=np.zeros(2), where=of_sum > 0)
        units = np.array([_SCALE, *shares])
        rows = np.concatenate([amounts * units / measured[:, None] / _NOISE, np.eye(3)])
        wanted = np.concatenate([np.full(len(times), 1 / _NOISE), [1 / _SCALE, 0.0, 0.0]])
        solution, off = nnls(rows, wanted)
        scale, start_ms, fetch_ms = (solution * units).tolist()
        found.append((off, Within(scale, start_ms, fetch_ms, cache)))
    return min(found, key=lambda each: each[0])[1]


def _fetched(weights: np.ndarray, times: np.ndarray, cache: float) -> np.ndarray:
    """Bytes of each call that its network fetches, and that are held where the call runs alone."""
    return weights * (np.exp(-weights / cache) - np.exp(-(times @ weights) / cache))


_SCALE = 0.1  # Networks are faster or slower than their calls by this.
_SHARE = 0.2  # Of what calls take alone: what starting or fetching may come to.
_NOISE = 0.05  # Of a network, by what none of this tells.
_CACHES = [2.0**power for power in range(20, 29)]
