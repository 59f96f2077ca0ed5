"""A search that is stopped, killed or cut goes on as if nothing had happened."""

import dataclasses
import itertools
import json
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.commands.search import evolution
from nas.conduct import in_process
from nas.diffusion.pipeline import Pipeline
from nas.evolution import Evolution, Outcome, Score, State
from nas.journal import Journal
from nas.perform import Performer
from nas.recipe import Recipe, Search
from nas.search import InTurn, Perform, replay, search, search_abreast
from tests import tiny

SPACE = tiny.unet_space(tiny.UNET)
WORTH = {name: 0.01 * (1 + number % 4) for number, name in enumerate(tiny.REMOVABLE)}
STRATEGY = Evolution(SPACE, 0.7, group=3, rounds=3)
FAKE = tiny.FakePerformer(SPACE, WORTH, noise=0.001, slower=1.05)


class Killed(BaseException):
    """As a signal would end it: nothing on the way out takes it for a failure."""


def go_on(path: Path, performer: Perform = FAKE, tasks: int | None = None) -> bytes:
    """Performs at most so many tasks; returns the journal."""
    with Journal(path, {"seed": 0}) as journal:
        for _ in itertools.islice(search(STRATEGY, performer, journal), tasks):
            pass
    return path.read_bytes()


def dying(*, after: int) -> Perform:
    """Performs so many tasks and dies."""
    left = iter(range(after))

    def performer(strategy, state, task):
        if next(left, None) is None:
            raise Killed
        return FAKE(strategy, state, task)

    return performer


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return go_on(tmp_path_factory.mktemp("whole") / "journal.jsonl")


def test_a_search_restarted_after_every_task_writes_the_same_journal(tmp_path, whole):
    path, lines = tmp_path / "journal.jsonl", whole.splitlines(keepends=True)
    for number in range(1, len(lines)):
        assert go_on(path, tasks=1) == b"".join(lines[: 1 + number])
    assert go_on(path) == whole


def test_a_search_cut_at_any_byte_writes_the_same_journal(tmp_path, whole):
    path = tmp_path / "journal.jsonl"
    for end in np.random.default_rng(0).integers(len(whole), size=8):
        path.write_bytes(whole[:end])
        assert go_on(path) == whole


def test_a_task_that_fails_is_not_in_the_journal_and_is_done_again(tmp_path, whole):
    path = tmp_path / "journal.jsonl"
    for done in (0, 1, 7, 30):
        with pytest.raises(Killed):
            go_on(path, dying(after=done))
    assert go_on(path) == whole


def test_a_finished_search_performs_nothing_more(tmp_path, whole):
    (tmp_path / "journal.jsonl").write_bytes(whole)
    assert go_on(tmp_path / "journal.jsonl", dying(after=0)) == whole


def test_every_task_is_in_the_journal_before_it_is_yielded(tmp_path):
    with Journal(tmp_path / "journal.jsonl", {}) as journal:
        for done in search(STRATEGY, FAKE, journal):
            assert list(journal)[-1] == (done.task, done.outcome)
            assert replay(STRATEGY, journal) == done.state


class Shuffled:
    """A crew of many, of whom any may be the next to end."""

    def __init__(self, seed: int):
        self._rng, self._started = np.random.default_rng(seed), {}
        self.most = 0  # Tasks that were under way at once.

    def start(self, strategy, state, task) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        self._started[future] = (strategy, state, task)
        return future

    def wait(self) -> None:
        self.most = max(self.most, len(self._started))
        for _ in range(int(self._rng.integers(1, 4))):
            if self._started:
                future = list(self._started)[self._rng.integers(len(self._started))]
                future.set_result(FAKE(*self._started.pop(future)))


@hypothesis.settings(max_examples=6)
@given(st.integers(0, 10**6), st.integers(0, 60))
def test_tasks_that_end_in_any_order_lead_to_the_same_state(tmp_path_factory, whole, seed, stopped):
    path = tmp_path_factory.mktemp("shuffled") / "journal.jsonl"
    crew = Shuffled(seed)
    for crew, tasks in ((Shuffled(seed + 1), stopped), (crew, None)):
        with Journal(path, {"seed": 0}) as journal:
            for _ in itertools.islice(search_abreast(STRATEGY, crew, journal), tasks):
                pass
            found = replay(STRATEGY, journal)
    (path.parent / "whole.jsonl").write_bytes(whole)
    with Journal(path.parent / "whole.jsonl", {"seed": 0}) as journal:
        assert replay(STRATEGY, journal) == found
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert stopped > 30 or crew.most > 3


class Fickle:
    """A strategy that asks for two tasks, and after the first for none."""

    def init(self):
        return ()

    def ask(self, state) -> tuple[Score, ...]:
        return () if state else (Score(0), Score(0, "other"))

    def tell(self, state, task, outcome):
        return (*state, task)


def test_a_task_that_is_no_longer_asked_for_is_cancelled(tmp_path):
    crew, futures = InTurn(lambda *_: {}), []
    start = crew.start
    crew.start = lambda *given: futures.append(start(*given)) or futures[-1]  # pyright: ignore
    with Journal(tmp_path / "journal.jsonl", {}) as journal:
        found = list(search_abreast(Fickle(), crew, journal))  # pyright: ignore
        assert [done.task for done in found] == [Score(0)] and len(journal) == 1
    assert [future.cancelled() for future in futures] == [False, True]


def test_what_was_cancelled_is_not_performed(tmp_path):
    class Changing(Fickle):
        """It asks for two tasks, and after the first for another in place of the second."""

        def ask(self, state):
            asked = (Score(0), Score(0, "other")), (Score(1),), ()
            return asked[len(state)]

    performed = []
    crew = InTurn(lambda strategy, state, task: performed.append(task) or {})
    with Journal(tmp_path / "journal.jsonl", {}) as journal:
        list(search_abreast(Changing(), crew, journal))  # pyright: ignore
    assert performed == [Score(0), Score(1)]


class Twice(InTurn):
    """A crew of two who end at once, the first with an error."""

    def wait(self) -> None:
        (first, _), (second, _) = self._started
        first.set_exception(ValueError("it is torn"))
        second.set_result({})


def test_what_ended_beside_an_error_is_in_the_journal(tmp_path):
    with Journal(tmp_path / "journal.jsonl", {}) as journal:
        with pytest.raises(ValueError, match="it is torn"):
            list(search_abreast(Fickle(), Twice(FAKE), journal))  # pyright: ignore
        assert [task for task, _ in journal] == [Score(0, "other")]


# The same with weights, pictures and training.


def steps(recipe: Recipe, folder: Path, *, kill: int = 10**6) -> State:
    """Goes on with a search in `folder`; dies in its training step `kill`, counted from zero."""
    trained = itertools.count()

    def watch(what: str, share: float) -> None:
        if what.startswith("train") and next(trained) == kill:
            raise Killed

    performer = Performer(recipe, folder, watch)
    strategy = evolution(recipe.search, performer.space)
    with Journal(folder / "journal.jsonl", {}) as journal:
        conductor = in_process(performer)
        for _ in search_abreast(strategy, conductor, journal):
            pass
        state = replay(strategy, journal)
    conductor.deliver(state)
    return state


def outcomes(folder: Path) -> list[Any]:
    """The journal, without what its tasks cost."""
    lines = tiny.decoded((folder / "journal.jsonl").read_bytes())
    for line in lines[1:]:
        assert line["outcome"].pop("cost").keys() >= {"seconds"}
    return lines


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory) -> tuple[Recipe, Path, State]:
    recipe, folder = tiny.recipe(folders), tmp_path_factory.mktemp("finished")
    return recipe, folder, steps(recipe, folder)


def test_a_search_makes_a_pipeline_within_its_budget(finished):
    recipe, folder, state = finished
    found, seed = Pipeline.load(folder / "pipeline"), Pipeline.load(recipe.pipeline)
    assert repr(found.spec) == repr(state.networks[-1].spec)
    assert len(found.spec.blocks) < len(seed.spec.blocks)
    ms = [tiny.predicted_ms(SPACE, spec) for spec in (found.spec, seed.spec)]
    assert ms[0] <= 0.75 * ms[1]
    names = {*tiny.shapes(SPACE, found.spec)}
    assert found.unet.keys() == names
    kernels = [name for name in names if name.endswith("kernel")]
    assert not any(np.array_equal(found.unet[n], seed.unet[n]) for n in kernels)


@pytest.mark.slow
def test_a_search_killed_in_its_trainings_ends_with_the_same_weights(finished, tmp_path):
    recipe, folder, _ = finished
    with pytest.raises(Killed):  # In robust training, after a checkpoint.
        steps(recipe, tmp_path, kill=2)
    with pytest.raises(Killed):  # In recovery, before a checkpoint.
        steps(recipe, tmp_path, kill=6)
    assert len(outcomes(tmp_path)) < len(outcomes(folder))
    steps(recipe, tmp_path)
    # Tasks that do not depend on each other are journalled as they end.
    found, wanted = (sorted(map(json.dumps, outcomes(place))) for place in (tmp_path, folder))
    assert found == wanted
    one, other = (Pipeline.load(place / "pipeline").unet for place in (folder, tmp_path))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_finished_search_can_be_delivered_again(finished, tmp_path):
    recipe, folder, state = finished
    before = {p: p.read_bytes() for p in (folder / "pipeline").rglob("*") if p.is_file()}
    in_process(Performer(recipe, folder)).deliver(state)
    assert {p: p.read_bytes() for p in before} == before


def test_weights_that_are_gone_are_an_error_that_names_their_folder(finished, tmp_path):
    recipe, _, state = finished
    with pytest.raises(ValueError, match=rf"weights of network \d are gone from {tmp_path}"):
        Performer(recipe, tmp_path).weights(state, state.current)


def test_weights_that_are_gone_are_those_at_the_end_of_their_training(finished, tmp_path):
    recipe, folder, state = finished
    wanted = Performer(recipe, folder).weights(state, state.current)
    shutil.copytree(folder / "training", tmp_path / "training")
    found = Performer(recipe, tmp_path).weights(state, state.current)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_a_search_is_delivered_when_all_of_its_pipeline_is_there(finished, tmp_path, monkeypatch):
    recipe, folder, state = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "pipeline")
    performer = Performer(recipe, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("nas.diffusion.unet.write_weights", _die)
        with pytest.raises(Killed):
            in_process(performer).deliver(state)
    assert not performer.delivered
    in_process(performer).deliver(state)
    assert performer.delivered
    assert (
        Pipeline.load(tmp_path / "pipeline").unet.keys()
        == tiny.shapes(SPACE, state.networks[-1].spec).keys()
    )


def _die(*_: object, **__: object) -> None:
    raise Killed


def test_a_training_that_diverges_says_so(folders, tmp_path):
    recipe = tiny.recipe(folders)
    training = dataclasses.replace(recipe.training, rate=1e30)
    with pytest.raises(ValueError, match=r"training of network 1 diverged: .*at step \d+ of"):
        steps(dataclasses.replace(recipe, training=training), tmp_path)


def test_an_entry_that_does_not_follow_is_one_clear_error(tmp_path, whole):
    path = tmp_path / "journal.jsonl"
    first, *_, last = whole.splitlines(keepends=True)
    path.write_bytes(first + last)
    with (
        Journal(path, {"seed": 0}) as journal,
        pytest.raises(ValueError, match="line 2 does not follow"),
    ):
        replay(STRATEGY, journal)


@pytest.mark.slow
def test_a_copy_is_trained_away_from_its_original(folders, tmp_path):
    recipe = tiny.recipe(folders, search=Search(budget="150%", rounds=1, caution=0.0))
    state = steps(recipe, tmp_path)
    found = Pipeline.load(tmp_path / "pipeline")
    (copy,) = {b.name for b in found.spec.blocks} - {b.name for b in SPACE.seed.blocks}
    assert repr(found.spec) == repr(state.networks[-1].spec)
    outlet = found.spec.block(copy).op.outlet
    assert np.asarray(found.unet[f"{copy}.{outlet}.kernel"]).any()  # It began at zero.
