"""`nas profile NAME...`: measures blocks and networks, here or on devices that are elsewhere."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from latency_models import campaign, exchange, fewshot, importers, store
from latency_models.affinity import pin
from latency_models.bench import CAREFUL
from latency_models.latency import Whole
from latency_models.measure import ADVICE, Target
from latency_models.provenance import Provenance
from latency_models.runtimes import CACHE, Subject
from latency_models.store import Measurements
from latency_models.table import Table
from latency_models.tpu.bench import TpuBench
from nas import describe, devices
from nas.commands import shown
from nas.devices import RuntimeName
from search_spaces.ops import Call
from search_spaces.sampling import draw, edited
from search_spaces.unet import lower


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures every distinct block of some networks, and the networks as a whole, and keeps what
    it measures in a file. Killed at any moment, the same command goes on."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Presets, and folders of pipelines or of U-Nets."""
    random: int = 0
    """How many U-Nets drawn at random from the whole space are measured, too."""
    edited: int = 0
    """How many U-Nets are measured, too, that random edits make of each that is named: what a
    search asks about."""
    seed: int = 0
    """Of these draws."""
    device: str | None = None
    """Price blocks for a TPU of `nas devices`, by XLA's compiler, in place of measuring here: what
    its table lacks is compiled, which takes the extra `tpu`."""
    runtime: RuntimeName | None = None
    """What runs them here, by default JAX's XLA."""
    batch: int = 1
    """Pictures in a call; a guided sampler asks for two."""
    cores: tuple[int, ...] = ()
    """Which of this machine's cores to use, by default all that the process may."""
    blocks_only: bool = False
    """Leave the networks as a whole out."""
    blocks: int | None = None
    """At most so many blocks, of every kind in turn; 0 measures networks as a whole alone."""
    like: tuple[str, ...] = ()
    """Other devices, as files of measurements, folders of models, or devices of `nas devices`: in
    place of random blocks, those are measured that say most of this device given what the others
    take. What the file holds already counts. `nas latency adapt` makes a model of it."""
    beside: Path | None = None
    """A file of measurements of this machine and runtime, whose pace is kept: some of its blocks,
    or networks, are measured again with every portion. By default the file's own."""
    minutes: float | None = None
    """Nothing is begun after so many minutes; blocks leave networks their part of them. Blocks that
    make up most of a network come first."""
    seconds: float = CAREFUL.seconds
    """Least time for what is measured in turns, up to 64 blocks or eight networks."""
    target: Target = dataclasses.field(default_factory=Target)
    """How sure every measurement has to be, and when it is given up."""
    out: Path | None = None
    """The file: by default one for this device and runtime under `~/.cache/nas/profiled`."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes networks and their distinct blocks as models, with a manifest and the commands that
    measure them on other devices."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Presets, and folders of pipelines or of U-Nets."""
    out: Path
    """Folder to write, which must not be there yet."""
    forms: tuple[Literal["onnx", "stablehlo", "litert"], ...] = ("onnx", "litert")
    """Formats of the models. LiteRT's converter gets an environment of its own at first use."""
    random: int = 0
    """How many U-Nets drawn at random from the whole space are written, too."""
    edited: int = 0
    """How many U-Nets are written, too, that random edits make of each that is named."""
    seed: int = 0
    """Of these draws."""
    batch: int = 1
    """Pictures in a call; a guided sampler asks for two."""
    blocks_only: bool = False
    """Leave the networks as a whole out."""


@dataclasses.dataclass(frozen=True)
class Import:
    """Reads what other tools measured: of a folder that `nas profile export` wrote, or one file,
    which is shown."""

    source: tyro.conf.Positional[Path]
    """The folder, its `results` filled by its scripts; or a file of a tool."""
    device: str = ""
    """The device's name, where the tools do not say it."""
    version: tuple[str, ...] = ()
    """Versions that they do not say, each as NAME=VALUE."""
    results: Path | None = None
    """Where the results are, if not in the folder."""
    assumed: float | None = None
    """Relative error of numbers that come without a spread."""
    form: str | None = None
    """A file's format, where it is not told by its content."""
    out: Path | None = None
    """Folder for the measurement files, one for each provenance: by default `measured` there."""


def run(arguments: list[str]) -> int:
    commands = {
        "export": _export,
        "import": _import,
        "show": shown.show,
        "operators": shown.operators,
    }
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](arguments[1:])
    return _measure(arguments)


def _measure(arguments: list[str]) -> int:
    asked = tyro.cli(Settings, args=arguments, prog="nas profile", description=_ABOUT)
    if asked.device:
        return _compile(asked, asked.device)
    if asked.cores:
        pin(asked.cores)
    runtime = devices.RUNTIMES[asked.runtime or "xla"]()
    here = runtime.provenance
    path = asked.out or store.file(CACHE / "profiled", here)
    print(f"{here}; cores {here.affinity or 'not told'}", flush=True)
    networks, blocks = _wanted(asked, path, here)
    done = campaign.measure(
        path,
        runtime,
        blocks,
        {} if asked.blocks_only else networks,
        dataclasses.replace(CAREFUL, seconds=asked.seconds, target=asked.target),
        beside=_beside(asked.beside, here) if asked.beside else None,
        minutes=asked.minutes,
        report=lambda line: print(f"  {line}", flush=True),
    )
    print(f"{done.measured} measured, {done.known} known before, {done.left} not come to")
    for name, reason in done.refused.items():
        print(f"refused: {name}: {reason}")
    if done.refused:
        print(f"Where it is noise: {ADVICE}. Then run the same command again.")
    print(f"file  {path}, which `nas profile show` lists")
    return 1 if done.refused else 0


def _beside(path: Path, here: Provenance) -> Measurements:
    """What is in the file. Raises `ValueError` where they were measured otherwise than `here`."""
    found = store.load(path)
    if differences := here.differences(found.provenance):
        raise ValueError(
            f"--beside {path} was measured otherwise ({'; '.join(differences)}): its pace says "
            "nothing of this runtime here"
        )
    if not found.yardsticks.rows:
        raise ValueError(
            f"--beside {path} does not say at which pace it was measured; files that `nas profile` "
            "began do"
        )
    return found


def _compile(asked: Settings, device: str) -> int:
    """Prices blocks by the compiler of a device that is not here."""
    clocked = {
        "--runtime": asked.runtime,
        "--cores": asked.cores,
        "--minutes": asked.minutes is not None,
        "--beside": asked.beside,
        "--seconds": asked.seconds != CAREFUL.seconds,
        "--target": asked.target != Target(),
    }
    if given := [name for name, value in clocked.items() if value]:
        raise ValueError(
            f"--device {device} {' '.join(given)}: nothing is measured there, so leave "
            f"{' and '.join(given)} out; or leave --device out to measure here"
        )
    bench = devices.bench(device)
    if not isinstance(bench, TpuBench):
        raise ValueError(
            f"there is no compiler to ask for {bench.provenance.device}: what is known of it is a "
            "model; `nas profile export NAME --out FOLDER` writes models with the commands that "
            "measure them there"
        )
    known = bench.provenance
    path = asked.out or store.file(CACHE, known)
    print(f"{known}; {dict(known.versions)['calibration']}", flush=True)
    networks, blocks = _wanted(asked, path, known)
    table = bench.table(blocks, _compiled)
    store.write(path, known, table)
    print(f"{len(table.rows)} blocks by the compiler; none was measured")
    if not asked.blocks_only and asked.blocks is None:
        for name, latency in zip(networks, bench.networks(list(networks.values())), strict=True):
            print(f"  {name}: {latency}, the calibrated sum of its blocks (not in the file)")
    print(f"file  {path}")
    return 0


def _compiled(doing: str, share: float) -> None:
    print(f"  {doing} {share:.0%}", flush=True)


def _wanted(asked: Settings, path: Path, known: Provenance) -> tuple[dict[str, Whole], list[Call]]:
    """The networks asked for by name, and their distinct blocks, or so many as are asked for, given
    those that the file at `path` has."""
    networks = _networks(asked)
    blocks = campaign.blocks(networks.values(), asked.seed)
    if asked.blocks is not None:
        if asked.blocks < 0:
            raise ValueError(f"--blocks {asked.blocks}: none or more can be measured")
        blocks = _chosen(asked, blocks, store.read(path, known).table)
    elif asked.like:
        raise ValueError("--like chooses blocks; say how many with --blocks, five to fifty")
    print(f"{len(blocks)} distinct blocks of {len(networks)} networks", flush=True)
    return networks, blocks


_ABOUT = f"""{Settings.__doc__}

`nas profile show` lists what such a file holds. `nas profile operators` says what each operator of
a network takes here. `nas profile export` and `nas profile import` measure on devices that are not
at hand."""


def _export(arguments: list[str]) -> int:
    asked = tyro.cli(Export, args=arguments, prog="nas profile export")
    networks = _networks(asked)
    names = {re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-"): w for name, w in networks.items()}
    if len(names) < len(networks):
        raise ValueError(f"names that are no different as files: {list(networks)}")
    blocks = {f"block-{i:03d}": call for i, call in enumerate(campaign.blocks(networks.values()))}
    subjects: dict[str, Subject] = {**blocks, **({} if asked.blocks_only else names)}
    writers = {form: _WRITERS[form] for form in asked.forms}
    exchange.write(asked.out, subjects, writers)
    print(f"{len(subjects)} models as {', '.join(writers)}; {asked.out / 'README.md'} says how on")
    return 0


_WRITERS: Mapping[str, exchange.Writer] = {
    "onnx": exchange.onnx,
    "stablehlo": exchange.stablehlo,
    "litert": exchange.litert(CACHE),
}


def _import(arguments: list[str]) -> int:
    asked = tyro.cli(Import, args=arguments, prog="nas profile import")
    if asked.source.is_file():
        of_folders = {
            "--device": asked.device,
            "--version": asked.version,
            "--results": asked.results,
            "--assumed": asked.assumed is not None,
            "--out": asked.out,
        }
        if given := [name for name, value in of_folders.items() if value]:
            raise ValueError(
                f"{asked.source} {' '.join(given)}: a file is only shown, as it does not say of "
                "which network it is; leave these out, or import the folder that `nas profile "
                "export` wrote with the file among its results"
            )
        for row in importers.read(asked.source, asked.form):
            print(f"{row.kind:<8} {row.ms:12.4f} ms {row.stat:<8} {row.op:<20} {row.name}")
        return 0
    if asked.form:
        raise ValueError(
            f"{asked.source} --form {asked.form}: a folder's manifest says the formats of its "
            "results; leave --form out, or give one file"
        )
    wrong = [text for text in asked.version if "=" not in text]
    if wrong:
        raise ValueError(f"--version {wrong[0]}: versions are given as NAME=VALUE")
    given = {f"version:{name}": v for name, _, v in (t.partition("=") for t in asked.version)}
    if asked.device:
        given["device"] = asked.device
    returned = exchange.read(asked.source, asked.results, given=given, assumed=asked.assumed)
    if not returned.rows:
        place = asked.results or asked.source / "results"
        raise ValueError(f"no results in {place}; {asked.source}/README.md says what makes them")
    out = asked.out or asked.source / "measured"
    grouped = exchange.tables(returned)
    for found in grouped:  # A file that cannot be added to is found before any is written.
        store.read(store.file(out, found), found)
    for found, (table, networks) in grouped.items():
        path = store.file(out, found)
        store.write(path, found, table, networks)
        print(f"{found}: {len(table.rows)} blocks and {len(networks)} networks\n  file  {path}")
    for tool, names in returned.missing.items():
        if names:
            print(f"{tool} did not measure {', '.join(names)}")
    return 0


def _chosen(asked: Settings, blocks: list[Call], known: Table) -> list[Call]:
    """As many of the blocks as asked for: the first, or those that teach most."""
    assert asked.blocks is not None
    if asked.like:
        kin = fewshot.learn(devices.tables(asked.like, blocks))
        return kin.choose(blocks, asked.blocks, known.rows)
    return blocks[: asked.blocks]


def _networks(asked: Settings | Export) -> dict[str, Whole]:
    """The networks asked for, by name, at the batch asked for."""
    if not asked.names and not asked.random:
        raise ValueError("no networks: give presets or folders, or --random COUNT")
    if asked.batch < 1 or min(asked.random, asked.edited) < 0:
        raise ValueError(
            f"--batch {asked.batch} --random {asked.random} --edited {asked.edited}: one or more "
            "are possible"
        )
    if asked.edited and not asked.names:
        raise ValueError(f"--edited {asked.edited} of nothing: give presets or folders")

    def rng(number: int) -> np.random.Generator:
        """Of each its own, so that a name is of one network whatever else is asked for."""
        return np.random.default_rng([asked.seed, number])

    found = {name: describe.find(name) for name in asked.names}
    found |= {
        f"{name}/edited/{asked.seed}/{number}": edited(rng(number), found[name])
        for name in asked.names
        for number in range(asked.edited)
    }
    found |= {f"random/{asked.seed}/{number}": draw(rng(number)) for number in range(asked.random)}
    suffix = f", batch {asked.batch}" if asked.batch > 1 else ""
    return {
        name + suffix: Whole(
            lower(spec),
            {
                key: jax.ShapeDtypeStruct((asked.batch, *shape.shape[1:]), shape.dtype)
                for key, shape in inputs.items()
            },
        )
        for name, (spec, inputs) in found.items()
    }
