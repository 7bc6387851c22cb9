"""
Two theories of self-distillation compared
==========================================

Mobahi, Farajtabar and Bartlett (2020) require every step to meet a bound on its training error, and
drop the original targets (α = 0). Then λ_t must grow from step to step, until the zero
function meets the bound and the chain collapses, after finitely many steps. Borup and
Andersen (2021) fix λ instead. With α = 0, their chain goes to zero only in the limit. With
any α > 0, it converges to another kernel ridge regression.

Run the script to write the figure::

    python examples/plot_constrained.py [FILE]
"""

import sys

import numpy as np

from selfdistill_fast import RBF, constrained_path, distill, spectrum
from selfdistill_fast.plotting import figure_constrained, save_figure

# %%
# Noisy points of sin(2πx), with one factorisation for all chains.
rng = np.random.default_rng(0)
X = np.linspace(0, 1, 40)[:, None]
y = np.sin(2 * np.pi * X[:, 0]) + 0.3 * rng.normal(size=len(X))
fitted = spectrum(X, y, RBF(gamma=40.0))

# %%
# The constrained chain: each step may have a mean squared error of 0.05 on its own targets.
chain = constrained_path(fitted, tol=0.05)
print(f"collapses after {len(chain.lam_steps)} steps; λ:", np.round(chain.lam_steps, 3))

# %%
# For comparison, chains with λ fixed to that of the second step, for some more steps.
T = len(chain.lam_steps) + 2
lam = chain.lam_steps[1]
fixed = {}
for alpha in (0.0, 0.25):
    F = distill(fitted, lam, alpha, T).predict(X, step="all")
    fixed[f"λ fixed, α = {alpha:g}"] = np.sqrt(np.mean(F**2, axis=1))

figure = figure_constrained(chain, fixed)
print("written:", save_figure(figure, sys.argv[1] if len(sys.argv) > 1 else "constrained.png"))
