"""What the commands of the command line do."""

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from latency_models.bench import CACHE, LocalBench
from latency_models.latency import UnknownCall
from nas import describe
from nas import recipe as recipes
from nas.diffusion.pipeline import Pipeline
from nas.evolution import Evolution, Profile
from nas.journal import Journal, read
from nas.perform import GUIDED, Performer
from nas.progress import Live
from nas.recipe import Recipe, Sampling, Search, Training
from nas.report import page
from nas.report.story import Story
from nas.search import replay, search
from search_spaces.program import calls
from search_spaces.unet import UNetSpace, lower

DEFAULT = "experiments.emoji.recipe:default"
USAGE = f"""nas: shrinks a text-to-image U-Net to a latency budget

  nas search [RECIPE] [--out FOLDER] [--budget 75%] ...   runs a search, or goes on with it
  nas report FOLDER                                       writes a search's report again
  nas describe PRESET_OR_FOLDER [--against OTHER]         prints an architecture and what it costs

RECIPE is an import path, by default {DEFAULT}.
`nas search --help` explains every setting.
"""


class Interrupted(BaseException):
    """SIGINT or SIGTERM came. No `except Exception` on the way out may take it for a failure."""


def run(arguments: list[str]) -> int:
    """Runs one command; returns the exit status."""
    commands = {"search": search_command, "report": report_command, "describe": describe_command}
    if not arguments or arguments[0] not in commands:
        asked = bool(arguments) and arguments[0] not in ("-h", "--help")
        print(USAGE, file=sys.stderr if asked else sys.stdout)
        return 1 if asked else 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return commands[arguments[0]](arguments[1:])
    except (ValueError, OSError, UnknownCall) as error:
        print(f"nas: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        print("\nnas: interrupted; nothing is lost: the same command goes on", file=sys.stderr)
        return 130


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted


@dataclasses.dataclass(frozen=True)
class Settings:
    """Shrinks the U-Net of a pipeline to a latency budget; what it asks for comes from a recipe,
    and every setting can be changed here. Killed at any moment, the same command goes on."""

    out: Path
    """Folder for the searched pipeline, the journal and the report."""
    pipeline: Path
    """Folder of the pipeline to shrink."""
    evaluator: Path
    """Folder of the CLIP model that scores."""
    search: Annotated[Search, tyro.conf.arg(name="")]
    sampling: Sampling
    training: Training
    seed: int
    """Seed of everything that is drawn."""

    def over(self, recipe: Recipe) -> Recipe:
        """`recipe` with these settings."""
        changed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(recipe, **{n: v for n, v in changed.items() if n != "out"})

    def header(self, recipe: str) -> dict[str, object]:
        """What the journal must agree with to be gone on with."""
        return {
            "recipe": recipe,
            "pipeline": str(self.pipeline),
            "evaluator": str(self.evaluator),
            "seed": self.seed,
            "settings": {
                name: dataclasses.asdict(getattr(self, name))
                for name in ("search", "sampling", "training")
            },
        }


def search_command(arguments: list[str]) -> int:
    named = bool(arguments) and not arguments[0].startswith("-")
    path = arguments[0] if named else DEFAULT
    recipe = recipes.load(path)
    default = Settings(
        Path("runs") / path.rpartition(":")[2],
        **{f.name: getattr(recipe, f.name) for f in dataclasses.fields(Settings)[1:]},
    )
    settings = tyro.cli(
        Settings, default=default, args=arguments[named:], prog=f"nas search {path}"
    )
    return _search(settings, path, settings.over(recipe))


def _search(settings: Settings, path: str, recipe: Recipe) -> int:
    recipe.search.limit()  # A budget that cannot be read is an error before anything is loaded.
    live = Live()
    performer = Performer(recipe, settings.out, live.watch)
    strategy = evolution(recipe.search, performer.space)
    with Journal(settings.out / "journal.jsonl", settings.header(path)) as journal, live:
        _same_device(journal, recipe)
        state = replay(strategy, journal)
        if not strategy.ask(state) and performer.delivered:
            return _already_finished(settings.out, strategy)
        live.begin(strategy, state, resumed=len(journal))
        for done in search(strategy, performer, journal):
            state = done.state
            live.advance(done)
        live.watch("pictures and report", 0.0)
        performer.deliver(state)
    story = Story.read(settings.out, strategy)
    page.write(story)
    print(f"\n{page.summary(story)}\n")
    print(f"pipeline  {settings.out / 'pipeline'}\nreport    {settings.out / 'report.html'}")
    return 0 if story.kept else 1


def _same_device(journal: Journal, recipe: Recipe) -> None:
    """Raises `ValueError` if the journal's latencies are another device's."""
    there = next((found for task, found in journal if isinstance(task, Profile)), None)
    if there is None:
        return
    there, here = there["provenance"], recipe.bench.provenance
    differing = [name for name in here | there if here.get(name) != there.get(name)]
    if differing:
        shown = "; ".join(f"{n}: {there.get(n)!r} there, {here.get(n)!r} here" for n in differing)
        raise ValueError(
            f"{journal.path} has latencies of another device or other software ({shown}), "
            "which must not be mixed with this one's; go on there, or choose another folder"
        )


def _already_finished(folder: Path, strategy: Evolution) -> int:
    story = Story.read(folder, strategy)
    if not (folder / "report.html").exists():
        page.write(story)
    print(f"{page.summary(story)}\n\n{folder} holds this finished search, which is left as it is.")
    print("To search anew, choose another folder with --out, or delete this one.")
    return 0 if story.kept else 1


def evolution(settings: Search, space: UNetSpace) -> Evolution:
    """Algorithm 1 with these settings."""
    budget, unit = settings.limit()
    return Evolution(space, budget, unit, settings.group, settings.rounds, settings.caution)


def report_command(arguments: list[str]) -> int:
    """Writes the report of a search's folder again, finished or not."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: nas report FOLDER\n\n" + str(report_command.__doc__))
        return 0 if arguments in (["-h"], ["--help"]) else 1
    folder = Path(arguments[0])
    header, _ = journal_of(folder)
    pipeline = Pipeline.load(Path(header["pipeline"]))
    try:
        limit = Search(**header["settings"]["search"])
    except (TypeError, LookupError) as error:
        path = folder / "journal.jsonl"
        raise ValueError(f"{path} has settings of another version: {error}") from None
    space = UNetSpace(pipeline.spec, pipeline.inputs(GUIDED))
    story = Story.read(folder, evolution(limit, space))
    print(f"{page.summary(story)}\n\nreport    {page.write(story)}")
    return 0


@dataclasses.dataclass(frozen=True)
class Described:
    """Prints an architecture stage by stage: blocks, parameters, multiply-accumulates, memory."""

    name: tyro.conf.Positional[str]
    """A preset, or the folder of a pipeline or of a U-Net."""
    against: str | None = None
    """Another, to be shown beside it."""
    measure: bool = False
    """Measure every block on this machine, too."""


def describe_command(arguments: list[str]) -> int:
    asked = tyro.cli(Described, args=arguments, prog="nas describe")
    found = {name: describe.find(name) for name in (asked.name, asked.against) if name}
    device = None
    if asked.measure:
        wanted = [c for spec, inputs in found.values() for c in calls(lower(spec), inputs).values()]
        device = LocalBench(CACHE).table(wanted)
    shown = (describe.describe(name, preset, device) for name, preset in found.items())
    table, console = describe.tables(shown), Console(highlight=False)
    needed = console.measure(table, options=console.options.update_width(10_000))
    # Numbers are not cut, however narrow the terminal; a pipe is as wide as it has to be.
    terminal = max(console.width, needed.minimum)
    console.width = terminal if console.is_terminal else needed.maximum
    console.print(table)
    return 0


def journal_of(folder: Path) -> tuple[dict[str, Any], Any]:
    """The header and the entries of a search's journal."""
    header, entries = read(folder / "journal.jsonl")
    missing = {"pipeline", "settings"} - header.keys()
    if missing:
        raise ValueError(f"{folder / 'journal.jsonl'} is no search's journal: no {min(missing)}")
    return header, entries
