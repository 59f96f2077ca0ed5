"""Pipelines of diffusers, read here: prompts are encoded alike, and the same noise becomes the same
pictures."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from nas.diffusion.pipeline import Pipeline
from nas.scoring import Evaluator, Scorer
from nas.supernet import Supernet
from tests import tiny
from tests.drawn import relative_error
from tests.parity.originals import (
    CLOSE,
    diffusers,
    given,
    marks,
    perturbed,
    taken,
    torch,
    transformers,
)

pytestmark = marks

PROMPTS = tiny.PROMPTS[:2]
STEPS = 4
NORMALISED = {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [1.0, 2.0, 0.5, 4.0]}


class Case(NamedTuple):
    kind: str
    settings: dict[str, Any]  # Of the pipeline.
    vae: dict[str, Any] = {}  # noqa: RUF012
    prediction: str = "epsilon"


CASES = {
    "sd-1.5": Case(tiny.SD, {"safety_checker": None, "feature_extractor": None}),
    "sd-2.1": Case(
        tiny.SD,
        {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        prediction="v_prediction",
    ),
    "sdxl": Case(tiny.XL, {}, {"scaling_factor": 0.13025}),
    "sdxl, empty prompt": Case(tiny.XL, {"force_zeros_for_empty_prompt": False}, NORMALISED),
}
TEXTS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}


def made(case: Case, folder: Path) -> Any:
    """A pipeline of diffusers, saved in `folder`."""
    source = tiny.write(folder / "source", case.kind).pipeline
    scheduler = {**tiny.SCHEDULER, "prediction_type": case.prediction, "steps_offset": 1}
    parts = {
        "unet": perturbed(diffusers.UNet2DConditionModel.from_config(tiny.UNETS[case.kind])),
        "vae": perturbed(diffusers.AutoencoderKL.from_config({**tiny.VAE, **case.vae})),
        "scheduler": diffusers.DDIMScheduler.from_config(scheduler),
    }
    for part, config in tiny.TEXTS[case.kind].items():
        encoder = getattr(transformers, TEXTS[part])(transformers.CLIPTextConfig(**config))
        parts[part] = perturbed(encoder)
        tokenizer = part.replace("text_encoder", "tokenizer")
        parts[tokenizer] = transformers.CLIPTokenizer.from_pretrained(source / tokenizer)
    found = getattr(diffusers, case.kind)(**parts, **case.settings)
    found.set_progress_bar_config(disable=True)
    found.save_pretrained(folder / "pipeline")
    return found


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory) -> tuple[Any, Pipeline]:
    """A pipeline of diffusers, and what we read of its folder."""
    folder = tmp_path_factory.mktemp("pipelines")
    return made(CASES[request.param], folder), Pipeline.load(folder / "pipeline")


def test_prompts_condition_the_network_alike(both):
    theirs, ours = both
    with torch.no_grad():
        encoded = theirs.encode_prompt(
            list(PROMPTS),
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
        )
    for found, which in ((ours.conditioning(PROMPTS), 0), (ours.unconditional, 1)):
        # Diffusers' order: prompts and empty, then their pooled embeddings.
        names = {"context": encoded[which]}
        if len(encoded) > 2:
            names |= {"pooled": encoded[2 + which], "sizes": sizes(theirs)}
        assert found.keys() == names.keys()
        for name, tensor in names.items():
            wanted = taken(tensor)
            if not wanted.any():
                assert not found[name].any()
            else:
                assert relative_error(found[name], wanted[: len(found[name])]) < CLOSE


def sizes(pipeline: Any) -> Any:
    """The six numbers about a picture of the pipeline's own size."""
    edge = pipeline.default_sample_size * pipeline.vae_scale_factor
    width = pipeline.text_encoder_2.config.projection_dim
    found = pipeline._get_add_time_ids((edge, edge), (0, 0), (edge, edge), torch.float32, width)
    return found.repeat(len(PROMPTS), 1)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_same_noise_becomes_the_same_pictures(both, guidance, folders):
    theirs, ours = both
    scorer = Scorer(
        ours,
        Evaluator.load(folders.evaluator),
        PROMPTS,
        steps=STEPS,
        guidance=guidance,
        seed=0,
        batch=2,
    )
    supernet = Supernet(ours.spec, ours.inputs(2))
    pictures = scorer.pictures(supernet, ours.unet, supernet.keep(ours.spec), count=2)
    original = theirs(
        list(PROMPTS),
        latents=given(np.asarray(scorer.noise)),
        guidance_scale=guidance,
        num_inference_steps=STEPS,
        output_type="np",
    ).images
    assert np.mean(np.abs(pictures) < 1) > 0.5  # Most pixels are within the limits.
    assert relative_error((pictures + 1) / 2, original) < CLOSE
