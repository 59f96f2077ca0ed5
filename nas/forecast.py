"""What a search will take, before it is run: the real engine on a virtual clock, and task times.

Everything here is an estimate. How long tasks take comes from outside (`Times`); which blocks go,
and so how many rounds there are, from latencies by the recipe's model of a device or by a roofline,
and from blocks whose worth is drawn around their latency.
"""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from latency_models.bench import Bench, LocalBench, ModelBench
from latency_models.latency import Whole
from latency_models.roofline import Roofline
from latency_models.rows import encode_row
from nas import journal
from nas.conduct import Conductor
from nas.describe import find
from nas.dispatch import Dispatcher
from nas.evolution import Evolution, Evolve, Network, Outcome, Score, Train
from nas.executors import Pool
from nas.perform import (
    GUIDED,
    Embedded,
    calibration_specs,
    costed,
    reachable,
    silent,
    training_steps,
)
from nas.places import Place
from nas.recipe import Recipe
from nas.search import search_abreast
from nas.simulation import STEADY, Conditions, Spent, VirtualHosts
from search_spaces.actions import Remove
from search_spaces.ops import Call, Shape
from search_spaces.program import calls
from search_spaces.unet import UNetSpec, lower
from search_spaces.unet_space import UNetSpace

ANY = ModelBench(Roofline(flops_per_s=1e12, bytes_per_s=1e11, overhead_ms=0.01))
"""Stands in where a device was not measured yet: only shares of a latency matter here."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one worker; none where it is not known."""

    picture_step: float | None = None
    """For a sampling step of a picture: a shard's time over its pictures and steps."""
    train_step: float | None = None
    """For a step of training."""
    profile: float | None = None
    """For the latency table and what calibrates it."""
    measure: float | None = None
    """For measuring a result as a whole."""
    reference: float | None = None
    """For scoring real pictures."""
    start: float | None = None
    """For a worker to load and to compile, on top of what it takes to be placed."""

    def over(self, other: "Times") -> "Times":
        """These, and where they are not known, the other's."""
        known = {k: x for k, x in dataclasses.asdict(self).items() if x is not None}
        return dataclasses.replace(other, **known)

    def check(self) -> None:
        """Raises `ValueError` naming the times that are not known, and those that cannot be."""
        given = dataclasses.asdict(self)
        wrong = {name: x for name, x in given.items() if x is not None and not x >= 0}
        if wrong:
            raise ValueError(f"task times are seconds, not {wrong}")
        missing = [name for name, x in given.items() if x is None]
        if missing:
            options = " ".join(f"--times.{name.replace('_', '-')} SECONDS" for name in missing)
            raise ValueError(
                f"not known: how long {', '.join(missing)} takes; give {options}, or --journal of "
                "a search of this pipeline on the same kind of worker, or --measure to time a "
                "shard and some steps here. Nothing is guessed"
            )


class Read(NamedTuple):
    """What a journal says of task times, and of scores' spread over prompts."""

    times: Times
    spread: float | None  # Standard deviation of a score without a block against that with it.


def read(folder: Place) -> Read:
    """Task times and spread of the search in `folder`.

    A task's time is the median of its kind, without what compiling took; starting is the longest
    that a scoring or a training compiled. Raises `ValueError` on what is no search's journal.
    """
    path = folder / "journal.jsonl"
    header, entries = journal.read(path)
    try:
        steps = int(header["settings"]["sampling"]["steps"])
    except (KeyError, TypeError):
        raise ValueError(f"{path} does not say with how many sampling steps it scored") from None
    found: dict[str, list[float]] = {}
    scores: dict[tuple[int, str | None], np.ndarray] = {}
    for task, outcome in entries:
        cost = outcome.get("cost", {})
        if "failed" in outcome or "seconds" not in cost:
            continue
        compiling = cost.get("compile_seconds", 0.0)
        net = max(cost["seconds"] - compiling, 0.0)
        match task:
            case Score(number, removed):
                cosines = np.array(outcome["cosines"])
                scores[number, removed] = cosines
                found.setdefault("picture_step", []).append(net / (len(cosines) * steps))
                found.setdefault("start", []).append(compiling)
            case Train():
                found.setdefault("train_step", []).append(net / outcome["steps"])
                found.setdefault("start", []).append(compiling)
            case Evolve():
                pass
            case _:
                found.setdefault(type(task).__name__.lower(), []).append(cost["seconds"])
    known = {field.name for field in dataclasses.fields(Times)}
    seconds = {
        name: max(each) if name == "start" else statistics.median(each)
        for name, each in found.items()
        if name in known
    }
    apart = [
        float((scores[number, None] - cosines).std(ddof=1))
        for (number, removed), cosines in scores.items()
        if removed is not None and (number, None) in scores
    ]
    return Read(Times(**seconds), statistics.median(apart) if apart else None)


class StandIn:
    """Performs the parts of tasks in no time: scores and latencies, but no weights or pictures."""

    def __init__(self, recipe: Recipe, space: UNetSpace):
        self.recipe, self.space, self.watch = recipe, space, silent
        self._bench: Bench = ANY if isinstance(recipe.bench, LocalBench) else recipe.bench
        self._worth = self._drawn()

    @property
    def calls(self) -> list[Call]:
        """Every distinct call that is measured."""
        found = (calls(lower(spec), self.space.inputs).values() for spec in reachable(self.space))
        return list(dict.fromkeys(call for each in found for call in each))

    def profile(self) -> Outcome:
        specs = calibration_specs(self.space)
        found = self._latencies(*specs)
        kept = [{block.name for block in spec.blocks} for spec in specs]
        return {
            "rows": [encode_row(*row) for row in self._bench.table(self.calls).rows.items()],
            "networks": [
                {
                    "removed": [b.name for b in self.space.seed.blocks if b.name not in names],
                    "ms": ms,
                    "std": 0.0,
                }
                for names, ms in zip(kept, found, strict=True)
            ],
        }

    def reference(self) -> Outcome:
        return {"real": [1.0], "mismatched": [0.0], "real_recall": 1.0}

    def train(self, task: Train, parent: Network, edited: Network) -> Outcome:
        return {"steps": training_steps(self.recipe.training, task), "losses": [0.0]}

    def measure(self, spec: UNetSpec) -> Outcome:
        ms, seed = self._latencies(spec, self.space.seed)
        return {"ms": ms, "std": 0.0, "seed_ms": seed, "seed_std": 0.0}

    def own_weights(self, network: Network, number: int) -> dict[str, np.ndarray]:
        return {"number": np.array(number)}

    def embedded(
        self, network: Network, weights: object, removed: str | None, shard: int
    ) -> Embedded:
        names = {block.name for block in network.spec.blocks} - {removed}
        score = sum(worth for name, worth in self._worth.items() if name in names)
        images = np.full((self.recipe.sampling.batch, 1), score)
        return Embedded(images, np.ones_like(images))

    def _latencies(self, *specs: UNetSpec) -> list[float]:
        wholes = [Whole(lower(spec), self.space.inputs) for spec in specs]
        return [latency.ms for latency in self._bench.networks(wholes)]

    def _drawn(self) -> Mapping[str, float]:
        """What blocks are worth: their latency, times what is drawn between a half and three."""
        names = [removal.block for removal in self.space.removals(self.space.seed)]
        specs = [Remove(name).apply(self.space.seed) for name in names]
        whole, *others = self._latencies(self.space.seed, *specs)
        drawn = np.random.default_rng(self.recipe.seed).uniform(0.5, 1.5, len(names))
        return {
            name: float(x * (1 - ms / whole))
            for name, x, ms in zip(names, drawn, others, strict=True)
        }


class Forecast(NamedTuple):
    """An estimate of what a search takes, in seconds of the virtual clock and of hosts."""

    rounds: int
    scores: int
    pictures: int
    passes: int  # Of the U-Net at batch two, as guidance asks for, for one picture.
    steps: int  # Of training.
    programs: int  # Compiled to score and to train, on all workers together.
    calls: int  # That are measured, each once.
    seconds: float
    scoring: Spent
    training: Spent
    measuring: Spent
    same: bool  # Whether one pool trains and measures, and their spending is one.

    @property
    def held(self) -> float:
        """Seconds of hosts that are paid for."""
        pools = (self.scoring, self.training) if self.same else self[8:11]
        return sum(spent.held for spent in pools)


def check(recipe: Recipe) -> None:
    """Raises `ValueError` on a recipe of another search than Algorithm 1, as it has no forecast."""
    asked = recipe.exploration
    if asked.strategy is not None:
        raise ValueError(
            f"the recipe's strategy is {asked.strategy}, and only Algorithm 1 is forecast; "
            f"{asked.strategy} evaluates {asked.evaluations} candidates at most"
        )


def space(recipe: Recipe) -> UNetSpace:
    """The space of a recipe's pipeline; only its configurations are read."""
    spec, inputs = find(str(recipe.pipeline))
    batched = {
        name: Shape((GUIDED, *shape.shape[1:]), shape.dtype) for name, shape in inputs.items()
    }
    return UNetSpace(spec, batched)


def seconds_of(recipe: Recipe, times: Times) -> Callable[[Callable[..., Any], Any], float]:
    """How long a worker takes for a performer's method, as the conductor has it called."""
    times.check()
    sampling = recipe.sampling
    fixed = {
        "embedded": (times.picture_step or 0.0) * sampling.batch * sampling.steps,
        "profile": times.profile or 0.0,
        "measure": times.measure or 0.0,
        "reference": times.reference or 0.0,
    }

    def seconds(function: Callable[..., Any], arguments: Any) -> float:
        assert function is costed, function
        method, *given = arguments
        if method.__name__ == "train":
            return training_steps(recipe.training, given[0]) * (times.train_step or 0.0)
        return fixed[method.__name__]

    return seconds


def forecast(
    recipe: Recipe, times: Times, conditions: Conditions = STEADY, *, seed: int = 0
) -> Forecast:
    """Runs the recipe's search with workers on a virtual clock, as many as its pools have.

    Raises `ValueError` on task times that are not known, and on another search than Algorithm 1.
    """
    check(recipe)
    seconds, found = seconds_of(recipe, times), space(recipe)
    start = conditions.start + (times.start or 0.0)
    conditions = dataclasses.replace(conditions, start=start)
    ours, pools = StandIn(recipe, found), recipe.pools
    hosts = VirtualHosts(lambda: ours, seconds, conditions, seed=seed)
    search = recipe.search
    strategy = Evolution(found, *search.limit(), search.group, search.rounds, search.caution)
    done: list[Any] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        journal.Journal(Path(folder) / "journal.jsonl", {}) as written,
        Dispatcher(hosts, tries=pools.tries) as executor,
    ):
        conductor = Conductor(ours, executor)  # pyright: ignore[reportArgumentType]
        for each in search_abreast(strategy, conductor, written):
            done.append(each)
    state = done[-1].state
    scores = sum(isinstance(each.task, Score) for each in done)
    pictures = scores * recipe.sampling.prompts
    supernets = len({lower(network.supernet) for network in state.networks})

    def spent(pool: Pool) -> Spent:
        return hosts.spent_by(pool).on(pool.hosts)

    return Forecast(
        rounds=len(state.decisions),
        scores=scores,
        pictures=pictures,
        passes=pictures * recipe.sampling.steps,
        steps=sum(each.outcome["steps"] for each in done if isinstance(each.task, Train)),
        programs=supernets * (_workers(pools.scoring) + 1),
        calls=len(ours.calls),
        seconds=hosts.clock,
        scoring=spent(pools.scoring),
        training=spent(pools.training),
        measuring=spent(pools.measuring),
        same=pools.training == pools.measuring,
    )


def _workers(pool: Pool) -> int:
    return pool.workers or 1
