"""Networks as ONNX files, by the `onnx` package."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from search_spaces.export.graph import graph, kind
from search_spaces.export.part import Part, shapes
from search_spaces.model import to_torch, torch_name

PACKAGES = ("onnx",)
MODEL, DATA = "model.onnx", "model.onnx.data"
LIMIT = 2**30  # Bytes of weights in the file itself; protobuf's own limit is twice that.
PAGE = 2**16  # Runtimes map weights into memory in whole pages, on Windows of this size.


def write(part: Part, folder: Path, *, limit: int = LIMIT) -> dict[str, Any]:
    """Writes the network; returns what the manifest says of this format.

    Weights are initialisers with PyTorch's names and order of axes: those of the checkpoint. Over
    `limit` bytes of them go into a file beside. Raises `Unsupported` on what ONNX cannot say.
    """
    written = graph(part.program, part.inputs, part.outputs, shapes(part.weights))
    opset = helper.make_opsetid("", _opset(part))
    made = helper.make_model(
        written,
        producer_name="nas",
        opset_imports=[opset],
        ir_version=helper.find_min_ir_version_for([opset]),
    )
    inside = sum(array.nbytes for array in part.weights.values()) <= limit
    made.graph.initializer.extend(_inside(part) if inside else _beside(part, folder / DATA))
    onnx.save_model(made, folder / MODEL)
    del made  # The checker reads what was written, and weights are large.
    onnx.checker.check_model(folder / MODEL, full_check=True)
    return {"opset": opset.version}


def _opset(part: Part) -> int:
    """The oldest version of the operators that says it all: many runtimes are years behind."""
    return 22 if part.dtype == "bfloat16" else 18


def _inside(part: Part) -> Iterator[TensorProto]:
    for tensor, array in _tensors(part):
        tensor.raw_data = array.tobytes()
        yield tensor


def _beside(part: Part, path: Path) -> Iterator[TensorProto]:
    with path.open("wb") as file:
        for tensor, array in _tensors(part):
            file.write(bytes(-file.tell() % PAGE))
            place = {"location": path.name, "offset": file.tell(), "length": array.nbytes}
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(array.tobytes())
            yield tensor


def _tensors(part: Part) -> Iterator[tuple[TensorProto, np.ndarray]]:
    """Yields every weight as a tensor without content, and its content."""
    for name, weight in part.weights.items():
        array = to_torch(name, weight)
        yield (
            TensorProto(name=torch_name(name), dims=array.shape, data_type=kind(array.dtype)),
            array,
        )


def run(folder: Path, values: Mapping[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """What ran an exported network on this machine, and what came out.

    Raises `ValueError` saying why onnxruntime does not run it.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ValueError("onnxruntime is not installed") from None
    name = f"onnxruntime {onnxruntime.__version__} on cpu"
    try:
        session = onnxruntime.InferenceSession(folder / MODEL, providers=["CPUExecutionProvider"])
        outputs = [output.name for output in session.get_outputs()]
        found = session.run(outputs, dict(values))
    except Exception as error:  # Its errors have no common class.
        raise ValueError(f"{name} does not run it: {error}") from None
    return name, {output: np.asarray(f) for output, f in zip(outputs, found, strict=True)}
