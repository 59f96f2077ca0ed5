import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from nas.diffusion import unet
from nas.diffusion.pipeline import Pipeline
from nas.scoring import Evaluator
from nas.testing.spaces import walked, walks
from search_spaces.unet import lower
from search_spaces.unet_space import UNetSpace
from tests import drawn, tiny


@pytest.fixture
def folder(folders, tmp_path) -> Path:
    """A pipeline to be damaged."""
    return shutil.copytree(folders.pipeline, tmp_path / "pipeline")


@pytest.fixture
def clip(folders, tmp_path) -> Path:
    """A CLIP model to be damaged."""
    return shutil.copytree(folders.evaluator, tmp_path / "clip")


def change(path: Path, **settings) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def test_the_seed_is_read_back_to_the_bit_and_in_diffusers_own_words(pipeline, tmp_path):
    pipeline.save(tmp_path, pipeline.spec, pipeline.unet)
    found = Pipeline.load(tmp_path)
    assert repr(found.spec) == repr(pipeline.spec)
    assert same(found.unet, pipeline.unet)
    assert same(found.vae, pipeline.vae)
    assert same(found.encoders[0].weights, pipeline.encoders[0].weights)
    assert dict(found.unet_config) == dict(pipeline.unet_config) == dict(tiny.UNET)
    assert found.scheduler_config == pipeline.scheduler_config
    assert same_files(tmp_path, pipeline.folder)


def same_files(one: Path, other: Path) -> bool:
    found = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (one, other)
    ]
    weights = Path("unet") / "diffusion_pytorch_model.safetensors"
    return {**found[0], weights: b""} == {**found[1], weights: b""}


@settings(max_examples=3)
@given(walks)
def test_an_edited_network_is_read_back_to_the_bit(pipeline, tmp_path_factory, walk):
    space = UNetSpace(pipeline.spec, pipeline.inputs(2))
    spec = walked(space, [*walk, 0])
    weights = drawn.weights(tiny.shapes(space, spec), seed=8)
    folder = tmp_path_factory.mktemp("edited")
    why = pipeline.save(folder, spec, weights)
    found = Pipeline.load(folder)
    assert found.inputs(3) == pipeline.inputs(3)
    index = json.loads((folder / "model_index.json").read_text())
    if why:
        assert repr(found.spec) == repr(spec) and same(found.unet, weights)
        assert index["unet"] == ["nas", "SearchedUNet"]
    else:
        assert found.spec == spec and same_in_order(found.unet, weights, spec)
        assert found.unet_config["_class_name"] == "UNet2DConditionModel"
    # And once more, from what was read.
    assert found.save(folder / "again", found.spec, found.unet) == why
    again = Pipeline.load(folder / "again")
    assert repr(again.spec) == repr(found.spec) and same(again.unet, found.unet)


def same_in_order(one, other, spec) -> bool:
    """Whether the weights of two networks that compute the same are equal, step by step."""
    kept = [
        [
            {n.removeprefix(f"{s}."): w for n, w in many.items() if n.startswith(f"{s}.")}
            for s in steps
        ]
        for many, steps in (
            (one, names(unet.from_config(unet.config(spec, tiny.UNET)))),
            (other, names(spec)),
        )
    ]
    return all(same(*pair) for pair in zip(*kept, strict=True))


def names(spec) -> list[str]:
    return [step.name for step in lower(spec)]


def test_a_network_that_diffusers_can_build_is_written_for_it(pipeline, tmp_path):
    space = UNetSpace(pipeline.spec, pipeline.inputs(2))
    spec = tiny.without(pipeline.spec, "mid_block.resnets.0", "mid_block.attentions.0")
    weights = drawn.weights(tiny.shapes(space, spec), seed=8)
    assert pipeline.save(tmp_path, spec, weights) == ()
    found = Pipeline.load(tmp_path)
    assert found.unet_config["mid_block_type"] == "UNetMidBlock2D"
    left, renamed = "mid_block.resnets.1.conv1.kernel", "mid_block.resnets.0.conv1.kernel"
    assert np.array_equal(found.unet[renamed], weights[left]) and left not in found.unet
    assert same_in_order(found.unet, weights, spec)
    # Nor is a network that was ours for a while.
    other = tiny.without(pipeline.spec, "mid_block.resnets.0")
    lifted = drawn.weights(tiny.shapes(space, other), seed=8)
    assert pipeline.save(tmp_path / "ours", other, lifted) != ()
    again = Pipeline.load(tmp_path / "ours")
    assert again.save(tmp_path / "theirs", spec, weights) == ()
    index = json.loads((tmp_path / "theirs" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert same(Pipeline.load(tmp_path / "theirs").unet, found.unet)


def test_a_folder_that_is_no_pipeline_is_an_error_that_names_it(tmp_path, folders):
    with pytest.raises(ValueError, match=r"no pipeline folder .*gone"):
        Pipeline.load(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"no file .*model_index\.json"):
        Pipeline.load(tmp_path)
    with pytest.raises(ValueError, match=r"no file .*model_index\.json"):
        Pipeline.load(folders.evaluator)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=f"is no StableDiffusionPipeline: it has no folder {part}"):
        Pipeline.load(folder)


def test_another_kind_of_pipeline_is_refused(folder):
    change(folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(ValueError, match=r"is a FluxPipeline; supported are \['StableDiffusionP"):
        Pipeline.load(folder)


FILES = (
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "scheduler/scheduler_config.json",
)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_clear_error(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name.partition("/")[0]):
        Pipeline.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_one_clear_error(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=name.partition("/")[0]):
        Pipeline.load(folder)


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("unet", "act_fn", "gelu"),
        ("unet", "addition_embed_type", "image"),
        ("unet", "class_embed_type", "timestep"),
        ("unet", "only_cross_attention", True),
        ("unet", "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("unet", "norm_num_groups", None),
        ("unet", "_class_name", "UNet2DModel"),
        ("unet", "resnet_time_scale_shift", "scale"),
        ("unet", "time_cond_proj_dim", 256),
        ("vae", "act_fn", "relu"),
        ("vae", "shift_factor", 0.1),
        ("vae", "_class_name", "AutoencoderTiny"),
        ("text_encoder", "hidden_act", "relu"),
        ("text_encoder", "use_attention_mask", True),
    ],
)
def test_a_setting_that_we_do_not_build_is_named(folder, part, setting, value):
    change(folder / part / "config.json", **{setting: value})
    with pytest.raises(ValueError, match=rf"{setting}.*{value!r}"):
        Pipeline.load(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]},
            "down_block_types='AttnDownBlock2D'; supported",
        ),
        (
            {"up_block_types": ["UpBlock2D", "SkipUpBlock2D"]},
            "up_block_types='SkipUpBlock2D'; supported",
        ),
        ({"layers_per_block": [1, 1, 1]}, r"gives \(1, 1, 1\) for 2 stages"),
        ({"norm_num_groups": 3}, "8 channels do not divide into 3 groups"),
        ({"attention_head_dim": 3}, "8 channels do not divide into 3 heads"),
        ({"block_out_channels": [8, 24]}, "asks for"),
        (
            {"cross_attention_dim": 12},
            "give {'sample': 4, 'context': 8} channels, where the U-Net reads "
            "{'sample': 4, 'context': 12}",
        ),
        # As of inpainting, which reads a mask and a picture, too.
        ({"in_channels": 9}, "'sample': 9"),
        ({"down_block_types": ["CrossAttnDownBlock2D"]}, "1 down_block_types for 2"),
    ],
)
def test_a_wrong_value_is_one_clear_error(folder, settings, message):
    change(folder / "unet" / "config.json", **settings)
    with pytest.raises(ValueError, match=message):
        Pipeline.load(folder)


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("unet", "block_out_channels"),
        ("unet", "cross_attention_dim"),
        ("unet", "sample_size"),
        ("vae", "block_out_channels"),
        ("text_encoder", "vocab_size"),
        ("text_encoder", "max_position_embeddings"),
    ],
)
def test_a_setting_that_is_not_there_is_named(folder, part, setting):
    path = folder / part / "config.json"
    config = json.loads(path.read_text())
    del config[setting]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=setting):
        Pipeline.load(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "model.safetensors", "vocab.json"]
)
def test_a_damaged_clip_folder_is_one_clear_error(clip, name):
    content = (clip / name).read_bytes()
    (clip / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="clip"):
        Evaluator.load(clip)
    (clip / name).unlink()
    with pytest.raises(ValueError, match="clip"):
        Evaluator.load(clip)


def test_a_clip_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no CLIP folder .*gone"):
        Evaluator.load(tmp_path / "gone")


def test_prompts_are_padded_and_cut_to_length(pipeline):
    ids = pipeline.encoders[0].ids(["", "a", 20 * "dog "])
    start, end = (tiny.VOCABULARY[token] for token in ("<|startoftext|>", "<|endoftext|>"))
    assert ids.shape == (3, tiny.LENGTH) and ids.dtype == np.int32
    assert ids[0].tolist() == [start, *5 * [end]]
    assert ids[1].tolist() == [start, tiny.VOCABULARY["a</w>"], *4 * [end]]
    assert ids[2, 0] == start and ids[2, -1] == end and end not in ids[2, :-1]


def test_rows_are_encoded_alike_in_batches_of_any_size(pipeline):
    prompts = list(tiny.PROMPTS)
    whole, parts = (pipeline.conditioning(prompts, batch=size)["context"] for size in (6, 4))
    assert whole.shape == (6, tiny.LENGTH, tiny.CONTEXT)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)
    assert len({row.tobytes() for row in whole}) == 6
