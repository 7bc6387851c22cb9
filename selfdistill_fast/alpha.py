"""The ground-truth weight α: eq. (16), Algorithm 1, and the best whole sequence.

Pure array functions; nothing here knows of kernels, spectra or networks.

A chain with weights α_2 … α_τ predicts Σ_k c_k F_k, where F_k are the predictions of
the *pure* chain (α = 0) after k steps and c is broken off a stick of length one:

    c_1 = α_τ,  c_2 = (1 − α_τ) α_(τ−1),  …,  c_τ = Π_j (1 − α_j),     Σ_k c_k = 1.

So both optima are least squares: greedy in one α per step (eq. (16)), joint in c.
α in [0, 1] gives c on the simplex, and every c on the simplex has such an α; other
real c need not have an α-sequence, so c is primary.

Throughout, ``alphas`` has length T = number of steps, and ``alphas[0]`` is NaN: the
first step has no α.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from selfdistill_fast._validation import is_tensor, plain, to_host, warn_caller

__all__ = [
    "alphas_to_weights",
    "cell_losses",
    "chain_weights",
    "check_alphas",
    "greedy_alphas",
    "grid_losses",
    "joint_report",
    "joint_weights",
    "optimal_alpha",
    "smallest",
    "step_weights",
    "weights_to_alphas",
]


def smallest(errors: Any) -> int:
    """Position of the smallest error in the flattened array; a NaN is not the smallest.

    Examples
    --------
    >>> smallest([[3.0, math.nan], [2.0, 5.0]])
    2
    """
    errors = np.asarray(errors)
    return int(np.argmin(np.where(np.isnan(errors), math.inf, errors)))


def _round_off(*arrays: Any) -> float:
    """What differences of predictions may owe to rounding, relative to the largest value.

    In the eps of the coarsest array: predictions in float32 are no better for being summed
    in double.
    """
    single = any("float32" in str(a.dtype) for a in arrays if hasattr(a, "dtype"))
    return 32.0 * float(np.finfo(np.float32 if single else np.float64).eps)


def _double(a: Any, name: str = "array") -> Any:
    """``a`` in double precision, in the namespace that it came from."""
    a = plain(a, name)
    if is_tensor(a):
        return a.double()
    if not hasattr(a, "astype"):
        a = np.asarray(a)
    if "complex" in str(a.dtype):
        raise TypeError(f"{name} must hold real numbers, got dtype {a.dtype}")
    return a.astype("float64", copy=False)


def _numbers(a: Any, name: str) -> np.ndarray:
    """``a`` as a new float64 array; TypeError where it is not made of numbers."""
    a = plain(a, name)
    try:
        array = np.array(a)
        if array.dtype.kind == "c":
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or a sequence of numbers, got {a!r}") from None


def _check_columns(y: Any, F: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """y (m, p), F (T, m, p) and weights (m, 1) or None, in double, shapes checked."""
    y, F = _double(y, "y"), _double(F, "F")
    if F.ndim != y.ndim + 1 or tuple(F.shape[1:]) != tuple(y.shape):
        raise ValueError(
            f"predictions of shape {tuple(F.shape)} do not match targets of shape "
            f"{tuple(y.shape)}; expected (T, *{tuple(y.shape)})"
        )
    if y.ndim not in (1, 2) or y.shape[0] == 0:
        raise ValueError(f"targets must have shape (m,) or (m, p) with m > 0, got {tuple(y.shape)}")
    if F.shape[0] == 0:
        raise ValueError(
            f"there are no predictions: shape {tuple(F.shape)}; give at least one step"
        )
    m = y.shape[0]
    if sample_weight is not None:
        sample_weight = _double(sample_weight, "sample_weight")
        if tuple(sample_weight.shape) != (m,):
            raise ValueError(
                f"sample_weight must have shape ({m},), got {tuple(sample_weight.shape)}"
            )
        if not bool((sample_weight >= 0).all()) or not bool((sample_weight > 0).any()):
            raise ValueError("sample_weight must be non-negative and not all zero")
        sample_weight = sample_weight.reshape(m, 1)
    return y.reshape(m, -1), F.reshape(F.shape[0], m, -1), sample_weight


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
        Ground truth on the validation set. NumPy, CuPy and torch arrays are taken.
    y_first : array of the same shape
        Predictions ỹ⁽¹⁾ of the first step's model.
    y_student : array of the same shape
        Predictions of the step's student when it is fitted with α = 0.
    sample_weight : array of shape (m,), optional
        Weights of the squared errors.
    per_target : bool
        One α for each target instead of one for all (the Frobenius norm).

    Returns
    -------
    alpha : float, or array of shape (p,) with ``per_target``
        Not restricted to [0, 1]; clip it if that is wanted. Sums run in double
        precision whatever the input. Where the two predictions coincide, up to the
        rounding of their dtype, every α is optimal and 1.0 is returned with a
        RuntimeWarning.

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
    round_off = _round_off(y, y_first, y_student)
    y, first, w = _check_columns(y, _double(y_first, "y_first")[None], sample_weight)
    first = first[0]
    difference = _double(y_student, "y_student").reshape(first.shape) - first
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


def _max(a: Any, axis: int) -> Any:
    return a.amax(axis) if hasattr(a, "amax") else a.max(axis)


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
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
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
        ``alphas[0]`` is NaN. An α that no longer matters, because a later α is 1, is 1.

    Raises
    ------
    ValueError
        The weights do not sum to 1, or no α-sequence exists: the stick is used up while
        weight remains (c = (1, 1, −1), say). The model Σ_k c_k F_k exists all the same.

    Examples
    --------
    >>> weights_to_alphas([0.25, 0.375, 0.375])[1:].tolist()
    [0.5, 0.25]
    """
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
        raise ValueError(
            "no alpha-sequence has these weights: the stick is used up while weight remains. "
            "The model is the weighted sum of the pure steps itself"
        )
    for i in range(len(c) - 1):
        stick = np.where(empty[i], 1.0, tail[i])
        alphas[len(c) - 1 - i] = np.where(empty[i], 1.0, c[i] / stick)
    return alphas


def greedy_alphas(
    y: Any, F: Any, *, sample_weight: Any = None, clip: bool = False, per_target: bool = False
) -> np.ndarray:
    """Algorithm 1: the optimal α of each step given the ones before it.

    Parameters
    ----------
    y : array of shape (m,) or (m, p)
    F : array of shape (T, m) or (T, m, p), or sequence of T such arrays
        Predictions of the pure steps, validation or leave-one-out. Where every step has
        a ridge of its own, ``F[τ − 1]`` holds the columns of a chain that ends with step τ.
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
    checked = [_check_columns(y, columns, sample_weight) for columns in (F if own else [F])]
    y2, p = checked[0][0], checked[0][1].shape[2]
    one_target = len(np.shape(y)) == 1
    columns = () if one_target or not per_target else (p,)
    alphas = np.full((T, *columns), np.nan)
    c = np.zeros((T, *columns))
    c[0] = 1.0
    for t in range(1, T):
        F3 = checked[t if own else 0][1]
        # the α = 0 student of this step: every pure step of the chain, one step further
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
        Where the pure steps are linearly dependent, the minimiser that stays closest
        to the first step alone.

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
    round_off = _round_off(y, F)
    y2, F3, w = _check_columns(y, F, sample_weight)
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


def mixture_losses(y: Any, F: Any, C: Any, sample_weight: Any = None) -> np.ndarray:
    """Loss of every row under each of S mixtures Σ_k C[s, k] F_k, averaged over targets.

    Parameters
    ----------
    y : array of shape (m,) or (m, p)
    F : array of shape (T, m) or (T, m, p)
    C : array of shape (S, T) or (S, T, p)
        Rows must sum to 1.
    sample_weight : array of shape (m,), optional
        Scaled to mean one, so that the mean over rows is the weighted mean squared error.

    Returns
    -------
    losses : ndarray of shape (S, m), float64
    """
    y2, F3, w = _check_columns(y, F, sample_weight)
    R = y2[None] - F3
    R = np.asarray(to_host(R))
    C = np.asarray(C)
    rows = [
        (np.square(np.tensordot(c, R, 1) if c.ndim == 1 else (c[:, None] * R).sum(0))) for c in C
    ]
    losses = np.stack(rows).mean(2)
    if w is not None:
        w = np.asarray(to_host(w))[:, 0]
        losses *= w / w.mean()
    return losses


def grid_losses(
    y: Any, F: Any, C: Any, *, sample_weight: Any = None, per_target: bool = False
) -> np.ndarray:
    r"""Mean squared error of a grid λ × mixture (× target), no cell's predictions formed.

    With the residual columns R_k = y − F_k and Σ_k c_k = 1, a cell's residual is Σ_k c_k R_k.
    One QR factorisation R = QU for each λ and target shrinks the m rows to T, and a cell
    costs T² flops however large the validation set is:

    .. math:: ‖y - \sum_k c_k F_k‖^2 = ‖R c‖^2 = ‖U c‖^2

    Parameters
    ----------
    y : array of shape (m,) or (m, p)
    F : array of shape (L, T, m) or (L, T, m, p)
        Predictions of the pure steps 1..T for each λ.
    C : array of shape (..., T)
        Step weights of the mixtures, each summing to 1:
        ``np.stack([alphas_to_weights(a) for a in grid])``, for one. They serve every λ.
    sample_weight : array of shape (m,), optional
    per_target : bool
        Keep the targets apart instead of taking their mean.

    Returns
    -------
    losses : ndarray of shape (L, ...), with ``per_target`` (L, ..., p), float64

    Raises
    ------
    ValueError
        The shapes do not match, or the weights of a mixture do not sum to 1.

    Notes
    -----
    Sums are in double. The root of a loss is off by at most about m T ε Σ_k |c_k| ‖R_k‖/√m,
    the same as for one that goes through the predictions: U is used, not the Gram matrix RᵀR,
    whose rounding would be that of the *square* of Σ_k |c_k| ‖R_k‖ and swamp small losses.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([1.0, 2.0])
    >>> F = np.array([[[0.8, 1.5], [0.5, 1.0]], [[0.4, 1.0], [0.1, 0.2]]])  # 2 λ, 2 steps
    >>> C = np.array([[1.0, 0.0], [0.0, 1.0], [1.6, -0.6]])
    >>> grid_losses(y, F, C).round(3)
    array([[0.145, 0.625, 0.02 ],
           [0.68 , 2.025, 0.223]])
    """
    F, C = _double(F, "F"), np.asarray(to_host(_double(C, "C")))
    if F.ndim not in (3, 4):
        raise ValueError(f"F must have shape (L, T, m) or (L, T, m, p), got {tuple(F.shape)}")
    T = F.shape[1]
    if C.ndim == 0 or C.shape[-1] != T:
        raise ValueError(f"C must have shape (..., {T}) for {T} steps, got {C.shape}")
    total, size = C.sum(-1), abs(C).sum(-1)
    if not (abs(total - 1.0) <= 1e-8 * np.maximum(size, 1.0)).all():
        raise ValueError("the weights of each mixture in C must sum to 1")
    losses = cell_losses(y, F, C.reshape(1, -1, T), sample_weight=sample_weight)
    losses = losses.reshape(len(losses), *C.shape[:-1], losses.shape[-1])
    return losses if per_target else losses.mean(-1)


def cell_losses(y: Any, F: Any, C: Any, *, sample_weight: Any = None) -> np.ndarray:
    """Mean squared error of S mixtures that may differ between λ and between targets.

    The one scorer of every grid, see :func:`grid_losses`; the same for each λ as for all.

    Parameters
    ----------
    y : array of shape (m,) or (m, p)
    F : array of shape (L, T, m) or (L, T, m, p)
    C : array of shape (L, S, T) or (L, S, T, p)
        Weights of the mixtures, each summing to 1; a first axis of length 1 serves every λ.
    sample_weight : array of shape (m,), optional

    Returns
    -------
    losses : ndarray of shape (L, S, p), float64

    Raises
    ------
    ValueError
        The shapes do not match.
    """
    L, T = F.shape[:2]
    y2, F3, w = _check_columns(y, F.reshape(L * T, *F.shape[2:]), sample_weight)
    R = y2[None] - F3
    if w is not None:
        R = R * (w / w.mean()) ** 0.5
    R = np.asarray(to_host(R))
    m, p = R.shape[1:]
    U = np.linalg.qr(R.reshape(L, T, m, p).transpose(0, 3, 2, 1), mode="r")  # (L, p, T, T)
    C = C[..., None] if C.ndim == 3 else C
    if C.ndim != 4 or C.shape[2] != T or C.shape[0] not in (1, L) or C.shape[3] not in (1, p):
        raise ValueError(
            f"weights must have shape ({L} or 1, S, {T}) or ({L} or 1, S, {T}, {p}), for {L} lam, "
            f"{T} steps and {p} target(s); got {C.shape}"
        )
    cells = U @ np.moveaxis(C, (0, 3, 2, 1), (0, 1, 2, 3))  # (L, p, T, S)
    return np.einsum("lpts,lpts->lsp", cells, cells) / m


def chain_weights(
    y: Any,
    F: Any,
    alpha: Any,
    *,
    sample_weight: Any = None,
    clip: bool = False,
    per_target: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Step weights of the chain that ``alpha`` asks for, chosen on y and F where it is a word.

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
        As :func:`check_alphas`; an unknown word; NaN or infinity.

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


def joint_report(
    y: Any, F: Any, *, clip: bool = False, sample_weight: Any = None, per_target: bool = False
) -> dict[str, Any]:
    """How many steps the joint optimum can make use of.

    For 1..T pure steps the best weights are found, and each count is compared with the one
    before it, row by row: the gain is the mean of the differences of squared errors and its
    standard error their standard deviation over √m.

    Parameters
    ----------
    y, F, clip, sample_weight, per_target
        As in :func:`joint_weights`.

    Returns
    -------
    report : dict
        ``mse`` (T,); ``gain`` (T,) and ``gain_se`` (T,) over one step fewer, 0 for the first;
        ``condition`` (T,), the condition number of the least-squares problem with columns of
        norm one; ``useful_steps``, the smallest step count from which to T steps the gain is
        within two standard errors of zero: beyond it the gain is noise. The error is that of
        the data the weights are fitted to.

    Raises
    ------
    ValueError
        As :func:`joint_weights`.

    Examples
    --------
    >>> import numpy as np
    >>> F = np.array([[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]])
    >>> report = joint_report(np.array([0.7, 0.75, 0.8]), F)
    >>> report["useful_steps"], report["mse"].round(4).tolist()
    (2, [0.0642, 0.0017])
    """
    y, columns = to_host(y, "y"), np.asarray(to_host(F, "F"))
    sample_weight = to_host(sample_weight, "sample_weight")
    # squared errors of the residuals scaled to one: they cannot over- or underflow
    size = float(np.abs(np.asarray(y) - columns).max()) or 1.0
    y, columns = np.asarray(y) / size, columns / size
    losses = []
    for t in range(1, len(columns) + 1):
        c = joint_weights(
            y, columns[:t], clip=clip, sample_weight=sample_weight, per_target=per_target
        )
        losses.append(mixture_losses(y, columns[:t], c[None], sample_weight)[0])
    loss = np.stack(losses)
    m = loss.shape[1]

    def mean_and_error(drop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return drop.mean(1), drop.std(1, ddof=1 if m > 1 else 0) / math.sqrt(m)

    gain, se = mean_and_error(np.vstack([np.zeros((1, m)), loss[:-1] - loss[1:]]))
    rest, rest_se = mean_and_error(loss - loss[-1])
    _, F3, w = _check_columns(y, columns, sample_weight)
    D = (F3[1:] - F3[:1]) * (1.0 if w is None else w**0.5)
    D = D.reshape(len(D), D[0].size if len(D) else 0).T
    norms = np.linalg.norm(D, axis=0)
    D = D / np.where(norms > 0, norms, 1.0)
    with np.errstate(divide="ignore"):
        condition = [1.0] + [float(np.linalg.cond(D[:, : t + 1])) for t in range(D.shape[1])]
    return {
        "mse": loss.mean(1) * size * size,
        "gain": gain * size * size,
        "gain_se": se * size * size,
        "condition": np.array(condition),
        "useful_steps": int(np.flatnonzero(rest <= 2.0 * rest_se)[0]) + 1,
    }


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
    if len(R) > T:  # ‖r + D b‖ is all that matters
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
