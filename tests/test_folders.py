import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nas.diffusion.folders import (
    DIFFUSERS_WEIGHTS,
    TRANSFORMERS_WEIGHTS,
    map_weights,
    read_json,
    read_weights,
    write_json,
    write_weights,
)
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


def test_files_are_those_of_safetensors_own_writer_to_the_bit(path, tmp_path):
    save_file(load_file(path), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert path.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


DTYPES = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("limit", [1, 10**9], ids=["sharded", "one file"])
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("asked", DTYPES)
def test_weights_of_any_precision_are_read_in_the_one_asked_for(tmp_path, stored, asked, limit):
    write_weights(tmp_path / DIFFUSERS_WEIGHTS, WEIGHTS, dtype=stored, limit=limit)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == (3 if limit == 1 else 1)
    assert {x.dtype for file in files for x in load_file(file).values()} == {jnp.dtype(stored)}
    found = read_weights(tmp_path, SHAPES, dtype=asked)
    assert found.keys() == WEIGHTS.keys()
    for name, weight in found.items():
        assert weight.dtype == asked
        expected = np.asarray(WEIGHTS[name]).astype(jnp.dtype(stored)).astype(jnp.dtype(asked))
        np.testing.assert_array_equal(weight, expected)


def test_a_precision_that_is_none_is_refused(path):
    with pytest.raises(ValueError, match="no dtype int8 for weights; they are float32, float16"):
        read_weights(path, SHAPES, dtype="int8")
    with pytest.raises(ValueError, match="no dtype float64"):
        write_weights(path, WEIGHTS, dtype="float64")


def test_mapped_weights_have_names_and_shapes_before_they_are_read(path):
    weights = map_weights(path, dtype="bfloat16")
    assert list(weights) == list(weights.shapes) and len(weights) == len(SHAPES)
    assert weights.keys() == SHAPES.keys()
    assert {n: s.shape for n, s in weights.shapes.items()} == {n: SHAPES[n].shape for n in weights}
    assert weights["conv.kernel"].dtype == jnp.bfloat16


def test_mapped_weights_outlive_what_replaces_their_file(path):
    weights = map_weights(path)
    write_weights(path, {"conv.kernel": 2 * WEIGHTS["conv.kernel"]})
    assert np.array_equal(weights["conv.kernel"], WEIGHTS["conv.kernel"])
    write_weights(path, weights)
    found = read_weights(path, SHAPES)
    assert all(np.array_equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("name", [DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS])
def test_shards_replace_one_file_and_one_file_replaces_shards(tmp_path, name):
    for limit, files in ((10, 4), (10**9, 1), (40, 3)):
        write_weights(tmp_path / name, WEIGHTS, limit=limit)
        assert len(list(tmp_path.iterdir())) == files
        found = read_weights(tmp_path, SHAPES)
        assert all(np.array_equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_shards_are_named_counted_and_filled_as_in_diffusers(tmp_path):
    write_weights(tmp_path / DIFFUSERS_WEIGHTS, WEIGHTS, limit=40)
    stem = "diffusion_pytorch_model"
    assert read_json(tmp_path / f"{stem}.safetensors.index.json") == {
        "metadata": {"total_size": 4 * (72 + 4 + 1)},
        "weight_map": {
            "conv.weight": f"{stem}-00001-of-00002.safetensors",
            "logit_scale": f"{stem}-00002-of-00002.safetensors",
            "text_model.norm.weight": f"{stem}-00002-of-00002.safetensors",
        },
    }


@pytest.mark.parametrize("limit", [1, 10**9], ids=["sharded", "one file"])
def test_a_variant_is_read_where_it_is_the_only_one(tmp_path, limit):
    write_weights(tmp_path / "diffusion_pytorch_model.fp16.safetensors", WEIGHTS, limit=limit)
    stem = "diffusion_pytorch_model"
    if limit == 1:  # They put the variant elsewhere in an index's name.
        index = tmp_path / f"{stem}.fp16.safetensors.index.json"
        index.rename(tmp_path / f"{stem}.safetensors.index.fp16.json")
    assert read_weights(tmp_path, SHAPES).keys() == SHAPES.keys()
    write_weights(tmp_path / f"{stem}.non_ema.safetensors", WEIGHTS)
    message = "only in several variants, (fp16, non_ema|non_ema, fp16); leave one of diffusion_"
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path, SHAPES)
    write_weights(tmp_path / DIFFUSERS_WEIGHTS, {"logit_scale": 2 * WEIGHTS["logit_scale"]})
    found = read_weights(tmp_path, {"logit_scale": SHAPES["logit_scale"]})
    assert found["logit_scale"] == 2 * WEIGHTS["logit_scale"]


@pytest.fixture
def sharded(tmp_path) -> Path:
    """A folder of three shards, to be damaged."""
    write_weights(tmp_path / TRANSFORMERS_WEIGHTS, WEIGHTS, limit=10)
    return tmp_path


def reshard(folder: Path, change) -> None:
    path = folder / f"{TRANSFORMERS_WEIGHTS}.index.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.99])
def test_a_damaged_shard_is_named(sharded, share):
    path = sharded / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors is no .*or damaged"):
        read_weights(sharded, SHAPES)


def test_a_shard_that_is_missing_is_named(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no file .*model-00002-of-00003\.safetensors"):
        read_weights(sharded, SHAPES)


def test_a_weight_that_is_not_in_its_shard_is_named(sharded):
    first = "model-00001-of-00003.safetensors"
    reshard(sharded, lambda index: index["weight_map"].update(logit_scale=first))
    with pytest.raises(ValueError, match=f"says that logit_scale is in {first}, but it is not"):
        read_weights(sharded, SHAPES)


@pytest.mark.parametrize(
    "place",
    ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..\\x.safetensors", "x.bin", 3, [1]],
)
def test_an_index_names_only_safetensors_beside_it(sharded, place):
    # The file that it points at would be read without complaint.
    shutil.copy(sharded / "model-00001-of-00003.safetensors", sharded.parent / "x.safetensors")
    reshard(sharded, lambda index: index["weight_map"].update({"conv.weight": place}))
    with pytest.raises(ValueError, match=r"index\.json names .*x|names (3|\[1\])"):
        read_weights(sharded, SHAPES)


@pytest.mark.parametrize(
    ("content", "message"),
    [({}, "has no weight_map"), ({"weight_map": []}, "weight_map is no object")],
)
def test_an_index_that_is_none_is_named(sharded, content, message):
    write_json(sharded / "model.safetensors.index.json", content)
    with pytest.raises(ValueError, match=rf"index\.json:? {message}"):
        read_weights(sharded, SHAPES)


def test_pickled_weights_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"has no weights: no diffusion_pytorch_model"):
        read_weights(tmp_path, SHAPES)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"never read")
    message = r"only as diffusion_pytorch_model\.bin.*never loaded.*save_pretrained"
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path, SHAPES)


def test_a_weight_of_another_type_is_named_only_when_it_is_asked_for(tmp_path):
    content = {"ids.weight": np.arange(4), "norm.weight": np.ones(4, np.float64)}
    save_file(content, tmp_path / "model.safetensors")
    four = jax.ShapeDtypeStruct((4,), "float32")
    assert read_weights(tmp_path, {"norm.scale": four})["norm.scale"].dtype == np.float32
    with pytest.raises(ValueError, match=r"ids\.weight is of type I64; weights are F64, F32"):
        read_weights(tmp_path, {"ids.scale": four})


READER = """
import json, sys, threading, time
from pathlib import Path
import jax, jax.numpy as jnp
from nas.diffusion.folders import map_weights, read_weights, write_weights

def resident():  # Memory of this process that is no file's, in bytes.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    while True:
        peak[0] = max(peak[0], resident())
        time.sleep(0.0005)

folder, dtype = Path(sys.argv[1]), sys.argv[2]
jax.block_until_ready(jnp.ones(2).astype(dtype))
before, peak = resident(), [0]
threading.Thread(target=watch, daemon=True).start()
weights = read_weights(folder, map_weights(folder).shapes, dtype=dtype)
jax.block_until_ready(weights)
print(before, peak[0], sum(weight.nbytes for weight in weights.values()))
write_weights(folder / "again.safetensors", weights, dtype=dtype)
print(peak[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read off Linux")
@pytest.mark.parametrize(
    ("stored", "asked", "limit"),
    [
        ("float16", "float32", 10**9),
        ("bfloat16", "bfloat16", 50_000_000),
    ],
    ids=["one file of halves as float32", "shards of bfloat16 as they are"],
)
def test_peak_memory_is_one_copy_of_the_weights(tmp_path, stored, asked, limit):
    half = jnp.tile(jnp.arange(512, dtype=stored), 4608).reshape(3, 3, 512, 512)
    weights = {f"blocks.{n}.conv.kernel": half for n in range(32 if asked == "float32" else 64)}
    write_weights(tmp_path / DIFFUSERS_WEIGHTS, weights, dtype=stored, limit=limit)
    command = [sys.executable, "-c", READER, str(tmp_path), asked]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, peak, size, peak_of_writing = map(int, out.split())
    assert size > 300_000_000
    assert peak - before < 1.25 * size + 40_000_000
    assert peak_of_writing - before < 1.25 * size + 60_000_000


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
