"""Devices by name: what prices a search that is not measured here, and what is said of it."""

import dataclasses
import io
import re
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import jax
import pytest
from rich.console import Console

from experiments.emoji.recipe import default
from latency_models import saved, shipped, store
from latency_models.bench import LocalBench, ModelBench
from latency_models.calibrate import Calibrated
from latency_models.latency import Latency, UnknownCall, Whole
from latency_models.provenance import Method, Provenance
from latency_models.roofline import Roofline
from latency_models.runtimes.onnxruntime import OnnxRuntime
from latency_models.table import Table
from nas import cli, describe, devices
from nas.commands.search import Settings
from nas.evolution import Evolution
from nas.journal import Journal, read
from nas.perform import Performer
from nas.progress import Live
from nas.recipe import Recipe, Search
from nas.report import page
from nas.search import search
from search_spaces.blocks import Conv, NormSiLU
from search_spaces.ops import Call
from search_spaces.program import calls
from search_spaces.unet import lower
from tests import story as made_up
from tests import tiny

RECIPE = "tests.cli_recipe:recipe"
PHONE = "google-pixel-4-tflite-gpu"
CONV = Call(Conv(4), (jax.ShapeDtypeStruct((2, 4, 4, 4), "float32"),))
NORM = Call(NormSiLU(groups=2), (jax.ShapeDtypeStruct((2, 4, 4, 4), "float32"),))
DEVICE = Provenance("a device", "a runtime", (), "float32", "any", 1, Method.MEASURED)


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


def profiled(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What the first task of a search gives."""
    return dict(Performer(recipe, folder).profile())


@pytest.fixture
def no_libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "libtpu":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)


# Benches.


def test_a_model_s_bench_says_what_it_is_of_and_that_it_is_predicted() -> None:
    bench = ModelBench(Roofline(1e9, 1e9), DEVICE)
    assert bench.provenance.device == "a device"
    assert bench.provenance.method == Method.PREDICTED


def test_a_network_s_fixed_cost_is_no_call_s() -> None:
    model = Calibrated(Roofline(1e9, 1e9), 5.0, 1.0, 0.1)
    (row,) = ModelBench(model).table([CONV]).rows.values()
    assert row.ms == pytest.approx(model.predict([CONV]).ms - 5.0)


def test_a_refusal_names_the_device_and_the_call() -> None:
    bench = ModelBench(Table({CONV: Latency(1.0, 0.1)}), DEVICE)
    assert bench.refusal([CONV]) is None
    assert "NormSiLU" in str(bench.refusal([CONV, NORM]))
    with pytest.raises(UnknownCall, match=r"the model of a device: 1 of 1 .*NormSiLU"):
        bench.table([NORM])


@pytest.mark.parametrize("row", shipped.overview(), ids=lambda row: row.name)
def test_a_shipped_bench_says_how_it_is_known_and_how_wrong(row: shipped.Shipped) -> None:
    found = devices.bench(row.name).provenance
    assert found.device == row.device and found.runtime == row.runtime
    assert found.method in (Method.PREDICTED, Method.COMPILED)
    assert found.source.startswith(found.method)
    assert dict(found.versions).keys() & {"model", "calibration"}


def test_no_two_shipped_devices_are_taken_for_each_other() -> None:
    found = [devices.bench(name).provenance for name in shipped.names()]
    versions = [dict(known.versions) for known in found]
    assert len({known.key for known in found}) == len(found)
    assert len({v.get("model") or v["calibration"] for v in versions}) == len(found)


def test_a_folder_s_bench_is_of_the_device_of_its_measurements(tmp_path: Path) -> None:
    card = {
        "provenance": DEVICE.to_json(),
        "calls": 7,
        "errors on held-out calls": {"mape": 0.123},
        "errors on held-out networks": None,
    }
    saved.save(tmp_path, Roofline(1e9, 1e9), card)
    first = devices.bench(str(tmp_path)).provenance
    assert (first.device, first.runtime, first.threads) == ("a device", "a runtime", 1)
    assert first.method == Method.PREDICTED
    assert "learnt from 7 calls, measured; error: 12.3% on held-out calls" in first.source
    saved.save(tmp_path, Roofline(2e9, 1e9), card)
    assert re.fullmatch(
        "model: '[0-9a-f]{12}' there, '[0-9a-f]{12}' here",
        devices.bench(str(tmp_path)).provenance.differences(first)[0],
    )


def test_a_folder_that_does_not_say_its_device_is_refused(tmp_path: Path) -> None:
    saved.save(tmp_path, Roofline(1e9, 1e9), {})
    with pytest.raises(ValueError, match="does not say which device its model is of"):
        devices.bench(str(tmp_path))


def test_runtimes_have_one_list_of_names() -> None:
    assert set(get_args(devices.RuntimeName)) == set(devices.RUNTIMES)


# What a search asks of them.


@pytest.mark.parametrize("name", [PHONE, "iphone-15-pro"])
def test_a_shipped_phone_prices_every_call_of_the_default_search(tmp_path: Path, name: str) -> None:
    plain = dataclasses.replace(default(), bench=devices.bench(name))
    # What is wide of the mark keeps to no budget with an error to spare.
    recipe = dataclasses.replace(plain, search=Search(caution=0.0))
    found = profiled(recipe, tmp_path)
    assert found["unpriced"] == {} and all(row["ms"] > 0 for row in found["rows"])
    assert found["text_encoder"]["ms"] > 0 and found["decoder"]["ms"] > 0


def test_a_tpu_says_what_it_lacks_and_what_to_install(tmp_path: Path, no_libtpu: None) -> None:
    recipe = dataclasses.replace(default(), bench=devices.bench("tpu-v3"))
    with pytest.raises(
        ValueError, match=r"\d+ of \d+ calls are not in the table of TPU v3, e"
    ) as e:
        profiled(recipe, tmp_path)
    assert "the extra `tpu`" in str(e.value) and "`nas devices`" in str(e.value)


def test_parts_that_a_model_cannot_price_are_named_with_the_reason(
    tmp_path: Path, folders: tiny.Folders
) -> None:
    """A model that was fitted to U-Nets has seen neither text encoder nor decoder."""
    space = Performer(tiny.recipe(folders), tmp_path).space
    specs = [space.seed, *(copy.apply(space.seed) for copy in space.copies(space.seed))]
    of_unets = [call for spec in specs for call in calls(lower(spec), space.inputs).values()]
    bench = ModelBench(tiny.BENCH.table(of_unets), DEVICE)
    found = profiled(tiny.recipe(folders, bench=bench), tmp_path)
    assert found["unpriced"].keys() == {"text_encoder", "decoder"}
    assert "TokenEmbedding" in found["unpriced"]["text_encoder"]
    assert found["networks"] and "text_encoder" not in found


class Pretended(ModelBench):
    """A model whose provenance is taken as it is given."""

    @property
    def provenance(self) -> Provenance:
        assert self.of is not None
        return self.of


# The command line.


@pytest.fixture
def asked(
    folders: tiny.Folders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[object, ...]:
    """The words of a search in `tmp_path`."""
    monkeypatch.setenv("NAS_TEST_MODELS", str(folders.pipeline.parent))
    return ("search", RECIPE, "--out", tmp_path / "run", "--caution", 1, "--rounds", 1)


@pytest.mark.slow
def test_a_search_for_a_device_ends_with_a_pipeline(asked, tmp_path, capsys):
    assert run(*asked, "--device", PHONE) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The searched U-Net keeps to the budget, as predicted, by" in said
    assert "No latency was measured" in said and (tmp_path / "run" / "pipeline").exists()


def test_a_search_is_pinned_to_its_device(asked, tmp_path, capsys):
    asked = (*asked, "--budget", "1%")  # Which ends it after the profile.
    assert run(*asked, "--device", PHONE) == 1
    said = capsys.readouterr()
    row = shipped.about(PHONE)
    assert f"no latency is measured here: {row.device}, {row.runtime} (predicted)" in said.out
    assert "no architecture meets the budget" in said.err and "(--caution)" in said.err
    header, entries = read(tmp_path / "run" / "journal.jsonl")
    assert header["device"]["name"] == PHONE and "(predicted)" in header["device"]["known"]
    ((_, profile),) = entries
    assert profile["provenance"] == devices.bench(PHONE).provenance.to_json()
    for other in (("--device", "google-pixel-4-pytorch-vulkan"), ("--device", "tpu-v3"), ()):
        assert run(*asked, *other) == 1
        error = capsys.readouterr().err
        there = f"device.name: '{PHONE}' there, {repr(other[1]) if other else 'none'} here"
        assert "the journal of another search" in error and there in error


@pytest.mark.parametrize("name", [PHONE, "tpu-v3"])
def test_what_is_predicted_is_never_called_measured(tmp_path: Path, name: str) -> None:
    known = dataclasses.replace(devices.bench(name).provenance, source="a made-up source")
    model = Calibrated(Roofline(1e9, 1e9, 0.01), 0.0, 1.0, 0.05)
    bench = Pretended(model, known)
    story = made_up.run(tmp_path, spread=0.0, bench=bench, slower=0.98)
    assert story.kept and not story.timed
    said = page.summary(story).replace("\n", " ")
    assert f"on {known.device} ({known.runtime}), which is not here" in said
    assert "keeps to the budget, as predicted, by" in said and "repetition" not in said
    assert "No latency was measured: all are of a model of that device, a made-up source" in said
    text = re.sub("<[^>]*>", " ", page.page(story))
    assert "U-Net latency, predicted" in text and str(known.method) in text
    # The words that speak of measuring are those that say that nothing was.
    told = re.findall(r"[^.:;>]*[Mm]easured[^.:;<]*", text)
    assert told and all(re.search("No latency was|Nothing was", each) for each in told), told


def test_lines_of_a_running_search_say_what_is_predicted(tmp_path: Path) -> None:
    space = tiny.unet_space(tiny.UNET)
    for spread, word, other in ((0.0, "predicted", "measured"), (0.01, "measured", "predicted")):
        performer = made_up.Performer(space, spread=spread)
        known = made_up.PROVENANCE if spread else tiny.BENCH.provenance
        strategy = Evolution(space, 0.75, group=2, rounds=1)
        told = io.StringIO()
        live = Live(Console(file=told, width=200))
        with Journal(tmp_path / f"{spread}.jsonl", {}) as journal:
            live.begin(strategy, strategy.init(), known, resumed=0)
            for done in search(strategy, performer, journal):
                live.advance(done)
        assert f"{word} as a whole" in told.getvalue()
        assert f"{other} as a whole" not in told.getvalue()
        assert ("no latency is measured here" in told.getvalue()) == (not spread)


def test_a_search_may_be_measured_by_another_runtime(folders: tiny.Folders, tmp_path: Path) -> None:
    recipe = tiny.recipe(folders)
    settings = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe)}
    own = {f.name for f in dataclasses.fields(Settings)} & settings.keys()
    asked = Settings(tmp_path, **{n: settings[n] for n in own}, runtime="onnxruntime")
    measured = LocalBench(tmp_path)
    found = asked.over(dataclasses.replace(recipe, bench=measured)).bench
    assert found == dataclasses.replace(measured, runtime=OnnxRuntime())
    assert asked.over(recipe).bench == LocalBench(runtime=OnnxRuntime())
    assert asked.header("a:b", recipe)["runtime"] == "onnxruntime"
    unasked = dataclasses.replace(asked, runtime=None)
    assert unasked.over(recipe).bench is recipe.bench


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", PHONE, "--runtime", "xla"), "give one of them"),
        (("--device", "nokia-3310"), "nokia-3310 is neither the folder of a latency model nor a"),
    ],
)
def test_a_device_that_is_none_is_one_clear_message(asked, words, said, capsys):
    assert run(*asked, *words) == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("nas: ") and "Traceback" not in error


# Blocks by a compiler.


def test_blocks_of_a_tpu_are_priced_into_a_file_of_its_provenance(tmp_path, no_libtpu, capsys):
    out = tmp_path / "tpu.json"
    assert run("profile", "bk-tiny", "--device", "tpu-v3", "--out", out) == 0
    said = capsys.readouterr().out
    found, bench = store.load(out), devices.bench("tpu-v3")
    assert found.provenance == bench.provenance
    assert found.provenance.method == Method.COMPILED and not found.networks
    spec, inputs = describe.find("bk-tiny")
    whole = Whole(lower(spec), inputs)
    assert found.table == bench.table(calls(*whole).values())
    (latency,) = bench.networks([whole])
    assert f"bk-tiny: {latency}, the calibrated sum of its blocks" in said
    assert "none was measured" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bk-tiny", "--device", PHONE), "`nas profile export NAME --out FOLDER` writes models"),
        (("bk-tiny", "--device", "nokia"), "nokia is neither the folder of a latency model nor"),
        (("bk-tiny", "--device", "tpu-v3", "--runtime", "xla"), "leave --runtime out"),
        (("bk-tiny", "--device", "tpu-v3", "--minutes", "1"), "leave --minutes out"),
        (("FOLDER", "--device", "tpu-v5e"), "the extra `tpu`: pip install 'nas[tpu]'"),
    ],
)
def test_what_no_compiler_can_price_is_one_clear_message(folders, words, said, no_libtpu, capsys):
    words = [str(folders.pipeline) if word == "FOLDER" else word for word in words]
    assert run("profile", *words) == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("nas: ") and "Traceback" not in error
