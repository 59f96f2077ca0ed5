"""Tables of architectures and latencies, read and described for `latency_models.transfer`.

Columns are recognised by their names, so any table of this form will do:

- `op0, op1, ...` (a stem and consecutive numbers, whole numbers inside): a choice for every
  position. Described by how often each option occurs, by option and position, and by option and
  position with neighbouring positions alike; together with all others also by pairs.
- `flops*`, `macs*`, `params*`, `r`, `resolution`: numbers as they are, and in the pairs.
- `arch_str` in NAS-Bench-201 syntax: also what of the cell's graph is alive, its depths and joins.

Everything else (accuracies, training times, classes) is not used; `Space.unused` lists it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latency_models.components import Component

_KEY = "arch_idx"
_CHOICE = re.compile(r"([A-Za-z_]+?)(\d+)")
_NUMBER = re.compile(r"(flops|macs|params).*|r|resolution")
_EDGE = re.compile(r"(\w+)~(\d)")
# NAS-Bench-201: the ops, and from which node to which its six edges go, in the order of a string.
_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


@dataclasses.dataclass(frozen=True)
class Space:
    """`n` architectures, and devices' latencies of them in ms, `[n]` each, NaN if not measured."""

    components: tuple[Component, ...]
    latencies: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]
    unused: tuple[str, ...]

    def sizes(self) -> np.ndarray:
        """FLOPs of every architecture. Raises `ValueError` if the table has none."""
        for name, values in self.columns.items():
            if name.startswith(("flops", "macs")):
                return np.asarray(values, float)
        raise ValueError(f"no column of FLOPs among {', '.join(self.columns)}")

    def table(self, devices: tuple[str, ...]) -> np.ndarray:
        """`[devices, n]`. Raises `ValueError` if a device is not in the table."""
        missing = [device for device in devices if device not in self.latencies]
        if missing:
            raise ValueError(
                f"no latencies of {', '.join(missing)}; there are {', '.join(self.latencies)}"
            )
        return np.stack([self.latencies[device] for device in devices])


def read(
    folder: Path, *, archs: str = "archs.parquet", latency: str = "latency_ms.parquet"
) -> Space:
    """The space in `folder`. Raises `ValueError` if its two tables do not fit each other."""
    columns, times = _parquet(folder / archs), _parquet(folder / latency)
    if not np.array_equal(columns.get(_KEY, np.arange(0)), times.get(_KEY, np.arange(1))):
        raise ValueError(f"{folder}: {archs} and {latency} do not have the same rows of {_KEY!r}")
    del times[_KEY]
    components, used = describe(columns)
    latencies = {device: np.asarray(values, float) for device, values in times.items()}
    unused = tuple(name for name in columns if name not in {*used, _KEY})
    return Space(components, latencies, columns, unused)


def describe(columns: Mapping[str, np.ndarray]) -> tuple[tuple[Component, ...], tuple[str, ...]]:
    """Components of the architectures in `columns`, and the names of the columns they use."""
    groups = _choices(columns)
    numbers = [name for name in columns if _NUMBER.fullmatch(name)]
    if not groups and not numbers:
        raise ValueError(f"nothing describes an architecture among {', '.join(columns)}")
    found: list[Component] = []
    everything = []
    for stem, names in groups.items():
        options = _one_hot(np.stack([columns[name] for name in names], axis=1))
        found += _positions(stem, options)
        everything.append(_flat(options))
    if numbers:
        values = _scaled(np.stack([np.asarray(columns[name], float) for name in numbers], axis=1))
        found.append(Component("numbers", values))
        everything.append(values)
    found.append(Component("pairs", np.hstack(everything), degree=2))
    cells = "arch_str" in columns and _EDGE.search(str(columns["arch_str"][0])) is not None
    if cells:
        found += _cells(columns["arch_str"])
    used = [name for names in groups.values() for name in names] + numbers
    return tuple(found), (*used, *(["arch_str"] if cells else []))


def _choices(columns: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Names of the columns of every stem, those in which nothing differs left out."""
    stems: dict[str, list[int]] = {}
    for name, values in columns.items():
        match = _CHOICE.fullmatch(name)
        if match and np.issubdtype(np.asarray(values).dtype, np.integer):
            stems.setdefault(match[1], []).append(int(match[2]))
    whole = {s: sorted(n) for s, n in stems.items() if sorted(n) == list(range(len(n)))}
    return {stem: [f"{stem}{number}" for number in numbers] for stem, numbers in whole.items()}


def _one_hot(codes: np.ndarray) -> np.ndarray:
    """`[n, positions, options]` of `codes` `[n, positions]`."""
    return (codes[:, :, None] == np.unique(codes)).astype(float)


def _flat(options: np.ndarray) -> np.ndarray:
    return options.reshape(len(options), -1)


def _positions(stem: str, options: np.ndarray) -> list[Component]:
    """What a choice costs anywhere, what around here, and what right here."""
    positions = options.shape[1]
    apart = np.abs(np.subtract.outer(np.arange(positions), np.arange(positions)))
    near = np.linalg.cholesky(np.exp(-apart / max(positions / 4, 1)))
    return [
        Component(f"{stem} counts", options.sum(1)),
        Component(f"{stem} nearby", _flat(np.einsum("npo,pq->nqo", options, near))),
        Component(f"{stem} by position", _flat(options)),
    ]


def _scaled(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    spread = centred.std(0)
    return centred / np.where(spread > 0, spread, 1.0)


def _cells(strings: np.ndarray) -> list[Component]:
    """Of cells in NAS-Bench-201 syntax: ops that are on a path from input to output count.

    Compilers drop the rest, so to them cells that differ in dead ops only are the same.
    """
    ops = np.array([_parsed(string) for string in strings])
    alive = ops != _OPS.index("none")
    reached = np.zeros((len(ops), 4), bool)
    needed = np.zeros((len(ops), 4), bool)
    reached[:, 0] = needed[:, 3] = True
    for edge, (source, target) in enumerate(_EDGES):
        reached[:, target] |= alive[:, edge] & reached[:, source]
    for edge, (source, target) in sorted(enumerate(_EDGES), key=lambda item: -item[1][1]):
        needed[:, source] |= alive[:, edge] & needed[:, target]
    live = np.stack(
        [alive[:, e] & reached[:, s] & needed[:, t] for e, (s, t) in enumerate(_EDGES)], axis=1
    )
    running = _one_hot(np.where(live, ops, _OPS.index("none")))
    joins = np.stack(
        [sum(live[:, e] for e, (_, t) in enumerate(_EDGES) if t == node) for node in (1, 2, 3)],
        axis=1,
    ).astype(float)
    lengths = [
        _longest(ops, live, np.array(weights, float))
        # Counting convolutions and pooling, everything, 3x3 convolutions, convolutions.
        for weights in ([0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0], [0, 0, 1, 1, 0])
    ]
    graph = np.column_stack([*lengths, joins > 0, joins, live.sum(1)])
    return [
        Component("live counts", running.sum(1)),
        Component("live by edge", _flat(running)),
        Component("live pairs", _flat(running), degree=2),
        Component("graph", _scaled(graph)),
    ]


def _parsed(string: Any) -> list[int]:
    edges = [(op, int(node)) for op, node in _EDGE.findall(str(string))]
    if [node for _, node in edges] != [source for source, _ in _EDGES]:
        raise ValueError(f"{string!r} is no NAS-Bench-201 cell")
    return [_OPS.index(op) for op, _ in edges]


def _longest(ops: np.ndarray, live: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weight of the heaviest live path, `[n]`, ops weighing `weights`."""
    weight = np.full((len(ops), 4), -math.inf)
    weight[:, 0] = 0
    for edge, (source, target) in enumerate(_EDGES):
        through = np.where(live[:, edge], weight[:, source] + weights[ops[:, edge]], -math.inf)
        weight[:, target] = np.maximum(weight[:, target], through)
    return np.where(np.isfinite(weight[:, 3]), weight[:, 3], 0.0)


def _parquet(file: Path) -> dict[str, np.ndarray]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise SystemExit("reading tables needs pyarrow: pip install 'nas[lab]'") from None
    table = pyarrow.parquet.read_table(file)
    return {name: table[name].to_numpy() for name in table.column_names}
