"""The ops of diffusion U-Nets, as `UNet2DConditionModel` of diffusers computes them.

Sub-layers carry diffusers' names, so checkpoints map by path. Images are
`[batch, height, width, channels]`, the time embedding `[batch, channels]`, the context (encoded
prompt) `[batch, tokens, channels]`.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from search_spaces import carrying, layers
from search_spaces.layers import (
    GroupNorm,
    Linear,
    Mixing,
    PointwiseConv,
    ReluByLength,
    ReluBySum,
    Softmax,
    attention,
    upsample,
)
from search_spaces.ops import Op, Shape, choice


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
class TextTimeEmbedding(Op):
    """The time embedding plus SDXL's second conditioning; reads `(time, pooled, sizes)`.

    `pooled` is a text encoder's pooled embedding, `[batch, channels]`; `sizes` are numbers about
    the picture (original size, crop, target size), `[batch, 6]`, each as sinusoids of `features`.
    """

    features: int

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        time, pooled, sizes = inputs
        channels = pooled.shape[-1] + sizes.shape[-1] * self.features
        return _TextTimeEmbedding(self, channels, time.shape[-1], rngs)


class _TextTimeEmbedding(nnx.Module):
    def __init__(self, op: TextTimeEmbedding, channels: int, width: int, rngs: nnx.Rngs):
        self.features = op.features
        self.linear_1 = Linear(channels, width, rngs=rngs)
        self.linear_2 = Linear(width, width, rngs=rngs)

    def __call__(self, time: jax.Array, pooled: jax.Array, sizes: jax.Array) -> jax.Array:
        features = time_features(sizes.reshape(-1), self.features).reshape(len(sizes), -1)
        joined = jnp.concatenate([pooled, features.astype(pooled.dtype)], axis=-1)
        return time + self.linear_2(jax.nn.silu(self.linear_1(joined)))


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


class Convolution(abc.ABC):
    """How a block convolves, as data. `outlet` is the path to its last layer, from its own."""

    outlet: ClassVar[str] = ""

    @abc.abstractmethod
    def layer(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs) -> nnx.Module:
        """Builds a 3x3 convolution that keeps height and width."""


@dataclasses.dataclass(frozen=True)
class Full(Convolution):
    """Every output channel sees all inputs at all nine places."""

    def layer(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return layers.Conv(channels_in, channels_out, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Separable(Convolution):
    """Depthwise, with `expansion` filters a channel, then pointwise: MobileDiffusion's SPConv at
    an expansion of one, SnapGen's at two."""

    expansion: int = 1

    outlet = ".pointwise"

    def __post_init__(self) -> None:
        if self.expansion < 1:
            raise ValueError(f"{self.expansion} filters a channel; a convolution has one or more")

    def layer(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return layers.SeparableConv(channels_in, channels_out, expansion=self.expansion, rngs=rngs)


class Modulation(abc.ABC):
    """How a block listens to the time embedding, as data. `parts` numbers per channel are read
    off the embedding."""

    parts: ClassVar[int]

    @abc.abstractmethod
    def apply(self, h: jax.Array, norm: layers.GroupNorm, time: jax.Array) -> jax.Array:
        """`h` modulated and normalised, before its nonlinearity; `time` is `[batch, 1, 1, ...]`."""


@dataclasses.dataclass(frozen=True)
class Additive(Modulation):
    """The projected embedding is added before the normalisation (SD)."""

    parts = 1

    def apply(self, h: jax.Array, norm: layers.GroupNorm, time: jax.Array) -> jax.Array:
        return norm(h + time)


@dataclasses.dataclass(frozen=True)
class ScaleShift(Modulation):
    """The normalised features are scaled and shifted (Dhariwal & Nichol, 2021)."""

    parts = 2

    def apply(self, h: jax.Array, norm: layers.GroupNorm, time: jax.Array) -> jax.Array:
        scale, shift = jnp.split(time, 2, axis=-1)
        return norm(h) * (1 + scale) + shift


@dataclasses.dataclass(frozen=True)
class ResNet(Op):
    """A residual block to `width` channels; reads `(x, time)`, `(x, skip, time)` or only `(x,)`.

    With a skip, `x` and the skip are concatenated first, as in the up path. Autoencoders have no
    time embedding.
    """

    width: int
    groups: int
    epsilon: float = 1e-5
    convolution: Convolution = choice(Full(), Separable(), Separable(2), carry=carrying.convolution)
    modulation: Modulation = choice(Additive(), ScaleShift(), carry=carrying.modulation)

    conditions = ("time",)

    @property
    def outlet(self) -> str:
        return f"conv2{self.convolution.outlet}"

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        return _ResNet(self, *_images_and_time(inputs), rngs)


def _images_and_time(reads: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    images = tuple(read for read in reads if len(read.shape) == 4)
    return images, reads[-1] if len(images) < len(reads) else None


class _ResNet(nnx.Module):
    def __init__(self, op: ResNet, images: tuple[Shape, ...], time: Shape | None, rngs: nnx.Rngs):
        channels = sum(x.shape[-1] for x in images)
        self.modulation = op.modulation
        self.norm1 = GroupNorm(channels, op.groups, epsilon=op.epsilon, silu=True)
        self.conv1 = op.convolution.layer(channels, op.width, rngs=rngs)
        if time is not None:
            parts = op.modulation.parts
            self.time_emb_proj = Linear(time.shape[-1], parts * op.width, rngs=rngs)
        self.norm2 = GroupNorm(op.width, op.groups, epsilon=op.epsilon)
        self.conv2 = op.convolution.layer(op.width, op.width, rngs=rngs)
        if channels != op.width:
            self.conv_shortcut = PointwiseConv(channels, op.width, rngs=rngs)

    def __call__(self, *reads: jax.Array) -> jax.Array:
        images, time = _images_and_time(reads)
        x = images[0] if len(images) == 1 else jnp.concatenate(images, axis=-1)
        h = self.conv1(self.norm1(x))
        if time is None:
            h = self.norm2(h)
        else:
            projected = self.time_emb_proj(jax.nn.silu(time))[:, None, None, :]
            h = self.modulation.apply(h, self.norm2, projected)
        h = self.conv2(jax.nn.silu(h))
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + h


class Gate(abc.ABC):
    """The nonlinearity of a gated linear unit, as data.

    It is nearly x * sigmoid(`slope` * x): what one gate stands in for another by.
    """

    slope: ClassVar[float]

    @abc.abstractmethod
    def apply(self, x: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class GELU(Gate):
    """The exact GELU of SD's GEGLU (Shazeer, 2020)."""

    slope = 1.702  # Hendrycks & Gimpel, 2016.

    def apply(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)


@dataclasses.dataclass(frozen=True)
class Swish(Gate):
    """SiLU, for SwiGLU: stable in float16 and int8, where GELU's cubic is not."""

    slope = 1.0

    def apply(self, x: jax.Array) -> jax.Array:
        return jax.nn.silu(x)


@dataclasses.dataclass(frozen=True)
class Transformer(Op):
    """Layers of self-attention, cross-attention to the context and a gated FFN; reads
    `(x, context)`.

    SnapFusion calls this a cross-attention block. `heads` of `size` channels attend; together they
    may be narrower than `x`. `ffn` is the width of the FFN's fused first layer, in widths of `x`:
    half of it is gated by the other half. `shared` has one projection for keys and values.
    `linear` projects in and out by linear layers (SD-2.x) and not by 1x1 convolutions (SD-1.x):
    the same function, other shapes on disk.
    """

    heads: int = choice(among=lambda op: _fewer(op.heads), carry=carrying.heads)
    size: int  # pyright: ignore[reportGeneralTypeIssues]
    groups: int  # pyright: ignore[reportGeneralTypeIssues]
    depth: int = choice(1, among=lambda op: _fewer(op.depth), carry=carrying.depth)
    linear: bool = False
    self_attention: bool = choice(True, False, carry=carrying.attended)
    cross_attention: bool = choice(True, False, carry=carrying.attended)
    mixing: Mixing = choice(Softmax(), ReluByLength(), ReluBySum(), carry=carrying.mixing)
    shared: bool = choice(False, True, carry=carrying.shared)
    ffn: int = choice(8, 6, 4, carry=carrying.ffn)
    gate: Gate = choice(GELU(), Swish(), carry=carrying.gate)

    conditions = ("context",)

    def __post_init__(self) -> None:
        if min(self.heads, self.depth) < 1:
            raise ValueError(f"{self.heads} heads and {self.depth} layers; one or more is possible")
        if self.ffn < 2 or self.ffn % 2:
            raise ValueError(
                f"an FFN of {self.ffn} widths; it has two halves, so 2, 4, 6 and so on are possible"
            )

    @property
    def outlet(self) -> str:
        return "proj_out"

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        x, context = inputs
        return _Transformer(self, x.shape[-1], context.shape[-1], rngs)


def _fewer(count: int) -> tuple[int, ...]:
    """One less, and half."""
    return tuple(n for n in (count - 1, count // 2) if n > 0)


class _Transformer(nnx.Module):
    def __init__(self, op: Transformer, width: int, context: int, rngs: nnx.Rngs):
        project = Linear if op.linear else PointwiseConv
        self.norm = GroupNorm(width, op.groups, epsilon=1e-6)
        self.proj_in = project(width, width, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [_TransformerLayer(op, width, context, rngs) for _ in range(op.depth)]
        )
        self.proj_out = project(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        h = self.proj_in(self.norm(x)).reshape(x.shape[0], -1, x.shape[-1])
        for layer in self.transformer_blocks:
            h = layer(h, context)
        return x + self.proj_out(h.reshape(x.shape))


class _TransformerLayer(nnx.Module):
    def __init__(self, op: Transformer, width: int, context: int, rngs: nnx.Rngs):
        self.op = op
        if op.self_attention:
            self.norm1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
            self.attn1 = _Attention(op, width, width, rngs)
        if op.cross_attention:
            self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
            self.attn2 = _Attention(op, width, context, rngs)
        self.norm3 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.ff = _FeedForward(op, width, rngs)

    def __call__(self, h: jax.Array, context: jax.Array) -> jax.Array:
        if self.op.self_attention:
            normed = self.norm1(h)
            h = h + self.attn1(normed, normed)
        if self.op.cross_attention:
            h = h + self.attn2(self.norm2(h), context)
        return h + self.ff(self.norm3(h))


class _Attention(nnx.Module):
    def __init__(self, op: Transformer, width: int, context: int, rngs: nnx.Rngs):
        self.op, inner = op, op.heads * op.size
        self.to_q = Linear(width, inner, use_bias=False, rngs=rngs)
        if op.shared:
            self.to_kv = Linear(context, inner, use_bias=False, rngs=rngs)
        else:
            self.to_k = Linear(context, inner, use_bias=False, rngs=rngs)
            self.to_v = Linear(context, inner, use_bias=False, rngs=rngs)
        self.to_out = nnx.List([Linear(inner, width, rngs=rngs)])

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        if self.op.shared:
            key = value = self.to_kv(context)
        else:
            key, value = self.to_k(context), self.to_v(context)
        mixed = attention(self.to_q(x), key, value, self.op.heads, mixing=self.op.mixing)
        return self.to_out[0](mixed)


class _FeedForward(nnx.Module):
    def __init__(self, op: Transformer, width: int, rngs: nnx.Rngs):
        self.gate, fused = op.gate, op.ffn * width
        if fused % 2:
            raise ValueError(f"an FFN of {fused} channels has no halves to gate")
        # Named `net.0.proj` and `net.2` on disk; the layer between is dropout.
        self.net: Any = nnx.Dict(
            {
                "0": nnx.Dict(proj=Linear(width, fused, rngs=rngs)),
                "2": Linear(fused // 2, width, rngs=rngs),
            }
        )

    def __call__(self, h: jax.Array) -> jax.Array:
        value, gate = jnp.split(self.net["0"]["proj"](h), 2, axis=-1)
        return self.net["2"](value * self.gate.apply(gate))


@dataclasses.dataclass(frozen=True)
class ImageAttention(Op):
    """Single-headed self-attention over pixels, as in the middle of an autoencoder."""

    groups: int
    epsilon: float = 1e-6

    @property
    def outlet(self) -> str:
        return "to_out.0"

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
