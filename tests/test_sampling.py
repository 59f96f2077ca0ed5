import numpy as np
import pytest

from search_spaces.counting import macs
from search_spaces.program import calls
from search_spaces.sampling import DEFAULT, Sizes, draw
from search_spaces.unet import lower

SMALL = Sizes(least=1e8, most=2e9, latents=(8, 16))


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return [draw(rng, SMALL) for _ in range(2)]


def test_the_same_seed_draws_the_same_networks(drawn):
    rng = np.random.default_rng(0)
    assert [draw(rng, SMALL) for _ in range(1)] == drawn[:1]


def test_what_is_drawn_is_valid_and_of_the_size_asked_for(drawn):
    for spec, inputs in drawn:
        found = calls(lower(spec), inputs)
        total = sum(macs(call).total for call in found.values())
        # Edits change the size afterwards, mostly downwards.
        assert 0.2 * SMALL.least < total < 2 * SMALL.most
        assert inputs["sample"].shape[1] in SMALL.latents


def test_draws_differ(drawn):
    assert len({spec for spec, _ in drawn}) == len(drawn)
    assert len({type(block.op) for spec, _ in drawn for block in spec.blocks}) > 1


def test_a_size_that_never_turns_up_is_an_error():
    with pytest.raises(ValueError, match=r"no U-Net of 1e\+03"):
        draw(np.random.default_rng(0), Sizes(least=1e3, most=1e3, latents=(8,)))


def test_the_default_reaches_from_the_embedded_pipeline_to_a_quarter_of_sd15():
    assert DEFAULT.least <= 0.1e9 and DEFAULT.most == pytest.approx(402e9 / 4, rel=0.01)
