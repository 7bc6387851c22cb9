"""The effect of distillation on a model: sparsification, degrees of freedom, convergence.

All functions take eigenvalues ``d`` and describe diag B^(τ); see _chain/filters.py.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from selfdistill_fast._chain.filters import shrinkage_path
from selfdistill_fast._solvers import check_limit
from selfdistill_fast._validation import check_lam, check_n_steps, plain
from selfdistill_fast.alpha import check_alphas

__all__ = [
    "convergence_rate",
    "effective_dof",
    "ratio_sign",
    "shrinkage_ratios",
    "steps_to_tolerance",
]

_EPS = float(np.finfo(np.float64).eps)


def shrinkage_ratios(d: Any, lam: float, alpha: Any, n_steps: int) -> np.ndarray:
    """Ratios R_k = B_(k+1) / B_k of neighbouring shrinkages at every step (§4.5, Figure 4).

    Parameters
    ----------
    d : array_like of shape (k,)
        Eigenvalues >= 0; they are sorted in ascending order first.
    lam : float
        The ridge λ.
    alpha : float or sequence of T − 1
    n_steps : int T

    Returns
    -------
    R : ndarray of shape (T, k − 1)
        NaN where both shrinkages are zero. For α = 0 strictly increasing in τ where
        d_(k+1) > d_k > 0 (Theorem 4.3).

    Examples
    --------
    >>> shrinkage_ratios([1.0, 3.0], 1.0, 0.0, 2)
    array([[1.5 ],
           [2.25]])
    """
    B = shrinkage_path(np.sort(np.asarray(plain(d, "d"), dtype=np.float64)), lam, alpha, n_steps)
    with np.errstate(divide="ignore", invalid="ignore"):
        return B[:, 1:] / B[:, :-1]


def ratio_sign(d_k: float, d_j: float, lam: float, alpha: float, n_steps: int) -> np.ndarray:
    """Theorem 4.3's rule (15): does B_k/B_j grow or shrink with the next step?

    Parameters
    ----------
    d_k, d_j : float
        Two eigenvalues, d_k > d_j > 0.
    lam : float
        The ridge λ.
    alpha : float
        One weight for all steps.
    n_steps : int T

    Returns
    -------
    sign : ndarray of shape (T − 1,) of −1, 0 or 1
        Sign of the change of B_k/B_j from step τ − 1 to τ, for τ = 2..T. It does not depend
        on how far the ratio has converged. 0 where the two sides of (15) agree to rounding.

    Raises
    ------
    ValueError
        Unless ∞ > d_k > d_j > 0 and 0 < α < 1, as the theorem needs.

    Examples
    --------
    >>> ratio_sign(3.0, 1.0, 1.0, 0.1, 4)
    array([1, 1, 1])
    """
    if not math.inf > d_k > d_j > 0:
        raise ValueError(f"(15) needs finite d_k > d_j > 0, got {d_k!r} and {d_j!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"(15) needs 0 < alpha < 1, got {alpha!r}")
    n_steps = check_n_steps(n_steps)
    lam = float(check_lam(lam, batch=False))
    v_k, v_j, beta = lam / float(d_k), lam / float(d_j), 1.0 - float(alpha)
    # The change is a positive factor, which tends to 0 like ((1 − α) a)^τ, times 1 − rule, with
    #     rule = v_k v_j Σ_m α (1 − α)^(τ−1−m) E_m,   m = 2..τ−1,   v = λ/d,
    # and E_m the divided difference of ((1 + v)^m − 1)/v: sums of positive terms throughout.
    # Everything carries the factor v_k v_j, for range.
    rule = divided = 0.0
    power = complete = v_k * v_j  # (1 + v_j)^i and Σ_i (1 + v_k)^(m−i) (1 + v_j)^i
    sign = np.empty(n_steps - 1, dtype=int)
    for step in range(n_steps - 1):
        margin = 1.0 - rule
        sign[step] = np.sign(margin) if abs(margin) > 4.0 * (step + 1) * _EPS else 0
        divided += complete
        rule = beta * rule + alpha * divided
        power *= 1.0 + v_j
        complete = (1.0 + v_k) * complete + power
    return sign


def effective_dof(d: Any, lam: float, alpha: Any, n_steps: int) -> np.ndarray:
    """Effective degrees of freedom Σ_k B_kk of every step: the trace of its smoother.

    Parameters
    ----------
    d : array_like of shape (k,)
    lam : float
        The ridge λ.
    alpha : float or sequence of T − 1
    n_steps : int T

    Returns
    -------
    dof : ndarray of shape (T,)
        An intercept adds one at every step.

    Examples
    --------
    >>> effective_dof([1.0, 3.0], 1.0, 0.5, 2)
    array([1.25   , 1.03125])
    """
    check_lam(lam, batch=False)
    return shrinkage_path(d, lam, alpha, n_steps).sum(1, dtype=np.float64)


def convergence_rate(d: Any, lam: float, alpha: float) -> float:
    """Linear rate max_k |1 − α| a_k at which the steps approach their limit (Theorem 4.5).

    Parameters
    ----------
    d : array_like of shape (k,)
    lam : float
        The ridge λ.
    alpha : float
        One weight for all steps.

    Returns
    -------
    rate : float
        Factor by which ‖y^(τ) − y^(∞)‖ shrinks with each step, at worst; below 1.

    Raises
    ------
    ValueError
        The limit does not exist.

    Examples
    --------
    >>> convergence_rate([1.0, 3.0], 1.0, 0.5)
    0.375
    """
    return float(_factors(d, lam, alpha)[1].max(initial=0.0))


def steps_to_tolerance(d: Any, lam: float, alpha: float, tol: float) -> int:
    """Smallest number of steps τ with max_k |B_k^(τ) − B_k^(∞)| <= tol.

    B^(τ) − B^(∞) = ((1 − α) a)^(τ−1) (B^(1) − B^(∞)), for each eigenvalue.

    Parameters
    ----------
    d : array_like of shape (k,)
    lam : float
        The ridge λ.
    alpha : float
        One weight for all steps.
    tol : float > 0

    Returns
    -------
    n_steps : int >= 1

    Raises
    ------
    ValueError
        The limit does not exist, or tol is not positive.

    Examples
    --------
    >>> steps_to_tolerance([1.0, 3.0], 1.0, 0.5, 1e-3)
    7
    """
    if isinstance(tol, bool) or not isinstance(tol, numbers.Real) or not tol > 0:
        raise ValueError(f"tol must be > 0, got {tol!r}")
    d, rate = _factors(d, lam, alpha)
    gap = abs(d / (d + lam) - alpha * d / (alpha * d + lam))
    far = gap > tol
    if not far.any():
        return 1
    if not (rate[far] < 1).all():
        raise ValueError(
            "the rate of convergence is 1 to working precision: no finite number of steps suffices"
        )
    with np.errstate(divide="ignore"):
        steps = np.where(rate[far] > 0, np.log(tol / gap[far]) / np.log(rate[far]), 1.0)
    guess = 1 + max(1, math.ceil(steps.max()))
    # the logarithms are off by at most one step
    while guess > 1 and (gap * rate ** (guess - 2) <= tol).all():
        guess -= 1
    while not (gap * rate ** (guess - 1) <= tol).all():
        guess += 1
    return guess


def _factors(d: Any, lam: float, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and |1 − α| a_k, checked for a limit."""
    d = np.asarray(plain(d, "d"), dtype=np.float64)
    lam = float(check_lam(lam, batch=False))
    alpha = float(check_alphas(alpha, 2)[1])
    check_limit(d, lam, alpha)
    return d, abs(1.0 - alpha) * d / (d + lam)
