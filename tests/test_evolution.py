"""Algorithm 1 as a strategy, on a performer that needs no weights.

`python -m tests.test_evolution` rewrites the golden run; read its changes before keeping them.
"""

import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.evolution import (
    REPAIRS,
    Candidate,
    Evolution,
    Evolve,
    Measure,
    Profile,
    Reference,
    Score,
    State,
    Train,
    actions,
)
from nas.journal import Journal, read
from nas.search import Done, replay, search
from search_spaces.actions import Copy, Remove
from tests import tiny

SPACE = tiny.unet_space(tiny.UNET)
WORTH = {name: 0.01 * (1 + number) for number, name in enumerate(tiny.REMOVABLE)}
USELESS = ("mid_block.attentions.0", "up_blocks.0.resnets.1", "up_blocks.1.attentions.1")
GOLDEN = Path(__file__).parent / "golden_runs" / "evolution.jsonl"


@dataclasses.dataclass(frozen=True)
class Run:
    strategy: Evolution
    done: list[Done]

    @property
    def state(self) -> State:
        return self.done[-1].state

    @property
    def spec(self):
        return self.state.networks[-1].spec

    @property
    def decisions(self):
        return [d for d in self.done if isinstance(d.task, Evolve)]

    @property
    def gone(self) -> set[str]:
        return {*tiny.REMOVABLE} - {block.name for block in self.spec.blocks}


def evolution(budget: float = 0.7, **settings) -> Evolution:
    return Evolution(SPACE, budget, **{"group": 2, **settings})


def run(folder: Path, strategy: Evolution, performer: tiny.FakePerformer | None = None) -> Run:
    performer = performer or tiny.FakePerformer(SPACE, WORTH, noise=0.001)
    with Journal(folder / "journal.jsonl", {}) as journal:
        return Run(strategy, list(search(strategy, performer, journal)))


def share_without(*blocks: str) -> float:
    """Latency without `blocks`, as a share of the seed's, and a hair more."""
    spec = tiny.without(SPACE.seed, *blocks)
    return tiny.predicted_ms(SPACE, spec) / tiny.predicted_ms(SPACE, SPACE.seed) + 1e-9


def kinds(found: Run) -> list[str]:
    return [type(done.task).__name__ for done in found.done]


LEAST = share_without(*tiny.REMOVABLE)


def test_a_search_goes_from_profile_to_measured_result(tmp_path):
    found = run(tmp_path, evolution())
    order = kinds(found)
    assert order[:4] == ["Profile", "Reference", "Score", "Train"]
    assert order[-3:] == ["Train", "Score", "Measure"]
    assert found.strategy.ask(found.state) == ()
    objectives = [d.task.objective for d in found.done if isinstance(d.task, Train)]
    assert objectives == ["robust"] * (len(objectives) - 1) + ["recovery"]
    assert found.strategy.kept(found.state, found.state.current)


@settings(max_examples=8)
@given(st.floats(LEAST, 1.5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_every_search_ends_within_its_budget(tmp_path_factory, budget, group, rounds, seed):
    worth = {name: 0.01 * ((seed * (i + 7)) % 13 - 2) for i, name in enumerate(tiny.REMOVABLE)}
    performer = tiny.FakePerformer(SPACE, worth, noise=0.001)
    strategy = evolution(budget, group=group, rounds=rounds)
    found = run(tmp_path_factory.mktemp("run"), strategy, performer)
    state = found.state
    assert strategy.kept(state, state.current)
    assert len(state.decisions) <= rounds
    assert strategy.upper_ms(state, found.spec) <= strategy.limit_ms(state)
    for done in found.decisions[:-1]:
        assert sum(isinstance(action, Remove) for action in actions(done.outcome)) <= group


def test_over_budget_the_worst_valued_blocks_are_removed_first(tmp_path):
    found = run(tmp_path, evolution(0.5, group=2, rounds=8))
    assert len(found.decisions) > 2
    for done in found.decisions:
        chosen = list(actions(done.outcome))
        if any(isinstance(action, Remove) for action in chosen):
            worst = [Remove(c["block"]) for c in done.outcome["candidates"][: len(chosen)]]
            assert chosen == worst and 1 <= len(chosen) <= 2
    first = found.decisions[0].outcome["candidates"]
    ratios = [c["delta_clip"] / c["delta_ms"] for c in first if c["delta_clip"] > c["error"]]
    assert ratios == sorted(ratios) and len(ratios) > 5


def test_no_more_is_removed_than_the_budget_asks_for(tmp_path):
    found = run(tmp_path, evolution(share_without(tiny.REMOVABLE[0]), group=4))
    for done in found.decisions:
        chosen = actions(done.outcome)
        if any(isinstance(action, Remove) for action in chosen):
            assert isinstance(done.task, Evolve)
            spec = found.state.networks[done.task.number].spec
            spared = tiny.without(spec, *(action.block for action in chosen[:-1]))
            upper = found.strategy.upper_ms(found.state, spared)
            assert upper > found.strategy.limit_ms(found.state)


@pytest.mark.parametrize("noise", [0.0, 1e-4])
@pytest.mark.parametrize("group", [1, 2, 5])
def test_planted_useless_blocks_are_found_exactly(tmp_path, noise, group):
    worth = {name: 0.0 if name in USELESS else 0.05 for name in tiny.REMOVABLE}
    performer = tiny.FakePerformer(SPACE, worth, noise=noise)
    found = run(tmp_path, evolution(share_without(*USELESS), group=group), performer)
    assert found.gone == {*USELESS}


def test_under_budget_the_best_valued_block_is_copied(tmp_path):
    worth = {name: 0.0 for name in tiny.REMOVABLE} | {"mid_block.resnets.0": 0.1}
    performer = tiny.FakePerformer(SPACE, worth)
    found = run(tmp_path, evolution(1.5, rounds=2), performer)
    assert actions(found.decisions[0].outcome) == (
        Copy("mid_block.resnets.0", "mid_block.resnets.0+1"),
    )
    assert not found.gone


@pytest.mark.parametrize("budget", [1.001, 1.05, 1.2, 2.0])
def test_copies_are_made_one_at_a_time_and_never_exceed_the_budget(tmp_path, budget):
    found = run(tmp_path, evolution(budget, rounds=5), tiny.FakePerformer(SPACE, WORTH))
    for done in found.decisions:
        chosen = actions(done.outcome)
        assert len(chosen) <= 1 and all(isinstance(action, Copy) for action in chosen)
    for network in found.state.networks:
        upper = found.strategy.upper_ms(found.state, network.spec)
        assert upper <= found.strategy.limit_ms(found.state)
    copies = len(found.spec.blocks) - len(SPACE.seed.blocks)
    assert copies == 0 if budget == 1.001 else copies > 0


def test_a_block_whose_worth_is_within_its_noise_is_not_copied(tmp_path):
    performer = tiny.FakePerformer(SPACE, {}, noise=0.01)
    found = run(tmp_path, evolution(2.0, rounds=2, caution=4.0), performer)
    assert len(found.spec.blocks) == len(SPACE.seed.blocks)


def test_the_last_round_removes_all_that_is_needed(tmp_path):
    found = run(tmp_path, evolution(0.5, group=1, rounds=2))
    first, last = (actions(done.outcome) for done in found.decisions)
    assert len(first) == 1 and len(last) > 1
    assert found.strategy.kept(found.state, found.state.current)


def test_a_budget_that_nothing_meets_is_an_error_with_numbers_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError) as caught:
        run(tmp_path, evolution(0.9 * LEAST))
    seed = tiny.predicted_ms(SPACE, SPACE.seed)
    message = str(caught.value)
    assert f"no architecture meets the budget of {0.9 * LEAST * seed:.3f} ms" in message
    assert f"still takes {LEAST * seed:.3f} ms ({LEAST:.0%} of the seed's {seed:.3f} ms)" in message


def test_a_budget_in_milliseconds_is_one(tmp_path):
    limit = 0.7 * tiny.predicted_ms(SPACE, SPACE.seed)
    share = run(tmp_path / "share", evolution(0.7))
    ms = run(tmp_path / "ms", evolution(limit, unit="ms"))
    assert repr(ms.spec) == repr(share.spec)
    assert ms.strategy.limit_ms(ms.state) == limit


@pytest.mark.parametrize("unit", ["ms", "share"])
def test_a_result_that_is_measured_over_budget_leads_on_to_further_removals(tmp_path, unit):
    budget = 0.7 if unit == "share" else 0.7 * tiny.predicted_ms(SPACE, SPACE.seed)
    performer = tiny.FakePerformer(SPACE, WORTH, slower=1.2)
    found = run(tmp_path, evolution(budget, unit=unit), performer)
    measured = list(found.state.measured.items())
    assert len(measured) == 2 and found.strategy.kept(found.state, found.state.current)
    (first, before), (last, after) = measured
    assert before.ms > found.strategy.limit_ms(found.state) >= after.ms
    objectives = [found.state.networks[n].objective for n in (first, last)]
    assert objectives == ["recovery", "recovery"]
    blocks = [len(found.state.networks[n].spec.blocks) for n in (first, last)]
    assert blocks[0] > blocks[1]


def test_a_result_that_cannot_be_repaired_ends_the_search_unsuccessfully(tmp_path):
    performer = tiny.FakePerformer(SPACE, WORTH, slower=10.0)
    found = run(tmp_path, evolution(0.7, rounds=2), performer)
    assert found.strategy.ask(found.state) == ()
    assert not found.strategy.kept(found.state, found.state.current)
    assert len(found.state.decisions) <= 2 + REPAIRS


def test_a_machine_that_slows_down_does_not_change_what_a_share_is(tmp_path):
    strategy = evolution(0.7)
    found = run(tmp_path, strategy)
    (last,) = (d for d in found.done if isinstance(d.task, Measure))
    slowed = {name: 3.0 * value for name, value in last.outcome.items()}
    before = found.done[-2].state
    assert strategy.kept(strategy.tell(before, last.task, slowed), before.current)
    in_ms = dataclasses.replace(strategy, unit="ms", budget=strategy.limit_ms(before))
    assert not in_ms.kept(in_ms.tell(before, last.task, slowed), before.current)


def test_every_prefix_of_a_journal_leads_to_the_task_that_came_next(tmp_path):
    strategy = evolution(0.6)
    found = run(tmp_path, strategy, tiny.FakePerformer(SPACE, WORTH, noise=0.001, slower=1.1))
    _, entries = read(tmp_path / "journal.jsonl")
    assert [task for task, _ in entries] == [done.task for done in found.done]
    state = strategy.init()
    for task, outcome in entries:
        first, *others = strategy.ask(state)
        assert first == task and all(type(other) is type(task) for other in others)
        state = strategy.tell(state, task, outcome)
    assert strategy.ask(state) == () and state == found.state


def test_a_prefix_is_replayed_from_the_start(tmp_path):
    strategy = evolution()
    found = run(tmp_path, strategy)
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for number in range(0, len(found.done), 7):
        (tmp_path / "prefix.jsonl").write_bytes(b"".join(lines[: 1 + number]))
        with Journal(tmp_path / "prefix.jsonl", {}) as journal:
            assert strategy.ask(replay(strategy, journal))[0] == found.done[number].task


def test_asking_and_telling_change_no_state(tmp_path):
    strategy = evolution()
    state = strategy.init()
    for done in run(tmp_path, strategy).done:
        before = repr(state)
        assert strategy.ask(state) == strategy.ask(state)
        again = strategy.tell(state, done.task, done.outcome)
        assert strategy.tell(state, done.task, done.outcome) == again and repr(state) == before
        state = again


def test_independent_scores_may_come_in_any_order(tmp_path):
    strategy = evolution()
    found = run(tmp_path, strategy)
    batch = [d for d in found.done if isinstance(d.task, Score) and d.task.number == 1]
    begin = found.done[found.done.index(batch[0]) - 1].state
    assert strategy.ask(begin) == tuple(done.task for done in batch)
    ends = [
        functools.reduce(lambda state, d: strategy.tell(state, d.task, d.outcome), order, begin)
        for order in (batch, batch[::-1])
    ]
    assert ends[0] == ends[1] and len(batch) == 1 + len(tiny.REMOVABLE)
    assert json.dumps(strategy.decide(ends[0], 1)) == json.dumps(strategy.decide(ends[1], 1))


def test_the_supernet_of_every_network_runs_it_and_the_seed(tmp_path):
    worth = {**WORTH, **dict.fromkeys(USELESS, 0.0)}
    found = run(tmp_path, evolution(1.3, rounds=6), tiny.FakePerformer(SPACE, worth))
    assert len(found.spec.blocks) > len(SPACE.seed.blocks)
    for network in found.state.networks:
        order = [block.name for block in network.supernet.blocks]
        for spec in (network.spec, SPACE.seed):
            names = [block.name for block in spec.blocks]
            assert names == [name for name in order if name in names]


def candidate(delta_clip: float, error: float, delta_ms: float = 1.0) -> Candidate:
    return Candidate("x", delta_clip, error, delta_ms)


positive = st.floats(1e-4, 1.0)


@given(positive, positive, positive, positive)
def test_of_blocks_that_lose_the_same_the_one_that_saves_more_goes_first(loss, error, ms, more):
    assert candidate(loss, error, ms + more).rank < candidate(loss, error, ms).rank


@given(st.floats(-1, 1), positive, positive, positive)
def test_of_blocks_that_save_the_same_the_one_that_loses_more_never_goes_first(
    loss, more, error, ms
):
    assert candidate(loss, error, ms).rank <= candidate(loss + more, error, ms).rank


@given(st.floats(-1, 1), positive, positive, positive)
def test_blocks_whose_loss_is_within_its_noise_go_by_what_they_save(loss, error, ms, more):
    loss *= error
    assert candidate(loss, error, ms + more).rank < candidate(loss, error, ms).rank


@given(st.floats(0.01, 1.0), positive)
def test_a_block_that_clearly_harms_goes_before_one_that_is_of_use(loss, ms):
    error = loss / 10
    harmful, useful = candidate(-10 * loss, error, ms), candidate(loss, error, ms)
    assert harmful.rank < useful.rank


def test_the_value_of_a_block_is_what_it_loses_over_what_it_saves():
    assert candidate(0.03, 0.001, 2.0).value == candidate(0.03, 0.001, 2.0).rank == 0.015


def test_two_runs_of_a_search_write_the_same_journal(tmp_path):
    for name in ("one", "other"):
        run(tmp_path / name, evolution())
    one, other = (tmp_path / name / "journal.jsonl" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def golden_run(folder: Path) -> list[dict]:
    """A search that removes, then copies, then is repaired; without its table of latencies."""
    performer = tiny.FakePerformer(SPACE, WORTH, noise=0.002, slower=1.05)
    run(folder, evolution(0.75, group=3, rounds=4), performer)
    lines = tiny.decoded((folder / "journal.jsonl").read_bytes())
    lines[1]["outcome"] = {"networks": lines[1]["outcome"]["networks"]}
    return lines


def close(found, wanted) -> bool:
    """Equal, where floats may differ by what another compiler's count of operations does."""
    if isinstance(found, float) and isinstance(wanted, float):
        return found == pytest.approx(wanted, rel=1e-6, abs=1e-12)
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[k], wanted[k]) for k in found)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    return found == wanted


def test_the_golden_run_is_repeated(tmp_path):
    found, wanted = golden_run(tmp_path), tiny.decoded(GOLDEN.read_bytes())
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True), 1):
        assert close(ours, theirs), f"line {number} differs; see this module's docstring"


def test_what_must_be_known_first_is_asked_for_first():
    strategy = evolution()
    state = strategy.init()
    assert strategy.ask(state) == (Profile(),)
    with pytest.raises(ValueError, match="nothing was measured yet"):
        strategy.predict(state, SPACE.seed)
    with pytest.raises(ValueError, match="the seed was not measured yet"):
        strategy.limit_ms(state)
    outcome = tiny.FakePerformer(SPACE, {})(strategy, state, Profile())
    state = strategy.tell(state, Profile(), outcome)
    assert strategy.ask(state) == (Reference(),)


if __name__ == "__main__":
    scratch = Path(tempfile.mkdtemp())
    text = "".join(json.dumps(line) + "\n" for line in golden_run(scratch))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(text)
    shutil.rmtree(scratch)
