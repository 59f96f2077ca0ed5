"""The cells of NAS-Bench-201 (Dong & Yang, 2020): four nodes, an op on each of six edges."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

NONE, SKIP = "none", "skip_connect"
OPS = (NONE, SKIP, "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
_WAYS = tuple(  # From node 0 to node 3: the numbers of the edges that are passed.
    tuple(map(EDGES.index, itertools.pairwise(nodes)))
    for nodes in ((0, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3))
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """An op for each of `EDGES`, by its name in `OPS`."""

    ops: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ops) != len(EDGES) or not set(self.ops) <= set(OPS):
            raise ValueError(f"a cell has {len(EDGES)} of {', '.join(OPS)}, not {self.ops}")


@dataclasses.dataclass(frozen=True)
class Put:
    """Puts an op on an edge."""

    edge: int
    op: str

    def apply(self, spec: Cell) -> Cell:
        if spec.ops[self.edge] == self.op:
            raise ValueError(f"edge {self.edge} has {self.op} already")
        return Cell((*spec.ops[: self.edge], self.op, *spec.ops[self.edge + 1 :]))


@dataclasses.dataclass(frozen=True)
class Cells:
    """All 15,625 cells. A search starts from the one with a 3x3 convolution on every edge."""

    def initial(self) -> Cell:
        return Cell(("nor_conv_3x3",) * len(EDGES))

    def actions(self, spec: Cell) -> Iterator[Put]:
        for edge, now in enumerate(spec.ops):
            yield from (Put(edge, op) for op in OPS if op != now)


def everything() -> tuple[Cell, ...]:
    return tuple(map(Cell, itertools.product(OPS, repeat=len(EDGES))))


def computed(cell: Cell) -> Mapping[str, float]:
    """What a cell computes, for a model of it to learn from.

    The ops along each way from input to output, skips left out (the path encoding of White et al.,
    2021, arXiv 1910.11858), and the ops of edges that lie on such a way. Ops on no way do nothing,
    so cells that differ in them alone are the same here.
    """
    found: Counter[str] = Counter()
    live: set[int] = set()
    for way in _WAYS:
        ops = [cell.ops[edge] for edge in way]
        if NONE not in ops:
            live.update(way)
            found["way " + " ".join(op for op in ops if op != SKIP)] += 1
    found.update(f"edge {edge} {cell.ops[edge] if edge in live else NONE}" for edge in range(6))
    return found
