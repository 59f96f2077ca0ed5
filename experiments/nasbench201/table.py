"""Accuracies and latencies of every cell, from a folder that the user gives.

The folder has `archs.parquet` (`op0` to `op5`, whole numbers in the order of `OPS`, and columns of
accuracies in %) and `latency_ms.parquet` (a column of milliseconds for each device), the rows of
both in the same order of `arch_idx`.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.nasbench201.cells import EDGES, OPS, Cell
from latency_models.latency import Latency

_KEY = "arch_idx"


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Columns of accuracies in % and of latencies in ms, `[cells]` each; `rows` says which row."""

    rows: Mapping[Cell, int]
    accuracies: Mapping[str, np.ndarray]
    latencies: Mapping[str, np.ndarray]

    @property
    def complete(self) -> tuple[str, ...]:
        """The devices that ran all cells."""
        return tuple(name for name, ms in self.latencies.items() if not np.isnan(ms).any())

    def column(self, accuracy: str) -> np.ndarray:
        """Accuracies of all cells. Raises `ValueError` if there is no such column."""
        return _column(self.accuracies, accuracy, "accuracies")

    def accuracy(self, cell: Cell, column: str) -> float:
        """Raises `ValueError` if there is no such column."""
        return float(self.column(column)[self.rows[cell]])

    def latency(self, cell: Cell, device: str) -> Latency:
        """What was measured; the table has no spread, so the error is given as 0.

        Raises `ValueError` if there is no such device, or if it has not run this cell.
        """
        ms = float(_column(self.latencies, device, "latencies")[self.rows[cell]])
        if math.isnan(ms):
            raise ValueError(f"{device} has not run {cell}; choose a device that ran all cells")
        return Latency(ms, 0.0)


def read(folder: Path) -> Table:
    """The tables in `folder`. Raises `ValueError` if they are not there or do not fit."""
    archs, times = (_parquet(folder / name) for name in ("archs.parquet", "latency_ms.parquet"))
    wanted = {_KEY, *(f"op{edge}" for edge in range(len(EDGES)))}
    if not wanted <= archs.keys():
        raise ValueError(f"{folder}: archs.parquet lacks {sorted(wanted - archs.keys())}")
    if not np.array_equal(archs[_KEY], times.get(_KEY, np.empty(0))):
        raise ValueError(f"{folder}: the two tables do not have the same rows of {_KEY!r}")
    codes = np.stack([archs[f"op{edge}"] for edge in range(len(EDGES))], axis=1)
    rows = {Cell(tuple(OPS[code] for code in row)): number for number, row in enumerate(codes)}
    if len(rows) != len(OPS) ** len(EDGES):
        raise ValueError(f"{folder} has {len(rows)} cells instead of {len(OPS) ** len(EDGES)}")
    accuracies = {
        name: np.asarray(values, float)
        for name, values in archs.items()
        if "test" in name or "val_" in name
    }
    latencies = {name: np.asarray(v, float) for name, v in times.items() if name != _KEY}
    return Table(rows, accuracies, latencies)


def _column(columns: Mapping[str, np.ndarray], name: str, what: str) -> np.ndarray:
    if name not in columns:
        raise ValueError(f"no {what} {name!r}; there are {', '.join(columns)}")
    return columns[name]


def _parquet(file: Path) -> dict[str, np.ndarray]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("reading tables needs pyarrow: pip install 'nas[lab]'") from None
    if not file.exists():
        raise ValueError(f"no {file}; give the folder of NAS-Bench-201's tables")
    table = pyarrow.parquet.read_table(file)
    return {name: table[name].to_numpy() for name in table.column_names}
