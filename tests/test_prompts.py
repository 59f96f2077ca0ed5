"""Pipelines with two text encoders are conditioned as SDXL is, and searched like any other."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.diffusion import clip
from nas.diffusion.folders import write_json, write_weights
from nas.diffusion.pipeline import Pipeline
from nas.perform import Performer
from nas.recipe import Search, Training
from search_spaces.program import network, until
from tests import drawn, tiny
from tests.drawn import compiled, relative_error
from tests.test_pipeline import change, same, same_files
from tests.test_search import outcomes, steps

PROMPTS = tiny.PROMPTS[:3]


@pytest.fixture
def folder(xl_folders, tmp_path) -> Path:
    """A pipeline to be changed."""
    return shutil.copytree(xl_folders.pipeline, tmp_path / "pipeline")


def test_two_encoders_are_joined_and_the_second_s_embedding_is_pooled(xl_pipeline):
    found = xl_pipeline.conditioning(PROMPTS)
    first, second = xl_pipeline.encoders
    hidden = []
    for encoder in (first, second):
        ids = {"ids": jnp.asarray(encoder.ids(PROMPTS))}
        # The penultimate layer of two is the first; no norm follows it.
        program = until(encoder.program, "text_model.encoder.layers.0")
        model = network(program, encoder.inputs(1))
        weights = {name: encoder.weights[name] for name in model.shapes}
        hidden.append(compiled(model)(weights, ids))
    assert relative_error(found["context"], np.concatenate(hidden, axis=-1)) < 1e-6
    whole = network(clip.text_program(second.config), second.inputs(1))
    pooled = compiled(whole)(second.weights, {"ids": jnp.asarray(second.ids(PROMPTS))})
    assert relative_error(found["pooled"], pooled) < 1e-6
    assert np.abs(found["pooled"][0] - found["pooled"][1]).max() > 0.01
    # Neither scaled nor cropped.
    assert found["sizes"].tolist() == 3 * [[16, 16, 0, 0, 16, 16]]


def test_layers_that_nothing_is_read_of_are_left_on_disk(xl_pipeline):
    assert not any("layers.1" in name for name in xl_pipeline.encoders[0].weights)
    assert any("layers.1" in name for name in xl_pipeline.encoders[1].weights)


def test_tokenizers_pad_as_they_say(xl_pipeline):
    end, mark = (tiny.VOCABULARY[token] for token in ("<|endoftext|>", "!"))
    first, second = (encoder.ids(["a"])[0].tolist() for encoder in xl_pipeline.encoders)
    assert first[:3] == second[:3] and first[3:] == 3 * [end] and second[3:] == 3 * [mark]


def test_conditioning_is_what_the_network_reads(xl_pipeline):
    inputs, found = xl_pipeline.inputs(3), xl_pipeline.conditioning(PROMPTS)
    assert found.keys() == inputs.keys() - {"sample", "timestep"}
    assert all(x.shape == inputs[name].shape for name, x in found.items())


def test_guidance_leads_away_from_zeros_or_from_the_empty_prompt(xl_pipeline, folder):
    zeros = xl_pipeline.unconditional
    assert not zeros["context"].any() and not zeros["pooled"].any()
    assert zeros["sizes"].tolist() == [[16, 16, 0, 0, 16, 16]]
    change(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    pipeline = Pipeline.load(folder)
    assert same(pipeline.unconditional, xl_pipeline.conditioning([""]))


def test_a_pipeline_with_one_encoder_leads_away_from_the_empty_prompt(pipeline):
    assert same(pipeline.unconditional, pipeline.conditioning([""]))
    assert pipeline.unconditional["context"].any()


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2"])
def test_a_missing_part_is_named(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=f"StableDiffusionXLPipeline: it has no folder {part}"):
        Pipeline.load(folder)


def test_encoders_that_do_not_fit_the_network_are_refused(folder):
    change(folder / "model_index.json", _class_name=tiny.SD)
    with pytest.raises(
        ValueError, match=r"give {'sample': 4, 'context': 8} channels, .* 'pooled': 6}"
    ):
        Pipeline.load(folder)


def test_encoders_of_two_lengths_are_refused(folder):
    config = {**tiny.TEXTS[tiny.XL]["text_encoder_2"], "max_position_embeddings": 5}
    write_json(folder / "text_encoder_2" / "config.json", config)
    weights = drawn.weights(tiny.text_shapes(config), seed=2)
    write_weights(folder / "text_encoder_2" / "model.safetensors", weights)
    with pytest.raises(ValueError, match=r"'text_encoder': 6, 'text_encoder_2': 5"):
        Pipeline.load(folder)


@pytest.fixture(scope="module")
def finished(xl_folders, tmp_path_factory):
    recipe = tiny.recipe(
        xl_folders,
        search=Search(budget="75%", group=4, rounds=1, caution=100.0),
        training=Training(robust_steps=2, between_steps=2, recovery_steps=2, batch=2),
    )
    folder = tmp_path_factory.mktemp("finished")
    return recipe, folder, steps(recipe, folder)


@pytest.mark.slow
def test_a_search_makes_a_pipeline_with_two_encoders_within_its_budget(finished, xl_pipeline):
    _, folder, state = finished
    found, space = Pipeline.load(folder / "pipeline"), tiny.unet_space(tiny.XL_UNET)
    assert repr(found.spec) == repr(state.networks[-1].spec)
    assert len(found.spec.blocks) < len(xl_pipeline.spec.blocks)
    assert found.spec.added == xl_pipeline.spec.added is not None
    ms = [tiny.predicted_ms(space, spec) for spec in (found.spec, xl_pipeline.spec)]
    assert ms[0] <= 0.75 * ms[1]
    assert same(found.conditioning(PROMPTS), xl_pipeline.conditioning(PROMPTS))
    # The second conditioning was trained, too.
    name = "add_embedding.linear_1.kernel"
    assert not np.array_equal(found.unet[name], xl_pipeline.unet[name])


@pytest.mark.slow
def test_both_encoders_are_priced(finished):
    _, folder, _ = finished
    (profile,) = (x["outcome"] for x in outcomes(folder)[1:] if "picture" in x["outcome"])
    sizes = {part: profile[part]["parameters"] for part in profile if part.startswith("text_")}
    weights = {e.part: e.weights for e in Pipeline.load(folder / "pipeline").encoders}
    assert sizes == {n: sum(x.size for x in w.values()) for n, w in weights.items()}
    assert len(sizes) == 2 and all(profile[part]["ms"] > 0 for part in sizes)
    assert profile["picture"] == 16


def test_the_seed_is_saved_with_all_of_its_parts(xl_pipeline, tmp_path):
    xl_pipeline.save(tmp_path, xl_pipeline.spec, xl_pipeline.unet)
    assert same_files(tmp_path, xl_pipeline.folder)


@pytest.mark.slow
def test_pictures_depend_on_all_that_the_network_reads(finished, xl_pipeline, tmp_path):
    recipe, _, _ = finished
    performer = Performer(recipe, tmp_path)
    supernet = performer.supernet(xl_pipeline.spec)
    latents, t = jnp.asarray(np.ones((2, 8, 8, 4), np.float32)), jnp.asarray([500.0, 500.0])
    given = xl_pipeline.conditioning(["a", "b"])
    run = jax.jit(lambda values: supernet.model(xl_pipeline.unet, values))

    def output(conditioning) -> np.ndarray:
        return np.asarray(run({"sample": latents, "timestep": t, **conditioning}))

    plain = output(given)
    for name, x in given.items():
        assert np.abs(output({**given, name: x + 1}) - plain).max() > 1e-4, name
