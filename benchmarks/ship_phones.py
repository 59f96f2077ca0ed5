"""Fits the models of phones' GPUs that come with the project, on all rows there are.

`python -m benchmarks.ship_phones --data DIR` writes `latency_models/tables/NAME`, a folder for each
device and runtime, and prints what their cards say; `--show` prints that alone. `benchmarks.phones`
says how good such fits are.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import phone_data
from latency_models import phones, saved, trees
from latency_models.kernels import KINDS, strata
from latency_models.phones import Measured, PhoneGpu
from latency_models.provenance import Method
from latency_models.shipped import TABLES

SOURCE = "qed-usc/mobile-ml-benchmark, commit c864a33, MIT licence"
COVERAGE = 0.9
ASSUMED = (
    "A product by weights, and one of two activations with all its heads together, is priced as a "
    "convolution over one pixel.",
    "Element-wise operations that follow a convolution or product alone are linked into it; what "
    "has no link among the measured kernels counts as a multiplication. Where the runtime links "
    "nothing they are bound by memory.",
    "Reductions (of normalisations and softmax), transposes, copies, other element-wise "
    "operations, and concatenations where none was measured, are bound by memory: at the "
    "rate `element_ms` of concatenations, poolings and additions, read and written once.",
    "What it costs to start a network once is left out.",
)


def ship(
    device: str, runtime: str, networks: Sequence[Measured]
) -> tuple[PhoneGpu, dict[str, Any]]:
    """The model and its card."""
    fitted, far = phones.fit(networks), phones.beyond(networks)
    reach = phones.reach(networks)
    kernels = [kernel for network in networks for kernel in network.graph.kernels]
    ms = np.array([time for network in networks for time in network.kernels_ms])
    off, kinds = np.abs(fitted.kernels_ms / ms - 1), strata(kernels)
    whole = np.array([network.ms for network in networks])
    wrong = np.abs(fitted.networks_ms / whole - 1)
    logs = np.abs(np.log(ms / fitted.kernels_ms))
    model = PhoneGpu(
        fitted.predictor,
        phones.moving_ms(networks),
        reach.macs,
        reach.elements,
        float(np.sqrt(np.mean(far**2))),
        linking=any(kernel.links for kernel in kernels),
    )
    card = {
        "device": device,
        "runtime": runtime,
        "precision": "fp16" if runtime.startswith("TFLite") else "fp32",
        "attention": "products and a softmax, each kernel by itself",
        "method": str(Method.PREDICTED),
        "fitted on": f"{len(ms)} kernels and {len(networks)} whole networks, measured",
        "source": SOURCE,
        "error on networks left out, percent": {
            "kernels": _percent(off),
            "within 10": _percent(off < 0.1),
            "networks": _percent(wrong),
            "by kind": {KINDS[k]: _percent(off[kinds == k]) for k in np.unique(kinds)},
        },
        "in the 90 % interval of its kind, networks left out, percent": _percent(
            _covered(logs, kinds, [n.name for n in networks for _ in n.kernels_ms])
        ),
        "beyond the largest kernels": {
            "what": "the largest tenth of each kind, predicted from the rest",
            "percent off": _percent(np.abs(np.expm1(-far))),
            "ratio of measured to predicted, median": round(float(np.exp(np.median(far))), 3),
        },
        "assumed": list(ASSUMED),
        "written by": "python -m benchmarks.ship_phones",
        "versions": {name: version(name) for name in ("lightgbm", "numpy", "scipy")},
    }
    return model, card


def _percent(shares: np.ndarray) -> float:
    return round(100 * float(np.mean(shares)), 1)


def _covered(distances: np.ndarray, kinds: np.ndarray, owner: Sequence[str]) -> np.ndarray:
    """Which kernels lie in the interval that the other networks' errors make, kind by kind."""
    names, inside = np.array(owner), np.zeros(len(distances), bool)
    fold = {name: i % trees.FOLDS for i, name in enumerate(sorted(set(owner)))}
    folds = np.array([fold[name] for name in names])
    for kind in np.unique(kinds):
        for k in range(trees.FOLDS):
            mine = (kinds == kind) & (folds == k)
            others = distances[(kinds == kind) & (folds != k)]
            if mine.any() and len(others):
                inside[mine] = distances[mine] <= trees.conformal(others, COVERAGE)
    return inside


def name(device: str, runtime: str) -> str:
    """`google-pixel-4-tflite-gpu`."""
    kind = "tflite-gpu" if runtime.startswith("TFLite") else "pytorch-vulkan"
    return f"{device.partition(' (')[0].lower().replace(' ', '-')}-{kind}"


def show(folders: Sequence[Path]) -> None:
    """Prints the cards of the models in `folders`."""
    print(
        "| model | kernels MAPE | within 10 % | in 90 % interval | networks MAPE | larger kernels "
        "MAPE | size, KB |\n|---|---|---|---|---|---|---|"
    )
    for folder in folders:
        _, card = saved.load(folder)
        error = card["error on networks left out, percent"]
        inside = card["in the 90 % interval of its kind, networks left out, percent"]
        far = card["beyond the largest kernels"]["percent off"]
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e3
        print(
            f"| {folder.name} | {error['kernels']} | {error['within 10']} | {inside} "
            f"| {error['networks']} | {far} | {size:.0f} |"
        )


def main(data: Path, out: Path) -> None:
    for (device, runtime), networks in phone_data.read(data).items():
        model, card = ship(device, runtime, networks)
        saved.save(out / name(device, runtime), model, card)
        print(f"{name(device, runtime)} is written", flush=True)
    show(sorted(path.parent for path in out.glob(f"*/{saved.MODEL}")))


if __name__ == "__main__":
    parser = phone_data.arguments(str(__doc__))
    parser.add_argument("--out", type=Path, default=TABLES, help="where the folders are written")
    parser.add_argument("--show", action="store_true", help="print the cards of what is there")
    given = parser.parse_args()
    if given.show:
        show(sorted(path.parent for path in given.out.glob(f"*/{saved.MODEL}")))
    else:
        main(given.data, given.out)
