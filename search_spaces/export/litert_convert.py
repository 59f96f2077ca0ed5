"""Makes a LiteRT model of StableHLO. Run by `litert.model`, in the converter's own environment,
with the path of a JSON file that says what to read and write, and the names of inputs and outputs.
"""

import json
import sys
from pathlib import Path

from litert_converter import converter_api_ext as api  # pyright: ignore[reportMissingImports]
from litert_converter.mlir import ir, passmanager  # pyright: ignore[reportMissingImports]


def convert(stablehlo: str, model: str, inputs: list[str], outputs: list[str]) -> None:
    with ir.Context() as context:
        api.prepare_mlir_context(context)
        module = ir.Module.parse(Path(stablehlo).read_bytes())
        portable = "builtin.module(vhlo-legalize-to-stablehlo)"
        passmanager.PassManager.parse(portable).run(module.operation)
        api.set_signature(module.operation, "serving_default", inputs, outputs)
        passes, settings = passmanager.PassManager(), api.ConvertToTFLConfig()
        api.run_convert_to_tfl_passes(module, passes, settings)
        Path(model).write_bytes(api.export_flatbuffer_to_bytes(module.operation))


if __name__ == "__main__":
    convert(**json.loads(Path(sys.argv[1]).read_text()))
