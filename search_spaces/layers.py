"""Layers spelled the way XLA's CPU backend runs them fast; the mathematics is the textbook's.

Images are `[batch, height, width, channels]`, sequences `[batch, tokens, channels]`.
"""

import abc
import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx


class GroupNorm(nnx.Module):
    """Group normalisation (Wu & He, 2018), optionally followed by SiLU.

    Sums are taken per channel first and mixed per group after, on `[batch, channels]`: a
    reduction over a reshaped image is three times slower on CPU.
    """

    def __init__(self, channels: int, groups: int, *, epsilon: float, silu: bool = False):
        if channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups")
        self.groups, self.epsilon, self.silu = groups, epsilon, silu
        self.scale = nnx.Param(jnp.ones((channels,)))
        self.bias = nnx.Param(jnp.zeros((channels,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, channels = x.shape[0], x.shape[-1]
        wide = x.astype(jnp.float32)
        space = tuple(range(1, x.ndim - 1))
        moments = jnp.stack([wide.mean(space), jnp.square(wide).mean(space)])
        grouped = moments.reshape(2, batch, self.groups, -1).mean(-1, keepdims=True)
        mean, square = jnp.broadcast_to(
            grouped, (2, batch, self.groups, channels // self.groups)
        ).reshape(2, batch, channels)
        deviation = jnp.sqrt(jnp.maximum(square - mean * mean, 0.0) + self.epsilon)
        slope = self.scale[...] / deviation
        shift = self.bias[...] - mean * slope
        broadcast = (batch, *(1 for _ in space), channels)
        y = wide * slope.reshape(broadcast) + shift.reshape(broadcast)
        return (jax.nn.silu(y) if self.silu else y).astype(x.dtype)


def _kernel(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """A kernel `[..., in, out]` of LeCun's variance."""
    return nnx.Param(math.prod(shape[:-1]) ** -0.5 * rngs.params.normal(shape))


class Linear(nnx.Module):
    """A linear layer over the last axis, run as one product of matrices.

    The leading axes are merged first: the gradient of the kernel over two contracted axes is more
    than twice as slow on CPU.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, use_bias: bool = True, rngs: nnx.Rngs
    ):
        self.kernel = _kernel(rngs, channels_in, channels_out)
        self.bias = nnx.Param(jnp.zeros((channels_out,))) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _product(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class PointwiseConv(nnx.Module):
    """A 1x1 convolution, run as one product of matrices. Its kernel is `[1, 1, in, out]`."""

    def __init__(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs):
        self.kernel = _kernel(rngs, 1, 1, channels_in, channels_out)
        self.bias = nnx.Param(jnp.zeros((channels_out,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return _product(x, self.kernel[...][0, 0]) + self.bias[...].astype(x.dtype)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    return flat.reshape(*x.shape[:-1], -1)


class Conv(nnx.Module):
    """A square convolution of odd `size` that keeps height and width."""

    def __init__(self, channels_in: int, channels_out: int, size: int = 3, *, rngs: nnx.Rngs):
        self.kernel = _kernel(rngs, size, size, channels_in, channels_out)
        self.bias = nnx.Param(jnp.zeros((channels_out,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return convolve(x, self.kernel[...].astype(x.dtype)) + self.bias[...].astype(x.dtype)


class SeparableConv(nnx.Module):
    """A depthwise convolution of odd `size`, then a pointwise one; height and width are kept.

    Every channel is filtered in `expansion` ways, so the kernel it stands for has that rank for
    each channel. `depthwise` is `[size, size, 1, in * expansion]`, a channel's filters together.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int = 3,
        *,
        expansion: int = 1,
        rngs: nnx.Rngs,
    ):
        filtered = channels_in * expansion
        self.depthwise = nnx.Dict(kernel=_kernel(rngs, size, size, 1, filtered))
        self.pointwise = PointwiseConv(filtered, channels_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.depthwise["kernel"][...].astype(x.dtype)
        return self.pointwise(convolve_depthwise(x, kernel))


def combined(depthwise: jax.Array, pointwise: jax.Array, expansion: int) -> jax.Array:
    """The kernel `[size, size, in, out]` that the two of a `SeparableConv` stand for."""
    size, _, _, filtered = depthwise.shape
    filters = depthwise.reshape(size, size, filtered // expansion, expansion)
    mixed = pointwise.reshape(filtered // expansion, expansion, -1)
    return jnp.einsum("hwie,ieo->hwio", filters, mixed)


def convolve_depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Every channel of `x` convolved with its own filters, `[size, size, 1, in * filters]`, at
    stride one, padded with zeros.

    XLA's CPU backend is ten times faster at a sum of shifted products than at this convolution.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_depthwise_shifted, default=_depthwise)


def _depthwise_shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    size = kernel.shape[0]
    filters = kernel.reshape(size, size, channels, -1)
    products = [
        shifted[..., None] * filters[row, column] for row, column, shifted in _shifts(x, size)
    ]
    return sum(products[1:], products[0]).reshape(batch, height, width, -1)


def _shifts(x: jax.Array, size: int) -> Iterator[tuple[int, int, jax.Array]]:
    """Yields each tap of a square filter, and `x` as that tap sees it, padded with zeros."""
    pad, (_, height, width, _) = size // 2, x.shape
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for row in range(size):
        for column in range(size):
            yield row, column, padded[:, row : row + height, column : column + width]


def _depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x` convolved with a kernel `[size, size, in, out]` at stride one, padded with zeros.

    XLA's CPU backend computes the gradient of a kernel 25 times slower inside a conditional, where
    blocks that may be skipped live. As one matrix product per tap it is as fast there as anywhere.
    Where there are fewer pixels than channels it is half as fast at the convolution, too, as at one
    product of all patches.
    """
    if math.prod(x.shape[:-1]) > x.shape[-1]:
        return _convolve(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=_convolve_patches, default=_convolve)


def _convolve_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    taps = [shifted.reshape(-1, channels) for *_, shifted in _shifts(x, kernel.shape[0])]
    flat = jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
    return flat.reshape(*x.shape[:-1], -1)


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolve_forward(x: jax.Array, kernel: jax.Array):
    return convolve(x, kernel), (x, kernel)


def _convolve_backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array):
    x, kernel = kept
    flat = dy.reshape(-1, dy.shape[-1])
    taps = [
        shifted.reshape(-1, x.shape[-1]).T @ flat for *_, shifted in _shifts(x, kernel.shape[0])
    ]
    return convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3)), jnp.stack(taps).reshape(kernel.shape)


convolve.defvjp(_convolve_forward, _convolve_backward)


class Mixing(abc.ABC):
    """How attention turns scores into weights and mixes values by them, as data.

    Subclasses are frozen dataclasses: they are fields of ops.
    """

    @abc.abstractmethod
    def mix(self, scores: jax.Array, value: jax.Array) -> jax.Array:
        """Values `[..., keys, size]` mixed by float32 scores `[..., queries, keys]`."""


@dataclasses.dataclass(frozen=True)
class Softmax(Mixing):
    """The weights are the softmax of the scores (Vaswani et al., 2017)."""

    def mix(self, scores: jax.Array, value: jax.Array) -> jax.Array:
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        total = weights.sum(-1, keepdims=True)
        return (weights.astype(value.dtype) @ value) / total.astype(value.dtype)


@dataclasses.dataclass(frozen=True)
class ReluByLength(Mixing):
    """The weights are the positive scores over the number of keys (Wortsman et al., 2023), which
    keeps them at the softmax's scale. MobileDiffusion's choice for phones."""

    def mix(self, scores: jax.Array, value: jax.Array) -> jax.Array:
        return (jax.nn.relu(scores) / scores.shape[-1]).astype(value.dtype) @ value


@dataclasses.dataclass(frozen=True)
class ReluBySum(Mixing):
    """The weights are the positive scores over their sum: they sum to one, as a softmax's do."""

    def mix(self, scores: jax.Array, value: jax.Array) -> jax.Array:
        weights = jax.nn.relu(scores)
        total = weights.sum(-1, keepdims=True) + 1e-6
        return (weights.astype(value.dtype) @ value) / total.astype(value.dtype)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    heads: int,
    *,
    mixing: Mixing = Softmax(),
    causal: bool = False,
) -> jax.Array:
    """Scaled dot-product attention of `[batch, tokens, heads * size]`, same shape as `query`.

    The explicit transposes and the division after the second product make it three times as fast
    on CPU as `jax.nn.dot_product_attention`.
    """
    size = query.shape[-1] // heads

    def split(x: jax.Array) -> jax.Array:  # [batch, heads, tokens, size]
        return x.reshape(x.shape[0], x.shape[1], heads, size).transpose(0, 2, 1, 3)

    q, k, v = split(query * size**-0.5), split(key), split(value)
    scores = (q @ k.transpose(0, 1, 3, 2)).astype(jnp.float32)
    if causal:
        tokens = scores.shape[-1]
        scores = jnp.where(jnp.tril(jnp.ones((tokens, tokens), bool)), scores, -jnp.inf)
    return mixing.mix(scores, v).transpose(0, 2, 1, 3).reshape(query.shape)


def upsample(x: jax.Array) -> jax.Array:
    """Nearest neighbour, twice as high and wide."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
