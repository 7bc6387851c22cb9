"""All ridges and steps of one kernel at n = 8000, and the grid of the authors' way at n = 2000.

kin40k (the first 8000 training rows of split 0, standardised), RBF γ = 0.1, chains of six steps,
α free, predictions at 1000 test rows of every λ and step. Peers: our eigh route; SciPy's
``cho_factor`` for each λ with a ``cho_solve`` for each step, on our kernel matrix, whose time is
not counted against it. One λ: ours by Cholesky against the same.

The authors' way: y = sin(Σ x) + noise 0.5, n = 2000, d = 8, RBF γ = 0.1, 10 λ × 11 α × 6 steps,
scored on 500 validation points. Peers: their inversion in every step; refits of scikit-learn's
KernelRidge; a script that does what an expert would write in NumPy, one ``eigh`` and GEMMs.
The first two are timed for one of the 110 pairs of λ and α and multiplied, which is said in
their names.

    make bench ARGS="-k large_n"
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve
from sklearn.kernel_ridge import KernelRidge

from selfdistill_fast import RBF, gram, spectrum, sweep

KERNEL, STEPS = RBF(0.1), 6
FOUR, TEN = np.array([10.0, 1.0, 0.1, 0.01]), np.geomspace(0.01, 10.0, 10)
LAMS, ALPHAS = np.geomspace(1e-3, 10.0, 10), np.linspace(0.0, 1.0, 11)

TIMINGS = 11
RESULTS = Path(__file__).parent / "results" / "large_n.json"

pytestmark = [pytest.mark.benchmark(group="large_n")]


def summary(medians: dict[str, float]) -> str:
    """What the timings say, stored in results/large_n.json."""
    t = {
        name.removeprefix("test_").replace("[", "_").rstrip("]"): seconds
        for name, seconds in medians.items()
    }
    cells = len(LAMS) * len(ALPHAS)
    rows = [
        ("krylov, 4 λ, vs the eigh route", "krylov_four", t["eigh_four"], 10),
        ("krylov, 4 λ, vs cho_factor per λ", "krylov_four", t["cho_factor_four"], 3),
        ("krylov, 10 λ, vs cho_factor per λ", "krylov_ten", t["cho_factor_ten"], 8),
        ("cholesky, 1 λ, vs cho_factor, cho_solve", "cholesky_one", t["cho_factor_one"], 1),
        ("grid vs inversion per step", "grid", cells * t["inversion_one_of_110_pairs"], 500),
        ("grid vs scikit-learn refits", "grid", cells * t["refits_one_of_110_pairs"], 170),
        ("grid vs NumPy eigh + GEMM", "grid", t["eigh_and_gemm"], 2),
    ]
    table = [
        {"case": case, "us": t[ours], "peer": peer, "ratio": peer / t[ours], "target": target}
        for case, ours, peer, target in rows
    ]
    stored = {"medians": medians, "rows": table, "load": os.getloadavg()[0]}
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    lines = [f"{'case':<42}{'us (s)':>9}{'peer (s)':>10}{'ratio':>8}{'target':>8}"]
    lines += [
        f"{r['case']:<42}{r['us']:>9.3g}{r['peer']:>10.4g}{r['ratio']:>8.1f}{r['target']:>8}"
        for r in table
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------ kin40k
@pytest.fixture(scope="module")
def kin40k():
    """X, y of 8000 training rows and 1000 test rows."""
    from uci_leave_one_out import split

    try:
        X, y, X_test, _ = split("kin40k", 0)
    except SystemExit as error:
        pytest.skip(str(error))
    return X[:8000], y[:8000], X_test[:1000]


@pytest.fixture(scope="module")
def expected(kin40k):
    X, y, X_test = kin40k
    return cho_route(gram(X, kernel=KERNEL), y, gram(X_test, X, KERNEL), FOUR)


def cho_route(K, y, K_test, lams):
    """Predictions (L, T, m) of the pure steps, as one would with SciPy."""
    F = np.empty((len(lams), STEPS, len(K_test)))
    for i, lam in enumerate(lams):
        A = np.asfortranarray(K)
        A[np.diag_indices_from(A)] += lam
        factor = cho_factor(A, lower=True, overwrite_a=True, check_finite=False)
        t = y
        for step in range(STEPS):
            c = cho_solve(factor, t, check_finite=False)
            F[i, step] = K_test @ c
            t = t - lam * c
        del A, factor
    return F


def ours(kin40k, solver, lams):
    X, y, X_test = kin40k
    options = {"leave_one_out": False} if solver == "auto" else {}
    s = spectrum(X, y, KERNEL, solver=solver, lam=lams, **options)
    return s.evaluate(X_test, s.pure_steps(lams, STEPS))[..., 0]


@pytest.mark.parametrize("lams", [FOUR, TEN], ids=["four", "ten"])
def test_krylov(benchmark, kin40k, expected, lams):
    F = benchmark.pedantic(ours, (kin40k, "krylov", lams), rounds=5, iterations=1)
    if len(lams) == len(FOUR):
        assert np.abs(F - expected).max() <= 1e-8 * np.abs(kin40k[1]).max()


def test_eigh_four(benchmark, kin40k, expected):
    F = benchmark.pedantic(ours, (kin40k, "eigh", FOUR), rounds=1, iterations=1)
    assert np.abs(F - expected).max() <= 1e-8 * np.abs(kin40k[1]).max()


@pytest.mark.parametrize("lams", [FOUR, TEN, FOUR[-1:]], ids=["four", "ten", "one"])
def test_cho_factor(benchmark, kin40k, lams):
    X, y, X_test = kin40k
    K, K_test = gram(X, kernel=KERNEL), gram(X_test, X, KERNEL)
    rounds = 1 if len(lams) > 1 else 3
    F = benchmark.pedantic(cho_route, (K, y, K_test, lams), rounds=rounds, iterations=1)
    assert np.isfinite(F).all()


def test_cholesky_one(benchmark, kin40k, expected):
    F = benchmark.pedantic(ours, (kin40k, "cholesky", 0.01), rounds=3, iterations=1)
    assert np.abs(F - expected[-1]).max() <= 1e-8 * np.abs(kin40k[1]).max()


# --------------------------------------------------------- the authors' grid
@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2500, 8))
    y = np.sin(X.sum(1)) + 0.5 * rng.normal(size=2500)
    return X[:2000], y[:2000], X[2000:], y[2000:]


def by_eigh_and_gemm(X, y, X_val, y_val):
    """Mean squared errors (L, A, T): one eigh, filters, and a GEMM for each λ."""
    sq = (X * X).sum(1)

    def rbf(A, aa):
        K = A @ X.T
        K *= 2.0
        K -= aa[:, None]
        K -= sq
        np.minimum(K, 0.0, out=K)
        K *= KERNEL.gamma
        return np.exp(K, out=K)

    d, V = np.linalg.eigh(rbf(X, sq))
    d = np.maximum(d, 0.0)
    z = V.T @ y
    basis = rbf(X_val, (X_val * X_val).sum(1)) @ V
    losses = np.empty((len(LAMS), len(ALPHAS), STEPS))
    for i, lam in enumerate(LAMS):
        B = np.ones((len(ALPHAS), len(d)))
        for step in range(STEPS):
            C = ((1.0 - ALPHAS[:, None]) * B + ALPHAS[:, None] if step else B) / (d + lam)
            B = d * C
            losses[i, :, step] = np.square((C * z) @ basis.T - y_val).mean(1)
    return losses


def by_sweep(X, y, X_val, y_val):
    result = sweep(
        X,
        y,
        kernels=[KERNEL],
        lams=LAMS,
        alphas=list(ALPHAS),
        n_steps=STEPS,
        X_val=X_val,
        y_val=y_val,
        leave_one_out=False,
        progress=False,
    )
    return result.dataset["mse_val"].values.reshape(len(LAMS), len(ALPHAS), STEPS)


def test_grid(benchmark, example):
    losses = benchmark.pedantic(by_sweep, example, rounds=7, iterations=1, warmup_rounds=1)
    assert np.allclose(losses, by_eigh_and_gemm(*example), rtol=1e-8)


def test_eigh_and_gemm(benchmark, example):
    losses = benchmark.pedantic(by_eigh_and_gemm, example, rounds=7, iterations=1, warmup_rounds=1)
    assert losses.shape == (len(LAMS), len(ALPHAS), STEPS)


def test_inversion_one_of_110_pairs(benchmark, example):
    X, y, X_val, y_val = example
    K, K_val = gram(X, kernel=KERNEL), gram(X_val, X, KERNEL)

    def pair(lam=LAMS[4], alpha=ALPHAS[3]):
        target, losses = y, []
        for _ in range(STEPS):
            c = np.linalg.inv(K + lam * np.eye(len(K))) @ target
            losses.append(np.mean((K_val @ c - y_val) ** 2))
            target = alpha * y + (1 - alpha) * (K @ c)
        return losses

    losses = benchmark.pedantic(pair, rounds=1, iterations=1)
    assert np.allclose(losses, by_eigh_and_gemm(*example)[4, 3])


def test_refits_one_of_110_pairs(benchmark, example):
    X, y, X_val, y_val = example

    def pair(lam=LAMS[4], alpha=ALPHAS[3]):
        target, losses = y, []
        for _ in range(STEPS):
            model = KernelRidge(kernel="rbf", gamma=KERNEL.gamma, alpha=lam).fit(X, target)
            losses.append(np.mean((model.predict(X_val) - y_val) ** 2))
            target = alpha * y + (1 - alpha) * model.predict(X)
        return losses

    losses = benchmark.pedantic(pair, rounds=1, iterations=1)
    assert np.allclose(losses, by_eigh_and_gemm(*example)[4, 3])
