"""Laws of few-shot transfer, on made-up devices whose latencies are sums of op costs."""

import dataclasses
import json
import typing

import jax
import numpy as np
import pytest
from safetensors.numpy import load, save

from benchmarks import transfer as benchmark
from benchmarks.transfer import spearman
from benchmarks.transfer_spaces import describe
from latency_models import robust
from latency_models.choosing import choose
from latency_models.components import Component, grams, standardise
from latency_models.transfer import Adapted, adapt, learn
from latency_models.verify import best_within
from search_spaces.values import decode, encode

POSITIONS, OPTIONS, ARCHS = 5, 4, 250


def drawn(count: int = ARCHS) -> np.ndarray:
    return np.random.default_rng(0).integers(OPTIONS, size=(count, POSITIONS))


def described(codes: np.ndarray) -> tuple[Component, ...]:
    hot = np.eye(OPTIONS)[codes]
    return (
        Component("counts", hot.sum(1)),
        Component("by position", hot.reshape(len(codes), -1)),
        Component("pairs", hot.reshape(len(codes), -1), degree=2),
    )


def device(seed: int, codes: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """Latencies in ms of a device that adds up what its ops cost: two kinds of cost that all
    devices have more or less of, and some of its own."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    kinds = shared.gamma(1.5, size=(2, POSITIONS, OPTIONS))
    costs = np.tensordot(own.gamma(3.0, size=2), kinds, 1)
    costs = costs + 0.3 * own.gamma(2.0, size=(POSITIONS, OPTIONS))
    ms = 3 + costs[np.arange(POSITIONS), codes].sum(1)
    return ms * (1 + noise * own.normal(size=len(codes)))


def measured_at(latencies: np.ndarray, count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    seen = np.full(latencies.shape, np.nan)
    for row, ms in zip(seen, latencies, strict=True):
        indices = rng.choice(len(ms), count, replace=False)
        row[indices] = ms[indices]
    return seen


CODES = drawn()
COMPONENTS = described(CODES)
SOURCES = np.stack([device(seed, CODES, 0.02) for seed in range(3)])
TARGET = device(9, CODES)


@pytest.fixture(scope="module")
def prior():
    return learn(COMPONENTS, measured_at(SOURCES, 60))


@pytest.fixture(scope="module")
def archs(prior):
    return prior.encode(COMPONENTS)


def test_what_was_measured_without_noise_is_predicted_and_sure(prior, archs):
    indices = np.arange(32)
    prediction = adapt(prior, archs[indices], TARGET[indices]).predict(archs)
    wrong = np.abs(prediction.ms / TARGET - 1)
    assert wrong[:32].max() < 0.01
    assert prediction.std[:32].mean() < prediction.std[32:].mean()


def test_more_measurements_make_surer_and_better(prior, archs):
    rest = np.arange(100, ARCHS)
    found = [adapt(prior, archs[:n], TARGET[:n]).predict(archs[rest]) for n in (5, 8, 20, 32)]
    widths = [prediction.std.mean() for prediction in found]
    errors = [np.abs(prediction.mean - np.log(TARGET[rest])).mean() for prediction in found]
    assert widths == sorted(widths, reverse=True)
    assert errors[-1] < errors[1] < errors[0]


def test_with_sizes_given_no_measurement_widens_any_variance(prior, archs):
    """Exact for Gaussian noise; so of what `choose` reckons with."""
    few, more = (adapt(prior, archs[:n], TARGET[:n]) for n in (8, 20))
    rows = archs[200:220]

    def left(measured: np.ndarray) -> np.ndarray:
        size = few.sizes[0]

        def kernel(a, b):
            blocks = [(a[:, i:j] @ b[:, i:j].T) ** d for i, j, d in prior.parts]
            return 1 + np.tensordot(np.exp(size[:-1]), blocks, 1)

        noisy = kernel(measured, measured) + np.exp(size[-1]) * np.eye(len(measured))
        cross = kernel(rows, measured)
        return np.diag(kernel(rows, rows) - cross @ np.linalg.solve(noisy, cross.T))

    assert (left(more.measured) <= left(few.measured) + 1e-9).all()


@pytest.mark.parametrize("factor", [0.01, 37.0])
def test_a_device_so_many_times_slower_is_predicted_so_many_times_slower(prior, archs, factor):
    indices = np.arange(20)
    slow, fast = (
        adapt(prior, archs[indices], scale * TARGET[indices]).predict(archs)
        for scale in (factor, 1.0)
    )
    np.testing.assert_allclose(slow.ms, factor * fast.ms, rtol=1e-6)
    np.testing.assert_allclose(slow.std, fast.std, rtol=1e-6, atol=1e-9)


def test_units_of_source_devices_do_not_matter(prior, archs):
    units = np.array([1.0, 1000.0, 0.1])[:, None]
    other = learn(COMPONENTS, units * measured_at(SOURCES, 60))
    np.testing.assert_allclose(other.encode(COMPONENTS), archs, rtol=1e-6, atol=1e-8)


def test_latencies_not_measured_are_ignored(prior, archs):
    """What a source did not measure may be anything: the prior has never seen it."""
    seen = measured_at(SOURCES, 60)
    everything = measured_at(np.where(np.isnan(seen), 1e6, SOURCES), ARCHS)
    everything[np.isnan(seen)] = np.nan
    np.testing.assert_array_equal(learn(COMPONENTS, everything).encode(COMPONENTS), archs)


def test_a_scaled_copy_of_a_source_is_learnt_from_five_measurements(prior, archs):
    copied = 2.5 * device(2, CODES)
    indices = choose(prior.beliefs(), archs, 5)
    known = adapt(prior, archs[indices], copied[indices]).predict(archs)
    alone = learn(COMPONENTS, np.zeros((0, ARCHS)))
    plain = alone.encode(COMPONENTS)
    unaided = adapt(alone, plain[indices], copied[indices]).predict(plain)
    assert spearman(known.mean, copied) > 0.97
    error = [np.abs(p.mean - np.log(copied)).mean() for p in (known, unaided)]
    assert error[0] < 0.5 * error[1]


def test_intervals_hold_as_often_as_they_say(prior, archs):
    held = []
    for seed in range(10, 22):
        latency = device(seed, CODES, 0.05)
        indices = np.random.default_rng(seed).choice(ARCHS, 20, replace=False)
        prediction = adapt(prior, archs[indices], latency[indices]).predict(archs)
        rest = np.setdiff1d(np.arange(ARCHS), indices)
        off = np.abs(prediction.mean - np.log(latency)) / prediction.std
        held.append(np.mean(off[rest] < 1.645))
    assert 0.83 < np.mean(held) < 0.985


def test_one_measurement_gone_wrong_does_little_harm(prior, archs):
    indices = np.arange(32)
    hot = TARGET[indices].copy()
    hot[3] *= 3
    rest = np.arange(32, ARCHS)
    good, bad = (adapt(prior, archs[indices], ms).predict(archs[rest]) for ms in (TARGET[:32], hot))
    assert np.abs(bad.ms / good.ms - 1).mean() < 0.02


def test_the_same_twice(prior, archs):
    again = learn(COMPONENTS, measured_at(SOURCES, 60))
    indices = choose(prior.beliefs(), archs, 8)
    np.testing.assert_array_equal(choose(again.beliefs(), archs, 8), indices)
    one, two = (adapt(p, archs[indices], TARGET[indices]).predict(archs) for p in (prior, again))
    np.testing.assert_array_equal(one.mean, two.mean)
    np.testing.assert_array_equal(one.std, two.std)


def test_a_prediction_does_not_depend_on_what_else_is_asked(prior, archs):
    predictor = adapt(prior, archs[:20], TARGET[:20])
    whole, part = predictor.predict(archs), predictor.predict(archs[7:11])
    np.testing.assert_allclose(part.mean, whole.mean[7:11], rtol=1e-9)


def test_unseen_architectures_are_encoded_as_seen_ones(prior, archs):
    np.testing.assert_allclose(prior.encode(described(CODES[5:9])), archs[5:9], atol=1e-12)


def test_every_latency_is_positive_and_its_interval_finite(prior, archs):
    """Even where the sum of parts, far from what was measured, is negative; order is kept."""
    slow = np.argsort(TARGET)[-60::3]
    steep = TARGET - 0.95 * TARGET[slow].min()
    assert np.mean(steep < 0) > 0.5
    prediction = adapt(prior, archs[slow], steep[slow]).predict(archs)
    assert np.isfinite(prediction.mean).all() and np.isfinite(prediction.std).all()
    assert spearman(prediction.mean, TARGET) > 0.9


def test_sizes_are_kept_as_often_as_the_measurements_find_them_likely(prior, archs):
    """Each expectation over them is the one over all that were drawn, weighed by evidence."""
    predictor = adapt(prior, archs[:8], TARGET[:8])
    drawn = prior.mixture.draw(2048)
    with jax.enable_x64(True):
        kernels = grams(archs[:8], archs[:8], parts=prior.parts)
        latency = TARGET[:8] / predictor.typical_ms
        found = robust.condition_each(drawn, kernels, latency, np.ones(8, bool), rounds=5)
        again = robust.condition_each(predictor.sizes, kernels, latency, np.ones(8, bool), rounds=5)
    evidence, kept = np.asarray(found.evidence), np.asarray(again.evidence).mean()

    def expected(power: float) -> float:
        return float(np.average(evidence, weights=np.exp(power * (evidence - evidence.max()))))

    assert expected(0.7) < kept < expected(1.4)
    weights = np.exp(evidence - evidence.max())
    right = np.average(drawn, axis=0, weights=weights)
    assert (np.abs(predictor.sizes.mean(0) - right) < 0.5 * drawn.std(0)).all()


def test_what_a_source_measured_may_stand_for_its_function(prior, archs):
    exact = prior.encode(COMPONENTS, SOURCES)
    width = exact.shape[1] - len(SOURCES)
    np.testing.assert_array_equal(exact[:, :width], archs[:, :width])
    ranks = [spearman(a, b) for a, b in zip(exact.T[width:], SOURCES, strict=True)]
    assert min(ranks) > 0.999
    unmeasured = np.full(SOURCES.shape, np.nan)
    np.testing.assert_array_equal(prior.encode(COMPONENTS, unmeasured), archs)


def test_chosen_samples_teach_more_than_random_ones(prior, archs):
    def left(indices: np.ndarray) -> float:
        predictions = [
            adapt(prior, archs[indices], device(seed, CODES)[indices]).predict(archs)
            for seed in range(10, 14)
        ]
        truths = [device(seed, CODES) for seed in range(10, 14)]
        errors = [np.abs(p.mean - np.log(t)) for p, t in zip(predictions, truths, strict=True)]
        return float(np.mean(errors))

    rng = np.random.default_rng(3)
    random = [left(rng.choice(ARCHS, 8, replace=False)) for _ in range(4)]
    assert left(choose(prior.beliefs(), archs, 8)) < np.mean(random)


def test_an_architecture_like_a_measured_one_is_not_worth_measuring(prior, archs):
    twins = np.concatenate([archs[:8], archs[:8], archs[200:201]])
    predictor = adapt(prior, twins[:8], TARGET[:8])
    assert choose(predictor.beliefs(), twins, 1, exclude=np.arange(8)) == 16


def test_choices_differ_and_leave_out_what_is_excluded(prior, archs):
    indices = choose(prior.beliefs(), archs, 30, exclude=np.arange(100))
    assert len(set(indices.tolist())) == 30 and indices.min() >= 100
    first = choose(prior.beliefs(), archs, 5, exclude=np.arange(100))
    np.testing.assert_array_equal(first, indices[:5])
    twins = choose(prior.beliefs(), archs[[7, 7, 7]], 3)
    assert sorted(twins.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, a: adapt(p, a[:2], [1.0, -1.0]), "finite and positive"),
        (lambda p, a: adapt(p, a[:2], [1.0, np.nan]), "finite and positive"),
        (lambda p, a: adapt(p, a[:2], [1.0]), "a latency for every row"),
        (lambda p, a: adapt(p, a[:0], []), "at least one"),
        (lambda p, a: adapt(p, a[:2, 1:], [1.0, 2.0]), "prior.encode"),
        (lambda p, a: adapt(p, a[:2], [1.0, 2.0]).predict(a[:, 1:]), "prior.encode"),
        (lambda p, a: p.encode(COMPONENTS[:1]), "not those fitted on"),
        (lambda p, a: p.encode(COMPONENTS, SOURCES[:2]), "2 devices; this knows 3"),
        (lambda p, a: choose(p.beliefs(), a, ARCHS + 1), "cannot choose 251 of 250"),
        (lambda p, a: choose(p.beliefs(), a, 1, exclude=np.arange(ARCHS)), "1 of 0"),
        (lambda p, a: learn(COMPONENTS, SOURCES[:, :-1]), "a column for every architecture"),
        (lambda p, a: learn(COMPONENTS, -SOURCES), "must be positive"),
        (lambda p, a: learn(COMPONENTS, measured_at(SOURCES, 4)), "4 measurements"),
        (lambda p, a: learn((), SOURCES), "no components"),
        (lambda p, a: standardise((COMPONENTS[0], Component("x", np.ones((2, 1))))), "differ in"),
        (lambda p, a: Component("x", np.full((2, 1), np.nan)), "not finite"),
        (lambda p, a: Component("x", np.ones((2, 1)), degree=3), "1 or 2"),
        (lambda p, a: Component("x", np.ones(2)), "a row for every architecture"),
    ],
)
def test_bad_input_is_one_clear_error(prior, archs, change, message):
    with pytest.raises(ValueError, match=message):
        change(prior, archs)


def test_devices_that_are_like_each_other_teach_that_the_next_is_like_them():
    alike = np.stack([factor * device(0, CODES, 0.02) for factor in (1, 2, 3)])
    unlike = np.stack([np.random.default_rng(s).gamma(3.0, size=ARCHS) for s in range(3)])
    found = [
        learn(COMPONENTS, measured_at(each, 60)).mixture.centres[0, -2] for each in (alike, unlike)
    ]
    assert found[0] > found[1] + 1


def test_a_source_on_which_ops_act_in_pairs_is_learnt_as_such():
    paired = 2 + 3.0 * (CODES[:, 0] == CODES[:, 1]) + (CODES[:, 2] == CODES[:, 4])
    prior = learn(COMPONENTS, measured_at(paired[None], 200))
    assert np.corrcoef(prior.encode(COMPONENTS)[:, -1], paired)[0, 1] > 0.9


def test_a_single_source_teaches_too():
    prior = learn(COMPONENTS, measured_at(SOURCES[:1], 60))
    archs = prior.encode(COMPONENTS)
    copied = device(0, CODES)
    prediction = adapt(prior, archs[:5], copied[:5]).predict(archs)
    assert spearman(prediction.mean, copied) > 0.97


def test_the_rest_of_the_process_stays_in_float32(prior, archs):
    adapt(prior, archs[:5], TARGET[:5]).predict(archs)
    choose(prior.beliefs(), archs, 2)
    assert jax.numpy.ones(1).dtype == jax.numpy.float32


def test_a_predictor_is_saved_like_any_other_model(prior, archs):
    """It is dataclasses of arrays, scalars and tuples of them: nothing else is stored."""
    predictor = adapt(prior, archs[:5], TARGET[:5])
    tensors: dict[str, np.ndarray] = {}

    def taken_apart(value, name: str):
        if isinstance(value, np.ndarray):
            tensors[name] = value
            return name
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [field.name for field in dataclasses.fields(value)]
            return {f: taken_apart(getattr(value, f), f"{name}.{f}") for f in fields}
        return encode(value)

    def put_together(cls, stored):
        hints = typing.get_type_hints(cls)
        return cls(
            **{
                name: put_together(hints[name], value)
                if isinstance(value, dict)
                else tensors[value]
                if hints[name] is np.ndarray
                else decode(value)
                for name, value in stored.items()
            }
        )

    text = json.dumps(taken_apart(predictor, "model"), allow_nan=False)
    tensors = load(save(tensors))
    again = put_together(Adapted, json.loads(text))
    np.testing.assert_array_equal(again.prior.encode(COMPONENTS), archs)
    np.testing.assert_array_equal(again.predict(archs).mean, predictor.predict(archs).mean)


def test_what_is_chosen_within_a_limit_was_measured_and_fits(prior, archs):
    quality = TARGET + np.random.default_rng(5).normal(size=ARCHS)  # Slower is better.
    indices = list(range(12))
    asked: list[int] = []

    def measure(index: int) -> float:
        asked.append(index)
        return float(TARGET[index])

    for limit in np.quantile(TARGET, [0.2, 0.5, 0.8]):
        asked.clear()
        predictor = adapt(prior, archs[:12], TARGET[:12])
        choice = best_within(
            limit, quality, archs, predictor, indices, TARGET[:12].tolist(), measure, extra=8
        )
        assert choice.arch is not None and TARGET[choice.arch] <= limit
        assert choice.measured == (*indices, *asked) and len(asked) <= 8
        assert quality[limit >= TARGET].max() - quality[choice.arch] < 1.0


def test_where_nothing_fits_nothing_is_chosen(prior, archs):
    predictor = adapt(prior, archs[:5], TARGET[:5])
    arguments = (archs, predictor, range(5), TARGET[:5], lambda index: float(TARGET[index]))
    assert best_within(1e-3, TARGET, *arguments, extra=2).arch is None
    with pytest.raises(ValueError, match="both positive"):
        best_within(0.0, TARGET, *arguments, extra=2)
    with pytest.raises(ValueError, match="as many qualities"):
        best_within(1.0, TARGET[1:], *arguments, extra=2)


def test_columns_of_a_table_become_components():
    codes = drawn(20)
    columns = {f"op{i}": codes[:, i] for i in range(POSITIONS)}
    columns |= {"arch_idx": np.arange(20), "flops": codes.sum(1) * 1e6, "top1": np.ones(20)}
    components, used = describe(columns)
    assert [c.name for c in components] == [
        "op counts", "op nearby", "op by position", "numbers", "pairs"
    ]  # fmt: skip
    assert set(used) == {*(f"op{i}" for i in range(POSITIONS)), "flops"}
    np.testing.assert_array_equal(components[0].features.sum(1), POSITIONS)
    with pytest.raises(ValueError, match="nothing describes"):
        describe({"arch_idx": np.arange(3)})


def test_cells_that_differ_in_dead_ops_have_equal_graphs():
    conv = "nor_conv_3x3"
    # Nothing leads from node 2 to 3, and from node 1 only to 2: all that leads there is dead.
    cells = [
        f"|{first}~0|+|{conv}~0|{second}~1|+|{conv}~0|none~1|none~2|"
        for first, second in ((conv, conv), ("none", conv), (conv, "skip_connect"))
    ]
    cells.append(f"|{conv}~0|+|{conv}~0|{conv}~1|+|{conv}~0|{conv}~1|none~2|")
    components, used = describe({"arch_str": np.array(cells), "flops": np.arange(4.0)})
    assert "arch_str" in used
    graphs = [c for c in components if c.name.startswith(("live", "graph"))]
    assert len(graphs) == 4
    for component in graphs:
        for dead in component.features[1:3]:
            np.testing.assert_array_equal(component.features[0], dead)
        assert (component.features[0] != component.features[3]).any()
    with pytest.raises(ValueError, match="no NAS-Bench-201 cell"):
        describe({"arch_str": np.array([f"|{conv}~0|+|{conv}~0|"]), "flops": np.ones(1)})


def test_the_benchmark_runs_on_any_table_of_its_form(tmp_path, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    codes = drawn(120)
    archs = {"arch_idx": np.arange(120), "flops": codes.sum(1) + 1.0}
    archs |= {f"op{i}": codes[:, i] for i in range(POSITIONS)}
    latency = {f"d{seed}": device(seed, codes, 0.01) for seed in range(4)}
    latency["d3"][5] = np.nan
    parquet.write_table(pyarrow.table(archs), tmp_path / "archs.parquet")
    table = pyarrow.table({"arch_idx": np.arange(120), **latency})
    parquet.write_table(table, tmp_path / "latency_ms.parquet")
    task = {"space": "made-up", "sources": ["d0", "d1"], "targets": ["d2", "d3"], "budget": 60}
    task |= {"samples": 8, "published": {"others": 0.5}}
    (tmp_path / "T.json").write_text(json.dumps(task))

    benchmark.main((str(tmp_path / "T.json"),), data=tmp_path, seeds=1)
    printed = capsys.readouterr().out
    assert "## T: 8 samples" in printed and "| FLOPs |" in printed and "d3" in printed

    found = benchmark.load(str(tmp_path / "T.json"))
    space = benchmark.space_of(found, tmp_path)
    scores = benchmark.run(found, space, (5, 8), 1, oracle=True, protocol=False)
    assert list(scores) == [5, 8]
    (row,) = scores[8]["**ours**"]
    assert min(score.rank for score in row) > 0.9 and all(0 <= s.within <= 1 for s in row)
    with pytest.raises(ValueError, match="no latencies of d7"):
        space.table(("d7",))
    with pytest.raises(SystemExit, match="no task nowhere"):
        benchmark.load("nowhere")
