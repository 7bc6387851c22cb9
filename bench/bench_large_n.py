"""All ridges and steps of one kernel at n = 8000, and the grid of the authors' way at n = 2000.

kin40k or its stand-in (data.py; the first 8000 training rows of split 0, standardised), RBF
γ = 0.1, chains of six steps, α free, predictions at 1000 test rows of every λ and step. Beside
ours: our eigh route; SciPy's ``cho_factor`` for each λ with a ``cho_solve`` for each step, on our
kernel matrix, whose time is not counted against it. One λ: ours by Cholesky against the same.

The authors' way: y = sin(Σ x) + noise 0.5, n = 2000, d = 8, RBF γ = 0.1, 10 λ × 11 α × 6 steps,
scored on 500 validation points. Peers: their inversion in every step; refits of scikit-learn's
KernelRidge; a script that does what an expert would write in NumPy, one ``eigh`` and GEMMs.
The first two are timed for one of the 110 pairs of λ and α and multiplied, which is said in
their names. Peers run in processes of their own.

    make bench ARGS="-k large_n"
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import clock
import data
import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve
from sklearn.kernel_ridge import KernelRidge

from selfdistill_fast import RBF, gram, spectrum, sweep

KERNEL, STEPS = RBF(0.1), 6
FOUR, TEN = np.array([10.0, 1.0, 0.1, 0.01]), np.geomspace(0.01, 10.0, 10)
LAMS, ALPHAS = np.geomspace(1e-3, 10.0, 10), np.linspace(0.0, 1.0, 11)
PAIR = 4, 3  # the λ and the α of the pair that stands for all
ROWS = 8000

TIMINGS = 11
RESULTS = Path(__file__).parent / "results" / "large_n.json"

pytestmark = [pytest.mark.benchmark(group="large_n")]


def summary(medians: dict[str, float | str]) -> str:
    """What the timings say, stored in results/large_n.json; a peer may have failed."""
    t = {
        name.removeprefix("test_").replace("[", "_").rstrip("]"): seconds
        for name, seconds in medians.items()
    }
    cells = len(LAMS) * len(ALPHAS)
    table = []
    for case, ours, peer, times, target in (
        ("krylov, 4 λ, vs the eigh route", "krylov_four", "eigh_four", 1, 10),
        ("krylov, 4 λ, vs cho_factor per λ", "krylov_four", "cho_factor_four", 1, 3),
        ("krylov, 10 λ, vs cho_factor per λ", "krylov_ten", "cho_factor_ten", 1, 8),
        ("cholesky, 1 λ, vs cho_factor, cho_solve", "cholesky_one", "cho_factor_one", 1, 1),
        ("grid vs inversion per step", "grid", "inversion_one_of_110_pairs", cells, 500),
        ("grid vs scikit-learn refits", "grid", "refits_one_of_110_pairs", cells, 170),
        ("grid vs NumPy eigh + GEMM", "grid", "eigh_and_gemm", 1, 2),
    ):
        row = {"case": case, "us": t[ours], "peer": t[peer], "ratio": None, "target": target}
        if not isinstance(t[peer], str):
            row["peer"] = times * t[peer]
            row["ratio"] = row["peer"] / row["us"]
        table.append(row)
    stored = {
        "data": data.kin40k_or_stand_in(),
        "medians": medians,
        "rows": table,
        "load": os.getloadavg()[0],
    }
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"data of the first four rows: {stored['data']}, {ROWS} rows",
        f"{'case':<42}{'us (s)':>9}{'ratio':>8}{'target':>8}  peer (s)",
    ]
    lines += [
        f"{r['case']:<42}{r['us']:>9.3g}"
        + ("       -" if r["ratio"] is None else f"{r['ratio']:>8.1f}")
        + f"{r['target']:>8}  "
        + (r["peer"] if isinstance(r["peer"], str) else f"{r['peer']:.4g}")
        for r in table
    ]
    return "\n".join(lines)


# --------------------------------------------------- kin40k, or its stand-in
def rows() -> tuple[np.ndarray, ...]:
    """X, y of the training rows and 1000 test rows."""
    X, y, X_test, _ = data.kin40k()
    return X[:ROWS], y[:ROWS], X_test[:1000]


@pytest.fixture(scope="module")
def kin40k():
    return rows()


def ours(kin40k, solver, lams):
    X, y, X_test = kin40k
    options = {"leave_one_out": False} if solver == "auto" else {}
    s = spectrum(X, y, KERNEL, solver=solver, lam=lams, **options)
    return s.evaluate(X_test, s.pure_steps(lams, STEPS))[..., 0]


@pytest.fixture(scope="module")
def expected(kin40k):
    """By our Cholesky route, which every other route has to agree with."""
    return np.stack([ours(kin40k, "cholesky", lam) for lam in FOUR])


def check(F, expected, kin40k):
    assert np.abs(F - expected).max() <= 1e-8 * np.abs(kin40k[1]).max()


@pytest.mark.parametrize("lams", [FOUR, TEN], ids=["four", "ten"])
def test_krylov(benchmark, kin40k, expected, lams):
    F = benchmark.pedantic(ours, (kin40k, "krylov", lams), rounds=5, iterations=1)
    if len(lams) == len(FOUR):
        check(F, expected, kin40k)


def test_eigh_four(benchmark, kin40k, expected):
    F = benchmark.pedantic(ours, (kin40k, "eigh", FOUR), rounds=1, iterations=1)
    check(F, expected, kin40k)


def test_cholesky_one(benchmark, kin40k, expected):
    F = benchmark.pedantic(ours, (kin40k, "cholesky", FOUR[-1]), rounds=3, iterations=1)
    check(F, expected[-1], kin40k)


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


def cho_factor_peer(lams, rounds):
    X, y, X_test = rows()
    K, K_test = gram(X, kernel=KERNEL), gram(X_test, X, KERNEL)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        F = cho_route(K, y, K_test, lams)
        times.append(time.perf_counter() - start)
    return {"seconds": float(np.median(times)), "predictions": F.tolist()}


@pytest.mark.parametrize(
    ("lams", "rounds"), [(FOUR, 1), (TEN, 1), (FOUR[-1:], 3)], ids=["four", "ten", "one"]
)
def test_cho_factor(request, peer, kin40k, expected, lams, rounds):
    ended = peer("large_n", request.node.name, cho_factor_peer, lams.tolist(), rounds)
    if lams is not TEN:
        check(np.array(ended["predictions"]), expected[-len(lams) :], kin40k)


# --------------------------------------------------------- the authors' grid
def problem() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2500, 8))
    y = np.sin(X.sum(1)) + 0.5 * rng.normal(size=2500)
    return X[:2000], y[:2000], X[2000:], y[2000:]


@pytest.fixture(scope="module")
def example():
    return problem()


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


@pytest.fixture(scope="module")
def losses(example):
    return by_eigh_and_gemm(*example)


def test_grid(benchmark, example, losses):
    found = benchmark.pedantic(by_sweep, example, rounds=7, iterations=1, warmup_rounds=1)
    assert np.allclose(found, losses, rtol=1e-8)


def eigh_and_gemm_peer():
    example = problem()
    by_eigh_and_gemm(*example)
    return {"seconds": clock.median(lambda: by_eigh_and_gemm(*example), rounds=7)}


def inversion_peer():
    X, y, X_val, y_val = problem()
    lam, alpha = LAMS[PAIR[0]], ALPHAS[PAIR[1]]
    K, K_val = gram(X, kernel=KERNEL), gram(X_val, X, KERNEL)
    start = time.perf_counter()
    target, losses = y, []
    for _ in range(STEPS):
        c = np.linalg.inv(K + lam * np.eye(len(K))) @ target
        losses.append(np.mean((K_val @ c - y_val) ** 2))
        target = alpha * y + (1 - alpha) * (K @ c)
    return {"seconds": time.perf_counter() - start, "losses": losses}


def refits_peer():
    X, y, X_val, y_val = problem()
    lam, alpha = LAMS[PAIR[0]], ALPHAS[PAIR[1]]
    start = time.perf_counter()
    target, losses = y, []
    for _ in range(STEPS):
        model = KernelRidge(kernel="rbf", gamma=KERNEL.gamma, alpha=lam).fit(X, target)
        losses.append(np.mean((model.predict(X_val) - y_val) ** 2))
        target = alpha * y + (1 - alpha) * model.predict(X)
    return {"seconds": time.perf_counter() - start, "losses": losses}


def test_eigh_and_gemm(request, peer):
    peer("large_n", request.node.name, eigh_and_gemm_peer)


def test_inversion_one_of_110_pairs(request, peer, losses):
    ended = peer("large_n", request.node.name, inversion_peer)
    assert np.allclose(ended["losses"], losses[PAIR])


def test_refits_one_of_110_pairs(request, peer, losses):
    ended = peer("large_n", request.node.name, refits_peer)
    assert np.allclose(ended["losses"], losses[PAIR])
