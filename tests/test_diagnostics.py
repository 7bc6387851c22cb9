"""What the diagnostics compute, on numbers small enough to follow by hand.

Their theorems (4.3 and 4.5) are in test_theorems.py.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import oracle
import pytest
from tolerance import assert_close, host

from selfdistill_fast import RBF, distill, limit_shrinkage, shrinkage_path, spectrum
from selfdistill_fast.diagnostics import (
    convergence_rate,
    effective_dof,
    ratio_sign,
    shrinkage_ratios,
    steps_to_tolerance,
)


def test_by_hand():
    """d = (1, 3), λ = 1: a = (1/2, 3/4)."""
    d = np.array([1.0, 3.0])
    np.testing.assert_array_equal(
        shrinkage_path(d, 1.0, 0.0, 3), [[0.5, 0.75], [0.25, 0.5625], [0.125, 0.421875]]
    )
    np.testing.assert_array_equal(shrinkage_path(d, 1.0, 0.5, 2), [[0.5, 0.75], [0.375, 0.65625]])
    assert_close(limit_shrinkage(d, 1.0, 0.5), np.array([1 / 3, 0.6]), 1e-15)
    assert_close(shrinkage_ratios(d, 1.0, 0.0, 2), np.array([[1.5], [2.25]]), 1e-15)
    assert_close(shrinkage_ratios(d, 1.0, 0.5, 2), np.array([[1.5], [1.75]]), 1e-15)
    np.testing.assert_array_equal(ratio_sign(3.0, 1.0, 1.0, 0.5, 2), [1])
    assert_close(effective_dof(d, 1.0, 0.5, 2), np.array([1.25, 1.03125]), 1e-15)
    assert_close(convergence_rate(d, 1.0, 0.5), 0.375, 1e-15)
    assert convergence_rate(d, 1.0, 1.0) == 0.0


def test_effective_dof_is_the_trace_of_the_smoother(backend, rng):
    """The sum of ∂y_i^(τ)/∂y_i, by differences: the chain is linear in y."""
    X = rng.standard_normal((9, 2))
    s = spectrum(X, np.eye(9), RBF(0.5), backend=backend)
    alphas = [0.3, -0.4, 1.2]
    S = distill(s, 0.2, alphas, 4).predict(X, step="all")
    expected = np.trace(S, axis1=1, axis2=2)
    assert_close(effective_dof(host(s.d), 0.2, alphas, 4), expected, 1e-12)


def test_alphas_may_differ_between_steps():
    d = np.array([0.5, 2.0, 9.0])
    alphas = [0.1, 0.9, 0.4]
    B = shrinkage_path(d, 0.3, alphas, 4)
    assert_close(shrinkage_ratios(d, 0.3, alphas, 4), B[:, 1:] / B[:, :-1], 1e-14)
    c = oracle.weights_of([np.nan, *alphas])
    a = d / (d + 0.3)
    assert_close(B[-1], sum(c[k] * a ** (k + 1) for k in range(4)), 1e-14)


def test_a_ratio_over_a_zero_eigenvalue_is_not_a_number_that_misleads():
    """B_k/B_j needs d_j > 0: nan or inf, never a finite value."""
    R = shrinkage_ratios(np.array([0.0, 1.0, 2.0]), 0.5, 0.3, 3)
    assert not np.isfinite(R[:, 0]).any()
    assert np.isfinite(R[:, 1]).all()
    with pytest.raises(ValueError, match="d_j"):
        ratio_sign(1.0, 0.0, 0.5, 0.3, 3)


def test_ratio_sign_needs_ordered_eigenvalues():
    with pytest.raises(ValueError, match="d_k"):
        ratio_sign(0.5, 1.0, 0.5, 0.3, 3)
    with pytest.raises(ValueError, match="d_k"):
        ratio_sign(1.0, 1.0, 0.5, 0.3, 3)


def exact_signs(d_k, d_j, lam, alpha, n_steps):
    """Signs of the changes of B_k/B_j, from the recursion (12) in rational numbers."""
    a_k, a_j = (Fraction(d) / (Fraction(d) + Fraction(lam)) for d in (d_k, d_j))
    alpha = Fraction(alpha)
    B_k, B_j, signs = a_k, a_j, []
    for _ in range(n_steps - 1):
        b_k, b_j = (a * ((1 - alpha) * B + alpha) for a, B in ((a_k, B_k), (a_j, B_j)))
        change = b_k * B_j - b_j * B_k
        signs.append((change > 0) - (change < 0))
        B_k, B_j = b_k, b_j
    return signs


def test_ratio_sign_of_converged_ratios(rng):
    """Ratios whose change is far below their rounding still have the sign of that change."""
    n_steps, both = 12, 0
    for _ in range(300):
        d_k = 10.0 ** rng.uniform(-8, 8)
        d_j = d_k * 10.0 ** -(10.0 ** rng.uniform(-6, 1))
        alpha = rng.choice([rng.uniform(0, 1), 10.0 ** rng.uniform(-12, 0)])
        lam = d_k * 10.0 ** rng.uniform(-8, 8)
        expected = exact_signs(d_k, d_j, lam, alpha, n_steps)
        assert ratio_sign(d_k, d_j, lam, alpha, n_steps).tolist() == expected
        both += len(set(expected)) > 1
    assert both > 50


def test_ratio_sign_of_a_change_that_is_zero():
    """At step 3 (15) is the sign of d_k d_j − α λ²."""
    assert exact_signs(2.0, 0.25, 1.0, 0.5, 4) == [1, 0, -1]
    assert ratio_sign(2.0, 0.25, 1.0, 0.5, 4).tolist() == [1, 0, -1]
    for lam in (1e-3, 1.0, 7.0):  # zero to rounding
        assert ratio_sign(2.3 * lam, 0.3 / 2.3 * lam, lam, 0.3, 3).tolist() == [1, 0]


def test_ratio_sign_of_many_steps():
    """Thousands of steps at λ far above both eigenvalues: large powers of (d + λ)/d."""
    signs = ratio_sign(2.0, 1.0, 1e6, 0.5, 5000)
    assert signs[0] == 1
    assert (signs[1:] == -1).all()
    assert (ratio_sign(2.0, 1.0, 1e-6, 0.5, 5000) == 1).all()


def test_steps_to_tolerance_by_hand():
    """rate 3/8, distance at step 1: 3/4 − 3/5 = 0.15 and 1/2 − 1/3 = 1/6 at rate 1/4."""
    d = np.array([1.0, 3.0])
    B, limit = shrinkage_path(d, 1.0, 0.5, 40), limit_shrinkage(d, 1.0, 0.5)
    for tol in (0.2, 0.1, 1e-2, 1e-6, 1e-12):
        steps = steps_to_tolerance(d, 1.0, 0.5, tol)
        assert np.abs(B[steps - 1] - limit).max() <= tol
    assert steps_to_tolerance(d, 1.0, 1.0, 1e-12) == 1  # α = 1 is at its limit at once


@pytest.mark.parametrize("tol", [0.0, -1.0, np.nan, "small"])
def test_steps_to_tolerance_needs_a_positive_tolerance(tol):
    with pytest.raises((TypeError, ValueError), match="tol"):
        steps_to_tolerance(np.array([1.0]), 1.0, 0.5, tol)


def test_steps_to_a_limit_that_does_not_exist():
    with pytest.raises(ValueError, match=r"limit|converge"):
        steps_to_tolerance(np.array([1e6]), 1.0, 2.5, 1e-3)
