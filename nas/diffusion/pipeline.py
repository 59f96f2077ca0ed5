"""Text-to-image pipelines in the folder layout of diffusers."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nas.diffusion import clip, unet
from nas.diffusion.autoencoder import Autoencoder
from nas.diffusion.folders import (
    read_json,
    read_weights,
    write_json,
)
from nas.diffusion.schedule import Schedule
from nas.diffusion.tokens import read_tokenizer, tokenize
from search_spaces.model import Model, Weights
from search_spaces.ops import Shape
from search_spaces.program import network
from search_spaces.unet import UNetSpec, lower

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A pipeline in memory: configurations, the U-Net's architecture, and all weights."""

    folder: Path  # Where it was read from; what a search leaves alone is copied from there.
    spec: UNetSpec
    unet: Weights
    unet_config: Mapping[str, Any]
    text: Model
    text_weights: Weights
    text_config: Mapping[str, Any]
    autoencoder: Autoencoder
    vae: Weights
    scheduler_config: Mapping[str, Any]
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path) -> "Pipeline":
        """Reads a pipeline. Raises `ValueError` on a folder that is none, naming what is wrong."""
        _check(folder)
        unet_config = read_json(folder / "unet" / "config.json")
        text_config = read_json(folder / "text_encoder" / "config.json")
        spec = unet.from_config(unet_config)
        text = clip.text_model(text_config)
        autoencoder = Autoencoder(read_json(folder / "vae" / "config.json"))
        tokens = text_config["max_position_embeddings"]
        shapes = unet.shapes(unet_config, batch=1, tokens=tokens)
        backbone = network(lower(spec), shapes)
        return cls(
            folder,
            spec,
            read_weights(folder / "unet", backbone.shapes),
            unet_config,
            text,
            read_weights(folder / "text_encoder", text.shapes),
            text_config,
            autoencoder,
            read_weights(folder / "vae", autoencoder.shapes),
            read_json(folder / "scheduler" / "scheduler_config.json"),
            read_tokenizer(folder / "tokenizer"),
        )

    @property
    def schedule(self) -> Schedule:
        return Schedule.from_config(self.scheduler_config)

    def inputs(self, batch: int) -> dict[str, Shape]:
        """Shapes of what the U-Net reads for `batch` samples."""
        tokens = self.text_config["max_position_embeddings"]
        return unet.shapes(self.unet_config, batch=batch, tokens=tokens)

    def ids(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids of prompts, `[prompts, tokens]` int32, padded and cut to length."""
        return tokenize(self.tokenizer, prompts, self.text_config["max_position_embeddings"])

    def contexts(self, prompts: Sequence[str], *, batch: int = 64) -> np.ndarray:
        """Encoded prompts, `[prompts, tokens, width]` float32."""
        encode = jax.jit(self.text)
        return _in_batches(
            lambda ids: encode(self.text_weights, {"ids": ids}), self.ids(prompts), batch
        )

    def latents(self, pixels: np.ndarray, *, batch: int = 64) -> np.ndarray:
        """Scaled latents of pixels in [-1, 1]."""
        encode = jax.jit(self.autoencoder.encode)
        return _in_batches(lambda part: encode(self.vae, part), pixels, batch)

    def save(self, folder: Path, spec: UNetSpec, weights: Weights) -> tuple[str, ...]:
        """Writes the pipeline with another U-Net in it; all else is copied.

        The index names the class of the U-Net, which is ours where diffusers has none that could
        build it; what is returned says why.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.iterdir():
            if part.is_dir() and part.name != "unet":
                shutil.copytree(part, folder / part.name, dirs_exist_ok=True)
        why = unet.save(folder / "unet", spec, weights, self.unet_config)
        index = read_json(self.folder / "model_index.json")
        if why or "unet" in index:
            index["unet"] = ["nas", unet.OURS] if why else ["diffusers", unet.THEIRS]
        write_json(folder / "model_index.json", index)
        return why


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"no pipeline folder {folder}")
    index = read_json(folder / "model_index.json")
    missing = [part for part in _PARTS if not (folder / part).is_dir()]
    if missing:
        raise ValueError(f"{folder} is no text-to-image pipeline: it has no folder {missing[0]}")
    kind = index.get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise ValueError(f"{folder} is a {kind}; supported is StableDiffusionPipeline")


def _in_batches(fn: Any, rows: np.ndarray, size: int) -> np.ndarray:
    """`fn` over `rows` in batches of one shape, so that it compiles once."""
    short = -len(rows) % size
    padded = np.concatenate([rows, np.repeat(rows[:1], short, axis=0)])
    parts = [np.asarray(fn(jnp.asarray(part))) for part in np.split(padded, len(padded) // size)]
    return np.concatenate(parts)[: len(rows)]
