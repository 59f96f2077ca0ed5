"""Networks for other programs: StableHLO and ONNX, weights included."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
from safetensors.numpy import load_file

STABLEHLO, WEIGHTS, MANIFEST = "model.stablehlo", "weights.safetensors", "manifest.json"


def load_stablehlo(folder: Path) -> Callable[..., dict[str, jax.Array]]:
    """The network that was exported to `folder`, a function of its named inputs.

    Its shapes are those of the manifest. Needs JAX and safetensors, and nothing else of ours.
    Raises `ValueError` naming the inputs where others are given.
    """
    exported = jax.export.deserialize(bytearray((folder / STABLEHLO).read_bytes()))
    weights = jax.tree.map(jax.numpy.asarray, load_file(folder / WEIGHTS))
    names = {entry["name"] for entry in json.loads((folder / MANIFEST).read_text())["inputs"]}
    run = jax.jit(exported.call)

    def network(**values: jax.Array) -> dict[str, jax.Array]:
        if values.keys() != names:
            raise ValueError(f"inputs are {sorted(names)}, and not {sorted(values)}")
        return run(weights, values)

    return network
