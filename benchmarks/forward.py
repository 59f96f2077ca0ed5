"""One pass of Stable Diffusion 1.5's U-Net on CPU: here, and in diffusers on PyTorch.

    python -m benchmarks.forward [--size 64] [--repeats 7]

Both hold the same random weights in float32 and read the same latents of one picture, in turns,
with malloc tuned alike (`nas.cli`); the outputs are compared. Then every distinct call of the
network is timed alone here, and the calls are summed by kind, which says where the time goes.
Prints Markdown; needs the `parity` extra and 10 GB of memory, and takes four minutes. Run it with
nothing else running.
"""

import importlib.util
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.loading import CONFIG
from nas.cli import tuned
from nas.diffusion import unet
from search_spaces.model import Weights, to_torch, torch_name
from search_spaces.ops import Shape
from search_spaces.program import Program, calls, network
from search_spaces.recording import compiled
from search_spaces.surgery import part
from search_spaces.unet import lower


def main(*, size: int = 64, repeats: int = 7) -> None:
    if importlib.util.find_spec("diffusers") is None:
        sys.exit("diffusers is not installed; pip install -e '.[parity]' has it")
    config = {**CONFIG, "sample_size": size}
    program = lower(unet.from_config(config))
    inputs = unet.shapes(config, batch=1, tokens=77)
    built = network(program, inputs)
    weights = built.initial(0)
    rng = np.random.default_rng(1)
    values = {
        name: rng.standard_normal(shape.shape).astype(shape.dtype) for name, shape in inputs.items()
    } | {"timestep": np.array([481.0], np.float32)}
    theirs = diffusers_on(config, weights, values)
    ours = jax.jit(built)
    given = {name: jnp.asarray(value) for name, value in values.items()}
    begun = time.perf_counter()
    found = np.asarray(ours(weights, given))
    compile_s = time.perf_counter() - begun
    wanted = theirs()
    error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    here, there = in_turns(lambda: ours(weights, given).block_until_ready(), theirs, repeats)
    ratios = [a / b for a, b in zip(here, there, strict=True)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}")
    print(f"\nOutputs differ by {error:.1e} of their scale. XLA compiled for {compile_s:.0f} s.\n")
    print("| | seconds a pass, median (least to most) |\n|---|---|")
    print(f"| nas on XLA | {spread(here)} |\n| diffusers on PyTorch | {spread(there)} |")
    print(f"| ratio, pass by pass | {spread(ratios)} |\n")
    print("| calls alone | number | seconds |\n|---|---|---|")
    seconds, counts = by_kind(program, inputs, weights, given)
    for kind, total in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {counts[kind]} | {total:.3f} |")


def diffusers_on(
    config: Mapping[str, Any], weights: Weights, values: Mapping[str, np.ndarray]
) -> Callable[[], np.ndarray]:
    """A pass of diffusers' U-Net with these weights on these values."""
    import diffusers  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    with torch.device("meta"):
        module = diffusers.UNet2DConditionModel.from_config(dict(config))
    state = {
        torch_name(n): torch.from_numpy(np.array(to_torch(n, np.asarray(w))))
        for n, w in weights.items()
    }
    module.load_state_dict(state, assign=True)
    module.eval()
    sample = torch.from_numpy(np.ascontiguousarray(values["sample"].transpose(0, 3, 1, 2)))
    step, context = (torch.from_numpy(values[name]) for name in ("timestep", "context"))

    def run() -> np.ndarray:
        with torch.inference_mode():
            return module(sample, step, context).sample.numpy().transpose(0, 2, 3, 1)

    return run


def in_turns(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, one after the other, after a pass of each that is not counted."""
    taken: tuple[list[float], list[float]] = [], []
    for repeat in range(repeats + 1):
        for function, found in zip((first, second), taken, strict=True):
            begun = time.perf_counter()
            function()
            if repeat:
                found.append(time.perf_counter() - begun)
    return taken


def by_kind(
    program: Program, inputs: Mapping[str, Shape], weights: Weights, given: Mapping[str, jax.Array]
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of all calls of an op at a resolution, each distinct call timed once, and numbers."""
    seconds: Any = Counter()
    counts: Any = Counter()
    alone = {}
    values = dict(given)
    for (name, call), step in zip(calls(program, inputs).items(), program, strict=True):
        own, reads = part(weights, name), [values[read] for read in step.reads]
        values[name] = compiled(call)(own, *reads).block_until_ready()
        if call not in alone:
            times = []
            for _ in range(3):
                begun = time.perf_counter()
                compiled(call)(own, *reads).block_until_ready()
                times.append(time.perf_counter() - begun)
            alone[call] = statistics.median(times)
        shape = values[name].shape
        kind = type(call.op).__name__ + (f" at {shape[1]}x{shape[2]}" if len(shape) == 4 else "")
        seconds[kind] += alone[call]
        counts[kind] += 1
    return seconds, counts


def spread(numbers: list[float]) -> str:
    return f"{statistics.median(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


if __name__ == "__main__":
    tuned("benchmarks.forward")
    tyro.cli(main)
