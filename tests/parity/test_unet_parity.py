"""U-Nets and `UNet2DConditionModel` of diffusers read each other's folders and compute the same."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.emoji.seed import UNET
from nas.diffusion import unet
from nas.diffusion.folders import read_json, read_weights
from search_spaces.model import Model, Weights
from search_spaces.ops import Op, Shape, model
from search_spaces.program import calls, network
from search_spaces.unet import Block, Layer, Stage, UNetSpec, lower
from tests import drawn, tiny
from tests.drawn import normal, relative_error, stepwise
from tests.golden import cases
from tests.golden.cases import TOKENS, Values, inputs_of
from tests.parity.originals import (
    CLOSE,
    diffusers,
    loaded,
    marks,
    perturbed,
    theirs,
    torch,
)

pytestmark = marks

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "default": UNET,
    **cases.PUBLISHED,
    "ssd-1b": {
        **cases.SDXL,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "odd": {
        **cases.SMALL,
        "layers_per_block": [0, 2, 1, 3],
        "block_out_channels": [8, 8, 24, 24],
        "down_block_types": ["DownBlock2D", *2 * ["CrossAttnDownBlock2D"], "DownBlock2D"],
        "up_block_types": [*2 * ["CrossAttnUpBlock2D"], "UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": [4, 2, 3, 4],
        "transformer_layers_per_block": [2, 1, [3], 2],
        "reverse_transformer_layers_per_block": [1, [2, 1], 1, 3],
        "conv_in_kernel": 5,
        "conv_out_kernel": 1,
        "time_embedding_dim": 20,
        "norm_eps": 1e-3,
    },
    "scale-shift": {
        **cases.SMALL,
        "layers_per_block": 1,
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "resnet_time_scale_shift": "scale_shift",
    },
}


def shapes(spec: UNetSpec, inputs: Values) -> dict[str, Shape]:
    """Names and shapes of the weights of `spec`, call by call."""
    given = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in inputs.items()}
    return {
        f"{step}.{name}": shape
        for step, call in calls(lower(spec), given).items()
        for name, shape in model(call).shapes.items()
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_their_folder_is_the_same_network_here(name, tmp_path):
    config, inputs = CONFIGS[name], inputs_of(CONFIGS[name])
    original = perturbed(diffusers.UNet2DConditionModel.from_config(config))
    original.save_pretrained(tmp_path)
    found = unet.load(tmp_path)
    assert found.spec == unet.from_config(config)
    weights = read_weights(tmp_path, shapes(found.spec, inputs))
    assert len(weights) == len(original.state_dict())
    assert weights.keys() == found.weights.keys()
    error = relative_error(stepwise(lower(found.spec), weights, inputs), theirs(original, inputs))
    assert error < CLOSE


@pytest.mark.parametrize("name", CONFIGS)
def test_our_folder_is_the_same_network_there(name, tmp_path):
    config, inputs = CONFIGS[name], inputs_of(CONFIGS[name])
    spec = unet.from_config(config)
    weights = drawn.weights(shapes(spec, inputs), seed=0)
    assert unet.save(tmp_path, spec, weights, config) == ()
    original = loaded(diffusers.UNet2DConditionModel, tmp_path)
    assert relative_error(stepwise(lower(spec), weights, inputs), theirs(original, inputs)) < CLOSE


def stages(spec: UNetSpec, change: Callable[[Stage], Stage]) -> UNetSpec:
    down, up = (tuple(map(change, stages)) for stages in (spec.down, spec.up))
    return dataclasses.replace(spec, down=down, middle=change(spec.middle), up=up)


def swapped(spec: UNetSpec, blocks: tuple[str, ...], **fields: Any) -> UNetSpec:
    """With other fields of the ops of these blocks."""

    def block(old: Block) -> Block:
        if old.name not in blocks:
            return old
        op: Op = dataclasses.replace(old.op, **fields)  # pyright: ignore[reportArgumentType]
        return dataclasses.replace(old, op=op)

    def stage(old: Stage) -> Stage:
        layers = (Layer(tuple(map(block, layer.blocks))) for layer in old.layers)
        return dataclasses.replace(old, layers=tuple(layers))

    return stages(spec, stage)


def shortened(spec: UNetSpec, *names: str) -> UNetSpec:
    """Without the first layer of the stages of these names."""

    def stage(old: Stage) -> Stage:
        return dataclasses.replace(old, layers=old.layers[1:]) if old.name in names else old

    return stages(spec, stage)


def named(spec: UNetSpec, kind: str) -> tuple[str, ...]:
    return tuple(block.name for block in spec.blocks if block.name.startswith(kind))


EDITS: Mapping[str, Callable[[UNetSpec], UNetSpec]] = {
    "one ResNet in the middle": lambda seed: tiny.without(
        seed, "mid_block.resnets.0", "mid_block.attentions.0"
    ),
    "no middle": lambda seed: tiny.without(seed, *named(seed, "mid_block")),
    "no attention in two stages": lambda seed: tiny.without(
        seed, *named(seed, "down_blocks.1.attentions"), *named(seed, "up_blocks.0.attentions")
    ),
    "a layer less": lambda seed: shortened(seed, "down_blocks.1", "up_blocks.1"),
    "depths of its own in every layer": lambda seed: swapped(
        seed, ("down_blocks.2.attentions.1", "up_blocks.1.attentions.2"), depth=4
    ),
    "other heads at a resolution": lambda seed: swapped(
        seed, named(seed, "down_blocks.1.att") + named(seed, "up_blocks.1.att"), heads=4, size=4
    ),
    "all of it": lambda seed: tiny.without(
        shortened(seed, "down_blocks.1", "up_blocks.1"),
        *named(seed, "down_blocks.2.attentions"),
        "mid_block.attentions.0",
        "mid_block.resnets.0",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_network_that_diffusers_can_build_is_the_same_there(edit, tmp_path):
    config = {**cases.SDXL, "transformer_layers_per_block": [1, 1, 2]}
    inputs = inputs_of(config)
    spec = EDITS[edit](unet.from_config(config))
    assert spec != unet.from_config(config)
    weights = drawn.weights(shapes(spec, inputs), seed=0)
    assert unet.save(tmp_path, spec, weights, config) == ()
    original = loaded(diffusers.UNet2DConditionModel, tmp_path)
    expected = theirs(original, inputs)
    assert relative_error(stepwise(lower(spec), weights, inputs), expected) < CLOSE
    found = unet.load(tmp_path)
    assert found.spec == spec
    assert relative_error(stepwise(lower(found.spec), found.weights, inputs), expected) < CLOSE


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", ["100KB", "10GB"])
def test_folders_of_any_precision_and_number_of_shards_are_read_here(tmp_path, dtype, shard):
    config, inputs = CONFIGS["scale-shift"], inputs_of(CONFIGS["scale-shift"])
    original = perturbed(diffusers.UNet2DConditionModel.from_config(config))
    original = original.to(getattr(torch, dtype))
    variant = "fp16" if dtype == "float16" else None
    original.save_pretrained(tmp_path, max_shard_size=shard, variant=variant)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "100KB")
    found = unet.load(tmp_path)
    state = original.float().state_dict()
    weights = read_weights(tmp_path, shapes(found.spec, inputs))
    assert len(weights) == len(state)
    output = stepwise(lower(found.spec), weights, inputs)
    assert relative_error(output, theirs(original, inputs)) < CLOSE


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("limit", [100_000, 10**10])
def test_folders_of_any_precision_and_number_of_shards_are_read_there(tmp_path, dtype, limit):
    config, inputs = CONFIGS["scale-shift"], inputs_of(CONFIGS["scale-shift"])
    spec = unet.from_config(config)
    weights = drawn.weights(shapes(spec, inputs), seed=0)
    weights = {name: x.astype(dtype).astype("float32") for name, x in weights.items()}
    unet.save(tmp_path, spec, weights, config, dtype=dtype, limit=limit)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (limit == 100_000)
    original = loaded(diffusers.UNet2DConditionModel, tmp_path).float()
    assert relative_error(stepwise(lower(spec), weights, inputs), theirs(original, inputs)) < CLOSE


def test_a_whole_network_is_what_its_calls_are_one_by_one(tmp_path):
    config, inputs = CONFIGS["default"], inputs_of(CONFIGS["default"])
    spec = unet.from_config(config)
    whole: Model = network(lower(spec), unet.shapes(config, batch=2, tokens=TOKENS))
    weights: Weights = whole.initial(0)
    unet.save(tmp_path, spec, weights, config)
    original = loaded(diffusers.UNet2DConditionModel, tmp_path)
    values = {name: jnp.asarray(value) for name, value in inputs.items()}
    expected = theirs(original, inputs)
    assert relative_error(jax.jit(whole)(weights, values), expected) < CLOSE
    assert relative_error(stepwise(lower(spec), weights, inputs), expected) < CLOSE
    assert read_json(tmp_path / "config.json") == dict(config)


@pytest.mark.slow
def test_sd_1_5_in_full_size_is_the_same_network_there(tmp_path):
    """860 million random weights, 3.4 GB: ours in memory, theirs mapped from the file."""
    config = {"_class_name": "UNet2DConditionModel", **tiny.SD15, "sample_size": 32}
    inputs = {
        "sample": normal(0, 1, 32, 32, 4),
        "timestep": np.array([481.0], np.float32),
        "context": normal(1, 1, 77, 768),
    }
    spec = unet.from_config(config)
    weights = drawn.weights(shapes(spec, inputs), seed=0)
    assert sum(weight.size for weight in weights.values()) == 859_520_964
    unet.save(tmp_path, spec, weights, config)
    result = np.asarray(stepwise(lower(spec), weights, inputs))
    del weights
    original = loaded(diffusers.UNet2DConditionModel, tmp_path)
    assert relative_error(result, theirs(original, inputs)) < CLOSE
