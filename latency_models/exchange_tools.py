"""The tools that measure exported models, and the exact commands of each."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from latency_models import exchange_subject

_ONNX_TO_LITERT = (
    "This folder was written without LiteRT's converter. Write it again with that format, or "
    "convert the ONNX files on any machine: pip install onnx2tf, for each NAME "
    "onnx2tf -i models/NAME/onnx/model.onnx -o models/NAME/litert, and rename the "
    "model_float16.tflite (or model_float32.tflite) that it writes to model.tflite."
)


@dataclasses.dataclass(frozen=True)
class Tool:
    """A tool: the format it measures, the format its models may be converted from elsewhere, and
    what it writes. `instead` says what to run where no writer of its format is here. `precision` is
    what it computes in, if not in that of the model; a result that says another is believed."""

    form: str
    runtime: str
    imported: str  # The format of `importers` that reads its results.
    script: str
    instead: str
    body: str
    converted_from: str | None = None
    precision: str | None = None

    def measured(self, forms: Iterable[str]) -> str | None:
        """Of the formats that were written, the one whose hash tells what was measured."""
        forms = tuple(forms)
        return next((f for f in (self.form, self.converted_from) if f and f in forms), None)

    def text(self, names: Iterable[str], forms: Iterable[str]) -> str:
        """The script. It says so and stops where there is no model for it."""
        form = self.measured(forms)
        return (
            self.body.replace("@NAMES@", " ".join(names))
            .replace("@FORM@", form or self.form)
            .replace("@INSTEAD@", self.instead.replace('"', "'"))
        )


_SHELL = """\
#!/bin/sh
# {about}
set -eu
cd "$(dirname "$0")"
{settings}
for name in @NAMES@; do
  model="{model}"
  [ -f "$model" ] || {{ echo "no $model. @INSTEAD@" >&2; exit 1; }}
  hash=$(python3 subject.py hash "$name" "@FORM@")
{commands}
  echo "$hash" > "results/$name.{tool}.sha256"
done
"""


def _shell(tool: str, about: str, settings: str, model: str, commands: str) -> str:
    return _SHELL.format(about=about, settings=settings, model=model, commands=commands, tool=tool)


_LITERT = _shell(
    "$tool",
    "LiteRT on an Android phone over adb; benchmark_model is in this folder (LiteRT's releases).\n"
    "# CORES masks the big cores (f0: cores 4-7). GPU=true measures the GPU, in half precision.\n"
    "# Airplane mode, battery above half, and let the phone cool down between runs.",
    ': "${CORES:=f0}" "${THREADS:=4}" "${RUNS:=50}" "${GPU:=false}" "${PAUSE:=20}"\n'
    'if [ "$GPU" = true ]; then tool=litertgpu; else tool=litert; fi\n'
    "adb push benchmark_model /data/local/tmp/\n"
    "adb shell chmod +x /data/local/tmp/benchmark_model",
    "models/$name/litert/model.tflite",
    """\
  adb push "$model" /data/local/tmp/nas.tflite
  run="taskset $CORES /data/local/tmp/benchmark_model --graph=/data/local/tmp/nas.tflite \
--num_threads=$THREADS --warmup_runs=5 --num_runs=$RUNS --use_gpu=$GPU \
--gpu_precision_loss_allowed=true"
  adb shell "$run" > "results/$name.$tool.txt" 2>&1
  # Once more for the ops: profiling slows the whole down.
  adb shell "$run --enable_op_profiling=true --op_profiling_output_mode=csv \
--op_profiling_output_file=/data/local/tmp/nas.csv" > /dev/null 2>&1
  adb pull /data/local/tmp/nas.csv "results/$name.$tool-ops.csv"
  sleep "$PAUSE\"""",
)

_ORT = _shell(
    "onnxruntime",
    "ONNX Runtime, here or (by adb) on a phone; EP is cpu, qnn, xnnpack, coreml, nnapi, cuda.",
    ': "${EP:=cpu}" "${RUNS:=50}"',
    "models/$name/onnx/model.onnx",
    """\
  rm -f results/.profile_*
  onnxruntime_perf_test -e "$EP" -I -m times -r "$RUNS" -p results/.profile "$model"
  mv results/.profile_*.json "results/$name.onnxruntime.json\"""",
)

_IREE = _shell(
    "iree",
    "IREE: compile here, benchmark here or on a phone (adb push, and run the same command there).\n"
    "# For a phone's CPU: FLAGS='--iree-llvmcpu-target-triple=aarch64-linux-android'; for its\n"
    "# GPU: TARGET=vulkan DEVICE=vulkan FLAGS='--iree-vulkan-target=adreno' (or valhall).",
    ': "${TARGET:=local}" "${DEVICE:=local-task}" "${REPETITIONS:=20}"\n'
    ': "${FLAGS:=--iree-hal-local-target-device-backends=llvm-cpu --iree-llvmcpu-target-cpu=host}"',
    "models/$name/stablehlo/model.mlirbc",
    """\
  # shellcheck disable=SC2086
  iree-compile --iree-input-type=stablehlo --iree-hal-target-device="$TARGET" $FLAGS \
"$model" -o "models/$name/stablehlo/model.vmfb"
  # shellcheck disable=SC2046
  iree-benchmark-module --module="models/$name/stablehlo/model.vmfb" --device="$DEVICE" \
--function=main $(python3 subject.py inputs "$name") --benchmark_repetitions="$REPETITIONS" \
--benchmark_context=runtime="IREE:$TARGET:$DEVICE" --benchmark_format=json \
> "results/$name.iree.json\"""",
)

_COREML = '''\
#!/usr/bin/env python3
"""Core ML, on a Mac: converts the StableHLO models and times them there or on an attached iPhone.

pip install "coremltools>=9" "stablehlo-coreml>=0.1.6" jax; `run_coreml.py` times this Mac, and
`run_coreml.py --iphone TEAM` an iPhone attached by cable, TEAM being your development team.
--units: ALL, CPU_AND_NE, CPU_AND_GPU, CPU_ONLY.
"""
import argparse
import asyncio
import csv
import platform
import statistics
from pathlib import Path

import coremltools as ct
from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker
from coremltools.models.ml_program.experimental.remote_device import (
    AppSigningCredentials,
    Device,
    DeviceType,
)
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo
from stablehlo_coreml import build_pass_pipeline, convert
from subject import checked

NAMES = "@NAMES@".split()
HERE = Path(__file__).resolve().parent
PRECISION = ct.precision.FLOAT16


def converted(artifact: bytes, units: str):
    with ir.Context() as context:
        module = stablehlo.deserialize_portable_artifact(context, artifact)
        program = convert(module, minimum_deployment_target=ct.target.iOS18)
    return ct.convert(
        program,
        source="milinternal",
        minimum_deployment_target=ct.target.iOS18,
        pass_pipeline=build_pass_pipeline(),
        compute_precision=PRECISION,
        compute_units=ct.ComputeUnit[units],
    )


async def main(args) -> None:
    device, label = None, platform.node()
    if args.iphone:
        device = Device.get_connected_devices(DeviceType.IPHONE)[0]
        label = device.name
        team = AppSigningCredentials(development_team=args.iphone)
        device = await device.prepare_for_model_debugging(credentials=team)
    for name in NAMES:
        if not (HERE / "models" / name / "@FORM@").exists():
            raise SystemExit("no StableHLO of " + name + ". @INSTEAD@")
        path, found = checked(HERE, name, "@FORM@")
        model = converted(path.read_bytes(), args.units)
        benchmarker = MLModelBenchmarker(model, device=device)
        measured = await benchmarker.benchmark_predict(iterations=args.runs, warmup=True)
        with (HERE / "results" / f"{name}.coreml.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            row = {
                "name": name,
                "ms": statistics.median(measured.samples),
                "stat": "median",
                "samples_ms": " ".join(map(str, measured.samples)),
                "device": label,
                "runtime": f"Core ML {args.units}",
                "precision": PRECISION.value,
                "version:coremltools": ct.__version__,
            }
            rows.writerows([row.keys(), row.values()])
        (HERE / "results" / f"{name}.coreml.sha256").write_text(found + "\\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iphone", metavar="TEAM")
    parser.add_argument("--units", default="CPU_AND_NE")
    parser.add_argument("--runs", type=int, default=50)
    asyncio.run(main(parser.parse_args()))
'''

_AIHUB = '''\
#!/usr/bin/env python3
"""Qualcomm AI Hub: compiles the ONNX models for a device in its cloud, and profiles them there.

pip install qai-hub; qai-hub configure --api_token YOURS; then
`run_aihub.py "Samsung Galaxy S24" --runtime qnn_context_binary` (or tflite, onnx, qnn_dlc).
"""
import argparse
import json
from pathlib import Path

import qai_hub as hub
from subject import checked

NAMES = "@NAMES@".split()
HERE = Path(__file__).resolve().parent


def main(args) -> None:
    device = hub.Device(args.device)
    for name in NAMES:
        if not (HERE / "models" / name / "@FORM@").exists():
            raise SystemExit("no ONNX of " + name + ". @INSTEAD@")
        path, found = checked(HERE, name, "@FORM@")
        # A folder where weights are in a file beside the model.
        whole = path.parent if len(list(path.parent.iterdir())) > 1 else path
        compiled = hub.submit_compile_job(
            model=str(whole), device=device, options=f"--target_runtime {args.runtime}"
        )
        job = hub.submit_profile_job(model=compiled.get_target_model(), device=device)
        profile = job.download_profile()
        profile["stated"] = {"device": args.device, "runtime": f"AI Hub {args.runtime}"}
        (HERE / "results" / f"{name}.aihub.json").write_text(json.dumps(profile))
        (HERE / "results" / f"{name}.aihub.sha256").write_text(found + "\\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device")
    parser.add_argument("--runtime", default="qnn_context_binary")
    main(parser.parse_args())
'''

_NO_ONNX = "This folder was written without ONNX; write it again with the `export` extra installed."
_NO_STABLEHLO = "This folder was written without StableHLO; write it again with that format."

_LITERT_CPU = Tool(
    "litert", "LiteRT CPU", "litert", "run-litert.sh", _ONNX_TO_LITERT, _LITERT, "onnx"
)

TOOLS: Mapping[str, Tool] = {
    "litert": _LITERT_CPU,
    "litertgpu": dataclasses.replace(
        _LITERT_CPU, runtime="LiteRT GPU, half precision", precision="float16"
    ),
    "onnxruntime": Tool(
        "onnx", "ONNX Runtime", "onnxruntime", "run-onnxruntime.sh", _NO_ONNX, _ORT
    ),
    "iree": Tool("stablehlo", "IREE", "benchmark-json", "run-iree.sh", _NO_STABLEHLO, _IREE),
    "coreml": Tool(
        "stablehlo",
        "Core ML",
        "csv",
        "run_coreml.py",
        _NO_STABLEHLO,
        _COREML,
        precision="float16",
    ),
    "aihub": Tool("onnx", "Qualcomm AI Hub", "aihub-job", "run_aihub.py", _NO_ONNX, _AIHUB),
}

SUBJECT = Path(exchange_subject.__file__).read_text()
"""What the scripts read of the manifest by."""


def readme(names: Iterable[str], forms: Iterable[str]) -> str:
    """What to do with the folder."""
    forms = tuple(forms)
    lines = [
        "# Models to measure",
        "",
        f"Subjects: {', '.join(names)}. Written here: {', '.join(sorted(forms))}.",
        "`manifest.json` says what each is. Each script measures all of them by one tool and puts",
        "what the tool says into `results/`, with the hash of the model that was measured; then",
        "import the folder. Scripts explain themselves in their first lines.",
        "",
        "| tool | script | measures |",
        "|---|---|---|",
    ]
    for name, tool in TOOLS.items():
        there = "" if tool.form in forms else f": not written here. {tool.instead}"
        lines.append(f"| {name} | `{tool.script}` | {tool.form}{there} |")
    return "\n".join(lines) + "\n"
