"""ONNX Runtime on this machine's CPU."""

import dataclasses
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latency_models.provenance import Provenance, installed, on_cores
from latency_models.runtimes import Loaded, Row, Runtime, need, tally, working
from search_spaces.export.part import Dtype, Part


@dataclasses.dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """ONNX Runtime's CPU provider, with all its graph optimisations.

    `threads` work on one operator at a time; by default one for each core that the process may use.
    Weights are constants of the model. Raises `ValueError` if the package is not installed.
    """

    threads: int | None = None
    precision: Dtype | None = None

    def __post_init__(self) -> None:
        need("ONNX Runtime", "export", "onnx", "onnxruntime")
        working(self.threads)

    @property
    def provenance(self) -> Provenance:
        versions = installed("onnxruntime", "onnx", "jax", "flax")
        return on_cores("ONNX Runtime:cpu", versions, self.precision, working(self.threads))

    def load(self, part: Part, values: Mapping[str, np.ndarray]) -> Loaded:
        return _Session(part, values, working(self.threads))


class _Session(Loaded):
    def __init__(self, part: Part, values: Mapping[str, np.ndarray], threads: int):
        import onnxruntime

        from search_spaces.export import onnx

        super().__init__(part, values, f"onnxruntime {onnxruntime.__version__} on cpu")
        self._threads = threads
        folder = Path(tempfile.mkdtemp())  # Large weights are mapped from there.
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        onnx.write(part, folder)
        self._file = folder / onnx.MODEL
        self._session = self._begin()
        self._bound = self._session.io_binding()
        for name, array in values.items():
            self._bound.bind_cpu_input(name, np.ascontiguousarray(array))
        results = part.results
        self._results = tuple(results)
        for name, shape in results.items():
            made = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape.shape, shape.dtype)
            self._bound.bind_ortvalue_output(name, made)

    def _begin(self, profile: Path | None = None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3  # Errors.
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            return onnxruntime.InferenceSession(
                self._file, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # Its errors have no common class.
            raise ValueError(f"{self.runtime} does not run {self.part.name}: {error}") from None

    def run(self) -> None:
        self._session.run_with_iobinding(self._bound)

    def outputs(self) -> dict[str, np.ndarray]:
        self.run()
        found = self._bound.copy_outputs_to_cpu()
        return dict(zip(self._results, found, strict=True))

    def profile(self, passes: int = 20) -> list[Row]:
        warmup = 2
        with tempfile.TemporaryDirectory() as folder:
            session = self._begin(Path(folder) / "profile")
            for _ in range(warmup + passes):
                session.run(None, dict(self.values))
            events = json.loads(Path(session.end_profiling()).read_text())
        return tally(_nodes(events), passes, warmup)


def _nodes(events: Any) -> Iterator[tuple[str, str, float]]:
    """Yields name, operator and milliseconds of every node that ran."""
    suffix = "_kernel_time"
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(suffix):
            name, kind = event["name"].removesuffix(suffix), event["args"]["op_name"]
            yield name, kind, 1e-3 * event["dur"]
