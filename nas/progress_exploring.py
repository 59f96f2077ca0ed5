"""What a search by any strategy shows while it runs."""

import statistics
from collections.abc import Iterator
from typing import Any

from nas.evolution import Reference, Score, Train
from nas.exploring import Compare, Price
from nas.progress import Live
from nas.search import Done
from nas.strategies.exploration import Evaluate
from nas.strategies.outcomes import combined
from search_spaces.edited import Edited


class LiveExploring(Live):
    """The same as `Live`, of an `Exploring`."""

    def _name(self, tasks: tuple[Any, ...]) -> str:
        match tasks[0]:
            case Price(device):
                return f"latency table of {device}"
            case Evaluate(number):
                return f"candidate {number + 1}"
            case Compare(number, device):
                return f"network {number} as a whole on {device}"
            case _:
                return super()._name(tasks)

    def _left(self, tasks: tuple[Any, ...]) -> float | None:
        """Seconds that the evaluations left take, and the last training; none before any."""
        strategy: Any = self._strategy
        if not isinstance(tasks[0], Evaluate) or "Evaluate" not in self._seconds:
            return None
        left = strategy.evaluations * strategy.shards - len(self._seconds["Evaluate"])
        trainings = self._seconds.get("Train", [0.0])
        return max(0, left) * statistics.median(self._seconds["Evaluate"]) + max(trainings)

    def _lines(self, done: Done) -> list[str]:
        return list(self._said(done))

    def _said(self, done: Done) -> Iterator[str]:
        strategy: Any = self._strategy
        state: Any = done.state
        match done.task:
            case Price(device):
                yield (
                    f"the seed's U-Net takes {state.seed_ms[device]} on {device}; the budget is "
                    f"{strategy.limit_ms(state, device):.3f} ms"
                )
            case Evaluate(number, proposal):
                trial = state.explored.trials[number]
                if "failed" in done.outcome:
                    yield f"    candidate {number + 1} failed: {done.outcome['failed']}"
                elif trial.done and not trial.failed:
                    found = combined([trial.outcomes[s] for s in sorted(trial.outcomes)])
                    assert found is not None
                    latencies = state.search.problem.latencies(proposal.spec)
                    times = ", ".join(f"{x.ms:.3f} ms on {name}" for name, x in latencies.items())
                    yield (
                        f"    candidate {number + 1}: score {found.mean:.4f}, {times}: "
                        f"{described(proposal.spec)}"
                    )
            case Train() | Score() | Reference():
                yield from super()._lines(done)
            case Compare(number, device):
                found, limit = state.measured[number, device], strategy.limit_ms(state, device)
                kept = "keeps to" if found.ms <= limit else "is over"
                yield f"network {number} takes {found} as a whole on {device}; it {kept} the budget"


class LiveStudy(Live):
    """The same, of an `Exploration` of a space of anybody's own."""

    def _name(self, tasks: tuple[Any, ...]) -> str:
        return f"candidate {tasks[0].number + 1}"

    def _part(self) -> str:
        return ""  # An evaluation is anybody's own, and does not say.

    def _left(self, tasks: tuple[Any, ...]) -> float | None:
        if not self._seconds:
            return None
        strategy = self._strategy
        left = strategy.evaluations * strategy.problem.shards - len(self._seconds["Evaluate"])
        return max(0, left) * statistics.median(self._seconds["Evaluate"])

    def _lines(self, done: Done) -> list[str]:
        trial = done.state.trials[done.task.number]
        name = f"candidate {trial.number + 1}"
        if "failed" in done.outcome:
            return [f"{name} failed: {done.outcome['failed']}"]
        if not trial.done or trial.quality is None:
            return []
        times = self._strategy.problem.latencies(trial.spec)
        said = ", ".join(f"{time.ms:.3f} ms on {device}" for device, time in times.items())
        return [f"{name}: quality {trial.quality.mean:.4f}, {said}: {trial.spec}"]


def described(edited: Edited) -> str:
    """The edits of a candidate, in words."""
    return ", ".join(map(said, edited.edits)) or "the seed as it is"


def said(edit: Any) -> str:
    """An edit in words."""
    name = type(edit).__name__
    if name == "Choose":
        value = (
            edit.value if isinstance(edit.value, int | float | str) else type(edit.value).__name__
        )
        return f"{edit.field} of {edit.block} to {value}"
    if name == "Width":
        return f"stage {edit.stage} to a width of {edit.width}"
    about = [
        str(x)
        for f in ("block", "stage", "down", "up")
        if (x := getattr(edit, f, None)) is not None
    ]
    words = {"RemovePair": "remove layers of stage", "RemoveStage": "remove the innermost stage"}
    return " ".join([words.get(name, name.lower()), *about])
