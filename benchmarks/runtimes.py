"""Predicts whole U-Nets on this machine's runtimes, learnt from half an hour of measuring each.

    python -m benchmarks.runtimes FOLDER [--runtimes xla onnxruntime litert] [--networks 100]

For every runtime: blocks of random U-Nets are measured for `--minutes`, and random U-Nets as a
whole. A model is fitted to the blocks and to some of the U-Nets, `--learnt` of them. It predicts
the others, which were held out, beside the plain sum of predicted blocks and a line through
multiply-accumulates. U-Nets are drawn from the whole space, from the size of the embedded default
to a quarter of SD-1.5. What is learnt from and what is judged are measured side by side, by size: a
machine that others share is another one an hour later, by more than models are wrong. For the same
reason networks are measured `--visits` times, each time all of them; how far visits of one network
are apart says how sure what is predicted can be judged. Everything
measured is kept in FOLDER at once, so a run that was interrupted goes on where it stopped. Let
nothing else run meanwhile. With one core pinned by `taskset -c 1`, `--compile` can run on another:
it measures nothing, and compiles and converts for the measurements to find.

Prints a table in Markdown, and draws predicted against measured.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import tyro

from latency_models import campaign, check, fitting, store
from latency_models.bench import CAREFUL
from latency_models.check import Errors, Pair
from latency_models.latency import Latency, LatencyModel, Whole
from latency_models.measure import Plan, Target
from latency_models.rows import Network
from latency_models.runtimes import Runtime, drawn
from latency_models.runtimes import draw as draw_input
from latency_models.store import Measurements
from nas.cli import tuned
from nas.devices import RUNTIMES, RuntimeName
from nas.report import plots
from search_spaces.counting import macs
from search_spaces.ops import Call
from search_spaces.program import calls
from search_spaces.sampling import draw
from search_spaces.unet import lower

BLOCKS, LEARNT = 11, 12  # Seeds: of the blocks, and of the networks that are learnt from.
PATIENCE = 20  # Times that it is tried again where the machine keeps another pace.
# Rounds are many and spread over more time than slow seconds last. The largest networks take
# seconds, so a round may be one run of each.
TARGET = Target(relative=0.03, limit_s=64.0)
BLOCK_PLAN = dataclasses.replace(CAREFUL, seconds=48.0, rounds=24, repeats=1, target=TARGET)
NETWORK_PLAN = dataclasses.replace(
    CAREFUL,
    seconds=12.0,
    rounds=6,
    repeats=1,
    warmup=1,
    target=dataclasses.replace(TARGET, limit_s=30.0),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    folder: tyro.conf.Positional[Path]
    runtimes: tuple[RuntimeName, ...] = tuple(RUNTIMES)
    networks: int = 100
    """Held-out networks."""
    seed: int = 13
    """What they are drawn by. Another one gives networks that nothing was ever tried on."""
    learnt: int = 24
    """Networks that are learnt from."""
    visits: int = 2
    """Times that networks are measured: what they took is the median."""
    minutes: float = 18.0
    """For measuring blocks, compiling included."""
    report: bool = False
    """Measure nothing, and report what is there."""
    compile: bool = False
    """Measure nothing, and compile what will be measured."""


def networks(seed: int, count: int) -> dict[str, Whole]:
    rng = np.random.default_rng(seed)
    drawn = (draw(rng) for _ in range(count))
    return {
        f"random/{seed}/{i}": Whole(lower(spec), inputs) for i, (spec, inputs) in enumerate(drawn)
    }


def side_by_side(found: Mapping[str, Whole], visit: int = 0) -> dict[str, Whole]:
    """The same in the order in which to measure: in a portion are networks that take about as long,
    so that no turn waits for one, whatever they are for, and portions come in any order. Every
    visit has another, and every other visit portions of other networks."""

    def size(name: str) -> tuple[int, str]:
        return sum(macs(call).total for call in calls(*found[name]).values()), name

    names = sorted(found, key=size)
    whole, left = divmod(len(names), campaign.NETWORKS)
    names = names[left:] + names[:left] if visit % 2 == 0 else names
    starts = campaign.NETWORKS * np.random.default_rng(visit).permutation(whole)
    ordered = [name for start in starts for name in names[start : start + campaign.NETWORKS]]
    return {name: found[name] for name in [*ordered, *names[len(names) - left :]]}


def file(folder: Path, name: str, visit: int = 0) -> Path:
    """Where a visit's measurements are; the first one's has those of blocks, too."""
    return folder / (f"{name}-again-{visit}.json" if visit else f"{name}.json")


@functools.cache
def learnt_blocks() -> list[Call]:
    return campaign.blocks(networks(BLOCKS, 60).values(), BLOCKS)


def compile_ahead(names: tuple[RuntimeName, ...], wholes: Mapping[str, Whole]) -> None:
    """Leaves what compilers make of everything that will be measured in their caches."""
    for subjects in (learnt_blocks()[:400], wholes.values()):
        for name in names:
            for subject in subjects:
                part = drawn(subject)
                rng = np.random.default_rng(0)
                values = {key: draw_input(rng, shape) for key, shape in part.inputs.items()}
                with contextlib.suppress(ValueError):  # Said where it is measured.
                    RUNTIMES[name]().load(part, values)
            print(f"compiled {len(subjects)} for {name}", flush=True)


def measure(asked: Settings, name: str, runtime: Runtime, wholes: Mapping[str, Whole]) -> None:
    """Measures what the runtime's file lacks."""
    # What was spent before an interruption counts, to the last portion that was kept.
    clock = asked.folder / f"{name}-minutes.json"
    spent = json.loads(clock.read_text()) if clock.exists() else {"blocks": 0.0, "networks": 0.0}

    def stage(
        kind: str, visit: int, blocks: list[Call], networks: Mapping[str, Whole], plan: Plan
    ) -> None:
        def attempt() -> campaign.Done:
            begin, before = time.monotonic(), spent[kind]

            def told(line: str) -> None:
                spent[kind] = before + (time.monotonic() - begin) / 60
                clock.write_text(json.dumps(spent))
                print(f"{name}, {spent[kind]:.1f} minutes of {kind}: {line}", flush=True)

            return campaign.measure(
                file(asked.folder, name, visit),
                runtime,
                blocks,
                networks,
                plan,
                beside=store.load(file(asked.folder, name)) if visit else None,
                compare=False,
                minutes=max(0.0, asked.minutes - before) if blocks else None,
                report=told,
            )

        patiently(attempt)

    stage("blocks", 0, learnt_blocks(), {}, BLOCK_PLAN)
    for visit in range(asked.visits):
        stage("networks", visit, [], side_by_side(wholes, visit), NETWORK_PLAN)


def patiently(measure: Callable[[], campaign.Done]) -> None:
    """Measures, and names what was refused. Where the machine keeps another pace it lets minutes
    pass and tries again."""
    for attempt in range(PATIENCE):
        try:
            done = measure()
        except campaign.OffPace as off:
            if attempt + 1 == PATIENCE:
                raise
            print(f"in a minute: {off}", flush=True)
            time.sleep(60)
        else:
            for name, reason in done.refused.items():
                print(f"refused: {name}: {reason}", flush=True)
            return


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


def parted(folder: Path, name: str, seed: int) -> tuple[Measurements, tuple[Network, ...]]:
    """What is learnt from, and the networks that were held out and are drawn by this seed."""
    found = store.load(file(folder, name))
    networks = [together(visits) for visits in visited(folder, name).values()]

    def of(seed: int) -> tuple[Network, ...]:
        return tuple(n for n in networks if n.name.startswith(f"random/{seed}/"))

    return found._replace(networks=of(LEARNT)), of(seed)


def visited(folder: Path, name: str) -> dict[str, list[Network]]:
    """Every network's measurements, a visit each that did not refuse it."""
    found: dict[str, list[Network]] = {}
    paths = (file(folder, name, visit) for visit in itertools.count())
    for path in itertools.takewhile(Path.exists, paths):
        for network in store.load(path).networks:
            found.setdefault(network.name, []).append(network)
    return found


def together(visits: Sequence[Network]) -> Network:
    """The median of visits, which is known as well as they agree, or as the surest of them does
    where they agree better than that."""
    ms = [network.latency.ms for network in visits]
    own = min(network.latency.std for network in visits)
    apart = (max(ms) - min(ms)) / 2
    latency = visits[0].latency._replace(ms=float(np.median(ms)), std=max(own, apart))
    return visits[0]._replace(latency=latency)


def again(found: Mapping[str, Sequence[Network]]) -> str:
    """How far measurements of one network are apart, which no prediction can know."""
    off = [
        network.latency.ms / visits[0].latency.ms - 1
        for visits in found.values()
        for network in visits[1:]
    ]
    if not off:
        return "networks were measured once"
    within, median = float(np.mean(np.abs(off) <= 0.1)), float(np.median(np.abs(off)))
    return (
        f"{len(off)} networks were measured again: {within:.0%} within 10%, {median:.1%} off in "
        f"the median, {np.mean(off):+.1%} in the mean"
    )


def compared(folder: Path, name: str, seed: int) -> Iterator[tuple[str, list[Pair]]]:
    """Yields ways to predict, and their predictions of the held-out networks."""
    learnt, held_out = parted(folder, name, seed)
    fitted = fitting.fit(learnt, fitting.gaussian_process)
    model = fitted.model
    for way, used in (
        ("learnt", model),
        ("sum of predicted blocks", model.alone),
        ("multiply-accumulates", ByMacs(learnt.networks)),
    ):
        pairs, refused = check.of_networks(used, held_out)
        assert not refused, refused
        yield way, pairs


def row(name: str, way: str, e: Errors) -> str:
    return (
        f"| {name} | {way} | {e.pairs} | {e.within_10:.0%} | {e.mape:.1%} | {e.coverage:.0%} | "
        f"{e.bias:+.1%} | {e.spearman or 0:.4f} |"
    )


def main() -> None:
    tuned("benchmarks.runtimes")  # As `nas profile` is.
    asked = tyro.cli(Settings, description=__doc__)
    asked.folder.mkdir(parents=True, exist_ok=True)
    lines, points = [], {}
    jax.config.update("jax_compilation_cache_dir", str(asked.folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    wholes: dict[str, Whole] = {}
    if not asked.report:
        wholes = networks(LEARNT, asked.learnt) | networks(asked.seed, asked.networks)
    if asked.compile:
        return compile_ahead(asked.runtimes, wholes)
    for name in asked.runtimes:
        if not asked.report:
            measure(asked, name, RUNTIMES[name](), wholes)
        learnt, _ = parted(asked.folder, name, asked.seed)
        spent = json.loads((asked.folder / f"{name}-minutes.json").read_text())
        share = len(learnt.networks) / len(visited(asked.folder, name))
        print(
            f"\n{learnt.provenance}: learnt from {len(learnt.table.rows)} blocks and "
            f"{len(learnt.networks)} networks, measured in {spent['blocks']:.1f} and, by their "
            f"share of all networks' time, {share * spent['networks']:.1f} minutes; "
            f"{again(visited(asked.folder, name))}"
        )
        for way, pairs in compared(asked.folder, name, asked.seed):
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
