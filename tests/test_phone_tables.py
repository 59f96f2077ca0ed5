"""Calls are priced as the kernels that a phone's GPU would run, and the shipped models say how well
they know."""

import csv
import dataclasses
import gzip
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import phone_data
from latency_models import phones, published, saved, shipped
from latency_models.kernels import KINDS, Graph, Kernel, Kind, features, work
from latency_models.latency import UnknownCall
from latency_models.lowering import graph
from latency_models.phones import Measured, PhoneGpu
from latency_models.provenance import Method
from search_spaces.blocks import Conv, NormSiLU, ResNet, TimeEmbedding
from search_spaces.counting import macs
from search_spaces.ops import Call, Op
from search_spaces.presets import PRESETS
from search_spaces.program import calls
from search_spaces.unet import lower


def image(side: int, channels: int, batch: int = 1) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, side, side, channels), "float32")


@dataclasses.dataclass(frozen=True)
class Spelled(Op):
    """An op that is one of the functions below, with a 3x3 kernel where it convolves."""

    spelling: str

    def module(self, inputs, *, rngs):
        return _Spelled(self.spelling)


class _Spelled(nnx.Module):
    def __init__(self, spelling: str):
        self.spelling = spelling
        self.kernel = nnx.Param(jnp.zeros((3, 3, 8, 8)))

    def __call__(self, x, *others):
        def convolved(**options):
            settings = {"padding": "SAME", "window_strides": (1, 1), **options}
            kernel = self.kernel[...]
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **settings)

        def half(x):
            return x * 0.5

        return {
            "conv": lambda: convolved(),
            "conv, relu": lambda: jnp.maximum(convolved(), 0.0),
            "conv, silu": lambda: jax.nn.silu(convolved()),
            "conv, added": lambda: convolved() + x,
            "conv, read twice": lambda: jnp.maximum((y := convolved()), 0.0) @ y.swapaxes(-1, -2),
            "dilated": lambda: convolved(rhs_dilation=(2, 2)),
            "loop": lambda: jax.lax.while_loop(lambda x: x.sum() > 1, half, x),
            "choice": lambda: jax.lax.cond(x.sum() > 1, jnp.sin, half, x),
            "scan": lambda: jax.lax.scan(lambda x, _: (x @ jnp.ones((8, 8)), None), x, length=5)[0],
            "joined": lambda: jnp.concatenate([x, x, x], axis=-1),
            "stacked": lambda: jnp.concatenate([x, x, x], axis=1),
            "mixed": lambda: x[0].reshape(4, 16, 8) @ x[0].reshape(4, 8, 16),
            "reshaped": lambda: x.reshape(-1, 8).astype(jnp.float16),
            "chain": lambda: jnp.tanh(jnp.exp(x) * x + others[0]),
        }[self.spelling]()


def spelled(spelling: str, *more) -> Graph:
    return graph(Call(Spelled(spelling), (image(8, 8), *more)))


@pytest.mark.parametrize("name", ["bk-tiny", "mobile-diffusion", "koala-700m"])
def test_kernels_multiply_what_the_call_multiplies(name):
    spec, inputs = PRESETS[name]()
    for call in calls(lower(spec), inputs).values():
        found = [kernel for kernel in graph(call).kernels if kernel.kind is not Kind.CONCAT]
        assert sum(kernel.macs for kernel in found) == macs(call).total, call


def test_every_call_has_kernels_or_elements_to_move():
    spec, inputs = PRESETS["mobile-diffusion"]()
    for call in calls(lower(spec), inputs).values():
        found = graph(call)
        assert found.kernels or found.unlisted_elements > 0, call


def test_a_convolution_is_one_kernel_and_its_bias_is_free():
    found = graph(Call(Conv(16), (image(8, 4, batch=2),)))
    (kernel,) = found.kernels
    assert kernel == Kernel(Kind.CONV, 2 * 10**2, 2 * 8**2, 4, 16, window=3)
    assert (found.unlisted, found.unlisted_elements) == (0, 0)


def test_what_follows_a_convolution_alone_is_linked_into_it():
    assert spelled("conv").kernels[0].links == ()
    assert spelled("conv, relu").kernels[0].links == ("relu",)
    assert spelled("conv, silu").kernels[0].links == ("sigmoid", "mul")
    assert spelled("conv, added").kernels[0].links == ("add",)
    assert all(not spelled(s).unlisted for s in ("conv", "conv, relu", "conv, silu", "conv, added"))


def test_what_is_read_twice_is_written_down():
    found = spelled("conv, read twice")
    assert found.kernels[0].links == ()
    # The rectified image is read and written, the transposed one too.
    assert found.unlisted == 2 and found.unlisted_elements == 4 * 8 * 8 * 8


def test_a_chain_of_element_wise_operations_reads_and_writes_once():
    found = spelled("chain", image(8, 8))
    assert not found.kernels
    assert (found.unlisted, found.unlisted_elements) == (1, 3 * 8 * 8 * 8)
    assert spelled("reshaped") == Graph(())


def test_normalising_moves_its_input_more_than_once():
    found = graph(Call(NormSiLU(4), (image(16, 8),)))
    assert not found.kernels and found.unlisted > 3
    assert found.unlisted_elements > 4 * 16 * 16 * 8


def test_products_are_convolutions_over_one_pixel_and_heads_go_together():
    (mixed,) = spelled("mixed").kernels
    assert mixed == Kernel(Kind.CONV, 4 * 16, 4 * 16, 8, 16)
    dense = graph(Call(TimeEmbedding(8, 16), (jax.ShapeDtypeStruct((1,), "float32"),))).kernels
    assert [k.kind for k in dense if k.kind is not Kind.CONCAT] == [Kind.DENSE, Kind.DENSE]


def test_channels_are_joined_by_a_kernel_and_pixels_by_a_copy():
    (kernel,) = spelled("joined").kernels
    assert kernel == Kernel(Kind.CONCAT, 64, 64, 8, 24, inputs=3)
    found = spelled("stacked")
    assert not found.kernels and found.unlisted_elements == (1 + 3) * 8 * 8 * 8


def test_a_loop_of_known_length_runs_so_often():
    assert len(spelled("scan").kernels) == 5


@pytest.mark.parametrize("spelling", ["loop", "choice", "dilated"])
def test_what_cannot_be_told_before_it_runs_is_an_error(spelling):
    with pytest.raises(UnknownCall):
        spelled(spelling)


def test_features_and_work_are_of_shapes_alone():
    kernel = Kernel(Kind.CONV, 100, 64, 4, 16, window=3)
    assert work([kernel]).tolist() == [[1.0, 64 * 16 * 9 * 4, 400 + 576 + 1024]]
    assert np.isfinite(features([kernel])).all()
    pooled = dataclasses.replace(kernel, kind=Kind.MAX_POOL, channels_out=4)
    assert work([pooled]).tolist() == [[1.0, 64 * 4 * 9, 400 + 256]]
    depthwise = dataclasses.replace(kernel, kind=Kind.DEPTHWISE, channels_out=8)
    assert work([depthwise]).tolist() == [[1.0, 64 * 8 * 9, 400 + 8 * 9 + 512]]
    joined = dataclasses.replace(kernel, kind=Kind.CONCAT, channels_out=4)
    assert work([joined]).tolist() == [[1.0, 64 * 4, 400 + 256]]
    assert not (features([kernel]) == features([joined])).all()
    with pytest.raises(ValueError, match="links"):
        dataclasses.replace(kernel, links=("sofmax",))
    with pytest.raises(ValueError, match="one or more"):
        dataclasses.replace(kernel, channels_in=0)


def cost(kernel: Kernel) -> float:
    """Milliseconds on a device made up: wide channels run fast."""
    fast = 0.5 if kernel.channels_out % 16 == 0 else 1.0
    return 0.01 + fast * kernel.macs * 1e-7 + kernel.elements * 1e-6


def networks(count: int, seed: int) -> list[Measured]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        kernels = []
        for _ in range(int(rng.integers(8, 20))):
            side, channels = int(rng.integers(4, 30)), int(rng.integers(8, 80))
            width = (16, 24, 32, 40, 64)[int(rng.integers(5))]
            window = (1, 3)[int(rng.integers(2))]
            pixels = side * side
            kernels.append(Kernel(Kind.CONV, pixels, pixels, channels, width, window))
            kernels.append(Kernel(Kind.CONCAT, pixels, pixels, channels, 2 * channels, inputs=2))
        graph = Graph(
            tuple(kernels), int(rng.integers(0, 9)), float(rng.integers(1_000, 1_000_000))
        )
        noise = np.exp(0.02 * rng.normal(size=len(kernels)))
        times = tuple(float(cost(k) * n) for k, n in zip(kernels, noise, strict=True))
        ms = 2.0 + 1.1 * sum(times) + 0.05 * len(kernels) + 1e-6 * graph.unlisted_elements
        made.append(Measured(f"net {i}", graph, times, ms))
    return made


@pytest.fixture(scope="module")
def fitted():
    return phones.fit(networks(40, 0), rounds=80)


def test_a_device_is_learnt_from_its_kernels_and_networks(fitted):
    held = networks(10, 1)
    kernels = [kernel for network in held for kernel in network.graph.kernels]
    found = np.array([latency.ms for latency in fitted.predictor.kernels(kernels)])
    off = np.abs(found / [cost(kernel) for kernel in kernels] - 1)
    assert off.mean() < 0.06
    roof = (work(kernels) * fitted.predictor.rooflines[[KINDS.index(k.kind) for k in kernels]]).sum(
        1
    )
    assert off.mean() < 0.5 * np.abs(roof / [cost(kernel) for kernel in kernels] - 1).mean()
    whole = [fitted.predictor.network(network.graph).ms / network.ms for network in held]
    assert np.abs(np.array(whole) - 1).max() < 0.08
    summed = [sum(network.kernels_ms) / network.ms for network in held]
    assert max(summed) < 0.9  # The sum of kernels alone is not it.


def test_intervals_hold_on_networks_that_were_left_out(fitted):
    held = networks(20, 2)
    kernels = [kernel for network in held for kernel in network.graph.kernels]
    ms = np.array([time for network in held for time in network.kernels_ms])
    low, high = fitted.predictor.intervals(kernels, 0.9).T
    assert 0.82 < ((low <= ms) & (ms <= high)).mean() < 0.98
    assert (low < high).all()


def test_what_was_left_out_is_further_off_than_what_was_fitted(fitted):
    seen = networks(40, 0)
    kernels = [kernel for network in seen for kernel in network.graph.kernels]
    ms = np.array([time for network in seen for time in network.kernels_ms])
    inside = np.array([latency.ms for latency in fitted.predictor.kernels(kernels)])
    assert np.abs(np.log(fitted.kernels_ms / ms)).mean() > np.abs(np.log(inside / ms)).mean()
    assert len(fitted.networks_ms) == 40


def test_a_kind_that_was_never_measured_is_an_error(fitted):
    with pytest.raises(
        ValueError, match=r"no max pooling was measured.*measured were concatenation, convolution"
    ):
        fitted.predictor.kernels([Kernel(Kind.MAX_POOL, 64, 16, 8, 8, window=2, stride=2)])
    assert fitted.predictor.kernels([]) == []


def test_rates_are_not_negative_and_explain_relative_errors():
    done = np.array([[1.0, 10.0, 5.0], [1.0, 1000.0, 5.0], [1.0, 10.0, 800.0], [1.0, 500.0, 700.0]])
    rates = phones.roofline(done, done @ [0.5, 0.01, 0.02])
    np.testing.assert_allclose(rates, [0.5, 0.01, 0.02], rtol=1e-6)
    assert (phones.roofline(done, np.array([9.0, 1.0, 5.0, 2.0])) >= 0).all()


@pytest.fixture(scope="module")
def gpu(fitted):
    reach = phones.reach(networks(40, 0))
    moving = phones.moving_ms(networks(40, 0))
    return PhoneGpu(fitted.predictor, moving, reach.macs, reach.elements, 0.3, linking=True)


SMALL, LARGE = Call(Conv(32), (image(16, 32),)), Call(Conv(320), (image(64, 320),))


def test_a_call_costs_its_kernels_and_what_they_cost_to_launch(gpu):
    overhead = gpu.predictor.overhead
    (kernel,) = graph(SMALL).kernels
    alone = gpu.predictor.kernels([kernel])[0].ms
    least = overhead.scale * alone + overhead.per_kernel_ms
    assert gpu.predict([SMALL]).ms == pytest.approx(
        least + overhead.per_element_ms * (kernel.elements - kernel.weights)
    )


def test_calls_add_up_in_any_order_and_taking_one_away_is_faster(gpu):
    norm = Call(NormSiLU(4), (image(16, 32),))
    parts = [SMALL, norm, SMALL]
    assert gpu.predict(parts) == gpu.predict(parts[::-1])
    assert gpu.predict(parts).ms == pytest.approx(sum(gpu.predict([p]).ms for p in parts))
    assert gpu.predict([]).ms == 0
    assert 0 < gpu.predict([norm]).ms < gpu.predict(parts).ms


def test_normalisation_is_priced_by_what_it_moves_and_never_at_nothing(gpu):
    ms = [gpu.predict([Call(NormSiLU(4), (image(side, 32),))]).ms for side in (16, 32, 64)]
    assert ms[0] > 0
    assert ms[2] > 3 * ms[1] > 6 * ms[0]


def test_what_is_larger_than_all_that_was_measured_is_less_certain(gpu):
    near, far = gpu.predict([SMALL]), gpu.predict([LARGE])
    assert far.std / far.ms > 0.2 > near.std / near.ms
    sure = dataclasses.replace(gpu, beyond=0.0)
    assert sure.predict([LARGE]).std < 0.5 * far.std


def test_what_the_runtime_does_not_link_costs_its_elements(gpu, fitted):
    alone = dataclasses.replace(gpu, linking=False)
    call = Call(Spelled("conv, added"), (image(8, 8),))
    plain = Call(Spelled("conv"), (image(8, 8),))
    assert alone.predict([plain]) == gpu.predict([plain])
    extra = alone.predict([call]).ms - alone.predict([plain]).ms
    assert extra >= 3 * 8 * 8 * 8 * gpu.element_ms


def test_a_device_without_joins_moves_them(gpu):
    rooflines = gpu.predictor.rooflines.copy()
    rooflines[KINDS.index(Kind.CONCAT)] = np.nan
    without = dataclasses.replace(
        gpu, predictor=dataclasses.replace(gpu.predictor, rooflines=rooflines)
    )
    call = Call(Spelled("joined"), (image(8, 8),))
    assert without.predict([call]).ms >= gpu.element_ms * 2 * 8 * 8 * 24
    with pytest.raises(UnknownCall, match="no fully connected was measured"):
        embedding = Call(TimeEmbedding(8, 16), (jax.ShapeDtypeStruct((1,), "float32"),))
        gpu.predict([embedding])


def test_a_model_is_read_back_to_predict_the_same(gpu, tmp_path):
    saved.save(tmp_path / "gpu", gpu, {"device": "made up"})
    loaded, card = saved.load(tmp_path / "gpu")
    assert card == {"device": "made up"}
    parts = [SMALL, Call(NormSiLU(4), (image(16, 32),)), LARGE]
    assert loaded.predict(parts) == gpu.predict(parts)


def test_a_model_fitted_to_other_features_is_refused(gpu, tmp_path):
    saved.save(tmp_path / "gpu", gpu, {})
    path = tmp_path / "gpu" / saved.MODEL
    assert '"window"' in path.read_text()
    path.write_text(path.read_text().replace('"window"', '"windows"'))
    with pytest.raises(ValueError, match="other features than this version has; fit it again"):
        saved.load(tmp_path / "gpu")


BLOCK = Call(ResNet(320, 32, 1e-5), (image(32, 320), jax.ShapeDtypeStruct((1, 1280), "float32")))
FITTED = [name for name in shipped.names() if (shipped.TABLES / name).is_dir()]
ANCHORED = sorted(json.loads(shipped.ANCHORED.read_text()))


@pytest.mark.parametrize("name", FITTED)
def test_a_shipped_model_says_what_it_stands_on_and_is_small(name):
    model, card = shipped.load(name)
    error = card["error on networks left out, percent"]
    assert 0 < error["networks"] < error["kernels"] < 10
    assert error["by kind"].keys() <= set(KINDS)
    assert "MIT" in card["source"] and card["device"] and card["runtime"]
    assert card["method"] == Method.PREDICTED
    assert abs(card["in the 90 % interval of its kind, networks left out, percent"] - 90) < 3
    assert any("bound by memory" in said for said in card["assumed"])
    assert sum(file.stat().st_size for file in (shipped.TABLES / name).iterdir()) < 2**20
    latency = model.predict([BLOCK])
    assert latency.ms > 0 and 0 < latency.std < latency.ms
    twice = model.predict([BLOCK, BLOCK])
    assert twice.ms == pytest.approx(2 * latency.ms)


def test_phones_are_shipped():
    assert len(FITTED) >= 4 and len(ANCHORED) >= 4


@pytest.mark.parametrize("name", ANCHORED)
def test_a_device_known_by_its_anchors_names_them_and_is_wide(name):
    model, card = shipped.load(name)
    assert card["anchors"] and card["method"] == Method.PREDICTED
    assert card["factor off, one anchor left out"] >= 1
    latency = model.predict([BLOCK])
    own = math.sqrt(math.expm1(math.log(card["factor off, one anchor left out"]) ** 2))
    assert latency.std / latency.ms > max(0.05, 0.9 * own)


def test_an_anchored_device_is_near_its_anchors():
    spec, inputs = PRESETS["mobile-diffusion"]()
    model, _ = shipped.load("iphone-15-pro-mobilediffusion")
    found = model.predict(calls(lower(spec), inputs).values())
    assert found.ms == pytest.approx(142, rel=0.1)  # As MobileDiffusion's Table 5 has it.
    # And one that was run in several ways is known to be uncertain by a factor.
    _, mixed = shipped.load("iphone-15-pro")
    assert mixed["factor off, one anchor left out"] > 2


def test_a_device_that_is_not_shipped_is_an_error_that_lists_those_that_are():
    with pytest.raises(ValueError, match="no latency model of 'nokia-3310' is shipped; there are"):
        shipped.load("nokia-3310")


def test_published_latencies_have_sources_and_say_how_they_were_run():
    rows = published.read()
    assert len(rows) > 100
    assert all(row.provenance.method == Method.PUBLISHED and row.source for row in rows)
    unets = {(r.device, r.model): r.latency_ms for r in rows if r.component == "unet"}
    assert unets["iPhone 14 Pro", "snapfusion"] == 230
    assert unets["iPhone 15 Pro", "mobilediffusion"] == 142
    assert unets["Samsung Galaxy S24", "sd1.5"] == 81.1
    assert {row.confidence for row in rows} == {"exact", "approx", "bound"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("230", "soon", "line 2: could not convert"),
        ("230", "-1", "line 2: a latency above zero"),
        ("a talk", "", "line 2: a latency above zero and its source"),
        ("latency_ms", "ms", "line 1: columns"),
    ],
)
def test_a_malformed_line_of_published_latencies_is_named(old, new, said, tmp_path):
    names = [field.name for field in dataclasses.fields(published.Published)]
    row = dict.fromkeys(names, "x") | {"resolution": "512", "batch": "1", "latency_ms": "230"}
    row["source"] = "a talk"
    path = tmp_path / "published.csv"
    text = ",".join(names) + "\n" + ",".join(row[name] for name in names) + "\n"
    path.write_text(text)
    assert published.read(path)[0].latency_ms == 230
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=said):
        published.read(path)


def test_measurements_of_phones_are_read_as_kernels(tmp_path):
    conv = {"Input_shape": "16", "Input_channel": 4, "Output_shape": "14", "Stride": "1",
            "Kernel": "3", "Filter": "8", "Group": "1"}  # fmt: skip
    mean = {"Input_shape": "14", "Input_channel": 8, "Output_shape": "8", "Stride": "-",
            "Kernel": "0", "Filter": "-", "Group": "-"}  # fmt: skip
    common = {"device": "A Phone", "runtime": "TFLite GPU", "model": "net"}
    rows = [
        {**common, "op": "CONV_2D", "kernel": "convolution_2d_1_linked_:_add_2_linked_:_relu_3",
         "shapes": json.dumps(conv), "latency_ms": "0.5"},
        {**common, "op": "MEAN", "kernel": "mean_6", "shapes": json.dumps(mean),
         "latency_ms": "0.1"},
    ]  # fmt: skip
    whole = [
        {"dataset": "tflite_cnn_e2e", "device": "A Phone", "model": "net", "cores": "gpu",
         "latency_ms": "0.9"}
    ]  # fmt: skip
    for name, content in ((phone_data.KERNELS, rows), (phone_data.NETWORKS, whole)):
        with gzip.open(tmp_path / name, "wt", newline="") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    ((network,),) = phone_data.read(tmp_path).values()
    first, second = network.graph.kernels
    assert first == Kernel(Kind.CONV, 256, 196, 4, 8, window=3, links=("add", "relu"))
    assert second == Kernel(Kind.MEAN, 196, 1, 8, 8, window=14)
    assert (network.kernels_ms, network.ms) == ((0.5, 0.1), 0.9)
    # Node 0 comes before the convolution, 4 and 5 before the mean.
    assert network.graph.unlisted == 3
    assert network.graph.unlisted_elements == 1 * 256 * 4 + 2 * 196 * 8
