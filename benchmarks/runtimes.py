"""Predicts whole U-Nets on this machine's runtimes, learnt from half an hour of measuring each.

    python -m benchmarks.runtimes FOLDER [--runtimes xla onnxruntime litert] [--networks 100]

For every runtime: blocks of random U-Nets are measured, and some random U-Nets as a whole, within
`--minutes`; a model is fitted to these alone. Then other random U-Nets, `--networks` of them, are
measured as a whole and compared with what the model predicted, beside the plain sum of predicted
blocks and a line through multiply-accumulates. U-Nets are drawn from the whole space, from the size
of the embedded default to a quarter of SD-1.5. Everything measured is kept in FOLDER at once, so a
run that was interrupted goes on where it stopped. Let nothing else run meanwhile.

Prints a table in Markdown, and draws predicted against measured.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tyro

from latency_models import campaign, check, fitting, store
from latency_models.bench import CAREFUL
from latency_models.calibrate import Calibrated
from latency_models.check import Errors, Pair
from latency_models.latency import Latency, LatencyModel, Whole
from latency_models.measure import Target
from latency_models.rows import Network
from latency_models.runtimes import Runtime
from nas.commands.profile import RUNTIMES
from nas.report import plots
from search_spaces.counting import macs
from search_spaces.ops import Call
from search_spaces.program import calls
from search_spaces.sampling import draw
from search_spaces.unet import lower

BLOCKS, LEARNT, HELD_OUT = 11, 12, 13  # Seeds: of the blocks, and of both kinds of networks.
SHARE = 0.7  # Of the minutes, for blocks; the rest is for whole networks.


@dataclasses.dataclass(frozen=True)
class Settings:
    folder: tyro.conf.Positional[Path]
    runtimes: tuple[str, ...] = tuple(RUNTIMES)
    networks: int = 100
    """Held-out networks."""
    minutes: float = 30.0
    """For measuring what is learnt from, compiling included."""
    report: bool = False
    """Measure nothing, and report what is there."""


def networks(seed: int, count: int) -> dict[str, Whole]:
    rng = np.random.default_rng(seed)
    drawn = (draw(rng) for _ in range(count))
    return {
        f"random/{seed}/{i}": Whole(lower(spec), inputs) for i, (spec, inputs) in enumerate(drawn)
    }


def blocks(rng: np.random.Generator, count: int) -> list[Call]:
    """Distinct blocks of random U-Nets, in random order."""
    found = [c for w in networks(BLOCKS, count).values() for c in calls(*w).values()]
    distinct = list(dict.fromkeys(found))
    return [distinct[i] for i in rng.permutation(len(distinct))]


def measure(asked: Settings, name: str, runtime: Runtime, held_out: Mapping[str, Whole]) -> None:
    """Measures what the runtime's files lack."""
    learnt = asked.folder / f"{name}-learnt.json"
    tested = asked.folder / f"{name}-held-out.json"
    target = Target(relative=0.03, limit_s=40.0)
    plan = dataclasses.replace(CAREFUL, seconds=6.0, repeats=3, target=target)
    # What was spent before an interruption counts, to the last portion that was kept.
    clock = asked.folder / f"{name}-minutes.json"
    before = json.loads(clock.read_text()) if clock.exists() else 0.0
    begin = time.monotonic()

    def spent() -> float:
        return before + (time.monotonic() - begin) / 60

    def told(line: str) -> None:
        clock.write_text(json.dumps(spent()))
        print(f"{name}, {spent():.1f} minutes: {line}", flush=True)

    wanted = blocks(np.random.default_rng(BLOCKS), 60)
    for what, wholes, until in ((wanted, {}, SHARE), ([], networks(LEARNT, 60), 1.0)):
        left = until * asked.minutes - spent()
        if left > 0:
            campaign.measure(learnt, runtime, what, wholes, plan, minutes=left, report=told)
    done = campaign.measure(
        tested, runtime, [], held_out, plan, report=lambda line: print(f"{name}, held out: {line}")
    )
    for network, reason in done.refused.items():
        print(f"{name}, refused: {network}: {reason}", flush=True)


class ByMacs(LatencyModel):
    """Multiply-accumulates at one rate, fitted to whole networks."""

    def __init__(self, learnt: tuple[Network, ...]):
        rates = [n.latency.ms / _macs(calls(*n.whole).values()) for n in learnt]
        self.rate, self.std = float(np.median(rates)), float(np.std(np.log(rates)))

    def predict(self, calls) -> Latency:
        ms = self.rate * _macs(calls)
        return Latency(ms, self.std * ms)


def _macs(found) -> int:
    return sum(macs(call).total for call in found)


def compared(folder: Path, name: str) -> Iterator[tuple[str, list[Pair]]]:
    """Yields ways to predict, and their predictions of the held-out networks."""
    learnt = store.load(folder / f"{name}-learnt.json")
    tested = store.load(folder / f"{name}-held-out.json")
    fitted = fitting.fit(learnt, fitting.METHODS["gaussian"])
    model = fitted.model
    assert isinstance(model, Calibrated)
    for way, used in (
        ("learnt", model),
        ("sum of predicted blocks", model.model),
        ("multiply-accumulates", ByMacs(learnt.networks)),
    ):
        pairs, refused = check.of_networks(used, tested.networks)
        assert not refused, refused
        yield way, pairs


def row(name: str, way: str, e: Errors) -> str:
    return (
        f"| {name} | {way} | {e.pairs} | {e.within_10:.0%} | {e.mape:.1%} | {e.coverage:.0%} | "
        f"{e.bias:+.1%} | {e.spearman or 0:.4f} |"
    )


def main() -> None:
    asked = tyro.cli(Settings, description=__doc__)
    asked.folder.mkdir(parents=True, exist_ok=True)
    lines, points = [], {}
    held_out = {} if asked.report else networks(HELD_OUT, asked.networks)
    for name in asked.runtimes:
        if not asked.report:
            measure(asked, name, RUNTIMES[name](), held_out)
        learnt = store.load(asked.folder / f"{name}-learnt.json")
        print(f"\n{learnt.provenance}: learnt from {len(learnt.table.rows)} blocks and", end=" ")
        print(f"{len(learnt.networks)} networks")
        for way, pairs in compared(asked.folder, name):
            lines.append(row(name, way, check.errors(pairs)))
            if way == "learnt":
                points[name] = [(p.measured.ms, p.predicted.ms) for p in pairs]
    (asked.folder / "agreement.svg").write_text(plots.agreement(points))
    print(
        "\n| runtime | predicted by | networks | within 10% | MAPE | 90% intervals hold | bias | "
        "Spearman |\n|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
