"""Which architectures diffusers can build, how it is told to, and what is said of the others."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.diffusion import unet
from nas.diffusion.folders import map_weights, write_json, write_weights
from nas.testing.spaces import walked, walks
from search_spaces.blocks import Conv, Downsample, NormSiLU, ScaleShift, Separable, TimeEmbedding
from search_spaces.ops import Op
from search_spaces.presets import PRESETS
from search_spaces.unet import Block, Layer, Stage, UNetSpec
from search_spaces.unet_space import UNetSpace
from tests import drawn, tiny

THREE = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": 3 * ["CrossAttnDownBlock2D"],
    "up_block_types": 3 * ["CrossAttnUpBlock2D"],
}
SDXL = {
    **tiny.SD15,
    **THREE,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", *2 * ["CrossAttnDownBlock2D"]],
    "up_block_types": [*2 * ["CrossAttnUpBlock2D"], "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
BK = {**tiny.SD15, "layers_per_block": 1}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "sd-1.5": tiny.SD15,
    "sd-2.1": {
        **tiny.SD15,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "sdxl": SDXL,
    "bk-base": BK,
    "bk-small": {**BK, "mid_block_type": None},
    "bk-tiny": {**BK, **THREE, "mid_block_type": None},
    "koala-1b": {**SDXL, "layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]},
    "koala-700m": {
        **SDXL,
        "layers_per_block": 1,
        "transformer_layers_per_block": [1, 2, 5],
        "mid_block_type": None,
    },
    "ssd-1b": {  # Its depths are the layers' own.
        **SDXL,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "a middle of its own depth": {
        **tiny.SD15,
        "transformer_layers_per_block": [1, 2, 3, 4],
        "reverse_transformer_layers_per_block": [1, 5, [1, 2, 3], 1],
    },
    "scale, shift and odd ends": {
        **BK,
        "resnet_time_scale_shift": "scale_shift",
        "norm_num_groups": 16,
        "norm_eps": 1e-6,
        "conv_in_kernel": 5,
        "conv_out_kernel": 1,
        "time_embedding_dim": 512,
        "out_channels": 8,
    },
    "attention on one way only": {
        **tiny.SD15,
        "layers_per_block": [1, 2, 1, 3],
        "down_block_types": ["DownBlock2D", *2 * ["CrossAttnDownBlock2D"], "DownBlock2D"],
        "up_block_types": [*2 * ["CrossAttnUpBlock2D"], "UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": [1, 2, 4, 8],
    },
    "a stage without layers": {**tiny.SD15, "layers_per_block": [0, 2, 2, 0]},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_diffusers_builds_is_said_again_in_its_words(name):
    spec = unet.from_config(FAMILIES[name])
    assert unet.obstacles(spec) == ()
    assert unet.config(spec, FAMILIES[name]) == FAMILIES[name]
    plain = {**tiny.SD15, "addition_embed_type": None}
    said = unet.config(spec, plain)
    assert repr(unet.from_config(json.loads(json.dumps(said)))) == repr(spec)


@pytest.mark.parametrize("name", ["sd15", "bk-base", "bk-tiny", "sdxl", "koala-1b", "koala-700m"])
def test_presets_are_diffusers_where_they_were_published_for_it(name):
    assert unet.obstacles(PRESETS[name]().spec) == ()


def renamed(spec: UNetSpec) -> UNetSpec:
    """`spec` with names that say nothing."""

    def stage(old: Stage) -> Stage:
        layers = (
            Layer(tuple(dataclasses.replace(b, name=f"{b.name}+7") for b in layer.blocks))
            for layer in old.layers
        )
        return dataclasses.replace(old, name=f"{old.name}x", layers=tuple(layers))

    down, up = (tuple(map(stage, stages)) for stages in (spec.down, spec.up))
    return dataclasses.replace(spec, down=down, middle=stage(spec.middle), up=up)


@st.composite
def configs(draw) -> dict[str, Any]:
    count = draw(st.integers(1, 3))

    def each(strategy, length=count):
        return draw(st.lists(strategy, min_size=length, max_size=length))

    layers = each(st.integers(0, 2))
    depth = st.integers(1, 3)
    return {
        **tiny.NARROW_SD15,
        "block_out_channels": each(st.sampled_from([4, 8])) if all(layers) else count * [8],
        "layers_per_block": layers,
        "down_block_types": [
            f"{kind}DownBlock2D" for kind in each(st.sampled_from(["", "CrossAttn"]))
        ],
        "up_block_types": [f"{kind}UpBlock2D" for kind in each(st.sampled_from(["", "CrossAttn"]))],
        "mid_block_type": draw(
            st.sampled_from(["UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None])
        ),
        "attention_head_dim": each(st.sampled_from([1, 2, 4])),
        "transformer_layers_per_block": [
            each(depth, 3) if draw(st.booleans()) else draw(depth) for _ in range(count)
        ],
        "reverse_transformer_layers_per_block": [
            each(depth, 3) if draw(st.booleans()) else draw(depth) for _ in range(count)
        ],
        "use_linear_projection": draw(st.booleans()),
        "norm_num_groups": draw(st.sampled_from([1, 2])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
    }


@settings(max_examples=200)
@given(configs())
def test_names_are_no_obstacle_and_all_else_is_said(config):
    spec = renamed(unet.from_config(config))
    assert unet.obstacles(spec) == ()
    said = unet.config(spec, tiny.NARROW_SD15)
    assert said["_class_name"] == "UNet2DConditionModel"
    assert unet.from_config(said) == spec


@settings(max_examples=100)
@given(walks)
def test_an_edited_network_is_diffusers_own_or_there_is_an_obstacle(walk):
    space = tiny.unet_space(tiny.UNET)
    spec = walked(space, walk)
    found = unet.config(spec, tiny.UNET)
    built = unet.from_config(json.loads(json.dumps(found)))
    assert built == spec
    assert (found["_class_name"] == "UNet2DConditionModel") == (unet.obstacles(spec) == ())


SEED = unet.from_config(tiny.NARROW_SD15)


def swapped(name: str, **fields: Any) -> UNetSpec:
    """The seed with other fields of one block's op."""

    def stage(old: Stage) -> Stage:
        layers = (Layer(tuple(map(block, layer.blocks))) for layer in old.layers)
        return dataclasses.replace(old, layers=tuple(layers))

    def block(old: Block) -> Block:
        if old.name != name:
            return old
        op: Op = dataclasses.replace(old.op, **fields)  # pyright: ignore[reportArgumentType]
        return dataclasses.replace(old, op=op)

    down, up = (tuple(map(stage, stages)) for stages in (SEED.down, SEED.up))
    return dataclasses.replace(SEED, down=down, middle=stage(SEED.middle), up=up)


def staged(**fields: Any) -> UNetSpec:
    """The seed with other fields of its second down stage."""
    first, second, *rest = SEED.down
    return dataclasses.replace(SEED, down=(first, dataclasses.replace(second, **fields), *rest))


def removed(*names: str) -> UNetSpec:
    return tiny.without(SEED, *names)


def replaced(**fields: Any) -> UNetSpec:
    return dataclasses.replace(SEED, **fields)


RES = "down_blocks.1.resnets.1"
ATT = "up_blocks.2.attentions.0"
MIDDLE = "diffusers builds a ResNet, a transformer and a ResNet, or a ResNet alone, or no middle"
OBSTACLES: list[tuple[Callable[[], UNetSpec], list[str]]] = [
    (
        lambda: removed("down_blocks.1.attentions.1"),
        [
            "down_blocks.1 has a transformer in layer 0 but none in layer 1; "
            "diffusers builds equal layers"
        ],
    ),
    (
        lambda: removed("up_blocks.2.attentions.0"),
        [
            "up_blocks.2 has no transformer in layer 0 but one in layer 1; "
            "diffusers builds equal layers"
        ],
    ),
    (
        lambda: removed("down_blocks.3.resnets.0"),
        ["down_blocks.3 has nothing in layer 0; diffusers builds a ResNet"],
    ),
    (
        lambda: removed("up_blocks.0.resnets.1"),
        ["up_blocks.0 has nothing in layer 1; diffusers builds a ResNet that reads the skip"],
    ),
    (
        lambda: removed("mid_block.resnets.0"),
        [f"mid_block has a transformer, then a ResNet; {MIDDLE}"],
    ),
    (lambda: removed("mid_block.attentions.0"), [f"mid_block has 2 ResNets; {MIDDLE}"]),
    (
        lambda: tiny.copied(SEED, (RES, f"{RES}+1")),
        [
            "down_blocks.1 has 2 ResNets, then a transformer in layer 1; "
            "diffusers builds a ResNet, then a transformer"
        ],
    ),
    (
        lambda: swapped(RES, convolution=Separable()),
        [f"{RES} has convolution=Separable(expansion=1); diffusers builds Full()"],
    ),
    (
        lambda: swapped(RES, modulation=ScaleShift()),
        [
            f"{RES} has modulation=ScaleShift(); diffusers builds Additive(), "
            "one modulation in the network"
        ],
    ),
    (
        lambda: swapped(ATT, heads=4, size=2),
        [f"{ATT} has heads=4; diffusers builds 2, one number of heads at a resolution"],
    ),
    (
        lambda: swapped(ATT, heads=1),
        [f"{ATT} has 1 head of 4 channels; diffusers' heads share out all 8"],
    ),
    (
        lambda: swapped(ATT, self_attention=False, ffn=4),
        [
            f"{ATT} has self_attention=False; diffusers builds True",
            f"{ATT} has ffn=4; diffusers builds 8",
        ],
    ),
    (lambda: swapped(ATT, depth=2), []),
    (lambda: swapped("mid_block.attentions.0", depth=2), []),
    (
        lambda: staged(resample=None),
        ["down_blocks.1 does not change the resolution at its end; diffusers' is otherwise"],
    ),
    (
        lambda: staged(resample=Downsample(centred=False)),
        ["the end of down_blocks.1 has centred=False; diffusers builds True"],
    ),
    (
        lambda: staged(layers=SEED.down[1].layers[:1]),
        ["up_blocks.2 has 3 layers; diffusers builds 2, one more than in down_blocks.1"],
    ),
    (
        lambda: replaced(stem=Conv(6)),
        ["conv_in has width=6; diffusers builds 4, one width at a resolution"],
    ),
    (
        lambda: replaced(time=TimeEmbedding(8, 16)),
        ["time_embedding has features=8; diffusers builds 4"],
    ),
    (
        lambda: replaced(norm=NormSiLU(1)),
        ["conv_norm_out has groups=1; diffusers builds 2, one number of groups in the network"],
    ),
    (
        lambda: replaced(down=SEED.down[:3]),
        ["there are 3 down stages and 4 up stages; diffusers builds as many of both"],
    ),
]


@pytest.mark.parametrize(("make", "said"), OBSTACLES)
def test_what_diffusers_cannot_build_is_named_exactly(make, said):
    spec = make()
    assert list(unet.obstacles(spec)) == said
    found = unet.config(spec, tiny.NARROW_SD15)
    assert found["_class_name"] == ("SearchedUNet" if said else "UNet2DConditionModel")
    assert unet.from_config(json.loads(json.dumps(found))) == spec


def test_the_middle_has_the_depth_of_the_last_stage_that_attends():
    config = {**tiny.SD15, **THREE}
    spec = unet.from_config(config)
    deep = unet.from_config({**config, "transformer_layers_per_block": [1, 1, 2]})
    (said,) = unet.obstacles(dataclasses.replace(spec, middle=deep.middle))
    assert said.startswith("mid_block.attentions.0 has depth=2; diffusers builds 1, the depth of")


def test_settings_that_are_no_architecture_are_kept():
    seed = {**tiny.NARROW_SD15, "upcast_attention": True, "sample_size": 96, "dropout": 0.0}
    changed = unet.config(removed("mid_block.resnets.0", "mid_block.attentions.0"), seed)
    assert changed["upcast_attention"] and changed["dropout"] == 0.0
    ours = unet.config(removed("mid_block.resnets.0"), seed)
    back = unet.config(SEED, ours)
    assert back["upcast_attention"] and back["sample_size"] == 96
    assert unet.from_config(back) == SEED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer_layers_per_block": [1, [2], 1, 1]}, r"depths \[2\] for 2 transformers"),
        ({"transformer_layers_per_block": [1, [2, 2], 1, 1]}, "for 3 transformers"),
        ({"reverse_transformer_layers_per_block": [1, 1]}, r"gives \(1, 1\) for 4 stages"),
        ({"only_cross_attention": [False, True, False, False]}, "only_cross_attention"),
    ],
)
def test_a_setting_that_fits_no_stage_is_one_clear_error(change, message):
    with pytest.raises(ValueError, match=message):
        unet.from_config({**tiny.SD15, **change})


def test_settings_for_every_stage_may_be_given_one_by_one():
    each = {"only_cross_attention": 4 * [False], "cross_attention_dim": 4 * [768]}
    found = {**tiny.SD15, **each}
    assert unet.from_config(found) == unet.from_config(tiny.SD15)
    assert unet.shapes(found, batch=1, tokens=77) == unet.shapes(tiny.SD15, batch=1, tokens=77)
    with pytest.raises(ValueError, match="cross_attention_dim"):
        other = {**found, "cross_attention_dim": [768, 768, 768, 1024]}
        unet.shapes(other, batch=1, tokens=77)


# A U-Net's folder by itself.


def expressible(space: UNetSpace) -> UNetSpec:
    return tiny.without(space.seed, "mid_block.resnets.0", "mid_block.attentions.0")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lone_unet_is_saved_and_loaded(tmp_path, dtype):
    space = tiny.unet_space(tiny.UNET)
    weights = drawn.weights(tiny.shapes(space, expressible(space)), seed=1)
    said = unet.save(tmp_path, expressible(space), weights, tiny.UNET, dtype=dtype)
    found = unet.load(tmp_path, dtype=dtype)
    assert said == () and found.spec == expressible(space)
    assert found.weights.keys() == tiny.shapes(space, found.spec).keys()
    old, new = "mid_block.resnets.1.conv2.kernel", "mid_block.resnets.0.conv2.kernel"
    assert found.weights[new].dtype == dtype
    np.testing.assert_array_equal(found.weights[new], weights[old].astype(dtype))


def test_what_was_loaded_is_saved_without_being_read_first(tmp_path):
    space = tiny.unet_space(tiny.UNET)
    spec = tiny.without(space.seed, "mid_block.resnets.0")
    weights = drawn.weights(tiny.shapes(space, spec), seed=1)
    assert unet.save(tmp_path, spec, weights, tiny.UNET) != ()
    found = unet.load(tmp_path)
    assert repr(found.spec) == repr(spec)
    unet.save(tmp_path, *found)
    again = unet.load(tmp_path)
    assert all(np.array_equal(again.weights[name], weights[name]) for name in weights)
    # And under other names.
    less = tiny.without(spec, "mid_block.attentions.0")
    kept = map_weights(tmp_path).named(tiny.shapes(space, less))
    assert unet.save(tmp_path / "less", less, kept, found.config) == ()
    left, new = "mid_block.resnets.1.conv2.kernel", "mid_block.resnets.0.conv2.kernel"
    np.testing.assert_array_equal(unet.load(tmp_path / "less").weights[new], weights[left])


def test_a_weight_of_no_block_is_named(tmp_path):
    space = tiny.unet_space(tiny.UNET)
    weights = drawn.weights(tiny.shapes(space, space.seed), seed=1)
    with pytest.raises(ValueError, match=r"mid_block\.\S+ is a weight of no block"):
        unet.save(tmp_path, expressible(space), weights, tiny.UNET)


def test_a_folder_that_is_no_unet_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*config\.json"):
        unet.load(tmp_path)
    write_json(tmp_path / "config.json", tiny.UNET)
    with pytest.raises(ValueError, match="has no weights"):
        unet.load(tmp_path)
    write_json(tmp_path / "config.json", {"_class_name": "AutoencoderKL"})
    write_weights(tmp_path / "model.safetensors", {})
    with pytest.raises(ValueError, match="_class_name='AutoencoderKL'"):
        unet.load(tmp_path)
