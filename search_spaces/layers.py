"""Layers spelled the way XLA's CPU backend runs them fast; the mathematics is the textbook's.

Images are `[batch, height, width, channels]`, sequences `[batch, tokens, channels]`.
"""

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


class Linear(nnx.Module):
    """A linear layer over the last axis, run as one product of matrices.

    The leading axes are merged first: the gradient of the kernel over two contracted axes is more
    than twice as slow on CPU.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, use_bias: bool = True, rngs: nnx.Rngs
    ):
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (channels_in, channels_out)))
        self.bias = nnx.Param(jnp.zeros((channels_out,))) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _product(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class PointwiseConv(nnx.Module):
    """A 1x1 convolution, run as one product of matrices. Its kernel is `[1, 1, in, out]`."""

    def __init__(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (1, 1, channels_in, channels_out)))
        self.bias = nnx.Param(jnp.zeros((channels_out,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return _product(x, self.kernel[...][0, 0]) + self.bias[...].astype(x.dtype)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    return flat.reshape(*x.shape[:-1], -1)


class Conv(nnx.Module):
    """A square convolution of odd `size` that keeps height and width."""

    def __init__(self, channels_in: int, channels_out: int, size: int = 3, *, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (size, size, channels_in, channels_out)))
        self.bias = nnx.Param(jnp.zeros((channels_out,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return convolve(x, self.kernel[...].astype(x.dtype)) + self.bias[...].astype(x.dtype)


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x` convolved with a kernel `[size, size, in, out]` at stride one, padded with zeros.

    XLA's CPU backend computes the gradient of a kernel 25 times slower inside a conditional, where
    blocks that may be skipped live. As one matrix product per tap it is as fast there as anywhere.
    """
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolve_forward(x: jax.Array, kernel: jax.Array):
    return convolve(x, kernel), (x, kernel)


def _convolve_backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array):
    x, kernel = kept
    size, (_, height, width, channels) = kernel.shape[0], x.shape
    pad = size // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    flat = dy.reshape(-1, dy.shape[-1])
    taps = [
        padded[:, row : row + height, column : column + width].reshape(-1, channels).T @ flat
        for row in range(size)
        for column in range(size)
    ]
    return convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3)), jnp.stack(taps).reshape(kernel.shape)


convolve.defvjp(_convolve_forward, _convolve_backward)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, heads: int, *, causal: bool = False
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
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    mixed = (weights.astype(v.dtype) @ v) / total.astype(v.dtype)
    return mixed.transpose(0, 2, 1, 3).reshape(query.shape)


def upsample(x: jax.Array) -> jax.Array:
    """Nearest neighbour, twice as high and wide."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
