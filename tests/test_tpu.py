"""TPUs without a TPU. None of this needs libtpu, except for what is marked slow."""

import dataclasses
import importlib.util
import json
import math
import re
import sys
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import tpu as benchmark
from latency_models.calibrate import Calibrated, fit, leave_one_out
from latency_models.latency import UnknownCall, Whole
from latency_models.provenance import Method
from latency_models.rows import decode_whole
from latency_models.tpu import compiler, tables
from latency_models.tpu.bench import TpuBench
from latency_models.tpu.compiler import Cache, Compiled, compile_all
from latency_models.tpu.estimates import (
    ESTIMATORS,
    BlockRoofline,
    Cycles,
    Estimate,
    Estimates,
    KernelRoofline,
    OptimalSeconds,
    optimum,
    summed,
)
from latency_models.tpu.generations import GENERATIONS, generation
from latency_models.tpu.hlo import Kernel, cycles_by_kind, kernels
from latency_models.tpu.lowering import alone, digest, in_bfloat16, lower, modules
from nas.testing.latencies import LatencyModelLaws
from search_spaces.blocks import Conv, NormSiLU, ResNet, Swish, TimeEmbedding, Transformer
from search_spaces.ops import Call
from search_spaces.ops import model as op_model
from search_spaces.presets import PRESETS
from search_spaces.program import calls
from search_spaces.unet import lower as program

V3 = generation("v3")
IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 4), "float32")
CALLS = tuple(Call(Conv(width), (IMAGE,)) for width in (4, 8, 12))
UNKNOWN = Call(Conv(99), (IMAGE,))
SHIPPED = tables.names()
DOCS = Path(__file__).parent.parent / "docs" / "latency-tpu.md"


# What the compiler says.


@given(st.integers(0, 200), st.floats(1e-6, 0.9))
def test_the_optimum_is_what_is_left_of_the_sentinels(unknown, seconds):
    said = float(np.float32(seconds - unknown))
    found = optimum(said)
    assert found.unknown == unknown
    assert found.seconds == pytest.approx(seconds, abs=1e-7 * (1 + unknown))


def test_the_optimum_of_a_whole_network_with_many_sentinels_is_decoded():
    assert optimum(-128.9810028076172) == (pytest.approx(0.018997, abs=1e-6), 129)


def test_an_optimum_longer_than_a_second_is_taken_as_it_is():
    assert optimum(2.5) == (2.5, 0)


@pytest.mark.parametrize("said", [math.nan, math.inf, -math.inf])
def test_an_optimum_that_is_no_number_is_an_error(said):
    with pytest.raises(ValueError, match="optimal_seconds"):
        optimum(said)


PROGRAM = """HloModule jit_forward, is_scheduled=true

%fused.1 (p0: bf16[1,9,8,40], p1: bf16[3,3,40,200]) -> bf16[1,5,8,200] {
  %p0 = bf16[1,9,8,40]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[3,3,40,200]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[1,5,8,200]{3,2,1,0:T(8,128)(2,1)} convolution(%p0, %p1), \
window={size=3x3 stride=2x1 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}

%fused.2 (q0: bf16[1,5,8,200]) -> (f32[200], bf16[1,5,8,200]) {
  %q0 = bf16[1,5,8,200]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %t = (f32[200]{0:T(256)}, bf16[1,5,8,200]{3,2,1,0:T(8,128)(2,1)}) tuple(%q0, %q0)
}

ENTRY %main (x: bf16[1,9,8,40], k: bf16[3,3,40,200]) -> bf16[1,5,8,200] {
  %x = bf16[1,9,8,40]{3,2,1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="x(%k)"}
  %k = bf16[3,3,40,200]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %start = (bf16[3,3,40,200]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[3,3,40,200]{3,2,1,0:T(8,128)(2,1)}, \
u32[]{:S(2)}) copy-start(%k)
  %done = bf16[3,3,40,200]{3,2,1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  %f = bf16[1,5,8,200]{3,2,1,0:T(8,128)(2,1)} fusion(%x, %done), kind=kOutput, calls=%fused.1, \
backend_config={"window_config":{"estimated_cycles":"1200","iteration_bounds":["1"]}}
  %g = (f32[200]{0:T(256)}, bf16[1,5,8,200]{3,2,1,0:T(8,128)(2,1)}) fusion(%f), kind=kLoop, \
calls=%fused.2, backend_config={"window_config":{"estimated_cycles":"30"}}
  %v = f32[200]{0:T(256)} get-tuple-element(%g), index=0
  %w = bf16[1,5,8,200]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%g), index=1
  ROOT %r = bf16[1,5,8,200]{3,2,1,0:T(8,128)(2,1)} copy(%w), \
backend_config={"window_config":{"estimated_cycles":"70"}}
}
"""
X, K, Y = 9 * 8 * 128 * 2, 9 * 40 * 256 * 2, 5 * 8 * 256 * 2  # Bytes, in tiles of 8 by 128.


def test_kernels_are_what_runs_with_cycles_products_and_traffic():
    start, done, product, loop, copy = kernels(PROGRAM)
    assert (start.kind, start.cycles, start.bytes) == ("copy-start", None, K)
    assert (done.kind, done.bytes) == ("copy-done", 0)
    # Of the kernel, which was copied to VMEM before, nothing is read from HBM. Rows -1 and 9 and
    # columns -1 and 8 are padding: five places see 13 rows, eight places 22 columns.
    assert product == Kernel("fusion kOutput", 1200, 2.0 * 13 * 22 * 40 * 200, X + Y)
    assert loop == Kernel("fusion kLoop", 30, 0.0, Y + 256 * 4 + Y)
    assert copy == Kernel("copy", 70, 0.0, 2 * Y)


def test_slices_move_what_they_slice_and_are_joined_for_nothing():
    text = PROGRAM.replace(
        "(bf16[3,3,40,200]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[3,3,40,200]{3,2,1,0:T(8,128)(2,1)}, "
        "u32[]{:S(2)}) copy-start(%k)",
        "((bf16[3,3,40,200]{3,2,1,0:T(8,128)(2,1)}), bf16[1,3,40,200]{3,2,1,0:T(8,128)(2,1)S(1)}, "
        "s32[]{:S(2)}) slice-start(%k), slice={[0:1], [0:3], [0:40], [0:200]}",
    ).replace("copy-done(%start)", 'custom-call(%start), custom_call_target="ConcatBitcast"')
    start, product, *_ = kernels(text)
    assert (start.kind, start.bytes) == ("slice-start", K / 3)
    assert product.kind == "fusion kOutput"


def test_a_kernel_that_xla_did_not_write_is_an_error():
    text = PROGRAM.replace("copy(%w)", 'custom-call(%w), custom_call_target="tpu_custom_call"')
    with pytest.raises(ValueError, match="calls 'tpu_custom_call'"):
        kernels(text)


def test_cycles_are_summed_by_kind():
    found = cycles_by_kind([*kernels(PROGRAM), Kernel("copy", 5, 0.0, 0.0)])
    assert found == {"copy": 75, "fusion kLoop": 30, "fusion kOutput": 1200}
    assert list(found) == sorted(found)


def test_products_over_a_batch_are_not_the_holes_they_are_written_with():
    text = """
ENTRY %main (a: bf16[8,64,40], b: bf16[8,40,32]) -> bf16[8,64,32] {
  %a = bf16[8,64,40]{2,1,0} parameter(0)
  %b = bf16[8,40,32]{2,1,0} parameter(1)
  ROOT %c = bf16[8,64,32]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, \
dim_labels=0bf_0io->0bf
}
"""
    (found,) = kernels(text)
    assert found.flops == 2 * 8 * 64 * 40 * 32


def compiled_here(function, *shapes):
    """The text of a program that XLA compiled for this machine, and the operations it counts."""
    found = jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, "float32") for s in shapes)).compile()
    text, cost = found.as_text(), found.cost_analysis()
    assert text is not None and cost is not None
    return text, cost["flops"]


@given(
    size=st.integers(3, 7),
    taps=st.integers(1, 3),
    stride=st.integers(1, 2),
    pad=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
)
def test_a_convolution_has_the_operations_that_xla_counts(
    size, taps, stride, pad, dilation, groups
):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, 1),
            ((pad, 1), (0, pad)),
            rhs_dilation=(1, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    text, flops = compiled_here(convolve, (2, size, 6, 4), (taps, taps, 4 // groups, 6))
    assert sum(kernel.flops for kernel in kernels(text)) == flops


def test_a_product_of_matrices_has_the_operations_that_xla_counts():
    text, flops = compiled_here(lambda a, b: a @ b, (3, 9, 8), (3, 8, 5))
    assert sum(kernel.flops for kernel in kernels(text)) == flops == 2 * 3 * 9 * 8 * 5


def test_a_program_that_runs_kernels_an_unknown_number_of_times_is_an_error():
    text = PROGRAM.replace("copy(%w)", "while(%w), condition=%fused.2, body=%fused.2")
    with pytest.raises(ValueError, match="a while, and how often"):
        kernels(text)


@pytest.mark.parametrize("text", ["", "HloModule x", "module @jit { func.func }"])
def test_a_text_that_is_no_program_is_an_error(text):
    with pytest.raises(ValueError, match="no HLO module"):
        kernels(text)


def test_an_array_of_an_unknown_type_is_an_error():
    with pytest.raises(ValueError, match="an array of q7"):
        kernels(PROGRAM.replace("f32[200]", "q7[200]"))


# What is compiled.


def test_a_call_is_compiled_in_bfloat16_whatever_its_inputs_are():
    narrow = Call(Conv(4), (jax.ShapeDtypeStruct(IMAGE.shape, "bfloat16"),))
    wide = Call(Conv(4), (IMAGE,))
    assert in_bfloat16(wide) == narrow == in_bfloat16(narrow)
    assert digest(alone(wide)) == digest(alone(narrow))
    text = lower(alone(wide)).as_text()
    assert "bf16" in text and "f32" not in text


def test_timesteps_stay_as_they_are():
    time = Call(TimeEmbedding(4, 8), (jax.ShapeDtypeStruct((2,), "float32"),))
    assert in_bfloat16(time) == time


def test_what_is_compiled_is_named_by_its_computation():
    named = alone(Call(NormSiLU(2), (IMAGE,)))
    renamed = Whole((named.program[0]._replace(name="other"),), named.inputs)
    assert digest(named) == digest(renamed)
    others = [Call(NormSiLU(4), (IMAGE,)), Call(NormSiLU(2, 1e-3), (IMAGE,)), *CALLS]
    assert len({digest(alone(call)) for call in others} | {digest(named)}) == len(others) + 1


def test_the_spelling_is_the_one_for_tpus():
    few = Call(Conv(64), (jax.ShapeDtypeStruct((1, 2, 2, 64), "float32"),))
    assert "stablehlo.convolution" in lower(alone(few)).as_text()


def test_modules_of_ops_and_of_their_fields_are_named():
    op = Transformer(1, 4, 2, gate=Swish())
    call = Call(op, (IMAGE, jax.ShapeDtypeStruct((1, 3, 4), "float32")))
    assert modules([alone(call)]) == ["search_spaces.blocks", "search_spaces.layers"]


def test_an_unknown_generation_is_an_error_that_names_the_known():
    with pytest.raises(ValueError, match=r"no TPU 'v9'.*v3, v4, v5e"):
        generation("v9")


# Compiling, by a worker that stands in for libtpu's.

WORKER = """
import json, os, signal, sys
folder, limit, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
done = 0
for line in sys.stdin:
    job = json.loads(line)
    if done == limit:
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "fail":
            print(json.dumps({"error": "RuntimeError: out of memory"}), flush=True)
            break
        sys.exit("no lock")
    done += 1
    with open(folder + "/jobs", "a") as stream:
        stream.write(line)
    print(json.dumps({
        "digest": job["digest"], "flops": 1e9, "transcendentals": 0.0, "bytes": 2e6,
        "kernels": [["copy", None, 0.0, 4.0], ["fusion kLoop", 7, 3.0, 5.0]],
        "optimal_seconds": -0.999, "compile_s": 1.5,
    }), flush=True)
"""
HERE = (("jax", "1"), ("jaxlib", "2"), ("libtpu", "3"))


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Makes workers that answer `limit` jobs, and then end as `mode` says."""
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(compiler, "versions", lambda: HERE)

    def make(limit: int = 99, mode: str = "exit"):
        command = (sys.executable, str(tmp_path / "worker.py"), str(tmp_path), str(limit), mode)
        monkeypatch.setattr(compiler, "WORKER", command)
        return lambda: [
            decode_whole(json.loads(line)["whole"])
            for line in (tmp_path / "jobs").read_text().splitlines()
        ]

    return make


WHOLES = list(map(alone, CALLS))


def test_networks_are_compiled_once_and_answered_in_order(worker, tmp_path):
    jobs, cache, told = worker(), Cache(tmp_path / "cache" / "tpu.jsonl"), []
    found = compile_all([*WHOLES, WHOLES[0]], V3, cache, lambda *progress: told.append(progress))
    assert [each.digest for each in found] == [digest(w) for w in [*WHOLES, WHOLES[0]]]
    assert jobs() == WHOLES
    assert [share for _, share in told] == [1 / 3, 2 / 3, 1.0]
    assert found[0].kernels == (Kernel("copy", None, 0.0, 4.0), Kernel("fusion kLoop", 7, 3.0, 5.0))
    assert compile_all(WHOLES, V3, Cache(cache.path)) == found[:3]
    assert len(jobs()) == 3


@pytest.mark.parametrize("mode", ["kill", "fail", "exit"])
def test_what_was_compiled_before_a_worker_ended_stays(mode, worker, tmp_path):
    path = tmp_path / "tpu.jsonl"
    worker(limit=2, mode=mode)
    with pytest.raises(ValueError, match=r"compiling Conv\(width=12.* for TPU v3 failed"):
        compile_all(WHOLES, V3, Cache(path))
    jobs = worker()
    compile_all(WHOLES, V3, Cache(path))
    assert jobs() == WHOLES  # The third was compiled by the second worker, and no other again.


def test_an_error_says_what_the_worker_said(worker, tmp_path):
    worker(limit=0, mode="exit")
    with pytest.raises(ValueError, match="its process ended; it said: no lock"):
        compile_all(WHOLES, V3, Cache(tmp_path / "tpu.jsonl"))
    worker(limit=0, mode="fail")
    with pytest.raises(ValueError, match="failed: RuntimeError: out of memory"):
        compile_all(WHOLES, V3, Cache(tmp_path / "tpu.jsonl"))


def test_an_interrupted_process_keeps_what_was_compiled(worker, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    jobs, path = worker(), tmp_path / "tpu.jsonl"
    with pytest.raises(KeyboardInterrupt):
        compile_all(WHOLES, V3, Cache(path), interrupt)
    assert len(path.read_text().splitlines()) == 1
    compile_all(WHOLES, V3, Cache(path))
    assert jobs()[-2:] == WHOLES[1:]


def test_another_generation_or_version_is_compiled_anew(worker, monkeypatch, tmp_path):
    jobs, cache = worker(), Cache(tmp_path / "tpu.jsonl")
    compile_all(WHOLES[:1], V3, cache)
    compile_all(WHOLES[:1], generation("v5e"), cache)
    monkeypatch.setattr(compiler, "versions", lambda: (*HERE[:2], ("libtpu", "4")))
    compile_all(WHOLES[:1], V3, cache)
    assert len(jobs()) == 3


def test_a_line_that_was_cut_off_is_compiled_again(worker, tmp_path):
    jobs, path = worker(), tmp_path / "tpu.jsonl"
    compile_all(WHOLES, V3, Cache(path))
    path.write_bytes(path.read_bytes()[:-9])
    found = compile_all(WHOLES, V3, Cache(path))
    assert jobs()[3:] == WHOLES[2:]
    assert compile_all(WHOLES, V3, Cache(path)) == found and len(jobs()) == 4


@pytest.mark.parametrize("damage", ["{}", "nonsense", '{"versions": 3}', "[1, 2]"])
def test_a_damaged_line_is_an_error_that_says_which(damage, worker, tmp_path):
    worker()
    path = tmp_path / "tpu.jsonl"
    compile_all(WHOLES, V3, Cache(path))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, lines[2], ""]))
    with pytest.raises(ValueError, match="line 2 is damaged"):
        Cache(path)


@pytest.fixture
def no_libtpu(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "libtpu":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_a_missing_libtpu_is_one_clear_error(no_libtpu, tmp_path):
    cache = Cache(tmp_path / "tpu.jsonl")
    with pytest.raises(ValueError, match=r"libtpu is not installed.*pip install 'nas\[tpu\]'"):
        compile_all(WHOLES, V3, cache)
    with pytest.raises(ValueError, match="libtpu is not installed"):
        TpuBench("v3", tmp_path).table([UNKNOWN])


# Estimates.

COMPILED = Compiled(
    "v5e",
    HERE,
    "ab",
    flops=4e9,
    transcendentals=5.0,
    bytes=1e7,
    optimal_seconds=-1.9999,
    kernels=(
        Kernel("fusion kOutput", 1500, 3.94e9, 8.19e5),  # 20 us of arithmetic, 1 us of traffic.
        Kernel("fusion kLoop", 3000, 0.0, 8.19e6),  # 10 us of traffic.
        Kernel("copy-start", None, 0.0, 4.095e6),  # 5 us.
    ),
    compile_s=9.0,
)
V5E = generation("v5e")
ESTIMATE = summed(COMPILED, V5E)


def test_an_estimate_sums_over_kernels():
    assert ESTIMATE.roofline_ms == pytest.approx(0.035)
    assert ESTIMATE.cycles == (("fusion kLoop", 3000), ("fusion kOutput", 1500))
    assert (ESTIMATE.unknown, ESTIMATE.kernels) == (2, 3)
    assert ESTIMATE.optimal_ms == pytest.approx(0.1)


@pytest.mark.parametrize(
    "estimator, ms",
    [
        (BlockRoofline(), 4e9 / 197e12 * 1e3),
        (KernelRoofline(), 0.035),
        (OptimalSeconds(), 0.1),
        (Cycles(), 4500 / 1.5e9 * 1e3),
    ],
)
def test_estimators_turn_estimates_into_milliseconds(estimator, ms):
    assert estimator.ms(ESTIMATE, V5E) == pytest.approx(ms)
    assert estimator in ESTIMATORS


def test_a_block_is_bound_by_traffic_where_that_is_longer():
    slow = dataclasses.replace(ESTIMATE, bytes=819e9)
    assert BlockRoofline().ms(slow, V5E) == pytest.approx(1e3)


def rows(*which: Call) -> dict[Call, Estimate]:
    return {
        in_bfloat16(call): dataclasses.replace(ESTIMATE, roofline_ms=1.0 + i)
        for i, call in enumerate(which)
    }


class TestEstimates(LatencyModelLaws):
    model = Estimates(V5E, rows(*CALLS))
    calls = CALLS
    unknown = UNKNOWN


class TestShippedModel(LatencyModelLaws):
    model = tables.shipped("v3").model
    calls = tuple(calls(*benchmark.preset("bk-tiny")).values())[:5]
    unknown = UNKNOWN
    additive = False


def test_calls_are_priced_whatever_their_inputs_are():
    model = Estimates(V5E, rows(*CALLS))
    assert model.predict(CALLS) == model.predict(map(in_bfloat16, CALLS))


# Tables.

TABLE = tables.TpuTable(
    tables.provenance(V5E, HERE, "a test"),
    Calibrated(Estimates(V5E, rows(*CALLS), Cycles()), 0.5, 1 / 3, 0.1),
    (tables.Anchor("sdxl", 114.0, None, "somewhere"), tables.Anchor("sd15", 1.0, 1.1, "there")),
    {"sd15": ESTIMATE},
)


def test_a_table_is_read_back_to_the_bit(tmp_path):
    tables.write(tmp_path / "t.json", TABLE)
    assert tables.load(tmp_path / "t.json") == TABLE


def test_rows_of_ops_that_are_not_known_are_left_out(tmp_path):
    tables.write(tmp_path / "t.json", TABLE)
    text = (tmp_path / "t.json").read_text()
    (tmp_path / "t.json").write_text(text.replace("blocks:Conv", "plugin:Conv", 1))
    found = tables.load(tmp_path / "t.json").estimates.rows
    assert list(found) == list(TABLE.estimates.rows)[1:]


@pytest.mark.parametrize(
    "damage",
    [
        ('"schema": 1', '"schema": 0'),
        ("latency_models.tpu.estimates:Cycles", "latency_models.tpu.generations:Generation"),
        ("latency_models.tpu.estimates:Cycles", "search_spaces.layers:Softmax"),
        ('"generation": "v5e"', '"generation": "v9"'),
        ('"fixed_ms": 0.5', '"fixed_ms": -1'),
        ('"flops"', '"flips"'),
        ('"rows": [', '"rows": ['[:-1]),
        ('"method": "compiler estimate"', '"method": "guessed"'),
    ],
)
def test_a_damaged_table_is_an_error_that_names_the_file(damage, tmp_path):
    tables.write(tmp_path / "t.json", TABLE)
    text = (tmp_path / "t.json").read_text()
    assert damage[0] in text
    (tmp_path / "t.json").write_text(text.replace(*damage))
    with pytest.raises(ValueError, match=r"t\.json is damaged .*; write it again with"):
        tables.load(tmp_path / "t.json")


def test_a_table_that_does_not_ship_is_an_error_that_says_which_do():
    with pytest.raises(ValueError, match=r"no table of TPU v2 ships; .*v3, v5e.*not calibrated"):
        tables.shipped("v2")


# What ships.


def test_tables_ship_of_generations_of_which_a_latency_is_published():
    assert set(SHIPPED) == benchmark.MEASURED.keys() == {"v3", "v5e", "v6e"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_table_says_what_it_holds_for(name):
    table = tables.shipped(name)
    said = table.provenance
    assert said.device.startswith(f"TPU {name}") and said.method == Method.COMPILED
    assert dict(said.versions).keys() == {"jax", "jaxlib", "libtpu"}
    assert (said.precision, said.threads) == ("bfloat16", None)
    assert f"--generations {name}" in said.source and "softmax" in said.attention
    assert table.estimates.generation == GENERATIONS[name]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_priced(name, preset):
    spec, inputs = PRESETS[preset]()
    model, found = tables.shipped(name).model, calls(program(spec), inputs).values()
    whole = model.predict(found)
    weights = 2 * sum(op_model(call).size for call in found)  # Bytes, which have to be read.
    assert whole.ms > 1e3 * weights / GENERATIONS[name].bytes_per_s
    assert 0.02 * whole.ms < whole.std < whole.ms
    narrow = {read: in_bfloat16(Call(Conv(1), (s,))).inputs[0] for read, s in inputs.items()}
    assert model.predict(calls(program(spec), narrow).values()) == whole


@pytest.mark.parametrize("name", SHIPPED)
def test_a_block_that_no_preset_has_is_unknown(name):
    with pytest.raises(UnknownCall, match=f"not in the table of TPU {name}.*compile"):
        tables.shipped(name).model.predict([UNKNOWN])


def test_rows_are_what_their_calls_lower_to():
    table, by = tables.shipped("v3").estimates.rows, tables.shipped("v3").provenance.versions
    if jax.__version__ != dict(by)["jax"]:
        pytest.skip("another version of JAX lowers to another text")
    # Lowering all of them takes a quarter of a minute.
    some = list(table)[::5]
    kinds = {type(call.op) for call in some}
    assert kinds >= {ResNet, Transformer} and len(some) > 10
    assert all(digest(alone(call)) == table[call].digest for call in some)


def test_published_latencies_are_predicted_as_the_file_says():
    table, published = tables.shipped("v3"), benchmark.MEASURED["v3"]
    networks = benchmark.measured(published)
    found = leave_one_out(table.estimates, networks)
    assert [anchor.left_out_ms for anchor in table.anchors] == [round(f.ms, 3) for f in found]
    assert [anchor.ms for anchor in table.anchors] == [21.7, 29.5, 15.0, 9.9, 8.8]
    missed = benchmark.errors(found, published)
    assert np.abs(missed).mean() < 0.05
    assert table.model.residual == pytest.approx(np.sqrt(np.mean(missed**2)))
    fitted = fit(table.estimates, networks)
    assert (table.model.fixed_ms, table.model.scale) == (fitted.fixed_ms, fitted.scale)


def test_the_estimator_that_ships_is_the_best_when_rows_are_left_out():
    table, published = tables.shipped("v3"), benchmark.MEASURED["v3"]
    networks = benchmark.measured(published)
    missed = {
        estimator: np.abs(
            benchmark.errors(
                leave_one_out(dataclasses.replace(table.estimates, estimator=estimator), networks),
                published,
            )
        ).mean()
        for estimator in ESTIMATORS
    }
    assert min(missed, key=missed.__getitem__) == table.estimates.estimator


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "v3"])
def test_where_one_network_is_published_the_interval_is_wide(name):
    table = tables.shipped(name)
    (anchor,) = table.anchors
    assert anchor.left_out_ms is None and table.model.fixed_ms == 0
    assert table.model.predict(benchmark.priced(anchor.network)).ms == pytest.approx(anchor.ms)
    missed = benchmark.rms(benchmark.alone(tables.shipped("v3").estimates))
    differs = benchmark.rms(benchmark.disagreement(table.estimates))
    assert table.model.residual == pytest.approx(math.hypot(missed, differs))
    assert table.model.residual > 5 * tables.shipped("v3").model.residual


@pytest.mark.parametrize("name", SHIPPED)
def test_the_document_shows_what_the_benchmark_prints(name):
    page = DOCS.read_text().splitlines()
    printed = list(benchmark.report(tables.shipped(name)))
    assert len(printed) > len(PRESETS)
    assert not [line for line in printed if line not in page]


def test_the_benchmark_knows_what_it_can_be_asked_for():
    with pytest.raises(SystemExit, match=r"no published latency.*v2; there are v3, v5e, v6e"):
        benchmark.main(generations=("v2",))
    with pytest.raises(SystemExit, match=r"no network 'sd9'; there are sd15, "):
        benchmark.main(whole=("sd9",))


# The bench.


def test_a_network_has_a_fixed_cost_and_its_calls_have_none(tmp_path):
    bench = TpuBench("v3", tmp_path)
    whole = benchmark.preset("sd15")
    found = calls(*whole).values()
    model = tables.shipped("v3").model
    (latency,) = bench.networks([whole])
    assert latency == model.predict(found)
    assert bench.table(found).predict(found).ms == pytest.approx(latency.ms - model.fixed_ms)
    (difference,) = bench.provenance.differences(tables.shipped("v3").provenance)
    assert re.fullmatch(r"calibration: None there, '3\.57\d ms \+ 0\.67\d+ x Kernel.*", difference)
    assert not any(tmp_path.iterdir())


def test_calls_that_the_table_lacks_are_compiled_and_kept(worker, monkeypatch, tmp_path):
    jobs = worker()
    there = tables.shipped("v3").provenance.versions
    monkeypatch.setattr("latency_models.tpu.bench.versions", lambda: there)
    (row,) = TpuBench("v3", tmp_path / "cache").table([UNKNOWN]).rows.values()
    expected = tables.shipped("v3").model.scale * 1e3 * (4.0 + 5.0) / 450e9
    assert row.ms == pytest.approx(expected)
    TpuBench("v3", tmp_path / "cache").table([UNKNOWN])
    assert len(jobs()) == 1


def test_rows_of_another_compiler_are_not_mixed_in(worker, monkeypatch, tmp_path):
    worker()
    monkeypatch.setattr("latency_models.tpu.bench.versions", lambda: HERE)
    with pytest.raises(ValueError, match="the compiler here is not the table's"):
        TpuBench("v3", tmp_path).table([UNKNOWN])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the `tpu` extra")
@pytest.mark.parametrize("name", GENERATIONS)
def test_libtpu_compiles_for_every_generation(name, tmp_path):
    call = Call(ResNet(128, 32), (jax.ShapeDtypeStruct((1, 8, 8, 128), "float32"),))
    (found,) = tables.estimated([call], generation(name), Cache(tmp_path / "c")).values()
    assert found.roofline_ms > 0 and found.optimal_ms > 0 and dict(found.cycles)
    products = 2 * 2 * 22**2 * 128**2  # Two convolutions of 3x3, the border's padding left out.
    assert products <= found.flops < 1.1 * products
