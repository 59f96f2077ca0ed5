import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.diffusion.schedule import Schedule
from nas.objectives import Batch, Captioned, batches, denoising, distillation
from nas.supernet import Supernet
from tests import drawn, tiny
from tests.drawn import compiled

SPACE = tiny.unet_space(tiny.UNET)
SCHEDULES = {
    name: Schedule.from_config({"beta_schedule": "scaled_linear", "prediction_type": name})
    for name in ("epsilon", "v_prediction")
}
LATENTS = drawn.normal(0, 6, 8, 8, 4)
CONDITIONING = {
    "context": drawn.normal(1, 6, tiny.LENGTH, tiny.CONTEXT),
    "sizes": 1001 + np.arange(36, dtype=np.int32).reshape(6, 6),
}
DATA = Captioned(
    LATENTS,
    CONDITIONING,
    unconditional={
        "context": drawn.normal(2, 1, tiny.LENGTH, tiny.CONTEXT),
        "sizes": np.zeros((1, 6), np.int32),
    },
)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return Supernet(SPACE.seed, SPACE.inputs)


@pytest.fixture(scope="module")
def weights(supernet):
    return drawn.weights(supernet.model.shapes, seed=3)


@pytest.fixture(scope="module")
def losses(supernet):
    """Denoising and distillation, each compiled once."""
    schedule = SCHEDULES["v_prediction"]
    return tuple(compiled(loss(supernet, schedule)) for loss in (denoising, distillation))


def drawn_batches(supernet, spec=SPACE.seed, *, teacher=None, **settings):
    settings = {"size": 2, "seed": 0, "skip": 0.0, "taught": False, **settings}
    return batches(DATA, supernet, spec, teacher=teacher or ({}, SPACE.seed), **settings)


class Oracle:
    """Stands for a supernet: knows the clean latents, so it predicts the noise without error."""

    ends = {}  # noqa: RUF012

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def model(self, weights, values, keep):
        clean, t = weights["clean"], values["timestep"]
        a, s = self.schedule.at(t, clean.ndim)
        noise = (values["sample"] - a * clean) / s
        return self.schedule.target(clean, noise, t)


@pytest.mark.parametrize("objective", [denoising, distillation])
def test_low_precision_reaches_every_product_and_convolution(supernet, weights, objective):
    half = {name: weight.astype(jnp.bfloat16) for name, weight in weights.items()}
    batch = drawn_batches(supernet, teacher=(half, SPACE.seed), taught=True)(0)
    loss = objective(supernet, SCHEDULES["v_prediction"])
    text = str(jax.make_jaxpr(loss)(half, batch, KEY))
    made = re.findall(r":(\w+)\[[\d,]*\] = (?:dot_general|conv_general_dilated)\[", text)
    assert len(made) > 20 and set(made) == {"bf16"}


def test_low_precision_rounds_encoded_prompts_and_no_whole_numbers():
    seen = {}

    class Spy(Oracle):
        def model(self, weights, values, keep):
            seen.update(values)
            return values["sample"]

    schedule = SCHEDULES["epsilon"]
    loss = denoising(Spy(schedule), schedule)  # pyright: ignore[reportArgumentType]
    loss({"": jnp.zeros((), jnp.bfloat16)}, Batch(LATENTS, CONDITIONING, {}), KEY)
    assert seen["context"].dtype == seen["sample"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(seen["sizes"], CONDITIONING["sizes"])


@pytest.mark.parametrize("prediction", SCHEDULES)
def test_the_denoising_loss_of_an_oracle_is_zero(prediction):
    schedule = SCHEDULES[prediction]
    clean = jnp.asarray(LATENTS)
    loss = denoising(Oracle(schedule), schedule)  # pyright: ignore[reportArgumentType]
    batch = Batch(LATENTS, CONDITIONING, {})
    assert loss({"clean": clean}, batch, KEY) < 1e-6
    assert loss({"clean": clean + 1}, batch, KEY) > 0.1


def test_noise_is_drawn_from_the_key_over_all_steps_of_the_schedule(supernet):
    seen = []

    class Spy(Oracle):
        def model(self, weights, values, keep):
            seen.append(np.asarray(values["timestep"]))
            return values["sample"]

    schedule = SCHEDULES["epsilon"]
    loss = denoising(Spy(schedule), schedule)  # pyright: ignore[reportArgumentType]
    batch = Batch(np.repeat(LATENTS, 10, axis=0), CONDITIONING, {})
    for seed in (0, 0, 1):
        loss({}, batch, jax.random.key(seed))
    first, again, other = seen
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # One of every sixtieth of the schedule, rounded down.
    ends = np.arange(61) * schedule.steps // 60
    assert ((ends[:-1] <= first) & (first <= ends[1:])).all() and first.max() < schedule.steps


def test_a_network_that_teaches_itself_disagrees_with_itself_in_nothing(supernet, weights, losses):
    batch = drawn_batches(supernet, taught=True, teacher=(weights, SPACE.seed))(0)
    plain, taught = (float(loss(weights, batch, KEY)) for loss in losses)
    assert taught == pytest.approx(plain, rel=1e-5) and plain > 0


def test_a_network_that_is_not_its_teacher_disagrees(supernet, weights, losses):
    spec = tiny.without(SPACE.seed, "mid_block.attentions.0")
    batch = drawn_batches(supernet, spec, taught=True, teacher=(weights, SPACE.seed))(0)
    plain, taught = (float(loss(weights, batch, KEY)) for loss in losses)
    assert taught > 1.01 * plain


def test_a_batch_that_is_not_taught_does_not_hear_its_teacher(supernet, weights, losses):
    nonsense = {name: jnp.full_like(weight, jnp.nan) for name, weight in weights.items()}
    batch = drawn_batches(supernet, taught=False, teacher=(nonsense, SPACE.seed))(0)
    plain, untaught = (float(loss(weights, batch, KEY)) for loss in losses)
    assert untaught == pytest.approx(plain, rel=1e-5) and math.isfinite(plain)


def test_removed_blocks_never_run(supernet, weights, losses):
    spec = tiny.without(SPACE.seed, *tiny.REMOVABLE[::2])
    own = supernet.restrict(weights, spec)
    damaged = {n: w if n in own else jnp.full_like(w, jnp.nan) for n, w in weights.items()}
    batch = drawn_batches(supernet, spec, taught=False, teacher=(weights, SPACE.seed))(0)
    assert all(math.isfinite(float(loss(damaged, batch, KEY))) for loss in losses)


def flat(batch: Batch) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(batch))


def test_a_batch_depends_on_seed_and_step_alone(supernet):
    one, again = drawn_batches(supernet, skip=0.5), drawn_batches(supernet, skip=0.5)
    forwards = [flat(one(step)) for step in range(6)]
    backwards = [flat(again(step)) for step in reversed(range(6))]
    assert forwards == backwards[::-1] and len(set(forwards)) == 6
    assert flat(drawn_batches(supernet, skip=0.5, seed=1)(0)) != forwards[0]


def test_latents_and_prompts_of_a_row_stay_together(supernet):
    batch = drawn_batches(supernet, size=32, unconditional=0.0)(0)
    for number, latents in enumerate(batch.latents):
        (row,) = (i for i in range(6) if np.array_equal(LATENTS[i], latents))
        for name, given in batch.conditioning.items():
            np.testing.assert_array_equal(given[number], CONDITIONING[name][row])
    assert batch.conditioning.keys() == CONDITIONING.keys()


def count_emptied(batch: Batch, name: str) -> int:
    (empty,) = DATA.unconditional[name]
    return sum(np.array_equal(given, empty) for given in batch.conditioning[name])


@pytest.mark.parametrize(("share", "emptied"), [(0.0, 0), (1.0, 32)])
def test_prompts_are_emptied_for_guidance(supernet, share, emptied):
    batch = drawn_batches(supernet, size=32, unconditional=share)(0)
    assert [count_emptied(batch, name) for name in CONDITIONING] == 2 * [emptied]


def test_about_a_tenth_of_the_prompts_is_emptied(supernet):
    batch = drawn_batches(supernet, size=2000)(0)
    count = count_emptied(batch, "context")
    assert abs(count - 200) < 5 * math.sqrt(2000 * 0.1 * 0.9)


@pytest.mark.parametrize(("skip", "kept"), [(0.0, True), (1.0, False)])
def test_at_its_ends_skipping_is_certain(supernet, skip, kept):
    batch = drawn_batches(supernet, skip=skip)
    assert all(bool(k) is kept for step in range(20) for k in batch(step).keep.values())


def test_the_expected_share_of_each_block_is_skipped(supernet):
    steps, skip = 600, 0.2
    batch = drawn_batches(supernet, skip=skip)
    drawn_keeps = [batch(step).keep for step in range(steps)]
    deviation = math.sqrt(steps * skip * (1 - skip))
    for name in tiny.REMOVABLE:
        skipped = sum(not keep[name] for keep in drawn_keeps)
        assert abs(skipped - steps * skip) < 5 * deviation, name
    # Blocks are skipped independently: the number skipped at once varies as a binomial does.
    at_once = [sum(not kept for kept in keep.values()) for keep in drawn_keeps]
    binomial = len(tiny.REMOVABLE) * skip * (1 - skip)
    assert 0.7 * binomial < np.var(at_once) < 1.4 * binomial


def test_a_block_that_the_spec_lacks_is_never_kept_and_one_of_the_teacher_always(supernet):
    spec = tiny.without(SPACE.seed, tiny.REMOVABLE[0])
    batch = drawn_batches(supernet, spec, skip=0.5)
    assert not any(batch(step).keep[tiny.REMOVABLE[0]] for step in range(50))
    assert all(all(batch(step).teacher_keep.values()) for step in range(50))
