"""Model folders as diffusers and transformers write them: `config.json` and safetensors.

Weights are read through a memory map, one tensor at a time, so that a model takes little more than
itself; files in pickle's format are never opened.
"""

import dataclasses
import functools
import json
import math
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from nas.places import Place, write_whole
from search_spaces.model import Weights, from_torch, our_name, to_torch, torch_name

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
TRANSFORMERS_WEIGHTS = "model.safetensors"
SHARD = 10_000_000_000  # Bytes of tensors in one file; diffusers' default.

_TYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
_READERS = 2  # Tensors that are read at once: each is in memory twice while it is.
_BLOCK = 1 << 18  # Numbers that are converted at once.
_WRITTEN = ("float32", "float16", "bfloat16")
# Where the libraries look for weights, in their order.
_PLACES = (
    f"{DIFFUSERS_WEIGHTS}.index.json",
    DIFFUSERS_WEIGHTS,
    TRANSFORMERS_WEIGHTS,
    f"{TRANSFORMERS_WEIGHTS}.index.json",
)
_STEM = "|".join(
    re.escape(name.removesuffix(".safetensors"))
    for name in (DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS)
)
_SHARDED = re.compile(r"-\d{5}-of-\d{5}")
_VARIANT = re.compile(
    rf"({_STEM})\.((?P<single>[^.]+)\.safetensors|safetensors\.index\.(?P<sharded>[^.]+)\.json)"
)
_UNSAFE = (".bin", ".ckpt", ".msgpack", ".pt", ".pth")

# Autoencoders saved before diffusers 0.16 call the layers of their attention so.
_EARLIER = {
    ".to_q.": ".query.",
    ".to_k.": ".key.",
    ".to_v.": ".value.",
    ".to_out.0.": ".proj_attn.",
}


class Settings(dict[str, Any]):
    """A JSON object of a file. Raises `ValueError` naming the file and a setting that it lacks."""

    def __init__(self, content: Mapping[str, Any], path: Place):
        super().__init__(content)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.path} has no {name}")


def read_json(path: Place) -> Settings:
    """The JSON object at `path`. Raises `ValueError` naming the file that is missing or damaged."""
    try:
        found = json.loads(path.read_bytes(), object_hook=lambda part: Settings(part, path))
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder, not a file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(found, Settings):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def write_json(path: Place, content: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_weights(
    path: Path, shapes: Mapping[str, jax.ShapeDtypeStruct], *, dtype: str = "float32"
) -> Weights:
    """The weights named in `shapes`, in our order of axes, cast to `dtype`.

    `path` is a model's folder, whose weights may be sharded, or one file of weights. Memory is one
    copy of the weights and two tensors. Raises `ValueError` naming the file and the weight that is
    missing or has another shape.
    """
    weights = map_weights(path, dtype=dtype).named(shapes)
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(weights, pool.map(weights.__getitem__, weights), strict=True))


def map_weights(path: Path, *, dtype: str = "float32") -> "Mapped":
    """All weights of a folder or file, as `read_weights` reads them, but each when it is asked for.

    They are called as in networks without embeddings, whose names PyTorch's do not tell apart.
    Raises `ValueError` on a folder without weights that can be read, saying what to do.
    """
    tensors = _tensors(path)
    return Mapped(
        path, {our_name(name, len(t.shape)): t for name, t in tensors.items()}, _known(dtype)
    )


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor in a mapped file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: str  # The format's name of its type.
    data: memoryview

    def shape_of_ours(self, name: str) -> tuple[int, ...]:
        """The shape of the weight that we call `name`."""
        return from_torch(name, np.broadcast_to(np.float32(0), self.shape)).shape

    def read(self, name: str, dtype: str) -> jax.Array:
        if self.kind not in _TYPES:
            raise ValueError(
                f"{self.path}: {self.name} is of type {self.kind}; weights are {', '.join(_TYPES)}"
            )
        stored = np.frombuffer(self.data, jnp.dtype(_TYPES[self.kind]))
        array = from_torch(name, _cast(stored, jnp.dtype(dtype)).reshape(self.shape))
        # What keeps its order of axes would be no copy but a view of a file that may change.
        copied = jnp.array if array.flags.c_contiguous else jax.device_put
        return copied(array).block_until_ready()  # Before the next is begun: memory for one.


def _cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A one-dimensional array as another type, in blocks: NumPy converts what is half as wide
    several times slower than XLA, which compiles for every shape anew."""
    if array.dtype == dtype:
        return array
    found, whole = np.empty(array.shape, dtype), len(array) - len(array) % _BLOCK
    for begin in range(0, whole, _BLOCK):
        block = slice(begin, begin + _BLOCK)
        found[block] = _converted(array[block], dtype)
    found[whole:] = array[whole:].astype(dtype)
    return found


@functools.partial(jax.jit, static_argnums=1)
def _converted(block: jax.Array, dtype: np.dtype) -> jax.Array:
    return block.astype(dtype)


class Mapped(Mapping[str, jax.Array]):
    """Weights in a mapped file, in our names and order of axes. Each is read when it is asked for
    and not kept; `dict(weights)` reads all."""

    def __init__(self, path: Path, tensors: Mapping[str, _Tensor], dtype: str):
        self.path, self._tensors, self._dtype = path, tensors, dtype

    def __getitem__(self, name: str) -> jax.Array:
        return self._tensors[name].read(name, self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of all weights, of which none is read."""
        return {
            name: jax.ShapeDtypeStruct(tensor.shape_of_ours(name), self._dtype)
            for name, tensor in self._tensors.items()
        }

    def renamed(self, name: Callable[[str], str]) -> "Mapped":
        """These weights by other names."""
        found = {name(old): tensor for old, tensor in self._tensors.items()}
        return Mapped(self.path, found, self._dtype)

    def named(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> "Mapped":
        """Those weights that `shapes` names, which must be there and have these shapes."""
        by_torch = {tensor.name: tensor for tensor in self._tensors.values()}
        found: dict[str, _Tensor] = {}
        for name, shape in shapes.items():
            on_disk = torch_name(name)
            tensor = next((by_torch[n] for n in _spellings(on_disk) if n in by_torch), None)
            if tensor is None:
                raise ValueError(f"{self.path} has no weight {on_disk}")
            if tensor.shape_of_ours(name) != shape.shape:
                raise ValueError(
                    f"{tensor.path}: {on_disk} is {tensor.shape_of_ours(name)} in our order of "
                    f"axes, but its config asks for {shape.shape}"
                )
            found[name] = tensor
        return Mapped(self.path, found, self._dtype)


def _known(dtype: str) -> str:
    if dtype not in _WRITTEN:
        raise ValueError(f"no dtype {dtype} for weights; they are {', '.join(_WRITTEN)}")
    return dtype


def _tensors(path: Path) -> dict[str, _Tensor]:
    """The tensors in a folder, a file or the files of an index, by PyTorch's names."""
    if path.is_dir():
        path = _place(path)
    if path.suffix != ".json":
        return _of_file(path)
    index = read_json(path)["weight_map"]
    if not isinstance(index, dict):
        raise ValueError(f"{path}: weight_map is no object")
    files: dict[str, dict[str, _Tensor]] = {}
    found: dict[str, _Tensor] = {}
    for name, shard in index.items():
        # An index is data from outside: what it names must lie beside it.
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\:]+\.safetensors", shard):
            raise ValueError(
                f"{path} names {shard!r}, which is no safetensors file in the folder of the index"
            )
        if shard not in files:
            files[shard] = _of_file(path.parent / shard)
        if name not in files[shard]:
            raise ValueError(f"{path} says that {name} is in {shard}, but it is not")
        found[name] = files[shard][name]
    return found


def _place(folder: Path) -> Path:
    """The file or the index of a folder's weights."""
    for name in _PLACES:
        if (folder / name).exists():
            return folder / name
    names = sorted(path.name for path in folder.iterdir())
    variants = {
        name: match["single"] or match["sharded"]
        for name in names
        if (match := _VARIANT.fullmatch(name)) and not _SHARDED.search(name)
    }
    if len(variants) == 1:
        return folder / next(iter(variants))
    if variants:
        raise ValueError(
            f"{folder} has weights only in several variants, {', '.join(variants.values())}; "
            f"leave one of {', '.join(variants)} there"
        )
    if unsafe := [name for name in names if name.endswith(_UNSAFE)]:
        raise ValueError(
            f"{folder} has weights only as {unsafe[0]}, a format whose files can run code and are "
            "never loaded; write them as safetensors, by diffusers' or transformers' "
            "from_pretrained(folder) and save_pretrained(folder, safe_serialization=True)"
        )
    raise ValueError(
        f"{folder} has no weights: no {DIFFUSERS_WEIGHTS}, no {TRANSFORMERS_WEIGHTS}, "
        "and no index of shards"
    )


def _of_file(path: Path) -> dict[str, _Tensor]:
    """The tensors of a safetensors file, of which none is read."""
    try:
        # Checks all that the header says: types, sizes, places, and the length of the file.
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or damaged: {error}") from None
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin].tobytes())
    header.pop("__metadata__", None)
    found: dict[str, _Tensor] = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        data = content[begin + first : begin + last]
        found[name] = _Tensor(path, name, tuple(entry["shape"]), entry["dtype"], data)
    return found


def _spellings(name: str) -> Iterator[str]:
    """Yields the names that a weight may have on disk."""
    yield name
    # transformers 5 leaves the tower's name out of a lone tower's weights.
    yield name.partition("text_model.")[2]
    for ours, earlier in _EARLIER.items():
        if ours in name:
            yield name.replace(ours, earlier)


def write_weights(
    path: Path,
    weights: Mapping[str, jax.Array],
    *,
    dtype: str = "float32",
    limit: int = SHARD,
) -> None:
    """Writes `weights` as `dtype`, with PyTorch's names and order of axes.

    They go to `path`, or, where they have more than `limit` bytes, to shards and an index beside
    it; weights that were there are replaced. Memory is that of one tensor.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    width = jnp.dtype(_known(dtype)).itemsize
    shapes = weights.shapes if isinstance(weights, Mapped) else weights
    sizes = {name: shapes[name].size * width for name in sorted(weights, key=torch_name)}
    parts = _parts(sizes, limit)
    stem, names = path.name.removesuffix(".safetensors"), [path.name]
    if len(parts) > 1:
        names = [
            f"{stem}-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)
        ]
    # What is replaced may be what is being read.
    drafts = [path.with_name(f".{name}") for name in names]
    for draft, part in zip(drafts, parts, strict=True):
        with draft.open("wb") as file:
            _write(file, weights, {name: shapes[name].shape for name in part}, dtype)
    for old in path.parent.glob(f"{stem}*.safetensors*"):
        if re.fullmatch(
            rf"{re.escape(stem)}({_SHARDED.pattern})?\.safetensors(\.index\.json)?", old.name
        ):
            old.unlink()
    for draft, name in zip(drafts, names, strict=True):
        os.replace(draft, path.with_name(name))
    if len(parts) > 1:
        where = {torch_name(w): name for name, part in zip(names, parts, strict=True) for w in part}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        write_json(path.with_name(f"{path.name}.index.json"), index)


def _parts(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, in parts of at most `limit` bytes or of one tensor that is larger."""
    parts, held = [[]], 0
    for name, size in sizes.items():
        if parts[-1] and held + size > limit:
            parts, held = [*parts, []], 0
        parts[-1].append(name)
        held += size
    return parts


def _write(
    file: BinaryIO,
    weights: Mapping[str, jax.Array],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
) -> None:
    """Writes a safetensors file of the weights that `shapes` names, one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    kind = next(kind for kind, known in _TYPES.items() if known == dtype)
    place, width = 0, jnp.dtype(dtype).itemsize
    for name, shape in shapes.items():
        stored = to_torch(name, np.broadcast_to(np.float32(0), shape)).shape
        end = place + math.prod(stored) * width
        header[torch_name(name)] = {"dtype": kind, "shape": stored, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in shapes:
        weight = np.ascontiguousarray(to_torch(name, np.asarray(weights[name]))).reshape(-1)
        file.write(_cast(weight, jnp.dtype(dtype)).view(np.uint8).data)
