"""Networks as LiteRT models: StableHLO by JAX, and the rest by `litert-converter`.

The converter needs other versions of what we need, so it has an environment of its own, which is
made when it is first asked for. It is spoken to by files.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from search_spaces.export.equations import called, default_spelling
from search_spaces.export.part import Part

CONVERTER = "0.5.0"
"""Its Python interface is documented nowhere, so this one version it is."""

LIMIT = 2**31
"""Bytes that a model, which is one FlatBuffer, stays below."""

_PINNED = (
    f"litert-converter=={CONVERTER}",
    "backports.strenum==1.2.8",
    "flatbuffers==25.12.19",
    "immutabledict==4.2.1",
    "lark==1.3.1",
    "ml_dtypes==0.6.0",
    "numpy==2.4.6",
    "ordered-set==4.1.0",
    "protobuf==7.36.2",
    "tqdm==4.70.1",
    "typing_extensions==4.12.2",
    "xdsl==0.28.0",
)


def model(part: Part, cache: Path, *, respelled: bool = True) -> Path:
    """The network as a LiteRT model with its weights inside, a file under `cache`.

    Inputs and outputs are in the order of their sorted names. A network that was converted before
    is not converted again. Raises `ValueError` on what the converter cannot do, on weights that no
    model can hold, or if the converter cannot be installed.
    """
    size = sum(weight.nbytes for weight in part.weights.values())
    if size >= LIMIT:
        raise ValueError(
            f"{part.name} has {size / 1e9:.2f} GB of weights, and a LiteRT model holds less than "
            f"{LIMIT / 1e9:.2f} GB; measure its blocks, or measure it by another runtime"
        )
    program = stablehlo(part, respelled=respelled)
    digest = hashlib.sha256(program)
    digest.update(json.dumps([CONVERTER, sorted(part.inputs), sorted(part.outputs)]).encode())
    made = cache / "litert" / f"{digest.hexdigest()[:32]}.tflite"
    if made.exists():
        return made
    python = environment(cache)
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        draft, source = Path(folder) / "model.tflite", Path(folder) / "model.stablehlo"
        source.write_bytes(program)
        asked = Path(folder) / "asked.json"
        asked.write_text(
            json.dumps(
                {
                    "stablehlo": str(source),
                    "model": str(draft),
                    "inputs": sorted(part.inputs),
                    "outputs": sorted(part.outputs),
                }
            )
        )
        script = Path(__file__).with_name("litert_convert.py")
        done = subprocess.run([python, "-I", script, asked], capture_output=True, text=True)
        if done.returncode or not draft.exists():
            raise ValueError(
                f"litert-converter {CONVERTER} does not convert {part.name} in {part.dtype}: "
                f"{_reason(done.stderr)}; measure it by another runtime"
            )
        os.replace(draft, made)
    return made


def stablehlo(part: Part, *, respelled: bool = True) -> bytes:
    """The network as portable StableHLO with its weights as constants, in LiteRT's words unless it
    shall be as JAX spells it."""
    program = jax.make_jaxpr(lambda values: part(part.weights, values))(dict(part.inputs))
    names = sorted(part.inputs)

    def run(*values: jax.Array) -> list[jax.Array]:
        return _respelled(program, values) if respelled else jaxpr_as_fun(program)(*values)

    jitted = jax.jit(run, keep_unused=True)
    with _without_callers():
        exported = jax.export.export(jitted, platforms=("cpu",))(*(part.inputs[n] for n in names))
    return exported.mlir_module_serialized


@contextlib.contextmanager
def _without_callers() -> Iterator[None]:
    """Has JAX leave the lines of code that called it out of programs: equal ones are equal."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _respelled(program: ClosedJaxpr, reads: Sequence[Any]) -> list[Any]:
    """What a program computes of `reads`, in the words that LiteRT has fast operators for.

    An exact GELU is named as PyTorch's converters name it; otherwise it becomes some 65 operators,
    of which XNNPACK takes not all. Repetitions of whole pixels become joints, since a broadcast to
    more than four axes is a loop over elements. Of spellings that depend on the platform the one
    for all others is taken.
    """
    jaxpr: Any = program.jaxpr
    found: dict[Any, Any] = dict(zip(jaxpr.invars, reads, strict=True))
    found.update(zip(jaxpr.constvars, program.consts, strict=True))
    makers = {made: equation for equation in jaxpr.eqns for made in equation.outvars}

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else found[atom]

    for equation in jaxpr.eqns:
        values = [value(atom) for atom in equation.invars]
        if inner := called(equation):
            results = _respelled(inner, values)
        elif inner := default_spelling(equation):
            results = _respelled(inner, values[1:])
        elif (gated := _gated(equation, makers)) is not None:
            results = [_gelu(value(gated), approximate="none")]
        elif _repeats(equation):
            results = [_repeated(values[0], **equation.params)]
        elif _is_one_pixel(equation, makers):
            results = [_of_two(*values, **equation.params)]
        else:
            params = equation.primitive.get_bind_params(equation.params)
            result = equation.primitive.bind(*values, **params)
            results = result if equation.primitive.multiple_results else [result]
        found.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _gated(equation: Any, makers: Mapping[Any, Any]) -> Any:
    """The variable that an equation is the exact GELU of, if it is one: the last product in
    (x / 2) * erfc(-x * sqrt(1 / 2)), as `jax.nn.gelu` spells it."""

    def reads(atom: Any, primitive: str) -> Sequence[Any]:
        maker = None if isinstance(atom, Literal) else makers.get(atom)
        return maker.invars if maker and maker.primitive.name == primitive else ()

    def is_number(atom: Any, number: float) -> bool:
        # In half precision the number is off by as much.
        return isinstance(atom, Literal) and math.isclose(float(atom.val), number, rel_tol=4e-3)

    if equation.primitive.name != "mul":
        return None
    match reads(equation.invars[0], "mul"), reads(equation.invars[1], "erfc"):
        case [half, x], [tail] if is_number(half, 0.5):
            match reads(tail, "mul"):
                case [negated, scale] if is_number(scale, math.sqrt(0.5)):
                    return x if any(read is x for read in reads(negated, "neg")) else None
    return None


@functools.partial(jax.lax.composite, name="aten.gelu.default")
def _gelu(x: jax.Array, *, approximate: str) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def _repeats(equation: Any) -> bool:
    """Whether an equation repeats an array of more than four axes, along each a few times."""
    if equation.primitive.name != "broadcast_in_dim" or len(equation.params["shape"]) <= 4:
        return False
    sizes = _thin(equation.invars[0].aval.shape, **equation.params)
    pairs = zip(sizes, equation.params["shape"], strict=True)
    return all(before == after or after <= _JOINED for before, after in pairs)


_JOINED = 4  # XNNPACK joins as many at a time.


def _thin(
    sizes: Sequence[int], *, shape: Sequence[int], broadcast_dimensions: Sequence[int], **_: Any
) -> list[int]:
    """The sizes of an array that is broadcast, with an axis of one wherever it has none."""
    thin = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, sizes, strict=True):
        thin[axis] = size
    return thin


def _repeated(x: Any, **params: Any) -> jax.Array:
    """`broadcast_in_dim`, axis by axis."""
    sizes, shape = _thin(jnp.shape(x), **params), params["shape"]
    for axis, (before, after) in reversed(list(enumerate(zip(sizes, shape, strict=True)))):
        if before != after:
            block = jnp.reshape(x, (math.prod(sizes[:axis]), 1, math.prod(sizes[axis:])))
            x, sizes[axis] = jnp.concatenate([block] * after, axis=1), after
    return jnp.reshape(x, shape)


def _is_one_pixel(equation: Any, makers: Mapping[Any, Any]) -> bool:
    """Whether an equation multiplies the only pixel of an image, as a row, by a matrix: the
    converter takes it for the image again."""
    if equation.primitive.name != "dot_general":
        return False
    row, matrix = (atom.aval.shape for atom in equation.invars)
    read = equation.invars[0]
    maker = None if isinstance(read, Literal) else makers.get(read)
    return (
        maker is not None
        and maker.primitive.name == "reshape"
        and len(maker.invars[0].aval.shape) > 2 == len(matrix)
        and row[0] == 1
        and equation.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
    )


def _of_two(row: Any, matrix: Any, **params: Any) -> jax.Array:
    """`dot_general` of the row twice, once left out."""
    pair = jnp.concatenate([row, row])
    return jax.lax.dot_general_p.bind(pair, matrix, **params)[:1]


def environment(cache: Path) -> Path:
    """The Python that has the converter. Its environment is made under `cache` if it is not there,
    which takes an index of packages, half a minute and 400 MB.

    It appears when it is whole. Raises `ValueError` with pip's reason if it cannot be made.
    """
    digest = hashlib.sha256("\n".join((sys.version, *_PINNED)).encode()).hexdigest()[:12]
    folder = cache / f"litert-converter-{CONVERTER}-{digest}"
    inside = Path("Scripts/python.exe") if os.name == "nt" else Path("bin/python")
    if (folder / inside).exists():
        return folder / inside
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as draft:
        venv.create(draft, symlinks=os.name != "nt")
        pip = [sys.executable, "-m", "pip", "--python", str(Path(draft) / inside), "install"]
        options = ["--quiet", "--no-deps", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *options, *_PINNED], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(
                f"litert-converter {CONVERTER}, which makes LiteRT models, cannot be installed "
                f"into {folder}: {_reason(done.stderr)}; see that pip reaches an index of packages"
            )
        try:
            os.rename(draft, folder)
        except OSError:  # Another process was faster.
            if not (folder / inside).exists():
                raise
        else:
            os.mkdir(draft)  # For the temporary directory to remove.
    return folder / inside


def _reason(said: str) -> str:
    """What a program that failed gave as its reason."""
    errors = re.findall(r"(?i)\berror: (.*)", said)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next(iter(errors or lines[-1:]), "no reason given").strip()
