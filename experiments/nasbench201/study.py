"""NAS-Bench-201 for `nas explore`: accuracies and measured latencies from tables.

    NASBENCH201_DATA=DIR nas explore nasbench201 --device gold_6226=11ms --device eyeriss=7ms \
        --strategy surrogate --options describe=experiments.nasbench201.cells:computed

DIR holds the tables (`table.py` says which). Cells are chosen by validation accuracy after 12
epochs on CIFAR-10, or on CIFAR-100 with `experiments.nasbench201.study:cifar100`. 100 evaluations
take some seconds. `tested.py` then gives the test accuracy after 200 epochs, which no search sees.
"""

import os
from collections.abc import Callable
from pathlib import Path

from experiments.nasbench201.cells import Cell, Cells
from experiments.nasbench201.table import Table, read
from latency_models.latency import Latency
from nas.study import Study

DATA = "NASBENCH201_DATA"


def study() -> Study[Cell]:
    """All cells by their accuracy on CIFAR-10. Raises `ValueError` without the tables."""
    return study_of(table(), "c10_val_12ep")


def cifar100() -> Study[Cell]:
    """All cells by their accuracy on CIFAR-100. Raises `ValueError` without the tables."""
    return study_of(table(), "c100_val_12ep")


def table() -> Table:
    """The tables in the folder that the environment names. Raises `ValueError` without them."""
    folder = os.environ.get(DATA)
    if not folder:
        raise ValueError(
            f"{DATA} is not set; it is to be the folder of NAS-Bench-201's archs.parquet and "
            "latency_ms.parquet, here and on the hosts of workers"
        )
    return read(Path(folder))


def study_of(table: Table, accuracy: str) -> Study[Cell]:
    """All cells by a column of accuracies, and the devices that ran all of them.

    Raises `ValueError` if there is no such column.
    """
    qualities = table.column(accuracy)

    def on(device: str) -> Callable[[Cell], Latency]:
        return lambda cell: table.latency(cell, device)

    return Study(
        Cells(),
        devices={name: on(name) for name in table.complete},
        evaluate=lambda cell, shard: [qualities[table.rows[cell]]],
        specs=tuple(table.rows),
    )
