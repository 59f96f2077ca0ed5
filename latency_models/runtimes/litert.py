"""LiteRT on this machine's CPU, by XNNPACK: what runs most networks on phones' CPUs.

Times on an x86 processor are not those of a phone; what is fused, delegated and left over is.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from latency_models.provenance import Provenance, installed, on_cores
from latency_models.runtimes import CACHE, Loaded, Row, Runtime, need, tally, working
from search_spaces.export import litert
from search_spaces.export.part import Dtype, Part


@dataclasses.dataclass(frozen=True)
class LiteRT(Runtime):
    """LiteRT's interpreter with XNNPACK.

    `threads` work on one operator at a time; by default one for each core that the process may use.
    Weights are constants of the model. Models, and the converter that makes them, are kept under
    `cache`. Unless `respelled`, networks are converted as JAX spells them: how that compares is in
    `benchmarks/spellings.py`. Raises `ValueError` if the package is not installed.
    """

    threads: int | None = None
    precision: Dtype | None = None
    cache: Path = CACHE
    respelled: bool = True

    def __post_init__(self) -> None:
        need("LiteRT", "litert", "ai_edge_litert")
        working(self.threads)

    @property
    def provenance(self) -> Provenance:
        versions = {
            **installed("ai-edge-litert", "jax", "flax"),
            "litert-converter": litert.CONVERTER,
            "spelling": "LiteRT's" if self.respelled else "JAX's",
        }
        return on_cores("LiteRT:cpu, XNNPACK", versions, self.precision, working(self.threads))

    def load(self, part: Part, values: Mapping[str, np.ndarray]) -> Loaded:
        model = litert.model(part, self.cache, respelled=self.respelled)
        return _Interpreted(part, values, model, working(self.threads))


class _Interpreted(Loaded):
    def __init__(self, part: Part, values: Mapping[str, np.ndarray], model: Path, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        version = installed("ai-edge-litert")["ai-edge-litert"]
        super().__init__(part, values, f"ai-edge-litert {version} on cpu")
        self._model, self._threads = model, threads
        try:
            self._interpreter = Interpreter(str(model), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.runtime} does not run {part.name}: {error}") from None
        wanted = self._interpreter.get_input_details()
        for detail, name in zip(wanted, sorted(values), strict=True):
            self._interpreter.set_tensor(detail["index"], np.ascontiguousarray(values[name]))

    def run(self) -> None:
        self._interpreter.invoke()

    def outputs(self) -> dict[str, np.ndarray]:
        self.run()
        made = self._interpreter.get_output_details()
        return {
            name: self._interpreter.get_tensor(detail["index"])
            for detail, name in zip(made, sorted(self.part.outputs), strict=True)
        }

    def profile(self, passes: int = 20) -> list[Row]:
        warmup = 2
        with tempfile.TemporaryDirectory() as folder:
            asked, told = Path(folder) / "asked.json", Path(folder) / "events.json"
            inputs = []
            for name in sorted(self.values):
                inputs.append(str(Path(folder) / f"{len(inputs)}.bin"))
                Path(inputs[-1]).write_bytes(np.ascontiguousarray(self.values[name]).tobytes())
            asked.write_text(
                json.dumps(
                    {
                        "model": str(self._model),
                        "inputs": inputs,
                        "threads": self._threads,
                        "passes": warmup + passes,
                        "events": str(told),
                    }
                )
            )
            script = Path(__file__).with_name("litert_profile.py")
            done = subprocess.run([sys.executable, script, asked], capture_output=True, text=True)
            if done.returncode:
                said = done.stderr.strip().splitlines()[-1:]
                raise ValueError(
                    f"{self.runtime} cannot be watched operator by operator "
                    f"({' '.join(said) or done.returncode}); measure blocks, or the whole"
                )
            events = json.loads(told.read_text())
        return tally(((name, kind, 1e-3 * us) for name, kind, us in events), passes, warmup)
