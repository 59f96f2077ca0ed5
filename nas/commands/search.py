"""`nas search [RECIPE]`: runs a search, or goes on with it."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from latency_models.bench import Bench, LocalBench
from latency_models.provenance import Provenance
from latency_models.runtimes import CACHE
from nas import devices
from nas import recipe as recipes
from nas.conduct import Conductor, in_process
from nas.devices import RuntimeName
from nas.diffusion import unet
from nas.evolution import Evolution, Profile
from nas.executors import Executor, Observer
from nas.journal import Journal
from nas.perform import Performer
from nas.places import Place, place
from nas.precomputed import at
from nas.progress import Live
from nas.recipe import Pools, Recipe, Sampling, Search, Training
from nas.report import page, timeline
from nas.report.story import Story
from nas.scalars import Scalars
from nas.search import replay, search_abreast
from nas.timings import Timings
from search_spaces.unet import UNetSpec
from search_spaces.unet_space import UNetSpace

PLACE = tyro.constructors.PrimitiveConstructorSpec[Place](
    nargs=1,
    metavar="PATH|URL",
    instance_from_str=lambda given: place(given[0]),
    is_instance=lambda found: isinstance(found, Place),
    str_from_instance=lambda found: [str(found)],
)
OF_RECIPE = ("pipeline", "evaluator", "search", "sampling", "training", "seed")


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
    device: str | None = None
    """Predict latencies, and hold the budget, on a device of `nas devices`, or on the one of the
    latency model in a folder; by default they are measured here."""
    runtime: RuntimeName | None = None
    """What networks are measured by here; by default what the recipe says."""
    on: Literal["here", "ray"] = "here"
    """Where work is done: in this process, or by workers in processes of Ray."""
    address: str | None = None
    """A Ray cluster's address; by default a cluster is started on this machine, for this run."""
    precomputed: str | None = None
    """Path or URL that `nas precompute` wrote the training data to, encoded; by default what the
    recipe says, or they are encoded when training begins. The result does not depend on it."""
    workers: int | None = None
    """Workers on Ray that score; by default what the recipe says, or as many as there is room for.
    """
    tensorboard: Path | None = None
    """Folder for TensorBoard, in which the search is a run by the name of --out: scores, latency,
    budget and losses by round."""
    price: float | None = None
    """What a worker costs an hour; the report then says what the search cost."""

    def __post_init__(self) -> None:
        if self.on == "here" and (self.address, self.workers) != (None, None):
            raise ValueError("--address and --workers are for --on ray")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}; it must be one or more")
        if self.price is not None:
            timeline.check_price(self.price)

    def over(self, recipe: Recipe) -> Recipe:
        """`recipe` with these settings."""
        changed = {name: getattr(self, name) for name in OF_RECIPE}
        if self.precomputed is not None:
            changed["precomputed"] = at(self.precomputed)
        if self.workers is not None:
            scoring = dataclasses.replace(recipe.pools.scoring, workers=self.workers)
            changed["pools"] = dataclasses.replace(recipe.pools, scoring=scoring)
        return dataclasses.replace(recipe, **changed, bench=self.bench(recipe.bench))

    def bench(self, default: Bench) -> Bench:
        """Where latencies come from. Raises `ValueError` on what is not known, or not here."""
        if self.device and self.runtime:
            raise ValueError(
                f"--device {self.device} --runtime {self.runtime}: a runtime measures on this "
                "machine, and latencies of a device are predicted; give one of them"
            )
        if self.device:
            return devices.bench(self.device)
        if not self.runtime:
            return default
        runtime = devices.RUNTIMES[self.runtime]()
        if isinstance(default, LocalBench):  # Its plans and its files are the recipe's.
            return dataclasses.replace(default, runtime=runtime)
        return LocalBench(CACHE, runtime=runtime)

    def header(self, path: str, recipe: Recipe) -> dict[str, object]:
        """What the journal must agree with to be gone on with. `recipe` has these settings."""
        known = recipe.bench.provenance
        device = {"name": self.device, "known": str(known), "key": known.key}
        return {
            "recipe": path,
            "pipeline": str(self.pipeline),
            "evaluator": str(self.evaluator),
            "seed": self.seed,
            "device": device if self.device else None,
            "runtime": self.runtime,
            "settings": {
                name: dataclasses.asdict(getattr(self, name))
                for name in ("search", "sampling", "training")
            },
        }


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
    if settings.on == "here":
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
    cpus = pools.scoring.workers
    tries = pools.tries
    with OnRay(make, address=settings.address, cpus=cpus, tries=tries, observer=observer) as ray:
        yield ray


def _search(settings: Settings, path: str, recipe: Recipe) -> int:
    recipe.search.limit()  # A budget that cannot be read is an error before anything is loaded.
    timings = Timings()
    live = Live(rates=timings.rates)
    with contextlib.ExitStack() as ended:
        scalars = None
        if settings.tensorboard is not None:
            scalars = ended.enter_context(Scalars(settings.tensorboard, settings.out.name))
        there = ended.enter_context(workers(path, settings, recipe.pools, timings))
        ours = Performer(recipe, settings.out, live.watch)
        conductor = Conductor(ours, there, timings=timings) if there else in_process(ours, timings)
        strategy = evolution(recipe.search, ours.space)
        header = settings.header(path, recipe)
        with Journal(settings.out / "journal.jsonl", header) as journal, live:
            if scalars:
                scalars.begin(strategy, journal)
            state = replay(strategy, journal)
            if not strategy.ask(state) and ours.delivered:
                return _already_finished(settings.out, strategy)
            with timings.recorded(settings.out):
                known = conductor.provenance()
                _same_device(journal, known)
                live.begin(strategy, state, known, resumed=len(journal))
                for done in search_abreast(strategy, conductor, journal):
                    state = done.state
                    live.advance(done)
                    if scalars:
                        scalars.add(done)
                live.watch("pictures and report", 0.0)
                journal.check()
                conductor.deliver(state)
    story = Story.read(settings.out, strategy)
    page.write(story, price=settings.price)
    print(f"\n{page.summary(story)}\n")
    print(f"pipeline  {settings.out / 'pipeline'}\nreport    {settings.out / 'report.html'}")
    print(form(story.state.networks[story.state.current].spec))
    return 0 if story.kept else 1


def form(spec: UNetSpec) -> str:
    """Says in which form a searched U-Net is written, and why not in diffusers'."""
    why = unet.obstacles(spec)
    if not why:
        return "\nThe U-Net is in diffusers' own form, which its UNet2DConditionModel loads."
    said = "\n  ".join(why)
    return f"\nThe U-Net is in our own form, as diffusers cannot express it:\n  {said}"


def _same_device(journal: Journal, here: Provenance) -> None:
    """Raises `ValueError` if the journal's latencies are another device's."""
    there = next((found for task, found in journal if isinstance(task, Profile)), None)
    if there is None:
        return
    differing = here.differences(Provenance.from_json(there["provenance"]))
    if differing:
        shown = "; ".join(differing)
        raise ValueError(
            f"{journal.path} has latencies of another device, model or software ({shown}), "
            "which must not be mixed with these; go on with those, or choose another folder"
        )


def _already_finished(folder: Place, strategy: Evolution) -> int:
    story = Story.read(folder, strategy)
    if not (folder / "report.html").exists():
        page.write(story)
    print(f"{page.summary(story)}\n\n{folder} holds this finished search, which is left as it is.")
    print(form(story.state.networks[story.state.current].spec))
    print("To search anew, choose another folder with --out, or delete this one.")
    return 0 if story.kept else 1


def evolution(settings: Search, space: UNetSpace) -> Evolution:
    """Algorithm 1 with these settings."""
    budget, unit = settings.limit()
    return Evolution(space, budget, unit, settings.group, settings.rounds, settings.caution)
