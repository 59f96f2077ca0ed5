"""U-Nets and `UNet2DConditionModel` of diffusers read each other's folders and compute the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.emoji.seed import UNET
from nas.diffusion import unet
from nas.diffusion.folders import (
    DIFFUSERS_WEIGHTS,
    read_json,
    read_weights,
    write_json,
    write_weights,
)
from search_spaces.model import Model
from search_spaces.program import network
from search_spaces.unet import lower
from tests import drawn
from tests.drawn import normal, relative_error
from tests.parity.originals import CLOSE, diffusers, given, loaded, marks, perturbed, taken, torch

pytestmark = marks

SMALL = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 4,
    "cross_attention_dim": 24,
    "layers_per_block": 2,
    "block_out_channels": [8, 16, 24, 24],
    "down_block_types": [*3 * ["CrossAttnDownBlock2D"], "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *3 * ["CrossAttnUpBlock2D"]],
}
CONFIGS = {
    "default": UNET,
    "sd-1.5": {**SMALL, "attention_head_dim": 4},
    "sd-2.1": {
        **SMALL,
        "layers_per_block": 1,  # XLA takes a minute with two.
        "attention_head_dim": [1, 2, 3, 4],
        "use_linear_projection": True,
        "transformer_layers_per_block": 2,
    },
    "sdxl": {
        **SMALL,
        "layers_per_block": 1,
        "block_out_channels": [8, 16, 24],
        "down_block_types": ["DownBlock2D", *2 * ["CrossAttnDownBlock2D"]],
        "up_block_types": [*2 * ["CrossAttnUpBlock2D"], "UpBlock2D"],
        "attention_head_dim": [1, 2, 3],
        "transformer_layers_per_block": [1, 2, 3],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 10,
    },
    "bk-sdm-small": {**SMALL, "layers_per_block": 1, "mid_block_type": None},
    "scale-shift": {
        **SMALL,
        "layers_per_block": 1,
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "resnet_time_scale_shift": "scale_shift",
    },
}
TOKENS = 5


@functools.cache
def ours(name: str) -> Model:
    config = CONFIGS[name]
    return network(lower(unet.from_config(config)), unet.shapes(config, batch=2, tokens=TOKENS))


def inputs(name: str) -> dict[str, np.ndarray]:
    config = CONFIGS[name]
    size = config["sample_size"]
    found = {
        "sample": normal(0, 2, size, size, config["in_channels"]),
        "timestep": np.array([3.0, 981.0], np.float32),
        "context": normal(1, 2, TOKENS, config["cross_attention_dim"]),
    }
    if "addition_embed_type" in config:
        found["pooled"] = normal(2, 2, 10)
        found["sizes"] = np.array([[64, 48, 0, 3, 64, 64], [16, 16, 5, 0, 32, 32]], np.float32)
    return found


def output_of_ours(name: str, weights) -> jax.Array:
    values = {key: jnp.asarray(value) for key, value in inputs(name).items()}
    return compiled(name)(weights, values)


@functools.cache
def compiled(name: str):
    return jax.jit(ours(name))


def output_of_theirs(name: str, original) -> np.ndarray:
    sample, timestep, context, *more = (given(value) for value in inputs(name).values())
    added = dict(zip(("text_embeds", "time_ids"), more, strict=True)) if more else None
    with torch.no_grad():
        return taken(original(sample, timestep, context, added_cond_kwargs=added).sample)


@pytest.mark.parametrize("name", CONFIGS)
def test_their_folder_is_the_same_network_here(name, tmp_path):
    original = perturbed(diffusers.UNet2DConditionModel.from_config(CONFIGS[name]))
    original.save_pretrained(tmp_path)
    assert unet.from_config(read_json(tmp_path / "config.json")) == unet.from_config(CONFIGS[name])
    weights = read_weights(tmp_path / DIFFUSERS_WEIGHTS, ours(name).shapes)
    assert len(weights) == len(original.state_dict())
    error = relative_error(output_of_ours(name, weights), output_of_theirs(name, original))
    assert error < CLOSE


@pytest.mark.parametrize("name", CONFIGS)
def test_our_folder_is_the_same_network_there(name, tmp_path):
    weights = drawn.weights(ours(name).shapes, seed=0)
    write_json(tmp_path / "config.json", CONFIGS[name])
    write_weights(tmp_path / DIFFUSERS_WEIGHTS, weights)
    original = loaded(diffusers.UNet2DConditionModel, tmp_path)
    error = relative_error(output_of_ours(name, weights), output_of_theirs(name, original))
    assert error < CLOSE


def test_initial_weights_are_the_same_network_there(tmp_path):
    weights = ours("default").initial(0)
    write_json(tmp_path / "config.json", CONFIGS["default"])
    write_weights(tmp_path / DIFFUSERS_WEIGHTS, weights)
    theirs = output_of_theirs("default", loaded(diffusers.UNet2DConditionModel, tmp_path))
    assert relative_error(output_of_ours("default", weights), theirs) < CLOSE
