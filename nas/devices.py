"""Latency models by name: those that ship, and those in folders."""

from pathlib import Path
from typing import Any

from latency_models import saved, shipped
from latency_models.latency import LatencyModel


def find(name: str) -> tuple[LatencyModel, dict[str, Any]]:
    """The model of a device that ships, or in a folder, and its card.

    Raises `ValueError` saying what there is.
    """
    if name in shipped.names():
        return shipped.load(name)
    if (Path(name) / saved.MODEL).exists():
        return saved.load(Path(name))
    raise ValueError(
        f"{name} is neither the folder of a latency model nor a device that is known; "
        f"devices are {', '.join(shipped.names())}"
    )
