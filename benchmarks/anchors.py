"""Devices of which only whole U-Nets were published: one factor on a fitted model, and its error.

`python -m benchmarks.anchors` prints, for each shipped model, how far one published U-Net is from
what the others of its device say, beside a factor on multiply-accumulates. The model with the least
error is the base of all those devices; `--write` stores their factors.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from latency_models import published, saved, shipped
from latency_models.latency import LatencyModel
from latency_models.lowering import graph
from latency_models.phones import PhoneGpu, Reach
from latency_models.provenance import Method
from latency_models.published import Published
from search_spaces import presets
from search_spaces.blocks import Transformer
from search_spaces.counting import macs
from search_spaces.ops import Call
from search_spaces.presets import GROUPS, HEAD, Level, Preset
from search_spaces.program import calls
from search_spaces.unet import inputs, lower


def sd21() -> Preset:
    """Stable Diffusion 2.1: heads of 64 channels, linear projections, a context of 1024."""

    def levels(widths: tuple[int, ...], resnets: int, transformers: tuple[int, ...]) -> list[Level]:
        return [
            Level(width, resnets, count, Transformer(width // HEAD, HEAD, GROUPS, linear=True))
            for width, count in zip(widths, transformers, strict=True)
        ]

    widths = (320, 640, 1280, 1280)
    spec = presets.unet(
        levels(widths, 2, (2, 2, 2, 0)),
        (2, 1),
        levels(widths[::-1], 3, (0, 3, 3, 3)),
        bottom=Transformer(1280 // HEAD, HEAD, GROUPS, linear=True),
    )
    return Preset(spec, inputs(1, 64, 4, 77, 1024))


UNETS: Mapping[str, Callable[[], Preset]] = {
    "sd1.5": presets.sd15,
    "ufogen (SD arch)": presets.sd15,
    "sd2.1": sd21,
    "sd2.1-base": sd21,
    "sdxl-base-1.0": presets.sdxl,
    "sdxl-base-1.0-ios": presets.sdxl,
    "snapfusion": presets.snapfusion_deck,
    "mobilediffusion": presets.mobile_diffusion,
    "mobilediffusion-lite": presets.mobile_diffusion_lite,
}


class Group(NamedTuple):
    """Published U-Nets that one factor stands for."""

    about: str
    holds: Callable[[Published], bool]
    mixed: bool = False  # Some ran by other spellings than others, which no factor can know.


def _chip(chip: str, runtime: str) -> Callable[[Published], bool]:
    return lambda row: row.chip == chip and row.runtime == runtime


def _device(device: str, prefix: str = "") -> Callable[[Published], bool]:
    return lambda row: row.device == device and row.model.startswith(prefix)


_NE, _ANE = "Core ML CPU_AND_NE", "the Neural Engine by Apple's own export"
GROUPS_OF: Mapping[str, Group] = {
    "apple-a14-neural-engine": Group(f"A14 (iPhone 12), {_ANE}", _chip("A14", _NE)),
    "apple-a15-neural-engine": Group(f"A15 (iPhone 13 and 14), {_ANE}", _chip("A15", _NE)),
    "apple-a16-neural-engine": Group(f"A16 (iPhone 14 Pro Max), {_ANE}", _chip("A16", _NE)),
    "apple-a17-pro-neural-engine": Group(
        f"A17 Pro (iPhone 15 Pro Max), {_ANE}", _chip("A17 Pro", _NE)
    ),
    "apple-m1-neural-engine": Group(f"M1 (iPad Pro), {_ANE}", _chip("M1", _NE)),
    "apple-m2-neural-engine": Group(f"M2 (iPad Pro), {_ANE}", _chip("M2", _NE)),
    "iphone-14-pro": Group(
        "as the authors of SnapFusion ran it", _device("iPhone 14 Pro"), mixed=True
    ),
    "iphone-15-pro": Group(
        "as the authors of MobileDiffusion ran it", _device("iPhone 15 Pro"), mixed=True
    ),
    "iphone-15-pro-mobilediffusion": Group(
        "as the authors of MobileDiffusion ran their own networks",
        _device("iPhone 15 Pro", "mobilediffusion"),
    ),
    "galaxy-s24-hexagon": Group("AI Hub, w8a16", _device("Samsung Galaxy S24")),
    "galaxy-s25-hexagon": Group("AI Hub, w8a16", _device("Samsung Galaxy S25")),
    "snapdragon-8-elite-gen-5-hexagon": Group(
        "AI Hub, w8a16", _device("Snapdragon 8 Elite Gen 5 QRD")
    ),
    "snapdragon-7-gen-4-hexagon": Group("AI Hub, w8a16", _device("Snapdragon 7 Gen 4 QRD")),
    "qcs8550-hexagon": Group("AI Hub, w8a16", _device("QCS8550 (Proxy)")),
    "snapdragon-x-elite-hexagon": Group("AI Hub, w8a16", _device("Snapdragon X Elite CRD")),
    "snapdragon-x2-elite-hexagon": Group("AI Hub, w8a16", _device("Snapdragon X2 Elite CRD")),
}


def network(row: Published) -> list[Call]:
    """The calls of the U-Net of `row`, at its batch and resolution."""
    preset = UNETS[row.model]()
    shapes = {}
    for name, shape in preset.inputs.items():
        sizes = [row.batch, *shape.shape[1:]] if shape.shape else []
        if len(sizes) == 4:
            sizes[1:3] = [row.resolution // 8] * 2
        shapes[name] = jax.ShapeDtypeStruct(tuple(sizes), shape.dtype)
    return list(calls(lower(preset.spec), shapes).values())


def left_out(logs: np.ndarray) -> np.ndarray:
    """Of each logarithm of measured over predicted, how far it is from the mean of the others."""
    if len(logs) < 2:
        return np.array([])
    return (logs - logs.mean()) * len(logs) / (len(logs) - 1)


def main(write: bool) -> None:
    rows = [row for row in published.read() if row.component in ("unet", "unet_step")]
    groups = {
        name: [row for row in rows if group.holds(row) and row.model in UNETS]
        for name, group in GROUPS_OF.items()
    }
    models: dict[str, LatencyModel] = {
        path.parent.name: saved.load(path.parent)[0]
        for path in sorted(shipped.TABLES.glob(f"*/{saved.MODEL}"))
    }
    cells: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in (row for group in groups.values() for row in group):
        key = row.model, row.batch, row.resolution
        if key not in cells:
            found = network(row)
            cells[key] = {name: model.predict(found).ms for name, model in models.items()}
            cells[key]["multiply-accumulates"] = sum(macs(call).total for call in found) / 1e9

    def logs(base: str, name: str) -> np.ndarray:
        """Logarithms of measured over predicted, one for each U-Net of a device."""
        found: dict[tuple[str, int, int], list[float]] = {}
        for row in groups[name]:
            key = row.model, row.batch, row.resolution
            found.setdefault(key, []).append(math.log(row.latency_ms / cells[key][base]))
        return np.array([np.mean(values) for values in found.values()])

    def off(base: str, *, mixed: bool) -> float:
        names = [name for name in groups if mixed or not GROUPS_OF[name].mixed]
        return _rms(np.concatenate([left_out(logs(base, name)) for name in names]))

    print(
        "| base | factor off, one U-Net left out | with devices that ran U-Nets in several ways |\n"
        "|---|---|---|"
    )
    for base in [*models, "multiply-accumulates"]:
        one, several = (math.exp(off(base, mixed=mixed)) for mixed in (False, True))
        print(f"| {base} | {one:.3f} | {several:.3f} |")
    base = min(models, key=lambda name: off(name, mixed=False))
    print(f"\nFactors on {base}.\n\n| device | U-Nets | factor | off, one left out |")
    print("|---|---|---|---|")
    stored = {}
    for name, group in groups.items():
        found = logs(base, name)
        own = left_out(found)
        # Two U-Nets that agree by chance prove little: never better than devices are at large.
        spread = max(_rms(own), _pooled(base, name, groups, logs))
        scale = math.exp(found.mean())
        said = f"x {math.exp(spread):.2f}" + (
            "" if len(own) and spread == _rms(own) else " (of others)"
        )
        unets = ", ".join(dict.fromkeys(row.model for row in group))
        print(f"| {name} | {unets} | {scale:.4f} | {said} |")
        stored[name] = {
            "base": base,
            "scale": scale,
            # Standard deviation of a log-normal error, as a share.
            "residual": math.sqrt(math.expm1(spread**2)),
            "card": {
                "device": " / ".join(dict.fromkeys(row.device for row in group)),
                "about": GROUPS_OF[name].about,
                "method": str(Method.PREDICTED),
                "anchors": [
                    f"{row.model} {row.resolution} px, batch {row.batch}: {row.latency_ms:g} ms "
                    f"({row.runtime}, {row.precision or 'precision not stated'}, "
                    f"{row.attention or 'attention not stated'}; {row.source})"
                    for row in group
                ],
                "factor off, one anchor left out": round(math.exp(spread), 3),
                "which is the error of its own anchors": bool(len(own) and spread == _rms(own)),
                "assumed": f"kernels take the same shares of time as on {base}; nothing else of "
                "this device was measured",
                "written by": "python -m benchmarks.anchors --write",
            },
        }
    print(f"\nOf the multiply-accumulates of SD-1.5's kernels {_beyond(models):.0%} are in kernels")
    print("larger than any of their kind that was measured, on the model where that is least.")
    if write:
        shipped.ANCHORED.write_text(json.dumps(stored, indent=1) + "\n")


def _beyond(models: Mapping[str, LatencyModel]) -> float:
    preset = presets.sd15()
    kernels = [
        kernel
        for call in calls(lower(preset.spec), preset.inputs).values()
        for kernel in graph(call).kernels
    ]
    total = sum(kernel.macs for kernel in kernels)
    shares = []
    for model in models.values():
        assert isinstance(model, PhoneGpu)
        reach = Reach(model.macs, model.elements)
        shares.append(sum(k.macs for k in kernels if reach.beyond(k)) / total)
    return min(shares)


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0


def _pooled(
    base: str,
    name: str,
    groups: Mapping[str, list[Published]],
    logs: Callable[[str, str], np.ndarray],
) -> float:
    """The error of all devices, or of those with the same runtime where that is larger."""
    runtime = groups[name][0].runtime
    single = [other for other in groups if not GROUPS_OF[other].mixed]
    like = [other for other in single if groups[other][0].runtime == runtime]
    return max(
        _rms(np.concatenate([left_out(logs(base, other)) for other in found]))
        for found in (single, like)
        if found
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="store the factors with the project")
    main(parser.parse_args().write)
