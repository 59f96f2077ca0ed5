"""What a search is asked to do. A recipe is a function that returns one of these."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import tyro

from latency_models.bench import Bench
from nas import plugins
from nas.executors import TRIES, Pool
from nas.strategies.exploration import Policy

DEFAULT = "experiments.emoji.recipe:default"
SCORER = "clip"

# Pixels in [-1, 1], `[rows, height, width, 3]` float32, and a prompt for each.
Pictures: TypeAlias = tuple[np.ndarray, Sequence[str]]


def _check(settings: object, allowed: str, **valid: bool) -> None:
    """Raises `ValueError` naming the first setting that is not valid."""
    wrong = next((name for name, fine in valid.items() if not fine), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is {getattr(settings, wrong)}; it must be {allowed}")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How pictures are made to be scored."""

    prompts: int = 128
    """Validation prompts. The error of a score falls with their square root."""
    batch: int = 32
    """Prompts sampled at once; must divide the number of prompts."""
    steps: int = 8
    """Steps of the sampler."""
    guidance: float = 7.5
    """Scale of classifier-free guidance; 1 is none."""
    sampler: str | None = None
    """Class of diffusers that names the sampler; by default the pipeline's own."""

    def __post_init__(self) -> None:
        _check(self, "two or more, as a score needs a spread", prompts=self.prompts > 1)
        _check(self, "one or more", batch=self.batch > 0, steps=self.steps > 0)


@dataclasses.dataclass(frozen=True)
class Training:
    """Robust training, between rounds too, and the final recovery."""

    robust_steps: int = 150
    """Steps of robust training from the seed, before anything is scored."""
    between_steps: int = 60
    """Steps of robust training between rounds."""
    recovery_steps: int = 240
    """Steps of the final recovery, distilled from the seed."""
    batch: int = 32
    """Pictures in a batch."""
    rate: float = 3e-4
    """Peak learning rate of AdamW; every training warms up and decays to a tenth."""
    skip: float = 0.1
    """Probability with which robust training skips a block, each block on its own."""
    average: float = 0.99
    """Decay of the exponential moving average of the weights, which is what is scored."""
    half: bool = False
    """Compute in bfloat16; the optimiser keeps float32. Slower on CPUs."""
    save_every: int = 50
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        counts = ("robust_steps", "between_steps", "recovery_steps", "batch", "save_every")
        _check(self, "one or more", **{name: getattr(self, name) > 0 for name in counts})
        _check(self, "positive", rate=self.rate > 0)
        _check(self, "at least 0 and below 1", skip=0 <= self.skip < 1)
        _check(self, "at least 0 and below 1", average=0 <= self.average < 1)


@dataclasses.dataclass(frozen=True)
class Search:
    """SnapFusion's Algorithm 1."""

    budget: str = "75%"
    """Latency the U-Net may take: milliseconds ("12.5ms") or a share of the seed's ("75%")."""
    group: int = 4
    """Blocks removed in a round, at most."""
    rounds: int = 6
    """Rounds of scoring, at most; the last removes all that the budget asks for."""
    caution: float = 1.0
    """Standard errors by which the budget, and a copy's worth, must be certain."""

    def __post_init__(self) -> None:
        _check(self, "one or more", group=self.group > 0, rounds=self.rounds > 0)
        _check(self, "zero or more", caution=self.caution >= 0)

    def limit(self) -> tuple[float, str]:
        """The budget's number and unit: see `limit`."""
        return limit(self.budget)


def limit(budget: str) -> tuple[float, str]:
    """A budget's number and unit, "ms" or "share". Raises `ValueError` on what is no budget."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(ms|%)\s*", budget)
    if match is None or float(match[1]) <= 0:
        raise ValueError(
            f"budget {budget!r} is neither milliseconds ('12.5ms') "
            "nor a share of the seed's latency ('75%')"
        )
    return (float(match[1]), "ms") if match[2] == "ms" else (float(match[1]) / 100, "share")


@dataclasses.dataclass(frozen=True)
class Exploration:
    """Any strategy but Algorithm 1's own run."""

    strategy: str | None = None
    """One of `nas plugins`, as `nsga2`, or an import path, `package.module:Name`; by default
    Algorithm 1, whose candidates are trained between rounds."""
    options: tuple[str, ...] = ()
    """Arguments of the strategy, each NAME=VALUE, the value in JSON or as it is."""
    evaluations: int = 60
    """Candidates that are evaluated, at most."""
    edits: tuple[str, ...] = ("Remove", "Copy", "Choose")
    """Kinds of edits: Remove, Copy, Choose (micro-choices within blocks), Move, RemovePair, Width,
    RemoveStage."""

    def __post_init__(self) -> None:
        _check(self, "one or more", evaluations=self.evaluations > 0)

    def policy(self) -> Policy:
        """The strategy asked for. Raises `ValueError` saying what there is, or what it takes."""
        if self.strategy is None:
            raise ValueError("Algorithm 1's own run is no policy")
        made, given = plugins.load("nas.strategies", self.strategy), {}
        for option in self.options:
            name, equals, text = option.partition("=")
            if not equals:
                raise ValueError(f"option {option!r} is not NAME=VALUE")
            try:
                given[name] = _frozen(json.loads(text))
            except ValueError:
                given[name] = text
        try:
            found = made(**given)
            hash(found)  # What it remembers of a search is kept by it.
        except TypeError as error:
            raise ValueError(f"strategy {self.strategy} with options {given}: {error}") from None
        if not callable(getattr(found, "propose", None)):
            raise ValueError(
                f"{self.strategy} gives a {type(found).__name__}, which has no `propose`: see "
                "nas.strategies.exploration.Policy"
            )
        return found


def _frozen(value: Any) -> Any:
    """A value of JSON, its lists as tuples, which a policy can be compared by."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Pools:
    """What workers a search asks for; the result does not depend on it.

    Workers of one pool are one kind, and equal pools are the same one. In this process there is one
    worker, and of all this only `tries` matters.
    """

    scoring: Pool = Pool(workers=None, cpus=1.0)
    """Sample and score pictures, a shard at a time."""
    training: Pool = Pool()
    """Train networks."""
    measuring: Pool = Pool()
    """Measure latency: the device must be at their host."""
    tries: int = TRIES
    """How often a call may kill its worker, overrun or raise before it is given up."""

    def __post_init__(self) -> None:
        _check(self, "one or more", tries=self.tries > 0)
        for name in ("scoring", "measuring"):
            if getattr(self, name).hosts > 1:
                raise ValueError(
                    f"{name} has workers of {getattr(self, name).hosts} hosts; only training is "
                    "split over hosts, so ask for as many workers of one host"
                )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A search: a pipeline to shrink, pictures to train it on, prompts to score it with."""

    pipeline: Path
    """Folder of a Stable Diffusion 1.x, 2.x or XL pipeline, as diffusers writes it."""
    evaluator: Path
    """Folder of the CLIP model that scores pictures, as transformers writes it."""
    pictures: Annotated[Callable[[], Pictures], tyro.conf.Suppress]
    prompts: Annotated[tuple[str, ...], tyro.conf.Suppress]
    references: Annotated[Callable[[], np.ndarray], tyro.conf.Suppress]
    bench: Annotated[Bench, tyro.conf.Suppress]
    sampling: Sampling = Sampling()
    training: Training = Training()
    search: Search = Search()
    seed: int = 0
    """Seed of everything that is drawn."""
    held_out: Annotated[Callable[[], Pictures] | None, tyro.conf.Suppress] = None
    """Pictures not trained on, for validation losses; experiments ask for these."""
    pools: Annotated[Pools, tyro.conf.Suppress] = Pools()
    precomputed: str | None = None
    """Path or URL that `nas precompute` wrote the pictures to, encoded; by default they are encoded
    when training begins. The result does not depend on it."""
    scorer: str = SCORER
    """What scores pictures: one of `nas plugins`, or the import path of a function that makes a
    `nas.scoring.Judge` of the evaluator's folder."""
    exploration: Exploration = Exploration()
    devices: Annotated[Mapping[str, Bench], tyro.conf.Suppress] = dataclasses.field(
        default_factory=dict
    )
    """Where latencies of an exploration come from, by the name of the device."""


def load(path: str) -> Recipe:
    """The recipe at an import path, `package.module:function`. Raises `ValueError` if none is."""
    try:
        found = plugins.load("nas.search_spaces", path)
    except ValueError as error:
        raise ValueError(f"no recipe {path}: {error}; try {DEFAULT}") from None
    if not callable(found):
        raise ValueError(f"no recipe {path}: a {type(found).__name__} is no function")
    recipe = found()
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"{path} returned a {type(recipe).__name__}, not a Recipe; a Study is for nas explore"
        )
    return recipe
