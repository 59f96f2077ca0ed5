"""Latency of calls on a new device from a few measured ones, with tables of other devices.

    kin = learn([table, other_table])          # Of source devices.
    wanted = kin.choose(calls, 20)             # Which calls to measure on the new device.
    model = kin.adapt(measured)                # A latency model, of what was measured of them.

Calls differ by orders of magnitude, devices do not: what is transferred (`latency_models.transfer`)
is a call's latency over that at `reference` rates of work. A device with rates of its own is then
a weighted sum of the shares that each kind of work has of a call, which is what the components
describe, beside the kind of op and its shapes.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from latency_models import calibrate, check, rates, transfer
from latency_models.check import Pair
from latency_models.choosing import choose
from latency_models.components import Component
from latency_models.features import features, kind, work
from latency_models.fitting import Fitted
from latency_models.latency import Latency, LatencyModel
from latency_models.rates import Rates, known
from latency_models.store import Measurements
from latency_models.table import Table
from latency_models.transfer import Adapted, Prior
from search_spaces.ops import Call
from search_spaces.program import calls as calls_of

FEWEST = 5
"""Calls that a source device must have measured."""


@dataclasses.dataclass(frozen=True, eq=False)
class Kin:
    """What the tables of source devices teach about a new one."""

    reference: Rates
    tables: tuple[Table, ...]
    prior: Prior

    def archs(self, calls: Sequence[Call]) -> np.ndarray:
        """Rows of `transfer` that describe the calls, `[calls, width]`.

        Raises `UnknownCall` where no source measured a call of that kind.
        """
        measured = _ratios(self.tables, calls, self.reference)
        return self.prior.encode(_components(self.reference, calls), measured)

    def choose(
        self, calls: Iterable[Call], count: int, measured: Mapping[Call, Latency] | None = None
    ) -> list[Call]:
        """The `count` calls whose measurements teach most of all `calls`, in the order to measure
        them in, given those that were `measured` on the new device already."""
        pool = tuple(dict.fromkeys(calls))
        beliefs = self.adapt(measured).adapted.beliefs() if measured else self.prior.beliefs()
        done = [i for i, call in enumerate(pool) if call in (measured or {})]
        found = choose(beliefs, self.archs(pool), count, exclude=np.array(done, int))
        return [pool[i] for i in found]

    def adapt(self, measured: Mapping[Call, Latency]) -> "FewShot":
        """The model of a device of which these calls were measured."""
        calls = tuple(measured)
        priced = np.array([self.reference.price(call) for call in calls])
        ms = np.array([row.ms for row in measured.values()])
        return FewShot(self, transfer.adapt(self.prior, self.archs(calls), ms / priced))


@dataclasses.dataclass(frozen=True, eq=False)
class FewShot(LatencyModel):
    """Prices calls at the reference's rates, times what was learnt of the device."""

    kin: Kin
    adapted: Adapted

    def predict(self, calls: Iterable[Call]) -> Latency:
        counts = Counter(calls)
        if not counts:
            return Latency(0.0, 0.0)
        # Sorted, so that the order of the calls does not matter to the last bit.
        distinct = tuple(sorted(counts, key=repr))
        archs = self.kin.archs(distinct)
        base = np.array([counts[call] * self.kin.reference.price(call) for call in distinct])
        ms = float(base @ self.adapted.predict(archs).ms)
        # Few measurements leave errors that calls have in common, so they do not average out. The
        # error of the sum is that of a call which is as much of each as the sum is.
        mixed = base / base.sum() @ archs
        (std,) = self.adapted.predict(mixed[None]).std
        return Latency(ms, ms * float(np.sqrt(np.expm1(std**2))))


def fit(found: Measurements, kin: Kin, *, folds: int = 5, seed: int = 0) -> Fitted:
    """The model of the device of these measurements, and how wrong it is.

    Every call is predicted by a model that was adapted to the calls outside of its fold. Networks
    that were measured as a whole correct the sum of calls, and each is predicted with the others.
    """
    rows = dict(found.table.rows)
    order, every = np.random.default_rng(seed).permutation(len(rows)), list(rows)
    pairs = []
    for fold in range(folds if len(rows) > folds else 0):
        out = {every[i] for i in order[fold::folds]}
        tried = kin.adapt({call: row for call, row in rows.items() if call not in out})
        pairs += check.of_calls(tried, Table({call: rows[call] for call in out}))[0]
    model: LatencyModel = kin.adapt(rows)
    whole = None
    if found.networks:
        parts = [(calls_of(*n.whole).values(), n.latency) for n in found.networks]
        if len(parts) > 1:
            told = calibrate.leave_one_out(model, parts)
            both = zip(found.networks, told, strict=True)
            whole = check.errors([Pair(n.name, latency, n.latency) for n, latency in both])
        model = calibrate.fit(model, parts)
    return Fitted(model, check.errors(pairs) if pairs else None, {}, whole)


def learn(tables: Sequence[Table]) -> Kin:
    """What source devices teach. Raises `ValueError` if there is none, or one has too few rows."""
    short = [len(table.rows) for table in tables if len(table.rows) < FEWEST]
    if not tables or short:
        raise ValueError(
            f"{len(tables)} source devices, {len(short)} of them with fewer than {FEWEST} calls "
            "measured; give files of devices that were, or the names of devices that are known"
        )
    reference = _reference(tables)
    calls = tuple(dict.fromkeys(call for table in tables for call in table.rows))
    prior = transfer.learn(_components(reference, calls), _ratios(tables, calls, reference))
    return Kin(reference, tuple(tables), prior)


def _reference(tables: Sequence[Table]) -> Rates:
    """Rates of what the sources have in common: fitted to all rows, each source's over its scale
    against the source with the most rows."""
    largest = rates.fit(max(tables, key=lambda table: len(table.rows)).rows)
    pooled: dict[Call, list[float]] = {}
    for table in tables:
        alike = [
            row.ms / largest.price(call)
            for call, row in table.rows.items()
            if kind(call) in largest.kinds
        ]
        scale = float(np.median(alike)) if alike else 1.0
        for call, row in table.rows.items():
            pooled.setdefault(call, []).append(row.ms / scale)
    return rates.fit({call: Latency(float(np.median(ms)), 0.0) for call, ms in pooled.items()})


def _ratios(tables: Sequence[Table], calls: Sequence[Call], reference: Rates) -> np.ndarray:
    """What the sources measured over the reference, `[sources, calls]`, NaN where they did not."""
    priced = np.array([reference.price(call) for call in calls])
    ms = [[table.rows[c].ms if c in table.rows else np.nan for c in calls] for table in tables]
    return np.array(ms).reshape(len(tables), len(calls)) / priced


def _components(reference: Rates, calls: Sequence[Call]) -> list[Component]:
    for call in calls:
        known(call, reference.kinds)
    costs = np.array([work(call) for call in calls]) * reference.milliseconds
    kinds = np.array([[kind(call) == name for name in reference.kinds] for call in calls], float)
    logs = features(calls)
    return [
        Component("shares of work", costs / costs.sum(1, keepdims=True)),
        Component("kinds", kinds),
        Component("amounts and shapes", logs),
        Component("amounts and shapes, in pairs", logs, degree=2),
    ]
