"""What may be searched about the built-in ops computes what its name says."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from search_spaces.blocks import (
    Additive,
    Full,
    ResNet,
    ScaleShift,
    Separable,
    Swish,
    Transformer,
)
from search_spaces.layers import ReluByLength, ReluBySum, Softmax, attention
from search_spaces.model import Weights
from search_spaces.ops import Call, Op, model, options, output
from tests import drawn
from tests.drawn import normal

IMAGE = jax.ShapeDtypeStruct((2, 4, 4, 8), "float32")
TIME = jax.ShapeDtypeStruct((2, 6), "float32")
CONTEXT = jax.ShapeDtypeStruct((2, 5, 6), "float32")
CALLS = {
    "resnet": Call(ResNet(8, 2), (IMAGE, TIME)),
    "transformer": Call(Transformer(heads=2, size=4, groups=2), (IMAGE, CONTEXT)),
}
VARIANTS = [
    pytest.param(dataclasses.replace(call.op, **{field: value}), call.inputs, id=f"{field}={value}")  # pyright: ignore
    for call in CALLS.values()
    for field, values in options(call.op).items()
    for value in values[1:]
]


def inputs(call: Call) -> list[jax.Array]:
    return [jnp.asarray(normal(n, *shape.shape)) for n, shape in enumerate(call.inputs)]


def run(op: Op, reads: tuple[Any, ...], weights: Weights) -> jax.Array:
    call = Call(op, reads)
    return model(call)(weights, *inputs(call))


def test_the_first_option_is_the_default_and_others_follow():
    assert options(ResNet(8, 2)) == {
        "convolution": (Full(), Separable(), Separable(2)),
        "modulation": (Additive(), ScaleShift()),
    }
    assert options(ResNet(8, 2, modulation=ScaleShift()))["modulation"][0] == ScaleShift()
    assert options(ResNet(8, 2, convolution=Separable(7)))["convolution"][0] == Separable(7)


@pytest.mark.parametrize(("op", "reads"), VARIANTS)
def test_every_choice_keeps_the_shape_and_changes_the_function(op, reads):
    call = Call(op, reads)
    assert output(call) == reads[0]
    weights = drawn.weights(model(call).shapes, seed=0)
    found = run(op, reads, weights)
    assert np.isfinite(found).all()
    kind = next(c for c in CALLS.values() if type(c.op) is type(op))
    plain = drawn.weights(model(kind).shapes, seed=0)
    assert not np.allclose(found, run(kind.op, reads, plain))


@pytest.mark.parametrize(("op", "reads"), VARIANTS)
def test_the_outlet_of_every_choice_is_what_makes_it_the_identity(op, reads):
    call = Call(op, reads)
    weights = drawn.weights(model(call).shapes, seed=0)
    outlet = [name for name in weights if name.startswith(f"{op.outlet}.")]
    assert outlet
    zeros = {**weights, **{name: jnp.zeros_like(weights[name]) for name in outlet}}
    np.testing.assert_array_equal(run(op, reads, zeros), inputs(call)[0])


def plainly(mixing, q, k, v, heads):
    """Attention in NumPy, one head of one sample at a time."""
    result = np.zeros(q.shape)
    size = q.shape[-1] // heads
    for b in range(len(q)):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[b, :, part] @ k[b, :, part].T / np.sqrt(size)
            if mixing == Softmax():
                weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            elif mixing == ReluByLength():
                weights = np.maximum(scores, 0) / k.shape[1]
            else:
                weights = np.maximum(scores, 0)
                weights /= weights.sum(1, keepdims=True) + 1e-6
            result[b, :, part] = weights @ v[b, :, part]
    return result


@pytest.mark.parametrize("mixing", [Softmax(), ReluByLength(), ReluBySum()])
def test_attention_mixes_as_its_name_says(mixing):
    q, k, v = normal(0, 2, 7, 8), normal(1, 2, 5, 8), normal(2, 2, 5, 8)
    found = attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), 2, mixing=mixing)
    np.testing.assert_allclose(found, plainly(mixing, q, k, v, 2), rtol=1e-4, atol=1e-5)


def test_relu_attention_scales_with_its_queries():
    q, k, v = (jnp.asarray(normal(n, 2, 5, 8)) for n in range(3))
    once, thrice = (attention(s * q, k, v, 2, mixing=ReluByLength()) for s in (1.0, 3.0))
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-5, atol=1e-7)


def test_a_separable_convolution_is_the_full_one_of_its_low_rank_kernel():
    op = ResNet(8, 2, convolution=Separable(2))
    weights = drawn.weights(model(Call(op, (IMAGE, TIME))).shapes, seed=0)
    full: Weights = {}
    for name, weight in weights.items():
        layer, _, _ = name.rpartition(".")
        if layer.endswith(".depthwise"):
            conv = layer.removesuffix(".depthwise")
            pointwise = weights[f"{conv}.pointwise.kernel"][0, 0]  # [in * 2, out]
            filters = weight.reshape(3, 3, 8, 2)
            kernel = jnp.einsum("hwif,ifo->hwio", filters, pointwise.reshape(8, 2, -1))
            full[f"{conv}.kernel"] = kernel
            full[f"{conv}.bias"] = weights[f"{conv}.pointwise.bias"]
        elif not layer.endswith(".pointwise"):
            full[name] = weight
    found = run(op, (IMAGE, TIME), weights)
    np.testing.assert_allclose(found, run(ResNet(8, 2), (IMAGE, TIME), full), rtol=1e-4, atol=1e-4)


def test_a_shared_projection_is_that_of_keys_and_values_alike():
    reads = CALLS["transformer"].inputs
    op = Transformer(heads=2, size=4, groups=2, shared=True)
    weights = drawn.weights(model(Call(op, reads)).shapes, seed=0)
    apart = {}
    for name, weight in weights.items():
        for part in ("to_k", "to_v") if "to_kv" in name else ("",):
            apart[name.replace("to_kv", part) if part else name] = weight
    plain = dataclasses.replace(op, shared=False)
    np.testing.assert_array_equal(run(op, reads, weights), run(plain, reads, apart))


def test_a_scale_of_zero_and_a_shift_of_zero_ignore_time():
    op = ResNet(8, 2, modulation=ScaleShift())
    weights = drawn.weights(model(Call(op, (IMAGE, TIME))).shapes, seed=0)
    silent = {n: jnp.zeros_like(w) if "time_emb" in n else w for n, w in weights.items()}
    alone = {n: w for n, w in weights.items() if "time_emb" not in n}
    found = run(op, (IMAGE, TIME), silent)
    call = Call(ResNet(8, 2), (IMAGE,))
    np.testing.assert_allclose(found, model(call)(alone, inputs(call)[0]), rtol=1e-5, atol=1e-5)


def test_without_an_attention_its_weights_are_gone_and_the_rest_is_as_it_was():
    reads = CALLS["transformer"].inputs
    plain = Transformer(heads=2, size=4, groups=2)
    weights = drawn.weights(model(Call(plain, reads)).shapes, seed=0)
    for field, layer, norm in (
        ("self_attention", "attn1", "norm1"),
        ("cross_attention", "attn2", "norm2"),
    ):
        op = dataclasses.replace(plain, **{field: False})
        kept = {n: w for n, w in weights.items() if f".{layer}." not in n and f".{norm}." not in n}
        silent = {
            n: jnp.zeros_like(w) if f".{layer}.to_out" in n else w for n, w in weights.items()
        }
        found = run(op, reads, kept)
        np.testing.assert_allclose(found, run(plain, reads, silent), rtol=1e-5, atol=1e-5)


def test_fewer_heads_attend_in_a_narrower_space():
    op = Transformer(heads=1, size=4, groups=2, gate=Swish())
    shapes = model(Call(op, CALLS["transformer"].inputs)).shapes
    assert shapes["transformer_blocks.0.attn1.to_q.kernel"].shape == (8, 4)
    assert shapes["transformer_blocks.0.attn2.to_out.0.kernel"].shape == (4, 8)
