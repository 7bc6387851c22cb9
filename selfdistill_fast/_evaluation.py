"""Errors of a fitted chain on sets of rows, in the units of the data.

The root mean squared error of step τ on rows (X, Y, w) is that of ``restore(path.predict(X, τ))``,
where ``restore`` undoes a scaling of the targets. For the training rows the exact leave-one-out
error is computed as well, and the effective degrees of freedom, the trace of the chain's smoother.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdistill_fast._chain import leave_out
from selfdistill_fast._solvers import NoLimit, Penalties

__all__ = ["Evaluation", "Rows", "evaluate_limit", "evaluate_steps", "has_limit"]

Restore = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rows:
    """Rows of a data set: features X (m, d), targets Y (m, p), weights w (m,) or None."""

    X: np.ndarray
    Y: np.ndarray
    w: np.ndarray | None

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, chosen: np.ndarray) -> Rows:
        return Rows(self.X[chosen], self.Y[chosen], None if self.w is None else self.w[chosen])

    def rmse(self, predictions: np.ndarray) -> np.ndarray:
        """Weighted root mean squared error of predictions (T, m, p), over m and p: (T,)."""
        squares = np.mean((predictions - self.Y) ** 2, axis=2)
        return np.sqrt(np.average(squares, axis=1, weights=self.w))


@dataclass(frozen=True)
class Evaluation:
    """Scores of every step of a chain.

    Parameters
    ----------
    errors : dict of name to (T,) array
        Root mean squared errors on each set of rows, and "loo", by exact leave-one-out.
    dof : (T,) array
        Effective degrees of freedom; like "loo", NaN if there is no leave-one-out.
    no_leave_one_out : str or None
        The reason, if there is no leave-one-out.
    """

    errors: dict[str, np.ndarray]
    dof: np.ndarray
    no_leave_one_out: str | None

    def best_step(self, name: str) -> int | None:
        """The step with the smallest error on a set; None if no error is known."""
        errors = self.errors.get(name)
        if errors is None or np.isnan(errors).all():
            return None
        return int(np.nanargmin(errors)) + 1


def evaluate_steps(
    fitted: Any, path: Any, sets: Mapping[str, Rows], restore: Restore
) -> Evaluation:
    """Errors of every step.

    Parameters
    ----------
    fitted : Spectrum
    path : DistillationPath
    sets : mapping of a name to Rows
        Features as the model expects them, targets in the units of the data; "train" is the
        training set.
    restore : callable
        From predictions (…, p) to the units of the data.
    """
    T = path.n_steps
    exists = ~np.isnan(path.step_weights.reshape(T, -1)).any(axis=1)
    errors = {}
    for name, rows in sets.items():
        if exists.all():
            F = path.predict(rows.X, step="all").reshape(T, *rows.Y.shape)
        else:  # a joint optimum without an α-sequence has only a last step
            F = np.full((T, *rows.Y.shape), np.nan)
            F[-1] = path.predict(rows.X, step=T).reshape(rows.Y.shape)
        errors[name] = rows.rmse(restore(F))
    missing = _why_no_leave_one_out(fitted, T)
    if missing is None:
        C = path.step_weights
        errors["loo"], dof = _leave_one_out(fitted, path.lam, C, sets["train"], restore)
    else:
        errors["loo"] = dof = np.full(T, np.nan)
    return Evaluation(errors, dof, missing)


def evaluate_limit(
    factorise: Callable[[float], Any],
    path: Any,
    lam: float,
    alpha: Any,
    sets: Mapping[str, Rows],
    restore: Restore,
) -> dict[str, float] | None:
    """Errors of infinitely many steps, as ``{name}_rmse``, and ``dof``; None without a limit.

    ``factorise(λ)`` returns a spectrum for leave-one-out at that λ; it is called only if there is
    a limit and α > 0. The other parameters are those of :func:`evaluate_steps`.
    """
    if not has_limit(path):
        return None
    limit = {}
    for name, rows in sets.items():
        F = path.predict(rows.X, step=math.inf).reshape(1, *rows.Y.shape)
        limit[f"{name}_rmse"] = float(rows.rmse(restore(F))[0])
    constant = float(np.ravel(alpha)[-1])
    if constant > 0:  # also without one row, the limit is kernel ridge regression with λ/α
        ridge = lam / constant
        fitted = factorise(ridge)
        if _why_no_leave_one_out(fitted, 1) is None:
            C = np.ones((1, 1))
            loo, dof = _leave_one_out(fitted, ridge, C, sets["train"], restore)
            limit |= {"loo_rmse": float(loo[0]), "dof": float(dof[0])}
    return limit


def has_limit(path: Any) -> bool:
    """Whether a chain has a limit of infinitely many steps."""
    try:
        path.dual_coef(step=math.inf)
    except NoLimit:
        return False
    return True


def _why_no_leave_one_out(fitted: Any, n_steps: int) -> str | None:
    """Why the solver or the data have no leave-one-out for this many steps; None if they do."""
    try:
        leave_out.check_leave_one_out(fitted, n_steps)
    except ValueError as error:
        return str(error)
    return None


def _leave_one_out(
    fitted: Any, lam: float, C: np.ndarray, train: Rows, restore: Restore
) -> tuple[np.ndarray, np.ndarray]:
    """Leave-one-out error and effective degrees of freedom of chains with step weights C."""
    G = leave_out.mixed_held_out(fitted, Penalties.of(lam, len(C)), C).reshape(
        len(C), *train.Y.shape
    )
    # the trace of a chain's smoother, an intercept included
    return train.rmse(restore(G)), C @ fitted.diag_powers(lam, len(C)).sum(axis=1)
