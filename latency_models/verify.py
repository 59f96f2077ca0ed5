"""The best architecture within a latency limit, verified on the device.

The most accurate architecture whose *predicted* latency fits is the one whose prediction errs most
on the low side: choosing by prediction alone breaks the limit often. A few more measurements,
spent on what would be chosen, settle it.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from latency_models.transfer import Adapted, Prediction, adapt

# An architecture less likely than this to be better and to fit is not worth a measurement.
_HOPE = 0.005


class Choice(NamedTuple):
    """What was chosen, or nothing if nothing measured fits; and all that was measured for it."""

    arch: int | None
    measured: tuple[int, ...]
    ms: tuple[float, ...]


def best_within(
    limit_ms: float,
    quality: np.ndarray,
    archs: np.ndarray,
    predictor: Adapted,
    measured: Sequence[int] | np.ndarray,
    ms: Sequence[float] | np.ndarray,
    measure: Callable[[int], float],
    *,
    extra: int,
) -> Choice:
    """The architecture of highest `quality` `[n]` found to run in `limit_ms`.

    `predictor` knows `ms` of `measured`, indices of `archs` `[n, width]`. At most `extra` more are
    measured, one by one: what is expected to improve most on the best that is known to fit, its
    gain weighed by how likely it fits (Gardner et al., "Bayesian optimization with inequality
    constraints", ICML 2014). The predictor learns from each. Whatever is chosen has been measured.
    """
    if not (math.isfinite(limit_ms) and limit_ms > 0 and extra >= 0):
        raise ValueError(
            f"a limit of {limit_ms} ms and {extra} measurements: both positive, please"
        )
    if quality.shape != (len(archs),) or not np.isfinite(quality).all():
        raise ValueError(f"{len(archs)} architectures need as many qualities, all finite")
    known = dict(zip(map(int, measured), map(float, ms), strict=True))
    for _ in range(extra):
        chance = fits(predictor.predict(archs), limit_ms)
        fitting = [quality[index] for index, took in known.items() if took <= limit_ms]
        floor = max(fitting, default=float(quality.min()) - 1.0)
        gain = np.where(quality > floor, chance * (quality - floor), 0.0)
        gain[list(known)] = 0.0
        best = int(np.argmax(gain))
        if gain[best] <= 0 or (fitting and chance[quality > floor].max() < _HOPE):
            break
        known[best] = float(measure(best))
        indices = np.array(list(known))
        predictor = adapt(predictor.prior, archs[indices], list(known.values()))
    fitting = {index: quality[index] for index, took in known.items() if took <= limit_ms}
    chosen = max(fitting, key=lambda index: fitting[index]) if fitting else None
    return Choice(chosen, tuple(known), tuple(known.values()))


def fits(prediction: Prediction, limit_ms: float) -> np.ndarray:
    """Chance `[n]` that a measurement is within `limit_ms`."""
    return scipy.stats.norm.cdf((math.log(limit_ms) - prediction.mean) / prediction.std)
