"""`UNet2DConditionModel` configurations of the SD-1.x, SD-2.x and SDXL families as specs, and
back."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from search_spaces.blocks import (
    Additive,
    Conv,
    Downsample,
    Modulation,
    NormSiLU,
    ResNet,
    ScaleShift,
    TextTimeEmbedding,
    TimeEmbedding,
    Transformer,
    Upsample,
)
from search_spaces.ops import Shape
from search_spaces.unet import SIZES, Block, Layer, Stage, UNetSpec, inputs
from search_spaces.values import decode, encode

# What the code below does not read must have the value given here, as it changes the function.
_FIXED: Mapping[str, Any] = {
    "act_fn": "silu",
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
    "num_class_embeds": None,
    "only_cross_attention": False,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
}
_OURS = "SearchedUNet"  # What diffusers cannot express: independent lists of blocks, other ops.
_INTERFACE = (
    "sample_size",
    "in_channels",
    "out_channels",
    "cross_attention_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_MIDDLE = {"UNetMidBlock2DCrossAttn": True, None: False}
_MODULATION: Mapping[str, Modulation] = {"default": Additive(), "scale_shift": ScaleShift()}


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
                "(the SD-1.x, SD-2.x and SDXL families)"
            )
    widths = config["block_out_channels"]
    depth = len(widths)
    per_block = _spread(config.get("layers_per_block", 2), depth)
    groups, epsilon = config.get("norm_num_groups", 32), config.get("norm_eps", 1e-5)
    linear = bool(config.get("use_linear_projection", False))
    modulation = _known(
        "resnet_time_scale_shift", config.get("resnet_time_scale_shift", "default"), _MODULATION
    )
    # diffusers names the number of heads `attention_head_dim`, and keeps it for compatibility.
    heads = _spread(config.get("num_attention_heads") or config.get("attention_head_dim", 8), depth)
    layers_deep = _spread(config.get("transformer_layers_per_block", 1), depth)

    def layer(stage: str, index: int, level: int, *, attends: bool, reads_skip: bool) -> Layer:
        resnet = ResNet(widths[level], groups, epsilon, modulation=modulation)
        blocks = [Block(resnet, f"{stage}.resnets.{index}", reads_skip)]
        if attends:
            op = _transformer(widths[level], heads[level], groups, layers_deep[level], linear)
            blocks.append(Block(op, f"{stage}.attentions.{index}"))
        return Layer(tuple(blocks))

    down, up, middle = [], [], []
    for level, kind in enumerate(config["down_block_types"]):
        name, attends = f"down_blocks.{level}", _known("down_block_types", kind, _DOWN)
        layers = (
            layer(name, i, level, attends=attends, reads_skip=False)
            for i in range(per_block[level])
        )
        down.append(Stage(name, tuple(layers), Downsample() if level < depth - 1 else None))
    for index, kind in enumerate(config["up_block_types"]):
        name, level, attends = (
            f"up_blocks.{index}",
            depth - 1 - index,
            _known("up_block_types", kind, _UP),
        )
        layers = (
            layer(name, i, level, attends=attends, reads_skip=True)
            for i in range(per_block[level] + 1)
        )
        up.append(Stage(name, tuple(layers), Upsample() if level else None))
    if _known("mid_block_type", config.get("mid_block_type", "UNetMidBlock2DCrossAttn"), _MIDDLE):
        middle = [
            layer("mid_block", i, depth - 1, attends=i == 0, reads_skip=False) for i in range(2)
        ]
    return UNetSpec(
        stem=Conv(widths[0]),
        time=TimeEmbedding(widths[0], 4 * widths[0]),
        down=tuple(down),
        middle=Stage("mid_block", tuple(middle)),
        up=tuple(up),
        norm=NormSiLU(groups, epsilon),
        head=Conv(config.get("out_channels", 4)),
        added=_added(config),
    )


def _transformer(width: int, heads: int, groups: int, depth: int, linear: bool) -> Transformer:
    if width % heads:
        raise ValueError(f"unet config: {width} channels do not divide into {heads} heads")
    return Transformer(heads, width // heads, groups, depth, linear)


def _added(config: Mapping[str, Any]) -> TextTimeEmbedding | None:
    kind = config.get("addition_embed_type")
    if kind not in (None, "text_time"):
        raise ValueError(
            f"unet config has addition_embed_type={kind!r}; supported are None and 'text_time'"
        )
    return TextTimeEmbedding(config["addition_time_embed_dim"]) if kind else None


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
    pooled = None
    if config.get("addition_embed_type") == "text_time":
        sizes = SIZES * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - sizes
    return inputs(
        batch,
        config["sample_size"],
        config.get("in_channels", 4),
        tokens,
        config["cross_attention_dim"],
        pooled=pooled,
    )


def _spread(value: int | Sequence[int], length: int) -> tuple[int, ...]:
    values = (value,) * length if isinstance(value, int) else tuple(value)
    if len(values) != length:
        raise ValueError(f"unet config gives {values} for {length} stages")
    return values


Value = TypeVar("Value")


def _known(what: str, name: Any, values: Mapping[Any, Value]) -> Value:
    if name not in values:
        raise ValueError(f"unet config has {what}={name!r}; supported are {list(values)}")
    return values[name]
