"""What is rounding and what is not: one rule, judged against the norm of K before centring."""

from __future__ import annotations

import warnings

import numpy as np
import oracle
import pytest
import tolerance
from numpy.linalg import LinAlgError

from selfdistill_fast import (
    NTK,
    RBF,
    Linear,
    Matern,
    Polynomial,
    distill,
    leave_fold_out,
    leave_one_out,
    spectrum,
)


@pytest.fixture
def rng():
    return np.random.default_rng(13)


def smooth(gamma):
    """An RBF kernel as the caller's own function."""
    return lambda X, Z: np.exp(-gamma * np.square(X[:, None] - Z[None]).sum(-1))


def predictions(s, lam, X, alpha=0.3, n_steps=3):
    return distill(s, lam, alpha, n_steps).predict(X, step="all")


# ------------------------------------------------------------ a kernel is not refused
@pytest.mark.parametrize("solver", ["eigh", "auto", "cholesky", "tridiagonal", "krylov"])
def test_a_kernel_matrix_far_from_its_centred_one(solver, rng):
    X = 1e3 + rng.normal(size=(30, 2))
    y = rng.normal(size=30)
    for K, lam in ((X @ X.T, 10.0), (np.ones((30, 30)), 0.1)):
        s = spectrum(K, y, "precomputed", fit_intercept=True, solver=solver, lam=lam)
        models = oracle.chain(K, y[:, None], lam, oracle.alphas_of(0.3, 3), intercept=True)
        want = oracle.predict(models, K)[..., 0]
        rtol = tolerance.chain(oracle.d_max(K), lam)
        np.testing.assert_allclose(predictions(s, lam, K), want, rtol=0, atol=rtol * abs(y).max())


@pytest.mark.parametrize("gamma", np.geomspace(1e-14, 1e-4, 6))
@pytest.mark.parametrize("solver", ["eigh", "auto", "krylov"])
def test_a_nearly_constant_kernel_function(gamma, solver, rng):
    X, y = rng.normal(size=(100, 3)), rng.normal(size=100)
    options = {"fit_intercept": True, "lam": 0.1}
    a = predictions(spectrum(X, y, smooth(gamma), solver=solver, **options), 0.1, X)
    b = predictions(spectrum(X, y, smooth(gamma), solver="cholesky", **options), 0.1, X)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_of_features_is_a_kernel(dtype, rng):
    """Half of its eigenvalues are rounding, of either sign."""
    features = rng.normal(size=(512, 256)).astype(dtype)
    s = spectrum(features @ features.T, rng.normal(size=512), "precomputed", solver="eigh")
    assert float(s.d.min()) == 0.0
    assert s.unknown >= 256


@pytest.mark.parametrize(
    ("dtype", "shift"), [(np.float32, 1e-3), (np.float64, 1e-3), (np.float64, 1e-11)]
)
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_what_is_clearly_no_kernel_is_refused(dtype, shift, fit_intercept, rng):
    features = rng.normal(size=(512, 256))
    K = features @ features.T
    K = (K - shift * np.linalg.norm(K, 2) * np.eye(512)).astype(dtype)
    with pytest.raises(LinAlgError, match="not positive semi-definite"):
        spectrum(K, rng.normal(size=512), "precomputed", solver="eigh", fit_intercept=fit_intercept)


def test_negative_eigenvalues_that_matter_are_told(rng):
    features = rng.normal(size=(512, 256)).astype("float32")
    K = features @ features.T
    norm = float(np.linalg.norm(K, 2))
    K -= np.float32(1e-5 * norm) * np.eye(512, dtype="float32")
    s = spectrum(K, rng.normal(size=512), "precomputed", solver="eigh")
    with pytest.warns(RuntimeWarning, match="negative eigenvalues down to .* set to 0"):
        distill(s, 1e-3 * norm, 0.5, 2)
    with warnings.catch_warnings():  # where λ is large they do not
        warnings.simplefilter("error")
        distill(s, norm, 0.5, 2)


# ------------------------------------------------------------ λ below rounding
@pytest.mark.parametrize("solver", ["eigh", "auto"])
@pytest.mark.parametrize("size", [1e11, 1e12, 1e14])
def test_no_answer_from_eigenvalues_that_are_rounding(solver, size, rng):
    """A linear function of two features, at any weights: right, and told."""
    X = rng.normal(size=(100, 2))
    y = X @ [1.0, 2.0]
    w = size * rng.uniform(1e-6, 1.0, 100)
    s = spectrum(X, y, Linear(), sample_weight=w, solver=solver, lam=1e-3)
    X_new = rng.normal(size=(20, 2))
    with pytest.warns(RuntimeWarning, match="below the rounding of K"):
        path = distill(s, 1e-3, 0.3, 3)
    want = np.broadcast_to(X_new @ [1.0, 2.0], (3, 20))
    np.testing.assert_allclose(path.predict(X_new, step="all"), want, rtol=0, atol=1e-9)
    with pytest.warns(RuntimeWarning, match="below the rounding of K"):
        held_out = leave_one_out(s, 1e-3, 0.3, 3)
    np.testing.assert_allclose(held_out, np.broadcast_to(y, (3, 100)), rtol=0, atol=1e-8)
    with pytest.warns(RuntimeWarning, match="below the rounding of K"):
        held_out = leave_fold_out(s, 1e-3, 0.3, 3, 5)
    np.testing.assert_allclose(held_out, np.broadcast_to(y, (3, 100)), rtol=0, atol=1e-8)


def test_functions_of_unknown_eigenvalues_agree(rng):
    """A schedule, a batch and the limit take them as 0, as one λ does; λ above them does not."""
    X, y = rng.normal(size=(40, 2)), rng.normal(size=40)
    s = spectrum(X, y, Linear(), solver="eigh")
    assert s.unknown == 38
    small, large = 0.1 * s.rounding, 1e6 * s.rounding
    steps = s.pure_filters(small, 3)
    assert (steps[:, :38] == 0.0).all()
    assert (steps[:, 38:] > 0.0).all()
    assert (s.residual_filters(small, 3)[:, :38] == [[1.0], [0.0], [0.0]]).all()
    batch = s.pure_filters([small, large], 3)
    np.testing.assert_array_equal(batch[0], steps)
    np.testing.assert_array_equal(batch[1], s.pure_filters(large, 3))
    assert (batch[1][0] > 0.0).all()
    scheduled = s.pure_filters(None, 3, [small] * 3)
    np.testing.assert_allclose(scheduled[-1], steps, rtol=tolerance.FORMULA)
    residual = s.residual_filters(None, 3, [small] * 3)
    np.testing.assert_allclose(residual[:, 0], s.residual_filters(small, 3), rtol=tolerance.FORMULA)
    np.testing.assert_allclose(
        s.limit(small, 1.0), s.pure_steps(small, 1)[0], rtol=tolerance.FORMULA
    )


@pytest.mark.parametrize("solver", ["eigh", "cholesky", "tridiagonal", "nystrom"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_solver_tells(solver, dtype, rng):
    """Or refuses, where its factorisation breaks down."""
    X, y = rng.normal(size=(30, 2)).astype(dtype), rng.normal(size=30)
    norm = oracle.d_max(oracle.kernel_matrix(RBF(0.1), X))
    lam = 10.0 * float(np.finfo(dtype).eps) * norm
    options = {"n_landmarks": 20} if solver == "nystrom" else {}
    try:
        s = spectrum(X, y, RBF(0.1), solver=solver, lam=lam, **options)
        with pytest.warns(RuntimeWarning, match="below the rounding of K") as told:
            distill(s, lam, 0.5, 2)
    except LinAlgError as error:
        assert "lam is below its round-off" in str(error)  # noqa: PT017
        return
    assert ("float64" in str(told[0].message).split("use a larger lam")[1]) is (dtype == np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distill(spectrum(X, y, RBF(0.1), solver=solver, lam=norm, **options), norm, 0.5, 2)


# ------------------------------------------------------------ leave-one-out, nearly constant K
@pytest.mark.parametrize(
    ("n", "gamma"), [(5, 1e-14), (5, 1e-10), (20, 1e-14), (20, 1e-8), (60, 1e-6)]
)
def test_leave_one_out_of_a_nearly_constant_kernel(n, gamma, rng):
    X, y = rng.normal(size=(n, 2)), rng.normal(size=n)
    options = {"fit_intercept": True, "lam": 0.1}
    a = leave_one_out(spectrum(X, y, RBF(gamma), solver="eigh", **options), 0.1, 0.3, 3)
    b = leave_one_out(spectrum(X, y, RBF(gamma), solver="cholesky", **options), 0.1, 0.3, 3)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


def test_leave_one_out_of_rows_that_nearly_coincide(rng):
    y = rng.normal(size=12)
    X = 3.0 + 1e-9 * rng.normal(size=(12, 2))
    for kernel in (RBF(0.7), Matern(1.0, 1.5), Polynomial(2, 0.5, 1.0), Linear(), NTK(2)):
        options = {"fit_intercept": True, "lam": 1.0}
        a = leave_one_out(spectrum(X, y, kernel, solver="eigh", **options), 1.0, 0.3, 3)
        b = leave_one_out(spectrum(X, y, kernel, solver="cholesky", **options), 1.0, 0.3, 3)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_basis_is_orthonormal_beside_the_constant(rng):
    s = spectrum(rng.normal(size=(40, 2)), rng.normal(size=40), RBF(1e-14), fit_intercept=True)
    np.testing.assert_allclose(s.V.T @ s.V, np.eye(39), rtol=0, atol=1e-13)
    np.testing.assert_allclose(s.q @ s.V, 0.0, rtol=0, atol=1e-15)


# ------------------------------------------------------------ landmark models
@pytest.mark.parametrize("rows", ["equal", "an ulp apart", "closer than 1e-9"])
@pytest.mark.parametrize(
    "kernel", [Polynomial(2, 0.0332, 1.0), RBF(0.5), Linear(), NTK(1)], ids=str
)
def test_landmark_leave_one_out_where_the_centred_kernel_is_rounding(rows, kernel, rng):
    """What is left is the weighted mean of the other targets."""
    for n in (3, 4, 7):
        X = np.full((n, 1), 2.0)
        if rows == "an ulp apart":
            X[n // 2 :] = np.nextafter(2.0, 3.0)
        if rows == "closer than 1e-9":
            X += 1e-10 * rng.normal(size=X.shape)
        y, w = rng.normal(size=n), rng.uniform(1.0, 3.0, n)
        s = spectrum(
            X,
            y,
            kernel,
            sample_weight=w,
            fit_intercept=True,
            solver="nystrom",
            n_landmarks=1,
            block=2,
        )
        want = [np.average(np.delete(y, i), weights=np.delete(w, i)) for i in range(n)]
        got = leave_one_out(s, 1e-2, 0.3, 2)
        np.testing.assert_allclose(got, np.broadcast_to(want, (2, n)), rtol=0, atol=1e-6)


def test_landmarks_that_only_extrapolate_rounding_are_dropped(rng):
    """Against the model of the same landmarks in long double."""
    X = rng.normal(size=(300, 3))
    y, X_new = np.sin(X.sum(1)), rng.normal(size=(50, 3))
    options = {"solver": "nystrom", "sampling": "uniform", "random_state": 0}
    s = spectrum(X, y, RBF(0.1), n_landmarks=150, **options)
    assert len(s.landmarks) < 150
    for lam in (0.1, 1e-3, 1e-5):
        want = oracle.long_double_landmarks(RBF(0.1), X, y, X[s.landmarks], X_new, lam)
        got = predictions(s, lam, X_new, n_steps=1)[0]
        assert abs(got - want).max() <= 10.0 * s.rounding / lam * abs(y).max()
    assert s.rounding <= 5000.0 * tolerance.eps() * 300.0
    assert s.approximation_error < 1e-3
    whole = spectrum(X, y, RBF(0.1), n_landmarks=300, **options)  # nothing is extrapolated
    exact = predictions(spectrum(X, y, RBF(0.1)), 1e-3, X_new)
    np.testing.assert_allclose(predictions(whole, 1e-3, X_new), exact, rtol=0, atol=1e-6)


# ------------------------------------------------------------ unequal weights
def test_held_out_predictions_under_very_unequal_weights_are_told(rng):
    """With an intercept the fold that holds nearly all weight leaves rounding."""
    X, y = rng.normal(size=(6, 2)), rng.normal(size=6)
    labels = [0, 0, 1, 1, 1, 1]
    for light, told in ((1e-15, True), (1e-3, False)):
        w = np.array([1.0, 1.0, light, light, light, light])
        s = spectrum(X, y, RBF(1.0), sample_weight=w, fit_intercept=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            held_out = leave_fold_out(s, 0.4, 0.5, 2, labels)
        assert any("held-out predictions lose digits" in str(w.message) for w in caught) is told
        if not told:
            want = oracle.leave_out(
                np.array(labels),
                oracle.kernel_matrix(RBF(1.0), X),
                y[:, None],
                0.4,
                oracle.alphas_of(0.5, 2),
                w,
                True,
            )[..., 0]
            np.testing.assert_allclose(held_out, want, rtol=0, atol=tolerance.floor())


@pytest.mark.parametrize("solver", ["eigh", "cholesky", "tridiagonal", "krylov", "nystrom"])
@pytest.mark.parametrize("size", [1e60, 1e-60])
def test_weights_that_leave_the_range_are_refused(solver, size, rng):
    X, y = rng.normal(size=(12, 2)).astype("float32"), rng.normal(size=12)
    with pytest.raises(
        ValueError,
        match=r"sample_weight times the kernel leads to .* float32: multiply all weights",
    ):
        spectrum(X, y, RBF(1.0), sample_weight=np.full(12, size), solver=solver, lam=1.0)


def test_predictions_and_weights_that_overflow_are_refused(rng):
    X, y = rng.normal(size=(12, 2)), 100 * rng.normal(size=12)
    s = spectrum(X, y, Linear())
    with pytest.raises(ValueError, match="predictions overflow float64"):
        distill(s, 0.1, 0.3, 2).predict(np.full((1, 2), 1e308))
    with pytest.raises(ValueError, match="alphas are too large"):
        leave_one_out(s, 0.1, -1e200, 4)
