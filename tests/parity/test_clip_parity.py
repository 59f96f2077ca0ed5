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
from search_spaces.program import network, until
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


def same_text(config, folder, original, ids=IDS) -> None:
    """Asserts that our encoder of `folder` returns all that the original does."""
    projects = isinstance(original, transformers.CLIPTextModelWithProjection)
    program = until(clip.text_program(config), clip.PROJECTED if projects else clip.POOLED)
    model = network(program, {"ids": clip.ids_shape(config, 1)})
    weights = read_weights(folder / TRANSFORMERS_WEIGHTS, model.shapes)
    assert len(weights) == len(original.state_dict())
    also = (clip.penultimate(config), clip.HIDDEN)
    last, found = jax.jit(lambda w, v: model(w, v, also=also))(weights, {"ids": jnp.asarray(ids)})
    with torch.no_grad():
        theirs = original(given(ids), output_hidden_states=True)
    summary = theirs.text_embeds if projects else theirs.pooler_output
    assert relative_error(last, taken(summary)) < CLOSE
    assert relative_error(found[clip.HIDDEN], taken(theirs.last_hidden_state)) < CLOSE
    assert relative_error(found[also[0]], taken(theirs.hidden_states[-2])) < CLOSE


def same_towers(model: clip.CLIP, weights, original) -> None:
    with torch.no_grad():
        theirs = original(input_ids=given(IDS), pixel_values=given(PIXELS))
    text = jax.jit(model.text)(weights, jnp.asarray(IDS))
    image = jax.jit(model.image)(weights, jnp.asarray(PIXELS))
    assert relative_error(text, taken(theirs.text_embeds)) < CLOSE
    assert relative_error(image, taken(theirs.image_embeds)) < CLOSE
    logits = jnp.exp(weights["logit_scale"]) * text @ image.T
    assert relative_error(logits, taken(theirs.logits_per_text)) < CLOSE


# As published, at full depth; the width is a 24th to a 20th, the heads are as many as fit.
FAMILIES = {
    "sd-1.x, and sdxl's first": (
        "CLIPTextModel",
        {
            "hidden_act": "quick_gelu",
            "num_hidden_layers": 12,
            "num_attention_heads": 4,
            "hidden_size": 32,
            "intermediate_size": 128,
            "projection_dim": 32,
        },
    ),
    "sd-2.x": (
        "CLIPTextModel",
        {
            "hidden_act": "gelu",
            "num_hidden_layers": 23,  # Of 24: the last is not on disk.
            "num_attention_heads": 4,
            "hidden_size": 48,
            "intermediate_size": 192,
            "projection_dim": 24,
        },
    ),
    "sdxl's second": (
        "CLIPTextModelWithProjection",
        {
            "hidden_act": "gelu",
            "num_hidden_layers": 32,
            "num_attention_heads": 5,
            "hidden_size": 60,
            "intermediate_size": 240,
            "projection_dim": 60,
        },
    ),
}
# As published, these say that the end token is 2, and mean 49407, the largest.
PUBLISHED = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}


def prompts() -> np.ndarray:
    """A short prompt, padded by end tokens as by ViT-L's tokenizer; a long one, padded by zeros as
    by OpenCLIP's; and the empty one."""
    rng = np.random.default_rng(0)
    ids = np.full((3, 77), 49407)
    ids[1] = 0
    ids[:, 0] = 49406
    ids[0, 1:6] = rng.integers(1, 49406, 5)
    ids[1, 1:60], ids[1, 60] = rng.integers(3, 49406, 59), 49407
    return ids.astype(np.int32)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_published_text_encoder_is_the_same_here(name, tmp_path):
    kind, settings = FAMILIES[name]
    config = transformers.CLIPTextConfig(**PUBLISHED, **settings)
    original = perturbed(getattr(transformers, kind)(config))
    original.save_pretrained(tmp_path)
    same_text(read_json(tmp_path / "config.json"), tmp_path, original, prompts())


@pytest.mark.parametrize("variant", VARIANTS)
def test_their_text_folder_is_the_same_encoder_here(variant, tmp_path):
    config = transformers.CLIPTextConfig(**text_config(variant))
    original = perturbed(transformers.CLIPTextModel(config))
    original.save_pretrained(tmp_path)
    same_text(read_json(tmp_path / "config.json"), tmp_path, original)


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_text_folder_is_the_same_encoder_there(variant, tmp_path):
    config = text_config(variant)
    weights = drawn.weights(clip.text_model(config).shapes, seed=0)
    write_json(tmp_path / "config.json", config)
    write_weights(tmp_path / TRANSFORMERS_WEIGHTS, weights)
    same_text(config, tmp_path, loaded(transformers.CLIPTextModel, tmp_path))


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
