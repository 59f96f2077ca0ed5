"""The ops of diffusion U-Nets, as `UNet2DConditionModel` of diffusers computes them.

Sub-layers carry diffusers' names, so checkpoints map by path. Images are
`[batch, height, width, channels]`, the time embedding `[batch, channels]`, the context (encoded
prompt) `[batch, tokens, channels]`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from search_spaces import layers
from search_spaces.layers import GroupNorm, Linear, PointwiseConv, attention, upsample
from search_spaces.ops import Op, Shape


def time_features(timestep: jax.Array, width: int, *, max_period: float = 10_000.0) -> jax.Array:
    """Returns sinusoidal features of the diffusion step, `[batch, width]`, cosines first.

    `timestep` is `[batch]`, in steps and not in `[0, 1]`. Half the features are sines, so
    `width` must be even.
    """
    frequencies = max_period ** (-jnp.arange(width // 2) / (width // 2))
    angles = timestep.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


@dataclasses.dataclass(frozen=True)
class TimeEmbedding(Op):
    """Embeds a timestep `[batch]`: sinusoids of `features`, then two linear layers of `width`."""

    features: int
    width: int

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        return _TimeEmbedding(self, rngs)


class _TimeEmbedding(nnx.Module):
    def __init__(self, op: TimeEmbedding, rngs: nnx.Rngs):
        self.features = op.features
        self.linear_1 = Linear(op.features, op.width, rngs=rngs)
        self.linear_2 = Linear(op.width, op.width, rngs=rngs)

    def __call__(self, timestep: jax.Array) -> jax.Array:
        features = time_features(timestep, self.features).astype(self.linear_1.kernel[...].dtype)
        return self.linear_2(jax.nn.silu(self.linear_1(features)))


@dataclasses.dataclass(frozen=True)
class Conv(Op):
    """A convolution to `width` channels."""

    width: int
    kernel: int = 3

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        (x,) = inputs
        return layers.Conv(x.shape[-1], self.width, self.kernel, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class NormSiLU(Op):
    """Group normalisation and SiLU, as before the last convolution."""

    groups: int
    epsilon: float = 1e-5

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        (x,) = inputs
        return GroupNorm(x.shape[-1], self.groups, epsilon=self.epsilon, silu=True)


@dataclasses.dataclass(frozen=True)
class ResNet(Op):
    """A residual block to `width` channels; reads `(x, time)`, `(x, skip, time)` or only `(x,)`.

    With a skip, `x` and the skip are concatenated first, as in the up path. Autoencoders have no
    time embedding.
    """

    width: int
    groups: int
    epsilon: float = 1e-5

    outlet = "conv2"

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        return _ResNet(self, *_images_and_time(inputs), rngs)


def _images_and_time(reads: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    images = tuple(read for read in reads if len(read.shape) == 4)
    return images, reads[-1] if len(images) < len(reads) else None


class _ResNet(nnx.Module):
    def __init__(self, op: ResNet, images: tuple[Shape, ...], time: Shape | None, rngs: nnx.Rngs):
        channels = sum(x.shape[-1] for x in images)
        self.norm1 = GroupNorm(channels, op.groups, epsilon=op.epsilon, silu=True)
        self.conv1 = layers.Conv(channels, op.width, rngs=rngs)
        if time is not None:
            self.time_emb_proj = Linear(time.shape[-1], op.width, rngs=rngs)
        self.norm2 = GroupNorm(op.width, op.groups, epsilon=op.epsilon, silu=True)
        self.conv2 = layers.Conv(op.width, op.width, rngs=rngs)
        if channels != op.width:
            self.conv_shortcut = PointwiseConv(channels, op.width, rngs=rngs)

    def __call__(self, *reads: jax.Array) -> jax.Array:
        images, time = _images_and_time(reads)
        x = images[0] if len(images) == 1 else jnp.concatenate(images, axis=-1)
        h = self.conv1(self.norm1(x))
        if time is not None:
            h = h + self.time_emb_proj(jax.nn.silu(time))[:, None, None, :]
        h = self.conv2(self.norm2(h))
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + h


@dataclasses.dataclass(frozen=True)
class Transformer(Op):
    """Self-attention, cross-attention to the context and a GEGLU network; reads `(x, context)`.

    SnapFusion calls this a cross-attention block. `linear` projects in and out by linear layers
    (SD-2.x) and not by 1x1 convolutions (SD-1.x): the same function, other shapes on disk.
    """

    heads: int
    groups: int
    depth: int = 1
    linear: bool = False

    outlet = "proj_out"

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        x, context = inputs
        if x.shape[-1] % self.heads:
            raise ValueError(f"{x.shape[-1]} channels do not divide into {self.heads} heads")
        return _Transformer(self, x.shape[-1], context.shape[-1], rngs)


class _Transformer(nnx.Module):
    def __init__(self, op: Transformer, width: int, context: int, rngs: nnx.Rngs):
        project = Linear if op.linear else PointwiseConv
        self.norm = GroupNorm(width, op.groups, epsilon=1e-6)
        self.proj_in = project(width, width, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [_TransformerLayer(op.heads, width, context, rngs) for _ in range(op.depth)]
        )
        self.proj_out = project(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        h = self.proj_in(self.norm(x)).reshape(x.shape[0], -1, x.shape[-1])
        for layer in self.transformer_blocks:
            h = layer(h, context)
        return x + self.proj_out(h.reshape(x.shape))


class _TransformerLayer(nnx.Module):
    def __init__(self, heads: int, width: int, context: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attn1 = _Attention(heads, width, width, rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attn2 = _Attention(heads, width, context, rngs)
        self.norm3 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.ff = _FeedForward(width, rngs)

    def __call__(self, h: jax.Array, context: jax.Array) -> jax.Array:
        normed = self.norm1(h)
        h = h + self.attn1(normed, normed)
        h = h + self.attn2(self.norm2(h), context)
        return h + self.ff(self.norm3(h))


class _Attention(nnx.Module):
    def __init__(self, heads: int, width: int, context: int, rngs: nnx.Rngs):
        self.heads = heads
        self.to_q = Linear(width, width, use_bias=False, rngs=rngs)
        self.to_k = Linear(context, width, use_bias=False, rngs=rngs)
        self.to_v = Linear(context, width, use_bias=False, rngs=rngs)
        self.to_out = nnx.List([Linear(width, width, rngs=rngs)])

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        mixed = attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads)
        return self.to_out[0](mixed)


class _FeedForward(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        # Named `net.0.proj` and `net.2` on disk; the layer between is dropout.
        self.net: Any = nnx.Dict(
            {
                "0": nnx.Dict(proj=Linear(width, 8 * width, rngs=rngs)),
                "2": Linear(4 * width, width, rngs=rngs),
            }
        )

    def __call__(self, h: jax.Array) -> jax.Array:
        value, gate = jnp.split(self.net["0"]["proj"](h), 2, axis=-1)
        return self.net["2"](value * jax.nn.gelu(gate, approximate=False))


@dataclasses.dataclass(frozen=True)
class ImageAttention(Op):
    """Single-headed self-attention over pixels, as in the middle of an autoencoder."""

    groups: int
    epsilon: float = 1e-6

    outlet = "to_out.0"

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        (x,) = inputs
        return _ImageAttention(self, x.shape[-1], rngs)


class _ImageAttention(nnx.Module):
    def __init__(self, op: ImageAttention, width: int, rngs: nnx.Rngs):
        self.group_norm = GroupNorm(width, op.groups, epsilon=op.epsilon)
        self.to_q = Linear(width, width, rngs=rngs)
        self.to_k = Linear(width, width, rngs=rngs)
        self.to_v = Linear(width, width, rngs=rngs)
        self.to_out = nnx.List([Linear(width, width, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.group_norm(x).reshape(x.shape[0], -1, x.shape[-1])
        mixed = attention(self.to_q(h), self.to_k(h), self.to_v(h), heads=1)
        return x + self.to_out[0](mixed).reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class Downsample(Op):
    """A 3x3 convolution of stride 2. `centred` pads all sides by one; autoencoders pad only the
    right and the bottom."""

    centred: bool = True

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        (x,) = inputs
        return _Downsample(self, x.shape[-1], rngs)


class _Downsample(nnx.Module):
    def __init__(self, op: Downsample, width: int, rngs: nnx.Rngs):
        pad = (1, 1) if op.centred else (0, 1)
        self.conv = nnx.Conv(width, width, (3, 3), strides=2, padding=(pad, pad), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


@dataclasses.dataclass(frozen=True)
class Upsample(Op):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution."""

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        (x,) = inputs
        return _Upsample(x.shape[-1], rngs)


class _Upsample(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.conv = layers.Conv(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(upsample(x))
