"""The only module that chooses and scores: held-out data in; α's, step weights and scores out.

Every choice is based on the pure steps' predictions of held-out data (F_k in alpha/): predictions
of a validation set, or leave-one-out or leave-fold-out predictions of the training rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from selfdistill_fast._backend import device_of, on_device
from selfdistill_fast._chain.columns import fold_columns, loo_columns
from selfdistill_fast._solvers import Penalties, Spectrum, mix
from selfdistill_fast._validation import (
    check_lam,
    check_n_steps,
    check_sample_weight,
    check_targets,
    warn_caller,
)
from selfdistill_fast.alpha import (
    cell_losses,
    chain_weights,
    greedy_alphas,
    joint_report,
    joint_weights,
    smallest,
    step_weights,
)
from selfdistill_fast.alpha.losses import mixture_losses
from selfdistill_fast.alpha.weights import alphas_or_nan

__all__ = ["HeldOut", "choose", "choose_cells", "gcv_alphas", "held_out", "score_grid", "summary"]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The held-out data on which α's are chosen and chains are scored.

    Attributes
    ----------
    y : (m, p) targets
    F : (T, m, p) predictions of the pure steps; (L, T, m, p) for a batch of λ; for a schedule
        (T, T, m, p), by last step and length
    weight : (m,) weights of the squared errors, or None
    on : "leave-one-out", "leave-fold-out" or "validation"
    """

    y: Any
    F: Any
    weight: Any
    on: str


def held_out(
    spectrum: Spectrum,
    penalties: Penalties,
    *,
    folds: Any = None,
    X_val: Any = None,
    y_val: Any = None,
    sample_weight_val: Any = None,
) -> HeldOut:
    """The validation set if there is one, else held-out predictions of the training rows.

    ``folds``: from :func:`~selfdistill_fast._chain.leave_out.check_folds`; default single rows.
    """
    be = spectrum.backend
    if X_val is None:
        w = spectrum.sample_weight
        if folds is not None:
            F = fold_columns(spectrum, penalties, folds)
            return HeldOut(spectrum.Y, F, w, "leave-fold-out")
        F = loo_columns(spectrum, penalties)
        w = None if w is None else spectrum.kept(w)
        return HeldOut(spectrum.kept(spectrum.Y), F, w, "leave-one-out")
    device_of({"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val})
    X_val = spectrum.check_new(X_val, "X_val")
    if X_val.shape[0] == 0:
        raise ValueError("X_val is empty: alpha needs at least one row to be chosen on")
    y_val = check_targets(be, y_val, X_val.shape[0], spectrum.dtype, "y_val")
    y_val = y_val.reshape(X_val.shape[0], -1)
    if y_val.shape[1] != spectrum.p:
        raise ValueError(f"y_val has {y_val.shape[1]} target(s), the training set {spectrum.p}")
    w = check_sample_weight(be, sample_weight_val, X_val.shape[0], "sample_weight_val")
    spectrum.warn_below_rounding(penalties.values)
    F = spectrum.evaluate(X_val, spectrum._steps(penalties))
    return HeldOut(y_val, F, w, "validation")


def choose(
    held: HeldOut, penalties: Penalties, alpha: str, *, clip: bool, per_target: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The chain for one λ or a schedule that "optimal" or "joint" requests.

    Returns
    -------
    alphas : ndarray of shape (T,) or (T, p)
        For "joint" NaN where its weights have no α-sequence.
    C : ndarray of shape (T, T) or (T, T, p)
        Step weights; for "joint" those of the chain with these α's; the last row is the optimum.
    selection : dict
        Its errors on the same data; see ``DistillationPath.selection``.
    """
    options: dict[str, Any] = {"sample_weight": held.weight, "clip": clip}
    options["per_target"] = per_target
    n_steps, y = penalties.n_steps, held.y
    if n_steps == 1:
        alphas, C = np.array([np.nan]), np.ones((1, 1))
    elif alpha == "optimal":
        alphas = greedy_alphas(y, list(held.F) if penalties.scheduled else held.F, **options)
        C = step_weights(alphas)
    else:
        last = penalties.ending(held.F, n_steps - 1)
        alphas, C = _chain_of(joint_weights(y, last, **options))
        report = joint_report(y, last, **options)
        if report["useful_steps"] < n_steps:
            warn_caller(
                f"joint weights of {n_steps} steps: beyond step count {report['useful_steps']} "
                "the gain is within two standard errors of zero (condition number "
                f"{report['condition'][-1]:.2g}); see path.selection",
                RuntimeWarning,
            )
        return alphas, C, {**report, **summary(report["mse"], held.on)}
    losses = [
        mixture_losses(y, penalties.ending(held.F, t), C[t : t + 1], held.weight)[0]
        for t in range(n_steps)
    ]
    return alphas, C, summary(np.mean(losses, axis=1), held.on)


def _chain_of(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """α's and step weights of a chain whose last step is Σ_k c_k F_k; NaN if there are none."""
    alphas = alphas_or_nan(c)
    try:
        C = step_weights(alphas)
    except ValueError:  # those of the earlier steps overflow
        alphas = np.full(c.shape, np.nan)
    if np.isnan(alphas[1:]).any():
        C = np.full((len(c), *c.shape), np.nan)
    C[-1] = c
    return alphas, C


def summary(mse: np.ndarray, on: str) -> dict[str, Any]:
    """The errors of the steps of a chosen chain, and the best of them."""
    return {"mse": mse, "best_step": smallest(mse) + 1, "on": on}


def choose_cells(
    held: HeldOut, entries: Sequence[Any], *, clip: bool, per_target: bool
) -> tuple[np.ndarray, np.ndarray]:
    """α's (L, A, T[, p]) and step weights (L, A, T, T[, p]) of A entries at each λ of a batch.

    An entry is a number, a sequence, "optimal", or "joint" (for each number of steps separately,
    with NaN for its α's). The axis of targets exists if one entry has separate α's for each.
    """
    options = {"sample_weight": held.weight, "clip": clip, "per_target": per_target}
    # numbers give the same weights for every λ
    fixed = [None if isinstance(a, str) else chain_weights(held.y, held.F[0], a) for a in entries]
    cells = [
        [
            known or chain_weights(held.y, F, alpha, **options)
            for alpha, known in zip(entries, fixed, strict=True)
        ]
        for F in held.F
    ]
    own = any(alphas.ndim == 2 for row in cells for alphas, _ in row)
    copies = (held.y.shape[1],) if own else ()
    alphas = np.stack([[_spread(alphas, 1, copies) for alphas, _ in row] for row in cells])
    return alphas, np.stack([[_spread(C, 2, copies) for _, C in row] for row in cells])


def _spread(a: np.ndarray, ndim: int, copies: tuple[int, ...]) -> np.ndarray:
    """``a`` with a last axis of targets, added if it is requested and missing."""
    if a.ndim > ndim or not copies:
        return a
    return np.broadcast_to(a[..., None], (*a.shape, *copies))


@on_device
def score_grid(
    spectrum: Spectrum,
    lams: Any,
    alpha: Any,
    n_steps: int,
    *,
    folds: Any = None,
    X_val: Any = None,
    y_val: Any = None,
    sample_weight_val: Any = None,
    clip: bool = False,
    per_target: bool = False,
    scorer: Any = None,
) -> dict[str, Any]:
    """Held-out error of every λ and step for one kernel, from one factorisation.

    Parameters
    ----------
    spectrum : Spectrum
    lams : array_like of shape (L,)
        λ values: a batch, never a schedule.
    alpha : float, sequence of T − 1, "optimal" or "joint"
        "optimal" and "joint" are chosen for each λ on the same held-out predictions that are
        scored; "joint" for each number of steps separately.
    n_steps : int T
    folds : list of index arrays, optional
        From :func:`~selfdistill_fast._chain.leave_out.check_folds`; default leave-one-out.
    X_val, y_val, sample_weight_val : optional
        A validation set to score on instead of leaving rows out.
    clip, per_target : bool
    scorer : callable, optional
        Of y (m, p), predictions of every step (T, m, p) and weights (m,) or None; returns (T,).

    Returns
    -------
    scores : dict
        ``score`` (L, T) from the scorer;
        ``mse`` (L, T); ``se`` (L, T), the standard error of the mean over rows; ``weights``
        (L, T, T[, p]), the step weights; ``alphas`` (L, T[, p]), NaN for "joint"; ``on``, the
        held-out data: "leave-one-out", "leave-fold-out" or "validation".

    Raises
    ------
    TypeError, ValueError, MemoryError
        As :func:`distill` and :func:`~selfdistill_fast.leave_one_out`.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, spectrum
    >>> x = np.linspace(0, 1, 20)
    >>> s = spectrum(x[:, None], np.sin(6 * x), RBF(10.0))
    >>> score_grid(s, [0.1, 1.0], "optimal", 3)["mse"].shape
    (2, 3)
    """
    lams = np.atleast_1d(check_lam(lams, batch=True))
    one = spectrum.one_lam and len(lams) == 1  # such a solver serves no batch
    penalties = Penalties(lams[0] if one else lams, check_n_steps(n_steps))
    validation = {"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val}
    held = held_out(spectrum, penalties, folds=folds, **validation)
    held = replace(held, F=held.F[None]) if one else held
    alphas, C = (a[:, 0] for a in choose_cells(held, [alpha], clip=clip, per_target=per_target))
    y, w = held.y, held.weight
    # the standard error is of fourth order: it needs the rows
    losses = np.stack([mixture_losses(y, f, c, w) for f, c in zip(held.F, C, strict=True)])
    scores = {}
    if scorer is not None:
        be, mean = spectrum.backend, 0.0 if held.on == "validation" else spectrum.y_mean
        weight = None if w is None else be.to_numpy(w)
        cells = (
            be.to_numpy((mix(be.xp.asarray(c), f, be.xp) + mean).astype("float64"))
            for f, c in zip(held.F, C, strict=True)
        )
        true = be.to_numpy((y + mean).astype("float64"))
        scores["score"] = np.stack([scorer(true, cell, weight) for cell in cells])
    return {
        **scores,
        "mse": cell_losses(y, held.F, C, sample_weight=w).mean(-1),
        "se": losses.std(2) / math.sqrt(losses.shape[2]),
        "weights": C,
        "alphas": alphas,
        "on": held.on,
    }


@on_device
def gcv_alphas(
    spectrum: Spectrum, lam: float, n_steps: int, *, clip: bool = False, per_target: bool = False
) -> np.ndarray:
    """Greedy α's by generalised cross-validation instead of exact leave-one-out.

    Every diagonal in the leave-one-out recursion is replaced by its mean. For one step this
    gives the usual GCV residual (y − ŷ)_i / (1 − tr A / n). It saves the product with V∘V,
    but is not exact; for comparison with alpha="optimal".

    Parameters
    ----------
    spectrum : Spectrum
    lam : float
        λ of (K + λI)⁻¹.
    n_steps : int T
    clip, per_target : bool

    Returns
    -------
    alphas : ndarray of shape (T,) or (T, p)
        For use as ``alpha`` in :func:`distill`.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, spectrum
    >>> x = np.linspace(0, 1, 20)
    >>> gcv_alphas(spectrum(x[:, None], np.sin(6 * x), RBF(10.0)), 0.1, 3).shape
    (3,)
    """
    F = loo_columns(spectrum, Penalties.of(lam, n_steps, batch=False), average=True)
    w = spectrum.sample_weight
    return greedy_alphas(
        spectrum.kept(spectrum.Y),
        F,
        sample_weight=None if w is None else spectrum.kept(w),
        clip=clip,
        per_target=per_target,
    )
