"""The paper's illustrative example (§4.5), to every printed digit.

Eleven noisy points of sin(2πx), RBF kernel with γ = 80, λ = 0.2; losses are mean squared
distances to sin(2πx) on 101 points, for the steps 1..6 and the limit.
"""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
from tolerance import assert_close, host

from selfdistill_fast import RBF, distill, limit_shrinkage, shrinkage_path, spectrum
from selfdistill_fast.diagnostics import shrinkage_ratios

X = np.linspace(0, 1, 11)[:, None]
Y = np.array(
    [
        0.38476636465198066, 1.2333967683416893, 1.33232242218057, 0.69201594888895180,
        -0.29756145531871736, -0.24189291901377769, -0.7964485769175675, -0.9616480167034174,
        -0.49672509509916934, -0.3469066003991437, 0.5589512650600734,
    ]
)  # fmt: skip
GRID = np.linspace(0, 1, 101)[:, None]
TRUTH = np.sin(2 * np.pi * GRID[:, 0])
LAM = 0.2

LOSSES = {
    0.0: [0.16477, 0.15076, 0.14915, 0.15561, 0.16735, 0.18251, 0.49505],
    0.25: [0.16477, 0.15309, 0.14958, 0.14903, 0.14946, 0.15011, 0.15250],
    0.35: [0.16477, 0.15424, 0.15089, 0.14983, 0.14954, 0.14948, 0.14959],
}


@pytest.fixture
def fitted(backend):
    return spectrum(X, Y, RBF(80.0), backend=backend)


@pytest.mark.parametrize("alpha", LOSSES)
def test_losses_of_the_steps_and_the_limit(fitted, alpha):
    path = distill(fitted, LAM, alpha, 6)
    steps = path.predict(GRID, step="all")
    losses = [*np.square(steps - TRUTH).mean(1)]
    losses.append(np.square(path.predict(GRID, step=math.inf) - TRUTH).mean())
    np.testing.assert_array_equal(np.round(losses, 5), LOSSES[alpha])


def test_the_oracle_prints_the_same_table():
    K, K_grid = oracle.kernel_matrix(RBF(80.0), X), oracle.kernel_matrix(RBF(80.0), GRID, X)
    for alpha, expected in LOSSES.items():
        models = oracle.chain(K, Y[:, None], LAM, oracle.alphas_of(alpha, 6))
        losses = np.square(oracle.predict(models, K_grid)[..., 0] - TRUTH).mean(1)
        np.testing.assert_array_equal(np.round(losses, 5), expected[:6])


def test_stepwise_optimal_alpha(fitted):
    """Case (c): no step is worse than the first, one step of distillation does nearly all,
    and from τ = 3 on the α's have settled; clipped ones settle one step later."""
    free = distill(fitted, LAM, "optimal", 6, X_val=GRID, y_val=TRUTH)
    losses = np.square(free.predict(GRID, step="all") - TRUTH).mean(1)
    assert (losses[1:] < losses[0]).all()
    assert (losses[1:] < min(map(min, LOSSES.values())) + 1e-3).all()
    student = _students()
    expected = oracle.algorithm_1(student([np.nan]), student, TRUTH[:, None], 6)
    assert_close(free.alphas[1:], expected[1:], 1e-8)
    clipped = distill(fitted, LAM, "optimal", 6, X_val=GRID, y_val=TRUTH, clip=True)
    expected = oracle.algorithm_1(student([np.nan]), student, TRUTH[:, None], 6, clip=True)
    assert_close(clipped.alphas[1:], expected[1:], 1e-8)


def _students():
    K, K_grid = oracle.kernel_matrix(RBF(80.0), X), oracle.kernel_matrix(RBF(80.0), GRID, X)
    return lambda alphas: oracle.predict(oracle.chain(K, Y[:, None], LAM, alphas), K_grid)[-1]


def test_figure_3_diagonals_fall_to_zero_or_to_a_positive_limit(fitted):
    d = host(fitted.d)
    for alpha in (0.0, 0.25):
        B = shrinkage_path(d, LAM, alpha, 6)
        assert (np.diff(B, axis=0) < 0).all()
        assert_close(distill(fitted, LAM, alpha, 6).shrinkage, B, 1e-14)
    assert (limit_shrinkage(d, LAM, 0.0) == 0).all()
    assert (limit_shrinkage(d, LAM, 0.25) > 0).all()
    assert (limit_shrinkage(d, LAM, 0.25) < B).all()


def test_figure_4_ratios_grow_without_ground_truth_and_not_always_with_it(fitted):
    d = host(fitted.d)
    assert (np.diff(shrinkage_ratios(d, LAM, 0.0, 6), axis=0) > 0).all()
    assert not (np.diff(shrinkage_ratios(d, LAM, 0.25, 6), axis=0) > 0).all()
