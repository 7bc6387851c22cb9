"""Self-distillation under a training-error constraint, the setting of Mobahi et al. (2020).

This is the counterpart of path.py (fixed λ, any α): α = 0, and λ_t is solved for at each step
until the chain collapses. See their Section 3.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdistill_fast._chain.assembly import distill
from selfdistill_fast._chain.path import DistillationPath
from selfdistill_fast._solvers import Spectrum
from selfdistill_fast._validation import check_n_steps

__all__ = ["ConstrainedPath", "constrained_path"]


@dataclass(frozen=True)
class ConstrainedPath:
    """What :func:`constrained_path` returns.

    Attributes
    ----------
    path : DistillationPath
        The chain up to the last step before the collapse; α = 0, and a separate λ in each step.
    lam_steps : ndarray of shape (T,)
        λ of each step, from the constraint.
    norms : ndarray of shape (T + 1,)
        Root mean square of the targets of the steps 1..T, and of the last step's predictions.
    tol : float
    collapsed : bool
        Whether the next step would be the zero function, which meets the constraint.
    """

    path: DistillationPath
    lam_steps: np.ndarray
    norms: np.ndarray
    tol: float
    collapsed: bool


def constrained_path(spectrum: Spectrum, tol: Any, *, max_steps: int = 50) -> ConstrainedPath:
    """Self-distillation in the setting of Mobahi et al. (2020): α = 0 and a constraint.

    Each step is the function of smallest norm whose mean squared error on the *previous
    step's* predictions is at most ``tol``: a kernel ridge regression whose λ_t solves

        (1/n) Σ_k (λ_t / (d_k + λ_t))² z_k² = tol,    z ← d/(d + λ_t) z.

    The targets shrink with every step, so λ_t grows until the zero function meets the
    constraint: the chain collapses after finitely many steps. (With a fixed λ and α = 0,
    the setting of Borup & Andersen, it goes to zero only in the limit, and for α > 0 not at
    all.)

    The sum is over all n dimensions. The part of the targets outside the eigenvectors of a
    landmark model (``solver="nystrom"``) contributes to the first error for every λ_1; the
    predictions have no such part.

    Parameters
    ----------
    spectrum : Spectrum
        From ``solver="eigh"`` or ``"nystrom"``. Weights and an intercept are taken into account
        (errors are weighted, and an intercept is not shrunk).
    tol : float > 0
        Mean squared training error of a step, over rows and targets.
    max_steps : int
        Stop after this many steps if the chain has not collapsed.

    Returns
    -------
    ConstrainedPath

    Raises
    ------
    ValueError
        tol is not positive; the zero function meets it immediately; no function of the model
        meets it, because coinciding rows have different targets or there are too few landmarks;
        or the spectrum has no eigenvalues.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, constrained_path, spectrum
    >>> x = np.linspace(0, 1, 20); y = np.sin(6 * x)
    >>> chain = constrained_path(spectrum(x[:, None], y, RBF(10.0)), tol=0.05)
    >>> chain.collapsed, bool((np.diff(chain.lam_steps) > 0).all())
    (True, True)
    """
    from scipy.optimize import brentq

    if not isinstance(tol, numbers.Real) or isinstance(tol, bool) or not 0 < float(tol) < math.inf:
        raise ValueError(f"tol must be a positive number, got {tol!r}")
    tol = float(tol)
    max_steps = check_n_steps(max_steps, "max_steps")
    if spectrum.filters is None or spectrum.max_loo_steps == 0:  # Ritz values are not all
        raise ValueError(
            "the constraint is solved on eigenvalues: use solver='eigh', or 'nystrom' for many rows"
        )
    d = spectrum.backend.to_numpy(spectrum.d).astype(np.float64)
    energy, outside = _energies(spectrum)
    if energy.sum() + outside <= tol:
        raise ValueError(
            f"tol={tol:g} is already met by the zero function (the mean square of the targets is "
            f"{energy.sum() + outside:g}); use a smaller tol"
        )
    singular = d <= spectrum.k * np.finfo(np.float64).eps * d.max(initial=0.0)
    unreachable = energy[singular].sum() + outside
    if unreachable >= tol:
        raise ValueError(
            f"no function has training error tol={tol:g}: {unreachable:g} of the targets' mean "
            "square lies where the kernel matrix is singular, or outside the landmark model; "
            "use a larger tol, or more landmarks"
        )
    lams: list[float] = []
    norms = [math.sqrt(energy.sum() + outside)]

    def excess(log_lam: float, energy: np.ndarray, outside: float) -> float:
        lam = math.exp(log_lam)
        return float((np.square(lam / (d + lam)) * energy).sum()) + outside - tol

    largest = math.log(d.max())
    while len(lams) < max_steps and energy.sum() + outside > tol:
        low, high = largest - 40.0, largest + 1.0
        args = (energy, outside)
        while excess(low, *args) > 0:
            low -= 40.0
        while excess(high, *args) < 0:
            high += 10.0
        lams.append(math.exp(brentq(excess, low, high, args=args, xtol=1e-14, rtol=1e-14)))
        energy = energy * np.square(d / (d + lams[-1]))
        outside = 0.0  # predictions have no part there
        norms.append(math.sqrt(energy.sum()))
    lam_steps = np.array(lams)
    path = distill(spectrum, None, 0.0, len(lams), lam_steps=lam_steps)
    return ConstrainedPath(path, lam_steps, np.array(norms), float(tol), bool(energy.sum() <= tol))


def _energies(spectrum: Spectrum) -> tuple[np.ndarray, float]:
    """Mean square of the targets along each eigenvector (k,), and outside all of them."""
    total = spectrum.total_weight * spectrum.p

    def squares(a: Any) -> np.ndarray:
        return np.square(spectrum.backend.to_numpy(a).astype(np.float64)).sum(1)

    energy = squares(spectrum.z)
    full = spectrum.k == len(spectrum.target) - spectrum.fit_intercept
    if full and not spectrum.spectral.complement:
        return energy / total, 0.0  # every target; the difference would be rounding alone
    outside = max(squares(spectrum.target).sum() - energy.sum(), 0.0)
    return energy / total, float(outside) / total
