"""The judge of the hard problems, judged: by 60 digits, and by the refits of the oracle."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import oracle
import pytest
from cases import KERNELS, kernel_id
from support import judge

from selfdistill_fast import NTK, RBF

pytestmark = pytest.mark.skipif(not judge.WIDE, reason="long double is double here")

ALPHAS = oracle.alphas_of([0.3, -0.7, 1.6], 4)


def draw(rng, n=7, m=3):
    X = rng.standard_normal((n, 2))
    X[1], X[2] = X[0], X[0] + 1e-9
    weight = rng.uniform(0.1, 3.0, n)
    return X, rng.standard_normal((m, 2)), rng.standard_normal((n, 2)) + 1.0, weight


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)
def test_kernel_matrices_have_the_digits_of_long_double(kernel, offset, rng):
    X, X_new, _, _ = draw(rng)
    X, X_new = X + offset, X_new + offset
    actual = judge.kernel_matrix(kernel, X_new, X)
    expected = judge.to_long(judge.kernel_matrix(kernel, X_new, X, digits=True))
    assert actual.dtype == np.longdouble
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= 100 * judge.EPS


def test_angles_of_nearly_parallel_rows(rng):
    X = 1e8 + rng.standard_normal((4, 2))
    for depth in (1, 3):
        expected = judge.to_long(judge.kernel_matrix(NTK(depth), X, digits=True))
        error = np.abs(judge.kernel_matrix(NTK(depth), X) - expected) / expected
        assert error.max() <= 100 * judge.EPS


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("intercept", [False, True], ids=["no intercept", "intercept"])
def test_both_arithmetics_are_the_refits_of_the_oracle(weighted, intercept, rng):
    X, X_new, Y, weight = draw(rng)
    weight = weight if weighted else None
    K, K_new = (judge.kernel_matrix(RBF(0.5), A, X) for A in (X, X_new))
    doubles = K.astype(float), K_new.astype(float)
    models = oracle.chain(doubles[0], Y, 0.1, ALPHAS, weight, intercept)
    expected = oracle.predict(models, np.concatenate(doubles))
    with mp.workdps(judge.DIGITS):
        exact = tuple(judge.kernel_matrix(RBF(0.5), A, X, digits=True) for A in (X, X_new))
    problem = K, K_new, Y, 0.1, ALPHAS, weight, intercept
    by_long = judge.chain(*problem, error=1.0)
    by_digits = judge.chain(*problem, error=0.0, exact=lambda: exact)
    assert (by_long.error > 0).all()
    assert (by_digits.error == 0).all()
    assert np.abs(by_long.chain - expected).max() <= 1e-12
    assert (np.abs(by_long.chain - by_digits.chain).max((0, 1)) <= by_long.error).all()
    assert (np.abs(by_long.pure - by_digits.pure).max((0, 1)) <= by_long.error).all()

    labels = np.array([0, 1, 2, 2, 3, 0, 4])
    expected = oracle.leave_out(labels, doubles[0], Y, 0.1, ALPHAS, weight, intercept)
    problem = labels, K, Y, 0.1, ALPHAS, weight, intercept
    by_long = judge.leave_out(*problem, error=1.0)
    by_digits = judge.leave_out(*problem, error=0.0, exact=lambda: exact)
    assert np.abs(by_long.chain - expected).max() <= 1e-12
    assert (np.abs(by_long.chain - by_digits.chain).max((0, 1)) <= by_long.error).all()


def test_a_smooth_kernel_with_an_intercept_and_a_small_ridge(rng):
    """Rounding along q must not be amplified by the square of the condition number."""
    X = rng.standard_normal((11, 1))
    K, Y, weight = judge.kernel_matrix(RBF(0.05), X), np.sin(3 * X), rng.uniform(0.7, 2.5, 11)
    problem = K, K[:0], Y, 1e-8, oracle.alphas_of(0.0, 1), weight, True
    exact = judge.kernel_matrix(RBF(0.05), X, digits=True)
    by_long = judge.chain(*problem, error=1.0)
    by_digits = judge.chain(*problem, error=0.0, exact=lambda: (exact, exact[:0]))
    assert (np.abs(by_long.chain - by_digits.chain).max((0, 1)) <= by_long.error).all()


def test_all_rows_as_landmarks_are_the_kernel(rng):
    X, X_new, _, _ = draw(rng)
    X[1] += 0.5  # no equal rows: their K is singular in any number of digits
    K, K_new = judge.landmark_matrices(RBF(0.5), X, X_new, np.arange(len(X)))
    assert np.abs(judge.to_long(K) - judge.kernel_matrix(RBF(0.5), X)).max() <= 10 * judge.EPS
    error = np.abs(judge.to_long(K_new) - judge.kernel_matrix(RBF(0.5), X_new, X)).max()
    assert error <= 10 * judge.EPS


def test_what_no_arithmetic_can_judge_is_said(rng):
    X = rng.standard_normal((judge.MOST_ROWS + 1, 2))
    K = judge.kernel_matrix(RBF(0.5), X)
    with pytest.raises(judge.TooHard):
        judge.chain(K, K[:0], X, 1e-12, ALPHAS, None, False, error=1e-15)
