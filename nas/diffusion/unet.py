"""U-Nets of the SD-1.x, SD-2.x and SDXL families: `UNet2DConditionModel` configurations as specs
and back, and their folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from nas.diffusion import express
from nas.diffusion.folders import (
    DIFFUSERS_WEIGHTS,
    SHARD,
    Mapped,
    map_weights,
    read_json,
    write_json,
    write_weights,
)
from search_spaces.blocks import (
    Conv,
    Downsample,
    NormSiLU,
    ResNet,
    TextTimeEmbedding,
    TimeEmbedding,
    Transformer,
    Upsample,
)
from search_spaces.ops import Shape
from search_spaces.unet import SIZES, Block, Layer, Stage, UNetSpec, inputs, lower
from search_spaces.values import decode, encode

# What the code below does not read must have the value given here, as it changes the function.
_FIXED: Mapping[str, Any] = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
    "encoder_hid_dim_type": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
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
OURS = "SearchedUNet"  # What diffusers cannot express: independent lists of blocks, other ops.
THEIRS = "UNet2DConditionModel"
_INTERFACE = (  # What a network reads and returns, and how diffusers runs it: no architecture.
    "sample_size",
    "in_channels",
    "out_channels",
    "cross_attention_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "upcast_attention",
)
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


def from_config(config: Mapping[str, Any]) -> UNetSpec:
    """The architecture that a `unet/config.json` describes.

    Raises `ValueError` naming the setting that we do not build.
    """
    if config.get("_class_name") == OURS:
        return decode(config["spec"])
    _known("_class_name", config.get("_class_name", THEIRS), {THEIRS: None})
    for name, value in _FIXED.items():
        found = config.get(name, value)
        if found != value and (not isinstance(found, list) or any(x != value for x in found)):
            raise ValueError(
                f"unet config has {name}={found!r}; only {value!r} is supported "
                "(the SD-1.x, SD-2.x and SDXL families)"
            )
    widths = config["block_out_channels"]
    depth = len(widths)
    per_block = _spread(config.get("layers_per_block", 2), depth)
    groups, epsilon = config.get("norm_num_groups", 32), config.get("norm_eps", 1e-5)
    if not isinstance(groups, int):
        raise ValueError(f"unet config has norm_num_groups={groups!r}; it must be a number")
    linear = bool(config.get("use_linear_projection", False))
    modulation = _known(
        "resnet_time_scale_shift",
        config.get("resnet_time_scale_shift", "default"),
        express.MODULATIONS,
    )
    for name in ("down_block_types", "up_block_types"):
        if len(config[name]) != depth:
            raise ValueError(
                f"unet config has {len(config[name])} {name} for {depth} block_out_channels"
            )
    # diffusers names the number of heads `attention_head_dim`, and keeps it for compatibility.
    heads = _spread(config.get("num_attention_heads") or config.get("attention_head_dim", 8), depth)
    forward = _spread(config.get("transformer_layers_per_block", 1), depth)
    backward = config.get("reverse_transformer_layers_per_block")
    backward = forward[::-1] if backward is None else _spread(backward, depth)

    def layers(
        stage: str, level: int, attend: Sequence[bool], depths: Any, *, reads_skip: bool = False
    ) -> tuple[Layer, ...]:
        resnet = ResNet(widths[level], groups, epsilon, modulation=modulation)
        depths = (depths,) * len(attend) if isinstance(depths, int) else depths
        if len(depths) < sum(attend):
            raise ValueError(f"unet config gives depths {depths} for {len(attend)} transformers")
        found = []
        for index, attends in enumerate(attend):
            blocks = [Block(resnet, f"{stage}.resnets.{index}", reads_skip)]
            if attends:
                op = _transformer(widths[level], heads[level], groups, depths[index], linear)
                blocks.append(Block(op, f"{stage}.attentions.{index}"))
            found.append(Layer(tuple(blocks)))
        return tuple(found)

    down, up = [], []
    for level, kind in enumerate(config["down_block_types"]):
        name, attends = f"down_blocks.{level}", _known("down_block_types", kind, _DOWN)
        built = layers(name, level, per_block[level] * (attends,), forward[level])
        down.append(Stage(name, built, Downsample() if level < depth - 1 else None))
    for index, kind in enumerate(config["up_block_types"]):
        name, level = f"up_blocks.{index}", depth - 1 - index
        attend = (per_block[level] + 1) * (_known("up_block_types", kind, _UP),)
        built = layers(name, level, attend, backward[index], reads_skip=True)
        up.append(Stage(name, built, Upsample() if level else None))
    kind = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    attend = _known("mid_block_type", kind, express.MIDDLES)
    middle = layers("mid_block", depth - 1, attend, forward[-1])
    return UNetSpec(
        stem=Conv(widths[0], config.get("conv_in_kernel", 3)),
        time=TimeEmbedding(widths[0], config.get("time_embedding_dim") or 4 * widths[0]),
        down=tuple(down),
        middle=Stage("mid_block", middle),
        up=tuple(up),
        norm=NormSiLU(groups, epsilon),
        head=Conv(config.get("out_channels", 4), config.get("conv_out_kernel", 3)),
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


def obstacles(spec: UNetSpec) -> tuple[str, ...]:
    """What keeps diffusers from building this architecture, in words; nothing if it can."""
    if len(spec.down) != len(spec.up):
        return (
            f"there are {len(spec.down)} down stages and {len(spec.up)} up stages; "
            "diffusers builds as many of both",
        )
    return tuple(express.differences(spec, from_config(express.settings(spec))))


def config(spec: UNetSpec, seed: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of an architecture edited from the one of `seed`.

    diffusers' own where it can build the architecture; otherwise ours, which holds the spec.
    """
    kept = {name: seed[name] for name in _INTERFACE if name in seed}
    if obstacles(spec):
        return {"_class_name": OURS, **kept, "spec": encode(spec)}
    if seed.get("_class_name") == OURS:
        return {"_class_name": THEIRS, **kept, **express.settings(spec)}
    if from_config(seed) == spec:
        return dict(seed)
    # The only setting by stage that says nothing of the architecture.
    context = {"cross_attention_dim": _context(seed)} if "cross_attention_dim" in seed else {}
    return {**seed, "_class_name": THEIRS, **context, **express.settings(spec)}


class UNet(NamedTuple):
    """A U-Net's folder: its architecture, its weights, and what is in its `config.json`."""

    spec: UNetSpec
    weights: Mapping[str, jax.Array]
    config: Mapping[str, Any]


def load(folder: Path, *, dtype: str = "float32") -> UNet:
    """A U-Net's folder, diffusers' or ours, whose weights are read when they are asked for.

    Raises `ValueError` on what is no such folder, naming what is wrong.
    """
    found = read_json(folder / "config.json")
    return UNet(from_config(found), map_weights(folder, dtype=dtype), found)


def save(
    folder: Path,
    spec: UNetSpec,
    weights: Mapping[str, jax.Array],
    seed: Mapping[str, Any],
    *,
    dtype: str = "float32",
    limit: int = SHARD,
) -> tuple[str, ...]:
    """Writes a U-Net's folder, of an architecture that was edited from the one of `seed`.

    It is one that diffusers loads and runs to the same result, if it can; the weights then have
    diffusers' names. Otherwise it is ours, and what is returned says why. Weights of more than
    `limit` bytes are sharded.
    """
    found, why = config(spec, seed), obstacles(spec)
    write_json(folder / "config.json", found)
    if not why:
        weights = _renamed(weights, spec, from_config(found))
    write_weights(folder / DIFFUSERS_WEIGHTS, weights, dtype=dtype, limit=limit)
    return why


def _renamed(
    weights: Mapping[str, jax.Array], spec: UNetSpec, built: UNetSpec
) -> Mapping[str, jax.Array]:
    """The weights of `spec` by their names in `built`, which computes the same."""
    steps = {step.name: other.name for step, other in zip(lower(spec), lower(built), strict=True)}

    def renamed(name: str) -> str:
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            if step := steps.get(".".join(parts[:count])):
                return ".".join([step, *parts[count:]])
        raise ValueError(f"{name} is a weight of no block of this architecture")

    if isinstance(weights, Mapped):
        return weights.renamed(renamed)
    return {renamed(name): weight for name, weight in weights.items()}


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
        _context(config),
        pooled=pooled,
    )


def _context(config: Mapping[str, Any]) -> int:
    """Width of the encoded prompts."""
    found = config["cross_attention_dim"]
    widths = set(found) if isinstance(found, list) else {found}
    if len(widths) != 1:
        raise ValueError(
            f"unet config has cross_attention_dim={found!r}; all stages read the same prompt, "
            "so they must have one width"
        )
    return widths.pop()


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
