"""Predictions of mixtures of the pure steps at new samples, and whether their limit exists."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from selfdistill_fast._gram import native_matmul
from selfdistill_fast._validation import check_coefficients
from selfdistill_fast.kernels import Kernel, Linear, Precomputed

__all__ = [
    "NoLimit",
    "check_limit",
    "check_new",
    "check_values",
    "evaluate",
    "linear_coefficients",
    "mix",
    "one_product",
]

#: rows converted to float64 at a time
_ROWS = 8192


class NoLimit(ValueError):
    """Infinitely many steps have no limit, or the solver cannot compute it."""


def check_limit(d: Any, lam: float, alpha: float) -> None:
    """NoLimit unless the chain with one α converges: |(1 − α) a_k| < 1 for every k.

    Evaluated as −λ < αd and (α − 2)d < λ, which does not cancel.
    """
    if not bool((alpha * d > -lam).all() and ((alpha - 2.0) * d < lam).all()):
        largest = float(d.max())
        raise NoLimit(
            f"infinitely many steps have no limit at alpha={alpha:g}: it exists only if "
            f"|(1 - alpha) d/(d + lam)| < 1 for every eigenvalue d, that is, for alpha between "
            f"{-lam / largest:g} and {2.0 + lam / largest:g} here"
        )


def check_new(
    be: Any, X_new: Any, n_features: int, dtype: Any, kernel: Kernel, name: str = "X"
) -> Any:
    """New points as a native array (m, n_features) of ``dtype``; ValueError if they do not fit.

    With a ``Features`` kernel, their features; with one that scales features, scaled.
    """
    X_new = kernel.rows(X_new, name)
    X_new = be.asarray(X_new, name, ndim=2, dtype=dtype)
    if X_new.shape[1] != n_features:
        if isinstance(kernel, Precomputed):
            raise ValueError(
                f"{name} must be K({name}, X_train) with {n_features} columns, one for each "
                f"training row, got shape {X_new.shape}"
            )
        raise ValueError(
            f"{name} has {X_new.shape[1]} features, but the model was fitted with {n_features}"
        )
    return kernel.scaled(be.xp, X_new, name)


def check_values(be: Any, F: Any, kernel: Kernel, what: str) -> Any:
    """``F``, values of functions at new samples; ValueError if they overflow."""
    if not bool(be.xp.isfinite(F).all()):
        raise ValueError(
            f"{what} overflow {F.dtype}: {kernel!r} is too large at some of the new samples"
        )
    return F


def evaluate(be: Any, X_new: Any, X: Any, kernel: Kernel, dual: Any, constant: Any) -> Any:
    """κ(X_new, X) @ dual + constant for S models at once, without forming K.

    X_new (m, d), X (n, d), dual (S, n, p), constant (S, p) → (S, m, p).
    """
    S, n, p = dual.shape
    check_coefficients(dual, n)
    W = be.xp.ascontiguousarray(be.xp.moveaxis(dual, 0, 1).reshape(n, S * p))
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        if isinstance(kernel, Linear):
            F = _linear(X_new, linear_coefficients(X, W, be.xp), W.dtype, be.xp)
        else:
            F = native_matmul(be, X_new, X, W, kernel) if p else W[:0]
    F = be.xp.moveaxis(F.reshape(X_new.shape[0], S, p), 1, 0) + constant[:, None, :]
    return check_values(be, F, kernel, "predictions")


def linear_coefficients(X: Any, W: Any, xp: Any) -> Any:
    """β = Xᵀ W of a linear model in float64: κ(x, X) @ W is x·β."""
    beta = xp.zeros((X.shape[1], W.shape[1]))
    for start in range(0, X.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        beta += X[rows].T.astype("float64") @ W[rows].astype("float64")
    return beta


def _linear(X: Any, beta: Any, dtype: Any, xp: Any) -> Any:
    """X β of a linear model, (m, p)."""
    F = xp.empty((X.shape[0], beta.shape[1]), dtype)
    for start in range(0, X.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        F[rows] = X[rows].astype("float64") @ beta
    return F


def mix(C: Any, F: Any, xp: Any, *, scheduled: bool = False) -> Any:
    """Σ_k C[τ, k] F[k] for every row of step weights.

    C (T, T) or (T, T, p) with its own weights for each target; F (…, T, n, p) → (…, T, n, p).
    ``scheduled``: F (T, T, n, p) has its own columns F[τ] for each step.
    """
    if scheduled:
        return xp.stack([mix(C[t : t + 1], F[t], xp)[0] for t in range(len(C))])
    if C.ndim == 2:
        n, p = F.shape[-2:]
        product = C @ F.reshape(*F.shape[:-2], n * p)
        return product.reshape(*product.shape[:-1], n, p)
    product = xp.moveaxis(C, -1, 0) @ xp.moveaxis(F, -1, -3)
    return xp.moveaxis(product, -3, -1)


def one_product(product: Callable[[Any], Any], a: Any, xp: Any) -> Any:
    """Apply a product of (k, b) matrices to all the matrices of an array (…, k, p) at once."""
    lead, (k, p) = a.shape[:-2], a.shape[-2:]
    S = math.prod(lead)
    flat = product(xp.moveaxis(a.reshape(S, k, p), 0, 1).reshape(k, S * p))
    n = flat.shape[0]
    return xp.moveaxis(flat.reshape(n, S, p), 1, 0).reshape(*lead, n, p)
