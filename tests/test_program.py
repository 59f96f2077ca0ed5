"""Models as functions of named weights, and programs that run them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from search_spaces.blocks import Conv, NormSiLU, ResNet, TimeEmbedding, Transformer, time_features
from search_spaces.layers import convolve
from search_spaces.model import from_torch, to_torch, torch_name
from search_spaces.ops import Call, cost, model, output
from search_spaces.program import Step, calls, network
from tests import drawn

IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 4), "float32")
PROGRAM = (
    Step("a", Conv(8), ("x",)),
    Step("b", NormSiLU(2), ("a",)),
    Step("c", Conv(8, kernel=1), ("b",)),
)
MODEL = network(PROGRAM, {"x": IMAGE})
X = drawn.normal(0, *IMAGE.shape)


@pytest.fixture(scope="module")
def weights():
    return drawn.weights(MODEL.shapes, seed=0)


def test_calls_have_the_shapes_that_steps_see():
    found = calls(PROGRAM, {"x": IMAGE})
    wide = jax.ShapeDtypeStruct((2, 8, 8, 8), "float32")
    assert found == {
        "a": Call(Conv(8), (IMAGE,)),
        "b": Call(NormSiLU(2), (wide,)),
        "c": Call(Conv(8, kernel=1), (wide,)),
    }


def test_a_step_that_is_not_kept_passes_its_first_read_on(weights):
    without_c = network(PROGRAM[:-1], {"x": IMAGE})
    fewer = {name: weights[name] for name in without_c.shapes}
    found = MODEL(weights, {"x": X}, {"c": jnp.array(False)})
    np.testing.assert_array_equal(found, without_c(fewer, {"x": X}))
    np.testing.assert_array_equal(
        MODEL(weights, {"x": X}, {"c": jnp.array(True)}), MODEL(weights, {"x": X})
    )


def test_values_of_other_steps_are_returned_when_asked_for(weights):
    result, found = MODEL(weights, {"x": X}, also=("a", "c"))
    np.testing.assert_array_equal(result, found["c"])
    assert found.keys() == {"a", "c"} and not np.array_equal(found["a"], found["c"])


def test_weights_are_named_by_step_layer_and_leaf():
    assert MODEL.shapes.keys() == {
        f"{path}.{leaf}"
        for path, leaf in zip("aabbcc", 3 * ["kernel", "bias"], strict=True)
        if path != "b"
    } | {"b.scale", "b.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("a.kernel"), r"1 are missing \(first: \['a.kernel'\]\), 0 are unknown"),
        (lambda w: w.update(z=w["a.bias"]), r"0 are missing .* 1 are unknown \(first: \['z'\]\)"),
        (
            lambda w: w.update({"a.bias": w["a.bias"][1:]}),
            r"a\.bias has shape \(7,\), but this architecture needs \(8,\)",
        ),
    ],
)
def test_weights_of_another_architecture_are_refused(weights, change, message):
    weights = dict(weights)
    change(weights)
    with pytest.raises(ValueError, match=message):
        MODEL(weights, {"x": X})


def test_initial_weights_depend_on_the_seed_alone():
    one, again, other = MODEL.initial(1), MODEL.initial(1), MODEL.initial(2)
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not np.array_equal(one["a.kernel"], other["a.kernel"])
    MODEL.check(one)


def test_initial_weights_named_zero_are():
    found = MODEL.initial(0, zeros=frozenset({"c"}))
    assert not np.asarray(found["c.kernel"]).any() and np.asarray(found["a.kernel"]).any()


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (1, 1, 4, 8), (4, 8)])
def test_kernels_survive_the_order_of_axes_of_pytorch(shape):
    kernel = drawn.normal(0, *shape)
    there = to_torch("x.kernel", kernel)
    assert there.shape == (8, 4, *shape[:-2])
    np.testing.assert_array_equal(from_torch("x.kernel", there), kernel)


def test_leaves_are_called_weight_and_bias_in_pytorch():
    names = ["a.kernel", "b.scale", "c.embedding", "d.bias", "logit_scale", "e.class_embedding"]
    assert [torch_name(name) for name in names] == [
        "a.weight",
        "b.weight",
        "c.weight",
        "d.bias",
        "logit_scale",
        "e.class_embedding",
    ]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_gradient_of_a_convolution_is_that_of_xla(size):
    x, kernel = drawn.normal(1, 2, 6, 5, 3), drawn.normal(2, size, size, 3, 4)
    weight = drawn.normal(3, 2, 6, 5, 4)

    def plain(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)

    def gradient(function):
        return jax.grad(lambda *args: jnp.sum(weight * function(*args)), argnums=(0, 1))(x, kernel)

    for ours, theirs in zip(gradient(convolve), gradient(plain), strict=True):
        assert drawn.relative_error(ours, theirs) < 1e-5


def test_price_and_shape_of_a_call_are_those_of_its_layer():
    call = Call(Conv(8), (IMAGE,))
    assert output(call).shape == (2, 8, 8, 8)
    assert cost(call).params == model(call).size == 9 * 4 * 8 + 8
    multiplications = (8 * 3 - 2) ** 2 * 4 * 8 * 2  # Of taps that do not fall on the padding.
    assert cost(call).flops >= 2 * multiplications


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (NormSiLU(3), "4 channels do not divide into 3 groups"),
        (ResNet(8, groups=3), "4 channels do not divide into 3 groups"),
        (Transformer(heads=2, size=2, groups=3), "4 channels do not divide into 3 groups"),
    ],
)
def test_an_op_refuses_channels_that_do_not_divide(op, message):
    context = jax.ShapeDtypeStruct((2, 5, 4), "float32")
    reads = (IMAGE, context) if isinstance(op, Transformer) else (IMAGE,)
    with pytest.raises(ValueError, match=message):
        output(Call(op, reads))


def test_time_features_are_cosines_then_sines():
    found = time_features(jnp.array([0.0, 1.0]), 4)
    np.testing.assert_allclose(found[0], [1, 1, 0, 0])
    np.testing.assert_allclose(found[1], [np.cos(1), np.cos(0.01), np.sin(1), np.sin(0.01)], 1e-5)


def test_a_time_embedding_is_of_the_batch():
    call = Call(TimeEmbedding(4, 8), (jax.ShapeDtypeStruct((3,), "int32"),))
    assert output(call).shape == (3, 8)
