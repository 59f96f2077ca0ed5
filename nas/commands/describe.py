"""`nas describe PRESET_OR_FOLDER [--against OTHER]`: an architecture and what it costs."""

import dataclasses
from collections.abc import Mapping

import tyro
from rich.console import Console

from latency_models.latency import LatencyModel
from nas import describe
from search_spaces.presets import Preset
from search_spaces.program import calls
from search_spaces.unet import lower


@dataclasses.dataclass(frozen=True)
class Described:
    """Prints an architecture stage by stage: blocks, parameters, multiply-accumulates, memory."""

    name: tyro.conf.Positional[str]
    """A preset, or the folder of a pipeline or of a U-Net."""
    against: str | None = None
    """Another, to be shown beside it."""
    measure: bool = False
    """Measure every block on this machine, too."""
    device: str | None = None
    """Predict the latency there: a device of `nas devices`, or the folder of a latency model."""


def run(arguments: list[str]) -> int:
    asked = tyro.cli(Described, args=arguments, prog="nas describe")
    found = {name: describe.find(name) for name in (asked.name, asked.against) if name}
    device = _device(asked, found)
    shown = (describe.describe(name, preset, device) for name, preset in found.items())
    table, console = describe.tables(shown), Console(highlight=False)
    needed = console.measure(table, options=console.options.update_width(10_000))
    # Numbers are not cut, however narrow the terminal; a pipe is as wide as it has to be.
    terminal = max(console.width, needed.minimum)
    console.width = terminal if console.is_terminal else needed.maximum
    console.print(table)
    return 0


def _device(asked: Described, found: Mapping[str, Preset]) -> LatencyModel | None:
    """The device asked for, if any. What measures and predicts takes longer to import than all
    else here, so it is imported when it is asked for."""
    if asked.measure and asked.device:
        raise ValueError("--measure is for this machine, --device for another; give one of them")
    if asked.device:
        from nas import devices

        return devices.find(asked.device)[0]
    if asked.measure:
        from latency_models.bench import LocalBench
        from latency_models.runtimes import CACHE

        wanted = [c for spec, inputs in found.values() for c in calls(lower(spec), inputs).values()]
        return LocalBench(CACHE).table(wanted)
    return None
