"""Samplers and diffusers' schedulers take the same steps."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from nas.diffusion import samplers
from tests.drawn import fake_network, normal, relative_error
from tests.parity.originals import diffusers, marks, torch

pytestmark = marks

SCALED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
COMMON = [
    {"timestep_spacing": spacing, "prediction_type": prediction, "steps_offset": offset}
    for spacing, offset in (("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0))
    for prediction in ("epsilon", "v_prediction")
]
DDIM = [
    {"_class_name": "DDIMScheduler", "clip_sample": False, **SCALED, **common, **own}
    for common, own in itertools.product(
        COMMON, ({"set_alpha_to_one": True}, {"set_alpha_to_one": False})
    )
]
DPM = [
    {"_class_name": "DPMSolverMultistepScheduler", **SCALED, **common, **own}
    for common, own in itertools.product(
        COMMON,
        (
            {},
            {"final_sigmas_type": "sigma_min"},
            {"final_sigmas_type": "sigma_min", "lower_order_final": False},
            {"final_sigmas_type": "sigma_min", "euler_at_final": True},
        ),
    )
]
NOISE = normal(0, 2, 3, 3, 4)
CLOSE = 1e-5
GUIDANCE = 3.0


def steps_of(config, steps):
    """The latents after every step, by the original and by ours, each with its own past."""
    original = getattr(diffusers, config["_class_name"]).from_config(config)
    original.set_timesteps(steps)
    sampler = samplers.from_config(config, steps)
    assert sampler.timesteps.tolist() == original.timesteps.tolist()
    z, carry = torch.tensor(NOISE), (jnp.asarray(NOISE), jnp.zeros(NOISE.shape))
    for i, t in enumerate(original.timesteps.tolist()):
        z = original.step(fake_network(torch, z, torch.tensor(t)), t, z).prev_sample
        carry = sampler.step(carry, fake_network(np, np.asarray(carry[0]), np.float32(t)), i)
        yield carry[0], z


@pytest.mark.parametrize("steps", [2, 5, 8, 20])
@pytest.mark.parametrize(
    "config", [*DDIM, *DPM], ids=lambda config: "-".join(map(str, config.values()))
)
def test_every_step_is_the_original_s(config, steps):
    for ours, theirs in steps_of(config, steps):
        assert relative_error(ours, theirs) < CLOSE


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_defaults_are_the_original_s(name):
    config = {"_class_name": name, "clip_sample": False}
    for ours, theirs in steps_of(config, 10):
        assert relative_error(ours, theirs) < CLOSE


@pytest.mark.parametrize("steps", [2, 7, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_step_of_euler_is_the_original_s_in_our_coordinates(prediction, steps):
    config = {
        "_class_name": "EulerDiscreteScheduler",
        **SCALED,
        "prediction_type": prediction,
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }
    original = diffusers.EulerDiscreteScheduler.from_config(config)
    original.set_timesteps(steps)
    sampler = samplers.from_config(config, steps)
    assert sampler.timesteps.tolist() == original.timesteps.tolist()
    x, carry = torch.tensor(NOISE), (jnp.asarray(NOISE), jnp.zeros(NOISE.shape))
    x = x * original.init_noise_sigma
    for i, t in enumerate(original.timesteps):
        output = fake_network(torch, original.scale_model_input(x, t), t)
        x = original.step(output, t, x).prev_sample
        output = fake_network(np, np.asarray(carry[0]), np.float32(t))
        carry = sampler.step(carry, output, i)
        # The original's latents are divided by the signal, which is 1 / sqrt(sigma^2 + 1).
        assert relative_error(carry[0], x / (original.sigmas[i + 1] ** 2 + 1) ** 0.5) < CLOSE


def test_the_stand_in_for_pndm_is_diffusers_own_choice_of_settings():
    config = {
        "_class_name": "PNDMScheduler",
        **SCALED,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
    pndm = diffusers.PNDMScheduler.from_config(config)
    original = diffusers.DPMSolverMultistepScheduler.from_config(pndm.config)
    original.set_timesteps(8)
    ours = samplers.from_config(config, 8)
    assert ours.timesteps.tolist() == original.timesteps.tolist()
    network = functools.partial(fake_network, torch)
    theirs = followed(original, network, torch.tensor(NOISE))
    noise = jnp.asarray(NOISE)
    latents = samplers.sample(ours, lambda z, t: fake_network(jnp, z, t[0]), noise)
    assert relative_error(latents, theirs) < CLOSE


@pytest.mark.parametrize("config", [DDIM[7], DPM[20]], ids=lambda config: config["_class_name"])
def test_guided_samples_are_the_original_s(config):
    original = getattr(diffusers, config["_class_name"]).from_config(config)
    original.set_timesteps(8)
    context, empty = normal(1, *NOISE.shape), normal(2, *NOISE.shape)

    def network(z, t):  # As `StableDiffusionPipeline` has it.
        both = fake_network(
            torch, torch.cat([z, z]) + torch.tensor(np.concatenate([empty, context])), t
        )
        without, given = both.chunk(2)
        return without + GUIDANCE * (given - without)

    theirs = followed(original, network, torch.tensor(NOISE))
    predict = samplers.guided(
        lambda z, t, c: fake_network(jnp, z + c, t[:, None, None, None]),
        jnp.asarray(context),
        jnp.asarray(empty),
        GUIDANCE,
    )
    ours = samplers.sample(samplers.from_config(config, 8), predict, jnp.asarray(NOISE))
    assert relative_error(ours, theirs) < CLOSE


def followed(original, network, z):
    """The original's samples from `z`."""
    for t in original.timesteps:
        z = original.step(network(z, t), t, z).prev_sample
    return z
