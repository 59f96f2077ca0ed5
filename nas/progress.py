"""What a search shows while it runs."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.text import Text

from latency_models.provenance import Method, Provenance
from nas.evolution import (
    Evolve,
    Measure,
    Profile,
    Reference,
    Score,
    Task,
    Train,
    actions,
)
from nas.search import Done
from nas.timings import Rate
from search_spaces.actions import Remove

MOST = 8  # Workers that have a line of their own.


class Live:
    """Lines that follow the search and its workers, and above them one for all that was done."""

    def __init__(
        self, console: Console | None = None, rates: Callable[[], Sequence[Rate]] = lambda: ()
    ):
        """`rates` tells what workers make of their time."""
        self._rates, self._heading = rates, ""
        self._console = console or Console(highlight=False)
        # A long task says nothing meanwhile, so what is shown is made anew at every refresh.
        self._shown = RichLive(
            console=self._console,
            refresh_per_second=4,
            transient=True,
            get_renderable=self._now,
        )
        self._begun = time.monotonic()
        self._doing, self._share = "", 0.0
        self._strategy: Any = None
        self._state: Any = None
        self._how = "measured"
        self._seconds: dict[str, list[float]] = {}
        self._ended = self._begun

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._shown.stop()

    def begin(self, strategy: Any, state: Any, known: Provenance | None, *, resumed: int) -> None:
        """Is told how far the search is, and how latencies are known if it measures any."""
        self._strategy, self._state, self._ended = strategy, state, time.monotonic()
        if known is not None and known.method != Method.MEASURED:
            self._how = "predicted"
            self._print(f"no latency is measured here: {known}")
        if resumed:
            self._print(f"going on after {resumed} finished tasks")
        self._refresh()

    def watch(self, doing: str, share: float) -> None:
        """Is told what is being done, and the share of it that is done."""
        self._doing, self._share = doing, share
        self._refresh()

    def advance(self, done: Done) -> None:
        """Takes note of a finished task."""
        self._state = done.state
        # From one end to the next, as several tasks may be under way.
        now, kind = time.monotonic(), type(done.task).__name__
        self._seconds.setdefault(kind, []).append(now - self._ended)
        self._ended = now
        for line in self._lines(done):
            self._print(line)
        self._share = 0.0
        self._refresh()

    def _print(self, line: str) -> None:
        gone = time.monotonic() - self._begun
        self._console.print(Text(f"{clock(gone)}  {line}"), soft_wrap=True)

    def _refresh(self) -> None:
        if self._state is None or self._strategy is None or not self._console.is_terminal:
            return
        if tasks := self._strategy.ask(self._state):
            left = self._left(tasks)
            ahead = "" if left is None else f", about {clock(left)} left"
            self._heading = f"{ahead}  {self._name(tasks)}{self._part()}"
            self._shown.refresh()

    def _part(self) -> str:
        """How far the task is, where it says so: what other processes do does not."""
        return f": {self._doing} {self._share:.0%}" if self._doing else ""

    def _now(self) -> Group:
        """What is shown. It is called by a thread of its own, too, beside the one that searches."""
        if not self._heading:
            return Group()
        gone = clock(time.monotonic() - self._begun)
        return Group(Text(gone + self._heading, style="cyan"), *map(Text, crew(self._rates())))

    def _name(self, tasks: tuple[Task, ...]) -> str:
        match tasks[0]:
            case Score(number, None):
                return f"scoring network {number}"
            case Score(number, removed):
                return f"round {self._round}, {len(tasks)} candidates to go, without {removed}"
            case Train(number, _, _, objective):
                return f"{objective} training of network {number}"
            case Profile():
                return "latency table"
            case Reference():
                return "ceiling and floor of the score"
            case task:
                return type(task).__name__.lower()

    @property
    def _round(self) -> int:
        assert self._state is not None
        return 1 + len(self._state.decisions)

    def _left(self, tasks: tuple[Task, ...]) -> float | None:
        """Seconds that are left, or `None` before anything was timed.

        Rounds to come are those that removing whole groups of average blocks would take.
        """
        assert self._strategy is not None and self._state is not None
        if self._state.latency is None or "Score" not in self._seconds:
            return None
        per_score = statistics.median(self._seconds["Score"])
        per_training = statistics.mean(self._seconds.get("Train", [30 * per_score]))
        here = per_score * sum(isinstance(task, Score) for task in tasks)
        spec, last = self._state.networks[self._state.current].spec, False
        if isinstance(tasks[0], Train):
            spec, last = self._strategy.edited(self._state, tasks[0]).spec, _recovers(tasks[0])
        blocks = len(tuple(self._strategy.space.removals(spec)))
        over = self._strategy.upper_ms(self._state, spec) - self._strategy.limit_ms(self._state)
        each = self._strategy.upper_ms(self._state, spec) / max(1, blocks)
        rounds = math.ceil(max(0.0, over / each) / self._strategy.group)
        rounds = 0 if last else min(rounds, self._strategy.rounds - len(self._state.decisions))
        return here + rounds * (per_training + blocks * per_score) + per_training

    def _lines(self, done: Done) -> list[str]:
        strategy, state = self._strategy, done.state
        assert strategy is not None
        match done.task:
            case Profile() if state.seed_ms and state.latency:
                limit = strategy.limit_ms(state)
                off = f"{state.latency.residual:.1%}"
                if self._how == "predicted":
                    off += ", the error of the device's model included"
                return [
                    f"the seed's U-Net takes {state.seed_ms}; the budget is {limit:.3f} ms; "
                    f"sums of the table are off by {off}"
                ]
            case Reference():
                real, wrong = (statistics.mean(done.outcome[k]) for k in ("real", "mismatched"))
                return [
                    f"CLIP score of real pictures {real:.4f}, of the wrong prompts {wrong:.4f}; "
                    f"real pictures find their prompt among five {done.outcome['real_recall']:.0%}"
                ]
            case Score(_, removed) if "failed" in done.outcome:
                return [f"    without {removed:<28} failed, so it stays: {done.outcome['failed']}"]
            case Score(number, removed):
                mean = statistics.mean(done.outcome["cosines"])
                if removed is None:
                    return [f"network {number}: score {mean:.4f}, R@5 {done.outcome['recall']:.0%}"]
                whole = state.scores.get((number, None))  # It may yet be under way.
                lost = "" if whole is None else f" ({mean - statistics.mean(whole):+.4f})"
                spec = state.networks[number].spec
                saved = strategy.predict(state, spec).ms
                saved -= strategy.predict(state, Remove(removed).apply(spec)).ms
                return [f"    without {removed:<28} score {mean:.4f}{lost}, {saved:.3f} ms less"]
            case Evolve():
                chosen = [f"{type(a).__name__.lower()} {a.block}" for a in actions(done.outcome)]
                left = self._left(strategy.ask(state))
                ahead = "" if left is None else f"; about {clock(left)} left"
                rates = self._rates()
                return [
                    *([f"{together(rates)} since they came"] if rates else []),
                    f"round {len(state.decisions)}: {', '.join(chosen) or 'nothing to do'}; "
                    f"predicted {done.outcome['predicted_ms']:.3f} ms{ahead}",
                ]
            case Train(number, _, _, objective):
                losses = done.outcome["losses"]
                skips = ", with blocks skipped at random" if objective == "robust" else ""
                return [
                    f"{objective} training of network {number}: {done.outcome['steps']} steps"
                    f"{skips}, loss {losses[0]:.4f} to {losses[-1]:.4f}"
                ]
            case Measure(number):
                share = done.outcome["ms"] / done.outcome["seed_ms"]
                kept = "keeps to" if strategy.kept(state, number) else "is over"
                return [
                    f"network {number} takes {state.measured[number]} {self._how} as a whole, "
                    f"{share:.0%} of the seed beside it; it {kept} the budget"
                ]
            case _:
                return []


def _recovers(task: Train) -> bool:
    return task.objective == "recovery"


def together(rates: Sequence[Rate]) -> str:
    """What workers make of their time, all of them, in a few words."""
    count = len(rates)
    idle = 1 - sum(rate.busy for rate in rates) / (sum(rate.held for rate in rates) or 1.0)
    whole = sum(rate.per_minute for rate in rates)
    workers = f"{count} worker{'s' if count > 1 else ''}"
    return f"{workers}: {whole:.1f} calls a minute, idle {max(0.0, idle):.0%}"


def crew(rates: Sequence[Rate], most: int = MOST) -> list[str]:
    """A line for all workers and one for each, as far as `most`; then those that idle most come
    first, as they are the ones to look at, and the others have one line together."""
    if not rates:
        return []
    listed = list(rates)
    if len(rates) > most:
        listed = sorted(rates, key=lambda rate: -rate.idle)[:most]
    lines = [together(rates), *(f"  {_one(rate)}" for rate in listed)]
    rest = [rate for rate in rates if rate not in listed]
    if rest:
        slow, fast = (f(rate.per_minute for rate in rest) for f in (min, max))
        most_idle = max(rate.idle for rate in rest)
        lines.append(
            f"  {len(rest)} others: {slow:.1f} to {fast:.1f} a minute each, idle {most_idle:.0%} "
            "or less"
        )
    return lines


def _one(rate: Rate) -> str:
    doing = "idle now" if rate.doing is None else str(rate.doing)
    return f"{rate.worker:<10} {rate.per_minute:6.1f} a minute, idle {rate.idle:4.0%}  {doing}"


def clock(seconds: float) -> str:
    """`seconds` as minutes and seconds."""
    return f"{int(seconds) // 60:d}:{int(seconds) % 60:02d}"
