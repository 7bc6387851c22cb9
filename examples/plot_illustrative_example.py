"""
The paper's illustrative example
================================

This example reproduces Section 4.5 of Borup and Andersen (2021): eleven noisy points of sin(2πx),
an RBF kernel, and six steps of self-distillation with α = 0, with α = 0.25, and with the
step-wise optimal α*.

Everything below is a filter on the same eigendecomposition: ``spectrum`` is called once.

Run the script to write the three figures to the given directory, or to ``figures``::

    python examples/plot_illustrative_example.py [DIRECTORY]
"""

import sys

import numpy as np

from selfdistill_fast import RBF, distill, spectrum
from selfdistill_fast.plotting import (
    figure_ratios,
    figure_shrinkage,
    figure_solutions,
    save_figure,
)

# %%
# The eleven targets and γ = 80 are those of the paper's figures (Mobahi et al. 2020). The loss is
# the mean squared distance to the truth on 101 points.
X = np.arange(11)[:, None] / 10
y = np.array(
    [0.38476636465198066, 1.2333967683416893, 1.33232242218057, 0.69201594888895180,
     -0.29756145531871736, -0.24189291901377769, -0.7964485769175675, -0.9616480167034174,
     -0.49672509509916934, -0.3469066003991437, 0.5589512650600734]
)  # fmt: skip
grid = np.arange(101)[:, None] / 100
truth = np.sin(2 * np.pi * grid[:, 0])

# %%
# One factorisation serves any number of chains. Here the optimal α* of each step (eq. 16)
# is chosen on the true function; without X_val it is chosen by exact leave-one-out.
fitted = spectrum(X, y, RBF(gamma=80.0))
lam, n_steps = 0.2, 6
cases = {
    "α = 0": distill(fitted, lam, 0.0, n_steps),
    "α = 0.25": distill(fitted, lam, 0.25, n_steps),
    "step-wise optimal α*": distill(fitted, lam, "optimal", n_steps, X_val=grid, y_val=truth),
}

# %%
# With α = 0, the third step is best and the limit is zero. With α*, one step of distillation
# is enough; after that the chain hardly changes.
for title, path in cases.items():
    losses = np.mean((path.predict(grid, step="all") - truth) ** 2, axis=1)
    print(f"{title:<22}", "  ".join(f"{loss:.5f}" for loss in losses))
print(
    "α* of steps 2 to 6    ",
    "  ".join(f"{a:.3f}" for a in cases["step-wise optimal α*"].alphas[1:]),
)

# %%
# Figures 2, 3 and 4: the solutions, the diagonals of B, and the ratios of neighbouring entries.
figures = {
    "figure2": figure_solutions(cases, grid, X, y, truth=truth),
    "figure3": figure_shrinkage(cases),
    "figure4": figure_ratios(cases),
}
directory = sys.argv[1] if len(sys.argv) > 1 else "figures"
for name, figure in figures.items():
    print("written:", save_figure(figure, f"{directory}/{name}.png"))
