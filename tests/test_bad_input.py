"""Bad input is a clear error: the right type, and a message that names what was wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import sparse

from selfdistill_fast import (
    RBF,
    Linear,
    SelfDistilledKernelRidge,
    alphas_to_weights,
    distill,
    gram,
    gram_matmul,
    joint_weights,
    leave_one_out,
    limit_shrinkage,
    optimal_alpha,
    shrinkage_path,
    spectrum,
    weights_to_alphas,
)

X = np.linspace(-1, 1, 12).reshape(6, 2)
Y = np.arange(6.0)
K = np.exp(-np.square(X[:, None] - X).sum(-1))
BAD_INPUT = (TypeError, ValueError)


@pytest.fixture
def fitted(backend):
    return spectrum(X, Y, RBF(1.0), backend=backend)


def broken(array, value, where=(2,)):
    array = np.array(array, dtype=float)
    array[where] = value
    return array


# ------------------------------------------------------------------ arrays

BAD_X = {
    "nan": (broken(X, math.nan), ValueError, "NaN|nan"),
    "inf": (broken(X, math.inf), ValueError, "inf"),
    "minus inf": (broken(X, -math.inf), ValueError, "inf"),
    "no rows": (X[:0], ValueError, "empty|at least one"),
    "no columns": (X[:, :0], ValueError, "empty|no features"),
    "1-D": (X[:, 0], ValueError, "dimension"),
    "3-D": (X[None], ValueError, "dimension"),
    "scalar": (3.0, ValueError, "dimension"),
    "ragged": ([[1.0, 2.0], [3.0]], ValueError, "rectangular|shape|array"),
    "strings": ([["a", "b"]] * 6, TypeError, "real|number|dtype"),
    "complex": (X + 1j, TypeError, "real|complex|dtype"),
    "objects": (np.array([[object(), 1.0]] * 6), TypeError, "real|number"),
    "sparse array": (sparse.csr_array(X), TypeError, r"toarray"),
    "sparse matrix": (sparse.csr_matrix(X), TypeError, r"toarray"),
    "None": (None, BAD_INPUT, "X"),
    "dates": (np.array([["2020-01-01", "2020-01-02"]] * 6, "M8[D]"), TypeError, "real|dtype"),
}
bad_x = pytest.mark.parametrize(("bad", "error", "match"), BAD_X.values(), ids=BAD_X.keys())


@bad_x
def test_bad_x(backend, bad, error, match):
    with pytest.raises(error, match=match):
        spectrum(bad, Y, RBF(1.0), backend=backend)


@bad_x
def test_bad_x_to_the_estimator(bad, error, match):
    # scikit-learn's own checks speak first, in their own words
    if getattr(bad, "dtype", None) == np.dtype("M8[D]"):
        pytest.skip("scikit-learn takes dates for numbers")
    with pytest.raises(BAD_INPUT, match=r"\w+"):
        SelfDistilledKernelRidge().fit(bad, Y)


@bad_x
def test_bad_x_to_predict(fitted, bad, error, match):
    if match.startswith("empty") and len(bad) == 0:
        pytest.skip("no rows to predict is not an error")
    path = distill(fitted, 0.1, 0.5, 2)
    with pytest.raises(error, match=match + "|features"):
        path.predict(bad)


@bad_x
def test_bad_x_to_gram(backend, bad, error, match):
    if match.startswith("empty") and len(bad) == 0:
        pytest.skip("a Gram matrix may have no rows")
    with pytest.raises(error, match=match):
        gram(bad, None, RBF(1.0), backend=backend)
    with pytest.raises(error, match=match.replace("X", "Z") + "|Z"):
        gram(X, bad if bad is not None else "no rows", RBF(1.0), backend=backend)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (broken(Y, math.nan), ValueError),
        (broken(Y, math.inf), ValueError),
        (Y[:5], ValueError),
        (np.ones(7), ValueError),
        (Y.reshape(1, 6, 1), ValueError),
        (np.empty((6, 0)), ValueError),
        (list("abcdef"), TypeError),
        (Y + 1j, TypeError),
        (sparse.csr_array(Y[:, None]), TypeError),
        (None, BAD_INPUT),
        (1.0, ValueError),
    ],
)
def test_bad_y(backend, bad, error):
    with pytest.raises(error, match=r"\b[yY]\b"):
        spectrum(X, bad, RBF(1.0), backend=backend)


@pytest.mark.parametrize(
    "bad",
    [
        broken(np.ones(6), -1.0),
        broken(np.ones(6), math.nan),
        broken(np.ones(6), math.inf),
        np.zeros(6),
        np.ones(5),
        np.ones((6, 1)),
        list("abcdef"),
    ],
)
def test_bad_sample_weight(backend, bad):
    with pytest.raises(BAD_INPUT, match="sample_weight"):
        spectrum(X, Y, RBF(1.0), sample_weight=bad, backend=backend)
    s = spectrum(X, Y, RBF(1.0), backend=backend)
    with pytest.raises(BAD_INPUT, match="sample_weight"):
        distill(s, 0.1, "optimal", 2, X_val=X, y_val=Y, sample_weight_val=bad)


def test_mismatched_features(fitted, backend):
    path = distill(fitted, 0.1, 0.5, 2)
    for bad in (X[:, :1], np.ones((4, 3))):
        with pytest.raises(ValueError, match="feature"):
            path.predict(bad)
        with pytest.raises(ValueError, match="feature"):
            fitted.project(bad)
        with pytest.raises(ValueError, match=r"feature|column"):
            gram(X, bad, RBF(1.0), backend=backend)
        with pytest.raises(ValueError, match="feature"):
            distill(fitted, 0.1, "optimal", 2, X_val=bad, y_val=np.ones(len(bad)))


def test_mismatched_matmul(backend):
    for bad in (np.ones((5, 2)), np.ones((7, 2)), np.ones((6, 2, 1)), np.float64(1.0)):
        with pytest.raises(ValueError, match="W"):
            gram_matmul(X, X, bad, RBF(1.0), backend=backend)


# ------------------------------------------------------------------ kernel matrices


def test_precomputed_that_is_not_square(backend):
    with pytest.raises(ValueError, match="square"):
        spectrum(K[:, :5], Y, "precomputed", backend=backend)


def test_precomputed_that_is_not_symmetric(backend):
    bad = K.copy()
    bad[1, 4] += 0.01
    with pytest.raises(ValueError, match="symmetric"):
        spectrum(bad, Y, "precomputed", backend=backend)
    with pytest.raises(ValueError, match="symmetric"):
        spectrum(X, Y, lambda A, B: np.arange(1.0 * len(A) * len(B)).reshape(len(A), -1),
                 backend=backend)  # fmt: skip


@pytest.mark.parametrize("intercept", [False, True])
def test_a_matrix_that_is_not_positive_semi_definite_names_the_eigenvalue(backend, intercept):
    smallest = -0.25
    V = np.linalg.qr(np.vander(np.linspace(0.3, 1, 6)))[0]
    V[:, 0] = 0  # leave the eigenvector of the bad eigenvalue orthogonal to the constant
    v = np.array([1.0, -1, 0, 0, 0, 0]) / math.sqrt(2)
    bad = np.eye(6) + (smallest - 1) * np.outer(v, v)
    with pytest.raises(np.linalg.LinAlgError, match=r"-0\.25"):
        spectrum(bad, Y, "precomputed", fit_intercept=intercept, backend=backend)


def test_round_off_is_not_mistaken_for_indefiniteness(backend):
    """Rank one, with eigenvalues of ±1e-16 where they should be 0."""
    v = np.linspace(1, 2, 60)
    s = spectrum(np.outer(v, v) + 1e-17, np.ones(60), "precomputed", backend=backend)
    assert bool((s.d >= 0).all())


def test_callable_kernel_with_a_bad_result(backend):
    for function in (
        lambda A, B: np.ones((2, 3)),
        lambda A, B: np.full((len(A), len(B)), np.nan),
        lambda A, B: "K",
        lambda A, B: None,
    ):
        with pytest.raises(BAD_INPUT, match=r"kernel|K"):
            spectrum(X, Y, function, backend=backend)


def test_precomputed_predict_needs_a_column_for_each_row(backend):
    path = distill(spectrum(K, Y, "precomputed", backend=backend), 0.1, 0.5, 2)
    with pytest.raises(ValueError, match=r"K|column"):
        path.predict(K[:, :5])
    with pytest.raises(ValueError, match="precomputed"):
        gram(K, K, "precomputed", backend=backend)
    np.testing.assert_array_equal(gram(K, None, "precomputed", backend=backend), K)


# ------------------------------------------------------------------ λ

BAD_LAM = {
    "zero": (0.0, ValueError),
    "negative": (-1.0, ValueError),
    "nan": (math.nan, ValueError),
    "inf": (math.inf, ValueError),
    "string": ("0.1", BAD_INPUT),
    "None": (None, BAD_INPUT),
    "True": (True, BAD_INPUT),
    "complex": (1j, BAD_INPUT),
}
bad_lam = pytest.mark.parametrize(("lam", "error"), BAD_LAM.values(), ids=BAD_LAM.keys())


@bad_lam
def test_bad_lam(fitted, lam, error):
    for call in (
        lambda: distill(fitted, lam, 0.5, 2),
        lambda: distill(fitted, lam, "optimal", 2),
        lambda: leave_one_out(fitted, lam, 0.5, 2),
        lambda: fitted.pure_steps(lam, 2),
        lambda: shrinkage_path([1.0, 2.0], lam, 0.5, 2),
        lambda: limit_shrinkage([1.0, 2.0], lam, 0.5),
        lambda: SelfDistilledKernelRidge(lam=lam).fit(X, Y),
    ):
        with pytest.raises(error, match="lam"):
            call()


def test_a_batch_of_lams_where_one_is_wanted(fitted):
    """A 1-D lam is a batch, never a schedule over the steps."""
    for call in (
        lambda: distill(fitted, [0.1, 0.2], 0.5, 2),
        lambda: distill(fitted, [0.1], 0.5, 2),
        lambda: SelfDistilledKernelRidge(lam=[0.1, 0.2]).fit(X, Y),
    ):
        with pytest.raises(BAD_INPUT, match=r"lam.*(batch|scalar)|(batch|scalar).*lam"):
            call()
    with pytest.raises(ValueError, match="lam"):
        leave_one_out(fitted, [[0.1]], 0.5, 2)
    with pytest.raises(ValueError, match="lam"):
        leave_one_out(fitted, [0.1, -0.1], 0.5, 2)


# ------------------------------------------------------------------ α and steps


@pytest.mark.parametrize(
    ("alpha", "error"),
    [
        ([0.5], ValueError),
        ([0.5, 0.5, 0.5], ValueError),
        ([0.1, 0.5, 0.5, 0.5], ValueError),
        ([], ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ([0.5, math.nan], ValueError),
        ([math.nan, 0.5, math.inf], ValueError),
        ("best", ValueError),
        (None, BAD_INPUT),
        (True, BAD_INPUT),
        (["a", "b"], BAD_INPUT),
        ([[0.5, 0.5]], ValueError),
        (0.5j, BAD_INPUT),
    ],
)
def test_bad_alpha_for_three_steps(fitted, alpha, error):
    for call in (
        lambda: distill(fitted, 0.1, alpha, 3),
        lambda: leave_one_out(fitted, 0.1, alpha, 3),
        lambda: shrinkage_path([1.0, 2.0], 0.1, alpha, 3),
        lambda: SelfDistilledKernelRidge(alpha=alpha, n_steps=3).fit(X, Y),
    ):
        with pytest.raises(error, match="alpha"):
            call()


def test_a_word_where_numbers_are_needed(fitted):
    for word in ("optimal", "joint"):
        with pytest.raises(BAD_INPUT, match="alpha"):
            leave_one_out(fitted, 0.1, word, 3)
        with pytest.raises(BAD_INPUT, match="alpha"):
            shrinkage_path([1.0], 0.1, word, 3)


@pytest.mark.parametrize("n_steps", [0, -1, 1.5, "2", None, True, math.nan, math.inf])
def test_bad_number_of_steps(fitted, n_steps):
    for call in (
        lambda: distill(fitted, 0.1, 0.5, n_steps),
        lambda: leave_one_out(fitted, 0.1, 0.5, n_steps),
        lambda: fitted.pure_steps(0.1, n_steps),
        lambda: shrinkage_path([1.0, 2.0], 0.1, 0.5, n_steps),
        lambda: SelfDistilledKernelRidge(n_steps=n_steps).fit(X, Y),
    ):
        with pytest.raises(BAD_INPUT, match="n_steps"):
            call()


@pytest.mark.parametrize("step", [0, -1, 4, 1.5, "final", True, math.nan, -math.inf, [1], 1j])
def test_bad_step(fitted, step):
    path = distill(fitted, 0.1, 0.5, 3)
    model = SelfDistilledKernelRidge(alpha=0.5, n_steps=3).fit(X, Y)
    for call in (
        lambda: path.predict(X, step=step),
        lambda: path.dual_coef(step),
        lambda: model.predict(X, step=step),
    ):
        with pytest.raises(BAD_INPUT, match="step"):
            call()


def test_integers_of_other_types_are_steps(fitted):
    path = distill(fitted, 0.1, 0.5, np.int64(3))
    np.testing.assert_array_equal(path.predict(X, step=np.int32(2)), path.predict(X, step=2))
    np.testing.assert_array_equal(path.predict(X, step=np.inf), path.predict(X, step=math.inf))
    np.testing.assert_array_equal(
        path.predict(X, step=np.float64("inf")), path.predict(X, step=math.inf)
    )


def test_a_limit_that_does_not_exist(backend):
    s = spectrum(X, Y, RBF(1.0), backend=backend)
    for alpha in (2.5, -0.5, [0.2, 0.4], "optimal"):
        path = distill(s, 1e-3, alpha, 3)
        assert path.predict(X).shape == (6,)  # the steps themselves are fine
        with pytest.raises(ValueError, match="limit"):
            path.predict(X, step=math.inf)
    with pytest.raises(ValueError, match=r"limit|converge"):
        limit_shrinkage([1.0, 2.0], 1e-3, 2.5)


def test_validation_data_that_is_incomplete_or_wrong(fitted):
    for options in (
        {"X_val": X},
        {"y_val": Y},
        {"sample_weight_val": np.ones(6)},
        {"X_val": X, "y_val": Y[:5]},
        {"X_val": X, "y_val": np.ones((6, 2))},
        {"X_val": X[:0], "y_val": Y[:0]},
        {"X_val": X, "y_val": broken(Y, math.nan)},
        {"X_val": broken(X, math.inf), "y_val": Y},
    ):
        for alpha in ("optimal", "joint"):
            with pytest.raises(ValueError, match="val"):
                distill(fitted, 0.1, alpha, 2, **options)


# ------------------------------------------------------------------ pure functions


def test_bad_eigenvalues():
    for d in ([-1.0, 2.0], [math.nan], [math.inf], [[1.0, 2.0]], "d", 1.0):
        with pytest.raises(BAD_INPUT, match=r"\bd\b|eigenvalue"):
            shrinkage_path(d, 0.1, 0.5, 2)
        with pytest.raises(BAD_INPUT, match=r"\bd\b|eigenvalue"):
            limit_shrinkage(d, 0.1, 0.5)


def test_bad_predictions_for_alpha_and_weights():
    y = np.arange(4.0)
    for bad in (broken(y, math.nan), broken(y, math.inf)):
        for arguments in ((bad, y, 2 * y), (y, bad, 2 * y), (y, 2 * y, bad)):
            with pytest.raises(ValueError, match=r"NaN|inf|finite"):
                optimal_alpha(*arguments)
        with pytest.raises(ValueError, match=r"NaN|inf|finite"):
            joint_weights(bad, np.stack([y, 2 * y]))
        with pytest.raises(ValueError, match=r"NaN|inf|finite"):
            joint_weights(y, np.stack([y, bad]))
    for F in (y, np.ones((0, 4)), np.ones((2, 3)), np.ones((2, 4, 1))):
        with pytest.raises(ValueError, match=r"shape|step"):
            joint_weights(y, F)
    with pytest.raises(ValueError, match=r"empty|shape|m > 0"):
        optimal_alpha(y[:0], y[:0], y[:0])


def test_bad_weights_and_alphas():
    for bad in ([], [0.5, 0.6], [math.nan, 1.0], [math.inf, -math.inf], 1.0, [[[1.0]]]):
        with pytest.raises(ValueError, match="weight"):
            weights_to_alphas(bad)
    for bad in ([math.inf], [0.5, math.nan], 0.5, "half", ["a"], [[[1.0]]]):
        with pytest.raises(BAD_INPUT, match="alpha"):
            alphas_to_weights(bad)


# ------------------------------------------------------------------ memory


def test_a_request_that_cannot_fit_names_the_bytes_and_the_ways_out(backend):
    """Refused before anything large is allocated; np.zeros costs nothing until it is touched."""
    huge, y = np.zeros((300_000, 2)), np.zeros(300_000)
    for call in (
        lambda: spectrum(huge, y, RBF(1.0), backend=backend),
        lambda: spectrum(X, Y, RBF(1.0), backend=backend, max_memory=100),
        lambda: SelfDistilledKernelRidge(backend=backend).fit(huge, y),
        lambda: gram(huge, None, RBF(1.0), backend=backend),
        lambda: gram(huge, huge.copy(), Linear(), backend=backend),
    ):
        with pytest.raises(MemoryError, match=r"(?i)\d.*(B|bytes)") as caught:
            call()
        message = str(caught.value)
        assert any(
            way in message
            for way in ("gram_matmul", "max_memory", "float32", "fewer rows", "subset", "solver")
        ), message


@pytest.mark.parametrize("bad", [0, -1, "1 GB", math.nan, True])
def test_bad_max_memory(backend, bad):
    with pytest.raises(BAD_INPUT, match="max_memory"):
        spectrum(X, Y, RBF(1.0), backend=backend, max_memory=bad)


def test_max_memory_that_suffices(backend):
    assert spectrum(X, Y, RBF(1.0), backend=backend, max_memory=10**6).d.shape == (6,)


# ------------------------------------------------------------------ names


def test_unknown_names(fitted):
    for call, match in (
        (lambda: spectrum(X, Y, RBF(1.0), solver="qr"), "solver"),
        (lambda: spectrum(X, Y, RBF(1.0), backend="abacus"), "backend"),
        (lambda: spectrum(X, Y, "no kernel"), "kernel"),
        (lambda: spectrum(X, Y, RBF(1.0), n_landmark=3), "n_landmark"),
        (lambda: SelfDistilledKernelRidge(kernel="no kernel").fit(X, Y), "kernel"),
        (lambda: SelfDistilledKernelRidge(solver="qr").fit(X, Y), "solver"),
        (lambda: SelfDistilledKernelRidge(solver_options={"ranks": 3}).fit(X, Y), "ranks"),
    ):
        with pytest.raises(BAD_INPUT, match=match):
            call()


# ------------------------------------------------------------------ good input in odd clothes


def test_layouts_and_dtypes_give_the_same_predictions(backend):
    whole, targets = np.array([[0, 1], [1, 1], [1, 0], [0, 0], [3, 1], [2, 2]]), [1, 0, 1, 1, 0, 0]
    expected = distill(
        spectrum(whole.astype(float), np.array(targets, float), RBF(0.5), backend=backend),
        0.1, "optimal", 3,
    ).predict(whole.astype(float), step="all")  # fmt: skip
    wide = np.zeros((12, 4))
    wide[::2, ::2] = whole
    frozen = whole.astype(float)
    frozen.flags.writeable = False
    frozen_y = np.array(targets, float)
    frozen_y.flags.writeable = False
    for X_, y_ in (
        (whole, targets),
        (whole.tolist(), np.array(targets, bool)),
        (whole.astype(np.int8), np.array(targets, np.uint16)),
        (whole.astype(">f8"), np.array(targets, ">f8")),
        (whole.astype(">i4"), np.array(targets, ">i2")),
        (np.asfortranarray(whole, dtype=float), np.repeat(np.array(targets, float), 2)[::2]),
        (wide[::2, ::2], np.array(targets, float)[::-1][::-1]),
        (frozen, frozen_y),
        (whole.astype(object), np.array(targets, object)),
    ):
        path = distill(spectrum(X_, y_, RBF(0.5), backend=backend), 0.1, "optimal", 3)
        np.testing.assert_array_equal(path.predict(X_, step="all"), expected)
    for narrow in (np.float16, np.float32, ">f4"):
        path = distill(
            spectrum(whole.astype(narrow), targets, RBF(0.5), backend=backend), 0.1, 0.5, 3
        )
        assert path.predict(whole.astype(narrow)).dtype == np.float32


def test_boolean_features(backend):
    flags = np.array([[True, False], [False, True], [True, True], [False, False]])
    path = distill(spectrum(flags, [1, 2, 3, 4], RBF(1.0), backend=backend), 0.1, 0.5, 2)
    as_float = distill(
        spectrum(flags.astype(float), [1, 2, 3, 4], RBF(1.0), backend=backend), 0.1, 0.5, 2
    )
    np.testing.assert_array_equal(path.predict(flags), as_float.predict(flags.astype(float)))


def test_read_only_inputs_everywhere_and_never_modified(backend):
    arrays = [X.copy(), Y.copy(), K.copy(), np.linspace(0.5, 1, 6)]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    A, y, M, w = arrays
    for rows, kernel in ((A, RBF(1.0)), (M, "precomputed"), (A, lambda P, Q: P @ Q.T + 1)):
        for intercept in (False, True):
            s = spectrum(rows, y, kernel, sample_weight=w, fit_intercept=intercept, backend=backend)
            path = distill(s, 0.1, "optimal", 3, X_val=rows, y_val=y, sample_weight_val=w)
            assert np.isfinite(path.predict(rows, step="all")).all()
            assert np.isfinite(leave_one_out(s, 0.1, path.alphas, 3)).all()
    SelfDistilledKernelRidge(kernel="precomputed").fit(M, y, w)
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_later_changes_to_the_inputs_do_not_reach_the_model(backend):
    A, y = X.copy(), Y.copy()
    path = distill(spectrum(A, y, RBF(1.0), backend=backend), 0.1, 0.5, 2)
    expected = path.predict(X)
    A[:], y[:] = 7.0, -1.0
    np.testing.assert_array_equal(path.predict(X), expected)
