"""`nas plan [RECIPE]`: what a search will take, before it is run."""

import dataclasses
import functools
import math
import tempfile
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from nas import devices
from nas import recipe as recipes
from nas.evolution import Network, Train
from nas.executors import Pool
from nas.forecast import Forecast, Read, Times, check, forecast, read, space
from nas.perform import Performer, costed
from nas.places import place
from nas.recipe import Recipe, Sampling, Search, Training
from nas.report.story import Estimate
from nas.simulation import STEADY, Conditions

OF_RECIPE = ("search", "sampling", "training", "seed")
STEPS = 4  # Of training that are timed.


@dataclasses.dataclass(frozen=True)
class Settings:
    """Forecasts a search: evaluations, pictures, compiles, device-hours, confidence intervals and
    money. Runs the real engine on a virtual clock; all numbers are estimates."""

    search: Annotated[Search, tyro.conf.arg(name="")]
    sampling: Sampling
    training: Training
    seed: int
    """Seed of the search, and of the forecast's luck."""
    times: Times
    conditions: Conditions = STEADY
    journal: str | None = None
    """Folder, or its URL, of an earlier search of this pipeline on the same kind of worker: its
    task times and the spread of its scores are used where no number is given."""
    measure: bool = False
    """Load the pipeline and time a shard, some steps of training and a measurement here."""
    device: str | None = None
    """The device of `nas devices` that latencies will be predicted on."""
    workers: int | None = None
    """Workers that score; by default what the recipe says, or one."""
    spread: float | None = None
    """Standard deviation over prompts of a score without a block against that with it."""
    price: float | None = None
    """Money for an hour of a worker's host, of which one that trains may have several."""
    training_price: float | None = None
    """The same for a worker that trains or measures; by default as for one that scores."""

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("spread", "price", "training_price")}
        wrong = {name: x for name, x in given.items() if x is not None and not x >= 0}
        if wrong:
            raise ValueError(f"none of these may be negative: {wrong}")
        if self.training_price is not None and self.price is None:
            raise ValueError("--training-price needs --price, that of a worker that scores")

    def over(self, recipe: Recipe) -> Recipe:
        """`recipe` with these settings, and with numbers of workers that are known."""
        pools = recipe.pools
        count = self.workers if self.workers is not None else pools.scoring.workers or 1
        known = dataclasses.replace(
            pools,
            scoring=dataclasses.replace(pools.scoring, workers=count),
            training=_counted(pools.training),
            measuring=_counted(pools.measuring),
        )
        changed = {name: getattr(self, name) for name in OF_RECIPE}
        bench = devices.bench(self.device) if self.device else recipe.bench
        return dataclasses.replace(recipe, **changed, pools=known, bench=bench)


def _counted(pool: Pool) -> Pool:
    """A pool of as many workers as there is room for counts as one: one call is made at a time."""
    return dataclasses.replace(pool, workers=pool.workers or 1)


def run(arguments: list[str]) -> int:
    named = bool(arguments) and not arguments[0].startswith("-")
    path = arguments[0] if named else recipes.DEFAULT
    recipe = recipes.load(path)
    default = Settings(**{n: getattr(recipe, n) for n in OF_RECIPE}, times=Times())
    settings = tyro.cli(Settings, default=default, args=arguments[named:], prog=f"nas plan {path}")
    recipe = settings.over(recipe)
    recipe.search.limit()
    check(recipe)
    sources, known = [], Read(Times(), None)
    if settings.measure:
        known = Read(measured(recipe), None)
        sources.append("measured here just now")
    if settings.journal:
        before = read(place(settings.journal))
        known = Read(known.times.over(before.times), before.spread)
        sources.append(f"measured by the search of {settings.journal}")
    if settings.times != Times():
        sources.insert(0, "as given")
    times = settings.times.over(known.times)
    found = forecast(recipe, times, settings.conditions, seed=settings.seed)
    spread = settings.spread if settings.spread is not None else known.spread
    show(path, settings, recipe, found, spread, ", else ".join(sources))
    return 0


def measured(recipe: Recipe) -> Times:
    """Task times of this process: a shard scored twice, some training, a result measured."""
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(recipe.training, robust_steps=STEPS)
        load = functools.partial(Performer, dataclasses.replace(recipe, training=short))
        performer = load(Path(folder))
        seed = performer.space.seed
        network = Network(seed, seed, "seed")
        _, first = costed(performer, Performer.embedded, network, None, None, 0)
        _, second = costed(performer, Performer.embedded, network, None, None, 0)
        assert performer.data is not None  # Encoded before training is timed.
        _, train = costed(performer, Performer.train, Train(1, 0, (), "robust"), network, network)
        _, reference = costed(performer, Performer.reference)
        _, whole = costed(performer, Performer.measure, seed)
    shard = recipe.sampling.batch * recipe.sampling.steps
    return Times(
        picture_step=second.seconds / shard,
        train_step=max(train.seconds - train.compile_seconds, 0.0) / STEPS,
        measure=whole.seconds,
        reference=reference.seconds,
        start=max(first.compile_seconds, train.compile_seconds),
    )


def show(
    path: str,
    settings: Settings,
    recipe: Recipe,
    found: Forecast,
    spread: float | None,
    sources: str,
) -> None:
    """Prints a forecast as a table, with what each number is derived from."""
    table = Table("estimate of", "how much", "from", title=f"forecast of {path}")
    sampling, pools = recipe.sampling, recipe.pools
    drawn = "blocks of drawn worth, latencies " + (
        "predicted by the recipe's device" if settings.device else "by a roofline or a model"
    )
    blocks = len([*space(recipe).removals(space(recipe).seed)])
    table.add_row("rounds", f"{found.rounds} of at most {recipe.search.rounds}", drawn)
    table.add_row("evaluations", f"{found.scores:,}", f"{blocks} removable blocks at first")
    table.add_row("pictures", f"{found.pictures:,}", f"{sampling.prompts} prompts each")
    table.add_row("U-Net passes", f"{found.passes:,}", f"{sampling.steps} steps, batch two")
    table.add_row("training steps", f"{found.steps:,}", "the recipe")
    compiled = f"{pools.scoring.workers} scoring workers, one training"
    table.add_row("networks compiled", f"{found.programs:,}", compiled)
    table.add_row("calls measured", f"{found.calls:,}", "each once, but those known before")
    table.add_row("wall time", hours(found.seconds), f"virtual clock; task times {sources}")
    kinds = {"scoring": found.scoring, "training": found.training}
    if not found.same:
        kinds["measuring"] = found.measuring
    for name, spent in kinds.items():
        also = " and measuring" if name == "training" and found.same else ""
        said = f"{spent.utilisation:.0%} of it useful, {hours(spent.lost)} lost"
        table.add_row(f"device-hours, {name}{also}", hours(spent.held), said)
    table.add_row("95% interval of a score", *width(spread, sampling.prompts))
    if settings.price is not None:
        dear = settings.price if settings.training_price is None else settings.training_price
        scoring = found.scoring.held * settings.price
        money = (scoring + (found.held - found.scoring.held) * dear) / 3600
        prices = f"{settings.price:g} and {dear:g} an hour, held from start to end"
        table.add_row("money", f"{money:,.2f}", prices)
    console = Console(highlight=False)
    if not console.is_terminal:  # A pipe is as wide as it has to be.
        needed = console.measure(table, options=console.options.update_width(10_000))
        console.width = needed.maximum
    console.print(table)


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f} h" if seconds >= 360 else f"{seconds / 60:,.1f} min"


def width(spread: float | None, prompts: int) -> tuple[str, str]:
    """The expected interval of what removing a block does to the score, and where it is from."""
    unit = 1.0 if spread is None else spread
    margin = Estimate(0.0, unit / math.sqrt(prompts), prompts).margin
    if spread is None:
        return f"± {margin:.3f} spreads", "spread over prompts not known: --spread or --journal"
    return f"± {margin:.4f}", f"spread of {spread:.4f} over {prompts} prompts, paired"
