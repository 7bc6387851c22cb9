"""Every prediction of every step equals the chain of refits of eq. (3)-(5)."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import tolerance
from cases import ALPHAS, KERNELS, SIZES, kernel_id
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close, host

from selfdistill_fast import RBF, Linear, Matern, Polynomial, distill, spectrum
from selfdistill_fast._solvers import NoLimit

T = 6


def draw(rng, n=30, d=3, p=2, m=9, *, duplicates=False):
    X = rng.standard_normal((n, d))
    Y = rng.standard_normal((n, p)) + 1.5 + np.sin(X[:, :1])
    if duplicates:
        X[n // 2 :] = X[: n - n // 2]  # the targets of equal rows differ
    X_new = np.vstack([rng.standard_normal((m - 2, d)), X[:2]])  # new points and old ones
    return X, Y, X_new


def check(backend, kernel, X, Y, X_new, lam, alpha, *, weight=None, intercept=False, solver="eigh"):
    """The library's path against the refits, on new rows and through dual coefficients.

    A sequence for lam is a ridge for each step.
    """
    dtype = X.dtype
    options = {"sample_weight": weight, "fit_intercept": intercept, "backend": backend}
    options["solver"] = solver
    if solver != "eigh":
        options["lam"] = lam
    s = spectrum(X, Y, kernel, **options)
    path = (
        distill(s, lam, alpha, T)
        if np.ndim(lam) == 0
        else distill(s, None, alpha, T, lam_steps=lam)
    )
    K, K_new = oracle.kernel_matrix(kernel, X), oracle.kernel_matrix(kernel, X_new, X)
    Y = Y.astype(np.float64)
    alphas = oracle.alphas_of(alpha, T)
    models = oracle.chain(K, Y, lam, alphas, weight, intercept)
    pure = oracle.predict(oracle.pure_chain(K, Y, lam, T, weight, intercept), K_new)
    expected = oracle.predict(models, K_new)
    actual = path.predict(X_new, step="all")
    assert actual.dtype == dtype
    d_max = oracle.d_max(K, weight)
    for t in range(T):
        c = oracle.weights_of(alphas[: t + 1])
        scale = max(np.abs(pure[k]).max() for k in range(t + 1) if c[k] != 0)
        rtol = tolerance.chain(d_max, np.min(lam), c, dtype)
        assert_close(actual[t], expected[t], rtol, scale, f"step {t + 1}")
        assert_close(path.predict(X_new, step=t + 1), expected[t], rtol, scale, "alone")
        # K a for the dual coefficients a; an intercept adds the same to every row
        a = path.dual_coef(t + 1)
        assert a.shape == Y.shape
        by_dual = K_new @ a
        offset = (actual[t] - by_dual).mean(0) if intercept else np.zeros(Y.shape[1])
        rounding = 100 * tolerance.eps(dtype) * (np.abs(K_new) @ np.abs(a)).max()
        assert_close(by_dual + offset, expected[t], 1.0, rtol * scale + rounding, "K @ dual")
        if intercept:
            assert np.abs(a.sum(0, dtype=np.float64)).max() <= rtol * np.abs(a).sum()
    np.testing.assert_array_equal(path.predict(X_new), path.predict(X_new, step=T))


# ------------------------------------------------------------------ the oracle itself


@pytest.mark.parametrize("intercept", [False, True])
def test_oracle_minimises_the_objective_of_equation_1(rng, intercept):
    X, Y, _ = draw(rng, n=12)
    K = oracle.kernel_matrix(RBF(0.5), X)
    teacher, lam, alpha = rng.standard_normal(Y.shape), 0.3, 0.4
    weight = rng.uniform(0.2, 2.0, len(X))

    def objective(a, b):
        f = K @ a + b
        loss = alpha * (f - Y) ** 2 + (1 - alpha) * (f - teacher) ** 2
        return (weight[:, None] * loss).sum() + lam * np.sum(a * (K @ a))

    a, b = oracle.ridge(K, alpha * Y + (1 - alpha) * teacher, lam, weight, intercept)
    best = objective(a, b)
    for _ in range(50):
        step_b = 1e-3 * rng.standard_normal(b.shape) * intercept
        assert objective(a + 1e-3 * rng.standard_normal(a.shape), b + step_b) > best


# ------------------------------------------------------------------ eq. (3)-(5)


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS.keys())
@pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)
def test_equals_refits_for_every_kernel(backend, kernel, alpha, rng):
    X, Y, X_new = draw(rng)
    check(backend, kernel, X, Y, X_new, 0.3, alpha)


@pytest.mark.parametrize("lam", [1e-8, 1e-5, 1e-2, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("duplicates", [False, True], ids=["full rank", "duplicate rows"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("intercept", [False, True], ids=["no intercept", "intercept"])
def test_equals_refits_for_every_lam(backend, lam, duplicates, weighted, intercept, rng):
    X, Y, X_new = draw(rng, duplicates=duplicates)
    weight = rng.uniform(0.1, 3.0, len(X)) if weighted else None
    for kernel in (Matern(1.0, 1.5), Linear(), Polynomial(2, 0.3, 0.0)):
        for alpha in (0.0, -0.6, ALPHAS["mixed"]):
            check(backend, kernel, X, Y, X_new, lam, alpha, weight=weight, intercept=intercept)


@pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)
def test_weights_and_intercept_for_every_kernel(backend, kernel, rng):
    X, Y, X_new = draw(rng, duplicates=True)
    weight = rng.uniform(0.1, 3.0, len(X))
    weight[[0, 7, 11]] = 0.0
    check(backend, kernel, X, Y, X_new, 0.2, ALPHAS["mixed"], weight=weight, intercept=True)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("p", [1, 7])
@pytest.mark.parametrize("n", SIZES)
def test_equals_refits_for_awkward_sizes(backend, n, p, dtype, rng):
    for d in (1, 4):
        X, Y = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((n, p)).astype(dtype)
        X_new = np.vstack([rng.standard_normal((4, d)).astype(dtype), X[:1]])
        check(backend, RBF(0.5), X, Y, X_new, 0.1, ALPHAS["mixed"])
        if n > 1:
            check(backend, RBF(0.5), X, Y, X_new, 1.0, 0.25, intercept=True)


@pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)
def test_float32(backend, kernel, rng):
    X, Y, X_new = (a.astype(np.float32) for a in draw(rng))
    for lam in (0.3, 30.0):
        check(backend, kernel, X, Y, X_new, lam, 0.25)
        check(backend, kernel, X, Y, X_new, lam, ALPHAS["mixed"], intercept=True)


def test_one_target_in_gives_one_dimensional_predictions(backend, rng):
    X, Y, X_new = draw(rng)
    one = distill(spectrum(X, Y[:, 0], RBF(0.5), backend=backend), 0.1, 0.3, 4)
    two = distill(spectrum(X, Y, RBF(0.5), backend=backend), 0.1, 0.3, 4)
    assert one.predict(X_new).shape == (len(X_new),)
    assert one.predict(X_new, step="all").shape == (4, len(X_new))
    assert one.dual_coef(4).shape == (len(X),)
    assert one.predict(X_new, step=math.inf).shape == (len(X_new),)
    assert_close(one.predict(X_new, step="all"), two.predict(X_new, step="all")[:, :, 0], 1e-12)


# ------------------------------------------------------------------ the other ways to solve


@pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)
def test_cholesky_equals_refits_for_every_kernel(backend, kernel, rng):
    X, Y, X_new = draw(rng, duplicates=True)
    weight = rng.uniform(0.1, 3.0, len(X))
    weight[[0, 7, 11]] = 0.0
    for alpha in (0.0, ALPHAS["mixed"]):
        check(backend, kernel, X, Y, X_new, 0.2, alpha, solver="cholesky")
        check(
            backend, kernel, X, Y, X_new, 0.2, alpha,
            weight=weight, intercept=True, solver="cholesky",
        )  # fmt: skip


@pytest.mark.parametrize("lam", [1e-8, 1e-5, 1e-2, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("intercept", [False, True], ids=["no intercept", "intercept"])
def test_cholesky_equals_refits_for_every_lam(backend, lam, intercept, rng):
    X, Y, X_new = draw(rng)
    weight = rng.uniform(0.1, 3.0, len(X))
    for kernel in (Matern(1.0, 1.5), Linear()):
        for alpha in (0.0, -0.6, ALPHAS["mixed"]):
            check(
                backend, kernel, X, Y, X_new, lam, alpha,
                weight=weight, intercept=intercept, solver="cholesky",
            )  # fmt: skip


@pytest.mark.parametrize("n", SIZES)
def test_cholesky_for_awkward_sizes(backend, n, rng):
    for dtype in (np.float64, np.float32):
        X, Y = rng.standard_normal((n, 3)).astype(dtype), rng.standard_normal((n, 2)).astype(dtype)
        check(backend, RBF(0.5), X, Y, X, 0.1, ALPHAS["mixed"], solver="cholesky")


def test_cholesky_serves_one_lam_and_has_no_eigenvalues(backend, rng):
    X, Y, _ = draw(rng)
    s = spectrum(X, Y, RBF(0.5), solver="cholesky", lam=0.1, backend=backend)
    with pytest.raises(ValueError, match=r"lam|λ"):
        distill(s, 0.2, 0.5, 2)
    path = distill(s, 0.1, 0.5, 2)
    with pytest.raises((AttributeError, ValueError), match="eigh"):
        _ = path.shrinkage
    with pytest.raises((TypeError, ValueError), match="lam"):
        spectrum(X, Y, RBF(0.5), solver="cholesky", backend=backend)


@pytest.mark.parametrize("intercept", [False, True], ids=["no intercept", "intercept"])
@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS.keys())
def test_a_ridge_for_each_step(backend, alpha, intercept, rng):
    X, Y, X_new = draw(rng)
    weight = rng.uniform(0.1, 3.0, len(X))
    for lams in ([0.1, 0.02, 3.0, 0.5, 0.1, 20.0], [1e-4, 1e-2, 1.0, 1.0, 1e2, 1e3]):
        check(backend, RBF(0.5), X, Y, X_new, lams, alpha, weight=weight, intercept=intercept)


# ------------------------------------------------------------------ extremes


@pytest.mark.parametrize("intercept", [False, True])
def test_zero_kernel_matrix(backend, intercept, rng):
    """K = 0: the function is zero, and an intercept is the mean of the targets."""
    X, Y = np.zeros((6, 2)), rng.standard_normal((6, 2))
    path = distill(spectrum(X, Y, Linear(), fit_intercept=intercept, backend=backend), 0.1, 0.3, 3)
    expected = np.broadcast_to(Y.mean(0) if intercept else 0.0, (3, 4, 2))
    assert_close(path.predict(rng.standard_normal((4, 2)), step="all"), expected, 1e-14, 1.0)


def test_constant_kernel_matrix(backend, rng):
    """K = 11ᵀ has rank one: each step shrinks the mean by n/(n + λ)."""
    n, lam = 9, 0.7
    y = rng.standard_normal(n)
    path = distill(spectrum(np.ones((n, 1)), y, Linear(), backend=backend), lam, 0.0, T)
    shrink = (n / (n + lam)) ** np.arange(1, T + 1)
    assert_close(path.predict(np.ones((1, 1)), step="all")[:, 0], shrink * y.mean(), 1e-12)


def test_precomputed_and_callable_kernels_equal_the_named_one(backend, rng):
    X, Y, X_new = draw(rng)
    named = distill(spectrum(X, Y, RBF(0.7), backend=backend), 0.1, 0.3, 4)
    K, K_new = oracle.kernel_matrix(RBF(0.7), X), oracle.kernel_matrix(RBF(0.7), X_new, X)
    given_k = distill(spectrum(K, Y, "precomputed", backend=backend), 0.1, 0.3, 4)
    function = distill(
        spectrum(X, Y, lambda A, B: oracle.kernel_matrix(RBF(0.7), A, B), backend=backend),
        0.1, 0.3, 4,
    )  # fmt: skip
    expected = named.predict(X_new, step="all")
    rtol = tolerance.chain(oracle.d_max(K), 0.1)
    assert_close(given_k.predict(K_new, step="all"), expected, rtol)
    assert_close(function.predict(X_new, step="all"), expected, rtol)


@pytest.mark.parametrize("intercept", [False, True])
def test_precomputed_with_rows_of_weight_zero(backend, intercept, rng):
    """Columns of dropped rows must not reach the predictions."""
    X, Y, X_new = draw(rng, n=16)
    K, K_new = oracle.kernel_matrix(RBF(0.7), X), oracle.kernel_matrix(RBF(0.7), X_new, X)
    weight = np.where(np.arange(16) % 5 == 1, 0.0, 1.3)
    s = spectrum(
        K, Y, "precomputed", sample_weight=weight, fit_intercept=intercept, backend=backend
    )
    expected = oracle.predict(
        oracle.chain(K, Y, 0.1, oracle.alphas_of(0.3, 3), weight, intercept), K_new
    )
    path = distill(s, 0.1, 0.3, 3)
    assert_close(path.predict(K_new, step="all"), expected, 1e-10)
    dual = path.dual_coef(3)
    assert dual.shape == Y.shape
    assert (dual[weight == 0] == 0).all()


# ------------------------------------------------------------------ invariances


@pytest.mark.parametrize("intercept", [False, True])
def test_weight_two_is_the_row_twice(backend, intercept, rng):
    X, Y, X_new = draw(rng, n=15)
    weight = rng.integers(0, 4, len(X)).astype(float)
    rows = np.repeat(np.arange(len(X)), weight.astype(int))
    weighted = spectrum(
        X, Y, RBF(0.5), sample_weight=weight, fit_intercept=intercept, backend=backend
    )
    repeated = spectrum(X[rows], Y[rows], RBF(0.5), fit_intercept=intercept, backend=backend)
    assert_close(
        distill(weighted, 0.05, ALPHAS["mixed"], T).predict(X_new, step="all"),
        distill(repeated, 0.05, ALPHAS["mixed"], T).predict(X_new, step="all"),
        1e-10,
    )


def test_an_intercept_absorbs_a_shift_of_the_targets(backend, rng):
    X, Y, X_new = draw(rng)
    weight = rng.uniform(0.1, 3.0, len(X))

    def path(targets):
        s = spectrum(
            X, targets, RBF(0.5), sample_weight=weight, fit_intercept=True, backend=backend
        )
        return distill(s, 0.1, -0.4, 4).predict(X_new, step="all")

    assert_close(path(Y + 100.0) - 100.0, path(Y), 1e-10, 100.0)


@given(data=st.data())
def test_order_of_rows_scale_of_targets_and_of_kernel_do_not_matter(data, backend):
    """A permutation of rows, y → s·y, and (K, λ) → (cK, cλ) change nothing else."""
    n = data.draw(st.integers(1, 12), label="n")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    lam = data.draw(st.sampled_from([1e-3, 0.1, 1.0, 50.0]), label="lam")
    alpha = data.draw(st.floats(-1.0, 2.0), label="alpha")
    c = data.draw(st.sampled_from([0.25, 3.0, 128.0]), label="c")
    X, y, X_new = rng.standard_normal((n, 2)), rng.standard_normal(n), rng.standard_normal((3, 2))
    K, K_new = (oracle.kernel_matrix(RBF(0.5), A, X) for A in (X, X_new))
    order = rng.permutation(n)

    def predict(K, K_new, y, lam):
        s = spectrum(K, y, "precomputed", backend=backend)
        return distill(s, lam, alpha, 4).predict(K_new, step="all")

    expected = predict(K, K_new, y, lam)
    weights = oracle.weights_of(oracle.alphas_of(alpha, 4))
    pure = oracle.predict(oracle.pure_chain(K, y[:, None], lam, 4), K_new)
    rtol, scale = tolerance.chain(oracle.d_max(K), lam, weights), np.abs(pure).max()
    permuted = predict(K[np.ix_(order, order)], K_new[:, order], y[order], lam)
    assert_close(permuted, expected, rtol, scale, "permuted rows")
    assert_close(predict(K, K_new, -3.0 * y, lam), -3.0 * expected, rtol, 3.0 * scale, "scaled y")
    assert_close(predict(c * K, c * K_new, y, c * lam), expected, rtol, scale, "scaled K and lam")


@given(data=st.data())
def test_equals_refits_for_drawn_problems(data, backend):
    n = data.draw(st.integers(1, 14), label="n")
    p = data.draw(st.integers(1, 3), label="p")
    kernel = data.draw(st.sampled_from(KERNELS), label="kernel")
    lam = data.draw(st.sampled_from([1e-6, 1e-3, 0.2, 7.0, 1e3]), label="lam")
    alphas = data.draw(
        st.lists(st.floats(-2.0, 3.0), min_size=T - 1, max_size=T - 1), label="alphas"
    )
    intercept = data.draw(st.booleans(), label="intercept")
    weighted = data.draw(st.booleans(), label="weighted")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    X, Y, X_new = (rng.standard_normal(shape) for shape in ((n, 2), (n, p), (4, 2)))
    X = np.round(X * 2) / 2  # coincident rows now and then
    weight = rng.uniform(0.1, 2.0, n) if weighted else None
    check(backend, kernel, X, Y, X_new, lam, alphas, weight=weight, intercept=intercept)


# ------------------------------------------------------------------ in many digits


@pytest.mark.parametrize("duplicates", [False, True], ids=["full rank", "duplicate rows"])
@pytest.mark.parametrize("lam", [1e-8, 1e-3, 1.0, 1e3])
def test_against_mpmath(backend, lam, duplicates, rng):
    """K is handed over, so the only error is the solver's."""
    X, Y, X_new = draw(rng, n=24 if duplicates else 12, m=4, p=1, duplicates=duplicates)
    K, K_new = oracle.kernel_matrix(RBF(0.5), X), oracle.kernel_matrix(RBF(0.5), X_new, X)
    s = spectrum(K, Y, "precomputed", backend=backend)
    pure = oracle.mp_chain(K, K_new, Y, lam, oracle.alphas_of(0.0, 4))
    for alpha in (0.0, [0.2, 1.3, -0.5]):
        alphas = oracle.alphas_of(alpha, 4)
        expected = oracle.mp_chain(K, K_new, Y, lam, alphas)
        actual = distill(s, lam, alpha, 4).predict(K_new, step="all")
        for t in range(4):
            c = oracle.weights_of(alphas[: t + 1])
            scale = max(np.abs(pure[k]).max() for k in range(t + 1) if c[k] != 0)
            rtol = tolerance.chain(oracle.d_max(K), lam, c)
            assert_close(actual[t], expected[t], rtol, scale, f"step {t + 1}")


def test_mpmath_judges_forty_rows(backend, rng):
    X, Y, X_new = draw(rng, n=40, m=3, p=1)
    K, K_new = oracle.kernel_matrix(RBF(0.5), X), oracle.kernel_matrix(RBF(0.5), X_new, X)
    expected = oracle.mp_chain(K, K_new, Y, 1e-6, oracle.alphas_of(0.3, 6))
    s = spectrum(K, Y, "precomputed", backend=backend)
    actual = distill(s, 1e-6, 0.3, 6).predict(K_new, step="all")
    rtol = tolerance.chain(oracle.d_max(K), 1e-6)
    assert_close(actual, expected, rtol)


# ------------------------------------------------------------------ the Spectrum's own promises


@pytest.mark.parametrize("intercept", [False, True])
def test_spectrum_describes_the_weighted_centred_kernel_matrix(backend, intercept, rng):
    """d ascending and non-negative, z in that basis, F_τ = ȳ + project(X) @ pure_steps[τ−1]."""
    X, Y, X_new = draw(rng)
    weight = rng.uniform(0.1, 3.0, len(X))
    K, K_new = oracle.kernel_matrix(RBF(0.5), X), oracle.kernel_matrix(RBF(0.5), X_new, X)
    s = spectrum(X, Y, RBF(0.5), sample_weight=weight, fit_intercept=intercept, backend=backend)
    root = np.sqrt(weight)
    M = root[:, None] * K * root
    if intercept:
        q = root / np.linalg.norm(root)
        H = np.eye(len(X)) - np.outer(q, q)
        # W^½ (I − 1wᵀ/Σw) K (I − w1ᵀ/Σw) W^½
        M = H @ M @ H
    eigenvalues = np.sort(np.linalg.eigvalsh(M))
    d = host(s.d)
    assert (d >= 0).all()
    assert (np.diff(d) >= 0).all()
    assert_close(d, eigenvalues[-len(d) :], 1e-12)
    assert host(s.z).shape == (len(d), Y.shape[1])
    centre = np.average(Y, axis=0, weights=weight) if intercept else np.zeros(Y.shape[1])
    lams = np.array([0.01, 0.5])
    pure = host(s.pure_steps(lams, 4))
    assert pure.shape == (2, 4, len(d), Y.shape[1])
    project = host(s.project(X_new))
    assert project.shape == (len(X_new), len(d))
    for lam, coordinates in zip(lams, pure, strict=True):
        expected = oracle.predict(oracle.pure_chain(K, Y, lam, 4, weight, intercept), K_new)
        assert_close(centre + project @ coordinates, expected, 1e-10)
        assert_close(host(s.pure_steps(lam, 4)), coordinates, 1e-14)


@pytest.mark.parametrize("intercept", [False, True])
def test_diag_powers_are_diagonals_of_the_smoother_matrix(backend, intercept, rng):
    """diag_powers[j−1] = diag(A^j), A the map from targets to the fit at the training rows."""
    X, Y, _ = draw(rng, n=11)
    weight = rng.uniform(0.1, 3.0, 11)
    weight[4] = 0.0
    keep = weight > 0
    K = oracle.kernel_matrix(RBF(0.5), X)
    s = spectrum(X, Y, RBF(0.5), sample_weight=weight, fit_intercept=intercept, backend=backend)
    lams = np.array([0.02, 3.0])
    actual = host(s.diag_powers(lams, 4))
    assert actual.shape == (2, 4, 10)
    for lam, powers in zip(lams, actual, strict=True):
        dual, b = oracle.ridge(K, np.eye(11)[:, keep], lam, weight, intercept)
        A = (K @ dual + b)[keep]  # one fit per unit target
        expected = [np.diag(np.linalg.matrix_power(A, j)) for j in range(1, 5)]
        assert_close(powers, np.array(expected), 1e-11)
        assert_close(host(s.diag_powers(lam, 4)), powers, 1e-13)


def test_every_lam_is_a_filter_on_one_spectrum(backend, rng):
    """Predictions for a second λ do not depend on the first having been asked for."""
    X, Y, X_new = draw(rng)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    distill(s, 1e-3, 0.5, 3).predict(X_new)
    fresh = spectrum(X, Y, RBF(0.5), backend=backend)
    np.testing.assert_array_equal(
        distill(s, 2.0, 0.5, 3).predict(X_new, step="all"),
        distill(fresh, 2.0, 0.5, 3).predict(X_new, step="all"),
    )


def test_shrinkage_weights_and_alphas_of_a_path(backend, rng):
    X, Y, _ = draw(rng)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    path = distill(s, 0.1, ALPHAS["mixed"], T)
    assert np.isnan(path.alphas[0])
    np.testing.assert_array_equal(path.alphas[1:], ALPHAS["mixed"])
    assert_close(path.weights, oracle.weights_of(path.alphas), 1e-14)
    # the α's of a path are accepted where α's are asked for
    again = distill(s, 0.1, path.alphas, T)
    np.testing.assert_array_equal(again.predict(X, step="all"), path.predict(X, step="all"))
    d = host(s.d)
    a = d / (d + 0.1)
    B, expected = np.ones_like(a), []
    for t in range(T):
        B = a * B if t == 0 else a * ((1 - path.alphas[t]) * B + path.alphas[t])
        expected.append(B)
    assert_close(path.shrinkage, np.array(expected), 1e-13)


def test_a_limit_that_overflows_is_not_one_that_does_not_exist():
    """α is so near the end of Theorem 4.5's interval that the limit is 1e10 times step 1."""
    X, y = np.full((4, 1), 0.5e-75), np.full(4, 1e150)
    s = spectrum(X, y, Linear())
    lam = float(s.d[-1])
    with np.errstate(over="ignore"):
        path = distill(s, lam, -(1 - 1e-10), 1)
    assert_close(path.predict(X), y / 2, 1e-12)
    for call in (lambda: path.dual_coef(math.inf), lambda: path.predict(X, step=math.inf)):
        with pytest.raises(ValueError, match="overflow float64") as caught:
            call()
        assert not isinstance(caught.value, NoLimit)
    with pytest.raises(NoLimit, match="exists only if"):
        distill(s, lam, -1.5, 1).predict(X, step=math.inf)
    with pytest.raises(NoLimit, match="this path chose its own"):
        distill(s, lam, "optimal", 2).predict(X, step=math.inf)
