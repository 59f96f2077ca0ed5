"""CLIP score of architectures: one compiled program from noise and prompts to cosines.

Every architecture is scored on the same prompts, from the same noise, with the same sampler, so
differences between two are paired and their noise is that of the difference alone.
"""

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from latency_models.provenance import cores
from nas.diffusion.clip import CLIP
from nas.diffusion.folders import read_json, read_weights
from nas.diffusion.pipeline import Pipeline
from nas.diffusion.prompts import Conditioning
from nas.diffusion.samplers import Sampler, from_config, guided, sample
from nas.diffusion.tokens import read_tokenizer, tokenize
from nas.supernet import Supernet
from search_spaces.model import Weights


class Judge(Protocol):
    """Scores pictures: a score is the inner product of a picture's embedding and its prompt's.

    A judge of pictures alone embeds every prompt as a one, and a picture as its score.
    """

    @property
    def weights(self) -> Weights:
        """What `embed_pixels` takes, as arrays by name."""
        ...

    def embed_prompts(self, prompts: Sequence[str]) -> np.ndarray:
        """Embeddings of prompts, `[prompts, size]`, each of its prompt alone."""
        ...

    def embed_pixels(self, weights: Weights, pixels: jax.Array) -> jax.Array:
        """Embeddings `[batch, size]` of pixels in [-1, 1], `[batch, height, width, 3]`, of any
        size, each of its picture alone. It can be compiled by `jax.jit`."""
        ...


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A CLIP model that says how well pictures fit prompts."""

    model: CLIP
    weights: Weights
    tokenizer: Any
    mean: np.ndarray  # Of the pixels in [0, 1] that the model was trained on, a channel each.
    deviation: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> "Evaluator":
        """Reads a `CLIPModel` folder. Raises `ValueError` naming what is missing or wrong."""
        if not folder.is_dir():
            raise ValueError(f"no CLIP folder {folder}")
        model = CLIP(read_json(folder / "config.json"))
        preprocessor = read_json(folder / "preprocessor_config.json")
        return cls(
            model,
            read_weights(folder, model.shapes),
            read_tokenizer(folder),
            np.array(preprocessor["image_mean"], np.float32),
            np.array(preprocessor["image_std"], np.float32),
        )

    def embed_prompts(self, prompts: Sequence[str]) -> np.ndarray:
        """Normalised embeddings of prompts, `[prompts, projection]`."""
        length = self.model.config["text_config"]["max_position_embeddings"]
        ids = tokenize(self.tokenizer, prompts, length)
        return np.asarray(jax.jit(self.model.text)(self.weights, ids))

    def embed_pixels(self, weights: Weights, pixels: jax.Array) -> jax.Array:
        """Normalised embeddings of pixels in [-1, 1], `[batch, projection]`."""
        size = self.model.config["vision_config"]["image_size"]
        shape = (pixels.shape[0], size, size, pixels.shape[-1])
        if pixels.shape != shape:
            pixels = jax.image.resize(pixels, shape, "cubic")
        scaled = (jnp.clip(pixels, -1, 1) + 1) / 2
        return self.model.image(weights, (scaled - self.mean) / self.deviation)


Program = Callable[..., tuple[jax.Array, jax.Array]]


def abreast() -> int:
    """How many shards this process best scores at once: a shard uses one core of a CPU; on an
    accelerator, one is read back while the next is computed."""
    return len(cores()) if jax.default_backend() == "cpu" else 2


class Inputs(NamedTuple):
    """What one batch of pictures is made from and compared with; `[batch, ...]` each."""

    noise: jax.Array
    conditioning: Mapping[str, jax.Array]
    prompt: jax.Array  # The evaluator's embedding of it.


class Scorer:
    """Scores a supernet's architectures on a fixed set of prompts.

    `batch` prompts are sampled at once, which makes a shard; two prompts use one noise each, drawn
    from `seed` by the prompt's position, so a prompt's picture does not depend on `batch`. A shard
    depends on nothing but its number, so shards may be scored anywhere, in any order. Threads may
    score shards at once.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        evaluator: Judge,
        prompts: Sequence[str],
        *,
        steps: int,
        guidance: float,
        seed: int,
        batch: int,
        kind: str | None = None,
    ):
        if len(prompts) % batch:
            raise ValueError(f"{len(prompts)} prompts do not divide into batches of {batch}")
        self.prompts = tuple(prompts)
        self._pipeline, self._evaluator, self._batch = pipeline, evaluator, batch
        self._guidance = guidance
        self._sampler = from_config(pipeline.scheduler_config, steps, kind=kind)
        latents = pipeline.inputs(1)["sample"].shape[1:]
        self._inputs = Inputs(
            np.stack([_noise(seed, i, latents) for i in range(len(prompts))]),  # pyright: ignore
            pipeline.conditioning(prompts),  # pyright: ignore[reportArgumentType]
            evaluator.embed_prompts(prompts),  # pyright: ignore[reportArgumentType]
        )
        self._unconditional: Conditioning = pipeline.unconditional
        self._programs: dict[Supernet, Program] = {}
        self._compiling = threading.Lock()

    @property
    def noise(self) -> np.ndarray:
        """What the pictures are made from, `[prompts, height, width, channels]`."""
        return np.asarray(self._inputs.noise)

    @property
    def embedded_prompts(self) -> np.ndarray:
        """The evaluator's embeddings of the prompts, `[prompts, projection]`."""
        return np.asarray(self._inputs.prompt)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return len(self.prompts) // self._batch

    def pictures(
        self, supernet: Supernet, weights: Weights, keep: Mapping[str, np.ndarray], *, count: int
    ) -> np.ndarray:
        """The first `count` pictures that are scored, `[count, height, width, 3]` in [-1, 1]."""
        made = self._run(supernet, weights, keep, math.ceil(count / self._batch))
        return np.concatenate([pixels for _, pixels in made])[:count]

    def embedded(
        self, supernet: Supernet, weights: Weights, keep: Mapping[str, np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Yields the evaluator's embeddings of the pictures, `[batch, projection]` at a time."""
        for embedded, _ in self._run(supernet, weights, keep, self.shards):
            yield np.asarray(embedded)

    def _run(
        self, supernet: Supernet, weights: Weights, keep: Mapping[str, np.ndarray], shards: int
    ) -> Iterator[tuple[jax.Array, jax.Array]]:
        with ThreadPoolExecutor(abreast()) as pool:
            yield from pool.map(lambda n: self.shard(supernet, weights, keep, n), range(shards))

    def shard(
        self, supernet: Supernet, weights: Weights, keep: Mapping[str, np.ndarray], number: int
    ) -> tuple[jax.Array, jax.Array]:
        """The evaluator's embeddings of the pictures of shard `number`, `[batch, projection]`, and
        the pictures, `[batch, height, width, 3]` in [-1, 1]."""
        rows = self.rows(number)
        part = jax.tree.map(lambda x: x[rows], self._inputs)
        given = (weights, keep, part, self._sampler, self._pipeline.vae, self._evaluator.weights)
        with self._compiling:  # Once, whichever thread comes first.
            program = self._programs.get(supernet)
            if program is None:
                program = self._program(supernet).lower(*given).compile()
                self._programs[supernet] = program
        return jax.block_until_ready(program(*given))

    def forget(self, supernet: Supernet) -> None:
        """Frees what was compiled for `supernet`."""
        self._programs.pop(supernet, None)

    def rows(self, number: int) -> slice:
        """The prompts of shard `number`."""
        return slice(number * self._batch, (number + 1) * self._batch)

    def _program(self, supernet: Supernet) -> Any:
        autoencoder, evaluator = self._pipeline.autoencoder, self._evaluator

        @jax.jit
        def program(
            weights: Weights,
            keep: Mapping[str, jax.Array],
            inputs: Inputs,
            sampler: Sampler,
            vae: Weights,
            clip: Weights,
        ) -> tuple[jax.Array, jax.Array]:
            def predict(
                z: jax.Array, t: jax.Array, conditioning: Mapping[str, jax.Array]
            ) -> jax.Array:
                values = {"sample": z, "timestep": t, **conditioning}
                return supernet.model(weights, values, keep)

            empty = {
                name: jnp.broadcast_to(self._unconditional[name], x.shape)
                for name, x in inputs.conditioning.items()
            }
            both = guided(predict, inputs.conditioning, empty, self._guidance)
            latents = sample(sampler, both, inputs.noise)
            pixels = jnp.clip(autoencoder.decode(vae, latents), -1, 1)
            return evaluator.embed_pixels(clip, pixels), pixels

        return program


def _noise(seed: int, position: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([seed, position]).standard_normal(shape).astype(np.float32)
