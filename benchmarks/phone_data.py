"""Phone GPUs' latencies of qed-usc/mobile-ml-benchmark (MIT), as networks that were measured."""

import argparse
import csv
import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path

from latency_models.kernels import Graph, Kernel, Kind
from latency_models.phones import Measured

DATA = Path(__file__).parents[2] / "shared" / "data" / "devices"
KERNELS, NETWORKS = "phone_mobile_gpu_ops.csv.gz", "phone_mobile_e2e.csv.gz"

_TFLITE = {
    "CONV_2D": Kind.CONV,
    "CONV_2D_GROUP": Kind.GROUPED,
    "DEPTHWISE_CONV_2D": Kind.DEPTHWISE,
    "FULLY_CONNECTED": Kind.DENSE,
    "MEAN": Kind.MEAN,
    "MAX_POOL_2D": Kind.MAX_POOL,
    "AVERAGE_POOL_2D": Kind.AVERAGE_POOL,
    "CONCATENATION": Kind.CONCAT,
}
_TORCH = {
    "vulkan_prepack::run_conv2d_context": Kind.CONV,
    "vulkan_prepack::run_linear_context": Kind.DENSE,
    "vulkan_prepack::run_batchnorm_context": Kind.BATCH_NORM,
    "aten::adaptive_avg_pool2d": Kind.MEAN,
    "aten::avg_pool2d": Kind.AVERAGE_POOL,
    "aten::max_pool2d": Kind.MAX_POOL,
    "aten::add": Kind.ADD,
    "aten::mul": Kind.MUL,
    "aten::relu": Kind.RELU,
    "aten::clamp": Kind.CLAMP,
    "aten::sigmoid": Kind.SIGMOID,
    "aten::hardswish": Kind.HARD_SWISH,
}


def arguments(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=Path, default=DATA, help=f"where {KERNELS} is")
    return parser


def read(data: Path) -> dict[tuple[str, str], list[Measured]]:
    """The measured networks of each device and runtime, in the order of their names."""
    whole = {
        (row["dataset"].startswith("tflite"), row["device"], row["model"]): float(row["latency_ms"])
        for row in _rows(data / NETWORKS)
        if row["cores"] == "gpu" and row["dataset"] in ("tflite_cnn_e2e", "torch_cnn_e2e")
    }
    grouped: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = {}
    for row in _rows(data / KERNELS):
        models = grouped.setdefault((row["device"], row["runtime"]), {})
        models.setdefault(row["model"], []).append(row)
    return {
        (device, runtime): [
            _network(model, models[model], whole[runtime.startswith("TFLite"), device, model])
            for model in sorted(models)
            if (runtime.startswith("TFLite"), device, model) in whole
        ]
        for (device, runtime), models in sorted(grouped.items())
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def _network(name: str, rows: list[dict[str, str]], ms: float) -> Measured:
    tflite = rows[0]["op"] in _TFLITE
    kernels = tuple((_of_tflite if tflite else _of_torch)(row) for row in rows)
    unlisted, elements = _unlisted(rows, kernels) if tflite else (0, 0.0)
    times = tuple(float(row["latency_ms"]) for row in rows)
    return Measured(name, Graph(kernels, unlisted, elements), times, ms)


def _int(shapes: Mapping[str, object], name: str) -> int:
    value = shapes[name]
    return 1 if value == "-" else int(str(value)) or 1


def _of_tflite(row: dict[str, str]) -> Kernel:
    shapes, kind = json.loads(row["shapes"]), _TFLITE[row["op"]]
    links = tuple(re.findall(r"linked_:_([a-z_]+?)_\d+", row["kernel"]))
    side, channels = _int(shapes, "Input_shape"), _int(shapes, "Input_channel")
    if kind is Kind.MEAN:
        return Kernel(kind, side**2, 1, channels, channels, window=side, links=links)
    width = _int(shapes, "Filter")
    if kind is Kind.DENSE:
        return Kernel(kind, 1, 1, channels, width, links=links)
    out = _int(shapes, "Output_shape")
    if kind is Kind.CONCAT:  # Its column "Kernel" counts what is joined.
        joined = _int(shapes, "Kernel")
        return Kernel(kind, out**2, out**2, channels, width, inputs=joined, links=links)
    return Kernel(
        kind,
        side**2,
        out**2,
        channels,
        width if kind in (Kind.CONV, Kind.GROUPED) else channels,
        window=_int(shapes, "Kernel"),
        stride=_int(shapes, "Stride"),
        groups=_int(shapes, "Group") if kind is Kind.GROUPED else 1,
        links=links,
    )


def _unlisted(rows: list[dict[str, str]], kernels: tuple[Kernel, ...]) -> tuple[int, float]:
    """Nodes are numbered through a network; numbers that no row has are of nodes that no profile
    lists. Each is taken to have as many elements as the listed kernel after it reads."""
    numbered = sorted(
        ([int(n) for n in re.findall(r"_(\d+)(?=$|_linked)", row["kernel"])], i)
        for i, row in enumerate(rows)
    )
    count, elements, free = 0, 0.0, 0
    for numbers, i in numbered:
        gap, kernel = max(0, numbers[0] - free), kernels[i]
        wide = kernel.channels_out if kernel.kind is Kind.CONCAT else kernel.channels_in
        count, elements = count + gap, elements + float(gap * kernel.pixels_in * wide)
        free = max(free, *numbers) + 1
    return count, elements


def _of_torch(row: dict[str, str]) -> Kernel:
    shapes, kind = json.loads(row["shapes"]), _TORCH[row["op"]]
    if kind is Kind.DENSE:
        return Kernel(kind, 1, 1, int(shapes["input_shape"]), int(shapes["output_shape"]))
    side, channels = int(shapes["input_shape"]), int(shapes["input_channel"])
    if kind is Kind.CONV:
        width = int(shapes["output_channel"])
        groups = 1 if "conv2d_dw" in row["kernel"] else int(shapes["groups"])
        if "conv2d_dw" in row["kernel"]:
            kind = Kind.DEPTHWISE
        elif groups > 1:
            kind = Kind.GROUPED
        return Kernel(
            kind,
            side**2,
            int(shapes["output_shape"]) ** 2,
            channels,
            width,
            window=int(shapes["kernel_size"]),
            stride=int(shapes["stride"]),
            groups=groups,
        )
    if kind is Kind.AVERAGE_POOL and "output_shape" not in shapes:  # Over the whole picture.
        return Kernel(kind, side**2, 1, channels, channels, window=side)
    if kind in (Kind.MAX_POOL, Kind.AVERAGE_POOL):
        out, window = int(shapes["output_shape"]), int(shapes["kernel_size"])
        stride = int(shapes["stride"])
        return Kernel(kind, side**2, out**2, channels, channels, window=window, stride=stride)
    if kind is Kind.MEAN:
        return Kernel(kind, side**2, 1, channels, channels, window=side)
    inputs = 2 if kind in (Kind.ADD, Kind.MUL) else 1
    return Kernel(kind, side**2, side**2, channels, channels, inputs=inputs)
