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

import functools
import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast.backend import get_backend, unless_it_fails, with_fallback
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
    refuse_leave_one_out,
)
from selfdistill_fast.spectrum.cholesky import CholeskySpectrum, OutOfRange, check_loo_steps
from selfdistill_fast.spectrum.eigh import EighSpectrum
from selfdistill_fast.spectrum.krylov import KrylovSpectrum, ShortOfTolerance
from selfdistill_fast.spectrum.nystrom import NystromSpectrum
from selfdistill_fast.spectrum.planning import Plan, choose, memory_budget, plan, where_it_pays
from selfdistill_fast.spectrum.rows import as_rows, in_memory, is_dask, map_dask
from selfdistill_fast.spectrum.tridiagonal import TridiagonalSpectrum

__all__ = [
    "Plan",
    "Spectrum",
    "check_lam",
    "check_lam_steps",
    "check_leave_one_out",
    "check_limit",
    "check_n_steps",
    "check_new",
    "check_sample_weight",
    "check_solver",
    "check_targets",
    "evaluate",
    "is_dask",
    "map_dask",
    "mix",
    "plan",
    "spectrum",
]

#: the solvers, and the options that each has
SOLVERS: dict[str, tuple[str, ...]] = {
    "eigh": (),
    "cholesky": (),
    "tridiagonal": (),
    "krylov": ("lam_min", "n_steps", "tol", "max_rank", "storage"),
    "nystrom": ("n_landmarks", "sampling", "block"),
}

_logger = logging.getLogger("selfdistill_fast")


def spectrum(
    X: Any,
    Y: Any,
    kernel: Any,
    *,
    solver: str | Plan = "auto",
    lam: Any = None,
    sample_weight: Any = None,
    fit_intercept: bool = False,
    random_state: Any = None,
    backend: Any = None,
    max_memory: int | None = None,
    leave_one_out: bool | None = None,
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
    solver : {"auto", "eigh", "cholesky", "tridiagonal", "krylov", "nystrom"}
        "eigh": K = V D Vᵀ in full; exact, serves every λ, O(n³) time. "cholesky": one λ only,
        about twenty times cheaper, leave-one-out of at most four steps, no eigenvalues.
        "tridiagonal": every λ, no leave-one-out, half the time of "eigh". "krylov": every λ
        down to ``lam_min`` (default: the smallest ``lam``; a smaller one that is asked for
        later continues the run) for these targets, to a certified tolerance, no leave-one-out;
        far cheaper than all of these for large n, and K need not fit in memory. Options
        ``lam_min``, ``n_steps`` (6), ``tol`` (1e-8; 1e-3 in float32), ``max_rank`` (3000) and
        ``storage`` of K ("auto", "float64", "float32", "none").
        "nystrom": the model of m landmark rows, an approximation in O(m²) memory (beside X) and
        O(nm²) time, one pass over the rows; options ``n_landmarks`` (default 1000),
        ``sampling`` ("rpcholesky", randomly pivoted Cholesky; "uniform"; "kmeans", rows nearest
        to the centres of clusters; default "auto": the first or the third, whichever predicts
        held-out rows of a small pilot model better, with few rows the first) and ``block``, the
        rows of a pass that are worked on at a time; its ``approximation_error`` says how far the
        model's kernel is from the given one.
        "auto": what :func:`plan` finds cheapest of all that is exact (to ``tol``), fits the
        memory and has leave-one-out where that is needed; the result's ``plan`` says why.
        ("cholesky" is left to kernels that are positive semi-definite by construction: it
        cannot see a negative eigenvalue above −λ.) A :class:`Plan` stands for "auto" with the
        choice already made.
    lam : float or sequence, optional
        The ridges that will be asked for: a scalar for one, a sequence for a batch (never a
        schedule over the steps). "cholesky" needs one, "krylov" the smallest; the others serve
        every other one, too.
    sample_weight : array_like of shape (n,), optional
        Weights of the squared errors, >= 0. Rows of weight 0 drop out of the fit.
    fit_intercept : bool
        An unpenalised constant, refitted in every step.
    random_state : optional
        Seed or generator of "nystrom"; the exact solvers use no random numbers.
    backend : {None, "cpu", "gpu", "auto", "reference"} or a backend object, optional
        None: where the arrays are, a CUDA device or the host. "gpu" takes arrays from the host
        there; "auto" does where that pays. The spectrum's own arrays stay where they are computed.
    max_memory : int, optional
        Bytes that the factorisation may take; default 80 % of what is available.
    leave_one_out : bool, optional
        Whether "auto" must keep to solvers that have leave-one-out. None: it does, unless none
        of them fits the memory. True with a solver that has none is refused before any work.

    Returns
    -------
    Spectrum
        With ``.project(X_new)`` (m, k) and, from "eigh", ``.d`` (k,) and ``.z`` (k, p); see
        :func:`~selfdistill_fast.distill`. Everything is float32 if X is, else float64.

    Raises
    ------
    TypeError, ValueError
        Sparse or non-numeric input, wrong shapes, NaN, infinity, empty arrays, a
        precomputed K that is not symmetric, an unknown solver, a solver without the
        leave-one-out that is asked for.
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
    chosen = solver if isinstance(solver, Plan) else None
    if isinstance(solver, Plan):
        solver = "auto"
    check_solver(solver, options)
    if leave_one_out:
        check_leave_one_out(solver)
    if lam is not None:
        lam = check_lam(lam, batch=True)
    be = get_backend(backend, {"X": X, "Y": Y, "sample_weight": sample_weight})
    problem = functools.partial(
        _spectrum,
        X=X,
        Y=Y,
        kernel=as_kernel(kernel),
        solver=solver,
        lam=lam,
        sample_weight=sample_weight,
        fit_intercept=bool(fit_intercept),
        random_state=random_state,
        max_memory=max_memory,
        leave_one_out=leave_one_out,
        options=options,
        chosen=chosen,
    )
    if isinstance(backend, str) and backend == "auto" and be.name == "cpu":
        gpu = _gpu_that_pays(be, X, Y, solver, as_kernel(kernel), lam, leave_one_out, max_memory)
        if gpu is not None:
            return with_fallback(gpu, problem, be.n_threads)
    with be.on():
        return problem(be)


def _gpu_that_pays(
    be: Any, X: Any, Y: Any, solver: str, kernel: Kernel, lam: Any, held_out: Any, budget: Any
) -> Any:
    """A GPU for a problem on the host, or None."""
    if not isinstance(X, np.ndarray) or X.ndim != 2 or 0 in X.shape:
        return None  # what is streamed stays on the host; what is wrong is refused there
    (n, d), p = X.shape, (1 if len(np.shape(Y)) < 2 else np.shape(Y)[1])
    dtype = np.dtype("f4" if getattr(X, "dtype", None) in (np.float32, np.float16) else "f8")
    decide = functools.partial(
        where_it_pays,
        be,
        n,
        d,
        p,
        dtype,
        kernel,
        solver=solver,
        lam=lam,
        leave_one_out=held_out,
        max_memory=budget,
    )
    gpu, reason = unless_it_fails(decide, (None, "on the CPU: the GPU fails"))
    _logger.info("backend='auto': %s", reason)
    return gpu


def _spectrum(
    be: Any,
    *,
    X: Any,
    Y: Any,
    kernel: Kernel,
    solver: str,
    lam: Any,
    sample_weight: Any,
    fit_intercept: bool,
    random_state: Any,
    max_memory: Any,
    leave_one_out: bool | None,
    options: dict[str, Any],
    chosen: Plan | None,
) -> Spectrum:
    """:func:`spectrum` on one backend."""
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
    memory = None if max_memory is None else memory_budget(be, max_memory)
    training = (be, X, y, kernel, w, fit_intercept, memory)
    if solver == "auto":
        chosen = chosen or choose(
            be,
            n,
            n_features,
            1 if y.ndim == 1 else y.shape[1],
            X.dtype,
            kernel,
            lam=lam,
            leave_one_out=leave_one_out,
            budget=memory_budget(be, max_memory),
            **options,
        )
        _logger.info("solver='auto' for %s\n%s", chosen.problem, chosen)
        if chosen.solver is None:
            raise MemoryError(f"solver='auto': {chosen.reason}")
        solver = chosen.solver
    result = _factorised(solver, training, lam, random_state, options, chosen)
    used = type(result).__name__.removesuffix("Spectrum").lower()
    if chosen is not None and used != chosen.solver:
        chosen = replace(
            chosen, solver=used, reason=f"{chosen.solver}, chosen first, cannot be exact here"
        )
    result.plan = chosen
    return result


def check_solver(solver: Any, options: Any) -> None:
    """ValueError for an unknown solver, TypeError for an option that it does not have."""
    if solver not in ("auto", *SOLVERS):
        raise ValueError(f"unknown solver {solver!r}; known: auto, {', '.join(SOLVERS)}")
    unknown = set(options) - set(("n_steps", "tol") if solver == "auto" else SOLVERS[solver])
    if unknown:
        raise TypeError(f"solver {solver!r} has no option {', '.join(sorted(unknown))}")


def check_leave_one_out(solver: str, n_steps: int = 1) -> None:
    """ValueError where a solver has no leave-one-out of so many steps, before any work."""
    if solver in ("krylov", "tridiagonal"):
        refuse_leave_one_out(solver)
    if solver == "cholesky":
        check_loo_steps(n_steps)


def _factorised(
    solver: str,
    training: tuple[Any, Any, Any, Kernel, Any, bool, int | None],
    lam: Any,
    random_state: Any,
    options: dict[str, Any],
    chosen: Plan | None,
) -> Spectrum:
    """The training set factorised by one solver; where that was ours to choose, the next best."""
    if solver == "cholesky":
        if lam is None or lam.ndim:
            raise ValueError("solver='cholesky' factorises K + lam I: it needs one scalar lam")
        try:
            return CholeskySpectrum(*training, float(lam), automatic=chosen is not None)
        except OutOfRange:
            pass
        except LinAlgError:
            if chosen is None:
                raise
        return EighSpectrum(*training)  # keeps all digits; and serves λ below round-off
    if solver == "krylov":
        if chosen is None:
            return KrylovSpectrum(*training, lam=lam, **options)
        try:
            return KrylovSpectrum(*training, lam=lam, automatic=True, **options)
        except ShortOfTolerance:
            direct = [c for c in chosen.costs if c.solver in ("tridiagonal", "eigh")]
            able = [c for c in direct if not c.excluded]
            solver = min(able, key=lambda c: c.seconds).solver if able else ""
            _logger.info("solver='krylov' did not reach its tolerance; next: %s", solver or "none")
            if not solver:
                return KrylovSpectrum(*training, lam=lam, **options)  # and warns
    if solver == "tridiagonal":
        result = TridiagonalSpectrum(*training)
        smallest = math.inf if chosen is None or lam is None else float(lam.min())
        if smallest >= result.rounding:
            return result
        del result  # as for Cholesky
    if solver == "nystrom":
        return NystromSpectrum(*training, random_state=random_state, **options)
    return EighSpectrum(*training)
