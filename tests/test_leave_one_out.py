"""Leave-one-out predictions of the whole chain equal n chains of refits, one without each row."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import tolerance
from cases import ALPHAS, KERNELS, kernel_id
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.model_selection import KFold
from tolerance import assert_close

from selfdistill_fast import (
    RBF,
    Linear,
    Matern,
    distill,
    leave_fold_out,
    leave_one_out,
    spectrum,
)

T = 6


def draw(rng, n=14, d=2, p=2, *, duplicates=False):
    X = rng.standard_normal((n, d))
    if duplicates:
        X[n // 2 :] = X[: n - n // 2]
    return X, rng.standard_normal((n, p)) + 2.0 + np.sin(X[:, :1])


def check(actual, K, Y, lam, alpha, *, weight=None, intercept=False, dtype=np.float64, labels=None):
    """``actual`` (T, n, p) against refits without each row, or each group of ``labels``."""
    T = len(actual)
    Y = np.asarray(Y, np.float64)
    labels = np.arange(len(Y)) if labels is None else labels
    alphas = oracle.alphas_of(alpha, T)
    expected = oracle.leave_out(labels, K, Y, lam, alphas, weight, intercept)
    pure = oracle.leave_out(labels, K, Y, lam, oracle.alphas_of(0.0, T), weight, intercept)
    d_max = oracle.d_max(K, weight)
    assert actual.shape == expected.shape
    for t in range(T):
        c = oracle.weights_of(alphas[: t + 1])
        scale = max(np.abs(pure[k]).max() for k in range(t + 1) if c[k] != 0)
        if scale == 0:  # a lone row: nothing is left to fit, up to the rounding of y − y
            scale = 1e-3 * np.abs(Y).max()
        rtol = tolerance.chain(d_max, np.min(lam), c, dtype)
        assert_close(actual[t], expected[t], rtol, scale, f"step {t + 1}")


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS.keys())
@pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)
def test_equals_refits_for_every_kernel(backend, kernel, alpha, rng):
    X, Y = draw(rng)
    s = spectrum(X, Y, kernel, backend=backend)
    check(leave_one_out(s, 0.3, alpha, T), oracle.kernel_matrix(kernel, X), Y, 0.3, alpha)


@pytest.mark.parametrize("lam", [1e-8, 1e-4, 1e-1, 1.0, 1e3])
@pytest.mark.parametrize("duplicates", [False, True], ids=["full rank", "duplicate rows"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("intercept", [False, True], ids=["no intercept", "intercept"])
def test_equals_refits_for_every_lam(backend, lam, duplicates, weighted, intercept, rng):
    X, Y = draw(rng, duplicates=duplicates)
    weight = rng.uniform(0.1, 3.0, len(X)) if weighted else None
    for kernel in (Matern(1.0, 1.5), Linear()):
        K = oracle.kernel_matrix(kernel, X)
        s = spectrum(X, Y, kernel, sample_weight=weight, fit_intercept=intercept, backend=backend)
        for alpha in (0.0, ALPHAS["mixed"]):
            actual = leave_one_out(s, lam, alpha, T)
            check(actual, K, Y, lam, alpha, weight=weight, intercept=intercept)


@pytest.mark.parametrize("intercept", [False, True])
def test_a_row_of_weight_zero_gets_the_full_models_prediction(backend, intercept, rng):
    X, Y = draw(rng)
    weight = rng.uniform(0.1, 3.0, len(X))
    weight[[0, 5, 13]] = 0.0
    s = spectrum(X, Y, RBF(0.5), sample_weight=weight, fit_intercept=intercept, backend=backend)
    actual = leave_one_out(s, 0.05, ALPHAS["mixed"], T)
    K = oracle.kernel_matrix(RBF(0.5), X)
    check(actual, K, Y, 0.05, ALPHAS["mixed"], weight=weight, intercept=intercept)
    full = distill(s, 0.05, ALPHAS["mixed"], T).predict(X, step="all")
    assert_close(actual[:, weight == 0], full[:, weight == 0], 1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 17])
@pytest.mark.parametrize("p", [1, 7])
def test_awkward_sizes(backend, n, p, rng):
    X, Y = draw(rng, n=n, p=p)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    check(leave_one_out(s, 0.1, 0.4, T), oracle.kernel_matrix(RBF(0.5), X), Y, 0.1, 0.4)


def test_one_row_left_out_of_one_row_leaves_the_zero_function(backend):
    s = spectrum(np.ones((1, 2)), np.array([3.0]), RBF(0.5), backend=backend)
    assert_close(leave_one_out(s, 0.1, 0.4, 3), np.zeros((3, 1)), 1e-15, 3.0)


def test_two_rows_with_an_intercept(backend, rng):
    X, Y = draw(rng, n=2)
    s = spectrum(X, Y, RBF(0.5), fit_intercept=True, backend=backend)
    # what is left is one row: the intercept is its target
    expected = np.broadcast_to(Y[::-1], (3, 2, 2))
    assert_close(leave_one_out(s, 0.1, 0.4, 3), expected, 1e-12)


def test_leaving_out_the_only_row_with_an_intercept_is_an_error(backend):
    s = spectrum(np.ones((1, 2)), np.array([3.0]), RBF(0.5), fit_intercept=True, backend=backend)
    with pytest.raises(ValueError, match=r"(?i)row|sample|leave"):
        leave_one_out(s, 0.1, 0.4, 3)


def test_shapes_follow_the_targets_and_lam(backend, rng):
    X, Y = draw(rng)
    lams = np.array([0.01, 0.3, 20.0])
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    one = spectrum(X, Y[:, 0], RBF(0.5), backend=backend)
    batch = leave_one_out(s, lams, 0.4, T)
    assert batch.shape == (3, T, *Y.shape)
    assert leave_one_out(one, lams, 0.4, T).shape == (3, T, len(X))
    assert leave_one_out(one, 0.3, 0.4, T).shape == (T, len(X))
    for lam, predictions in zip(lams, batch, strict=True):
        assert_close(predictions, leave_one_out(s, lam, 0.4, T), 1e-13)
        assert_close(leave_one_out(one, lam, 0.4, T), predictions[:, :, 0], 1e-13)


def test_accepts_a_sequence_and_the_alphas_of_a_path(backend, rng):
    X, Y = draw(rng)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    path = distill(s, 0.1, ALPHAS["mixed"], T)
    np.testing.assert_array_equal(
        leave_one_out(s, 0.1, path.alphas, T), leave_one_out(s, 0.1, ALPHAS["mixed"], T)
    )


@pytest.mark.parametrize("intercept", [False, True])
def test_float32(backend, intercept, rng):
    X, Y = (a.astype(np.float32) for a in draw(rng))
    s = spectrum(X, Y, RBF(0.5), fit_intercept=intercept, backend=backend)
    actual = leave_one_out(s, 0.3, 0.25, T)
    assert actual.dtype == np.float32
    K = oracle.kernel_matrix(RBF(0.5), X)
    check(actual, K, Y, 0.3, 0.25, intercept=intercept, dtype=np.float32)


def test_the_target_left_out_does_not_matter(backend, rng):
    """Changing y_i changes every prediction but the one that leaves row i out."""
    X, Y = draw(rng)
    before = leave_one_out(spectrum(X, Y, RBF(0.5), backend=backend), 0.1, 0.3, T)
    Y[4] += 1000.0
    after = leave_one_out(spectrum(X, Y, RBF(0.5), backend=backend), 0.1, 0.3, T)
    assert_close(after[:, 4], before[:, 4], 1e-10, 1000.0)
    assert (np.abs(after - before).max(axis=(0, 2))[np.arange(len(X)) != 4] > 1e-3).all()


def test_not_the_textbook_shortcut(backend, rng):
    """(S y − S_ii y)/(1 − S_ii) with the distilled smoother S is another quantity from τ = 2 on."""
    X, Y = draw(rng)
    K = oracle.kernel_matrix(RBF(0.5), X)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    actual = leave_one_out(s, 0.3, 0.0, 2)
    for step in (1, 2):
        S = np.linalg.matrix_power(K @ np.linalg.inv(K + 0.3 * np.eye(len(K))), step)
        h = np.diag(S)[:, None]
        shortcut = (S @ Y - h * Y) / (1 - h)
        same = np.abs(actual[step - 1] - shortcut).max() < 1e-9
        assert same == (step == 1)


def test_small_predictions_keep_their_digits(backend, rng):
    """λ ≫ d_max: the six-step predictions are 1e-12 of the targets and still relatively exact."""
    X, Y = draw(rng)
    K = oracle.kernel_matrix(RBF(0.5), X)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    check(leave_one_out(s, 1e3, 0.0, T), K, Y, 1e3, 0.0)


@given(data=st.data())
def test_equals_refits_for_drawn_problems(data, backend):
    n = data.draw(st.integers(1, 9), label="n")
    p = data.draw(st.integers(1, 2), label="p")
    kernel = data.draw(st.sampled_from(KERNELS), label="kernel")
    lam = data.draw(st.sampled_from([1e-6, 1e-3, 0.2, 7.0, 1e3]), label="lam")
    alphas = data.draw(
        st.lists(st.floats(-2.0, 3.0), min_size=T - 1, max_size=T - 1), label="alphas"
    )
    intercept = data.draw(st.booleans(), label="intercept")
    weight = data.draw(
        st.none() | st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.5]), min_size=n, max_size=n),
        label="weight",
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    X, Y = np.round(rng.standard_normal((n, 2)) * 2) / 2, rng.standard_normal((n, p))
    positive = n if weight is None else np.count_nonzero(weight)
    # a lone row cannot be left out of a fit with an intercept; no row cannot be fitted
    assume(positive >= 1 + intercept)
    weight = None if weight is None else np.array(weight)
    s = spectrum(X, Y, kernel, sample_weight=weight, fit_intercept=intercept, backend=backend)
    actual = leave_one_out(s, lam, alphas, T)
    K = oracle.kernel_matrix(kernel, X)
    check(actual, K, Y, lam, alphas, weight=weight, intercept=intercept)


# ------------------------------------------------------------------ the other ways to solve


@pytest.mark.parametrize("lam", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("intercept", [False, True], ids=["no intercept", "intercept"])
def test_cholesky_serves_up_to_four_steps(backend, lam, weighted, intercept, rng):
    X, Y = draw(rng)
    weight = np.where(np.arange(14) % 6 == 2, 0.0, 1.7) if weighted else None
    K = oracle.kernel_matrix(RBF(0.5), X)
    for n_steps in (1, 2, 3, 4):
        s = spectrum(
            X, Y, RBF(0.5), solver="cholesky", lam=lam,
            sample_weight=weight, fit_intercept=intercept, backend=backend,
        )  # fmt: skip
        alpha = ALPHAS["mixed"][: n_steps - 1]
        actual = leave_one_out(s, lam, alpha, n_steps)
        check(actual, K, Y, lam, alpha, weight=weight, intercept=intercept)
    with pytest.raises(ValueError, match="eigh"):
        leave_one_out(s, lam, 0.5, 5)


@pytest.mark.parametrize("intercept", [False, True], ids=["no intercept", "intercept"])
def test_a_ridge_for_each_step(backend, intercept, rng):
    X, Y = draw(rng)
    weight = rng.uniform(0.1, 3.0, len(X))
    weight[3] = 0.0
    K = oracle.kernel_matrix(RBF(0.5), X)
    s = spectrum(X, Y, RBF(0.5), sample_weight=weight, fit_intercept=intercept, backend=backend)
    lams = [0.1, 0.02, 3.0, 0.5, 0.1, 7.0]
    for alpha in (0.0, ALPHAS["mixed"]):
        actual = leave_one_out(s, None, alpha, T, lam_steps=lams)
        check(actual, K, Y, lams, alpha, weight=weight, intercept=intercept)


FOLDS = {
    "three folds": (3, np.repeat([0, 1, 2], [5, 5, 4])),
    "groups": (np.array(list("abcabbaaccabba")),) * 2,
    "splitter": (KFold(4), np.repeat([0, 1, 2, 3], [4, 4, 3, 3])),
    "single rows": (14, np.arange(14)),
}


@pytest.mark.parametrize(("folds", "labels"), FOLDS.values(), ids=FOLDS.keys())
@pytest.mark.parametrize("solver", ["eigh", "cholesky"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("intercept", [False, True], ids=["no intercept", "intercept"])
def test_folds_and_groups(backend, folds, labels, solver, weighted, intercept, rng):
    X, Y = draw(rng)
    weight = rng.uniform(0.1, 3.0, len(X)) if weighted else None
    if weighted:
        weight[[0, 5, 13]] = 0.0
    K = oracle.kernel_matrix(RBF(0.5), X)
    for lam in (1e-3, 0.3):
        s = spectrum(
            X, Y, RBF(0.5), solver=solver, lam=lam,
            sample_weight=weight, fit_intercept=intercept, backend=backend,
        )  # fmt: skip
        for n_steps, alpha in ((4, 0.0), (4, ALPHAS["mixed"][:3])):
            actual = leave_fold_out(s, lam, alpha, n_steps, folds)
            check(actual, K, Y, lam, alpha, weight=weight, intercept=intercept, labels=labels)


@pytest.mark.parametrize("lam", [1e-8, 1e-3, 1.0, 1e3])
def test_against_mpmath(backend, lam, rng):
    X, Y = draw(rng, n=10, p=1, duplicates=True)
    K = oracle.kernel_matrix(RBF(0.5), X)
    alphas = oracle.alphas_of([0.2, 1.3, -0.5], 4)
    expected = oracle.mp_leave_one_out(K, Y, lam, alphas)
    pure = oracle.mp_leave_one_out(K, Y, lam, oracle.alphas_of(0.0, 4))
    s = spectrum(K, Y, "precomputed", backend=backend)
    actual = leave_one_out(s, lam, alphas, 4)
    for t in range(4):
        c = oracle.weights_of(alphas[: t + 1])
        rtol = tolerance.chain(oracle.d_max(K), lam, c)
        assert_close(actual[t], expected[t], rtol, np.abs(pure[: t + 1]).max(), f"step {t + 1}")


@pytest.mark.parametrize("solver", ["eigh", "nystrom"])
@pytest.mark.parametrize("intercept", [False, True])
def test_folds_are_built_once_for_every_lam(backend, solver, intercept, monkeypatch, rng):
    """The rows of a fold do not depend on λ; of a landmark model they are a pass over the data."""
    X, Y = draw(rng, n=20)
    weight = np.where(np.arange(20) % 7 == 0, 0.0, 1.0 + np.arange(20) % 3)
    options = {"n_landmarks": 6, "random_state": 0} if solver == "nystrom" else {}
    options |= {"sample_weight": weight, "fit_intercept": intercept}
    s = spectrum(X, Y, RBF(0.5), solver=solver, backend=backend, **options)
    lams = [0.03, 0.3, 3.0]
    expected = [leave_fold_out(s, lam, [0.3, 1.2], 3, 4) for lam in lams]
    built, original = [], type(s).fold
    monkeypatch.setattr(
        type(s), "fold", lambda self, rows: built.append(len(rows)) or original(self, rows)
    )
    actual = leave_fold_out(s, lams, [0.3, 1.2], 3, 4)
    assert len(built) == 4
    for one, wanted in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, wanted)
