"""The report of a search of a space of anybody's own."""

import dataclasses
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from nas import journal, timings
from nas.places import Place
from nas.report import page, tables, timeline
from nas.report.explored import candidates, fronts, lacking, single
from nas.search import states
from nas.strategies.exploration import Exploration, State


@dataclasses.dataclass(frozen=True)
class Studied:
    """A search as its journal tells it. `strategy` is the one that it was run with."""

    folder: Place
    header: Mapping[str, Any]
    strategy: Exploration[Any]
    state: State

    @classmethod
    def read(cls, folder: Place, strategy: Exploration[Any]) -> "Studied":
        """Raises `ValueError` if the journal is missing or damaged."""
        path = folder / "journal.jsonl"
        header, entries = journal.read(path)
        state = strategy.init()
        for state in states(strategy, path, entries):  # noqa: B007
            pass
        return cls(folder, header, strategy, state)


def write(story: Studied, *, price: float | None = None) -> Place:
    """Writes `report.html` into the search's folder and returns its path. With the `price` of a
    worker's hour it says what the search cost."""
    search, state = story.strategy, story.state
    sessions = timings.read(story.folder)
    title = f"Architecture search {story.header['study']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in summary(story).splitlines()),
        page.section("Fronts", fronts(search, state)),
        page.section("Single edits, put together", single(search, state)),
        page.section("Every candidate", candidates(search, state.trials)),
        page.section("Who did what when", timeline.section(sessions)),
        page.section("What the search cost", timeline.cost(sessions, price) if sessions else ""),
        page.section(
            "Settings",
            tables.table(
                ("setting", "value"), [(n, str(x)) for n, x in journal.flat(story.header)]
            ),
        ),
    ]
    return page.put(story.folder, page.html(title, "".join(parts)))


def summary(story: Studied) -> str:
    """The result in a few lines."""
    return "\n".join(_summary(story))


def _summary(story: Studied) -> Iterator[str]:
    search, state = story.strategy, story.state
    done = [trial for trial in state.trials if trial.done]
    failed = sum(trial.failed for trial in done)
    yield (
        f"{story.header['strategy']} evaluated {len(done)} candidates"
        f"{f', of which {failed} failed' if failed else ''}."
    )
    best = search.best(state)
    if best is None:
        if not search.ask(state):
            yield f"{lacking(search, state)}: allow more evaluations or milliseconds."
        return
    yield f"The best: {best.spec}; quality {best.quality.mean:.4f} ± {best.quality.error:.4f}."
    for name, latency in search.problem.latencies(best.spec).items():
        limit = search.problem.devices[name].limit_ms
        yield f"{name}: {latency}, within the limit of {limit:.3f} ms."
