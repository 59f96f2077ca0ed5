"""Writes what diffusers and transformers compute for `tests.golden.cases`, for `tests.test_golden`.

    python -m tests.golden.make

Needs the `parity` extra. Weights are drawn from a seed, so only outputs are stored.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from nas.diffusion import clip, unet
from nas.diffusion.autoencoder import Autoencoder
from search_spaces.model import to_torch, torch_name
from search_spaces.program import network
from search_spaces.unet import lower
from tests import drawn
from tests.drawn import fake_network
from tests.golden import cases
from tests.parity.originals import diffusers, given, taken, theirs, torch, transformers

FOLDER = Path(__file__).parent
Outputs = dict[str, np.ndarray]


def main() -> None:
    with torch.no_grad():
        outputs = {**unets(), **published(), **autoencoder(), **text(), **towers(), **samplers()}
    arrays = {name: np.ascontiguousarray(array) for name, array in outputs.items()}
    save_file(arrays, FOLDER / "outputs.safetensors")
    packages = ("diffusers", "transformers", "torch", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    (FOLDER / "made_with.json").write_text(json.dumps(versions, indent=2) + "\n")
    print(f"{len(arrays)} outputs, {sum(array.nbytes for array in arrays.values()):,} bytes")


def filled(original: Any, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Any:
    """`original` with the weights that `tests.drawn` makes for a model of `shapes`."""
    weights = {
        torch_name(name): torch.tensor(np.array(to_torch(name, np.asarray(weight))))
        for name, weight in drawn.weights(shapes, seed=0).items()
    }
    # transformers 5 leaves the tower's name out of a lone tower's weights.
    lone = not any(name.startswith("text_model.") for name in original.state_dict())
    if lone:
        weights = {name.removeprefix("text_model."): value for name, value in weights.items()}
    original.load_state_dict(weights)
    return original.eval()


def unets() -> Outputs:
    found = {}
    for name, config in cases.UNETS.items():
        model = network(lower(unet.from_config(config)), unet.shapes(config, batch=2, tokens=5))
        original = filled(diffusers.UNet2DConditionModel.from_config(config), model.shapes)
        inputs = (given(x) for x in (cases.LATENTS, cases.TIMESTEPS, cases.CONTEXT))
        found[name] = taken(original(*inputs).sample)
    return found


def published() -> Outputs:
    found = {}
    for name, config in cases.PUBLISHED.items():
        values = cases.inputs_of(config)
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in values.items()}
        model = network(lower(unet.from_config(config)), shapes)
        original = filled(diffusers.UNet2DConditionModel.from_config(config), model.shapes)
        found[f"published-{name}"] = theirs(original, values)
    return found


def autoencoder() -> Outputs:
    original = diffusers.AutoencoderKL.from_config(cases.AUTOENCODER)
    original = filled(original, Autoencoder(cases.AUTOENCODER).shapes)
    latents = original.encode(given(cases.PIXELS)).latent_dist
    return {
        "autoencoder-mean": taken(latents.mean),
        "autoencoder-log-variance": taken(latents.logvar),
        "autoencoder-pixels": taken(original.decode(given(cases.LATENTS)).sample),
    }


def text() -> Outputs:
    original = transformers.CLIPTextModel(transformers.CLIPTextConfig(**cases.TEXT))
    found = filled(original, clip.text_model(cases.TEXT).shapes)(given(cases.IDS))
    return {
        "text-hidden": taken(found.last_hidden_state),
        "text-pooled": taken(found.pooler_output),
    }


def towers() -> Outputs:
    original = transformers.CLIPModel(transformers.CLIPConfig(**cases.CLIP))
    original = filled(original, clip.CLIP(cases.CLIP).shapes)
    found = original(input_ids=given(cases.IDS), pixel_values=given(cases.PIXELS))
    return {"clip-text": taken(found.text_embeds), "clip-image": taken(found.image_embeds)}


def samplers() -> Outputs:
    """Latents after every step, `[steps, ...]`; their axes are in no order to keep."""
    found = {}
    for name, config in cases.SAMPLERS.items():
        original = getattr(diffusers, config["_class_name"]).from_config(config)
        for steps in cases.STEPS:
            original.set_timesteps(steps)
            z, path = torch.tensor(cases.NOISE), []
            for t in original.timesteps:
                z = original.step(fake_network(torch, z, t), t, z).prev_sample
                path.append(z.numpy())
            found[f"{name}-{steps}"] = np.stack(path)
            found[f"{name}-{steps}-timesteps"] = original.timesteps.numpy()
    return found


if __name__ == "__main__":
    main()
