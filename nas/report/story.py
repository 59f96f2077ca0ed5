"""What a search did, read back from its journal."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from latency_models.latency import Latency
from latency_models.provenance import Method, Provenance
from nas import journal, timings
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
    actions,
)
from nas.places import Place
from nas.search import states
from nas.timings import Session
from search_spaces.actions import Copy, Remove
from search_spaces.blocks import ResNet, Transformer
from search_spaces.ops import Call, model, output
from search_spaces.program import calls as program_calls
from search_spaces.unet import UNetSpec, stage_names, stage_of_steps

OUTSIDE = "outside the stages"


class Estimate(NamedTuple):
    """A mean over `size` samples and its standard error, which one sample does not have."""

    mean: float
    error: float
    size: int

    @property
    def margin(self) -> float:
        """Half the width of the 95% confidence interval (Student's t)."""
        return float(stdtrit(self.size - 1, 0.975)) * self.error if self.size > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval."""
        return self.mean - self.margin, self.mean + self.margin


class BlockRow(NamedTuple):
    """A part of a U-Net: a block, or one of the layers between the blocks."""

    stage: str
    name: str
    kind: str  # "cross-attention", "ResNet" or "other".
    parameters: int
    ms: float  # Its row of the table times the calibration's scale.


class StageRow(NamedTuple):
    """A line of SnapFusion's Table 3."""

    stage: str
    shrunk: float  # The picture's side over the stage's.
    kind: str
    width: int
    before: int
    after: int


class PathPoint(NamedTuple):
    """A network on the way: its latency and its score."""

    number: int
    objective: str
    latency: Latency
    measured: bool  # As a whole; else it is what the search, or a model of the device, predicted.
    score: Estimate
    recall: float
    actions: tuple[Remove | Copy, ...]  # That made it from the one before.


class Round(NamedTuple):
    """A decision: the network it was about, its outcome, and what was done."""

    network: int
    decision: Outcome
    actions: tuple[Remove | Copy, ...]


class Result(NamedTuple):
    """A network that was measured as a whole, in turns with the seed."""

    number: int
    found: Latency
    seed: Latency
    adjusted: Latency  # `found`, had the machine been as fast as when the seed was profiled.
    predicted: Latency  # Before it was measured.

    @property
    def share(self) -> Latency:
        """Its share of the latency of the seed beside it, with the share's standard error."""
        share = self.found.ms / self.seed.ms
        parts = self.found.std / self.found.ms, self.seed.std / self.seed.ms
        return Latency(share, share * math.hypot(*parts))

    @property
    def excess(self) -> float:
        """Measured over predicted latency, less one."""
        return self.adjusted.ms / self.predicted.ms - 1


class References(NamedTuple):
    """What the score of generated pictures is to be compared with."""

    real: Estimate  # Real pictures, with their own prompts: the ceiling.
    mismatched: Estimate  # Real pictures, with the wrong prompts: the noise floor.
    recall: float  # Of real pictures.

    def share(self, score: float) -> float:
        """Where `score` lies between floor (0) and ceiling (1)."""
        return (score - self.mismatched.mean) / (self.real.mean - self.mismatched.mean)


def estimate(samples: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of `samples` and its standard error."""
    values = np.asarray(samples, np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()), math.nan, len(values))
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    return Estimate(float(values.mean()), error, len(values))


@dataclasses.dataclass(frozen=True)
class Story:
    """A search as its journal tells it. `strategy` is the one that the search was run with."""

    folder: Place
    header: Mapping[str, Any]
    entries: Sequence[tuple[Task, Outcome]]
    strategy: Evolution
    state: State
    foreseen: Mapping[int, Latency]  # Of every network: predicted before it was trained.

    @classmethod
    def read(cls, folder: Place, strategy: Evolution) -> "Story":
        """Raises `ValueError` if the journal is missing or damaged."""
        path = folder / "journal.jsonl"
        header, entries = journal.read(path)
        state, foreseen = strategy.init(), {}
        for (task, _), state in zip(entries, states(strategy, path, entries), strict=True):
            if isinstance(task, Train):
                foreseen[task.number] = strategy.predict(state, state.networks[-1].spec)
        return cls(folder, header, entries, strategy, state, foreseen)

    # What was asked, and whether it came out.

    def setting(self, *names: str) -> Any:
        """A setting of the journal's header, or `None` if it has none of that name."""
        found: Any = self.header.get("settings", {})
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    @functools.cached_property
    def waiting(self) -> tuple[Task, ...]:
        """What the search would do next; nothing when it is over."""
        return self.strategy.ask(self.state)

    @property
    def finished(self) -> bool:
        return not self.waiting

    @property
    def kept(self) -> bool | None:
        """Whether the result keeps to the budget; `None` while its latency is not known."""
        if self.state.current not in self.state.measured:
            return None
        return self.strategy.kept(self.state, self.state.current)

    def results(self) -> list[Result]:
        """The networks that were measured as a whole, in order; the last may be the result."""
        return [
            Result(
                task.number,
                Latency(outcome["ms"], outcome["std"]),
                Latency(outcome["seed_ms"], outcome["seed_std"]),
                self.state.measured[task.number],
                self.foreseen[task.number],
            )
            for task, outcome in self.outcomes(Measure)
        ]

    @property
    def result(self) -> Result | None:
        """The result, once it is measured."""
        return next((r for r in self.results() if r.number == self.state.current), None)

    def reserve(self, result: Result) -> float:
        """Standard errors by which `result` is under the budget, negative if it is over."""
        if self.strategy.unit == "ms":
            found, error, limit = *result.found[:2], self.strategy.budget
        else:
            found, error, limit = *result.share[:2], self.strategy.budget
        return (limit - found) / error if error else math.copysign(math.inf, limit - found)

    # Quality.

    def scored(self) -> list[int]:
        """Numbers of the networks that were scored whole, in order."""
        scores = self.state.scores
        return [n for n in range(len(self.state.networks)) if (n, None) in scores]

    def score(self, number: int) -> Estimate:
        """CLIP score of network `number`."""
        return estimate(self.state.scores[number, None])

    def difference(self, number: int) -> Estimate:
        """Score of network `number` less the seed's, paired over prompts."""
        scores = self.state.scores
        return estimate(np.array(scores[number, None]) - np.array(scores[0, None]))

    def recall(self, number: int) -> float:
        """Share of network `number`'s pictures whose prompt is among the five nearest."""
        return next(
            outcome["recall"] for task, outcome in self.outcomes(Score) if task == Score(number)
        )

    def references(self) -> References | None:
        """The ceiling and the floor of the score."""
        found = self.outcome(Reference)
        if found is None:
            return None
        real, wrong = estimate(found["real"]), estimate(found["mismatched"])
        return References(real, wrong, found["real_recall"])

    def path(self) -> list[PathPoint]:
        """The networks that were scored whole, in order."""
        made = {task.number: task.actions for task, _ in self.outcomes(Train)}
        return [
            PathPoint(
                number,
                self.state.networks[number].objective,
                self.latency(number),
                self.measured(number),
                self.score(number),
                self.recall(number),
                made.get(number, ()),
            )
            for number in self.scored()
        ]

    def rounds(self) -> list[Round]:
        """Every decision, in order."""
        return [
            Round(task.number, outcome, actions(outcome)) for task, outcome in self.outcomes(Evolve)
        ]

    # Latency and parameters.

    def latency(self, number: int) -> Latency:
        """Latency of network `number`: as a whole if it is known, else as the search predicted."""
        if number in self.state.measured:
            return self.state.measured[number]
        if self._is_seed(number) and self.state.seed_ms is not None:
            return self.state.seed_ms
        return self.foreseen[number]

    def measured(self, number: int) -> bool:
        """Whether network `number`, or the seed if it is the same, was measured as a whole."""
        return self.timed and (number in self.state.measured or self._is_seed(number))

    def _is_seed(self, number: int) -> bool:
        networks = self.state.networks
        return networks[number].spec == networks[0].spec

    @property
    def known(self) -> Provenance | None:
        """What latencies hold for and how they are known; none before the profile."""
        profile = self.outcome(Profile)
        return None if profile is None else Provenance.from_json(profile["provenance"])

    @property
    def timed(self) -> bool:
        """Whether latencies were measured on the device, and not taken from a model of it."""
        return self.known is not None and self.known.method == Method.MEASURED

    @property
    def how(self) -> str:
        """How latencies of whole networks are known, in a word."""
        return "measured" if self.timed else "predicted"

    def blocks(self, spec: UNetSpec) -> list[BlockRow]:
        """Every step of the U-Net, with its share of the predicted latency."""
        latency = self.state.latency
        if latency is None:
            return []
        stages = dict(stage_of_steps(spec))
        return [
            BlockRow(
                stages.get(name, OUTSIDE),
                name,
                kind(call),
                model(call).size,
                latency.scale * latency.model.predict([call]).ms,
            )
            for name, call in self.calls(spec).items()
        ]

    def table3(self) -> list[StageRow]:
        """The architecture before and after, in the form of SnapFusion's Table 3."""
        before, after = self.state.networks[0].spec, self.state.networks[-1].spec
        profile = self.outcome(Profile)
        if profile is None:
            return []
        found, rows = self.calls(before), []
        for name, old, new in zip(stage_names(before), before.stages, after.stages, strict=True):
            for label, op in (("Cross Attention", Transformer), ("ResNet", ResNet)):
                ours = [block for block in old.blocks if isinstance(block.op, op)]
                if ours:
                    shape = output(found[ours[-1].name]).shape
                    left = sum(isinstance(block.op, op) for block in new.blocks)
                    shrunk = profile["picture"] / shape[1]
                    rows.append(StageRow(name, shrunk, label, shape[-1], len(ours), left))
        return rows

    def calibration(self) -> list[tuple[int, float, Latency]]:
        """For every network measured for the profile: blocks removed, predicted ms, measured."""
        profile, latency = self.outcome(Profile), self.state.latency
        if profile is None or latency is None:
            return []
        return [
            (
                len(network["removed"]),
                latency.predict(self.calls(self.strategy.without(network["removed"])).values()).ms,
                Latency(network["ms"], network["std"]),
            )
            for network in profile["networks"]
        ]

    def calls(self, spec: UNetSpec) -> dict[str, Call]:
        """The calls of the U-Net, by name."""
        space = self.strategy.space
        return program_calls(space.lower(spec), space.inputs)

    # What was done, and what it cost.

    @functools.cached_property
    def sessions(self) -> Sequence[Session]:
        """What workers did when, from one start of the search to the next."""
        return timings.read(self.folder)

    def outcome(self, kind: type[Task]) -> Outcome | None:
        """The outcome of the first task of a kind, or `None`."""
        return next((outcome for task, outcome in self.entries if isinstance(task, kind)), None)

    def outcomes(self, kind: type[Any]) -> list[tuple[Any, Outcome]]:
        """The tasks of a kind and their outcomes."""
        return [(task, outcome) for task, outcome in self.entries if isinstance(task, kind)]

    def spent(self, what: str) -> dict[str, float]:
        """Sums of one entry of the outcomes' costs, by kind of task."""
        sums: dict[str, float] = {}
        for task, outcome in self.entries:
            cost = outcome.get("cost", {})
            sums[type(task).__name__] = sums.get(type(task).__name__, 0.0) + cost.get(what, 0)
        return sums

    def images(self) -> int:
        """Pictures that were generated to be scored."""
        return sum(len(outcome.get("cosines", ())) for _, outcome in self.outcomes(Score))


def kind(call: Call) -> str:
    """What the paper calls the block: its cross-attention is the whole transformer."""
    if isinstance(call.op, Transformer):
        return "cross-attention"
    return "ResNet" if isinstance(call.op, ResNet) else "other"


def describe(actions: Sequence[Remove | Copy]) -> str:
    """What the actions do, in words; nothing if there are none."""
    done = []
    for verb, cls in (("remove", Remove), ("copy", Copy)):
        blocks = [action.block for action in actions if isinstance(action, cls)]
        done += [f"{verb} {', '.join(blocks)}"] if blocks else []
    return "; ".join(done)
