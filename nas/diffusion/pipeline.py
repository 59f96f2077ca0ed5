"""Text-to-image pipelines in the folder layout of diffusers."""

import collections
import dataclasses
import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nas.diffusion import unet
from nas.diffusion.autoencoder import Autoencoder
from nas.diffusion.folders import (
    read_json,
    read_weights,
    write_json,
)
from nas.diffusion.prompts import (
    FAMILIES,
    Conditioning,
    Family,
    TextEncoder,
    joined,
)
from nas.diffusion.schedule import Schedule
from search_spaces.model import Weights
from search_spaces.ops import Shape
from search_spaces.program import network
from search_spaces.unet import UNetSpec, lower

INDEX = "model_index.json"
ENCODED = 64  # Rows that are encoded at once.


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A pipeline in memory: configurations, the U-Net's architecture, and all weights."""

    folder: Path  # Where it was read from; what a search leaves alone is copied from there.
    spec: UNetSpec
    unet: Weights
    unet_config: Mapping[str, Any]
    encoders: tuple[TextEncoder, ...]
    zeros: bool  # Whether guidance's other branch reads zeros, and not the empty prompt.
    autoencoder: Autoencoder
    vae: Weights
    scheduler_config: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Pipeline":
        """Reads a pipeline. Raises `ValueError` on a folder that is none, naming what is wrong."""
        if not folder.is_dir():
            raise ValueError(f"no pipeline folder {folder}")
        index = read_json(folder / INDEX)
        family = _family(folder, index)
        unet_config = read_json(folder / "unet" / "config.json")
        spec = unet.from_config(unet_config)
        encoders = tuple(TextEncoder.load(folder, source) for source in family.sources)
        autoencoder = Autoencoder(read_json(folder / "vae" / "config.json"))
        shapes = unet.shapes(unet_config, batch=1, tokens=encoders[0].tokens)
        _check(folder, encoders, autoencoder, shapes)
        backbone = network(lower(spec), shapes)
        return cls(
            folder,
            spec,
            read_weights(folder / "unet", backbone.shapes),
            unet_config,
            encoders,
            family.zeros is not None and index.get("force_zeros_for_empty_prompt", family.zeros),
            autoencoder,
            read_weights(folder / "vae", autoencoder.shapes),
            read_json(folder / "scheduler" / "scheduler_config.json"),
        )

    @property
    def schedule(self) -> Schedule:
        return Schedule.from_config(self.scheduler_config)

    @property
    def pixels(self) -> int:
        """Height and width of the pictures it makes."""
        return self.autoencoder.factor * self.inputs(1)["sample"].shape[1]

    def inputs(self, batch: int) -> dict[str, Shape]:
        """Shapes of what the U-Net reads for `batch` samples."""
        return unet.shapes(self.unet_config, batch=batch, tokens=self.encoders[0].tokens)

    def conditioning(self, prompts: Sequence[str], *, batch: int = ENCODED) -> Conditioning:
        """What the U-Net reads of prompts: encoded, float32, and the picture's sizes if it asks."""
        return self._sized(self._encoded(prompts, batch))

    @property
    def unconditional(self) -> Conditioning:
        """What guidance leads away from, as the conditioning of one prompt."""
        found = self._encoded([""])
        return self._sized(jax.tree.map(np.zeros_like, found) if self.zeros else found)

    def _encoded(self, prompts: Sequence[str], batch: int = ENCODED) -> Conditioning:
        def encoded(encoder: TextEncoder) -> Conditioning:
            encode = jax.jit(encoder)
            ids = encoder.ids(prompts)
            return _in_batches(lambda part: encode(encoder.weights, part), ids, batch)

        return joined([encoded(encoder) for encoder in self.encoders])

    def _sized(self, encoded: Conditioning) -> Conditioning:
        """With the sizes of a picture that was neither scaled nor cropped, as whole numbers: these
        are exact in any precision."""
        if "sizes" not in self.inputs(1):
            return encoded
        sizes = np.array([self.pixels, self.pixels, 0, 0, self.pixels, self.pixels], np.int32)
        rows = len(next(iter(encoded.values())))
        return {**encoded, "sizes": np.tile(sizes, (rows, 1))}

    def latents(self, pixels: np.ndarray, *, batch: int = ENCODED) -> np.ndarray:
        """Scaled latents of pixels in [-1, 1]."""
        return _in_batches(lambda part: self._encode(self.vae, part), pixels, batch)

    @functools.cached_property
    def _encode(self) -> Any:
        """Compiled once, for any number of shards."""
        return jax.jit(self.autoencoder.encode)

    def save(self, folder: Path, spec: UNetSpec, weights: Weights) -> tuple[str, ...]:
        """Writes the pipeline with another U-Net in it; all else is copied.

        The index names the class of the U-Net, which is ours where diffusers has none that could
        build it; what is returned says why.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() == self.folder.resolve():
            raise ValueError(f"this pipeline was read from {folder}; choose another")
        for part in self.folder.iterdir():
            if part.is_dir() and part.name != "unet":
                shutil.copytree(part, folder / part.name, dirs_exist_ok=True)
            elif part.is_file():
                shutil.copy(part, folder)
        why = unet.save(folder / "unet", spec, weights, self.unet_config)
        index = read_json(self.folder / INDEX)
        if why or "unet" in index:
            index["unet"] = ["nas", unet.OURS] if why else ["diffusers", unet.THEIRS]
        write_json(folder / INDEX, index)
        return why


def _family(folder: Path, index: Mapping[str, Any]) -> Family:
    """How the pipeline in `folder` is conditioned. Raises `ValueError` where a part is missing."""
    kind = str(index.get("_class_name"))
    if kind not in FAMILIES:
        raise ValueError(f"{folder} is a {kind}; supported are {list(FAMILIES)}")
    family = FAMILIES[kind]
    texts = [part for source in family.sources for part in (source.encoder, source.tokenizer)]
    for part in ("unet", "vae", *texts, "scheduler"):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} is no {kind}: it has no folder {part}")
    return family


def _check(
    folder: Path,
    encoders: Sequence[TextEncoder],
    autoencoder: Autoencoder,
    inputs: Mapping[str, Shape],
) -> None:
    """Raises `ValueError` unless the other parts give what the U-Net reads."""
    given = collections.Counter[str](sample=autoencoder.channels)
    for encoder in encoders:
        given.update(encoder.widths)
    read = {
        name: shape.shape[-1] for name, shape in inputs.items() if name not in ("timestep", "sizes")
    }
    if given != read:
        raise ValueError(
            f"{folder}: the other parts give {dict(given)} channels, where the U-Net reads {read}"
        )
    lengths = {encoder.part: encoder.tokens for encoder in encoders}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{folder}: prompts have several max_position_embeddings: {lengths}")


def _in_batches(fn: Any, rows: np.ndarray, size: int) -> Any:
    """`fn` over `rows` in batches of one shape, so that it compiles once; a tree of arrays."""
    short = -len(rows) % size
    padded = np.concatenate([rows, np.repeat(rows[:1], short, axis=0)])
    batches = np.split(padded, len(padded) // size)
    parts = [jax.tree.map(np.asarray, fn(jnp.asarray(part))) for part in batches]
    return jax.tree.map(lambda *found: np.concatenate(found)[: len(rows)], *parts)
