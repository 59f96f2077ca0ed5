"""Least squares and low-rank factors: the numerics of surgery, in float64 on the host."""

from collections.abc import Iterator, Sequence

import numpy as np

RIDGES = (1e-6, 1e-4, 1e-2, 1.0, 100.0)


def refit(
    values: np.ndarray, wanted: np.ndarray, kernel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The linear map from `values` `[rows, in]` that comes nearest to `wanted` `[rows, out]`.

    Least squares, drawn towards `kernel` `[in, out]` where the data say little. The weight of that
    pull, in mean variances of the values, is one of `RIDGES`: the one that does best on the last
    quarter of the rows when the others are fitted. Returns a kernel and a bias.
    """
    values, wanted = values.astype(np.float64), wanted.astype(np.float64)
    last = len(values) - len(values) // 4
    tries = list(_pulled(values[:last], wanted[:last], kernel, RIDGES))
    errors = [np.square(values[last:] @ k + b - wanted[last:]).sum() for k, b in tries]
    return next(_pulled(values, wanted, kernel, (RIDGES[int(np.argmin(errors))],)))


def _pulled(
    values: np.ndarray, wanted: np.ndarray, kernel: np.ndarray, ridges: Sequence[float]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The fits of `refit` for each weight of the pull."""
    mean, target = values.mean(0), wanted.mean(0)
    centred = values - mean
    variances, axes = np.linalg.eigh(centred.T @ centred)
    towards = axes.T @ (centred.T @ (wanted - target - centred @ kernel))
    for ridge in ridges:
        pull = ridge * max(float(variances.mean()), 1e-12)
        fitted = kernel + axes @ (towards / (np.maximum(variances, 0.0) + pull)[:, None])
        yield fitted, target - mean @ fitted


def root(gram: np.ndarray, *, ridge: float = 1e-6) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric square roots of Gram matrices `[..., n, n]`, and their inverses."""
    values, vectors = np.linalg.eigh(gram)
    floor = ridge * np.maximum(values[..., -1:], 1e-12)
    roots = np.sqrt(np.maximum(values, floor))
    transposed = np.swapaxes(vectors, -1, -2)
    scaled = vectors * roots[..., None, :]
    return scaled @ transposed, (vectors / roots[..., None, :]) @ transposed


def factors(
    matrices: np.ndarray, rank: int, gram: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices `[..., n, m]` as products of `[..., n, rank]` and `[..., rank, m]`.

    The product is the nearest of that rank: by the squares of its entries or, with the Gram
    matrices `[..., n, n]` of what is multiplied by it, by the squares of what comes out.
    """
    forth, back = root(gram) if gram is not None else (np.eye(matrices.shape[-2]),) * 2
    left, values, right = np.linalg.svd(forth @ matrices, full_matrices=False)
    roots = np.sqrt(values[..., :rank])
    first = back @ (left[..., :, :rank] * roots[..., None, :])
    second = roots[..., :, None] * right[..., :rank, :]
    more = [(0, 0)] * (matrices.ndim - 2)  # With a rank above full, zeros are left over.
    missing = (0, rank - roots.shape[-1])
    return np.pad(first, [*more, (0, 0), missing]), np.pad(second, [*more, missing, (0, 0)])
