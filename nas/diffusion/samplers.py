"""Deterministic samplers: DDIM (Song et al., 2021) and DPM-Solver++(2M) (Lu et al., 2022).

Either is linear in the latents and the network's clean estimates, so a sampler is a table of
coefficients, one row for each step, and one loop runs them all.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from nas.diffusion.schedule import Schedule

Predict: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""The network's output `[batch, ...]` at latents `[batch, ...]` and timesteps `[batch]`."""

Given = TypeVar("Given")

Carry: TypeAlias = tuple[jax.Array, jax.Array]
"""The latents, and the clean estimate of the step before; both `[batch, ...]`."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("timesteps", "of_latents", "of_output", "keep", "current", "previous"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """The coefficients of every step, in the order in which they run; all are `[steps]`.

    At `timesteps[i]` the network's output gives the clean estimate

        x_i = of_latents[i] z + of_output[i] output

    and the next latents are `keep[i] z + current[i] x_i + previous[i] x_(i-1)`. A pytree, so that
    a jitted function takes it as an argument and compiles once for a number of steps.
    """

    timesteps: np.ndarray
    of_latents: np.ndarray
    of_output: np.ndarray
    keep: np.ndarray
    current: np.ndarray
    previous: np.ndarray

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def step(self, carry: Carry, output: jax.Array, i: int | jax.Array) -> Carry:
        """The carry after step `i`, at which the network returned `output`."""
        z, before = carry
        of_latents, of_output, keep, current, previous = (
            jnp.asarray(column)[i]
            for column in (
                self.of_latents,
                self.of_output,
                self.keep,
                self.current,
                self.previous,
            )
        )
        clean = of_latents * z + of_output * output.astype(z.dtype)
        return keep * z + current * clean + previous * before, clean


def sample(sampler: Sampler, predict: Predict, noise: jax.Array) -> jax.Array:
    """Latents drawn by following `predict` from standard normal `noise` `[batch, ...]`."""
    timesteps = jnp.asarray(sampler.timesteps)

    def body(carry: Carry, i: jax.Array) -> tuple[Carry, None]:
        t = jnp.broadcast_to(timesteps[i], noise.shape[:1])
        return sampler.step(carry, predict(carry[0], t), i), None

    (latents, _), _ = jax.lax.scan(body, (noise, jnp.zeros_like(noise)), jnp.arange(sampler.steps))
    return latents


def guided(
    network: Callable[[jax.Array, jax.Array, Given], jax.Array],
    given: Given,
    empty: Given,
    scale: float | jax.Array,
) -> Predict:
    """Classifier-free guidance: u + scale (c - u), both branches in one batch of twice the size.

    `network` reads latents, timesteps and what they are conditioned on, a tree of arrays
    `[batch, ...]`: `given` with the prompts, `empty` without.
    """
    conditioning = jax.tree.map(lambda *parts: jnp.concatenate(parts), empty, given)

    def predict(z: jax.Array, t: jax.Array) -> jax.Array:
        both = network(jnp.concatenate([z, z]), jnp.concatenate([t, t]), conditioning)
        without, given = jnp.split(both, 2)
        return without + scale * (given - without)

    return predict


def ddim(
    schedule: Schedule,
    timesteps: np.ndarray,
    targets: np.ndarray | None = None,
    *,
    ends_clean: bool = True,
) -> Sampler:
    """Deterministic DDIM through decreasing `timesteps`.

    Step i leads to the noise level of `targets[i]`, by default that of the next timestep. A
    negative target, the last by default, is the final level: no noise, or, unless the sampler
    `ends_clean`, that of timestep 0.
    """
    if targets is None:
        targets = np.append(timesteps[1:], -1)
    final = (1.0, 0.0) if ends_clean else (schedule.signal[0], schedule.noise[0])
    signal, noise = (
        np.where(targets < 0, end, table[targets])
        for end, table in zip(final, (schedule.signal, schedule.noise), strict=True)
    )
    return _sampler(schedule, timesteps, signal, noise, order=np.ones_like(timesteps))


def dpm_solver(
    schedule: Schedule,
    timesteps: np.ndarray,
    *,
    ends_clean: bool = True,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Sampler:
    """DPM-Solver++(2M) with the midpoint rule through decreasing `timesteps`.

    The first step is of first order, as is the last if it `ends_clean` (instead of at the noise of
    timestep 0), or with `euler_at_final`, or with `lower_order_final` and fewer than 15 steps.
    """
    last = (1.0, 0.0) if ends_clean else (schedule.signal[0], schedule.noise[0])
    order = np.full_like(timesteps, 2)
    order[0] = 1
    if ends_clean or euler_at_final or (lower_order_final and len(timesteps) < 15):
        order[-1] = 1
    signal = np.append(schedule.signal[timesteps[1:]], last[0])
    noise = np.append(schedule.noise[timesteps[1:]], last[1])
    return _sampler(schedule, timesteps, signal, noise, order)


def _sampler(
    schedule: Schedule,
    timesteps: np.ndarray,
    signal: np.ndarray,
    noise: np.ndarray,
    order: np.ndarray,
) -> Sampler:
    """Steps of the given `order` from `timesteps` to the levels of `signal` and `noise`."""
    a, s = schedule.signal[timesteps], schedule.noise[timesteps]
    if schedule.prediction == "epsilon":
        of_latents, of_output = 1 / a, -s / a
    else:
        of_latents, of_output = a, -s
    keep = noise / s
    current = signal - keep * a  # -a' (e^-h - 1), and finite when a step ends without noise.
    # The midpoint rule extrapolates along the last two estimates: 1 / (2 r) = h / (2 h_before).
    log_ratio, second, slope = np.log(a / s), np.flatnonzero(order == 2), np.zeros_like(a)
    h = np.log(signal[second] / noise[second]) - log_ratio[second]
    h_before = log_ratio[second] - log_ratio[second - 1]
    slope[second] = 0.5 * current[second] * h / h_before
    columns = (of_latents, of_output, keep, current + slope, -slope)
    return Sampler(timesteps.astype(np.int32), *(column.astype(np.float32) for column in columns))


def from_config(config: Mapping[str, Any], steps: int, *, kind: str | None = None) -> Sampler:
    """The sampler that a `scheduler_config.json` of diffusers describes, of `steps` steps.

    `kind` overrides the configuration's class; what the configuration does not say is then that
    class's default. DPM-Solver++(2M) on the same schedule stands in for `PNDMScheduler`, which
    SD-1.x names: it needs fewer steps. Raises `ValueError` naming what is not supported.
    """
    name = config.get("_class_name") if kind is None else kind
    read = _READERS.get(str(name))
    if read is None:
        raise ValueError(
            f"the scheduler is {name!r}; supported are {sorted(_READERS)}: "
            "choose one of these with `kind` to sample from its schedule"
        )
    _require(config, {"trained_betas": (None, None), "thresholding": (False, False)})
    return read(config, steps)


def _read_ddim(config: Mapping[str, Any], steps: int) -> Sampler:
    _require(config, {"clip_sample": (True, False)})
    schedule = Schedule.from_config(config)
    timesteps = _timesteps(config, "leading", schedule.steps, steps, spare=0)
    # diffusers steps by a constant stride. With `linspace`, or when `steps` does not divide the
    # schedule, that is not quite the next timestep.
    targets = timesteps - schedule.steps // steps
    targets[-1] = -1
    return ddim(schedule, timesteps, targets, ends_clean=config.get("set_alpha_to_one", True))


def _read_dpm_solver(config: Mapping[str, Any], steps: int) -> Sampler:
    _require(config, _PLAIN_DPM_SOLVER)
    schedule = Schedule.from_config(config)
    final = config.get("final_sigmas_type", "zero")
    if final not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type is {final!r}; supported are 'zero' and 'sigma_min'")
    return dpm_solver(
        schedule,
        _timesteps(config, "linspace", schedule.steps, steps, spare=1),
        ends_clean=final == "zero",
        lower_order_final=config.get("lower_order_final", True),
        euler_at_final=config.get("euler_at_final", False),
    )


# diffusers' default, and the one value that is supported.
_PLAIN_DPM_SOLVER: Mapping[str, tuple[Any, Any]] = {
    "algorithm_type": ("dpmsolver++", "dpmsolver++"),
    "lambda_min_clipped": (-math.inf, -math.inf),
    "solver_order": (2, 2),
    "solver_type": ("midpoint", "midpoint"),
    "use_beta_sigmas": (False, False),
    "use_dynamic_shifting": (False, False),
    "use_exponential_sigmas": (False, False),
    "use_flow_sigmas": (False, False),
    "use_karras_sigmas": (False, False),
    "use_lu_lambdas": (False, False),
    "variance_type": (None, None),
}
_READERS: Mapping[str, Callable[[Mapping[str, Any], int], Sampler]] = {
    "DDIMScheduler": _read_ddim,
    "DPMSolverMultistepScheduler": _read_dpm_solver,
    "PNDMScheduler": _read_dpm_solver,
}


def _require(config: Mapping[str, Any], settings: Mapping[str, tuple[Any, Any]]) -> None:
    for name, (default, supported) in settings.items():
        value = config.get(name, default)
        if value != supported:
            absent = "" if name in config else " (diffusers' default: say it in the config)"
            raise ValueError(
                f"the scheduler has {name}={value!r}{absent}; only {supported!r} is supported"
            )


def _timesteps(
    config: Mapping[str, Any], default: str, total: int, steps: int, *, spare: int
) -> np.ndarray:
    """Decreasing timesteps, `[steps]`; `spare` of the spacing's lowest points are left out."""
    if not 1 <= steps <= total:
        raise ValueError(f"cannot sample in {steps} steps; choose from 1 to {total}")
    spacing, points = config.get("timestep_spacing", default), steps + spare
    if spacing == "linspace":
        found = np.linspace(0, total - 1, points).round()[::-1]
    elif spacing == "leading":
        found = np.arange(points)[::-1] * (total // points) + config.get("steps_offset", 0)
    elif spacing == "trailing":
        found = np.arange(total, 0, -total / steps).round() - 1
    else:
        raise ValueError(
            f"timestep_spacing is {spacing!r}; supported are 'leading', 'linspace' and 'trailing'"
        )
    found = found[:steps].astype(np.int64)
    if found[0] >= total or found[-1] < 0 or np.any(np.diff(found) >= 0):
        raise ValueError(
            f"{steps} steps with {spacing!r} spacing do not fit a schedule of {total}; "
            "choose fewer steps"
        )
    return found
