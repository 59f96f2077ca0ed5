"""What a search did, read back from its journal."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from latency_models.latency import Latency
from nas import journal
from nas.evolution import (
    Evolution,
    Evolve,
    Outcome,
    Profile,
    Reference,
    Score,
    State,
    Task,
    Train,
    actions,
)
from search_spaces.blocks import ResNet, Transformer
from search_spaces.ops import Call, model, output
from search_spaces.program import calls as program_calls
from search_spaces.unet import UNetSpec


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval."""
        return self.mean - 1.96 * self.error, self.mean + 1.96 * self.error


class BlockRow(NamedTuple):
    """A part of a U-Net: a block, or one of the layers between the blocks."""

    stage: str
    name: str
    kind: str  # "transformer", "ResNet" or "other".
    parameters: int
    ms: float


class StageRow(NamedTuple):
    """A line of SnapFusion's Table 3."""

    stage: str
    shrunk: int  # The picture's side over the stage's.
    kind: str
    width: int
    before: int
    after: int


class PathPoint(NamedTuple):
    """A network on the way: its predicted latency and its score."""

    number: int
    objective: str
    latency: Latency
    score: Estimate
    recall: float
    edits: tuple[str, ...]


def estimate(samples: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of `samples` and its standard error."""
    values = np.asarray(samples, np.float64)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


@dataclasses.dataclass(frozen=True)
class Story:
    """A search as its journal tells it. `strategy` is the one that the search was run with."""

    folder: Path
    header: Mapping[str, Any]
    entries: Sequence[tuple[Task, Outcome]]
    strategy: Evolution

    @classmethod
    def read(cls, folder: Path, strategy: Evolution) -> "Story":
        """Raises `ValueError` if the journal is missing or damaged."""
        header, entries = journal.read(folder / "journal.jsonl")
        return cls(folder, header, entries, strategy)

    @property
    def state(self) -> State:
        state = self.strategy.init()
        for task, outcome in self.entries:
            state = self.strategy.tell(state, task, outcome)
        return state

    @property
    def finished(self) -> bool:
        return not self.strategy.ask(self.state)

    @property
    def kept(self) -> bool | None:
        """Whether the result keeps to the budget; `None` while it is not measured."""
        state = self.state
        if state.current not in state.measured:
            return None
        return self.strategy.kept(state, state.current)

    def outcome(self, kind: type[Task]) -> Outcome | None:
        """The outcome of the first task of a kind, or `None`."""
        return next((outcome for task, outcome in self.entries if isinstance(task, kind)), None)

    def outcomes(self, kind: type[Any]) -> list[tuple[Any, Outcome]]:
        return [(task, outcome) for task, outcome in self.entries if isinstance(task, kind)]

    def difference(self, number: int) -> Estimate:
        """Score of network `number` less the seed's, paired over prompts."""
        scores = self.state.scores
        return estimate(np.array(scores[number, None]) - np.array(scores[0, None]))

    def path(self) -> list[PathPoint]:
        """The networks that were scored whole, in order."""
        state, points = self.state, []
        recalls = {t.number: o["recall"] for t, o in self.outcomes(Score) if t.removed is None}
        edits = {t.number: tuple(map(describe, t.actions)) for t, _ in self.outcomes(Train)}
        for number, network in enumerate(state.networks):
            if (number, None) in state.scores and state.latency is not None:
                points.append(
                    PathPoint(
                        number,
                        network.objective,
                        self.strategy.predict(state, network.spec),
                        estimate(state.scores[number, None]),
                        recalls[number],
                        edits.get(number, ()),
                    )
                )
        return points

    def blocks(self, spec: UNetSpec) -> list[BlockRow]:
        """Every step of the U-Net, with its share of the predicted latency."""
        latency = self.state.latency
        if latency is None:
            return []
        stages = {block.name: stage.name for stage in spec.stages for block in stage.blocks}
        rows = []
        for name, call in self.calls(spec).items():
            stage = stages.get(name) or (
                ".".join(name.split(".")[:2]) if "blocks" in name else "outside the stages"
            )
            ms = latency.scale * latency.model.predict([call]).ms
            rows.append(BlockRow(stage, name, kind(call), model(call).size, ms))
        return rows

    def table3(self) -> list[StageRow]:
        """The architecture before and after, in the form of SnapFusion's Table 3."""
        state = self.state
        before, after = state.networks[0].spec, state.networks[state.current].spec
        found, profile, rows = self.calls(before), self.outcome(Profile), []
        if profile is None:
            return []
        for old, new in zip(before.stages, after.stages, strict=True):
            for label, op in (("Cross Attention", Transformer), ("ResNet", ResNet)):
                ours = [b for b in old.blocks if isinstance(b.op, op)]
                if not ours:
                    continue
                shape = output(found[ours[-1].name]).shape
                left = sum(isinstance(b.op, op) for b in new.blocks)
                rows.append(
                    StageRow(
                        old.name,
                        profile["picture"] // shape[1],
                        label,
                        shape[-1],
                        len(ours),
                        left,
                    )
                )
        return rows

    def calibration(self) -> list[tuple[int, float, Latency]]:
        """For every network measured for the profile: blocks removed, predicted ms, measured."""
        profile, state = self.outcome(Profile), self.state
        if profile is None or state.latency is None:
            return []
        rows = []
        for network in profile["networks"]:
            spec = self.strategy.without(network["removed"])
            predicted = state.latency.predict(self.calls(spec).values())
            measured = Latency(network["ms"], network["std"])
            rows.append((len(network["removed"]), predicted.ms, measured))
        return rows

    def seconds(self) -> dict[str, tuple[int, float]]:
        """Number of tasks and seconds, by kind of task."""
        spent: dict[str, tuple[int, float]] = {}
        for task, outcome in self.entries:
            count, seconds = spent.get(type(task).__name__, (0, 0.0))
            spent[type(task).__name__] = count + 1, seconds + float(outcome["cost"]["seconds"])
        return spent

    def compiles(self) -> int:
        return sum(outcome["cost"]["compiles"] for _, outcome in self.entries)

    def images(self) -> int:
        """Pictures that were generated."""
        return sum(len(outcome["cosines"]) for _, outcome in self.outcomes(Score))

    def rounds(self) -> list[tuple[int, Outcome, tuple[str, ...]]]:
        """The network, the decision and what was done, of every round."""
        return [
            (task.number, outcome, tuple(map(describe, actions(outcome))))
            for task, outcome in self.outcomes(Evolve)
        ]

    def ceiling(self) -> tuple[Estimate, Estimate, float] | None:
        """The score of real pictures, of the wrong prompts, and real pictures' recall."""
        found = self.outcome(Reference)
        if found is None:
            return None
        return estimate(found["real"]), estimate(found["mismatched"]), found["real_recall"]

    def calls(self, spec: UNetSpec) -> dict[str, Call]:
        """The calls of the U-Net, by name."""
        space = self.strategy.space
        return program_calls(space.lower(spec), space.inputs)


def kind(call: Call) -> str:
    if isinstance(call.op, Transformer):
        return "transformer"
    return "ResNet" if isinstance(call.op, ResNet) else "other"


def describe(action: Any) -> str:
    return f"{type(action).__name__.lower()} {action.block}"
