"""How weights follow an edit: what stays to the bit, what is fitted, what had to be drawn afresh.

An edit of one block is a `Change`; the field that was changed declares a `Carry`, which makes the
new block's weights out of the old one's. Where that takes data, it is what the block reads on
calibration samples.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from search_spaces.criteria import Criterion, OutputError
from search_spaces.fitting import refit
from search_spaces.model import Weights
from search_spaces.ops import Call, Shape, model
from search_spaces.program import Program

Leaf = TypeVar("Leaf")


class Samples(NamedTuple):
    """What one block sees on calibration data."""

    reads: tuple[jax.Array, ...]  # As the block's call has them, with any number of rows.
    gradient: Callable[[], Weights]  # Of the training loss, by the block's weights.


class Calibration(NamedTuple):
    """What edits carry weights by: shapes of what the network reads, samples, a criterion.

    `samples` gives what a step of a program with these weights sees on calibration data.
    """

    inputs: Mapping[str, Shape]
    samples: Callable[[Program, Weights, str], Samples] | None = None
    criterion: Criterion = OutputError()


class Carried(NamedTuple):
    """Weights after an edit. What could not be carried is listed by name.

    `fresh` are weights of the new network that were drawn, at least in part; `lost` are weights of
    the old one that nothing of the new one was made from.
    """

    weights: Weights
    fresh: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Change(NamedTuple):
    """A block before and after an edit, with its weights before, by path within the block."""

    old: Call
    new: Call
    weights: Weights
    samples: Samples
    criterion: Criterion

    def seen(self, *paths: str) -> dict[str, "Seen"]:
        """What sub-layers of the old block read and write on the samples."""
        return seen(self.old, self.weights, self.samples.reads, *paths)

    def carried(
        self,
        made: Weights | None = None,
        *,
        used: Iterable[str] = (),
        fresh: Iterable[str] = (),
    ) -> Carried:
        """`made`, and all that the old block and the new one have in common.

        The rest is drawn afresh, with the outlet at zero if it is among it. `used` are prefixes of
        old weights that `made` was made from; `fresh` are those of `made` that were drawn.
        """
        made, shapes = made or {}, model(self.new).shapes
        kept = {
            name: weight
            for name, weight in self.weights.items()
            if name in shapes and weight.shape == shapes[name].shape
        }
        known = {**kept, **made}
        missing = [name for name in shapes if name not in known]
        drawn = draw(self.new, missing) if missing else {}
        used = (*made, *used)
        lost = (name for name in self.weights if name not in kept and not name.startswith(used))
        weights = {name: known[name] if name in known else drawn[name] for name in shapes}
        return Carried(weights, (*fresh, *missing), tuple(lost))

    def refitted(self, made: Weights, path: str, *, target: str | None = None) -> Weights:
        """`made` with the linear layer at `path` of the new block refitted by least squares.

        On the samples it then writes, as nearly as it can, what the layer at `target` (the same
        path, if not given) writes in the old block. `made` lacks no weight that the layer's input
        depends on. Layers are `[..., in, out]` kernels with a bias.
        """
        weights = self.carried(made).weights
        wanted = self.seen(target or path)[target or path].output
        values = seen(self.new, weights, self.samples.reads, path)[path].reads[0]
        kernel, bias = weights[f"{path}.kernel"], weights[f"{path}.bias"]
        fitted, offset = refit(rows(values), rows(wanted), matrix(kernel))
        return {
            **made,
            f"{path}.kernel": jnp.asarray(fitted.reshape(kernel.shape), kernel.dtype),
            f"{path}.bias": jnp.asarray(offset, bias.dtype),
        }


Carry: TypeAlias = Callable[[Change], Carried]


def rows(values: Any) -> np.ndarray:
    """`[..., channels]` as `[rows, channels]`."""
    return np.asarray(values, np.float32).reshape(-1, values.shape[-1])


def matrix(kernel: Any) -> np.ndarray:
    """A kernel `[..., in, out]` as `[everything else, out]`."""
    return rows(kernel)


class Seen(NamedTuple):
    """What a sub-layer read and wrote."""

    reads: tuple[jax.Array, ...]
    output: jax.Array


class _Witness(nnx.Module):
    """Stands in for a sub-layer and keeps what it reads and writes."""

    def __init__(self, layer: Any):
        self.layer, self.seen = layer, []

    def __call__(self, *reads: jax.Array) -> jax.Array:
        output = self.layer(*reads)
        self.seen.append(Seen(reads, output))
        return output


def seen(call: Call, weights: Weights, reads: tuple[jax.Array, ...], *paths: str) -> dict[str, Any]:
    """What the sub-layers of a call at dotted `paths` read and write when it is run on `reads`."""
    return _watching(call, paths)(weights, reads)


@functools.lru_cache(maxsize=64)
def _watching(call: Call, paths: tuple[str, ...]) -> Callable[..., dict[str, Seen]]:
    built = model(call)

    @jax.jit
    def run(weights: Weights, reads: tuple[jax.Array, ...]) -> dict[str, Seen]:
        module, found = built.bind(weights), {}
        for path in paths:
            *above, last = path.split(".")
            parent = functools.reduce(_child, above, module)
            found[path] = _Witness(_child(parent, last))
            _replace(parent, last, found[path])
        module(*reads)
        return {path: _once(path, witness.seen) for path, witness in found.items()}

    return run


def _once(path: str, found: list[Seen]) -> Seen:
    if len(found) != 1:
        raise ValueError(f"the layer {path} ran {len(found)} times; one run can be refitted")
    return found[0]


def _child(parent: Any, name: str) -> Any:
    if isinstance(parent, nnx.List):
        return parent[int(name)]
    return parent[name] if isinstance(parent, nnx.Dict) else getattr(parent, name)


def _replace(parent: Any, name: str, layer: nnx.Module) -> None:
    if isinstance(parent, nnx.List):
        parent[int(name)] = layer
    elif isinstance(parent, nnx.Dict):
        parent[name] = layer
    else:
        setattr(parent, name, layer)


def draw(call: Call, names: Iterable[str]) -> Weights:
    """Fresh weights of a block, of these names only; its outlet, if among them, starts at zero.

    They depend on the block's shapes alone, so an edit is the same on every machine.
    """
    zeros = frozenset({call.op.outlet} if call.op.outlet else ())
    seed = zlib.crc32(repr(sorted(model(call).shapes.items())).encode())
    drawn = model(call).initial(seed, zeros=zeros)
    return {name: drawn[name] for name in names}


def part(weights: Mapping[str, Leaf], block: str) -> dict[str, Leaf]:
    """The weights of `block`, by path within it."""
    prefix = f"{block}."
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


def without(weights: Mapping[str, Leaf], *blocks: str) -> dict[str, Leaf]:
    """`weights` less those of `blocks`."""
    prefixes = tuple(f"{block}." for block in blocks)
    return {name: weight for name, weight in weights.items() if not name.startswith(prefixes)}


def put(weights: Mapping[str, Leaf], block: str, own: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """`weights` with `own` as those of `block`."""
    return without(weights, block) | {f"{block}.{name}": weight for name, weight in own.items()}
