"""An exported network's folder: its files, a manifest that says what they are, and the proof that
they compute what the original does."""

import hashlib
import importlib
import importlib.util
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nas.diffusion.clip import TokenEmbedding
from nas.diffusion.folders import write_json
from search_spaces.export import MANIFEST
from search_spaces.export.part import Part, compared
from search_spaces.ops import Shape

To = Literal["stablehlo", "onnx"]

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
    form = importlib.import_module(f"search_spaces.export.{to}")
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
    form, values = importlib.import_module(f"search_spaces.export.{to}"), drawn(part, _SEED)
    try:
        runtime, found = form.run(folder, values)
    except ValueError as error:
        return {"reason": str(error)}
    differences = compared(part, values, found, runtime)
    return {"runtime": runtime, "seed": _SEED, "differences": differences}
