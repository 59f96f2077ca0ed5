"""What of a pipeline can be exported, read from its folder."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nas.describe import TOKENS
from nas.diffusion import autoencoder, unet
from nas.diffusion.folders import (
    read_json,
    read_weights,
)
from nas.diffusion.prompts import FAMILIES, TextEncoder
from search_spaces.export.part import Dtype, Part, in_precision
from search_spaces.ops import Op, Shape
from search_spaces.program import Program, Step, network
from search_spaces.unet import lower

Name = Literal["unet", "decoder", "text_encoder", "text_encoder_2"]


def read(folder: Path, name: Name, *, batch: int, dtype: Dtype = "float32") -> Part:
    """Reads one part of a pipeline's folder; a U-Net's own folder has that part alone.

    Raises `ValueError` naming what is wrong with the folder.
    """
    if batch < 1:
        raise ValueError(f"a batch of {batch} holds nothing; give --batch 1 or more")
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; give a pipeline's, or a U-Net's")
    if name != "unet" and not _is_pipeline(folder):
        raise ValueError(f"{folder} is no pipeline, so it has no {name}; only --part unet is there")
    return in_precision(_READERS[name](folder, name, batch), dtype)


def _is_pipeline(folder: Path) -> bool:
    return (folder / "model_index.json").exists()


def _read_unet(folder: Path, name: Name, batch: int) -> Part:
    tokens = TOKENS
    if _is_pipeline(folder):
        tokens = read_json(folder / "text_encoder" / "config.json")["max_position_embeddings"]
        folder = folder / "unet"
    config = read_json(folder / "config.json")
    program = lower(unet.from_config(config))
    inputs = unet.shapes(config, batch=batch, tokens=tokens)
    weights = read_weights(folder, network(program, inputs).shapes)
    return Part(name, program, inputs, {"prediction": program[-1].name}, _on_host(weights))


@dataclasses.dataclass(frozen=True)
class _Denormalise(Op):
    """Latents as the autoencoder knows them, of latents of unit variance. `scale` and `shift` are
    numbers, one or one for each channel."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        return _Denormalised(self)


class _Denormalised(nnx.Module):
    def __init__(self, op: _Denormalise):
        self.op = op

    def __call__(self, x: jax.Array) -> jax.Array:
        return x / jnp.array(self.op.scale, x.dtype) + jnp.array(self.op.shift, x.dtype)


def decoder(config: Mapping[str, object], batch: int) -> tuple[Program, dict[str, Shape]]:
    """`Autoencoder.decode` as a program, and what it reads: `latents` as the U-Net makes them."""
    first, *others = autoencoder.decoder_program(config)
    vae = autoencoder.Autoencoder(config)
    scale, shift = (tuple(np.ravel(number).tolist()) for number in (vae.scale, vae.shift))
    start = Step("denormalised", _Denormalise(scale, shift), ("latents",))
    program = (start, first._replace(reads=(start.name,)), *others)
    return program, {"latents": autoencoder.latents_shape(config, batch)}


def _read_decoder(folder: Path, name: Name, batch: int) -> Part:
    program, inputs = decoder(read_json(folder / "vae" / "config.json"), batch)
    weights = read_weights(folder / "vae", network(program, inputs).shapes)
    return Part(name, program, inputs, {"pixels": program[-1].name}, _on_host(weights))


def _read_text_encoder(folder: Path, name: Name, batch: int) -> Part:
    kind = str(read_json(folder / "model_index.json").get("_class_name"))
    sources = {s.encoder: s for s in FAMILIES[kind].sources} if kind in FAMILIES else {}
    if name not in sources:
        raise ValueError(f"{folder} is a {kind}, whose text encoders are {list(sources)}")
    encoder = TextEncoder.load(folder, sources[name])
    weights = _on_host(encoder.weights)
    return Part(name, encoder.program, encoder.inputs(batch), encoder.gives, weights)


def _on_host(weights: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(weight) for name, weight in weights.items()}


_READERS: Mapping[Name, Callable[[Path, Name, int], Part]] = {
    "unet": _read_unet,
    "decoder": _read_decoder,
    "text_encoder": _read_text_encoder,
    "text_encoder_2": _read_text_encoder,
}
