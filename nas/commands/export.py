"""`nas export FOLDER --to stablehlo|onnx`: a network for other programs, weights included."""

import dataclasses
from pathlib import Path

import tyro

from nas.export.folder import To, write
from nas.export.part import Name, read
from search_spaces.export.part import Dtype


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a network as StableHLO or ONNX, with its weights and a manifest, and runs it beside
    the original on the same inputs."""

    folder: tyro.conf.Positional[Path]
    """A pipeline's, or a U-Net's own."""
    to: To
    """stablehlo: JAX reads it back, on CPU, GPU and TPU. onnx: for onnxruntime and its like."""
    part: Name = "unet"
    """Which network of a pipeline."""
    batch: int = 1
    """Samples a call. Guidance calls the U-Net on two for each picture."""
    dtype: Dtype = "float32"
    """Precision of the weights and of what is computed."""
    out: Path | None = None
    """Folder to write; by default under `exports`."""
    check: bool = True
    """Run what was written, and compare. Takes twice the memory."""


def run(arguments: list[str]) -> int:
    asked = tyro.cli(Export, args=arguments, prog="nas export")
    found = read(asked.folder, asked.part, batch=asked.batch, dtype=asked.dtype)
    name = f"{asked.part}-{asked.dtype}-{asked.batch}"
    out = asked.out or Path("exports") / asked.folder.resolve().name / name / asked.to
    manifest = write(found, asked.to, out, check=asked.check)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(
        f"{out}: {manifest['parameters'] / 1e6:.2f} M parameters, {size / 1e6:.1f} MB\n"
        f"{_arrows(manifest['inputs'])} -> {_arrows(manifest['outputs'])}"
    )
    match manifest.get("compared"):
        case {"differences": differences, "runtime": runtime}:
            worst = max(differences.values())
            print(f"off the original by {worst:.1e} of its scale, in {runtime}")
        case {"reason": reason}:
            print(f"not compared: {reason}")
    return 0


def _arrows(listed: list[dict[str, object]]) -> str:
    return ", ".join(f"{value['name']} {value['dtype']}{value['shape']}" for value in listed)
