"""The comparison is fair: one budget, one profile, and the hand rule is BK-SDM's."""

import collections

import numpy as np

from experiments.emoji.compare import (
    Row,
    Selections,
    hand_rule,
    judged,
    means,
    table_rows,
    until_kept,
)
from experiments.emoji.recipe import default
from experiments.emoji.seed import UNET
from nas.diffusion import unet
from nas.evolution import Evolution
from nas.journal import Journal
from nas.search import replay, search
from search_spaces.actions import Remove
from search_spaces.unet import UNetSpec
from search_spaces.unet_space import UNetSpace
from tests import tiny

SPACE = tiny.unet_space(tiny.UNET)
WORTH: dict[str, float] = dict.fromkeys(tiny.REMOVABLE, 0.01)


def counts(spec: UNetSpec) -> dict[tuple[str, str], int]:
    """How many blocks of each kind every stage has."""
    return collections.Counter(
        (stage.name, type(block.op).__name__) for stage in spec.stages for block in stage.blocks
    )


def test_base_and_small_of_the_hand_rule_are_bk_sdm_s():
    space = UNetSpace(unet.from_config(UNET), unet.shapes(UNET, batch=2, tokens=16))
    order = hand_rule([removal.block for removal in space.removals(space.seed)])
    assert sorted(order) == sorted(removal.block for removal in space.removals(space.seed))
    second = [block for block in order if block.endswith(".1") and "mid" not in block]
    assert order[: len(second)] == second
    base = tiny.without(space.seed, *second)
    assert counts(base) == counts(unet.from_config({**UNET, "layers_per_block": 1}))
    middle = [block for block in order if block.startswith("mid")]
    assert order[len(second) : len(second) + len(middle)] == middle


def test_every_choice_keeps_to_the_same_budget_whatever_was_measured(tmp_path):
    evolution = Evolution(SPACE, 0.7)
    order = list(tiny.REMOVABLE)
    strategy = Selections(
        evolution, lambda e, s: {name: until_kept(e, s, order) for name in ("one", "again")}
    )
    performer = tiny.FakePerformer(SPACE, WORTH, noise=0.001, slower=1.3)
    with Journal(tmp_path / "journal.jsonl", {}) as journal:
        for _ in search(strategy, performer, journal):
            pass
        state = replay(strategy, journal)
    one, again = state.networks[2:]
    assert one.spec == again.spec != SPACE.seed
    assert state.measured.keys() == {2, 3} and state.losses.keys() == {0, 2, 3}
    assert not strategy.ask(state)
    assert [row.choice for row in table_rows(state, ["one", "again"], 0, "70%")] == [
        "seed",
        "one",
        "again",
    ]


def test_blocks_are_removed_in_order_until_the_budget_is_kept():
    evolution, order = Evolution(SPACE, 0.7), list(tiny.REMOVABLE)
    performer = tiny.FakePerformer(SPACE, WORTH)
    (task,) = evolution.ask(evolution.init())
    state = evolution.tell(evolution.init(), task, performer(evolution, evolution.init(), task))
    edits = until_kept(evolution, state, order)
    assert edits == tuple(map(Remove, order[: len(edits)]))
    upper = [
        evolution.upper_ms(state, tiny.without(SPACE.seed, *order[:n]))
        for n in (len(edits) - 1, len(edits))
    ]
    assert upper[0] > evolution.limit_ms(state) >= upper[1]


def test_means_are_over_seeds_and_draws_and_leave_algorithm_1_its_name():
    cosines = np.linspace(0.0, 1.0, 8)
    rows = [
        Row("75%", seed, choice, 9, cosines - lost, lost + 0 * cosines, lost, 0.7)
        for seed, choice, lost in (
            (0, "Algorithm 1", 0.0),
            (0, "random 1", 0.1),
            (0, "random 2", 0.2),
            (1, "random 1", 0.6),
        )
    ]
    *_, ours, random = means(rows).splitlines()
    assert ours == "| 75% | Algorithm 1 | 0.5000 |  |  | 0.0000 | 70.0% |"
    assert random.startswith(
        "| 75% | random | 0.2000 | +0.3000 (+0.3000, +0.3000) | +0.1000 to +0.6"
    )


def test_choices_are_judged_on_prompts_that_none_was_chosen_by():
    recipe = default()
    chosen, judging = (r.prompts[: r.sampling.prompts] for r in (recipe, judged(recipe)))
    assert not {*chosen} & {*judging} and len(judging) == 256
