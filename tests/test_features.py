import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from latency_models.features import SHAPE, WORK, features, kind, shape, work
from search_spaces.blocks import Conv, ResNet, Separable, Transformer
from search_spaces.counting import macs
from search_spaces.ops import Call, Op, Shape


def image(side: int, channels: int, batch: int = 1, dtype: str = "float32") -> Shape:
    return jax.ShapeDtypeStruct((batch, side, side, channels), dtype)


OP = ResNet(8, groups=2, epsilon=1e-6)
RESNET = Call(OP, (image(8, 4),))
CONTEXT = jax.ShapeDtypeStruct((1, 5, 6), "float32")
TRANSFORMER = Call(Transformer(2, 4, groups=2), (image(8, 8), CONTEXT))


def amount(call: Call, name: str) -> float:
    return work(call)[WORK.index(name)]


@pytest.mark.parametrize("call", [RESNET, TRANSFORMER])
def test_all_multiply_accumulates_are_some_kind_of_work(call):
    counted = sum(
        amount(call, name) for name in ("convolution", "grouped convolution", "product", "mixing")
    )
    assert counted == macs(call).total
    assert amount(call, "mixing") == macs(call).mixing


def test_work_but_for_weights_and_the_start_grows_with_the_batch():
    twice = Call(RESNET.op, (image(8, 4, batch=2),))
    for name in ("convolution", "elementwise", "reduced", "activations"):
        assert amount(twice, name) == pytest.approx(2 * amount(RESNET, name), rel=0.05)
    for name in ("weights", "calls"):
        assert amount(twice, name) == amount(RESNET, name)


def test_bytes_follow_the_precision():
    half = Call(Conv(8), (image(8, 4, dtype="bfloat16"),))
    assert amount(half, "activations") == amount(Call(Conv(8), (image(8, 4),)), "activations") / 2


def test_separable_convolutions_are_told_from_full_ones():
    separable = dataclasses.replace(OP, convolution=Separable())
    changed = Call(separable, RESNET.inputs)
    assert amount(RESNET, "grouped convolution") == 0 < amount(RESNET, "convolution")
    assert amount(changed, "grouped convolution") > 0
    assert amount(changed, "convolution") < amount(RESNET, "convolution")


@dataclasses.dataclass(frozen=True)
class Repeated(Op):
    """`times` exponentials one after another, as a loop of JAX's."""

    times: int

    def module(self, inputs, *, rngs):
        return _Repeated(self.times)


class _Repeated(nnx.Module):
    def __init__(self, times: int):
        self.times = times

    def __call__(self, x):
        return jax.lax.scan(lambda h, _: (jnp.exp(h), None), x, None, length=self.times)[0]


def test_what_a_loop_does_counts_as_often_as_it_is_done():
    once, often = (Call(Repeated(times), (image(4, 4),)) for times in (1, 7))
    assert amount(often, "transcendental") == 7 * amount(once, "transcendental") == 7 * 64


@dataclasses.dataclass(frozen=True)
class Endless(Op):
    def module(self, inputs, *, rngs):
        return _Endless()


class _Endless(nnx.Module):
    def __call__(self, x):
        return jax.lax.while_loop(lambda h: h.sum() < 1, jnp.exp, x)


def test_a_loop_of_unknown_length_has_no_cost():
    with pytest.raises(ValueError, match="unknown length"):
        work(Call(Endless(), (image(4, 4),)))


def test_features_are_a_row_for_each_call():
    found = features([RESNET, TRANSFORMER])
    assert found.shape == (2, len(WORK) - 1 + len(SHAPE)) and np.isfinite(found).all()
    assert features([]).shape == (0, found.shape[1])
    assert (features([TRANSFORMER])[0] == found[1]).all()
    assert shape(RESNET)[SHAPE.index("pixels")] == 64
    assert (shape(RESNET)[2], shape(RESNET)[3]) == (4, 8)


def test_kinds_are_told_by_the_class_of_the_op():
    wider = dataclasses.replace(OP, width=16)
    assert kind(RESNET) == kind(Call(wider, RESNET.inputs)) != kind(TRANSFORMER)
