"""`nas report FOLDER`: a search's report, written again."""

from pathlib import Path
from typing import Any

from nas.commands.search import evolution, exploring
from nas.diffusion.pipeline import Pipeline
from nas.journal import read
from nas.perform import GUIDED
from nas.places import Place, place
from nas.recipe import Exploration, Sampling, Search
from nas.report import explored, page
from nas.report.story import Story
from search_spaces.unet_space import UNetSpace


def run(arguments: list[str]) -> int:
    """Writes the report of a search's folder again, finished or not."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: nas report FOLDER\n\n" + str(run.__doc__))
        return 0 if arguments in (["-h"], ["--help"]) else 1
    folder = place(arguments[0])
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
        print(f"{explored.summary(found)}\n\nreport    {explored.write(found)}")
        return 0
    story = Story.read(folder, evolution(limit, space))
    print(f"{page.summary(story)}\n\nreport    {page.write(story)}")
    return 0


def _explored(
    folder: Place, header: dict[str, Any], limit: Search, space: UNetSpace
) -> explored.Explored:
    settings = header["settings"]
    asked = {n: tuple(x) if isinstance(x, list) else x for n, x in header["exploration"].items()}
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
