"""How long a U-Net of SD-1.5's size takes from its folder into a process, here and in diffusers.

    python -m benchmarks.loading [--repeats 7]

Makes folders of 860 million random weights in float16 and in float32, and loads each in two ways,
in turns, every time in a process of its own that has imported all it needs:

- built: `nas.diffusion.unet.load` and `UNet2DConditionModel.from_pretrained` return; what is mapped
  from the file need not have been read;
- ready: all weights are in memory as float32, and here the network is traced and the weights are
  checked against it.

Files are in the page cache. Prints Markdown; needs the `parity` extra, 6 GB of disk and 8 GB of
memory, and takes some minutes. Run it with nothing else running.
"""

import importlib.util
import itertools
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from nas.diffusion import express, unet
from nas.diffusion.folders import read_weights
from search_spaces.model import Model
from search_spaces.presets import sd15
from search_spaces.program import network
from search_spaces.unet import lower

CONFIG: Mapping[str, Any] = {
    "_class_name": unet.THEIRS,
    "sample_size": 64,
    "in_channels": 4,
    "cross_attention_dim": 768,
    **express.settings(sd15().spec),
}
STORED = ("float16", "float32")
# Without accelerate, diffusers loads in its slow way, which is not its default.
LIBRARIES = ("jax", "torch", "diffusers", "accelerate")


class Sample(NamedTuple):
    """One loading: how long it took, and then the process's memory."""

    seconds: float
    peak: float  # GB, mapped files included.
    own: float  # GB that are no file's.


def main(*, repeats: int = 7) -> None:
    for library in LIBRARIES:
        if not importlib.util.find_spec(library):
            sys.exit(
                f"benchmarks.loading compares with diffusers, but {library} is not installed; "
                "install what it needs by: pip install -e '.[parity]'"
            )
    if not Path("/proc/self/status").exists():
        sys.exit("benchmarks.loading reads memory off /proc/self/status, which only Linux has")
    with tempfile.TemporaryDirectory() as place:
        folders = {dtype: Path(place) / dtype for dtype in STORED}
        write(folders)
        print(f"wrote {len(folders)} folders", file=sys.stderr)
        report(
            {
                (dtype, what): in_turns(folder, what == "ready", repeats)
                for (dtype, folder), what in itertools.product(folders.items(), ("built", "ready"))
            }
        )


def write(folders: Mapping[str, Path]) -> None:
    """Writes a U-Net of random weights to every folder, in the precision it is called by."""
    spec, rng = unet.from_config(CONFIG), np.random.default_rng(0)
    weights = {
        name: jax.numpy.asarray(0.02 * rng.standard_normal(shape.shape, np.float32))
        for name, shape in model(CONFIG).shapes.items()
    }
    for dtype, folder in folders.items():
        unet.save(folder, spec, weights, CONFIG, dtype=dtype)


def model(config: Mapping[str, Any]) -> Model:
    return network(lower(unet.from_config(config)), unet.shapes(config, batch=1, tokens=77))


def in_turns(folder: Path, ready: bool, repeats: int) -> dict[str, list[Sample]]:
    """Samples of both, after one of each that is not kept."""
    samples: dict[str, list[Sample]] = {"nas": [], "diffusers": []}
    for number in range(repeats + 1):
        for name, load in (("nas", ours), ("diffusers", theirs)):
            sample = alone(load, folder, ready)
            if number:
                samples[name].append(sample)
        print(f"{folder.name}, ready={ready}: {number} of {repeats}", file=sys.stderr)
    return samples


def alone(load: Callable[[Path, bool], Sample], folder: Path, ready: bool) -> Sample:
    """`load` in a process that has done nothing yet."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(load, folder, ready).result()


def ours(folder: Path, ready: bool) -> Sample:
    jax.block_until_ready(jax.numpy.zeros(1))  # The backend starts.
    begun = time.perf_counter()
    found = unet.load(folder)
    kept = read_weights(folder, model(found.config).shapes) if ready else found
    seconds = time.perf_counter() - begun
    assert len(found.weights) == 686 and kept
    return sample(seconds)


def theirs(folder: Path, ready: bool) -> Sample:
    torch, diffusers = (importlib.import_module(name) for name in ("torch", "diffusers"))
    kind = diffusers.UNet2DConditionModel  # Importing it is no part of loading.
    begun = time.perf_counter()
    found = kind.from_pretrained(folder, torch_dtype=torch.float32)
    if ready:
        for parameter in found.parameters():
            parameter.data = parameter.data.clone()  # Or it might stay in the file.
    seconds = time.perf_counter() - begun
    assert sum(1 for _ in found.parameters()) == 686
    return sample(seconds)


def sample(seconds: float) -> Sample:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    memory = {line[0]: int(line[1]) / 1e6 for line in lines if line[0] in ("VmHWM:", "RssAnon:")}
    return Sample(seconds, memory["VmHWM:"], memory["RssAnon:"])


def report(found: Mapping[tuple[str, str], Mapping[str, list[Sample]]]) -> None:
    versions = (f"{name} {importlib.import_module(name).__version__}" for name in LIBRARIES)
    repeats = len(next(iter(found.values()))["nas"])
    print(f"{', '.join(versions)}, {platform.machine()}, medians of {repeats} in turns\n")
    print(
        "| stored as | until | nas, s | diffusers, s | nas / diffusers | nas, GB | diffusers, GB |"
    )
    print("|---|---|---|---|---|---|---|")
    for (dtype, what), samples in found.items():
        seconds = {name: [s.seconds for s in many] for name, many in samples.items()}
        ratios = np.divide(seconds["nas"], seconds["diffusers"])
        cells = [dtype, what, *(spread(seconds[name], 3) for name in samples), spread(ratios, 2)]
        cells += [
            f"{max(s.peak for s in many):.1f} ({np.median([s.own for s in many]):.1f})"
            for many in samples.values()
        ]
        print(f"| {' | '.join(cells)} |")
    print("\nIn brackets, the lowest and the highest; of memory, what is no mapped file's.")


def spread(values: Any, digits: int) -> str:
    low, median, high = np.quantile(values, [0.0, 0.5, 1.0])
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
