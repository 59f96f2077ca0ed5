import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.supernet import Supernet
from search_spaces.program import network
from search_spaces.unet import UNetSpec, lower
from tests import drawn, tiny
from tests.drawn import compiled

SPACE = tiny.unet_space(tiny.UNET)
COPIED = tiny.copied(
    SPACE.seed,
    ("up_blocks.0.resnets.0", "up_blocks.0.resnets.0+1"),
    ("mid_block.attentions.0", "mid_block.attentions.0+1"),
)


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return Supernet(COPIED, SPACE.inputs)


@pytest.fixture(scope="module")
def weights(supernet):
    return drawn.weights(supernet.model.shapes, seed=4)


@pytest.fixture(scope="module")
def run(supernet):
    """The supernet, compiled once, and how often it was traced."""
    traces = []

    def traced(*arguments):
        traces.append(1)
        return supernet.model(*arguments)

    return compiled(traced), traces


def subset(seed: int, share: float) -> UNetSpec:
    gates = Supernet(COPIED, SPACE.inputs).gates
    drops = np.random.default_rng(seed).random(len(gates)) < share
    return tiny.without(COPIED, *np.array(gates)[drops])


@pytest.mark.parametrize(
    "spec",
    [COPIED, subset(0, 0.3), subset(1, 0.6), subset(2, 1.0)],
    ids=["none", "some", "most", "all"],
)
def test_bypassing_blocks_computes_what_the_network_built_without_them_does(
    supernet, weights, run, spec
):
    values = tiny.values(SPACE.inputs, seed=6)
    bypassed = run[0](weights, values, supernet.keep(spec))
    rebuilt = compiled(network(lower(spec), SPACE.inputs))(supernet.restrict(weights, spec), values)
    assert drawn.relative_error(bypassed, rebuilt) < 1e-5


def test_one_compiled_network_serves_all_subsets(supernet, weights, run):
    program, traces = run
    values = tiny.values(SPACE.inputs, seed=6)
    found = {
        np.asarray(program(weights, values, supernet.keep(subset(seed, 0.5)))).tobytes()
        for seed in range(8)
    }
    assert len(traces) == 1 and len(found) == 8


def test_a_bypassed_block_has_no_gradient_and_even_nan_in_it_does_no_harm(supernet, weights):
    spec = subset(3, 0.5)
    gone = weights.keys() - supernet.restrict(weights, spec).keys()
    damaged = {n: jnp.full_like(w, jnp.nan) if n in gone else w for n, w in weights.items()}
    values, keep = tiny.values(SPACE.inputs, seed=7), supernet.keep(spec)
    grads = compiled(jax.grad(lambda w: jnp.sum(supernet.model(w, values, keep) ** 2)))(damaged)
    assert gone
    for name, gradient in grads.items():
        if name in gone:
            assert not np.asarray(gradient).any(), name
        else:
            assert np.isfinite(np.asarray(gradient)).all(), name
    live = [name for name in grads if name not in gone and name.endswith("kernel")]
    assert all(np.asarray(grads[name]).any() for name in live)


def test_keep_says_which_blocks_a_spec_has(supernet):
    spec = subset(4, 0.5)
    names = {block.name for block in spec.blocks}
    assert {name for name, kept in supernet.keep(spec).items() if kept} == names & {*supernet.gates}
    assert all(supernet.keep(COPIED).values()) and len(supernet.gates) == len(tiny.REMOVABLE) + 2


def test_the_supernet_of_copies_runs_the_seed(supernet):
    gone = {name for name, kept in supernet.keep(SPACE.seed).items() if not kept}
    assert gone == {"up_blocks.0.resnets.0+1", "mid_block.attentions.0+1"}


def test_a_spec_with_a_block_that_the_supernet_lacks_is_refused(supernet):
    more = tiny.copied(COPIED, ("mid_block.resnets.0", "mid_block.resnets.0+1"))
    with pytest.raises(
        ValueError, match=r"cannot run .* lacks blocks \['mid_block.resnets.0\+1'\]"
    ):
        supernet.keep(more)


def test_a_spec_without_a_block_that_cannot_be_bypassed_is_refused(supernet):
    layers = (dataclasses.replace(COPIED.down[1].layers[0], blocks=()),)
    stage = dataclasses.replace(COPIED.down[1], layers=layers)
    spec = dataclasses.replace(COPIED, down=(COPIED.down[0], stage))
    with pytest.raises(ValueError, match=r"cannot bypass \['down_blocks.1.resnets.0'\]"):
        supernet.keep(spec)


def test_a_spec_of_other_ops_is_refused_though_its_names_are_the_same(supernet):
    other = tiny.unet_space({**tiny.UNET, "attention_head_dim": 4})
    with pytest.raises(ValueError):
        supernet.keep(other.seed)


def test_lifting_and_restricting_keeps_what_a_spec_has(supernet, weights):
    spec = subset(5, 0.5)
    own = supernet.restrict(weights, spec)
    assert own.keys() == tiny.shapes(SPACE, spec).keys()
    lifted = supernet.lift(own)
    supernet.model.check(lifted)
    assert all(lifted[name] is own[name] for name in own)
    assert not any(np.asarray(lifted[name]).any() for name in lifted.keys() - own.keys())


def test_features_are_compared_at_the_last_block_of_every_stage(supernet):
    assert tuple(supernet.ends.values()) == (
        "down_blocks.0.attentions.0",
        "down_blocks.1.resnets.0",
        "mid_block.resnets.1",
        "up_blocks.0.resnets.1",
        "up_blocks.1.attentions.1",
    )
