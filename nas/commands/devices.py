"""`nas devices [NAME]`: the devices whose latency is known, how, and how wrong that is."""

import dataclasses
import json

import tyro
from rich.console import Console

import search_spaces.blocks  # noqa: F401  Tables hold its ops.
from latency_models import published, shipped, store
from latency_models.runtimes import CACHE


@dataclasses.dataclass(frozen=True)
class Settings:
    """Lists the latency models that come with the project, and what was measured here."""

    name: tyro.conf.Positional[str | None] = None
    """One of them, of which everything that is known is printed."""


def run(arguments: list[str]) -> int:
    asked = tyro.cli(Settings, args=arguments, prog="nas devices")
    console = Console(highlight=False, soft_wrap=True)
    if asked.name is not None:
        _, card = shipped.load(asked.name)
        console.print(json.dumps(card, indent=2), markup=False)
        return 0
    for row in shipped.overview():
        console.print(f"[bold]{row.name}[/bold]  {row.device}, {row.runtime}")
        console.print(f"    {row.method}\n    covers {row.covers}\n    error: {row.error}")
    console.print("\nMeasured on this machine:")
    found = sorted(CACHE.glob("latency-*.json"))
    for path in found:
        try:
            there = store.load(path)
        except ValueError as error:
            console.print(f"  {error}", markup=False)
            continue
        rows = f"{len(there.table.rows)} calls, {len(there.networks)} networks"
        console.print(f"  {there.provenance}: {rows}\n    {path}", markup=False)
    if not found:
        console.print("  nothing yet; `nas profile` measures, and so does the first search")
    console.print(
        f"\n{len(published.read())} published latencies of diffusion models, each with its source: "
        f"{published.FILE}"
    )
    return 0
