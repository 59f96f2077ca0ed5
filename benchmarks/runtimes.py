"""Predicts whole U-Nets on this machine's runtimes, learnt from half an hour of measuring each.

    python -m benchmarks.runtimes FOLDER [--runtimes xla onnxruntime litert] [--networks 100]

For every runtime: blocks of random U-Nets are measured, and some random U-Nets as a whole, within
`--minutes`; a model is fitted to these alone. Then other random U-Nets, `--networks` of them, are
measured as a whole and compared with what the model predicted, beside the plain sum of predicted
blocks and a line through multiply-accumulates. U-Nets are drawn from the whole space, from the size
of the embedded default to a quarter of SD-1.5. Everything measured is kept in FOLDER at once, so a
run that was interrupted goes on where it stopped. Let nothing else run meanwhile. With one core
pinned by `taskset -c 1`, `--compile` can run on another: it measures nothing, and compiles and
converts for the measurements to find.

Prints a table in Markdown, and draws predicted against measured.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
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
from nas.cli import tuned
from nas.devices import RUNTIMES, RuntimeName
from nas.report import plots
from search_spaces.blocks import Conv
from search_spaces.counting import macs
from search_spaces.ops import Call
from search_spaces.program import calls
from search_spaces.sampling import draw
from search_spaces.unet import lower

BLOCKS, LEARNT, HELD_OUT = 11, 12, 13  # Seeds: of the blocks, and of both kinds of networks.
PATIENCE = 20  # Times that it is tried again where the machine keeps another pace.
SHARE = 0.55  # Of the minutes, for blocks; the rest is for whole networks.
# Rounds are many and spread over more time than slow seconds last. The largest networks take
# seconds, so a round may be one run of each.
TARGET = Target(relative=0.03, limit_s=64.0)
BLOCK_PLAN = dataclasses.replace(CAREFUL, seconds=48.0, rounds=24, repeats=1, target=TARGET)
NETWORK_PLAN = dataclasses.replace(
    CAREFUL,
    seconds=32.0,
    rounds=12,
    repeats=1,
    warmup=1,
    target=dataclasses.replace(TARGET, limit_s=75.0),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    folder: tyro.conf.Positional[Path]
    runtimes: tuple[RuntimeName, ...] = tuple(RUNTIMES)
    networks: int = 100
    """Held-out networks."""
    minutes: float = 30.0
    """For measuring what is learnt from, compiling included."""
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


def by_size(found: Mapping[str, Whole]) -> dict[str, Whole]:
    """Smallest first, about: what is measured in turns takes about as long, and no turn waits for
    one."""

    def size(pair: tuple[str, Whole]) -> int:
        _, (program, inputs) = pair
        first = next(step.op for step in program if isinstance(step.op, Conv))
        return inputs["sample"].shape[1] * first.width

    return dict(sorted(found.items(), key=size))


@functools.cache
def learnt_blocks() -> list[Call]:
    return campaign.blocks(networks(BLOCKS, 60).values(), BLOCKS)


def compile_ahead(names: tuple[RuntimeName, ...], held_out: Mapping[str, Whole]) -> None:
    """Leaves what compilers make of everything that will be measured in their caches."""
    learnt = list(networks(LEARNT, 24).values())
    for subjects in (learnt_blocks()[:400], learnt, held_out.values()):
        for name in names:
            for subject in subjects:
                part = drawn(subject)
                rng = np.random.default_rng(0)
                values = {key: draw_input(rng, shape) for key, shape in part.inputs.items()}
                with contextlib.suppress(ValueError):  # Said where it is measured.
                    RUNTIMES[name]().load(part, values)
            print(f"compiled {len(subjects)} for {name}", flush=True)


def measure(asked: Settings, name: str, runtime: Runtime, held_out: Mapping[str, Whole]) -> None:
    """Measures what the runtime's files lack."""
    learnt = asked.folder / f"{name}-learnt.json"
    tested = asked.folder / f"{name}-held-out.json"
    stages = {
        "blocks": (SHARE, learnt_blocks, dict, BLOCK_PLAN),
        "networks": (1 - SHARE, list, lambda: networks(LEARNT, 60), NETWORK_PLAN),
    }
    # What was spent before an interruption counts, to the last portion that was kept.
    clock = asked.folder / f"{name}-minutes.json"
    spent = dict.fromkeys(stages, 0.0) | (json.loads(clock.read_text()) if clock.exists() else {})
    for stage, (share, what, wholes, plan) in stages.items():
        wanted, whole = what(), wholes()

        def attempt(
            stage: str = stage,
            minutes: float = share * asked.minutes,
            wanted: list[Call] = wanted,
            whole: Mapping[str, Whole] = whole,
            plan: Plan = plan,
        ) -> campaign.Done:
            begin, before = time.monotonic(), spent[stage]

            def told(line: str) -> None:
                spent[stage] = before + (time.monotonic() - begin) / 60
                clock.write_text(json.dumps(spent))
                print(f"{name}, {spent[stage]:.1f} minutes of {stage}: {line}", flush=True)

            left = max(0.0, minutes - before)
            return campaign.measure(
                learnt, runtime, wanted, whole, plan, compare=False, minutes=left, report=told
            )

        patiently(attempt)
    patiently(
        lambda: campaign.measure(
            tested,
            runtime,
            [],
            held_out,
            NETWORK_PLAN,
            beside=store.load(learnt),
            compare=False,
            report=lambda line: print(f"{name}, held out: {line}", flush=True),
        )
    )


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


def compared(folder: Path, name: str) -> Iterator[tuple[str, list[Pair]]]:
    """Yields ways to predict, and their predictions of the held-out networks."""
    learnt = store.load(folder / f"{name}-learnt.json")
    tested = store.load(folder / f"{name}-held-out.json")
    fitted = fitting.fit(learnt, fitting.gaussian_process)
    model = fitted.model
    for way, used in (
        ("learnt", model),
        ("sum of predicted blocks", model.alone),
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
    tuned("benchmarks.runtimes")  # As `nas profile` is.
    asked = tyro.cli(Settings, description=__doc__)
    asked.folder.mkdir(parents=True, exist_ok=True)
    lines, points = [], {}
    jax.config.update("jax_compilation_cache_dir", str(asked.folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    held_out = {} if asked.report else by_size(networks(HELD_OUT, asked.networks))
    if asked.compile:
        return compile_ahead(asked.runtimes, held_out)
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
