"""Laws of samplers, without the originals."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.diffusion import samplers
from nas.diffusion.schedule import Schedule
from tests.drawn import fake_network, normal, relative_error

NOISE, CLEAN = jnp.asarray(normal(0, 2, 2, 2, 3)), jnp.asarray(normal(1, 2, 2, 2, 3))
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False, **BETAS}
DPM = {"_class_name": "DPMSolverMultistepScheduler", **BETAS}
EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", **BETAS}
PREDICTIONS = ("epsilon", "v_prediction")
run = jax.jit(samplers.sample, static_argnums=1)


def scheduled(prediction: str) -> Schedule:
    return Schedule.from_config({**BETAS, "prediction_type": prediction})


def bent(z, t):
    return fake_network(jnp, z, t[:, None, None, None])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("config", [DDIM, DPM], ids=lambda config: config["_class_name"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_network_that_knows_the_picture_is_followed_to_it(config, prediction, spacing):
    config = {**config, "prediction_type": prediction, "timestep_spacing": spacing}
    for steps in (1, 4, 17):
        latents = run(samplers.from_config(config, steps), oracle(prediction), NOISE)
        np.testing.assert_allclose(latents, CLEAN, atol=1e-4)


@functools.cache
def oracle(prediction: str) -> samplers.Predict:
    """The network's best answer if `CLEAN` is all there is."""
    schedule = scheduled(prediction)

    def predict(z, t):
        a, s = schedule.at(t, z.ndim)
        return schedule.target(CLEAN, (z - a * CLEAN) / s, t)

    return predict


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("make", [samplers.ddim, samplers.dpm_solver])
def test_one_step_is_the_clean_estimate(make, prediction):
    schedule, t = scheduled(prediction), jnp.array([999, 999])
    found = run(make(schedule, np.array([999])), bent, NOISE)
    expected = schedule.clean(NOISE, bent(NOISE, t), t)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_two_steps_of_ddim_are_its_closed_form():
    schedule, (t, u) = scheduled("v_prediction"), (799, 299)
    (a, b), (s, r) = schedule.signal[[t, u]], schedule.noise[[t, u]]
    z = np.asarray(NOISE)
    v = fake_network(np, z, t)
    z = b * (a * z - s * v) + r * (s * z + a * v)
    expected = b * z - r * fake_network(np, z, u)
    found = run(samplers.ddim(schedule, np.array([t, u])), bent, NOISE)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_first_step_of_the_solver_is_of_first_order_and_the_next_is_not():
    schedule, timesteps = scheduled("v_prediction"), np.array([999, 749, 499, 249])
    first, second = samplers.ddim(schedule, timesteps), samplers.dpm_solver(schedule, timesteps)
    np.testing.assert_array_equal(first.previous, 0)
    assert (second.previous != 0).tolist() == [False, True, True, False]
    for name in ("keep", "current"):
        np.testing.assert_allclose(getattr(second, name)[0], getattr(first, name)[0], rtol=1e-6)
        np.testing.assert_allclose(getattr(second, name)[3], getattr(first, name)[3], rtol=1e-6)


def test_the_solver_is_of_second_order_and_ddim_of_first():
    def solver(*arguments, **keywords):
        return samplers.dpm_solver(*arguments, **keywords, lower_order_final=False)

    exact = between_levels(solver, 250)

    def gain(make):
        coarse, fine = (relative_error(between_levels(make, n), exact) for n in (10, 20))
        return coarse / fine

    assert 1.8 < gain(samplers.ddim) < 2.3
    assert 3.2 < gain(solver) < 4.8


def between_levels(make, steps: int) -> jax.Array:
    """Samples from timestep 700 to timestep 200, where the equation is smooth."""
    whole = scheduled("v_prediction")
    schedule = Schedule(whole.signal[200:], whole.noise[200:], whole.prediction)
    timesteps = np.linspace(500, 0, steps, endpoint=False).round().astype(int)
    return run(make(schedule, timesteps, ends_clean=False), gentle, NOISE)


def gentle(z, t):
    return jnp.sin(z)


@pytest.mark.parametrize(
    ("steps", "settings", "order"),
    [
        (14, {}, 1),
        (15, {}, 2),
        (14, {"lower_order_final": False}, 2),
        (15, {"euler_at_final": True}, 1),
        (15, {"final_sigmas_type": "zero"}, 1),
    ],
)
def test_the_last_step_is_of_the_order_that_diffusers_gives_it(steps, settings, order):
    config = {**DPM, "final_sigmas_type": "sigma_min", **settings}
    last = samplers.from_config(config, steps).previous[-1]
    assert (last != 0) == (order == 2)


def test_samplers_end_at_the_level_that_is_asked_for():
    schedule = scheduled("epsilon")
    for make in (samplers.ddim, samplers.dpm_solver):
        clean = make(schedule, np.array([900, 400]))
        noisy = make(schedule, np.array([900, 400]), ends_clean=False)
        assert clean.keep[-1] == 0 and clean.current[-1] == 1
        np.testing.assert_allclose(noisy.keep[-1], schedule.noise[0] / schedule.noise[400])


def test_other_numbers_of_the_same_size_do_not_recompile():
    traced = []

    def counted(z, t):
        traced.append(t)
        return bent(z, t)

    for config in (DDIM, DPM, {**DPM, "timestep_spacing": "trailing"}):
        run(samplers.from_config(config, 4), counted, NOISE)
    assert len(traced) == 1


def test_the_loop_takes_the_steps_in_order():
    sampler, carry = samplers.from_config(DPM, 4), (NOISE, jnp.zeros_like(NOISE))
    for i, t in enumerate(sampler.timesteps):
        carry = sampler.step(carry, bent(carry[0], jnp.full(2, t)), i)
    np.testing.assert_allclose(run(sampler, bent, NOISE), carry[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_guidance_extrapolates_from_the_empty_prompt_through_the_prompt(weight):
    context, empty = jnp.asarray(normal(2, 2, 5, 3)), jnp.asarray(normal(3, 2, 5, 3))
    t = jnp.array([7, 900])

    def network(z, t, context):
        return bent(z, t) * context.sum((1, 2))[:, None, None, None]

    found = samplers.guided(network, context, empty, weight)(NOISE, t)
    given, without = network(NOISE, t, context), network(NOISE, t, empty)
    np.testing.assert_allclose(found, without + weight * (given - without), rtol=1e-5, atol=1e-6)
    if weight == 1:
        np.testing.assert_allclose(found, given, rtol=1e-5, atol=1e-6)


def test_pndm_is_replaced_by_the_solver_and_any_class_can_be_overridden():
    expected = samplers.from_config(DPM, 5)
    pndm = {**BETAS, "_class_name": "PNDMScheduler", "clip_sample": False, "steps_offset": 1}
    euler = {**BETAS, "_class_name": "EulerDiscreteScheduler"}
    same(samplers.from_config(pndm, 5), expected)
    same(samplers.from_config(euler, 5, kind="DPMSolverMultistepScheduler"), expected)
    ddim = samplers.from_config(pndm, 5, kind="DDIMScheduler")
    same(ddim, samplers.from_config({**DDIM, "steps_offset": 1}, 5))


def test_euler_goes_from_timestep_to_timestep_and_ends_clean():
    found = samplers.from_config({**EULER, "steps_offset": 1}, 3)
    schedule = Schedule.from_config(BETAS)
    assert found.timesteps.tolist() == [667, 334, 1]
    # A step of Euler's method along dx / dsigma = e, in x = z / a and sigma = s / a.
    z, e = np.float32(0.7), np.float32(-0.3)
    for i, t in enumerate(found.timesteps):
        a, sigma = levels(schedule, t)
        after, sigma_after = levels(schedule, found.timesteps[i + 1]) if i < 2 else (1.0, 0.0)
        wanted = after * (z / a + (sigma_after - sigma) * e)
        z = float(found.step((jnp.asarray(z), jnp.zeros(())), jnp.asarray(e), i)[0])
        assert z == pytest.approx(wanted, rel=1e-5)


def levels(schedule: Schedule, t: int) -> tuple[float, float]:
    return schedule.signal[t], schedule.noise[t] / schedule.signal[t]


def same(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize(
    ("config", "change", "named"),
    [
        (DDIM, {"_class_name": "EulerAncestralDiscreteScheduler"}, "EulerAncestralDiscrete"),
        (DDIM, {"_class_name": None}, "None"),
        (DDIM, {"clip_sample": True}, "clip_sample"),
        (DDIM, {"thresholding": True}, "thresholding"),
        (DDIM, {"trained_betas": [0.1]}, "trained_betas"),
        (DDIM, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        (DDIM, {"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
        (DDIM, {"prediction_type": "sample"}, "sample"),
        (DDIM, {"timestep_spacing": "random"}, "random"),
        (DDIM, {"steps_offset": 300}, "fewer steps"),
        (DPM, {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        (DPM, {"solver_order": 3}, "solver_order"),
        (DPM, {"solver_type": "heun"}, "solver_type"),
        (DPM, {"use_karras_sigmas": True}, "use_karras_sigmas"),
        (DPM, {"use_lu_lambdas": True}, "use_lu_lambdas"),
        (DPM, {"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        (DPM, {"use_beta_sigmas": True}, "use_beta_sigmas"),
        (DPM, {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        (DPM, {"use_flow_sigmas": True}, "use_flow_sigmas"),
        (DPM, {"lambda_min_clipped": -5.1}, "lambda_min_clipped"),
        (DPM, {"variance_type": "learned_range"}, "variance_type"),
        (DPM, {"final_sigmas_type": "none"}, "final_sigmas_type"),
        (EULER, {"timestep_spacing": "trailing"}, "only 'leading' is supported"),
        (EULER, {"use_karras_sigmas": True}, "use_karras_sigmas"),
        (EULER, {"interpolation_type": "log_linear"}, "interpolation_type"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:60],
)
def test_what_would_change_the_mathematics_is_refused(config, change, named):
    with pytest.raises(ValueError, match=named):
        samplers.from_config({**config, **change}, 8)


def test_a_default_of_diffusers_that_is_not_supported_is_refused():
    with pytest.raises(ValueError, match=r"clip_sample=True \(diffusers' default"):
        samplers.from_config({"_class_name": "DDIMScheduler"}, 8)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_outside_the_schedule_is_refused(steps):
    with pytest.raises(ValueError, match="choose from 1 to 1000"):
        samplers.from_config(DDIM, steps)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_more_steps_than_the_spacing_has_points_are_refused(spacing):
    with pytest.raises(ValueError, match="choose fewer steps"):
        samplers.from_config({**DPM, "timestep_spacing": spacing}, 1000)


def test_every_supported_number_of_trailing_steps_ends_clean():
    for steps in range(1, 1001, 13):
        sampler = samplers.from_config({**DPM, "timestep_spacing": "trailing"}, steps)
        assert sampler.steps == steps and sampler.timesteps[0] == 999
        assert sampler.keep[-1] == 0 and all(map(math.isfinite, sampler.current))
        ddim = samplers.from_config({**DDIM, "timestep_spacing": "trailing"}, steps)
        assert ddim.keep[-1] == 0
