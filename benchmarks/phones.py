"""How well latencies on phones' GPUs are predicted, on networks left out.

`python -m benchmarks.phones --data DIR` reads measurements of 102 networks on each phone, leaves 20
of them out, fits on the rest and prints what the predictor makes of those 20, averaged over splits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import phone_data
from latency_models import phones
from latency_models.kernels import KINDS, Kind, strata, work
from latency_models.phones import Measured

SPLITS, HELD_OUT, NEAR, COVERAGE = 5, 20, 0.1, 0.9

# MAPE of kernels, share within 10 %, MAPE of convolutions by trees and by a roofline of three
# parameters, and MAPE of networks after one scale: gradient-boosted trees on thirteen features of
# the shapes, 102 networks, 20 left out; an earlier fit on the same data.
EARLIER = {
    "Google Pixel 4": (8.1, 73, 7.4, 31.2, 12.6),
    "Xiaomi Mi 8 SE": (7.8, 73, 6.3, 21.9, 14.0),
    "Samsung Galaxy A03s": (7.1, 78, 5.5, 14.6, 9.9),
    "Apple iPhone 7": (5.2, 87, 4.3, 13.6, 15.2),
}


class Scores(NamedTuple):
    """Percent, but for `summed`: measured kernels of a network over the network, the median."""

    kernels: float
    near: float
    covered: float
    convolutions: float
    roofline: float
    summed: float
    scaled: float
    networks: float
    networks_covered: float
    refused: float


def score(networks: Sequence[Measured], seed: int) -> Scores:
    """Fits on all but `HELD_OUT` networks, drawn by `seed`, and scores it on those."""
    order = np.random.default_rng(seed).permutation(len(networks))
    fitted = [networks[i] for i in order[HELD_OUT:]]
    known = {kernel.kind for network in fitted for kernel in network.graph.kernels}
    # What has a kind that no other network has is refused, not predicted.
    held = [
        networks[i]
        for i in order[:HELD_OUT]
        if {kernel.kind for kernel in networks[i].graph.kernels} <= known
    ]
    predictor = phones.fit(fitted).predictor

    kernels = [kernel for network in held for kernel in network.graph.kernels]
    ms = np.array([time for network in held for time in network.kernels_ms])
    predicted = np.array([latency.ms for latency in predictor.kernels(kernels)])
    off = np.abs(predicted / ms - 1)
    low, high = predictor.intervals(kernels, COVERAGE).T
    kinds = strata(kernels)
    conv = kinds == KINDS.index(Kind.CONV)
    roof = (work(kernels) * predictor.rooflines[kinds]).sum(axis=1)

    def summed(network: Measured) -> float:
        return sum(latency.ms for latency in predictor.kernels(network.graph.kernels))

    whole = np.array([network.ms for network in held])
    scale = np.median([network.ms / summed(network) for network in fitted])
    scaled = np.array([scale * summed(network) for network in held])
    corrected = np.array([predictor.network(network.graph).ms for network in held])
    width = predictor.overhead.distance[phones.trees.COVERAGES.index(COVERAGE)]
    return Scores(
        100 * off.mean(),
        100 * (off < NEAR).mean(),
        100 * ((low <= ms) & (ms <= high)).mean(),
        100 * off[conv].mean(),
        100 * np.abs(roof / ms - 1)[conv].mean(),
        float(np.median([sum(n.kernels_ms) / n.ms for n in networks])),
        100 * np.abs(scaled / whole - 1).mean(),
        100 * np.abs(corrected / whole - 1).mean(),
        100 * (np.abs(whole / corrected - 1) <= width).mean(),
        float(HELD_OUT - len(held)),
    )


def main(data: Path) -> None:
    print(
        f"{HELD_OUT} networks left out, mean of {SPLITS} splits; in brackets: an earlier fit.\n\n"
        "| device | kernels MAPE | within 10 % | in 90 % interval | conv MAPE | conv, roofline | "
        "sum of kernels / network | networks, one scale | networks MAPE | in 90 % interval "
        "| refused of 20 |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for (device, runtime), networks in phone_data.read(data).items():
        splits = np.array([score(networks, seed) for seed in range(SPLITS)])
        found = Scores(*splits.mean(axis=0))
        deviation = Scores(*splits.std(axis=0, ddof=1))
        name, said = device.partition(" (")[0], ["", "", "", "", ""]
        if runtime.startswith("TFLite") and name in EARLIER:
            said = [f" ({number:g})" for number in EARLIER[name]]
        print(
            f"| {name}, {' '.join(runtime.split()[:2])} "
            f"| {found.kernels:.1f} ± {deviation.kernels:.1f}{said[0]} "
            f"| {found.near:.0f}{said[1]} | {found.covered:.0f} "
            f"| {found.convolutions:.1f}{said[2]} | {found.roofline:.1f}{said[3]} "
            f"| {found.summed:.2f} | {found.scaled:.1f}{said[4]} "
            f"| {found.networks:.1f} ± {deviation.networks:.1f} | {found.networks_covered:.0f} "
            f"| {found.refused:g} |",
            flush=True,
        )


if __name__ == "__main__":
    main(phone_data.arguments(str(__doc__)).parse_args().data)
