"""Hard random problems for Krylov certificates, judged by long double.

    python tests/support/certificate_judge.py [problems] [first seed]

draws problems, runs each, compares every pure step with a long-double reference, and prints
counts and the largest error ÷ certificate. ``test_certificate.py`` runs some of them. Nothing
of the reference is from the package: kernels from their formulas, Cholesky by columns.
"""

from __future__ import annotations

import math
import sys
import warnings
from typing import NamedTuple

import numpy as np

from selfdistill_fast import NTK, RBF, Laplacian, Linear, Matern, Polynomial, spectrum

LD = np.longdouble

# ------------------------------------------------------------------ the reference


def kernel_matrix(kernel, X, Z):
    """κ(X, Z) in long double, from the formulas."""
    X, Z = np.asarray(X, LD), np.asarray(Z, LD)
    name = type(kernel).__name__
    if name in ("Linear", "Polynomial"):
        inner = (X[:, None] * Z[None]).sum(-1)
        if name == "Linear":
            return inner
        return (LD(kernel.gamma) * inner + LD(kernel.coef0)) ** kernel.degree
    if name == "NTK":
        return ntk(kernel.depth, X, Z)
    gap = X[:, None] - Z[None]
    if name == "Laplacian":
        return np.exp(-LD(kernel.gamma) * np.abs(gap).sum(-1))
    square = np.square(gap).sum(-1)
    if name == "RBF":
        return np.exp(-LD(kernel.gamma) * square)
    r = np.sqrt(square) / LD(kernel.length_scale)
    if kernel.nu == 0.5:
        return np.exp(-r)
    if kernel.nu == 1.5:
        return (1 + np.sqrt(LD(3)) * r) * np.exp(-np.sqrt(LD(3)) * r)
    if kernel.nu == 2.5:
        return (1 + np.sqrt(LD(5)) * r + 5 * np.square(r) / 3) * np.exp(-np.sqrt(LD(5)) * r)
    return np.exp(-np.square(r) / 2)


def ntk(depth, X, Z):
    nx, nz = np.sqrt(np.square(X).sum(1)), np.sqrt(np.square(Z).sum(1))
    U, V = (A / np.where(s > 0, s, 1)[:, None] for A, s in ((X, nx), (Z, nz)))
    near, far = (np.sqrt(np.square(U[:, None] + s * V[None]).sum(-1)) for s in (-1, 1))
    pi = LD("3.14159265358979323846264338327950288")
    angle = 2 * np.arctan2(near, far)
    theta = np.cos(angle)
    for _ in range(depth):
        square, series = np.square(angle), LD(0)
        for k in range(11, 0, -1):  # θ cos θ − sin θ near 0
            series = (-1) ** k * LD(2 * k) / math.factorial(2 * k + 1) + square * series
        series = angle * square * series
        gap = np.where(angle < 0.7, series, angle * np.cos(angle) - np.sin(angle)) / pi
        gap = np.maximum(gap + 2 * np.sin(angle / 2) ** 2, 0)
        theta = (1 - gap) + theta * (1 - angle / pi)
        angle = 2 * np.arcsin(np.sqrt(gap / 2))
    return nx[:, None] * nz[None] * theta


def cholesky(A):
    n, L = len(A), A.copy()
    for j in range(n):
        L[j:, j] -= L[j:, :j] @ L[j, :j]
        L[j:, j] /= np.sqrt(L[j, j])
        L[j, j + 1 :] = 0
    return L


def solve(L, B):
    x = B.copy()
    n = len(L)
    for j in range(n):
        x[j] = (x[j] - L[j, :j] @ x[:j]) / L[j, j]
    for j in range(n - 1, -1, -1):
        x[j] = (x[j] - L[j + 1 :, j] @ x[j + 1 :]) / L[j, j]
    return x


def pure_steps(K, K_new, y, lams, w, intercept):
    """Predictions (T, m, p) of the chain with one ridge for each step, all α = 0."""
    w = np.ones(len(K), LD) if w is None else np.asarray(w, LD)
    keep = w > 0
    K, K_new, y, w = K[np.ix_(keep, keep)], K_new[:, keep], np.asarray(y, LD)[keep], w[keep]
    root, mean = np.sqrt(w), np.zeros(y.shape[1], LD)
    A = root[:, None] * K * root
    B = K_new * root
    if intercept:
        # about the first row, so that the mean of a constant is that constant
        mean = y[0] + (w[:, None] * (y - y[0])).sum(0) / w.sum()
        q = root / np.sqrt(w.sum())
        m = A @ q
        A = A - q[:, None] * m - m[:, None] * q + (q @ m) * q[:, None] * q
        B = B - (B @ q)[:, None] * q - m / np.sqrt(w.sum())  # ⟨φ(x) − φ̄, φ(x_j)⟩ √w_j
    t, steps = root[:, None] * (y - mean), []
    factors = {lam: cholesky(A + LD(lam) * np.eye(len(A), dtype=LD)) for lam in set(lams)}
    for lam in lams:
        c = solve(factors[lam], t)
        if intercept:
            c = c - q[:, None] * (q @ c)
        steps.append(mean + B @ c)
        t = A @ c
    return np.array(steps)


# ------------------------------------------------------------------ the problems


class Problem(NamedTuple):
    X: np.ndarray
    y: np.ndarray
    kernel: object
    w: np.ndarray | None
    intercept: bool
    lam: float
    n_steps: int
    options: dict
    X_new: np.ndarray
    backend: str
    precomputed: bool


def draw(seed):
    """A hard problem: offsets, graded weights, near-equal rows and targets, any λ, few vectors."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 61) if rng.uniform() < 0.75 else rng.integers(61, 161))
    p, d = int(rng.integers(1, 6)), int(rng.choice([1, 2, 3, 5, 12]))
    single = rng.uniform() < 0.15
    X = rng.normal(size=(n, d))
    rows = rng.choice(["apart", "equal", "near", "outlier"], p=[0.55, 0.15, 0.15, 0.15])
    if rows == "equal":
        X = X[rng.integers(0, max(1, n // 3), n)]
    elif rows == "near":
        X = X[rng.integers(0, max(1, n // 3), n)] + 1e-9 * X
    elif rows == "outlier":
        X[0] *= 100.0
    X_new = np.concatenate([X[:5], rng.normal(size=(10, d)), 10.0 ** rng.uniform(0, 6) * X[:5]])
    offset = 0.0 if rng.uniform() < 0.5 else 10.0 ** rng.uniform(1, 3 if single else 6)
    X, X_new = X + offset, np.concatenate([X_new + offset, X_new])
    width = 10.0 ** rng.uniform(-3, 1)
    kernel = [
        RBF(width / d),
        Laplacian(width / d),
        Matern(1.0 / width, float(rng.choice([0.5, 1.5, 2.5]))),
        Polynomial(int(rng.integers(1, 5)), width / d / max(1.0, offset), float(rng.uniform(0, 2))),
        Linear(),
        NTK(int(rng.integers(1, 4))),
    ][rng.integers(6)]
    y = np.sin(2.0 * X[:, :1]) + rng.normal(size=(n, p)) * 10.0 ** rng.uniform(-3, 1)
    kind = rng.choice(["plain", "twins", "offset", "units", "constant", "linear"])
    if kind == "twins":
        y = y[:, :1] * (1.0 + 10.0 ** rng.uniform(-12, -3) * rng.normal(size=(n, p)))
    elif kind == "offset":
        y += 10.0 ** rng.uniform(1, 7)
    elif kind == "units":
        y *= 10.0 ** rng.uniform(-8, 8, p)
    elif kind == "constant":
        y[:, 0] = rng.normal()
    elif kind == "linear":
        y = X[:, :1] + 1e-3 * y
    w = None
    if rng.uniform() < 0.4:
        w = 10.0 ** rng.uniform(-rng.uniform(0, 6), 1, n)
        w[rng.uniform(size=n) < 0.1] = 0.0
        w[:2] = 1.0
    options = {"tol": 10.0 ** rng.uniform(-12, -3)} if rng.uniform() < 0.6 else {}
    options["storage"] = str(rng.choice(["auto", "float32", "none"], p=[0.6, 0.2, 0.2]))
    if rng.uniform() < 0.3:
        options["max_rank"] = int(rng.integers(p, p + 8))
    options["n_steps"] = int(rng.integers(1, 8))
    if single:
        X, X_new = X.astype(np.float32), X_new.astype(np.float32)
    root = np.ones(n) if w is None else np.sqrt(w)
    K = kernel_matrix(kernel, X, X).astype(float)
    size = float(np.linalg.norm(root[:, None] * K * root, 2))
    lam = size * 10.0 ** rng.uniform(-8, 8)
    options["lam_min"] = lam * 10.0 ** -rng.choice([0.0, 0.0, 2.0 * rng.uniform()])
    backend = "reference" if rng.uniform() < 0.2 else "cpu"
    intercept = bool(rng.uniform() < 0.6)
    precomputed = rng.uniform() < 0.15
    if precomputed and options["storage"] == "none":
        options["storage"] = "auto"
    n_steps = int(rng.integers(1, 8))
    return Problem(X, y, kernel, w, intercept, lam, n_steps, options, X_new, backend, precomputed)


class Outcome(NamedTuple):
    """Error ÷ bound at most: at the given rows, anywhere, and of ``tol`` in an unwarned run."""

    at_rows: float
    plain: float
    tol: float
    warned: bool


def ratio(error, bound):
    """max error/bound, where 0/0 is 0."""
    safe = np.where(bound > 0, bound, 1e-300)
    with np.errstate(invalid="ignore"):  # both are infinite where a prediction overflows
        return float(np.max(np.where(np.isposinf(bound), 0.0, error / safe), initial=0.0))


def judge(problem):
    """Run a problem and compare every step, target and row."""
    X, y, kernel, w, intercept, lam, n_steps, options, X_new, backend, precomputed = problem
    K, K_new = kernel_matrix(kernel, X, X), kernel_matrix(kernel, X_new, X)
    data, new = (K.astype(X.dtype), K_new.astype(X.dtype)) if precomputed else (X, X_new)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {**options, "sample_weight": w, "fit_intercept": intercept, "backend": backend}
        given = "precomputed" if precomputed else kernel
        s = spectrum(data, y, given, solver="krylov", **options)
        F = s.evaluate(new, s.pure_steps(lam, n_steps))
        plain = s.certificate(lam, n_steps)
        at_rows = plain[:, None] if precomputed else s.certificate(lam, n_steps, X_new)
    exact = pure_steps(K, K_new, y, [lam] * n_steps, w, intercept)
    error = np.abs(F - exact).astype(float)
    weights = np.ones(len(X)) if w is None else w
    kept = weights > 0
    diagonal = kernel_matrix(kernel, X_new, X_new).diagonal()
    near = diagonal <= K.diagonal()[kept].max() * (1 + 1e-15)
    if precomputed:  # κ(x, x) elsewhere is not known
        error, near = error[:, near], near[near]
    warned = any("krylov" in str(one.message) for one in caught)
    mean = np.average(y[kept], axis=0, weights=weights[kept]) if intercept else 0.0 * y[0]
    scale = np.abs(y[kept] - mean).max(0)
    constant = scale <= 1e-12 * np.abs(mean)
    scale[constant] = np.abs(mean)[constant]
    return Outcome(
        ratio(error, at_rows),
        ratio(error[:, near], plain[:, None]),
        0.0 if warned else ratio(error[:, near], s.tol * scale),
        warned,
    )


def main(count=1000, first=0):
    largest, warned, bad = np.zeros(3), 0, []
    for seed in range(first, first + count):
        try:
            outcome = judge(draw(seed))
        except Exception as error:
            print(seed, type(error).__name__, error)
            bad.append(seed)
            continue
        largest = np.maximum(largest, outcome[:3])
        warned += outcome.warned
        if max(outcome[:3]) > 1.0:
            bad.append(seed)
            print(seed, outcome, draw(seed).kernel, flush=True)
    print(f"{count} problems, {warned} warned, {len(bad)} bad: {bad[:50]}")
    print(f"largest error / certificate at rows {largest[0]:.3g}, plain {largest[1]:.3g}")
    print(f"largest error / tol of unwarned runs {largest[2]:.3g}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
