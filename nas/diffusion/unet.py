"""`UNet2DConditionModel` configurations of the SD-1.x and SD-2.x families as specs, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.blocks import (
    Conv,
    Downsample,
    NormSiLU,
    ResNet,
    TimeEmbedding,
    Transformer,
    Upsample,
)
from search_spaces.ops import Shape
from search_spaces.unet import Block, Layer, Stage, UNetSpec, inputs
from search_spaces.values import decode, encode

# What the code below does not read must have the value given here, as it changes the function.
_FIXED: Mapping[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "cross_attention_norm": None,
    "encoder_hid_dim_type": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "reverse_transformer_layers_per_block": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "timestep_post_act": None,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
}
_OURS = "SearchedUNet"  # diffusers cannot express independent lists of blocks per stage.
_INTERFACE = ("sample_size", "in_channels", "out_channels", "cross_attention_dim")
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


def from_config(config: Mapping[str, Any]) -> UNetSpec:
    """The architecture that a `unet/config.json` describes.

    Raises `ValueError` naming the setting that we do not build.
    """
    if config.get("_class_name") == _OURS:
        return decode(config["spec"])
    for name, value in _FIXED.items():
        if name in config and config[name] != value:
            raise ValueError(
                f"unet config has {name}={config[name]!r}; only {value!r} is supported "
                "(the SD-1.x and SD-2.x families)"
            )
    widths = config["block_out_channels"]
    depth = len(widths)
    per_block = _spread(config.get("layers_per_block", 2), depth)
    groups, epsilon = config.get("norm_num_groups", 32), config.get("norm_eps", 1e-5)
    linear = bool(config.get("use_linear_projection", False))
    # diffusers names the number of heads `attention_head_dim`, and keeps it for compatibility.
    heads = _spread(config.get("num_attention_heads") or config.get("attention_head_dim", 8), depth)
    layers_deep = _spread(config.get("transformer_layers_per_block", 1), depth)

    def layer(stage: str, index: int, level: int, *, attends: bool, reads_skip: bool) -> Layer:
        resnet = ResNet(widths[level], groups, epsilon)
        blocks = [Block(resnet, f"{stage}.resnets.{index}", reads_skip)]
        if attends:
            op = Transformer(heads[level], groups, layers_deep[level], linear)
            blocks.append(Block(op, f"{stage}.attentions.{index}"))
        return Layer(tuple(blocks))

    down, up = [], []
    for level, kind in enumerate(config["down_block_types"]):
        name = f"down_blocks.{level}"
        down.append(
            Stage(
                name,
                tuple(
                    layer(name, i, level, attends=_kind(kind, _DOWN), reads_skip=False)
                    for i in range(per_block[level])
                ),
                Downsample() if level < depth - 1 else None,
            )
        )
    for index, kind in enumerate(config["up_block_types"]):
        name, level = f"up_blocks.{index}", depth - 1 - index
        up.append(
            Stage(
                name,
                tuple(
                    layer(name, i, level, attends=_kind(kind, _UP), reads_skip=True)
                    for i in range(per_block[level] + 1)
                ),
                Upsample() if level else None,
            )
        )
    middle = Stage(
        "mid_block",
        (
            layer("mid_block", 0, depth - 1, attends=True, reads_skip=False),
            layer("mid_block", 1, depth - 1, attends=False, reads_skip=False),
        ),
    )
    return UNetSpec(
        stem=Conv(widths[0]),
        time=TimeEmbedding(widths[0], 4 * widths[0]),
        down=tuple(down),
        middle=middle,
        up=tuple(up),
        norm=NormSiLU(groups, epsilon),
        head=Conv(config.get("out_channels", 4)),
    )


def config(spec: UNetSpec, seed: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of an architecture edited from the one of `seed`.

    diffusers' own where it describes the same architecture; otherwise ours, which holds the spec.
    """
    if seed.get("_class_name") != _OURS and from_config(seed) == spec:
        return dict(seed)
    kept = {name: seed[name] for name in _INTERFACE if name in seed}
    return {"_class_name": _OURS, **kept, "spec": encode(spec)}


def shapes(config: Mapping[str, Any], *, batch: int, tokens: int) -> dict[str, Shape]:
    """Shapes of the inputs of this U-Net at its native resolution."""
    return inputs(
        batch,
        config["sample_size"],
        config.get("in_channels", 4),
        tokens,
        config["cross_attention_dim"],
    )


def _spread(value: int | Sequence[int], length: int) -> tuple[int, ...]:
    values = (value,) * length if isinstance(value, int) else tuple(value)
    if len(values) != length:
        raise ValueError(f"unet config gives {values} for {length} stages")
    return values


def _kind(name: str, kinds: Mapping[str, bool]) -> bool:
    if name not in kinds:
        raise ValueError(f"unet config has a {name}; supported are {sorted(kinds)}")
    return kinds[name]
