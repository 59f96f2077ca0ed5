import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.fitting import factors, refit, root
from tests.drawn import normal


def test_a_linear_map_is_found_again():
    values, kernel, bias = normal(0, 200, 6), normal(1, 6, 4), normal(2, 4)
    found, offset = refit(values, values @ kernel + bias, np.zeros((6, 4)))
    np.testing.assert_allclose(found, kernel, atol=1e-4)
    np.testing.assert_allclose(offset, bias, atol=1e-4)


def test_what_the_data_do_not_show_stays_as_it_was():
    """The last input never varies: its row of the kernel is not touched."""
    values, kernel = normal(0, 200, 6), normal(1, 6, 4)
    values[:, -1] = 3.0
    found, offset = refit(values, normal(3, 200, 4), kernel)
    np.testing.assert_allclose(found[-1], kernel[-1], atol=1e-9)
    assert np.isfinite(offset).all()


def test_noise_does_not_lead_away_from_a_good_kernel():
    """Twelve rows cannot tell sixteen inputs apart: the fit stays near what it was given."""
    values, kernel = normal(0, 12, 16), normal(1, 16, 4)
    noisy = values @ kernel + 3 * normal(2, 12, 4)
    found, offset = refit(values, noisy, kernel)
    fresh = normal(4, 500, 16)
    fitted = np.square(fresh @ found + offset - fresh @ kernel).mean()
    plain, *_ = np.linalg.lstsq(values, noisy, rcond=None)
    assert fitted < 0.5 * np.square(fresh @ plain - fresh @ kernel).mean()


@settings(max_examples=20)
@given(st.integers(0, 100), st.integers(1, 4))
def test_factors_are_nearest_by_what_comes_out(seed, rank):
    """No other product of this rank is nearer, for inputs with the Gram matrix given."""
    values, matrix = normal(seed, 40, 5) @ normal(seed + 1, 5, 5), normal(seed + 2, 5, 7)
    first, second = factors(matrix.astype(np.float64), rank, (values.T @ values).astype(np.float64))
    assert first.shape == (5, rank) and second.shape == (rank, 7)
    _, sizes, _ = np.linalg.svd(values @ matrix, full_matrices=False)
    best = np.square(sizes[rank:]).sum()
    found = np.square(values @ (first @ second) - values @ matrix).sum()
    assert found <= best * (1 + 1e-3) + 1e-6 * np.square(sizes).sum()


def test_a_root_times_itself_is_the_matrix_and_its_inverse_undoes_it():
    values = normal(0, 3, 20, 4).astype(np.float64)
    gram = np.swapaxes(values, 1, 2) @ values
    forth, back = root(gram)
    np.testing.assert_allclose(forth @ forth, gram, rtol=1e-8)
    np.testing.assert_allclose(forth @ back, np.broadcast_to(np.eye(4), (3, 4, 4)), atol=1e-8)
