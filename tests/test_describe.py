"""An architecture is described by what it is, and its parts add up."""

import pytest

from latency_models.roofline import Roofline
from nas import cli
from nas.describe import OUTSIDE, choices, describe, find
from search_spaces.blocks import ResNet, Separable, Swish, Transformer
from search_spaces.counting import activation_bytes
from search_spaces.presets import PRESETS
from search_spaces.program import calls, network
from search_spaces.unet import lower
from tests import tiny

DEVICE = Roofline(flops_per_s=1e12, bytes_per_s=1e11)


@pytest.mark.parametrize("name", ["sd15", "bk-small", "sdxl", "mobile-diffusion-lite"])
def test_rows_add_up_to_the_network(name):
    preset = PRESETS[name]()
    found = describe(name, preset, DEVICE)
    assert found.parameters == network(lower(preset.spec), preset.inputs).size
    assert found.activations == max(activation_bytes(lower(preset.spec), preset.inputs).values())
    whole = DEVICE.predict(calls(lower(preset.spec), preset.inputs).values())
    assert found.latency is not None and found.latency.ms == pytest.approx(whole.ms)
    steps = sum(row.blocks for row in found.rows)
    assert steps == len(lower(preset.spec))


def test_stages_are_those_of_the_paper_with_the_counts_of_its_table():
    rows = describe("sd15", PRESETS["sd15"]()).rows
    table = {(row.stage, row.kind): (row.shrunk, row.width, row.blocks) for row in rows}
    assert table["Down-1", "Cross Attention"] == (1, 320, 2)
    assert table["Mid", "ResNet"] == (8, 1280, 2)
    assert table["Up-1", "ResNet"] == (8, 1280, 3) and ("Up-1", "Cross Attention") not in table
    assert table["Up-2", "Cross Attention"] == (4, 1280, 3)
    assert (OUTSIDE, "other") in table


def test_without_a_device_there_is_no_latency():
    assert describe("bk-tiny", PRESETS["bk-tiny"]()).latency is None


def test_choices_are_said_only_where_they_differ_from_sd():
    assert choices(Transformer(8, 40, 32)) == choices(ResNet(320, 32)) == ""
    assert choices(Transformer(8, 40, 32, depth=3, self_attention=False, shared=True, ffn=6)) == (
        "depth 3, no self-attention, shared, ffn 6"
    )
    assert choices(Transformer(8, 40, 32, gate=Swish())) == "gate Swish()"
    assert choices(ResNet(320, 32, convolution=Separable(2))) == (
        "convolution Separable(expansion=2)"
    )


def test_a_pipeline_and_its_unet_are_described_alike(folders: tiny.Folders):
    whole, part = find(str(folders.pipeline)), find(str(folders.pipeline / "unet"))
    assert whole.spec == part.spec
    assert whole.inputs["context"].shape[1] == tiny.LENGTH and part.inputs["context"].shape[1] == 77


def test_what_is_neither_is_one_clear_error(capsys):
    assert cli.run(["describe", "sd16"]) == 1
    said = capsys.readouterr().err
    assert "sd16 is neither a folder nor a preset" in said and "bk-tiny" in said


def test_two_are_shown_beside_each_other(capsys):
    assert cli.run(["describe", "bk-tiny", "--against", "mobile-diffusion-lite"]) == 0
    said = capsys.readouterr().out
    (totals,) = [line for line in said.splitlines() if line.startswith("in all")]
    assert "323.38" in totals and "277.85" in totals and "no self-attention" in said
