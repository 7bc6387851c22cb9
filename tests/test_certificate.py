"""The certificate of Krylov runs and their tolerance, judged by long double on hard problems."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from certificate_judge import draw, judge, kernel_matrix, pure_steps

from selfdistill_fast import (
    NTK,
    RBF,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
    distill,
    gram,
    spectrum,
)
from selfdistill_fast._solvers.krylov.bounds import entry_rounding, magnitudes

pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 1e-18, reason="long double has no more digits than double here"
)
DATA = Path(__file__).parent / "data"
#: inputs that exceeded an earlier certificate, with a long-double reference of every pure step
CASES = {
    "10043": (Laplacian(0.0035612344169653584), {"lam_min": 2.17e-4, "n_steps": 4, "tol": 2.76e-5}),
    "10151": (
        Polynomial(3, 0.07675326425865363, 1.0),
        {"lam_min": 0.5466403098602063, "n_steps": 5, "tol": 6.85e-12, "storage": "none"},
    ),
    "70521": (NTK(2), {"lam_min": 26356692.374644477, "n_steps": 2, "tol": 9.52e-9}),
}
KERNELS = [
    RBF(0.1),
    RBF(30.0),
    Laplacian(0.3),
    Matern(0.7, 0.5),
    Matern(2.0, 1.5),
    Matern(0.3, 2.5),
    Polynomial(3, 0.2, 1.0),
    Polynomial(2, 0.2, -0.3),
    Linear(),
    NTK(1),
    NTK(4),
]


def run(*arguments, **options):
    """A Krylov spectrum, and whether it warned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        s = spectrum(*arguments, solver="krylov", **options)
    return s, [str(one.message) for one in caught]


def error_of(s, X, y, lams, **options):
    """Largest error of each pure step with the ridges ``lams`` at the training rows, (T,)."""
    K = kernel_matrix(s.kernel, X, X)
    exact = pure_steps(K, K, y.reshape(len(X), -1), lams, None, options.get("fit_intercept"))
    if len(set(lams)) == 1:
        steps = s.pure_steps(lams[0], len(lams))
    else:  # [τ, T]: the whole schedule up to its step τ
        W = s.pure_steps(None, len(lams), np.asarray(lams))
        steps = np.stack([W[t, t] for t in range(len(lams))])
    return np.abs(s.evaluate(X, steps) - exact).astype(float).max((1, 2))


@pytest.mark.parametrize("name", CASES)
def test_cases_that_exceeded_an_earlier_certificate(name):
    with np.load(DATA / f"certificate-{name}.npz") as case:
        kernel, options = CASES[name]
        w = case.get("sample_weight")
        lam, n_steps = float(case["lam"]), int(case["n_steps"])
        s, warned = run(
            case["X"], case["y"], kernel, fit_intercept=True, sample_weight=w, **options
        )
        error = np.abs(s.evaluate(case["X_new"], s.pure_steps(lam, n_steps)) - case["reference"])
        scale = np.abs(s.Y).max(0)
        assert (error <= s.certificate(lam, n_steps, case["X_new"])).all()
        assert (error.max(1) <= 1e-12 * scale).all()  # as eigh and tridiagonal
        assert not warned
        assert np.abs(s.q @ s.V).max() < 1e-14  # short directions of the targets, too


@pytest.mark.parametrize("first", range(0, 80, 20))
def test_hard_problems(first):
    for seed in range(first, first + 20):
        assert max(judge(draw(seed))[:3]) <= 1.0, seed


@pytest.mark.parametrize("seed", [307062, 408168])
def test_problems_that_exceeded_an_earlier_version(seed):
    # residuals not quite orthogonal to q, far from 0; roots of weights in float32
    assert max(judge(draw(seed))[:3]) <= 1.0


def test_predictions_that_overflow_are_refused():
    with pytest.raises(ValueError, match="predictions overflow float32"):
        judge(draw(207813))


def test_every_step_is_within_the_tolerance_or_there_is_a_warning(rng):
    X = rng.normal(size=(100, 3))
    y = np.sin(X.sum(1)) + 0.1 * rng.normal(size=100)
    s, warned = run(X, y, RBF(5.0), lam=1e3, tol=1e-10, n_steps=12, max_rank=1)
    error = error_of(s, X, y, [1e3] * 12)
    assert error.max() > 1e3 * s.tol * np.abs(y).max()
    assert "max_rank=1 was reached" in warned[0]
    s, warned = run(X, y, RBF(5.0), lam=1e3, tol=1e-10, n_steps=12)
    assert not warned
    assert error_of(s, X, y, [1e3] * 12).max() <= s.tol * np.abs(y).max()


@pytest.mark.parametrize("intercept", [False, True])
def test_unwarned_runs_of_few_vectors_are_within_their_tolerance(rng, intercept):
    silent = 0
    X = rng.normal(size=(40, 2))
    y = np.cos(X[:, 0]) + 0.1 * rng.normal(size=40)
    scale = np.abs(y - intercept * y.mean()).max()
    for rank in (1, 2, 4, 8, 16):
        for lam in (1.0, 1e2, 1e5):
            options = {"tol": 1e-7, "n_steps": 10, "max_rank": rank, "fit_intercept": intercept}
            s, warned = run(X, y, RBF(0.5), lam_min=lam, **options)
            for larger in (1.0, 3.0):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    error = error_of(s, X, y, [larger * lam] * 10, fit_intercept=intercept)
                if not warned and not caught:
                    silent += 1
                    assert error.max() <= s.tol * scale
    assert 10 <= silent < 30


def test_a_larger_ridge_is_checked_when_it_is_asked_for(rng):
    # the residual of a later step may vanish at one λ and not at a larger one
    X = rng.normal(size=(80, 2))
    y = X[:, 0] + 0.1 * rng.normal(size=80)
    for lam in 10.0 ** np.arange(-1.0, 3.0):
        s, warned = run(X, y, RBF(0.3), lam_min=lam, tol=1e-6, n_steps=8)
        assert not warned
        for factor in (1.3, 2.0, 5.0, 20.0):
            error = error_of(s, X, y, [factor * lam] * 8)
            assert error.max() <= s.tol * np.abs(y).max()


def test_schedules_and_limits_are_within_the_tolerance(rng):
    X = rng.normal(size=(70, 2))
    y = np.sin(2.0 * X[:, 0]) + 0.1 * rng.normal(size=70)
    schedule = [30.0, 0.01, 5.0, 0.3, 0.01, 100.0]
    s, warned = run(X, y, RBF(0.5), lam=100.0, tol=1e-6, n_steps=2)
    error = error_of(s, X, y, schedule)
    assert not warned
    assert error.max() <= s.tol * np.abs(y).max()
    K = kernel_matrix(RBF(0.5), X, X)
    for alpha in (0.2, 0.9, 1.5):
        F = distill(s, 0.02, alpha, 2).predict(X, np.inf)
        exact = pure_steps(K, K, y[:, None], [0.02 / alpha], None, False)[0, :, 0]
        assert np.abs(F - exact).max() <= s.tol * np.abs(y).max()


def test_a_schedule_that_cannot_be_met_is_warned_of(rng):
    X = rng.normal(size=(100, 3))
    y = np.sin(3.0 * X.sum(1))
    s, _ = run(X, y, RBF(0.8), lam=1e3, tol=1e-6, max_rank=12)
    with pytest.warns(RuntimeWarning, match="max_rank=12 was reached"):
        s.pure_steps(None, 3, np.array([10.0, 1e-2, 5.0]))


@pytest.mark.parametrize("backend_steps", [1, 6])
def test_the_warning_names_a_ridge_from_which_all_steps_are_good(rng, backend_steps):
    X = rng.normal(size=(120, 3))
    y = np.sin(2.0 * X.sum(1))
    for tol, rank in ((1e-4, 10), (1e-8, 40)):
        s, warned = run(X, y, RBF(0.4), lam=1e-3, tol=tol, n_steps=backend_steps, max_rank=rank)
        lam = float(warned[0].split("lam >= ")[1].split(",")[0])
        limit = tol * np.abs(y).max()
        assert s.certificate(lam, backend_steps).max() <= limit
        assert error_of(s, X, y, [lam] * backend_steps).max() <= limit
        assert error_of(s, X, y, [lam / 30.0] * backend_steps).max() > limit


def test_rounding_that_exceeds_the_tolerance_is_warned_of(rng):
    X = rng.normal(size=(30, 2))
    _, warned = run(X, X[:, 0], RBF(1e-3), lam=1e-13, tol=1e-10)
    assert "below rounding" in warned[0]
    _, warned = run(X, 1e9 + 1e-4 * X[:, 0], RBF(1.0), lam=1.0, fit_intercept=True)
    assert "for no lam" in warned[0]


def test_at_given_rows(rng):
    X = rng.normal(size=(50, 2))
    y = X[:, 0] + 0.1 * rng.normal(size=50)
    far = np.concatenate([X, 1e3 * X[:5]])
    for intercept in (False, True):
        s = spectrum(X, y, Linear(), solver="krylov", lam=[1.0, 10.0], fit_intercept=intercept)
        plain, rows = s.certificate([1.0, 10.0], 3), s.certificate([1.0, 10.0], 3, far)
        assert plain.shape == (2, 3, 1)
        assert rows.shape == (2, 3, 55, 1)
        assert (rows[:, :, :50] <= plain[:, :, None] * (1 + 1e-12)).all()
        assert (rows[:, :, 50:] > 10.0 * rows[:, :, :5]).all()
        assert np.array_equal(s.certificate(1.0, 2, far), rows[0, :2])
    s = spectrum(X.astype(np.float32), y, Polynomial(4), solver="krylov", lam=100.0)
    bound = s.certificate(100.0, 2, np.float32([[1.0, 1.0], [1e18, 0.0]]))
    assert np.isfinite(bound[:, 0]).all()
    assert np.isinf(bound[:, 1]).all()  # as the predictions
    s = spectrum(X @ X.T, y, "precomputed", solver="krylov", lam=1.0)
    with pytest.raises(ValueError, match="omit X"):
        s.certificate(1.0, 2, X @ X.T)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_rounding_of_entries(rng, backend, kernel, dtype):
    u = np.finfo(dtype).eps / 2
    for d in (1, 3, 30):
        for offset in (0.0, 30.0, 3e3):
            X = (offset + rng.normal(size=(25, d))).astype(dtype)
            X[1], X[2, 0], X[3] = X[0], X[0, 0], X[0] + dtype(1e-3)
            Z = np.concatenate([X[:5], 100.0 * X[:5] - offset, 0.0 * X[:1]]).astype(dtype)
            double = X.astype(float)
            square = np.square(double - double.mean(0)).sum(1)
            share = u * entry_rounding(kernel, d, square)
            size, size_new = (
                magnitudes(kernel, kernel_matrix(kernel, A, A).diagonal(), np.square(A).sum(1))
                for A in (double, Z.astype(float))
            )
            exact, exact_new = (kernel_matrix(kernel, A, X) for A in (X, Z))
            error, error_new = (
                np.abs(gram(A, X, kernel, backend=backend) - K).astype(float)
                for A, K in ((X, exact), (Z, exact_new))
            )
            pairs = np.sqrt(np.outer(size * share, size * share).astype(float))
            assert (error <= pairs).all()
            assert (error_new <= np.sqrt(np.outer(size_new, size).astype(float)) * share).all()


def test_constant_targets_are_no_reason_for_a_warning(rng):
    X = rng.normal(size=(200, 3))
    for constant in (0.0, 0.1, -3e7):
        y = np.stack([np.full(200, constant), X[:, 0]], 1)
        s, warned = run(X, y, RBF(0.4), lam=0.1, fit_intercept=True)
        assert not warned
        error = np.abs(s.evaluate(X, s.pure_steps(0.1, 3))[..., 0] - constant).max()
        assert error <= s.certificate(0.1, 3)[:, 0].max() <= 1e-8 * abs(constant)


@pytest.mark.parametrize("options", [{}, {"storage": "float32"}])
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_a_matrix_that_is_rounded_to_float32_may_have_low_rank(rng, dtype, options):
    X = rng.normal(size=(90, 3)).astype(dtype)
    y = X[:, 0] + 0.1 * rng.normal(size=90)
    K = kernel_matrix(Linear(), X, X)
    for intercept in (False, True):
        s, warned = run(
            K.astype(dtype), y, "precomputed", lam=1.0, tol=1e-2, fit_intercept=intercept, **options
        )
        exact = pure_steps(K, K, y[:, None], [1.0] * 3, None, intercept)
        error = np.abs(s.evaluate(K.astype(dtype), s.pure_steps(1.0, 3)) - exact).max((1, 2))
        assert not warned
        assert (error <= s.certificate(1.0, 3)[:, 0]).all()
    with pytest.raises(np.linalg.LinAlgError, match="positive semi-definite"):
        run((K - np.eye(90)).astype(dtype), y, "precomputed", lam=2.0, **options)
