"""An op that is not ours: it is searched like ours, by declaring choices on its fields."""

import dataclasses

import jax.numpy as jnp

from experiments.convnext import ConvNeXt
from nas.testing.spaces import SpaceLaws
from search_spaces.actions import Choose, Copy, Remove
from search_spaces.ops import model
from search_spaces.program import calls
from search_spaces.surgery import Calibration, Samples
from search_spaces.unet import Block, Place, UNetSpec, lower
from search_spaces.unet_space import UNetSpace
from tests import drawn, tiny
from tests.drawn import compiled, normal

NAME = "mid_block.convnext"


def with_convnext(spec: UNetSpec) -> UNetSpec:
    """`spec` with a ConvNeXt block in the middle."""
    blocks = spec.middle.blocks
    place = Place(len(spec.down), 0, 0)
    return spec.with_blocks(place, (*blocks, Block(ConvNeXt(), NAME)))


TINY = tiny.unet_space(tiny.UNET)
SPACE = dataclasses.replace(TINY, seed=with_convnext(TINY.seed))


class TestConvNeXt(SpaceLaws):
    space = UNetSpace(with_convnext(TINY.seed), TINY.inputs)


def test_it_brings_its_own_choices():
    found = {(c.field, c.value) for c in SPACE.choices(SPACE.seed) if c.block == NAME}
    assert found == {("kernel", 5), ("kernel", 3), ("expansion", 3), ("expansion", 2)}
    assert {Remove(NAME), Copy(NAME, f"{NAME}+1")} <= set(SPACE.actions(SPACE.seed))


def error(action: Choose, *, fitted: bool) -> float:
    """Change of what the block adds, with its weights carried or drawn."""
    spec = SPACE.seed
    old = calls(lower(spec), SPACE.inputs)[NAME]
    new = calls(lower(action.apply(spec)), SPACE.inputs)[NAME]
    weights = drawn.weights(model(old).shapes, seed=1)
    (x,) = (jnp.asarray(normal(0, 32, *shape.shape[1:])) for shape in old.inputs)
    calibration = Calibration(
        SPACE.inputs, lambda program, weights, step: Samples((x,), lambda: weights)
    )
    named = {f"{NAME}.{name}": weight for name, weight in weights.items()}
    found = action.carry(spec, named, calibration)
    carried = {name.removeprefix(f"{NAME}."): weight for name, weight in found.weights.items()}
    kept = {n: w for n, w in weights.items() if w.shape == model(new).shapes[n].shape}
    own = carried if fitted else {**model(new).initial(0), **kept}
    y = jnp.asarray(normal(1, *x.shape))
    was, now = compiled(model(old))(weights, y), compiled(model(new))(own, y)
    return float(jnp.square(now - was).mean() / jnp.square(was - y).mean())


def test_its_weights_go_along():
    for action in (Choose(NAME, "expansion", 2), Choose(NAME, "kernel", 5)):
        assert error(action, fitted=True) < 0.5 * error(action, fitted=False)
