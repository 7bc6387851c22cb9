"""Very large and very small features and kernel parameters: right, or refused."""

from __future__ import annotations

import math
import warnings

import mpmath as mp
import numpy as np
import oracle
import pytest
import tolerance
from tolerance import assert_close, host

from selfdistill_fast import (
    NTK,
    RBF,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
    distill,
    gram,
    gram_matmul,
    gram_sweep,
    leave_one_out,
    spectrum,
)

SIZES = {
    np.float64: [1e-300, 1e-160, 1e-140, 1e150, 1e160, 1e300],
    np.float32: [1e-36, 1e-20, 1e-12, 1e18, 1e20, 1e36],
}
dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])

#: kernels of a distance whose unit of length is ``s``, as functions of s and of log₁₀ s
AT_DISTANCE = {
    "rbf": lambda s: RBF(min(max(0.5 / s / s, 5e-324), 1.7e308)),
    "laplacian": lambda s: Laplacian(0.3 / s),
    **{f"matern {nu}": (lambda s, nu=nu: Matern(1.3 * s, nu)) for nu in (0.5, 1.5, 2.5, math.inf)},
}


def in_many_digits(kernel, X, Z):
    with mp.workdps(50):
        return [[oracle.mp_kernel(kernel, x, z) for z in Z] for x in X]


def rows(rng, d, s, dtype):
    X, Z = rng.standard_normal((5, d)), rng.standard_normal((4, d))
    Z[0] = X[0]
    return (X * s).astype(dtype), (Z * s).astype(dtype)


@dtypes
@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("name", AT_DISTANCE)
def test_a_distance_in_the_kernels_own_units(backend, name, d, dtype, rng):
    """κ depends on x/ℓ alone, whatever the size of both."""
    for s in SIZES[dtype]:
        if name == "rbf" and not 1e-150 < s < 1e150:
            continue  # γ itself is no float64
        X, Z = rows(rng, d, s, dtype)
        kernel = AT_DISTANCE[name](s)
        expected = np.array([[float(v) for v in row] for row in in_many_digits(kernel, X, Z)])
        allowed = tolerance.gram(AT_DISTANCE[name](1.0), X / dtype(s), Z / dtype(s), dtype)
        assert_close(gram(X, Z, kernel, backend=backend), expected, allowed, 1.0, what=f"{s:g}")
        K = gram(X, None, kernel, backend=backend)
        np.testing.assert_array_equal(host(K).diagonal(), 1)


@dtypes
@pytest.mark.parametrize("d", [3, 20])
def test_extreme_rates_with_usual_rows(backend, d, dtype, rng):
    """Where every κ is 0 or 1, and parameters are no numbers of the rows' dtype."""
    X, _ = rows(rng, d, 1.0, dtype)
    for make in (RBF, Laplacian, lambda g: Matern(1 / g, 1.5), lambda g: Matern(1 / g, math.inf)):
        np.testing.assert_array_equal(host(gram(X, None, make(1e-250), backend=backend)), 1)
        K = gram(X, None, make(1e250 if dtype == np.float64 else 1e45), backend=backend)
        np.testing.assert_array_equal(host(K), np.eye(5))
    np.testing.assert_array_equal(host(gram(X, None, RBF(5e-324), backend=backend)), 1)


def test_the_cases_that_were_wrong(backend):
    apart = np.array([[0.0], [2e154]])
    K = gram(apart, None, Matern(2e154, 1.5), backend=backend)
    assert_close(K[:1, 1:], np.array([[0.48335772]]), 1e-8)
    for unit in (1e-200, 1e200):
        K = gram(unit * np.array([[0.0], [1.0]]), None, Matern(unit, math.inf), backend=backend)
        assert_close(K[:1, 1:], np.exp(np.array([[-0.5]])), 1e-14)


def test_an_outlier_does_not_spoil_the_rest(backend, rng):
    """Its squared distances overflow; the others' do not."""
    X = rng.standard_normal((6, 3)).astype(np.float32)
    expected = gram(X[:5], None, RBF(0.7), backend=backend)
    X[5] = 1e30
    K = gram(X, None, RBF(0.7), backend=backend)
    assert_close(K[:5, :5], expected, 1e-5)
    np.testing.assert_array_equal(host(K)[5, :5], 0)
    K = gram(X, None, Matern(1e30, 0.5), backend=backend)
    assert_close(K[:5, :5], np.ones((5, 5)), 1e-6)
    assert_close(K[5:, :5], np.full((1, 5), math.exp(-math.sqrt(3))), 1e-5)


def test_two_sizes_that_no_scale_fits_are_refused(backend):
    X = np.array([[1e30], [1e-30]], dtype=np.float32)
    with pytest.raises(ValueError, match="Scale all features to one size"):
        gram(X, None, Laplacian(1e30), backend=backend)
    # double can
    K = gram(X.astype(float), None, Laplacian(1e30), backend=backend)
    np.testing.assert_array_equal(host(K), np.eye(2))


@dtypes
def test_inner_products_and_angles(backend, dtype, rng):
    """Relative to ‖x‖ ‖z‖ of each pair, wherever κ is a normal number of the dtype."""
    info = np.finfo(dtype)
    for s in SIZES[dtype]:
        for t in (s, 1 / s, 1.0):
            X, Z = rows(rng, 4, s, dtype)[0], rows(rng, 4, t, dtype)[1]
            X[1], Z[1] = 0, 0
            nx, nz = (np.sqrt(np.square(A.astype(np.longdouble)).sum(1)) for A in (X, Z))
            for kernel in (Linear(), NTK(1)):
                K = host(gram(X, Z, kernel, backend=backend))
                exact = in_many_digits(kernel, X, Z)
                for i, j in np.ndindex(K.shape):
                    scale = mp.mpf(str(nx[i])) * mp.mpf(str(nz[j]))
                    if scale > info.max:
                        assert not np.isnan(K[i, j])
                        continue
                    error = abs(mp.mpf(float(K[i, j])) - exact[i][j])
                    assert error <= 32 * float(info.eps) * scale + float(info.tiny)


@dtypes
def test_polynomials_in_units_of_their_own(backend, dtype, rng):
    """κ depends on γ x z alone."""
    for s in SIZES[dtype]:
        if not 1e-150 < s < 1e150:
            continue
        for kernel in (Polynomial(1, 0.5, 0.0), Polynomial(2, 0.5, 1.0), Polynomial(3, 0.5, 0.0)):
            X, Z = rows(rng, 4, s, dtype)
            own = Polynomial(kernel.degree, kernel.gamma / s / s, kernel.coef0)
            expected = np.array([[float(v) for v in row] for row in in_many_digits(own, X, Z)])
            allowed = tolerance.gram(kernel, X / dtype(s), Z / dtype(s), dtype)
            assert_close(gram(X, Z, own, backend=backend), expected, allowed, 1.0, what=f"{s:g}")
            X, Z = X / dtype(s) * dtype(s), np.ones_like(Z)
            mixed = gram(X, Z, Polynomial(1, 1 / s, 0.0), backend=backend)
            assert_close(mixed, (X.sum(1) / dtype(s))[:, None] * np.ones((1, 4)), 1e-5)


@dtypes
def test_overflow_is_infinite_and_underflow_zero(backend, dtype):
    large, small = (1e300, 1e-300) if dtype == np.float64 else (1e36, 1e-36)
    X = np.array([[1.0, 2.0], [-1.0, -2.0]], dtype=dtype)
    for kernel in (Linear(), Polynomial(1, 1.0, 0.0), Polynomial(3, 1.0, 0.0)):
        K = host(gram(X * dtype(large), None, kernel, backend=backend))
        np.testing.assert_array_equal(K, [[np.inf, -np.inf], [-np.inf, np.inf]])
        K = host(gram(X * dtype(small), None, kernel, backend=backend))
        np.testing.assert_array_equal(K, 0)
    # sums that overflow on the way
    Y = np.ldexp(np.array([[1, 1], [1, -1]], dtype=dtype), np.finfo(dtype).maxexp - 2)
    assert host(gram(Y[:1], Y[1:], Linear(), backend=backend)) == 0
    half = dtype(large) * np.array([[1, 1, 1]], dtype=dtype)
    other = dtype(np.finfo(dtype).max / dtype(large)) * np.array([[0.9, 0.9, -0.9]], dtype=dtype)
    K = gram(half, other, Linear(), backend=backend)
    assert_close(K, 0.9 * np.finfo(dtype).max * np.ones((1, 1)), 1e-6)


@dtypes
def test_a_product_of_infinities_of_both_signs_is_refused(backend, dtype):
    large = dtype(1e300 if dtype == np.float64 else 1e36)
    X, Z = np.array([[large]]), np.array([[1.0], [2.0]], dtype=dtype)
    kernel = Polynomial(3, 1.0, 0.0)
    W = np.array([1.0, -1.0])
    if backend == "reference" and dtype == np.float32:  # its sums are in double
        assert gram_matmul(X, Z, W, kernel, backend=backend) == -np.inf
    else:
        with pytest.raises(ValueError, match=r"overflow on these rows.*scale X or W down"):
            gram_matmul(X, Z, W, kernel, backend=backend)
    W = np.array([1.0, 1.0])
    np.testing.assert_array_equal(host(gram_matmul(X, Z, W, kernel, backend=backend)), [np.inf])


@pytest.mark.parametrize("solver", ["eigh", "cholesky", "tridiagonal", "krylov", "nystrom"])
@dtypes
def test_projections_that_overflow_are_refused(solver, dtype, backend, rng):
    X = rng.standard_normal((9, 2)).astype(dtype)
    options = {"n_landmarks": 5, "random_state": 0} if solver == "nystrom" else {}
    lam = 1.0 if solver in ("cholesky", "krylov") else None
    kernel = Polynomial(9, 1.0, 1.0)
    fitted = spectrum(
        X, np.sin(X[:, 0]), kernel, solver=solver, lam=lam, backend=backend, **options
    )
    large = dtype(1e100 if dtype == np.float64 else 1e20)
    with pytest.raises(ValueError, match=r"projections overflow.*new samples"):
        fitted.project(X * large)
    assert np.isfinite(host(fitted.project(2 * X))).all()


@dtypes
def test_products_and_sweeps(backend, dtype, rng):
    """They see to ranges as K itself does."""
    s = 1e-20 if dtype == np.float32 else 1e-200
    X, Z = rows(rng, 5, 1.0, dtype)
    W = rng.standard_normal((4, 2)).astype(dtype)
    for unit in (s, 1 / s):
        A, B = X * dtype(unit), Z * dtype(unit)
        cases = [
            (Laplacian(0.3), Laplacian(0.3 / unit)),
            (Matern(1.3, 2.5), Matern(1.3 * unit, 2.5)),
        ]
        for usual, own in cases:
            expected = host(gram(X, Z, usual, backend="reference"))
            allowed = 10 * tolerance.gram(usual, X, Z, dtype)
            assert_close(gram_matmul(A, B, W, own, backend=backend), expected @ W, allowed, 10.0)
            K = gram_matmul(A, None, np.eye(5, dtype=dtype), own, backend=backend)
            assert_close(K, gram(A, None, own, backend=backend), allowed, 1.0)
            for K in gram_sweep(A, B, [own, own], backend=backend):
                assert_close(K, expected, allowed, 1.0)
    A, B = X * dtype(s), Z / dtype(s)
    for kernel in (Linear(), NTK(2)):
        expected = host(gram(X, Z, kernel, backend="reference"))
        allowed = 10 * tolerance.gram(kernel, X, Z, dtype)
        assert_close(gram_matmul(A, B, W, kernel, backend=backend), expected @ W, allowed, 1.0)


# ------------------------------------------------------------------ solvers

SOLVERS = {
    "eigh": {},
    "cholesky": {},
    "tridiagonal": {},
    "krylov": {},
    "nystrom": {"n_landmarks": 15, "random_state": 0},
    "auto": {},
}
solvers = pytest.mark.parametrize("solver", SOLVERS)


def training(rng, dtype):
    X = rng.standard_normal((20, 4))
    return X.astype(dtype), (np.sin(X[:, 0]) + 1.0).astype(dtype)


def fitted(X, y, kernel, solver, lam, **options):
    return spectrum(X, y, kernel, solver=solver, lam=lam, **SOLVERS[solver], **options)


def answers(X, y, kernel, solver, lam, intercept):
    """A chain's predictions, and held-out ones where there are any."""
    s = fitted(X, y, kernel, solver, lam, fit_intercept=intercept)
    found = [distill(s, lam, 0.5, 3).predict(X, step="all")]
    if s.max_loo_steps >= 3:
        found.append(leave_one_out(s, lam, 0.5, 3))
    return found


@dtypes
@solvers
@pytest.mark.parametrize("intercept", [False, True])
def test_units_of_k_and_of_y_do_not_matter(solver, dtype, intercept, rng):
    """K and λ times s² change nothing, y times s is a factor of the result."""
    X, y = training(rng, dtype)
    expected = answers(X, y, Linear(), solver, 1.0, intercept)
    allowed = tolerance.chain(40.0, 1.0, 4.0, dtype)
    for s in (1e-140, 1e140) if dtype == np.float64 else (1e-16, 1e16):
        scaled = answers(X * dtype(s), y, Linear(), solver, float(s) ** 2, intercept)
        for a, b in zip(scaled, expected, strict=True):
            assert_close(a, b, allowed)
    for s in (1e-150, 1e150) if dtype == np.float64 else (1e-20, 1e20):
        scaled = answers(X, y * dtype(s), Linear(), solver, 1.0, intercept)
        for a, b in zip(scaled, expected, strict=True):
            assert_close(a.astype(np.float64) / s, b, allowed)


@dtypes
@solvers
def test_a_kernel_out_of_range_is_refused(solver, dtype, rng):
    X, y = training(rng, dtype)
    s = 1e25 if dtype == np.float32 else 1e170
    for kernel in (Linear(), NTK(1), Polynomial(2, 1.0, 0.0)):
        with pytest.raises(ValueError, match=r"overflows.*scale X down"):
            fitted(X * dtype(s), y, kernel, solver, 1.0)
        with pytest.raises(ValueError, match=r"underflows.*scale X up"):
            fitted(X / dtype(s), y, kernel, solver, 1.0)
    zeros = distill(fitted(0 * X, y, Linear(), solver, 1.0), 1.0, 0.5, 2)  # which K is 0 for
    np.testing.assert_array_equal(zeros.predict(X), 0)


@solvers
def test_a_ridge_out_of_range_is_refused(solver, rng):
    X, y = training(rng, np.float32)
    for lam in (1e-39, 1e39):
        with pytest.raises(ValueError, match=r"out of range in float32.*use float64"):
            distill(fitted(X, y, RBF(0.5), solver, lam), lam, 0.5, 2)
        model = fitted(X.astype(float), y, RBF(0.5), solver, lam)  # of a usual size for double
        distill(model, lam, 0.5, 2)
    X = X.astype(float) * 1e-150
    with pytest.raises(ValueError, match="out of range in float64"):
        distill(fitted(X, y, Linear(), solver, 3e-309), 3e-309, 0.5, 2)


def test_later_ridges_out_of_range_are_refused(rng):
    X, y = training(rng, np.float32)
    s = spectrum(X, y, RBF(0.5), solver="eigh")
    for ask in (
        lambda: distill(s, 1e-39, 0.5, 2),
        lambda: distill(s, None, 0.5, 2, lam_steps=[1.0, 1e-39]),
        lambda: leave_one_out(s, 1e-39, 0.5, 2),
        lambda: leave_one_out(s, np.array([1.0, 1e-39]), 0.5, 2),
        lambda: leave_one_out(s, None, 0.5, 2, lam_steps=[1.0, 1e-39]),
        lambda: s.limit(1e-39, 0.5),
    ):
        with pytest.raises(ValueError, match="lam=1e-39 is out of range in float32"):
            ask()


@solvers
def test_targets_out_of_range_are_refused(solver, rng):
    X, y = training(rng, np.float32)
    with pytest.raises(ValueError, match=r"y overflows float32.*float64 rows"):
        fitted(X, y.astype(float) * 1e50, RBF(0.5), solver, 0.1)
    with pytest.raises(ValueError, match="y overflows float64: scale y down"):
        fitted(X.astype(float), y.astype(float) * 8e307, RBF(0.5), solver, 0.1)


@pytest.mark.parametrize("solver", ["eigh", "cholesky", "tridiagonal", "krylov", "auto"])
def test_coefficients_out_of_range_are_refused(solver, rng):
    X, y = training(rng, np.float64)
    s = fitted(X, 1e300 * y, Polynomial(1, 1.0, 0.0), solver, 1e-10)
    with pytest.raises(ValueError, match="overflow float64: scale y down"):
        distill(s, 1e-10, 0.5, 2).predict(X)


@pytest.mark.filterwarnings("ignore:the chain looks exploded:RuntimeWarning")
def test_coefficients_that_overflow_are_refused_where_they_are_asked_for(backend, rng):
    X = rng.standard_normal((6, 2)).astype(np.float32)
    fitted = spectrum(X, np.sin(X[:, 0]), RBF(0.5), backend=backend, fit_intercept=True)
    path = distill(fitted, 0.1, -1e45, 2)
    assert np.isfinite(host(path.dual_coef(1))).all()
    assert np.isfinite(path.intercept(1))
    for step in (None, 2, "all"):
        with pytest.raises(ValueError, match=r"overflow float32.*or use float64"):
            path.dual_coef(step)


@pytest.mark.parametrize("solver", ["auto", "eigh", "cholesky", "tridiagonal", "krylov", "nystrom"])
def test_targets_too_small_beside_the_kernel_are_reported(solver, rng):
    X = rng.standard_normal((20, 2)).astype(np.float32)
    options = {} if solver == "eigh" else {"lam": 1e25}
    with pytest.raises(ValueError, match="scale y up"):
        spectrum(3e12 * X, 1e-20 * X[:, 0], Linear(), solver=solver, **options)
    s = spectrum(3e12 * X, X[:, 0], Linear(), solver=solver, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distill(s, 1e25, 0.5, 2)


def test_held_out_predictions_that_overflow_are_reported(rng):
    s = spectrum(rng.standard_normal((6, 2)), rng.standard_normal(6), RBF(1.0))
    s.filters.d[...] = np.nan  # a stand-in for whatever overflows
    with pytest.warns(
        RuntimeWarning, match="held-out predictions are NaN or infinite: they overflow"
    ):
        leave_one_out(s, 0.1, 0.5, 2)
