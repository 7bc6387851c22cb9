"""Spectra: what remains of a training set once its kernel matrix has been factorised.

Every solver answers the same questions. Everything downstream (filters, leave-one-out, α,
predictions) uses these answers only:

* ``project(X)`` (m, k): the basis functions at new points;
* ``pure_steps(lam, n_steps)`` (T, k, p): coordinates with F_τ = project(X) @ pure_steps[τ−1],
  the predictions after τ pure steps (α = 0);
* ``diag_powers(lam, n_steps)`` (T, n): the diagonals of A, A², …. For leave-one-out, without
  cancellation: the functions (I − A) A^(τ−1) of K as ``residual_filters``, their
  ``diagonals`` and blocks, and their products with the targets;
* ``dual(coordinates)`` (…, n, p): dual coefficients. Predictions are
  κ(x, X) @ dual + constant(coordinates) and need no basis.

A spectral solver also has eigenvalues ``d`` (k,) and rotated targets ``z`` = Vᵀy (k, p).
"""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import Any

import numpy as np

from selfdistill_fast._backend import get_backend, unless_it_fails, with_fallback
from selfdistill_fast._names import KernelLike, Numbers, SolverName
from selfdistill_fast._solvers.base import Spectrum
from selfdistill_fast._solvers.evaluation import (
    NoLimit,
    check_limit,
    check_new,
    evaluate,
    linear_coefficients,
    mix,
)
from selfdistill_fast._solvers.penalties import Penalties
from selfdistill_fast._solvers.planning import Plan, choose, memory_budget, plan, where_it_pays
from selfdistill_fast._solvers.problem import Problem, Request, TrainingSet, Unsuitable
from selfdistill_fast._solvers.solvers import (
    check_leave_one_out,
    check_solver,
    option_names,
    solver_named,
    with_steps,
)
from selfdistill_fast._solvers.sources import (
    Rows,
    as_rows,
    features_of,
    in_memory,
    is_dask,
    map_dask,
)
from selfdistill_fast._validation import (
    check_lam,
    check_sample_weight,
    check_targets,
)
from selfdistill_fast.kernels import (
    Custom,
    Features,
    OfSamples,
    Precomputed,
    as_kernel,
    has_rows,
)

__all__ = [
    "NoLimit",
    "Penalties",
    "Plan",
    "Spectrum",
    "check_leave_one_out",
    "check_limit",
    "check_new",
    "check_solver",
    "evaluate",
    "features_of",
    "is_dask",
    "linear_coefficients",
    "map_dask",
    "mix",
    "plan",
    "solver_named",
    "spectrum",
    "with_steps",
]

_logger = logging.getLogger("selfdistill_fast")


def spectrum(
    X: Any,
    Y: Any,
    kernel: KernelLike,
    *,
    solver: SolverName | Plan = "auto",
    lam: Numbers | None = None,
    sample_weight: Any = None,
    fit_intercept: bool = False,
    random_state: Any = None,
    backend: Any = None,
    max_memory: int | None = None,
    leave_one_out: bool | None = None,
    **options: Any,
) -> Spectrum:
    """Factorise a training set once for every λ, every α and any number of steps.

    Parameters
    ----------
    X : array_like of shape (n, d)
        With ``kernel="precomputed"``, the matrix K, (n, n). With a ``Features`` kernel,
        whatever its function takes. With ``solver="primal"`` or ``"nystrom"``, X need
        not fit in memory: it may be a NumPy memory map, a zarr or h5py array, a dask array, or
        chunks of rows. Chunks are given as a list, an object whose ``__iter__`` restarts each
        time, or a function that returns an iterator; each chunk is an array (rows, d) or a
        pair (X, y). Leave-one-out reads X again, so it must not change.
    Y : array_like of shape (n,) or (n, p)
        None if the chunks are pairs.
    kernel : Kernel, str or callable
        Such as ``RBF(0.1)``; ``RBF([0.1, 2.0])`` with a γ for each feature; a sum or product such
        as ``0.5 * RBF(0.1) + Linear()``; a name such as "rbf", with scikit-learn's default
        parameters; "precomputed"; or a function of (X, Z), whose samples may be anything: rows
        of numbers, a list of strings, of graphs, ….
    solver : {"auto", "eigh", "cholesky", "tridiagonal", "krylov", "primal", "nystrom"}
        "eigh": the full decomposition K = V D Vᵀ. Exact, serves every λ, O(n³) time.
        "cholesky": a single λ, about twenty times cheaper, leave-one-out for at most four
        steps, no eigenvalues. "tridiagonal": every λ, no leave-one-out, half the time of
        "eigh".
        "krylov": every λ down to ``lam_min``, for these targets, to a certified tolerance; no
        leave-one-out. For large n it is far cheaper than the solvers above, and K need not fit
        in memory. Options: ``lam_min`` (default: the smallest ``lam``; a smaller value
        requested later continues the run), ``n_steps`` (6), ``tol`` (1e-8; 1e-3 in float32),
        ``max_rank`` (3000) and ``storage`` of K ("auto", "float64", "float32", "none").
        "primal": for ``Linear()`` and ``Features(...)`` with D features. Exact, serves every λ,
        O(n D² + D³) time, O(D²) memory (besides X) and one pass over the rows; leave-one-out
        takes another. Option: ``block``, the number of rows processed at a time.
        "nystrom": a model on m landmark rows. An approximation, with O(m²) memory (besides X),
        O(nm²) time and one pass over the rows. Options: ``n_landmarks`` (default 1000);
        ``sampling`` ("rpcholesky", randomly pivoted Cholesky; "uniform"; "kmeans", the rows
        nearest to cluster centres; default "auto": "rpcholesky" or "kmeans", depending on
        which one predicts held-out rows better in a small pilot model, and "rpcholesky" when
        there are few rows); ``block``, the number of rows processed at a time. Its
        ``approximation_error`` says how far the model's kernel is from the given one.
        "auto": the cheapest solver, according to :func:`plan`, that is exact (to ``tol``),
        fits in memory and has leave-one-out if that is needed; the result's ``plan`` says why.
        ("auto" uses "cholesky" only for kernels that are positive semi-definite by
        construction, because it cannot see a negative eigenvalue above −λ.) A :class:`Plan`
        acts as "auto" with the choice already made.
    lam : float or sequence, optional
        The λ values that will be requested: a scalar for one, a sequence for a batch (never a
        schedule over the steps). "cholesky" needs exactly one, "krylov" the smallest; the other
        solvers also serve any other value.
    sample_weight : array_like of shape (n,), optional
        Weights of the squared errors, >= 0. Rows of weight 0 do not enter the fit.
    fit_intercept : bool
        Whether to fit an unpenalised constant, refitted in every step.
    random_state : optional
        Seed or generator for "nystrom"; the exact solvers use no random numbers.
    backend : {None, "cpu", "gpu", "auto", "reference"} or a backend object, optional
        None: compute where the arrays are, on a CUDA device or on the host. "gpu" copies host
        arrays to the device; "auto" does so where it is faster. The spectrum's own arrays stay
        where they were computed.
    max_memory : int, optional
        Bytes that the factorisation may use; default: 80 % of the available memory.
    leave_one_out : bool, optional
        Whether "auto" is restricted to solvers that have leave-one-out. None: it is, unless none
        of them fits in memory. True with a solver that has none is rejected before any work.

    Returns
    -------
    Spectrum
        With ``.project(X_new)`` (m, k) and, from "eigh", ``.d`` (k,) and ``.z`` (k, p); see
        :func:`~selfdistill_fast.distill`. Everything is float32 if X is, else float64.

    Raises
    ------
    TypeError, ValueError
        Sparse or non-numeric input, wrong shapes, NaN, infinity, empty arrays, a
        precomputed K that is not symmetric, an unknown solver, or leave-one-out requested
        from a solver that has none.
    numpy.linalg.LinAlgError
        K is not positive semi-definite; the message names the eigenvalue.
    MemoryError
        The factorisation does not fit; the message gives the bytes and the remedies.

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
    kernel = as_kernel(kernel, X)
    if isinstance(kernel, Custom) and not has_rows(X):
        kernel = OfSamples(kernel.function, X)
    given = TrainingSet(be, X, Y, kernel, sample_weight, bool(fit_intercept))
    request = Request(lam, random_state, max_memory)
    job = functools.partial(_spectrum, given, request, chosen or solver, options, leave_one_out)
    if isinstance(backend, str) and backend == "auto" and be.name == "cpu":
        gpu = _gpu_that_pays(given, request, solver, leave_one_out)
        if gpu is not None:
            return with_fallback(gpu, job, be.n_threads)
    with be.on():
        return job(be)


def _gpu_that_pays(
    given: TrainingSet, request: Request, solver: str, leave_one_out: bool | None
) -> Any:
    """A GPU for a problem on the host, or None."""
    be, X, Y = given.backend, given.X, given.y
    if not isinstance(X, np.ndarray) or X.ndim != 2 or 0 in X.shape:
        return None  # streamed data stays on the host; invalid input is rejected there
    p = 1 if len(np.shape(Y)) < 2 else np.shape(Y)[1]
    dtype = np.dtype("f4" if X.dtype in (np.float32, np.float16) else "f8")
    sizes = be, X.shape[0], X.shape[1], p, dtype
    budget = memory_budget(be, request.max_memory)
    problem = Problem(*sizes, given.kernel, request.lam, leave_one_out, budget)
    decide = functools.partial(where_it_pays, problem, solver)
    gpu, reason = unless_it_fails(decide, (None, "on the CPU: the GPU fails"))
    _logger.info("backend='auto': %s", reason)
    return gpu


def _checked(be: Any, given: TrainingSet, solver: str) -> TrainingSet:
    """The training set as native arrays on a backend."""
    X, y = given.X, given.y
    named = solver_named(solver)
    if named is not None and named.streams:
        X, y = as_rows(be, X, y, given.kernel)
    else:
        if not isinstance(given.kernel, (Features, OfSamples)):
            X = in_memory(X, solver, be.available_memory())
        X = given.kernel.rows(X)
        X = be.asarray(X, "X", ndim=2)
        X = given.kernel.scaled(be.xp, X) if X.size else X
    n, n_features = X.shape
    if n == 0 or n_features == 0:
        raise ValueError(f"X is empty: shape {X.shape}; expected at least one row and one feature")
    if isinstance(given.kernel, Precomputed) and n != n_features:
        raise ValueError(f"a precomputed K must be square, got shape {X.shape}")
    y = check_targets(be, y, n, "float64", "Y")  # centred first, then rounded to X's dtype
    w = check_sample_weight(be, given.sample_weight, n)
    return replace(given, backend=be, X=X, y=y, sample_weight=w)


def _spectrum(
    given: TrainingSet,
    request: Request,
    solver: str | Plan,
    options: dict[str, Any],
    leave_one_out: bool | None,
    be: Any,
) -> Spectrum:
    """:func:`spectrum` on one backend."""
    name = "auto" if isinstance(solver, Plan) else solver
    training = _checked(be, given, name)
    request = replace(request, max_memory=memory_budget(be, request.max_memory))
    named = solver_named(name)
    if named is not None:
        return named(
            training, replace(request, options=named.Options(**options))
        )._check_underflow()
    if not isinstance(solver, Plan):
        n, n_features = training.X.shape
        sizes = be, n, n_features, training.p, np.dtype(training.dtype)
        needs = request.lam, leave_one_out, request.max_memory
        solver = choose(Problem(*sizes, given.kernel, *needs, **options))
        _logger.info("solver='auto' for %s\n%s", solver.problem, solver)
    if solver.solver is None:
        raise MemoryError(f"solver='auto': {solver.reason}")
    return _automatic(training, request, options, solver)


def _automatic(
    training: TrainingSet, request: Request, options: dict[str, Any], chosen: Plan
) -> Spectrum:
    """The training set factorised by a plan's solver, or by the solver that replaces it."""
    name, automatic = str(chosen.solver), True
    while True:
        solver = solver_named(name)
        if solver is None:
            raise ValueError("a plan must name a solver")
        own = {key: options[key] for key in options if key in option_names(solver)}
        request = replace(request, automatic=automatic, options=solver.Options(**own))
        result = _unless_unsuitable(solver, training, request)
        if result is not None:
            break
        able = [
            cost
            for cost in chosen.costs
            if cost.solver in solver.successors and cost.solver != name and not cost.excluded
        ]
        following = min(able, key=lambda c: c.seconds).solver if able else solver.successors[-1]
        _logger.info("solver=%r cannot be exact here; next: %s", name, following)
        name, automatic = following, following != name
    if name != chosen.solver:
        reason = f"{chosen.solver}, chosen first, cannot be exact here"
        chosen = replace(chosen, solver=name, reason=reason)
    result.plan = chosen
    return result._check_underflow()


def _unless_unsuitable(
    solver: type[Spectrum], training: TrainingSet, request: Request
) -> Spectrum | None:
    """The spectrum, or None if the solver is unsuitable; its memory is then free again."""
    if solver.streams:
        training = replace(training, X=Rows(training.backend, training.X))
    try:
        return solver(training, request)
    except Unsuitable:
        return None
