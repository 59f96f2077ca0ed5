"""Folders of transformers, sharded or not and in any precision, are read here, and ours there."""

import numpy as np
import pytest

from nas.diffusion import clip
from nas.diffusion.folders import TRANSFORMERS_WEIGHTS, read_json, read_weights, write_weights
from search_spaces.model import to_torch, torch_name
from tests import drawn
from tests.parity.originals import loaded, marks, perturbed, torch, transformers

pytestmark = [*marks, pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])]

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
TEXT = {**TOWER, "num_attention_heads": 4, "vocab_size": 50, "max_position_embeddings": 8}
SIZES = [10_000, 10**10]


@pytest.mark.parametrize("size", SIZES)
def test_their_folder_is_read_here(tmp_path, dtype, size):
    original = perturbed(transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)))
    original.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == 10_000)
    shapes = clip.text_model(read_json(tmp_path / "config.json")).shapes
    same(read_weights(tmp_path, shapes), original)


@pytest.mark.parametrize("size", SIZES)
def test_our_folder_is_read_there(tmp_path, dtype, size):
    config = transformers.CLIPTextConfig(**TEXT)
    config.save_pretrained(tmp_path)
    weights = drawn.weights(clip.text_model(config.to_dict()).shapes, seed=0)
    write_weights(tmp_path / TRANSFORMERS_WEIGHTS, weights, dtype=dtype, limit=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == 10_000)
    rounded = {name: x.astype(dtype).astype("float32") for name, x in weights.items()}
    same(rounded, loaded(transformers.CLIPTextModel, tmp_path))


def same(weights, original) -> None:
    state = {name.removeprefix("text_model."): x for name, x in original.state_dict().items()}
    state = {name: x for name, x in state.items() if x.is_floating_point()}
    assert len(state) == len(weights)
    for name, weight in weights.items():
        expected = state[torch_name(name).removeprefix("text_model.")].float().numpy()
        np.testing.assert_array_equal(to_torch(name, np.asarray(weight)), expected)
