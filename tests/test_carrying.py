"""Micro-choices carry the function of a block along: exactly where they can, else by a fit."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from search_spaces.blocks import (
    GELU,
    Full,
    ResNet,
    ScaleShift,
    Separable,
    Swish,
    Transformer,
)
from search_spaces.criteria import L1Norm, OutputError, Taylor
from search_spaces.layers import ReluByLength, ReluBySum, Softmax
from search_spaces.model import Weights
from search_spaces.ops import Call, Op, Shape, choices, model, options
from search_spaces.surgery import Carried, Change, Samples
from tests import drawn
from tests.drawn import compiled, normal

WIDTH, TOKENS = 8, 5
IMAGE = Shape((2, 4, 4, WIDTH), "float32")
TIME = Shape((2, 6), "float32")
CONTEXT = Shape((2, TOKENS, 12), "float32")
TRANSFORMER = Transformer(heads=4, size=2, groups=2, ffn=8)
RESNET = ResNet(WIDTH, groups=2)
READS = {Transformer: (IMAGE, CONTEXT), ResNet: (IMAGE, TIME)}
ROWS = 40


def reads(op: Op, seed: int) -> tuple[Any, ...]:
    """Inputs that are alike in the channels, as those of real networks are, and not white noise."""
    found = []
    for number, shape in enumerate(READS[type(op)]):
        channels = shape.shape[-1]
        mixed = normal(number, channels, channels) / np.sqrt(channels)
        white = normal(10 * seed + number, ROWS, *shape.shape[1:])
        found.append(jnp.asarray(white @ mixed + 0.3 * normal(99, channels)))
    return tuple(found)


def changed(op: Op, weights: Weights, *, criterion: Any = None, **choice: Any) -> Change:
    new = dataclasses.replace(op, **choice)  # pyright: ignore[reportArgumentType]
    old, new = (Call(each, READS[type(op)]) for each in (op, new))
    gradient = {name: jnp.zeros_like(weight) for name, weight in weights.items()}
    samples = Samples(reads(op, 1), lambda: gradient)
    return Change(old, new, weights, samples, criterion or OutputError())


def carried(change: Change) -> Carried:
    (field,) = (
        name
        for name in options(change.old.op)
        if getattr(change.old.op, name) != getattr(change.new.op, name)
    )
    carry = choices(change.old.op)[field].carry
    assert carry is not None
    return carry(change)


def seeds(op: Op) -> Weights:
    return drawn.weights(model(Call(op, READS[type(op)])).shapes, seed=3)


def error(change: Change, weights: Weights) -> float:
    """Squared change of what the block adds to its input, on inputs it was not fitted to."""
    held_out = reads(change.old.op, 2)
    was = compiled(model(change.old))(change.weights, *held_out)
    now = compiled(model(change.new))(weights, *held_out)
    return float(jnp.square(now - was).mean() / jnp.square(was - held_out[0]).mean())


def naive(change: Change) -> Weights:
    """The weights whose shape is unchanged; the rest drawn as for a new network."""
    kept = change.weights
    return {
        name: kept[name] if name in kept and kept[name].shape == weight.shape else weight
        for name, weight in model(change.new).initial(0).items()
    }


CHOICES = [
    pytest.param(op, {field: value}, id=f"{field}: {getattr(op, field)} to {value}")
    for op in (
        TRANSFORMER,
        dataclasses.replace(TRANSFORMER, mixing=ReluByLength(), gate=Swish(), depth=2),
        RESNET,
        dataclasses.replace(RESNET, modulation=ScaleShift()),
        dataclasses.replace(RESNET, convolution=Separable(2)),
    )
    for field, (_, *others) in options(op).items()
    for value in others
]


@pytest.mark.parametrize(("op", "choice"), CHOICES)
def test_what_is_carried_is_nearer_to_the_block_than_what_is_drawn(op, choice):
    change = changed(op, seeds(op), **choice)
    found, fresh = error(change, carried(change).weights), error(change, naive(change))
    assert found < 0.9 * fresh or (found < 1e-6 and fresh < 1e-6)


EXACT = [
    pytest.param(op, choice, id=f"{type(op).__name__}: {choice}")
    for op, choice in (
        (dataclasses.replace(RESNET, convolution=Separable()), {"convolution": Full()}),
        (dataclasses.replace(RESNET, convolution=Separable()), {"convolution": Separable(2)}),
        (dataclasses.replace(TRANSFORMER, shared=True), {"shared": False}),
        (dataclasses.replace(TRANSFORMER, ffn=4), {"ffn": 8}),
        (dataclasses.replace(TRANSFORMER, heads=2), {"heads": 4}),
        (TRANSFORMER, {"depth": 2}),
        (dataclasses.replace(TRANSFORMER, self_attention=False), {"self_attention": True}),
        (dataclasses.replace(TRANSFORMER, cross_attention=False), {"cross_attention": True}),
    )
]


@pytest.mark.parametrize(("op", "choice"), EXACT)
def test_a_choice_that_only_adds_freedom_changes_nothing(op, choice):
    change = changed(op, seeds(op), **choice)
    assert error(change, carried(change).weights) < 1e-8


@pytest.mark.parametrize("criterion", [L1Norm(), Taylor(), OutputError()])
@pytest.mark.parametrize(("field", "fewer"), [("ffn", 4), ("heads", 2)])
def test_trimming_units_that_say_nothing_changes_nothing(field, fewer, criterion):
    """Every second unit is silent: it has small weights, no gradient, and is not listened to."""
    weights, gradient = dict(seeds(TRANSFORMER)), {}
    for name, weight in weights.items():
        silent = np.zeros(weight.shape, bool)
        if field == "ffn" and ".ff.net.0.proj" in name:
            silent[..., ::2] = True
        elif field == "ffn" and name.endswith("ff.net.2.kernel"):
            silent[::2] = True
        elif field == "heads" and name.endswith(("to_q.kernel", "to_k.kernel", "to_v.kernel")):
            silent.reshape(len(silent), -1, 2)[:, ::2] = True
        elif field == "heads" and name.endswith("to_out.0.kernel"):
            silent.reshape(-1, 2, silent.shape[1])[::2] = True
        listened = name.endswith(("to_out.0.kernel", "ff.net.2.kernel"))
        weights[name] = jnp.where(silent, 0.0 if listened else 0.1 * weight, weight)
        gradient[name] = jnp.where(silent, 0.0, 1.0)
    change = changed(TRANSFORMER, weights, criterion=criterion, **{field: fewer})
    change = change._replace(samples=Samples(change.samples.reads, lambda: gradient))
    assert error(change, carried(change).weights) < 1e-6


def test_output_error_keeps_one_of_two_units_that_say_the_same():
    """By its weights each of the twins is as important as the other, and both than the rest."""
    weights = dict(seeds(TRANSFORMER))
    for name, weight in weights.items():
        if ".ff.net.0.proj" in name:  # The second half of the units repeats the first.
            value, gate = jnp.split(weight, 2, axis=-1)
            half = value.shape[-1] // 2
            parts = [p for both in (value, gate) for p in (both[..., :half], both[..., :half])]
            weights[name] = jnp.concatenate(parts, axis=-1)
    change = changed(TRANSFORMER, weights, ffn=4)
    assert error(change, carried(change).weights) < 1e-4


def test_a_kernel_of_low_rank_becomes_separable_without_loss():
    separable = dataclasses.replace(RESNET, convolution=Separable())
    back = changed(separable, seeds(separable), convolution=Full())
    change = changed(RESNET, carried(back).weights, convolution=Separable())
    assert error(change, carried(change).weights) < 1e-4


def test_more_filters_a_channel_keep_more():
    one, two = (
        changed(RESNET, seeds(RESNET), convolution=Separable(expansion)) for expansion in (1, 2)
    )
    assert error(two, carried(two).weights) < 0.8 * error(one, carried(one).weights)


def test_keys_that_are_made_of_values_are_shared_without_loss():
    """Keys that are values turned, head by head, need no projection of their own."""
    weights = dict(seeds(TRANSFORMER))
    for name in weights:
        if name.endswith("to_k.kernel"):
            value = weights[name.replace("to_k", "to_v")]
            turned = value.reshape(len(value), 4, 2) @ normal(7, 4, 2, 2).transpose(0, 1, 2)[0]
            weights[name] = jnp.asarray(turned.reshape(value.shape))
    change = changed(TRANSFORMER, weights, shared=True)
    assert error(change, carried(change).weights) < 1e-4


@pytest.mark.parametrize("mixing", [ReluByLength(), ReluBySum()])
def test_relu_attention_is_scaled_to_what_softmax_said(mixing):
    weights = dict(seeds(TRANSFORMER))
    loud = {
        name: 30 * weight if name.endswith("to_v.kernel") else weight
        for name, weight in weights.items()
    }
    change = changed(TRANSFORMER, loud, mixing=mixing)
    assert error(change, carried(change).weights) < 0.7 * error(change, loud)


def test_swish_says_nearly_what_gelu_said():
    change = changed(TRANSFORMER, seeds(TRANSFORMER), gate=Swish())
    assert error(change, carried(change).weights) < 1e-3 < 5e-3 < error(change, change.weights)


def test_back_from_swish_is_as_good():
    op = dataclasses.replace(TRANSFORMER, gate=Swish())
    change = changed(op, seeds(op), gate=GELU())
    assert error(change, carried(change).weights) < 1e-3


def test_what_was_drawn_and_what_is_lost_are_listed():
    change = changed(
        dataclasses.replace(TRANSFORMER, heads=2),
        seeds(dataclasses.replace(TRANSFORMER, heads=2)),
        heads=4,
    )
    assert "transformer_blocks.0.attn1.to_q.kernel" in carried(change).fresh
    change = changed(TRANSFORMER, seeds(TRANSFORMER), self_attention=False)
    found = carried(change)
    assert found.fresh == ()
    assert found.lost and all(".attn1." in n or ".norm1." in n for n in found.lost)
    change = changed(TRANSFORMER, seeds(TRANSFORMER), shared=True)
    assert carried(change)[1:] == ((), ())


def test_what_an_edit_does_not_touch_is_kept_to_the_bit():
    change = changed(TRANSFORMER, seeds(TRANSFORMER), ffn=4)
    found = carried(change).weights
    touched = {name for name in found if found[name] is not change.weights[name]}
    assert all(".ff." in name for name in touched)


def test_softmax_fitted_to_itself_has_a_scale_of_one():
    """The scale is fitted before the projection: with nothing to make up for, both stay."""
    op = dataclasses.replace(TRANSFORMER, mixing=Softmax())
    change = changed(op, seeds(op), mixing=Softmax())
    carry = choices(op)["mixing"].carry
    assert carry is not None
    for name, weight in carry(change).weights.items():
        np.testing.assert_allclose(weight, change.weights[name], rtol=2e-3, atol=2e-3)
