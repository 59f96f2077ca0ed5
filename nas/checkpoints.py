"""Checkpoints of training, by Orbax: written atomically, the newest few kept.

They hold whole arrays, so training goes on from them on any number of devices. Of processes that
train together the first one writes, and each reads for itself.

On another filesystem than this machine's, a checkpoint is made in a scratch folder here and sent
file by file under a name of its own; it is there once its manifest is, which is created only where
there is none, and has the hash of every file.
"""

import contextlib
import dataclasses
import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from nas.places import Place, Remote, files

MANIFEST = ".json"


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """A folder of numbered checkpoints of one pytree, of which the newest `keep` are kept."""

    folder: Place
    keep: int = 2

    def save(self, step: int, tree: Any) -> None:
        """Returns once `tree` is stored. Saving a step twice keeps the first.

        Arrays must be whole on every device.
        """
        if jax.process_index():
            return
        tree = jax.tree.map(_local, tree)
        if isinstance(self.folder, Path):
            with _manager(self.folder, self.keep) as manager:
                manager.save(step, args=ocp.args.StandardSave(tree))  # pyright: ignore
        elif step not in _steps(self.folder):
            with _scratch() as scratch:
                Checkpoints(scratch).save(step, tree)
                _send(scratch / str(step), self.folder, step)
            _tidy(self.folder, self.keep)

    @property
    def newest(self) -> int | None:
        """The number of the newest checkpoint, or `None` where there is none."""
        if isinstance(self.folder, Path):
            with _manager(self.folder, self.keep) as manager:
                return manager.latest_step()
        return max(_steps(self.folder), default=None)

    def latest(self, like: Any) -> Any | None:
        """The newest checkpoint, shaped as `like`, or `None` where there is none.

        Raises `ValueError` naming the folder if it cannot be read.
        """
        shapes = jax.tree.map(_shaped, like)
        if (step := self.newest) is None:
            return None
        try:
            if isinstance(self.folder, Path):
                found = _restored(self.folder, step, shapes)
            else:
                with _scratch() as scratch:
                    _fetch(self.folder, step, scratch / str(step))
                    found = _restored(scratch, step, shapes)
        except Exception as error:  # Orbax raises many kinds for a damaged or foreign folder.
            where, what = (
                (self.folder / str(step), "that folder")
                if isinstance(self.folder, Path)
                else (self.folder / f"{step}{MANIFEST}", "that object")
            )
            raise ValueError(
                f"cannot read checkpoint {where}: {error}; "
                f"delete {what} to go on from what was saved before it"
            ) from error
        return jax.tree.map(_as, like, found)


def _manager(folder: Path, keep: int = 1) -> ocp.CheckpointManager:
    folder.mkdir(parents=True, exist_ok=True)
    alone = jax.process_index()  # Orbax must wait for no other process.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=False,
        create=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=alone, active_processes={alone}, barrier_sync_key_prefix=str(alone)
        ),
    )
    return ocp.CheckpointManager(
        folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
    )


def _restored(folder: Path, step: int, shapes: Any) -> Any:
    with _manager(folder) as manager:
        # Orbax cuts and pads host arrays that are stored in another shape, so look first.
        _same_shapes(manager.item_metadata(step), shapes)
        return manager.restore(step, args=ocp.args.StandardRestore(shapes))  # pyright: ignore


# On other filesystems.


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nas-checkpoint-") as folder:
        yield Path(folder)


def _steps(folder: Remote) -> list[int]:
    """The numbers of the checkpoints that are whole, ascending."""
    names = (name.removesuffix(MANIFEST) for name in folder.names() if name.endswith(MANIFEST))
    return sorted(int(name) for name in names)


def _send(made: Path, folder: Remote, step: int) -> None:
    names = files(made)
    # Two that train the same network, one of them taken for dead, must not mix their files.
    under = f"{step}-{uuid.uuid4().hex}"
    (folder / under).upload(made, names)
    manifest = {"under": under, "files": {name: _digest(made / name) for name in names}}
    try:
        (folder / f"{step}{MANIFEST}").create(json.dumps(manifest, indent=1).encode())
    except FileExistsError:
        (folder / under).remove()


def _fetch(folder: Remote, step: int, target: Path) -> None:
    """Raises `ValueError` naming a file that is missing or not what was sent."""
    manifest = json.loads((folder / f"{step}{MANIFEST}").read_bytes())
    sent = folder / manifest["under"]
    try:
        sent.download(target, list(manifest["files"]))
    except FileNotFoundError as error:
        raise ValueError(f"a file of it is missing: {error}") from None
    for name, digest in manifest["files"].items():
        if _digest(target / name) != digest:
            raise ValueError(
                f"{sent / name} is damaged: its SHA-256 is not the one it was sent with"
            )


def _tidy(folder: Remote, keep: int) -> None:
    """Deletes what is older than the newest few, parts of what was never finished among it."""
    oldest = _steps(folder)[-keep:][0]
    # What names files goes before they do.
    for name in sorted(folder.names(), key=lambda name: not name.endswith(MANIFEST)):
        step = name.removesuffix(MANIFEST).partition("-")[0]
        if not step.isdigit() or int(step) >= oldest:
            continue
        if name.endswith(MANIFEST):
            (folder / name).unlink()
        else:
            (folder / name).remove()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _local(leaf: Any) -> Any:
    """What this process has of an array, which is all of it."""
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf


def _shaped(leaf: Any) -> np.ndarray:
    """A host array of the shape of `leaf` that takes no room."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _as(like: Any, leaf: np.ndarray) -> Any:
    """`leaf` on the host as `like` is, or else free to go to any device.

    Orbax ties arrays to their device, and JAX compiles a function again for every pattern of tied
    and free arguments.
    """
    return leaf if isinstance(like, np.ndarray | np.generic) else jnp.asarray(leaf)


def _same_shapes(found: Any, wanted: Any) -> None:
    stored, asked = _by_path(found), _by_path(wanted)
    for path, shape in asked.items():
        if stored.get(path) != shape:
            raise ValueError(
                f"{'.'.join(path)} is {stored.get(path)} there, where {shape} is asked for"
            )


def _by_path(tree: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of the leaves. Orbax stores named tuples as dictionaries, so keys become text."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(map(_text, path)): tuple(leaf.shape) for path, leaf in leaves}


def _text(key: Any) -> str:
    return str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)))
