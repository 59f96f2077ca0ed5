"""Models and samplers compute what diffusers and transformers computed for the same numbers.

The live comparison is in `tests/parity`; this one needs neither PyTorch nor a download.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from nas.diffusion import clip, samplers, unet
from nas.diffusion.autoencoder import Autoencoder
from search_spaces.program import network, until
from search_spaces.unet import lower
from tests import drawn
from tests.drawn import compiled, fake_network, relative_error, stepwise
from tests.golden import cases

CLOSE = 1e-4  # Of networks: float32 sums in another order.
EXACT = 1e-5  # Of samplers.


@functools.cache
def golden() -> dict[str, np.ndarray]:
    return load_file(Path(__file__).parent / "golden" / "outputs.safetensors")


@pytest.mark.parametrize("name", cases.UNETS)
def test_unets_compute_what_diffusers_does(name):
    config = cases.UNETS[name]
    model = network(lower(unet.from_config(config)), unet.shapes(config, batch=2, tokens=5))
    inputs = {
        "sample": jnp.asarray(cases.LATENTS),
        "timestep": jnp.asarray(cases.TIMESTEPS),
        "context": jnp.asarray(cases.CONTEXT),
    }
    found = compiled(model)(drawn.weights(model.shapes, seed=0), inputs)
    assert relative_error(found, golden()[name]) < CLOSE


@pytest.mark.parametrize("name", cases.PUBLISHED)
def test_published_unets_at_full_depth_compute_what_diffusers_does(name):
    values = cases.inputs_of(cases.PUBLISHED[name])
    program = lower(unet.from_config(cases.PUBLISHED[name]))
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in values.items()}
    weights = drawn.weights(network(program, shapes).shapes, seed=0)
    found = stepwise(program, weights, values)
    assert relative_error(found, golden()[f"published-{name}"]) < CLOSE


def test_autoencoders_compute_what_diffusers_does():
    model = Autoencoder(cases.AUTOENCODER)
    weights = drawn.weights(model.shapes, seed=0)
    mean, log_variance = compiled(model.moments)(weights, jnp.asarray(cases.PIXELS))
    pixels = compiled(model.decode)(weights, jnp.asarray(model.scale * cases.LATENTS))
    assert relative_error(mean, golden()["autoencoder-mean"]) < CLOSE
    assert relative_error(log_variance, golden()["autoencoder-log-variance"]) < CLOSE
    assert relative_error(pixels, golden()["autoencoder-pixels"]) < CLOSE


def test_text_encoders_compute_what_transformers_does():
    program = until(clip.text_program(cases.TEXT), clip.POOLED)
    model = network(program, {"ids": clip.ids_shape(cases.TEXT, 1)})
    weights, ids = drawn.weights(model.shapes, seed=0), {"ids": jnp.asarray(cases.IDS)}
    pooled, found = compiled(lambda w, v: model(w, v, also=(clip.HIDDEN,)))(weights, ids)
    assert relative_error(found[clip.HIDDEN], golden()["text-hidden"]) < CLOSE
    assert relative_error(pooled, golden()["text-pooled"]) < CLOSE


def test_both_towers_compute_what_transformers_does():
    model = clip.CLIP(cases.CLIP)
    weights = drawn.weights(model.shapes, seed=0)
    text = compiled(model.text)(weights, jnp.asarray(cases.IDS))
    image = compiled(model.image)(weights, jnp.asarray(cases.PIXELS))
    assert relative_error(text, golden()["clip-text"]) < CLOSE
    assert relative_error(image, golden()["clip-image"]) < CLOSE


@jax.jit
def followed(sampler: samplers.Sampler, noise: jax.Array) -> jax.Array:
    """Latents after every step, `[steps, ...]`."""

    def step(carry, i):
        output = fake_network(jnp, carry[0], jnp.asarray(sampler.timesteps)[i])
        carry = sampler.step(carry, output, i)
        return carry, carry[0]

    start = (noise, jnp.zeros_like(noise))
    return jax.lax.scan(step, start, jnp.arange(sampler.steps))[1]


@pytest.mark.parametrize("steps", cases.STEPS)
@pytest.mark.parametrize("name", cases.SAMPLERS)
def test_every_step_of_a_sampler_is_that_of_diffusers(name, steps):
    sampler = samplers.from_config(cases.SAMPLERS[name], steps)
    path = golden()[f"{name}-{steps}"]
    assert sampler.timesteps.tolist() == golden()[f"{name}-{steps}-timesteps"].tolist()
    for ours, theirs in zip(followed(sampler, jnp.asarray(cases.NOISE)), path, strict=True):
        assert relative_error(ours, theirs) < EXACT
