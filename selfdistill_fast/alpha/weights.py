"""α-sequences and the weights c of the pure steps: stick-breaking, both ways.

A chain with weights α_2 … α_τ predicts Σ_k c_k F_k, where c comes from breaking a stick of
length one:

    c_1 = α_τ,  c_2 = (1 − α_τ) α_(τ−1),  …,  c_τ = Π_j (1 − α_j),     Σ_k c_k = 1.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from selfdistill_fast._validation import plain

__all__ = [
    "alphas_or_nan",
    "alphas_to_weights",
    "check_alphas",
    "step_weights",
    "weights_to_alphas",
]


def check_alphas(alpha: Any, n_steps: int, n_targets: int | None = None) -> np.ndarray:
    """``alpha`` as the array (T,) or (T, p) whose first entry is NaN.

    Parameters
    ----------
    alpha : float, or sequence of T − 1, or such an array itself
    n_steps : int T
    n_targets : int, optional
        Number of targets p; allows one column of α's for each.

    Raises
    ------
    TypeError, ValueError
        Not numbers, not finite, or not T − 1 of them.
    """
    if isinstance(alpha, str):
        raise ValueError(f"alpha must be a number or a sequence of numbers here, got {alpha!r}")
    if alpha is None or isinstance(alpha, (bool, np.bool_)):
        raise TypeError(f"alpha must be a number, got {alpha!r}")
    if isinstance(alpha, numbers.Real):
        alphas = np.full(n_steps, float(alpha))
        alphas[:1] = np.nan
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, got {alpha!r}")
        return alphas
    alphas = _numbers(alpha, "alpha")
    shapes = [()] if n_targets is None else [(), (n_targets,)]
    if alphas.ndim == 0:
        return check_alphas(float(alphas), n_steps, n_targets)
    if alphas.shape[1:] not in shapes:
        raise ValueError(f"alpha has shape {alphas.shape}; expected ({n_steps - 1},) or a scalar")
    if len(alphas) == n_steps - 1:
        alphas = np.concatenate([np.full((1, *alphas.shape[1:]), np.nan), alphas])
    elif not (len(alphas) == n_steps and np.isnan(alphas[0]).all()):
        raise ValueError(
            f"expected {n_steps - 1} alphas, one for each of the steps 2..{n_steps} "
            f"(or {n_steps} with a leading nan, as in .alphas), got {len(alphas)}"
        )
    if not np.isfinite(alphas[1:]).all():
        raise ValueError("alphas of the steps 2..T must be finite")
    return alphas


def step_weights(alphas: Any) -> np.ndarray:
    """Weights c of every step: row τ−1 holds Σ_k c_k F_k = the chain after step τ.

    Parameters
    ----------
    alphas : array of shape (T,) or (T, p), first entry unused

    Returns
    -------
    C : ndarray of shape (T, T) or (T, T, p), lower triangular with rows that sum to 1

    Raises
    ------
    ValueError
        The weights overflow.

    Examples
    --------
    >>> step_weights([np.nan, 0.5, 0.25])
    array([[1.   , 0.   , 0.   ],
           [0.5  , 0.5  , 0.   ],
           [0.25 , 0.375, 0.375]])
    """
    alphas = np.asarray(alphas, dtype=np.float64)
    T = len(alphas)
    C = np.zeros((T, *alphas.shape))
    C[0, 0] = 1.0
    with np.errstate(over="ignore", invalid="ignore"):  # rejected below
        for t in range(1, T):
            C[t, 1:] = (1.0 - alphas[t]) * C[t - 1, :-1]
            C[t, 0] = alphas[t]
    if np.isinf(C).any():
        raise ValueError("these alphas are too large: the weights of the steps overflow")
    return C


def alphas_to_weights(alphas: Any) -> np.ndarray:
    """Weights c of the pure steps in the chain's last step (stick-breaking).

    Parameters
    ----------
    alphas : array_like of shape (T − 1,), or (T,) with a leading NaN; or with a second
        axis of targets, (T, p) with a leading row of NaN or (T − 1, p)

    Returns
    -------
    c : ndarray of shape (T,) or (T, p)
        c_1 = α_T, c_2 = (1 − α_T) α_(T−1), …, c_T = Π (1 − α_j); they sum to 1.

    Raises
    ------
    TypeError, ValueError
        Not numbers, not finite.

    Examples
    --------
    >>> alphas_to_weights([0.5, 0.25])
    array([0.25 , 0.375, 0.375])
    """
    array = _numbers(alphas, "alphas")
    if array.ndim not in (1, 2):
        raise ValueError(f"alphas must have shape (T,) or (T, p), got {array.shape}")
    leading = len(array) > 0 and bool(np.isnan(array[0]).all()) and array[0].size > 0
    n_steps = len(array) if leading else len(array) + 1
    return step_weights(check_alphas(array, n_steps, *array.shape[1:]))[-1]


def weights_to_alphas(c: Any) -> np.ndarray:
    """The α-sequence of a chain whose last step is Σ_k c_k F_k.

    Parameters
    ----------
    c : array_like of shape (T,) or (T, p)
        Weights of the pure steps; they must sum to 1.

    Returns
    -------
    alphas : ndarray of shape (T,) or (T, p)
        ``alphas[0]`` is NaN. An α that has no effect, because a later α is 1, is set to 1.

    Raises
    ------
    ValueError
        The weights do not sum to 1, or no α-sequence exists: the stick is used up while
        weight remains (for example c = (1, 1, −1)). The model Σ_k c_k F_k still exists.

    Examples
    --------
    >>> weights_to_alphas([0.25, 0.375, 0.375])[1:].tolist()
    [0.5, 0.25]
    """
    alphas = alphas_or_nan(c)
    if np.isnan(alphas[1:]).any():
        raise ValueError(
            "no alpha-sequence has these weights: the stick is used up while weight remains. "
            "The model is the weighted sum of the pure steps itself"
        )
    return alphas


def alphas_or_nan(c: Any) -> np.ndarray:
    """As :func:`weights_to_alphas`, but NaN throughout where no α-sequence exists."""
    c = _numbers(c, "weights")
    if c.ndim not in (1, 2) or c.size == 0:
        raise ValueError(f"weights must have shape (T,) or (T, p), got {c.shape}")
    size = np.abs(c).sum(0)
    if not np.isfinite(c).all() or (np.abs(c.sum(0) - 1.0) > 1e-8 * np.maximum(size, 1.0)).any():
        raise ValueError(f"weights must be finite and sum to 1, their sum is {c.sum(0)}")
    alphas = np.full(c.shape, np.nan)
    # stick[i] = 1 − c_1 − … − c_i, summed from the far end; below rounding it is used up
    tail = np.cumsum(c[::-1], axis=0)[::-1]
    rest = np.cumsum(np.abs(c[::-1]), axis=0)[::-1]
    empty = np.abs(tail) <= 4 * len(c) * np.finfo(np.float64).eps * rest
    if (empty & (rest > 0)).any():
        return alphas
    for i in range(len(c) - 1):
        stick = np.where(empty[i], 1.0, tail[i])
        alphas[len(c) - 1 - i] = np.where(empty[i], 1.0, c[i] / stick)
    return alphas


def _numbers(a: Any, name: str) -> np.ndarray:
    """``a`` as a new float64 array; TypeError if it is not numeric."""
    a = plain(a, name)
    try:
        array = np.array(a)
        if array.dtype.kind == "c":
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or a sequence of numbers, got {a!r}") from None
