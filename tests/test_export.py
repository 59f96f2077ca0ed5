"""What is exported computes what the original does, under the same names."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx as onnx_files
import pytest
from flax import nnx
from safetensors.numpy import load_file

from nas.commands import export
from nas.diffusion import autoencoder, clip, unet
from nas.diffusion.folders import DIFFUSERS_WEIGHTS
from nas.export import folder, load_stablehlo
from nas.export.part import Name, decoder, read
from search_spaces.blocks import ResNet, ScaleShift, Separable, Swish, Transformer
from search_spaces.export import onnx, stablehlo
from search_spaces.export.part import Part
from search_spaces.export.writer import Unsupported
from search_spaces.layers import ReluByLength
from search_spaces.ops import Op
from search_spaces.program import Program, Step, network
from search_spaces.unet import UNetSpec, lower
from tests import drawn, tiny
from tests.drawn import relative_error
from tests.test_choices import CALLS, VARIANTS

CLOSE = 1e-4
FORMS = {"onnx": onnx, "stablehlo": stablehlo}
VAE = {
    **tiny.VAE,
    "mid_block_add_attention": True,
    "latents_mean": [0.1, 0.2, -0.3, 0.4],
    "latents_std": [1.1, 0.9, 1.2, 0.7],
}
SDXL = {
    **tiny.UNET,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 10,
}


def part_of(program: Program, inputs, name: str = "part") -> Part:
    shapes = network(program, inputs).shapes
    weights = {n: np.asarray(w) for n, w in drawn.weights(shapes, seed=1).items()}
    return Part(name, program, inputs, {"result": program[-1].name}, weights)


def original(part: Part, values) -> dict[str, np.ndarray]:
    found = drawn.compiled(lambda weights, values: part(weights, values))(part.weights, values)
    return {name: np.asarray(value) for name, value in found.items()}


def assert_same(part: Part, into: Path, to: folder.To = "onnx", *, close: float = CLOSE) -> None:
    folder.write(part, to, into / "exported", check=False)
    values = folder.drawn(part, seed=2)
    _, found = FORMS[to].run(into / "exported", values)
    wanted = original(part, values)
    assert found.keys() == wanted.keys() == part.outputs.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert relative_error(found[name].astype("f4"), value.astype("f4")) < close


@pytest.mark.parametrize(
    ("op", "reads"),
    [*(pytest.param(*call, id=name) for name, call in CALLS.items()), *VARIANTS],
)
def test_every_choice_of_a_block_computes_the_same_in_onnx(tmp_path: Path, op: Op, reads):
    inputs = {f"read{i}": shape for i, shape in enumerate(reads)}
    assert_same(part_of((Step("block", op, tuple(inputs)),), inputs), tmp_path)


def searched() -> UNetSpec:
    """A U-Net of the SDXL family after a search: blocks gone, copied, and of other kinds."""
    spec = tiny.copied(
        tiny.without(unet.from_config(SDXL), "mid_block.resnets.1", "down_blocks.0.resnets.0"),
        ("down_blocks.0.attentions.0", "down_blocks.0.attentions.0+1"),
        ("up_blocks.1.resnets.1", "up_blocks.1.resnets.1+1"),
    )

    def other(block):
        match block.op:
            case ResNet() if block.name.startswith("up_blocks.1"):
                changes = {"convolution": Separable(2), "modulation": ScaleShift()}
            case Transformer() if block.name.startswith("down_blocks"):
                changes = {"mixing": ReluByLength(), "shared": True, "gate": Swish()}
            case Transformer() if block.name.startswith("mid_block"):
                changes = {"self_attention": False, "ffn": 4}
            case _:
                return block
        return dataclasses.replace(block, op=dataclasses.replace(block.op, **changes))

    def stage(old):
        layers = (dataclasses.replace(i, blocks=tuple(map(other, i.blocks))) for i in old.layers)
        return dataclasses.replace(old, layers=tuple(layers))

    return dataclasses.replace(
        spec,
        down=tuple(map(stage, spec.down)),
        middle=stage(spec.middle),
        up=tuple(map(stage, spec.up)),
    )


@pytest.fixture(scope="module")
def found() -> Part:
    return part_of(lower(searched()), unet.shapes(SDXL, batch=2, tokens=tiny.LENGTH), "unet")


@pytest.mark.parametrize("to", FORMS)
def test_a_searched_unet_computes_the_same(tmp_path: Path, found: Part, to: folder.To):
    assert set(found.inputs) == {"sample", "timestep", "context", "pooled", "sizes"}
    assert_same(found, tmp_path, to)


def test_a_decoder_computes_what_the_pipeline_decodes(tmp_path: Path):
    part = part_of(*decoder(VAE, batch=2))
    assert_same(part, tmp_path)
    vae = autoencoder.Autoencoder(VAE)
    values = folder.drawn(part, seed=2)
    weights = {**drawn.weights(vae.shapes, seed=3), **part.weights}
    wanted = drawn.compiled(vae.decode)(weights, values["latents"])
    np.testing.assert_allclose(original(part, values)["result"], wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_a_text_encoder_gives_what_the_unet_reads(
    tmp_path: Path, xl_folders: tiny.Folders, name: Name
):
    part = read(xl_folders.pipeline, name, batch=2)
    assert part.outputs.keys() == {"context", *(["pooled"] if name == "text_encoder_2" else [])}
    assert_same(part, tmp_path)


def test_the_text_encoder_of_stable_diffusion_is_one(folders: tiny.Folders, tmp_path: Path):
    assert_same(read(folders.pipeline, "text_encoder", batch=1), tmp_path)
    with pytest.raises(ValueError, match=r"whose text encoders are \['text_encoder'\]"):
        read(folders.pipeline, "text_encoder_2", batch=1)


def test_an_image_tower_computes_the_same_in_onnx(tmp_path: Path):
    config = tiny._CLIP["vision_config"]
    program, pixels = clip.vision_program(config, 8), {"pixels": clip.pixels_shape(config, 2)}
    assert_same(part_of(program, pixels), tmp_path)


@dataclasses.dataclass(frozen=True)
class Plain(Op):
    """A plug-in's op: any function of its reads."""

    function: str

    def module(self, inputs, *, rngs: nnx.Rngs) -> nnx.Module:
        return _Plain(self.function)


class _Plain(nnx.Module):
    def __init__(self, function: str):
        self.function = function

    def __call__(self, *reads):
        return FUNCTIONS[self.function](*reads)


def _largest(x, y):
    return jnp.take_along_axis(x, jnp.argmax(x[..., 0], axis=1)[:, None, None], axis=1)[:, 0]


FUNCTIONS = {
    "the row of the largest": _largest,
    "moved axes, cut": lambda x, y: jnp.moveaxis(x, 2, 0)[1:7:2, :, ::3] - 1.5,
    "axes in two orders": lambda x, y: (
        x[:, :2, :2].transpose(2, 0, 1) + y[:, 1:3, 2:4].transpose(1, 0, 2)
    ),
    "a known array": lambda x, y: (
        x[:, :2, :2].transpose(2, 0, 1) + jnp.arange(8.0).reshape(2, 2, 2)
    ),
    "the first that is": lambda x, y: jnp.argmax(x > 0.5, axis=2) + jnp.argmin(y, axis=2),
    "sums of any axes": lambda x, y: x.transpose(2, 1, 0).sum((0, 2)) + y.min(0).max(),
    "products of any axes": lambda x, y: jnp.einsum("abc,dbe->eacd", x, y),
    "a product of turned matrices": lambda x, y: x[0].T @ y[1, :, :4],
    "padded and joined": lambda x, y: jnp.concatenate([jnp.pad(x, ((0, 0), (1, 2), (0, 0))), y], 1),
    "conditions": lambda x, y: jnp.where((x > 0) & (x != y), x**3, jnp.sign(y) * jnp.log1p(0.5)),
    "nothing but its read": lambda x, y: y,
    "what is known already": lambda x, y: jnp.tril(jnp.ones((3, 3))),
    "whole numbers": lambda x, y: jax.lax.rem((9 * x).astype("int32"), 4) + (y > 0).astype("int32"),
    "split, stacked": lambda x, y: jnp.stack(jnp.split(x.transpose(0, 2, 1), 2, axis=1), axis=2),
    "rows by two indices": lambda x, y: x[jnp.argmax(y[:, 0], 1) % 2, jnp.array([3, 0])],
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_plug_ins_op_is_written_from_what_it_computes(tmp_path: Path, function: str):
    shape = jax.ShapeDtypeStruct((2, 5, 8), "float32")
    part = part_of((Step("plug", Plain(function), ("x", "y")),), {"x": shape, "y": shape})
    assert_same(part, tmp_path)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda x, y: jnp.cumsum(x, axis=1), "step plug computes cumsum, which cannot be written"),
        (
            lambda x, y: jax.lax.while_loop(lambda v: v.sum() < 9, lambda v: v + 1, x),
            "step plug computes while",
        ),
        (
            lambda x, y: jax.lax.conv_transpose(x, y[:1, :, :].transpose(0, 2, 1), (2,), "SAME"),
            "step plug cannot be written as ONNX: conv_general_dilated is grouped over the batch",
        ),
    ],
)
def test_what_onnx_cannot_say_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function, complaint: str
):
    monkeypatch.setitem(FUNCTIONS, complaint, function)
    shape = jax.ShapeDtypeStruct((2, 5, 8), "float32")
    part = part_of((Step("plug", Plain(complaint), ("x", "y")),), {"x": shape, "y": shape})
    with pytest.raises(Unsupported, match=complaint):
        folder.write(part, "onnx", tmp_path / "exported")
    assert not list(tmp_path.iterdir())
    assert_same(part, tmp_path, "stablehlo")


def test_weights_in_onnx_are_the_checkpoints(tmp_path: Path, folders: tiny.Folders):
    part = read(folders.pipeline, "unet", batch=2)
    folder.write(part, "onnx", tmp_path / "exported", check=False)
    graph = onnx_files.load(tmp_path / "exported" / onnx.MODEL).graph
    stored = {t.name: onnx_files.numpy_helper.to_array(t) for t in graph.initializer}
    checkpoint = load_file(folders.pipeline / "unet" / DIFFUSERS_WEIGHTS)
    for name, weight in checkpoint.items():
        np.testing.assert_array_equal(stored[name], weight)
    assert {name for name in stored if not name.startswith("constant_")} == checkpoint.keys()
    assert [value.name for value in graph.input] == ["sample", "timestep", "context"]
    assert [value.name for value in graph.output] == ["prediction"]


def test_no_kernel_is_transposed_in_onnx(tmp_path: Path, found: Part):
    folder.write(found, "onnx", tmp_path / "exported", check=False)
    graph = onnx_files.load(tmp_path / "exported" / onnx.MODEL).graph
    turned = {node.input[0] for node in graph.node if node.op_type == "Transpose"}
    assert turned and not turned & {tensor.name for tensor in graph.initializer}


def test_large_weights_go_into_a_file_beside(tmp_path: Path, found: Part):
    onnx.write(found, tmp_path, limit=1000)
    assert (tmp_path / onnx.MODEL).stat().st_size < (tmp_path / onnx.DATA).stat().st_size
    values = folder.drawn(found, seed=2)
    _, outputs = onnx.run(tmp_path, values)
    assert relative_error(outputs["result"], original(found, values)["result"]) < CLOSE


def test_stablehlo_is_run_by_jax_alone(tmp_path: Path, folders: tiny.Folders):
    part = read(folders.pipeline, "decoder", batch=2)
    folder.write(part, "stablehlo", tmp_path / "exported", check=False)
    values = folder.drawn(part, seed=2)
    np.save(tmp_path / "latents.npy", values["latents"])
    script = (
        "import sys, pathlib, numpy; from nas.export import load_stablehlo;"
        "here = pathlib.Path(sys.argv[1]);"
        "latents = numpy.load(here / 'latents.npy');"
        "found = load_stablehlo(here / 'exported')(latents=latents);"
        "numpy.save(here / 'found.npy', found['pixels']);"
        "assert not {'search_spaces.ops', 'flax', 'nas.diffusion'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    wanted = original(part, values)["pixels"]
    assert relative_error(np.load(tmp_path / "found.npy"), wanted) < CLOSE


def test_stablehlo_says_which_inputs_it_reads(tmp_path: Path, folders: tiny.Folders):
    part = read(folders.pipeline, "text_encoder", batch=1)
    folder.write(part, "stablehlo", tmp_path / "exported", check=False)
    with pytest.raises(ValueError, match=r"inputs are \['ids'\], and not \['tokens'\]"):
        load_stablehlo(tmp_path / "exported")(tokens=jnp.zeros((1, tiny.LENGTH), int))


def test_a_manifest_says_what_the_files_are(tmp_path: Path, folders: tiny.Folders):
    part = read(folders.pipeline, "decoder", batch=3)
    manifest = folder.write(part, "stablehlo", tmp_path / "exported")
    written = json.loads((tmp_path / "exported" / "manifest.json").read_text())
    assert written == manifest
    assert manifest["inputs"] == [{"name": "latents", "shape": [3, 8, 8, 4], "dtype": "float32"}]
    assert manifest["outputs"] == [{"name": "pixels", "shape": [3, 16, 16, 3], "dtype": "float32"}]
    assert manifest["batch"] == 3 and manifest["platforms"] == ["cpu", "cuda", "rocm", "tpu"]
    assert manifest["parameters"] == sum(weight.size for weight in part.weights.values())
    assert manifest["compared"]["differences"]["pixels"] < CLOSE
    for name, digest in manifest["sha256"].items():
        content = (tmp_path / "exported" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
    assert len(manifest["sha256"]) == 2
    content = (tmp_path / "exported" / "model.stablehlo").read_bytes()
    read_there = jax.export.deserialize(bytearray(content)).in_avals
    shapes = {**part.weights, **part.inputs}
    assert [x.shape for x in read_there] == [shapes[n].shape for n in manifest["arguments"]]


def test_an_export_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch):
    shape = jax.ShapeDtypeStruct((2, 5, 8), "float32")
    part = part_of((Step("plug", Plain("conditions"), ("x", "y")),), {"x": shape, "y": shape})
    faithful = onnx.run

    def off(place, values):
        runtime, found = faithful(place, values)
        return runtime, {name: value * 1.01 for name, value in found.items()}

    monkeypatch.setattr(onnx, "run", off)
    with pytest.raises(ValueError, match=r"something else than the original: 0\.01 of its scale"):
        folder.write(part, "onnx", tmp_path / "exported")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", FORMS)
def test_half_precision_goes_from_input_to_output(
    tmp_path: Path, folders: tiny.Folders, to: folder.To
):
    part = read(folders.pipeline, "decoder", batch=2, dtype="float16")
    assert {str(weight.dtype) for weight in part.weights.values()} == {"float16"}
    assert_same(part, tmp_path, to, close=2e-2)


@pytest.mark.parametrize("name", ["unet", "decoder", "text_encoder"])
def test_every_part_computes_in_the_precision_asked_for(folders: tiny.Folders, name):
    part = read(folders.pipeline, name, batch=1, dtype="bfloat16")
    kept = {"timestep": "float32", "ids": "int32"}  # bfloat16 has no 999.
    assert all(str(x.dtype) == kept.get(n, "bfloat16") for n, x in part.inputs.items())
    assert {str(shape.dtype) for shape in part.results.values()} == {"bfloat16"}


def test_what_no_runtime_here_can_run_is_written_with_the_reason(
    tmp_path: Path, folders: tiny.Folders
):
    part = read(folders.pipeline, "decoder", batch=1, dtype="bfloat16")
    manifest = folder.write(part, "onnx", tmp_path / "exported")
    assert "onnxruntime" in manifest["compared"]["reason"]
    assert "NOT_IMPLEMENTED" in manifest["compared"]["reason"]


def test_the_command_writes_a_unet_from_either_folder(
    tmp_path: Path, folders: tiny.Folders, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "exported"
    assert export.run([str(folders.pipeline / "unet"), "--to", "onnx", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "sample float32[1, 8, 8, 4]" in said and "off the original by" in said
    with pytest.raises(ValueError, match="is there already"):
        export.run([str(folders.pipeline), "--to", "onnx", "--out", str(out)])


def test_what_is_not_there_is_said(
    tmp_path: Path, folders: tiny.Folders, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ValueError, match="no folder"):
        read(tmp_path / "nowhere", "unet", batch=1)
    with pytest.raises(ValueError, match="is no pipeline, so it has no decoder"):
        read(folders.pipeline / "unet", "decoder", batch=1)
    with pytest.raises(ValueError, match="batch of 0"):
        read(folders.pipeline, "unet", batch=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install onnx onnxruntime"):
        part = read(folders.pipeline, "decoder", batch=1)
        folder.write(part, "onnx", tmp_path / "exported")
