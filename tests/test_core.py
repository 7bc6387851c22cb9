"""The compiled core: agreement with the reference, exact identities, threads, the border.

First the mathematics (symmetry, exact diagonals, coincident points, exp in ulp), then the
agreement of instruction set × precision × kernel × awkward sizes with the reference, then
what a caller may do to it: threads, forks, Ctrl-C, odd arrays, other compilers' modules.
"""

from __future__ import annotations

import inspect
import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import c_build
import mpmath
import numpy as np
import pytest
from processes import run_python

from selfdistill_fast import _core
from selfdistill_fast._backend import BACKENDS, Backend, get_backend, threads
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

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Reference()
KERNELS = [
    RBF(0.3),
    Laplacian(0.2),
    Matern(1.3, 0.5),
    Matern(1.3, 1.5),
    Matern(1.3, 2.5),
    Matern(1.3, math.inf),
    Polynomial(3, 0.2, 1.0),
    Polynomial(8, 0.4, -0.3),
    Linear(),
    NTK(1),
    NTK(3),
]
UNIT = [k for k in KERNELS if k.unit_diagonal]
SIZES = (0, 1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 97)
#: error relative to the largest |K| (at least 1), for points of norm about 1, per degree
TOLERANCE = {np.float64: 1e-12, np.float32: 5e-6}


def tolerance(kernel, dtype):
    return TOLERANCE[dtype] * getattr(kernel, "degree", 1)


@pytest.fixture(params=_core.isa_available())
def isa(request):
    """Every instruction set of this build and processor in turn."""
    before = _core.isa()
    _core._use_isa(request.param)
    yield request.param
    _core._use_isa(before)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def points(rng, n, d, dtype=np.float64, offset=0.0):
    return (offset + rng.normal(size=(n, d)) / math.sqrt(max(d, 1))).astype(dtype)


def in_double(a):
    return None if a is None else a.astype(np.float64)


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
                np.diag(K), diagonal, rtol=tolerance(kernel, dtype), atol=tolerance(kernel, dtype)
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
    np.testing.assert_allclose(K, expected, rtol=0, atol=tolerance(kernel, dtype) * scale)
    if kernel.pair in ("sqeuclidean", "cityblock") and dtype is np.float64:
        np.testing.assert_allclose(K, expected, rtol=TOLERANCE[dtype])


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
                product, K @ in_double(W), rtol=0, atol=tolerance(kernel, dtype) * size
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


# ------------------------------------------------------------------- the caller
@pytest.mark.parametrize("cls", BACKENDS.values())
def test_backends_have_the_signatures_of_the_abstract_one(cls):
    for name, verb in inspect.getmembers(Backend, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(cls, name)) == inspect.signature(verb), name
    ours, theirs = (inspect.signature(c.__init__).parameters for c in (cls, Backend))
    assert list(ours.values())[: len(theirs)] == list(theirs.values())
    assert all(p.default is None for p in list(ours.values())[len(theirs) :])  # Gpu's device
    own = {name for name in dir(cls) if not name.startswith("_")} - {"name", "xp"}
    assert own <= set(dir(Backend)), "a backend has a verb that the abstract one lacks"


def test_get_backend():
    assert type(get_backend()) is type(get_backend("auto")) is type(get_backend("cpu")) is Cpu
    assert type(get_backend("reference")) is Reference
    backend = Cpu()
    assert get_backend(backend) is backend
    assert get_backend(backend, n_threads=3).n_threads == 3
    assert backend.n_threads is None
    with pytest.raises(ValueError, match="known names: auto, reference, cpu"):
        get_backend("gpux")
    with pytest.raises(TypeError, match="name or a backend object"):
        get_backend(3)
    for bad in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            get_backend(n_threads=bad)
    for bad in (2.0, True, "2"):
        with pytest.raises(TypeError, match="positive integer"):
            get_backend(n_threads=bad)


def test_out_is_used_and_checked(rng):
    X, Z = points(rng, 30, 4), points(rng, 20, 4)
    expected = Cpu().gram(X, Z, RBF(1.0))
    for out in (
        np.empty((30, 20)),
        np.empty(1000)[3:603].reshape(30, 20),
        np.empty((30, 40))[:, ::2],  # not contiguous: filled by way of a copy
        np.empty((30, 20), order="F"),
        np.empty((30, 20), np.float32),
        np.frombuffer(bytearray(30 * 20 * 8 + 1), np.uint8)[1:].view(np.float64).reshape(30, 20),
    ):
        assert Cpu().gram(X, Z, RBF(1.0), out=out) is out
        np.testing.assert_allclose(out, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="shape"):
        Cpu().gram(X, Z, RBF(1.0), out=np.empty((20, 30)))
    W = rng.normal(size=(20, 3))
    out = np.empty((30, 3))
    assert Cpu().gram_matmul(X, Z, W, RBF(1.0), out=out) is out
    np.testing.assert_array_equal(out, Cpu().gram_matmul(X, Z, W, RBF(1.0)))
    with pytest.raises(ValueError, match="out must be"):
        Cpu().gram_matmul(X, Z, W, RBF(1.0), out=np.empty((30, 2)))


def test_out_that_is_an_input(rng):
    X = points(rng, 20, 20)
    expected = Cpu().gram(X, None, RBF(1.0))
    out = X.copy()
    assert Cpu().gram(out, None, RBF(1.0), out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_out_is_independent_of_alignment_and_streaming(isa, rng, monkeypatch):
    """Rows that begin alike within a cache line, or not; past the caches, or not."""
    for n, m, d in ((203, 203, 5), (208, 208, 20), (30, 416, 3)):
        for dtype in (np.float64, np.float32):
            X, Z = points(rng, n, d, dtype), points(rng, m, d, dtype)
            for other in (Z, None)[: 1 + (n == m)]:
                monkeypatch.setattr("selfdistill_fast._backend.cpu.STREAM_BYTES", 1 << 40)
                expected = Cpu().gram(X, other, RBF(0.5))
                monkeypatch.setattr("selfdistill_fast._backend.cpu.STREAM_BYTES", 0)
                for offset in range(0, 9, 2):
                    memory = np.full(n * m + 40, 7, dtype)
                    out = memory[offset : offset + n * m].reshape(n, m)
                    Cpu().gram(X, other, RBF(0.5), out=out)
                    np.testing.assert_array_equal(out, expected)
                    assert (memory[:offset] == 7).all()
                    assert (memory[offset + n * m :] == 7).all()


def test_inputs_may_be_read_only_strided_or_misaligned(rng):
    X = points(rng, 30, 6)
    expected = Cpu().gram(X, None, RBF(1.0))
    frozen = X.copy()
    frozen.flags.writeable = False
    unaligned = np.frombuffer(bytearray(X.nbytes + 1), np.uint8)[1:].view(np.float64)
    unaligned = unaligned.reshape(X.shape)
    unaligned[...] = X
    for same in (frozen, np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2], unaligned):
        np.testing.assert_array_equal(Cpu().gram(same, None, RBF(1.0)), expected)
        np.testing.assert_array_equal(Cpu().gram(same, X, RBF(1.0)), expected)
        np.testing.assert_allclose(
            Cpu().gram_matmul(same, None, same, RBF(1.0)), expected @ X, atol=1e-13
        )


def test_the_border_refuses():
    X = np.ones((4, 3))
    spec = RBF(1.0).c_spec
    with pytest.raises(TypeError, match="float32 and float64"):
        _core.Gram(X.astype(int), None, spec)
    with pytest.raises(TypeError, match="Z must be a 2-D array of float64"):
        _core.Gram(X, X.astype(np.float32), spec)
    with pytest.raises(TypeError, match="2-D"):
        _core.Gram(X[0], None, spec)
    with pytest.raises(ValueError, match="columns"):
        _core.Gram(X, np.ones((4, 2)), spec)
    with pytest.raises(ValueError, match="unknown kernel"):
        _core.Gram(X, None, ("cubic", 1.0, 0.0, 0))
    with pytest.raises(ValueError, match="contiguous"):
        _core.Gram(X[:, ::2], None, spec)
    with pytest.raises(TypeError):
        _core.Gram(X.astype(">f8"), None, spec)
    frozen = np.ones((4, 4))
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _core.Gram(X, None, spec, frozen)
    job = _core.Gram(X, None, spec, np.empty((4, 4)))
    with pytest.raises(ValueError, match="range"):
        job.gram(0, 2)
    with pytest.raises(ValueError, match="NULL"):
        job.pairs(0, 1)
    with pytest.raises(ValueError, match="pair quantity"):
        job.set_kernel(Laplacian(1.0).c_spec)
    sums = np.empty((1, 4, 2))
    with pytest.raises(ValueError, match="sums must have shape"):
        _core.inner_products(X, X[:2], sums, 1, 0, 1)
    with pytest.raises(ValueError, match="range"):
        _core.inner_products(X, X[:2], sums, 0, 0, 2)
    with pytest.raises(ValueError, match="h must have shape"):
        _core.project_out(X, sums[0], -1, X[:2], 0, 1)
    with pytest.raises(ValueError, match="read-only"):
        _core.project_out(np.ones((4, 4)), sums[0], 0, frozen[:2], 0, 1)


def test_kernel_table_is_that_of_the_python_kernels():
    assert {k.c_spec[0] for k in KERNELS} == set(_core.KERNEL_IDS)


def test_isa_is_chosen_by_the_environment():
    code = "from selfdistill_fast import _core; print(_core.isa())"
    for name in _core.isa_available():
        assert run_python(code, SDF_ISA=name).stdout.strip() == name
    assert run_python(code, SDF_ISA="").stdout.strip() == _core.isa_available()[-1]
    result = run_python(code, SDF_ISA="sse9")
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert "SDF_ISA" in result.stderr
    assert "'sse9' is not available" in result.stderr
    assert "generic" in result.stderr


def test_import_is_light():
    result = run_python(
        """
        import sys, threading
        import selfdistill_fast._backend
        heavy = {"sklearn", "torch", "cupy", "matplotlib", "pandas"} & set(sys.modules)
        assert not heavy, heavy
        assert threading.active_count() == 1
        """
    )
    assert result.returncode == 0, result.stderr


# --------------------------------------------------------------------- threads
@pytest.mark.parametrize("kernel", [RBF(0.5), Laplacian(0.5), NTK(2)], ids=repr)
@pytest.mark.parametrize("d", [5, 40])
def test_same_bits_for_any_number_of_threads(kernel, d, rng, monkeypatch):
    monkeypatch.setattr(threads, "GRAIN_NS", 0)
    monkeypatch.setattr(threads, "BLOCK_NS", (20_000, 20_000))
    X, Z, W = points(rng, 900, d), points(rng, 500, d), rng.normal(size=(900, 3))
    results = []
    for n_threads in (1, 2, 3, 8):
        cpu = get_backend(n_threads=n_threads)
        results.append(
            (
                cpu.gram(X, None, kernel),
                cpu.gram(X, Z, kernel),
                cpu.gram_matmul(X, None, W, kernel),
                cpu.gram_matmul(X, Z, W[:500], kernel),
                cpu.shrinkage_path(X[:, 0] ** 2, np.geomspace(1e-3, 1, 7), np.full(9, 0.3)),
                cpu.project_out([X.T.copy()], left := W.T.copy()),
                left,
            )
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_calls_from_eight_threads_at_once(rng, monkeypatch):
    monkeypatch.setattr(threads, "GRAIN_NS", 0)
    monkeypatch.setattr(threads, "BLOCK_NS", (50_000, 50_000))
    X, W = points(rng, 700, 6), rng.normal(size=(700, 2))
    cpu = get_backend(n_threads=4)
    K, KW = cpu.gram(X, None, RBF(1.0)), cpu.gram_matmul(X, None, W, RBF(1.0))
    barrier = threading.Barrier(8)

    def work(_):
        barrier.wait()
        return [
            (cpu.gram(X, None, RBF(1.0)), cpu.gram_matmul(X, None, W, RBF(1.0))) for _ in range(3)
        ]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(work, range(8)):
            for a, b in results:
                np.testing.assert_array_equal(a, K)
                np.testing.assert_array_equal(b, KW)


def test_run_covers_the_range_once_and_passes_on_errors():
    for n_threads in (1, 3):
        for count in (0, 1, 7, 1000):
            seen = np.zeros(count, int)

            def mark(lo, hi, seen=seen):
                seen[lo:hi] += 1

            threads.run(mark, count, 1e6, n_threads)
            assert (seen == 1).all()

        def fail(lo, hi):
            time.sleep(0.001)
            if lo <= 20 < hi:
                raise ZeroDivisionError("here")

        with pytest.raises(ZeroDivisionError, match="here"):
            threads.run(fail, 500, 1e6, n_threads)


def test_no_block_runs_after_an_error():
    running = []

    def slow(lo, hi):
        running.append(lo)
        time.sleep(0.05)
        running.remove(lo)

    def first_fails(lo, hi):
        if lo == 0:
            time.sleep(0.01)
            raise ValueError("first block")
        slow(lo, hi)

    with pytest.raises(ValueError, match="first block"):
        threads.run(first_fails, 100, 1e9, 4)
    assert not running


def test_n_threads_honours_the_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    available = threads.n_threads_now()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.n_threads_now() == 1
    assert threads.n_threads_now(5) == 5
    for unusable in ("0", "many", ""):
        monkeypatch.setenv("OMP_NUM_THREADS", unusable)
        assert threads.n_threads_now() == available
    monkeypatch.setenv("OMP_NUM_THREADS", "1,4")
    assert threads.n_threads_now() == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_computes():
    result = run_python(
        """
        import os, warnings
        import numpy as np
        from selfdistill_fast._backend import get_backend, threads
        from selfdistill_fast.kernels import RBF
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: the point
        X = np.random.default_rng(0).normal(size=(1500, 5))
        cpu = get_backend(n_threads=3)
        K = cpu.gram(X, None, RBF(1.0))
        assert threads._helpers == 2
        pid = os.fork()
        if pid == 0:
            ok = threads._helpers == 0 and (cpu.gram(X, None, RBF(1.0)) == K).all()
            os._exit(0 if ok else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert (cpu.gram(X, None, RBF(1.0)) == K).all()
        """
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_ctrl_c_stops_our_loops():
    """A product that would take minutes is interrupted, and the next call works."""
    code = """
        import signal, sys
        import numpy as np
        from selfdistill_fast._backend import get_backend
        from selfdistill_fast.kernels import RBF
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
        rng = np.random.default_rng(0)
        X, W = rng.normal(size=(400_000, 90)), np.ones((400_000, 1))
        cpu = get_backend(n_threads=2)
        print("started", flush=True)
        try:
            cpu.gram_matmul(X, None, W, RBF(1.0))
        except KeyboardInterrupt:
            K = cpu.gram(X[:500], None, RBF(1.0))
            print("interrupted", (np.diag(K) == 1).all(), flush=True)
        """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline().strip() == "started"
            time.sleep(1.5)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert output.strip() == "interrupted True"


# ------------------------------------------------------------------ C and Cython
COMPILER = c_build.compiler()


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_c_level_under_sanitizers(tmp_path):
    """tests/c/test_sdf.c: every loop against long double, under ASan and UBSan."""
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    built = subprocess.run(
        [COMPILER, *sanitize, str(probe), "-o", str(tmp_path / "probe")], capture_output=True
    )
    if built.returncode or subprocess.run([tmp_path / "probe"]).returncode:
        pytest.skip("the compiler has no address or undefined behaviour sanitizer")

    try:
        program = c_build.build(tmp_path, list(_core.isa_available()), COMPILER, sanitize)
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stderr)
    result = subprocess.run([program], capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "all passed" in result.stdout


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_another_cython_module_calls_the_loops(tmp_path, rng):
    pytest.importorskip("Cython")
    from importlib import resources

    source = tmp_path / "guest.pyx"
    source.write_text(
        textwrap.dedent(
            """
            # cython: language_level=3
            from selfdistill_fast cimport _sdf as sdf
            from selfdistill_fast._core import empty_aligned
            import numpy as np

            cdef double[::1] memory(Py_ssize_t size):
                return empty_aligned((max(size, 1),), np.float64)

            def laplacian(const double[:, ::1] X, double gamma):
                "K(X, X) of the Laplacian kernel, tile by tile."
                cdef const sdf.sdf_loops* loops = sdf.import_api().f64
                cdef sdf.sdf_job job = sdf.sdf_job()
                cdef Py_ssize_t tile
                out = np.empty((X.shape[0], X.shape[0]))
                cdef double[:, ::1] K = out
                cdef sdf.sdf_problem* problem = &job.problem
                problem.kernel, problem.a = sdf.SDF_LAPLACIAN, gamma
                problem.n = problem.m = problem.ld = X.shape[0]
                problem.d = X.shape[1]
                problem.x, problem.out = &X[0, 0], &K[0, 0]
                assert loops.prepare(&job) == sdf.SDF_OK
                shift = memory(problem.d)
                packed = memory(job.plan.packed_size_x)
                norms = memory(job.plan.norms_size_x)
                scratch = memory(job.plan.scratch_size)
                shift[:] = 0
                job.buffers.shift, job.buffers.packed_x = &shift[0], &packed[0]
                job.buffers.norms_x = &norms[0]
                assert loops.pack(&job, 0, job.plan.panels_x) == sdf.SDF_OK
                for tile in range(job.plan.tiles):
                    assert loops.gram(&job, tile, tile + 1, &scratch[0]) == sdf.SDF_OK
                return out

            def path(const double[::1] d, const double[::1] lam, const double[::1] alpha):
                "diag B of every step."
                out = np.empty((lam.shape[0], alpha.shape[0], d.shape[0]))
                cdef double[:, :, ::1] B = out
                cdef Py_ssize_t k = d.shape[0]
                cdef Py_ssize_t units = lam.shape[0] * (-(-k // sdf.SDF_FILTER_BLOCK))
                assert sdf.import_api().f64.shrinkage_path(
                    &d[0], k, &lam[0], lam.shape[0], &alpha[0], alpha.shape[0],
                    &B[0, 0, 0], 0, units) == sdf.SDF_OK
                return out
            """
        )
    )
    package = Path(str(resources.files("selfdistill_fast") / "_sdf.pxd")).parent
    result = subprocess.run(
        [sys.executable, "-m", "cython", "-3", "-I", str(package.parent), str(source)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    module = tmp_path / ("guest" + sysconfig.get_config_var("EXT_SUFFIX"))
    dynamic = (
        ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    )
    result = subprocess.run(
        [
            COMPILER,
            "-O1",
            "-fPIC",
            *dynamic,
            f"-I{sysconfig.get_path('include')}",
            f"-I{_core.get_include()}",
            str(source.with_suffix(".c")),
            "-o",
            str(module),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr

    import importlib.util

    spec = importlib.util.spec_from_file_location("guest", module)
    guest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guest)
    X, d = points(rng, 250, 4), rng.exponential(size=700)
    np.testing.assert_array_equal(guest.laplacian(X, 0.7), Cpu().gram(X, None, Laplacian(0.7)))
    lam, alpha = np.array([0.1, 2.0]), np.array([np.nan, 0.3, 0.6])
    np.testing.assert_array_equal(guest.path(d, lam, alpha), Cpu().shrinkage_path(d, lam, alpha))


# ------------------------------------------------------------------------------- size
@pytest.mark.slow
def test_more_than_two_to_the_31_entries_in_a_memory_map(tmp_path, rng):
    """float32 50,000 x 50,000 in two blocks of rows; the first alone has 2.2e9 entries."""
    n, first = 50_000, 44_000
    if shutil.disk_usage(tmp_path).free < 1.2 * 4 * n * n:
        pytest.skip("needs 12 GB of disk")
    X, kernel = points(rng, n, 5, np.float32), RBF(0.5)
    path = tmp_path / "gram.f32"
    K = np.memmap(path, np.float32, "w+", shape=(n, n))
    try:
        for rows in (slice(0, first), slice(first, n)):
            Cpu().gram(X[rows], X, kernel, out=K[rows])
        some = np.r_[0, 1, first - 1, first, n - 1, rng.integers(0, n, 40)]
        for i in some:
            expected = REFERENCE.gram(X[i : i + 1], X, kernel)[0]
            np.testing.assert_allclose(K[i], expected, atol=tolerance(kernel, np.float32))
            assert K[i, i] == 1
    finally:
        del K
        path.unlink()
