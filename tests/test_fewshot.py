"""Latency of calls from a few measurements, on devices that are made up."""

import jax
import numpy as np
import pytest

from latency_models import fewshot, saved
from latency_models.check import errors, of_calls
from latency_models.features import WORK, work
from latency_models.latency import Latency, UnknownCall, Whole
from latency_models.provenance import Method, Provenance
from latency_models.rows import Network
from latency_models.store import Measurements
from latency_models.table import Table
from search_spaces.blocks import Conv, Downsample, ResNet, Separable, Transformer
from search_spaces.ops import Call
from search_spaces.program import Step, calls
from tests.latency_laws import LatencyLaws


def image(side: int, channels: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, side, side, channels), "float32")


CONTEXT = jax.ShapeDtypeStruct((1, 5, 6), "float32")
RESNETS = [
    Call(ResNet(width, 4, 1e-6, convolution), (image(side, width),))
    for side in (4, 8, 16)
    for width in (4, 8, 16)
    for convolution in (ResNet(4, 2, 1e-6).convolution, Separable())
]
TRANSFORMERS = [
    Call(Transformer(heads, 4, 2, ffn=ffn), (image(side, 8), CONTEXT))
    for side in (4, 8, 16)
    for heads in (1, 2)
    for ffn in (4, 6, 8)
]
CALLS = (*RESNETS, *TRANSFORMERS)
UNKNOWN = Call(Downsample(), (image(8, 4),))


def device(seed: int) -> Table:
    """A device with rates of its own, each within a factor of about five of the others'."""
    rng = np.random.default_rng(seed)
    typical = dict.fromkeys(WORK, 1e-7) | {"calls": 0.02, "grouped convolution": 2e-6}
    cost = np.array(list(typical.values())) * np.exp(0.8 * rng.standard_normal(len(WORK)))
    ms = np.array([work(call) @ cost for call in CALLS]) * np.exp(0.01 * rng.standard_normal(36))
    return Table(
        {call: Latency(float(x), 0.01 * float(x)) for call, x in zip(CALLS, ms, strict=True)}
    )


SOURCES = [device(seed) for seed in range(4)]
TARGET = device(100)
KIN = fewshot.learn(SOURCES)
CHOSEN = KIN.choose(CALLS, 12)
FEW = {call: TARGET.rows[call] for call in CHOSEN}
MODEL = KIN.adapt(FEW)
REST = Table({call: row for call, row in TARGET.rows.items() if call not in FEW})


class TestFewShot(LatencyLaws):
    model = MODEL
    calls = (CALLS[0], CALLS[9], CALLS[30])
    unknown = UNKNOWN


def test_few_measurements_say_what_other_devices_do_not():
    scaled = np.array(
        [np.median([source.rows[call].ms for source in SOURCES]) for call in REST.rows]
    )
    measured = np.array([row.ms for row in REST.rows.values()])
    by_scale = np.abs(scaled * np.median(measured / scaled) / measured - 1).mean()
    found = errors(of_calls(MODEL, REST)[0])
    assert found.mape < 0.05 < by_scale / 3
    assert found.coverage >= 0.8


def test_calls_are_chosen_once_and_none_that_was_measured():
    assert len(set(CHOSEN)) == 12 and set(CHOSEN) <= set(CALLS)
    more = KIN.choose(CALLS, 10, FEW)
    assert len(set(more)) == 10 and not set(more) & set(CHOSEN)
    with pytest.raises(ValueError, match="cannot choose 30 of 24"):
        KIN.choose(CALLS, 30, FEW)


def test_what_is_measured_is_what_is_predicted_nearly():
    for call, row in FEW.items():
        assert MODEL.predict([call]).ms == pytest.approx(row.ms, rel=0.05)


def test_errors_of_calls_do_not_average_out():
    one, many = (MODEL.predict(CALLS[:count]) for count in (1, 36))
    assert many.std / many.ms > 0.3 * one.std / one.ms


def test_a_source_that_measured_other_calls_teaches_too():
    half = Table(dict(list(SOURCES[0].rows.items())[:30]))
    other = Table(dict(list(SOURCES[1].rows.items())[5:]))
    model = fewshot.learn([half, other]).adapt(FEW)
    assert errors(of_calls(model, REST)[0]).mape < 0.2


def test_a_saved_model_predicts_the_same_to_the_bit(tmp_path):
    saved.save(tmp_path, MODEL, {"device": "made up"})
    loaded, _ = saved.load(tmp_path)
    for call in CALLS:
        assert loaded.predict([call]) == MODEL.predict([call])
    assert loaded.predict(CALLS) == MODEL.predict(CALLS)


def test_networks_correct_the_sum_and_say_how_wrong_it_is():
    inputs = {"image": image(8, 8), "context": CONTEXT}
    networks = []
    for number, factor in enumerate((0.8, 0.82, 0.78)):
        program = (
            Step("a", ResNet(8, 4, 1e-6), ("image",)),
            Step("b", Transformer(1, 4, 2, ffn=4 + 2 * number), ("a", "context")),
        )
        whole = Whole(program, inputs)
        ms = factor * sum(TARGET.rows[call].ms for call in calls(*whole).values())
        networks.append(Network(f"n{number}", whole, Latency(ms, 0.01 * ms)))
    provenance = Provenance("new", "made up", (), "any", "any", 1, Method.MEASURED)
    fitted = fewshot.fit(Measurements(provenance, Table(FEW), tuple(networks)), KIN)
    assert fitted.calls and fitted.calls.pairs == 12 and fitted.calls.mape < 0.15
    assert fitted.networks and fitted.networks.pairs == 3 and fitted.networks.mape < 0.1
    for network in networks:
        found = fitted.model.predict(calls(*network.whole).values())
        assert found.ms == pytest.approx(network.latency.ms, rel=0.1)


def test_kinds_that_no_source_measured_are_refused():
    with pytest.raises(UnknownCall, match="nothing like Downsample"):
        KIN.adapt({**FEW, UNKNOWN: Latency(1.0, 0.1)})
    with pytest.raises(UnknownCall, match="nothing like Conv"):
        KIN.choose([*CALLS, Call(Conv(4), (image(8, 4),))], 3)


@pytest.mark.parametrize("tables", [[], [Table(dict(list(TARGET.rows.items())[:4]))]])
def test_too_little_to_learn_from_is_one_clear_error(tables):
    with pytest.raises(ValueError, match=r"fewer than 5 calls measured; give files"):
        fewshot.learn(tables)
