"""The same blocks in XLA, ONNX Runtime and LiteRT, and what LiteRT's own words are worth.

    python -m benchmarks.spellings [--threads 1] [--relative 0.02] [--limit-s 60]

Blocks of Stable Diffusion's kinds at a small size, batch two as under guidance. All runtimes of a
block are measured in turns, each as sure as `--relative`, or said to be too noisy. "LiteRT, JAX's
words" is a plain conversion, without the respelling of `search_spaces.export.litert`. Prints
Markdown: medians with their 95 % intervals, what nine of ten runs kept to, how far outputs are from
JAX's, and where the time goes in LiteRT by operator. Pin it to a core: `taskset -c 0`, since the
threads of XLA are as many as the cores of the process.
"""

import collections
import dataclasses
from collections.abc import Mapping

import jax
import tyro

from latency_models.bench import CAREFUL
from latency_models.latency import Latency
from latency_models.measure import Plan, Target, TooNoisy, measure_all
from latency_models.provenance import cpu
from latency_models.runtimes import Loaded, Runtime
from latency_models.runtimes.litert import LiteRT
from latency_models.runtimes.onnxruntime import OnnxRuntime
from latency_models.runtimes.xla import XLA
from search_spaces.blocks import ResNet, Separable, Swish, Transformer, Upsample
from search_spaces.ops import Call

IMAGE = jax.ShapeDtypeStruct((2, 16, 16, 64), "float32")
TIME = jax.ShapeDtypeStruct((2, 256), "float32")
CONTEXT = jax.ShapeDtypeStruct((2, 77, 96), "float32")
ATTENDING = Transformer(heads=4, size=16, groups=8)
BLOCKS = {
    "ResNet": Call(ResNet(64, 8), (IMAGE, TIME)),
    "ResNet, separable": Call(ResNet(64, 8, convolution=Separable()), (IMAGE, TIME)),
    "transformer, GELU": Call(ATTENDING, (IMAGE, CONTEXT)),
    "transformer, swish": Call(dataclasses.replace(ATTENDING, gate=Swish()), (IMAGE, CONTEXT)),
    "upsampling": Call(Upsample(), (IMAGE,)),
}


def main(*, threads: int = 1, relative: float = 0.02, limit_s: float = 60.0) -> None:
    runtimes: Mapping[str, Runtime] = {
        "XLA": XLA(),
        "ONNX Runtime": OnnxRuntime(threads),
        "LiteRT": LiteRT(threads),
        "LiteRT, JAX's words": LiteRT(threads, respelled=False),
    }
    target = Target(relative=relative, limit_s=limit_s)
    plan = dataclasses.replace(CAREFUL, seconds=10.0, target=target)
    print(f"{cpu()}; " + "; ".join(f"{n}: {r.provenance.threads}" for n, r in runtimes.items()))
    print("threads.\n\n| block | runtime | ms (95 %) | p90 | off by |\n|---|---|---|---|---|")
    seen: dict[str, Loaded] = {}
    for name, call in BLOCKS.items():
        loaded = {which: runtime.prepare(call) for which, runtime in runtimes.items()}
        for which, latency in zip(loaded, found(list(loaded.values()), plan), strict=True):
            print(f"| {name} | {which} | {shown(latency)} | {loaded[which].difference:.0e} |")
        seen |= {f"{name} in {which}": loaded[which] for which in loaded if "LiteRT" in which}
    print("\n| block | three longest kinds of operators, share of the time |\n|---|---|")
    for name, block in seen.items():
        print(f"| {name} | {longest(block)} |")


def found(loaded: list[Loaded], plan: Plan) -> tuple[Latency | None, ...]:
    """Latencies, with none where one is too noisy to mean anything."""
    try:
        return tuple(measure_all([each.run for each in loaded], plan))
    except TooNoisy as noisy:
        return noisy.latencies


def shown(latency: Latency | None) -> str:
    if latency is None or latency.spread is None:
        return "too noisy | "
    low, high = latency.interval()
    return f"{latency.ms:.3f} ({low:.3f} to {high:.3f}) | {latency.spread.p90:.3f}"


def longest(loaded: Loaded) -> str:
    took: dict[str, float] = collections.defaultdict(float)
    for row in loaded.profile(50):
        took[row.kind] += row.ms
    most = sorted(took, key=lambda kind: -took[kind])[:3]
    return ", ".join(f"{kind} {took[kind] / sum(took.values()):.0%}" for kind in most)


if __name__ == "__main__":
    tyro.cli(main)
