"""Multiply-accumulates and memory are what can be counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from search_spaces.blocks import Conv, NormSiLU, ResNet, Separable, Transformer
from search_spaces.counting import Macs, activation_bytes, macs, working_bytes
from search_spaces.ops import Call, Op, Shape
from search_spaces.program import Step

IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 4), "float32")
CONTEXT = jax.ShapeDtypeStruct((2, 5, 6), "float32")
BYTES = 2 * 8 * 8 * 4 * 4  # Of an image.


def test_a_convolution_multiplies_every_tap_at_every_place():
    assert macs(Call(Conv(16), (IMAGE,))) == Macs(2 * 8 * 8 * 9 * 4 * 16, 0)


def test_a_separable_convolution_multiplies_taps_and_channels_apart():
    full, separable = (
        macs(Call(ResNet(4, 2, convolution=convolution), (IMAGE,))).layers
        for convolution in (ResNet(4, 2).convolution, Separable(3))
    )
    assert full == 2 * 128 * 9 * 4 * 4
    assert separable == 2 * 128 * (9 * 4 * 3 + 4 * 3 * 4)


def test_attention_mixes_queries_with_keys_and_weights_with_values():
    op = Transformer(heads=2, size=2, groups=2)
    places, width = 64, 4
    projections = 2 * places * (2 + 4 + 2) * width**2 + 2 * 2 * 5 * 6 * width
    feed_forward = 2 * places * (8 + 4) * width**2
    mixing = 2 * 2 * places * (places + 5) * width
    assert macs(Call(op, (IMAGE, CONTEXT))) == Macs(projections + feed_forward, mixing)


@dataclasses.dataclass(frozen=True)
class Computed(Op):
    """Whatever `kind` computes of its one kernel."""

    kind: str

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        return _Computed(self.kind)


class _Computed(nnx.Module):
    def __init__(self, kind: str):
        self.kind, self.kernel = kind, nnx.Param(jnp.zeros((4, 4)))

    def __call__(self, x: jax.Array) -> jax.Array:
        once = lambda y: y @ self.kernel[...]  # noqa: E731
        match self.kind:
            case "scan":
                return jax.lax.scan(lambda y, _: (once(y), None), x, length=3)[0]
            case "cond":
                return jax.lax.cond(x.sum() > 0, lambda y: once(once(y)), once, x)
            case "while":
                return jax.lax.while_loop(lambda y: y.sum() > 0, once, x)
            case "jit":
                return jax.jit(once)(x)
        raise ValueError(self.kind)


ROWS = jax.ShapeDtypeStruct((3, 4), "float32")


@pytest.mark.parametrize(("kind", "times"), [("scan", 3), ("cond", 2), ("jit", 1)])
def test_what_runs_inside_is_counted_as_often_as_it_runs_at_most(kind, times):
    assert macs(Call(Computed(kind), (ROWS,))) == Macs(times * 3 * 4 * 4, 0)


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="loop of unknown length"):
        macs(Call(Computed("while"), (ROWS,)))


def test_a_convolution_holds_what_it_reads_and_what_it_makes():
    call = Call(Conv(8), (IMAGE,))
    # The sum with the bias is made beside the bare result, whose input may be gone by then.
    assert working_bytes(call) in (3 * BYTES, 4 * BYTES)


def test_attention_holds_its_scores():
    op = Transformer(heads=2, size=2, groups=2)
    scores = 2 * 2 * 64 * 64 * 4
    assert 2 * scores < working_bytes(Call(op, (IMAGE, CONTEXT))) < 4 * scores


def test_what_later_steps_read_is_held_until_they_did():
    program = (
        Step("a", Conv(4), ("x",)),
        Step("b", NormSiLU(2), ("a",)),
        Step("c", NormSiLU(2), ("b",)),
        Step("d", ResNet(4, 2), ("c", "a", "time")),
    )
    inputs = {"x": IMAGE, "time": jax.ShapeDtypeStruct((2, 3), "float32")}
    held = activation_bytes(program, inputs)
    norm = working_bytes(Call(NormSiLU(2), (IMAGE,)))
    time = 2 * 3 * 4
    assert held["b"] == norm + time  # It reads `a` itself.
    assert held["c"] == norm + BYTES + time
