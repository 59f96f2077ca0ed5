"""Networks as StableHLO, by `jax.export`: what JAX itself reads back, on any of its platforms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from safetensors.numpy import save_file

from search_spaces.export import STABLEHLO, WEIGHTS, load_stablehlo
from search_spaces.export.part import Part, shapes

PACKAGES = ("jaxlib",)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write(part: Part, folder: Path) -> dict[str, Any]:
    """Writes the network and its weights; returns what the manifest says of this format.

    The function reads a dictionary of weights and one of inputs. JAX flattens dictionaries by
    sorted names, so these are its arguments' order. Weights have our names and order of axes: they
    are what the network multiplies by, and no call has to transpose them.
    """
    exported = jax.export.export(jax.jit(part), platforms=PLATFORMS)(
        shapes(part.weights), dict(part.inputs)
    )
    (folder / STABLEHLO).write_bytes(exported.serialize())
    save_file({name: np.ascontiguousarray(w) for name, w in part.weights.items()}, folder / WEIGHTS)
    return {
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
        "arguments": [*sorted(part.weights), *sorted(part.inputs)],
    }


def run(folder: Path, values: Mapping[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """What ran an exported network on this machine, and what came out."""
    found = load_stablehlo(folder)(**{name: jax.numpy.asarray(v) for name, v in values.items()})
    return (
        f"jax {jax.__version__} on {jax.default_backend()}",
        {name: np.asarray(value) for name, value in found.items()},
    )
