"""Exact leave-one-out and leave-fold-out of a whole chain of distillation steps.

A chain with any α's predicts Σ_k c_k G_k, a mixture of the held-out predictions G_k of the pure
chain; see columns.py.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from selfdistill_fast._backend import deliver
from selfdistill_fast._chain.columns import check_leave_one_out, fold_columns, loo_columns
from selfdistill_fast._names import Numbers
from selfdistill_fast._solvers import Penalties, Spectrum, mix
from selfdistill_fast._validation import check_n_steps, to_host
from selfdistill_fast.alpha import check_alphas, step_weights

__all__ = [
    "check_folds",
    "check_leave_one_out",
    "leave_fold_out",
    "leave_one_out",
    "mixed_held_out",
]


def check_folds(folds: Any, n: int) -> list[np.ndarray]:
    """Folds as index arrays that contain every row once; ValueError or TypeError otherwise.

    ``folds``: a number k of contiguous folds (scikit-learn's ``KFold(k)``), an array of n
    group labels, a scikit-learn splitter, or its list of (train, test) index pairs, where
    the training set of each fold must be all the other rows.
    """
    from sklearn.model_selection import KFold

    folds = to_host(folds, "folds")
    if isinstance(folds, (bool, np.bool_, str)):
        raise TypeError(f"folds must be a number, group labels or a splitter, got {folds!r}")
    if isinstance(folds, numbers.Real):
        k = check_n_steps(folds, "folds")
        if not 2 <= k <= n:
            raise ValueError(
                f"folds must be between 2 and the number of rows (n_samples={n}), got {k}"
            )
        folds = KFold(k)
    if hasattr(folds, "split"):
        name = type(folds).__name__
        try:
            folds = list(folds.split(np.zeros((n, 1))))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} needs more than the number of rows ({error}): pass the group labels "
                "themselves as folds (cv), or its list of splits, "
                f"list({name}(...).split(X, y, groups))"
            ) from None
    elif hasattr(folds, "__next__"):
        folds = list(folds)
    every = np.arange(n)
    if isinstance(folds, (list, tuple)) and len(folds) and isinstance(folds[0], (list, tuple)):
        parts = [np.asarray(test) for _, test in folds]
        for train, test in folds:
            if not np.array_equal(np.unique(train), np.setdiff1d(every, test)):
                raise ValueError("every fold must be trained on all the other rows")
    else:
        labels = np.asarray(folds)
        if labels.shape != (n,):
            raise ValueError(f"group labels must have shape ({n},), got {labels.shape}")
        _, group = np.unique(labels, return_inverse=True)
        parts = [np.flatnonzero(group == g) for g in range(group.max() + 1)]
    if not np.array_equal(np.sort(np.concatenate(parts)), every):
        raise ValueError("every row must be in exactly one fold: the test sets overlap")
    return parts


def mixed_held_out(
    spectrum: Spectrum, penalties: Penalties, C: Any, *, folds: Any = None, columns: Any = None
) -> Any:
    """Held-out predictions of chains given by their step weights C, (T, T) or (T, T, p).

    ``folds`` None: leave-one-out; else the result of :func:`check_folds`. ``columns``: the result
    of :func:`loo_columns`, if known.
    """
    xp, scheduled = spectrum.backend.xp, penalties.scheduled
    C = xp.asarray(C)
    if folds is not None:
        G = mix(C, fold_columns(spectrum, penalties, folds), xp, scheduled=scheduled)
        G = G + spectrum.y_mean
    else:
        G = loo_columns(spectrum, penalties) if columns is None else columns
        G = mix(C, G, xp, scheduled=scheduled)
        G = G + spectrum.y_mean
        if spectrum.rows is not None:
            kept, G = G, xp.empty((*G.shape[:-2], spectrum.n, spectrum.p), G.dtype)
            G[..., spectrum.rows, :] = kept
            dropped = xp.nonzero(spectrum.sample_weight == 0)[0]
            pure = mix(C, spectrum._steps(penalties), xp, scheduled=scheduled)
            pure = pure.astype(spectrum.dtype)
            G[..., dropped, :] = spectrum.evaluate(spectrum.select(dropped), pure)
    G = G.astype(spectrum.dtype)
    return G[..., 0] if spectrum.one_target else G


def leave_one_out(
    spectrum: Spectrum,
    lam: Numbers | None,
    alpha: Numbers,
    n_steps: int,
    *,
    lam_steps: Numbers | None = None,
) -> Any:
    """Leave-one-out predictions of every step of the chain, exactly.

    Equal to n chains of refits, each without one row, evaluated at that row.

    Parameters
    ----------
    spectrum : Spectrum
        From :func:`~selfdistill_fast.spectrum`.
    lam : float, or array_like of shape (L,)
        λ of (K + λI)⁻¹. A 1-D array is a batch of λ values, never a schedule.
    alpha : float or sequence of T − 1, or ``path.alphas``
        Ground-truth weights of the steps 2..T, the same in every refit.
    n_steps : int
        Number of steps T >= 1.
    lam_steps : sequence of T floats, optional
        One λ for each step; ``lam`` is then ignored and may be None.

    Returns
    -------
    predictions : ndarray of shape (T, n), or (T, n, p) for 2-D targets; leading L for a batch
        An intercept is refitted as well. Rows of weight 0 are in no fit; they get the
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
    penalties = Penalties.of(lam, n_steps, lam_steps)
    C = step_weights(check_alphas(alpha, penalties.n_steps, spectrum.p))
    with spectrum.backend.on():
        held_out = mixed_held_out(spectrum, penalties, C)
        return deliver(spectrum.backend, held_out)


def leave_fold_out(
    spectrum: Spectrum,
    lam: Numbers | None,
    alpha: Numbers,
    n_steps: int,
    folds: Any,
    *,
    lam_steps: Numbers | None = None,
) -> Any:
    """Leave-fold-out predictions of every step of the chain, exactly.

    Equal to one chain of refits per fold, each without its rows and evaluated at them.

    Parameters
    ----------
    spectrum, lam, alpha, n_steps, lam_steps
        As in :func:`leave_one_out`.
    folds : int, array_like of shape (n,), or splitter
        A number of contiguous folds, as in scikit-learn's ``KFold``; a label for each row, for
        groups that are left out together; or a scikit-learn splitter.

    Returns
    -------
    predictions : ndarray of shape (T, n), or (T, n, p) for 2-D targets; leading L for a batch
        A row of weight 0 is predicted by the chain without its fold.

    Raises
    ------
    TypeError, ValueError
        As for :func:`leave_one_out`; folds that do not contain every row once; with an
        intercept, a fold that contains every row of positive weight.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, leave_fold_out, spectrum
    >>> X = np.linspace(0, 1, 20)[:, None]; y = np.sin(6 * X[:, 0])
    >>> s = spectrum(X, y, RBF(10.0))
    >>> leave_fold_out(s, 0.1, 0.5, 3, folds=5).shape
    (3, 20)
    """
    penalties = Penalties.of(lam, n_steps, lam_steps)
    C = step_weights(check_alphas(alpha, penalties.n_steps, spectrum.p))
    folds = check_folds(folds, spectrum.n)
    with spectrum.backend.on():
        held_out = mixed_held_out(spectrum, penalties, C, folds=folds)
        return deliver(spectrum.backend, held_out)
