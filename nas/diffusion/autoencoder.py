"""The autoencoder of latent diffusion, as `AutoencoderKL` of diffusers has it.

Encoder and decoder are programs of the same ops as the U-Net.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from search_spaces.blocks import Conv, Downsample, ImageAttention, NormSiLU, ResNet, Upsample
from search_spaces.model import Model, Weights
from search_spaces.ops import Op, Shape
from search_spaces.program import Program, Step, network

_EPSILON = 1e-6

# What the code below does not read must have the value given here, as it changes the function.
# `force_upcast` asks for float32 where weights are of half precision; ours are float32 always.
_FIXED: Mapping[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "shift_factor": None,
}
_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


class _Chain:
    """A program whose every step reads the one before."""

    def __init__(self, source: str):
        self.steps: list[Step] = []
        self._source = source

    def add(self, name: str, op: Op) -> None:
        read = self.steps[-1].name if self.steps else self._source
        self.steps.append(Step(name, op, (read,)))


def encoder_program(config: Mapping[str, Any]) -> Program:
    """From `pixels` to `moments`: mean and log-variance of the latents, in that order."""
    widths, groups = config["block_out_channels"], config.get("norm_num_groups", 32)
    chain = _Chain("pixels")
    chain.add("encoder.conv_in", Conv(widths[0]))
    for level, width in enumerate(widths):
        for i in range(config.get("layers_per_block", 1)):
            chain.add(f"encoder.down_blocks.{level}.resnets.{i}", ResNet(width, groups, _EPSILON))
        if level < len(widths) - 1:
            name = f"encoder.down_blocks.{level}.downsamplers.0"
            chain.add(name, Downsample(centred=False))
    _middle(chain, "encoder.mid_block", config)
    channels = 2 * config.get("latent_channels", 4)
    chain.add("encoder.conv_norm_out", NormSiLU(groups, _EPSILON))
    chain.add("encoder.conv_out", Conv(channels))
    if config.get("use_quant_conv", True):
        chain.add("quant_conv", Conv(channels, kernel=1))
    return tuple(chain.steps)


def decoder_program(config: Mapping[str, Any]) -> Program:
    """From `latents` to pixels in [-1, 1]."""
    widths, groups = config["block_out_channels"], config.get("norm_num_groups", 32)
    chain = _Chain("latents")
    if config.get("use_post_quant_conv", True):
        chain.add("post_quant_conv", Conv(config.get("latent_channels", 4), kernel=1))
    chain.add("decoder.conv_in", Conv(widths[-1]))
    _middle(chain, "decoder.mid_block", config)
    for level, width in enumerate(reversed(widths)):
        for i in range(config.get("layers_per_block", 1) + 1):
            chain.add(f"decoder.up_blocks.{level}.resnets.{i}", ResNet(width, groups, _EPSILON))
        if level < len(widths) - 1:
            chain.add(f"decoder.up_blocks.{level}.upsamplers.0", Upsample())
    chain.add("decoder.conv_norm_out", NormSiLU(groups, _EPSILON))
    chain.add("decoder.conv_out", Conv(config.get("out_channels", 3)))
    return tuple(chain.steps)


def _middle(chain: _Chain, name: str, config: Mapping[str, Any]) -> None:
    width, groups = config["block_out_channels"][-1], config.get("norm_num_groups", 32)
    chain.add(f"{name}.resnets.0", ResNet(width, groups, _EPSILON))
    if config.get("mid_block_add_attention", True):
        chain.add(f"{name}.attentions.0", ImageAttention(groups, _EPSILON))
    chain.add(f"{name}.resnets.1", ResNet(width, groups, _EPSILON))


def _factor(config: Mapping[str, Any]) -> int:
    return 2 ** (len(config["block_out_channels"]) - 1)


def pixels_shape(config: Mapping[str, Any], batch: int) -> Shape:
    size = config["sample_size"]
    return jax.ShapeDtypeStruct((batch, size, size, config.get("in_channels", 3)), "float32")


def latents_shape(config: Mapping[str, Any], batch: int) -> Shape:
    size = config["sample_size"] // _factor(config)
    return jax.ShapeDtypeStruct((batch, size, size, config.get("latent_channels", 4)), "float32")


class Autoencoder:
    """Both halves of an `AutoencoderKL`; methods take the weights of the whole model.

    Latents are normalised to about unit variance: by the configuration's `scaling_factor` and,
    where it has them, by `latents_mean` and `latents_std` of every channel before. Raises
    `ValueError` naming the setting that we do not build.
    """

    def __init__(self, config: Mapping[str, Any]):
        _check(config)
        self.config = config
        self.factor = _factor(config)  # Pixels to a latent, along an edge.
        # Numbers, or one for each channel.
        self.shift, self.scale = _normalisation(config)
        self.encoder: Model = network(encoder_program(config), {"pixels": pixels_shape(config, 1)})
        self.decoder: Model = network(
            decoder_program(config), {"latents": latents_shape(config, 1)}
        )
        self.shapes: dict[str, Shape] = {**self.encoder.shapes, **self.decoder.shapes}

    def initial(self, seed: int) -> Weights:
        return {**self.encoder.initial(seed), **self.decoder.initial(seed + 1)}

    def moments(
        self, weights: Mapping[str, jax.Array], pixels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the latents of `pixels` in [-1, 1], before normalisation."""
        part = {name: weights[name] for name in self.encoder.shapes}
        mean, log_variance = jnp.split(self.encoder(part, {"pixels": pixels}), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def encode(self, weights: Mapping[str, jax.Array], pixels: jax.Array) -> jax.Array:
        """The normalised mean latents of `pixels` in [-1, 1]."""
        return self.scale * (self.moments(weights, pixels)[0] - self.shift)

    def decode(self, weights: Mapping[str, jax.Array], latents: jax.Array) -> jax.Array:
        """Pixels of normalised `latents`, in about [-1, 1]."""
        part = {name: weights[name] for name in self.decoder.shapes}
        return self.decoder(part, {"latents": latents / self.scale + self.shift})


def _normalisation(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """What is taken from latents, and what they are then multiplied by."""
    scale: float = config.get("scaling_factor", 0.18215)
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if (mean is None) != (deviation is None):
        raise ValueError(
            f"vae config has latents_mean={mean} and latents_std={deviation}; give both or neither"
        )
    if mean is None:
        return 0.0, scale
    return np.asarray(mean, np.float32), (scale / np.asarray(deviation)).astype(np.float32)


def _check(config: Mapping[str, Any]) -> None:
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"vae config has {name}={config[name]!r}; only {value!r} is supported")
    for name, kind in _BLOCKS.items():
        for found in config.get(name, ()):
            if found != kind:
                raise ValueError(f"vae config has {name}={found!r}; only {kind!r} is supported")
