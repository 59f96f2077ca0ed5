"""The report of a search by any strategy: fronts and the winner, on every device."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from nas import journal, timings
from nas.exploring import ROBUST, Exploring, State
from nas.places import Place
from nas.progress_exploring import described
from nas.report import charts, page, tables, timeline
from nas.report.pictures import pictures
from nas.report.referee import ruling
from nas.report.story import estimate
from nas.search import states
from nas.strategies.exact import referee
from nas.strategies.exploration import Evaluate, Exploration, Result, Trial
from nas.strategies.exploration import State as Trials
from nas.timings import Session


@dataclasses.dataclass(frozen=True)
class Explored:
    """A search as its journal tells it. `strategy` is the one that it was run with."""

    folder: Place
    header: Mapping[str, Any]
    entries: Sequence[tuple[Any, Mapping[str, Any]]]
    strategy: Exploring
    state: State

    @classmethod
    def read(cls, folder: Place, strategy: Exploring) -> "Explored":
        """Raises `ValueError` if the journal is missing or damaged."""
        path = folder / "journal.jsonl"
        header, entries = journal.read(path)
        state = strategy.init()
        for state in states(strategy, path, entries):  # noqa: B007
            pass
        return cls(folder, header, entries, strategy, state)

    @property
    def finished(self) -> bool:
        return not self.strategy.ask(self.state)

    @property
    def kept(self) -> bool | None:
        """Whether there is a winner that keeps to every limit; `None` while it is not known."""
        state = self.state
        if not self.finished:
            return None
        return state.current > ROBUST and self.strategy.kept(state, state.current)

    @property
    def winner(self) -> Result | None:
        """What was trained last, as it was evaluated; none if nothing was."""
        if not self.state.winners:
            return None
        search, explored = self.search
        found = search.results(explored)
        return next(result for result in found if result.spec == self.state.winners[-1])

    @property
    def search(self) -> tuple[Exploration[Any], Trials]:
        """Raises `ValueError` before the devices are priced."""
        if self.state.search is None or self.state.explored is None:
            raise ValueError(f"{self.folder}: the devices are not priced yet; nothing was explored")
        return self.state.search, self.state.explored


def write(story: Explored, *, price: float | None = None) -> Place:
    """Writes `report.html` into the search's folder and returns its path. With the `price` of a
    worker's hour it says what the search cost."""
    search, explored = story.search
    sessions = timings.read(story.folder)
    title = f"Architecture search {story.header.get('recipe', story.folder.name)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in summary(story).splitlines()),
        page.section("Fronts", fronts(search, explored)),
        page.section("Single edits, put together", single(search, explored)),
        page.section("Pictures before and after", pictures(story.folder)),
        page.section("Every candidate", candidates(search, explored.trials)),
        page.section("Who did what when", timeline.section(sessions)),
        page.section("What the search cost", _cost(story, sessions, price)),
        page.section("Settings", tables.table(("setting", "value"), _settings(story))),
    ]
    return page.put(story.folder, page.html(title, "".join(parts)))


def summary(story: Explored) -> str:
    """The result in a few lines."""
    return "\n".join(_summary(story))


def _summary(story: Explored) -> Iterator[str]:
    strategy, state = story.strategy, story.state
    _, explored = story.search
    done = [trial for trial in explored.trials if trial.done]
    failed = sum(trial.failed for trial in done)
    yield (
        f"{story.header.get('exploration', {}).get('strategy', 'a strategy')} evaluated "
        f"{len(done)} candidates{f', of which {failed} failed' if failed else ''}: zero-shot, with "
        "weights carried from the seed after robust training, on "
        f"{len(state.scores.get(0, ()))} prompts."
    )
    winner = story.winner
    if winner is None:
        if story.finished:
            yield f"{lacking(*story.search)}: allow more evaluations, edits or milliseconds."
        return
    yield f"The winner: {described(winner.spec)}."
    for device in strategy.limits:
        known = state.measured.get((state.current, device))
        found = known or strategy.predict(state, winner.spec.spec, device)
        how = "as a whole" if known else "predicted of its calls"
        limit = strategy.limit_ms(state, device)
        kept = "within" if found.ms <= limit else "over"
        yield (
            f"{device}: {found.ms:.3f} ± {found.std:.3f} ms {how}, "
            f"{found.ms / state.seed_ms[device].ms:.0%} of the seed's; {kept} the limit of "
            f"{limit:.3f} ms."
        )
    scores = {
        "the seed": state.scores.get(0),
        "the seed after robust training": state.scores.get(ROBUST),
        "the winner before its training": winner.quality.scores,
        "the winner after it": state.scores.get(state.current),
    }
    for name, values in scores.items():
        if values is not None:
            yield f"Score of {name}: {estimate(values).mean:.4f} ± {estimate(values).error:.4f}."


def lacking(search: Exploration[Any], explored: Trials) -> str:
    """Why a search that is over found nothing."""
    fitting = [trial for trial in explored.trials if search.problem.fits(trial.spec)]
    if not fitting:
        return "None of them keeps to all limits"
    if all(trial.failed for trial in fitting):
        return "All that keep to the limits failed"
    return (
        f"None of those that keep to all limits has had all {search.problem.shards} shards of its "
        "evaluation"
    )


def fronts(search: Exploration[Any], explored: Trials) -> str:
    """For every device, what of the evaluated is best for its latency."""
    parts = [
        "<p>Of what keeps to all limits, that of which nothing evaluated is better and as fast. "
        "One evaluation serves all devices.</p>"
    ]
    best = search.best(explored)
    for name, device in search.problem.devices.items():
        found = search.front(explored, [name])
        parts.append(f"<h3>{escape(name)}</h3>")
        if not found:
            parts.append("<p>Nothing yet.</p>")
            continue
        latencies = [search.problem.latencies(result.spec)[name] for result in found]
        points = [
            charts.Point(
                latency.ms, result.quality.mean, latency.std, result.quality.error, "", hollow=True
            )
            for result, latency in zip(found, latencies, strict=True)
        ]
        limit = device.limit_ms if device.limit_ms < float("inf") else points[-1].x
        mark = charts.Mark(limit, f"limit {limit:.2f} ms")
        chart = charts.path(
            points, budget=mark, bounds=(), x_name=f"ms on {name}, predicted", y_name="quality"
        )
        rows = [
            (
                f"{latency.ms:.3f} ± {latency.std:.3f}",
                f"{result.quality.mean:.4f} ± {result.quality.error:.4f}",
                _words(result.spec),
            )
            for result, latency in zip(found, latencies, strict=True)
        ]
        chosen = [best is not None and result.spec == best.spec for result in found]
        head = ("ms", "quality", "candidate")
        parts += [chart, tables.table(head, rows, style="words", chosen=chosen)]
    return "".join(parts)


def candidates(search: Exploration[Any], trials: Sequence[Trial]) -> str:
    """A row for every candidate, in the order in which they were thought of."""
    rows = []
    for trial in trials:
        quality = trial.quality if trial.done else None
        said = f"{quality.mean:.4f} ± {quality.error:.4f}" if quality else "not done"
        times = search.problem.latencies(trial.spec)
        rows.append(
            (
                str(trial.number + 1),
                "failed" if trial.failed else said,
                *(f"{times[name].ms:.3f}" for name in search.problem.devices),
                "yes" if search.problem.fits(trial.spec) else "no",
                _words(trial.spec),
            )
        )
    head = ("number", "quality", *(f"ms on {n}" for n in search.problem.devices), "fits", "what")
    return tables.table(head, rows, style="words")


def _words(spec: Any) -> str:
    return described(spec) if hasattr(spec, "edits") else str(spec)


def single(search: Exploration[Any], explored: Trials) -> str:
    """What is exactly best of the single edits, if their scores add up, beside greedy choice."""
    try:
        verdict = referee(search.problem, explored.trials)
    except ValueError as error:
        return f"<p>{escape(str(error))}: this strategy does not score them all.</p>"
    return ruling(verdict)


def _cost(story: Explored, sessions: Sequence[Session], price: float | None) -> str:
    seconds: dict[str, list[float]] = {}
    for task, outcome in story.entries:
        cost = outcome.get("cost", {})
        seconds.setdefault(type(task).__name__, []).append(cost.get("seconds", 0.0))
    rows = [(name, str(len(each)), f"{sum(each):.1f}") for name, each in seconds.items()]
    pictures = sum(len(o.get("scores", ())) for t, o in story.entries if isinstance(t, Evaluate))
    return (
        (timeline.cost(sessions, price) if sessions else "")
        + tables.table(("tasks", "number", "seconds of workers"), rows)
        + f"<p>{pictures} pictures of candidates were scored.</p>"
    )


def _settings(story: Explored) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in journal.flat(story.header)]
