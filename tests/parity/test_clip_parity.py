"""CLIP here and in transformers: each reads the other's folders and computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.diffusion import clip
from nas.diffusion.folders import (
    TRANSFORMERS_WEIGHTS,
    read_json,
    read_weights,
    write_json,
    write_weights,
)
from tests import drawn
from tests.drawn import normal, relative_error
from tests.parity.originals import (
    CLOSE,
    given,
    loaded,
    marks,
    perturbed,
    taken,
    torch,
    transformers,
)

pytestmark = marks

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT = {
    **TOWER,
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "bos_token_id": 48,
    "pad_token_id": 0,
    "projection_dim": 12,
}
VISION = {**TOWER, "num_hidden_layers": 1, "image_size": 16, "patch_size": 4, "projection_dim": 12}
# Ids above the modern end token, and more than one of it: a wrong place shows.
VARIANTS = {
    "quick_gelu, modern end": {"hidden_act": "quick_gelu", "eos_token_id": 40},
    "gelu, end 2 means the largest": {"hidden_act": "gelu", "eos_token_id": 2},
}
IDS = np.array([[48, 3, 40, 5, 49, 40, 0, 0], [48, 7, 8, 2, 10, 11, 40, 45]], np.int32)
PIXELS = normal(0, 2, 16, 16, 3)


def text_config(variant: str) -> dict:
    return {"model_type": "clip_text_model", **TEXT, **VARIANTS[variant]}


def clip_config(variant: str) -> dict:
    activation = VARIANTS[variant]["hidden_act"]
    return {
        "model_type": "clip",
        "projection_dim": 12,
        "text_config": text_config(variant),
        "vision_config": {"model_type": "clip_vision_model", **VISION, "hidden_act": activation},
    }


def same_text(config, weights, original) -> None:
    hidden = jax.jit(clip.text_model(config))(weights, {"ids": jnp.asarray(IDS)})
    with torch.no_grad():
        theirs = original(given(IDS))
    assert relative_error(hidden, taken(theirs.last_hidden_state)) < CLOSE
    pooled = clip.pooled(hidden, jnp.asarray(IDS), config["eos_token_id"])
    assert relative_error(pooled, taken(theirs.pooler_output)) < CLOSE


def same_towers(model: clip.CLIP, weights, original) -> None:
    with torch.no_grad():
        theirs = original(input_ids=given(IDS), pixel_values=given(PIXELS))
    text = jax.jit(model.text)(weights, jnp.asarray(IDS))
    image = jax.jit(model.image)(weights, jnp.asarray(PIXELS))
    assert relative_error(text, taken(theirs.text_embeds)) < CLOSE
    assert relative_error(image, taken(theirs.image_embeds)) < CLOSE
    logits = jnp.exp(weights["logit_scale"]) * text @ image.T
    assert relative_error(logits, taken(theirs.logits_per_text)) < CLOSE


@pytest.mark.parametrize("variant", VARIANTS)
def test_their_text_folder_is_the_same_encoder_here(variant, tmp_path):
    config = transformers.CLIPTextConfig(**text_config(variant))
    original = perturbed(transformers.CLIPTextModel(config))
    original.save_pretrained(tmp_path)
    found = read_json(tmp_path / "config.json")
    weights = read_weights(tmp_path / TRANSFORMERS_WEIGHTS, clip.text_model(found).shapes)
    same_text(found, weights, original)


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_text_folder_is_the_same_encoder_there(variant, tmp_path):
    config = text_config(variant)
    weights = drawn.weights(clip.text_model(config).shapes, seed=0)
    write_json(tmp_path / "config.json", config)
    write_weights(tmp_path / TRANSFORMERS_WEIGHTS, weights)
    same_text(config, weights, loaded(transformers.CLIPTextModel, tmp_path))


@pytest.mark.parametrize("variant", VARIANTS)
def test_their_folder_is_the_same_pair_of_towers_here(variant, tmp_path):
    original = perturbed(transformers.CLIPModel(transformers.CLIPConfig(**clip_config(variant))))
    original.save_pretrained(tmp_path)
    model = clip.CLIP(read_json(tmp_path / "config.json"))
    same_towers(model, read_weights(tmp_path / TRANSFORMERS_WEIGHTS, model.shapes), original)


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_folder_is_the_same_pair_of_towers_there(variant, tmp_path):
    model = clip.CLIP(clip_config(variant))
    weights = drawn.weights(model.shapes, seed=0)
    write_json(tmp_path / "config.json", clip_config(variant))
    write_weights(tmp_path / TRANSFORMERS_WEIGHTS, weights)
    same_towers(model, weights, loaded(transformers.CLIPModel, tmp_path))
