"""From measurements to a latency model, and a card that says how wrong it is."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from latency_models import calibrate, check, conditioned, gaussian, learned, trees
from latency_models.check import Errors
from latency_models.features import kind
from latency_models.latency import Latency, LatencyModel
from latency_models.rows import Network
from latency_models.store import Measurements
from latency_models.table import Table
from search_spaces.ops import Call
from search_spaces.program import calls

T = TypeVar("T")

Method: TypeAlias = Callable[[Mapping[Call, Latency]], LatencyModel]
"""Fits a model to measured calls."""


def gaussian_process(rows: Mapping[Call, Latency]) -> LatencyModel:
    """A `Method`: a Gaussian process over what each kind of work costs."""
    return learned.fit(rows, gaussian.fit)


def boosted_trees(rows: Mapping[Call, Latency]) -> LatencyModel:
    """A `Method`: boosted trees over the same."""
    return learned.fit(rows, trees.boosted)


class Fitted(NamedTuple):
    """A model of all that was measured, and what it was found to be wrong by.

    `calls` and `networks` are errors on what was held out of a fit to the rest, which is then
    fitted in too; none where there was too little to hold any out.
    """

    model: LatencyModel
    calls: Errors | None
    kinds: Mapping[str, Errors]
    networks: Errors | None


def together(files: Sequence[Measurements]) -> Measurements:
    """The rows of several files of one provenance. Raises `ValueError` if theirs differ, or one
    name is of two networks."""
    first, *others = files
    for other in others:
        if differences := first.provenance.differences(other.provenance):
            raise ValueError(
                f"measurements of different provenance do not mix ({'; '.join(differences)}); "
                "fit a model to each"
            )
    rows = {call: row for found in files for call, row in found.table.rows.items()}
    networks = dict[str, Network]()
    for network in (network for found in files for network in found.networks):
        if networks.setdefault(network.name, network).whole != network.whole:
            raise ValueError(
                f"{network.name} is one network in one file and another in another: measure one of "
                "them again by another name"
            )
        networks[network.name] = network
    return Measurements(first.provenance, Table(rows), tuple(networks.values()))


def fit(found: Measurements, method: Method, *, held_out: float = 0.2, seed: int = 0) -> Fitted:
    """Fits `method` to the calls and, where networks were measured, what sums of calls miss.

    A share `held_out` of the calls of each kind and of the networks, drawn by `seed`, is predicted
    by a fit to the others first. Raises `ValueError` where there is too little to fit.
    """
    rng = np.random.default_rng(seed)
    rows, test_rows = _split(
        rng, list(found.table.rows.items()), held_out, lambda row: kind(row[0])
    )
    networks, test_networks = _split(rng, list(found.networks), held_out, lambda network: "")
    errors, kinds, whole = None, {}, None
    if test_rows or test_networks:
        tried = _fitted(method, dict(rows), networks)
        pairs, _ = check.of_calls(tried.alone, Table(dict(test_rows)))
        errors = check.errors(pairs) if pairs else None
        kinds = check.by_kind(tried.alone, Table(dict(test_rows)))
        pairs, _ = check.of_networks(tried, test_networks)
        whole = check.errors(pairs) if pairs else None
    model = _fitted(method, dict(found.table.rows), found.networks)
    return Fitted(model, errors, kinds, whole)


def _split(
    rng: np.random.Generator, every: list[T], share: float, group: Callable[[T], str]
) -> tuple[list[T], list[T]]:
    """What is kept and what is held out, of each group in this share. Of a group of fewer than
    five nothing is held out, so that what is kept can be fitted as the whole can."""
    kept, tested = [], []
    for name in sorted({group(each) for each in every}):
        own = [each for each in every if group(each) == name]
        count = round(share * len(own)) if len(own) >= 5 else 0
        out = set(rng.permutation(len(own))[:count].tolist())
        kept += [each for i, each in enumerate(own) if i not in out]
        tested += [each for i, each in enumerate(own) if i in out]
    return kept, tested


def _fitted(
    method: Method, rows: Mapping[Call, Latency], networks: Sequence[Network]
) -> LatencyModel:
    model = method(rows)
    parts = [(tuple(calls(*network.whole).values()), network.latency) for network in networks]
    if isinstance(model, learned.Learned):
        return conditioned.fit(model, parts) if parts else conditioned.unseen(model, rows)
    return calibrate.fit(model, parts) if parts else model


def card(found: Measurements, fitted: Fitted, method: str, source: str) -> dict[str, Any]:
    """What is to be known of a fitted model, as JSON."""
    return {
        "provenance": found.provenance.to_json(),
        "method": method,
        "calls": len(found.table.rows),
        "networks": len(found.networks),
        "kinds": sorted({kind(call) for call in found.table.rows}),
        "errors on held-out calls": _errors(fitted.calls),
        "errors by kind": {name: _errors(errors) for name, errors in fitted.kinds.items()},
        "errors on held-out networks": _errors(fitted.networks),
        "versions": {name: metadata.version(name) for name in ("jax", "numpy", "scipy")},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "source": source,
    }


def _errors(errors: Errors | None) -> dict[str, Any] | None:
    return errors._asdict() if errors else None
