"""Model folders as diffusers and transformers write them: `config.json` and safetensors."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from search_spaces.model import Weights, from_torch, to_torch, torch_name

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
TRANSFORMERS_WEIGHTS = "model.safetensors"

# Autoencoders saved before diffusers 0.16 call the layers of their attention so.
_EARLIER = {
    ".to_q.": ".query.",
    ".to_k.": ".key.",
    ".to_v.": ".value.",
    ".to_out.0.": ".proj_attn.",
}


class Settings(dict[str, Any]):
    """A JSON object of a file. Raises `ValueError` naming the file and a setting that it lacks."""

    def __init__(self, content: Mapping[str, Any], path: Path):
        super().__init__(content)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.path} has no {name}")


def read_json(path: Path) -> Settings:
    """The JSON object at `path`. Raises `ValueError` naming the file that is missing or damaged."""
    try:
        found = json.loads(path.read_text(), object_hook=lambda part: Settings(part, path))
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder, not a file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(found, Settings):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_weights(path: Path, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Weights:
    """The weights named in `shapes`, in our order of axes and float32.

    Raises `ValueError` naming the file and the weight that is missing or has another shape.
    """
    weights: Weights = {}
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            for name, shape in shapes.items():
                on_disk = torch_name(name)
                found = next((n for n in _spellings(on_disk) if n in names), None)
                if found is None:
                    raise ValueError(f"{path} has no weight {on_disk}")
                array = from_torch(name, file.get_tensor(found))
                if array.shape != shape.shape:
                    raise ValueError(
                        f"{path}: {on_disk} is {array.shape} in our order of axes, "
                        f"but its config asks for {shape.shape}"
                    )
                weights[name] = jax.numpy.asarray(array, jax.numpy.float32)
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or damaged: {error}") from None
    return weights


def _spellings(name: str) -> Iterator[str]:
    """Yields the names that a weight may have on disk."""
    yield name
    # transformers 5 leaves the tower's name out of a lone tower's weights.
    yield name.partition("text_model.")[2]
    for ours, earlier in _EARLIER.items():
        if ours in name:
            yield name.replace(ours, earlier)


def write_weights(path: Path, weights: Mapping[str, jax.Array], *, dtype: str = "float32") -> None:
    """Writes `weights` with PyTorch's names and order of axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        torch_name(name): np.asarray(to_torch(name, np.asarray(weight)), dtype, order="C")
        for name, weight in weights.items()
    }
    save_file(arrays, path, metadata={"format": "pt"})
