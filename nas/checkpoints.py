"""Checkpoints of training, by Orbax: written atomically, the newest few kept."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """A folder of numbered checkpoints of one pytree, of which the newest `keep` are kept."""

    folder: Path
    keep: int = 2

    def save(self, step: int, tree: Any) -> None:
        """Returns once `tree` is on disk. Saving a step twice keeps the first."""
        with self._manager() as manager:
            manager.save(step, args=ocp.args.StandardSave(tree))  # pyright: ignore

    @property
    def newest(self) -> int | None:
        """The number of the newest checkpoint, or `None` where there is none."""
        with self._manager() as manager:
            return manager.latest_step()

    def latest(self, like: Any) -> Any | None:
        """The newest checkpoint, shaped as `like`, or `None` where there is none.

        Raises `ValueError` naming the folder if it cannot be read.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with self._manager() as manager:
            step = manager.latest_step()
            if step is None:
                return None
            try:
                # Orbax cuts and pads host arrays that are stored in another shape, so look first.
                _same_shapes(manager.item_metadata(step), shapes)
                found = manager.restore(step, args=ocp.args.StandardRestore(shapes))  # pyright: ignore
            except Exception as error:  # Orbax raises many kinds for a damaged or foreign folder.
                raise ValueError(
                    f"cannot read checkpoint {self.folder / str(step)}: {error}; "
                    "delete that folder to go on from what was saved before it"
                ) from error
        return jax.tree.map(_uncommitted, found)

    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep, enable_async_checkpointing=False, create=True
        )
        return ocp.CheckpointManager(
            self.folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )


def _uncommitted(leaf: Any) -> Any:
    """`leaf`, free to go to any device, as it was before it was saved.

    Orbax ties arrays to their device, and JAX compiles a function again for every pattern of
    tied and free arguments.
    """
    return jnp.asarray(np.asarray(leaf)) if isinstance(leaf, jax.Array) else leaf


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
