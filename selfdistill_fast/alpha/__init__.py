"""The ground-truth weight α: eq. (16), Algorithm 1, and the best whole sequence.

Pure array functions, independent of kernels, spectra and networks.

A chain with weights α_2 … α_τ predicts Σ_k c_k F_k, where F_k are the predictions of
the *pure* chain (α = 0) after k steps, and c comes from breaking a stick of length one:

    c_1 = α_τ,  c_2 = (1 − α_τ) α_(τ−1),  …,  c_τ = Π_j (1 − α_j),     Σ_k c_k = 1.

So both optima are least-squares problems: greedy in one α per step (eq. (16)), joint in c.
α in [0, 1] gives c on the simplex, and every c on the simplex has such an α; other
real c need not have an α-sequence, so c is primary.

Throughout, ``alphas`` has length T = number of steps, and ``alphas[0]`` is NaN: the
first step has no α.
"""

from selfdistill_fast.alpha.losses import (
    cell_losses,
    grid_losses,
    joint_report,
    smallest,
)
from selfdistill_fast.alpha.optimum import (
    chain_weights,
    greedy_alphas,
    joint_weights,
    optimal_alpha,
)
from selfdistill_fast.alpha.weights import (
    alphas_to_weights,
    check_alphas,
    step_weights,
    weights_to_alphas,
)

__all__ = [
    "alphas_to_weights",
    "cell_losses",
    "chain_weights",
    "check_alphas",
    "greedy_alphas",
    "grid_losses",
    "joint_report",
    "joint_weights",
    "optimal_alpha",
    "smallest",
    "step_weights",
    "weights_to_alphas",
]
