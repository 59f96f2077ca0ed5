"""What a worker does: everything that touches weights, pictures and clocks."""

import functools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from latency_models.bench import Bench
from latency_models.latency import Whole
from latency_models.provenance import Provenance
from latency_models.rows import encode_row
from nas import plugins, precomputed
from nas.calibration import recorded
from nas.checkpoints import Checkpoints
from nas.diffusion.autoencoder import decoder_program
from nas.diffusion.folders import write_json
from nas.diffusion.pictures import write_grid
from nas.diffusion.pipeline import INDEX, Pipeline
from nas.diffusion.samplers import from_config
from nas.evolution import Network, Outcome, Train
from nas.objectives import ROWS, Batch, Captioned, batches, denoising, distillation
from nas.places import Place, publish
from nas.recipe import Pictures, Recipe, Training
from nas.scoring import Judge, Scorer
from nas.supernet import Supernet
from nas.training import Trainer, adamw
from search_spaces.actions import Remove
from search_spaces.edited import Edited, EditedSpace
from search_spaces.model import Weights
from search_spaces.program import Program, calls, network
from search_spaces.space import Action
from search_spaces.surgery import Calibration
from search_spaces.unet import UNetSpec, lower
from search_spaces.unet_space import UNetSpace

Watch = Callable[[str, float], None]
"""Is told what is being done and the share of it that is done."""

_COMPILING = threading.local()  # Seconds of every compilation of this thread.


def _compiles() -> list[float]:
    return _COMPILING.__dict__.setdefault("seconds", [])


def _note_compile(event: str, duration_secs: float, **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiles().append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_note_compile)

VALIDATIONS = 16  # Batches of the validation loss.
SHOWN = 24  # Pictures in the report.
CANDIDATES = 2  # Of which the weights are kept: shards of one end while another's begin.
SUPERNETS = 24  # That are kept built and compiled.
GUIDED = 2  # Both branches of classifier-free guidance run as one batch of two.


def silent(what: str, share: float) -> None:
    """Watches nothing."""


class Found(Protocol):
    """What a search knows of networks, of which the last is its result."""

    @property
    def networks(self) -> tuple[Network, ...]: ...

    @property
    def current(self) -> int: ...


class Cost(NamedTuple):
    """What a call took of its worker, which may differ from run to run."""

    seconds: float
    compiles: int
    compile_seconds: float


class Embedded(NamedTuple):
    """Pictures of a shard and their prompts, as the evaluator sees them: `[batch, projection]`."""

    images: np.ndarray
    prompts: np.ndarray


def costed(performer: "Performer", method: Callable[..., Any], *arguments: Any) -> tuple[Any, Cost]:
    """What the performer's method of that name returns, and what it took."""
    begun, before = time.perf_counter(), len(_compiles())
    value = getattr(performer, method.__name__)(*arguments)
    compiles = _compiles()[before:]
    return value, Cost(time.perf_counter() - begun, len(compiles), sum(compiles))


class Performer:
    """Performs the parts of tasks for one search; what it keeps on disk lies under `folder`.

    One is in every worker, and one is in the process that runs the search, which reads weights and
    writes the result. Threads may embed shards at once; all else is done alone.
    """

    def __init__(self, recipe: Recipe, folder: Place, watch: Watch = silent):
        self.recipe, self.folder, self.watch = recipe, folder, watch
        self.pipeline = Pipeline.load(recipe.pipeline)
        self.evaluator: Judge = plugins.load("nas.scorers", recipe.scorer)(recipe.evaluator)
        _check(recipe, self.pipeline)
        self.space = UNetSpace(self.pipeline.spec, self.pipeline.inputs(GUIDED))
        # By program, as specs that differ only in the names of their weights are equal.
        self._supernets: dict[Program, Supernet] = {}
        self._trainers: dict[Program, Trainer] = {}
        self._validators: dict[Program, Callable[..., jax.Array]] = {}
        self._weights: dict[int, Weights] = {}  # Of the network used last.
        self._lifted: tuple[object, Supernet, Weights] | None = None  # What was scored last.
        self._carried: list[tuple[object, Edited, Weights]] = []  # Candidates scored last.
        self._preparing = threading.Lock()

    # What is loaded or compiled at first use.

    @functools.cached_property
    def scorer(self) -> Scorer:
        sampling = self.recipe.sampling
        return Scorer(
            self.pipeline,
            self.evaluator,
            self.recipe.prompts[: sampling.prompts],
            steps=sampling.steps,
            guidance=sampling.guidance,
            seed=self.recipe.seed,
            batch=sampling.batch,
            kind=sampling.sampler,
        )

    @functools.cached_property
    def data(self) -> Captioned:
        """What is trained on."""
        return self._captioned(precomputed.TRAINING, self.recipe.pictures())

    @functools.cached_property
    def held_out(self) -> Captioned:
        """What the validation loss is taken on."""
        if self.recipe.held_out is None:
            raise ValueError("the recipe has no held-out pictures to validate on")
        return self._captioned(precomputed.HELD_OUT, self.recipe.held_out())

    @functools.cached_property
    def calibration(self) -> Calibration:
        """What edits fit weights to."""
        inputs = dict(self.space.inputs)
        return Calibration(inputs, recorded(self.pipeline, inputs, *self.recipe.pictures()))

    def _captioned(self, part: str, pictures: Pictures) -> Captioned:
        where = self.recipe.precomputed
        if where is None:
            return precomputed.captioned(self.pipeline, *pictures)
        return precomputed.read(where, part, self.pipeline, pictures)

    def supernet(self, spec: UNetSpec) -> Supernet:
        """The supernet of `spec`, built once; equal specs with other names are others."""
        key = lower(spec)
        if key not in self._supernets:
            while len(self._supernets) >= SUPERNETS:  # Candidates come and go by the hundred.
                oldest = next(iter(self._supernets))
                self.scorer.forget(self._supernets.pop(oldest))
            self._supernets[key] = Supernet(spec, self.space.inputs)
        else:
            self._supernets[key] = self._supernets.pop(key)  # The newest is the last.
        return self._supernets[key]

    def weights(self, state: Found, number: int) -> Weights:
        """The weights of network `number`, in its supernet."""
        network = state.networks[number]
        return self.supernet(network.supernet).lift(self.own_weights(network, number))

    def own_weights(self, network: Network, number: int) -> Weights:
        """The weights that `network` has itself; it is number `number`."""
        if number == 0:
            return self.pipeline.unet
        if number not in self._weights:
            supernet = self.supernet(network.supernet)
            like = supernet.restrict(supernet.model.shapes, network.spec)
            saved = Checkpoints(self.folder / "networks" / str(number)).latest(like)
            if saved is None:
                saved = supernet.restrict(self._as_trained(supernet, number), network.spec)
            self._weights = {number: saved}
        return self._weights[number]

    def _as_trained(self, supernet: Supernet, number: int) -> Weights:
        """The weights of network `number` from the last checkpoint of its training."""
        checkpoints = Checkpoints(self.folder / "training" / str(number))
        if (steps := checkpoints.newest) is None:
            raise ValueError(
                f"the weights of network {number} are gone from {self.folder}; "
                "delete that folder to search anew"
            )
        trainer = self._trainer(supernet)
        # A checkpoint before the last has more losses than steps, and is refused for it.
        like = (jax.eval_shape(trainer.start, supernet.model.shapes), np.zeros(steps, np.float32))
        at, _ = checkpoints.latest(like)  # pyright: ignore[reportGeneralTypeIssues]
        return trainer.average(at)

    @property
    def delivered(self) -> bool:
        """Whether `deliver` has ended."""
        return (self.folder / "pipeline" / INDEX).exists()

    def deliver(self, state: Found, pictures: Callable[[Network, int], np.ndarray]) -> None:
        """Writes pictures before and after, then the pipeline with the search's last network.

        `pictures` makes the first `SHOWN` pictures of a network, given with its number.
        """
        number = state.current
        network = state.networks[number]
        shown = list(self.recipe.prompts[: min(SHOWN, self.recipe.sampling.prompts)])
        write_json(self.folder / "pictures" / "prompts.json", {"prompts": shown})
        for name, n in {"before": 0, "after": number}.items():
            own, shared = state.networks[n], network.supernet
            both = self.supernet(shared).holds(own.spec)  # One program then makes both.
            made = pictures(Network(own.spec, shared if both else own.supernet, ""), n)
            write_grid(self.folder / "pictures" / f"{name}.png", made)
        weights = self.own_weights(network, number)
        publish(
            self.folder / "pipeline",
            INDEX,
            lambda draft: self.pipeline.save(draft, network.spec, weights),
        )

    # Latency.

    def provenance(self, device: str | None = None) -> Provenance:
        """The device and the software that latencies are measured on, or one of the devices."""
        bench = self.recipe.bench if device is None else self._bench(device)
        return bench.provenance

    def profile(self) -> Outcome:
        """Prices every call that removals and copies can make, and what `_profiled` says."""
        return self._profiled(self.recipe.bench, reachable(self.space))

    def price(self, device: str, kinds: tuple[str, ...]) -> Outcome:
        """Prices on `device` every call that the seed makes or single edits of these kinds do, and
        what `_profiled` says."""
        near = EditedSpace(self.space, kinds)
        edits = near.actions(near.initial())
        specs = (near.space.seed, *(edit.action.apply(self.space.seed) for edit in edits))
        return self._profiled(self._bench(device), specs)

    def _bench(self, device: str) -> Bench:
        if device not in self.recipe.devices:
            raise ValueError(f"no device {device} here; there are {', '.join(self.recipe.devices)}")
        return self.recipe.devices[device]

    def _profiled(self, bench: Bench, specs: Iterable[UNetSpec]) -> Outcome:
        """Prices the calls of `specs` and the pipeline's other parts, and four networks as a
        whole, which calibrate the sum of the calls. Other parts that a model of a device has no
        basis to price are no business of the search: they are named, with the reason. So are calls
        of edits that it cannot price: what makes them is not among its candidates."""
        seed, space = self.space.seed, self.space
        wanted = [c for spec in specs for c in calls(lower(spec), space.inputs).values()]
        own = set(calls(lower(seed), space.inputs).values())
        wanted = [c for c in dict.fromkeys(wanted) if c in own or bench.refusal([c]) is None]
        parts = {
            **{
                encoder.part: Whole(encoder.program, encoder.inputs(GUIDED))
                for encoder in self.pipeline.encoders
            },
            "decoder": Whole(
                decoder_program(self.pipeline.autoencoder.config),
                {"latents": self.pipeline.inputs(1)["sample"]},
            ),
        }
        reasons = {name: bench.refusal(calls(*whole).values()) for name, whole in parts.items()}
        others = {name: whole for name, whole in parts.items() if reasons[name] is None}
        for whole in others.values():
            wanted += calls(whole.program, whole.inputs).values()
        table = bench.table(wanted, self.watch)
        specs = calibration_specs(space)
        wholes = [Whole(lower(spec), space.inputs) for spec in specs]
        found = bench.networks([*wholes, *others.values()], self.watch)
        measured, priced = found[: len(wholes)], found[len(wholes) :]
        return {
            "provenance": bench.provenance.to_json(),
            "rows": [encode_row(call, row) for call, row in table.rows.items()],
            "networks": [
                {"removed": _removed(seed, spec), "ms": latency.ms, "std": latency.std}
                for spec, latency in zip(specs, measured, strict=True)
            ],
            "picture": self.pipeline.pixels,
            "unpriced": {name: why for name, why in reasons.items() if why is not None},
            **{
                name: {
                    "ms": latency.ms,
                    "std": latency.std,
                    "parameters": network(whole.program, whole.inputs).size,
                }
                for (name, whole), latency in zip(others.items(), priced, strict=True)
            },
        }

    def compare(self, spec: UNetSpec, device: str) -> Outcome:
        """The same as `measure`, on one of the devices."""
        return self._measured(self._bench(device), spec)

    def measure(self, spec: UNetSpec) -> Outcome:
        """The latency of `spec` as a whole, and that of the seed beside it."""
        return self._measured(self.recipe.bench, spec)

    def _measured(self, bench: Bench, spec: UNetSpec) -> Outcome:
        specs = [spec, self.space.seed]
        wholes = [Whole(lower(spec), self.space.inputs) for spec in specs]
        found, seed = bench.networks(wholes, self.watch)
        return {"ms": found.ms, "std": found.std, "seed_ms": seed.ms, "seed_std": seed.std}

    # Quality.

    def reference(self) -> Outcome:
        """The evaluator's scores of real pictures of the prompts, and of the wrong prompts."""
        sampling = self.recipe.sampling
        pixels = self.recipe.references()[: sampling.prompts]
        embed = jax.jit(self.evaluator.embed_pixels)
        parts = np.split(pixels, len(pixels) // sampling.batch)
        images = np.concatenate([embed(self.evaluator.weights, jnp.asarray(p)) for p in parts])
        prompts = self.scorer.embedded_prompts
        return {
            "real": (images * prompts).sum(-1).tolist(),
            "mismatched": (images * np.roll(prompts, 1, axis=0)).sum(-1).tolist(),
            "real_recall": recall(images, prompts),
        }

    def embedded(
        self, network: Network, weights: Weights | None, removed: str | None, shard: int
    ) -> Embedded:
        """The pictures of a shard by `network`, without block `removed` if given.

        `weights` are the network's own; the seed's are at hand, and are `None`.
        """
        supernet, lifted = self._ready(network, weights)
        spec = network.spec if removed is None else Remove(removed).apply(network.spec)
        images, _ = self.scorer.shard(supernet, lifted, supernet.keep(spec), shard)
        return Embedded(np.asarray(images), self.scorer.embedded_prompts[self.scorer.rows(shard)])

    def candidate(self, network: Network, weights: Weights, edited: Edited, shard: int) -> Embedded:
        """The pictures of a shard by `edited`, which runs in `network` and gets its weights, by its
        edits and without training, from `weights` of the seed's architecture."""
        with self._preparing:
            known = [own for of, spec, own in self._carried if of is weights and spec == edited]
            if not known:
                known = [self._carry(self.space.seed, weights, edited.edits)]
                self._carried = [(weights, edited, known[0]), *self._carried[: CANDIDATES - 1]]
        return self.embedded(network, known[0], None, shard)

    def pictures(self, network: Network, weights: Weights | None, shard: int) -> np.ndarray:
        """The pictures of a shard by `network`, `[batch, height, width, 3]` in [-1, 1]."""
        supernet, lifted = self._ready(network, weights)
        _, pixels = self.scorer.shard(supernet, lifted, supernet.keep(network.spec), shard)
        return np.asarray(pixels)

    def _ready(self, network: Network, weights: Weights | None) -> tuple[Supernet, Weights]:
        """The supernet of `network` and the weights in it, on the device.

        They are kept until others are asked for.
        """
        own = self.pipeline.unet if weights is None else weights
        with self._preparing:
            supernet, _ = self.supernet(network.supernet), self.scorer
            if self._lifted is None or not _same(self._lifted[:2], (own, supernet)):
                self._lifted = (own, supernet, jax.device_put(supernet.lift(own)))
            return supernet, self._lifted[2]

    def validate(self, network: Network, number: int) -> Outcome:
        """The denoising loss of network `number` on held-out pictures, noise and steps fixed."""
        supernet = self.supernet(network.supernet)
        keep = supernet.keep(network.spec)
        if supernet.program not in self._validators:
            self._validators[supernet.program] = jax.jit(
                denoising(supernet, self.pipeline.schedule)
            )
        validator = self._validators[supernet.program]
        weights = supernet.lift(self.own_weights(network, number))
        data, size = self.held_out, self.recipe.training.batch
        losses = []
        for draw in range(VALIDATIONS):
            rows = np.random.default_rng(draw).permutation(len(data.latents))[:size]
            batch = Batch(data.latents[rows], data.conditioning_of(rows), keep)
            losses.append(float(validator(weights, batch, jax.random.key(draw))))
        return {"loss": float(np.mean(losses)), "batches": losses}

    # Training.

    def train(self, task: Train, parent: Network, edited: Network) -> Outcome:
        """Makes network `task.number`, `edited`, of its parent; goes on from its last checkpoint.

        The parent's weights are read from the folder, and the network's are left there.
        """
        self._lifted = None  # Training needs the room.
        settings = self.recipe.training
        steps = training_steps(settings, task)
        supernet = self.supernet(edited.supernet)
        trainer = self._trainer(supernet)
        own = self.own_weights(parent, task.parent)
        begin = supernet.lift(self._carry(parent.spec, own, task.actions))
        run = (trainer.start(begin), np.zeros(steps, np.float32))
        checkpoints = Checkpoints(self.folder / "training" / str(task.number))
        at, losses = checkpoints.latest(run) or run
        losses = np.array(losses)
        # By the parent, so that children of one network are trained on the same batches.
        seed = 1000 * self.recipe.seed + task.parent + 1
        for at, loss in trainer.run(
            at,
            self._batches(supernet, edited.spec, task.objective, seed),
            lambda step: _rate(settings.rate, step, steps),
            steps=steps,
            seed=seed,
        ):
            done = int(at.step)
            if not math.isfinite(loss):
                raise ValueError(
                    f"the training of network {task.number} diverged: its loss is {float(loss)} "
                    f"at step {done} of {steps}; ask for a lower --training.rate"
                )
            losses[done - 1] = loss
            self.watch(f"train, loss {float(loss):.3f}", done / steps)
            if done % settings.save_every == 0 or done == steps:
                checkpoints.save(done, (at, losses))
        weights = supernet.restrict(trainer.average(at), edited.spec)
        saved = Checkpoints(self.folder / "networks" / str(task.number))
        saved.save(steps, weights)
        self._weights = {task.number: weights}
        return {"steps": steps, "losses": [round(float(x), 5) for x in _means(losses)]}

    def _carry(
        self, spec: UNetSpec, weights: Weights, actions: Sequence[Action[UNetSpec]]
    ) -> Weights:
        """The weights of `spec`, carried through the actions."""
        for action in actions:
            weights = action.carry(spec, weights, self._calibration(action)).weights
            spec = action.apply(spec)
        return weights

    def _calibration(self, action: Action[UNetSpec]) -> Calibration:
        """What `action` needs: samples take time to make, and most do without."""
        return self.calibration if action.calibrated else Calibration(self.space.inputs)

    def _trainer(self, supernet: Supernet) -> Trainer:
        if supernet.program not in self._trainers:
            settings = self.recipe.training
            self._trainers[supernet.program] = Trainer(
                distillation(supernet, self.pipeline.schedule, self._teacher(supernet)),
                supernet.model.shapes,
                adamw(),
                decay=settings.average,
                dtype="bfloat16" if settings.half else "float32",
                rows=ROWS,
            )
        return self._trainers[supernet.program]

    def _batches(
        self, supernet: Supernet, spec: UNetSpec, objective: str, seed: int
    ) -> Callable[[int], Batch]:
        taught, by = objective == "recovery", self._teacher(supernet)
        teacher = self._trainer(supernet).everywhere(by.lift(self.pipeline.unet))
        return batches(
            self.data,
            supernet,
            spec,
            size=self.recipe.training.batch,
            seed=seed,
            skip=0.0 if taught else self.recipe.training.skip,
            teacher=(teacher, self.pipeline.spec),
            taught=taught,
            by=by,
        )

    def _teacher(self, supernet: Supernet) -> Supernet:
        """What the seed teaches in: the network that learns, where the seed is a part of it."""
        return supernet if supernet.holds(self.space.seed) else self.supernet(self.space.seed)


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return all(a is b for a, b in zip(one, other, strict=True))


def _check(recipe: Recipe, pipeline: Pipeline) -> None:
    """Raises `ValueError` on settings that would fail only after minutes."""
    sampling = recipe.sampling
    from_config(pipeline.scheduler_config, sampling.steps, kind=sampling.sampler)
    if sampling.prompts > len(recipe.prompts):
        raise ValueError(
            f"the recipe has {len(recipe.prompts)} prompts, "
            f"fewer than the {sampling.prompts} to be scored"
        )
    if sampling.prompts % sampling.batch:
        raise ValueError(
            f"{sampling.prompts} prompts do not divide into batches of {sampling.batch}"
        )


def recall(images: np.ndarray, prompts: np.ndarray, k: int = 5) -> float:
    """Share of pictures whose own prompt is among the `k` nearest of all prompts."""
    cosines = images @ prompts.T
    better = (cosines > np.diagonal(cosines)[:, None]).sum(1)
    return float(np.mean(better < k))


def reachable(space: UNetSpace) -> Iterator[UNetSpec]:
    """Specs that between them make every call that edits of the seed can make.

    Blocks keep the shape of what passes through them, so no removal makes a new call, and a copy
    makes at most one.
    """
    yield space.seed
    for copy in space.copies(space.seed):
        yield copy.apply(space.seed)


def calibration_specs(space: UNetSpace) -> tuple[UNetSpec, ...]:
    """The seed, and it without a third, two thirds and all of what may be removed."""
    names = [removal.block for removal in space.removals(space.seed)]
    order = np.random.default_rng(0).permutation(names)
    specs = []
    for share in (0.0, 1 / 3, 2 / 3, 1.0):
        spec = space.seed
        for name in order[: round(share * len(order))]:
            spec = Remove(str(name)).apply(spec)
        specs.append(spec)
    return tuple(specs)


def _removed(seed: UNetSpec, spec: UNetSpec) -> list[str]:
    left = {block.name for block in spec.blocks}
    return [block.name for block in seed.blocks if block.name not in left]


def training_steps(settings: Training, task: Train) -> int:
    """Steps of a training."""
    if task.objective == "recovery":
        return settings.recovery_steps
    return settings.between_steps if task.actions else settings.robust_steps


def _rate(peak: float, step: int, steps: int) -> float:
    """Learning rate: warm-up over a tenth of the steps, then a cosine to a tenth of the peak."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return peak * (0.55 + 0.45 * math.cos(math.pi * share))


def _means(losses: np.ndarray, parts: int = 20) -> list[float]:
    """Means of consecutive parts of the losses, at most `parts`."""
    return [float(part.mean()) for part in np.array_split(losses, min(parts, len(losses)))]
