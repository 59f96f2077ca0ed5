"""Every runtime runs what is described, as JAX computes it, and says what it ran on."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_models import affinity, store
from latency_models.latency import Whole
from latency_models.provenance import cores
from latency_models.runtimes import Loaded, Runtime, Subject, drawn, onnxruntime, tally, xla
from latency_models.runtimes.litert import LiteRT
from latency_models.runtimes.onnxruntime import OnnxRuntime
from latency_models.runtimes.xla import XLA
from nas.diffusion import unet
from search_spaces.blocks import ResNet, Separable, TimeEmbedding, Transformer, Upsample
from search_spaces.export import litert
from search_spaces.export.part import compared
from search_spaces.ops import Call
from search_spaces.unet import lower
from tests import tiny

IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 4), "float32")
TIME = jax.ShapeDtypeStruct((2, 6), "float32")
CONTEXT = jax.ShapeDtypeStruct((2, 5, 6), "float32")
RESNET = Call(ResNet(4, groups=2), (IMAGE, TIME))
TRANSFORMER = Call(Transformer(heads=2, size=4, groups=2), (IMAGE, CONTEXT))
SUBJECTS: dict[str, Subject] = {
    "resnet": RESNET,
    "transformer": TRANSFORMER,
    "unet": Whole(
        lower(unet.from_config(tiny.UNET)), unet.shapes(tiny.UNET, batch=1, tokens=tiny.LENGTH)
    ),
}
PIXEL = Call(
    ResNet(4, groups=2),
    (jax.ShapeDtypeStruct((1, 1, 1, 6), "float32"), jax.ShapeDtypeStruct((1, 6), "float32")),
)
CLOSE = 1e-5
MODEL = Path(__file__).parent / "golden" / "resnet.tflite"
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "litert"


def difference(loaded: Loaded, subject: Subject) -> float:
    return max(compared(drawn(subject), loaded.values, loaded.outputs(), "it").values())


@pytest.fixture(scope="module")
def resnet() -> Loaded:
    """A block in LiteRT, converted before: `test_the_model_here_is_what_the_converter_makes`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litert, "model", lambda *_, **__: MODEL)
        return LiteRT(threads=1).prepare(RESNET)


@pytest.fixture(scope="module")
def in_onnx_runtime() -> dict[str, Loaded]:
    return {name: OnnxRuntime(threads=1).prepare(of) for name, of in SUBJECTS.items()}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_onnx_runtime_computes_what_jax_does(in_onnx_runtime: dict[str, Loaded], subject: str):
    loaded = in_onnx_runtime[subject]
    loaded.run()
    assert 0 < (loaded.difference or 0) < CLOSE
    assert loaded.outputs()["result"].shape == drawn(SUBJECTS[subject]).results["result"].shape


@pytest.mark.parametrize("subject", [RESNET, TRANSFORMER])
def test_xla_computes_what_jax_does(subject: Call):
    loaded = XLA().prepare(subject)
    loaded.run()
    assert difference(loaded, subject) == loaded.difference == 0


def test_litert_computes_what_jax_does(resnet: Loaded):
    resnet.run()
    assert resnet.difference == difference(resnet, RESNET) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_litert_computes_what_jax_does_of_what_is_converted_now(subject: str):
    for runtime in LiteRT(1, cache=CACHE), LiteRT(1, cache=CACHE, respelled=False):
        loaded = runtime.prepare(SUBJECTS[subject])
        assert loaded.difference is not None and loaded.difference < CLOSE
        rows = loaded.profile(3)
        assert sum(row.ms for row in rows) > 0
        gelus = [row for row in rows if row.kind.startswith("GELU")]
        assert bool(gelus) == (runtime.respelled and subject != "resnet")


@pytest.mark.slow
def test_an_image_of_one_pixel_is_converted():
    assert (LiteRT(1, cache=CACHE).prepare(PIXEL).difference or 1) < CLOSE
    with pytest.raises(ValueError, match="does not convert ResNet"):
        LiteRT(1, cache=CACHE, respelled=False).prepare(PIXEL)


@pytest.mark.slow
def test_the_model_here_is_what_the_converter_makes():
    made = litert.model(drawn(RESNET), CACHE)
    assert made.read_bytes() == MODEL.read_bytes(), f"if that is right: cp {made} {MODEL}"


@pytest.mark.parametrize("runtime", [OnnxRuntime(threads=1), XLA()])
def test_weights_are_not_kept_twice(runtime: Runtime):
    assert not runtime.prepare(RESNET).part.weights
    loaded = runtime.prepare(RESNET, compare=False)
    assert loaded.difference is None and not loaded.part.weights
    assert np.isfinite(loaded.outputs()["result"]).all()


@pytest.mark.parametrize("runtime", [OnnxRuntime(), LiteRT()])
def test_what_computes_something_else_is_refused(runtime: Runtime, monkeypatch):
    monkeypatch.setattr(litert, "model", lambda *_, **__: MODEL)
    kind = type(runtime.prepare(RESNET))
    faithful = kind.outputs
    monkeypatch.setattr(kind, "outputs", lambda self: {"result": 1.01 * faithful(self)["result"]})
    with pytest.raises(ValueError, match=r"something else than the original: 0\.01 of its scale"):
        runtime.prepare(RESNET)


@pytest.mark.parametrize("runtime", [OnnxRuntime, LiteRT])
def test_threads_are_stated_and_told_apart(runtime, tmp_path: Path, monkeypatch):
    one, three = runtime(threads=1).provenance, runtime(threads=3).provenance
    assert (one.threads, three.threads) == (1, 3) and one != three
    assert store.file(tmp_path, one) != store.file(tmp_path, three)
    assert runtime().provenance.threads == len(cores())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 6}, raising=False)
    assert (runtime().provenance.threads, runtime().provenance.affinity) == (3, "1,4,6")
    with pytest.raises(ValueError, match="0 threads"):
        runtime(threads=0)


def test_runtimes_precisions_and_spellings_are_told_apart():
    precise = [
        runtime(precision=precision)
        for runtime in (XLA, OnnxRuntime, LiteRT)
        for precision in (None, "float32", "float16")
    ]
    found = [runtime.provenance for runtime in (*precise, LiteRT(respelled=False))]
    assert len({provenance.key for provenance in found}) == len(found) == 10
    assert "float16" in XLA(precision="float16").provenance.precision
    assert dict(LiteRT().provenance.versions)["litert-converter"] == litert.CONVERTER
    assert "onnxruntime" in dict(OnnxRuntime().provenance.versions)


def test_the_threads_are_those_that_are_stated():
    loaded = OnnxRuntime(threads=3).prepare(RESNET)
    assert isinstance(loaded, onnxruntime._Session)
    assert loaded._session.get_session_options().intra_op_num_threads == 3


def test_a_subject_in_another_precision_has_its_weights_and_inputs_in_it():
    part = drawn(TRANSFORMER, "float16")
    assert {str(x.dtype) for x in (*part.weights.values(), *part.inputs.values())} == {"float16"}
    assert part.dtype == "float16" and drawn(TRANSFORMER).dtype == "float32"
    whole = drawn(SUBJECTS["unet"], "bfloat16")
    assert str(whole.inputs["timestep"].dtype) == "float32"
    ids = jax.ShapeDtypeStruct((2,), "int32")
    integers = drawn(Call(TimeEmbedding(4, 8), (ids,)), "float16")
    assert str(integers.inputs["read0"].dtype) == "int32"
    for kind in "bfloat16", "float16":
        halves = tuple(jax.ShapeDtypeStruct(shape.shape, kind) for shape in RESNET.inputs)
        assert drawn(Call(RESNET.op, halves)).dtype == kind


@pytest.mark.parametrize("runtime", [XLA(), OnnxRuntime(), LiteRT()])
def test_latencies_under_another_malloc_are_others(runtime, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    plain = runtime.provenance
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    (said,) = runtime.provenance.differences(plain)
    assert "'' there, 'glibc.malloc.hugetlb=1' here" in said


@pytest.mark.parametrize("runtime", [XLA(precision="float16"), OnnxRuntime(precision="float16")])
def test_half_precision_runs_as_such(runtime: Runtime):
    found = runtime.prepare(RESNET).outputs()["result"]
    whole = XLA().prepare(RESNET).outputs()["result"]
    assert found.dtype == "float16" and whole.dtype == "float32"
    assert 1e-5 < np.abs(found - whole).max() < 1e-1


def test_onnx_runtime_names_each_node_after_its_step(in_onnx_runtime: dict[str, Loaded]):
    loaded = in_onnx_runtime["unet"]
    rows = loaded.profile(3)
    steps = {step.name for step in loaded.part.program} | set(loaded.part.outputs)
    named = {name for row in rows for name in steps if row.name.startswith(f"{name}/")}
    assert all(row.name and row.kind and row.ms >= 0 for row in rows)
    assert named >= {step.name for step in loaded.part.program}
    convolutions = sum(
        name.endswith(("conv1.kernel", "conv2.kernel")) for name in loaded.part.weights
    )
    assert sum(row.kind in ("Conv", "FusedConv") for row in rows) >= convolutions


def test_xla_names_each_operator_once():
    loaded = XLA().prepare(RESNET)
    assert isinstance(loaded, xla._Compiled)
    rows, program = loaded.profile(3), loaded._compiled.as_text() or ""
    assert all(f"%{row.name} = " in program for row in rows)
    assert rows and len({row.name for row in rows}) == len(rows)
    assert all(row.name.startswith(row.kind) and row.ms >= 0 for row in rows)
    assert sum(row.ms for row in rows) > 0


def test_litert_names_each_operator_and_what_xnnpack_left(resnet: Loaded):
    rows = resnet.profile(3)
    kinds = [row.kind for row in rows]
    assert sum(kind.startswith("Convolution") for kind in kinds) == 2
    assert kinds.count("BROADCAST_TO, not by XNNPACK") == 2
    assert all(row.ms >= 0 for row in rows) and sum(row.ms for row in rows) > 0
    assert [int(row.name.partition("/")[0]) for row in rows] == list(range(len(rows)))


def test_a_profiler_that_fails_is_said(resnet: Loaded, monkeypatch):
    monkeypatch.setattr(resnet, "_model", Path("/nowhere/model.tflite"))
    with pytest.raises(ValueError, match=r"operator by operator \(OSError: LiteRtCreateModel"):
        resnet.profile(1)


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 2),
)
def test_a_tally_is_of_one_pass_and_without_the_warm_up(times: list[int], passes: int, warmup: int):
    cold, warm = 1000.0, 2.0
    events = [
        (f"op{i}", "kind", cold if number < warmup else warm)
        for number in range(warmup + passes)
        for i, count in enumerate(times)
        for _ in range(count)
    ]
    rows = tally(events, passes, warmup)
    assert [(row.name, row.ms) for row in rows] == [
        (f"op{i}", pytest.approx(count * warm)) for i, count in enumerate(times)
    ]


def test_an_interrupted_event_does_not_move_a_tally():
    events = [("a", "kind", 1.0 if number != 3 else 500.0) for number in range(10)]
    assert tally(events, 10)[0].ms == pytest.approx(1)


@pytest.mark.parametrize(("runtime", "extra"), [(OnnxRuntime, "`export`"), (LiteRT, "`litert`")])
def test_a_runtime_that_is_not_installed_names_its_extra(runtime, extra: str, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"pip install .* the extra {extra}"):
        runtime()


# What LiteRT is given.

RESPELLED = {
    "a transformer": TRANSFORMER,
    "separable convolutions": Call(ResNet(4, groups=2, convolution=Separable()), (IMAGE, TIME)),
    "an upsampling": Call(Upsample(), (IMAGE,)),
    "an image of one pixel": PIXEL,
    "a time embedding": Call(TimeEmbedding(4, 8), (jax.ShapeDtypeStruct((2,), "float32"),)),
}


@pytest.mark.parametrize("name", RESPELLED)
def test_litert_s_words_say_the_same(name: str):
    part = drawn(RESPELLED[name])
    rng = np.random.default_rng(0)
    values = [
        jnp.asarray(rng.standard_normal(part.inputs[n].shape), "float32")
        for n in sorted(part.inputs)
    ]
    program = jax.make_jaxpr(lambda given: part(part.weights, given))(dict(part.inputs))
    (found,) = jax.jit(lambda *given: litert._respelled(program, given))(*values)
    named = dict(zip(sorted(part.inputs), values, strict=True))
    assert max(compared(part, named, {"result": found}, "it").values()) < CLOSE


def words(part, **how: bool) -> str:
    """The operators of the program that the converter is given."""
    return litert.stablehlo(part, **how).decode("latin-1")


def test_an_exact_gelu_is_named_and_an_approximate_one_is_not():
    assert "aten.gelu.default" in words(drawn(TRANSFORMER))
    assert "aten.gelu.default" not in words(drawn(TRANSFORMER), respelled=False)
    values = jax.ShapeDtypeStruct((3,), "float32")

    def written(function) -> str:
        program = jax.make_jaxpr(function)(values)
        return str(jax.make_jaxpr(lambda x: litert._respelled(program, [x]))(values))

    assert "gelu" in written(lambda x: jax.nn.gelu(x, approximate=False))
    for other in (
        lambda x: jax.nn.gelu(x, approximate=True),
        lambda x: (x / 2) * jax.lax.erfc(-x),
        lambda x: (0.3 * x) * jax.lax.erfc(-x * np.float32(0.5**0.5)),
        lambda x: (0.5 * jnp.sin(x)) * jax.lax.erfc(-x * np.float32(0.5**0.5)),
    ):
        assert "gelu" not in written(other)


@pytest.mark.parametrize("shape", [(2, 3, 2, 4, 2, 5), (2, 3, 1, 4, 4, 5)])
def test_repetitions_are_joints(shape: tuple[int, ...]):
    x = jax.ShapeDtypeStruct((2, 3, 1, 4, 1, 5), "float32")
    program = jax.make_jaxpr(lambda x: jnp.broadcast_to(x, shape))(x)
    respelled = jax.make_jaxpr(lambda x: litert._respelled(program, [x]))(x)
    primitives = {equation.primitive.name for equation in respelled.jaxpr.eqns}
    assert primitives == {"reshape", "concatenate"}
    values = np.random.default_rng(0).standard_normal(x.shape)
    (found,) = litert._respelled(program, [values.astype("float32")])
    np.testing.assert_array_equal(found, np.broadcast_to(values.astype("float32"), shape))


@pytest.mark.parametrize(("pixels", "rows"), [(1, 2), (4, 4)])
def test_only_a_product_of_one_pixel_is_made_of_two(pixels: int, rows: int):
    image, matrix = np.ones((1, pixels, 1, 3), "float32"), np.ones((3, 5), "float32")
    program = jax.make_jaxpr(lambda x: x.reshape(-1, 3) @ matrix)(image)
    respelled = jax.make_jaxpr(lambda x: litert._respelled(program, [x]))(image)
    (product,) = (e for e in respelled.jaxpr.eqns if e.primitive.name == "dot_general")
    assert product.outvars[0].aval.shape == (rows, 5)
    (found,) = litert._respelled(program, [image])
    np.testing.assert_array_equal(found, np.full((pixels, 5), 3.0))


def test_repetitions_of_few_axes_or_many_times_stay():
    for start, shape in ((1, 1, 1, 4), (1, 3, 2, 4)), ((2, 1, 1, 1, 3), (2, 64, 1, 1, 3)):
        program = jax.make_jaxpr(lambda x, shape=shape: jnp.broadcast_to(x, shape))(jnp.ones(start))
        assert not any(map(litert._repeats, program.jaxpr.eqns))


def test_equal_networks_are_equal_programs_wherever_they_are_asked_for():
    def elsewhere():
        return litert.stablehlo(drawn(RESNET))

    assert litert.stablehlo(drawn(RESNET)) == elsewhere()
    assert elsewhere() != litert.stablehlo(drawn(TRANSFORMER))
    assert jax.config.jax_traceback_in_locations_limit != 0  # pyright: ignore


STUB = """#!{python}
import json, pathlib, sys
asked = json.loads(pathlib.Path(sys.argv[-1]).read_text())
assert sys.argv[1] == "-I" and sys.argv[2].endswith("litert_convert.py")
assert asked["inputs"] == ["read0", "read1"] and asked["outputs"] == ["result"]
with open({log!r}, "a") as log:
    log.write("converted ")
{last}
"""


def stub(folder: Path, last: str) -> Path:
    """A converter's environment that does something else."""
    made = folder / "python"
    made.write_text(STUB.format(python=sys.executable, log=str(folder / "log"), last=last))
    made.chmod(0o755)
    return made


def test_a_network_is_converted_once(tmp_path: Path, monkeypatch):
    copy = "pathlib.Path(asked['model']).write_bytes(pathlib.Path(asked['stablehlo']).read_bytes())"
    python = stub(tmp_path, copy)
    monkeypatch.setattr(litert, "environment", lambda cache: python)
    first = litert.model(drawn(RESNET), tmp_path)
    assert first == litert.model(drawn(RESNET), tmp_path)
    assert first.read_bytes() == litert.stablehlo(drawn(RESNET))
    changed = drawn(RESNET)
    weights = {**changed.weights, "call.conv1.bias": changed.weights["call.conv1.bias"] + 1}
    assert litert.model(dataclasses.replace(changed, weights=weights), tmp_path) != first
    assert litert.model(drawn(RESNET), tmp_path, respelled=False) != first
    assert (tmp_path / "log").read_text() == 3 * "converted "
    assert len(list((tmp_path / "litert").iterdir())) == 3


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("sys.exit('error: no word for that')", "no word for that"),
        ("raise ValueError('a reason')", "a reason"),
        ("", "no reason given"),
    ],
)
def test_what_cannot_be_converted_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch, last: str, reason: str
):
    python = stub(tmp_path, last)
    monkeypatch.setattr(litert, "environment", lambda cache: python)
    with pytest.raises(ValueError, match=f"does not convert ResNet in float32: .*{reason}"):
        litert.model(drawn(RESNET), tmp_path)
    assert not list((tmp_path / "litert").iterdir())


def test_weights_that_no_model_holds_are_said_before_anything_is_done(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(litert, "LIMIT", 1000)
    monkeypatch.setattr(litert, "stablehlo", None)
    with pytest.raises(ValueError, match=r"ResNet has .* GB of weights, .* measure its blocks"):
        litert.model(drawn(RESNET), tmp_path)


def test_a_converter_that_cannot_be_installed_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(litert, "_PINNED", ("no-such-package==1",))
    with pytest.raises(ValueError, match=r"cannot be installed into .*no-such-package.* an index"):
        litert.environment(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_environment_is_made_once_and_whole(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(litert, "_PINNED", ("--help",))  # Which pip can install from anywhere.
    python = litert.environment(tmp_path)
    said = subprocess.run([python, "-c", "print(6 * 7)"], capture_output=True, text=True)
    assert said.stdout == "42\n"
    monkeypatch.setattr("venv.create", None)
    assert litert.environment(tmp_path) == python
    assert list(tmp_path.iterdir()) == [python.parent.parent]


# Which cores.

PINNED = """
import sys
from latency_models import affinity
from latency_models.provenance import local
if sys.argv[1] == "late":
    import jax
    jax.jit(lambda x: x + 1)(1.0)
affinity.pin([int(core) for core in sys.argv[2:]])
import jax, json
jax.jit(lambda x: x + 1)(1.0)
print(json.dumps([affinity.xla_threads(), local().threads, local().affinity]))
"""


def pinned(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PINNED, *arguments], capture_output=True, text=True
    )


@pytest.mark.skipif(len(cores()) < 2, reason="one core leaves nothing to choose")
def test_a_pinned_process_has_as_many_threads_of_xla_as_cores():
    first = str(cores()[0])
    assert json.loads(pinned("early", first).stdout) == [1, 1, first]
    late = pinned("late", first)
    assert late.returncode and f"taskset -c {first}" in late.stderr


def test_cores_that_are_not_there_are_refused():
    for wrong in [], [10_000]:
        with pytest.raises(ValueError, match="this machine has"):
            affinity.pin(wrong)
