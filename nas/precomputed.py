"""Training data precomputed once: latents and encoded prompts in a tensorstore, for many readers.

Under a path or a URL that tensorstore understands (`file://`, `s3://`, `gs://`):

    precomputed.json             what the rest was made of; written first
    PART/ARRAY/                  Zarr 3 in shards, each row a chunk with a CRC-32C of its own
    PART/shards/00000.json       says that a shard of all the part's arrays is whole; written last

Parts are the recipe's pictures, those held out, and the empty prompt. A shard is a whole number of
the batches that are encoded at once, so that what is stored is what encoding all rows gives.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from nas.diffusion.pipeline import ENCODED, Pipeline
from nas.objectives import Captioned, Rows
from nas.recipe import Pictures, Recipe

VERSION = 1
MANIFEST = "precomputed.json"
TRAINING, HELD_OUT, EMPTY = "training", "held_out", "unconditional"
LATENTS = "latents"
SHARD = 16 * ENCODED  # Rows.
_CACHE = 1 << 28  # Bytes of a store that a reader keeps in memory.


class Shard(NamedTuple):
    """A shard that is whole."""

    part: str
    number: int
    rows: range
    made: bool  # Now, or it was there.


def at(where: str) -> str:
    """`where` as a URL of a folder, which means the same in every process of this machine."""
    url = where if "://" in where else f"file://{Path(where).absolute()}"
    return f"{url.rstrip('/')}/"


def captioned(pipeline: Pipeline, pixels: np.ndarray, prompts: Sequence[str]) -> Captioned:
    """Pictures and prompts as training reads them, encoded now."""
    return Captioned(
        pipeline.latents(pixels), pipeline.conditioning(prompts), pipeline.unconditional
    )


def write(where: str, recipe: Recipe, pipeline: Pipeline, shard: int = SHARD) -> Iterator[Shard]:
    """Writes what `pipeline` makes of the recipe's pictures, in shards of so many rows, yielding
    each when it is stored. Shards that are stored are not made again.

    Raises `ValueError` if what is at `where` was made of something else.
    """
    if shard < 1 or shard % ENCODED:
        raise ValueError(
            f"shards of {shard} rows: it must be a multiple of {ENCODED}, which are encoded at once"
        )
    store, parts = _store(where), {TRAINING: recipe.pictures()}
    if recipe.held_out is not None:
        parts[HELD_OUT] = recipe.held_out()
    asked = {
        "precomputed": VERSION,
        "encoder": encoder_of(pipeline),
        "shard": shard,
        "parts": {
            name: {"rows": len(pictures[1]), "data": data_of(pipeline, *pictures)}
            for name, pictures in parts.items()
        },
    }
    found = _manifest(where, store)
    if found is None:
        store[MANIFEST] = json.dumps(asked, indent=1).encode()
    elif found != asked:
        differing = [name for name in asked if found.get(name) != asked[name]]
        raise ValueError(
            f"{where} was made of something else ({', '.join(differing)} differ); "
            "choose another folder, or delete it"
        )
    empty = pipeline.unconditional
    yield from _part(store, EMPTY, 1, shard, lambda _: empty)
    for name, (pixels, prompts) in parts.items():

        def encoded(rows: range, pixels: np.ndarray = pixels, prompts: Any = prompts) -> Any:
            part = slice(rows.start, rows.stop)
            return {LATENTS: pipeline.latents(pixels[part]), **pipeline.conditioning(prompts[part])}

        yield from _part(store, name, len(prompts), shard, encoded)


def read(where: str, part: str, pipeline: Pipeline, pictures: Pictures) -> Captioned:
    """A part of what is stored at `where`, whose rows are read when they are asked for.

    Raises `ValueError` if it is not whole, or was made by another encoder or of other pictures.
    """
    store = _store(where)
    found = _manifest(where, store)
    if found is None:
        raise ValueError(f"no precomputed training data at {where}; `nas precompute` writes it")
    if found["encoder"] != encoder_of(pipeline):
        raise ValueError(
            f"{where} was made by other encoders than those of {pipeline.folder}; "
            "run `nas precompute` with that pipeline and another --out"
        )
    if part not in found["parts"]:
        raise ValueError(f"{where} has no {part} pictures, only {list(found['parts'])}")
    if found["parts"][part]["data"] != data_of(pipeline, *pictures):
        raise ValueError(
            f"{where} was made of other {part} pictures or prompts than the recipe's; "
            "run `nas precompute` with that recipe and another --out"
        )
    rows, shard = found["parts"][part]["rows"], found["shard"]
    for name, size in ((part, rows), (EMPTY, 1)):
        whole, wanted = len(_whole(store, name)), len(_shards(size, shard))
        if whole != wanted:
            raise ValueError(
                f"{where} has {whole} of {wanted} shards of {name}; "
                "run `nas precompute` again, which goes on with it"
            )
    arrays: dict[str, Rows] = {
        name: Stored(where, part, name, shard) for name in _arrays(store, part)
    }
    empty = {
        name: Stored(where, EMPTY, name, shard)[np.arange(1)] for name in _arrays(store, EMPTY)
    }
    return Captioned(arrays.pop(LATENTS), arrays, empty)


class Stored:
    """An array of a part, as `nas.objectives.Rows`. Threads and processes may read one at once."""

    def __init__(self, where: str, part: str, name: str, shard: int):
        self._where, self._part, self._shard = where, part, shard
        context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE}})
        spec = {**_spec(where, f"{part}/{name}"), "recheck_cached_data": "open"}
        self._array = ts.open(spec, open=True, read=True, context=context).result()

    def __len__(self) -> int:
        return self._array.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Raises `ValueError` naming the shard that is damaged or gone."""
        try:
            return np.asarray(self._array[rows].read().result())
        except ValueError as error:
            raise self._told(np.unique(rows // self._shard), error) from error

    def _told(self, shards: np.ndarray, error: ValueError) -> ValueError:
        """`error` with what to do about it."""
        for number in shards:
            try:
                self._array[number * self._shard : (number + 1) * self._shard].read().result()
            except ValueError as found:
                record = _record(self._part, int(number))
                return ValueError(
                    f"shard {number} of {self._part} at {self._where} is damaged: {found}; "
                    f"delete {record} there and run `nas precompute` again, which makes it anew"
                )
            except IndexError:  # The last shard may be shorter.
                continue
        return ValueError(f"{self._part} at {self._where} cannot be read: {error}")


def encoder_of(pipeline: Pipeline) -> str:
    """A hash of all that turns pictures and prompts' ids into what training reads."""
    found = hashlib.sha256()
    configs = [pipeline.autoencoder.config, *(e.config for e in pipeline.encoders)]
    shapes = {name: shape.shape for name, shape in pipeline.inputs(1).items()}
    told = [configs, pipeline.zeros, pipeline.pixels, shapes]
    found.update(json.dumps(told, sort_keys=True).encode())
    for weights in (pipeline.vae, *(encoder.weights for encoder in pipeline.encoders)):
        for name in sorted(weights):
            _hash(found, name, np.asarray(weights[name]))
    return found.hexdigest()


def data_of(pipeline: Pipeline, pixels: np.ndarray, prompts: Sequence[str]) -> str:
    """A hash of pictures, and of prompts' ids by the pipeline's tokenizers."""
    found = hashlib.sha256()
    for start in range(0, len(pixels), SHARD):
        _hash(found, "pixels", pixels[start : start + SHARD])
    for encoder in pipeline.encoders:
        _hash(found, encoder.part, encoder.ids(["", *prompts]))
    return found.hexdigest()


def _hash(found: Any, name: str, array: np.ndarray) -> None:
    found.update(f"{name} {array.dtype} {array.shape} ".encode())
    found.update(np.ascontiguousarray(array).data)


def _part(
    store: ts.KvStore,
    part: str,
    rows: int,
    shard: int,
    encoded: Callable[[range], Mapping[str, np.ndarray]],
) -> Iterator[Shard]:
    whole = _whole(store, part)
    for number, those in enumerate(_shards(rows, shard)):
        record = _record(part, number)
        if made := record not in whole:
            arrays = encoded(those)
            for name, array in arrays.items():
                target = _created(store.url, f"{part}/{name}", array, rows, shard)
                target[those.start : those.stop].write(array).result()
            said = {"rows": [those.start, those.stop], "arrays": sorted(arrays)}
            store[record] = json.dumps(said).encode()
        yield Shard(part, number, those, made)


def _created(where: str, path: str, like: np.ndarray, rows: int, shard: int) -> ts.TensorStore:
    checked = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "crc32c"},
    ]
    row = [1, *like.shape[1:]]
    sharding = {"chunk_shape": row, "codecs": checked, "index_codecs": checked}
    grid = {"chunk_shape": [shard, *like.shape[1:]]}
    metadata = {
        "shape": [rows, *like.shape[1:]],
        "data_type": like.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": grid},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    spec = {**_spec(where, path), "metadata": metadata}
    return ts.open(spec, open=True, create=True).result()


def _spec(where: str, path: str) -> dict[str, Any]:
    """Zeros are stored as all else is: a chunk that is not there is lost."""
    return {
        "driver": "zarr3",
        "kvstore": f"{at(where)}{path}/",
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }


def _store(where: str) -> ts.KvStore:
    return ts.KvStore.open(at(where)).result()


def _manifest(where: str, store: ts.KvStore) -> dict[str, Any] | None:
    content = store.read(MANIFEST).result()
    if content.state != "value":
        return None
    try:
        found = json.loads(content.value)
        if found["precomputed"] != VERSION:
            raise ValueError(f"it is of version {found['precomputed']}, not {VERSION}")
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{at(where)}{MANIFEST} is damaged or another version's: {error}"
        ) from None
    return found


def _shards(rows: int, shard: int) -> list[range]:
    return [range(start, min(start + shard, rows)) for start in range(0, rows, shard)]


def _record(part: str, number: int) -> str:
    return f"{part}/shards/{number:05}.json"


def _whole(store: ts.KvStore, part: str) -> set[str]:
    """The records of a part's shards that are whole."""
    folder = f"{part}/shards/"
    found = (store / folder).list().result()
    return {folder + name.decode() for name in found if name.endswith(b".json")}


def _arrays(store: ts.KvStore, part: str) -> list[str]:
    return json.loads(store[_record(part, 0)])["arrays"]
