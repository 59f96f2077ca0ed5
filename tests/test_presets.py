"""Published U-Nets have the sizes that are published."""

import json

import pytest

from nas.diffusion import unet
from search_spaces import presets
from search_spaces.counting import NONE, macs
from search_spaces.ops import model
from search_spaces.presets import PRESETS
from search_spaces.program import calls
from search_spaces.unet import lower
from search_spaces.unet_space import removable
from search_spaces.values import decode, encode
from tests import tiny

# Parameters in millions and multiply-accumulates in thousands of millions, latent 64x64.
COUNTS = {
    "sd15": (859.52, 401.64),
    "bk-base": (579.38, 261.50),
    "bk-small": (482.35, 255.45),
    "bk-tiny": (323.38, 242.75),
    "snapfusion-v3": (759.33, 304.55),
    "snapfusion-deck": (682.61, 307.99),
    "sdxl": (2567.46, 794.39),
    "koala-1b": (1161.18, 400.93),
    "koala-700m": (782.82, 311.44),
    "mobile-diffusion-text": (348.58, 177.89),
}
PUBLISHED = {"mobile-diffusion": (386, 182), "mobile-diffusion-lite": (278, 153)}
# What thop counts: it does not see the products of attention.
LAYERS = {"sd15": 338.61, "bk-base": 223.7, "bk-small": 217.7, "bk-tiny": 205.0, "sdxl": 766.86}


def counted(name: str) -> tuple[float, float, float]:
    """Parameters, and multiply-accumulates with and without those of attention."""
    spec, inputs = PRESETS[name]()
    found = calls(lower(spec), inputs).values()
    work = sum(map(macs, found), NONE)
    return sum(model(c).size for c in found) / 1e6, work.total / 1e9, work.layers / 1e9


def test_every_preset_is_held_against_what_is_known_of_it():
    assert PRESETS.keys() == COUNTS.keys() | PUBLISHED.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_that_follow_from_the_tables(name):
    parameters, work, _ = counted(name)
    assert (round(parameters, 2), round(work, 2)) == COUNTS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_mobile_diffusion_is_within_three_percent_of_what_is_published(name):
    parameters, work, _ = counted(name)
    assert (parameters, work) == pytest.approx(PUBLISHED[name], rel=0.03)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_alone_are_what_counters_of_layers_find(name):
    assert counted(name)[2] == pytest.approx(LAYERS[name], abs=0.06)


def test_parameters_are_those_of_the_weights_that_are_distributed():
    spec, inputs = PRESETS["sd15"]()
    assert sum(model(c).size for c in calls(lower(spec), inputs).values()) == 859_520_964
    spec, inputs = PRESETS["sdxl"]()
    assert sum(model(c).size for c in calls(lower(spec), inputs).values()) == 2_567_463_684


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    spec = PRESETS[name]().spec
    found = decode(json.loads(json.dumps(encode(spec))))
    assert found == spec and repr(found) == repr(spec)


SD15 = tiny.SD15
BK = {**SD15, "layers_per_block": 1}
THREE = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": 3 * ["CrossAttnDownBlock2D"],
    "up_block_types": 3 * ["CrossAttnUpBlock2D"],
}
SDXL = {
    **SD15,
    "cross_attention_dim": 2048,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", *2 * ["CrossAttnDownBlock2D"]],
    "up_block_types": [*2 * ["CrossAttnUpBlock2D"], "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (presets.sd15, SD15),
        (presets.bk_base, BK),
        (presets.bk_small, {**BK, "mid_block_type": None}),
        (presets.bk_tiny, {**BK, **THREE, "mid_block_type": None}),
        (presets.sdxl, SDXL),
    ],
)
def test_presets_are_what_diffusers_configurations_say(make, config):
    found, inputs = make()
    assert repr(unet.from_config(config)) == repr(found)
    assert unet.shapes(config, batch=1, tokens=77) == inputs


def test_a_second_conditioning_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="addition_embed_type='image'"):
        unet.from_config({**SDXL, "addition_embed_type": "image"})


def test_what_may_be_removed_from_sd15_is_what_keeps_its_shape():
    spec, inputs = PRESETS["sd15"]()
    found = removable(spec, inputs)
    assert sum("attentions" in name for name in found) == 16
    assert sum("resnets" in name for name in found) == 18
