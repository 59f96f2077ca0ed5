"""Made-up searches: the real strategy with a performer that draws what it would have to compute."""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latency_models.bench import Bench
from latency_models.latency import Latency, Whole
from latency_models.provenance import local
from latency_models.rows import encode_row
from nas.diffusion.folders import write_json
from nas.diffusion.pictures import write_grid
from nas.evolution import (
    Evolution,
    Evolve,
    Measure,
    Outcome,
    Profile,
    Reference,
    Score,
    State,
    Task,
    Train,
    Validate,
)
from nas.journal import Journal
from nas.report.story import Story
from nas.search import search
from search_spaces.actions import Remove
from search_spaces.blocks import Transformer
from search_spaces.program import calls
from search_spaces.unet import UNetSpec, lower
from search_spaces.unet_space import UNetSpace
from tests import tiny

HEADER: Mapping[str, Any] = {
    "recipe": "experiments.made_up:recipe",
    "pipeline": "made-up-pipeline",
    "seed": 0,
    "settings": {"search": {"budget": "75%"}, "sampling": {"steps": 8, "sampler": None}},
}
PROMPTS = ("a red fox", "a tea pot", "an old clock", "two boats", "a map", "rain", "a key", "<b>")
PROVENANCE = dataclasses.replace(local(), device="Made-up CPU", threads=2)


def _random(*parts: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(parts).encode()))


@dataclasses.dataclass(frozen=True)
class Performer:
    """Scores and latencies that are drawn, each from what it belongs to.

    Results take `slower` times what the device model says; the machine is `drift` times as slow
    when they are measured as when it was profiled. `spread` is the relative error of what is
    measured; without it, latencies are the model's, errors and all.
    """

    space: UNetSpace
    slower: float = 1.0
    drift: float = 1.0
    spread: float = 0.01
    prompts: int = 24
    bench: Bench = tiny.BENCH

    def __call__(self, strategy: Evolution, state: State, task: Task) -> Outcome:
        cost = {"seconds": 1.5, "compiles": 2, "compile_seconds": 0.5}
        return {**self._outcome(strategy, state, task), "cost": cost}

    def _outcome(self, strategy: Evolution, state: State, task: Task) -> Outcome:
        match task:
            case Profile():
                return self._profile()
            case Reference():
                real, wrong = (
                    (mean + 0.05 * _random(mean).standard_normal(self.prompts)).tolist()
                    for mean in (0.72, 0.11)
                )
                return {"real": real, "mismatched": wrong, "real_recall": 0.97}
            case Train(number):
                steps = 40 * number
                falls = 0.3 + np.exp(-np.arange(20) / 5) + 0.03 * _random(task).standard_normal(20)
                return {"steps": steps, "losses": falls.tolist()}
            case Score(number, removed):
                spec = state.networks[number].spec
                return self._score(spec if removed is None else Remove(removed).apply(spec), number)
            case Evolve(number):
                return strategy.decide(state, number)
            case Measure(number):
                found = self._measured(state.networks[number].spec, self.slower * self.drift)
                seed = self._measured(self.space.seed, self.drift)
                return {"ms": found.ms, "std": found.std, "seed_ms": seed.ms, "seed_std": seed.std}
            case Validate(number):
                return {"loss": 0.25 / (1 + number)}

    def _measured(self, spec: UNetSpec, factor: float = 1.0) -> Latency:
        ms, std, _ = self.bench.networks([Whole(lower(spec), self.space.inputs)])[0]
        ms *= factor * (1 + self.spread * _random(len(spec.blocks)).standard_normal())
        return Latency(float(ms), self.spread * float(ms) or float(std))

    def _profile(self) -> Outcome:
        seed = self.space.seed
        specs = [seed, *(copy.apply(seed) for copy in self.space.copies(seed))]
        wanted = [c for spec in specs for c in calls(lower(spec), self.space.inputs).values()]
        names = [removal.block for removal in self.space.removals(seed)]
        networks = []
        for share in (0.0, 0.3, 0.6, 1.0):
            gone = names[: round(share * len(names))]
            measured = self._measured(tiny.without(seed, *gone))
            networks.append({"removed": gone, "ms": measured.ms, "std": measured.std})
        return {
            "provenance": (PROVENANCE if self.spread else self.bench.provenance).to_json(),
            "rows": [encode_row(*row) for row in self.bench.table(wanted).rows.items()],
            "networks": networks,
            "picture": 8 * self.space.inputs["sample"].shape[1],
            "text_encoder": {"ms": 0.4, "std": 0.01, "parameters": 123_000},
            "decoder": {"ms": 3.7, "std": 0.1, "parameters": 50_000},
        }

    def _score(self, spec: UNetSpec, number: int) -> Outcome:
        mean = 0.3 + 0.02 * bool(number) + sum(map(_worth, spec.blocks))
        fixed = 0.08 * _random("prompts").standard_normal(self.prompts)
        noise = 0.01 * _random(number, lower(spec)).standard_normal(self.prompts)
        return {"cosines": (mean + fixed + noise).tolist(), "recall": min(1.0, mean)}


def _worth(block: Any) -> float:
    most = 0.008 if isinstance(block.op, Transformer) else 0.02
    return most * float(_random(block.name).random()) ** 3


def run(
    folder: Path,
    *,
    space: UNetSpace | None = None,
    tasks: int | None = None,
    strategy: Mapping[str, Any] | None = None,
    header: Mapping[str, Any] = HEADER,
    prompts: tuple[str, ...] = PROMPTS,
    **performer: Any,
) -> Story:
    """The story of a made-up search in `folder`, stopped after `tasks` tasks if given."""
    space = space or tiny.unet_space(tiny.UNET)
    evolution = Evolution(space, **{"budget": 0.75, "group": 2, "rounds": 4, **(strategy or {})})
    with Journal(folder / "journal.jsonl", header) as journal:
        for _ in _first(search(evolution, Performer(space, **performer), journal), tasks):
            pass
    if not evolution.ask(Story.read(folder, evolution).state):
        draw_pictures(folder, prompts)
    return Story.read(folder, evolution)


def _first(steps: Iterator[Any], count: int | None) -> Iterator[Any]:
    if count is None:
        yield from steps
        return
    for _ in range(count):
        yield next(steps)


def draw_pictures(folder: Path, prompts: tuple[str, ...], size: int = 16) -> None:
    """Writes pictures as the search does: each of one colour, which is that of its place."""
    write_json(folder / "pictures" / "prompts.json", {"prompts": list(prompts)})
    for sign, name in ((1, "before"), (-1, "after")):
        levels = sign * (np.arange(len(prompts)) / len(prompts) - 0.5)
        pixels = np.broadcast_to(levels[:, None, None, None], (len(prompts), size, size, 3))
        write_grid(folder / "pictures" / f"{name}.png", pixels)
