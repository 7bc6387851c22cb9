"""Held-out data in; α's, step weights and scores out: the one place that chooses and scores.

Every choice is made on the pure steps' predictions of held-out data (F_k in alpha/): those of a
validation set, or leave-one-out and leave-fold-out predictions of the training rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdistill_fast._backend import device_of, on_device
from selfdistill_fast._chain.leave_out import fold_columns, loo_columns
from selfdistill_fast._solvers import Spectrum
from selfdistill_fast._validation import (
    check_lam,
    check_n_steps,
    check_sample_weight,
    check_targets,
    warn_caller,
)
from selfdistill_fast.alpha import (
    alphas_or_nan,
    cell_losses,
    chain_weights,
    greedy_alphas,
    joint_report,
    joint_weights,
    mixture_losses,
    smallest,
    step_weights,
)

__all__ = ["HeldOut", "choose", "choose_cells", "gcv_alphas", "held_out", "score_grid", "summary"]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What α's are chosen on, and chains scored on.

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
    lam: Any,
    n_steps: int,
    lam_steps: Any = None,
    *,
    folds: Any = None,
    X_val: Any = None,
    y_val: Any = None,
    sample_weight_val: Any = None,
) -> HeldOut:
    """The validation set where there is one, else the training rows by leaving out.

    ``folds``: from :func:`~selfdistill_fast._chain.leave_out.check_folds`; default single rows.
    """
    be = spectrum.backend
    if X_val is None:
        w = spectrum.sample_weight
        if folds is not None:
            F = fold_columns(spectrum, lam, n_steps, folds, lam_steps)
            return HeldOut(spectrum.Y, F, w, "leave-fold-out")
        F = loo_columns(spectrum, lam, n_steps, lam_steps)
        w = None if w is None else spectrum.kept(w)
        return HeldOut(spectrum.kept(spectrum.Y), F, w, "leave-one-out")
    device_of({"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val})
    X_val = spectrum.check_new(X_val, "X_val")
    if X_val.shape[0] == 0:
        raise ValueError("X_val is empty: no row to choose alpha on")
    y_val = check_targets(be, y_val, X_val.shape[0], spectrum.dtype, "y_val")
    y_val = y_val.reshape(X_val.shape[0], -1)
    if y_val.shape[1] != spectrum.p:
        raise ValueError(f"y_val has {y_val.shape[1]} target(s), the training set {spectrum.p}")
    w = check_sample_weight(be, sample_weight_val, X_val.shape[0], "sample_weight_val")
    spectrum.warn_below_rounding(lam if lam_steps is None else lam_steps)
    F = spectrum.evaluate(X_val, spectrum.pure_steps(lam, n_steps, lam_steps))
    return HeldOut(y_val, F, w, "validation")


def choose(
    held: HeldOut, alpha: str, n_steps: int, *, scheduled: bool, clip: bool, per_target: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The chain of n_steps steps that "optimal" or "joint" asks for.

    Returns
    -------
    alphas : ndarray of shape (T,) or (T, p)
        For "joint" NaN where its weights have no α-sequence.
    C : ndarray of shape (T, T) or (T, T, p)
        Step weights; for "joint" those of the chain with these α's, the last row is the optimum.
    selection : dict
        How well it does on the same data, see ``DistillationPath.selection``.
    """
    options: dict[str, Any] = {"sample_weight": held.weight, "clip": clip}
    options["per_target"] = per_target
    y, F = held.y, list(held.F) if scheduled else held.F
    if n_steps == 1:
        alphas, C = np.array([np.nan]), np.ones((1, 1))
    elif alpha == "optimal":
        alphas = greedy_alphas(y, F, **options)
        C = step_weights(alphas)
    else:
        last = F[-1] if scheduled else F
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
        mixture_losses(y, F[t] if scheduled else F, C[t : t + 1], held.weight)[0]
        for t in range(n_steps)
    ]
    return alphas, C, summary(np.mean(losses, axis=1), held.on)


def _chain_of(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """α's and step weights of a chain whose last step is Σ_k c_k F_k; NaN where there is none."""
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

    An entry is a number, a sequence, "optimal", or "joint": for each number of steps separately,
    with NaN for its α's. The axis of targets is there where one entry has its own for each.
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
    """``a`` with a last axis of targets, where one is wanted and it has none."""
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
) -> dict[str, Any]:
    """Held-out error of every ridge and step of one kernel, from one factorisation.

    Parameters
    ----------
    spectrum : Spectrum
    lams : array_like of shape (L,)
        Ridges: a batch, never a schedule.
    alpha : float, sequence of T − 1, "optimal" or "joint"
        "optimal" and "joint" are chosen for each λ on the same held-out predictions that are
        scored; "joint" for each number of steps separately.
    n_steps : int T
    folds : list of index arrays, optional
        From :func:`~selfdistill_fast._chain.leave_out.check_folds`; default leave-one-out.
    X_val, y_val, sample_weight_val : optional
        A validation set to score on instead.
    clip, per_target : bool

    Returns
    -------
    scores : dict
        ``mse`` (L, T); ``se`` (L, T), the standard error of the mean over rows; ``weights``
        (L, T, T[, p]), step weights of each; ``alphas`` (L, T[, p]), NaN for "joint"; ``on``,
        what they were scored on: "leave-one-out", "leave-fold-out" or "validation".

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
    n_steps = check_n_steps(n_steps)
    validation = {"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val}
    held = held_out(spectrum, lams, n_steps, folds=folds, **validation)
    alphas, C = (a[:, 0] for a in choose_cells(held, [alpha], clip=clip, per_target=per_target))
    y, w = held.y, held.weight
    # the standard error is of fourth order: it needs the rows
    losses = np.stack([mixture_losses(y, f, c, w) for f, c in zip(held.F, C, strict=True)])
    return {
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

    Every diagonal in the leave-one-out recursion is replaced by its mean, which for one
    step is the usual GCV residual (y − ŷ)_i / (1 − tr A / n). One shot, and cheaper by the
    product with V∘V, but not exact; for comparison with alpha="optimal".

    Parameters
    ----------
    spectrum : Spectrum
    lam : float
        The ridge λ.
    n_steps : int T
    clip, per_target : bool

    Returns
    -------
    alphas : ndarray of shape (T,) or (T, p)
        To be given to :func:`distill` as ``alpha``.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, spectrum
    >>> x = np.linspace(0, 1, 20)
    >>> gcv_alphas(spectrum(x[:, None], np.sin(6 * x), RBF(10.0)), 0.1, 3).shape
    (3,)
    """
    lam = float(check_lam(lam, batch=False))
    F = loo_columns(spectrum, lam, check_n_steps(n_steps), average=True)
    w = spectrum.sample_weight
    return greedy_alphas(
        spectrum.kept(spectrum.Y),
        F,
        sample_weight=None if w is None else spectrum.kept(w),
        clip=clip,
        per_target=per_target,
    )


def held_out_columns(
    spectrum: Spectrum, lam: Any, n_steps: int, lam_steps: Any, X: Any, y: Any, w: Any
) -> Any:
    """What sweeps still call: :func:`held_out` as a tuple."""
    held = held_out(spectrum, lam, n_steps, lam_steps, X_val=X, y_val=y, sample_weight_val=w)
    return held.y, held.F, held.weight
