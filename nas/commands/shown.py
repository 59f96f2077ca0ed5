"""`nas profile show` and `nas profile operators`: measurements as numbers to read."""

import dataclasses
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table as Grid

from latency_models import store
from latency_models.affinity import pin
from latency_models.latency import Latency, Whole
from latency_models.rows import brief
from nas import describe, devices
from nas.devices import RuntimeName
from search_spaces.unet import lower


@dataclasses.dataclass(frozen=True)
class Show:
    """Lists what a file of measurements holds: milliseconds of a call, their 95% interval, what
    nine of ten runs kept to, and how many runs there were."""

    file: tyro.conf.Positional[Path]
    """File that `nas profile` wrote."""


@dataclasses.dataclass(frozen=True)
class Operators:
    """Says what each operator of a network takes on this machine, as the runtime's own profiler
    sees it. Watching takes time, so they add up to more than the network."""

    name: tyro.conf.Positional[str]
    """A preset, or the folder of a pipeline or of a U-Net."""
    runtime: RuntimeName = "xla"
    """What runs it."""
    cores: tuple[int, ...] = ()
    """Which of this machine's cores to use, by default all that the process may."""
    passes: int = 20
    """Forward passes that are watched."""
    most: int = 30
    """How many operators are listed, those that take most."""


def show(arguments: list[str]) -> int:
    asked = tyro.cli(Show, args=arguments, prog="nas profile show")
    found = store.load(asked.file)
    networks = {network.name: network.latency for network in found.networks}
    blocks = {brief(call): row for call, row in found.table.rows.items()}
    console = _console()
    console.print(f"{found.provenance}; cores {found.provenance.affinity or 'not told'}")
    for title, rows in (("network", networks), ("block", blocks)):
        if rows:
            console.print(_listed(title, rows))
    return 0


def _listed(title: str, rows: dict[str, Latency]) -> Grid:
    grid = _grid("ms", "95% interval", "p90", "runs", title)
    for name, latency in sorted(rows.items(), key=lambda row: -row[1].ms):
        low, high = latency.interval()
        spread = latency.spread
        grid.add_row(
            f"{latency.ms:.4g}",
            f"{low:.4g} to {high:.4g}",
            f"{spread.p90:.4g}" if spread else "-",
            str(spread.repeats) if spread else "-",
            name,
        )
    return grid


def operators(arguments: list[str]) -> int:
    asked = tyro.cli(Operators, args=arguments, prog="nas profile operators")
    if min(asked.passes, asked.most) < 1:
        raise ValueError(f"--passes {asked.passes} --most {asked.most}: one or more are possible")
    if asked.cores:
        pin(asked.cores)
    spec, inputs = describe.find(asked.name)
    runtime = devices.RUNTIMES[asked.runtime]()
    rows = runtime.prepare(Whole(lower(spec), inputs)).profile(asked.passes)
    every = sum(row.ms for row in rows)
    kinds: dict[str, list[float]] = {}
    for row in rows:
        kinds.setdefault(row.kind, []).append(row.ms)
    console = _console()
    console.print(f"{runtime.provenance}\n{len(rows)} operators take {every:.4g} ms, watched")
    grid = _grid("ms", "share", "operators", "kind")
    for kind, each in sorted(kinds.items(), key=lambda kind: -sum(kind[1])):
        grid.add_row(f"{sum(each):.4g}", f"{sum(each) / every:.1%}", str(len(each)), kind)
    console.print(grid)
    grid = _grid("ms", "share", "operator")
    for row in sorted(rows, key=lambda row: -row.ms)[: asked.most]:
        grid.add_row(f"{row.ms:.4g}", f"{row.ms / every:.1%}", f"{row.kind} {row.name}")
    console.print(grid)
    return 0


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _grid(*names: str) -> Grid:
    """Numbers in columns, and in the last one what they are of."""
    grid = Grid(box=None)
    for name in names:
        grid.add_column(name, justify="left" if name == names[-1] else "right", overflow="fold")
    return grid
