"""The latency lab by its commands: measured, fitted, checked, predicted, sent out and read back."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from latency_models import saved, store
from latency_models.features import work
from latency_models.latency import Latency, Whole
from latency_models.provenance import Method, Provenance
from latency_models.rows import Network
from latency_models.table import Table
from nas import cli, devices
from nas.commands import profile
from nas.describe import find
from search_spaces.ops import Call
from search_spaces.program import calls
from search_spaces.unet import lower
from tests import tiny

# A measurement on a machine that runs tests beside it is as good as these say.
ROUGH = tuple(
    word
    for what in ("relative", "useless", "drift", "pace", "corrected")
    for word in (f"--target.{what}", "1e9")
)
QUICK = (*ROUGH, "--seconds", "0", "--target.limit-s", "0")


@pytest.fixture
def file(tmp_path: Path, folders: tiny.Folders, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measurements of the tiny pipeline's U-Net on a device that is made up."""
    spec, inputs = find(str(folders.pipeline))
    whole = Whole(lower(spec), inputs)
    rows = {call: takes(call) for call in calls(*whole).values()}
    ms = 0.5 + 0.8 * sum(takes(call).ms for call in calls(*whole).values())
    provenance = Provenance("a device", "a runtime", (), "any", "any", 1, Method.MEASURED)
    path = tmp_path / "measured.json"
    networks = [Network("tiny", whole, Latency(ms, 0.01 * ms))]
    store.write(path, provenance, Table(rows), networks)
    return path


def takes(call: Call) -> Latency:
    ms = 0.01 + 1e-7 * float(work(call)[:4].sum())
    return Latency(ms, 0.01 * ms)


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


def test_blocks_and_networks_are_measured_and_go_on(tmp_path, folders, capsys, monkeypatch):
    out = tmp_path / "measured.json"
    asked = ("profile", folders.pipeline, "--out", out, "--runtime", "onnxruntime", *QUICK)
    assert run(*asked, "--blocks", 2) == 0
    found = store.load(out)
    assert len(found.table.rows) == 2 and len(found.networks) == 1
    assert found.provenance.method == Method.MEASURED and found.provenance.threads
    assert "3 measured, 0 known before, 0 not come to" in capsys.readouterr().out
    assert run(*asked, "--blocks", 2) == 0
    assert "0 measured, 3 known before" in capsys.readouterr().out
    assert store.load(out) == found


def test_what_edits_make_is_measured_at_the_pace_of_another_file(tmp_path, folders, capsys):
    first, held_out = tmp_path / "first.json", tmp_path / "held-out.json"
    asked = ("profile", folders.pipeline, "--runtime", "onnxruntime", *QUICK)
    assert run(*asked, "--blocks", 5, "--blocks-only", "--out", first) == 0
    wanted = ("--edited", 2, "--seed", 3, "--blocks", 0, "--beside", first, "--out", held_out)
    assert run(*asked, *wanted) == 0
    found = store.load(held_out)
    names = [f"{folders.pipeline}/edited/3/{i}" for i in range(2)]
    assert not found.table.rows
    assert [n.name for n in found.networks] == [str(folders.pipeline), *names]
    programs = [n.whole.program for n in found.networks]
    assert programs[0] not in programs[1:]
    capsys.readouterr()
    other = Provenance("another", "a runtime", (), "any", "any", 1, Method.MEASURED)
    store.write(tmp_path / "other.json", other, store.load(first).table)
    assert run(*asked, "--beside", tmp_path / "other.json", "--out", tmp_path / "x.json") == 1
    assert "other.json was measured otherwise (" in capsys.readouterr().err


def test_a_name_is_of_one_network_whatever_else_is_measured():
    def networks(*names: str, edited: int = 0, random: int = 0):
        return profile._networks(profile.Settings(names=names, edited=edited, random=random))

    alone, beside = networks(random=3), networks("bk-small", "bk-tiny", edited=2, random=2)
    again = networks("bk-tiny", edited=3)
    assert {name: alone[name] for name in ("random/0/0", "random/0/1")}.items() <= beside.items()
    assert {f"bk-tiny/edited/0/{i}": beside[f"bk-tiny/edited/0/{i}"] for i in range(2)}.items() <= (
        again.items()
    )
    assert alone["random/0/0"] != alone["random/0/1"]


@pytest.mark.parametrize("method", ["gaussian", "trees", "rates", "interpolation"])
def test_a_model_is_fitted_checked_and_asked(tmp_path, folders, file, capsys, method):
    out = tmp_path / "model"
    assert run("latency", "fit", file, "--out", out, "--method", method) == 0
    model, card = saved.load(out)
    assert card["provenance"]["device"] == "a device" and card["method"] == method
    assert card["networks"] == 1 and card["errors on held-out calls"]["pairs"] > 0
    assert "held-out calls" in capsys.readouterr().out
    assert run("latency", "check", out, file) == 0
    shown = capsys.readouterr().out
    assert "worst calls" in shown and "networks" in shown and "Spearman" in shown
    for plot in ("reliability.svg", "agreement.svg"):
        assert (out / plot).read_text().startswith("<svg")
    assert run("latency", "predict", out, folders.pipeline, "--caution", 2) == 0
    shown = capsys.readouterr().out
    spec, inputs = find(str(folders.pipeline))
    predicted = model.predict(calls(lower(spec), inputs).values())
    assert str(predicted) in shown and f"{predicted.ms + 2 * predicted.std:.3f} ms" in shown
    measured = store.load(file).networks[0].latency.ms
    assert predicted.ms == pytest.approx(measured, rel=0.1)


def test_a_model_is_checked_on_what_it_was_not_fitted_to(tmp_path, folders, file, capsys):
    out, some = tmp_path / "model", tmp_path / "some.json"
    there = store.load(file)
    assert run("latency", "fit", file, "--out", out) == 0
    capsys.readouterr()
    assert run("latency", "check", out, file, "--without", file) == 1
    assert "all that was measured is in" in capsys.readouterr().err
    half = dict(list(there.table.rows.items())[::2])
    store.write(some, there.provenance, Table(half), there.networks)
    assert run("latency", "check", out, file, "--without", some) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^ *calls +{len(there.table.rows) - len(half)} ", shown, re.MULTILINE)
    assert re.search(r"^ *networks +0 ", shown, re.MULTILINE)


def test_a_model_is_checked_on_another_device_only_with_a_word_of_it(
    tmp_path, file, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run("latency", "fit", file, "--out", "model") == 0
    assert run("latency", "check", "model", file) == 0
    assert "These differ" not in capsys.readouterr().out
    assert run("latency", "check", "google-pixel-4-tflite-gpu", file) == 0
    shown = capsys.readouterr().out
    assert "These differ" in shown and "device: 'Google Pixel 4" in shown
    assert "worst networks" in shown
    assert Path("google-pixel-4-tflite-gpu", "agreement.svg").exists()


def test_what_a_file_holds_is_shown_with_how_sure_it_is(tmp_path, folders, file, capsys):
    measured = tmp_path / "measured-here.json"
    asked = ("--runtime", "onnxruntime", "--blocks", 2, "--out", measured, *QUICK)
    assert run("profile", folders.pipeline, *asked) == 0
    capsys.readouterr()
    assert run("profile", "show", measured) == 0
    shown = capsys.readouterr().out
    found = store.load(measured)
    rows = [*found.table.rows.values(), *(n.latency for n in found.networks)]
    assert len(rows) == 3 and str(found.provenance) in shown
    for row in rows:
        low, high = row.interval()
        assert row.spread
        numbers = (f"{row.ms:.4g}", f"{low:.4g} to {high:.4g}", f"{row.spread.p90:.4g}")
        line = r" +".join(map(re.escape, (*numbers, str(row.spread.repeats))))
        assert re.search(line, shown)
    assert run("profile", "show", tmp_path / "nothing.json") == 1
    assert "no measurements at" in capsys.readouterr().err


def test_operators_of_a_network_are_told_by_what_they_take(folders, capsys):
    asked = ("profile", "operators", folders.pipeline, "--runtime", "onnxruntime")
    assert run(*asked, "--passes", 2, "--most", 3) == 0
    said, *lines = re.split(r"\n(?= +ms )", capsys.readouterr().out)
    kinds, operators = ([line.split() for line in part.splitlines()[1:]] for part in lines)
    count, every = re.search(r"(\d+) operators take ([\d.e-]+) ms", said).groups()  # pyright: ignore
    assert sum(int(row[2]) for row in kinds) == int(count)
    assert sum(float(row[0]) for row in kinds) == pytest.approx(float(every), rel=1e-2)
    assert "Conv" in [row[3] for row in kinds] and len(operators) == 3
    assert run(*asked, "--passes", 0) == 1
    assert "one or more are possible" in capsys.readouterr().err


def test_a_device_is_learnt_from_a_few_calls_and_other_devices(tmp_path, folders, file, capsys):
    there = store.load(file)
    slower = Table({c: Latency(2 * row.ms, 0.1) for c, row in there.table.rows.items()})
    store.write(tmp_path / "slower.json", there.provenance, slower)
    sources = (file, tmp_path / "slower.json")
    few, out = tmp_path / "few.json", tmp_path / "model"
    asked = ("profile", folders.pipeline, "--blocks", 6, "--blocks-only", "--out", few, *QUICK)
    assert run(*asked, "--like", *sources) == 0
    found = store.load(few)
    assert len(found.table.rows) == 6
    assert run(*asked, "--like", *sources) == 0  # Six others, given those.
    assert len(store.load(few).table.rows) == 12
    assert run("latency", "adapt", few, "--sources", *sources, few, "--out", out) == 1
    assert f"{few} is of the device itself" in capsys.readouterr().err
    assert run("latency", "adapt", few, "--sources", *sources, "--out", out) == 0
    shown = capsys.readouterr().out
    assert "calls left out" in shown and "12 calls, 0 networks" in shown
    model, card = saved.load(out)
    assert card["method"] == "few-shot transfer from 2 devices"
    assert card["provenance"] == found.provenance.to_json()
    spec, inputs = find(str(folders.pipeline))
    assert model.predict(calls(lower(spec), inputs).values()).ms > 0
    assert run("latency", "check", out, file) == 0


def test_models_are_asked_about_the_calls_of_files(file, monkeypatch):
    monkeypatch.setattr(devices, "_ENOUGH", 0)
    rows = store.load(file).table.rows
    known, told = devices.tables([str(file), "xiaomi-mi-8-se-tflite-gpu"], ())
    assert known.rows == rows and told.rows.keys() == rows.keys()
    wanted = calls_of("mobile-diffusion")
    few = devices.table("tpu-v3", [*rows, *wanted])
    assert set(few.rows) == set(wanted)  # The others are in no TPU table.
    with pytest.raises(ValueError, match="tpu-v3 cannot price any"):
        devices.table("tpu-v3", rows)


def calls_of(name: str) -> list[Call]:
    spec, inputs = find(name)
    return list(dict.fromkeys(calls(lower(spec), inputs).values()))


def test_measurements_of_two_devices_are_not_fitted_together(tmp_path, file, capsys):
    found = store.load(file)
    other = Provenance("another", "a runtime", (), "any", "any", 1, Method.MEASURED)
    store.write(tmp_path / "other.json", other, found.table)
    assert run("latency", "fit", file, tmp_path / "other.json", "--out", tmp_path / "model") == 1
    assert "do not mix (device: 'another' there, 'a device' here)" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_architectures_are_described_with_a_device(folders, file, tmp_path, capsys):
    run("latency", "fit", file, "--out", tmp_path / "model")
    capsys.readouterr()
    assert run("describe", folders.pipeline, "--device", tmp_path / "model") == 0
    whole, _ = saved.load(tmp_path / "model")
    spec, inputs = find(str(folders.pipeline))
    predicted = whole.predict(calls(lower(spec), inputs).values())
    assert f"{predicted.ms:.3f} ± {predicted.std:.3f}" in capsys.readouterr().out


def test_devices_that_ship_are_listed_with_method_and_error(capsys):
    assert run("devices") == 0
    shown = capsys.readouterr().out
    for wanted in ("tpu-v3", "compiler estimate", "google-pixel-4-tflite-gpu", "error:"):
        assert wanted in shown
    assert "covers 0 calls" not in shown
    assert run("devices", "tpu-v3") == 0
    assert '"method": "compiler estimate"' in capsys.readouterr().out


def test_a_preset_is_priced_on_devices_that_ship(capsys):
    for device in ("tpu-v3", "google-pixel-4-tflite-gpu"):
        assert run("latency", "predict", device, "bk-tiny") == 0
        assert "(predicted)" in capsys.readouterr().out


def test_models_go_out_and_measurements_come_back(tmp_path, folders, capsys):
    out = tmp_path / "out"
    assert run("profile", "export", folders.pipeline, "--out", out, "--forms", "onnx") == 0
    manifest = json.loads((out / "manifest.json").read_text())
    name = next(name for name in manifest["subjects"] if name.startswith("block"))
    said = "count=50 first=510 curr=500 min=480 max=700 avg=502 std=20\n"
    (out / "results" / f"{name}.litert.txt").write_text(
        f"Timings (microseconds): {said}Average inference timings in us: Inference: 502\n"
    )
    said = subprocess.run(
        [sys.executable, out / "subject.py", "hash", name, "onnx"], capture_output=True, text=True
    ).stdout
    (out / "results" / f"{name}.litert.sha256").write_text(said)
    capsys.readouterr()
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    for wrong, told in (
        (("--results", nothing), f"no results in {nothing}"),
        (("--form", "csv"), "a folder's manifest says the formats"),
    ):
        assert run("profile", "import", out, "--device", "A phone", *wrong) == 1
        assert told in capsys.readouterr().err
    assert run("profile", "import", out, "--device", "A phone", "--version", "os=14") == 0
    assert "1 blocks and 0 networks" in capsys.readouterr().out
    (found,) = (out / "measured").glob("*.json")
    (row,) = store.load(found).table.rows.values()
    assert row.ms == pytest.approx(0.502)
    assert store.load(found).provenance.device == "A phone"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("profile",), "no networks: give presets or folders, or --random"),
        (("profile", "--edited", "3", "--random", "1"), "--edited 3 of nothing"),
        (("profile", "sd15", "--beside", "nowhere.json"), "no measurements at nowhere.json"),
        (("profile", "nothing"), "nothing is neither a folder nor a preset"),
        (("profile", "sd15", "--batch", "0"), "--batch 0"),
        (("profile", "import", "nowhere"), "nowhere"),
        (("profile", "import", __file__, "--out", "x"), "--out: a file is only shown"),
        (("profile", "sd15", "--device", "tpu-v3", "--minutes", "0"), "leave --minutes out"),
        (("profile", "sd15", "--device", "tpu-v3", "--seconds", "9"), "leave --seconds out"),
        (("profile", "sd15", "--device", "tpu-v3", "--beside", "x"), "leave --beside out"),
        (("profile", "sd15", "--blocks", "-1"), "--blocks -1"),
        (("latency", "fit", "nowhere.json", "--out", "x"), "no measurements at nowhere.json"),
        (("latency", "predict", "nowhere", "sd15"), "neither the folder of a latency model"),
        (("profile", "sd15", "--like", "tpu-v3"), "say how many with --blocks"),
        (("devices", "nokia"), "no latency model of 'nokia'"),
        (("describe", "sd15", "--device", "tpu-v3", "--measure"), "give one of them"),
    ],
)
def test_bad_input_is_one_clear_message(arguments, said, capsys):
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("nas: ") and "Traceback" not in error
