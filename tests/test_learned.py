"""Models that are fitted to measured calls, on a device that is made up."""

import dataclasses
import json
import math
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from latency_models import (
    calibrate,
    conditioned,
    gaussian,
    interpolation,
    learned,
    rates,
    saved,
)
from latency_models.check import of_calls, of_networks
from latency_models.features import WORK, shape, work
from latency_models.latency import Latency, LatencyModel, UnknownCall, Whole
from latency_models.rows import Network
from latency_models.table import Table
from nas.testing.latencies import LatencyModelLaws
from search_spaces.blocks import Conv, Downsample, ResNet, Separable, Transformer
from search_spaces.ops import Call
from search_spaces.program import Step, calls

COST = dict(zip(WORK, np.zeros(len(WORK)), strict=True)) | {
    "convolution": 2e-7,
    "product": 1e-7,
    "grouped convolution": 2e-6,
    "mixing": 5e-7,
    "activations": 1e-6,
    "calls": 0.01,
}


def image(side: int, channels: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, side, side, channels), "float32")


CONTEXT = jax.ShapeDtypeStruct((1, 5, 6), "float32")
RESNETS = [
    Call(ResNet(out, 2, 1e-6, convolution), (image(side, width),))
    for side in (4, 8, 16)
    for width, out in ((4, 4), (8, 8), (4, 8), (8, 12))
    for convolution in (ResNet(4, 2, 1e-6).convolution, Separable())
]
TRANSFORMERS = [
    Call(Transformer(heads, 4, 2, ffn=ffn), (image(side, 8), CONTEXT))
    for side in (4, 8, 16)
    for heads in (1, 2)
    for ffn in (4, 6, 8)
]
EVERY = [*RESNETS, *TRANSFORMERS]
ORDER = np.random.default_rng(0).permutation(len(EVERY))
SEEN, HELD_OUT = [EVERY[i] for i in ORDER[:28]], [EVERY[i] for i in ORDER[28:]]
UNKNOWN = Call(Downsample(), (image(8, 4),))


def takes(call: Call, seed: int = 0) -> Latency:
    """What the made-up device takes: rates, worse where there are few pixels, and some noise."""
    worse = 1 + 32 / shape(call)[1]
    noise = np.random.default_rng([seed, EVERY.index(call)]).normal(0, 0.01)
    ms = worse * float(work(call) @ list(COST.values())) * np.exp(noise)
    return Latency(float(ms), 0.01 * float(ms))


ROWS = {call: takes(call) for call in SEEN}
FITTED: dict[str, LatencyModel] = {
    "rates": rates.fit(ROWS),
    "gaussian": learned.fit(ROWS, gaussian.fit),
    "interpolation": interpolation.fit(ROWS),
}


class FittedLaws(LatencyModelLaws):
    calls = (SEEN[0], SEEN[5], HELD_OUT[3])
    unknown = UNKNOWN


class TestRates(FittedLaws):
    model = FITTED["rates"]


class TestGaussian(FittedLaws):
    model = FITTED["gaussian"]


class TestInterpolated(FittedLaws):
    model = FITTED["interpolation"]


def mape(model: LatencyModel) -> float:
    pairs, refused = of_calls(model, Table({call: takes(call) for call in HELD_OUT}))
    assert not refused
    return float(np.mean([abs(pair.error) for pair in pairs]))


def test_the_process_learns_what_rates_cannot_say():
    assert 2 * mape(FITTED["gaussian"]) < mape(FITTED["rates"])


def test_a_few_rows_that_are_far_off_do_not_spoil_the_others():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 6, 60)[:, None]
    true = np.sin(x[:, 0])
    seen = true + rng.normal(0, 0.01, len(x))
    seen[[7, 23, 24, 48]] += (1.5, -1.0, -1.2, 0.7)
    found, _ = gaussian.fit(x, seen, np.full(len(x), 0.01)).predict(x)
    assert np.abs(found - true).max() < 0.1


def test_rates_are_found_where_a_device_has_nothing_but_rates():
    exact = {call: Latency(float(work(call) @ list(COST.values())), 0.0) for call in EVERY}
    found = rates.fit(exact)
    assert found.residual < 1e-6
    assert all(found.price(call) == pytest.approx(row.ms) for call, row in exact.items())
    assert min(found.milliseconds) >= 0


def test_intervals_hold_about_as_often_as_they_say():
    pairs, _ = of_calls(FITTED["gaussian"], Table({call: takes(call) for call in HELD_OUT}))
    assert np.mean([abs(pair.deviations) < 1.645 for pair in pairs]) >= 0.75
    # Nor are they so wide that they say nothing.
    assert np.median([pair.predicted.std / pair.predicted.ms for pair in pairs]) < 0.1


def test_what_is_far_from_anything_measured_is_less_sure():
    model, near = FITTED["gaussian"], next(call for call in SEEN if call in RESNETS)
    far = Call(ResNet(64, 2, 1e-6), (image(128, 64),))
    relative = [model.predict([call]) for call in (near, far)]
    assert relative[1].std / relative[1].ms > 2 * relative[0].std / relative[0].ms


def test_a_table_between_whose_rows_one_asks_keeps_its_rows():
    model = FITTED["interpolation"]
    assert all(model.predict([call]).ms == row.ms for call, row in ROWS.items())
    assert mape(model) < 0.2


@pytest.mark.parametrize("fit", [rates.fit, lambda rows: learned.fit(rows, gaussian.fit)])
def test_too_few_calls_are_an_error(fit):
    with pytest.raises(ValueError, match="2 measured calls"):
        fit(dict(list(ROWS.items())[:2]))


def test_twice_as_slow_a_device_is_predicted_twice_as_slow():
    slower = {call: Latency(2 * row.ms, 2 * row.std) for call, row in ROWS.items()}
    found = learned.fit(slower, gaussian.fit)
    for call in HELD_OUT:
        assert found.predict([call]).ms == pytest.approx(
            2 * FITTED["gaussian"].predict([call]).ms, rel=0.02
        )


# On disk.


def is_the_same_saved(folder, model: LatencyModel, asked: Sequence[Call]) -> None:
    saved.save(folder / "model", model, {"device": "made up"})
    found, card = saved.load(folder / "model")
    assert card == {"device": "made up"}
    assert [found.predict([call]) for call in asked] == [model.predict([call]) for call in asked]
    saved.save(folder / "again", found, card)
    for file in (saved.MODEL, saved.TENSORS):
        again = (folder / "again" / file).read_bytes()
        assert again == (folder / "model" / file).read_bytes()


@pytest.mark.parametrize("name", FITTED)
def test_a_saved_model_predicts_the_same_to_the_bit(tmp_path, name):
    is_the_same_saved(tmp_path, calibrate.Calibrated(FITTED[name], 0.1, 1.5, 0.02), EVERY)


def test_so_does_one_that_learnt_from_networks(tmp_path):
    is_the_same_saved(tmp_path, CONDITIONED, MADE)


@pytest.fixture
def written(tmp_path):
    saved.save(tmp_path, FITTED["gaussian"], {})
    return tmp_path


def test_tensors_of_another_model_are_refused(written):
    good = (written / saved.TENSORS).read_bytes()
    (written / saved.TENSORS).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"is not the one that model\.json was written with"):
        saved.load(written)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(schema=99),
        lambda content: content["model"].update({"class": "Popen"}),
        lambda content: content["model"]["fields"].pop("rates"),
        lambda content: content.update(model={"tensor": "model.regressor.x"}),
        lambda content: content.pop("card"),
    ],
)
def test_what_is_no_model_of_ours_is_refused(written, change):
    content = json.loads((written / saved.MODEL).read_text())
    change(content)
    (written / saved.MODEL).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{written.name} holds no latency model.*write it again"):
        saved.load(written)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no latency model in .*nas latency fit"):
        saved.load(tmp_path)


def test_a_model_of_ones_own_class_is_not_saved_by_halves(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Mine(LatencyModel):
        def predict(self, calls):
            return Latency(1.0, 0.0)

    with pytest.raises(ValueError, match="a Mine cannot be saved"):
        saved.save(tmp_path / "mine", Mine(), {})
    assert not (tmp_path / "mine").exists()


# Whole networks.


def networks(count: int, factors: dict[type, float], seed: int = 0) -> list[Network]:
    """Networks that take, of each kind of op, a factor of what its calls take alone."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        program, x = [], ("image", 8)
        for step in range(int(rng.integers(3, 9))):
            op = (ResNet(8, 2, 1e-6), Transformer(2, 4, 2), Conv(8))[int(rng.integers(3))]
            reads = (x[0], "context") if isinstance(op, Transformer) else (x[0],)
            program.append(Step(f"s{step}", op, reads))
            x = (f"s{step}", 8)
        side = int(rng.choice((8, 12, 16)))
        whole = Whole(tuple(program), {"image": image(side, 8), "context": CONTEXT})
        parts = calls(whole.program, whole.inputs).values()
        ms = sum(factors[type(call.op)] * priced(call) for call in parts)
        found.append(Network(f"n{number}", whole, Latency(ms, 0.001 * ms)))
    return found


def priced(call: Call) -> float:
    return float(work(call) @ list(COST.values()))


KINDS = (ResNet, Transformer, Conv)
DIFFERENT = {ResNet: 0.7, Transformer: 1.3, Conv: 0.5}
SAME = dict.fromkeys(KINDS, 0.8)


def observed(found: list[Network]) -> list[tuple[tuple[Call, ...], Latency]]:
    return [(tuple(calls(*n.whole).values()), n.latency) for n in found]


MADE = tuple(dict.fromkeys(c for own, _ in observed(networks(12, SAME, seed=5)) for c in own))
ALONE = learned.fit({c: Latency(priced(c), 0.01 * priced(c)) for c in MADE}, gaussian.fit)
CONDITIONED = conditioned.fit(ALONE, observed(networks(24, DIFFERENT)))


def worst(model: LatencyModel, found: list[Network]) -> float:
    pairs, refused = of_networks(model, found)
    assert not refused
    return max(abs(pair.error) for pair in pairs)


class TestConditioned(LatencyModelLaws):
    model = CONDITIONED
    calls = MADE[:3]
    unknown = UNKNOWN


def test_kinds_that_lose_differently_to_fusion_are_told_apart():
    test = networks(20, DIFFERENT, seed=1)
    assert worst(CONDITIONED, test) < 0.15 < 0.4 < worst(ALONE, test)
    for call in MADE[:9]:
        found = CONDITIONED.predict([call] * 1000).ms / 1000
        assert found == pytest.approx(DIFFERENT[type(call.op)] * priced(call), rel=0.2)


def test_where_kinds_do_not_differ_what_is_learnt_of_them_does_not_either():
    found = conditioned.fit(ALONE, observed(networks(24, SAME)))
    common = [found.predict([c]).ms / ALONE.predict([c]).ms for c in MADE[:9]]
    assert max(common) / min(common) < 1.1
    assert worst(found, networks(20, SAME, seed=1)) < 0.04


def test_one_network_tells_what_all_calls_have_in_common():
    (one,) = networks(1, SAME)
    found, other = conditioned.fit(ALONE, observed([one])), networks(6, SAME, seed=3)
    assert worst(found, other) < 0.5 * worst(ALONE, other)


def test_every_network_makes_predictions_surer():
    """And a network that was seen is surer than one that was not."""
    many, few = (conditioned.fit(ALONE, observed(networks(n, SAME))) for n in (24, 2))
    ((seen, _),) = observed(networks(1, SAME))
    unseen = [call for own, _ in observed(networks(3, SAME, seed=7)) for call in own]
    assert many.predict(unseen).std < few.predict(unseen).std
    relative = [found.std / found.ms for found in map(few.predict, (seen, unseen))]
    assert relative[0] < relative[1]


def test_a_network_tells_of_calls_that_were_never_measured_alone():
    """A transformer of many positions was extrapolated to; networks that hold it are slower."""
    far = Call(Transformer(2, 4, 2), (image(64, 8), CONTEXT))
    slower = [
        ((*MADE[:3], *[far] * n), Latency(1.6 * ALONE.predict([far] * n).ms, 0.01))
        for n in (1, 2, 3)
    ]
    found = conditioned.fit(ALONE, [*observed(networks(12, SAME)), *slower])
    assert found.predict([far]).ms > 1.35 * ALONE.predict([far]).ms
    others = [c for c in MADE if type(c.op) is ResNet]
    assert found.predict(others).ms < 1.1 * ALONE.predict(others).ms


@pytest.mark.parametrize(("learnt", "times"), [(4, 12), (24, 2)])
def test_intervals_of_networks_hold_about_as_often_as_they_say(learnt, times):
    """Whether many were learnt from or few, which are wider as less is known of how wide to be."""
    rng = np.random.default_rng(0)

    def noisy(count: int, seed: int) -> list[Network]:
        return [
            n._replace(latency=Latency(n.latency.ms * float(np.exp(rng.normal(0, 0.05))), 0.001))
            for n in networks(count, DIFFERENT, seed)
        ]

    pairs = [
        pair
        for seed in range(times)
        for pair in of_networks(
            conditioned.fit(ALONE, observed(noisy(learnt, seed))), noisy(30, 100 + seed)
        )[0]
    ]
    assert 0.78 < np.mean([abs(pair.deviations) < 1.645 for pair in pairs]) < 0.97
    assert np.median([pair.predicted.std / pair.predicted.ms for pair in pairs]) < 0.13


class TestUnseen(LatencyModelLaws):
    model = conditioned.unseen(ALONE, MADE)
    calls = MADE[:3]
    unknown = UNKNOWN


def test_where_no_network_was_measured_sums_are_known_no_better_than_sums_usually_are(tmp_path):
    model = conditioned.unseen(ALONE, MADE)
    for call in MADE[:5]:
        assert model.predict([call]).ms == pytest.approx(ALONE.predict([call]).ms)
    many = [call for own, _ in observed(networks(3, SAME, seed=7)) for call in own]
    told, summed = model.predict(many), ALONE.predict(many)
    assert told.ms == pytest.approx(summed.ms)
    assert 0.1 < told.std / told.ms < 0.4 and told.std > 3 * summed.std
    few = conditioned.fit(ALONE, observed(networks(6, SAME))).predict(many)
    assert few.std / few.ms < told.std / told.ms
    saved.save(tmp_path / "model", model, {})
    assert saved.load(tmp_path / "model")[0].predict(many) == told


def test_without_networks_there_is_nothing_to_learn_from_them():
    with pytest.raises(ValueError, match="no networks to learn from"):
        conditioned.fit(ALONE, [])
    ((own, _),) = observed(networks(1, SAME))
    with pytest.raises(ValueError, match="took no time"):
        conditioned.fit(ALONE, [(own, Latency(0.0, 0.0))])
    with pytest.raises(UnknownCall, match="nothing like Downsample"):
        conditioned.fit(ALONE, [((UNKNOWN,), Latency(1.0, 0.0))])


def test_a_network_with_an_op_nobody_measured_is_refused_whole():
    (network,) = networks(1, {ResNet: 1.0, Transformer: 1.0, Conv: 1.0})
    program = (
        *network.whole.program,
        Step("last", Downsample(), (network.whole.program[-1].name,)),
    )
    strange = network._replace(whole=Whole(program, network.whole.inputs))
    pairs, refused = of_networks(FITTED["rates"], [strange])
    assert not pairs and refused == [strange]
    with pytest.raises(UnknownCall, match="nothing like Downsample"):
        FITTED["rates"].predict(calls(*strange.whole).values())


def test_calls_that_are_alike_are_wrong_alike():
    """Far from what was measured the process knows as little of a call as of its like."""
    model = FITTED["gaussian"]
    far = [Call(ResNet(width, 2, 1e-6), (image(64, 64),)) for width in (64, 66)]
    one, other = (model.predict([call]) for call in far)
    both = model.predict(far)
    assert both.ms == pytest.approx(one.ms + other.ms)
    assert both.std > 0.9 * (one.std + other.std)
    near, unlike = model.predict(SEEN[:1]), model.predict([*SEEN[:1], far[0]])
    assert unlike.std < 1.05 * math.hypot(near.std, one.std)


def test_a_call_alone_has_the_error_of_its_price():
    model = FITTED["gaussian"]
    assert isinstance(model, learned.Learned)
    for call in HELD_OUT:
        (price,) = model.price((call,))
        found = model.predict([call])
        assert (found.ms, found.std) == pytest.approx((price.ms, price.std), rel=3e-3)
