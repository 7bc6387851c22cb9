"""The cases of the benchmark: one row of the printed table each.

A case knows its rivals, functions that do the same work (the first is ours; every later one
is a peer), the least ratio that it is held to, and the work that bounds it from below: bytes
to be written or read, flops, exponentials.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from selfdistill_fast import RBF, Laplacian, Matern, _core, gram, gram_matmul, spectrum
from selfdistill_fast._backend import get_backend
from selfdistill_fast.alpha import grid_losses, step_weights

BEST = _core.isa()  # the instruction set in use


@dataclass(frozen=True)
class Case:
    group: str
    name: str
    rivals: dict[str, Callable]  # name -> function that makes the function to be timed
    judge: str = ""  # the peer that the ratio is taken against
    target: float = 0.0
    dtype: str = "float64"
    isa: str = BEST
    nbytes: float = 0.0  # written
    reads: float = 0.0  # bytes
    flops: float = 0.0
    exps: float = 0.0

    @property
    def twin(self):
        """Name of the case whose peers are this one's: peers do not know of SDF_ISA."""
        return self.name.removesuffix(" avx2")

    @property
    def timed(self):
        """Rivals to be timed for this case itself."""
        return [w for w in self.rivals if self.twin == self.name or w in ("ours", "fresh")]


@functools.cache
def points(n, d, dtype="float64", seed=0):
    return (np.random.default_rng(seed).normal(size=(n, d)) / np.sqrt(d)).astype(dtype)


@functools.lru_cache(maxsize=1)
def buffer(shape, dtype):
    return np.ones(shape, dtype)  # pages exist; reused from round to round


# ---------------------------------------------------------------------------- gram
def gram_case(kernel, d, target, dtype="float64", n=8000, cross=False, isa=BEST, odd=False):
    X = functools.partial(points, n, d, dtype)
    Z = functools.partial(points, n, d, dtype, 1) if cross else lambda: None
    name = f"{type(kernel).__name__} {dtype} {n}x{d}" + (" Z≠X" if cross else "")
    name += f" {isa}" if isa != BEST else ""

    def ours():
        out = buffer((n, n), dtype)
        return lambda: gram(X(), Z(), kernel, out=out)

    def fresh():
        buffer.cache_clear()
        return lambda: gram(X(), Z(), kernel)

    def sklearn():
        if isinstance(kernel, Matern):
            from sklearn.gaussian_process import kernels

            theirs = kernels.Matern(kernel.length_scale, nu=2.5)
            return lambda: theirs(X(), Z())
        from sklearn.metrics import pairwise

        function = {RBF: pairwise.rbf_kernel, Laplacian: pairwise.laplacian_kernel}[type(kernel)]
        return lambda: function(X(), Z(), gamma=kernel.gamma)

    def finish(K):  # of distances, squared except for Matérn, in place
        if isinstance(kernel, Matern):
            K *= 5**0.5 / kernel.length_scale
            polynomial = K * K
            polynomial *= 1 / 3
            polynomial += K
            polynomial += 1
            K *= -1
            np.exp(K, out=K)
            K *= polynomial
            return K
        K *= -kernel.gamma
        return np.exp(K, out=K)

    def scipy():
        from scipy.spatial.distance import cdist

        metric = {RBF: "sqeuclidean", Laplacian: "cityblock", Matern: "euclidean"}[type(kernel)]
        return lambda: finish(cdist(X(), X() if Z() is None else Z(), metric))

    def torch():
        import torch

        x = torch.from_numpy(X())
        z = x if Z() is None else torch.from_numpy(Z())
        if isinstance(kernel, Laplacian):
            return lambda: torch.cdist(x, z, p=1).mul_(-kernel.gamma).exp_()
        return lambda: torch.cdist(x, z).square_().mul_(-kernel.gamma).exp_()

    rivals = {"ours": ours, "fresh": fresh, "scikit-learn": sklearn, "scipy": scipy}
    if not isinstance(kernel, Matern):
        rivals["torch"] = torch
    pairs = n * n if cross else n * (n + 1) / 2
    return Case(
        "gram",
        name,
        rivals,
        judge="scikit-learn",
        target=target,
        dtype=dtype,
        isa=isa,
        nbytes=n * n * np.dtype(dtype).itemsize,
        # an L1 distance takes two instructions a column where an inner product takes one FMA
        flops=pairs * d * (4 if isinstance(kernel, Laplacian) else 2),
        exps=pairs,
    )


# --------------------------------------------------------------------- gram_matmul
def matmul_case(d, p, target, isa=BEST, n=20000, judge="pykeops"):
    kernel = RBF(0.5)
    X, W = functools.partial(points, n, d), functools.partial(points, n, p, seed=2)
    name = f"gram_matmul {n}x{n} d={d} p={p}" + (f" {isa}" if isa != BEST else "")
    name += " Z=X vs K @ W" if judge == "gram+BLAS" else ""

    def ours():
        buffer.cache_clear()
        out = np.empty((n, p))
        return lambda: gram_matmul(X(), None, W(), kernel, out=out)

    def pykeops():
        from pykeops.numpy import LazyTensor

        x, z = LazyTensor(X()[:, None, :]), LazyTensor(X()[None, :, :])
        K = (-kernel.gamma * ((x - z) ** 2).sum(-1)).exp()
        return lambda: K @ W()

    def stored():
        K = buffer((n, n), "float64")

        def run():
            gram(X(), None, kernel, out=K)
            return K @ W()

        return run

    rivals = {"ours": ours, "pykeops": pykeops, "gram+BLAS": stored}
    if judge == "gram+BLAS":
        del rivals["pykeops"]
    else:
        del rivals["gram+BLAS"]
    pairs = n * (n + 1) / 2
    return Case(
        "gram_matmul",
        name,
        rivals,
        judge,
        target,
        isa=isa,
        flops=pairs * 2 * d + 2.0 * n * n * p,
        exps=pairs,
    )


# ---------------------------------------------------------------------- half of K
@functools.lru_cache(maxsize=1)
def half_problem(n, dtype):
    return get_backend().half_gram(points(n, 8), RBF(0.5), np.dtype(dtype))


def half_case(p, dtype="float64", n=8000, isa=BEST):
    V = functools.partial(points, n, p, seed=2)
    name = f"half_matmul {dtype} {n}x{n} p={p}" + (f" {isa}" if isa != BEST else "")

    def whole():
        half_problem.cache_clear()
        return gram(points(n, 8), None, RBF(0.5), out=buffer((n, n), "float64"))

    def ours():
        half, v, out = half_problem(n, dtype), V(), np.empty((n, p))
        return lambda: get_backend().half_matmul(half, v, out=out)

    def symmetric():  # reads one triangle of the whole K
        from scipy.linalg import blas

        K, v = whole(), V()
        if p == 1:
            return lambda: blas.dsymv(1.0, K.T, v[:, 0])
        v = np.asfortranarray(v)
        return lambda: blas.dsymm(1.0, K.T, v)

    def general():
        K, v = whole(), V()
        return lambda: K @ v

    return Case(
        "half_matmul",
        name,
        {"ours": ours, "scipy": symmetric, "numpy": general},
        judge="scipy",
        dtype=dtype,
        isa=isa,
        reads=n * (n + 1) / 2 * np.dtype(dtype).itemsize,
        flops=0.0 if dtype == "float32" else 2.0 * n * n * p,  # its sums are double
    )


# ------------------------------------------------------------------ filters and grid
def path_case(verb, k=4000, lams=100, steps=10):
    d = np.random.default_rng(3).exponential(size=k)
    lam, alpha = np.logspace(-4, 2, lams), np.full(steps, 0.3)

    def run(backend):
        if verb == "shrinkage_path":
            return lambda: get_backend(backend).shrinkage_path(d, lam, alpha)
        return lambda: get_backend(backend).pure_filters(d, lam, steps)

    return Case(
        "path",
        f"{verb} {lams} λ x {steps} τ x {k}",
        {"ours": lambda: run("cpu"), "numpy": lambda: run("reference")},
        judge="numpy",
        nbytes=8.0 * k * lams * steps,
    )


@functools.cache
def grid_problem(n=4000, m=500):
    X, X_val = points(n, 8), points(m, 8, seed=4)
    y = np.random.default_rng(5).normal(size=n)
    s = spectrum(X, y, RBF(4.0))
    return s, s.project(X_val), np.random.default_rng(6).normal(size=m)


def grid_case(lams=10, alphas=101, steps=10):
    n, m = 4000, 500
    lam, alpha = np.logspace(-3, 1, lams), np.linspace(0, 1, alphas)
    C = np.stack([step_weights(np.r_[np.nan, np.full(steps - 1, a)]) for a in alpha])

    def ours():
        s, P, y_val = grid_problem()

        def run():
            pure = s.pure_steps(lam, steps)  # (L, T, n, 1)
            columns = (P @ pure.reshape(-1, n).T).T.reshape(lams, steps, m)
            return grid_losses(y_val, columns, C)

        return run

    def numpy():
        s, P, _ = grid_problem()
        pure = s.pure_steps(lam, steps).reshape(lams, steps, n)
        cells = np.einsum("ast,ltn->nlas", C, pure, optimize=True).reshape(n, -1)
        cells = np.ascontiguousarray(cells)
        return lambda: P @ cells  # not even the losses

    return Case(
        "grid",
        f"grid {lams} λ x {alphas} α x {steps} τ, {m} points, n = {n}",
        {"ours": ours, "numpy": numpy},
        judge="numpy",
        target=40,
        flops=2.0 * m * n * lams * steps,
    )


CASES = [
    gram_case(RBF(0.5), 8, 14),
    gram_case(RBF(0.5), 90, 7),
    gram_case(RBF(0.5), 784, 2.2),
    gram_case(RBF(0.5), 8, 20, "float32"),
    gram_case(RBF(0.5), 90, 11, "float32"),
    gram_case(RBF(0.5), 784, 5.5, "float32"),
    gram_case(Laplacian(0.5), 8, 12),
    gram_case(Laplacian(0.5), 90, 20),
    gram_case(Matern(1.0, 2.5), 8, 16),
    gram_case(RBF(0.5), 8, 9, cross=True),
    gram_case(RBF(0.5), 8, 0, n=8001),
    *(matmul_case(d, p, t) for d, p, t in ((8, 1, 15), (90, 1, 60), (8, 16, 14), (90, 16, 50))),
    matmul_case(8, 1, 1 / 1.5, judge="gram+BLAS"),
    matmul_case(90, 1, 1 / 1.5, judge="gram+BLAS"),
    *(half_case(p) for p in (1, 2, 4, 8, 16)),
    *(half_case(p, "float32") for p in (1, 4, 16)),
    path_case("shrinkage_path"),
    path_case("pure_filters"),
    grid_case(),
]
if BEST == "avx512":
    CASES += [
        gram_case(RBF(0.5), 8, 9, isa="avx2"),
        matmul_case(8, 1, 6, isa="avx2"),
        matmul_case(90, 1, 28, isa="avx2"),
        half_case(1, isa="avx2"),
    ]
