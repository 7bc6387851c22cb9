"""Kernels with a parameter for each feature, sums and products, names, and samples of any kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tolerance import assert_close

from selfdistill_fast import (
    NTK,
    RBF,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
    SelfDistilledKernelRidge,
    SelfDistilledKernelRidgeCV,
    distill,
    gram,
    gram_matmul,
    gram_sweep,
    leave_fold_out,
    leave_one_out,
    load,
    plan,
    spectrum,
    sweep,
)
from selfdistill_fast.kernels import Custom, Features, Product, Sum, kernel_from_dict

RATES = (0.1, 2.0, 0.5, 1.0)


def squares(A, B, rates=1.0):
    return (np.square(A[:, None].astype(float) - B) * np.square(rates)).sum(2)


def rbf(A, B, gamma):
    return np.exp(-squares(A, B, np.sqrt(gamma)))


def laplacian(A, B, gamma):
    return np.exp(-(np.abs(A[:, None].astype(float) - B) * gamma).sum(2))


def matern(A, B, scale):
    r = np.sqrt(3 * squares(A, B, 1 / np.asarray(scale)))
    return (1 + r) * np.exp(-r)


def inner(A, B):
    return A.astype(float) @ B.T


CASES = {
    "RBF per feature": (RBF(RATES), lambda A, B: rbf(A, B, RATES)),
    "Laplacian per feature": (Laplacian(list(RATES)), lambda A, B: laplacian(A, B, RATES)),
    "Matern per feature": (Matern(np.array(RATES), 1.5), lambda A, B: matern(A, B, RATES)),
    "sum": (RBF(0.1) + Linear(), lambda A, B: rbf(A, B, 0.1) + inner(A, B)),
    "weighted sum": (
        0.5 * RBF(0.1) + 2 * Laplacian(0.2) + Polynomial(2, 0.1, 1.0),
        lambda A, B: 0.5 * rbf(A, B, 0.1) + 2 * laplacian(A, B, 0.2) + (0.1 * inner(A, B) + 1) ** 2,
    ),
    "one term": (3.0 * RBF(0.1), lambda A, B: 3 * rbf(A, B, 0.1)),
    "product": (RBF(RATES) * Linear(), lambda A, B: rbf(A, B, RATES) * inner(A, B)),
    "product of a sum": (
        (RBF(0.1) + Linear()) * Matern(RATES, 1.5),
        lambda A, B: (rbf(A, B, 0.1) + inner(A, B)) * matern(A, B, RATES),
    ),
    "with a function": (RBF(0.1) + Custom(inner), lambda A, B: rbf(A, B, 0.1) + inner(A, B)),
}
cases = pytest.mark.parametrize(("kernel", "reference"), CASES.values(), ids=CASES.keys())


def draw(rng, n=40, dtype="float64"):
    X = rng.standard_normal((n, 4)).astype(dtype)
    return X, np.sin(X[:, 0]) + 0.1 * rng.standard_normal(n), rng.standard_normal((7, 4))


@cases
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gram(kernel, reference, dtype, backend, rng):
    X, _, Z = draw(rng, dtype=dtype)
    Z = Z.astype(dtype)
    rtol = 1e-13 if dtype == "float64" else 2e-6
    assert_close(gram(X, kernel=kernel, backend=backend), reference(X, X), rtol)
    assert_close(gram(Z, X, kernel, backend=backend), reference(Z, X), rtol)
    out = np.empty((7, len(X)), dtype)
    if backend != "gpu":
        assert gram(Z, X, kernel, out=out, backend=backend) is out
        assert_close(out, reference(Z, X), rtol)
    W = rng.standard_normal((len(X), 2)).astype(dtype)
    scale = (np.abs(reference(Z, X)) @ np.abs(W)).max()
    actual = gram_matmul(Z, X, W, kernel, backend=backend)
    assert_close(actual, reference(Z, X) @ W, 10 * rtol, scale)


@cases
@pytest.mark.parametrize("solver", ["eigh", "cholesky", "tridiagonal", "krylov", "nystrom", "auto"])
def test_every_solver(kernel, reference, solver, rng):
    X, y, Z = draw(rng)
    options = {"lam": 0.3} if solver in ("cholesky", "krylov") else {}
    options |= {"krylov": {"tol": 1e-11}, "nystrom": {"n_landmarks": len(X)}}.get(solver, {})
    s = spectrum(X, y, kernel, solver=solver, fit_intercept=True, **options)
    path = distill(s, 0.3, [0.4, -0.2], 3)
    K = spectrum(reference(X, X), y, "precomputed", fit_intercept=True)
    expected = distill(K, 0.3, [0.4, -0.2], 3)
    actual = path.predict(Z, step="all")
    assert_close(actual, expected.predict(reference(Z, X), step="all"), 1e-8)
    if s.max_loo_steps >= 3:
        assert_close(leave_one_out(s, 0.3, 0.4, 3), leave_one_out(K, 0.3, 0.4, 3), 1e-8)
        assert_close(leave_fold_out(s, 0.3, 0.4, 3, 4), leave_fold_out(K, 0.3, 0.4, 3, 4), 1e-8)


@cases
def test_krylov_certificates_hold(kernel, reference, rng):
    X, y, _ = draw(rng, n=80)
    if "Custom" in repr(kernel):
        pytest.skip("rounding of a caller's function is not known")
    s = spectrum(X, y, kernel, solver="krylov", lam=0.01, tol=1e-4, n_steps=3)
    bound = s.certificate(0.01, 3)[..., 0]
    exact = spectrum(X, y, kernel, solver="eigh")
    errors = distill(s, 0.01, 0.0, 3).predict(X, step="all") - distill(exact, 0.01, 0.0, 3).predict(
        X, step="all"
    )
    assert (np.abs(errors).max(1) <= bound + 1e-11 * np.abs(y).max()).all()


@pytest.mark.parametrize("name", [name for name in CASES if name != "with a function"])
def test_saved_and_described(name, rng, tmp_path):
    kernel, _ = CASES[name]
    X, y, Z = draw(rng)
    path = distill(spectrum(X, y, kernel), 0.3, 0.4, 3)
    path.save(tmp_path / "model.npz")
    again = load(tmp_path / "model.npz")
    assert again.kernel == kernel == kernel_from_dict(kernel.to_dict())
    np.testing.assert_array_equal(again.predict(Z), path.predict(Z))
    assert hash(kernel) == hash(again.kernel)
    assert eval(repr(kernel)) == kernel


def test_nested_terms_are_flat():
    three = RBF(0.1) + Linear() + 2.0 * (RBF(0.2) + Laplacian(0.3))
    assert three.parts == (RBF(0.1), Linear(), RBF(0.2), Laplacian(0.3))
    assert three.weights == (1.0, 1.0, 2.0, 2.0)
    assert (RBF(0.1) * Linear() * NTK(1)).parts == (RBF(0.1), Linear(), NTK(1))
    assert repr(RBF(0.1) + 2 * Linear()) == "RBF(gamma=0.1) + 2.0 * Linear()"
    assert isinstance(RBF(0.1) * 2, Sum)
    assert isinstance((RBF(0.1) + Linear()) * RBF(1.0), Product)


def test_in_estimators(rng):
    X, y, Z = draw(rng)
    by_object = SelfDistilledKernelRidge(RBF(RATES), lam=0.3).fit(X, y)
    by_name = SelfDistilledKernelRidge("rbf", gamma=RATES, lam=0.3).fit(X, y)
    np.testing.assert_array_equal(by_name.predict(Z), by_object.predict(Z))
    kernels = [RBF(0.1) + Linear(), RBF(0.1) * Linear(), RBF(RATES)]
    model = SelfDistilledKernelRidgeCV(kernels, lams=[0.01, 0.1, 1.0]).fit(X, y)
    assert model.kernel_ in kernels


def test_where_the_rows_are(rng, tmp_path):
    da = pytest.importorskip("dask.array")
    X, y, Z = draw(rng)
    np.save(tmp_path / "X.npy", X)
    options = {"solver": "nystrom", "n_landmarks": 20, "sampling": "uniform", "random_state": 0}
    held = distill(spectrum(X, y, RBF(RATES), **options), 0.3, 0.4, 2)
    for rows in (
        np.load(tmp_path / "X.npy", mmap_mode="r"),
        [X[:9], X[9:]],
        da.from_array(X, chunks=(11, 4)),
    ):
        path = distill(spectrum(rows, y, RBF(RATES), **options), 0.3, 0.4, 2)
        assert_close(path.predict(Z), held.predict(Z), 1e-10)
    assert_close(held.predict(da.from_array(Z, chunks=(3, 4))).compute(), held.predict(Z), 1e-13)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: RBF([0.1, -1.0]), ValueError, "gamma must be finite and > 0"),
        (lambda: RBF([]), ValueError, "gamma is empty"),
        (lambda: Matern(["a"]), TypeError, "length_scale must be a real number"),
        (lambda: RBF(0.1) + 1.0, TypeError, "unsupported operand"),
        (lambda: -1.0 * RBF(0.1), ValueError, "weights of kernels must be finite and > 0"),
        (lambda: RBF(0.1) * "a", TypeError, "unsupported operand|can't multiply"),
        (lambda: RBF(0.1) + Polynomial(2, 1.0, -1.0), ValueError, "indefinite"),
        (lambda: RBF(0.1) + Features(np.tanh), TypeError, "combine the matrices, or the features"),
    ],
)
def test_what_cannot_be_combined(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_the_number_of_features_must_match(rng):
    X, y, Z = draw(rng)
    with pytest.raises(ValueError, match="is for 2 features, but X has 4"):
        gram(X, kernel=RBF([0.1, 0.2]))
    with pytest.raises(ValueError, match="is for 2 features, but X has 4"):
        spectrum(X, y, RBF([0.1, 0.2]))
    with pytest.raises(ValueError, match="is for 2 features, but X has 4"):
        gram(X, kernel=Linear() + RBF([0.1, 0.2]))
    path = distill(spectrum(X, y, RBF(RATES)), 0.1, 0.5, 2)
    with pytest.raises(ValueError, match="3 features"):
        path.predict(Z[:, :3])
    with pytest.raises(ValueError, match="share one distance"):
        gram_sweep(X, None, [RBF(RATES), RBF(0.1)])
    with pytest.raises(ValueError, match="scale the features of X"):
        sweep(X, y, kernels=[RBF(RATES)], lams=[1.0], n_steps=2)


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("rbf", RBF(0.25)),
        ("laplacian", Laplacian(0.25)),
        ("poly", Polynomial(3, 0.25, 1.0)),
        ("polynomial", Polynomial(3, 0.25, 1.0)),
        ("matern", Matern(1.0, 1.5)),
        ("linear", Linear()),
        ("ntk", NTK(1)),
    ],
)
def test_kernels_by_name(name, kernel, rng):
    X, y, Z = draw(rng)
    assert spectrum(X, y, name).kernel == kernel
    assert spectrum(X.tolist(), y, name).kernel == kernel
    np.testing.assert_array_equal(gram(X, Z, name), gram(X, Z, kernel))
    assert plan(100, 4, kernel=name).solver == plan(100, 4, kernel=kernel).solver


def test_unknown_names_and_missing_sizes(rng):
    X, y, _ = draw(rng)
    with pytest.raises(ValueError, match=r"unknown kernel 'rbff'; known names"):
        spectrum(X, y, "rbff")
    with pytest.raises(TypeError, match="write the kernel itself"):
        spectrum(lambda: iter([X]), y, "rbf", solver="nystrom")


# ------------------------------------------------------------------ functions


def similarity(A, B):
    """Share of common letters: min over max of the counts (a positive semi-definite kernel)."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    a, b = (np.array([[w.count(c) for c in letters] for w in words], float) for words in (A, B))
    low, high = (f(a[:, None], b).sum(2) for f in (np.minimum, np.maximum))
    return low / high


WORDS = ["apple", "apply", "ape", "banana", "band", "ban", "bandana", "pear"]


@pytest.mark.parametrize("solver", ["eigh", "krylov", "tridiagonal", "auto"])
def test_samples_that_are_strings(solver, rng):
    y = rng.standard_normal(len(WORDS))
    options = {"lam": 0.1} if solver == "krylov" else {}
    s = spectrum(WORDS, y, similarity, solver=solver, sample_weight=np.arange(8.0), **options)
    K = similarity(WORDS, WORDS)
    reference = spectrum(K, y, "precomputed", sample_weight=np.arange(8.0))
    path = distill(s, 0.1, 0.5, 3)
    expected = distill(reference, 0.1, 0.5, 3)
    new = ["grape", "bandit"]
    actual = path.predict(new, step="all")
    assert_close(actual, expected.predict(similarity(new, WORDS), step="all"), 1e-7)
    if s.max_loo_steps:
        loo = leave_one_out(s, 0.1, 0.5, 3)
        assert_close(loo, leave_one_out(reference, 0.1, 0.5, 3), 1e-10)
    assert "similarity" in repr(path)


def test_samples_that_are_graphs(rng):
    """Adjacency matrices of different sizes; the kernel compares numbers of walks."""
    graphs = [(rng.random((k, k)) < 0.5).astype(float) for k in (3, 4, 5, 6, 7, 8)]

    def walks(A, B):
        def counts(graph):
            return [np.linalg.matrix_power(graph, k).sum() ** (1 / k) for k in (1, 2, 3)]

        return np.array([counts(g) for g in A]) @ np.array([counts(g) for g in B]).T

    y = rng.standard_normal(6)
    path = distill(spectrum(graphs, y, walks), 0.1, 0.5, 2)
    reference = distill(spectrum(walks(graphs, graphs), y, "precomputed"), 0.1, 0.5, 2)
    new = [(rng.random((5, 5)) < 0.5).astype(float)]
    assert_close(path.predict(new), reference.predict(walks(new, graphs)), 1e-12)


def test_a_function_of_two_samples_is_refused(rng):
    X, y, _ = draw(rng)
    with pytest.raises(ValueError, match=r"returned a number.*scikit-learn's KernelRidge"):
        spectrum(X, y, lambda x, z: math.exp(-abs(float(x[0, 0] - z[0, 0]))))
    with pytest.raises(ValueError, match=r"must return \(8, 8\)"):
        spectrum(WORDS, np.arange(8.0), lambda a, b: np.ones(len(a)))


def test_models_of_strings_cannot_be_saved(tmp_path):
    path = distill(spectrum(WORDS, np.arange(8.0), similarity), 0.1, 0.5, 2)
    with pytest.raises(TypeError, match="callable kernel cannot be saved"):
        path.save(tmp_path / "model.npz")


def test_a_factor_that_overflows_beside_one_that_is_0():
    X = np.array([[1e200, 0.0], [-1e200, 1.0], [2.0, 3.0]])
    with np.errstate(all="ignore"):
        K = gram(X, kernel=Laplacian(1e-3) * Polynomial(2, 1.0, 1.0))
    assert K[0, 1] == K[1, 0] == K[0, 2] == 0.0
    assert np.isinf(K[0, 0])  # it is beyond the range of the dtype
    assert K[2, 2] == 14.0**2


@pytest.mark.parametrize("solver", ["eigh", "nystrom"])
@pytest.mark.parametrize("kernel", [1.0 * Linear(), RBF(1.0) * Linear(), Linear() + Linear()])
def test_sums_and_products_that_underflow_are_refused(kernel, solver, rng):
    X, y, _ = draw(rng)
    with pytest.raises(ValueError, match=r"underflows float64.*scale X up"):
        spectrum(X * 1e-170, y, kernel, solver=solver)


def test_parameters_given_as_arrays():
    assert RBF(np.array(2.0)) == RBF(2.0)
    assert RBF(np.float32(0.5)) == RBF(0.5)
    with pytest.raises(TypeError, match="gamma must be a real number"):
        RBF(np.ones((2, 2)))
    with pytest.raises(TypeError, match="gamma must be a real number"):
        RBF({1: 2})
    assert sum([RBF(0.1), Linear()]) == RBF(0.1) + Linear()


def test_gram_of_strings(rng):
    np.testing.assert_array_equal(gram(WORDS, ["abc"], similarity), similarity(WORDS, ["abc"]))
    np.testing.assert_array_equal(gram(WORDS, kernel=similarity), similarity(WORDS, WORDS))
    path = distill(spectrum(WORDS, np.arange(8.0), similarity), 0.1, 0.5, 2)
    with pytest.raises(TypeError, match="is one string"):
        path.predict("abc")


def test_steps_that_are_no_steps(rng):
    X, y, Z = draw(rng)
    path = distill(spectrum(X, y, "rbf"), 0.1, 0.5, 2)
    np.testing.assert_array_equal(path.predict(Z, np.float32("inf")), path.predict(Z, math.inf))
    with pytest.raises((TypeError, ValueError), match="step must be"):
        path.predict(Z, np.array([1, 2]))
