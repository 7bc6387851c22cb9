"""Kernels: formulas to many digits, diagonals, symmetry, definiteness, scikit-learn, parameters."""

from __future__ import annotations

import functools
import math
import pickle

import mpmath as mp
import numpy as np
import oracle
import pytest
import tolerance
from cases import KERNELS, kernel_id
from hypothesis import given
from hypothesis import strategies as st
from sklearn.gaussian_process.kernels import Matern as MaternGP
from sklearn.metrics import pairwise
from tolerance import assert_close

from selfdistill_fast import NTK, RBF, Laplacian, Linear, Matern, Polynomial, gram

all_kernels = pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)


@all_kernels
@pytest.mark.parametrize("d", [1, 3, 20])
def test_formula_in_many_digits(backend, kernel, d, rng):
    X, Z = rng.standard_normal((5, d)), rng.standard_normal((4, d))
    Z[0] = X[0]
    with mp.workdps(40):
        expected = [[float(oracle.mp_kernel(kernel, x, z)) for z in Z] for x in X]
    actual = gram(X, Z, kernel, backend=backend)
    assert_close(actual, np.array(expected), tolerance.gram(kernel, X, Z), 1.0)


@all_kernels
def test_formula_far_apart_and_close_together(backend, kernel):
    """Distances from 1e-9 to 30: neither cancellation nor underflow to nonsense."""
    X = np.zeros((1, 2))
    X[0] = [0.3, -0.2]
    Z = X + np.logspace(-9, 1.5, 22)[:, None] * [[0.6, 0.8]]
    with mp.workdps(40):
        expected = [[float(oracle.mp_kernel(kernel, X[0], z)) for z in Z]]
    actual = gram(X, Z, kernel, backend=backend)
    for j in range(len(Z)):
        # rounding of the coordinates' difference, not of their squares: d is small
        allowed = tolerance.gram(kernel, X, Z[j : j + 1]) * (1 if j < 16 else 4)
        assert abs(actual[0, j] - expected[0][j]) <= allowed


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_ntk_equals_its_gaussian_expectations(backend, depth, rng):
    """The expectations over an infinitely wide layer, by quadrature."""
    X = rng.standard_normal((4, 3)) * [[0.3], [1.0], [2.0], [5.0]]
    X = np.vstack([X, -X[:1], 2 * X[1:2]])  # an opposite and a parallel pair
    expected = [[oracle.ntk_by_quadrature(x, z, depth) for z in X] for x in X]
    actual = gram(X, X.copy(), NTK(depth), backend=backend)
    assert_close(actual, np.array(expected), 1e-7)  # arccos of the quadrature's cos near ±1
    apart = ~(np.isclose(np.abs(pairwise.cosine_similarity(X)), 1))
    assert_close(actual[apart], np.array(expected)[apart], 1e-12)


def test_ntk_scales_with_both_norms_and_has_diagonal_depth_plus_one(backend, rng):
    X = rng.standard_normal((6, 4))
    for depth in (1, 3):
        K = gram(X, None, NTK(depth), backend=backend)
        assert_close(np.diag(K), (depth + 1) * np.square(X).sum(1), 1e-14)
        assert_close(gram(3 * X, 0.5 * X, NTK(depth), backend=backend), 1.5 * K, 1e-12)


@functools.cache
def rows_at_small_angles(d, centre, dtype):
    """Rows, and κ of all pairs over ‖x‖ ‖z‖ by depth; ``centre`` None: nearly (anti)parallel."""
    random = np.random.default_rng([d, int(centre or 0)])
    X = random.standard_normal((6, d)) + (centre or 0.0)
    if centre is None:
        X[1] = X[0] * (1 + 1e-9 * random.standard_normal(d))
        X[2] = -X[0] * (1 + 1e-3 * random.standard_normal(d))
        X[3], X[4] = 3 * X[0], -0.7 * X[1]
    X = X.astype(dtype)
    with mp.workdps(60):
        K = {h: [[oracle.mp_kernel(NTK(h), x, z) for z in X] for x in X] for h in (1, 3)}
        return X, {h: np.array(values, dtype=np.float64) for h, values in K.items()}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("d", "centre"),
    [
        *((d, 1e4) for d in (1, 2, 5, 30)),
        *((2, 1e2), (5, 1e6), (30, 30.0), (300, 10.0), (300, 30.0), (300, 1e2)),
        *((d, None) for d in (2, 5, 30, 300)),
    ],
)
def test_ntk_at_small_angles(backend, d, centre, dtype):
    """κ has a cusp at angle 0, so the angle must be right to ε, not to √ε."""
    X, expected = rows_at_small_angles(d, centre, dtype)
    for depth, K in expected.items():
        allowed = tolerance.gram(NTK(depth), X, X, dtype)
        for Z in (None, X.copy()):
            assert_close(gram(X, Z, NTK(depth), backend=backend), K, allowed, 1.0)


def test_ntk_of_a_zero_row_is_zero(backend, rng):
    X = rng.standard_normal((4, 3))
    X[2] = 0
    K = gram(X, None, NTK(2), backend=backend)
    np.testing.assert_array_equal(K[2], 0)
    np.testing.assert_array_equal(K[:, 2], 0)
    assert np.isfinite(K).all()


@all_kernels
def test_symmetric_with_exact_diagonal(backend, kernel, rng):
    for dtype in (np.float64, np.float32):
        for n in (1, 2, 17, 65, 97):
            X = (rng.standard_normal((n, 5)) + 10).astype(dtype)  # far from the origin
            K = gram(X, None, kernel, backend=backend)
            np.testing.assert_array_equal(K, K.T)
            assert K.dtype == dtype
            if isinstance(kernel, (RBF, Laplacian, Matern)):
                np.testing.assert_array_equal(np.diag(K), 1)
                assert (K <= 1).all()
                assert (K >= 0).all()


@all_kernels
def test_equal_rows_in_two_arrays_are_at_distance_zero(backend, kernel, rng):
    """Also far from the origin and in single precision."""
    if not isinstance(kernel, (RBF, Laplacian, Matern)):
        pytest.skip("not a function of a distance")
    for dtype in (np.float64, np.float32):
        for d in (1, 2, 3, 8, 17, 64, 90):
            X = (100 * rng.standard_normal((33, d)) + 1000).astype(dtype)
            Z = np.ascontiguousarray(X[::-1])
            K = gram(X, Z, kernel, backend=backend)
            np.testing.assert_array_equal(K[np.arange(33), 32 - np.arange(33)], 1)


@all_kernels
def test_positive_semi_definite(backend, kernel, rng):
    X = rng.standard_normal((30, 3))
    X[20:] = X[:10]
    eigenvalues = np.linalg.eigvalsh(gram(X, None, kernel, backend=backend))
    assert eigenvalues[0] >= -1e-13 * eigenvalues[-1]


@given(data=st.data())
def test_cauchy_schwarz(data, backend):
    """κ(x, z)² ≤ κ(x, x) κ(z, z), and the sign of an inner-product kernel's argument counts."""
    kernel = data.draw(st.sampled_from(KERNELS), label="kernel")
    finite = st.floats(-50, 50, allow_subnormal=False, width=32)
    x, z = (np.array([data.draw(st.lists(finite, min_size=3, max_size=3))]) for _ in range(2))
    K = gram(np.vstack([x, z]), None, kernel, backend=backend)
    assert np.isfinite(K).all()
    assert K[0, 1] ** 2 <= K[0, 0] * K[1, 1] * (1 + 1e-12) + 1e-300


def test_scikit_learn_agrees(backend, rng):
    X, Z = rng.standard_normal((12, 4)), rng.standard_normal((9, 4))
    pairs = [
        (RBF(0.3), pairwise.rbf_kernel(X, Z, gamma=0.3)),
        (Laplacian(0.3), pairwise.laplacian_kernel(X, Z, gamma=0.3)),
        (Polynomial(4, 0.3, 1.5), pairwise.polynomial_kernel(X, Z, 4, 0.3, 1.5)),
        (Linear(), pairwise.linear_kernel(X, Z)),
        *((Matern(0.8, nu), MaternGP(0.8, nu=nu)(X, Z)) for nu in (0.5, 1.5, 2.5, math.inf)),
    ]
    for kernel, expected in pairs:
        assert_close(gram(X, Z, kernel, backend=backend), expected, 1e-12, what=repr(kernel))


def test_matern_infinity_is_rbf(backend, rng):
    X = rng.standard_normal((12, 4))
    actual = gram(X, None, Matern(0.7, math.inf), backend=backend)
    assert_close(actual, gram(X, None, RBF(0.5 / 0.49), backend=backend), 1e-14)


def test_polynomial_with_negative_base(backend):
    """An odd power keeps its sign, an even one loses it."""
    X, Z = np.array([[1.0, 2.0]]), np.array([[-3.0, 0.5]])
    for degree, expected in ((1, -3.0), (2, 9.0), (3, -27.0)):
        K = gram(X, Z, Polynomial(degree, 1.0, -1.0), backend=backend)
        assert_close(K, np.array([[expected]]), 1e-15)


# ------------------------------------------------------------------ kernels as values


@all_kernels
def test_equal_hashable_frozen_and_picklable(kernel):
    copy = pickle.loads(pickle.dumps(kernel))
    assert copy == kernel
    assert hash(copy) == hash(kernel)
    assert eval(repr(kernel), {**globals(), "inf": math.inf}) == kernel
    for field in vars(kernel):
        with pytest.raises(AttributeError):
            setattr(kernel, field, 2.0)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        *((lambda bad=bad: RBF(bad), ValueError) for bad in (0, -1.0, math.nan, math.inf)),
        *((lambda bad=bad: Laplacian(bad), ValueError) for bad in (0, -1.0, math.nan, math.inf)),
        *((lambda bad=bad: Matern(bad), ValueError) for bad in (0, -1.0, math.nan, math.inf)),
        *((lambda bad=bad: RBF(bad), TypeError) for bad in ("0.1", None, ["a"], 1j, True)),
        *((lambda bad=bad: Matern(1.0, bad), ValueError) for bad in (0, 1.0, 2, -1.5, math.nan)),
        *((lambda bad=bad: Polynomial(bad), (TypeError, ValueError)) for bad in (0, -1, 1.5)),
        *((lambda bad=bad: Polynomial(bad), (TypeError, ValueError)) for bad in ("3", True)),
        *(
            (lambda bad=bad: Polynomial(bad), (TypeError, ValueError))
            for bad in (math.nan, math.inf)
        ),
        *((lambda bad=bad: Polynomial(3, bad), ValueError) for bad in (0, -1.0, math.nan)),
        *((lambda bad=bad: Polynomial(3, 1.0, bad), ValueError) for bad in (math.nan, math.inf)),
        *((lambda bad=bad: NTK(bad), (TypeError, ValueError)) for bad in (0, -1, 2.5, "1", True)),
        *((lambda bad=bad: NTK(bad), (TypeError, ValueError)) for bad in (math.nan, math.inf)),
    ],
)
def test_a_bad_parameter_is_named(make, error):
    with pytest.raises(error, match=r"gamma|length_scale|nu|degree|coef0|depth"):
        make()


def test_not_a_kernel():
    X = np.ones((2, 2))
    for bad in (None, 3, "no such kernel", RBF):
        with pytest.raises((TypeError, ValueError), match="kernel"):
            gram(X, None, bad)
