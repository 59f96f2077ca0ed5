"""Latencies on TPUs from XLA's TPU compiler, calibrated on published measurements.

    python -m benchmarks.tpu [--generations v3 v5e v6e] [--compile] [--whole sd15 ...]

Prints Markdown, from the tables that ship: which estimator predicts MobileDiffusion's Table 1 best
when each of its rows is left out in turn, what its SDXL and its SnapFusion can be, what every
preset takes, and how well calls add up to networks that were compiled as a whole.

With `--compile`, which needs libtpu (the `tpu` extra), it first compiles what the tables lack:
every call of every preset, SDXL's at a batch of two and 128x128 latents, and with `--whole` the
networks named; and writes the tables. A call takes seconds to minutes. Everything compiled is
appended to `--cache` at once, so a run that was interrupted goes on where it stopped.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from latency_models import published
from latency_models.calibrate import Calibrated, fit, leave_one_out
from latency_models.latency import Latency, Whole
from latency_models.runtimes import CACHE
from latency_models.tpu import tables
from latency_models.tpu.compiler import Cache, compile_all, versions
from latency_models.tpu.estimates import (
    ESTIMATORS,
    Estimates,
    Estimator,
    KernelRoofline,
    summed,
)
from latency_models.tpu.generations import Generation, generation
from latency_models.tpu.tables import Anchor, TpuTable
from search_spaces.actions import Remove
from search_spaces.counting import NONE, macs
from search_spaces.ops import Call, model
from search_spaces.presets import PRESETS, sdxl
from search_spaces.program import calls
from search_spaces.unet import inputs, lower

LARGE = "sdxl, batch 2, 128x128"


class Known(NamedTuple):
    """A latency that somebody measured on a TPU and published, of one of `NETWORKS`."""

    network: str
    ms: float
    source: str


def known(device: str, component: str, names: Mapping[str, str], steps: int) -> tuple[Known, ...]:
    """What is published of a device; `names` are our networks by the names of those published.

    A pipeline's latency is shared out to its `steps`.
    """
    rows = {
        row.model: row
        for row in published.read()
        if row.device == device and row.component == component
    }
    return tuple(
        Known(network, rows[name].latency_ms / steps, f"{rows[name].source}; {rows[name].note}")
        for name, network in names.items()
    )


TABLE_1 = {
    "sd1.4/1.5": "sd15",
    "sdxl": "sdxl",
    "snapfusion": "snapfusion-v3",
    "mobilediffusion": "mobile-diffusion",
    "mobilediffusion-lite": "mobile-diffusion-lite",
}
# Text encoders and decoder are in what is published of these.
OF_PIPELINES = ("pipeline per image per chip", {"sdxl-base-1.0": LARGE}, 20)
MEASURED: Mapping[str, tuple[Known, ...]] = {
    "v3": known("TPU v3", "unet", TABLE_1, 1),
    "v5e": known("TPU v5e-4", *OF_PIPELINES),
    "v6e": known("TPU v6e-4", *OF_PIPELINES),
}


def preset(name: str) -> Whole:
    spec, read = PRESETS[name]()
    return Whole(lower(spec), read)


def large() -> Whole:
    """SDXL at its own latent, both branches of guidance in a batch."""
    return Whole(lower(sdxl().spec), inputs(2, 128, 4, 77, 2048, pooled=1280))


def without_middle() -> Whole:
    """SDXL without the transformer of its middle: 60 of its 70 layers."""
    spec, read = sdxl()
    return Whole(lower(Remove("mid_block.attentions.0").apply(spec)), read)


NETWORKS: Mapping[str, Callable[[], Whole]] = {
    **{name: functools.partial(preset, name) for name in PRESETS},
    LARGE: large,
    "sdxl without its middle's transformer": without_middle,
}


def priced(name: str) -> tuple[Call, ...]:
    """The calls of a network, as they repeat."""
    return tuple(calls(*NETWORKS[name]()).values())


def measured(of: Iterable[Known]) -> list[tuple[tuple[Call, ...], Latency]]:
    """Published latencies as networks to calibrate on. They are printed to a tenth."""
    return [(priced(p.network), Latency(p.ms, 0.1 / math.sqrt(12))) for p in of]


def errors(left_out: Sequence[Latency], of: Sequence[Known]) -> np.ndarray:
    """Relative errors of what was predicted."""
    return np.array([found.ms / p.ms - 1 for found, p in zip(left_out, of, strict=True)])


def calibrated(estimates: Estimates, v3: Estimates) -> tuple[Calibrated, tuple[Anchor, ...]]:
    """The estimates, calibrated on what is published of their generation.

    With several networks the residual is what each is missed by when it is left out. One network
    says nothing of that, so it is what the same procedure misses on v3, `alone`, and how far the
    other estimators are off this one on the presets, `disagreement`: the two are independent.
    """
    anchored = MEASURED[estimates.generation.name]
    networks = measured(anchored)
    found = fit(estimates, networks)
    if len(anchored) > 1:
        left_out = leave_one_out(estimates, networks)
        missed = rms(errors(left_out, anchored))
        predicted = [round(latency.ms, 3) for latency in left_out]
    else:
        missed, predicted = math.hypot(rms(alone(v3)), rms(disagreement(estimates))), [None]
    anchors = (
        Anchor(p.network, p.ms, ms, p.source) for p, ms in zip(anchored, predicted, strict=True)
    )
    return replace(found, residual=max(found.residual, missed)), tuple(anchors)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def disagreement(estimates: Estimates) -> np.ndarray:
    """How far presets are from what `estimates` says of them by each of the other estimators, all
    calibrated alike; `[estimators, presets]`, relative."""
    networks = measured(MEASURED[estimates.generation.name])

    def by(estimator: Estimator) -> np.ndarray:
        model = fit(replace(estimates, estimator=estimator), networks)
        return np.array([model.predict(priced(name)).ms for name in PRESETS])

    others = [estimator for estimator in ESTIMATORS if estimator != estimates.estimator]
    return np.array([by(estimator) for estimator in others]) / by(estimates.estimator) - 1


def alone(v3: Estimates) -> np.ndarray:
    """Errors on v3's other networks of a factor that is taken from SDXL alone."""
    others = [p for p in MEASURED["v3"] if p.network != "sdxl"]
    factor = fit(v3, measured(p for p in MEASURED["v3"] if p.network == "sdxl"))
    return errors([factor.predict(priced(p.network)) for p in others], others)


def main(
    generations: tuple[str, ...] = (),
    compile: bool = False,
    whole: tuple[str, ...] = (),
    cache: Path = CACHE / "tpu.jsonl",
) -> None:
    """Prints what the tables say; with `compile`, makes them first.

    Args:
        generations: TPUs; those whose tables ship, and with `compile` all of which a latency is
            published, unless told otherwise. The error of the others takes v3's table.
        compile: Compile what is missing in the tables, and write them.
        whole: Presets to be compiled as a whole, too.
        cache: A file where what was compiled is kept.
    """
    generations = generations or (tuple(MEASURED) if compile else tables.names())
    if unknown := [name for name in generations if name not in MEASURED]:
        raise SystemExit(
            f"no published latency to calibrate on of {', '.join(unknown)}; "
            f"there are {', '.join(MEASURED)}"
        )
    if unknown := [name for name in whole if name not in NETWORKS]:
        raise SystemExit(f"no network {unknown[0]!r}; there are {', '.join(NETWORKS)}")
    if compile:
        for name in generations:
            make(generation(name), whole, Cache(cache))
    for name in generations:
        for line in report(tables.shipped(name)):
            print(line, flush=True)


def make(of: Generation, whole: Sequence[str], cache: Cache) -> None:
    """Compiles what is missing, and writes the table."""
    names = [*PRESETS, *(p.network for p in MEASURED[of.name])]
    wanted = [call for name in dict.fromkeys(names) for call in priced(name)]
    start = time.monotonic()

    def progress(_: str, share: float) -> None:
        print(f"TPU {of.name}: {share:.0%} after {time.monotonic() - start:.0f} s", flush=True)

    rows = tables.estimated(wanted, of, cache, progress)
    path = tables.FOLDER / f"tpu-{of.name}.json"
    before = tables.load(path) if path.exists() else None
    if before and dict(before.provenance.versions) == dict(versions()):
        whole = tuple(dict.fromkeys([*before.networks, *whole]))
    compiled = compile_all([NETWORKS[name]() for name in whole], of, cache, progress)
    networks = {name: summed(each, of) for name, each in zip(whole, compiled, strict=True)}
    estimates = Estimates(of, rows, KernelRoofline())
    v3 = estimates if of.name == "v3" else tables.shipped("v3").estimates
    model, anchors = calibrated(estimates, v3)
    source = " ".join(
        ["python -m benchmarks.tpu --compile --generations", of.name]
        + ["--whole", *networks] * bool(networks)
    )
    table = TpuTable(tables.provenance(of, versions(), source), model, anchors, networks)
    tables.write(path, table)


def report(table: TpuTable) -> Iterator[str]:
    """What a table says, as Markdown."""
    name = table.estimates.generation.name
    if name == "v3":
        yield from ["", "### TPU v3: Table 1, each row left out in turn", "", *left_out(table)]
        yield from ["", "### TPU v3: what Table 1 can mean", "", *readings(table)]
    yield from ["", *presets(table)]
    if len(table.anchors) == 1:
        yield from ["", f"### TPU {name}: by every estimator, calibrated alike, ms", ""]
        yield from opinions(table)
    if table.networks:
        yield from [
            "",
            f"### TPU {name}: calls, and the network as a whole",
            "",
            *additivity(table),
        ]


def left_out(table: TpuTable) -> Iterator[str]:
    anchored = MEASURED["v3"]
    networks = measured(anchored)
    yield "| estimator | calibration | " + " | ".join(p.network for p in anchored) + " | mean |"
    yield "|---|---|" + "---|" * (len(anchored) + 1)
    for estimator in ESTIMATORS:
        estimates = replace(table.estimates, estimator=estimator)
        for fixed_cost in (False, True):
            found = fit(estimates, networks, fixed_cost=fixed_cost)
            missed = errors(leave_one_out(estimates, networks, fixed_cost=fixed_cost), anchored)
            yield (
                f"| {type(estimator).__name__} | {_line(found)} | "
                + " | ".join(f"{error:+.1%}" for error in missed)
                + f" | {np.abs(missed).mean():.1%} |"
            )


def _line(found: Calibrated) -> str:
    return (
        f"{found.fixed_ms:.2f} ms + {found.scale:.3f} x"
        if found.fixed_ms
        else (f"{found.scale:.3f} x")
    )


# What Table 1 says of itself: millions of parameters, GMACs (it prints "GFLOPs").
SAID = {"sdxl": (2300, 710), "snapfusion-v3": (848, 285), "mobile-diffusion": (386, 182)}
READINGS = {
    "sdxl": ("sdxl", "sdxl without its middle's transformer"),
    "snapfusion-v3": ("snapfusion-v3", "snapfusion-deck"),
    "mobile-diffusion": ("mobile-diffusion", "mobile-diffusion-text"),
}


def readings(table: TpuTable) -> Iterator[str]:
    yield (
        "| reading | parameters, M (published) | MACs, G (published) | ms, published | predicted "
        "from the other four | mean error of the five with this reading |"
    )
    yield "|---|---|---|---|---|---|"
    for row, names in READINGS.items():
        for name in names:
            anchored = [p._replace(network=name) if p.network == row else p for p in MEASURED["v3"]]
            i = [p.network for p in anchored].index(name)
            found = leave_one_out(table.estimates, measured(anchored))
            missed = errors(found, anchored)
            size = sum(model(call).size for call in priced(name)) / 1e6
            work = sum((macs(call) for call in priced(name)), NONE).total / 1e9
            yield (
                f"| {name} | {size:.0f} ({SAID[row][0]}) | {work:.0f} ({SAID[row][1]}) | "
                f"{anchored[i].ms} | {found[i].ms:.1f} ({missed[i]:+.1%}) | "
                f"{np.abs(missed).mean():.1%} |"
            )


def presets(table: TpuTable) -> Iterator[str]:
    of, found = table.estimates.generation, table.model
    known = {p.network: f"{p.ms:.1f}" for p in MEASURED[of.name]}
    names = dict.fromkeys([*PRESETS, *known])
    yield (
        f"### TPU {of.name}: {_line(found)} the sum of the calls, ± {found.residual:.0%}, "
        f"from {len(table.anchors)} published"
    )
    yield ""
    yield "| network | ms | published |"
    yield "|---|---|---|"
    for name in names:
        ms = table.model.predict(priced(name))
        yield f"| {name} | {ms.ms:.1f} ± {ms.std:.1f} | {known.get(name, '')} |"


def opinions(table: TpuTable) -> Iterator[str]:
    networks = measured(MEASURED[table.estimates.generation.name])
    names = ("sd15", "sdxl", "snapfusion-v3", "mobile-diffusion", "mobile-diffusion-lite")
    yield "| estimator | before, of the published | " + " | ".join(names) + " |"
    yield "|---|---|" + "---|" * len(names)
    for estimator in ESTIMATORS:
        estimates = replace(table.estimates, estimator=estimator)
        found = fit(estimates, networks)
        ms = (found.predict(priced(name)).ms for name in names)
        before = estimates.predict(networks[0][0]).ms
        yield (
            f"| {type(estimator).__name__} | {before:.1f} | "
            + " | ".join(f"{each:.1f}" for each in ms)
            + " |"
        )


def additivity(table: TpuTable) -> Iterator[str]:
    of = table.estimates.generation
    yield "| network | estimator | calls, ms | as a whole, ms | calls / whole |"
    yield "|---|---|---|---|---|"
    for name, estimate in table.networks.items():
        for estimator in ESTIMATORS:
            parts = replace(table.estimates, estimator=estimator).predict(priced(name)).ms
            ms = estimator.ms(estimate, of)
            yield (
                f"| {name} | {type(estimator).__name__} | {parts:.2f} | {ms:.2f} | "
                f"{parts / ms:.3f} |"
            )


if __name__ == "__main__":
    tyro.cli(main)
