"""Tall data: the exact chain in feature space beside scikit-learn's RidgeCV."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV

from selfdistill_fast import Linear, spectrum
from selfdistill_fast._chain.selection import score_grid

N, D, LAMS = 200_000, 100, np.logspace(-2, 6, 20)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, D))
    return X, X @ rng.standard_normal(D) + 3.0 * rng.standard_normal(N)


def ridge_cv(X, y):
    return RidgeCV(alphas=LAMS).fit(X, y).alpha_


def ours(X, y, n_steps):
    s = spectrum(X, y, Linear(), solver="primal", fit_intercept=True)
    mse = score_grid(s, LAMS, "optimal", n_steps)["mse"]
    return LAMS[mse[:, 0].argmin()]


@pytest.mark.parametrize("method", ["sklearn RidgeCV", "ours, 1 step", "ours, 4 steps, optimal α"])
def test_leave_one_out_of_twenty_lams(method, data, benchmark):
    """n = 200000, 100 features, 20 λ values, an intercept; floor: 2 passes and n D² flops."""
    call = {
        "sklearn RidgeCV": ridge_cv,
        "ours, 1 step": lambda X, y: ours(X, y, 1),
        "ours, 4 steps, optimal α": lambda X, y: ours(X, y, 4),
    }[method]
    chosen = benchmark.pedantic(call, args=data, rounds=3, warmup_rounds=1)
    benchmark.extra_info["chosen lam"] = float(chosen)
    assert chosen == ridge_cv(*data)
