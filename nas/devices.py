"""Latency models by name: those that ship, and those in folders."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latency_models import saved, shipped, store
from latency_models.latency import Latency, LatencyModel, UnknownCall
from latency_models.table import Table
from search_spaces.ops import Call
from search_spaces.program import calls
from search_spaces.sampling import draw
from search_spaces.unet import lower


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


def table(name: str, wanted: Iterable[Call]) -> Table:
    """What a device takes: the calls measured in a file, or what a model says of
    those `wanted`.

    Calls that the model cannot price have no row. Raises `ValueError` where none has.
    """
    if Path(name).is_file():
        return store.load(Path(name)).table
    model, _ = find(name)
    rows = dict[Call, Latency]()
    for call in wanted:
        with contextlib.suppress(UnknownCall):
            rows[call] = model.predict([call])
    if not rows:
        raise ValueError(f"{name} cannot price any of the calls asked for")
    return Table(rows)


def tables(names: Sequence[str], wanted: Iterable[Call]) -> list[Table]:
    """What other devices take, to learn from: the rows of files of measurements, and what models
    say of these rows' calls and of those `wanted`, or of random U-Nets' where those are few."""
    files = [name for name in names if Path(name).is_file()]
    asked = [call for name in files for call in table(name, ()).rows]
    asked = list(dict.fromkeys([*asked, *wanted]))
    rng = np.random.default_rng(0)
    while len(files) < len(names) and len(asked) < _ENOUGH:
        spec, inputs = draw(rng)
        asked = list(dict.fromkeys([*asked, *calls(lower(spec), inputs).values()]))
    return [table(name, asked) for name in names]


_ENOUGH = 60  # Calls that a model is asked about.
