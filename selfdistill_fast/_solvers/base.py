"""What all solvers share: the protocol, the training set, and the checks.

With weights W and q = √w/‖√w‖ every solver works on

    K_w = W^½ K W^½,                      without an intercept,
    H K_w H + shift q qᵀ,  H = I − qqᵀ,   with one,

where the shift moves the eigenvector q away from a null space that it would mix with; and on
the targets t = W^½ (y − ȳ), which are orthogonal to q. A model with weighted dual coefficients
c ⟂ q predicts

    f(x) = ȳ + κ(x, X) W^½ c − r·c,   r = W^½ k̄,   k̄_j = Σ_i w_i κ(x_i, x_j) / Σ_i w_i,

with r = 0 and ȳ = 0 without an intercept. Rows of weight 0 drop out of all this.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from selfdistill_fast import _ranges as ranges
from selfdistill_fast._gram import native_gram, native_matmul
from selfdistill_fast._solvers.problem import NoOptions, Problem, Rates, Request, TrainingSet, Work
from selfdistill_fast._validation import (
    check_coefficients,
    check_memory,
    largest,
    warn_caller,
)
from selfdistill_fast.kernels import Kernel, Precomputed

if TYPE_CHECKING:
    from selfdistill_fast._solvers.spectral import Filters

__all__ = ["Spectrum"]

#: rows of K that one step of a blocked O(n²) pass touches
_BLOCK = 256


class Spectrum:
    """A factorised training set: the part that all solvers share.

    Attributes
    ----------
    kernel : Kernel
    backend : backend object that holds the arrays
    X : (n, d) training rows; for a precomputed kernel None
    basis : (b, d) the rows that dual coefficients belong to: X, or landmarks
    Y : (n, p) targets, centred by ``y_mean`` where there is an intercept
    n, k, p : int
        Training rows, coordinates, targets.
    target : (n kept rows, p) weighted, centred targets t
    filters : Filters, or None for a solver without eigenvalues; see spectral.py
    d : (k,) eigenvalues, ascending and >= 0 (spectral solvers)
    z : (k, p) rotated targets Vᵀ t (spectral solvers)
    sample_weight : (n,) or None
    total_weight : float, the sum of the weights (n without weights)
    rows : index array of the rows with positive weight, or None for all
    q : (n kept rows,) the unit vector √w/‖√w‖ with an intercept, else None
    y_mean : (p,) the intercept's share of every prediction; 0 without an intercept
    one_target : bool
        y was one-dimensional, and so are predictions.
    scale : float
        Largest eigenvalue of K_w before it is centred, or a bound that is not far above it. What
        is rounding is judged against it: see :attr:`rounding`.
    plan : Plan or None
        Why ``solver="auto"`` chose this one.


    A subclass is a solver, made as ``solver(training, request)`` of a ``TrainingSet`` and a
    ``Request``. Its class attributes and class methods are all that others know of it.
    """

    #: as in ``spectrum(solver=name)``
    name: ClassVar[str]
    #: frozen dataclass of the options, with their defaults and checks
    Options: ClassVar[type] = NoOptions
    #: steps that leave-one-out can have; 0 where there is none
    max_loo_steps: ClassVar[float] = math.inf
    #: whether ``solver="auto"`` may choose it
    exact: ClassVar[bool] = True
    #: whether it serves only the single λ that it was made for
    one_lam: ClassVar[bool] = False
    #: whether rows need not be in memory, see rows.py
    streams: ClassVar[bool] = False
    #: whether its cost depends on the data, and is only an estimate
    guessed: ClassVar[bool] = False
    #: what makes it need less memory
    memory_hint: ClassVar[str] = "fewer training rows"
    #: solvers of which the cheapest that fits takes its place after ``Unsuitable``, or else the
    #: last one; with its own name for that it is used as it is
    successors: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def serves(cls, problem: Problem) -> str | None:
        """Why ``solver="auto"`` must not choose it for this problem, or None."""
        return None

    @classmethod
    def cost(cls, problem: Problem, rates: Rates) -> Work:
        """What it would take for a problem."""
        raise NotImplementedError

    @classmethod
    def check_leave_one_out(cls, n_steps: int = 1) -> None:
        """ValueError where it has no leave-one-out of so many steps; names the alternatives."""
        if cls.max_loo_steps == 0:
            raise ValueError(
                f"leave-one-out needs diagonals of functions of K, and solver={cls.name!r} knows "
                "only what they do to y: use solver='eigh' (every lam), 'cholesky' (one lam) or "
                "'nystrom' (a landmark model), or choose on a validation set X_val, y_val"
            )
        if n_steps > cls.max_loo_steps:
            raise ValueError(
                f"solver={cls.name!r} has leave-one-out of at most {cls.max_loo_steps} steps, "
                f"asked for {n_steps}; use solver='eigh', or a validation set X_val"
            )

    kernel: Kernel
    backend: Any
    X: Any
    basis: Any
    Y: Any
    n: int
    k: int
    target: Any
    sample_weight: Any
    rows: Any
    y_mean: Any
    one_target: bool
    fit_intercept: bool
    scale: float
    plan: Any = None
    filters: Filters | None = None

    def __init__(self, training: TrainingSet, request: Request) -> None:
        raise NotImplementedError

    def _prepare(self, training: TrainingSet, request: Request, *, needed: int) -> None:
        """Set the attributes above.

        ``needed`` is the peak of bytes, checked before anything large is allocated.
        """
        be, X, y, kernel = training.backend, training.X, training.y, training.kernel
        w, fit_intercept = training.sample_weight, training.fit_intercept
        xp = be.xp
        precomputed = isinstance(kernel, Precomputed)
        self.backend, self.kernel, self.fit_intercept = be, kernel, fit_intercept
        self.X = None if precomputed else X.copy()  # the caller may change X later
        self.n, self.one_target = X.shape[0], y.ndim == 1
        self.basis = self.X  # the rows that dual coefficients belong to
        self.sample_weight = None if w is None else w.copy()
        self.rows = None if w is None or bool((w > 0).all()) else xp.nonzero(w > 0)[0]
        # a precomputed K is not kept, but for what it says of the rows of weight 0
        self._K_dropped: Any = X[w == 0] if precomputed and self.rows is not None else None
        check_memory(
            be,
            needed,
            f"{type(self).__name__} of {X.shape[0]} rows in {X.dtype}",
            request.max_memory,
            f"ways out: float32 input (half of it), {self.memory_hint}, or a larger max_memory",
        )
        weights = xp.ones(self.n) if w is None else w
        weights = self.kept(weights)
        check_weighted(largest(weights), X.dtype)
        self._root = None if w is None else xp.sqrt(weights).astype(X.dtype)
        Y = y.reshape(self.n, -1).astype("float64")
        self.q: Any = None
        self._offset: Any = None
        self.y_mean = xp.zeros(Y.shape[1])
        self.total_weight = float(weights.sum())
        if fit_intercept:
            self.y_mean = weights @ self.kept(Y) / self.total_weight
            self.q = xp.sqrt(weights / self.total_weight)
        Y = Y - self.y_mean
        self.Y = Y.astype(X.dtype)
        self.target = (self.kept(Y) * xp.sqrt(weights)[:, None]).astype(X.dtype)
        if not largest(abs(self.target)) * self.n <= float(np.finfo(X.dtype).max):
            raise ValueError(
                f"y overflows {X.dtype}"
                + ("" if w is None else ", times the roots of sample_weight")
                + ": scale y down"
                + (", or use float64 rows" if X.dtype == np.float32 else "")
            )

    def _checked_matrix(self, X: Any, *, copy: bool) -> Any:
        """K of the kept rows, unweighted, finite and symmetric; ``copy``: it may be destroyed."""
        xp, kernel = self.backend.xp, self.kernel
        precomputed = isinstance(kernel, Precomputed)
        if not precomputed:
            K = native_gram(self.backend, self.kept(X), None, kernel)
        elif self.rows is None:
            K = X
        else:
            K = X[self.rows][:, self.rows]
        if copy and not kernel.pair and not (precomputed and self.rows is not None):
            K = K.copy()  # the caller keeps his matrix, and may keep his function's result
        check_diagonal(xp.diagonal(K), self.kept(X) if kernel.pair else None, kernel, K.dtype)
        if not kernel.definite:
            _check_symmetric(K, xp)
        return K

    def _kernel_matrix(self, X: Any, shift: float) -> Any:
        """The matrix of the head of this module, in memory that may be destroyed.

        q is moved to the eigenvalue ``shift`` · trace/n, see :func:`_centre`.
        """
        xp = self.backend.xp
        K = self._checked_matrix(X, copy=True)
        if self._root is not None:
            K *= self._root[:, None]
            K *= self._root[None, :]
        self.scale = _scale(K, xp)
        check_weighted(self.scale, K.dtype)
        if self.q is not None:
            m, self.shift = _centre(K, self.q, shift, xp)
            self._offset = m / self.total_weight**0.5
        return K

    @property
    def rounding(self) -> float:
        """Size of an eigenvalue that may be rounding alone: 10 ε ‖K_w‖, before centring."""
        return rounding(self.scale, self.dtype)

    @property
    def p(self) -> int:
        """Number of targets."""
        return int(self.Y.shape[1])

    @property
    def dtype(self) -> Any:
        """float32 or float64."""
        return self.Y.dtype

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.kernel!r}, n={self.n}, k={self.k}, p={self.p}, "
            f"dtype={self.dtype}, backend={self.backend.name!r})"
        )

    # A solver without eigenvalues has its own answers to what follows.
    @property
    def spectral(self) -> Filters:
        """The filters; AttributeError where the solver has no eigenvalues."""
        if self.filters is None:
            raise AttributeError(f"solver={self.name!r} has no eigenvalues; use solver='eigh'")
        return self.filters

    @property
    def d(self) -> Any:
        """Eigenvalues, (k,)."""
        return self.spectral.d

    @property
    def z(self) -> Any:
        """Rotated targets, (k, p)."""
        return self.spectral.z

    def _filters_for(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Filters:
        """The filters that serve these λ values and steps."""
        return self.spectral

    def pure_steps(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """Coordinates of the pure steps.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of λ values, never a schedule.
        n_steps : int T
        lam_steps : array of shape (T,), optional
            A λ for each step; ``lam`` is not used then.

        Returns
        -------
        ndarray of shape (T, k, p), or (L, T, k, p) for a batch; for a schedule
        (T, T, k, p), where [τ − 1, i − 1] is the pure chain of the last i of the steps 1..τ
        """
        return self._filters_for(lam, n_steps, lam_steps).steps(lam, n_steps, lam_steps)

    def pure_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """Filters a^(τ−1)/(d + λ) of the pure steps; d times them is diag A^τ.

        Parameters and shapes as :meth:`pure_steps`, without the axis p.
        """
        return self._filters_for(lam, n_steps, lam_steps).pure(lam, n_steps, lam_steps)

    def limit(self, lam: float, alpha: float) -> Any:
        """Coordinates α/(αd + λ) z of infinitely many steps, eq. (17), (k, p).

        Raises
        ------
        NoLimit
            The limit does not exist.
        ValueError
            The coordinates overflow.
        """
        return self.spectral.limit(lam, alpha)

    def shrinkage(self, C: Any, lam: Any, lam_steps: Any) -> Any:
        """diag B of steps that mix the pure steps with weights C; None without eigenvalues."""
        if self.filters is None:
            return None
        return self._filters_for(lam, len(C), lam_steps).shrinkage(C, lam, lam_steps)

    # Functions of K, each held as its coordinates along a last axis, for leave_out.py.
    def residual_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """(I − A) A^(τ−1), τ = 1..T, without cancellation.

        Parameters and shapes as :meth:`pure_filters`, except that a schedule gives
        [j, s] = (I − A_j) A_(j−1) … A_s, zero for s > j.
        """
        return self._filters_for(lam, n_steps, lam_steps).residual(lam, n_steps, lam_steps)

    def smoother_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """A^τ, τ = 1..T, or A_j … A_s, on the complement of q, without cancellation."""
        return self._filters_for(lam, n_steps, lam_steps).smoother(lam, n_steps, lam_steps)

    def diag_powers(self, lam: Any, n_steps: int) -> Any:
        """diag(A^τ), τ = 1..T, of the training rows of positive weight.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of λ values, never a schedule.
        n_steps : int T

        Returns
        -------
        ndarray of shape (T, n), or (L, T, n) for a batch
        """
        self.check_leave_one_out()
        powers = self.diagonals(self.smoother_filters(lam, n_steps))
        return powers if self.q is None else powers + (self.q**2).astype(self.dtype)

    # The other questions; see the head of the package.
    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k).

        Parameters
        ----------
        X_new : array_like of shape (m, d)
            With a precomputed kernel K(X_new, X), (m, n).
        """
        raise NotImplementedError

    def diagonals(self, filters: Any) -> Any:
        """Diagonals at the kept training rows: filters (…, k) → (…, n)."""
        self.check_leave_one_out()
        raise NotImplementedError

    def applied(self, filters: Any) -> Any:
        """Filtered targets at the kept training rows: filters (…, k) → (…, n, p)."""
        return self.unweighted(self.in_rows(filters[..., None] * self.z))

    def applied_and_diagonals(self, filters: list[Any]) -> list[Any]:
        """What each filter makes of the targets, and then the diagonal of each."""
        return [self.applied(f) for f in filters] + [self.diagonals(f) for f in filters]

    def fold(self, rows: Any) -> Fold:
        """A set S of kept rows, given by their positions among the kept ones, to leave out."""
        self.check_leave_one_out()
        raise NotImplementedError

    def in_rows(self, coordinates: Any) -> Any:
        """Weighted dual coefficients of the kept rows from coordinates (…, k, p)."""
        raise NotImplementedError

    def dual(self, coordinates: Any) -> Any:
        """Dual coefficients (…, n, p) of coordinates (…, k, p); zero for rows of weight 0."""
        kept = self.in_rows(coordinates)
        if self._root is not None:
            kept = kept * self._root[:, None]
        if self.rows is None:
            return kept
        shape = (*coordinates.shape[:-2], self.n, coordinates.shape[-1])
        full = self.backend.xp.zeros(shape, kept.dtype)
        full[..., self.rows, :] = kept
        return full

    def select(self, dropped: Any) -> Any:
        """Training rows of weight 0, as :meth:`evaluate` takes them."""
        if self.X is not None:
            return self.X[dropped]
        position = self.backend.xp.cumsum(self.sample_weight == 0) - 1
        return self._K_dropped[position[dropped]]

    def constant(self, coordinates: Any) -> Any:
        """What a prediction adds to κ(x, X) @ dual: ȳ − r·c, (…, p)."""
        mean = self.y_mean.astype(self.dtype)
        if self._offset is None:
            shape = (*coordinates.shape[:-2], coordinates.shape[-1])
            return self.backend.xp.zeros(shape, self.dtype) + mean
        return mean - self._offset_of_basis() @ coordinates

    def _offset_of_basis(self) -> Any:
        """r in coordinates, (k,)."""
        raise NotImplementedError

    def _weighted_gram(self, X_new: Any) -> Any:
        """κ(x, X) W^½ at new points, for the kept rows."""
        X_new = self.check_new(X_new)
        if self.X is None:
            K = X_new if self.rows is None else X_new[:, self.rows]
        else:
            K = native_gram(self.backend, X_new, self.kept(self.X), self.kernel)
        return K if self._root is None else K * self._root

    def regularised_gram(self, rows: Any, lam: float) -> Any:
        """K_w + λI of some of the kept rows, computed anew (not for a precomputed kernel)."""
        xp = self.backend.xp
        K = native_gram(self.backend, self.kept(self.X)[rows], None, self.kernel)
        if self._root is not None:
            K *= self._root[rows][:, None]
            K *= self._root[rows][None, :]
        K[xp.arange(len(K)), xp.arange(len(K))] += xp.asarray(lam, K.dtype)
        return K

    def unweighted(self, a: Any) -> Any:
        """W^−½ a for a (…, n, p) at the kept rows."""
        return a if self._root is None else a / self._root[:, None]

    def kept(self, a: Any) -> Any:
        """The rows of positive weight of an array over training rows."""
        return a if self.rows is None else a[self.rows]

    def evaluate(self, X_new: Any, coordinates: Any) -> Any:
        """Predictions (…, m, p) at new points from coordinates (…, k, p).

        ``X_new`` is native; with a precomputed kernel it is K(X_new, X), (m, n).
        """
        lead, (k, p) = coordinates.shape[:-2], coordinates.shape[-2:]
        coordinates = coordinates.reshape(math.prod(lead), k, p)
        dual, constant = self.dual(coordinates), self.constant(coordinates)
        F = evaluate(self.backend, X_new, self.basis, self.kernel, dual, constant)
        return F.reshape(*lead, X_new.shape[0], p)

    def warn_below_rounding(self, lam: Any) -> None:
        """RuntimeWarning where no digit is promised for λ, which is below the rounding of K."""
        smallest = float(np.min(lam))
        single = self.dtype == np.float32
        limit = self.rounding * (10.0 if single else max(10.0, 0.1 * len(self.target)))
        if smallest < limit:
            error = 10.0 * self.rounding / smallest
            warn_caller(
                f"lam={smallest:g} is below the rounding of K in {self.dtype}, {limit:.2g} (its "
                f"norm is {self.scale:.3g}): predictions may have no correct digit (a relative "
                f"error of {min(error, 1.0):.2g}); it is at most 1e-3 from "
                f"lam={1e4 * self.rounding:.2g} on: use a larger lam"
                + (" or float64" if single else ""),
                RuntimeWarning,
            )

    def check_new(self, X_new: Any, name: str = "X") -> Any:
        """New points as a native array with the right number of columns."""
        n_features = self.n if self.X is None else int(self.X.shape[1])
        return check_new(self.backend, X_new, n_features, self.dtype, self.kernel, name)


class Fold:
    """A set S of kept rows that is left out, for leave_out.py; everything in weighted coordinates.

    A correction δ (|S|, p) of the targets in S is pushed once and then used through its
    handle, in whatever form the solver likes best.
    """

    def __init__(self, spectrum: Any, rows: Any) -> None:
        self.spectrum, self.rows = spectrum, rows
        self.q = None if spectrum.q is None else spectrum.q[rows].astype(spectrum.dtype)

    def solver(self, lam: float, filter_: Any) -> Callable[[Any], Any]:
        """r → [(I − A)_SS]⁻¹ r; the filter is that of I − A at λ."""
        raise NotImplementedError

    def push(self, delta: Any) -> Any:
        """A handle of the correction δ."""
        raise NotImplementedError

    def apply(self, filters: list[Any], handles: list[Any]) -> Any:
        """Σ_s f_s(K)_SS δ_s on the complement of q, (|S|, p)."""
        raise NotImplementedError

    def coordinates(self, filters: list[Any], handles: list[Any]) -> Any:
        """Coordinates (k, p) of the target Σ_s f_s(K) E_S δ_s."""
        raise NotImplementedError


def rounding(scale: float, dtype: Any) -> float:
    """Size of an eigenvalue that may be rounding alone, for a matrix K_w of norm ``scale``.

    The one rule for what is rounding, 10 ε ‖K_w‖ of the matrix *before* it is centred: that is
    what its entries, and the eigenvalues after centring, are rounded against.

    * An eigenvalue below −√n times this shows that K is no kernel matrix; a smaller one is 0.
    * An eigenvalue up to this is not known. Solvers that see eigenvalues take it as 0 where λ is
      below this, too; the landmark model raises it to this.
    * λ below 10 times this (in float64 also n/10 times) is warned about: the relative error may
      reach 100 ε ‖K_w‖/λ.
    """
    return 10.0 * float(np.finfo(dtype).eps) * scale


def one_product(product: Callable[[Any], Any], a: Any, xp: Any) -> Any:
    """A product of (k, b) matrices, for all the matrices of an array (…, k, p) at once."""
    lead, (k, p) = a.shape[:-2], a.shape[-2:]
    S = math.prod(lead)
    flat = product(xp.moveaxis(a.reshape(S, k, p), 0, 1).reshape(k, S * p))
    n = flat.shape[0]
    return xp.moveaxis(flat.reshape(n, S, p), 1, 0).reshape(*lead, n, p)


def kernel_diagonal(be: Any, X: Any, kernel: Kernel) -> Any:
    """κ(x, x) of every row, float64."""
    if kernel.pair:
        return ranges.diagonal(be, X, kernel)
    values = [native_gram(be, X[i : i + 1], None, kernel)[0, 0] for i in range(X.shape[0])]
    return be.xp.asarray(values, dtype="float64")


def check_diagonal(diagonal: Any, X: Any, kernel: Kernel, dtype: Any) -> None:
    """ValueError where K over- or underflows ``dtype``, judged by its diagonal.

    Parameters
    ----------
    diagonal : (n,) κ(x, x), of any precision
    X : (n, d) the rows, or None where κ(0, 0) is not all that may be 0
    kernel : Kernel
    dtype : float32 or float64
    """
    info, size = np.finfo(dtype), largest(abs(diagonal))
    wider = ", or use float64" if dtype == np.float32 else ""
    if not size * len(diagonal) <= float(info.max):  # a bound of the largest eigenvalue
        raise ValueError(f"{kernel!r} overflows {dtype} on these rows: scale X down{wider}")
    nothing = size == 0.0 and not (
        X is not None and kernel.definite and largest(abs(X)) > 0.0  # definite: κ(x, x) > 0
    )
    if size < float(info.tiny) and not nothing:
        raise ValueError(f"{kernel!r} underflows {dtype} on these rows: scale X up{wider}")


def check_weighted(size: float, dtype: Any) -> None:
    """ValueError where weights, or the norm of K_w that they lead to, over- or underflow."""
    info = np.finfo(dtype)
    if not float(info.tiny) <= size <= float(info.max) and size != 0.0:
        flow = "underflow" if size < 1.0 else "overflow"
        raise ValueError(
            f"sample_weight times the kernel leads to numbers that {flow} {dtype}: multiply all "
            "weights and lam by one factor, which is the same model"
        )


def _check_symmetric(K: Any, xp: Any) -> None:
    """ValueError unless K equals its transpose up to round-off."""
    blocks = range(0, K.shape[0], _BLOCK)
    scale = max((float(abs(K[start : start + _BLOCK]).max()) for start in blocks), default=0.0)
    tolerance = xp.finfo(K.dtype).eps ** (2 / 3) * scale
    for start in blocks:
        rows = slice(start, start + _BLOCK)
        gap = float(abs(K[rows] - K[:, rows].T).max())
        if gap > tolerance:
            raise ValueError(
                f"K is not symmetric: |K - K^T| reaches {gap:g} where max |K| is {scale:g}; "
                "a kernel is a symmetric function"
            )


def _scale(K: Any, xp: Any) -> float:
    """Bound of the norm of symmetric K: the smaller of those by Frobenius and by row sums."""
    squares, rows = 0.0, 0.0
    for start in range(0, K.shape[0], _BLOCK // 4):
        block = abs(K[start : start + _BLOCK // 4])
        rows = max(rows, float(block.sum(1).max()))
        size = float(block.max())
        if size > 0.0:  # scaled, so that no square over- or underflows
            block /= size
            squares = math.hypot(squares, float(xp.einsum("ij,ij->", block, block)) ** 0.5 * size)
    return min(squares, rows)


def _centre(K: Any, q: Any, shift: float, xp: Any) -> tuple[Any, float]:
    """K ← H K H + s q qᵀ in place, with s = shift · trace/n (or shift, where that is 0).

    With m = Kq: H K H + s qqᵀ = K − q mᵀ − (m − (qᵀm + s) q) qᵀ. Returns m (float64) and s.
    The trace is that of K for a positive shift. For a negative one it is that of H K H, which
    may be far smaller, but at least √ε of that of K: so q mixes with other eigenvectors by √ε,
    and leaves ε of that once they are made orthogonal to it.
    """
    n = K.shape[0]
    qt = q.astype(K.dtype)
    m = K @ qt
    qm = float(q @ m.astype("float64"))
    trace = float(xp.trace(K, dtype="float64"))
    if shift < 0.0:
        trace = max(trace - qm, float(xp.finfo(K.dtype).eps) ** 0.5 * trace)
    s = shift * (trace / n if trace > 0.0 else 1.0)
    left = (m.astype("float64") - (qm + s) * q).astype(K.dtype)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        K[rows] -= qt[rows, None] * m[None, :]
        K[rows] -= left[rows, None] * qt[None, :]
    return m.astype("float64"), s


def check_new(
    be: Any, X_new: Any, n_features: int, dtype: Any, kernel: Kernel, name: str = "X"
) -> Any:
    """New points as a native array (m, n_features) of ``dtype``; ValueError where they are not."""
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
    return X_new


def evaluate(be: Any, X_new: Any, X: Any, kernel: Kernel, dual: Any, constant: Any) -> Any:
    """κ(X_new, X) @ dual + constant for S models at once, K never formed.

    X_new (m, d), X (n, d), dual (S, n, p), constant (S, p) → (S, m, p).
    """
    S, n, p = dual.shape
    check_coefficients(dual, n)
    W = be.xp.ascontiguousarray(be.xp.moveaxis(dual, 0, 1).reshape(n, S * p))
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        F = native_matmul(be, X_new, X, W, kernel) if p else W[:0]
    F = be.xp.moveaxis(F.reshape(X_new.shape[0], S, p), 1, 0) + constant[:, None, :]
    return check_values(be, F, kernel, "predictions")


def check_values(be: Any, F: Any, kernel: Kernel, what: str) -> Any:
    """``F``, values of functions at new samples; ValueError where they overflow."""
    if not bool(be.xp.isfinite(F).all()):
        raise ValueError(
            f"{what} overflow {F.dtype}: {kernel!r} is too large at some of the new samples"
        )
    return F


class NoLimit(ValueError):
    """Infinitely many steps have no limit, or it is not one that the solver can compute."""


def check_limit(d: Any, lam: float, alpha: float) -> None:
    """NoLimit unless the chain with one α converges: |(1 − α) a_k| < 1 for every k.

    Written as −λ < αd and (α − 2)d < λ, which has no cancellation.
    """
    if not bool((alpha * d > -lam).all() and ((alpha - 2.0) * d < lam).all()):
        largest = float(d.max())
        raise NoLimit(
            f"infinitely many steps have no limit at alpha={alpha:g}: it exists only if "
            f"|(1 - alpha) d/(d + lam)| < 1 for every eigenvalue d, that is for alpha between "
            f"{-lam / largest:g} and {2.0 + lam / largest:g} here"
        )


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
