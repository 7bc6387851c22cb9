"""Scalar filters on eigenvalues: the recursion (11)-(12) and its limit (17).

With a = d/(d + λ), the diagonal of A,

    B^(0) = 1,   B^(1) = a,   B^(τ) = a ((1 − α_τ) B^(τ−1) + α_τ),   B^(∞) = d/(d + λ/α).
"""

from __future__ import annotations

import math
from typing import Any

from selfdistill_fast._backend import deliver, get_backend
from selfdistill_fast._solvers import check_limit
from selfdistill_fast._validation import check_lam, check_n_steps
from selfdistill_fast.alpha import check_alphas

__all__ = ["limit_shrinkage", "shrinkage_path"]


def _eigenvalues(be: Any, d: Any) -> Any:
    d = be.asarray(d, "d", ndim=1)
    if bool((d < 0).any()):
        raise ValueError(f"eigenvalues d must be >= 0, got {float(d.min())}")
    return d


def shrinkage_path(d: Any, lam: Any, alpha: Any, n_steps: int, *, backend: Any = None) -> Any:
    """Diagonals of B^(1..T), the filters of every step, eq. (12).

    Parameters
    ----------
    d : array_like of shape (k,)
        Eigenvalues of K, >= 0.
    lam : float, or array_like of shape (L,)
        λ of (K + λI)⁻¹. A 1-D array is a batch of λ values, never a schedule.
    alpha : float or sequence of T − 1
        Ground-truth weights α_2 … α_T (the first step has none); any real numbers.
    n_steps : int
        Number of steps T >= 1.
    backend : optional
        As in :func:`~selfdistill_fast.gram`.

    Returns
    -------
    B : ndarray of shape (T, k), or (L, T, k) for a batch
        float32 if d is float32, else float64.

    Raises
    ------
    TypeError, ValueError
        Negative d, λ <= 0, wrong number of α's, fewer than one step.

    Examples
    --------
    >>> shrinkage_path([1.0, 3.0], lam=1.0, alpha=0.5, n_steps=2)
    array([[0.5    , 0.75   ],
           [0.375  , 0.65625]])
    """
    be = get_backend(backend, {"d": d})
    n_steps = check_n_steps(n_steps)
    lam = check_lam(lam, batch=True)
    with be.on():
        B = be.shrinkage_path(_eigenvalues(be, d), lam.reshape(-1), check_alphas(alpha, n_steps))
        return deliver(be, B if lam.ndim else B[0])


def limit_shrinkage(d: Any, lam: float, alpha: float, *, backend: Any = None) -> Any:
    """Diagonal of B^(∞) = d/(d + λ/α), the filter of infinitely many steps, eq. (17).

    Parameters
    ----------
    d : array_like of shape (k,)
        Eigenvalues of K, >= 0.
    lam : float
        λ of (K + λI)⁻¹: a single value, not a batch.
    alpha : float
        The ground-truth weight of every step. α = 0 gives zero.
    backend : optional

    Returns
    -------
    B : ndarray of shape (k,)

    Raises
    ------
    ValueError
        The limit does not exist: |(1 − α) d/(d + λ)| >= 1 for some eigenvalue.

    Examples
    --------
    >>> limit_shrinkage([1.0, 3.0], lam=1.0, alpha=0.5)
    array([0.33333333, 0.6       ])
    """
    be = get_backend(backend, {"d": d})
    lam = float(check_lam(lam, batch=False))
    alpha = float(check_alphas(alpha, 2)[1])
    with be.on():
        d = _eigenvalues(be, d)
        d64 = d.astype("float64")
        check_limit(d64, lam, alpha)
        if alpha == 0.0 or math.isinf(lam / abs(alpha)):
            return deliver(be, be.xp.zeros_like(d))
        return deliver(be, (alpha * d64 / (alpha * d64 + lam)).astype(d.dtype))
