"""
Where digits are lost
=====================

This example uses a smooth kernel and λ from 1 down to 10⁻¹⁶. For the smallest λ, (K + λI)⁻¹ cannot
be determined in double precision: K itself is rounded, and its smallest eigenvalues are rounding
only. The third step of each solver is compared, at new samples, with the same chain of refits in
long double.

Filled markers are results without a warning, open markers are results with a warning, and a cross
at the upper edge is a refusal. The dotted line is the documented guarantee, 100 ε ‖K‖/λ
(at least 10⁻¹⁰). In the grey band, λ is below the rounding of K and every result comes with a
warning. The Nyström model has all samples as landmarks, so it is exact except for the landmarks
that it drops. The Krylov solver stops at its tolerance, 10⁻⁸.

Run the script to write the figure to the given file, or to ``accuracy.png``::

    python examples/plot_accuracy.py [FILE]
"""

import sys
import warnings

import numpy as np

from selfdistill_fast import RBF, distill, spectrum
from selfdistill_fast.plotting import save_figure
from selfdistill_fast.plotting.style import BLUE, GREEN, GREY, ORANGE, VERMILION

rng = np.random.default_rng(0)
X, X_new = rng.uniform(-1.0, 1.0, (60, 2)), rng.uniform(-1.0, 1.0, (40, 2))
y = np.sin(3.0 * X.sum(1)) + 0.1 * rng.normal(size=60)
kernel, alpha, n_steps = RBF(0.5), 0.3, 3
lams = np.geomspace(1e-16, 1.0, 33)


# %%
# The reference follows the definition of the chain, step by step, with eleven more bits.
def gram(A, B):
    """Kernel matrix in long double."""
    A, B = A.astype(np.longdouble), B.astype(np.longdouble)
    return np.exp(-np.longdouble(kernel.gamma) * np.square(A[:, None] - B[None]).sum(-1))


def solve(A, b):
    """A⁻¹ b by a Cholesky factor in long double."""
    L, x = A.copy(), b.copy()
    for j in range(len(L)):
        L[j:, j] /= np.sqrt(L[j, j])
        L[j + 1 :, j + 1 :] -= np.outer(L[j + 1 :, j], L[j + 1 :, j])
    for i in range(len(L)):
        x[i] = (x[i] - L[i, :i] @ x[:i]) / L[i, i]
    for i in reversed(range(len(L))):
        x[i] = (x[i] - L[i + 1 :, i] @ x[i + 1 :]) / L[i, i]
    return x


def refits(lam):
    """Predictions of the last step at the new samples."""
    K, a = gram(X, X), np.longdouble(alpha)
    dual = solve(K + np.longdouble(lam) * np.eye(len(K)), y.astype(np.longdouble))
    for _ in range(1, n_steps):
        targets = a * y + (1 - a) * (K @ dual)
        dual = solve(K + np.longdouble(lam) * np.eye(len(K)), targets)
    return gram(X_new, X) @ dual


# %%
# For each solver and each λ, record the predictions and whether it warned or refused.
def attempt(solver, lam):
    """Predictions, or None where the solver refuses; and whether it warned."""
    options = {"n_landmarks": len(X)} if solver == "nystrom" else {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            s = spectrum(X, y, kernel, solver=solver, lam=lam, **options)
            return distill(s, lam, alpha, n_steps).predict(X_new), bool(told)
        except np.linalg.LinAlgError:
            return None, True


solvers = {
    "eigh": (BLUE, "o"),
    "cholesky": (ORANGE, "s"),
    "tridiagonal": (GREEN, "^"),
    "krylov": (VERMILION, "D"),
    "nystrom": ("black", "v"),
}
references = [refits(lam) for lam in lams]
results = {name: [attempt(name, lam) for lam in lams] for name in solvers}
norm = float(np.linalg.norm(np.asarray(gram(X, X), float), 2))
eps = np.finfo(float).eps

# %%
# Draw the figure.
from matplotlib.figure import Figure  # noqa: E402

figure = Figure(figsize=(6.4, 4.2), layout="constrained")
axes = figure.subplots()
axes.axvspan(lams[0] / 2, 100 * eps * norm, color=GREY, alpha=0.15, lw=0)
axes.loglog(lams, np.maximum(1e-10, 100 * eps * norm / lams), ":", color=GREY, label="promised")
for name, (colour, marker) in solvers.items():
    silent = 0.0
    for lam, reference, (got, warned) in zip(lams, references, results[name], strict=True):
        if got is None:
            axes.plot(lam, 3e2, "x", color=colour, ms=5)
            continue
        error = float(abs(got - reference).max() / abs(y).max())
        silent = silent if warned else max(silent, error)
        face = "none" if warned else colour
        axes.plot(lam, max(error, 1e-17), marker, color=colour, mfc=face, ms=4.5, mew=0.9)
    axes.plot([], [], marker, color=colour, ms=4.5, label=name)
    print(f"{name:<12} largest error without a warning {silent:.1e}")
axes.set(xlabel="λ", ylabel="error of step 3, relative to max |y|", ylim=(1e-17, 1e3))
axes.set_xlim(lams[0] / 2, lams[-1] * 2)
axes.legend(frameon=False, fontsize=8)
axes.grid(alpha=0.25)
file = sys.argv[1] if len(sys.argv) > 1 else "accuracy.png"
print("written:", save_figure(figure, file))
