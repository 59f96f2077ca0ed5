"""`nas search [RECIPE]`: runs a search, or goes on with it."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import tyro

from latency_models.bench import Bench, LocalBench
from latency_models.provenance import Provenance
from latency_models.runtimes import CACHE
from nas import devices, scalars
from nas import recipe as recipes
from nas.commands.running import PLACE, Running
from nas.conduct import Conductor, in_process
from nas.devices import RuntimeName
from nas.diffusion import unet
from nas.evolution import Evolution, Profile
from nas.executors import Executor, Observer
from nas.exploring import Exploring, Limit, Price
from nas.journal import Journal
from nas.perform import Performer
from nas.places import Place
from nas.precomputed import at
from nas.progress import Live
from nas.progress_exploring import LiveExploring
from nas.recipe import Exploration, Pools, Recipe, Sampling, Search, Training
from nas.report import explored, page
from nas.report.explored import Explored
from nas.report.story import Story
from nas.scalars import Points
from nas.search import replay, search_abreast
from nas.timings import Timings
from search_spaces.unet import UNetSpec
from search_spaces.unet_space import UNetSpace

OF_RECIPE = (
    "pipeline",
    "evaluator",
    "search",
    "sampling",
    "training",
    "seed",
    "scorer",
    "exploration",
)
HERE = "here"
"""What this machine is called among devices."""


class Telling(NamedTuple):
    """How the journal of one kind of search is told: read, in a few lines, as a report, and in
    scalars."""

    read: Callable[[Place, Any], Any]
    summary: Callable[[Any], str]
    write: Callable[..., Place]
    points: Points


EVOLVED = Telling(Story.read, page.summary, page.write, scalars.evolved)
EXPLORED = Telling(Explored.read, explored.summary, explored.write, scalars.explored)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Shrinks the U-Net of a pipeline to a latency budget; what it asks for comes from a recipe,
    and every setting can be changed here. Killed at any moment, the same command goes on."""

    out: Annotated[Place, PLACE]
    """Folder for the searched pipeline, the journal and the report: a path, or a URL that fsspec
    understands, such as s3://bucket/runs/1."""
    pipeline: Path
    """Folder of the pipeline to shrink."""
    evaluator: Path
    """Folder of the CLIP model that scores."""
    search: Annotated[Search, tyro.conf.arg(name="")]
    sampling: Sampling
    training: Training
    seed: int
    """Seed of everything that is drawn."""
    scorer: str
    """What scores pictures: one of `nas plugins`, or an import path."""
    exploration: Annotated[Exploration, tyro.conf.arg(name="")]
    device: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Predict latencies, and hold the budget, on a device of `nas devices`, or on the one of the
    latency model in a folder; by default they are measured here. With --strategy there may be
    several, each with its budget: --device here=75% --device tpu-v5e=4.5ms."""
    runtime: RuntimeName | None = None
    """What networks are measured by here; by default what the recipe says."""
    precomputed: str | None = None
    """Path or URL that `nas precompute` wrote the training data to, encoded; by default what the
    recipe says, or they are encoded when training begins. The result does not depend on it."""
    running: Annotated[Running, tyro.conf.arg(name="")] = Running()

    def __post_init__(self) -> None:
        one = len(self.device) < 2 and not any("=" in text for text in self.device)
        if self.exploration.strategy is None and not one:
            raise ValueError(
                f"--device {' --device '.join(self.device)}: Algorithm 1's own run holds the "
                "--budget on one device; several, or budgets of their own, take a --strategy, "
                "of which greedy is Algorithm 1 without training between rounds"
            )

    def over(self, recipe: Recipe) -> Recipe:
        """`recipe` with these settings."""
        changed = {name: getattr(self, name) for name in OF_RECIPE}
        if self.precomputed is not None:
            changed["precomputed"] = at(self.precomputed)
        if self.running.workers is not None:
            scoring = dataclasses.replace(recipe.pools.scoring, workers=self.running.workers)
            changed["pools"] = dataclasses.replace(recipe.pools, scoring=scoring)
        benches = {name: self.bench(name, recipe.bench) for name in self.budgets()}
        first = next(iter(benches.values()))
        several = benches if self.exploration.strategy else {}
        return dataclasses.replace(recipe, **changed, bench=first, devices=several)

    def budgets(self) -> dict[str, str]:
        """Devices, and the budget of each. Raises `ValueError` on what is none."""
        found: dict[str, str] = {}
        for text in self.device:
            name, equals, budget = text.rpartition("=")
            name, budget = (name, budget) if equals else (text, self.search.budget)
            recipes.limit(budget)
            if name in found:
                raise ValueError(f"--device {name} is given twice")
            found[name] = budget
        return found or {HERE: self.search.budget}

    def bench(self, device: str, default: Bench) -> Bench:
        """Where latencies come from. Raises `ValueError` on what is not known, or not here."""
        if device != HERE:
            if self.runtime and HERE not in self.budgets():
                raise ValueError(
                    f"--device {device} --runtime {self.runtime}: a runtime measures on this "
                    "machine, and latencies of a device are predicted; give one of them"
                )
            return devices.bench(device)
        if not self.runtime:
            return default
        runtime = devices.RUNTIMES[self.runtime]()
        if isinstance(default, LocalBench):  # Its plans and its files are the recipe's.
            return dataclasses.replace(default, runtime=runtime)
        return LocalBench(CACHE, runtime=runtime)

    def header(self, path: str, recipe: Recipe) -> dict[str, object]:
        """What the journal must agree with to be gone on with. `recipe` has these settings."""
        benches = recipe.devices or dict.fromkeys(self.device, recipe.bench)
        known = [
            {"name": name, "known": str(bench.provenance), "key": bench.provenance.key}
            for name, bench in benches.items()
            if name != HERE
        ]
        of_all = {
            "recipe": path,
            "pipeline": str(self.pipeline),
            "evaluator": str(self.evaluator),
            "seed": self.seed,
            "device": known[0] if known else None,
            "runtime": self.runtime,
            "settings": {
                name: dataclasses.asdict(getattr(self, name))
                for name in ("search", "sampling", "training")
            },
        }
        # What is not asked for is not said, so that journals of before go on.
        if self.scorer != recipes.SCORER:
            of_all["scorer"] = self.scorer
        if self.exploration.strategy:
            of_all["device"] = known
            of_all["budgets"] = self.budgets()
            of_all["exploration"] = dataclasses.asdict(self.exploration)
        return of_all


def run(arguments: list[str]) -> int:
    named = bool(arguments) and not arguments[0].startswith("-")
    path = arguments[0] if named else recipes.DEFAULT
    recipe = recipes.load(path)
    default = Settings(
        Path("runs") / path.rpartition(":")[2],
        **{name: getattr(recipe, name) for name in OF_RECIPE},
    )
    settings = tyro.cli(
        Settings, default=default, args=arguments[named:], prog=f"nas search {path}"
    )
    return _search(settings, path, settings.over(recipe))


def performer(path: str, settings: Settings) -> Performer:
    """What a worker is: a performer for the recipe at an import path, with these settings."""
    return Performer(settings.over(recipes.load(path)), settings.out)


@contextlib.contextmanager
def workers(
    path: str, settings: Settings, pools: Pools, observer: Observer
) -> Iterator[Executor[Performer] | None]:
    """The workers that the settings ask for, which end with this; none in this process.

    It comes before JAX starts: Ray's processes are forked, which must not be done beside threads.
    """
    if settings.running.on == "here":
        yield None
        return
    from nas.on_ray import OnRay

    # The accelerators are the workers'; this process only reads and writes weights.
    jax.config.update("jax_platforms", "cpu")
    # Workers have another working directory.
    folders = {
        name: getattr(settings, name).absolute() for name in ("out", "pipeline", "evaluator")
    }
    if settings.precomputed is not None:
        folders["precomputed"] = at(settings.precomputed)
    make = functools.partial(performer, path, dataclasses.replace(settings, **folders))
    cpus, address = pools.scoring.workers, settings.running.address
    with OnRay(make, address=address, cpus=cpus, tries=pools.tries, observer=observer) as ray:
        yield ray


def _search(settings: Settings, path: str, recipe: Recipe) -> int:
    # What cannot be read is an error before anything is loaded.
    recipe.search.limit()
    explores = recipe.exploration.strategy is not None
    if explores:
        recipe.exploration.policy()
    telling = EXPLORED if explores else EVOLVED
    timings = Timings()
    live = (LiveExploring if explores else Live)(rates=timings.rates)
    with contextlib.ExitStack() as ended:
        board = ended.enter_context(settings.running.board(settings.out, telling.points))
        there = ended.enter_context(workers(path, settings, recipe.pools, timings))
        ours = Performer(recipe, settings.out, live.watch)
        conductor = Conductor(ours, there, timings=timings) if there else in_process(ours, timings)
        strategy: Any = (
            exploring(
                recipe.search,
                recipe.sampling,
                recipe.exploration,
                settings.budgets(),
                recipe.seed,
                ours.space,
            )
            if explores
            else evolution(recipe.search, ours.space)
        )
        header = settings.header(path, recipe)
        with Journal(settings.out / "journal.jsonl", header) as journal, live:
            if board:
                board.begin(strategy, journal)
            state = replay(strategy, journal)
            if not strategy.ask(state) and ours.delivered:
                return _already_finished(settings.out, strategy, telling)
            with timings.recorded(settings.out):
                known = {name: conductor.provenance(name) for name in recipe.devices or (None,)}
                _same_devices(journal, known)
                live.begin(strategy, state, next(iter(known.values())), resumed=len(journal))
                for done in search_abreast(strategy, conductor, journal):
                    state = done.state
                    live.advance(done)
                    if board:
                        board.add(done)
                if not explores or strategy.found(state):
                    live.watch("pictures and report", 0.0)
                    journal.check()
                    conductor.deliver(state)
    story = telling.read(settings.out, strategy)
    telling.write(story, price=settings.running.price)
    print(f"\n{telling.summary(story)}\n")
    if ours.delivered:
        print(f"pipeline  {settings.out / 'pipeline'}")
    print(f"report    {settings.out / 'report.html'}")
    if ours.delivered:
        print(form(story.state.networks[story.state.current].spec))
    return 0 if story.kept else 1


def form(spec: UNetSpec) -> str:
    """Says in which form a searched U-Net is written, and why not in diffusers'."""
    why = unet.obstacles(spec)
    if not why:
        return "\nThe U-Net is in diffusers' own form, which its UNet2DConditionModel loads."
    said = "\n  ".join(why)
    return f"\nThe U-Net is in our own form, as diffusers cannot express it:\n  {said}"


def _same_devices(journal: Journal, here: Mapping[str | None, Provenance]) -> None:
    """Raises `ValueError` if the journal's latencies of a device are another's."""
    for task, found in journal:
        if not isinstance(task, Profile | Price):
            continue
        known = here[task.device if isinstance(task, Price) else None]
        differing = known.differences(Provenance.from_json(found["provenance"]))
        if differing:
            shown = "; ".join(differing)
            raise ValueError(
                f"{journal.path} has latencies of another device, model or software ({shown}), "
                "which must not be mixed with these; go on with those, or choose another folder"
            )


def _already_finished(folder: Place, strategy: Any, telling: Telling) -> int:
    story = telling.read(folder, strategy)
    if not (folder / "report.html").exists():
        telling.write(story)
    print(
        f"{telling.summary(story)}\n\n{folder} holds this finished search, which is left as it is."
    )
    print(form(story.state.networks[story.state.current].spec))
    print("To search anew, choose another folder with --out, or delete this one.")
    return 0 if story.kept else 1


def exploring(
    search: Search,
    sampling: Sampling,
    exploration: Exploration,
    budgets: Mapping[str, str],
    seed: int,
    space: UNetSpace,
) -> Exploring:
    """A search by any strategy with these settings, and these budgets of devices."""
    return Exploring(
        space,
        exploration.policy(),
        {name: Limit(*recipes.limit(budget)) for name, budget in budgets.items()},
        exploration.evaluations,
        sampling.prompts // sampling.batch,
        exploration.edits,
        search.caution,
        seed,
    )


def evolution(settings: Search, space: UNetSpace) -> Evolution:
    """Algorithm 1 with these settings."""
    budget, unit = settings.limit()
    return Evolution(space, budget, unit, settings.group, settings.rounds, settings.caution)
