"""Where a search runs, and where it can be watched: settings that all commands that search have."""

import contextlib
import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import tyro

from nas.places import Place, place
from nas.report import timeline
from nas.scalars import Points, Scalars

PLACE = tyro.constructors.PrimitiveConstructorSpec[Place](
    nargs=1,
    metavar="PATH|URL",
    instance_from_str=lambda given: place(given[0]),
    is_instance=lambda found: isinstance(found, Place),
    str_from_instance=lambda found: [str(found)],
)


@dataclasses.dataclass(frozen=True)
class Running:
    """Where work is done, and what is told of it. What is found does not depend on it."""

    on: Literal["here", "ray"] = "here"
    """Where work is done: in this process, or by workers in processes of Ray."""
    address: str | None = None
    """A Ray cluster's address; by default a cluster is started on this machine, for this run."""
    workers: int | None = None
    """Workers on Ray that score candidates; by default what the recipe or the study says, or as
    many as there is room for."""
    tensorboard: Path | None = None
    """Folder for TensorBoard, in which the search is a run by the name of --out: scores or quality,
    latencies and losses, by round or by candidate."""
    price: float | None = None
    """What a worker costs an hour; the report then says what the search cost."""

    def __post_init__(self) -> None:
        if self.on == "here" and (self.address, self.workers) != (None, None):
            raise ValueError("--address and --workers are for --on ray")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}; it must be one or more")
        if self.price is not None:
            timeline.check_price(self.price)

    def board(self, out: Place, points: Points) -> AbstractContextManager[Scalars | None]:
        """TensorBoard's run of the search whose folder is `out`; none where none was asked for."""
        if self.tensorboard is None:
            return contextlib.nullcontext()
        return Scalars(self.tensorboard, out.name, points)
