"""The ranking recipe tries every removal once, and correlates what it should."""

import numpy as np
import pytest

from experiments.emoji.ranking import EveryRemoval, agreement, bootstrapped
from nas.evolution import Evolution, Score, Train
from nas.journal import Journal
from nas.search import search
from search_spaces.actions import Remove
from tests import tiny

SPACE = tiny.unet_space(tiny.UNET)


def test_every_removal_is_scored_before_and_after_a_recovery_beside_one_of_nothing(tmp_path):
    strategy = EveryRemoval(Evolution(SPACE, 1.0))
    performer = tiny.FakePerformer(SPACE, dict.fromkeys(tiny.REMOVABLE, 0.1))
    with Journal(tmp_path / "journal.jsonl", {}) as journal:
        tasks = [done.task for done in search(strategy, performer, journal)]
    before = [task.removed for task in tasks if isinstance(task, Score) and task.number == 1]
    assert before == [None, *tiny.REMOVABLE]
    recoveries = [t for t in tasks if isinstance(t, Train) and t.objective == "recovery"]
    assert [task.actions for task in recoveries] == [
        (),
        *((Remove(block),) for block in tiny.REMOVABLE),
    ]
    assert {task.parent for task in recoveries} == {1}
    after = [task.number for task in tasks if isinstance(task, Score) and task.number > 1]
    assert after == [task.number for task in recoveries]


def test_agreement_is_of_ranks_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    means = np.arange(10.0)[:, None]
    before = means + 0.1 * rng.standard_normal((10, 50))
    after = np.exp(means) + 0.1 * rng.standard_normal((10, 50))  # Another scale, the same order.
    assert agreement(before, after) == pytest.approx(1.0)
    assert agreement(before, -after) == pytest.approx(-1.0)
    noisy = means + 20 * rng.standard_normal((10, 50))
    low, high = bootstrapped(before, noisy, draws=100)
    assert -1 <= low < agreement(before, noisy) < high <= 1
    assert low < high - 0.05
