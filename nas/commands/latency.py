"""`nas latency fit | adapt | check | predict`: latency models from measurements."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table as Grid

from latency_models import check, fewshot, fitting, saved, store
from latency_models.check import Errors, Pair
from latency_models.store import Measurements
from latency_models.table import Table
from nas import describe, devices, plugins
from nas.report import plots
from search_spaces.program import calls
from search_spaces.unet import lower


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fits a model to measurements of one device and runtime, and says how wrong it is on a part
    of them that it had not seen."""

    measurements: tyro.conf.Positional[tuple[Path, ...]]
    """Files that `nas profile` wrote, all of one provenance."""
    out: Path
    """Folder for the model."""
    method: str = "gaussian"
    """One of `nas plugins`, or the import path of a function that fits a model. Ours: gaussian and
    trees, a Gaussian process or boosted trees over what each kind of work costs; rates, these costs
    alone; interpolation, a table between whose rows one may ask."""
    held_out: float = 0.2
    """Share of the calls and networks on which the errors are found."""
    seed: int = 0
    """Of the draw of that share."""


@dataclasses.dataclass(frozen=True)
class Adapt:
    """Makes a model of a device of which little was measured, from what other devices teach.

    `nas profile --like` says what to measure of it.
    """

    measurements: tyro.conf.Positional[tuple[Path, ...]]
    """Files that `nas profile` wrote on the new device, all of one provenance."""
    sources: tuple[str, ...]
    """Other devices, not this one: files of measurements, folders of models, devices of
    `nas devices`."""
    out: Path
    """Folder for the model."""


@dataclasses.dataclass(frozen=True)
class Check:
    """Says how wrong a model is on measurements, worst first, and draws how reliable it is.

    Where the measurements are of another device or other software than the model, it says so: the
    errors are of that, too.
    """

    model: tyro.conf.Positional[str]
    """A device of `nas devices`, or the folder of a model."""
    measurements: tyro.conf.Positional[Path]
    """File that `nas profile` wrote."""
    without: tuple[Path, ...] = ()
    """Files that the model was fitted to: what is in them, too, is left out."""
    worst: int = 10
    """How many of the worst predictions are listed."""
    out: Path | None = None
    """Folder for the plots, by default the model's, or one here by the name of the device."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Predicts the latency of an architecture."""

    model: tyro.conf.Positional[str]
    """A device of `nas devices`, or the folder of a model."""
    name: tyro.conf.Positional[str]
    """A preset, or the folder of a pipeline or of a U-Net."""
    caution: float = 1.0
    """The upper bound holds that many standard errors, as a search's constraint does."""


def run(arguments: list[str]) -> int:
    asked = tyro.cli(
        Annotated[Fit, tyro.conf.subcommand("fit")]
        | Annotated[Adapt, tyro.conf.subcommand("adapt")]
        | Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Predict, tyro.conf.subcommand("predict")],
        args=arguments,
        prog="nas latency",
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    console = Console(highlight=False, soft_wrap=True)
    match asked:
        case Fit():
            _fit(asked, console)
        case Adapt():
            _adapt(asked, console)
        case Check():
            _check(asked, console)
        case Predict():
            _predict(asked, console)
    return 0


def _fit(asked: Fit, console: Console) -> None:
    if not 0 < asked.held_out < 1:
        raise ValueError(f"--held-out {asked.held_out}: a share is between 0 and 1")
    found = fitting.together([store.load(path) for path in asked.measurements])
    fitted = fitting.fit(
        found,
        plugins.load("nas.latency_models", asked.method),
        held_out=asked.held_out,
        seed=asked.seed,
    )
    files = " ".join(map(str, asked.measurements))
    card = fitting.card(found, fitted, asked.method, f"nas latency fit {files}")
    saved.save(asked.out, fitted.model, card)
    console.print(f"{found.provenance}: {card['calls']} calls, {card['networks']} networks")
    rows = {f"calls of {name.split(':')[1]}": e for name, e in fitted.kinds.items()}
    _show({"held-out calls": fitted.calls, **rows, "held-out networks": fitted.networks}, console)
    console.print(f"model  {asked.out}")


def _adapt(asked: Adapt, console: Console) -> None:
    found = fitting.together([store.load(path) for path in asked.measurements])
    for name in asked.sources:
        if found.provenance == devices.source(name):
            raise ValueError(
                f"--sources {name} is of the device itself ({found.provenance}), so what is left "
                "out to find errors would be known; give other devices there, and this one's "
                "measurements before --sources"
            )
    kin = fewshot.learn(devices.tables(asked.sources, found.table.rows))
    fitted = fewshot.fit(found, kin)
    names, files = " ".join(asked.sources), " ".join(map(str, asked.measurements))
    card = fitting.card(
        found,
        fitted,
        f"few-shot transfer from {len(asked.sources)} devices",
        f"nas latency adapt {files} --sources {names}",
    )
    saved.save(asked.out, fitted.model, card)
    console.print(f"{found.provenance}: {card['calls']} calls, {card['networks']} networks")
    _show({"calls left out": fitted.calls, "networks left out": fitted.networks}, console)
    console.print(f"model  {asked.out}")


def _check(asked: Check, console: Console) -> None:
    model, _ = devices.find(asked.model)
    found = _unseen(store.load(asked.measurements), asked.without)
    there = devices.source(asked.model)
    console.print(f"model     {there}\nmeasured  {found.provenance}")
    if differences := found.provenance.differences(there):
        console.print(f"These differ, which is among the errors: {'; '.join(differences)}")
    priced, refused = check.of_calls(model.alone, found.table)
    whole, not_priced = check.of_networks(model, found.networks)
    kinds = check.by_kind(model.alone, found.table)
    rows = {f"calls of {name.split(':')[1]}": e for name, e in kinds.items()}
    whole_errors = check.errors(whole) if whole else None
    _show(
        {"calls": check.errors(priced) if priced else None, **rows, "networks": whole_errors},
        console,
    )
    if refused or not_priced:
        console.print(
            f"refused, as their kinds were not measured: {len(refused)} calls, "
            f"{len(not_priced)} networks"
        )
    _list("worst networks", check.worst(whole, asked.worst), console)
    _list("worst calls", check.worst(priced, asked.worst), console)
    both = {name: pairs for name, pairs in (("calls", priced), ("networks", whole)) if pairs}
    out = asked.out or Path(asked.model)
    out.mkdir(parents=True, exist_ok=True)
    sure = plots.reliability({name: check.reliability(pairs) for name, pairs in both.items()})
    (out / "reliability.svg").write_text(sure)
    points = {n: [(p.measured.ms, p.predicted.ms) for p in pairs] for n, pairs in both.items()}
    (out / "agreement.svg").write_text(plots.agreement(points))
    console.print(f"\nplots  {out / 'reliability.svg'}, {out / 'agreement.svg'}")


def _unseen(found: Measurements, files: tuple[Path, ...]) -> Measurements:
    """What was measured that is in none of the files. Raises `ValueError` where that is nothing."""
    seen = [store.load(path) for path in files]
    calls = {call for known in seen for call in known.table.rows}
    wholes = [network.whole for known in seen for network in known.networks]
    rows = {call: row for call, row in found.table.rows.items() if call not in calls}
    networks = tuple(network for network in found.networks if network.whole not in wholes)
    if not rows and not networks:
        raise ValueError(f"all that was measured is in {' '.join(map(str, files))}, too")
    return Measurements(found.provenance, Table(rows), networks)


def _predict(asked: Predict, console: Console) -> None:
    model, _ = devices.find(asked.model)
    spec, inputs = describe.find(asked.name)
    found = model.predict(calls(lower(spec), inputs).values())
    console.print(f"{asked.name} on {asked.model}: {found} (predicted)")
    bound = found.ms + asked.caution * found.std
    console.print(f"upper bound, {asked.caution:g} standard errors above: {bound:.3f} ms")


def _show(rows: dict[str, Errors | None], console: Console) -> None:
    grid = Grid(box=None)
    grid.add_column("")
    for name in ("rows", "MAPE", "within 10%", "90% intervals hold", "bias", "Spearman"):
        grid.add_column(name, justify="right")
    for name, e in rows.items():
        if e is None:
            grid.add_row(name, "0", "-", "-", "-", "-", "-")
            continue
        shares = (f"{e.mape:.1%}", f"{e.within_10:.0%}", f"{e.coverage:.0%}", f"{e.bias:+.1%}")
        rank = "-" if e.spearman is None else f"{e.spearman:.3f}"
        grid.add_row(name, str(e.pairs), *shares, rank)
    console.print(grid)


def _list(title: str, pairs: list[Pair], console: Console) -> None:
    if not pairs:
        return
    console.print(f"\n{title}:")
    for pair in pairs:
        both = f"predicted {pair.predicted}, measured {pair.measured}"
        console.print(f"  {pair.error:+7.1%}  {both}  {pair.name}")
