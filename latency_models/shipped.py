"""Latency models that come with the project, by the names of their devices.

`tables/NAME/` holds a model that was fitted to measurements of that device. `tables/anchored.json`
holds devices of which whole networks were published and nothing else: each is another device's
model times one factor, and its error is wide.
"""

import json
from pathlib import Path
from typing import Any

from latency_models import saved
from latency_models.calibrate import Calibrated
from latency_models.latency import LatencyModel

TABLES = Path(__file__).parent / "tables"
ANCHORED = TABLES / "anchored.json"


def names() -> tuple[str, ...]:
    """Devices that `load` knows."""
    return tuple(sorted([*_fitted(), *_anchored()]))


def load(name: str) -> tuple[LatencyModel, dict[str, Any]]:
    """The model of a device, and its card: what it stands on and how wrong it is.

    Raises `ValueError` on a device that is not here.
    """
    if name in _fitted():
        return saved.load(TABLES / name)
    anchored = _anchored()
    if name not in anchored:
        raise ValueError(f"no latency model of {name!r} is shipped; there are {', '.join(names())}")
    row = anchored[name]
    base, _ = saved.load(TABLES / row["base"])
    return Calibrated(base, 0.0, row["scale"], row["residual"]), row["card"]


def _fitted() -> list[str]:
    return [path.parent.name for path in TABLES.glob(f"*/{saved.MODEL}")]


def _anchored() -> dict[str, Any]:
    return json.loads(ANCHORED.read_text()) if ANCHORED.exists() else {}
