"""gram, gram_matmul and gram_sweep: one K three ways, for every size, layout and precision."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import tolerance
from cases import KERNELS, SIZES, kernel_id
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close

from selfdistill_fast import (
    RBF,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
    gram,
    gram_matmul,
    gram_sweep,
)
from selfdistill_fast._backend import Cpu

all_kernels = pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)
both_dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])


@all_kernels
@both_dtypes
@pytest.mark.parametrize("n", [0, *SIZES])
def test_awkward_sizes(backend, kernel, dtype, n, rng):
    for m, d in ((5, 1), (64, 3), (17, 16), (33, 65)):
        X = rng.standard_normal((n, d)).astype(dtype)
        Z = rng.standard_normal((m, d)).astype(dtype)
        expected = oracle.kernel_matrix(kernel, X, Z)
        allowed = tolerance.gram(kernel, X, Z, dtype)
        for A, B, K in ((X, Z, expected), (Z, X, expected.T)):
            actual = gram(A, B, kernel, backend=backend)
            assert actual.dtype == dtype
            assert_close(actual, K, allowed, 1.0, f"{A.shape} {B.shape}")
        own = gram(X, None, kernel, backend=backend)
        allowed = tolerance.gram(kernel, X, X, dtype)
        assert_close(own, oracle.kernel_matrix(kernel, X), allowed, 1.0, "K(X, X)")


@all_kernels
@both_dtypes
def test_matmul_is_the_gram_matrix_times_w(backend, kernel, dtype, rng):
    for n, m, p in ((1, 1, 1), (7, 65, 1), (97, 16, 7), (130, 300, 3), (0, 4, 2)):
        X, Z = (rng.standard_normal((k, 5)).astype(dtype) for k in (n, m))
        W = rng.standard_normal((m, p)).astype(dtype)
        K = oracle.kernel_matrix(kernel, X, Z)
        scale = (np.abs(K) @ np.abs(W)).max(initial=0.0)
        allowed = tolerance.gram(kernel, X, Z, dtype) * np.abs(W).sum(0).max()
        allowed += 16 * tolerance.eps(dtype) * scale
        actual = gram_matmul(X, Z, W, kernel, backend=backend)
        assert actual.dtype == dtype
        assert_close(actual, K @ W, allowed, 1.0, f"{n} {m} {p}")
        if n == m:
            continue
        square = gram_matmul(Z, None, W, kernel, backend=backend)
        K = oracle.kernel_matrix(kernel, Z)
        allowed = tolerance.gram(kernel, Z, Z, dtype) * np.abs(W).sum(0).max()
        allowed += 16 * tolerance.eps(dtype) * (np.abs(K) @ np.abs(W)).max()
        assert_close(square, K @ W, allowed, 1.0, "Z=None")


def test_matmul_of_a_vector(backend, rng):
    X, Z, w = rng.standard_normal((6, 2)), rng.standard_normal((9, 2)), rng.standard_normal(9)
    expected = gram(X, Z, RBF(0.5), backend=backend) @ w
    assert_close(gram_matmul(X, Z, w, RBF(0.5), backend=backend), expected, 1e-13)


@given(data=st.data())
def test_drawn_shapes(data, backend):
    kernel = data.draw(st.sampled_from(KERNELS), label="kernel")
    n, m = (data.draw(st.integers(0, 40), label=name) for name in "nm")
    d = data.draw(st.integers(1, 40), label="d")
    shift = data.draw(st.sampled_from([0.0, 5.0]), label="shift")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    X, Z = rng.standard_normal((n, d)) + shift, rng.standard_normal((m, d)) + shift
    actual = gram(X, Z, kernel, backend=backend)
    expected = oracle.kernel_matrix(kernel, X, Z)
    assert_close(actual, expected, tolerance.gram(kernel, X, Z), 1.0)
    # W = I: the product forms the same entries
    by_product = gram_matmul(X, Z, np.eye(m), kernel, backend=backend)
    assert_close(by_product, expected, tolerance.gram(kernel, X, Z), 1.0)


# ------------------------------------------------------------------ sweeps

SWEEPS = {
    "rbf": [RBF(g) for g in (0.01, 0.5, 3.0)],
    "laplacian": [Laplacian(g) for g in (0.01, 0.5, 3.0)],
    "euclidean": [RBF(0.3), Matern(1.0, 0.5), Matern(2.0, 2.5), Matern(0.5, math.inf)],
    "inner": [Linear(), Polynomial(2, 0.5, 1.0), Polynomial(3, 0.1, 0.0)],
}


@pytest.mark.parametrize("kernels", SWEEPS.values(), ids=SWEEPS.keys())
@pytest.mark.parametrize("own", [False, True], ids=["X Z", "X X"])
def test_sweep_yields_the_gram_matrix_of_each_kernel(backend, kernels, own, rng):
    X, Z = rng.standard_normal((33, 4)), None if own else rng.standard_normal((17, 4))
    seen = 0
    for kernel, K in zip(kernels, gram_sweep(X, Z, kernels, backend=backend), strict=True):
        assert_close(K, gram(X, Z, kernel, backend=backend), 1e-13)
        if own:
            np.testing.assert_array_equal(K, K.T)
        seen += 1
    assert seen == len(kernels)


def test_sweep_writes_into_out(backend, rng):
    X, out = rng.standard_normal((9, 4)), np.empty((9, 9))
    for K in gram_sweep(X, None, SWEEPS["rbf"], out=out, backend=backend):
        assert np.shares_memory(K, out)


@pytest.mark.parametrize("buffer", [True, False])
@pytest.mark.parametrize(("matrices", "kept"), [(2.5, True), (1.5, None), (0.9, False)])
def test_sweep_keeps_distances_only_where_they_fit(monkeypatch, buffer, matrices, kept, rng):
    """They are as large as K, and were allocated without a question."""
    X = rng.standard_normal((20, 64))
    kernels = SWEEPS["rbf"]
    expected = [K.copy() for K in gram_sweep(X, None, kernels)]
    size, kept_pairs = 20 * 20 * 8, []

    class Spied:
        def __init__(self, job):
            self.job = job

        def __getattr__(self, name):
            if name == "keep_pairs":
                kept_pairs.append(True)
            return getattr(self.job, name)

    packed = Cpu._packed
    monkeypatch.setattr(Cpu, "_packed", lambda self, *args: Spied(packed(self, *args)))
    monkeypatch.setattr(Cpu, "available_memory", lambda self: int(matrices * size))
    out = np.empty((20, 20)) if buffer else None
    if not buffer and matrices < 1:
        with pytest.raises(MemoryError, match=r"K of shape \(20, 20\) needs 3,200 bytes"):
            gram_sweep(X, None, kernels, out=out)
        return
    for K, wanted in zip(gram_sweep(X, None, kernels, out=out), expected, strict=True):
        assert_close(K, wanted, 1e-13)
    assert bool(kept_pairs) is (buffer if kept is None else kept)


def test_sweep_of_kernels_without_a_common_distance_is_an_error(backend, rng):
    X = rng.standard_normal((5, 2))
    with pytest.raises(ValueError, match=r"distance|kernel|share"):
        list(gram_sweep(X, None, [RBF(1.0), Laplacian(1.0)], backend=backend))


# ------------------------------------------------------------------ out=


@both_dtypes
def test_out_receives_the_result(backend, dtype, rng):
    X, Z = (rng.standard_normal((n, 3)).astype(dtype) for n in (20, 12))
    W = rng.standard_normal((12, 2)).astype(dtype)
    out, product = np.full((20, 12), np.nan, dtype), np.full((20, 2), np.nan, dtype)
    assert gram(X, Z, RBF(0.5), out=out, backend=backend) is out
    assert gram_matmul(X, Z, W, RBF(0.5), out=product, backend=backend) is product
    np.testing.assert_array_equal(out, gram(X, Z, RBF(0.5), backend=backend))
    np.testing.assert_array_equal(product, gram_matmul(X, Z, W, RBF(0.5), backend=backend))


def test_out_that_does_not_fit_is_an_error(backend, rng):
    X, Z, W = rng.standard_normal((20, 3)), rng.standard_normal((12, 3)), np.ones((12, 2))
    read_only = np.empty((20, 12))
    read_only.flags.writeable = False
    for out in (
        np.empty((12, 20)),
        np.empty((20, 12), np.float32),
        np.empty((20, 12), ">f8"),
        np.empty((20, 24))[:, ::2],
        np.empty((12, 20)).T,
        read_only,
        [[0.0] * 12] * 20,
    ):
        with pytest.raises((TypeError, ValueError), match="out"):
            gram(X, Z, RBF(0.5), out=out, backend=backend)
    for out in (np.empty((20, 3)), np.empty((20, 2), np.float32), np.empty((2, 20)).T):
        with pytest.raises((TypeError, ValueError), match="out"):
            gram_matmul(X, Z, W, RBF(0.5), out=out, backend=backend)


# ------------------------------------------------------------------ defaults and inputs


def test_defaults(rng):
    X = rng.standard_normal((5, 2))
    np.testing.assert_array_equal(gram(X), gram(X, None, RBF(1.0)))


def test_inputs_are_not_modified(backend, rng):
    X, Z, W = rng.standard_normal((9, 3)), rng.standard_normal((7, 3)), rng.standard_normal((7, 2))
    copies = X.copy(), Z.copy(), W.copy()
    for kernel in KERNELS:
        gram(X, Z, kernel, backend=backend)
        gram(X, None, kernel, backend=backend)
        gram_matmul(X, Z, W, kernel, backend=backend)
    for array, copy in zip((X, Z, W), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_layouts_and_dtypes_give_the_same_bits(backend, rng):
    base = rng.integers(0, 2, (14, 6))  # exactly representable in all of them
    expected = gram(base.astype(np.float64), None, RBF(0.3), backend=backend)
    wide = np.zeros((28, 12))
    wide[::2, ::2] = base
    read_only = base.astype(np.float64)
    read_only.flags.writeable = False
    inputs = [
        base, base.astype(bool), base.astype(np.uint8), base.tolist(), wide[::2, ::2],
        base.astype(">f8"), np.asfortranarray(base.astype(np.float64)), read_only,
        base.astype(object),
    ]  # fmt: skip
    for X in inputs:
        np.testing.assert_array_equal(gram(X, None, RBF(0.3), backend=backend), expected)
        actual = gram(X, base.astype(np.float64), RBF(0.3), backend=backend)
        assert_close(actual, expected, 1e-14)
    half = gram(base.astype(np.float16), None, RBF(0.3), backend=backend)
    assert half.dtype == np.float32
    single = gram(base.astype(np.float32), None, RBF(0.3), backend=backend)
    np.testing.assert_array_equal(half, single)


def test_callable_kernel(backend, rng):
    X, Z = rng.standard_normal((5, 2)), rng.standard_normal((4, 2))
    W = rng.standard_normal((4, 3))

    def function(A, B):
        return oracle.kernel_matrix(RBF(0.5), A, B)

    expected = oracle.kernel_matrix(RBF(0.5), X, Z)
    assert_close(gram(X, Z, function, backend=backend), expected, 1e-14)
    assert_close(gram_matmul(X, Z, W, function, backend=backend), expected @ W, 1e-14)


@pytest.mark.parametrize("kernel", [RBF(0.3), Laplacian(0.3), Polynomial(3, 0.1, 1.0)])
def test_own_loops_give_the_same_bits_for_any_number_of_threads(backend, kernel, rng):
    X, Z = rng.standard_normal((300, 7)), rng.standard_normal((257, 7))
    expected = gram(X, Z, kernel, backend=backend, n_threads=1)
    own = gram(X, None, kernel, backend=backend, n_threads=1)
    for n_threads in (2, 3, 8):
        actual = gram(X, Z, kernel, backend=backend, n_threads=n_threads)
        np.testing.assert_array_equal(actual, expected)
        actual = gram(X, None, kernel, backend=backend, n_threads=n_threads)
        np.testing.assert_array_equal(actual, own)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2"])
def test_bad_number_of_threads(backend, bad, rng):
    with pytest.raises((TypeError, ValueError), match="n_threads"):
        gram(rng.standard_normal((5, 2)), backend=backend, n_threads=bad)
