"""Reports of measuring tools are read whole, or not at all."""

import gzip
import json
import math
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from latency_models import importers
from latency_models.importers import FORMATS, Imported, Kind, Malformed, Stat, provenance
from latency_models.provenance import Method

LITERT = """\
INFO: Graph: [unet.tflite]
INFO: #threads used for CPU inference: [4]
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds
INFO: count=6 first=900 curr=500 min=480 max=900 avg=560 std=150
INFO: Running benchmark for at least 50 iterations and at least 1 seconds
INFO: count=50 first=510 curr=500 min=480 max=700 avg=502 std=20
INFO: Inference timings in us: Init: 300, First inference: 900, Warmup (avg): 560, \
Inference (avg): 502.4
Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t[node type]\t[first]\t[avg ms]\t[%]\t[cdf%]\t[mem KB]\t[times called]\t[Name]
\tAllocateTensors\t1.0\t1.0\t100%\t100%\t0\t1\tAllocateTensors/0
Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t[node type]\t[first]\t[avg ms]\t[%]\t[cdf%]\t[mem KB]\t[times called]\t[Name]
\tCONV_2D\t0.4\t0.3\t60%\t60%\t0\t1\t[a, b]:0
\tSOFTMAX\t0.1\t0.2\t40%\t100%\t0\t1\t[c]:1
============================== Top by Computation Time ==============================
\t[node type]\t[first]\t[avg ms]\t[%]\t[cdf%]\t[mem KB]\t[times called]\t[Name]
\tCONV_2D\t0.4\t0.3\t60%\t60%\t0\t1\t[a, b]:0
Number of nodes executed: 2
Timings (microseconds): count=50 first=700 curr=500 min=490 max=700 avg=540 std=25
Memory (bytes): count=0
"""
LITERT_OLD = """\
Timings (microseconds): count=50 first=79449 curr=81350 min=77385 max=88213 avg=79732 std=1929
Average inference timings in us: Warmup: 83235, Init: 38467, Inference: 79760.9
"""
LITERT_LINE = "count=50 first=5 curr=5 min=4 max=9 avg=5.5 std=1 p5=4 median=5 p95=8\n"
LITERT_CSV = """\
============================== Run Order ==============================
node type, first, avg_ms, %, cdf%, mem KB, times called, name
CONV_2D, 4.2, 4.1, 60%, 60%, 0, 1, [block0/conv, block0/bias]:0

============================== Top by Computation Time ==============================
node type, first, avg_ms, %, cdf%, mem KB, times called, name
CONV_2D, 4.2, 4.1, 60%, 60%, 0, 1, [block0/conv, block0/bias]:0

Number of nodes executed: 1
"""
JOB = json.dumps(
    {
        "execution_summary": {
            "estimated_inference_time": 1000,
            "all_inference_times": [1000, 1100, 1200, 5000, 1050],
        },
        "execution_detail": [
            {"name": "a", "type": "Conv2d", "compute_unit": "NPU", "execution_time": 0,
             "execution_cycles": 300},
            {"name": "b", "type": "Add", "compute_unit": "NPU", "execution_time": 0,
             "execution_cycles": 100},
        ],
    }
)  # fmt: skip
PERF = """\
precisions:
  w8a16:
    components:
      unet:
        performance_metrics:
          Some Phone:
            qnn_context_binary:
              job_id: j1
              job_status: Passed
              inference_time_milliseconds: 81.089
              primary_compute_unit: NPU
              tool_versions:
                qairt: 2.43.0
            onnx:
              job_id: j2
              job_status: Failed
"""
GOOGLE = json.dumps(
    {
        "context": {"host_name": "pixel", "date": "2026-01-02T03:04:05+00:00"},
        "benchmarks": [
            {"name": "BM_main/process_time/real_time", "run_type": "iteration", "iterations": 10,
             "real_time": time, "cpu_time": 1.0, "time_unit": "us"}
            for time in (900.0, 1000.0, 1400.0)
        ] + [
            {"name": "BM_main/process_time/real_time_mean", "run_type": "aggregate",
             "run_name": "BM_main/process_time/real_time", "aggregate_name": "mean",
             "iterations": 3, "real_time": 1100.0, "cpu_time": 1.0, "time_unit": "us"},
        ],
    }
)  # fmt: skip
GOOGLE_TABLE = """\
Run on (8 X 1800 MHz CPU s)
------------------------------------------------------------------------------
Benchmark                                    Time             CPU   Iterations
------------------------------------------------------------------------------
BM_main_ex_dispatch_0_benchmark/real_time  30.0 us          37 us        34065
BM_main_benchmark/real_time               0.099 ms       0.107 ms         5892
"""
REPEATED = "Benchmark                  Time             CPU   Iterations\n" + "".join(
    f"BM_main/real_time{name}  {ms} ms        0.1 ms        9\n"
    for name, ms in zip(
        ("", "", "", "_mean", "_median", "_stddev"), (0.1, 0.2, 0.3, 0.2, 0.2, 0.1), strict=True
    )
)
EXECUTORCH = """\
event_block_name  event_name                   avg (ms)  op_types                         is_delegated_op
Default           Method::init                 0.032137  []                               False
Execute          Method::execute               1.2       []                               False
Execute          native_call_convolution.out   0.958706  ['aten.convolution.default']     False
"""  # noqa: E501
EXECUTORCH_CSV = """\
,event_block_name,event_name,raw,p10 (us),p50 (us),p90 (us),avg (us),op_types,is_delegated_op
0,Execute,DELEGATE_CALL,"[10, 20, 60]",12,20,52,30,[],True
1,Execute,native_call_relu.out,"[1, 2, 6]",1.2,2,5.2,3,['aten.relu.default'],False
"""
MLPERF = """\
================================================
MLPerf Results Summary
================================================
SUT name : a phone
Scenario : SingleStream
Mode     : PerformanceOnly
90th percentile latency (ns) : 3780948072
Result is : VALID
Early Stopping Result:
 * Processed at least 64 queries (85).

Min latency (ns)                : 3165699999
Max latency (ns)                : 3799939998
Mean latency (ns)               : 3615950794
50.00 percentile latency (ns)   : 3683487082
90.00 percentile latency (ns)   : 3780948072

No errors encountered during test.
"""
CSV = """\
# Timed by hand.
name,kind,op,ms,stat,std_ms,runs,samples_ms,p95_ms,device,runtime,precision,attention,version:os
unet,network,,12.5,median,,,12 12.5 14,13.9,a phone,Core ML,fp16,split einsum,17.2
conv,op,Conv,1.5,mean,0.3,9,,,a phone,Core ML,fp16,split einsum,17.2
"""
CHROME = json.dumps(
    {
        "traceEvents": [
            {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "/device:TPU:0"}},
            {"ph": "M", "pid": 1, "tid": 2, "name": "thread_name", "args": {"name": "XLA Modules"}},
            {"ph": "M", "pid": 1, "tid": 3, "name": "thread_name", "args": {"name": "XLA Ops"}},
            *(
                event
                for run in range(3)
                for event in (
                    {"ph": "X", "pid": 1, "tid": 2, "name": "jit_f(12)", "ts": 100.0 * run,
                     "dur": 50.0 + run},
                    {"ph": "X", "pid": 1, "tid": 3, "name": "fusion.7", "ts": 100.0 * run + 10,
                     "dur": 20.0, "args": {"hlo_category": "convolution fusion",
                                           "device_duration_ps": "19000000"}},
                )
            ),
        ]
    }
)  # fmt: skip

# The format, a file, and what its first row says: name, kind, milliseconds, statistic.
FILES = {
    "litert printed": ("litert", LITERT, ("unet.tflite", Kind.NETWORK, 0.5024, Stat.MEAN)),
    "litert of old": ("litert", LITERT_OLD, ("network", Kind.NETWORK, 79.7609, Stat.MEAN)),
    "litert csv": (
        "litert",
        LITERT_CSV,
        ("[block0/conv, block0/bias]:0", Kind.OP, 4.1, Stat.MEAN),
    ),
    "aihub job": ("aihub-job", JOB, ("network", Kind.NETWORK, 1.1, Stat.MEDIAN)),
    "aihub table": ("aihub-table", PERF, ("unet", Kind.NETWORK, 81.089, Stat.MINIMUM)),
    "google json": ("benchmark-json", GOOGLE, ("main", Kind.NETWORK, 1.0, Stat.MEDIAN)),
    "google table": (
        "benchmark-table",
        GOOGLE_TABLE,
        ("main_ex_dispatch_0", Kind.OP, 0.03, Stat.MEAN),
    ),
    "executorch": ("executorch", EXECUTORCH, ("Method::execute", Kind.NETWORK, 1.2, Stat.MEAN)),
    "executorch csv": (
        "executorch",
        EXECUTORCH_CSV,
        ("DELEGATE_CALL", Kind.BLOCK, 0.02, Stat.MEDIAN),
    ),
    "mlperf": ("mlperf", MLPERF, ("a phone", Kind.NETWORK, 3683.487082, Stat.MEDIAN)),
    "csv": ("csv", CSV, ("unet", Kind.NETWORK, 12.5, Stat.MEDIAN)),
    "trace": ("trace", CHROME, ("jit_f", Kind.NETWORK, 0.051, Stat.MEDIAN)),
}


def read(tmp_path, data, form=None) -> list[Imported]:
    path = tmp_path / "report"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return importers.read(path, form)


@pytest.mark.parametrize("case", FILES)
def test_what_a_tool_writes_is_told_by_its_content_and_read(case, tmp_path):
    form, data, expected = FILES[case]
    assert importers.sniff(data.encode(), "report") == form
    rows = read(tmp_path, data)
    first = rows[0]
    assert (first.name, first.kind, first.stat) == (expected[0], expected[1], expected[3])
    assert first.ms == pytest.approx(expected[2])
    assert rows == read(tmp_path, data, form)
    assert all(str(tmp_path / "report") in row.place for row in rows)


def test_litert_gives_the_run_after_the_warm_up_and_every_op_once(tmp_path):
    network, *ops = read(tmp_path, LITERT)
    assert (network.std_ms, network.runs) == (0.02, 50)
    assert dict(network.stated)["threads"] == "4"
    assert [(op.name, op.op, op.ms) for op in ops] == [
        ("[a, b]:0", "CONV_2D", 0.3),
        ("[c]:1", "SOFTMAX", 0.2),
    ]


def test_litert_gives_the_median_where_it_is_printed(tmp_path):
    (network,) = read(tmp_path, 2 * LITERT_LINE, "litert")
    assert (network.ms, network.stat) == (0.005, Stat.MEDIAN)
    assert (0.95, 0.008) in network.quantiles_ms


def test_litert_has_no_network_before_the_warm_up_is_over(tmp_path):
    for data in (LITERT_LINE, LITERT[: LITERT.index("INFO: Running benchmark for at least 50")]):
        with pytest.raises(Malformed, match=r"(?s)line .*warm-up's; is the file cut off"):
            read(tmp_path, data, "litert")
    timed = LITERT[: LITERT.index("INFO: Inference timings")]
    (network,) = read(tmp_path, timed, "litert")
    assert (network.ms, network.runs) == (0.502, 50)
    # The sum of the nodes that were profiled is no network.
    nodes = LITERT_OLD[: LITERT_OLD.index("Average")]
    with pytest.raises(Malformed, match="timings, or a profile"):
        read(tmp_path, nodes, "litert")


def test_a_hub_job_is_its_median_run_and_not_its_estimate(tmp_path):
    network, a, b = read(tmp_path, JOB)
    assert network.runs == 5 and len(network.samples_ms) == 5
    assert (a.ms, b.ms) == (pytest.approx(0.825), pytest.approx(0.275))
    assert a.stat == b.stat == Stat.SHARE


def test_a_hub_table_has_a_row_for_every_job_that_passed(tmp_path):
    (row,) = read(tmp_path, PERF)
    stated = dict(row.stated)
    assert (stated["device"], stated["runtime"]) == ("Some Phone", "qnn_context_binary")
    assert (stated["precision"], stated["version:qairt"]) == ("w8a16", "2.43.0")


def test_repetitions_of_google_benchmark_are_samples(tmp_path):
    (row,) = read(tmp_path, GOOGLE)
    assert row.samples_ms == pytest.approx((0.9, 1.0, 1.4))
    only = json.loads(GOOGLE)
    only["benchmarks"] = only["benchmarks"][3:]
    (row,) = read(tmp_path, json.dumps(only))
    assert (row.ms, row.stat) == (pytest.approx(1.1), Stat.MEAN)


def test_what_encloses_ops_is_no_op(tmp_path):
    kinds = [row.kind for row in read(tmp_path, EXECUTORCH_CSV)]
    assert kinds == [Kind.BLOCK, Kind.OP]
    (network, op) = read(tmp_path, EXECUTORCH)  # And `Method::init` is left out.
    assert (network.kind, op.op) == (Kind.NETWORK, "aten.convolution.default")


def test_mlperf_has_percentiles_and_says_whether_it_is_valid(tmp_path):
    (row,) = read(tmp_path, MLPERF)
    assert dict(row.quantiles_ms)[0.9] == pytest.approx(3780.948072)
    assert dict(row.stated)["result"] == "VALID" and row.runs == 85


def test_ops_of_a_trace_take_the_devices_time(tmp_path):
    for data in (CHROME, gzip.compress(CHROME.encode())):
        network, op = read(tmp_path, data)
        assert network.samples_ms == pytest.approx((0.050, 0.051, 0.052))
        assert (op.name, op.op, op.ms) == ("fusion.7", "convolution fusion", pytest.approx(0.019))
        assert dict(op.stated)["module"] == "jit_f"


TRACED = """
import sys
import jax, jax.numpy as jnp
f = jax.jit(lambda x: jnp.tanh(x @ x))
g = jax.jit(lambda x: jnp.sin(x) * jnp.cos(x))
x = jnp.ones((64, 64))
jax.block_until_ready((f(x), g(x)))
with jax.profiler.trace(sys.argv[1]):
    for _ in range(4):
        jax.block_until_ready(f(x))
        jax.block_until_ready(g(x))
"""


def test_what_jax_traces_is_read_from_both_of_its_files(tmp_path):
    # A trace holds every program of its process, so this process's would be large.
    subprocess.run([sys.executable, "-c", TRACED, str(tmp_path)], check=True)
    (plane,), (trace,) = (list(tmp_path.rglob(f"*.{end}")) for end in ("xplane.pb", "json.gz"))
    assert importers.sniff(plane.read_bytes(), "plane") == "xplane"
    rows = importers.read(plane)
    networks = [row for row in rows if row.kind == Kind.NETWORK]
    # Both functions are called <lambda>, and they are told apart.
    assert [row.runs for row in networks] == [4, 4]
    assert len({row.name for row in networks}) == 2
    data = plane.read_bytes()
    for at in range(len(data)):
        with pytest.raises(Malformed):
            FORMATS["xplane"].read(data[:at], "plane")
    for row, other in zip(rows, importers.read(trace), strict=True):
        assert row.name == other.name
        assert row.samples_ms == pytest.approx(other.samples_ms, rel=1e-3, abs=1e-5)


def test_what_onnxruntime_profiles_here_is_read(tmp_path):
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "x"], ["a"], name="first"),
        onnx.helper.make_node("Tanh", ["a"], ["y"], name="second"),
    ]
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [8, 8]) for name in "xy")
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y]), opset_imports=[opset], ir_version=9
    )
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for _ in range(3):
        session.run(None, {"x": np.ones((8, 8), np.float32)})
    with open(session.end_profiling(), "rb") as file:
        data = file.read()
    assert importers.sniff(data, "profile") == "onnxruntime"
    network, *ops = read(tmp_path, data)
    assert network.runs == 3
    assert [(op.name, op.op, op.runs) for op in ops] == [
        ("first", "MatMul", 3),
        ("second", "Tanh", 3),
    ]
    for at in range(0, len(data.rstrip()), 50):
        with pytest.raises(Malformed):
            read(tmp_path, data[:at], "onnxruntime")
    # Older versions have events around nodes, too, which are no time of theirs.
    events = json.loads(data)
    fence = next(event for event in events if event["name"] == "first_kernel_time")
    events.append({**fence, "name": "first_fence_before", "dur": 0})
    assert read(tmp_path, json.dumps(events).replace("[{", "[ {", 1)) == [network, *ops]


@pytest.mark.parametrize(
    ("form", "data", "where", "what"),
    [
        ("litert", LITERT.replace("avg=502", "avg=xx"), "line 6", "number"),
        ("litert", LITERT.replace("avg=502", "avg=900"), "line 6", "mean between"),
        ("litert", LITERT.replace("count=50", "count=0"), "line 6", "one run or more"),
        ("litert", LITERT.replace("avg=502", "avg=600"), "line 7", "the mean of line 6"),
        ("litert", LITERT.replace("\tCONV_2D\t0.4\t", "\tCONV_2D\t"), "line 15", "8 columns"),
        ("litert", LITERT.replace("[avg ms]", "[ms]"), "line 14", "avg_ms"),
        ("litert", "nothing of it\n", "report", "timings"),
        ("aihub-job", JOB.replace("1200", "-1"), r"all_inference_times\[2\]", "negative"),
        ("aihub-job", JOB.replace("1200", "0"), "all_inference_times", "every run"),
        ("aihub-job", JOB.replace('"type": "Add"', '"kind": "Add"'), r"detail\[1\]", "'type'"),
        ("aihub-job", JOB[:-20], "line 1", "cut off"),
        ("aihub-table", PERF.replace("81.089", "soon"), "Some Phone.qnn", "float"),
        ("aihub-table", PERF.replace("Passed", "Failed"), "report", "passed"),
        ("aihub-table", PERF.replace("precisions:", "precisions: ]"), "line 1", "YAML"),
        ("aihub-table", "!!python/object/apply:os.getcwd []\n", "line 1", "YAML"),
        ("onnxruntime", "[]", "report", "model_run"),
        ("onnxruntime", '[{"name": "model_run", "cat": "Session"}]', r"\[0\]", "'dur'"),
        ("benchmark-json", GOOGLE.replace('"us"', '"fortnight"'), r"\[0\].time_unit", "unit"),
        (
            "benchmark-json",
            GOOGLE.replace('"iterations": 10', '"error_occurred": true'),
            r"benchmarks\[0\]",
            "works",
        ),
        ("benchmark-table", GOOGLE_TABLE.replace("37 us", "37us"), "line 5", "iterations"),
        ("executorch", EXECUTORCH.replace("avg (ms)", "avg (cycles)"), "line 3", "unit of time"),
        ("executorch", EXECUTORCH.replace("0.958706", "-"), "line 4", "number"),
        ("executorch", EXECUTORCH_CSV.replace(",True", ""), "line 2", "10 columns"),
        ("mlperf", MLPERF.replace("SingleStream", "Offline"), "line 5", "SingleStream"),
        ("mlperf", MLPERF.replace("50.00 per", "51.00 per"), "report", "50.00"),
        ("mlperf", MLPERF.replace("3799939998", "1"), "report", "grow"),
        ("mlperf", MLPERF.replace("Max latency", "Most"), "report", "Max latency"),
        ("csv", CSV.replace("12.5,median", "12.5,modal"), "line 3, column stat", "median"),
        ("csv", CSV.replace("p95_ms", "p950_ms"), "line 2", "columns among"),
        ("csv", CSV.replace("1.5,mean", "nan,mean"), "line 4, column ms", "number"),
        ("csv", CSV.replace("9,,,a phone", "9,,a phone"), "line 4", "14 columns"),
        ("csv", CSV.replace("name,kind", "kind"), "line 2", "'name'"),
        ("csv", "name,ms,stat\n", "report", "at least one row"),
        ("csv", CSV.replace("conv,op", '"conv,op'), "line 4", "CSV"),
        ("csv", CSV[:-1], "line 4", "end it"),
        ("litert", LITERT.replace("executed: 2", "executed: 3"), "line 20", "2 nodes.*line 13"),
        ("litert", LITERT.replace("Number of", "Of"), "line 13", "`Number of nodes executed"),
        ("litert", "\n".join(LITERT.split("\n")[7:]), "report", "Inference timings"),
        ("benchmark-table", REPEATED.replace("_stddev", "_sum"), "main", "the stddev of its"),
        ("mlperf", MLPERF.replace("No errors", "Nothing"), "report", "No errors encountered"),
        ("aihub-table", PERF.replace("tool_versions", "tools"), "qnn_context", "tool_versions"),
        ("csv", CSV.replace("std_ms,runs", "runs,runs"), "line 2", "every column once"),
        ("aihub-job", JOB.replace("}]}", '}], "stated": "x"}'), "stated", "dict"),
        ("trace", CHROME.replace('"dur": 51.0', '"dur": -1'), r"\[5\].dur", "negative"),
        ("trace", CHROME.replace('"dur": 51.0', '"end": 51.0'), r"\[5\]", "'dur'"),
        ("trace", '{"traceEvents": [{"ph": "X", "args": null}]}', "report", "AttributeError"),
        ("trace", '{"traceEvents": [{"ph": "M", "pid": [], "name": "x"}]}', "report", "block"),
        ("aihub-table", PERF.replace("81.089", "2023-13-45"), "report", "month must be in"),
        ("aihub-table", PERF.replace("81.089", "0.0"), "Some Phone.qnn", "more than no time"),
        ("onnxruntime", "[" * 100_000, "report", "RecursionError"),
        ("csv", CSV.replace("12.5,median", "1_2.5,median"), "line 3, column ms", "number"),
        ("csv", "name,ms,stat\na,0,mean\n", "line 2", "more than no time"),
        ("csv", "name,ms,stat,samples_ms\na,1,median,50 51 52\n", "column ms", "median.*51"),
        ("csv", "name,ms,stat,samples_ms,runs\na,2,mean,1 3,7\n", "column runs", "2, as"),
        ("csv", f"name,ms,stat,note\na,1,mean,{'x' * 200_000}\n", "line 2", "field limit"),
        ("trace", '{"traceEvents": []}', "report", "block_until_ready"),
        ("xplane", "no such thing", "report", "XSpace"),
        ("csv", b"\xff\xfe\x00", "byte 0", "UTF-8"),
        ("trace", b"\x1f\x8b broken", "report", "gzip"),
    ],
)
def test_a_malformed_file_is_refused_where_it_goes_wrong(form, data, where, what, tmp_path):
    with pytest.raises(Malformed, match=f"(?s){where}.*{what}"):
        read(tmp_path, data, form)


# Formats that do not say how long they are: a cut between two lines cannot be told.
ENDLESS = ("aihub-table", "benchmark-table", "executorch", "csv")


@pytest.mark.parametrize("case", FILES)
def test_a_report_that_is_cut_off_is_never_half_read(case):
    form, whole, _ = FILES[case]
    rows = FORMATS[form].read(whole.encode(), "report")
    for at in range(len(whole)):
        try:
            read = FORMATS[form].read(whole[:at].encode(), "report")
        except Malformed:
            continue
        if case == "litert printed" and whole[at:].startswith(("INFO: Inf", "Profiling Info")):
            assert [row.name for row in read] == ["unet.tflite"]  # A log need not have a profile.
        elif read != rows:
            assert form in ENDLESS and whole[at - 1] == "\n", whole[:at]
            assert read == rows[: len(read)]


def test_repetitions_that_a_table_does_not_sum_up_are_cut_off(tmp_path):
    (row,) = read(tmp_path, REPEATED)
    assert row.samples_ms == pytest.approx((0.1, 0.2, 0.3))
    lines = REPEATED.splitlines(keepends=True)
    for count in range(3, len(lines)):
        with pytest.raises(Malformed, match="of its repetitions; is the file cut off"):
            read(tmp_path, "".join(lines[:count]))


def test_a_file_of_no_known_format_is_an_error_that_lists_them(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)no format known here.*litert.*mlperf.*csv"):
        read(tmp_path, "To be or not to be")
    with pytest.raises(ValueError, match="no format 'xls'; there are litert"):
        read(tmp_path, CSV, "xls")
    with pytest.raises(ValueError, match="looks like litert and like mlperf"):
        read(tmp_path, LITERT + MLPERF)


def test_the_error_of_a_row_comes_of_its_runs():
    row = Imported("a", Kind.OP, 2.0, Stat.MEAN, std_ms=0.3, runs=9)
    assert row.latency().std == pytest.approx(0.1)
    samples = tuple(np.linspace(1, 3, 101))
    row = importers.of_samples("a", Kind.OP, samples)
    assert row.ms == pytest.approx(2.0)
    assert 0.05 < row.latency().std < 0.15


def test_a_row_without_spread_takes_an_error_to_assume():
    row = Imported("a", Kind.OP, 2.0, Stat.MINIMUM, place="perf.yaml")
    with pytest.raises(ValueError, match=r"perf\.yaml: a is a minimum without spread"):
        row.latency()
    assert row.latency(assumed=0.05).std == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no time"):
        Imported("a", Kind.OP, 0.0, Stat.MEAN, std_ms=1.0, runs=3).latency()
    with pytest.raises(Malformed):
        Imported("a", Kind.OP, math.nan, Stat.MEAN)


def test_provenance_is_what_the_file_says_and_what_it_does_not(tmp_path):
    (row,) = read(tmp_path, PERF)
    with pytest.raises(ValueError, match="does not say the attention"):
        provenance(row, {}, "perf.yaml")
    found = provenance(row, {"attention": "as exported"}, "perf.yaml")
    assert (found.device, found.precision, found.method) == ("Some Phone", "w8a16", Method.MEASURED)
    assert dict(found.versions) == {"qairt": "2.43.0", "statistic": "minimum"}
    assert found.source == "perf.yaml"
    with pytest.raises(ValueError, match=r"device=Some Phone.*device=Mine"):
        provenance(row, {"attention": "as exported", "device": "Mine"}, "perf.yaml")
    with pytest.raises(ValueError, match="what can be said"):
        provenance(row, {"attention": "as exported", "colour": "red"}, "perf.yaml")
