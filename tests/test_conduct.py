"""Tasks are cut into calls and put together the same, wherever the calls are made."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nas.commands.running import Running
from nas.commands.search import OF_RECIPE, Settings
from nas.conduct import Conductor
from nas.evolution import Score, State
from nas.executors import Here, Pool, finish
from nas.report import sections
from nas.report.story import Story
from tests import tiny
from tests.fake_workers import NONE, SPACE, STRATEGY, FakeWorker, Trouble, entries, go_on

LOST = tiny.REMOVABLE[1]


def here(folder, trouble: Trouble = NONE, threads: int = 1) -> State:
    worker = FakeWorker(trouble)
    with Here(worker, threads=threads, tries=2) as executor:
        return go_on(folder, executor, worker)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, here(folder)


def test_threads_change_no_outcome(whole, tmp_path):
    folder, state = whole
    assert here(tmp_path, threads=3) == state
    assert entries(tmp_path) == entries(folder)


def test_a_score_is_the_shards_in_their_order(whole):
    folder, _ = whole
    performer = tiny.FakePerformer(SPACE, FakeWorker()._fake.worth, noise=0.001, slower=1.05)
    cosines = np.array(performer.cosines(SPACE.seed), np.float32)
    assert entries(folder)[Score(0)]["cosines"] == cosines.tolist()


def test_a_candidate_whose_score_is_no_number_fails_and_its_block_stays(whole, tmp_path):
    before, state = entries(whole[0]), here(tmp_path, Trouble(no_number=(LOST,)))
    found = entries(tmp_path)
    failed = {
        task: outcome["failed"]
        for task, outcome in found.items()
        if isinstance(task, Score) and "failed" in outcome
    }
    assert {*failed.values()} == {"its score is no number for 4 of 8 prompts"}
    assert all(task.removed == LOST for task in failed)
    assert Score(1, LOST) in failed and "cosines" in before[Score(1, LOST)]
    assert state.failed == {(task.number, task.removed): why for task, why in failed.items()}
    gone = [
        {*tiny.REMOVABLE} - {b.name for b in s.networks[-1].spec.blocks} for s in (whole[1], state)
    ]
    assert LOST in gone[0] and LOST not in gone[1]


def test_the_report_says_what_failed_and_why(tmp_path):
    here(tmp_path, Trouble(no_number=(LOST,)))
    text = sections.rounds(Story.read(tmp_path, STRATEGY))
    assert f"<td>{LOST}</td><td>failed</td>" in text
    assert "stays: its score is no number for 4 of 8 prompts" in text


def test_a_network_without_candidates_is_an_error_that_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"could not be scored without any .* is no number"):
        here(tmp_path, Trouble(no_number=tiny.REMOVABLE))


def test_a_whole_network_that_fails_ends_the_search_with_the_reason(tmp_path):
    trouble = Trouble(no_number=(None,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"Score\(number=0.* cannot be performed: its score is no"):
        here(tmp_path, trouble)
    assert not any(isinstance(task, Score) for task in entries(tmp_path))


def test_shards_abreast_are_said_to_cost_their_share(tmp_path):
    worker = FakeWorker(seconds=0.02)
    scores = []
    for abreast in (1, 4):
        with Here(worker) as executor:
            conductor = Conductor(worker, executor, abreast=abreast)  # pyright: ignore
            future = conductor.start(STRATEGY, STRATEGY.init(), Score(0))
            scores.append(finish(executor, [future])[0]["cost"]["seconds"])
    assert scores[0] >= 0.08 and scores[1] < scores[0]


def test_pools_say_what_is_wrong_with_them():
    pools = FakeWorker().recipe.pools
    with pytest.raises(ValueError, match="tries is 0; it must be one or more"):
        dataclasses.replace(pools, tries=0)
    assert pools.training == Pool()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 2}, "--address and --workers are for --on ray"),
        ({"address": "there:6379"}, "--address and --workers are for --on ray"),
        ({"on": "ray", "workers": 0}, "--workers is 0; it must be one or more"),
    ],
)
def test_settings_of_ray_are_refused_where_they_mean_nothing(given, message):
    with pytest.raises(ValueError, match=message):
        Running(**given)


def test_workers_change_the_recipe_and_not_what_a_search_is_known_by():
    plain, many = settings(), settings(running=Running(on="ray", workers=5))
    recipe = FakeWorker().recipe
    assert many.over(recipe).pools.scoring.workers == 5
    assert plain.over(recipe).pools == recipe.pools
    assert plain.header("here", recipe) == many.header("here", recipe)


def settings(**given) -> Settings:
    recipe = FakeWorker().recipe
    return Settings(Path(), **{name: getattr(recipe, name) for name in OF_RECIPE}, **given)
