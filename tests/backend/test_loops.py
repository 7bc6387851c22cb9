"""The compiled loops: exact identities, and agreement with the reference.

First the mathematics (symmetry, exact diagonals, coincident points, exp in ulp), then the
agreement of instruction set × precision × kernel × awkward sizes with the reference.
"""

from __future__ import annotations

import itertools
import math

import cases
import mpmath
import numpy as np
import pytest
import tolerance
from cases import in_double, points

from selfdistill_fast import _core
from selfdistill_fast._backend.cpu import Cpu
from selfdistill_fast._backend.reference import Reference
from selfdistill_fast.kernels import (
    NTK,
    RBF,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
)

REFERENCE = Reference()
KERNELS = [*cases.KERNELS, Polynomial(8, 0.4, -0.3)]
UNIT = [k for k in KERNELS if k.unit_diagonal]
SIZES = (0, *cases.SIZES)


# ------------------------------------------------------------------ mathematics
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_exp_is_within_two_ulp(isa, dtype, rng):
    info = np.finfo(dtype)
    low, high = (-750.0, 712.0) if dtype is np.float64 else (-106.0, 90.0)
    x = np.concatenate([np.linspace(low, high, 6001), rng.uniform(-1, 1, 2000)]).astype(dtype)
    y = _core.exp(x)
    for xi, yi in zip(x.tolist(), y.tolist(), strict=True):
        exact = mpmath.exp(mpmath.mpf(xi))
        if exact > mpmath.mpf(float(info.max)):
            assert yi == math.inf
            continue
        ulp = mpmath.mpf(2) ** max(
            mpmath.frexp(exact)[1] - info.nmant - 1, int(info.minexp) - info.nmant
        )
        assert abs(mpmath.mpf(yi) - exact) <= 2 * ulp, xi


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_exp_special_values(isa, dtype):
    tiny = float(np.finfo(dtype).smallest_subnormal)
    x = np.array([0.0, -0.0, tiny, -tiny, np.inf, -np.inf, np.nan, 1e30, -1e30], dtype)
    expected = [1, 1, 1, 1, np.inf, 0, np.nan, np.inf, 0]
    np.testing.assert_array_equal(_core.exp(x), np.array(expected, dtype))
    # gradual underflow: denormal results are neither flushed nor rounded twice
    x = np.array([-740.0 if dtype is np.float64 else -101.0], dtype)
    assert 0 < _core.exp(x)[0] < np.finfo(dtype).tiny


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gram_of_itself_is_symmetric_with_the_exact_diagonal(isa, dtype, kernel, rng):
    for n, d in ((1, 3), (17, 5), (65, 33), (203, 2), (230, 300)):
        X = points(rng, n, d, dtype, offset=0.3)
        K = Cpu().gram(X, None, kernel)
        np.testing.assert_array_equal(K, K.T)
        xx = (in_double(X) ** 2).sum(1)
        diagonal = kernel.diagonal(np, xx)
        if kernel.unit_diagonal:
            np.testing.assert_array_equal(np.diag(K), 1.0)
        else:
            np.testing.assert_allclose(
                np.diag(K),
                diagonal,
                rtol=tolerance.loops(kernel, dtype),
                atol=tolerance.loops(kernel, dtype),
            )


@pytest.mark.parametrize("kernel", UNIT, ids=repr)
@pytest.mark.parametrize("d", [1, 3, 16, 17, 90, 257])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_equal_rows_give_exactly_one(isa, kernel, d, offset, rng):
    for dtype in (np.float64, np.float32):
        X = points(rng, 40, d, dtype, offset)
        X[[5, 11]] = X[[2, 3]]
        Z = points(rng, 30, d, dtype, offset)
        Z[[4, 21, 29]] = X[[1, 2, 39]]
        K = Cpu().gram(X, None, kernel)
        assert K[5, 2] == K[11, 3] == 1.0
        K = Cpu().gram(X, Z, kernel)
        assert K[1, 4] == K[2, 21] == K[5, 21] == K[39, 29] == 1.0


@pytest.mark.parametrize("d", [2, 8, 20, 90])
def test_nearly_coincident_points_far_from_the_origin(isa, d, rng):
    """Matérn-1/2 shows any error of a distance: K = 1 - r to first order."""
    step = 2.0**-12
    for far in (0.0, 1024.0, 1e6):
        X = np.round((far + rng.normal(size=(30, d))) * 2**20) / 2**20
        near = np.vstack([X, X + step * rng.integers(-3, 4, size=X.shape)])
        exact = np.sqrt(((near[:, None] - near[None]) ** 2).sum(-1))  # differences are exact
        K = Cpu().gram(near, None, Matern(1.0, 0.5))
        r = -np.log(K)
        close = (exact < 1.0) & (exact > 0)
        assert close.any()
        np.testing.assert_allclose(r[close], exact[close], rtol=1e-12, atol=3e-16)


def test_two_far_clusters(isa, rng):
    """Centring cannot help here: almost every pair of one cluster cancels."""
    X = rng.normal(size=(60, 40)) * 1e-3
    X[30:] += 1e5
    for kernel in (RBF(1e3), Matern(0.01, 0.5), Matern(0.01, 2.5)):
        K = Cpu().gram(X, None, kernel)
        np.testing.assert_allclose(K, REFERENCE.gram(X, None, kernel), rtol=1e-12, atol=1e-300)


def test_huge_and_tiny_rows_do_not_give_nan(isa):
    for d in (3, 40):
        X = np.zeros((5, d))
        X[0], X[1], X[2], X[3] = 1e300, 1e-300, -1e300, 1e160
        for kernel in (
            RBF(0.5),
            Laplacian(0.5),
            Matern(1.0, 0.5),
            Matern(1.0, 1.5),
            Matern(1.0, 2.5),
        ):
            K = Cpu().gram(X, None, kernel)
            np.testing.assert_array_equal(np.diag(K), 1.0)
            assert K[0, 2] == K[0, 3] == 0.0
            assert K[1, 4] == 1.0
        assert not np.isnan(Cpu().gram(X, None, NTK(2))).any()


def test_extreme_parameters(isa, rng):
    X = points(rng, 20, 3)
    for kernel in (RBF(1e308), Laplacian(1e300), Matern(1e-300, 2.5)):
        np.testing.assert_array_equal(Cpu().gram(X, None, kernel), np.eye(20))
    for kernel in (RBF(1e-300), Laplacian(1e-320), Matern(1e300, 1.5)):
        np.testing.assert_array_equal(Cpu().gram(X, None, kernel), np.ones((20, 20)))


def test_underflow_is_gradual(isa):
    X = np.array([[0.0], [27.2], [60.0]])
    K = Cpu().gram(X, None, RBF(1.0))
    assert 0 < K[0, 1] < np.finfo(float).tiny
    np.testing.assert_allclose(K[0, 1], math.exp(-(27.2**2)), rtol=1e-3)
    assert K[0, 2] == 0


def test_ntk_against_mpmath(isa):
    """Depth 4 at angles from 0 to π: the recursion must not lose small angles."""
    angles = [0.0, 1e-12, 1e-9, 1e-7, 1e-5, 0.01, 0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 3.1415, math.pi]
    for d in (2, 40):
        X = np.zeros((len(angles), d))
        X[:, 0] = np.cos(angles)
        X[:, 1] = np.sin(angles)
        K = Cpu().gram(X * 3.0, X[:1] * 0.5, NTK(4))[:, 0] / 1.5
        with mpmath.workdps(60):
            for i in range(len(angles)):
                x0, x1 = mpmath.mpf(X[i, 0]), mpmath.mpf(X[i, 1])
                rho = x0 / mpmath.sqrt(x0**2 + x1**2)
                t = rho
                for _ in range(4):
                    k0 = 1 - mpmath.acos(rho) / mpmath.pi
                    k1 = rho * k0 + mpmath.sqrt(1 - rho**2) / mpmath.pi
                    t, rho = t * k0 + k1, k1
                assert abs(mpmath.mpf(K[i]) - t) < 1e-14, angles[i]
    assert K[0] == 5.0


def test_ntk_of_zero_rows_is_zero(isa, rng):
    X = points(rng, 20, 5)
    X[3] = 0
    K = Cpu().gram(X, None, NTK(2))
    assert (K[3] == 0).all()
    assert (K[:, 3] == 0).all()


# -------------------------------------------------------- agreement with reference
def _check(kernel, X, Z, backend):
    dtype = X.dtype.type
    K = backend.gram(X, Z, kernel)
    expected = REFERENCE.gram(in_double(X), in_double(Z), kernel)
    assert K.dtype == dtype
    assert K.shape == expected.shape
    if K.size == 0:
        return
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(K, expected, rtol=0, atol=tolerance.loops(kernel, dtype) * scale)
    if kernel.pair in ("sqeuclidean", "cityblock") and dtype is np.float64:
        np.testing.assert_allclose(K, expected, rtol=tolerance.LOOPS[np.dtype(dtype)])


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gram_agrees_with_the_reference(isa, dtype, kernel, rng):
    backend = Cpu()
    widths = itertools.cycle((1, 2, 3, 8, 9, 16, 17, 31, 90))
    for n, m in itertools.product(SIZES, SIZES[::2]):
        d = next(widths)
        _check(kernel, points(rng, n, d, dtype, 0.3), points(rng, m, d, dtype, 0.3), backend)
    for n, d in ((65, 0), (97, 257), (200, 7), (401, 20), (401, 600)):
        X = points(rng, n, d, dtype, 0.3)
        _check(kernel, X, None, backend)
        _check(kernel, X[: n // 2], X, backend)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("p", [1, 2, 5, 40])
def test_gram_matmul_agrees_with_the_reference(isa, dtype, kernel, p, rng):
    for n, m, d in ((1, 1, 1), (3, 700, 5), (97, 64, 18), (600, 401, 9), (401, 401, 40)):
        X, Z = points(rng, n, d, dtype, 0.3), points(rng, m, d, dtype, 0.3)
        for other in (Z, None):
            W = rng.normal(size=(n if other is None else m, p)).astype(dtype)
            K = REFERENCE.gram(in_double(X), in_double(other), kernel)
            size = (np.abs(K) @ np.abs(in_double(W))).max()
            product = Cpu().gram_matmul(X, other, W, kernel)
            assert product.dtype == dtype
            np.testing.assert_allclose(
                product, K @ in_double(W), rtol=0, atol=tolerance.loops(kernel, dtype) * size
            )


def test_gram_matmul_empty():
    empty = np.empty((0, 3))
    for n, m, p in ((0, 4, 2), (4, 0, 2), (4, 5, 0)):
        X, Z, W = np.ones((n, 3)), np.ones((m, 3)), np.ones((m, p))
        product = Cpu().gram_matmul(X, Z, W, RBF(1.0))
        np.testing.assert_array_equal(product, np.zeros((n, p)))
    assert Cpu().gram_matmul(empty, None, np.ones((0, 2)), RBF(1.0)).shape == (0, 2)


@pytest.mark.parametrize("d", [5, 90])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gram_sweep_yields_one_buffer(isa, d, symmetric, rng):
    X, Z = points(rng, 210, d), None if symmetric else points(rng, 65, d)
    for kernels in (
        [RBF(0.1), Matern(1.0, 0.5), RBF(7.0)],
        [Laplacian(0.1), Laplacian(2.0)],
        [Linear(), Polynomial(2, 1.0, 1.0)],
        [NTK(1), NTK(2)],
        [RBF(0.1), Laplacian(0.1)],
        [RBF(0.1)],
        [],
    ):
        out = np.empty((210, 210 if symmetric else 65))
        seen = 0
        for kernel, K in zip(kernels, Cpu().gram_sweep(X, Z, kernels, out=out), strict=True):
            assert K is out
            np.testing.assert_array_equal(K, Cpu().gram(X, Z, kernel))
            seen += 1
        assert seen == len(kernels)
        assert len({id(K) for K in Cpu().gram_sweep(X, Z, kernels)}) <= 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_filters_agree_with_the_reference(isa, dtype, rng):
    lam = np.array([1e-8, 0.3, 1e3])
    alpha = np.array([np.nan, 0.5, 0.0, 1.0, -2.0, 0.3])
    rtol = 1e-13 if dtype is np.float64 else 1e-6
    for k in (*SIZES, 511, 512, 513, 3001):
        d = rng.exponential(size=k).astype(dtype)
        d[: k // 3] = 0
        for mine, expected in (
            (Cpu().shrinkage_path(d, lam, alpha), REFERENCE.shrinkage_path(d, lam, alpha)),
            (Cpu().pure_filters(d, lam, 5), REFERENCE.pure_filters(d, lam, 5)),
        ):
            assert mine.dtype == dtype
            np.testing.assert_allclose(mine, expected, rtol=rtol, atol=rtol)
    assert Cpu().pure_filters(d, lam[:0], 5).shape == (0, 5, 3001)


@pytest.mark.parametrize("p", [0, 1, 2, 3, 4, 5, 9])
def test_project_out(isa, p, rng):
    for n in (*SIZES, 511, 512, 513, 1100):
        parts = [rng.normal(size=(k, n)) for k in (1, 3, 64, 0, 7)]
        Q, W = np.concatenate(parts), rng.normal(size=(p, n))
        near = {"rtol": 0, "atol": 1e-14 * (n + 1) * len(Q)}
        for be, basis in ((Cpu(), parts), (REFERENCE, [Q])):
            left = W.copy()
            h = be.project_out(iter(basis), left)
            np.testing.assert_allclose(h, Q @ W.T, **near)
            np.testing.assert_allclose(left, W - (W @ Q.T) @ Q, **near)
            assert be.project_out([], left).shape == (0, p)


def test_project_out_makes_rows_orthogonal_in_groups(isa, rng, monkeypatch):
    monkeypatch.setattr("selfdistill_fast._backend.cpu.PROJECTED_BYTES", 300_000)
    Q = np.ascontiguousarray(np.linalg.qr(rng.normal(size=(1500, 200)))[0].T)
    for be in (Cpu(), REFERENCE):
        W = rng.normal(size=(6, 1500))
        expected = Q @ W.T
        h = be.project_out([Q[at : at + 64] for at in range(0, 200, 64)], W)
        np.testing.assert_allclose(h, expected, rtol=0, atol=1e-12)
        assert np.abs(Q @ W.T).max() <= 1e-13


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_eigh(dtype, n, rng):
    K = Cpu().gram(points(rng, n, 3, dtype), None, RBF(1.0))
    kept = K.copy()
    d, V = Cpu().eigh(K)
    assert d.dtype == V.dtype == dtype
    assert d.shape == (n,)
    assert V.shape == (n, n)
    assert (np.diff(d) >= 0).all()
    tolerance = 1e-13 if dtype is np.float64 else 1e-5
    np.testing.assert_allclose((V * d) @ V.T, kept, atol=tolerance)
    np.testing.assert_allclose(V.T @ V, np.eye(n), atol=tolerance)
