"""Real data against scikit-learn's KernelRidge: the same model where the paper says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from tolerance import assert_close

from selfdistill_fast import RBF, Laplacian, SelfDistilledKernelRidge, distill, spectrum

SETS = {"concrete": None, "elevators": 2000}
KERNELS = {"rbf": RBF, "laplacian": Laplacian}


@pytest.fixture(params=SETS)
def data(request, uci):
    return uci(request.param, max_rows=SETS[request.param])


@pytest.mark.parametrize("lam", [0.01, 1.0])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_ridge_is_step_one_alpha_one_and_the_limit(backend, data, name, lam):
    X, y, X_test, _ = data
    gamma = 1 / X.shape[1]
    s = spectrum(X, y, KERNELS[name](gamma), backend=backend)

    def ridge(penalty):
        return KernelRidge(alpha=penalty, kernel=name, gamma=gamma).fit(X, y).predict(X_test)

    first = ridge(lam)
    path = distill(s, lam, 0.25, 400)
    assert_close(path.predict(X_test, step=1), first, 1e-10, what="step 1")
    amplified = ridge(lam / 0.25)
    assert_close(path.predict(X_test, step=400), amplified, 1e-8, what="step 400")
    assert_close(path.predict(X_test, step=math.inf), amplified, 1e-10, what="the limit")
    same = distill(s, lam, 1.0, 6).predict(X_test, step="all")
    assert_close(same, np.broadcast_to(first, same.shape), 1e-10, what="α = 1")


def test_estimator_chooses_alpha_without_harm(backend, data):
    """Leave-one-out never prefers a later step that is worse than the first by its own measure."""
    X, y, X_test, _ = data
    model = SelfDistilledKernelRidge(lam=0.1, n_steps=4, backend=backend).fit(X, y)
    assert (model.loo_mse_[1:] <= model.loo_mse_[0] * (1 + 1e-12)).all()
    ridge = KernelRidge(alpha=0.1, kernel="rbf").fit(X, y)
    assert_close(model.predict(X_test, step=1), ridge.predict(X_test), 1e-10)
    # scikit-learn's own leave-one-out on a few rows of the first step
    G = X[:1], np.delete(X, 0, 0), np.delete(y, 0)
    left_out = KernelRidge(alpha=0.1, kernel="rbf").fit(G[1], G[2]).predict(G[0])
    from selfdistill_fast import leave_one_out

    s = spectrum(X, y, RBF(1 / X.shape[1]), backend=backend)
    assert_close(leave_one_out(s, 0.1, 1.0, 1)[0, :1], left_out, 1e-10)
