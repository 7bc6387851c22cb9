"""The paper's theorems as executable statements, each with its conditions.

Signs and strict inequalities are judged in exact rational arithmetic: (12) is rational
in d, λ and α, and every float is a fraction.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import oracle
import pytest
import tolerance
from hypothesis import assume, given
from hypothesis import strategies as st
from tolerance import assert_close

from selfdistill_fast import (
    RBF,
    Matern,
    distill,
    limit_shrinkage,
    optimal_alpha,
    shrinkage_path,
    spectrum,
)
from selfdistill_fast.diagnostics import (
    convergence_rate,
    effective_dof,
    ratio_sign,
    shrinkage_ratios,
    steps_to_tolerance,
)

seeds = st.integers(0, 2**16)
ridges = st.sampled_from([1e-4, 0.01, 0.2, 1.0, 7.0, 300.0])
inside = st.floats(0.0, 1.0)
signed = st.floats(-3.0, 4.0).map(lambda a: round(a, 9))  # no subnormal numbers
#: eigenvalues spread over the magnitudes that a kernel matrix has
eigenvalues = st.builds(lambda m, e: m * 2.0**e, st.floats(1.0, 2.0), st.integers(-20, 10))


def problem(seed, n, p=1, m=4):
    rng = np.random.default_rng(seed)
    X, X_new = rng.standard_normal((n, 2)), rng.standard_normal((m, 2))
    return X, rng.standard_normal((n, p)), X_new


def exact_B(d, lam, alphas):
    """[B^(1)], ..., [B^(T)] of one eigenvalue by the recursion (12), as fractions."""
    a = Fraction(d) / (Fraction(d) + Fraction(lam))
    B = [a]
    for alpha in alphas:
        alpha = Fraction(alpha)
        B.append(a * ((1 - alpha) * B[-1] + alpha))
    return B


def sign(x):
    return (x > 0) - (x < 0)


# ------------------------------------------------------------------ Theorem 4.1


@given(data=st.data())
def test_theorem_4_1_equation_6(data, backend):
    """y^(τ) is a polynomial in K(K + λI)^-1: the matrix powers, written out."""
    n = data.draw(st.integers(1, 10), label="n")
    lam = data.draw(ridges, label="lam")
    alphas = data.draw(st.lists(inside, min_size=4, max_size=4), label="alphas")
    X, Y, _ = problem(data.draw(seeds, label="seed"), n)
    K = oracle.kernel_matrix(Matern(1.0, 0.5), X)
    A = K @ np.linalg.inv(K + lam * np.eye(n))
    s = spectrum(X, Y, Matern(1.0, 0.5), backend=backend)
    actual = distill(s, lam, alphas, 5).predict(X, step="all")
    alpha = dict(zip(range(2, 6), alphas, strict=True))

    def eta(i, tau):
        return math.prod(1 - alpha[j] for j in range(i, tau + 1))

    for tau in range(1, 6):
        S = eta(2, tau) * np.linalg.matrix_power(A, tau)
        for i in range(2, tau + 1):
            S = S + alpha[i] * eta(i + 1, tau) * np.linalg.matrix_power(A, tau - i + 1)
        rtol = tolerance.chain(oracle.d_max(K), lam)
        assert_close(actual[tau - 1], S @ Y, rtol, np.abs(Y).max(), f"step {tau}")


@given(data=st.data())
def test_theorem_4_1_equation_7(data, backend):
    """f^(τ) = α f^(1) + (1 − α) f_{α=0}^(τ) at any point; α is not confined to [0, 1] here."""
    n = data.draw(st.integers(1, 10), label="n")
    lam = data.draw(ridges, label="lam")
    tau = data.draw(st.integers(2, 6), label="tau")
    *before, last = data.draw(
        st.lists(st.floats(-2, 3), min_size=tau - 1, max_size=tau - 1), label="alphas"
    )
    X, Y, X_new = problem(data.draw(seeds, label="seed"), n)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    actual = distill(s, lam, [*before, last], tau).predict(X_new)
    first = distill(s, lam, [*before, last], tau).predict(X_new, step=1)
    without_truth = distill(s, lam, [*before, 0.0], tau).predict(X_new)
    scale = (abs(last) + abs(1 - last)) * max(np.abs(first).max(), np.abs(without_truth).max())
    assert_close(actual, last * first + (1 - last) * without_truth, 1e-11, scale)
    # and f_{α=0}^(τ) is a refit on the predictions of the step before
    if tau > 2:
        teacher = distill(s, lam, before, tau - 1).predict(X)
    else:
        teacher = distill(s, lam, 0.0, 1).predict(X)
    K, K_new = oracle.kernel_matrix(RBF(0.5), X), oracle.kernel_matrix(RBF(0.5), X_new, X)
    refit = K_new @ oracle.ridge(K, teacher, lam)[0]
    c = oracle.weights_of([np.nan, *before])
    rtol = tolerance.chain(oracle.d_max(K), lam, c)
    assert_close(without_truth, refit, rtol, max(np.abs(first).max(), np.abs(refit).max()))


# ------------------------------------------------------------------ Lemma 4.2


@given(
    st.lists(st.just(0.0) | eigenvalues, min_size=1, max_size=6),
    ridges,
    st.lists(st.floats(-2, 3), max_size=5),
)
def test_lemma_4_2_recursion(d, lam, alphas):
    """(12) gives the same B as the explicit sum (11), for any real α's."""
    d = np.array(sorted(d))
    B = shrinkage_path(d, lam, alphas, len(alphas) + 1)
    assert B.shape == (len(alphas) + 1, len(d))
    for k, d_k in enumerate(d):
        exact = exact_B(d_k, lam, alphas)
        scale = 1.0
        for t, value in enumerate(exact):
            scale = max(scale, abs(float(value)))
            assert abs(B[t, k] - float(value)) <= tolerance.FORMULA * scale * 6
        c = oracle.weights_of([np.nan, *alphas])
        a = d_k / (d_k + lam)
        explicit = sum(c_j * a ** (j + 1) for j, c_j in enumerate(c))
        assert abs(B[-1, k] - explicit) <= 1e-13 * max(1, np.abs(c).sum())


@given(st.lists(eigenvalues, min_size=1, max_size=6), ridges, inside)
def test_lemma_4_2_decrease(d, lam, alpha):
    """Constant α in [0, 1]: B in [0, 1] and never increasing; strictly decreasing where
    α < 1 and d_k > 0, by exactly ((1 − α) a_k)^τ (1 − a_k)."""
    d, T = np.array(sorted(d)), 8
    B = shrinkage_path(d, lam, alpha, T)
    assert ((B >= 0) & (B <= 1)).all()
    assert (np.diff(B, axis=0) <= 1e-15).all()
    a = d / (d + lam)
    tau = np.arange(1, T)[:, None]
    drop = ((1 - alpha) * a) ** tau * lam / (d + lam)
    assert_close(B[:-1] - B[1:], drop, tolerance.FORMULA, 1.0)
    for d_k in d:  # strict, in exact arithmetic
        exact = exact_B(d_k, lam, [alpha] * (T - 1))
        assert all(0 < b < 1 for b in exact)
        falls = [later < earlier for earlier, later in pairwise(exact)]
        assert all(falls) if alpha < 1 else not any(falls)
    visible = drop > 1e-13 * B[1:]
    assert (B[1:] < B[:-1])[visible].all()


def test_lemma_4_2_is_not_strict_for_alpha_one_or_a_zero_eigenvalue():
    B = shrinkage_path(np.array([0.0, 2.0]), 0.5, 1.0, 5)
    np.testing.assert_array_equal(B[:, 1], B[0, 1])
    for alpha in (0.0, 0.3, 1.0):
        np.testing.assert_array_equal(shrinkage_path(np.array([0.0]), 0.5, alpha, 5), 0.0)


def test_lemma_4_2_needs_a_constant_alpha():
    """With α stepping from 0 to 1, B falls and rises again."""
    B = shrinkage_path(np.array([1.0]), 1.0, [0.0, 1.0], 3)[:, 0]
    assert B[1] < B[0]
    assert B[2] > B[1]


def test_a_batch_of_lams_has_a_leading_axis(rng):
    d, lams = np.sort(rng.uniform(0, 5, 7)), np.array([0.01, 0.5, 20.0])
    batch = shrinkage_path(d, lams, 0.3, 4)
    assert batch.shape == (3, 4, 7)
    for lam, B in zip(lams, batch, strict=True):
        np.testing.assert_array_equal(shrinkage_path(d, lam, 0.3, 4), B)


# ------------------------------------------------------------------ Theorem 4.3


@given(st.lists(eigenvalues, min_size=2, max_size=6, unique=True), ridges)
def test_theorem_4_3_equation_14(d, lam):
    """R_k for α = 1 is constant, for α = 0 a power that grows with τ."""
    d, T = np.array(sorted(d)), 5
    base = (1 + lam / d[:-1]) / (1 + lam / d[1:])
    tau = np.arange(1, T + 1)[:, None]
    assert shrinkage_ratios(d, lam, 0.0, T).shape == (T, len(d) - 1)
    for k in range(len(d) - 1):
        one, zero = (shrinkage_ratios(d, lam, alpha, T)[:, k] for alpha in (1.0, 0.0))
        assert_close(one, np.full(T, base[k]), 1e-13)
        assert_close(zero, base[k] ** tau[:, 0], 1e-13)
        if base[k] > 1 + 1e-12:
            assert (np.diff(zero) > 0).all()


@given(eigenvalues, eigenvalues, ridges, st.floats(0.01, 0.99))
def test_theorem_4_3_equation_15(d_k, d_j, lam, alpha):
    """The sign that (15) predicts from step τ − 1 is the sign of the change to step τ."""
    d_j, d_k = sorted((d_j, d_k))
    assume(d_k > d_j * (1 + 1e-6))
    T = 5
    B_k, B_j = (exact_B(d, lam, [alpha] * (T - 1)) for d in (d_k, d_j))
    ratios = [k / j for k, j in zip(B_k, B_j, strict=True)]
    predicted = ratio_sign(d_k, d_j, lam, alpha, T)
    assert np.shape(predicted) == (T - 1,)
    for t in range(T - 1):
        change = ratios[t + 1] - ratios[t]
        A_k, A_j = B_k[0], B_j[0]
        inner = (ratios[t] - A_k / A_j) * A_j / (B_k[t] * (A_k - A_j)) + 1
        margin = 1 / inner - Fraction(alpha)
        assert sign(margin) == sign(change)  # (15) itself, exactly
        # near a tie floats cannot tell; the quantity cancels like (A_k − A_j)/A_k
        if abs(margin) > 1e-9 * max(1, float(A_k / (A_k - A_j))):
            assert predicted[t] == sign(change)


def test_theorem_4_3_both_signs_occur():
    """Without ground truth the spectrum spreads; with it the spread can shrink again."""
    signs = ratio_sign(10.0, 0.1, 0.5, 0.4, 6)
    exact = [k / j for k, j in zip(*(exact_B(d, 0.5, [0.4] * 5) for d in (10.0, 0.1)), strict=True)]
    expected = [sign(b - a) for a, b in pairwise(exact)]
    np.testing.assert_array_equal(signs, expected)
    assert {-1, 1} <= set(expected)
    for alpha in (0.0, 1.0, -0.1, 1.1):  # the theorem is about the open interval
        with pytest.raises(ValueError, match="alpha"):
            ratio_sign(2.0, 0.5, 0.5, alpha, 6)


# ------------------------------------------------------------------ Theorem 4.4


@given(data=st.data())
def test_theorem_4_4_optimality(data, backend):
    """For any real α's before it, α* of eq. (16) minimises the validation error of step τ."""
    n = data.draw(st.integers(2, 8), label="n")
    lam = data.draw(st.sampled_from([0.01, 0.2, 1.0, 7.0]), label="lam")
    before = data.draw(st.lists(st.floats(-1, 2), max_size=3), label="alphas before")
    other = data.draw(st.floats(-4, 4), label="another α")
    X, y, X_val = problem(data.draw(seeds, label="seed"), n, m=6)
    y_val = np.sin(X_val[:, 0])
    s = spectrum(X, y[:, 0], RBF(0.5), backend=backend)
    tau = len(before) + 2

    def f(alpha):
        return distill(s, lam, [*before, alpha], tau).predict(X_val)

    def error(alpha):
        return np.sum((y_val - f(alpha)) ** 2)

    first, student = distill(s, lam, 0.0, 1).predict(X_val), f(0.0)
    gap = np.sum((student - first) ** 2)
    assume(gap > 1e-6)
    best = optimal_alpha(y_val, first, student)
    # the error is a parabola in α with its vertex there
    size = (np.sum(y_val**2) + gap) * (1 + abs(best)) ** 2 * (1 + abs(other)) ** 2
    assert abs(error(other) - error(best) - (other - best) ** 2 * gap) <= 1e-10 * size


# ------------------------------------------------------------------ Theorem 4.5


@given(data=st.data())
def test_theorem_4_5_limit_is_ridge_with_lam_over_alpha(data, backend):
    """Both lines of (17), and the limit of the chain itself."""
    n = data.draw(st.integers(1, 10), label="n")
    lam = data.draw(st.sampled_from([1e-3, 0.2, 5.0]), label="lam")
    alpha = data.draw(st.floats(0.05, 1.0), label="alpha")
    intercept = data.draw(st.booleans(), label="intercept")
    X, Y, X_new = problem(data.draw(seeds, label="seed"), n)
    K, K_new = oracle.kernel_matrix(RBF(0.5), X), oracle.kernel_matrix(RBF(0.5), X_new, X)
    s = spectrum(X, Y, RBF(0.5), fit_intercept=intercept, backend=backend)
    path = distill(s, lam, alpha, 2)
    limit = path.predict(X_new, step=math.inf)
    rtol = tolerance.chain(oracle.d_max(K), lam)
    dual, b = oracle.ridge(K, Y, lam / alpha, intercept=intercept)
    assert_close(limit, K_new @ dual + b, rtol, None, "K(K + λ/α I)^-1 y")
    assert_close(path.dual_coef(math.inf), dual, rtol, np.abs(Y).max() / lam, "dual")
    gamma, b_gamma = oracle.ridge(K, K @ dual + b, lam, intercept=intercept)
    first, student = path.predict(X_new, step=1), K_new @ gamma + b_gamma
    scale = max(np.abs(first).max(), np.abs(student).max())
    assert_close(limit, alpha * first + (1 - alpha) * student, rtol, scale, "α f¹ + (1 − α) f(γ)")
    # (1 − α)^τ < 1e-17 from some τ on
    steps = math.ceil(-17 / math.log10(1 - alpha)) + 1 if alpha < 1 else 1
    late = distill(s, lam, alpha, steps).predict(X_new)
    assert_close(late, limit, rtol, scale, f"step {steps}")


@given(data=st.data())
def test_theorem_4_5_linear_rate(data, backend):
    """Each step brings every coordinate closer by (1 − α) a_k; the whole at that of the largest."""
    lam = data.draw(ridges, label="lam")
    alpha = data.draw(st.floats(0.05, 0.95), label="alpha")
    d = np.array(sorted(data.draw(st.lists(eigenvalues, min_size=1, max_size=6), label="d")))
    B, limit = shrinkage_path(d, lam, alpha, 8), limit_shrinkage(d, lam, alpha)
    assert_close(limit, d / (d + lam / alpha), tolerance.FORMULA)
    rate = (1 - alpha) * d / (d + lam)
    assert_close((B - limit)[1:], (B - limit)[:-1] * rate, tolerance.FORMULA, 1.0)
    assert_close(convergence_rate(d, lam, alpha), rate.max(), tolerance.FORMULA)
    # ‖y^(τ) − y^(∞)‖ on the training rows of a problem with these eigenvalues
    K = np.diag(d)
    y = np.random.default_rng(data.draw(seeds, label="seed")).standard_normal(len(d))
    path = distill(spectrum(K, y, "precomputed", backend=backend), lam, alpha, 8)
    gap = np.linalg.norm(path.predict(K, step="all") - path.predict(K, step=math.inf), axis=1)
    noise = 1e-13 * np.linalg.norm(y)
    assert (gap[1:] <= rate.max() * gap[:-1] + noise).all()


@given(st.lists(eigenvalues, min_size=1, max_size=5), ridges, signed)
def test_limit_exists_exactly_where_the_chain_converges(d, lam, alpha):
    """|(1 − α) a_k| < 1 for all k; then α d/(α d + λ), also for α outside [0, 1]."""
    d = np.array(sorted(d))
    largest = max(abs((1 - Fraction(alpha)) * exact_B(v, lam, [])[0]) for v in d)
    assume(abs(largest - 1) > 1e-9)
    if largest < 1:
        expected = alpha * d / (alpha * d + lam)
        assert_close(limit_shrinkage(d, lam, alpha), expected, 1e-12)
        assert_close(convergence_rate(d, lam, alpha), float(largest), 1e-13)
    else:
        with pytest.raises(ValueError, match=r"limit|converge"):
            limit_shrinkage(d, lam, alpha)


def test_limit_of_no_ground_truth_is_zero(backend, rng):
    """α = 0 collapses to the zero function; an intercept survives."""
    X, Y, X_new = problem(5, 8, p=2)
    for intercept in (False, True):
        s = spectrum(X, Y, RBF(0.5), fit_intercept=intercept, backend=backend)
        limit = distill(s, 0.1, 0.0, 3).predict(X_new, step=math.inf)
        expected = np.broadcast_to(Y.mean(0) if intercept else 0.0, limit.shape)
        assert_close(limit, expected, 1e-14, 1.0)
    np.testing.assert_array_equal(limit_shrinkage(np.array([0.0, 1.0, 9.0]), 0.1, 0.0), 0.0)


# ------------------------------------------------------------------ what the diagnostics say


@given(st.lists(st.just(0.0) | eigenvalues, min_size=1, max_size=6), ridges, inside)
def test_effective_degrees_of_freedom(d, lam, alpha):
    """The trace of the smoother: Σ_k B_kk, decreasing in τ, at most the rank."""
    d = np.array(sorted(d))
    dof = effective_dof(d, lam, alpha, 6)
    assert_close(dof, shrinkage_path(d, lam, alpha, 6).sum(1), tolerance.FORMULA, max(1.0, dof[0]))
    assert (np.diff(dof) <= tolerance.FORMULA * len(d)).all()
    assert dof[0] <= np.count_nonzero(d)


@given(
    st.lists(eigenvalues, min_size=1, max_size=6),
    ridges,
    st.floats(0.05, 1.0),
    st.sampled_from([1e-1, 1e-3, 1e-8]),
)
def test_steps_to_tolerance(d, lam, alpha, tol):
    """From that step on the chain is within tol of its limit, and the step is not generous:
    its bound, rate^τ, is not met one step earlier."""
    d = np.array(sorted(d))
    steps = steps_to_tolerance(d, lam, alpha, tol)
    assert steps == int(steps) >= 1
    B = shrinkage_path(d, lam, alpha, int(steps))
    assert np.abs(B[-1] - limit_shrinkage(d, lam, alpha)).max() <= tol * (1 + 1e-12)
    assert steps <= 1 + max(
        0, math.ceil(math.log(tol) / math.log(max(convergence_rate(d, lam, alpha), 1e-300)))
    )
