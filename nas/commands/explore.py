"""`nas explore STUDY`: any strategy on a space of anybody's own, for several devices at once."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from nas import recipe as recipes
from nas import scalars
from nas.commands.running import PLACE, Running
from nas.executors import TRIES, Executor, Here, Pool
from nas.exploring import Limit
from nas.journal import Journal, read
from nas.places import Place
from nas.progress_exploring import LiveStudy
from nas.report import studied
from nas.report.studied import Studied
from nas.search import replay, search_abreast
from nas.strategies.exploration import Exploration
from nas.study import Evaluators, Study, load
from nas.timings import Timings

STRATEGY = "surrogate"
OF_HEADER = ("device", "strategy", "options", "evaluations", "caution", "seed")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Searches a space of your own, which a function without arguments gives as a
    `nas.study.Study`. Killed at any moment, the same command goes on."""

    out: Annotated[Place, PLACE]
    """Folder for the journal and the report: a path, or a URL that fsspec understands."""
    device: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A device of the study and its limit, in milliseconds or as a share of what the first spec
    takes: --device phone=2ms --device board=80%."""
    strategy: str = STRATEGY
    """One of `nas plugins`, or an import path, `package.module:Name`."""
    options: tuple[str, ...] = ()
    """Arguments of the strategy, each NAME=VALUE, the value in JSON or as it is."""
    evaluations: int = 60
    """Candidates that are evaluated, at most."""
    caution: float = 0.0
    """Standard errors by which a limit must be certain to be kept."""
    seed: int = 0
    """Seed of everything that is drawn."""
    tries: int = TRIES
    """How often evaluating a shard may kill its worker or raise before its candidate is given up.
    """
    running: Annotated[Running, tyro.conf.arg(name="")] = Running()

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"--tries is {self.tries}; it must be one or more")

    def exploration(self, study: Study) -> Exploration:
        """The search that is asked for. Raises `ValueError` on what there is not."""
        asked = recipes.Exploration(self.strategy, self.options, self.evaluations)
        problem = study.problem(self.limits(study), self.caution)
        return Exploration(problem, asked.policy(), self.evaluations, self.seed)

    def pool(self, study: Study) -> Pool:
        """The workers asked for; in this process there is one, which can be interrupted."""
        workers = 1 if self.running.on == "here" else self.running.workers or study.pool.workers
        return dataclasses.replace(study.pool, workers=workers)

    def limits(self, study: Study) -> dict[str, Limit]:
        """Devices and their limits. Raises `ValueError` on what is none."""
        found: dict[str, Limit] = {}
        for text in self.device:
            name, _, budget = text.rpartition("=")
            if not name or name in found:
                raise ValueError(f"--device {text}: give NAME=LIMIT, each device once")
            found[name] = Limit(*recipes.limit(budget))
        if not found:
            raise ValueError(
                f"no limit is given: --device NAME=LIMIT, of {', '.join(study.devices)}"
            )
        return found

    def header(self, path: str) -> dict[str, object]:
        """What the journal must agree with to be gone on with."""
        return {"study": path, **{name: getattr(self, name) for name in OF_HEADER}}


def asked(header: Mapping[str, Any], folder: Place) -> tuple[str, Settings]:
    """The study and the settings of a journal with this header."""
    given = {name: header[name] for name in OF_HEADER}
    lists = {name: tuple(x) for name, x in given.items() if isinstance(x, list)}
    return header["study"], Settings(folder, **{**given, **lists})


def story(folder: Place) -> Studied:
    """The search in a folder, as its journal tells it. Raises `ValueError` on another's."""
    header, _ = read(folder / "journal.jsonl")
    if "study" not in header:
        raise ValueError(f"{folder / 'journal.jsonl'} is not of nas explore")
    path, settings = asked(header, folder)
    return Studied.read(folder, settings.exploration(load(path)))


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        tyro.cli(
            Settings, default=Settings(Path("runs/STUDY")), args=["--help"], prog="nas explore"
        )
    path, *rest = arguments
    if path.startswith("-"):
        raise ValueError(
            "nas explore takes first what to search: a name that nas plugins lists, or the import "
            "path of a function that gives a nas.study.Study"
        )
    default = Settings(Path("runs") / path.rpartition(":")[2])
    return _explore(
        tyro.cli(Settings, default=default, args=rest, prog=f"nas explore {path}"), path
    )


def _explore(settings: Settings, path: str) -> int:
    study = load(path)
    strategy = settings.exploration(study)
    timings = Timings()
    live = LiveStudy(rates=timings.rates)
    with contextlib.ExitStack() as ended:
        board = ended.enter_context(settings.running.board(settings.out, scalars.candidates))
        pool = settings.pool(study)
        executor = ended.enter_context(_workers(settings, path, study, pool, timings))
        header = settings.header(path)
        journal = ended.enter_context(Journal(settings.out / "journal.jsonl", header))
        if board:
            board.begin(strategy, journal)
        state = replay(strategy, journal)
        ended.enter_context(live)
        live.begin(strategy, state, None, resumed=len(journal))
        with timings.recorded(settings.out):
            for done in search_abreast(strategy, Evaluators(executor, pool), journal):
                state = done.state
                live.advance(done)
                if board:
                    board.add(done)
    story = Studied.read(settings.out, strategy)
    report = studied.write(story, price=settings.running.price)
    print(f"\n{studied.summary(story)}\n\nreport    {report}")
    return 0 if strategy.best(state) else 1


@contextlib.contextmanager
def _workers(
    settings: Settings, path: str, study: Study, pool: Pool, timings: Timings
) -> Iterator[Executor[Study]]:
    tries = settings.tries
    if settings.running.on == "here":
        with Here(study, tries=tries, observer=timings) as executor:
            yield executor
        return
    from nas.on_ray import OnRay

    make, cpus, address = functools.partial(load, path), pool.workers, settings.running.address
    with OnRay(make, address=address, cpus=cpus, tries=tries, observer=timings) as ray:
        yield ray
