"""Training reads what was precomputed as it would encode it, and nothing that is not that."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from nas import precomputed
from nas.commands import precompute
from nas.diffusion.pipeline import ENCODED, Pipeline
from nas.evolution import Network, Train
from nas.objectives import Captioned
from nas.perform import Performer
from nas.precomputed import HELD_OUT, TRAINING, Stored, read, write
from tests import tiny
from tests.precomputing import ROWS, pictures, recipe

HELD = pictures(5, seed=4)


@pytest.fixture(scope="module")
def stored(folders, pipeline, tmp_path_factory) -> Path:
    """Not to be damaged."""
    where = tmp_path_factory.mktemp("stored")
    made = list(write(str(where), recipe(folders), pipeline, ENCODED))
    assert len(made) == 1 + 6 + 1 and all(shard.made for shard in made)
    return where


@pytest.fixture
def ours(stored, tmp_path) -> Iterator[Path]:
    """May be damaged."""
    for path in stored.rglob("*"):
        target = tmp_path / "ours" / path.relative_to(stored)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    yield tmp_path / "ours"


def contents(where: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(where)): path.read_bytes()
        for path in where.rglob("*")
        if path.is_file()
    }


def same(found: Captioned, wanted: Captioned) -> bool:
    rows = np.arange(len(wanted.latents))
    one = [found.latents[rows], *(found.conditioning[n][rows] for n in wanted.conditioning)]
    other = [wanted.latents[rows], *(wanted.conditioning[n][rows] for n in wanted.conditioning)]
    return (
        found.conditioning.keys() == wanted.conditioning.keys()
        and [x.dtype for x in one] == [x.dtype for x in other]
        and [x.tobytes() for x in one] == [x.tobytes() for x in other]
        and jax.tree.all(jax.tree.map(np.array_equal, found.unconditional, wanted.unconditional))
    )


def test_what_is_stored_is_what_encoding_gives_to_the_bit(stored, pipeline):
    for part, made in ((TRAINING, pictures()), (HELD_OUT, HELD)):
        wanted = precomputed.captioned(pipeline, *made)
        assert same(read(str(stored), part, pipeline, made), wanted)


def test_two_encoders_and_whole_numbers_are_stored_as_well(xl_folders, xl_pipeline, tmp_path):
    list(write(str(tmp_path), recipe(xl_folders), xl_pipeline))
    found = read(str(tmp_path), TRAINING, xl_pipeline, pictures())
    assert set(found.conditioning) == {"context", "pooled", "sizes"}
    assert same(found, precomputed.captioned(xl_pipeline, *pictures()))


def test_rows_are_read_in_any_order_and_as_often_as_asked(stored, pipeline):
    found = read(str(stored), TRAINING, pipeline, pictures())
    rows = np.random.default_rng(0).integers(ROWS, size=50)
    whole = found.latents[np.arange(ROWS)]
    assert len(found.latents) == ROWS and np.array_equal(found.latents[rows], whole[rows])


def test_several_read_at_once(stored, pipeline):
    whole = Stored(str(stored), TRAINING, "latents", ENCODED)[np.arange(ROWS)]

    def reads(seed: int) -> bool:
        ours = Stored(str(stored), TRAINING, "latents", ENCODED)
        rng = np.random.default_rng(seed)
        picks = [rng.integers(ROWS, size=20) for _ in range(20)]
        return all(np.array_equal(ours[rows], whole[rows]) for rows in picks)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(reads, range(4)))


def test_every_batch_of_training_is_the_same_with_and_without(folders, stored, tmp_path):
    batches = []
    for where in (None, str(stored)):
        performer = Performer(recipe(folders, precomputed=where), tmp_path)
        seed = performer.space.seed
        batches.append(performer._batches(performer.supernet(seed), seed, "robust", 7))
        assert same(performer.held_out, precomputed.captioned(performer.pipeline, *HELD))
    for step in range(20):
        one, other = (jax.tree.leaves(batch(step)) for batch in batches)
        assert [np.asarray(x).tobytes() for x in one] == [np.asarray(x).tobytes() for x in other]


@pytest.mark.slow
def test_training_and_validation_are_the_same_with_and_without(folders, stored, tmp_path):
    outcomes, weights = [], []
    for where in (None, str(stored)):
        performer = Performer(recipe(folders, precomputed=where), tmp_path / str(where is None))
        seed = Network(performer.space.seed, performer.space.seed, "")
        outcomes.append(
            (performer.train(Train(1, 0, (), "robust"), seed, seed), performer.validate(seed, 1))
        )
        weights.append(performer.own_weights(seed, 1))
    assert outcomes[0] == outcomes[1]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


# Killed, and gone on with.


def test_a_killed_process_is_gone_on_with_and_no_shard_is_made_twice(
    folders, pipeline, stored, tmp_path
):
    where = tmp_path / "killed"
    code = "from tests.precomputing import main; main()"
    command = [sys.executable, "-c", code, str(folders.pipeline.parent), str(where)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    killed = subprocess.run(command, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match=r"has 2 of 6 shards of training; run `nas precompute`"):
        read(str(where), TRAINING, pipeline, pictures())
    before = {path: path.stat().st_mtime_ns for path in where.rglob("*") if path.is_file()}
    shards = list(write(str(where), recipe(folders), pipeline, ENCODED))
    made = [(shard.part, shard.number) for shard in shards if shard.made]
    assert made == [*((TRAINING, number) for number in range(2, 6)), (HELD_OUT, 0)]
    assert contents(where) == contents(stored)
    there = [(s.part, s.number) for s in shards if not s.made]
    kept = [p for p in before for part, n in there if re.search(rf"/{part}/[^/]+/c/{n}/", str(p))]
    assert kept and all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_a_shard_is_not_there_before_all_its_arrays_are(ours, folders, pipeline, stored):
    (ours / "training" / "shards" / "00002.json").unlink()
    for path in (ours / "training" / "context" / "c" / "2").rglob("*"):
        if path.is_file():
            path.unlink()
    made = [s for s in write(str(ours), recipe(folders), pipeline, ENCODED) if s.made]
    assert [(s.part, s.number) for s in made] == [(TRAINING, 2)]
    assert contents(ours) == contents(stored)


# What is damaged, or another's.


@pytest.mark.parametrize("byte", [7, -3], ids=["row", "index"])
def test_a_flipped_byte_is_an_error_that_names_the_shard_and_is_mended(
    ours, folders, pipeline, stored, byte
):
    (path,) = (p for p in (ours / "training" / "latents" / "c" / "3").rglob("*") if p.is_file())
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    found = read(str(ours), TRAINING, pipeline, pictures())
    assert found.latents[np.arange(3 * ENCODED)].shape[0] == 3 * ENCODED  # Others are fine.
    with pytest.raises(
        ValueError, match=r"shard 3 of training .*latents/c/3/.* run `nas prec"
    ) as e:
        found.latents[np.array([0, 3 * ENCODED, ROWS - 1])]
    (record,) = re.findall(r"delete (\S+) there", str(e.value))
    (ours / record).unlink()
    list(write(str(ours), recipe(folders), pipeline, ENCODED))
    assert contents(ours) == contents(stored)


def test_a_lost_file_is_no_zeros(ours, pipeline):
    for path in (ours / "training" / "latents" / "c" / "1").rglob("*"):
        if path.is_file():
            path.unlink()
    found = read(str(ours), TRAINING, pipeline, pictures())
    with pytest.raises(ValueError, match=r"shard 1 of training .* is missing"):
        found.latents[np.array([ENCODED])]


def test_zeros_are_stored_as_all_else_is(pipeline, folders, tmp_path):
    blank = np.zeros((3, 4), np.float32)
    store = precomputed._store(str(tmp_path))
    list(precomputed._part(store, "zeros", 3, ENCODED, lambda _: {"x": blank}))
    assert np.array_equal(Stored(str(tmp_path), "zeros", "x", ENCODED)[np.arange(3)], blank)


def test_other_encoders_are_refused(stored, folders, pipeline):
    name = sorted(pipeline.vae)[0]
    value = np.array(pipeline.vae[name])
    value.flat[0] += 1
    other = dataclasses.replace(pipeline, vae={**pipeline.vae, name: value})
    with pytest.raises(ValueError, match=r"made by other encoders than those of .*pipeline"):
        read(str(stored), TRAINING, other, pictures())
    with pytest.raises(ValueError, match=r"made of something else \(encoder differ"):
        list(write(str(stored), recipe(folders), other, ENCODED))


@pytest.mark.parametrize(
    "made", [pictures(seed=5), (pictures()[0], ("other", *pictures()[1][1:])), pictures(ROWS - 1)]
)
def test_other_pictures_or_prompts_are_refused(stored, folders, pipeline, made):
    with pytest.raises(ValueError, match="made of other training pictures or prompts"):
        read(str(stored), TRAINING, pipeline, made)
    with pytest.raises(ValueError, match=r"made of something else \(parts differ"):
        list(write(str(stored), recipe(folders, pictures=lambda: made), pipeline, ENCODED))


def test_what_is_not_there_is_an_error_that_says_what_writes_it(stored, pipeline, tmp_path):
    with pytest.raises(ValueError, match=r"no precomputed training data at .*`nas precompute`"):
        read(str(tmp_path), TRAINING, pipeline, pictures())
    with pytest.raises(ValueError, match=r"has no other pictures, only \['training', 'held_out'\]"):
        read(str(stored), "other", pipeline, pictures())


def test_shards_must_be_of_whole_batches(folders, pipeline, tmp_path):
    with pytest.raises(ValueError, match=f"must be a multiple of {ENCODED}"):
        list(write(str(tmp_path), recipe(folders), pipeline, ENCODED + 1))


def test_a_damaged_manifest_is_an_error_that_names_it(ours, pipeline):
    (ours / precomputed.MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match=r"precomputed.json is damaged or another version's"):
        read(str(ours), TRAINING, pipeline, pictures())


def test_the_command_writes_what_searches_read(folders, pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NAS_TEST_MODELS", str(folders.pipeline.parent))
    arguments = ["tests.cli_recipe:recipe", "--out", str(tmp_path / "out")]
    assert (
        precompute.run(arguments) == 0 and "2 shards made, 0 were there" in capsys.readouterr().out
    )
    assert (
        precompute.run(arguments) == 0 and "0 shards made, 2 were there" in capsys.readouterr().out
    )
    found = read(f"file://{tmp_path}/out", TRAINING, pipeline, (tiny.PIXELS, tiny.PROMPTS))
    assert len(found.latents) == len(tiny.PROMPTS)


def test_a_pipeline_that_was_read_again_is_the_same_encoder(folders, stored, pipeline):
    again = Pipeline.load(folders.pipeline)
    assert precomputed.encoder_of(again) == precomputed.encoder_of(pipeline)
