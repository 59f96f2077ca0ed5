"""Any strategy of `nas.strategies` for U-Nets, on one device or several at once.

The seed is priced and scored, and trained with blocks skipped at random, as Algorithm 1's is. What
a candidate is evaluated by is then zero-shot: the weights of that network, carried through the
candidate's edits without any training, on the validation prompts. The best one that keeps to all
limits is trained at last, distilled from the seed, and measured as a whole on every device.
"""

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

from latency_models.calibrate import Calibrated
from latency_models.latency import Latency, UnknownCall
from nas.evolution import REPAIRS, Network, Reference, Score, Train, calibrated
from nas.journal import Outcome
from nas.strategies import exploration
from nas.strategies.exploration import Evaluate, Exploration, Policy, Result
from nas.strategies.problem import Device, Problem
from search_spaces.edited import Edited, EditedSpace, carrier, first, led
from search_spaces.program import calls
from search_spaces.unet import UNetSpec
from search_spaces.unet_space import UNetSpace


@dataclasses.dataclass(frozen=True)
class Price:
    """Measure on `device` every call that single edits of the seed make, and a few networks."""

    device: str


@dataclasses.dataclass(frozen=True)
class Compare:
    """Measure network `number` and the seed as a whole on `device`, in turns."""

    number: int
    device: str


Task: TypeAlias = Price | Reference | Score | Train | Evaluate | Compare
ROBUST = 1  # The number of the network whose weights candidates get.


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a U-Net may take: milliseconds if `unit` is "ms", else a share of the seed's latency."""

    budget: float
    unit: str = "share"

    def ms(self, seed: Latency) -> float:
        return self.budget if self.unit == "ms" else self.budget * seed.ms


@dataclasses.dataclass(frozen=True)
class State:
    """Everything the search knows. Network 0 is the seed, 1 the seed after robust training, and
    those that follow are winners, of which a later one replaces one that was over a limit."""

    networks: tuple[Network, ...]
    latencies: Mapping[str, Calibrated] = dataclasses.field(default_factory=dict)
    seed_ms: Mapping[str, Latency] = dataclasses.field(default_factory=dict)
    reference: bool = False
    scores: Mapping[int, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    search: Exploration[Edited] | None = dataclasses.field(default=None, compare=False)
    explored: exploration.State | None = None
    winners: tuple[Edited, ...] = ()
    measured: Mapping[tuple[int, str], Latency] = dataclasses.field(default_factory=dict)

    @property
    def current(self) -> int:
        return len(self.networks) - 1


@dataclasses.dataclass(frozen=True)
class Exploring:
    """What `policy` finds with `evaluations` evaluations, of the `edits` that are asked for.

    An architecture keeps to a limit if `ms + caution * std` of its predicted latency does. The
    validation prompts are scored in `shards` parts.
    """

    space: UNetSpace
    policy: Policy
    limits: Mapping[str, Limit]
    evaluations: int
    shards: int = 1
    edits: tuple[str, ...] = ("Remove", "Copy", "Choose")
    caution: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.evaluations < 1 or not self.limits:
            raise ValueError("a search takes one evaluation or more, and one device or more")
        EditedSpace(self.space, self.edits)  # Its edits are checked.
        exploration.checked(self.policy, self.limits, self.shards, self.evaluations)

    def init(self) -> State:
        seed = self.space.initial()
        return State((Network(seed, seed, "seed"),))

    def ask(self, state: State) -> tuple[Task, ...]:
        """The tasks that can run now, independent of each other; none when the search is over."""
        if unpriced := [name for name in self.limits if name not in state.latencies]:
            return tuple(map(Price, unpriced))
        if not state.reference:
            return (Reference(),)
        if state.current not in state.scores:
            return (Score(state.current),)
        if state.current < ROBUST:
            return (Train(ROBUST, 0, (), "robust"),)
        search, explored = _begun(state)
        if state.current == ROBUST and (asked := search.ask(explored)):
            return asked
        if state.current > ROBUST:
            unknown = [d for d in self.limits if (state.current, d) not in state.measured]
            if unknown:
                return tuple(Compare(state.current, device) for device in unknown)
            if self.kept(state, state.current) or state.current > ROBUST + REPAIRS:
                return ()
        winner = self.winner(state)
        if winner is None:
            return ()
        return (Train(state.current + 1, ROBUST, winner.spec.edits, "recovery"),)

    def tell(self, state: State, task: Task, outcome: Outcome) -> State:
        """The state after `task` ended with `outcome`."""
        match task:
            case Price(device):
                latency, seed_ms = calibrated(self.space, outcome)
                state = dataclasses.replace(
                    state,
                    latencies={**state.latencies, device: latency},
                    seed_ms={**state.seed_ms, device: seed_ms},
                )
                return self._explored(state) if len(state.latencies) == len(self.limits) else state
            case Reference():
                return dataclasses.replace(state, reference=True)
            case Score(number):
                scores = {**state.scores, number: tuple(outcome["cosines"])}
                return dataclasses.replace(state, scores=scores)
            case Train():
                network = self.edited(state, task)
                winners = state.winners
                if task.number > ROBUST:
                    winner = self.winner(state)
                    assert winner is not None
                    winners = (*winners, winner.spec)
                return dataclasses.replace(
                    state, networks=(*state.networks, network), winners=winners
                )
            case Evaluate():
                search, explored = _begun(state)
                found = {name: x for name, x in outcome.items() if name in ("scores", "failed")}
                return dataclasses.replace(state, explored=search.tell(explored, task, found))
            case Compare(number, device):
                drift = 1.0
                if self.limits[device].unit == "share":  # See `Evolution`: the machine may drift.
                    drift = state.seed_ms[device].ms / outcome["seed_ms"]
                found = Latency(drift * outcome["ms"], drift * outcome["std"])
                return dataclasses.replace(
                    state, measured={**state.measured, (number, device): found}
                )

    def edited(self, state: State, task: Train) -> Network:
        """The network that `task` makes, before its training."""
        seed, edited = self.space.initial(), self._led(task)
        return Network(edited.spec, carrier(seed, edited), task.objective)

    def _led(self, task: Train) -> Edited:
        spec = led(self.space.initial(), task.actions)
        return Edited(spec, tuple(block.name for block in spec.blocks), task.actions)

    def network(self, edited: Edited) -> Network:
        """A candidate, in the network that runs it."""
        return Network(edited.spec, carrier(self.space.initial(), edited), "")

    def predict(self, state: State, spec: UNetSpec, device: str) -> Latency:
        """Predicted latency of one pass. Raises `UnknownCall` where a call was not priced."""
        wanted = calls(self.space.lower(spec), self.space.inputs).values()
        return state.latencies[device].predict(wanted)

    def limit_ms(self, state: State, device: str) -> float:
        return self.limits[device].ms(state.seed_ms[device])

    def kept(self, state: State, number: int) -> bool:
        """Whether network `number`, measured as a whole, keeps to every limit."""
        return all(
            state.measured[number, device].ms <= self.limit_ms(state, device)
            for device in self.limits
        )

    def found(self, state: State) -> bool:
        """Whether there is a winner, trained."""
        return state.current > ROBUST

    def winner(self, state: State) -> Result[Edited] | None:
        """The best that was evaluated, keeps to all limits as corrected by what winners before it
        took, and is none of them; none if there is none."""
        search, explored = _begun(state)

        def fits(spec: Edited) -> bool:
            return all(
                self.correction(state, device) * search.problem.upper_ms(spec, device)
                <= self.limit_ms(state, device)
                for device in self.limits
            )

        found = [
            result
            for result in search.results(explored)
            if result.spec not in state.winners and fits(result.spec)
        ]
        return max(found, key=lambda result: result.quality.mean, default=None)

    def correction(self, state: State, device: str) -> float:
        """Measured over predicted latency, of the winner of which it is most; at least one."""
        found = [
            state.measured[number, device].ms / self.predict(state, winner.spec, device).ms
            for number, winner in enumerate(state.winners, ROBUST + 1)
            if (number, device) in state.measured
        ]
        return max([1.0, *found])

    def _explored(self, state: State) -> State:
        """The state with the search that its latencies give, which is begun."""

        def priced(spec: UNetSpec) -> bool:
            try:
                return bool([self.predict(state, spec, device) for device in self.limits])
            except UnknownCall:
                return False

        def device(name: str) -> Device[Edited]:
            def latency(edited: Edited) -> Latency:
                return self.predict(state, edited.spec, name)

            return Device(latency, self.limit_ms(state, name))

        problem = Problem(
            EditedSpace(self.space, self.edits, priced),
            {name: device(name) for name in self.limits},
            shards=self.shards,
            caution=self.caution,
        )
        self._check(problem)
        search = Exploration(problem, self.policy, self.evaluations, self.seed)
        return dataclasses.replace(state, search=search, explored=search.init())

    def _check(self, problem: Problem[Edited]) -> None:
        """Raises `ValueError` if nothing of the space can keep to the limits, where that is known:
        without other edits, the fastest is the seed without all that may be removed."""
        if not set(self.edits) <= {"Remove", "Copy"}:
            return
        least = first(self.space.initial())
        if "Remove" in self.edits:
            spec = led(least.spec, tuple(self.space.removals(least.spec)))
            least = Edited(spec, tuple(block.name for block in spec.blocks))
        if over := problem.overruns(least):
            said = "; ".join(
                f"{problem.upper_ms(least, name):.3f} ms on {name}, where the limit is "
                f"{problem.devices[name].limit_ms:.3f} ms"
                for name in over
            )
            raise ValueError(
                f"no architecture of these edits meets the budget: the fastest takes {said}; ask "
                "for more, or allow more kinds of edits (--edits)"
            )


def _begun(state: State) -> tuple[Exploration[Edited], exploration.State]:
    if state.search is None or state.explored is None:
        raise LookupError("candidates were evaluated before the devices were priced")
    return state.search, state.explored
