"""SnapFusion's Algorithm 1 as a pure strategy: what to do next is a function of what was done.

The journal holds tasks and their outcomes. `Evolution.tell` folds an outcome into the state,
`Evolution.ask` says which tasks can run now; neither touches weights, clocks or files, so a search
that was killed resumes by replaying its journal.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from latency_models import calibrate
from latency_models.calibrate import Calibrated
from latency_models.latency import Latency
from latency_models.rows import decode_row
from latency_models.table import Table
from nas.journal import Outcome
from search_spaces.actions import Copy, Remove
from search_spaces.program import calls
from search_spaces.space import Action
from search_spaces.unet import UNetSpec
from search_spaces.unet_space import UNetSpace
from search_spaces.values import decode, encode


@dataclasses.dataclass(frozen=True)
class Profile:
    """Measure every call the space can make, and the seed and a few others as a whole."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """Score real pictures and mismatched prompts: the ceiling and the floor of the score."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Make network `number`: edit network `parent` and train it.

    `objective` is "robust" (blocks skipped at random) or "recovery" (distilled from the seed).
    """

    number: int
    parent: int
    actions: tuple[Action[UNetSpec], ...]
    objective: str


@dataclasses.dataclass(frozen=True)
class Score:
    """Score network `number`, without block `removed` if given, on the validation prompts."""

    number: int
    removed: str | None = None


@dataclasses.dataclass(frozen=True)
class Evolve:
    """Choose what to remove from network `number`, or what to copy."""

    number: int


@dataclasses.dataclass(frozen=True)
class Measure:
    """Measure network `number` and the seed as a whole, in turns."""

    number: int


@dataclasses.dataclass(frozen=True)
class Validate:
    """Take the denoising loss of network `number` on held-out pictures, noise and steps fixed."""

    number: int


Task: TypeAlias = Profile | Reference | Train | Score | Evolve | Measure | Validate


REPAIRS = 2  # Rounds granted beyond `rounds` to a result that is measured to be over the budget.


class Network(NamedTuple):
    """A network of the search. It runs in `supernet`: the seed with all copies, which runs the seed
    too, so that it can teach."""

    spec: UNetSpec
    supernet: UNetSpec
    objective: str


@dataclasses.dataclass(frozen=True)
class State:
    """Everything the search knows. Network 0 is the seed."""

    networks: tuple[Network, ...]
    latency: Calibrated | None = None
    seed_ms: Latency | None = None  # Measured as a whole.
    reference: bool = False
    scores: Mapping[tuple[int, str | None], tuple[float, ...]] = dataclasses.field(
        default_factory=dict
    )
    failed: Mapping[tuple[int, str | None], str] = dataclasses.field(default_factory=dict)  # Why.
    decisions: Mapping[int, Outcome] = dataclasses.field(default_factory=dict)
    measured: Mapping[int, Latency] = dataclasses.field(default_factory=dict)  # As a whole.
    losses: Mapping[int, float] = dataclasses.field(default_factory=dict)  # On held-out pictures.
    correction: float = 1.0  # Measured over predicted latency of the last result.

    @property
    def current(self) -> int:
        return len(self.networks) - 1


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A block as Algorithm 1 sees it: what removing it loses, and what it saves."""

    block: str
    delta_clip: float  # CLIP(network) - CLIP(network without the block), over the prompts.
    error: float  # Its standard error, paired over prompts.
    delta_ms: float

    @property
    def value(self) -> float:
        """ΔCLIP/Δlatency, the paper's value of a block."""
        return self.delta_clip / self.delta_ms

    @property
    def rank(self) -> float:
        """What blocks are sorted by: the value, where a ΔCLIP within its noise counts as noise.

        Without this, of blocks that are all worthless the one with the least latency is removed
        first, as its tiny divisor makes the noise of its ΔCLIP largest.
        """
        return max(self.delta_clip, self.error) / self.delta_ms


@dataclasses.dataclass(frozen=True)
class Evolution:
    """Over budget, remove the group of worst-valued blocks; under budget, copy the best-valued.

    `budget` is in milliseconds where `unit` is "ms", else a share of the seed's latency. A network
    keeps to the budget if its predicted `ms + caution * std` does. At most `group` blocks go in a
    round, and at most `rounds` rounds are scored; the last removes all that the budget asks for. A
    copy must raise the score by more than `caution` standard errors of its block's ΔCLIP.
    """

    space: UNetSpace
    budget: float
    unit: str = "share"
    group: int = 4
    rounds: int = 8
    caution: float = 1.0

    def init(self) -> State:
        seed = self.space.initial()
        return State((Network(seed, seed, "seed"),))

    def ask(self, state: State) -> tuple[Task, ...]:
        """The tasks that can run now, independent of each other; none when the search is over."""
        number = state.current
        if state.latency is None:
            return (Profile(),)
        if not state.reference:
            return (Reference(),)
        if number == 0:
            waiting = self._unscored(state, 0, removals=False)
            return waiting or (Train(1, 0, (), "robust"),)
        if state.networks[number].objective == "recovery":
            return self._ask_after_recovery(state, number)
        if number not in state.decisions:
            return self._unscored(state, number, removals=True) or (Evolve(number),)
        decision = state.decisions[number]
        objective = "recovery" if decision["finished"] else "robust"
        return (Train(number + 1, number, actions(decision), objective),)

    def _ask_after_recovery(self, state: State, number: int) -> tuple[Task, ...]:
        waiting = self._unscored(state, number, removals=False)
        if waiting or number not in state.measured:
            return waiting or (Measure(number),)
        if self.kept(state, number):
            return ()
        if number in state.decisions:
            chosen = actions(state.decisions[number])
            return (Train(number + 1, number, chosen, "recovery"),) if chosen else ()
        if len(state.decisions) >= self.rounds + REPAIRS:
            return ()
        return self._unscored(state, number, removals=True) or (Evolve(number),)

    def _unscored(self, state: State, number: int, *, removals: bool) -> tuple[Score, ...]:
        blocks = self.space.removals(state.networks[number].spec) if removals else ()
        wanted = [None, *(removal.block for removal in blocks)]
        known = state.scores.keys() | state.failed.keys()
        return tuple(Score(number, b) for b in wanted if (number, b) not in known)

    def tell(self, state: State, task: Task, outcome: Outcome) -> State:
        """The state after `task` ended with `outcome`."""
        match task:
            case Profile():
                latency, seed_ms = calibrated(self.space, outcome)
                state = dataclasses.replace(state, latency=latency, seed_ms=seed_ms)
                self.check(state)
                return state
            case Reference():
                return dataclasses.replace(state, reference=True)
            case Score(number, removed) if "failed" in outcome:
                failed = {**state.failed, (number, removed): str(outcome["failed"])}
                return dataclasses.replace(state, failed=failed)
            case Score(number, removed):
                scores = {**state.scores, (number, removed): tuple(outcome["cosines"])}
                return dataclasses.replace(state, scores=scores)
            case Evolve(number):
                decision = {name: x for name, x in outcome.items() if name != "cost"}
                return dataclasses.replace(state, decisions={**state.decisions, number: decision})
            case Train():
                return dataclasses.replace(
                    state, networks=(*state.networks, self.edited(state, task))
                )
            case Validate(number):
                return dataclasses.replace(
                    state, losses={**state.losses, number: float(outcome["loss"])}
                )
            case Measure(number):
                measured = self._at_profile(state, outcome)
                predicted = self.predict(state, state.networks[number].spec)
                return dataclasses.replace(
                    state,
                    measured={**state.measured, number: measured},
                    correction=state.correction * max(1.0, measured.ms / predicted.ms),
                )

    def without(self, blocks: Iterable[str]) -> UNetSpec:
        """The seed without these blocks."""
        return without(self.space, blocks)

    def _at_profile(self, state: State, outcome: Outcome) -> Latency:
        """A measured latency, as it would have been when the seed was profiled.

        The seed is measured beside every result. A budget that is a share of the seed's latency is
        thus held against the share, however much the machine has sped up or slowed down since.
        """
        assert state.seed_ms is not None
        drift = state.seed_ms.ms / outcome["seed_ms"] if self.unit == "share" else 1.0
        return Latency(drift * outcome["ms"], drift * outcome["std"])

    def edited(self, state: State, task: Train) -> Network:
        """The network that `task` makes, before its training."""
        parent = state.networks[task.parent]
        spec, supernet = parent.spec, parent.supernet
        for action in task.actions:
            spec = action.apply(spec)
            if isinstance(action, Copy):
                supernet = action.apply(supernet)
        return Network(spec, supernet, task.objective)

    def predict(self, state: State, spec: UNetSpec) -> Latency:
        """Predicted latency of one pass of the U-Net, as corrected by what was measured."""
        if state.latency is None:
            raise ValueError("nothing was measured yet")
        predicted = state.latency.predict(calls(self.space.lower(spec), self.space.inputs).values())
        return Latency(state.correction * predicted.ms, state.correction * predicted.std)

    def limit_ms(self, state: State) -> float:
        """The budget in milliseconds."""
        if self.unit == "ms":
            return self.budget
        if state.seed_ms is None:
            raise ValueError("the seed was not measured yet, and the budget is a share of it")
        return self.budget * state.seed_ms.ms

    def upper_ms(self, state: State, spec: UNetSpec) -> float:
        """The upper bound of the latency that is held against the budget."""
        predicted = self.predict(state, spec)
        return predicted.ms + self.caution * predicted.std

    def kept(self, state: State, number: int) -> bool:
        """Whether network `number`, measured as a whole, keeps to the budget."""
        return state.measured[number].ms <= self.limit_ms(state)

    def check(self, state: State) -> None:
        """Raises `ValueError` if no architecture of the space can meet the budget."""
        least = state.networks[0].spec
        for removal in tuple(self.space.removals(least)):
            least = removal.apply(least)
        floor, limit = self.upper_ms(state, least), self.limit_ms(state)
        if floor > limit:
            assert state.seed_ms is not None
            seed, doubt = state.seed_ms.ms, floor - self.predict(state, least).ms
            held = (
                f", or hold less of its error: {doubt:.3f} ms of it are {self.caution:g} x the "
                "standard error of what is predicted (--caution)"
            )
            raise ValueError(
                f"no architecture meets the budget of {limit:.3f} ms: with every removable block "
                f"gone the U-Net still takes {floor:.3f} ms ({floor / seed:.0%} of the seed's "
                f"{seed:.3f} ms); ask for at least that{held if doubt > 0.01 * floor else ''}"
            )

    def decide(self, state: State, number: int) -> Outcome:
        """Sorts the blocks of network `number` by value and chooses the actions of this round.

        Blocks without which it could not be scored stay. Raises `ValueError` if that is all.
        """
        spec = state.networks[number].spec
        candidates = self.candidates(state, number)
        failed = {b: why for (n, b), why in state.failed.items() if n == number}
        if failed and not candidates:
            raise ValueError(
                f"network {number} could not be scored without any of its blocks; "
                f"without {min(failed, key=str)}: {failed[min(failed, key=str)]}"
            )
        if self.upper_ms(state, spec) > self.limit_ms(state):
            chosen = self._removals(state, spec, candidates)
        else:
            chosen = self._copy(state, number, candidates)
        for action in chosen:
            spec = action.apply(spec)
        over = self.upper_ms(state, spec) > self.limit_ms(state)
        last = 1 + len(state.decisions) >= self.rounds
        predicted = self.predict(state, spec)
        return {
            "candidates": [dataclasses.asdict(c) for c in candidates],
            **({"failed": sorted(map(str, failed))} if failed else {}),
            "actions": [encode(action) for action in chosen],
            "predicted_ms": predicted.ms,
            "predicted_std": predicted.std,
            # Over: remove more. Just met: worth another round only if a copy would still fit.
            "finished": last or (not over and not (chosen and self._room(state, spec))),
        }

    def candidates(self, state: State, number: int) -> tuple[Candidate, ...]:
        """Every removable block of network `number` that was scored without, worst first."""
        spec = state.networks[number].spec
        whole = np.array(state.scores[number, None])
        full_ms = self.predict(state, spec).ms
        found = []
        for removal in self.space.removals(spec):
            if (number, removal.block) in state.failed:
                continue
            lost = whole - np.array(state.scores[number, removal.block])
            found.append(
                Candidate(
                    removal.block,
                    float(lost.mean()),
                    float(lost.std(ddof=1) / math.sqrt(len(lost))),
                    full_ms - self.predict(state, removal.apply(spec)).ms,
                )
            )
        return tuple(sorted(found, key=lambda c: (c.rank, c.block)))

    def _removals(
        self, state: State, spec: UNetSpec, candidates: tuple[Candidate, ...]
    ) -> tuple[Remove, ...]:
        last = 1 + len(state.decisions) >= self.rounds
        chosen: list[Remove] = []
        for candidate in candidates if last else candidates[: self.group]:
            if self._fits(state, spec):
                break
            chosen.append(Remove(candidate.block))
            spec = chosen[-1].apply(spec)
        return tuple(chosen)

    def _copy(
        self, state: State, number: int, candidates: tuple[Candidate, ...]
    ) -> tuple[Copy, ...]:
        spec, supernet, _ = state.networks[number]
        taken = [block.name for block in supernet.blocks]
        legal = {copy.block: copy for copy in self.space.copies(spec, taken=taken)}
        for candidate in reversed(candidates):
            copy = legal.get(candidate.block)
            worth = candidate.delta_clip > self.caution * candidate.error
            if copy is not None and worth and self._fits(state, copy.apply(spec)):
                return (copy,)
        return ()

    def _fits(self, state: State, spec: UNetSpec) -> bool:
        return self.upper_ms(state, spec) <= self.limit_ms(state)

    def _room(self, state: State, spec: UNetSpec) -> bool:
        """Whether a copy of any block would keep to the budget."""
        return any(self._fits(state, copy.apply(spec)) for copy in self.space.copies(spec))


def actions(decision: Outcome) -> tuple[Remove | Copy, ...]:
    """The actions that a decision chose."""
    return tuple(decode(action) for action in decision["actions"])


def calibrated(space: UNetSpace, profile: Outcome) -> tuple[Calibrated, Latency]:
    """The latency model that a profile gives, and the seed's latency measured as a whole."""
    table = Table(dict(decode_row(row) for row in profile["rows"]))
    networks = []
    for network in profile["networks"]:
        spec = without(space, network["removed"])
        latency = Latency(network["ms"], network["std"])
        networks.append((tuple(calls(space.lower(spec), space.inputs).values()), latency))
    return calibrate.fit(table, networks), networks[0][1]


def without(space: UNetSpace, blocks: Iterable[str]) -> UNetSpec:
    """The seed without these blocks."""
    spec = space.initial()
    for block in blocks:
        spec = Remove(block).apply(spec)
    return spec
