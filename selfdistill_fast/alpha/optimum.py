"""The best α of each step, eq. (16) and Algorithm 1, and the best weights of all steps together.

Both are least-squares problems in held-out predictions: in one α per step, or in c.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from selfdistill_fast._validation import plain, to_host, warn_caller
from selfdistill_fast.alpha.columns import check_columns, double, round_off_of
from selfdistill_fast.alpha.weights import check_alphas, step_weights

__all__ = ["chain_weights", "greedy_alphas", "joint_weights", "optimal_alpha"]


def optimal_alpha(
    y: Any, y_first: Any, y_student: Any, *, sample_weight: Any = None, per_target: bool = False
) -> Any:
    r"""Best ground-truth weight for one distillation step, eq. (16).

    .. math:: α^* = 1 - \frac{⟨y_{student} - y_{first},\; y - y_{first}⟩}
                           {‖y_{student} - y_{first}‖^2}

    minimises ‖y − (α y_first + (1 − α) y_student)‖² over all real α.

    Parameters
    ----------
    y : array of shape (m,) or (m, p)
        Ground truth on the validation set. NumPy, CuPy and torch arrays are accepted.
    y_first : array of the same shape
        Predictions ỹ⁽¹⁾ of the first step's model.
    y_student : array of the same shape
        Predictions of the step's student fitted with α = 0.
    sample_weight : array of shape (m,), optional
        Weights of the squared errors.
    per_target : bool
        One α for each target instead of one for all (the Frobenius norm).

    Returns
    -------
    alpha : float, or array of shape (p,) with ``per_target``
        Not restricted to [0, 1]; clip it if necessary. Sums are computed in double
        precision for any input. If the two predictions coincide up to the rounding of
        their dtype, every α is optimal, and 1.0 is returned with a RuntimeWarning.

    Raises
    ------
    ValueError
        Shapes differ, or a value is NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> y_first, y_student = np.array([0.0, 0.0]), np.array([1.0, 1.0])
    >>> optimal_alpha(np.array([0.5, 1.0]), y_first, y_student)
    0.25
    """
    y, y_first, y_student = plain(y, "y"), plain(y_first, "y_first"), plain(y_student, "y_student")
    if tuple(np.shape(y_first)) != tuple(np.shape(y_student)):
        raise ValueError(
            f"y_first {tuple(np.shape(y_first))} and y_student {tuple(np.shape(y_student))} differ "
            "in shape"
        )
    one_target = len(np.shape(y)) == 1
    round_off = round_off_of(y, y_first, y_student)
    y, first, w = check_columns(y, double(y_first, "y_first")[None], sample_weight)
    first = first[0]
    difference = double(y_student, "y_student").reshape(first.shape) - first
    residual = y - first
    if w is not None:
        difference, residual = difference * w**0.5, residual * w**0.5
    if not bool((abs(difference) < math.inf).all() and (abs(residual) < math.inf).all()):
        raise ValueError("y, y_first and y_student must be finite: found NaN or infinity")
    # scaled by its largest entry, so that no square over- or underflows
    axes = (0,) if per_target else (0, 1)
    scale, size = abs(difference), abs(residual) + abs(first)
    for axis in sorted(axes, reverse=True):
        scale, size = _max(scale, axis), _max(size, axis)
    coincide = scale <= round_off * size
    if bool(coincide.any() if per_target else coincide):
        warn_caller(
            "the step's two predictions coincide, so every alpha is optimal; using 1.0",
            RuntimeWarning,
        )
    scale = scale * (1.0 - coincide * 1.0) + coincide * 1.0
    unit = difference / scale
    total = (unit * unit).sum(axes)
    total = total * (1.0 - coincide * 1.0) + coincide * 1.0
    alpha = 1.0 - (unit * (residual / scale)).sum(axes) / total
    alpha = alpha * (1.0 - coincide * 1.0) + coincide * 1.0
    if not per_target:
        return float(alpha)
    return float(alpha[0]) if one_target else alpha


def greedy_alphas(
    y: Any, F: Any, *, sample_weight: Any = None, clip: bool = False, per_target: bool = False
) -> np.ndarray:
    """Algorithm 1: the optimal α of each step given the ones before it.

    Parameters
    ----------
    y : array of shape (m,) or (m, p)
    F : array of shape (T, m) or (T, m, p), or sequence of T such arrays
        Predictions of the pure steps, validation or leave-one-out. If every step has its
        own λ, ``F[τ − 1]`` holds the columns of a chain that ends with step τ.
    sample_weight : array of shape (m,), optional
    clip : bool
        Clip every α to [0, 1] before the next step uses it.
    per_target : bool

    Returns
    -------
    alphas : ndarray of shape (T,), or (T, p) with ``per_target`` and p targets

    Raises
    ------
    ValueError
        Shapes do not match; NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> F = np.array([[1.0, 1.0], [0.5, 0.5]])
    >>> greedy_alphas(np.array([0.75, 0.75]), F)
    array([nan, 0.5])
    """
    y, F = to_host(y, "y"), to_host(F, "F")
    sample_weight = to_host(sample_weight, "sample_weight")
    T = len(F)
    own = isinstance(F, (list, tuple))
    checked = [check_columns(y, columns, sample_weight) for columns in (F if own else [F])]
    y2, p = checked[0][0], checked[0][1].shape[2]
    one_target = len(np.shape(y)) == 1
    columns = () if one_target or not per_target else (p,)
    alphas = np.full((T, *columns), np.nan)
    c = np.zeros((T, *columns))
    c[0] = 1.0
    for t in range(1, T):
        F3 = checked[t if own else 0][1]
        # the α = 0 student of this step: every pure step of the chain, one step later
        student = sum(c[k] * F3[k + 1] for k in range(t))
        alpha = optimal_alpha(
            y2, F3[0], student, sample_weight=sample_weight, per_target=per_target
        )
        alpha = np.asarray(alpha if isinstance(alpha, float) else alpha.tolist())
        alpha = alpha.reshape(columns)
        alphas[t] = np.clip(alpha, 0.0, 1.0) if clip else alpha
        c[1:] = (1.0 - alphas[t]) * c[:-1]
        c[0] = alphas[t]
    return alphas


def joint_weights(
    y: Any, F: Any, *, clip: bool = False, sample_weight: Any = None, per_target: bool = False
) -> np.ndarray:
    """The best weights of all pure steps together: least squares in c.

    Minimises ‖y − Σ_k c_k F_k‖² subject to Σ_k c_k = 1, and c ≥ 0 with ``clip``
    (α in [0, 1]). Since the weights sum to 1 this is min ‖R c‖² with the residuals
    R_k = y − F_k.

    Parameters
    ----------
    y : array_like of shape (m,) or (m, p)
    F : array_like of shape (T, m) or (T, m, p)
        Predictions of the pure steps, validation or leave-one-out.
    clip : bool
        Restrict c to the simplex.
    sample_weight : array_like of shape (m,), optional
    per_target : bool
        Weights for each target instead of shared ones.

    Returns
    -------
    c : ndarray of shape (T,), or (T, p) with ``per_target`` and p targets
        If the pure steps are linearly dependent, the minimiser closest to the first step
        alone.

    Raises
    ------
    ValueError
        Shapes do not match; NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> F = np.array([[0.0, 0.0], [1.0, 0.0]])
    >>> joint_weights(np.array([0.25, 0.0]), F)
    array([0.75, 0.25])
    """
    y, F = plain(y, "y"), plain(F, "F")
    round_off = round_off_of(y, F)
    y2, F3, w = check_columns(y, F, sample_weight)
    R = y2[None] - F3
    if w is not None:
        R = R * w**0.5
    R = np.asarray(to_host(R))
    if not np.isfinite(R).all():
        raise ValueError("y and F must be finite: found NaN or infinity")
    if per_target and len(np.shape(y)) == 2:
        parts = [_best_weights(R[:, :, j].T, clip, round_off) for j in range(R.shape[2])]
        return np.stack(parts, axis=1)
    return _best_weights(R.reshape(len(R), -1).T, clip, round_off)


def chain_weights(
    y: Any,
    F: Any,
    alpha: Any,
    *,
    sample_weight: Any = None,
    clip: bool = False,
    per_target: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Step weights of the chain that ``alpha`` requests; "optimal" and "joint" use y and F.

    Parameters
    ----------
    y : array of shape (m,) or (m, p)
    F : array of shape (T, m) or (T, m, p)
        Predictions of the pure steps, validation or leave-one-out.
    alpha : float, sequence of T − 1, "optimal" or "joint"
        "joint" is chosen for each number of steps separately.
    sample_weight, clip, per_target
        As in :func:`greedy_alphas` and :func:`joint_weights`.

    Returns
    -------
    alphas : ndarray of shape (T,) or (T, p)
        NaN for "joint", whose steps belong to different chains.
    C : ndarray of shape (T, T) or (T, T, p)

    Raises
    ------
    TypeError, ValueError
        As :func:`check_alphas`; an unknown name; NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> F = np.array([[1.0, 1.0], [0.5, 0.5]])
    >>> chain_weights(np.array([0.75, 0.75]), F, "optimal")[1].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    T = len(F)
    if not isinstance(alpha, str):
        alphas = check_alphas(alpha, T, F.shape[2] if F.ndim == 3 else None)
        return alphas, step_weights(alphas)
    options: dict[str, Any] = {
        "sample_weight": sample_weight,
        "clip": clip,
        "per_target": per_target,
    }
    if alpha == "optimal":
        alphas = greedy_alphas(y, F, **options)
        return alphas, step_weights(alphas)
    if alpha == "joint":
        best = [joint_weights(y, F[:t], **options) for t in range(1, T + 1)]
        C = np.zeros((T, *best[-1].shape))
        for t, c in enumerate(best):
            C[t, : t + 1] = c
        return np.full(best[-1].shape, np.nan), C
    raise ValueError(f"alpha must be a number, a sequence, 'optimal' or 'joint'; got {alpha!r}")


def _max(a: Any, axis: int) -> Any:
    return a.amax(axis) if hasattr(a, "amax") else a.max(axis)


def _best_weights(R: np.ndarray, clip: bool, round_off: float) -> np.ndarray:
    """argmin ‖R c‖² with Σ c = 1, and c ≥ 0 with ``clip``; R (m, T)."""
    from scipy.optimize import nnls

    T = R.shape[1]
    size = np.abs(R).max()
    if T == 1 or size == 0.0:
        return np.eye(T)[0]
    R = R / size
    # c = e_1 + Σ_k b_k (e_(k+1) − e_1): differences first, so that equal columns stay equal
    D = R[:, 1:] - R[:, :1]
    D[:, np.abs(D).max(0) <= round_off] = 0.0
    if len(R) > T:  # only ‖r + D b‖ matters
        both = np.asarray(np.linalg.qr(np.column_stack([R[:, 0], D]), mode="r"))
        r, D = both[:, 0], both[:, 1:]
    else:
        r = R[:, 0]
    if clip:
        # For every t > 0 the best c with Σ c = t is t·(the simplex optimum), so the
        # non-negative minimiser of ‖R c‖² + (Σ c − 1)² points at it.
        columns = np.column_stack([r, D + r[:, None]])
        c = nnls(np.vstack([columns, np.ones(T)]), np.eye(len(columns) + 1)[-1])[0]
        return c / c.sum()
    norms = np.linalg.norm(D, axis=0)
    norms[norms == 0.0] = 1.0
    b = np.linalg.lstsq(D / norms, -r, rcond=None)[0] / norms
    return np.concatenate([[1.0 - b.sum()], b])
