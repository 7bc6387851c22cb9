"""Losses of mixtures Σ_k c_k F_k of the pure steps, and the joint optimum's gain from each step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from selfdistill_fast._validation import to_host
from selfdistill_fast.alpha.columns import check_columns, double
from selfdistill_fast.alpha.optimum import joint_weights

__all__ = ["cell_losses", "grid_losses", "joint_report", "mixture_losses", "smallest"]


def smallest(errors: Any) -> int:
    """Position of the smallest error in the flattened array, ignoring NaN.

    Examples
    --------
    >>> smallest([[3.0, math.nan], [2.0, 5.0]])
    2
    """
    errors = np.asarray(errors)
    return int(np.argmin(np.where(np.isnan(errors), math.inf, errors)))


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
    y2, F3, w = check_columns(y, F, sample_weight)
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
    r"""Mean squared error of a grid λ × mixture (× target), without forming predictions.

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
        for example ``np.stack([alphas_to_weights(a) for a in grid])``. The same for every λ.
    sample_weight : array of shape (m,), optional
    per_target : bool
        Return one loss per target instead of their mean.

    Returns
    -------
    losses : ndarray of shape (L, ...), with ``per_target`` (L, ..., p), float64

    Raises
    ------
    ValueError
        The shapes do not match, or the weights of a mixture do not sum to 1.

    Notes
    -----
    Sums are in double. The root of a loss is off by at most about m T ε Σ_k |c_k| ‖R_k‖/√m, as if
    it were computed from the predictions. This uses U rather than the Gram matrix RᵀR, whose
    rounding error scales with the *square* of Σ_k |c_k| ‖R_k‖ and would swamp small losses.

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
    F, C = double(F, "F"), np.asarray(to_host(double(C, "C")))
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

    Every grid is scored by this function; see :func:`grid_losses`. Each λ gets the same result
    alone as in a batch.

    Parameters
    ----------
    y : array of shape (m,) or (m, p)
    F : array of shape (L, T, m) or (L, T, m, p)
    C : array of shape (L, S, T) or (L, S, T, p)
        Weights of the mixtures, each summing to 1; a first axis of length 1 applies to every λ.
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
    y2, F3, w = check_columns(y, F.reshape(L * T, *F.shape[2:]), sample_weight)
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


def joint_report(
    y: Any, F: Any, *, clip: bool = False, sample_weight: Any = None, per_target: bool = False
) -> dict[str, Any]:
    """How many steps the joint optimum benefits from.

    Finds the best weights for 1..T pure steps and compares each count with the one before it,
    row by row: the gain is the mean of the differences of squared errors, and its standard
    error is their standard deviation over √m.

    Parameters
    ----------
    y, F, clip, sample_weight, per_target
        As in :func:`joint_weights`.

    Returns
    -------
    report : dict
        ``mse`` (T,); ``gain`` (T,) and ``gain_se`` (T,) over one step fewer, 0 for the first;
        ``condition`` (T,), the condition number of the least-squares problem with columns of
        norm one; ``useful_steps``, the smallest step count beyond which the total gain up to T
        steps is within two standard errors of zero, that is, noise. The errors are those on the
        data to which the weights are fitted.

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
    # squared errors of residuals scaled to 1, so that they cannot over- or underflow
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
    _, F3, w = check_columns(y, columns, sample_weight)
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
