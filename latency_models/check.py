"""How wrong a latency model is, on what it was not fitted on."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, spearmanr

from latency_models.features import kind
from latency_models.latency import Latency, LatencyModel, UnknownCall
from latency_models.rows import Network, brief
from latency_models.table import Table
from search_spaces.ops import Call
from search_spaces.program import calls

LEVEL = 0.9  # Of the intervals whose coverage is reported.


class Pair(NamedTuple):
    """What was predicted, and what was measured."""

    name: str
    predicted: Latency
    measured: Latency

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted.ms / self.measured.ms - 1

    @property
    def deviations(self) -> float:
        """How many standard deviations, the measurement's own included, they are apart."""
        std = math.hypot(self.predicted.std, self.measured.std)
        apart = self.predicted.ms - self.measured.ms
        return apart / std if std else math.copysign(math.inf, apart) if apart else 0.0


class Errors(NamedTuple):
    """Of some pairs: mean absolute relative error, the share within a tenth of what was measured,
    the share inside 90% intervals, the mean relative error, and Spearman's correlation, which is
    none where there are fewer than three or all are equal."""

    pairs: int
    mape: float
    within_10: float
    coverage: float
    bias: float
    spearman: float | None


def errors(pairs: Sequence[Pair]) -> Errors:
    """What the pairs say together. Raises `ValueError` if there are none."""
    if not pairs:
        raise ValueError("nothing to check: no prediction has a measurement beside it")
    off = np.array([pair.error for pair in pairs])
    wide = float(norm.ppf(0.5 + LEVEL / 2))
    inside = [abs(pair.deviations) <= wide for pair in pairs]
    rank, both = None, np.array([(p.predicted.ms, p.measured.ms) for p in pairs])
    if len(pairs) > 2 and both.std(0).all():
        rank = float(spearmanr(both).statistic)  # pyright: ignore[reportAttributeAccessIssue]
    return Errors(
        len(pairs),
        float(np.abs(off).mean()),
        float((np.abs(off) <= 0.1).mean()),
        float(np.mean(inside)),
        float(off.mean()),
        rank,
    )


def of_calls(model: LatencyModel, table: Table) -> tuple[list[Pair], list[Call]]:
    """Predictions of the table's calls beside their rows, and the calls that were refused."""
    pairs, refused = [], []
    for call, row in table.rows.items():
        try:
            pairs.append(Pair(brief(call), model.predict([call]), row))
        except UnknownCall:
            refused.append(call)
    return pairs, refused


def of_networks(
    model: LatencyModel, networks: Iterable[Network]
) -> tuple[list[Pair], list[Network]]:
    """Predictions of whole networks beside their measurements, and those that were refused."""
    pairs, refused = [], []
    for network in networks:
        priced = calls(network.whole.program, network.whole.inputs).values()
        try:
            pairs.append(Pair(network.name, model.predict(priced), network.latency))
        except UnknownCall:
            refused.append(network)
    return pairs, refused


def by_kind(model: LatencyModel, table: Table) -> dict[str, Errors]:
    """Errors of every kind of op in the table that the model prices."""
    groups: dict[str, dict[Call, Latency]] = defaultdict(dict)
    for call, row in table.rows.items():
        groups[kind(call)][call] = row
    found = {name: of_calls(model, Table(rows))[0] for name, rows in sorted(groups.items())}
    return {name: errors(pairs) for name, pairs in found.items() if pairs}


def reliability(pairs: Sequence[Pair], steps: int = 19) -> list[tuple[float, float]]:
    """Levels of intervals, and the share of pairs inside the intervals of each level."""
    apart = np.abs([pair.deviations for pair in pairs])
    levels = np.arange(1, steps + 1) / (steps + 1)
    return [(float(level), float((apart <= norm.ppf(0.5 + level / 2)).mean())) for level in levels]


def worst(pairs: Sequence[Pair], count: int = 10) -> list[Pair]:
    """The pairs with the largest relative errors, the worst first."""
    return sorted(pairs, key=lambda pair: -abs(pair.error))[:count]
