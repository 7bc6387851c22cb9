"""Exact leave-one-out of a whole chain of distillation steps, from one factorisation.

Leaving row i out changes every step of the chain, but linearly. If S is the smoother of
one step, the model without row i is the model of all rows with target t_i replaced by its
own prediction u_i, so with δ = u_i − t_i

    δ = −[(I − S) t]_i / (1 − S_ii),      t ← S (t + δ e_i),      [new t]_i = u_i.

Starting with t = y and iterating, the residual of step j is

    [(I − S) t]_i = [(I − S) S^(j−1) y]_i + Σ_(s<j) δ_s [(I − S) S^(j−s)]_ii,

for every i at once from `residual_steps` and `diag_residuals` alone: nothing but I − S
enters, so no digit is lost where S is near I. The columns G_k are those of the pure chain
(α = 0); a chain with any α's predicts Σ_k c_k G_k (see alpha.py).

(The shortcut (y − ŷ)_i / (1 − B_ii) with the distilled smoother B is wrong for τ >= 2: it
leaves row i out of the last step only.)
"""

from __future__ import annotations

from typing import Any

from selfdistill_fast.alpha import check_alphas, step_weights
from selfdistill_fast.spectrum import Spectrum, check_lam, check_n_steps

__all__ = ["leave_one_out", "loo_columns", "loo_mixed", "mix"]


def loo_columns(spectrum: Spectrum, lam: Any, n_steps: int) -> Any:
    """Leave-one-out predictions G_1..G_T of the pure chain, (T, n, p) or (L, T, n, p).

    n counts the rows of positive weight; predictions are without the mean ``y_mean``
    that an intercept adds to the (centred) targets ``spectrum.Y``.
    """
    xp = spectrum.backend.xp
    rows = slice(None) if spectrum.rows is None else spectrum.rows
    y = spectrum.Y[rows]
    if spectrum.fit_intercept and y.shape[0] == 1:
        raise ValueError(
            "leave-one-out with an intercept needs at least two rows of positive weight: "
            "without the only one nothing is left to fit"
        )
    E = spectrum.residual_steps(lam, n_steps)
    Q = spectrum.diag_residuals(lam, n_steps)[..., None]
    G = xp.empty_like(E)
    delta = xp.empty_like(E)
    previous = y
    for j in range(E.shape[-3]):
        residual = E[..., j, :, :].copy()
        for s in range(j):
            residual += delta[..., s, :, :] * Q[..., j - s, :, :]
        delta[..., j, :, :] = -residual / Q[..., 0, :, :]
        G[..., j, :, :] = previous + delta[..., j, :, :]
        previous = G[..., j, :, :]
    return G


def mix(C: Any, F: Any, xp: Any) -> Any:
    """Σ_k C[τ, k] F[k] for every row of step weights.

    C (T, T) or (T, T, p) with its own weights for each target; F (…, T, n, p) → (…, T, n, p).
    """
    if C.ndim == 2:
        return (C @ F.reshape(*F.shape[:-2], -1)).reshape(F.shape)
    mixed = xp.moveaxis(C, -1, 0) @ xp.moveaxis(F, -1, -3)
    return xp.moveaxis(mixed, -3, -1)


def leave_one_out(spectrum: Spectrum, lam: Any, alpha: Any, n_steps: int) -> Any:
    """Leave-one-out predictions of every step of the chain, exactly.

    Equal to n chains of refits, each without one row, evaluated at that row.

    Parameters
    ----------
    spectrum : Spectrum
        From :func:`~selfdistill_fast.spectrum`.
    lam : float, or array_like of shape (L,)
        The ridge λ of (K + λI)⁻¹. A 1-D array is a batch of ridges, never a schedule.
    alpha : float or sequence of T − 1, or ``path.alphas``
        Ground-truth weights of the steps 2..T, the same in every refit.
    n_steps : int
        Number of steps T >= 1.

    Returns
    -------
    predictions : ndarray of shape (T, n), or (T, n, p) for 2-D targets; leading L for a batch
        An intercept is refitted too. Rows of weight 0 are in no fit: theirs are the
        predictions of the full chain.

    Raises
    ------
    TypeError, ValueError
        Bad λ, α or number of steps; an intercept and a single row.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, leave_one_out, spectrum
    >>> X = np.linspace(0, 1, 20)[:, None]; y = np.sin(6 * X[:, 0])
    >>> s = spectrum(X, y, RBF(10.0))
    >>> leave_one_out(s, 0.1, 0.5, 3).shape
    (3, 20)
    """
    n_steps = check_n_steps(n_steps)
    return loo_mixed(spectrum, lam, step_weights(check_alphas(alpha, n_steps, spectrum.p)))


def loo_mixed(spectrum: Spectrum, lam: Any, C: Any) -> Any:
    """:func:`leave_one_out` of chains given by their step weights C, (T, T) or (T, T, p)."""
    xp = spectrum.backend.xp
    lam = check_lam(lam, batch=True)
    C = xp.asarray(C)
    G = mix(C, loo_columns(spectrum, lam, len(C)), xp) + spectrum.y_mean
    if spectrum.rows is not None:
        kept, G = G, xp.empty((*G.shape[:-2], spectrum.n, spectrum.p), G.dtype)
        G[..., spectrum.rows, :] = kept
        dropped, X_dropped = spectrum.dropped()
        coordinates = mix(C, spectrum.pure_steps(lam, len(C)), xp).astype(spectrum.dtype)
        F = spectrum.evaluate(X_dropped, coordinates.reshape(-1, *coordinates.shape[-2:]))
        G[..., dropped, :] = F.reshape(*G.shape[:-2], len(dropped), spectrum.p)
    G = G.astype(spectrum.dtype)
    return G[..., 0] if spectrum.one_target else G
