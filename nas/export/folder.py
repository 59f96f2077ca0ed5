"""An exported network's folder: its files, a manifest that says what they are, and the proof that
they compute what the original does."""

import hashlib
import importlib
import importlib.util
import math
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from nas.diffusion.clip import TokenEmbedding
from nas.diffusion.folders import write_json
from nas.export import MANIFEST
from nas.export.part import Part
from search_spaces.ops import Shape

To = Literal["stablehlo", "onnx"]

CLOSE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}
"""How far a sound export may be off, relative to the output's largest value: twice a network's
rounding errors, as two runtimes add up in different orders."""

_SEED = 0
_HIGH = {"timestep": 1000, "sizes": 1024}  # Whole numbers below these.


def write(part: Part, to: To, out: Path, *, check: bool = True) -> dict[str, Any]:
    """Writes `part` to the folder `out`, which appears when it is whole; returns its manifest.

    With `check` the files are run here on drawn inputs, beside the original. Raises `ValueError` on
    what the format cannot say, and on an export that computes something else.
    """
    if out.exists():
        raise ValueError(f"{out} is there already; remove it, or give another --out")
    if to == "onnx" and not importlib.util.find_spec("onnx"):
        raise ValueError(
            "ONNX files are written by packages that are not here; "
            "install them: pip install onnx onnxruntime"
        )
    form = importlib.import_module(f"nas.export.{to}")
    making = out.with_name(f".{out.name}.{os.getpid()}")
    making.mkdir(parents=True)
    try:
        said = form.write(part, making)
        manifest = {
            "format": to,
            "part": part.name,
            "batch": next(iter(part.inputs.values())).shape[0],
            "inputs": _listed(part.inputs),
            "outputs": _listed(part.results),
            "parameters": sum(weight.size for weight in part.weights.values()),
            "weights": part.dtype,
            **said,
            "versions": {name: version(name) for name in ("nas", "jax", "flax", *form.PACKAGES)},
            "sha256": {file.name: _digest(file) for file in sorted(making.iterdir())},
        }
        write_json(making / MANIFEST, manifest)  # It is read to run the files.
        if check:
            manifest["compared"] = compare(part, to, making)
            write_json(making / MANIFEST, manifest)
        os.replace(making, out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return manifest


def _listed(shapes: Mapping[str, Shape]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": list(shape.shape), "dtype": str(shape.dtype)}
        for name, shape in shapes.items()
    ]


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def drawn(part: Part, seed: int) -> dict[str, np.ndarray]:
    """Inputs as the network sees them in use."""
    rng, found = np.random.default_rng(seed), dict[str, np.ndarray]()
    words = (step.op.vocabulary for step in part.program if isinstance(step.op, TokenEmbedding))
    high = {**_HIGH, "ids": next(words, 1)}
    for name, shape in part.inputs.items():
        if name in high:
            values = rng.integers(0, high[name], shape.shape)
        else:
            values = rng.normal(size=shape.shape)
        found[name] = values.astype(shape.dtype)
    return found


def compare(part: Part, to: To, folder: Path) -> dict[str, Any]:
    """What ran the exported files, and how far each output is from the original's, relative to the
    original's largest value; or the reason why nothing here runs them.

    Raises `ValueError` where that is further than `CLOSE`.
    """
    form, values = importlib.import_module(f"nas.export.{to}"), drawn(part, _SEED)
    try:
        runtime, found = form.run(folder, values)
    except ValueError as error:
        return {"reason": str(error)}
    original = jax.jit(lambda weights, values: part(weights, values))(part.weights, values)
    differences = {name: _difference(found[name], value) for name, value in original.items()}
    worst = max(differences.values())
    if not worst <= CLOSE[part.dtype]:  # Not a number is far off, too.
        raise ValueError(
            f"{runtime} computes something else than the original: {worst:.2g} of its scale away, "
            f"where {CLOSE[part.dtype]} is allowed in {part.dtype}"
        )
    return {"runtime": runtime, "seed": _SEED, "differences": differences}


def _difference(found: Any, original: Any) -> float:
    ours, theirs = (np.asarray(x, np.float64) for x in (found, original))
    if ours.shape != theirs.shape:
        return math.inf
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))
