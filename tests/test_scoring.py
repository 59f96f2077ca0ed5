import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.perform import Performer, recall
from nas.scoring import Evaluator, Scorer
from nas.supernet import Supernet
from search_spaces.unet_space import UNetSpace
from tests import drawn, tiny

STEPS = 2


@pytest.fixture(scope="module")
def space(pipeline) -> UNetSpace:
    return UNetSpace(pipeline.spec, pipeline.inputs(2))


@pytest.fixture(scope="module")
def evaluator(folders) -> Evaluator:
    return Evaluator.load(folders.evaluator)


@pytest.fixture(scope="module")
def make_scorer(pipeline, evaluator):
    def make(prompts=tiny.PROMPTS[:4], *, batch=2, seed=0) -> Scorer:
        settings = {"steps": STEPS, "guidance": 3.0, "seed": seed, "batch": batch}
        return Scorer(pipeline, evaluator, prompts, **settings)

    return make


@pytest.fixture(scope="module")
def scorer(make_scorer) -> Scorer:
    return make_scorer()


@pytest.fixture(scope="module")
def supernet(space) -> Supernet:
    return Supernet(space.seed, space.inputs)


CANDIDATES = ("", *tiny.REMOVABLE[::3])


def embedded(scorer, supernet, weights, spec) -> np.ndarray:
    return np.concatenate(list(scorer.embedded(supernet, weights, supernet.keep(spec))))


def test_candidates_score_the_same_in_any_order(scorer, supernet, space, pipeline):
    def scored(block):
        spec = tiny.without(space.seed, *filter(None, [block]))
        return embedded(scorer, supernet, pipeline.unet, spec).tobytes()

    forwards = [scored(block) for block in CANDIDATES]
    backwards = [scored(block) for block in reversed(CANDIDATES)]
    assert forwards == backwards[::-1] and len(set(forwards)) == len(CANDIDATES)


def test_a_candidate_scores_as_the_network_rebuilt_without_the_block(
    scorer, supernet, space, pipeline
):
    spec = tiny.without(space.seed, *tiny.REMOVABLE[1::2])
    rebuilt = Supernet(spec, space.inputs)
    ours = embedded(scorer, supernet, pipeline.unet, spec)
    theirs = embedded(scorer, rebuilt, supernet.restrict(pipeline.unet, spec), spec)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_picture_of_a_prompt_does_not_depend_on_the_batch_it_is_in(
    make_scorer, scorer, supernet, space, pipeline
):
    keep = supernet.keep(space.seed)
    found = scorer.pictures(supernet, pipeline.unet, keep, count=len(scorer.prompts))
    first = scorer.pictures(supernet, pipeline.unet, keep, count=1)
    np.testing.assert_array_equal(first, found[:1])
    whole = make_scorer(batch=4).pictures(supernet, pipeline.unet, keep, count=len(found))
    assert found.shape == (4, 16, 16, 3) and np.abs(found).max() <= 1
    np.testing.assert_allclose(found, whole, atol=1e-4)
    assert len({picture.tobytes() for picture in found}) == 4


def test_prompts_that_do_not_divide_into_batches_are_refused(make_scorer, folders, tmp_path):
    with pytest.raises(ValueError, match="4 prompts do not divide into batches of 3"):
        make_scorer(batch=3)
    recipe = tiny.recipe(folders, sampling=tiny.Sampling(prompts=4, batch=3))
    with pytest.raises(ValueError, match="4 prompts do not divide into batches of 3"):
        Performer(recipe, tmp_path)


def test_more_prompts_than_the_recipe_has_are_refused(folders, tmp_path):
    recipe = tiny.recipe(folders, sampling=tiny.Sampling(prompts=8, batch=2))
    with pytest.raises(ValueError, match="has 6 prompts, fewer than the 8 to be scored"):
        Performer(recipe, tmp_path)


def test_embeddings_are_normalised(evaluator):
    texts = evaluator.embed_prompts(tiny.PROMPTS)
    images = jax.jit(evaluator.embed_pixels)(evaluator.weights, jnp.asarray(tiny.PIXELS))
    for rows in (texts, images):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1.0, rtol=1e-5)
        assert rows.shape == (len(tiny.PROMPTS), 8)


def test_pixels_beyond_the_range_are_clipped(evaluator):
    embed = jax.jit(evaluator.embed_pixels)
    pixels = jnp.asarray(3 * np.sign(drawn.normal(0, 2, 8, 8, 3)))
    found, wanted = (embed(evaluator.weights, p) for p in (pixels, jnp.sign(pixels)))
    np.testing.assert_array_equal(found, wanted)


embeddings = st.integers(0, 10**6).map(lambda seed: drawn.normal(seed, 2, 12, 3))


@given(embeddings, st.integers(1, 12))
def test_recall_counts_pictures_whose_prompt_is_among_the_nearest(pair, k):
    images, prompts = pair
    found = [number in np.argsort(-(prompts @ image))[:k] for number, image in enumerate(images)]
    assert recall(images, prompts, k) == np.mean(found)


@given(embeddings)
def test_recall_grows_with_k_to_one(pair):
    images, prompts = pair
    values = [recall(images, prompts, k) for k in range(1, 13)]
    assert values == sorted(values) and values[-1] == 1.0


@given(embeddings)
def test_recall_does_not_depend_on_the_order_of_the_rows(pair):
    images, prompts = pair
    order = np.random.default_rng(0).permutation(len(images))
    assert recall(images[order], prompts[order]) == recall(images, prompts)


def test_pictures_of_their_own_prompts_are_all_recalled_and_of_others_none():
    prompts = np.eye(8, dtype=np.float32)
    assert recall(prompts, prompts, 1) == 1.0
    assert recall(np.roll(prompts, 1, axis=0), prompts, 1) == 0.0
