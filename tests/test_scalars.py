"""What TensorBoard reads is what the journal says, however often the search was stopped."""

import math
import statistics
import sys
from pathlib import Path

import pytest

from nas.cli import run
from nas.evolution import Evolution, Measure, Score, Train
from nas.journal import Journal
from nas.scalars import Scalars, evolved, explored
from nas.search import replay, search
from nas.strategies.exploration import Trial
from tests import story as made_up
from tests import test_exploring as exploring
from tests import tiny

pytest.importorskip("tensorboardX")
reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def searched(folder: Path, tasks: int = 10**6) -> Evolution:
    """A made-up search in `folder` that goes on for so many tasks."""
    space = tiny.unet_space(tiny.UNET)
    strategy = Evolution(space, 0.75, group=2, rounds=4)
    performer = made_up.Performer(space)
    with (
        Journal(folder / "journal.jsonl", made_up.HEADER) as journal,
        Scalars(folder / "board", "run", evolved) as scalars,
    ):
        scalars.begin(strategy, journal)
        found = search(strategy, performer, journal)
        for _, done in zip(range(tasks), found, strict=False):
            scalars.add(done)
    return strategy


def board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of a search as TensorBoard reads them."""
    events = reader.EventAccumulator(str(folder / "board" / "run"))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in names}


def near(trial: Trial):
    assert trial.quality
    return pytest.approx(trial.quality.mean)


def test_tensorboard_reads_scores_latencies_budget_and_losses(tmp_path):
    strategy = searched(tmp_path)
    found = board(tmp_path)
    with Journal(tmp_path / "journal.jsonl", made_up.HEADER) as journal:
        outcomes = dict(journal)
    scores = [
        (task.number, statistics.mean(outcome["cosines"]))
        for task, outcome in outcomes.items()
        if isinstance(task, Score) and task.removed is None
    ]
    assert found["score/CLIP"] == [(n, pytest.approx(score)) for n, score in scores]
    trained = [(t.number, o["losses"]) for t, o in outcomes.items() if isinstance(t, Train)]
    assert [n for n, _ in found["loss/training"]] == [n for n, _ in trained]
    for number, losses in trained:
        assert [x for _, x in found[f"training/network_{number}"]] == pytest.approx(losses)
    (measured,) = [t.number for t in outcomes if isinstance(t, Measure)][-1:]
    assert found["latency/whole_ms"][-1][0] == measured
    budgets = {value for _, value in found["latency/budget_ms"]}
    predicted = dict(found["latency/predicted_ms"])
    assert len(budgets) == 1 and budgets.pop() == pytest.approx(strategy.budget * predicted[0])
    assert all(math.isfinite(v) for points in found.values() for _, v in points)


def test_a_search_that_is_gone_on_with_has_every_point_once(tmp_path):
    searched(tmp_path / "once")
    for tasks in (3, 7, 10**6):
        searched(tmp_path / "often", tasks)
    assert board(tmp_path / "often") == board(tmp_path / "once")


def test_candidates_have_their_quality_and_latencies_on_every_device(tmp_path):
    strategy = exploring.strategy(exploring.Random(), 4)
    with (
        Journal(tmp_path / "journal.jsonl", {}) as journal,
        Scalars(tmp_path / "board", "run", explored) as scalars,
    ):
        scalars.begin(strategy, journal)
        for done in search(strategy, exploring.Fake(), journal):
            scalars.add(done)
        state = replay(strategy, journal)
    found, ended = board(tmp_path), state.explored
    assert state.search and ended
    trials = [trial for trial in ended.trials if trial.quality]
    steps = [trial.number + 1 for trial in trials]
    assert len(steps) == 4
    assert found["quality/candidate"] == list(zip(steps, map(near, trials), strict=True))
    best = state.search.best(ended)
    assert best and found["quality/best_within_limits"][-1][1] == pytest.approx(best.quality.mean)
    for name in exploring.LIMITS:
        latencies = [strategy.predict(state, t.spec.spec, name).ms for t in trials]
        assert [x for _, x in found[f"latency/{name}/candidate_ms"]] == pytest.approx(latencies)
        assert found[f"latency/{name}/whole_ms"][-1][0] == state.current
        assert found[f"latency/{name}/budget_ms"] == [
            (0, pytest.approx(strategy.limit_ms(state, name)))
        ]
    assert [n for n, _ in found["loss/training"]] == [1, state.current]


def test_a_space_of_ones_own_has_its_points_too(tmp_path, here):
    words = ["explore", "tests.beads:study", "--strategy", "random", "--evaluations", "5"]
    out = ["--out", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "board")]
    assert run([*words, "--device", "linear=4.5ms", "--price", "2", *out]) == 0
    found = board(tmp_path)
    assert len(found["quality/candidate"]) == len(found["latency/linear/candidate_ms"]) == 5
    best = [value for _, value in found["quality/best_within_limits"]]
    assert best == sorted(best)
    assert "at 2 an hour" in (tmp_path / "run" / "report.html").read_text()


def test_what_other_programs_wrote_there_is_left(tmp_path):
    other = tmp_path / "board" / "run" / "events.out.tfevents.1.host"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"")
    searched(tmp_path, 2)
    assert other.exists()


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"--tensorboard needs.*pip install 'nas\[tensorboard\]'"):
        Scalars(tmp_path, "run", evolved)
