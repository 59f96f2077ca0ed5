"""Gradient-boosted trees as arrays: fitted by LightGBM, evaluated in JAX.

What goes in is a matrix of features, what comes out is the logarithm of milliseconds and its
standard error, which is that of rows the trees had not seen.

Ke et al., "LightGBM: a highly efficient gradient boosting decision tree" (2017); Barber et al.,
"Predictive inference with the jackknife+" (2021) for the errors of rows left out.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from latency_models.learned import Regressor

OPTIONS: Mapping[str, Any] = {
    "objective": "regression",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 5,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
}
ROUNDS = 600
FOLDS = 5

COVERAGES = (0.5, 0.8, 0.9, 0.95)
"""Shares of rows left out that lie within the stored distances of their prediction."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trees:
    """A sum of regression trees. Arrays are `[trees, nodes]`, node 0 the root of each.

    A row goes to `left` where its `feature` is at most `threshold`, and else to `right`. A leaf
    leads to itself. `value` is that of leaves, and zero elsewhere.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    depth: int

    def __call__(self, x: np.ndarray | jax.Array) -> np.ndarray:
        """The sums for the rows of `x`, `[rows, features]`. Raises `ValueError` on what is not
        finite, and where there are fewer features than the trees read."""
        x = np.asarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] <= self.feature.max(initial=-1):
            raise ValueError(
                f"features of shape {x.shape}; expected a matrix of at least "
                f"{self.feature.max(initial=-1) + 1} columns"
            )
        if not np.isfinite(x).all():
            raise ValueError(f"features that are not finite, in columns {_not_finite(x)}")
        # Padded to few different lengths, since each is compiled once.
        padded = np.pad(x, ((0, _length(len(x)) - len(x)), (0, 0)))
        return np.asarray(_evaluate(padded, *self._arrays, depth=self.depth))[: len(x)]

    @functools.cached_property
    def _arrays(self) -> tuple[jax.Array, ...]:
        widen = (self.feature, self.left, self.right)
        feature, left, right = (jnp.asarray(array, jnp.int32) for array in widen)
        return feature, jnp.asarray(self.threshold), left, right, jnp.asarray(self.value)


def _length(rows: int) -> int:
    """The least power of two that is not less, 64 or more."""
    return max(64, 1 << (rows - 1).bit_length())


def _not_finite(x: np.ndarray) -> list[int]:
    return [int(i) for i in np.flatnonzero(~np.isfinite(x).all(axis=0))]


@functools.partial(jax.jit, static_argnames="depth")
def _evaluate(
    x: jax.Array,
    feature: jax.Array,
    threshold: jax.Array,
    left: jax.Array,
    right: jax.Array,
    value: jax.Array,
    *,
    depth: int,
) -> jax.Array:
    rows = jnp.arange(len(x))

    def one(total: jax.Array, tree: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        feature, threshold, left, right, value = tree

        def step(_: int, node: jax.Array) -> jax.Array:
            low = x[rows, feature[node]] <= threshold[node]
            return jnp.where(low, left[node], right[node])

        node = jax.lax.fori_loop(0, depth, step, jnp.zeros(len(x), jnp.int32))
        return total + value[node], None

    total, _ = jax.lax.scan(
        one, jnp.zeros(len(x), jnp.float32), (feature, threshold, left, right, value)
    )
    return total


def fit(
    x: np.ndarray,
    y: np.ndarray,
    *,
    options: Mapping[str, Any] = OPTIONS,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Trees:
    """Trees that map rows of `x` to `y`. Raises `ImportError` without LightGBM."""
    return from_lightgbm(boost(x, y, options=options, rounds=rounds, seed=seed))


def boost(
    x: np.ndarray, y: np.ndarray, *, options: Mapping[str, Any], rounds: int, seed: int = 0
) -> Any:
    """LightGBM's own booster, which sees features in single precision as `Trees` does."""
    try:
        import lightgbm
    except ImportError as error:
        raise ImportError(
            "fitting trees takes LightGBM; install it: pip install 'nas[lab]'"
        ) from error
    fixed = {"verbose": -1, "num_threads": 1, "seed": seed, "deterministic": True}
    fixed |= {"use_missing": False, "force_row_wise": True}
    data = lightgbm.Dataset(np.asarray(x, np.float32), np.asarray(y, np.float64), params=fixed)
    return lightgbm.train({**options, **fixed}, data, rounds)


def from_lightgbm(booster: Any) -> Trees:
    """The trees of a booster that has neither categories nor missing values."""
    trees = [list(_nodes(tree["tree_structure"])) for tree in booster.dump_model()["tree_info"]]
    nodes = max(map(len, trees), default=1)
    shape = len(trees), nodes
    feature, left, right = (np.zeros(shape, np.int16) for _ in range(3))
    threshold, value = (np.zeros(shape, np.float32) for _ in range(2))
    left[:], right[:] = np.arange(nodes), np.arange(nodes)
    for i, tree in enumerate(trees):
        places = {node["path"]: at for at, node in enumerate(tree)}
        for at, node in enumerate(tree):
            if "split_feature" in node:
                feature[i, at], threshold[i, at] = node["split_feature"], _below(node["threshold"])
                left[i, at], right[i, at] = (places[node["path"] + side] for side in "lr")
            else:
                value[i, at] = node["leaf_value"]
    depth = max((len(node["path"]) for tree in trees for node in tree), default=0)
    return Trees(feature, threshold, left, right, value, depth)


def _nodes(node: Mapping[str, Any], path: str = "") -> Iterator[dict[str, Any]]:
    """The nodes of a tree and the way to each from the root, which comes first."""
    if node.get("decision_type", "<=") != "<=":
        raise ValueError(f"a split by {node['decision_type']!r}; only numbers are compared")
    yield {**node, "path": path}
    if "split_feature" in node:
        yield from _nodes(node["left_child"], path + "l")
        yield from _nodes(node["right_child"], path + "r")


def _below(threshold: float) -> np.float32:
    """The largest single that is not above `threshold`: it splits singles in the same way."""
    near = np.float32(threshold)
    return near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf))


@dataclasses.dataclass(frozen=True, eq=False)
class Boosted(Regressor):
    """Trees as a regressor of features, all with one error: that of rows left out."""

    trees: Trees
    std: float

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = self.trees(x)
        return mean, np.full(len(mean), self.std)


def boosted(x: np.ndarray, y: np.ndarray, std: np.ndarray, *, rounds: int = ROUNDS) -> Boosted:
    """A `learned.Fit`. Rows count alike, whatever their own error `std`: the trees' is larger."""
    found, _ = regress(x, y, np.zeros(len(y), int), range(len(y)), number=1, rounds=rounds)
    return Boosted(found.trees, float(found.std[0]))


@dataclasses.dataclass(frozen=True, eq=False)
class Stratified:
    """Predicts logarithms of milliseconds, with errors by stratum (the kind of op, say).

    `std[s]` is the deviation of rows of stratum `s` that were left out of the fit, and
    `distance[s, c]` how far from its prediction the share `COVERAGES[c]` of them lies at most.
    """

    trees: Trees
    std: np.ndarray  # [strata]
    distance: np.ndarray  # [strata, coverages]

    def __call__(self, x: np.ndarray, strata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the logarithms of the rows of `x`, `[rows]` each."""
        return self.trees(x), self.std[self._known(strata)]

    def interval(self, strata: np.ndarray, coverage: float) -> np.ndarray:
        """How far to either side of the mean logarithm the interval goes, `[rows]`."""
        if coverage not in COVERAGES:
            raise ValueError(f"no interval of {coverage}; there are {COVERAGES}")
        return self.distance[self._known(strata), COVERAGES.index(coverage)]

    def _known(self, strata: np.ndarray) -> np.ndarray:
        strata = np.asarray(strata)
        if not np.isin(strata, np.arange(len(self.std))).all():
            raise ValueError(f"strata {np.unique(strata)}; the fit knows {len(self.std)}")
        if unseen := sorted(set(strata[~np.isfinite(self.std[strata])].tolist())):
            raise ValueError(f"strata {unseen} were not among what the trees were fitted on")
        return strata


def regress(
    x: np.ndarray,
    y: np.ndarray,
    strata: np.ndarray,
    groups: Sequence[Any],
    *,
    number: int,
    options: Mapping[str, Any] = OPTIONS,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> tuple[Stratified, np.ndarray]:
    """Fits trees on all rows, and their errors on rows left out; returns those predictions too.

    Rows of one group (a network, say) are left out together, in `FOLDS` folds. `number` is how
    many strata there are; one that has no row has no error and predicting it raises.
    """
    names = sorted(set(groups))
    if len(names) < FOLDS:
        raise ValueError(f"{len(names)} groups make no {FOLDS} folds; give more networks")
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = {name: int(order[i]) % FOLDS for i, name in enumerate(names)}
    fold = np.array([fold_of[group] for group in groups])
    left_out = np.empty(len(y))
    for k in range(FOLDS):
        part = fit(x[fold != k], y[fold != k], options=options, rounds=rounds, seed=seed)
        left_out[fold == k] = part(x[fold == k])
    errors = y - left_out
    std = np.full(number, np.nan, np.float32)
    distance = np.full((number, len(COVERAGES)), np.nan, np.float32)
    for s in np.unique(strata):
        mine = errors[strata == s]
        std[s] = np.sqrt(np.mean(mine**2))
        distance[s] = [conformal(np.abs(mine), coverage) for coverage in COVERAGES]
    trees = fit(x, y, options=options, rounds=rounds, seed=seed)
    return Stratified(trees, std, distance), left_out


def conformal(distances: np.ndarray, coverage: float) -> float:
    """The quantile that covers a new distance with at least this probability; of too few
    distances, the largest."""
    rank = int(np.ceil((len(distances) + 1) * coverage))
    return float(np.sort(distances)[min(rank, len(distances)) - 1])
