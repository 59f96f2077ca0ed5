"""Models go out to devices that are not at hand, and exactly what was measured comes back."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo as dialect

from latency_models import exchange
from latency_models.exchange import (
    MANIFEST,
    RESULTS,
    digest,
    onnx,
    read,
    stablehlo,
    tables,
    together,
    write,
)
from latency_models.exchange_tools import TOOLS
from latency_models.importers import Malformed
from latency_models.latency import Whole
from latency_models.provenance import Method
from latency_models.runtimes import drawn
from nas import cli
from search_spaces.blocks import Conv, NormSiLU
from search_spaces.export import onnx as form
from search_spaces.export.part import Part
from search_spaces.ops import Call
from search_spaces.program import Step

X = jax.ShapeDtypeStruct((1, 8, 8, 4), "float32")
CONV = Call(Conv(6), (X,))
NET = Whole(
    (Step("a", Conv(8), ("x",)), Step("b", NormSiLU(4), ("a",)), Step("c", Conv(2), ("b",))),
    {"x": X},
)
SUBJECTS = {"conv": CONV, "net": NET}
GIVEN = {"device": "A Phone", "version:os": "14"}
SAID = (
    "count=6 first=900 curr=500 min=480 max=900 avg=560 std=150\n"
    "count=50 first=510 curr=500 min=480 max=700 avg={avg} std=20\n"
)


def plain(part: Part, folder: Path) -> Path:
    """A writer whose file only says which network it is of."""
    path = folder / "model.onnx"
    path.write_text(repr(part.program))
    return path


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "models"
    write(out, SUBJECTS, {"onnx": plain}, precision="float16", attention="as written")
    return out


def measured(folder: Path, name: str, tool: str, text: str, ending: str, form="onnx") -> None:
    """What a script leaves behind."""
    entry = json.loads((folder / MANIFEST).read_text())["subjects"][name]["files"][form]
    (folder / RESULTS / f"{name}.{tool}.{ending}").write_text(text)
    (folder / RESULTS / f"{name}.{tool}.sha256").write_text(entry["sha256"] + "\n")


def test_what_was_measured_comes_back_and_what_was_not_is_named(folder):
    measured(folder, "conv", "litert", SAID.format(avg=502), "txt")
    measured(folder, "conv", "aihub", RUNS, "json")
    measured(folder, "net", "aihub", RUNS, "json")
    rows, missing = read(folder, given=GIVEN)
    assert [(row.name, row.tool) for row in rows] == [
        ("conv", "aihub"),
        ("conv", "litert"),
        ("net", "aihub"),
    ]
    assert missing == {"litert": ("net",), "aihub": ()}
    assert [row.subject for row in rows] == [CONV, CONV, NET]
    first = rows[1]
    assert first.latency.ms == pytest.approx(0.502)
    assert first.latency.std == pytest.approx(0.02 / np.sqrt(50))
    said = first.provenance
    assert (said.device, said.runtime, said.precision) == ("A Phone", "LiteRT CPU", "float16")
    assert (said.attention, said.method) == ("as written", Method.MEASURED)
    assert dict(said.versions) == {"os": "14", "statistic": "mean"}
    assert said.source.endswith("conv.litert.txt")


JOB = {"execution_summary": {"all_inference_times": [900, 1000, 1400]}, "execution_detail": []}
RUNS = json.dumps(JOB)


def test_numbers_of_different_provenance_are_kept_apart(folder):
    measured(folder, "conv", "litert", SAID.format(avg=502), "txt")
    for name in SUBJECTS:
        measured(folder, name, "aihub", RUNS, "json")
    grouped = tables(read(folder, given=GIVEN))
    assert {p.runtime: (len(t.rows), len(n)) for p, (t, n) in grouped.items()} == {
        "LiteRT CPU": (1, 0),
        "Qualcomm AI Hub": (1, 1),
    }
    for table, networks in grouped.values():
        assert table.rows.keys() <= {CONV}
        assert [network.whole for network in networks] in ([], [NET])


def test_a_profile_beside_the_time_of_the_whole_gives_its_ops(folder):
    measured(folder, "conv", "litert", SAID.format(avg=502), "txt")
    profile = folder / RESULTS / "conv.litert-ops.csv"
    profile.write_text(
        "============================== Run Order ==============================\n"
        "node type, first, avg_ms, %, cdf%, mem KB, times called, name\n"
        "CONV_2D, 0.4, 0.3, 60%, 60%, 0, 1, [a]:0\n"
        "Number of nodes executed: 1\n"
    )
    (row,) = read(folder, given=GIVEN).rows
    assert [(op.op, op.ms) for op in row.ops] == [("CONV_2D", 0.3)]
    profile.rename(folder / RESULTS / "net.litert-ops.csv")
    with pytest.raises(ValueError, match="profile without the time of the whole"):
        read(folder, given=GIVEN)


def test_the_measurement_of_another_model_is_refused(folder):
    measured(folder, "conv", "litert", SAID.format(avg=502), "txt")
    hashed = folder / RESULTS / "conv.litert.sha256"
    hashed.write_text("0" * 64)
    with pytest.raises(ValueError, match="of another model than"):
        read(folder, given=GIVEN)
    hashed.unlink()
    with pytest.raises(ValueError, match="the hash of the model that was measured"):
        read(folder, given=GIVEN)


@pytest.mark.parametrize("name", ["other.litert.txt", "conv.stopwatch.txt", "conv.litert.png"])
def test_a_result_of_what_is_not_in_the_manifest_is_refused(folder, name):
    (folder / RESULTS / name).write_text(SAID.format(avg=502))
    with pytest.raises(ValueError, match="is no result of a subject"):
        read(folder, given=GIVEN)


def test_a_runtime_that_the_file_names_is_the_one(folder):
    job = {**JOB, "stated": {"device": "A Phone", "runtime": "AI Hub qnn_dlc"}}
    measured(folder, "conv", "aihub", json.dumps(job), "json")
    (row,) = read(folder, given={}).rows
    assert (row.provenance.device, row.provenance.runtime) == ("A Phone", "AI Hub qnn_dlc")
    with pytest.raises(ValueError, match="device=A Phone"):
        read(folder, given={"device": "Another"})


def test_the_precision_is_what_was_computed_in(tmp_path):
    folder = tmp_path / "models"
    write(folder, {"conv": CONV}, {"onnx": plain, "stablehlo": stablehlo}, precision="float32")

    def precisions() -> dict[str, str]:
        return {row.tool: row.provenance.precision for row in read(folder, given=GIVEN).rows}

    csv = "name,ms,stat,samples_ms\nconv,2,median,1 2 3\n"
    measured(folder, "conv", "coreml", csv, "csv", "stablehlo")
    for tool in ("litert", "litertgpu"):
        measured(folder, "conv", tool, SAID.format(avg=502), "txt")
    assert precisions() == {"coreml": "float16", "litert": "float32", "litertgpu": "float16"}
    said = csv.replace("samples_ms", "samples_ms,precision").replace("1 2 3", "1 2 3,int8")
    measured(folder, "conv", "coreml", said, "csv", "stablehlo")
    assert precisions()["coreml"] == "int8"


def test_one_malformed_result_means_that_nothing_is_read(folder):
    measured(folder, "conv", "litert", SAID.format(avg=502), "txt")
    measured(folder, "net", "litert", SAID.format(avg="soon"), "txt")
    with pytest.raises(Malformed, match=r"net\.litert\.txt, line 2"):
        read(folder, given=GIVEN)


def test_two_results_of_one_subject_by_one_tool_are_refused(folder):
    measured(folder, "conv", "litert", SAID.format(avg=502), "txt")
    measured(folder, "conv", "litert", SAID.format(avg=602), "csv")
    with pytest.raises(
        ValueError, match=r"conv\.litert\.csv and .*conv\.litert\.txt are two results"
    ):
        read(folder, given=GIVEN)


def nas_import(*arguments: object) -> int:
    return cli.run(["profile", "import", *map(str, arguments)])


def test_a_file_that_cannot_be_added_to_means_that_none_is_written(folder, tmp_path, capsys):
    for tool, text, ending in (("litert", SAID.format(avg=502), "txt"), ("aihub", RUNS, "json")):
        measured(folder, "conv", tool, text, ending)
    out, asked = tmp_path / "measured", (folder, "--device", "A Phone")
    assert nas_import(*asked, "--out", out) == 0
    files = sorted(out.iterdir())
    assert len(files) == 2
    for damaged in files:
        for path in files:
            path.unlink(missing_ok=True)
        damaged.write_text("{")
        capsys.readouterr()
        assert nas_import(*asked, "--out", out) == 1
        assert f"{damaged} is damaged" in capsys.readouterr().err
        assert list(out.iterdir()) == [damaged]


def test_what_no_file_says_has_to_be_given_and_what_one_says_may_not_differ(folder):
    measured(folder, "conv", "litert", SAID.format(avg=502), "txt")
    with pytest.raises(ValueError, match="does not say the device"):
        read(folder, given={})
    with pytest.raises(ValueError, match=r"precision is 'float16'.*you say 'int8'"):
        read(folder, given={**GIVEN, "precision": "int8"})


def test_the_folder_says_what_could_not_be_written_and_what_to_run(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["not written here"].keys() == {"litert", "stablehlo"}
    assert "onnx2tf -i models/NAME/onnx/model.onnx" in manifest["not written here"]["litert"]
    assert "onnx2tf" in (folder / "README.md").read_text()
    assert manifest["subjects"]["net"]["batch"] == 1
    assert manifest["subjects"]["net"]["precision"] == "float16"
    assert manifest["attention"] == "as written"
    file = manifest["subjects"]["conv"]["files"]["onnx"]
    assert file["parts"] == {file["file"]: digest(folder / file["file"])}
    assert file["sha256"] == together(file["parts"])


def test_every_script_can_be_parsed_and_names_every_subject(folder):
    for tool in TOOLS.values():
        script = folder / tool.script
        assert os.access(script, os.X_OK)
        text = script.read_text()
        assert "conv net" in text and "@" not in text.replace("@file", "")
        if script.suffix == ".sh":
            subprocess.run(["sh", "-n", script], check=True)
        else:
            ast.parse(text)


def test_a_script_leaves_what_can_be_imported(folder, tmp_path):
    """With a stand-in for the phone: what `adb` says is what a phone would."""
    fake = tmp_path / "bin"
    fake.mkdir()
    adb, said = fake / "adb", SAID.format(avg=502).replace("\n", "\\n")
    adb.write_text(
        "#!/bin/sh\n"
        'case "$1 $2" in\n'
        f'  "shell taskset"*) printf "{said}" ;;\n'
        '  "pull "*) printf "= Run Order =\\nnode type, avg_ms, name\\nADD, 0.1, x\\n\\n'
        'Number of nodes executed: 1\\n" > "$3" ;;\n'
        "esac\n"
    )
    adb.chmod(0o755)
    environment = {"PATH": f"{fake}:{os.environ['PATH']}", "PAUSE": "0"}

    def run() -> subprocess.CompletedProcess:
        script = folder / "run-litert.sh"
        return subprocess.run([script], env=environment, capture_output=True, text=True)

    failed = run()
    assert failed.returncode == 1 and "onnx2tf" in failed.stderr  # Nothing was converted yet.
    for name in SUBJECTS:
        (folder / "models" / name / "litert").mkdir()
        (folder / "models" / name / "litert" / "model.tflite").write_text("converted elsewhere")
    done = run()
    assert done.returncode == 0, done.stderr
    rows, missing = read(folder, given=GIVEN)
    assert [row.name for row in rows] == ["conv", "net"] and missing == {"litert": ()}
    assert [op.op for op in rows[0].ops] == ["ADD"]
    # The GPU is another runtime.
    environment["GPU"] = "true"
    assert run().returncode == 0
    found = {row.provenance.runtime for row in read(folder, given=GIVEN).rows}
    assert found == {"LiteRT CPU", "LiteRT GPU, half precision"}
    # A model that changed since it was written is not measured.
    (folder / "models" / "conv" / "onnx" / "model.onnx").write_text("another")
    assert run().returncode != 0


def test_weights_beside_a_model_are_part_of_what_was_measured(tmp_path):
    def beside(part: Part, folder: Path) -> Path:
        form.write(part, folder, limit=0)
        return folder / form.MODEL

    def hashed() -> subprocess.CompletedProcess:
        command = [sys.executable, "subject.py", "hash", "conv", "onnx"]
        return subprocess.run(command, cwd=out, capture_output=True, text=True)

    out = tmp_path / "models"
    written = write(out, {"conv": CONV}, {"onnx": beside})["subjects"]["conv"]["files"]["onnx"]
    data = out / "models" / "conv" / "onnx" / form.DATA
    assert set(written["parts"]) == {written["file"], data.relative_to(out).as_posix()}
    assert hashed().stdout.strip() == written["sha256"]
    # What `sha256sum` says of the files, hashed again, as anybody can.
    command = "sha256sum models/conv/onnx/* | LC_ALL=C sort -k 2 | sha256sum"
    said = subprocess.run(command, shell=True, cwd=out, capture_output=True, text=True).stdout
    assert said.split()[0] == written["sha256"]
    weights = bytearray(data.read_bytes())
    weights[-1] ^= 1
    data.write_bytes(weights)
    assert "model.onnx.data is not the one that was written" in hashed().stderr
    assert hashed().returncode and not hashed().stdout
    data.unlink()
    assert "model.onnx.data is not the one that was written" in hashed().stderr


def test_scripts_in_python_check_every_file_too(folder):
    for name in ("run_coreml.py", "run_aihub.py"):
        text = (folder / name).read_text()
        assert "from subject import checked" in text and "hashlib" not in text


def test_stablehlo_goes_out_with_its_weights(tmp_path):
    for name, subject in SUBJECTS.items():
        place = tmp_path / name
        place.mkdir()
        path = stablehlo(drawn(subject), place)
        with ir.Context() as context:
            module = dialect.deserialize_portable_artifact(context, path.read_bytes())
            text = str(module)
        assert "func public @main(%arg0: tensor<1x8x8x4xf32>" in text
        assert "%arg1" not in text.split("{", 2)[1]
        assert "stablehlo.convolution" in text


def test_inputs_are_spelled_for_iree(tmp_path):
    out = tmp_path / "models"
    write(out, SUBJECTS, {"stablehlo": stablehlo}, precision="float16")
    for name in SUBJECTS:
        said = subprocess.run(
            ["python3", "subject.py", "inputs", name], cwd=out, capture_output=True, text=True
        )
        assert said.stdout == "--input=1x8x8x4xf16=0.5\n"


def test_what_cannot_be_written_leaves_no_folder(tmp_path):
    out = tmp_path / "models"

    def write_to(subjects, writers):
        write(out, subjects, writers)

    with pytest.raises(ValueError, match="name no files"):
        write_to({"a/b": CONV}, {"onnx": plain})
    with pytest.raises(ValueError, match=r"no tool reads \['pickle'\]"):
        write_to(SUBJECTS, {"pickle": plain})
    with pytest.raises(ValueError, match="nothing to write"):
        write_to({}, {"onnx": plain})
    with pytest.raises(ValueError, match=r"returned .* no file in"):
        write_to(SUBJECTS, {"onnx": lambda subject, folder: tmp_path / "elsewhere"})
    assert not list(tmp_path.iterdir())
    write_to(SUBJECTS, {"onnx": plain})
    with pytest.raises(ValueError, match="there already"):
        write_to(SUBJECTS, {"onnx": plain})


def test_the_manifest_holds_subjects_that_are_read_back_equal(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, subject in SUBJECTS.items():
        assert exchange._decode(manifest["subjects"][name], "here") == subject
    manifest["subjects"]["conv"]["op"]["type"] = "no.such:Op"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    measured(folder, "conv", "litert", SAID.format(avg=502), "txt")
    with pytest.raises(ValueError, match="unknown op"):
        read(folder, given=GIVEN)


def test_onnx_that_goes_out_is_what_the_runtime_runs_and_profiles(tmp_path):
    """What `onnxruntime_perf_test -p` writes is what the runtime's own profiler does."""
    out = tmp_path / "models"
    manifest = write(out, SUBJECTS, {"onnx": onnx})
    for name in SUBJECTS:
        file = out / manifest["subjects"][name]["files"]["onnx"]["file"]
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / name)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        arguments = manifest["subjects"][name]["arguments"]
        values = {key: np.ones(sizes, kind) for key, (sizes, kind) in arguments.items()}
        for _ in range(3):
            session.run(None, values)
        said = Path(session.end_profiling()).read_text()
        measured(out, name, "onnxruntime", said, "json")
    rows, missing = read(out, given=GIVEN)
    assert missing == {"onnxruntime": ()}
    assert [row.subject for row in rows] == [CONV, NET]
    assert "Conv" in {op.op for op in rows[0].ops}
    assert rows[0].provenance.precision == "float32"
    assert rows[0].provenance.runtime == "ONNX Runtime, CPUExecutionProvider"
