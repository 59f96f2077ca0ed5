import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.actions import Copy, Remove
from search_spaces.layers import Conv
from search_spaces.model import Weights
from search_spaces.ops import Op, Shape, model
from search_spaces.program import calls, network
from search_spaces.surgery import Calibration, without
from search_spaces.unet import Block, UNetSpec, lower
from tests import drawn, tiny
from tests.drawn import compiled

SPACE = tiny.unet_space(tiny.UNET)
WEIGHTS = tiny.seed_weights(SPACE)
KINDS = {
    "ResNet of the down path": "down_blocks.0.resnets.0",
    "transformer": "down_blocks.0.attentions.0",
    "ResNet of the middle": "mid_block.resnets.1",
    "ResNet that reads a skip": "up_blocks.0.resnets.0",
    "ResNet that reads a narrow skip": "up_blocks.1.resnets.1",
    "transformer of the up path": "up_blocks.1.attentions.0",
}


def carried(action: Remove | Copy, spec: UNetSpec, weights: Weights) -> tuple[UNetSpec, Weights]:
    child = action.apply(spec)
    return child, action.carry(spec, weights, Calibration(SPACE.inputs)).weights


def same(one: jax.Array, other: jax.Array) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("block", tiny.REMOVABLE)
def test_removal_keeps_the_rest_to_the_bit(block):
    _, child = carried(Remove(block), SPACE.seed, WEIGHTS)
    assert child.keys() == {name for name in WEIGHTS if not name.startswith(f"{block}.")}
    assert all(same(weight, WEIGHTS[name]) for name, weight in child.items())


def test_removal_takes_no_block_whose_name_begins_alike():
    spec, weights = carried(
        Copy("mid_block.resnets.1", "mid_block.resnets.1+1"), SPACE.seed, WEIGHTS
    )
    _, child = carried(Remove("mid_block.resnets.1"), spec, weights)
    assert any(name.startswith("mid_block.resnets.1+1.") for name in child)


@pytest.mark.parametrize("block", KINDS.values(), ids=KINDS)
def test_a_copy_passes_its_input_on_whatever_it_is(block):
    spec, weights = carried(Copy(block, "copy"), SPACE.seed, WEIGHTS)
    call = calls(lower(spec), SPACE.inputs)["copy"]
    reads = [drawn.normal(i, *shape.shape) for i, shape in enumerate(call.inputs)]
    own = {n.removeprefix("copy."): w for n, w in weights.items() if n.startswith("copy.")}
    assert same(compiled(model(call))(own, *reads), jnp.asarray(reads[0]))


@pytest.mark.parametrize("block", KINDS.values(), ids=KINDS)
def test_a_copy_has_the_weights_of_its_original_but_for_its_outlet(block):
    _, weights = carried(Copy(block, "copy"), SPACE.seed, WEIGHTS)
    outlet = SPACE.seed.block(block).op.outlet
    for name, weight in weights.items():
        if not name.startswith("copy."):
            assert same(weight, WEIGHTS[name])
        elif name.startswith(f"copy.{outlet}."):
            assert not np.asarray(weight).any()
        else:
            old = WEIGHTS[block + name.removeprefix("copy")]
            assert same(weight, old[tuple(slice(size) for size in weight.shape)])


def test_the_copy_of_a_resnet_that_reads_a_skip_takes_the_channels_of_x():
    block = "up_blocks.0.resnets.0"
    _, weights = carried(Copy(block, "copy"), SPACE.seed, WEIGHTS)
    old, new = WEIGHTS[f"{block}.conv1.kernel"], weights["copy.conv1.kernel"]
    assert new.shape[2] == 16 < old.shape[2]
    assert same(new, old[:, :, :16])


def test_copies_of_every_kind_and_copies_of_copies_change_no_output():
    spec, weights = SPACE.seed, WEIGHTS
    for number, block in enumerate([*KINDS.values(), "copy 0", "copy 1", "copy 3"]):
        spec, weights = carried(Copy(block, f"copy {number}"), spec, weights)
    values = tiny.values(SPACE.inputs, seed=5)
    before = compiled(network(lower(SPACE.seed), SPACE.inputs))(WEIGHTS, values)
    after = compiled(network(lower(spec), SPACE.inputs))(weights, values)
    assert drawn.relative_error(after, before) < 1e-6


@given(st.lists(st.integers(0, 10**6), max_size=8))
def test_weights_carried_through_edits_are_exactly_those_of_the_child(walk):
    spec, weights = SPACE.seed, WEIGHTS
    for choice in walk:
        actions = [*SPACE.removals(spec), *SPACE.copies(spec)]
        spec, weights = carried(actions[choice % len(actions)], spec, weights)
    wanted = tiny.shapes(SPACE, spec)
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: shape.shape for name, shape in wanted.items()
    }


@dataclasses.dataclass(frozen=True)
class Plain(Op):
    """A convolution that hears no time and adds to nothing."""

    conditions = ("time",)

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        return _Plain(inputs[0].shape[-1], rngs)


class _Plain(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.conv = Conv(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        return self.conv(x)


def test_a_block_that_is_not_residual_cannot_be_copied():
    name = "mid_block.resnets.0"
    spec = SPACE.seed.with_blocks(SPACE.seed.place(name), (Block(Plain(), name),))
    with pytest.raises(ValueError, match=r"Plain\(\) is not residual"):
        carried(Copy(name, "new"), spec, WEIGHTS)


def test_without_drops_whole_blocks_only():
    weights = {"a.b.c": 1, "a.bc.d": 2, "e.f": 3}
    assert without(weights, "a.b") == {"a.bc.d": 2, "e.f": 3}
    assert without(weights) == weights
