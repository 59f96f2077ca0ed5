"""The smallest things that a search runs on, made from seeds in a moment."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tokenizers import pre_tokenizers

from latency_models.bench import ModelBench
from latency_models.latency import Whole
from latency_models.roofline import Roofline
from latency_models.rows import encode_row
from nas.diffusion import clip, unet
from nas.diffusion.autoencoder import Autoencoder
from nas.diffusion.folders import (
    DIFFUSERS_WEIGHTS,
    TRANSFORMERS_WEIGHTS,
    write_json,
    write_weights,
)
from nas.evolution import (
    Evolution,
    Evolve,
    Measure,
    Outcome,
    Profile,
    Reference,
    Score,
    State,
    Task,
    Train,
    Validate,
)
from nas.recipe import Recipe, Sampling, Search, Training
from search_spaces.actions import Copy, Remove
from search_spaces.model import Weights
from search_spaces.ops import model
from search_spaces.program import calls, network, until
from search_spaces.unet import UNetSpec, lower
from search_spaces.unet_space import UNetSpace
from tests import drawn

LENGTH, CONTEXT = 6, 8
UNET: Mapping[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 4,
    "cross_attention_dim": CONTEXT,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 2,
}
XL_UNET: Mapping[str, Any] = {
    **UNET,
    "cross_attention_dim": 2 * CONTEXT,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + CONTEXT - 2,
}
REMOVABLE = (
    "down_blocks.0.resnets.0",
    "down_blocks.0.attentions.0",
    "mid_block.resnets.0",
    "mid_block.attentions.0",
    "mid_block.resnets.1",
    "up_blocks.0.resnets.0",
    "up_blocks.0.resnets.1",
    "up_blocks.1.attentions.0",
    "up_blocks.1.resnets.1",
    "up_blocks.1.attentions.1",
)
_SD15 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 768,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "down_block_types": [*3 * ["CrossAttnDownBlock2D"], "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *3 * ["CrossAttnUpBlock2D"]],
}
SD15: Mapping[str, Any] = _SD15
NARROW_SD15: Mapping[str, Any] = {
    **_SD15,
    "sample_size": 16,
    "cross_attention_dim": CONTEXT,
    "block_out_channels": [4, 8, 16, 16],
    "norm_num_groups": 2,
    "attention_head_dim": 2,
}
NARROW_SD21: Mapping[str, Any] = {
    **NARROW_SD15,
    "attention_head_dim": [1, 2, 4, 4],
    "use_linear_projection": True,
}
NARROW_SDXL: Mapping[str, Any] = {
    **NARROW_SD21,
    "block_out_channels": [4, 8, 16],
    "attention_head_dim": [1, 2, 4],
    "transformer_layers_per_block": [1, 2, 3],
    "down_block_types": ["DownBlock2D", *2 * ["CrossAttnDownBlock2D"]],
    "up_block_types": [*2 * ["CrossAttnUpBlock2D"], "UpBlock2D"],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,
}
VAE: Mapping[str, Any] = {
    "_class_name": "AutoencoderKL",
    "sample_size": 16,
    "block_out_channels": [4, 4],
    "down_block_types": 2 * ["DownEncoderBlock2D"],
    "up_block_types": 2 * ["UpDecoderBlock2D"],
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "mid_block_add_attention": False,
}
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "prediction_type": "v_prediction",
}
_PIECES = sorted(pre_tokenizers.ByteLevel.alphabet())
_START, _END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = {
    piece: number
    for number, piece in enumerate([*_PIECES, *(f"{p}</w>" for p in _PIECES), _START, _END])
}
_TOWER: Mapping[str, Any] = {
    "hidden_size": CONTEXT,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_TEXT: Mapping[str, Any] = {
    **_TOWER,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": LENGTH,
    "eos_token_id": VOCABULARY[_END],
}
SD, XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
UNETS = {SD: UNET, XL: XL_UNET}
TEXTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    SD: {"text_encoder": _TEXT},
    XL: {
        "text_encoder": {**_TEXT, "num_hidden_layers": 2},
        "text_encoder_2": {
            **_TEXT,
            "num_hidden_layers": 2,
            "hidden_act": "gelu",
            "projection_dim": CONTEXT - 2,
        },
    },
}
_CLIP: Mapping[str, Any] = {
    "projection_dim": 8,
    "text_config": _TEXT,
    "vision_config": {**_TOWER, "image_size": 8, "patch_size": 4},
}
PROMPTS = ("a", "b c", "dog", "e", "fg", "hi j")
PIXELS = np.tanh(drawn.normal(7, len(PROMPTS), 16, 16, 3))
BENCH = ModelBench(Roofline(flops_per_s=1e9, bytes_per_s=1e9, overhead_ms=0.01))


class Folders(NamedTuple):
    pipeline: Path
    evaluator: Path


def write(folder: Path, kind: str = SD) -> Folders:
    """Writes a pipeline of class `kind` and a CLIP model, with no weight left at its initial
    value."""
    found = Folders(folder / "pipeline", folder / "clip")
    space = unet_space(UNETS[kind])
    backbone = network(lower(space.seed), space.inputs)
    autoencoder, evaluator = Autoencoder(VAE), clip.CLIP(_CLIP)
    write_json(found.pipeline / "model_index.json", {"_class_name": kind})
    write_json(found.pipeline / "scheduler" / "scheduler_config.json", SCHEDULER)
    parts = [
        ("unet", UNETS[kind], backbone.shapes, DIFFUSERS_WEIGHTS, 1),
        ("vae", VAE, autoencoder.shapes, DIFFUSERS_WEIGHTS, 1),
    ]
    for number, (part, config) in enumerate(TEXTS[kind].items()):
        parts.append((part, config, text_shapes(config), TRANSFORMERS_WEIGHTS, 1 + number))
        tokenizer = part.replace("text_encoder", "tokenizer")
        # As published: the first tokenizer pads by end tokens, the second by exclamation marks.
        write_tokenizer(found.pipeline / tokenizer, pad=(_END, "!")[number])
    for part, config, shapes, name, seed in parts:
        write_json(found.pipeline / part / "config.json", config)
        write_weights(found.pipeline / part / name, drawn.weights(shapes, seed))
    write_json(found.evaluator / "config.json", _CLIP)
    preprocessor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.3]}
    write_json(found.evaluator / "preprocessor_config.json", preprocessor)
    weights = drawn.weights(evaluator.shapes, seed=2)
    write_weights(found.evaluator / TRANSFORMERS_WEIGHTS, weights)
    write_tokenizer(found.evaluator)
    return found


def text_shapes(config: Mapping[str, Any]) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Names and shapes of the weights of a text encoder."""
    end = clip.PROJECTED if "projection_dim" in config else clip.HIDDEN
    program = until(clip.text_program(config), end)
    return network(program, {"ids": clip.ids_shape(config, 1)}).shapes


def write_tokenizer(folder: Path, pad: str = _END) -> None:
    write_json(folder / "vocab.json", VOCABULARY)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokens = {"bos_token": _START, "eos_token": _END, "pad_token": pad, "unk_token": _END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **tokens}
    write_json(folder / "tokenizer_config.json", config)


def recipe(folders: Folders, **changes: Any) -> Recipe:
    """A search that removes a few blocks in seconds."""
    plain = Recipe(
        pipeline=folders.pipeline,
        evaluator=folders.evaluator,
        pictures=lambda: (PIXELS, PROMPTS),
        prompts=PROMPTS,
        references=lambda: PIXELS,
        bench=BENCH,
        sampling=Sampling(prompts=4, batch=2, steps=2),
        training=Training(robust_steps=4, between_steps=3, recovery_steps=4, batch=2, save_every=2),
        search=Search(budget="75%", group=2, rounds=2, caution=100.0),  # No copies.
    )
    return dataclasses.replace(plain, **changes)


def unet_space(config: Mapping[str, Any]) -> UNetSpace:
    return UNetSpace(unet.from_config(config), unet.shapes(config, batch=2, tokens=LENGTH))


def values(inputs: Mapping[str, jax.ShapeDtypeStruct], seed: int) -> dict[str, np.ndarray]:
    """Inputs of a U-Net, made from `seed`."""
    found = {name: drawn.normal(seed + i, *inputs[name].shape) for i, name in enumerate(inputs)}
    return {**found, "timestep": 500 * np.abs(found["timestep"])}


def shapes(space: UNetSpace, spec: UNetSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """Names and shapes of the weights of `spec`, call by call."""
    return {
        f"{step}.{name}": shape
        for step, call in calls(lower(spec), space.inputs).items()
        for name, shape in model(call).shapes.items()
    }


def seed_weights(space: UNetSpace) -> Weights:
    return drawn.weights(shapes(space, space.seed), seed=3)


def without(spec: UNetSpec, *blocks: str) -> UNetSpec:
    for block in blocks:
        spec = Remove(block).apply(spec)
    return spec


def predicted_ms(space: UNetSpace, spec: UNetSpec) -> float:
    return BENCH.networks([Whole(lower(spec), space.inputs)])[0].ms


@dataclasses.dataclass(frozen=True)
class FakePerformer:
    """Performs tasks without weights: a network scores the sum of what its blocks are worth.

    `worth` is that of the seed's blocks; a copy is worth a tenth of its original. `noise` is drawn
    for every prompt and architecture. Results take `slower` times what is predicted of them.
    """

    space: UNetSpace
    worth: Mapping[str, float]
    noise: float = 0.0
    slower: float = 1.0
    prompts: int = 8

    def __call__(self, strategy: Evolution, state: State, task: Task) -> Outcome:
        match task:
            case Profile():
                return self.profile()
            case Reference():
                return {"real": [1.0], "mismatched": [0.0], "real_recall": 1.0}
            case Train():
                return {"steps": 1, "losses": [1.0]}
            case Score(number, removed):
                spec = state.networks[number].spec
                return {"cosines": self.cosines(without(spec, removed) if removed else spec)}
            case Validate():
                return {"loss": 1.0}
            case Evolve(number):
                return strategy.decide(state, number)
            case Measure(number):
                return self.measure(state.networks[number].spec)

    def measure(self, spec: UNetSpec) -> Outcome:
        return {
            "ms": self.slower * predicted_ms(self.space, spec),
            "std": 0.0,
            "seed_ms": predicted_ms(self.space, self.space.seed),
            "seed_std": 0.0,
        }

    def profile(self) -> Outcome:
        seed = self.space.seed
        specs = [seed, *(copy.apply(seed) for copy in self.space.copies(seed))]
        wanted = [c for spec in specs for c in calls(lower(spec), self.space.inputs).values()]
        names = [removal.block for removal in self.space.removals(seed)]
        return {
            "rows": [encode_row(*row) for row in BENCH.table(wanted).rows.items()],
            "networks": [
                {"removed": gone, "ms": predicted_ms(self.space, without(seed, *gone)), "std": 0.0}
                for gone in ([], names)
            ],
        }

    def cosines(self, spec: UNetSpec) -> list[float]:
        rng = np.random.default_rng([len(block.name) for block in spec.blocks])
        total = sum(self._worth(block.name) for block in spec.blocks)
        return [float(total + self.noise * x) for x in rng.standard_normal(self.prompts)]

    def _worth(self, name: str) -> float:
        original, plus, _ = name.partition("+")
        return self.worth.get(original, 0.0) / (10 if plus else 1)


def decoded(data: bytes) -> list[Any]:
    """The lines of a journal."""
    return [json.loads(line) for line in data.splitlines()]


def copied(spec: UNetSpec, *copies: tuple[str, str]) -> UNetSpec:
    """`spec` with copies of blocks, each given by the original's name and its own."""
    for copy in copies:
        spec = Copy(*copy).apply(spec)
    return spec
