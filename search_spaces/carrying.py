"""How weights follow the micro-choices of ResNets and transformers.

Each public function is a `surgery.Carry`, declared on the field it belongs to. A linear layer
behind what was changed is refitted to calibration data, in the order in which the layers run, so
that each makes up for what those before it could not keep.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from search_spaces.criteria import Units
from search_spaces.fitting import factors, refit, root
from search_spaces.layers import combined
from search_spaces.model import Weights
from search_spaces.ops import model
from search_spaces.surgery import Carried, Change, draw, matrix, rows, seen


def _layers(op: Any) -> Iterator[str]:
    return (f"transformer_blocks.{number}" for number in range(op.depth))


def _attentions(op: Any) -> Iterator[str]:
    """Paths of the attentions of a transformer, in the order in which they run."""
    for layer in _layers(op):
        if op.self_attention:
            yield f"{layer}.attn1"
        if op.cross_attention:
            yield f"{layer}.attn2"


# Units: hidden channels of FFNs, heads of attentions.


class Coupled(NamedTuple):
    """A weight that holds units along `axis`, in that many blocks of all units."""

    name: str
    axis: int
    blocks: int = 1

    def by_unit(self, weight: Any, size: int) -> np.ndarray:
        """`[units, blocks, size, ...]`."""
        moved = np.moveaxis(np.asarray(weight), self.axis, 0)
        return moved.reshape(self.blocks, -1, size, *moved.shape[1:]).swapaxes(0, 1)

    def back(self, units: np.ndarray) -> jax.Array:
        """Inverse of `by_unit`."""
        moved = units.swapaxes(0, 1)
        flat = moved.reshape(-1, *moved.shape[3:])
        return jnp.asarray(np.moveaxis(flat, 0, self.axis))


def ffn(change: Change) -> Carried:
    """Keeps the hidden channels that matter most, and refits the second matrix.

    New channels are drawn, and start unheard.
    """
    return resized(
        change,
        {
            f"{layer}.ff.net.2": (
                Coupled(f"{layer}.ff.net.0.proj.kernel", 1, 2),
                Coupled(f"{layer}.ff.net.0.proj.bias", 0, 2),
            )
            for layer in _layers(change.new.op)
        },
        size=1,
    )


def heads(change: Change) -> Carried:
    """Keeps the heads that matter most, and refits the projection of what they say.

    New heads are drawn, and start unheard.
    """
    op: Any = change.new.op
    projections = ("to_q", "to_kv") if op.shared else ("to_q", "to_k", "to_v")
    return resized(
        change,
        {
            f"{attention}.to_out.0": tuple(
                Coupled(f"{attention}.{name}.kernel", 1) for name in projections
            )
            for attention in _attentions(op)
        },
        size=op.size,
    )


def resized(change: Change, coupled: Mapping[str, tuple[Coupled, ...]], size: int) -> Carried:
    """More or fewer units of `size` channels before linear layers, with what is coupled to them.

    `coupled` names the layers by path, and for each the weights that hold its units.
    """
    made, fresh, shapes = {}, [], model(change.new).shapes
    for out, others in coupled.items():
        parts = (*others, Coupled(f"{out}.kernel", 0))
        old = {c: c.by_unit(change.weights[c.name], size) for c in parts}
        units, count = len(old[parts[-1]]), shapes[f"{out}.kernel"].shape[0] // size
        if count < units:
            kept = _kept(change, out, parts, size, count)
            made |= {c.name: c.back(weight[kept]) for c, weight in old.items()}
            made = change.refitted(made, out)
        else:
            drawn = draw(change.new, [c.name for c in parts])
            for c, weight in old.items():
                new = np.array(c.by_unit(drawn[c.name], size))
                new[:units], new[units:] = weight, new[units:] if c in others else 0.0
                made[c.name] = c.back(new)
                fresh.append(c.name)
    return change.carried(made, fresh=fresh)


def _kept(
    change: Change, out: str, parts: tuple[Coupled, ...], size: int, count: int
) -> np.ndarray:
    def by_unit(weights: Weights) -> tuple[np.ndarray, ...]:
        return tuple(c.by_unit(weights[c.name], size) for c in parts)

    units = Units(
        size,
        by_unit(change.weights),
        lambda: by_unit(change.samples.gradient()),
        rows(change.seen(out)[out].reads[0]),
        matrix(change.weights[f"{out}.kernel"]),
    )
    return change.criterion.keep(units, count)


def gate(change: Change) -> Carried:
    """Another nonlinearity of the same shape: its argument is stretched, its value shrunk."""
    old, new = change.old.op, change.new.op
    stretch = old.gate.slope / new.gate.slope  # pyright: ignore[reportAttributeAccessIssue]
    made = {}
    for layer in _layers(new):
        proj, out = f"{layer}.ff.net.0.proj", f"{layer}.ff.net.2"
        for name in (f"{proj}.kernel", f"{proj}.bias"):
            value, gated = jnp.split(change.weights[name], 2, axis=-1)
            made[name] = jnp.concatenate([value, stretch * gated], axis=-1)
        made[f"{out}.kernel"] = change.weights[f"{out}.kernel"] / stretch
        made = change.refitted(made, out)
    return change.carried(made)


def depth(change: Change) -> Carried:
    """Keeps the first layers and refits the projection behind the last; new layers are drawn, and
    start as the identity."""
    old: Any = change.old.op
    new: Any = change.new.op
    if new.depth < old.depth:
        return change.carried(change.refitted({}, "proj_out"))
    added = list(_layers(new))[old.depth :]
    outlets = [f"{a}.to_out.0" for a in _attentions(new)] + [f"{a}.ff.net.2" for a in added]
    return _silent(change, [o for o in outlets if o.startswith(tuple(f"{a}." for a in added))])


def attended(change: Change) -> Carried:
    """Without an attention, the last projection is refitted; a new one is drawn, and starts
    unheard."""
    gone = set(_attentions(change.old.op)) - set(_attentions(change.new.op))
    if gone:
        return change.carried(change.refitted({}, "proj_out"))
    new = set(_attentions(change.new.op)) - set(_attentions(change.old.op))
    return _silent(change, [f"{attention}.to_out.0" for attention in sorted(new)])


def _silent(change: Change, outlets: list[str]) -> Carried:
    """The new block with what it has more drawn, and these linear layers of it at zero."""
    shapes = model(change.new).shapes
    names = [f"{outlet}.{leaf}" for outlet in outlets for leaf in ("kernel", "bias")]
    zeros = {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in names}
    return change.carried(zeros, fresh=names)


# Attention.


def mixing(change: Change) -> Carried:
    """Scales what each head says to what it said before, then refits their projection."""
    op: Any = change.new.op
    made: Weights = {}
    for attention in _attentions(op):
        out = f"{attention}.to_out.0"
        weights = change.carried(made).weights
        values = rows(seen(change.new, weights, change.samples.reads, out)[out].reads[0])
        kernel = np.asarray(change.weights[f"{out}.kernel"])
        wanted = rows(change.seen(out)[out].output) - np.asarray(change.weights[f"{out}.bias"])
        scaled = _scales(values, kernel, wanted, op.heads)[:, None, None] * kernel.reshape(
            op.heads, -1, kernel.shape[1]
        )
        made[f"{out}.kernel"] = jnp.asarray(scaled.reshape(kernel.shape), kernel.dtype)
        made = change.refitted(made, out)
    return change.carried(made)


def _scales(values: np.ndarray, kernel: np.ndarray, wanted: np.ndarray, heads: int) -> np.ndarray:
    """The scale of each head that brings the sum of what they say nearest to `wanted`."""
    size = len(kernel) // heads
    parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
    # Products of what two heads say, summed over rows, from the Gram matrix of all values.
    gram, back = values.T @ values, kernel @ kernel.T
    products = np.array([[(gram[a, b] * back[a, b]).sum() for b in parts] for a in parts])
    towards = values.T @ (wanted @ kernel.T)
    aims = np.array([np.trace(towards[a, a]) for a in parts])
    products += 1e-4 * np.trace(products) / heads * np.eye(heads)
    return np.linalg.solve(products, aims)


def shared(change: Change) -> Carried:
    """One projection for keys and values, by a joint factorisation of both.

    Per head the two projections side by side are brought to the rank of one, weighted by what the
    context is like, what queries ask for and what is made of values. What that leaves of each is
    taken up by the queries' projection and by the one behind the head. Going back is exact.
    """
    op: Any = change.new.op
    made, used = {}, []
    for attention in _attentions(op):
        names = {n: f"{attention}.{n}.kernel" for n in ("to_q", "to_k", "to_v", "to_kv")}
        if not op.shared:
            both = change.weights[names["to_kv"]]
            made |= {names["to_k"]: both, names["to_v"]: both}
            used.append(names["to_kv"])
            continue
        used += [names["to_k"], names["to_v"]]
        tried = [
            change.refitted(
                made | _joint(change, attention, names, balance), f"{attention}.to_out.0"
            )
            for balance in (0.3, 1.0, 3.0)
        ]
        made = min(tried, key=lambda weights: _error(change, weights, f"{attention}.to_out.0"))
    return change.carried(made, used=used)


def _joint(change: Change, attention: str, names: Mapping[str, str], balance: float) -> Weights:
    op: Any = change.new.op
    out = f"{attention}.to_out.0.kernel"
    found = change.seen(f"{attention}.to_q", f"{attention}.to_k")
    queries = rows(found[f"{attention}.to_q"].output)
    context = rows(found[f"{attention}.to_k"].reads[0])

    def by_head(name: str, axis: int) -> np.ndarray:  # [heads, ..., size] or [heads, size, ...]
        weight = np.asarray(change.weights[name], np.float64)
        shape = (op.heads, op.size)
        if axis == 1:
            return np.moveaxis(weight.reshape(-1, *shape), 1, 0)
        return weight.reshape(*shape, -1)

    asking = by_head(names["to_q"], 1)
    keys, values, back = by_head(names["to_k"], 1), by_head(names["to_v"], 1), by_head(out, 0)
    asked = np.moveaxis(queries.reshape(-1, op.heads, op.size), 1, 0).astype(np.float64)
    key_root, key_back = root(np.swapaxes(asked, 1, 2) @ asked / len(queries))
    value_root, value_back = root(back @ np.swapaxes(back, 1, 2))
    gram = (context.T @ context / len(context)).astype(np.float64)
    weighed_keys, weighed_values = keys @ key_root, values @ value_root
    ratio = balance * np.sqrt(_power(weighed_values, gram) / _power(weighed_keys, gram))
    both = np.concatenate([ratio[:, None, None] * weighed_keys, weighed_values], axis=-1)
    common, apart = factors(both, op.size, gram)
    to_key = apart[..., : op.size] @ key_back / ratio[:, None, None]
    to_value = apart[..., op.size :] @ value_back
    made = {
        names["to_kv"]: np.moveaxis(common, 0, 1).reshape(len(gram), -1),
        names["to_q"]: np.moveaxis(asking @ np.swapaxes(to_key, 1, 2), 0, 1).reshape(
            asking.shape[1], -1
        ),
        out: (to_value @ back).reshape(op.heads * op.size, -1),
    }
    return {name: jnp.asarray(weight, jnp.float32) for name, weight in made.items()}


def _power(weights: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Mean square of what weights `[heads, in, size]` make of inputs with this Gram matrix."""
    return np.maximum((weights * (gram @ weights)).sum((1, 2)), 1e-20)


def _error(change: Change, made: Weights, path: str) -> float:
    """Squared error of what a layer of the new block writes, against the old one's."""
    weights = change.carried(made).weights
    new = seen(change.new, weights, change.samples.reads, path)[path].output
    return float(jnp.square(new - change.seen(path)[path].output).mean())


# ResNets.


def convolution(change: Change) -> Carried:
    """Separable from full convolution by the best low-rank factors of every input channel's kernel,
    weighted by what the channel is like; the pointwise half is then refitted. Back is exact."""
    made, used = {}, []
    separable = hasattr(change.new.op.convolution, "expansion")  # pyright: ignore
    for conv in ("conv1", "conv2"):
        kernel = _full(change, conv)
        bias = change.weights.get(f"{conv}.bias", change.weights.get(f"{conv}.pointwise.bias"))
        used.append(f"{conv}.")
        if not separable:
            made |= {f"{conv}.kernel": kernel, f"{conv}.bias": bias}
            continue
        expansion = change.new.op.convolution.expansion  # pyright: ignore
        taps, pixels = kernel.shape[0] ** 2, change.seen(conv)[conv].reads[0]
        by_channel = np.moveaxis(np.asarray(kernel).reshape(taps, *kernel.shape[2:]), 1, 0)
        depthwise, pointwise = factors(
            by_channel.astype(np.float64), expansion, _patches(pixels, kernel.shape[0])
        )
        shapes = {n: model(change.new).shapes[f"{conv}.{n}"].shape for n in _SEPARABLE}
        made |= {
            f"{conv}.depthwise.kernel": np.moveaxis(depthwise, 1, 0).reshape(shapes[_SEPARABLE[0]]),
            f"{conv}.pointwise.kernel": pointwise.reshape(shapes[_SEPARABLE[1]]),
            f"{conv}.pointwise.bias": bias,
        }
        made = {name: jnp.asarray(weight, jnp.float32) for name, weight in made.items()}
        made = change.refitted(made, f"{conv}.pointwise", target=conv)
    return change.carried(made, used=used)


_SEPARABLE = ("depthwise.kernel", "pointwise.kernel")


def _full(change: Change, conv: str) -> jax.Array:
    """The kernel `[size, size, in, out]` of a convolution of either kind, before the change."""
    if f"{conv}.kernel" in change.weights:
        return change.weights[f"{conv}.kernel"]
    depthwise, pointwise = (change.weights[f"{conv}.{name}"] for name in _SEPARABLE)
    return combined(depthwise, pointwise, change.old.op.convolution.expansion)  # pyright: ignore


def _patches(pixels: jax.Array, size: int) -> np.ndarray:
    """Gram matrices of the patches of every channel, `[channels, size**2, size**2]`."""
    pad, (_, height, width, _) = size // 2, pixels.shape
    padded = np.pad(np.asarray(pixels, np.float32), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shifted = np.stack(
        [
            padded[:, row : row + height, column : column + width].reshape(-1, pixels.shape[-1])
            for row in range(size)
            for column in range(size)
        ]
    )
    by_channel = shifted.transpose(2, 0, 1)
    return (by_channel @ by_channel.swapaxes(1, 2)).astype(np.float64)


def modulation(change: Change) -> Carried:
    """Fits the time embedding's projection so that the second normalisation says what it did.

    For every sample and channel the modulation that comes nearest is known; the projection is
    fitted to them. Going from scale and shift to an addition keeps the shift.
    """
    name = "time_emb_proj"
    found = change.seen("norm2", name)
    features, said = rows(found[name].reads[0]), rows(found[name].output)
    blank = change.carried().weights
    plain = seen(change.new, blank, change.samples.reads, "norm2")["norm2"]
    if len(change.weights[f"{name}.bias"]) < len(blank[f"{name}.bias"]):
        slope = _slope(change, found["norm2"].reads[0])
        wanted = _scale_and_shift(plain.output, found["norm2"].output)
        prior = change.weights[f"{name}.kernel"] * slope.mean(0)
        kernel = np.concatenate([np.zeros_like(prior), prior], axis=-1)
    else:
        _, shift = np.split(said, 2, axis=-1)
        slope = _slope(change, found["norm2"].reads[0])
        wanted = shift / slope
        kernel = np.split(change.weights[f"{name}.kernel"], 2, axis=-1)[1] / slope.mean(0)
    fitted, bias = refit(features, wanted, np.asarray(kernel))
    made = {f"{name}.kernel": jnp.asarray(fitted, jnp.float32)}
    return change.carried(made | {f"{name}.bias": jnp.asarray(bias, jnp.float32)})


def _scale_and_shift(plain: jax.Array, wanted: jax.Array) -> np.ndarray:
    """The scale, less one, and the shift by which `plain` comes nearest to `wanted`, by sample and
    channel, `[rows, 2 * channels]`."""
    x, y = (np.asarray(v, np.float64).reshape(len(v), -1, v.shape[-1]) for v in (plain, wanted))
    mean_x, mean_y = x.mean(1), y.mean(1)
    spread = np.square(x - mean_x[:, None]).mean(1)
    together = ((x - mean_x[:, None]) * (y - mean_y[:, None])).mean(1)
    scale = together / np.maximum(spread, 1e-8)
    return np.concatenate([scale - 1, mean_y - scale * mean_x], axis=-1)


def _slope(change: Change, read: jax.Array) -> np.ndarray:
    """What the second normalisation multiplies by, `[rows, channels]`."""
    op: Any = change.new.op
    batch, channels = read.shape[0], read.shape[-1]
    x = np.asarray(read, np.float64).reshape(batch, -1, op.groups, channels // op.groups)
    deviation = np.sqrt(x.var((1, 3)) + op.epsilon)
    return np.asarray(change.weights["norm2.scale"]) / np.repeat(
        deviation, channels // op.groups, axis=1
    )
