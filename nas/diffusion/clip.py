"""CLIP's text and vision towers (Radford et al., 2021), as transformers has them: `CLIPModel`, and
`CLIPTextModel` and `CLIPTextModelWithProjection`, the text encoders of Stable Diffusion.

Both towers are programs of ops, so they are run, priced and stored like a U-Net.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from search_spaces.layers import Linear, attention
from search_spaces.model import Model, Weights
from search_spaces.ops import Op, Shape
from search_spaces.program import Program, Step, network, until

_ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class TokenEmbedding(Op):
    """Token plus position embeddings of `[batch, tokens]` ids."""

    vocabulary: int
    positions: int
    width: int

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        return _TokenEmbedding(self, rngs)


class _TokenEmbedding(nnx.Module):
    def __init__(self, op: TokenEmbedding, rngs: nnx.Rngs):
        self.token_embedding = nnx.Embed(op.vocabulary, op.width, rngs=rngs)
        self.position_embedding = nnx.Embed(op.positions, op.width, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        # Flax's own look-up answers in the precision of the first weights it ever had.
        tokens, positions = self.token_embedding.embedding, self.position_embedding.embedding
        return tokens[...][ids] + positions[...][: ids.shape[1]]


@dataclasses.dataclass(frozen=True)
class PatchEmbedding(Op):
    """Cuts pixels into square patches, `[batch, 1 + patches, width]`: the class token first."""

    patch: int
    width: int

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        (pixels,) = inputs
        return _PatchEmbedding(self, pixels, rngs)


class _PatchEmbedding(nnx.Module):
    def __init__(self, op: PatchEmbedding, pixels: Shape, rngs: nnx.Rngs):
        self.patch = op.patch
        _, height, width, channels = pixels.shape
        tokens = 1 + (height // op.patch) * (width // op.patch)
        self.class_embedding = nnx.Param(jnp.zeros((op.width,)))
        self.patch_embedding = nnx.Conv(
            channels,
            op.width,
            (op.patch, op.patch),
            strides=op.patch,
            padding="VALID",
            use_bias=False,
            rngs=rngs,
        )
        self.position_embedding = nnx.Embed(tokens, op.width, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        patches = self.patch_embedding(pixels)
        patches = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        first = jnp.broadcast_to(
            self.class_embedding[...].astype(patches.dtype),
            (patches.shape[0], 1, patches.shape[-1]),
        )
        tokens = jnp.concatenate([first, patches], axis=1)
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))


@dataclasses.dataclass(frozen=True)
class EncoderLayer(Op):
    """A pre-norm transformer layer; `activation` is transformers' name of it."""

    heads: int
    hidden: int
    causal: bool
    activation: str = "quick_gelu"
    epsilon: float = 1e-5

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        (x,) = inputs
        return _EncoderLayer(self, x.shape[-1], rngs)


class _EncoderLayer(nnx.Module):
    def __init__(self, op: EncoderLayer, width: int, rngs: nnx.Rngs):
        self.activation = _ACTIVATIONS[op.activation]
        self.layer_norm1 = nnx.LayerNorm(width, epsilon=op.epsilon, rngs=rngs)
        self.self_attn = _SelfAttention(op.heads, op.causal, width, rngs)
        self.layer_norm2 = nnx.LayerNorm(width, epsilon=op.epsilon, rngs=rngs)
        self.mlp = nnx.Dict(
            {
                "fc1": Linear(width, op.hidden, rngs=rngs),
                "fc2": Linear(op.hidden, width, rngs=rngs),
            }
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.layer_norm2(x))))


class _SelfAttention(nnx.Module):
    def __init__(self, heads: int, causal: bool, width: int, rngs: nnx.Rngs):
        self.heads, self.causal = heads, causal
        self.q_proj = Linear(width, width, rngs=rngs)
        self.k_proj = Linear(width, width, rngs=rngs)
        self.v_proj = Linear(width, width, rngs=rngs)
        self.out_proj = Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        mixed = attention(
            self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=self.causal
        )
        return self.out_proj(mixed)


@dataclasses.dataclass(frozen=True)
class LayerNorm(Op):
    epsilon: float = 1e-5

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        (x,) = inputs
        return nnx.LayerNorm(x.shape[-1], epsilon=self.epsilon, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class FirstToken(Op):
    """Layer norm of the first token, `[batch, width]`."""

    epsilon: float = 1e-5

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        (x,) = inputs
        return _FirstToken(x.shape[-1], epsilon=self.epsilon, rngs=rngs)


class _FirstToken(nnx.LayerNorm):
    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(x[:, 0])


@dataclasses.dataclass(frozen=True)
class EndToken(Op):
    """The hidden state at the first end token, `[batch, width]`; reads `(hidden, ids)`.

    Configurations older than 2023 say the end token is 2 and mean the largest id.
    """

    end: int

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        return _EndToken(self.end)


class _EndToken(nnx.Module):
    def __init__(self, end: int):
        self.end = end

    def __call__(self, hidden: jax.Array, ids: jax.Array) -> jax.Array:
        position = jnp.argmax(ids if self.end == 2 else ids == self.end, axis=1)
        return jnp.take_along_axis(hidden, position[:, None, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class Project(Op):
    """A linear layer without bias."""

    width: int

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        (x,) = inputs
        return Linear(x.shape[-1], self.width, use_bias=False, rngs=rngs)


HIDDEN = (
    "text_model.final_layer_norm"  # The step of the last hidden states, `[batch, tokens, width]`.
)
POOLED = "pooled"  # That at the end token, `[batch, width]`.
PROJECTED = "text_projection"  # The embedding of the whole text, `[batch, projection]`.


def text_program(config: Mapping[str, Any], projection: int | None = None) -> Program:
    """A text configuration as a program from `ids` to the embedding of the text.

    `projection` is the embedding's width where the configuration does not say it. The steps named
    `HIDDEN`, `POOLED`, `PROJECTED` and by `penultimate` are what transformers returns of a text.
    """
    embed = TokenEmbedding(
        config["vocab_size"], config["max_position_embeddings"], config["hidden_size"]
    )
    program = [Step("text_model.embeddings", embed, ("ids",))]
    program += _encoder("text_model", config, program[-1].name, causal=True)
    norm = LayerNorm(config.get("layer_norm_eps", 1e-5))
    end = EndToken(config.get("eos_token_id", 49407))
    width = config.get("projection_dim", 512) if projection is None else projection
    program += [
        Step(HIDDEN, norm, (program[-1].name,)),
        Step(POOLED, end, (HIDDEN, "ids")),
        Step(PROJECTED, Project(width), (POOLED,)),
    ]
    return tuple(program)


def penultimate(config: Mapping[str, Any]) -> str:
    """The step of the hidden states before the last layer, `[batch, tokens, width]`, which no norm
    has seen: `hidden_states[-2]` of transformers."""
    return text_program(config)[config["num_hidden_layers"] - 1].name


def vision_program(config: Mapping[str, Any], projection: int) -> Program:
    """A `CLIPVisionModel` configuration as a program from `pixels` to projected embeddings."""
    embed = PatchEmbedding(config["patch_size"], config["hidden_size"])
    epsilon = config.get("layer_norm_eps", 1e-5)
    program = [
        Step("vision_model.embeddings", embed, ("pixels",)),
        # The original's spelling, kept for the sake of its checkpoints.
        Step("vision_model.pre_layrnorm", LayerNorm(epsilon), ("vision_model.embeddings",)),
    ]
    program += _encoder("vision_model", config, program[-1].name, causal=False)
    program.append(Step("vision_model.post_layernorm", FirstToken(epsilon), (program[-1].name,)))
    program.append(Step("visual_projection", Project(projection), (program[-1].name,)))
    return tuple(program)


def _encoder(tower: str, config: Mapping[str, Any], x: str, *, causal: bool) -> list[Step]:
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"hidden_act is {activation!r}; supported are {sorted(_ACTIVATIONS)}")
    op = EncoderLayer(
        config["num_attention_heads"],
        config["intermediate_size"],
        causal,
        activation,
        config.get("layer_norm_eps", 1e-5),
    )
    names = [f"{tower}.encoder.layers.{i}" for i in range(config["num_hidden_layers"])]
    return [Step(name, op, (read,)) for name, read in zip(names, [x, *names[:-1]], strict=True)]


def text_model(config: Mapping[str, Any]) -> Model:
    """`model(weights, {"ids": ids})` is the last hidden states, `[batch, tokens, width]`."""
    return network(until(text_program(config), HIDDEN), {"ids": ids_shape(config, 1)})


def ids_shape(config: Mapping[str, Any], batch: int) -> Shape:
    return jax.ShapeDtypeStruct((batch, config["max_position_embeddings"]), "int32")


def pixels_shape(config: Mapping[str, Any], batch: int) -> Shape:
    size = config["image_size"]
    return jax.ShapeDtypeStruct((batch, size, size, config.get("num_channels", 3)), "float32")


class CLIP:
    """Both towers of a `CLIPModel`; methods take the weights of the whole model, named as there.

    Embeddings are normalised, so their products are cosines. `shapes` names the weights.
    """

    def __init__(self, config: Mapping[str, Any]):
        text, vision = config["text_config"], config["vision_config"]
        width = config["projection_dim"]
        self.config = config
        self._text = network(text_program(text, width), {"ids": ids_shape(text, 1)})
        self._vision = network(vision_program(vision, width), {"pixels": pixels_shape(vision, 1)})
        self.shapes: dict[str, Shape] = {
            "logit_scale": jax.ShapeDtypeStruct((), "float32"),
            **self._text.shapes,
            **self._vision.shapes,
        }

    def initial(self, seed: int) -> Weights:
        """Draws fresh weights; the temperature starts at CLIP's 0.07."""
        drawn = {**self._text.initial(seed), **self._vision.initial(seed + 1)}
        return {"logit_scale": jnp.log(1 / 0.07), **drawn}

    def text(self, weights: Mapping[str, jax.Array], ids: jax.Array) -> jax.Array:
        """Embeds prompts, `[batch, tokens]` ids: `[batch, projection]`."""
        return _normalised(self._text(_part(weights, self._text), {"ids": ids}))

    def image(self, weights: Mapping[str, jax.Array], pixels: jax.Array) -> jax.Array:
        """Embeds preprocessed pixels `[batch, height, width, 3]`: `[batch, projection]`."""
        return _normalised(self._vision(_part(weights, self._vision), {"pixels": pixels}))


def _part(weights: Mapping[str, jax.Array], model: Model) -> Weights:
    return {name: weights[name] for name in model.shapes}


def _normalised(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
