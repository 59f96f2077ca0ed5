"""Prompts as the conditioning of a U-Net: text encoders, and what pipelines make of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from nas.diffusion import clip
from nas.diffusion.folders import read_json, read_weights
from nas.diffusion.tokens import read_tokenizer, tokenize
from search_spaces.model import Model, Weights
from search_spaces.ops import Shape, output
from search_spaces.program import Program, calls, network, until

Conditioning: TypeAlias = dict[str, np.ndarray]
"""What a U-Net reads besides latents and timesteps, by its inputs' names; `[prompts, ...]` each."""


class Source(NamedTuple):
    """A text encoder's place in a pipeline's folder, and what it gives."""

    encoder: str
    tokenizer: str
    # By the name of the U-Net's input, the step of the text's program: a function of its config.
    gives: Mapping[str, Callable[[Mapping[str, Any]], str]]


class Family(NamedTuple):
    """How the pipelines of one class of diffusers condition their U-Net.

    What several encoders give under one name is joined along the last axis.
    """

    sources: tuple[Source, ...]
    # Where not `None`, the class knows `force_zeros_for_empty_prompt`, and this is its default.
    zeros: bool | None = None


FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": Family(
        (Source("text_encoder", "tokenizer", {"context": lambda _: clip.HIDDEN}),)
    ),
    "StableDiffusionXLPipeline": Family(
        (
            Source("text_encoder", "tokenizer", {"context": clip.penultimate}),
            Source(
                "text_encoder_2",
                "tokenizer_2",
                {"context": clip.penultimate, "pooled": lambda _: clip.PROJECTED},
            ),
        ),
        zeros=True,
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text encoder of a pipeline, with its tokenizer.

    `encoder(weights, ids)` gives what the U-Net reads of prompts' ids, `[prompts, tokens]`.
    """

    part: str  # Its folder in the pipeline.
    config: Mapping[str, Any]
    program: Program
    gives: Mapping[str, str]  # By the name of the U-Net's input, the step of the program.
    model: Model
    weights: Weights
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path, source: Source) -> "TextEncoder":
        """Reads an encoder of the pipeline in `folder`, as far as the U-Net needs it."""
        place = folder / source.encoder
        config = read_json(place / "config.json")
        if config.get("use_attention_mask"):
            raise ValueError(
                f"{place / 'config.json'} has use_attention_mask=True; only False is supported"
            )
        gives = {name: step(config) for name, step in source.gives.items()}
        program = until(clip.text_program(config), *gives.values())
        model = network(program, {"ids": clip.ids_shape(config, 1)})
        weights = read_weights(place, model.shapes)
        tokenizer = read_tokenizer(folder / source.tokenizer)
        return cls(source.encoder, config, program, gives, model, weights, tokenizer)

    @property
    def tokens(self) -> int:
        """The length of every prompt."""
        return self.config["max_position_embeddings"]

    def inputs(self, batch: int) -> dict[str, Shape]:
        """Shapes of what the program reads for `batch` prompts."""
        return {"ids": clip.ids_shape(self.config, batch)}

    @property
    def widths(self) -> dict[str, int]:
        """Channels of what the U-Net reads of it."""
        found = calls(self.program, self.inputs(1))
        return {name: output(found[step]).shape[-1] for name, step in self.gives.items()}

    def ids(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids of prompts, `[prompts, tokens]` int32, padded and cut to length."""
        return tokenize(self.tokenizer, prompts, self.tokens)

    def __call__(self, weights: Mapping[str, jax.Array], ids: jax.Array) -> dict[str, jax.Array]:
        _, found = self.model(weights, {"ids": ids}, also=tuple(self.gives.values()))
        return {name: found[step] for name, step in self.gives.items()}


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """What several encoders give together, along the last axis."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: np.concatenate([part[name] for part in parts if name in part], axis=-1)
        for name in names
    }
