"""What is measured, said one way, and the runtimes that measure it.

A subject is a call, or a whole program at known shapes: its shapes say the batch. Every runtime
makes the same network of it, with the same drawn weights and inputs, in the precision asked for.
"""

import abc
import dataclasses
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from latency_models.latency import Whole
from latency_models.provenance import Provenance, cores
from search_spaces.export.part import Dtype, Part, compared, in_precision
from search_spaces.ops import Call, Shape
from search_spaces.program import Step, network

CACHE = Path.home() / ".cache" / "nas"
"""Where latencies, converters and what they made are kept, unless asked otherwise."""

Run: TypeAlias = Callable[[], None]
"""Does what is timed once, and returns when it is done."""


Subject: TypeAlias = Call | Whole


class Row(NamedTuple):
    """What one operator of a runtime takes in a forward pass, on average.

    Runtimes fuse and reorder, so their operators are theirs. In ONNX Runtime, names begin with the
    step of the program that the operator is of.
    """

    name: str
    kind: str
    ms: float


class Loaded(abc.ABC):
    """A network in a runtime, with its inputs in place."""

    difference: float | None = None
    """How far the outputs are from JAX's, relative to their largest value; none where they were not
    compared."""

    held: int = 0
    """Bytes of its weights."""

    def __init__(self, part: Part, values: Mapping[str, np.ndarray], runtime: str):
        self.part, self.values, self.runtime = part, values, runtime

    @abc.abstractmethod
    def run(self) -> None:
        """One forward pass; returns when it is done."""

    @abc.abstractmethod
    def outputs(self) -> dict[str, np.ndarray]:
        """What a forward pass gives, by the names of the part's outputs."""

    @abc.abstractmethod
    def profile(self, passes: int = 20) -> list[Row]:
        """What each operator takes, in the order they run, in passes that are watched.

        Watching takes time, and operators that run at once add up to more than the pass.
        """

    def compare(self) -> None:
        """Finds the `difference`. Raises `ValueError` where that is further than two runtimes'
        rounding can explain."""
        found = compared(self.part, self.values, self.outputs(), self.runtime)
        self.difference = max(found.values())

    def forget(self) -> None:
        """Gives up the weights on the host, which only `compare` needs: a runtime has its own, and
        networks that are measured in turns are all in memory."""
        self.held = sum(weight.nbytes for weight in self.part.weights.values())
        self.part = dataclasses.replace(self.part, weights={})


class Runtime(abc.ABC):
    """A way to run networks on this machine. Subclasses are frozen dataclasses."""

    precision: Dtype | None
    """Of weights and inputs; by default inputs are as they are described and weights float32."""

    @property
    @abc.abstractmethod
    def provenance(self) -> Provenance:
        """What latencies measured by this runtime hold for."""

    @abc.abstractmethod
    def load(self, part: Part, values: Mapping[str, np.ndarray]) -> Loaded:
        """The network, ready to run on these inputs. Raises `ValueError` on what cannot be run."""

    def prepare(self, subject: Subject, *, compare: bool = True) -> Loaded:
        """`subject`, ready to run, compared with JAX unless `compare` is false: for that XLA
        compiles it, which for large networks takes longer than all else here.

        Raises `ValueError` where this runtime cannot run it, or computes something else.
        """
        part = drawn(subject, self.precision)
        rng = np.random.default_rng(0)
        loaded = self.load(part, {name: draw(rng, shape) for name, shape in part.inputs.items()})
        if compare:
            loaded.compare()
        loaded.forget()
        return loaded


def need(runtime: str, extra: str, *modules: str) -> None:
    """Raises `ValueError` unless the modules by which a runtime runs can be imported."""
    if not all(map(importlib.util.find_spec, modules)):
        packages = " ".join(name.replace("_", "-") for name in modules)
        raise ValueError(
            f"{runtime} measures by what is not installed here; "
            f"install it: pip install {packages}, or the extra `{extra}`"
        )


def working(threads: int | None) -> int:
    """How many threads work where so many are asked for: by default one for each core that the
    process may use. Raises `ValueError` where none would."""
    if threads is not None and threads < 1:
        raise ValueError(f"{threads} threads; one or more can run something")
    return threads or len(cores())


def drawn(subject: Subject, precision: Dtype | None = None) -> Part:
    """`subject` as a network of its own, with drawn weights."""
    match subject:
        case Call(op, shapes):
            inputs: Mapping[str, Shape] = {f"read{i}": shape for i, shape in enumerate(shapes)}
            name, program = type(op).__name__, (Step("call", op, tuple(inputs)),)
        case Whole(program, inputs):
            name = "network"
    weights = network(program, inputs).initial(0)
    held = {name: np.asarray(weight) for name, weight in weights.items()}
    part = Part(name, program, inputs, {"result": program[-1].name}, held)
    if precision is not None:
        return in_precision(part, precision)
    return dataclasses.replace(part, dtype=_coarsest(inputs.values()))


def _coarsest(shapes: Iterable[Shape]) -> Dtype:
    kinds = {str(shape.dtype) for shape in shapes}
    if "bfloat16" in kinds:
        return "bfloat16"
    return "float16" if "float16" in kinds else "float32"


def draw(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Draws an input on the host: normal numbers, or zeros and ones where it holds integers.

    Normal numbers, since some hardware multiplies zeros faster; zeros and ones, since those are
    indices into any table but the trivial one.
    """
    if jnp.issubdtype(shape.dtype, jnp.inexact):
        return rng.standard_normal(shape.shape).astype(shape.dtype)
    return rng.integers(2, size=shape.shape).astype(shape.dtype)


def tally(events: Iterable[tuple[str, str, float]], passes: int, warmup: int = 0) -> list[Row]:
    """Rows of the operators that events `(name, kind, milliseconds)` tell of, seen over
    `warmup + passes` passes of which the first do not count. Their order is that of their first.

    An operator's mean is that of the middle half of its events: clocks that count microseconds make
    a median coarse, and one interrupted event moves a mean.
    """
    took: dict[tuple[str, str], list[float]] = {}
    for name, kind, ms in events:
        took.setdefault((name, kind), []).append(ms)
    rows = []
    for (name, kind), durations in took.items():
        times = len(durations) / (warmup + passes)  # In one pass, as in a loop.
        kept = np.sort(durations[round(warmup * times) :])
        aside = len(kept) // 4
        rows.append(Row(name, kind, times * float(np.mean(kept[aside : len(kept) - aside]))))
    return rows
