"""Grids to choose from where the caller gives none: kernels around their natural scale, λ values.

Everything is computed from at most 1000 evenly spaced rows, so it is reproducible and cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from selfdistill_fast import _gram
from selfdistill_fast._backend import get_backend
from selfdistill_fast._validation import check_sample_weight, to_host
from selfdistill_fast.kernels import (
    RBF,
    Kernel,
    Laplacian,
    Matern,
    Polynomial,
    Precomputed,
    kernel_from_name,
)

__all__ = ["kernel_grid", "lam_grid"]

#: rows from which distances and the norm of K are estimated
_ROWS = 1000
#: factors of the natural scale of a distance kernel
_FACTORS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
#: number of λ values, and their decades below the norm of K
_LAMS = 19
_DECADES = {"float64": 9, "float32": 4}


def kernel_grid(
    kernels: Any,
    X: Any,
    *,
    gammas: Sequence[float] | None,
    length_scales: Sequence[float] | None,
    **parameters: Any,
) -> list[Kernel]:
    """The kernels to choose from.

    Parameters
    ----------
    kernels : str, Kernel or callable, or a list of them
        A name stands for a kernel at each of ``gammas`` (rbf, laplacian, poly) or
        ``length_scales`` (matern); an object stands for itself.
    X : (n, d) rows
    gammas, length_scales : sequence of float, or None
        None: five values around the median heuristic, γ = 1/median ‖x − z‖² (‖x − z‖₁ for
        laplacian), ℓ = median ‖x − z‖; for poly γ = 1/n_features alone.
    **parameters : degree, coef0, nu, as in :func:`~selfdistill_fast.kernels.kernel_from_name`
    """
    given = kernels if isinstance(kernels, (list, tuple)) else [kernels]
    bases = [kernel_from_name(kernel, X.shape[1], **parameters) for kernel in given]
    named = [base for base, kernel in zip(bases, given, strict=True) if isinstance(kernel, str)]
    _check_kind(gammas, named, (RBF, Laplacian, Polynomial), kernels, "gamma")
    _check_kind(length_scales, named, (Matern,), kernels, "length_scale")
    grid: list[Kernel] = []
    for base, kernel in zip(bases, given, strict=True):
        if not isinstance(kernel, str):
            grid.append(base)
        elif isinstance(base, Matern):
            scales = _values(length_scales, lambda: _distance(X, "euclidean"))
            grid += [replace(base, length_scale=scale) for scale in scales]
        elif isinstance(base, RBF):
            values = _values(gammas, lambda: 1.0 / _distance(X, "euclidean") ** 2)
            grid += [RBF(gamma) for gamma in values]
        elif isinstance(base, Laplacian):
            values = _values(gammas, lambda: 1.0 / _distance(X, "cityblock"))
            grid += [Laplacian(gamma) for gamma in values]
        elif isinstance(base, Polynomial) and gammas is not None:
            grid += [replace(base, gamma=gamma) for gamma in _values(gammas, None)]
        else:
            grid.append(base)
    return grid


def _check_kind(
    values: Any, named: list[Kernel], kinds: tuple[type[Kernel], ...], kernels: Any, what: str
) -> None:
    """ValueError for values of a parameter that no kernel has."""
    if values is not None and not any(isinstance(kernel, kinds) for kernel in named):
        names = {"gamma": "'rbf', 'laplacian' or 'poly'", "length_scale": "'matern'"}[what]
        raise ValueError(
            f"{what}s are for kernel={names}; kernel={kernels!r} has no {what} to choose"
        )


def _values(given: Any, natural: Any) -> list[Any]:
    """The given values, of which each may have one for each feature; or those around a scale."""
    if given is not None:
        values = given if np.ndim(given) or isinstance(given, (list, tuple)) else [given]
        return [tuple(np.ravel(v).tolist()) if np.ndim(v) else v for v in values]
    scale = natural()
    return [factor * scale for factor in _FACTORS]


def _distance(X: Any, metric: str) -> float:
    """Median distance of two different rows; √d or d, if all rows are equal."""
    from scipy.spatial.distance import pdist

    rows = to_host(X[_indices(X.shape[0])])
    distances = pdist(rows.astype(np.float64), metric)
    distances = distances[distances > 0]
    if len(distances):
        return float(np.median(distances))
    return float(X.shape[1]) ** (0.5 if metric == "euclidean" else 1.0)


def lam_grid(X: Any, kernel: Kernel, weights: Any, backend: Any) -> np.ndarray:
    """19 λ values, evenly spaced in log λ, over the 9 decades up to the norm of W^½KW^½.

    In float32 over 4 decades, above rounding. The norm is estimated from some rows.
    """
    n, chosen = X.shape[0], _indices(X.shape[0])
    if isinstance(kernel, Precomputed):
        K = to_host(X)[np.ix_(chosen, chosen)]
    else:
        K = to_host(_gram.gram(X[chosen], None, kernel, backend=backend))
    scale = float(np.linalg.norm(K.astype(np.float64), 2)) * n / len(K)
    if weights is not None:
        be = get_backend(backend, {"X": X, "sample_weight": weights})
        with be.on():
            w = check_sample_weight(be, weights, n)
            scale *= 1.0 if w is None else float(w.mean())
    decades = _DECADES[str(K.dtype)]
    if not 0.0 < scale < np.inf:
        scale = 1.0
    return scale * np.logspace(-decades, 0, _LAMS)


def _indices(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, _ROWS)).round().astype(int))
