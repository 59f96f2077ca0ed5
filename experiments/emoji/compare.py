"""Compares ways of choosing which blocks go, on the embedded default, recovery being equal.

    python -m experiments.emoji.compare FOLDER [--seeds 0 1 2] [--budgets 75% 50%]

For every seed and budget: the blocks that Algorithm 1 removes (and copies), three random draws,
BK-SDM's hand rule and the blocks of most latency first. Each removes blocks until the latency that
was predicted from one and the same profile keeps to the budget; each starts from the same robustly
trained network and recovers for the same number of steps on the same batches. Each is then scored
on prompts that Algorithm 1 did not choose by. Prints every choice's CLIP score with the paired
interval of its difference from Algorithm 1's, loss on held-out pictures and measured latency, then
the means over seeds and draws; FOLDER/table.md holds both. Killed at any moment, the same command
goes on.

Networks are measured when all are trained, in seven minutes. With `--unmeasured` that is left to a
later run, so that seeds may be trained side by side: so it took 78 minutes on two cores that did
other work, too. Algorithm 1 leads BK-SDM's rule by 0.09 at 75% and by 0.08 at 50%, random draws by
more than 0.3; `docs/results.md` has the tables.
"""

import dataclasses
import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from experiments.emoji.recipe import default
from latency_models.bench import CACHE, NETWORKS, LocalBench
from nas.conduct import in_process
from nas.evolution import (
    Evolution,
    Evolve,
    Measure,
    Network,
    Outcome,
    Profile,
    Reference,
    Score,
    State,
    Task,
    Train,
    Validate,
    actions,
)
from nas.journal import Journal, read
from nas.perform import Performer
from nas.recipe import Recipe, Search
from nas.search import replay, search_abreast
from search_spaces.actions import Copy, Remove

Edits = tuple[Remove | Copy, ...]
OURS = "Algorithm 1"
DRAWS = 3
JUDGED = 256  # Prompts that every choice is scored on.
RECOVERY_STEPS = 120


@dataclasses.dataclass(frozen=True)
class Selections:
    """A strategy that recovers given edits of one robustly trained network, one after another.

    `choices` maps a name to the edits, which are chosen once the latency table is known.
    """

    evolution: Evolution
    choices: Callable[[Evolution, State], Mapping[str, Edits]]
    measures: bool = True

    def init(self) -> State:
        return self.evolution.init()

    def tell(self, state: State, task: Task, outcome: Outcome) -> State:
        # What one choice was measured at must not change the budget of the next.
        return dataclasses.replace(self.evolution.tell(state, task, outcome), correction=1.0)

    def edited(self, state: State, task: Train) -> Network:
        return self.evolution.edited(state, task)

    def decide(self, state: State, number: int) -> Outcome:
        raise ValueError("the edits are given; nothing is decided")

    def ask(self, state: State) -> tuple[Task, ...]:
        if state.latency is None:
            return (Profile(),)
        made = [0, *range(2, len(state.networks))]  # Network 1 is what all start from.
        for number in made:
            if (number, None) not in state.scores:
                return (Score(number),)
            if number not in state.losses:
                return (Validate(number),)
        if state.current == 0:
            return (Train(1, 0, (), "robust"),)
        chosen = list(self.choices(self.evolution, state).values())
        done = state.current - 1
        if done < len(chosen):
            return (Train(state.current + 1, 1, chosen[done], "recovery"),)
        waiting = [n for n in made[1:] if n not in state.measured]
        return (Measure(waiting[0]),) if waiting and self.measures else ()


def main(
    folder: Path,
    /,
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    budgets: tuple[str, ...] = ("75%", "50%"),
    unmeasured: bool = False,
) -> None:
    profile = profiled(folder / "profile")
    rows: list[Row] = []
    for seed in seeds:
        place = folder / f"seed{seed}"
        first = place / f"search-{budgets[0].strip('%')}"
        for budget in budgets:
            recipe, share = _recipe(seed, budget), budget.strip("%")
            found = searched(recipe, place / f"search-{share}", first, profile)
            state, names = selected(
                judged(recipe),
                place / f"choices-{share}",
                first,
                found,
                profile,
                measures=not unmeasured,
            )
            if not unmeasured:
                rows += table_rows(state, names, seed, budget)
    if rows:
        text = f"{table(rows)}\n{means(rows)}"
        (folder / "table.md").write_text(text)
        print(text, flush=True)


def _recipe(seed: int, budget: str) -> Recipe:
    plain = default()
    search = dataclasses.replace(plain.search, budget=budget)
    training = dataclasses.replace(plain.training, recovery_steps=RECOVERY_STEPS)
    # Every choice is measured beside the seed, so less time will do for each.
    bench = LocalBench(CACHE, network_plan=dataclasses.replace(NETWORKS, seconds=4.0))
    return dataclasses.replace(plain, seed=seed, search=search, training=training, bench=bench)


def judged(recipe: Recipe) -> Recipe:
    """`recipe` with prompts that it does not choose by."""
    used = recipe.sampling.prompts
    return dataclasses.replace(
        recipe,
        prompts=recipe.prompts[used:],
        references=lambda: recipe.references()[used:],
        sampling=dataclasses.replace(recipe.sampling, prompts=JUDGED),
    )


def _header(recipe: Recipe) -> dict[str, Any]:
    parts = ("search", "sampling", "training")
    settings = {name: dataclasses.asdict(getattr(recipe, name)) for name in parts}
    return {"pipeline": str(recipe.pipeline), "seed": recipe.seed, "settings": settings}


def profiled(folder: Path) -> Outcome:
    """The profile that all seeds and budgets share."""
    recipe = _recipe(0, "75%")
    performer = Performer(recipe, folder)
    with Journal(folder / "journal.jsonl", _header(recipe)) as journal:
        if not len(journal):
            next(
                search_abreast(_evolution(performer, recipe.search), in_process(performer), journal)
            )
        _, outcome = next(iter(journal))
        return outcome


def _evolution(performer: Performer, settings: Search) -> Evolution:
    budget, unit = settings.limit()
    return Evolution(
        performer.space, budget, unit, settings.group, settings.rounds, settings.caution
    )


def shared(
    journal: Journal, folder: Path, first: Path, profile: Outcome, kinds: tuple[type[Task], ...]
) -> None:
    """Gives a new journal the profile, and what the first search of this seed did before it
    decided."""
    if len(journal):
        return
    earlier = []
    if folder != first:
        shutil.copytree(first / "networks" / "1", folder / "networks" / "1", dirs_exist_ok=True)
        _, entries = read(first / "journal.jsonl")
        undecided = itertools.takewhile(lambda entry: not isinstance(entry[0], Evolve), entries)
        earlier = [entry for entry in undecided if isinstance(entry[0], kinds)]
    for task, outcome in [(Profile(), profile), *earlier]:
        journal.append(task, outcome)


def searched(recipe: Recipe, folder: Path, first: Path, profile: Outcome) -> Edits:
    """The edits that Algorithm 1 makes, up to its recovery."""
    performer = Performer(recipe, folder)
    strategy = _evolution(performer, recipe.search)
    with Journal(folder / "journal.jsonl", _header(recipe)) as journal:
        shared(journal, folder, first, profile, (Reference, Score, Train))
        state = replay(strategy, journal)
        for done in (
            () if _finished(state) else search_abreast(strategy, in_process(performer), journal)
        ):
            print(f"{folder}: {done.task}", flush=True)
            state = done.state
            if _finished(state):
                break
    return tuple(edit for outcome in state.decisions.values() for edit in actions(outcome))


def _finished(state: State) -> bool:
    return any(outcome["finished"] for outcome in state.decisions.values())


def selected(
    recipe: Recipe,
    folder: Path,
    first: Path,
    found: Edits,
    profile: Outcome,
    *,
    measures: bool,
) -> tuple[State, list[str]]:
    """The state after every choice was recovered and judged, and the choices' names in order."""
    performer = Performer(recipe, folder)
    evolution = _evolution(performer, recipe.search)

    def choices(evolution: Evolution, state: State) -> Mapping[str, Edits]:
        removable = [r.block for r in evolution.space.removals(evolution.space.seed)]
        orders = {
            f"random {draw + 1}": _shuffled(removable, (recipe.seed, draw)) for draw in range(DRAWS)
        }
        orders["BK-SDM's rule"] = hand_rule(removable)
        orders["most latency first"] = slowest(evolution, state)
        kept = {name: until_kept(evolution, state, order) for name, order in orders.items()}
        return {OURS: found, **kept}

    strategy = Selections(evolution, choices, measures)
    with Journal(folder / "journal.jsonl", _header(recipe)) as journal:
        shared(journal, folder, first, profile, (Train,))
        state = replay(strategy, journal)
        for done in search_abreast(strategy, in_process(performer), journal):
            print(f"{folder}: {done.task}", flush=True)
            state = done.state
    return state, list(choices(evolution, state))


def _shuffled(blocks: list[str], seed: tuple[int, ...]) -> list[str]:
    return list(map(str, np.random.default_rng(seed).permutation(blocks)))


def until_kept(evolution: Evolution, state: State, order: Sequence[str]) -> Edits:
    """The first blocks of `order` whose removal keeps to the budget."""
    spec, removed = evolution.space.seed, []
    for block in order:
        if evolution.upper_ms(state, spec) <= evolution.limit_ms(state):
            break
        removed.append(Remove(block))
        spec = removed[-1].apply(spec)
    return tuple(removed)


def hand_rule(removable: list[str]) -> list[str]:
    """BK-SDM's order (Kim et al., ECCV 2024): Base, then Small, then Tiny.

    Base drops the second of every pair in the down path and the second of every three in the up
    path, Small the middle as well, Tiny the innermost stage. That the innermost of each go first
    is ours: the rule knows no budget, and a budget may be met before all of Base is gone.
    """
    second = [b for b in removable if b.endswith(".1") and not b.startswith("mid")]
    base = sorted(second, key=_depth, reverse=True)
    small = [block for block in removable if block.startswith("mid")]
    rest = [block for block in removable if block not in base and block not in small]
    return [*base, *small, *sorted(rest, key=_depth, reverse=True)]


def _depth(block: str) -> int:
    """How far from the full resolution a block's stage is, in the default's three levels."""
    path, level, *_ = block.split(".")
    return int(level) if path == "down_blocks" else 2 - int(level)


def slowest(evolution: Evolution, state: State) -> list[str]:
    """Removable blocks by the latency that removing them saves, most first."""
    seed = evolution.space.seed
    return sorted(
        (r.block for r in evolution.space.removals(seed)),
        key=lambda block: evolution.predict(state, Remove(block).apply(seed)).ms,
    )


class Row(NamedTuple):
    budget: str
    seed: int
    choice: str
    blocks: int
    cosines: np.ndarray  # [prompts]
    lead: np.ndarray  # Algorithm 1's over this choice, [prompts].
    loss: float
    share: float  # Of the seed's latency, measured beside it.


def table_rows(state: State, names: list[str], seed: int, budget: str) -> list[Row]:
    """A row for the seed and one for each choice."""
    assert state.seed_ms is not None
    ours, rows = np.array(state.scores[2, None]), []
    for number, name in ((0, "seed"), *enumerate(names, 2)):
        cosines, spec = np.array(state.scores[number, None]), state.networks[number].spec
        share = state.measured[number].ms / state.seed_ms.ms if number else 1.0
        loss, blocks = state.losses[number], len(spec.blocks)
        rows.append(Row(budget, seed, name, blocks, cosines, ours - cosines, loss, share))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as Markdown. The lead is Algorithm 1's over the choice, with its 95 % interval."""
    head = "| budget | seed | choice | blocks | CLIP score | lead of Algorithm 1 | loss | latency |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        lead = "" if r.choice == OURS else _interval(r.lead)
        lines.append(
            f"| {r.budget} | {r.seed} | {r.choice} | {r.blocks} | {r.cosines.mean():.4f} "
            f"| {lead} | {r.loss:.4f} | {r.share:.1%} |"
        )
    return "\n".join(lines) + "\n"


def means(rows: list[Row]) -> str:
    """Means over seeds and draws as Markdown.

    The interval is over prompts, of each prompt's mean lead; the least and the greatest lead of
    any seed and draw stand beside it, as three seeds tell little of their spread.
    """
    lines = [
        "| budget | choice | CLIP score | lead of Algorithm 1 | its range | loss | latency |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys((row.budget, _kind(row.choice)) for row in rows)
    for budget, kind in kinds:
        ours = [row for row in rows if (row.budget, _kind(row.choice)) == (budget, kind)]
        leads = np.array([row.lead for row in ours])
        each = leads.mean(1)
        lead = f"{_interval(leads.mean(0))} | {each.min():+.4f} to {each.max():+.4f}"
        lines.append(
            f"| {budget} | {kind} | {np.mean([row.cosines.mean() for row in ours]):.4f} "
            f"| {' | ' if kind == OURS else lead} "
            f"| {np.mean([row.loss for row in ours]):.4f} "
            f"| {np.mean([row.share for row in ours]):.1%} |"
        )
    return "\n".join(lines) + "\n"


def _kind(choice: str) -> str:
    """The choice without the number of its draw."""
    return "random" if choice.startswith("random") else choice


def _interval(lead: np.ndarray) -> str:
    """The mean with its 95 % interval over prompts."""
    mean, margin = lead.mean(), 1.96 * lead.std(ddof=1) / math.sqrt(len(lead))
    return f"{mean:+.4f} ({mean - margin:+.4f}, {mean + margin:+.4f})"


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
