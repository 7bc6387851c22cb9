"""Nyström: the landmark model, exactly; and how it approaches the kernel."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from tolerance import assert_close, host

from selfdistill_fast import (
    RBF,
    Laplacian,
    Linear,
    Polynomial,
    SelfDistilledKernelRidge,
    distill,
    leave_fold_out,
    leave_one_out,
    load,
    spectrum,
)

ALPHAS = np.array([np.nan, 0.3, -1.2, 2.0])
KERNEL = RBF(0.4)


def draw(rng, n=40, p=2):
    X = rng.standard_normal((n, 2))
    X[5] = X[6]
    return X, rng.standard_normal((n, p)) + 1.0


def landmark_kernel(s, X, Z=None):
    """κ(x, L) K_LL⁻¹ κ(L, z), the kernel of the landmark model."""
    basis = host(s.basis)
    left = oracle.kernel_matrix(s.kernel, X, basis)
    right = left if Z is None else oracle.kernel_matrix(s.kernel, Z, basis)
    return right @ np.linalg.solve(oracle.kernel_matrix(s.kernel, basis), left.T)


@pytest.mark.parametrize("sampling", ["rpcholesky", "uniform"])
@pytest.mark.parametrize("lam_steps", [None, np.array([0.1, 0.3, 0.2, 0.5])], ids=["λ", "λ_t"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("intercept", [False, True], ids=["no intercept", "intercept"])
def test_equals_refits_of_the_landmark_model(
    backend, sampling, lam_steps, weighted, intercept, rng
):
    """Predictions, leave-one-out and leave-fold-out, with the landmarks held fixed."""
    X, Y = draw(rng)
    weight = rng.uniform(0.3, 2.0, len(X)) if weighted else None
    if weighted:
        weight[[3, 8]] = 0.0
    s = spectrum(
        X,
        Y,
        KERNEL,
        solver="nystrom",
        n_landmarks=12,
        sampling=sampling,
        random_state=0,
        sample_weight=weight,
        fit_intercept=intercept,
        backend=backend,
    )
    K, ridges = landmark_kernel(s, X), 0.1 if lam_steps is None else lam_steps
    Z = rng.standard_normal((5, 2))
    models = oracle.chain(K, Y, ridges, ALPHAS, weight, intercept)
    path = distill(s, 0.1, ALPHAS[1:], 4, lam_steps=lam_steps)
    expected = oracle.predict(models, landmark_kernel(s, X, Z))
    assert_close(path.predict(Z, step="all"), expected, 1e-10)
    if lam_steps is None:
        F = s.project(Z) @ s.pure_steps(0.1, 2)[1] + s.y_mean
        assert_close(F, distill(s, 0.1, 0.0, 2).predict(Z), 1e-11)
    for k in (len(X), 4, 2):
        labels = np.arange(len(X)) * k // len(X)
        expected = oracle.leave_out(labels, K, Y, ridges, ALPHAS, weight, intercept)
        if k == len(X):
            actual = leave_one_out(s, 0.1, ALPHAS[1:], 4, lam_steps=lam_steps)
        else:
            actual = leave_fold_out(s, 0.1, ALPHAS[1:], 4, k, lam_steps=lam_steps)
        assert_close(actual, expected, 1e-10)


@pytest.mark.parametrize("kernel", [RBF(1.0), Laplacian(0.5)])
def test_all_rows_as_landmarks_are_the_exact_model(backend, kernel, rng):
    X, Y = draw(rng)
    Z = rng.standard_normal((5, 2))
    s = spectrum(X, Y, kernel, solver="nystrom", n_landmarks=1000, random_state=0, backend=backend)
    exact = spectrum(X, Y, kernel, solver="eigh", backend=backend)
    assert s.k == len(X) - 1  # two rows coincide
    for alpha in (0.3, "optimal"):
        a, b = (distill(m, 0.1, alpha, 3).predict(Z, step="all") for m in (s, exact))
        assert_close(a, b, 1e-8)
    assert_close(s.diag_powers(0.1, 3), exact.diag_powers(0.1, 3), 1e-9)


@pytest.mark.parametrize(("kernel", "rank"), [(Linear(), 2), (Polynomial(2), 6)])
def test_a_kernel_of_finite_rank_needs_no_more_landmarks(kernel, rank, rng):
    X, Y = draw(rng)
    s = spectrum(X, Y, kernel, solver="nystrom", n_landmarks=30, random_state=0)
    exact = spectrum(X, Y, kernel, solver="eigh")
    assert len(s.landmarks) == s.k == rank
    assert_close(leave_one_out(s, 0.1, 0.3, 3), leave_one_out(exact, 0.1, 0.3, 3), 1e-9)


def test_pivoted_landmarks_approximate_better_than_uniform_ones(rng):
    """Of a clustered data set: uniform landmarks miss the small clusters."""
    centres = 10 * rng.standard_normal((30, 2))
    X = np.vstack([centres[0] + 0.1 * rng.standard_normal((570, 2)), centres])
    y = np.sin(X[:, 0])
    K = oracle.kernel_matrix(RBF(0.5), X)

    def gap(sampling, seed):
        s = spectrum(
            X, y, RBF(0.5), solver="nystrom", n_landmarks=40, sampling=sampling, random_state=seed
        )
        return np.trace(K - landmark_kernel(s, X))

    pivoted, uniform = (
        np.median([gap(sampling, seed) for seed in range(5)])
        for sampling in ("rpcholesky", "uniform")
    )
    assert pivoted < 0.1 * uniform


def lone_rows(n, share):
    """Most rows in a disc where y is wavy, the others strewn over a box where it is noise."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 2))
    y = np.sin(4 * X).sum(1)
    lone = rng.permutation(n)[: int(share * n)]
    X[lone] = rng.uniform(-60, 60, (len(lone), 2))
    y[lone] = rng.standard_normal(len(lone))
    return X, y


def small_clusters(n):
    """Most rows in a disc, the others in hundreds of tiny clusters, which y tells apart."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((n, 2)), np.zeros(n)
    centres, levels = rng.uniform(-60, 60, (150, 2)), rng.standard_normal(150)
    of = rng.integers(0, 150, n // 8)
    X[: len(of)] = centres[of] + 0.05 * rng.standard_normal((len(of), 2))
    y[: len(of)] = levels[of]
    return X, y


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("targets", [1, 3])
def test_auto_takes_the_landmarks_that_predict_better(backend, weighted, targets):
    w = np.linspace(0.5, 1.5, 6000) if weighted else None
    if weighted:
        w[::100] = 0.0
    for (X, y), expected in (
        (lone_rows(6000, 0.2), "kmeans"),
        (small_clusters(6000), "rpcholesky"),
    ):
        Y = np.stack([y] * targets, 1) * np.geomspace(1, 1e3, targets) + 5.0
        options = {"n_landmarks": 400, "sample_weight": w, "fit_intercept": True}
        options |= {"solver": "nystrom", "random_state": 0, "backend": backend}
        s = spectrum(X, Y, RBF(0.5), **options)
        assert s.sampling == expected
        same = spectrum(X, Y, RBF(0.5), sampling=expected, **options)
        assert same.sampling == expected
        np.testing.assert_array_equal(host(s.basis), host(same.basis))


def test_auto_is_randomly_pivoted_cholesky_where_no_pilot_can_tell():
    def sampling(n, y=None, kernel=KERNEL, m=200, **options):
        X, wavy = lone_rows(n, 0.2)
        y = wavy if y is None else np.full(n, y)
        options |= {"solver": "nystrom", "n_landmarks": m, "random_state": 0}
        return spectrum(X, y, kernel, **options).sampling

    assert sampling(4000) == "rpcholesky"  # few rows
    assert sampling(6000, m=63) == "rpcholesky"  # few landmarks
    for y in (0.0, 3.0):  # without anything to tell
        assert sampling(6000, y=y, fit_intercept=True) == "rpcholesky"
    assert sampling(6000, kernel=RBF(0.5), m=400) == "kmeans"

    def own(X, Z):  # to which distances of rows may mean nothing
        return oracle.kernel_matrix(RBF(0.5), X, Z)

    assert sampling(6000, kernel=own, m=400) == "rpcholesky"


@pytest.mark.parametrize("sampling", ["auto", "rpcholesky", "uniform", "kmeans"])
@pytest.mark.parametrize("intercept", [False, True])
def test_a_kernel_matrix_of_zeros(backend, sampling, intercept):
    X, y = np.zeros((8, 2)), np.arange(8.0)
    s = spectrum(
        X,
        y,
        Linear(),
        solver="nystrom",
        n_landmarks=3,
        sampling=sampling,
        fit_intercept=intercept,
        backend=backend,
    )
    assert s.k == 0
    assert s.approximation_error == 0.0
    mean = y.mean() if intercept else 0.0
    np.testing.assert_array_equal(distill(s, 0.1, 0.3, 2).predict(X), np.full(8, mean))
    others = (y.sum() - y) / 7 if intercept else np.zeros(8)
    assert_close(leave_one_out(s, 0.1, 0.3, 2), np.stack([others, others]), 1e-13)
    assert s.project(X).shape == (8, 0)


def test_kmeans_landmarks_are_in_the_middle_of_clusters(rng):
    X, Y = draw(rng)
    s = spectrum(X, Y, KERNEL, solver="nystrom", n_landmarks=12, sampling="kmeans", random_state=0)
    assert s.basis.shape == (12, 2)
    np.testing.assert_array_equal(s.basis, X[s.landmarks])
    options = {"solver": "nystrom", "n_landmarks": 12, "sampling": "uniform"}
    uniform = [spectrum(X, Y, KERNEL, random_state=i, **options).basis for i in range(5)]
    far = [np.square(X[:, None] - basis).sum(-1).min(1).sum() for basis in (s.basis, *uniform)]
    assert far[0] < 0.8 * min(far[1:])
    models = oracle.chain(landmark_kernel(s, X), Y, 0.1, ALPHAS)
    Z = rng.standard_normal((5, 2))
    expected = oracle.predict(models, landmark_kernel(s, X, Z))
    assert_close(distill(s, 0.1, ALPHAS[1:], 4).predict(Z, step="all"), expected, 1e-10)


def test_a_function_keeps_what_it_returned(rng):
    """Also where it hands the same array out again; indefinite and asymmetric ones are refused."""
    X, Y = draw(rng)
    kept = {}

    def kernel(A, B):
        key = A.tobytes(), B.tobytes()
        return kept.setdefault(key, np.exp(-0.4 * ((A[:, None] - B[None]) ** 2).sum(-1)))

    for _ in range(2):
        s = spectrum(X, Y, kernel, solver="nystrom", n_landmarks=12, random_state=0)
        t = spectrum(X, Y, KERNEL, solver="nystrom", n_landmarks=12, random_state=0)
        assert_close(leave_one_out(s, 0.1, 0.3, 3), leave_one_out(t, 0.1, 0.3, 3), 1e-9)
    with pytest.raises(np.linalg.LinAlgError, match="not positive semi-definite"):
        spectrum(
            X,
            Y,
            lambda A, B: 1.0 - ((A[:, None] - B[None]) ** 2).sum(-1),
            solver="nystrom",
            n_landmarks=30,
            random_state=0,
        )
    with pytest.raises(ValueError, match="not symmetric"):
        spectrum(X, Y, lambda A, B: A @ B.T + A[:, :1], solver="nystrom", n_landmarks=30)


@pytest.mark.parametrize("sampling", ["rpcholesky", "uniform"])
def test_large_folds(backend, sampling, rng):
    """More rows than coordinates in a fold: the block is factorised in coordinates."""
    X, Y = draw(rng, n=60)
    for weights, intercept in ((None, False), (rng.uniform(0.3, 2.0, 60), True)):
        s = spectrum(
            X,
            Y,
            KERNEL,
            solver="nystrom",
            n_landmarks=6,
            sampling=sampling,
            random_state=0,
            sample_weight=weights,
            fit_intercept=intercept,
            backend=backend,
        )
        labels = np.arange(60) * 2 // 60
        expected = oracle.leave_out(
            labels, landmark_kernel(s, X), Y, 0.1, ALPHAS, weights, intercept
        )
        assert_close(leave_fold_out(s, 0.1, ALPHAS[1:], 4, 2), expected, 1e-10)


def test_the_seed_decides(rng):
    X, Y = draw(rng)
    options = {"solver": "nystrom", "n_landmarks": 8}
    first, again, other = (
        spectrum(X, Y, KERNEL, random_state=seed, **options).landmarks for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


def test_float32(backend, rng):
    X, Y = draw(rng)
    options = {"solver": "nystrom", "n_landmarks": 10, "random_state": 0, "backend": backend}
    single = spectrum(X.astype(np.float32), Y.astype(np.float32), KERNEL, **options)
    path = distill(single, 0.5, 0.3, 3)
    assert path.predict(X).dtype == np.float32
    K = landmark_kernel(single, X)
    models = oracle.chain(K, Y, 0.5, np.array([np.nan, 0.3, 0.3]))
    assert_close(path.predict(X), oracle.predict(models, K)[-1], 1e-3)


def test_in_the_estimator_and_in_a_file(tmp_path, rng):
    X, Y = draw(rng)
    model = SelfDistilledKernelRidge(
        solver="nystrom", solver_options={"n_landmarks": 10}, random_state=0, lam=0.1
    ).fit(X, Y)
    assert model.dual_coef_.shape == (10, 2)
    model.path_.save(tmp_path / "m.npz")
    np.testing.assert_array_equal(load(tmp_path / "m.npz").predict(X), model.predict(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_landmarks": 0}, "n_landmarks"),
        ({"n_landmarks": 2.5}, "n_landmarks"),
        ({"sampling": "best"}, "sampling"),
        ({"landmarks": 3}, "no option landmarks"),
        ({"max_memory": 1000}, "n_landmarks"),
    ],
)
def test_bad_options(options, message, rng):
    X, Y = draw(rng)
    with pytest.raises((TypeError, ValueError, MemoryError), match=message):
        spectrum(X, Y, KERNEL, solver="nystrom", **options)
    with pytest.raises(ValueError, match="rows"):
        spectrum(np.eye(4), np.ones(4), "precomputed", solver="nystrom")


def test_a_model_without_landmarks_and_a_ridge_out_of_range():
    """K = 0 has no landmarks; the limit's coefficients were looked for among none."""
    X, y = np.zeros((4, 2), np.float32), np.array([1.0, 2.0, 3.0, 4.0])
    s = spectrum(X, y, Polynomial(2, 1.0, 0.0), solver="nystrom", n_landmarks=2)
    assert s.k == 0
    with pytest.raises(ValueError, match="out of range in float32"):
        distill(s, 1e-77, 0.3, 2).predict(X)
