"""Scorers obey their laws, and what breaks a law is seen to."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from nas import plugins
from nas.testing.scorers import ScorerLaws
from tests import tiny

LAWS = [name for name in dir(ScorerLaws) if name.startswith("test_")]


class Brightness:
    """How bright a picture is, whatever its prompt: a judge of pictures alone."""

    weights: dict[str, Any] = {}  # noqa: RUF012

    def embed_prompts(self, prompts):
        return np.ones((len(prompts), 1), np.float32)

    def embed_pixels(self, weights, pixels):
        return jnp.mean(jnp.asarray(pixels), axis=(1, 2, 3))[:, None]


class TestBrightness(ScorerLaws):
    scorer = Brightness()
    prompts = tiny.PROMPTS[:2]
    pixels = tiny.PIXELS[:3]


@pytest.fixture(scope="class")
def clip(folders: tiny.Folders, request) -> None:
    request.cls.scorer = plugins.load("nas.scorers", "clip")(folders.evaluator)


@pytest.mark.usefixtures("clip")
class TestClip(ScorerLaws):
    prompts = tiny.PROMPTS[:2]
    pixels = tiny.PIXELS[:3]


class Uneven(Brightness):
    def embed_prompts(self, prompts):
        return np.ones((len(prompts), 2), np.float32)


class NotANumber(Brightness):
    def embed_pixels(self, weights, pixels):
        return jnp.full((len(pixels), 1), jnp.nan)


class Counting(Brightness):
    def embed_prompts(self, prompts):
        return np.full((len(prompts), 1), len(prompts), np.float32)


class Relative(Brightness):
    def embed_pixels(self, weights, pixels):
        found = super().embed_pixels(weights, pixels)
        return found - found.mean()


class Fickle(Brightness):
    def __init__(self):
        self._calls = 0

    def embed_prompts(self, prompts):
        self._calls += 1
        return np.full((len(prompts), 1), 1 + 1e-6 * self._calls, np.float32)


class Eager(Brightness):
    def embed_pixels(self, weights, pixels):
        found = super().embed_pixels(weights, pixels)
        return found + 1.0 if isinstance(pixels, Tracer) else found


class Picky(Brightness):
    def embed_pixels(self, weights, pixels):
        if pixels.shape[1] != tiny.PIXELS.shape[1]:
            raise ValueError("pictures of another size")
        return super().embed_pixels(weights, pixels)


class Blind(Brightness):
    def embed_pixels(self, weights, pixels):
        return jnp.ones((len(pixels), 1))


BROKEN = {
    "test_pictures_and_prompts_are_embedded_alike": Uneven,
    "test_embeddings_are_numbers": NotANumber,
    "test_a_prompt_is_embedded_the_same_whatever_stands_beside_it": Counting,
    "test_a_picture_is_embedded_the_same_whatever_stands_beside_it": Relative,
    "test_what_is_scored_twice_has_the_same_score_to_the_bit": Fickle,
    "test_it_is_the_same_compiled": Eager,
    "test_pictures_of_any_size_are_taken": Picky,
    "test_pictures_that_differ_have_different_scores": Blind,
}


@pytest.mark.parametrize("law", LAWS)
def test_a_scorer_that_breaks_a_law_fails_it(law: str):
    laws = TestBrightness()
    laws.scorer = BROKEN[law]()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises((AssertionError, ValueError)):
        getattr(laws, law)()


def test_a_folder_without_a_model_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="no CLIP folder"):
        plugins.load("nas.scorers", "nas.scoring:Evaluator.load")(Path("nowhere"))
