"""Convolutions are the same however a platform has them spelled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from search_spaces import layers
from tests.drawn import normal


@pytest.mark.parametrize("filters", [1, 2])
def test_a_depthwise_convolution_is_the_same_on_every_platform(filters):
    x, kernel = jnp.asarray(normal(0, 2, 5, 6, 4)), jnp.asarray(normal(1, 3, 3, 1, 4 * filters))
    plain = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    np.testing.assert_allclose(layers.convolve_depthwise(x, kernel), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [4, 64])
def test_a_convolution_of_few_pixels_and_many_channels_is_a_convolution(channels):
    x, kernel = jnp.asarray(normal(0, 2, 4, 4, channels)), jnp.asarray(normal(1, 3, 3, channels, 5))

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    np.testing.assert_allclose(layers.convolve(x, kernel), plain(x, kernel), rtol=1e-4, atol=1e-4)
    ours, theirs = (
        jax.grad(lambda x, k, f=f: jnp.sum(jnp.sin(f(x, k))), argnums=(0, 1))(x, kernel)
        for f in (layers.convolve, plain)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
