"""One λ, no eigenvectors: a Cholesky factor of K + λI, in the buffer of K.

Let M = (K_w + λI)⁻¹ (weights and intercept as in eigh.py). Every function of K that a chain
with this one λ needs is a polynomial in x = λM, since A = I − x:

    pure steps      M A^(τ−1) = (1/λ) x (1 − x)^(τ−1),
    leave-one-out   (I − A) A^(τ−1) = x (1 − x)^(τ−1).

A filter is stored as its coefficients of 1, x, …, x^T. The steps themselves are triangular
solves: with c = M t the next targets A t = t − λc cost nothing more. Diagonals need M itself,
which replaces the factor when first needed. diag M and diag M² (row norms) cost n³ flops in
total and serve two steps; M² in row blocks costs 2n³ more and serves four.

With an intercept, the eigenvector q of H K_w H is moved to the eigenvalue σ = trace(K)/n, which
keeps the matrix well conditioned. Its share f(ξ) q qᵀ, ξ = λ/(λ + σ), is subtracted from
diagonals and blocks.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from numpy.linalg import LinAlgError

from selfdistill_fast._solvers.base import Spectrum
from selfdistill_fast._solvers.evaluation import NoLimit, check_values
from selfdistill_fast._solvers.fold import Fold
from selfdistill_fast._solvers.penalties import Penalties
from selfdistill_fast._solvers.problem import Problem, Rates, Request, TrainingSet, Unsuitable, Work
from selfdistill_fast._validation import (
    check_coefficients,
    check_lam,
    warn_caller,
)

__all__ = ["CholeskySpectrum"]

#: largest λ/d_max at which 1 − x keeps enough digits
MAX_RIDGE = 10.0
#: rows of K or M² processed at a time
_BLOCK = 256
#: steps whose diagonals come from M and M² alone
MAX_LOO_STEPS = 4


class CholeskySpectrum(Spectrum):
    """Factorised training set for one λ; made by :func:`~selfdistill_fast.spectrum`.

    Coordinates are the dual coefficients of the weighted problem, k = n.
    """

    name = "cholesky"
    max_loo_steps = MAX_LOO_STEPS
    one_lam = True
    successors = ("eigh",)  # keeps all digits, and serves λ below round-off

    @classmethod
    def serves(cls, problem: Problem) -> str | None:
        """One λ, and kernels that are positive semi-definite by construction."""
        if not problem.one_lam:
            return "serves one lam"
        return None if problem.kernel.definite else "cannot see a negative eigenvalue above -lam"

    @classmethod
    def cost(cls, problem: Problem, rates: Rates) -> Work:
        """n³/3 flops, 4 n³ with leave-one-out; K in the memory of its factor."""
        n, n3, flops = problem.n, float(problem.n) ** 3, 1.0 / 3.0
        if problem.leave_one_out:
            flops = 4.0 if problem.n_steps > 2 else 4.0 / 3.0
        flops = n3 * flops
        return Work(
            bytes=problem.backend.cholesky_bytes(n, problem.dtype) + problem.rows_bytes,
            flops=flops,
            seconds=problem.matrix_seconds(rates)
            + n3 / 3.0 * rates.cholesky
            + (flops - n3 / 3.0) * rates.gemm
            + 4.0 * n * n * problem.n_steps * problem.p * rates.gemm,
        )

    def __init__(self, training: TrainingSet, request: Request) -> None:
        be, xp, automatic = training.backend, training.backend.xp, request.automatic
        if request.lam is None or request.lam.ndim:
            raise ValueError("solver='cholesky' factorises K + lam I: it needs one scalar lam")
        self.lam = lam = float(check_lam(request.lam, batch=False, dtype=training.dtype))
        needed = be.cholesky_bytes(training.n_kept, training.dtype)
        self._prepare(training, request, needed=needed)
        K = self._kernel_matrix(training.X, shift=1.0)  # q among the other eigenvalues
        self.k = K.shape[0]
        if automatic and lam < self.rounding:
            raise Unsuitable
        unit = float(xp.trace(K, dtype="float64")) / max(self.k, 1) or 1.0
        squares = 0.0  # ‖K‖_F² / unit²: squares of K itself may overflow
        for start in range(0, self.k, _BLOCK):
            rows = K[start : start + _BLOCK].astype("float64") / unit
            squares += float(xp.square(rows).sum())
        if lam / unit * self.k > MAX_RIDGE * squares:  # ‖K‖_F² / trace is below d_max
            if automatic:
                raise Unsuitable
            warn_caller(
                f"lam={lam:g} is more than {MAX_RIDGE:g} times the largest eigenvalue of K: "
                "solver='cholesky' computes the smoother as I - lam (K + lam I)^-1 and loses "
                "digits of small predictions; use solver='eigh'",
                RuntimeWarning,
            )
        K[xp.arange(self.k), xp.arange(self.k)] += xp.asarray(lam, K.dtype)
        try:
            self._factor = be.cholesky(K)
        except LinAlgError:
            if automatic:
                raise Unsuitable from None
            raise LinAlgError(
                f"K + lam I is not positive definite at lam={lam:g}: K is not positive "
                "semi-definite, or lam is below its round-off; use a larger lam, or "
                "solver='eigh', which reports the eigenvalue"
            ) from None
        self._inverse: Any = None
        self._powers: list[Any] = []
        self._lock = threading.RLock()  # M replaces the factor while other threads may be solving

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    # ------------------------------------------------------------ new points
    def project(self, X_new: Any) -> Any:
        """Basis functions at new points: κ(x, X) W^½, centred with an intercept, (m, n)."""
        P = self._weighted_gram(X_new)
        P = P if self._offset is None else P - self._offset_of_basis()
        return check_values(self.backend, P, self.kernel, "projections")

    def _offset_of_basis(self) -> Any:
        return self._offset.astype(self.dtype)

    def in_rows(self, coordinates: Any) -> Any:
        """The coordinates themselves: they are weighted dual coefficients."""
        return coordinates

    # --------------------------------------------------------------- filters
    def _steps(self, penalties: Penalties) -> Any:
        """Coordinates M A^(τ−1) t of the pure steps, (T, n, p), for the λ of the factorisation."""
        self._check(penalties)
        steps = self.backend.xp.empty((penalties.n_steps, *self.target.shape), self.dtype)
        t = self.target
        for step in range(len(steps)):
            steps[step] = self._solve(t)
            t = t - self.lam * steps[step]
        return check_coefficients(steps)

    def _pure(self, penalties: Penalties) -> Any:
        """Filters M A^(τ−1) as coefficients of 1, x, …, x^T: (T, T + 1)."""
        return self._residual(penalties) / self.lam

    def _residual(self, penalties: Penalties) -> Any:
        """Filters (I − A) A^(τ−1) = x (1 − x)^(τ−1) as coefficients of 1, x, …, x^T."""
        self._check(penalties)
        n_steps = penalties.n_steps
        filters = self.backend.xp.zeros((n_steps, n_steps + 1), self.dtype)
        filters[:, 1:] = self._powers_of_smoother(n_steps)[:-1, :-1]
        return filters

    def _smoother(self, penalties: Penalties) -> Any:
        """Filters A^τ = (1 − x)^τ as coefficients of 1, x, …, x^T: (T, T + 1).

        Without eigenvalues A is available only as I − x. Where regularisation is so strong that
        A is near 0, predictions are accurate relative to y, not to themselves.
        """
        self._check(penalties)
        return self._powers_of_smoother(penalties.n_steps)[1:]

    def _powers_of_smoother(self, n_steps: int) -> Any:
        """(1 − x)^t for t = 0..T as coefficients of 1, x, …, x^T."""
        powers = range(n_steps + 1)
        rows = [[(-1.0) ** p * math.comb(t, p) for p in powers] for t in powers]
        return self.backend.xp.asarray(rows, self.dtype)

    def limit(self, lam: float, alpha: float) -> Any:
        """Coordinates α (αK + λ)⁻¹ t of infinitely many steps, eq. (17), (n, p).

        By conjugate gradients on (α + (1 − α) x) c = α M t, whose eigenvalues
        (αd + λ)/(d + λ) lie between min(α, 1) and max(α, 1).

        Raises
        ------
        NoLimit
            α is outside [0, 2], where the limit depends on eigenvalues that are not known here;
            or α is so small that the iteration does not converge to 1e-10.
        """
        self._check(Penalties.of(lam, 1))
        xp = self.backend.xp
        if not 0.0 <= alpha <= 2.0:
            raise NoLimit(
                f"whether infinitely many steps have a limit at alpha={alpha:g} depends on the "
                "eigenvalues, and solver='cholesky' does not compute them; use solver='eigh'"
            )
        b = self._solve(self.target)
        size = abs(b).max(0)
        size[size == 0.0] = 1.0  # squares must not underflow
        b = b / size

        def image(c: Any) -> Any:
            return alpha * c + (1.0 - alpha) * self._product(c)

        eps, tiny = float(xp.finfo(self.dtype).eps), float(xp.finfo(self.dtype).tiny)
        c = xp.zeros_like(b)
        r, search = b.copy(), b.copy()
        rr = first = (r * r).sum(0)
        for _ in range(self.k + 10 if alpha > 0.0 else 0):
            if not bool((rr > first * eps**2).any()):
                break
            step = image(search)
            length = rr / xp.maximum((search * step).sum(0), tiny)
            c += length * search
            r -= length * step
            previous, rr = rr, (r * r).sum(0)
            search = r + rr / xp.maximum(previous, tiny) * search
        if alpha > 0.0:
            rest = b - image(c)
            error = float(((rest * rest).sum(0) / xp.maximum(first, tiny)).max()) ** 0.5
            if not error <= min(alpha, 1.0) * max(1e-10, 1e3 * eps):
                raise NoLimit(
                    f"the limit at alpha={alpha:g} is too ill-conditioned for solver='cholesky'; "
                    "use solver='eigh', or lam/alpha with n_steps=1, which is the same model"
                )
        return alpha * c * size

    # --------------------------------------------------------- training rows
    def diagonals(self, filters: Any) -> Any:
        """Diagonals of Σ_j f_j x^j at the retained training rows: filters (…, T + 1) → (…, n)."""
        count = filters.shape[-1] - 1
        self.check_leave_one_out(count)
        return filters @ self.backend.xp.stack(self._diagonal_powers(count))

    def applied(self, filters: Any) -> Any:
        """Filtered targets at the retained training rows: filters (…, T + 1) → (…, n, p)."""
        xp = self.backend.xp
        powers = [self.target]
        while len(powers) < filters.shape[-1]:
            powers.append(self._product(powers[-1]))
        return self.unweighted(xp.tensordot(filters, xp.stack(powers), 1))

    def fold(self, rows: Any) -> Fold:
        """A set S of retained rows to leave out."""
        return _CholeskyFold(self, rows)

    # --------------------------------------------------------------- helpers
    @property
    def _xi(self) -> float:
        """x on the shifted eigenvector q."""
        return self.lam / (self.lam + self.shift)

    def _check(self, penalties: Penalties) -> None:
        if penalties.scheduled or not (penalties.values == self.lam).all():
            raise ValueError(
                f"solver='cholesky' has factorised lam={self.lam:g} only; requested: "
                f"{'a schedule' if penalties.scheduled else penalties.values}. Use solver='eigh', "
                "which serves every lam"
            )
        if penalties.is_batch:
            raise ValueError("solver='cholesky' serves one scalar lam, not a batch; use 'eigh'")

    def _solve(self, t: Any) -> Any:
        """M t, from the factor or, once M has replaced it, from M."""
        with self._lock:
            if self._inverse is None:
                return self.backend.cholesky_solve(self._factor, t)
        return self._inverse @ t

    def _product(self, t: Any) -> Any:
        """x t = λM t; M t alone may underflow where K is large and a column of t small."""
        size = abs(t).max(0)
        size[size == 0.0] = 1.0
        return (self.lam * self._solve(t / size)) * size

    def _explicit_inverse(self) -> Any:
        """M, in the buffer of the factor."""
        with self._lock:
            if self._inverse is None:
                self._inverse, self._factor = self.backend.cholesky_inverse(self._factor), None
            return self._inverse

    def _diagonal_powers(self, count: int) -> list[Any]:
        """diag 1, diag x, …, diag x^count on the complement of q; computed once."""
        xp = self.backend.xp
        powers_known = self._powers
        if len(powers_known) <= count:
            M = self._explicit_inverse()
            # all powers at once: M and its row norms, and perhaps M² in row blocks
            powers = xp.empty((3 if count <= 2 else 5, self.k), self.dtype)
            powers[0] = 1.0
            powers[1] = xp.diagonal(M) * self.lam
            for start in range(0, self.k, _BLOCK):
                rows = slice(start, start + _BLOCK)
                x = M[rows] * self.lam  # at most 1, however large K is
                powers[2, rows] = xp.einsum("ij,ij->i", x, x)
                if count > 2:
                    squared = x @ M * self.lam
                    powers[3, rows] = xp.einsum("ij,ij->i", squared, x)
                    powers[4, rows] = xp.einsum("ij,ij->i", squared, squared)
            if self.q is not None:
                for power in range(len(powers)):
                    powers[power] -= (self.q**2).astype(self.dtype) * self._xi**power
            self._powers = powers_known = list(powers)
        return powers_known[: count + 1]


class _CholeskyFold(Fold):
    """Blocks of polynomials in x; a correction is stored as E_S δ, made orthogonal to q."""

    spectrum: CholeskySpectrum

    def solver(self, lam: float, filter_: Any) -> Callable[[Any], Any]:
        """By factorising the block x_SS, taken from M."""
        s, be = self.spectrum, self.spectrum.backend
        block = s.lam * s._explicit_inverse()[self.rows][:, self.rows]
        if self.q is not None:
            block = block - s._xi * self.q[:, None] * self.q[None, :]
        L = be.cholesky(block)
        return lambda r: be.cholesky_solve(L, r)

    def push(self, delta: Any) -> Any:
        """E_S δ, (n, p)."""
        s = self.spectrum
        full = s.backend.xp.zeros((s.k, delta.shape[1]), s.dtype)
        full[self.rows] = delta
        if s.q is not None:
            q = s.q.astype(s.dtype)
            full -= q[:, None] * (q @ full)
        return full

    def apply(self, filters: list[Any], handles: list[Any]) -> Any:
        """Rows S of Σ_s f_s(x) E_S δ_s."""
        return self.coordinates(filters, handles)[self.rows]

    def coordinates(self, filters: list[Any], handles: list[Any]) -> Any:
        """Σ_s f_s(x) E_S δ_s by Horner's rule, all corrections at once."""
        s = self.spectrum
        result = 0.0 * handles[0]
        for power in reversed(range(len(filters[0]))):
            result = s._product(result)
            for f, h in zip(filters, handles, strict=True):
                result = result + f[power] * h
        return result
