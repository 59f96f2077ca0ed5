"""Latency models that come with the project, by the names of their devices.

`tables/NAME/` holds a model that was fitted to measurements of that device, and `tables/tpu-*.json`
what XLA's compiler says of one. `tables/anchored.json` holds devices of which whole networks were
published and nothing else: each is another device's model times one factor, and its error is wide.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from latency_models import saved
from latency_models.bench import Bench, ModelBench
from latency_models.calibrate import Calibrated
from latency_models.latency import LatencyModel
from latency_models.provenance import Method, Provenance
from latency_models.tpu import tables as tpu
from latency_models.tpu.bench import TpuBench

TABLES = Path(__file__).parent / "tables"
ANCHORED = TABLES / "anchored.json"


class Shipped(NamedTuple):
    """What one of the models is of, what it covers, how it is known, and how wrong it is."""

    name: str
    device: str
    runtime: str
    method: str
    covers: str
    error: str
    source: str


def names() -> tuple[str, ...]:
    """Devices that `load` knows."""
    return tuple(sorted([*_fitted(), *_anchored(), *_compiled()]))


def load(name: str) -> tuple[LatencyModel, dict[str, Any]]:
    """The model of a device, and its card: what it stands on and how wrong it is.

    Raises `ValueError` on a device that is not here.
    """
    if name in _fitted():
        return saved.load(TABLES / name)
    if name in _compiled():
        table = tpu.load(TABLES / f"{name}.json")
        anchors = [anchor._asdict() for anchor in table.anchors]
        return table.model, {"provenance": table.provenance.to_json(), "anchors": anchors}
    row = _row(name)
    base, _ = saved.load(TABLES / row["base"])
    return Calibrated(base, 0.0, row["scale"], row["residual"]), row["card"]


def bench(name: str, cache: Path) -> Bench:
    """The device, as a bench whose provenance says how it is known and how wrong that is.

    A TPU's compiler is asked for what its table lacks, and what it says is kept under `cache`.
    Raises `ValueError` on a device that is not here.
    """
    if name in _compiled():
        return TpuBench(name.removeprefix("tpu-"), cache)
    model, card = load(name)
    row = about(name)
    held = Provenance(
        device=row.device,
        runtime=row.runtime,
        versions=(("model", _digest(name)),),
        precision=card.get("precision", "as of the published networks"),
        attention=card.get("attention", "as of the published networks"),
        threads=None,
        method=Method.PREDICTED,
        source=f"{row.method}; error: {row.error}; source: {row.source}",
    )
    return ModelBench(model, held)


def _digest(name: str) -> str:
    """Twelve hexadecimal digits that are another model's if they differ."""
    row = _anchored().get(name, {})
    there = (TABLES / row.get("base", name) / saved.MODEL).read_bytes()
    return hashlib.sha256(there + json.dumps(row, sort_keys=True).encode()).hexdigest()[:12]


def about(name: str) -> Shipped:
    """The row of one device. Raises `ValueError` on a device that is not here."""
    if name in _fitted():
        return _of_fitted(name)
    if name in _compiled():
        return _of_compiled(name)
    return _of_anchored(name, _row(name))


def overview() -> list[Shipped]:
    """A row for every model that ships, measured devices first."""
    return [about(name) for found in (_fitted, _compiled, _anchored) for name in sorted(found())]


def _of_fitted(name: str) -> Shipped:
    card = json.loads((TABLES / name / saved.MODEL).read_bytes())["card"]
    error = card["error on networks left out, percent"]
    return Shipped(
        name,
        card["device"],
        card["runtime"],
        f"{Method.PREDICTED}, learnt from {card['fitted on']}",
        f"any op, as kernels of {len(error['by kind'])} kinds",
        f"kernels {error['kernels']:.1f}%, its own networks {error['networks']:.1f}%; "
        "U-Nets were not measured",
        card["source"],
    )


def _of_compiled(name: str) -> Shipped:
    table = tpu.load(TABLES / f"{name}.json")
    off = [abs(a.left_out_ms / a.ms - 1) for a in table.anchors if a.left_out_ms is not None]
    left_out = f"{sum(off) / len(off):.1%} with each anchor left out" if off else "one anchor"
    return Shipped(
        name,
        table.provenance.device,
        table.provenance.runtime,
        f"{table.provenance.method}, calibrated on what was published ({table.calibrated_on})",
        f"{len(table.estimates.rows)} calls: every block of every preset",
        f"{left_out}; standard error {table.model.residual:.0%}",
        table.provenance.source,
    )


def _of_anchored(name: str, row: Mapping[str, Any]) -> Shipped:
    card = row["card"]
    return Shipped(
        name,
        card["device"],
        card["about"],
        f"{Method.PREDICTED}: {row['base']} times one factor from {len(card['anchors'])} published "
        f"network{'s' * (len(card['anchors']) != 1)}",
        "any op",
        f"standard error {row['residual']:.0%}",
        "; ".join(card["anchors"]),
    )


def _fitted() -> list[str]:
    return [path.parent.name for path in TABLES.glob(f"*/{saved.MODEL}")]


def _compiled() -> list[str]:
    return [path.stem for path in TABLES.glob("tpu-*.json")]


def _row(name: str) -> Mapping[str, Any]:
    """What an anchored device is made of."""
    anchored = _anchored()
    if name not in anchored:
        raise ValueError(f"no latency model of {name!r} is shipped; there are {', '.join(names())}")
    return anchored[name]


def _anchored() -> dict[str, Any]:
    return json.loads(ANCHORED.read_text()) if ANCHORED.exists() else {}
