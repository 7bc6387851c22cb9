"""Tuning without a validation set against grid search by refits (pytest-benchmark).

The job: n = 2000 rows, 8 features, 5 γ × 10 λ, chains of 4 steps. Ours scores every cell and
step by exact leave-one-out with optimal α's. Peers: scikit-learn's GridSearchCV(KernelRidge),
5 folds, over the same γ × λ with one step; and 5-fold refits of the 4-step chains for
α in {0, 0.1, …, 1} as one would write them with KernelRidge. The latter is timed for one γ
and one λ and multiplied by their number, which is said in its name. Peers run in processes
of their own.

    make bench ARGS="-k leave_one_out"
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, KFold

from selfdistill_fast import RBF, SelfDistilledKernelRidgeCV, leave_one_out, spectrum

N, D, STEPS = 2000, 8, 4
LAMS = np.logspace(-3, 1, 10)
GAMMAS = np.logspace(-2, 0, 5)
ALPHAS = np.linspace(0, 1, 11)

TIMINGS = 5  # of this file: a part of them says nothing
RESULTS = Path(__file__).parent / "results" / "leave_one_out.json"


def against(peer: float | str, times: int, ours: float) -> str:
    """A peer's seconds and their ratio to ours, or how it failed."""
    return peer if isinstance(peer, str) else f"{times * peer:.1f} s, {times * peer / ours:.1f}x"


def summary(medians: dict[str, float | str]) -> str:
    """What the five timings say, stored in results/leave_one_out.json."""
    ours = medians["test_ours_grid"]
    cell = medians["test_refits_of_chains_one_of_50_cells"]
    search = medians["test_sklearn_grid_search_one_step"]
    eigh = medians["test_eigendecomposition_of_one_gamma"]
    share = medians["test_leave_one_out_of_one_gamma_all_lams_and_steps"] / eigh
    RESULTS.write_text(json.dumps(medians, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return "\n".join(
        [
            f"tuning n = {N}, {len(GAMMAS)} γ x {len(LAMS)} λ x {STEPS} steps: {ours:.2f} s",
            f"GridSearchCV(KernelRidge, cv=5), one step:      {against(search, 1, ours)}",
            f"5-fold refits of the chains for {len(ALPHAS)} α (50 cells): "
            + against(cell, len(LAMS) * len(GAMMAS), ours),
            f"leave-one-out of all λ and steps: {100 * share:.1f} % of a factorisation",
        ]
    )


pytestmark = [pytest.mark.benchmark(group="leave_one_out", warmup=True)]


def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D))
    return X, np.sin(X.sum(1)) + 0.5 * rng.normal(size=N)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    return problem()


def test_ours_grid(benchmark, data):
    model = SelfDistilledKernelRidgeCV("rbf", lams=LAMS, gammas=GAMMAS, max_steps=STEPS)
    benchmark.pedantic(model.fit, args=data, rounds=3, iterations=1)
    assert len(model.cv_results_["mse"]) == len(LAMS) * len(GAMMAS) * STEPS


def grid_search() -> dict:
    search = GridSearchCV(KernelRidge(kernel="rbf"), {"alpha": LAMS, "gamma": GAMMAS}, cv=5)
    X, y = problem()
    start = time.perf_counter()
    search.fit(X, y)
    return {"seconds": time.perf_counter() - start}


def refits_of_chains() -> dict:
    X, y = problem()
    errors = np.zeros((len(ALPHAS), STEPS))
    start = time.perf_counter()
    for train, test in KFold(5).split(X):
        for a, alpha in enumerate(ALPHAS):
            target = y[train]
            for step in range(STEPS):
                model = KernelRidge(kernel="rbf", gamma=GAMMAS[2], alpha=LAMS[5])
                model.fit(X[train], target)
                errors[a, step] += np.sum((model.predict(X[test]) - y[test]) ** 2)
                target = alpha * y[train] + (1 - alpha) * model.predict(X[train])
    return {"seconds": time.perf_counter() - start}


def test_sklearn_grid_search_one_step(request, peer):
    peer("leave_one_out", request.node.name, grid_search)


def test_refits_of_chains_one_of_50_cells(request, peer):
    peer("leave_one_out", request.node.name, refits_of_chains)


def test_eigendecomposition_of_one_gamma(benchmark, data):
    s = benchmark.pedantic(
        spectrum, args=(*data, RBF(GAMMAS[2])), kwargs={"solver": "eigh"}, rounds=3, iterations=1
    )
    assert s.k == N


def test_leave_one_out_of_one_gamma_all_lams_and_steps(benchmark, data):
    s = spectrum(*data, RBF(GAMMAS[2]), solver="eigh")
    G = benchmark(leave_one_out, s, LAMS, 0.3, STEPS)
    assert G.shape == (len(LAMS), STEPS, N)
