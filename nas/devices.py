"""Where latencies come from, by name: runtimes of this machine, devices that ship, and models in
folders."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from latency_models import saved, shipped, store
from latency_models.bench import Bench, ModelBench
from latency_models.latency import Latency, LatencyModel, UnknownCall
from latency_models.provenance import Method, Provenance
from latency_models.runtimes import CACHE, Runtime
from latency_models.runtimes.litert import LiteRT
from latency_models.runtimes.onnxruntime import OnnxRuntime
from latency_models.runtimes.xla import XLA
from latency_models.table import Table
from search_spaces.ops import Call
from search_spaces.program import calls
from search_spaces.sampling import draw
from search_spaces.unet import lower

RuntimeName: TypeAlias = Literal["xla", "onnxruntime", "litert"]

RUNTIMES: Mapping[RuntimeName, Callable[[], Runtime]] = {
    "xla": XLA,
    "onnxruntime": OnnxRuntime,
    "litert": LiteRT,
}
"""What can run networks on this machine. Each raises `ValueError` where its package is missing."""


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


def bench(name: str) -> Bench:
    """The same device, as a bench whose provenance says how it is known.

    Raises `ValueError` where there is none, or where a model's card does not say what it is of.
    """
    if name in shipped.names():
        return shipped.bench(name, CACHE)
    model, card = find(name)
    if "provenance" not in card:
        raise ValueError(
            f"{name} does not say which device its model is of; fit it again with `nas latency fit`"
        )
    there = Provenance.from_json(card["provenance"])
    found = hashlib.sha256((Path(name) / saved.MODEL).read_bytes()).hexdigest()[:12]
    held = Provenance(
        device=there.device,
        runtime=there.runtime,
        versions=(*there.versions, ("model", found)),
        precision=there.precision,
        attention=there.attention,
        threads=there.threads,
        method=Method.PREDICTED,
        affinity=there.affinity,
        source=_how(name, card, there),
    )
    return ModelBench(model, held)


def source(name: str) -> Provenance:
    """What the measurements in a file, or those that a device's model was fitted to, hold for.

    Raises `ValueError` where there is no such device, or its model's card does not say.
    """
    if Path(name).is_file():
        return store.load(Path(name)).provenance
    _, card = find(name)
    return (
        Provenance.from_json(card["provenance"]) if "provenance" in card else bench(name).provenance
    )


def _how(name: str, card: Mapping[str, Any], there: Provenance) -> str:
    """How a fitted model knows of its device, and how wrong it was."""
    counts = " and ".join(f"{card[what]} {what}" for what in ("calls", "networks") if what in card)
    errors = [
        f"{error['mape']:.1%} on {what.removeprefix('errors on ')}"
        for what in ("errors on held-out calls", "errors on held-out networks")
        if (error := card.get(what))
    ]
    said = f"{Method.PREDICTED} by the model in {name}, learnt from {counts or 'rows'}"
    return f"{said}, {there.method}; error: {', '.join(errors) or 'not known'}"


def table(name: str, wanted: Iterable[Call]) -> Table:
    """What a device takes: the calls measured in a file, or what a model says of
    those `wanted`.

    Calls that the model cannot price have no row. Raises `ValueError` where none has.
    """
    if Path(name).is_file():
        return store.load(Path(name)).table
    parts = find(name)[0].parts
    rows = dict[Call, Latency]()
    for call in wanted:
        with contextlib.suppress(UnknownCall):
            rows[call] = parts.predict([call])
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
