"""Least squares and low-rank factors: the numerics of surgery, in float64 on the host."""

import numpy as np
import scipy.linalg


def refit(
    values: np.ndarray,
    wanted: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    *,
    ridge: float = 1e-4,
) -> tuple[np.ndarray, np.ndarray]:
    """The linear map from `values` `[rows, in]` that comes nearest to `wanted` `[rows, out]`.

    Least squares, drawn towards `kernel` `[in, out]` where the data say little: `ridge` is the
    weight of that pull, in mean variances of the values. Returns a kernel and a bias.
    """
    values, wanted = values.astype(np.float64), wanted.astype(np.float64)
    mean, target = values.mean(0), wanted.mean(0)
    centred = values - mean
    gram = centred.T @ centred
    residual = wanted - target - centred @ kernel
    gram[np.diag_indices_from(gram)] += ridge * max(np.trace(gram) / len(gram), 1e-12)
    fitted = kernel + scipy.linalg.solve(gram, centred.T @ residual, assume_a="pos")
    return fitted, target - mean @ fitted


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
    return first, roots[..., :, None] * right[..., :rank, :]
