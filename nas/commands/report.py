"""`nas report FOLDER`: a search's report, written again."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from nas.commands import explore
from nas.commands.search import evolution, exploring
from nas.diffusion.pipeline import Pipeline
from nas.journal import read
from nas.perform import GUIDED
from nas.places import Place, place
from nas.recipe import Exploration, Sampling, Search
from nas.report import explored, page, studied, timeline
from nas.report.story import Story
from search_spaces.unet_space import UNetSpace


@dataclasses.dataclass(frozen=True)
class Settings:
    """Writes the report of a search's folder again, finished or not."""

    folder: Annotated[Place, tyro.conf.Positional, tyro.conf.arg(constructor=place)]
    """Folder or URL of the search."""
    price: float | None = None
    """What a worker costs an hour; the report then says what the search cost."""

    def __post_init__(self) -> None:
        if self.price is not None:
            timeline.check_price(self.price)


def run(arguments: list[str]) -> int:
    """Writes the report of a search's folder again, finished or not."""
    asked = tyro.cli(Settings, args=arguments, prog="nas report")
    folder = asked.folder
    header, _ = read(folder / "journal.jsonl")
    if "study" in header:
        told = explore.story(folder)
        print(f"{studied.summary(told)}\n\nreport    {studied.write(told, price=asked.price)}")
        return 0
    header, _ = journal_of(folder)
    pipeline = Pipeline.load(Path(header["pipeline"]))
    try:
        limit = Search(**header["settings"]["search"])
    except (TypeError, LookupError) as error:
        path = folder / "journal.jsonl"
        raise ValueError(f"{path} has settings of another version: {error}") from None
    space = UNetSpace(pipeline.spec, pipeline.inputs(GUIDED))
    if "exploration" in header:
        found = _explored(folder, header, limit, space)
        print(f"{explored.summary(found)}\n\nreport    {explored.write(found, price=asked.price)}")
        return 0
    story = Story.read(folder, evolution(limit, space))
    print(f"{page.summary(story)}\n\nreport    {page.write(story, price=asked.price)}")
    return 0


def _explored(
    folder: Place, header: dict[str, Any], limit: Search, space: UNetSpace
) -> explored.Explored:
    settings = header["settings"]
    asked: dict[str, Any] = {
        n: tuple(x) if isinstance(x, list) else x for n, x in header["exploration"].items()
    }
    strategy = exploring(
        limit,
        Sampling(**settings["sampling"]),
        Exploration(**asked),
        header["budgets"],
        header["seed"],
        space,
    )
    return explored.Explored.read(folder, strategy)


def journal_of(folder: Place) -> tuple[dict[str, Any], Any]:
    """The header and the entries of a search's journal."""
    header, entries = read(folder / "journal.jsonl")
    missing = {"pipeline", "settings"} - header.keys()
    if missing:
        raise ValueError(f"{folder / 'journal.jsonl'} is no search's journal: no {min(missing)}")
    return header, entries
