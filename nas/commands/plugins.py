"""`nas plugins`: what other packages add, and why something of it does not load."""

import dataclasses

import tyro
from rich.console import Console

from nas import plugins


@dataclasses.dataclass(frozen=True)
class Settings:
    """Lists search spaces, latency models, scorers and strategies that installed packages add. The
    exit status is 1 if one of them does not load."""


def run(arguments: list[str]) -> int:
    tyro.cli(Settings, args=arguments, prog="nas plugins")
    console = Console(highlight=False, soft_wrap=True)
    broken = 0
    for group, wanted in plugins.GROUPS.items():
        console.print(f"[bold]{group}[/bold]: {wanted}", markup=True)
        found = plugins.find(group)
        for plugin in found:
            console.print(f"  {plugin.name}  {plugin.path}, of {plugin.package}", markup=False)
            if plugin.problem:
                broken += 1
                console.print(f"    does not load: {plugin.problem}", markup=False)
        if not found:
            console.print("  none")
    return 1 if broken else 0
