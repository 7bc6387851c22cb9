"""kernels.cu without a device: NVRTC takes it, and every kernel, run on the host, is right.

The host run is of the very source that a device gets: tiles, indices, barriers, launch sizes.
"""

from __future__ import annotations

import os
import re

import cuda_build
import numpy as np
import oracle
import pytest
import tolerance
from cases import KERNELS, kernel_id
from processes import run_python
from tolerance import assert_close

from selfdistill_fast import NTK, RBF, Laplacian, Linear, Matern, Polynomial
from selfdistill_fast._backend import Cpu, cuda_algebra, cuda_kernels, cuda_libraries
from selfdistill_fast._backend import gpu as gpu_module
from selfdistill_fast._backend.reference import Reference

needs_nvrtc = pytest.mark.skipif(
    cuda_build.nvrtc() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc"
)
both_dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@both_dtypes
def test_nvrtc_compiles_every_entry_point(arch, dtype):
    itemsize = np.dtype(dtype).itemsize
    compiled = []
    for part in cuda_kernels.PARTS:
        options = [f"--gpu-architecture={arch}", "--ptxas-options=-v", "-ftz=true"]
        options += cuda_kernels.compile_options(itemsize, part)  # as CuPy passes them
        ok, log, binary = cuda_build.compile_cuda(cuda_kernels.cuda_source(), options)
        assert ok, log
        assert "warning" not in log, log
        found = re.findall(r"Function properties for (\w+)", log)
        for entry in found:
            assert entry.encode() in binary
            last = entry.rpartition("_")[2]
            assert part == (last if last in cuda_kernels.PARTS else "other"), entry
        compiled += found
        shared = [int(size) for size in re.findall(r"(\d+) bytes smem", log)]
        assert max(shared, default=0) <= 48 * 1024
        registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
        assert max(registers) * cuda_kernels.BLOCK * 2 <= 65536  # two blocks on a multiprocessor
        spilled = [int(size) for size in re.findall(r"(\d+) bytes spill stores", log)]
        assert max(spilled) <= 512
    assert sorted(compiled) == sorted(cuda_build.ENTRIES)


@needs_nvrtc
@pytest.mark.parametrize(
    ("order", "torch"),
    [("as found", "absent"), ("reversed", "absent"), ("as found", "before"), ("reversed", "after")],
)
def test_every_nvrtc_compiles_beside_the_others(order, torch):
    """CUDA of two majors in one process, in either order, and torch with that of its own."""
    if torch != "absent":
        pytest.importorskip("torch")
    code = f"""
        import sys
        sys.path.insert(0, {os.path.dirname(cuda_build.__file__)!r})
        import cuda_build
        from selfdistill_fast._backend import cuda_libraries
        if {torch == "before"}:
            import torch
        files = cuda_libraries.nvrtc_files()[:: {-1 if order == "reversed" else 1}]
        libraries = [cuda_build.load_nvrtc(file) for file in files]
        if {torch == "after"}:
            import torch
        for file, library in zip(files, libraries):
            assert library is not None, file
            ok, log, _ = cuda_build.compile_cuda("__global__ void f() {{}}", [], library)
            assert ok, (file, log)
        print(len(files), "compiled")
    """
    result = run_python(code)
    found = len(cuda_libraries.nvrtc_files())
    assert (result.returncode, result.stdout) == (0, f"{found} compiled\n"), result.stderr


def test_the_constants_of_both_sides_agree():
    source = cuda_kernels.cuda_source()
    threads, per = (int(re.search(rf"\b{name} = (\d+)", source)[1]) for name in ("THREADS", "PER"))
    assert (
        threads**2,
        threads * per,
        threads,
    ) == (cuda_kernels.BLOCK, cuda_kernels.SIDE, cuda_kernels.TARGETS)
    assert "formulas.h" in source
    assert '#include "' not in source


# ------------------------------------------------------------------ on the host


@pytest.fixture
def gpu(stand_in):
    return gpu_module.Gpu()


def reference(kernel, X, Z=None):
    return oracle.kernel_matrix(kernel, X, Z)


@pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)
@both_dtypes
def test_gram_kernels(gpu, kernel, dtype, rng):
    """Below, at and above a tile, few columns and many (by BLAS), rows that coincide."""
    for n, m, d in ((1, 1, 1), (3, 70, 2), (64, 65, 8), (130, 97, 9), (65, 70, 70)):
        X, Z = (rng.standard_normal((rows, d)).astype(dtype) + 3 for rows in (n, m))
        X[n // 2] = X[0]
        Z[m // 2] = X[0]
        K = gpu.to_numpy(gpu.gram(gpu.asarray(X), gpu.asarray(Z), kernel))
        assert_close(K, reference(kernel, X, Z), tolerance.gram(kernel, X, Z, dtype), 1.0)
        own = gpu.to_numpy(gpu.gram(gpu.asarray(X), None, kernel))
        assert_close(own, reference(kernel, X), tolerance.gram(kernel, X, X, dtype), 1.0)
        np.testing.assert_array_equal(own, own.T)
        if kernel.unit_diagonal:
            assert (np.diagonal(own) == 1).all()
            assert own[0, n // 2] == 1
            assert K[0, m // 2] == 1


@pytest.mark.parametrize("kernel", [RBF(0.7), Matern(1.3, 0.5), Polynomial(3, 0.5, 1.0), NTK(2)])
def test_panels_and_rows_that_nearly_coincide(gpu, kernel, monkeypatch, rng):
    """Many columns: products by panels, and pairs that the norm expansion would lose."""
    monkeypatch.setattr(gpu_module, "PANEL_ROWS", 48)
    X = rng.standard_normal((130, 80)) + 100.0
    X[1::2] = X[::2] + 1e-9 * rng.standard_normal((65, 80))
    K = gpu.to_numpy(gpu.gram(gpu.asarray(X), None, kernel))
    np.testing.assert_array_equal(K, K.T)
    expected = Reference().gram(X, None, kernel)
    assert_close(K, expected, 1e-9, None)
    if kernel.unit_diagonal:  # exp(-r) at r = 1e-8: the norm expansion is off by 1e-5
        close = np.abs(K - expected)[np.arange(0, 130, 2), np.arange(1, 130, 2)]
        assert close.max() < 1e-12


@pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)
@both_dtypes
@pytest.mark.parametrize("p", [1, 2, 16, 17, 64, 70])
def test_products(gpu, kernel, dtype, p, monkeypatch, rng):
    monkeypatch.setattr(gpu_module, "SLAB_BYTES", 1 << 14)
    for n, m, d in ((5, 130, 3), (70, 66, 5), (40, 70, 66)):
        X, Z = (rng.standard_normal((rows, d)).astype(dtype) for rows in (n, m))
        W = rng.standard_normal((m, p)).astype(dtype)
        K = reference(kernel, X, Z)
        allowed = tolerance.gram(kernel, X, Z, dtype) * np.abs(W).sum(0).max()
        allowed += 16 * tolerance.eps(dtype) * (np.abs(K) @ np.abs(W)).max()
        KW = gpu.gram_matmul(*(gpu.asarray(a) for a in (X, Z, W)), kernel)
        assert_close(gpu.to_numpy(KW), K @ W.astype(np.float64), allowed, 1.0)


def test_float32_products_are_summed_in_double(gpu, rng):
    """n entries of one sign: sums in float32 would be off by n eps / 2 or so."""
    X, W = rng.standard_normal((20_000, 2)).astype(np.float32), np.ones((20_000, 1), np.float32)
    Z = X[:3]
    got = gpu.to_numpy(gpu.gram_matmul(gpu.asarray(Z), gpu.asarray(X), gpu.asarray(W), RBF(0.1)))
    K = reference(RBF(0.1), Z, X)
    assert_close(got, K @ W, 3e-7)


@both_dtypes
def test_squares_and_stored_products(gpu, dtype, rng):
    A = rng.standard_normal((131, 67)).astype(dtype)
    for V in (A, np.asfortranarray(A)):
        native = gpu.xp.asarray(V)
        for q in (1, 16, 40, 90):
            F = rng.standard_normal((67, q)).astype(dtype)
            got = gpu.to_numpy(gpu.squares_matmul(native, gpu.asarray(F)))
            allowed = 8 * tolerance.eps(dtype) * (np.square(A) @ np.abs(F)).max()
            assert_close(got, np.square(A.astype(float)) @ F, allowed, 1.0)
    S = (A @ A.T).astype(dtype)
    half = gpu.half_of(gpu.asarray(S))
    for p in (1, 3):
        V = rng.standard_normal((131, p))
        got = gpu.to_numpy(gpu.half_matmul(half, gpu.asarray(V)))
        assert_close(got, S.astype(float) @ V, 1e-13)


@both_dtypes
def test_filters(gpu, dtype, rng):
    d = np.sort(rng.exponential(size=700)).astype(dtype)
    lam, alpha = np.array([0.01, 3.0]), np.array([np.nan, 0.3, -0.5, 1.0])
    expected = Reference().shrinkage_path(d, lam, alpha)
    assert_close(gpu.to_numpy(gpu.shrinkage_path(gpu.asarray(d), lam, alpha)), expected, 1e-15)
    expected = Reference().pure_filters(d, lam, 5)
    assert_close(
        gpu.to_numpy(gpu.pure_filters(gpu.asarray(d), lam, 5)), expected, 2 * tolerance.eps(dtype)
    )


@both_dtypes
def test_linear_algebra(gpu, dtype, monkeypatch, rng):
    """The arguments for cuBLAS and cuSOLVER, by the BLAS and LAPACK of the host."""
    monkeypatch.setattr(cuda_algebra, "INVERSE_COLUMNS", 16)
    A = rng.standard_normal((70, 70)).astype(dtype)
    K, B = A @ A.T + 70 * np.eye(70, dtype=dtype), rng.standard_normal((70, 3)).astype(dtype)
    exact = 500 * tolerance.eps(dtype)
    d, V = (gpu.to_numpy(a) for a in gpu.eigh(gpu.asarray(K)))
    assert_close((V * d) @ V.T, K, exact)
    L = gpu.cholesky(gpu.asarray(K))
    host = gpu.to_numpy(L)
    np.testing.assert_array_equal(host, np.tril(host))
    assert_close(host @ host.T, K, exact)
    assert_close(K @ gpu.to_numpy(gpu.cholesky_solve(L, gpu.asarray(B))), B, exact)
    for lower, R in ((True, L), (False, L.T)):
        X = gpu.to_numpy(gpu.triangular_solve(R, gpu.asarray(B), lower=lower))
        assert_close(gpu.to_numpy(R) @ X, B, exact)
    M = gpu.to_numpy(gpu.cholesky_inverse(L))
    np.testing.assert_array_equal(M, M.T)
    assert_close(K @ M, np.eye(70), exact)
    U, s, G = (gpu.to_numpy(a) for a in gpu.svd(gpu.asarray(A[:, :9])))
    assert_close((U * s) @ G, A[:, :9], exact)
    indefinite = gpu.asarray(K - 100 * np.eye(70, dtype=dtype))
    with pytest.raises(np.linalg.LinAlgError, match="leading minor"):
        gpu.cholesky(indefinite)


@pytest.mark.skipif(cuda_build.compiler() is None, reason="no C++ compiler")
def test_places_of_tiles_beyond_32_bits():
    place = cuda_build.place_of(cuda_kernels.cuda_source())
    side = cuda_kernels.SIDE
    for row in (0, 1, 2, 781, 65_535, 65_536, 94_906_265, 2**31, 2**31 + 1):
        first = row * (row + 1) // 2
        assert place(first, row + 1, True) == (row * side, 0)
        assert place(first + row, row + 1, True) == (row * side, row * side)
        assert place(first + row // 2, row + 1, True) == (row * side, row // 2 * side)
        assert place(row * (2**31 + 7) + 5, 2**31 + 7, False) == (row * side, 5 * side)


@pytest.mark.parametrize("kernel", [RBF(1e300), Laplacian(1e-300), Matern(1e-200, 2.5), Linear()])
def test_extreme_parameters_give_no_nan(gpu, kernel):
    X = np.array([[0.0], [1.0], [1e5]])
    K = gpu.to_numpy(gpu.gram(gpu.asarray(X), None, kernel))
    assert np.isfinite(K).all()
    assert_close(K, Cpu().gram(X, None, kernel), 1e-14)
