import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas.checkpoints import Checkpoints
from nas.training import Trainer, adamw, pack, unpack
from tests import drawn

SHAPES = {
    "a.kernel": jax.ShapeDtypeStruct((3, 4), "float32"),
    "a.bias": jax.ShapeDtypeStruct((4,), "float32"),
    "b.kernel": jax.ShapeDtypeStruct((2, 2, 2), "float32"),
    "scale": jax.ShapeDtypeStruct((), "float32"),
}
STEPS = 12


def loss(weights, batch, key):
    noise = jax.random.normal(key, (3,))
    y = (batch + 0.1 * noise) @ weights["a.kernel"] + weights["a.bias"]
    return jnp.mean(y**2) * weights["scale"] + jnp.sum((weights["b.kernel"] - 1) ** 2)


def batches(step: int) -> np.ndarray:
    return drawn.normal(step, 2, 3)


def rate(step: int) -> float:
    return 1e-2 / (1 + step)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(loss, SHAPES, adamw(), decay=0.9)


@pytest.fixture
def weights():
    return drawn.weights(SHAPES, seed=0)


def leaves(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def trained(trainer, state, *, steps=STEPS, seed=1, rates=rate):
    for progress in trainer.run(state, batches, rates, steps=steps, seed=seed):
        state = progress.state
    return state


def test_packing_is_undone_by_unpacking(weights):
    found = unpack(pack(weights), SHAPES)
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


def test_packed_matrices_are_what_has_two_axes_or_more(weights):
    packed = pack(weights)
    assert packed.matrices.size == 3 * 4 + 2 * 2 * 2 and packed.vectors.size == 4 + 1


@pytest.mark.parametrize("stop", [0, 1, 5, STEPS - 1, STEPS])
def test_interrupted_training_ends_with_the_same_weights_to_the_bit(
    trainer, weights, tmp_path, stop
):
    whole = trained(trainer, trainer.start(weights))
    saved = Checkpoints(tmp_path)
    saved.save(stop, trained(trainer, trainer.start(weights), steps=stop))
    resumed = Checkpoints(tmp_path).latest(trainer.start(weights))
    assert leaves(trained(trainer, resumed)) == leaves(whole)


def test_training_depends_on_its_seed(trainer, weights):
    one, again, other = (
        trained(trainer, trainer.start(weights), seed=seed).weights for seed in (1, 1, 2)
    )
    assert leaves(one) == leaves(again) != leaves(other)


def test_training_learns(trainer, weights):
    found = [
        float(progress.loss)
        for progress in trainer.run(
            trainer.start(weights), batches, lambda step: 0.05, steps=150, seed=0
        )
    ]
    assert len(found) == 150 and np.mean(found[-20:]) < 0.2 * np.mean(found[:20])


def test_a_rate_of_zero_changes_no_weight(trainer, weights):
    state = trained(trainer, trainer.start(weights), rates=lambda step: 0.0)
    assert int(state.step) == STEPS
    found = unpack(state.weights, SHAPES)
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


def test_training_leaves_the_weights_it_began_with_alone(trainer, weights):
    before = leaves(weights)
    trained(trainer, trainer.start(weights))
    assert leaves(weights) == before


def test_the_average_forgets_the_start_and_then_decays(trainer, weights):
    state = trainer.start(weights)
    average = {name: np.asarray(weight, np.float64) for name, weight in weights.items()}
    for progress in trainer.run(state, batches, lambda step: 0.05, steps=STEPS + 100, seed=1):
        step = int(progress.state.step)
        keep = min(0.9, (1 + step) / (10 + step))
        now = unpack(progress.state.weights, SHAPES)
        average = {n: keep * average[n] + (1 - keep) * np.asarray(now[n]) for n in now}
        found = trainer.average(progress.state)
        for name in found:
            np.testing.assert_allclose(found[name], average[name], rtol=1e-4, atol=1e-5)


def test_the_average_of_constant_weights_is_those(trainer, weights):
    state = trained(trainer, trainer.start(weights), rates=lambda step: 0.0)
    found = trainer.average(state)
    for name in weights:
        np.testing.assert_allclose(found[name], weights[name], rtol=1e-6)


def test_low_precision_is_the_loss_s_alone(weights):
    seen = []

    def watching(weights, batch, key):
        seen.append({weight.dtype for weight in weights.values()})
        return loss(weights, batch, key)

    trainer = Trainer(watching, SHAPES, adamw(), dtype="bfloat16")
    state = trained(trainer, trainer.start(weights), steps=2)
    assert seen == [{jnp.dtype("bfloat16")}]  # Traced once, for both steps.
    assert {leaf.dtype for leaf in jax.tree.leaves(state.weights)} == {jnp.dtype("float32")}


def test_only_matrices_decay(weights):
    def flat(weights, batch, key):
        return 0.0 * jnp.sum(weights["a.kernel"])

    trainer = Trainer(flat, SHAPES, adamw(weight_decay=0.1))
    state = trained(trainer, trainer.start(weights), steps=1, rates=lambda step: 0.5)
    found = unpack(state.weights, SHAPES)
    for name, weight in weights.items():
        share = 0.95 if weight.ndim > 1 else 1.0
        np.testing.assert_allclose(found[name], share * weight, rtol=1e-6)


def is_adam(state) -> bool:
    return isinstance(state, optax.ScaleByAdamState)


def test_gradients_are_clipped_to_norm_one(weights):
    optimizer = adamw(weight_decay=0.0)
    packed = jax.tree.map(lambda x: 1e6 * jnp.ones_like(x), pack(weights))
    _, state = optimizer.update(packed, optimizer.init(packed), packed)
    moments = [s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)]
    # A tenth of the gradient, with b1 = 0.9.
    assert [float(optax.tree.norm(m.mu)) for m in moments] == [pytest.approx(0.1, rel=1e-5)]
