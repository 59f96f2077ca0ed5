"""Checkpoints of training, by Orbax: written atomically, the newest few kept."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """A folder of numbered checkpoints of one pytree."""

    def __init__(self, folder: Path, *, keep: int = 2):
        self.folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, create=True
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, tree: object) -> None:
        """Returns once `tree` is on disk. Saving a step twice keeps the first."""
        self._manager.save(step, args=ocp.args.StandardSave(tree))  # pyright: ignore

    def close(self) -> None:
        self._manager.close()

    def latest(self, like: Any) -> Any | None:
        """The newest checkpoint, shaped as `like`, or `None` where there is none.

        Raises `ValueError` naming the folder if it cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(shapes))  # pyright: ignore
        except Exception as error:  # Orbax raises many kinds for a damaged or foreign folder.
            raise ValueError(
                f"cannot read checkpoint {self.folder / str(step)}: {error}; "
                "delete that folder to go on from the one before"
            ) from error
        return restored
