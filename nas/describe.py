"""What an architecture is: its blocks in the form of SnapFusion's Table 3, and what they cost."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from latency_models.latency import Latency, LatencyModel
from nas.diffusion import unet
from nas.diffusion.folders import read_json
from search_spaces.blocks import ResNet, Transformer
from search_spaces.counting import NONE, Macs, activation_bytes, macs
from search_spaces.ops import Call, Op, model, options, output
from search_spaces.presets import PRESETS, Preset
from search_spaces.program import calls
from search_spaces.unet import UNetSpec, lower, stage_of_steps

OUTSIDE = "outside"
TOKENS = 77  # Of a prompt, where no text encoder says otherwise.
_KINDS = {Transformer: "Cross Attention", ResNet: "ResNet"}
_OTHERS = ("resample", "other")


class Row(NamedTuple):
    """Blocks of one kind in one stage, and what they cost together.

    `activations` are bytes, at the worst moment of any of them. `latency` is one call's, where a
    latency model was given.
    """

    stage: str
    shrunk: int | None  # By how much the latent's sides are divided.
    kind: str
    width: int
    blocks: int
    choices: str  # What is not as in SD.
    parameters: int
    macs: Macs
    activations: int
    latency: Latency | None


class Description(NamedTuple):
    """An architecture's rows. `latency` is the network's, where a latency model was given: with
    what it costs as a whole, which is no row's."""

    name: str
    rows: tuple[Row, ...]
    latency: Latency | None = None

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> Macs:
        return sum((row.macs for row in self.rows), NONE)

    @property
    def activations(self) -> int:
        return max(row.activations for row in self.rows)


def find(name: str) -> Preset:
    """The preset of that name, or the U-Net of a folder: a pipeline's, or a U-Net's own.

    Only configurations are read. Raises `ValueError` saying what there is.
    """
    if name in PRESETS:
        return PRESETS[name]()
    folder = Path(name)
    if not folder.is_dir():
        raise ValueError(f"{name} is neither a folder nor a preset; presets are {list(PRESETS)}")
    pipeline = (folder / "model_index.json").exists()
    config = read_json((folder / "unet" if pipeline else folder) / "config.json")
    tokens = TOKENS
    if pipeline:
        tokens = read_json(folder / "text_encoder" / "config.json")["max_position_embeddings"]
    return Preset(unet.from_config(config), unet.shapes(config, batch=1, tokens=tokens))


def describe(name: str, preset: Preset, device: LatencyModel | None = None) -> Description:
    """What the architecture has and costs, stage by stage."""
    spec, inputs = preset
    program = lower(spec)
    found, held = calls(program, inputs), activation_bytes(program, inputs)
    latent = inputs["sample"].shape[1]
    whole = device.predict(found.values()) if device else None
    parts = device.parts if device else None
    rows = []
    for (stage, kind), names in _grouped(spec, found).items():
        last = output(found[names[-1]]).shape
        rows.append(
            Row(
                stage,
                latent // last[1] if len(last) == 4 and stage != OUTSIDE else None,
                kind,
                last[-1],
                len(names),
                "; ".join(dict.fromkeys(filter(None, (choices(found[n].op) for n in names)))),
                sum(model(found[n]).size for n in names),
                sum((macs(found[n]) for n in names), NONE),
                max(held[n] for n in names),
                parts.predict(found[n] for n in names) if parts else None,
            )
        )
    return Description(name, tuple(rows), whole)


def _grouped(spec: UNetSpec, found: Mapping[str, Call]) -> dict[tuple[str, str], list[str]]:
    """Names of the steps by stage and kind; stages in their order, blocks before the resampling."""
    groups: dict[tuple[str, str], list[str]] = {}
    stages = dict(stage_of_steps(spec))
    order = [*dict.fromkeys(stages.values()), OUTSIDE]
    kinds = [*_KINDS.values(), *_OTHERS]
    keyed = [(stages.get(n, OUTSIDE), _kind(n, call.op), n) for n, call in found.items()]
    keyed.sort(key=lambda key: (order.index(key[0]), kinds.index(key[1])))
    for stage, kind, name in keyed:
        groups.setdefault((stage, kind), []).append(name)
    return groups


def _kind(name: str, op: Op) -> str:
    return _KINDS.get(type(op), "resample" if "samplers" in name else "other")


def choices(op: Op) -> str:
    """What of `op` is not as in Stable Diffusion, in words."""
    named = {field.name: field.default for field in dataclasses.fields(op)}  # pyright: ignore
    changed = {n: getattr(op, n) for n in options(op) if named[n] is not dataclasses.MISSING}
    return ", ".join(_said(n, value) for n, value in changed.items() if value != named[n])


def _said(name: str, value: object) -> str:
    words = name.replace("_", "-")
    if value is True:
        return words
    if value is False:
        return f"no {words}"
    return f"{words} {value}"


def tables(descriptions: Iterable[Description]) -> Table:
    """The descriptions beside each other, stage by stage, totals last."""
    shown = tuple(descriptions)
    timed = any(description.latency for description in shown)
    units = ("parameters, M", "MACs, G", "activations, MB", *(["ms"] if timed else []))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "latent", "type", "width"):
        table.add_column(name, justify="right" if name == "width" else "left", no_wrap=True)
    for description in shown:
        table.add_column(f"{description.name}\nblocks", justify="right", no_wrap=True)
        for name in units:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("not as in SD", min_width=24)
    places = {(row.stage, row.kind) for d in shown for row in d.rows}
    for stage, kind in sorted(places, key=_place):
        found = [
            next((row for row in d.rows if (row.stage, row.kind) == (stage, kind)), None)
            for d in shown
        ]
        first = next(row for row in found if row is not None)
        cells = [stage, f"/ {first.shrunk}" if first.shrunk else "", kind, str(first.width)]
        for row in found:
            blank = ["–"] + [""] * (len(units) + 1)
            cells += blank if row is None else [str(row.blocks), *_sizes(row, timed), row.choices]
        table.add_row(*cells)
    totals = [cell for d in shown for cell in ("", *_sizes(d, timed), "")]
    table.add_row("in all", "", "", "", *totals, style="bold")
    return table


_ORDER = ("Down", "Mid", "Up", OUTSIDE)


def _place(place: tuple[str, str]) -> tuple[int, str, int]:
    stage, kind = place
    return _ORDER.index(stage.partition("-")[0]), stage, (*_KINDS.values(), *_OTHERS).index(kind)


def _sizes(found: Row | Description, timed: bool) -> list[str]:
    cells = [
        f"{found.parameters / 1e6:.2f}",
        f"{found.macs.total / 1e9:.3f}",
        f"{found.activations / 1e6:.1f}",
    ]
    if timed:
        latency = found.latency
        cells.append("" if latency is None else f"{latency.ms:.3f} ± {latency.std:.3f}")
    return cells
