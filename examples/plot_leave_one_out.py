"""
Exact leave-one-out of a chain, and a shortcut that is wrong
============================================================

For one ridge regression, the leave-one-out residual is (y − ŷ)_i / (1 − S_ii), where S is the
smoother. It is tempting to use the same formula with the smoother of the whole distilled chain
in place of S. However, this leaves sample i out of the last step only: the targets of that step
still depend on it. From step 2 on, the shortcut is wrong, in either direction. Its error is some
per mille if α is in [0, 1], and some per cent if α is negative, as an optimal α often is. The exact
recursion (docs/leave-one-out.md) costs no more.

Run the script to print the errors and write the figure::

    python examples/plot_leave_one_out.py [FILE]
"""

import sys

import numpy as np

from selfdistill_fast import RBF, distill, leave_one_out, spectrum
from selfdistill_fast.plotting import figure_errors, save_figure

# %%
# Noisy data and one factorisation.
rng = np.random.default_rng(0)
n, T, lam = 120, 4, 0.01
X = rng.uniform(-2, 2, size=(n, 2))
y = np.sin(2 * X[:, 0]) * np.cos(X[:, 1]) + 0.4 * rng.normal(size=n)
kernel = RBF(gamma=1.0)
fitted = spectrum(X, y, kernel)


# %%
# Compute the leave-one-out predictions of every step in three ways: by n chains of refits, by the
# recursion, and by the shortcut with the distilled smoother S = V B Vᵀ.
def by_refits(alpha):
    G = np.empty((T, n))
    for i in range(n):
        rest = np.arange(n) != i
        chain = distill(spectrum(X[rest], y[rest], kernel), lam, alpha, T)
        G[:, i] = chain.predict(X[i : i + 1], step="all")[:, 0]
    return G


def by_shortcut(alpha):
    G = np.empty((T, n))
    for t, filter_ in enumerate(distill(fitted, lam, alpha, T).shrinkage):
        S = (fitted.V * filter_) @ fitted.V.T
        G[t] = y - (y - S @ y) / (1 - np.diag(S))
    return G


def rmse(G):
    return np.sqrt(np.mean((G - y) ** 2, axis=1))


print("alpha  step  refits   recursion  |difference|  shortcut  off by")
for alpha in (0.2, 0.0, -0.6):
    refits, exact = by_refits(alpha), leave_one_out(fitted, lam, alpha, T)
    shortcut = by_shortcut(alpha)
    for t in range(T):
        a, b, c = (rmse(G)[t] for G in (refits, exact, shortcut))
        gap = np.abs(exact - refits)[t].max()
        print(
            f"{alpha:5.1f}  {t + 1:4d}  {a:.5f}  {b:.5f}    {gap:.0e}         {c:.5f}   "
            f"{100 * (c - a) / a:+.1f} %"
        )

figure = figure_errors(
    {"exact (recursion)": rmse(exact), "shortcut": rmse(shortcut)},
    title=f"α = {alpha:g}",
    ylabel="leave-one-out root mean squared error",
)
print("written:", save_figure(figure, sys.argv[1] if len(sys.argv) > 1 else "leave_one_out.png"))
