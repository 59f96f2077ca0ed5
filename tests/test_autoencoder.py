import jax.numpy as jnp
import numpy as np
import pytest

from nas.diffusion.autoencoder import Autoencoder
from tests import drawn
from tests.drawn import compiled
from tests.golden.cases import AUTOENCODER, LATENTS, PIXELS

MEAN, STD = [0.5, -1.0, 0.0, 2.0], [1.0, 2.0, 0.5, 4.0]


def test_latents_are_normalised_channel_by_channel():
    plain = Autoencoder(AUTOENCODER)
    model = Autoencoder({**AUTOENCODER, "latents_mean": MEAN, "latents_std": STD})
    weights = drawn.weights(model.shapes, seed=0)
    pixels, latents = jnp.asarray(PIXELS), jnp.asarray(LATENTS)
    mean, _ = compiled(model.moments)(weights, pixels)
    normalised = (0.18215 / np.array(STD)) * (mean - np.array(MEAN))
    np.testing.assert_allclose(compiled(model.encode)(weights, pixels), normalised, rtol=1e-5)
    found = compiled(model.decode)(weights, (latents - np.array(MEAN)) * 0.18215 / np.array(STD))
    wanted = compiled(plain.decode)(weights, 0.18215 * latents)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latents_mean": MEAN}, r"latents_mean=\[0.5, .* and latents_std=None; give both"),
        (
            {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
            "down_block_types='AttnDownEncoderBlock2D'; only 'DownEncoderBlock2D'",
        ),
        ({"up_block_types": ["UpBlock"]}, "up_block_types='UpBlock'; only 'UpDecoderBlock2D'"),
    ],
)
def test_what_we_do_not_build_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Autoencoder({**AUTOENCODER, **settings})
