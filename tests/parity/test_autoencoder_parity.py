"""Autoencoders and `AutoencoderKL` of diffusers read each other's folders and compute the same."""

import jax
import jax.numpy as jnp
import pytest

from nas.diffusion.autoencoder import Autoencoder
from nas.diffusion.folders import (
    DIFFUSERS_WEIGHTS,
    read_json,
    read_weights,
    write_json,
    write_weights,
)
from tests import drawn
from tests.drawn import normal, relative_error
from tests.parity.originals import CLOSE, diffusers, given, loaded, marks, perturbed, taken, torch

pytestmark = marks

SMALL = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 16],
    "down_block_types": 2 * ["DownEncoderBlock2D"],
    "up_block_types": 2 * ["UpDecoderBlock2D"],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "sample_size": 16,
    "latent_channels": 4,
}
# As published, at full depth; the width is a 32nd.
_PUBLISHED = {
    **SMALL,
    "block_out_channels": [4, 8, 16, 16],
    "down_block_types": 4 * ["DownEncoderBlock2D"],
    "up_block_types": 4 * ["UpDecoderBlock2D"],
    "layers_per_block": 2,
    "norm_num_groups": 2,
    "sample_size": 32,
}
CONFIGS = {
    "sd-1.x": _PUBLISHED,  # The scale was not in the first ones' configurations.
    "sdxl": {
        **_PUBLISHED,
        "scaling_factor": 0.13025,
        "force_upcast": True,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
    },
    "plain": {
        **SMALL,
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 1.5,
    },
}


def same(model: Autoencoder, weights, original) -> None:
    """Asserts that all three of an autoencoder's functions agree."""
    size = model.config["sample_size"]
    latent = size // 2 ** (len(model.config["block_out_channels"]) - 1)
    pixels, latents = normal(0, 2, size, size, 3), normal(1, 2, latent, latent, 4)
    mean, log_variance = jax.jit(model.moments)(weights, jnp.asarray(pixels))
    decoded = jax.jit(model.decode)(weights, jnp.asarray(model.scale * latents))
    with torch.no_grad():
        encoded = original.encode(given(pixels)).latent_dist
        theirs = original.decode(given(latents)).sample
    assert model.scale == original.config.scaling_factor
    assert relative_error(mean, taken(encoded.mean)) < CLOSE
    assert relative_error(log_variance, taken(encoded.logvar)) < CLOSE
    assert relative_error(decoded, taken(theirs)) < CLOSE


@pytest.mark.parametrize("name", CONFIGS)
def test_their_folder_is_the_same_autoencoder_here(name, tmp_path):
    original = perturbed(diffusers.AutoencoderKL.from_config(CONFIGS[name]))
    original.save_pretrained(tmp_path)
    model = Autoencoder(read_json(tmp_path / "config.json"))
    weights = read_weights(tmp_path / DIFFUSERS_WEIGHTS, model.shapes)
    assert len(weights) == len(original.state_dict())
    same(model, weights, original)


@pytest.mark.parametrize("name", CONFIGS)
def test_our_folder_is_the_same_autoencoder_there(name, tmp_path):
    model = Autoencoder(CONFIGS[name])
    weights = drawn.weights(model.shapes, seed=0)
    write_json(tmp_path / "config.json", CONFIGS[name])
    write_weights(tmp_path / DIFFUSERS_WEIGHTS, weights)
    same(model, weights, loaded(diffusers.AutoencoderKL, tmp_path))
