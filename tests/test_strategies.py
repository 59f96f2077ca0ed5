"""Our own strategies keep the laws, and find what they should."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_models.latency import Latency
from nas.strategies import process
from nas.strategies.drawing import draw as drawn
from nas.strategies.drawing import mutant
from nas.strategies.exact import Exact, referee
from nas.strategies.exploration import Exploration, Proposal, State
from nas.strategies.greedy import Greedy
from nas.strategies.halving import SuccessiveHalving
from nas.strategies.leaves import apart, leaves
from nas.strategies.local import LocalSearch
from nas.strategies.nsga2 import NSGA2, halfway
from nas.strategies.outcomes import combined, failed, scored
from nas.strategies.pareto import crowding, nondominated, ranks
from nas.strategies.problem import Device, Problem
from nas.strategies.random import Random
from nas.strategies.regularised import RegularisedEvolution
from nas.strategies.surrogate import Surrogate, improvement, levelled
from nas.testing.spaces import PlainSpaceLaws
from nas.testing.strategies import StrategyLaws
from tests import beads, tiny
from tests.beads import Beads


class TestStrings(PlainSpaceLaws):
    space = beads.String(3)


class Stubborn(beads.String):
    """It has an edit that changes nothing."""

    def actions(self, spec) -> Any:
        yield from (beads.Paint(0, c) for c in range(3) if c != spec.colours[0])
        yield Touch()


class Moody(beads.String):
    """It has other edits whenever it is asked."""

    asked = itertools.count()

    def actions(self, spec) -> Any:
        return [*super().actions(spec)][:: (-1) ** next(self.asked)]


class Hasty(beads.String):
    """It forgets a neighbour when it has to be quick."""

    def shuffled(self, spec, rng):
        return (action.apply(spec) for action in [*self.actions(spec)][1:])


@dataclasses.dataclass(frozen=True)
class Touch:
    def apply(self, spec):
        return spec


@dataclasses.dataclass(frozen=True)
class Listed(beads.String):
    """Its edits have no hash."""

    def actions(self, spec) -> Any:
        for action in super().actions(spec):
            yield Several([action])


@dataclasses.dataclass(frozen=True)
class Several:
    edits: list

    def apply(self, spec):
        for edit in self.edits:
            spec = edit.apply(spec)
        return spec


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (Stubborn, "test_every_edit_changes_the_spec_and_leads_to_one_of_the_space"),
        (Moody, "test_asking_is_pure"),
        (Hasty, "test_neighbours_in_random_order_are_the_neighbours"),
        (Listed, "test_equal_specs_and_edits_hash_equal"),
    ],
)
def test_the_laws_of_spaces_find_who_breaks_them(broken, law):
    class Held(PlainSpaceLaws):
        space = broken(2)

    with pytest.raises((AssertionError, TypeError)):
        getattr(Held(), law)()


class Laws(StrategyLaws):
    quality = staticmethod(beads.evaluated)


class TestRandom(Laws):
    strategy = Exploration(beads.problem(), Random(), 12)


class TestRandomWalks(Laws):
    strategy = Exploration(beads.problem(listed=False), Random(), 12, seed=1)


class TestRegularisedEvolution(Laws):
    strategy = Exploration(beads.problem(), RegularisedEvolution(6, 3, ahead=3), 16)


class TestLocalSearch(Laws):
    strategy = Exploration(beads.problem(), LocalSearch(), 20, seed=2)


class TestNSGA2(Laws):
    strategy = Exploration(beads.problem(), NSGA2(5), 15)


class TestSuccessiveHalving(Laws):
    strategy = Exploration(beads.problem(shards=4), SuccessiveHalving(6, 2), 5)


class TestSuccessiveHalvingOfFew(Laws):
    strategy = Exploration(beads.problem(3, shards=4), SuccessiveHalving(), 40)


class TestSurrogate(Laws):
    strategy = Exploration(beads.problem(), Surrogate(first=4, ahead=3), 10)


class TestSurrogateOfAnUnlistedSpace(Laws):
    strategy = Exploration(beads.problem(3, listed=False), Surrogate(first=4, best=2), 7)


class TestGreedy(Laws):
    walks_over_limits = True
    strategy = Exploration(beads.problem(3), Greedy(group=2), 40)


class TestExact(Laws):
    walks_over_limits = True
    strategy = Exploration(beads.problem(3), Exact(), 20)


def finished(strategy: Exploration, worth=beads.entangled) -> State:
    """The state in which a search ends whose evaluations give one score."""
    state = strategy.init()
    while asked := strategy.ask(state):
        state = strategy.tell(state, asked[0], scored([worth(asked[0].spec)]))
    return state


def optimum(problem: Problem, worth) -> float:
    return max(worth(spec) for spec in problem.fitting)


# What a search is asked, and what it answers.


def test_as_many_evaluations_can_run_at_once_as_are_independent():
    def at_once(policy, **problem):
        strategy = Exploration(beads.problem(**problem), policy, 12)
        return len(strategy.ask(strategy.init()))

    assert at_once(Random()) == 12
    assert at_once(NSGA2(5)) == 5
    assert at_once(RegularisedEvolution(4, 2)) == 4
    assert at_once(SuccessiveHalving(6, 2), shards=4) == 6
    assert at_once(Exact()) == at_once(Greedy()) == 1 + 4 * 2  # The first, and its edits.


def test_those_ahead_are_asked_for_before_the_others_end():
    for ahead in (1, 4):
        strategy = Exploration(beads.problem(), RegularisedEvolution(4, 2, ahead=ahead), 20)
        state = strategy.init()
        for task in strategy.ask(state):
            state = strategy.tell(state, task, scored([1.0]))
        assert len(strategy.ask(state)) == ahead


def test_a_task_is_told_once_and_with_an_outcome():
    strategy = Exploration(beads.problem(), Random(), 3)
    task = strategy.ask(strategy.init())[0]
    state = strategy.tell(strategy.init(), task, scored([1.0]))
    with pytest.raises(ValueError, match="told already"):
        strategy.tell(state, task, scored([1.0]))
    for other in (dataclasses.replace(task, number=7), dataclasses.replace(task, number=1)):
        with pytest.raises(ValueError, match="never asked"):
            strategy.tell(state, other, scored([1.0]))
    for wrong in ({}, {"scores": []}, {"scores": [math.nan]}, {"scores": ["1"]}, {"scores": 1.0}):
        with pytest.raises(ValueError, match="finite"):
            strategy.tell(strategy.init(), task, wrong)


def test_of_a_candidate_of_which_a_shard_failed_no_other_is_asked_for():
    strategy = Exploration(beads.problem(shards=3), Random(), 2)
    tasks = strategy.ask(strategy.init())
    assert [(task.number, task.shard) for task in tasks] == [
        (n, k) for n in (0, 1) for k in range(3)
    ]
    state = strategy.tell(strategy.init(), tasks[4], failed("no memory"))
    assert strategy.ask(state) == tasks[:3]
    begun = strategy.tell(state, tasks[5], scored([1.0]))  # It was under way.
    assert strategy.ask(begun) == tasks[:3]
    assert strategy.ask(strategy.tell(begun, tasks[1], scored([1.0]))) == (tasks[0], tasks[2])


def test_a_score_that_is_no_number_is_a_failure():
    assert "failed" in scored([1.0, math.nan]) and "failed" in scored([])
    assert combined([scored([1.0]), failed("no memory")]) is None


def test_shards_are_combined_in_their_order_and_with_the_error_of_all():
    quality = combined([scored([1.0, 2.0]), scored([4.0])])
    assert quality is not None and quality.scores == (1.0, 2.0, 4.0)
    assert quality.mean == pytest.approx(7 / 3)
    assert quality.error == pytest.approx(np.std([1, 2, 4], ddof=1) / math.sqrt(3))


def test_the_upper_bound_is_held_against_every_limit():
    spec = Beads((1, 1))
    for caution, fits in ((0.0, True), (4.0, True), (6.0, False)):
        devices = {"one": Device(beads.linear, 3.5), "other": Device(beads.late, 2.0)}
        problem = Problem(beads.String(2), devices, caution=caution)
        assert problem.fits(spec) is fits  # 3.0 ± 0.1 ms against 3.5 ms.
    assert problem.overruns(spec) == pytest.approx({"one": 0.1 / 3.5})
    assert problem.excess(Beads((2, 2))) > problem.excess(spec)


def test_a_problem_that_makes_no_sense_is_an_error():
    for shards, caution in ((0, 0.0), (1, -1.0)):
        with pytest.raises(ValueError, match="shard"):
            Problem(beads.String(2), {}, shards, caution)
    with pytest.raises(ValueError, match="positive"):
        Problem(beads.String(2), {"phone": Device(beads.linear, 0.0)})


def test_one_evaluation_serves_the_fronts_of_all_devices():
    strategy = Exploration(beads.problem(), Random(), 30)
    state = finished(strategy)
    results = strategy.results(state)
    for devices in (["linear"], ["late"], ["late", "linear"]):
        front = strategy.front(state, devices)

        def costs(result, devices=devices):
            latencies = strategy.problem.latencies(result.spec)
            return (-result.quality.mean, *(latencies[name].ms for name in devices))

        for result in results:
            better = [f for f in front if all(map(float.__le__, costs(f), costs(result)))]
            assert better
            assert (result in front) or costs(better[0]) != costs(result) or len(better) == 1
    with pytest.raises(ValueError, match="toaster"):
        strategy.front(state, ["toaster"])


# What strategies find.


@settings(max_examples=25, deadline=None)
@given(st.floats(0.2, 1.0), st.floats(0.2, 1.0))
def test_exact_selection_finds_the_best_of_what_adds_up(one, other):
    length = 4
    limits = {"linear": 1.1 + one * 2 * length, "late": 1.1 + other * length * (length - 1)}
    problem = beads.problem(length, **limits)
    strategy = Exploration(problem, Exact(), 40)
    state = finished(strategy, beads.additive)
    best = strategy.best(state)
    assert best is not None
    assert best.quality.mean == pytest.approx(optimum(problem, beads.additive))
    verdict = referee(problem, state.trials)
    assert verdict is not None and verdict.gap >= -1e-9
    assert problem.fits(verdict.best_spec) and problem.fits(verdict.greedy_spec)
    worse = beads.additive(verdict.best_spec) - beads.additive(verdict.greedy_spec)
    assert verdict.gap == pytest.approx(worse)


def test_the_referee_sees_where_greedy_is_not_the_best():
    # Painting place 1 saves a little for less, but then both others are needed all the same.
    costs, worths = (6.0, 5.0, 5.0), (6.2, 5.1, 5.3)

    def latency(spec):
        return Latency(1 + math.fsum(c for c, x in zip(costs, spec.colours, strict=True) if x), 0)

    def worth(spec):
        return math.fsum(w for w, x in zip(worths, spec.colours, strict=True) if x)

    problem = Problem(
        beads.String(3), {"d": Device(latency, 11.5)}, specs=beads.String(3).everything()
    )
    strategy = Exploration(problem, Exact(), 30)
    state = finished(strategy, worth)
    verdict = referee(problem, state.trials)
    assert verdict is not None
    brute = max(map(worth, problem.fitting))
    assert worth(verdict.best_spec) == pytest.approx(brute) == pytest.approx(10.4)
    assert worth(verdict.greedy_spec) <= brute and verdict.gap == pytest.approx(
        brute - worth(verdict.greedy_spec)
    )


def test_the_referee_waits_for_all_single_edits():
    with pytest.raises(ValueError, match="not all"):
        referee(beads.problem(), ())


def test_the_referee_takes_the_scores_of_any_strategy():
    problem = beads.problem(3, linear=100.0)
    exact, drawn = (Exploration(problem, policy, 30) for policy in (Exact(), Random()))
    states = [finished(strategy, beads.entangled) for strategy in (exact, drawn)]
    one, other = (referee(problem, state.trials) for state in states)
    assert one is not None and one == other and one.best.edits


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_exact_selection_keeps_to_limits_where_latencies_do_not_add_up(power):
    def latency(spec):
        return Latency(1.0 + sum(spec.colours) ** power, 0.0)

    space = beads.String(4)
    limit = latency(Beads((1, 1, 1, 0))).ms
    problem = Problem(space, {"d": Device(latency, limit)}, specs=space.everything())
    strategy = Exploration(problem, Exact(), 40)
    best = strategy.best(finished(strategy, beads.additive))
    assert best is not None and problem.fits(best.spec)


def test_greedy_removes_what_loses_least_for_what_it_saves():
    problem = beads.problem(4, linear=8.5)
    strategy = Exploration(problem, Greedy(group=1), 60)
    state = finished(strategy, beads.additive)
    first = problem.space.initial()
    # Place 0 is worth least, and every bead costs the same.
    walked = [t.spec for t in state.trials]
    assert walked[0] == first and Beads((1, 2, 2, 2)) in walked
    best = strategy.best(state)
    assert best is not None and best.spec == Beads((1, 2, 2, 2))


def test_greedy_takes_what_is_worth_having_while_there_is_room():
    space = beads.String(3)

    class Low(beads.String):
        def initial(self):
            return Beads((0, 0, 0))

    problem = Problem(Low(3), {"d": Device(beads.linear, 5.2)}, specs=space.everything())
    strategy = Exploration(problem, Greedy(), 60)
    best = strategy.best(finished(strategy, beads.additive))
    assert best is not None
    assert best.quality.mean == pytest.approx(optimum(problem, beads.additive))


def test_a_gain_within_its_noise_is_not_worth_having():
    class Low(beads.String):
        def initial(self):
            return Beads((0, 0))

    problem = Problem(Low(2), {"d": Device(beads.linear, 9.0)})
    strategy = Exploration(problem, Greedy(caution=1.0), 40)
    state = strategy.init()
    while asked := strategy.ask(state):
        scores = [
            beads.additive(asked[0].spec) + sign * 9.0 * sum(asked[0].spec.colours)
            for sign in (1, -1)
        ]
        state = strategy.tell(state, asked[0], scored(scores))
    assert len(state.trials) == 5  # The first and its four edits, of which none is sure.


def test_local_search_ends_phases_in_local_optima():
    problem = beads.problem(4)
    strategy = Exploration(problem, LocalSearch(), 60, seed=1)
    best = strategy.best(finished(strategy))
    assert best is not None
    for neighbour in problem.neighbours(best.spec):
        assert not problem.fits(neighbour) or beads.entangled(neighbour) <= best.quality.mean


def test_children_of_regularised_evolution_are_edits_of_those_alive():
    strategy = Exploration(beads.problem(5), RegularisedEvolution(5, 2), 30)
    trials = finished(strategy).trials
    for number in range(5, len(trials)):
        parents = [t.spec for t in trials[number - 5 : number]]
        near = {n for p in parents for n in strategy.problem.neighbours(p)}
        assert trials[number].spec in near


def mean_best(problem: Problem, policy, evaluations: int, limits=(math.inf,)) -> float:
    """Best quality under each of these limits on the first device, over limits and five seeds."""
    device, found = next(iter(problem.devices)), []
    for seed in range(5):
        strategy = Exploration(problem, policy, evaluations, seed)
        front = strategy.front(finished(strategy), [device])
        for limit in limits:
            fitting = [r for r in front if problem.upper_ms(r.spec, device) <= limit]
            found.append(max((r.quality.mean for r in fitting), default=0.0))
    return float(np.mean(found))


@pytest.mark.parametrize("policy", [Surrogate(first=5), RegularisedEvolution(8, 4), LocalSearch()])
def test_guided_search_beats_random_search(policy):
    problem = beads.problem(6)
    assert mean_best(problem, policy, 30) > mean_best(problem, Random(), 30)


def test_nsga2_finds_better_fronts_than_random_search():
    problem = beads.problem(6, linear=14.0)
    limits = np.linspace(5, 14, 10)
    ours = mean_best(problem, NSGA2(12, devices=("linear",)), 96, limits)
    assert ours > mean_best(problem, Random(), 96, limits)


def test_the_surrogate_finds_the_optimum_where_leaves_add_up():
    problem = beads.problem(6)
    for seed in range(4):
        strategy = Exploration(problem, Surrogate(first=6), 40, seed)
        best = strategy.best(finished(strategy, beads.additive))
        assert best is not None
        assert best.quality.mean == pytest.approx(optimum(problem, beads.additive))


def test_the_surrogate_draws_no_more_than_it_says_where_a_space_is_not_listed(monkeypatch):
    draws = []

    def drawing(*given):
        draws.append(drawn(*given))
        return draws[-1]

    monkeypatch.setattr("nas.strategies.surrogate.draw", drawing)
    policy = Surrogate(first=3, choices=4, drawn=2)
    assert len(finished(Exploration(beads.problem(5, listed=False), policy, 8)).trials) == 8
    assert len(draws) == 3 * 4 + 5 * 2


def test_the_surrogate_begins_with_what_takes_most_of_its_limits():
    problem = beads.problem(6)

    def used(choices: int) -> float:
        trials = finished(Exploration(problem, Surrogate(first=8, choices=choices), 8)).trials
        return float(np.mean([problem.used(trial.spec) for trial in trials]))

    assert used(1) < used(3) < used(20) < len(problem.devices)


def test_successive_halving_gives_the_best_more_shards_and_the_others_none():
    policy = SuccessiveHalving(8, 2)
    assert policy.rungs(4) == ((0,), (1,), (2, 3))
    strategy = Exploration(beads.problem(shards=4), policy, 4)  # One bracket: 8 + 4 + 4 shards.
    state = finished(strategy)
    trials = state.trials
    assert [trial.proposal.shards for trial in trials] == [(0,)] * 8 + [(1,)] * 4 + [(2, 3)] * 2
    worth = {t.spec: beads.entangled(t.spec) for t in trials}
    by_worth = sorted(worth, key=lambda spec: -worth[spec])
    assert {r.spec for r in strategy.results(state)} == set(by_worth[:2])


def test_successive_halving_goes_by_all_shards_that_were_taken():
    strategy = Exploration(beads.problem(shards=4), SuccessiveHalving(8, 2), 4)
    state = strategy.init()
    while asked := strategy.ask(state):
        worth = beads.entangled(asked[0].spec) * (1.0 if asked[0].shard == 0 else -0.5)
        state = strategy.tell(state, asked[0], scored([worth]))
    four = sorted((t.spec for t in state.trials[8:12]), key=beads.entangled)
    assert {t.spec for t in state.trials[12:]} == set(four[2:])


def test_successive_halving_goes_on_with_what_there_is_where_a_rung_cannot_be_filled():
    problem = beads.problem(3, shards=9)
    there = len(problem.fitting)
    assert 3 < there < 27
    strategy = Exploration(problem, SuccessiveHalving(), 200)
    state = finished(strategy)
    taken = [trial.proposal.shards for trial in state.trials]
    counts = (there, math.ceil(there / 3), math.ceil(math.ceil(there / 3) / 3))
    rungs = ((0,), (1, 2), (3, 4, 5, 6, 7, 8))
    assert taken == [r for r, n in zip(rungs, counts, strict=True) for _ in range(n)]
    best = strategy.best(state)
    assert best is not None
    assert best.quality.mean == pytest.approx(optimum(problem, beads.entangled))


def test_successive_halving_begins_anew_after_a_rung_that_was_not_filled():
    strategy = Exploration(beads.problem(3, shards=2), SuccessiveHalving(10, 2), 30)
    trials = finished(strategy).trials
    there = len(strategy.problem.fitting)
    assert 10 < there < 20
    first, later = [(0,)] * 10 + [(1,)] * 5, there - 10
    others = [(0,)] * later + [(1,)] * math.ceil(later / 2)
    assert [trial.proposal.shards for trial in trials] == first + others


def test_successive_halving_refuses_a_budget_that_ends_within_its_rungs():
    problem = beads.problem(5, shards=9)
    with pytest.raises(ValueError, match=r"27 candidates.* take 7 evaluations.*candidates=9"):
        Exploration(problem, SuccessiveHalving(), 3)
    for policy, evaluations in ((SuccessiveHalving(9), 3), (SuccessiveHalving(), 7)):
        strategy = Exploration(problem, policy, evaluations)
        assert strategy.best(finished(strategy))
    with pytest.raises(ValueError, match="10 candidates"):
        Exploration(problem, SuccessiveHalving(10), 3)
    with pytest.raises(ValueError, match=r"allow more$"):
        Exploration(problem, SuccessiveHalving(2), 1)
    whole = Exploration(beads.problem(5), SuccessiveHalving(), 3)  # All have had the only shard.
    assert whole.best(finished(whole))


def test_strategies_search_networks_too():
    space = tiny.unet_space(tiny.UNET)

    class Removals:
        initial = staticmethod(space.initial)
        actions = staticmethod(space.removals)

    def latency(spec):
        return Latency(float(len(list(spec.blocks))), 0.0)

    def ups(spec):
        return sum(block.name.startswith("up") for block in spec.blocks)

    blocks = latency(space.initial()).ms
    problem = Problem(Removals(), {"d": Device(latency, blocks - 2)})
    strategy = Exploration(problem, Greedy(group=2), 40)
    best = strategy.best(finished(strategy, ups))
    assert best is not None and len(list(best.spec.blocks)) == blocks - 2
    assert ups(best.spec) == ups(space.initial())


# Their parts.


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 2), max_size=12))
def test_fronts_are_those_of_the_definition(costs):
    def beaten(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    kept = nondominated(costs)
    assert {costs[i] for i in kept} == {
        c for c in costs if not any(beaten(other, c) for other in costs)
    }
    assert len({costs[i] for i in kept}) == len(kept)
    if costs:
        found = ranks(costs)
        for i, c in enumerate(costs):
            above = [found[j] for j, other in enumerate(costs) if beaten(other, c)]
            assert found[i] == max(above, default=-1) + 1
        assert np.isinf(crowding(costs)).any()


def test_where_all_edits_of_a_spec_are_taken_edits_of_those_are_next():
    problem, rng = beads.problem(4), np.random.default_rng(0)
    parent = Beads((1, 1, 1, 1))
    taken = {parent, *problem.neighbours(parent)}
    for _ in range(20):
        child = mutant(problem, parent, rng, taken)
        assert child is not None and child not in taken and problem.fits(child)
    assert mutant(problem, parent, rng, set(problem.specs)) is None


def test_halfway_is_nearer_to_both_than_they_are_to_each_other():
    problem, rng = beads.problem(6, listed=False), np.random.default_rng(0)
    one, other = Beads((0, 0, 0, 0, 0, 0)), Beads((1, 2, 1, 2, 1, 2))
    child = halfway(problem, one, other, rng)
    assert apart(one, other) == 6 and apart(one, child) == apart(child, other) == 3


def test_leaves_are_all_that_specs_differ_in():
    for one, other in itertools.combinations(beads.String(2).everything(), 2):
        assert leaves(one) != leaves(other)
        differing = sum(a != b for a, b in zip(one.colours, other.colours, strict=True))
        assert apart(one, other) == differing


def test_the_process_gives_what_the_textbook_does():
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(size=(7, 2)), rng.normal(size=7), rng.normal(size=(3, 2))

    def covariance(a, b):
        distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
        return process.matern(distances, 1.5)

    found = process.fit({1.5: covariance(x, x)}, y)
    inverse = np.linalg.inv(covariance(x, x) + found.noise**2 * np.eye(7))
    cross = covariance(x, new)
    np.testing.assert_allclose(found.mean(cross), cross.T @ inverse @ y, rtol=1e-9)
    variance = 1 + found.noise**2 - np.einsum("rp,rs,sp->p", cross, inverse, cross)
    amplitude = np.sqrt(y @ inverse @ y / 7)
    np.testing.assert_allclose(found.deviation(cross), amplitude * np.sqrt(variance), rtol=1e-9)


def test_the_expected_improvement_is_that_of_many_draws():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.3, 0.8, 400_000)
    (found,) = improvement(np.array([0.3]), np.array([0.8]), 0.9)
    assert found == pytest.approx(np.maximum(draws - 0.9, 0).mean(), rel=0.02)


def test_what_is_far_below_the_median_is_all_alike():
    values = levelled(np.array([1.0, 2.0, 3.0, 4.0, 5.0, -100.0, -50.0]))
    assert values[5] == values[6] < values[0] and values.mean() == pytest.approx(0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Greedy(group=0),
        lambda: RegularisedEvolution(5, 6),
        lambda: SuccessiveHalving(1),
        lambda: Surrogate(first=1),
        lambda: Surrogate(choices=0),
        lambda: Surrogate(drawn=0),
        lambda: Surrogate(first=3.5),  # pyright: ignore
        lambda: NSGA2(0),
        lambda: NSGA2(True),
        lambda: NSGA2("4"),  # pyright: ignore
        lambda: RegularisedEvolution(4.0, 2),  # pyright: ignore
        lambda: SuccessiveHalving(keep=1),
        lambda: SuccessiveHalving(2.5),  # pyright: ignore
        lambda: Greedy(group=1.5),  # pyright: ignore
    ],
)
def test_settings_that_make_no_sense_are_an_error(make):
    with pytest.raises(ValueError, match="more"):
        make()


@pytest.mark.parametrize("devices", ["linear", ("linear", 7), ["linear"], 3])
def test_the_devices_of_nsga2_are_names(devices):
    with pytest.raises(ValueError, match='names of devices, as in devices=\\["phone"\\]'):
        NSGA2(devices=devices)


def test_devices_that_a_problem_has_not_are_an_error_before_it_is_searched():
    problem = beads.problem(3)
    Exploration(problem, NSGA2(devices=("late",)), 3)
    with pytest.raises(
        ValueError, match="no device phone to be searched for; there are linear, late"
    ):
        Exploration(problem, NSGA2(devices=("late", "phone")), 3)


@pytest.mark.parametrize("wrong", [{"crossover": 1.5}, {"mutation": -0.1}, {"mutation": math.nan}])
def test_what_is_no_probability_is_an_error(wrong):
    with pytest.raises(ValueError, match="between 0 and 1"):
        NSGA2(**wrong)


def test_a_surrogate_takes_the_import_path_of_what_describes_specs():
    found = Surrogate(describe="nas.strategies.leaves:indicators")  # pyright: ignore
    assert found == Surrogate()
    with pytest.raises(ValueError, match="no import path"):
        Surrogate(describe="leaves")  # pyright: ignore
    with pytest.raises(ValueError, match="TRIES is no function"):
        Surrogate(describe="nas.strategies.drawing:TRIES")  # pyright: ignore


def test_a_proposal_is_of_a_spec_and_its_shards():
    strategy = Exploration(beads.problem(shards=3), Random(), 1)
    tasks = strategy.ask(strategy.init())
    assert [task.shard for task in tasks] == [0, 1, 2]
    assert {task.proposal for task in tasks} == {Proposal(tasks[0].spec, (0, 1, 2))}
