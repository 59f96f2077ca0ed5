"""Any strategy searches U-Nets, on several devices at once, and loses nothing when it is killed."""

import dataclasses
import functools
import itertools
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latency_models.bench import Bench, ModelBench
from latency_models.latency import Whole
from latency_models.roofline import Roofline
from latency_models.rows import encode_row
from nas.cli import run
from nas.conduct import in_process
from nas.evolution import Reference, Score, Train
from nas.exploring import Compare, Exploring, Limit, Price, State
from nas.journal import Journal, Outcome
from nas.perform import Performer
from nas.progress_exploring import described
from nas.report import explored
from nas.report.explored import Explored
from nas.search import replay, search, search_abreast
from nas.strategies import drawing
from nas.strategies.exact import Exact
from nas.strategies.exploration import Evaluate, Proposal, full
from nas.strategies.nsga2 import NSGA2
from nas.strategies.outcomes import scored
from nas.strategies.random import Random
from nas.strategies.surrogate import Surrogate
from nas.testing.spaces import PlainSpaceLaws
from search_spaces.actions import Choose, Copy, Remove
from search_spaces.edited import KINDS, Edited, EditedSpace, Step, carrier, led
from search_spaces.program import calls
from search_spaces.unet import lower
from tests import tiny
from tests.test_search import Shuffled as _Shuffled

SPACE = tiny.unet_space(tiny.UNET)
SLOW = ModelBench(Roofline(flops_per_s=1e9, bytes_per_s=4e9, overhead_ms=0.01))
BENCHES: dict[str, Bench] = {"one": tiny.BENCH, "other": SLOW}
LIMITS = {"one": Limit(0.8), "other": Limit(0.9)}
SHARDS = 2
PRICED = tiny.REMOVABLE[1]


@pytest.fixture(autouse=True)
def _short_walks(monkeypatch):
    """Where a walk ends matters little here, and every step of one takes time."""
    monkeypatch.setattr(drawing, "WALK", 4)


def strategy(policy: Any, evaluations: int = 6, **changes: Any) -> Exploring:
    given = {"shards": SHARDS, "caution": 0.0, "edits": ("Remove", "Copy"), **changes}
    return Exploring(SPACE, policy, LIMITS, evaluations, **given)


def worth(edited: Edited) -> float:
    return sum(1 + i % 3 for i, name in enumerate(tiny.REMOVABLE) if name in edited.names)


@dataclasses.dataclass(frozen=True)
class Fake:
    """Performs tasks without weights; winners take `slower` times what is predicted."""

    slower: float = 1.0

    def __call__(self, strategy: Exploring, state: State, task: Any) -> Outcome:
        match task:
            case Price(device):
                return _priced(device, strategy.edits)
            case Reference():
                return {"real": [1.0], "mismatched": [0.0], "real_recall": 1.0}
            case Score(number):
                return {"cosines": [0.1 * number] * 4, "recall": 1.0}
            case Train():
                return {"steps": 1, "losses": [1.0]}
            case Evaluate(_, proposal, shard):
                return scored([worth(proposal.spec) + 0.1 * shard])
            case Compare(number, device):
                spec = state.networks[number].spec
                found, seed = _whole(BENCHES[device], spec), _whole(BENCHES[device], SPACE.seed)
                return {"ms": self.slower * found, "std": 0.0, "seed_ms": seed, "seed_std": 0.0}
        raise AssertionError(task)


@functools.cache
def _priced(device: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """What a device says of the calls that removals, copies, and choices of one block make."""
    bench, seed = BENCHES[device], SPACE.seed
    choices = [choice for choice in SPACE.choices(seed) if choice.block == PRICED]
    edits = [*SPACE.copies(seed), *(choices if "Choose" in kinds else [])]
    specs = [seed, *(edit.apply(seed) for edit in edits)]
    wanted = [c for spec in specs for c in calls(lower(spec), SPACE.inputs).values()]
    networks = [
        {"removed": gone, "ms": _whole(bench, tiny.without(SPACE.seed, *gone)), "std": 0.0}
        for gone in ([], list(tiny.REMOVABLE))
    ]
    return {
        "provenance": bench.provenance.to_json(),
        "rows": [encode_row(*row) for row in bench.table(wanted).rows.items()],
        "networks": networks,
    }


def _whole(bench: Bench, spec: Any) -> float:
    return bench.networks([Whole(lower(spec), SPACE.inputs)])[0].ms


@dataclasses.dataclass(frozen=True)
class Given:
    """Proposes the seed without each of these sets of blocks."""

    gone: tuple[tuple[str, ...], ...]

    def propose(self, problem: Any, trials: Any, rng: Any) -> Proposal | None:
        if len(trials) == len(self.gone):
            return None
        return full(problem, _applied(*map(Remove, self.gone[len(trials)])))


def go_on(path: Path, asked: Exploring, fake: Any = None, tasks: int | None = None) -> State:
    with Journal(path, {}) as journal:
        for _ in itertools.islice(search(asked, fake or Fake(), journal), tasks):
            pass
        return replay(asked, journal)


@pytest.mark.parametrize("policy", [Random(), NSGA2(2)], ids=repr)
def test_a_search_killed_anywhere_writes_the_same_journal(tmp_path, policy):
    whole, path = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    go_on(whole, strategy(policy, 4))
    written = whole.read_bytes()
    for share in (0.3, 0.7, 0.9):
        path.write_bytes(written[: int(share * len(written))])
        # Anew, as another process has none of what the first remembered.
        go_on(path, strategy(policy, 4))
        assert path.read_bytes() == written


def test_tasks_that_end_in_any_order_lead_to_the_same_winner(tmp_path):
    asked = strategy(Random())
    state = go_on(tmp_path / "one.jsonl", asked)
    crew = Shuffled(3)
    with Journal(tmp_path / "other.jsonl", {}) as journal:
        for _ in search_abreast(asked, crew, journal):
            pass
        other = replay(asked, journal)
    assert other == state and repr(other.winners) == repr(state.winners) and crew.most > 2


class Shuffled(_Shuffled):
    def wait(self) -> None:
        self.most = max(self.most, len(self._started))
        future = list(self._started)[self._rng.integers(len(self._started))]
        future.set_result(Fake()(*self._started.pop(future)))


def test_the_winner_keeps_to_the_limits_of_all_devices_and_is_the_best_that_does(tmp_path):
    asked = strategy(Random(), 8)
    state = go_on(tmp_path / "journal.jsonl", asked)
    assert state.search and state.explored
    problem, best = state.search.problem, state.search.best(state.explored)
    assert best is not None and state.winners == (best.spec,)
    assert all(problem.upper_ms(best.spec, d) <= asked.limit_ms(state, d) for d in LIMITS)
    assert best.quality.mean == max(r.quality.mean for r in state.search.results(state.explored))
    last = state.networks[-1]
    assert last.objective == "recovery" and last.spec == best.spec.spec and asked.kept(state, 2)


def test_a_winner_that_is_measured_to_be_over_makes_way_for_another(tmp_path):
    asked = strategy(Given(tuple(tiny.REMOVABLE[:count] for count in (4, 6, 8, 10))), 4)
    state = go_on(tmp_path / "as predicted.jsonl", asked)
    assert state.search and len(state.winners) == 1
    share = max(
        state.search.problem.upper_ms(state.winners[0], device) / asked.limit_ms(state, device)
        for device in LIMITS
    )
    slower = 1.05 / share
    state = go_on(tmp_path / "slower.jsonl", asked, Fake(slower))
    assert len(state.winners) == 2 and asked.kept(state, 3) and not asked.kept(state, 2)
    assert len(state.winners[0].names) > len(state.winners[1].names)
    assert asked.correction(state, "one") == pytest.approx(slower)
    # Where all are over, the search gives up.
    state = go_on(tmp_path / "slowest.jsonl", asked, Fake(100.0))
    assert len(state.winners) == 1 and not asked.ask(state) and not asked.kept(state, 2)


def test_budgets_that_nothing_can_meet_are_an_error_before_anything_is_trained(tmp_path):
    limits = {"one": Limit(0.8), "other": Limit(0.01)}
    asked = dataclasses.replace(strategy(Random()), limits=limits, edits=("Remove",))
    with pytest.raises(ValueError, match=r"no architecture of these edits .* ms on other"):
        go_on(tmp_path / "journal.jsonl", asked)


def test_edits_that_do_not_exist_are_an_error_that_names_those_that_do():
    with pytest.raises(ValueError, match=r"one or more of Remove, Copy, Choose, .* not Paint"):
        strategy(Random(), edits=("Remove", "Paint"))


def test_choices_that_a_device_cannot_price_are_not_among_the_candidates(tmp_path):
    asked = strategy(Random(), 3, edits=("Choose",))
    asked = dataclasses.replace(asked, limits={"one": Limit(2.0)})
    state = go_on(tmp_path / "journal.jsonl", asked)
    assert state.explored is not None
    edits = [edit for trial in state.explored.trials for edit in trial.spec.edits]
    known = calls(lower(SPACE.seed), SPACE.inputs)
    assert edits and all(type(edit) is Choose for edit in edits)
    assert {known[edit.block] for edit in edits} == {known[PRICED]}  # Of blocks that are alike.


def test_exact_selection_of_removals_has_its_gap_in_the_report(tmp_path):
    asked = strategy(Exact(), 40, edits=("Remove",))
    go_on(tmp_path / "journal.jsonl", asked)
    told = Explored.read(tmp_path, asked)
    explored.write(told)
    text = (tmp_path / "report.html").read_text()
    assert "Greedy choice is " in text and "Step(" not in text and told.kept
    assert "The winner: remove " in explored.summary(told)
    assert all(f"<h3>{device}</h3>" in text for device in LIMITS)


def test_the_report_says_which_candidates_fit_and_marks_the_best(tmp_path):
    asked = strategy(Exact(), 40, edits=("Remove",))
    go_on(tmp_path / "journal.jsonl", asked)
    search, done = Explored.read(tmp_path, asked).search
    fits = [search.problem.fits(trial.spec) for trial in done.trials]
    said = re.findall("<td>(yes|no)</td>", explored.candidates(search, done.trials))
    assert said == ["yes" if each else "no" for each in fits] and set(fits) == {True, False}
    best = search.best(done)
    assert best is not None
    marked = re.findall("<tr class=chosen>(.*?)</tr>", explored.fronts(search, done))
    assert len(marked) == len(LIMITS)
    assert all(escape(described(best.spec)) in row for row in marked)


@pytest.mark.parametrize(("slower", "kept"), [(1.0, "within"), (100.0, "over")])
def test_the_summary_says_whether_the_winner_keeps_to_its_limits(tmp_path, slower, kept):
    asked = strategy(Random(), 4)
    go_on(tmp_path / "journal.jsonl", asked, Fake(slower))
    told = Explored.read(tmp_path, asked)
    said = re.findall("; (within|over) the limit of", explored.summary(told))
    assert said == [kept] * len(LIMITS) and told.kept is (kept == "within")


# Edits of edits.


def test_what_a_policy_cannot_search_is_an_error_before_anything_is_priced():
    limits = {"one": Limit(0.8), "other": Limit(0.8)}
    with pytest.raises(
        ValueError, match="no device phone to be searched for; there are one, other"
    ):
        Exploring(SPACE, NSGA2(devices=("phone",)), limits, 8)


NEAR = EditedSpace(SPACE)


class TestEditedSpace(PlainSpaceLaws):
    space = EditedSpace(SPACE, ("Remove",))


def _applied(*actions: Any) -> Edited:
    found = NEAR.initial()
    for action in actions:
        found = Step(action, SPACE.seed).apply(found)
    return found


def test_edits_that_undo_each_other_leave_no_trace_in_the_weights():
    block = tiny.REMOVABLE[1]
    other = Remove(tiny.REMOVABLE[-1])
    copied = _applied(Copy(block, f"{block}+1"), other, Remove(f"{block}+1"))
    assert copied == _applied(other) and copied.edits == (other,)
    choose = next(SPACE.choices(SPACE.seed))
    assert _applied(choose, Remove(choose.block)).edits == (Remove(choose.block),)


@pytest.mark.parametrize("seed", range(4))
def test_a_candidate_is_where_its_edits_lead_and_runs_in_its_carrier(seed):
    rng, found = np.random.default_rng(seed), NEAR.initial()
    for _ in range(4):
        found = next(NEAR.shuffled(found, rng))
    spec = led(SPACE.seed, found.edits)
    assert spec == found.spec and tuple(b.name for b in spec.blocks) == found.names
    whole = carrier(SPACE.seed, found)
    assert {b.name for b in spec.blocks} <= {b.name for b in whole.blocks}


def test_surrogates_tell_candidates_apart_by_blocks_and_not_by_the_way(tmp_path):
    from nas.strategies.leaves import apart

    one, two = (_applied(Remove(name)) for name in tiny.REMOVABLE[:2])
    assert 0 < apart(NEAR.initial(), one) < apart(one, two)
    state = go_on(tmp_path / "journal.jsonl", strategy(Surrogate(first=4, shortlist=4, best=1), 5))
    assert state.explored is not None and len(state.explored.trials) == 5


# With weights, by the command.


PHONE = "google-pixel-4-pytorch-vulkan"


def asked(out: Path, *edits: str) -> list[str]:
    words = ["search", "tests.cli_recipe:recipe", "--out", str(out), "--caution", "0"]
    words += ["--strategy", "random", "--evaluations", "3", "--edits", *edits]
    return [*words, "--device", "here=85%", "--device", f"{PHONE}=90%"]


@pytest.mark.usefixtures("here")
@pytest.mark.slow
def test_the_command_searches_for_several_devices(tmp_path, capsys):
    assert run(asked(tmp_path, "Remove")) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "random evaluated 3 candidates" in said and "within the limit" in said
    assert (tmp_path / "pipeline" / "unet").is_dir()
    report = (tmp_path / "report.html").read_text()
    assert "Every candidate" in report
    assert all(f"<h3>{device}</h3>" in report for device in ("here", PHONE))


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_search_with_edits_of_several_kinds_goes_on_from_anywhere(tmp_path, capsys):
    words = asked(tmp_path, "Remove", "Copy", "Choose")
    assert run(words) == 0
    whole, journal = _entries(tmp_path), tmp_path / "journal.jsonl"
    # In the middle of a candidate, and while the winner was trained.
    for lines in (8, len(whole) - 4):
        journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:lines]))
        assert run(words) == 0
        assert _entries(tmp_path) == whole
    capsys.readouterr()
    assert run(words) == 0 and "holds this finished search" in capsys.readouterr().out
    assert run(["report", str(tmp_path)]) == 0


def _entries(folder: Path) -> list[str]:
    """What is in the journal, in whatever order, but for what it cost."""
    found = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    for line in found:
        line.get("outcome", {}).pop("cost", None)
    return sorted(map(json.dumps, found))


@pytest.mark.slow
def test_what_a_worker_remembers_changes_no_number_of_a_candidate_with_edits_of_any_kind(folders):
    performer = Performer(tiny.recipe(folders), Path("unused"))
    conductor = in_process(performer)
    found = NEAR.initial()
    kinds = {}
    for step in NEAR.actions(found):
        kinds.setdefault(type(step.action).__name__, step)
    assert {"Remove", "Copy", "Choose"} <= kinds.keys() <= set(KINDS)
    for step in kinds.values():
        edited = step.apply(found)
        network = strategy(Random()).network(edited)
        one, again = (
            performer.candidate(network, performer.pipeline.unet, edited, 1) for _ in range(2)
        )
        performer._carried.clear()  # As another worker has none.
        other = performer.candidate(network, performer.pipeline.unet, edited, 1)
        assert np.array_equal(one.images, again.images)
        assert np.array_equal(one.images, other.images) and np.isfinite(one.images).all()
    del conductor


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--strategy", "guess"), "no 'guess' among nas.strategies (exact, greedy, local-search"),
        (("--strategy", "json:loads"), "json:loads with options {}"),
        (("--strategy", "random", "--options", "x"), "option 'x' is not NAME=VALUE"),
        (("--strategy", "nsga2", "--options", "size=3"), "unexpected keyword argument 'size'"),
        (("--strategy", "random", "--edits", "Paint"), "edits are one or more of Remove"),
        (("--strategy", "random", "--device", "a=9", "--device", "b"), "budget '9' is neither"),
        (("--strategy", "random", "--device", "phone=75%"), "phone is neither the folder of a"),
        (("--scorer", "dog"), "no 'dog' among nas.scorers (clip)"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_cannot_be_asked_for_is_one_clear_message(words, said, capsys):
    assert run(["search", "tests.cli_recipe:recipe", "--out", "unused", *words]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_several_devices_are_for_strategies_that_take_them(capsys):
    with pytest.raises(SystemExit):
        run(["search", "tests.cli_recipe:recipe", "--device", "here", "--device", "tpu-v3"])
    assert "Algorithm 1's own run" in capsys.readouterr().err
