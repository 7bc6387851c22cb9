"""The solver: a run that is continued until all requested results are within the tolerance."""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import Any

import numpy as np

from selfdistill_fast._gram import native_diagonal, native_matmul
from selfdistill_fast._solvers.base import Spectrum
from selfdistill_fast._solvers.evaluation import check_values
from selfdistill_fast._solvers.krylov.bounds import Bound
from selfdistill_fast._solvers.krylov.certificate import Certificate, Requested
from selfdistill_fast._solvers.krylov.lanczos import Lanczos
from selfdistill_fast._solvers.krylov.memory import fitting_rank, krylov_bytes, krylov_work
from selfdistill_fast._solvers.krylov.operator import KernelProduct
from selfdistill_fast._solvers.krylov.options import KrylovOptions, automatic_storage, check_storage
from selfdistill_fast._solvers.krylov.targets import Targets
from selfdistill_fast._solvers.matrix import check_diagonal
from selfdistill_fast._solvers.penalties import Penalties
from selfdistill_fast._solvers.problem import Problem, Rates, Request, TrainingSet, Unsuitable, Work
from selfdistill_fast._solvers.spectral import Filters
from selfdistill_fast._validation import check_lam, check_n_steps, warn_caller
from selfdistill_fast.kernels import Precomputed

__all__ = ["KrylovSpectrum"]

#: largest number of vectors that a full run is expected to need
MAX_RANK = 3000
#: share of the tolerance allotted to the residuals of exact arithmetic, and the smallest share
#: that rounding leaves them
_SHARE, _ROOM = 0.8, 0.25

#: trace of K below which rounding of its entries is that of subnormal numbers
_SMALLEST = float(np.finfo(np.float64).tiny / np.finfo(np.float64).eps)


class KrylovSpectrum(Spectrum):
    """Ritz values and vectors of K for given targets; made by :func:`~selfdistill_fast.spectrum`.

    Requesting a smaller λ or more steps than before continues the same run.

    Attributes
    ----------
    tol : float
        Requested bound of the error of every pure step 1..n_steps, for every requested λ, at
        every x with κ(x, x) <= max_i κ(x_i, x_i), relative to max |y| (centred, with an
        intercept) of each target. If it is not met, a RuntimeWarning is issued.
    lam_min : float
        The smallest λ requested so far.
    n_steps : int
        The largest number of steps requested so far.
    certificate_ : (T, p) ndarray
        Bound of the error of each pure step at ``lam_min``, in units of y; see
        :meth:`certificate`.
    max_rank : int
        Largest number of vectors of the run.
    storage : str
        How K was stored: "float64", "float32" (packed symmetric storage in both cases) or "none".
    """

    name = "krylov"
    Options = KrylovOptions
    max_loo_steps = 0
    guessed = True
    memory_hint = "a smaller max_rank"
    successors = ("tridiagonal", "eigh", "krylov")  # itself, with a warning

    @classmethod
    def serves(cls, problem: Problem) -> str | None:
        """Problems with a known smallest λ."""
        return "needs lam (or lam_min)" if problem.lam is None else None

    @classmethod
    def cost(cls, problem: Problem, rates: Rates) -> Work:
        """2 n² r flops in r/4 passes over packed K, which is stored if it fits."""
        tol = _default_tol(problem.dtype) if problem.tol is None else problem.tol
        return krylov_work(problem, rates, tol, MAX_RANK)

    def __init__(self, training: TrainingSet, request: Request) -> None:
        be, X, kernel = training.backend, training.X, training.kernel
        options, lam = request.options, request.lam
        if options.lam_min is None and lam is None:
            raise ValueError("solver='krylov' needs lam_min (or lam): the run depends on it")
        smallest = float(np.min(lam if options.lam_min is None else options.lam_min))
        check_lam(smallest, batch=False, dtype=X.dtype)
        n_steps = int(options.n_steps)
        self.tol = _default_tol(X.dtype) if options.tol is None else float(options.tol)
        n, p = training.n_kept, training.p
        most = n - bool(training.fit_intercept)
        requested = None if options.max_rank is None else int(options.max_rank)
        self.max_rank = max(0, min(most, max(MAX_RANK, 4 * p) if requested is None else requested))
        budget = request.max_memory
        sizes = (be, n, X.shape[1], p, X.dtype)
        self.storage = options.storage
        if self.storage == "auto":
            usual = partial(krylov_bytes, *sizes, min(self.max_rank, 500))
            fits = [s for s in (str(X.dtype), "float32") if usual(s) <= budget]
            self.storage = automatic_storage(training, fits, smallest, self.tol)
        check_storage(self.storage, kernel, X.dtype)
        if requested is None:
            self.max_rank = fitting_rank(budget, self.max_rank, *sizes, self.storage, n_steps)
        needed = krylov_bytes(*sizes, self.max_rank, self.storage, n_steps)
        self._prepare(training, request, needed=needed)

        self._lock = threading.RLock()  # a run may be continued while others use it
        K = self._operator(training)
        if 0.0 < K.trace < _SMALLEST:
            if request.automatic:
                raise Unsuitable
            raise ValueError(
                f"the kernel (its trace is {K.trace:.2g}) is so small that its rounding underflows "
                "in solver='krylov': multiply the kernel and lam by one number, which changes no "
                "prediction, or scale X up"
            )
        self._targets = Targets.measured(self.kept(self.Y), self.target, self.y_mean, self.tol, K)
        K.measure_mean(self.total_weight)
        self._offset = K.offset
        self._run = Lanczos(K, self._targets, self.max_rank)
        begins_with = len(self._run.next)
        if begins_with > self.max_rank:
            if request.automatic:
                raise Unsuitable
            raise ValueError(
                f"max_rank={self.max_rank} is less than the {begins_with} independent targets "
                "with which the run begins; use a larger max_rank"
                + (" or max_memory" if requested is None else "")
                + ", or fewer targets at a time"
            )
        self.lam_min, self.n_steps = smallest, n_steps
        self._automatic = request.automatic
        self._good = 0.0  # λ values that are not below this are within the tolerance
        lams = np.array([smallest]) if lam is None else np.unique(lam)
        self._continue(Requested(lams[lams >= smallest].tolist(), None, smallest))
        self._automatic = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def _operator(self, training: TrainingSet) -> KernelProduct:
        """K as an operator, measured; a matrix that no backend computes is packed and stored."""
        be, kernel, w = self.backend, self.kernel, self.sample_weight
        root = None if w is None else be.xp.sqrt(self.kept(w))[:, None]
        X = None if self.X is None else self.kept(self.X)
        K = KernelProduct(be, kernel, X, root, self.q, self.dtype, self.storage)
        if isinstance(kernel, Precomputed) or not kernel.pair:
            K.keep(self._checked_matrix(training.X, copy=False))
        else:
            diagonal = native_diagonal(be, X, kernel)
            check_diagonal(diagonal, self.X, kernel, self.dtype)
            K.measure(diagonal)
        return K

    # ------------------------------------------------------------ the run
    def _continue(self, requested: Requested) -> None:
        """Continue until all requests meet ``tol``; warn if some do not."""
        run, goal = self._run, self._targets.goal
        kept = False
        floor: Any = 0.0
        strictness = 1.0
        try:
            if not run.done and len(run.next):
                kept = run.K.keep_matrix()
            before = set(run.bases)
            for _ in range(20):
                room = np.maximum(goal - floor, _ROOM * goal)
                self._extend(_SHARE / strictness * room)
                excess = self._certificate.excess(requested, room)
                if excess > 1.0 and not self._run.ended:
                    strictness *= 2.0 * min(excess, 1e3)
                    continue
                floor = self._certified(self.lam_min)[1]
                room = np.maximum(goal - floor, _ROOM * goal)
                if self._run.ended or self._certificate.excess(requested, room) <= 1.0:
                    break
            for k in set(run.bases) - before - {run.k}:  # not handed out to any caller
                del run.bases[k]
            self._warn(requested)
        finally:
            if kept:
                run.K.forget_matrix()

    def _extend(self, room: np.ndarray) -> None:
        """Take steps of the process until residuals of exact arithmetic are within ``room``."""
        run, lam = self._run, self.lam_min
        room = np.broadcast_to(room, (self.n_steps, self.p))

        def excess() -> float:
            bound = run.bound_by_solves(lam, self.n_steps)
            return float(np.max(bound / np.maximum(room, 1e-300), initial=0.0))

        # of the residual of the first step
        run.extend(lam, room[0] * 2.0 * lam**0.5 / max(run.K.feature_norm, 1e-300), excess)
        run.diagonalise()
        z = run.z * self.backend.xp.asarray(self._targets.unit)
        self.filters = Filters(self.backend, run.d, z, self.dtype)
        self.k, self.scale = run.k, run.scale
        self._forget()

    def _ensure(self, penalties: Penalties) -> None:
        """Continue the run if the request is not within the tolerance."""
        penalties.check_range(self.dtype)
        lams, n_steps = penalties.values.reshape(-1), penalties.n_steps
        smallest = penalties.smallest
        with self._lock:
            before = self.lam_min, self.n_steps
            new = smallest < self.lam_min or n_steps > self.n_steps
            # a warning has named those for which the tolerance cannot be met
            open_ = lams if new else lams[lams >= self._good]
            schedule = lams if penalties.scheduled and len(open_) == len(lams) else None
            requested = Requested(np.unique(open_).tolist(), schedule, min(smallest, self.lam_min))
            try:
                self.lam_min = min(smallest, self.lam_min)
                if n_steps > self.n_steps:
                    self.n_steps = n_steps
                    self._forget()
                if self.k != self._run.k or not self._certificate.within(requested):
                    self._continue(requested)
            except BaseException:  # interrupted: check again the next time
                self.lam_min, self.n_steps = before
                self._forget()
                raise

    def _forget(self) -> None:
        """Discard what was certified, since the basis or the number of steps has changed."""
        parts = self._run, self._targets, self.spectral, self.n_steps, self.total_weight
        self._certificate = Certificate(*parts)

    def _certified(self, lam: float) -> tuple[np.ndarray, np.ndarray, Bound]:
        return self._certificate.certified(lam)

    # ------------------------------------------------------------ certificate
    def certificate(self, lam: Any, n_steps: int, X: Any = None) -> np.ndarray:
        """Bound of the error of each pure step, rounding included.

        Without ``X`` it holds at every x with κ(x, x) <= max_i κ(x_i, x_i), over the training
        rows of positive weight, hence at every x for a stationary kernel; with ``X`` it holds at
        those rows. It recomputes the residuals with
        about 2 L T p products with K. The error of a mixed chain is at most Σ_k |c_k| times
        this. See docs/certificate.md.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of λ values, never a schedule.
        n_steps : int T
        X : array_like of shape (m, d), optional
            Rows at which to bound the error. Not available with a precomputed kernel, whose
            κ(x, x) is not known.

        Returns
        -------
        bound : ndarray of shape (T, p), or (L, T, p) for a batch; with X (T, m, p), (L, T, m, p)
            In units of y.
        """
        lam, n_steps = check_lam(lam, batch=True), check_n_steps(n_steps)
        if X is not None and self.X is None:
            raise ValueError(
                "κ(x, x) at new points is not known for a precomputed kernel: omit X, and "
                "multiply the bound by the root of κ(x, x) / max K_ii where that exceeds 1"
            )
        X = None if X is None else self.check_new(X)
        self._ensure(Penalties(lam, n_steps))
        with self._lock:
            found = [self._certified(float(one)) for one in lam.reshape(-1)]
            if X is None:
                bounds = [bound[:n_steps] for bound, _, _ in found]
            else:
                feature, root = self._certificate.feature_norms(X)
                bounds = [
                    Bound(*(part[:n_steps, None] for part in parts)).at(feature, root)
                    for _, _, parts in found
                ]
                largest_entries = root[:, 0] * self._run.K.largest_magnitude**0.5
                for bound in bounds:
                    bound[:, largest_entries > float(np.finfo(self.dtype).max)] = np.inf
        return (np.stack(bounds) if lam.ndim else bounds[0]) * self._targets.unit

    @property
    def certificate_(self) -> np.ndarray:
        """Bound of the error of each pure step at ``lam_min``, (T, p); computed when stale."""
        with self._lock:
            return self._certified(self.lam_min)[0] * self._targets.unit

    def _warn(self, requested: Requested) -> None:
        """RuntimeWarning if the run ended before its tolerance was met."""
        run, goal = self._run, self._targets.goal
        bound = self._certified(self.lam_min)[0]
        if self._certificate.within(requested) and (bound <= goal).all():
            self._good = 0.0
            return
        if self._automatic and not run.done and run.ended:
            raise Unsuitable
        self._good = self._certificate.good_from(requested)
        ended = (
            f"the tolerance is below rounding{' of K to float32' if run.K.rounded else ''}"
            if run.done or not run.ended
            else f"max_rank={self.max_rank} was reached"
        )
        good = f"only for lam >= {self._good:.3g}" if self._good < math.inf else "for no lam"
        warn_caller(
            f"solver='krylov' stopped after {self.k} vectors: {ended}; its error bound meets "
            f"tol={self.tol:g} {good}, and is {float((bound * self._targets.unit).max()):.2g} at "
            f"lam={self.lam_min:g}; use a larger tol or max_rank, "
            f"{'another storage, ' if run.K.rounded else ''}or solver='eigh'",
            RuntimeWarning,
        )

    # ------------------------------------------------------------ the protocol
    @property
    def V(self) -> Any:
        """Ritz vectors, (n, k); computed on access."""
        with self._lock:
            return self._run.rows_of(self.backend.xp.eye(self.k)).astype(self.dtype)

    def in_rows(self, coordinates: Any) -> Any:
        """V @ coordinates for coordinates (..., k, p), one product for all."""
        return self._run.rows_of(coordinates).astype(self.dtype)

    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k): κ(x, X) W^½ V, centred with an intercept."""
        X_new = self.check_new(X_new)
        V = V_kept = self.V
        if self._root is not None:
            V = V * self._root[:, None]
        if self.X is None:
            P = (X_new if self.rows is None else X_new[:, self.rows]) @ V
        else:
            V = self.backend.xp.ascontiguousarray(V)
            P = native_matmul(self.backend, X_new, self.kept(self.X), V, self.kernel)
        P = P if self._offset is None else P - V_kept.T @ self._offset.astype(self.dtype)
        return check_values(self.backend, P, self.kernel, "projections")

    def constant(self, coordinates: Any) -> Any:
        """What a prediction adds to κ(x, X) @ dual: ȳ − r·c, (…, p)."""
        mean = self.y_mean.astype(self.dtype)
        if self._offset is None:
            shape = (*coordinates.shape[:-2], coordinates.shape[-1])
            return self.backend.xp.zeros(shape, self.dtype) + mean
        r = self.backend.xp.tensordot(self._offset, self._run.rows_of(coordinates), ([0], [-2]))
        return mean - r.astype(self.dtype)

    def _filters_for(self, penalties: Penalties) -> Filters:
        """Coordinates from a run that is first continued for a smaller λ or more steps."""
        with self._lock:
            self._ensure(penalties)
            return self.spectral

    def limit(self, lam: float, alpha: float) -> Any:
        """As for a full spectrum: one step with λ/α instead of λ."""
        with self._lock:
            if alpha > 0.0:  # requested together with λ: one continuation, one warning
                self._ensure(Penalties.of([lam, lam / alpha], self.n_steps))
            return self.spectral.limit(lam, alpha)

    def warn_below_rounding(self, lam: Any) -> None:
        """Do nothing: the certificate includes rounding, and warns."""


def _default_tol(dtype: Any) -> float:
    return 1e-3 if dtype == np.float32 else 1e-8
