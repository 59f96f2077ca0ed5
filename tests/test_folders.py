import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nas.diffusion.folders import read_json, read_weights, write_json, write_weights
from tests import drawn

SHAPES = {
    "conv.kernel": jax.ShapeDtypeStruct((3, 3, 2, 4), "float32"),
    "text_model.norm.scale": jax.ShapeDtypeStruct((4,), "float32"),
    "logit_scale": jax.ShapeDtypeStruct((), "float32"),
}
WEIGHTS = drawn.weights(SHAPES, seed=0)


@pytest.fixture
def path(tmp_path):
    write_weights(tmp_path / "part" / "model.safetensors", WEIGHTS)
    return tmp_path / "part" / "model.safetensors"


def test_weights_are_read_back_to_the_bit(path):
    found = read_weights(path, SHAPES)
    assert found.keys() == WEIGHTS.keys()
    assert all(np.array_equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_weights_on_disk_have_pytorch_s_names_and_order_of_axes(path):
    found = load_file(path)
    assert found.keys() == {"conv.weight", "text_model.norm.weight", "logit_scale"}
    kernel = np.asarray(WEIGHTS["conv.kernel"])
    np.testing.assert_array_equal(found["conv.weight"], kernel.transpose(3, 2, 0, 1))


def test_half_precision_is_read_as_float32(tmp_path):
    write_weights(tmp_path / "half.safetensors", WEIGHTS, dtype="float16")
    assert load_file(tmp_path / "half.safetensors")["conv.weight"].dtype == np.float16
    for name, weight in read_weights(tmp_path / "half.safetensors", SHAPES).items():
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, np.asarray(WEIGHTS[name], np.float16))


def test_a_lone_text_tower_may_leave_out_its_name(tmp_path):
    content = {"norm.weight": np.arange(4, dtype=np.float32)}
    save_file(content, tmp_path / "text.safetensors")
    name = "text_model.norm.scale"
    found = read_weights(tmp_path / "text.safetensors", {name: SHAPES[name]})
    np.testing.assert_array_equal(found[name], content["norm.weight"])


def test_attention_of_early_autoencoders_is_read_by_its_early_names(tmp_path):
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    content = {
        f"attentions.0.{n}.weight": drawn.normal(i, 3, 2) for i, n in enumerate(names.values())
    }
    save_file(content, tmp_path / "vae.safetensors")
    shapes = {f"attentions.0.{n}.kernel": jax.ShapeDtypeStruct((2, 3), "float32") for n in names}
    found = read_weights(tmp_path / "vae.safetensors", shapes)
    for ours, theirs in names.items():
        kernel = content[f"attentions.0.{theirs}.weight"].T
        np.testing.assert_array_equal(found[f"attentions.0.{ours}.kernel"], kernel)


def test_weights_that_nobody_asks_for_are_not_read(path):
    assert read_weights(path, {"logit_scale": SHAPES["logit_scale"]}).keys() == {"logit_scale"}


def test_a_weight_that_is_missing_or_of_another_shape_is_named(path):
    more = {**SHAPES, "gone.bias": jax.ShapeDtypeStruct((1,), "float32")}
    with pytest.raises(ValueError, match=r"model\.safetensors has no weight gone\.bias"):
        read_weights(path, more)
    other = {**SHAPES, "conv.kernel": jax.ShapeDtypeStruct((3, 3, 4, 2), "float32")}
    message = r"model\.safetensors: conv\.weight is \(3, 3, 2, 4\) .* asks for \(3, 3, 4, 2\)"
    with pytest.raises(ValueError, match=message):
        read_weights(path, other)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*gone\.safetensors"):
        read_weights(tmp_path / "gone.safetensors", SHAPES)
    with pytest.raises(ValueError, match=r"no file .*gone\.json"):
        read_json(tmp_path / "gone.json")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.6, 0.99])
def test_truncated_weights_are_an_error_that_names_the_file(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file, or damaged"):
        read_weights(path, SHAPES)


def test_a_folder_in_place_of_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read_weights(tmp_path / "model.safetensors", SHAPES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON file"),
        (b"", "is no JSON file"),
        (b"\xff\xfe", "is no JSON file"),
        (b"[1]", "holds a list, not an object"),
    ],
)
def test_a_damaged_config_is_an_error_that_names_the_file(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"config\.json {message}"):
        read_json(tmp_path / "config.json")


def test_json_is_read_back_as_it_was_written(tmp_path):
    content = {"a": [1, 0.1, None, "é"], "b": {"c": True}}
    write_json(tmp_path / "new" / "config.json", content)
    assert read_json(tmp_path / "new" / "config.json") == content
