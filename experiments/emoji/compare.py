"""Compares ways of choosing which blocks go, on the embedded default, recovery being equal.

    python -m experiments.emoji.compare FOLDER [--seeds 3] [--budgets 75% 50%] [--prompts 256]

For every seed and budget: the blocks that Algorithm 1 removes (and copies), three random draws,
BK-SDM's hand rule and the blocks of most latency first. Each removes blocks until the predicted
latency keeps to the budget; each starts from the same robustly trained network and recovers for the
same number of steps with the same batches. Prints a table of CLIP score with the paired interval of
its difference from Algorithm 1's, loss on held-out pictures and measured latency, and writes it to
FOLDER/table.md. Killed at any moment, the same command goes on.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.emoji.recipe import CACHE, default
from latency_models.bench import NETWORKS, LocalBench
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
from nas.search import replay, search
from search_spaces.unet import Copy, Remove

Edits = tuple[Remove | Copy, ...]
DRAWS = 3


@dataclasses.dataclass(frozen=True)
class Selections:
    """A strategy that recovers given edits of one robustly trained network, one after another.

    `choices` maps a name to the edits, which are chosen once the latency table is known.
    """

    evolution: Evolution
    choices: Any  # Callable[[Evolution, State], Mapping[str, Edits]]

    def init(self) -> State:
        return self.evolution.init()

    def tell(self, state: State, task: Task, outcome: Outcome) -> State:
        return self.evolution.tell(state, task, outcome)

    def edited(self, state: State, task: Train) -> Network:
        return self.evolution.edited(state, task)

    def decide(self, state: State, number: int) -> Outcome:
        raise ValueError("the edits are given; nothing is decided")

    def ask(self, state: State) -> tuple[Task, ...]:
        if state.latency is None:
            return (Profile(),)
        if not state.reference:
            return (Reference(),)
        for number in range(len(state.networks)):
            if number != 1 and (waiting := self._judge(state, number)):
                return waiting
        if state.current == 0:
            return (Train(1, 0, (), "robust"),)
        chosen = list(self.choices(self.evolution, state).values())
        done = state.current - 1
        if done == len(chosen):
            return ()
        return (Train(state.current + 1, 1, chosen[done], "recovery"),)

    def _judge(self, state: State, number: int) -> tuple[Task, ...]:
        waiting: list[Task] = []
        if (number, None) not in state.scores:
            waiting.append(Score(number))
        if number not in state.losses:
            waiting.append(Validate(number))
        if number and number not in state.measured:
            waiting.append(Measure(number))
        return tuple(waiting)


def main(
    folder: Path,
    /,
    *,
    seeds: int = 3,
    budgets: tuple[str, ...] = ("75%", "50%"),
    prompts: int = 256,
) -> None:
    rows = []
    for seed in range(seeds):
        first = folder / f"seed{seed}" / f"search-{budgets[0].strip('%')}"
        for budget in budgets:
            recipe = _recipe(seed, budget)
            place = folder / f"seed{seed}"
            found = searched(recipe, place / f"search-{budget.strip('%')}", first)
            judged = dataclasses.replace(
                recipe, sampling=dataclasses.replace(recipe.sampling, prompts=prompts)
            )
            state, names = selected(judged, place / f"choices-{budget.strip('%')}", first, found)
            rows += table_rows(state, names, seed, budget)
            (folder / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
            text = table(rows)
            (folder / "table.md").write_text(text)
            print(text, flush=True)


def _recipe(seed: int, budget: str) -> Recipe:
    plain = default()
    search = dataclasses.replace(plain.search, budget=budget)
    # Every choice is measured beside the seed, so less time will do for each.
    bench = LocalBench(CACHE, network_plan=dataclasses.replace(NETWORKS, seconds=4.0))
    return dataclasses.replace(plain, seed=seed, search=search, bench=bench)


def _header(recipe: Recipe) -> dict[str, Any]:
    parts = ("search", "sampling", "training")
    settings = {name: dataclasses.asdict(getattr(recipe, name)) for name in parts}
    return {"pipeline": str(recipe.pipeline), "seed": recipe.seed, "settings": settings}


def _evolution(performer: Performer, settings: Search) -> Evolution:
    budget, unit = settings.limit()
    return Evolution(
        performer.space, budget, unit, settings.group, settings.rounds, settings.caution
    )


def shared(journal: Journal, folder: Path, first: Path, kinds: tuple[type[Task], ...]) -> None:
    """Gives a new journal what the first search of this seed already did before it decided."""
    if folder == first or tuple(journal):
        return
    shutil.copytree(first / "networks" / "1", folder / "networks" / "1", dirs_exist_ok=True)
    for task, outcome in read(first / "journal.jsonl")[1]:
        if isinstance(task, Evolve):
            break
        if isinstance(task, kinds):
            journal.append(task, outcome)


def searched(recipe: Recipe, folder: Path, first: Path) -> Edits:
    """The edits that Algorithm 1 makes, up to its recovery."""
    performer = Performer(recipe, folder)
    strategy = _evolution(performer, recipe.search)
    with Journal(folder / "journal.jsonl", _header(recipe)) as journal:
        shared(journal, folder, first, (Profile, Reference, Score, Train))
        state = replay(strategy, journal)
        for done in () if _finished(state) else search(strategy, performer, journal):
            print(f"{folder}: {done.task}", flush=True)
            state = done.state
            if _finished(state):
                break
    return tuple(edit for outcome in state.decisions.values() for edit in actions(outcome))


def _finished(state: State) -> bool:
    return any(outcome["finished"] for outcome in state.decisions.values())


def selected(recipe: Recipe, folder: Path, first: Path, found: Edits) -> tuple[State, list[str]]:
    """The state after every choice was recovered and judged, and the choices' names in order."""
    performer = Performer(recipe, folder)
    evolution = _evolution(performer, recipe.search)

    def choices(evolution: Evolution, state: State) -> Mapping[str, Edits]:
        named: dict[str, Edits] = {"Algorithm 1": found}
        removable = [r.block for r in evolution.space.removals(evolution.space.seed)]
        for draw in range(DRAWS):
            order = np.random.default_rng([recipe.seed, draw]).permutation(removable)
            named[f"random {draw + 1}"] = until_kept(evolution, state, list(map(str, order)))
        named["BK-SDM's rule"] = until_kept(evolution, state, hand_rule(removable))
        named["most latency first"] = until_kept(evolution, state, slowest(evolution, state))
        return named

    strategy = Selections(evolution, choices)
    with Journal(folder / "journal.jsonl", _header(recipe)) as journal:
        shared(journal, folder, first, (Profile, Train))
        state = replay(strategy, journal)
        for done in search(strategy, performer, journal):
            print(f"{folder}: {done.task}", flush=True)
            state = done.state
    return state, list(choices(evolution, state))


def until_kept(evolution: Evolution, state: State, order: list[str]) -> Edits:
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
    path, Small the middle as well, Tiny the innermost stage. Within each the innermost go first.
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


def table_rows(state: State, names: list[str], seed: int, budget: str) -> list[dict[str, Any]]:
    """A row for the seed and one for each choice."""
    ours = np.array(state.scores[2, None])
    rows = []
    for number, name in enumerate(["seed", "", *names]):
        if number == 1:
            continue
        cosines = np.array(state.scores[number, None])
        lead = ours - cosines
        spec = state.networks[number].spec
        rows.append(
            {
                "budget": budget,
                "seed": seed,
                "choice": name,
                "blocks": len(spec.blocks),
                "score": float(cosines.mean()),
                "lead": float(lead.mean()),
                "error": float(lead.std(ddof=1) / math.sqrt(len(lead))),
                "loss": state.losses[number],
                "share": state.measured[number].ms / state.seed_ms.ms if number else 1.0,  # pyright: ignore
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown. The lead is Algorithm 1's over the choice, with its 95 % interval."""
    head = "| budget | seed | choice | blocks | CLIP score | lead of Algorithm 1 | loss | latency |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        low, high = r["lead"] - 1.96 * r["error"], r["lead"] + 1.96 * r["error"]
        lead = "" if r["choice"] == "Algorithm 1" else f"{r['lead']:+.4f} ({low:+.4f}, {high:+.4f})"
        lines.append(
            f"| {r['budget']} | {r['seed']} | {r['choice']} | {r['blocks']} | {r['score']:.4f} "
            f"| {lead} | {r['loss']:.4f} | {r['share']:.1%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
