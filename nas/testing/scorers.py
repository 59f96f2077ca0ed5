"""The laws everything obeys that scores pictures. Subclass `ScorerLaws` to hold yours to them.

    class TestMine(ScorerLaws):
        scorer = MyJudge(...)
        prompts = ("a red fox", "a tea pot")
        pixels = ...  # `[2 or more, height, width, 3]` in [-1, 1], no two alike.

pytest finds the laws. `nas.scoring.Judge` says what a scorer is.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np

from nas.scoring import Judge

CLOSE = 1e-4
"""How far rounding may put apart what is the same, as a share of the largest number."""


class ScorerLaws:
    scorer: ClassVar[Judge]
    prompts: ClassVar[Sequence[str]]
    pixels: ClassVar[np.ndarray]

    def test_pictures_and_prompts_are_embedded_alike(self):
        text, images = self._prompts(self.prompts), self._pixels(self.pixels)
        assert text.ndim == images.ndim == 2 and text.shape[1] == images.shape[1]
        assert (len(text), len(images)) == (len(self.prompts), len(self.pixels))

    def test_embeddings_are_numbers(self):
        for found in (self._prompts(self.prompts), self._pixels(self.pixels)):
            assert np.isfinite(found).all()

    def test_a_prompt_is_embedded_the_same_whatever_stands_beside_it(self):
        together = self._prompts(self.prompts)
        for row, prompt in zip(together, self.prompts, strict=True):
            _same(self._prompts([prompt])[0], row)
        _same(self._prompts(list(self.prompts)[::-1])[::-1], together)

    def test_a_picture_is_embedded_the_same_whatever_stands_beside_it(self):
        together = self._pixels(self.pixels)
        for row, picture in zip(together, self.pixels, strict=True):
            _same(self._pixels(picture[None])[0], row)
        _same(self._pixels(self.pixels[::-1])[::-1], together)

    def test_what_is_scored_twice_has_the_same_score_to_the_bit(self):
        assert np.array_equal(self._prompts(self.prompts), self._prompts(self.prompts))
        assert np.array_equal(self._pixels(self.pixels), self._pixels(self.pixels))

    def test_it_is_the_same_compiled(self):
        compiled = jax.jit(self.scorer.embed_pixels)(self.scorer.weights, self.pixels)
        _same(np.asarray(compiled), self._pixels(self.pixels))

    def test_pictures_of_any_size_are_taken(self):
        size = self._pixels(self.pixels).shape
        assert self._pixels(self.pixels.repeat(2, axis=1).repeat(2, axis=2)).shape == size

    def test_pictures_that_differ_have_different_scores(self):
        text, images = self._prompts(self.prompts), self._pixels(self.pixels)
        scores = images @ text[0]
        assert len(np.unique(scores)) == len(scores)

    def _prompts(self, prompts: Sequence[str]) -> np.ndarray:
        return np.asarray(self.scorer.embed_prompts(tuple(prompts)))

    def _pixels(self, pixels: np.ndarray) -> np.ndarray:
        return np.asarray(self.scorer.embed_pixels(self.scorer.weights, pixels))  # pyright: ignore


def _same(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, atol=CLOSE * max(1.0, float(np.abs(other).max())))
