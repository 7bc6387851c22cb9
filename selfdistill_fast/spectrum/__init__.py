"""Spectra: what is left of a training set once its kernel matrix has been factorised.

Every solver answers the same questions; everything after it (filters, leave-one-out, α,
predictions) is written on these answers alone:

* ``project(X)`` (m, k): the basis functions at new points;
* ``pure_steps(lam, n_steps)`` (T, k, p): coordinates with F_τ = project(X) @ pure_steps[τ−1],
  the predictions after τ pure steps (α = 0);
* ``diag_powers(lam, n_steps)`` (T, n): the diagonals of A, A², …; and, without cancellation,
  what leave-one-out needs: the functions (I − A) A^(τ−1) of K as ``residual_filters``, their
  ``diagonals``, blocks, and what they make of the targets;
* ``dual(coordinates)`` (…, n, p): dual coefficients, so that predictions are
  κ(x, X) @ dual + constant(coordinates) and need no basis.

A spectral solver also has eigenvalues ``d`` (k,) and rotated targets ``z`` = Vᵀy (k, p).
"""

from __future__ import annotations

import numbers
from typing import Any

from selfdistill_fast.backend import get_backend
from selfdistill_fast.kernels import Kernel, Precomputed, as_kernel
from selfdistill_fast.spectrum.base import (
    Spectrum,
    check_lam,
    check_lam_steps,
    check_limit,
    check_n_steps,
    check_new,
    check_sample_weight,
    check_targets,
    evaluate,
    mix,
)
from selfdistill_fast.spectrum.cholesky import CholeskySpectrum, StrongRidge
from selfdistill_fast.spectrum.eigh import EighSpectrum
from selfdistill_fast.spectrum.nystrom import NystromSpectrum
from selfdistill_fast.spectrum.rows import as_rows, in_memory, is_dask, map_dask

__all__ = [
    "Spectrum",
    "check_lam",
    "check_lam_steps",
    "check_limit",
    "check_n_steps",
    "check_new",
    "check_sample_weight",
    "check_targets",
    "evaluate",
    "is_dask",
    "map_dask",
    "mix",
    "spectrum",
]

#: the solvers, and the options that each has
SOLVERS: dict[str, tuple[str, ...]] = {
    "eigh": (),
    "cholesky": (),
    "nystrom": ("n_landmarks", "sampling", "block"),
}


def spectrum(
    X: Any,
    Y: Any,
    kernel: Any,
    *,
    solver: str = "auto",
    lam: Any = None,
    sample_weight: Any = None,
    fit_intercept: bool = False,
    random_state: Any = None,
    backend: Any = None,
    max_memory: int | None = None,
    **options: Any,
) -> Spectrum:
    """Factorise a training set once, for every λ, α and number of steps.

    Parameters
    ----------
    X : array_like of shape (n, d)
        For ``kernel="precomputed"`` the matrix K, (n, n). With ``solver="nystrom"`` it need not
        fit in memory: a NumPy memory map, a zarr or h5py array, a dask array, or chunks of
        rows: a list, an object whose ``__iter__`` starts anew each time, or a function that
        returns an iterator; each chunk an array (rows, d), or a pair (X, y). It is read again
        for leave-one-out and must not change.
    Y : array_like of shape (n,) or (n, p)
        None where the chunks are pairs.
    kernel : Kernel or callable
        Such as ``RBF(0.1)``; "precomputed"; or a function of (X, Z).
    solver : {"auto", "eigh", "cholesky", "nystrom"}
        "eigh": K = V D Vᵀ in full; exact, serves every λ, O(n³) time. "cholesky": one λ only,
        about twenty times cheaper, leave-one-out of at most four steps, no eigenvalues.
        "nystrom": the model of m landmark rows, an approximation in O(m²) memory (beside X) and
        O(nm²) time, one pass over the rows; options ``n_landmarks`` (default 1000),
        ``sampling`` ("rpcholesky", randomly pivoted Cholesky, "uniform", or "kmeans", centres
        of clusters) and ``block``, the rows of a pass that are worked on at a time. Its
        ``approximation_error`` says how far the model's kernel is from the given one. "auto",
        always exact: "cholesky" where one ``lam`` is given, not far above the eigenvalues, and
        the kernel is positive semi-definite by construction, else "eigh". ("cholesky"
        cannot see a negative eigenvalue above −λ.)
    lam : float or sequence, optional
        The ridges that will be asked for: a scalar for one, a sequence for a batch (never a
        schedule over the steps). "cholesky" needs one; "eigh" serves every other one, too.
    sample_weight : array_like of shape (n,), optional
        Weights of the squared errors, >= 0. Rows of weight 0 drop out of the fit.
    fit_intercept : bool
        An unpenalised constant, refitted in every step.
    random_state : optional
        Seed or generator of "nystrom"; the exact solvers use no random numbers.
    backend : {None, "cpu", "reference"} or a backend object, optional
    max_memory : int, optional
        Bytes that the factorisation may take; default 80 % of what is available.

    Returns
    -------
    Spectrum
        With ``.project(X_new)`` (m, k) and, from "eigh", ``.d`` (k,) and ``.z`` (k, p); see
        :func:`~selfdistill_fast.distill`. Everything is float32 if X is, else float64.

    Raises
    ------
    TypeError, ValueError
        Sparse or non-numeric input, wrong shapes, NaN, infinity, empty arrays, a
        precomputed K that is not symmetric, an unknown solver.
    numpy.linalg.LinAlgError
        K is not positive semi-definite; the message names the eigenvalue.
    MemoryError
        The factorisation does not fit; the message gives the bytes and the ways out.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, distill, spectrum
    >>> X = np.linspace(0, 1, 20)[:, None]; y = np.sin(6 * X[:, 0])
    >>> s = spectrum(X, y, RBF(10.0))
    >>> path = distill(s, lam=0.1, alpha=0.5, n_steps=3)
    >>> path.predict(X, step="all").shape
    (3, 20)
    """
    if solver not in ("auto", *SOLVERS):
        raise ValueError(f"unknown solver {solver!r}; known: auto, {', '.join(SOLVERS)}")
    unknown = set(options) - set(SOLVERS.get(solver, ()))
    if unknown:
        raise TypeError(f"solver {solver!r} has no option {', '.join(sorted(unknown))}")
    if lam is not None:
        lam = check_lam(lam, batch=True)
    if max_memory is not None and (
        isinstance(max_memory, bool)
        or not isinstance(max_memory, numbers.Real)
        or not max_memory > 0
    ):
        raise ValueError(f"max_memory must be a positive number of bytes, got {max_memory!r}")
    be = get_backend(backend)
    kernel = as_kernel(kernel)
    if solver == "nystrom":
        if isinstance(kernel, Precomputed):
            raise ValueError("solver='nystrom' computes κ(x, landmarks): it needs rows, not K")
        X, Y = as_rows(be, X, Y)
    else:
        X = be.asarray(in_memory(X, solver, be.available_memory()), "X", ndim=2)
    n, n_features = X.shape
    if n == 0 or n_features == 0:
        raise ValueError(f"X is empty: shape {X.shape}; expected at least one row and one feature")
    if isinstance(kernel, Precomputed) and n != n_features:
        raise ValueError(f"a precomputed K must be square, got shape {X.shape}")
    y = check_targets(be, Y, n, "float64", "Y")  # centred before it is rounded to X's dtype
    w = check_sample_weight(be, sample_weight, n)
    memory = None if max_memory is None else int(max_memory)
    training = (be, X, y, kernel, w, bool(fit_intercept), memory)
    automatic = solver == "auto"
    if automatic:
        solver = _choose(kernel, lam)
    if solver == "cholesky":
        if lam is None or lam.ndim:
            raise ValueError("solver='cholesky' factorises K + lam I: it needs one scalar lam")
        try:
            return CholeskySpectrum(*training, float(lam), automatic=automatic)
        except StrongRidge:
            pass  # only where the solver was ours to choose: "eigh" keeps all digits
    if solver == "nystrom":
        return NystromSpectrum(*training, random_state=random_state, **options)
    return EighSpectrum(*training)


def _choose(kernel: Kernel, lam: Any) -> str:
    """The cheapest exact solver: a Cholesky factor costs about a twentieth of an ``eigh``.

    It cannot see a negative eigenvalue above −λ, so it is left to kernels that are positive
    semi-definite by construction.
    """
    return "cholesky" if lam is not None and not lam.ndim and kernel.definite else "eigh"
