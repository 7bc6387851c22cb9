"""Krylov spectra: what K does to these targets, and nothing else.

Every prediction of a chain is h(K) t for a smooth h, so the space spanned by t, Kt, K²t, …
holds it to high accuracy after k ≪ n products with K. With an orthonormal basis Q of that
space from the (block) Lanczos process,

    K Q = Q T + Q₊ B Eᵀ,   T = QᵀKQ = S Θ Sᵀ,

where Q₊ is the next block and E picks the last block of coordinates, the Ritz values Θ and
vectors V = Q S take the place of eigenvalues and eigenvectors: everything is as for a full
spectrum (eigh.py) with d = Θ and z = Vᵀt. This serves every λ, α and number of steps; it holds
f(K)t and never diag f(K), so there is no leave-one-out.

**Certificate.** Let t_s = A^s t, ĉ_s and t̂_s the computed dual coefficients and targets of the
pure steps, and r_s = t̂_(s−1) − (K + λ)ĉ_s their residuals; in exact arithmetic

    r_s = −Q₊ B Eᵀ (T + λ)⁻¹ (T(T + λ)⁻¹)^(s−1) Qᵀt.

Then ĉ_τ − c_τ = (K + λ)⁻¹ (δ_(τ−1) − r_τ) and δ_s = A δ_(s−1) + λ(K + λ)⁻¹ r_s for the error
δ_s of t̂_s. Since |κ(x, X)ᵀe| <= √κ(x, x) ‖K^½ e‖ at every x, with u = d/(d + λ)

    |f̂_τ(x) − f_τ(x)| <= √κ(x, x) Σ_(s<=τ) ‖r_s‖ g_(τ−s),
    g_0 = max √d/(d + λ) = 1/(2√λ),   g_i = max u^(i−½) (1 − u)^(3/2) / √λ  for i >= 1,

and what r_s does later is known more closely for its part in the basis, and bounded for the
rest by its moments rᵀKr and ‖Kr‖². The process stops by the residuals of exact arithmetic and
g; the certificate is that of residuals computed anew with products with K, and so contains
rounding.
"""

from __future__ import annotations

import math
import numbers
import threading
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast.alpha import warn_caller
from selfdistill_fast.backend import Reference, get_backend
from selfdistill_fast.gram import native_half, native_matmul
from selfdistill_fast.kernels import Kernel, Precomputed
from selfdistill_fast.spectrum.base import (
    check_diagonal,
    check_lam,
    check_n_steps,
    kernel_diagonal,
    largest,
    refuse_leave_one_out,
)
from selfdistill_fast.spectrum.eigh import EighSpectrum, _clamped

__all__ = ["KrylovSpectrum", "krylov_bytes"]

#: vectors that a full run is expected to need at most, and allocates at a time
MAX_RANK, _CHUNK = 3000, 64
#: vectors in a block at least: a product with so many takes hardly longer than with one, and
#: random vectors beside the targets find the large eigenvalues, half as many products are left
WIDTH = 4
#: columns of a certificate that are worked on at a time, for each target (of one all steps)
_CERTIFIED = 3
#: how K is kept: half of it, or not at all
STORAGES = ("auto", "float64", "float32", "none")
#: length that a vector may lose in an orthogonalisation that need not be repeated
_ENOUGH = 0.7


class ShortOfTolerance(Exception):
    """A run that was not asked for by name did not reach its tolerance in ``max_rank`` vectors."""


class KrylovSpectrum(EighSpectrum):
    """Ritz values and vectors of K for given targets; made by :func:`~selfdistill_fast.spectrum`.

    Asking for a smaller λ or for more steps than it was made for continues the same run.

    Attributes
    ----------
    tol : float
        Bound asked for of the error of every pure step, relative to max |y| (centred, with
        an intercept) of each target.
    lam_min : float
        The smallest ridge that was asked for so far.
    n_steps : int
        The largest number of steps that was asked for so far.
    certificate_ : (T, p) ndarray
        Bound of the error of each pure step at ``lam_min``, in units of y; see
        :meth:`certificate`.
    max_rank : int
        Vectors that the run may have.
    storage : str
        How K was kept: "float64", "float32" (half of it, either way) or "none".
    """

    max_loo_steps = 0

    def __init__(
        self,
        be: Any,
        X: Any,
        y: Any,
        kernel: Kernel,
        w: Any,
        fit_intercept: bool,
        max_memory: int | None,
        *,
        lam: Any = None,
        lam_min: Any = None,
        n_steps: Any = 6,
        tol: Any = None,
        max_rank: Any = None,
        storage: str = "auto",
        automatic: bool = False,
    ) -> None:
        if lam_min is None and lam is None:
            raise ValueError("solver='krylov' needs lam_min (or lam): its run depends on it")
        smallest = float(np.min(lam if lam_min is None else check_lam(lam_min, batch=False)))
        check_lam(smallest, batch=False, dtype=X.dtype)
        n_steps = check_n_steps(n_steps)
        single = X.dtype == np.float32
        self.tol = check_tol((1e-3 if single else 1e-8) if tol is None else tol)
        if storage not in STORAGES:
            raise ValueError(f"unknown storage {storage!r}; known: {', '.join(STORAGES)}")
        n = X.shape[0] if w is None else int((w > 0).sum())
        p = 1 if y.ndim == 1 else y.shape[1]
        most = n - bool(fit_intercept)
        asked = None if max_rank is None else check_n_steps(max_rank, "max_rank")
        self.max_rank = max(0, min(most, max(MAX_RANK, 4 * p) if asked is None else asked))
        self._budget = int(0.8 * be.available_memory()) if max_memory is None else max_memory
        self.storage = self._choose_storage(be, X, kernel, storage, n, p, smallest)
        sizes = (be, n, X.shape[1], p, X.dtype)
        if asked is None:
            self.max_rank = fitting_rank(self._budget, self.max_rank, *sizes, self.storage, n_steps)
        self._prepare(
            be,
            X,
            y,
            kernel,
            w,
            fit_intercept,
            needed=krylov_bytes(*sizes, self.max_rank, self.storage, n_steps),
            max_memory=self._budget,
            cure="a smaller max_rank",
        )
        self._lock = threading.RLock()  # a run may be continued while others use it
        self._half: Any = None
        self._root64 = None if self._root is None else self._root.astype("float64")[:, None]
        precomputed = isinstance(kernel, Precomputed)
        if precomputed or not kernel.pair:
            self._half = self._half_of_matrix(X)
        else:
            diagonal = kernel_diagonal(be, self.kept(self.X), kernel)
            check_diagonal(diagonal, self.X, kernel, X.dtype)
            self._measure(diagonal)
        self._measure_targets()
        self._start()
        if len(self._next) > self.max_rank:
            if automatic:
                raise ShortOfTolerance
            raise ValueError(
                f"max_rank={self.max_rank} is less than the {len(self._next)} independent targets "
                "that the run begins with; use a larger max_rank"
                + (" or max_memory" if asked is None else "")
                + ", or fewer targets at a time"
            )
        self.lam_min, self.n_steps = smallest, n_steps
        self._certified = (smallest, n_steps)
        self._automatic = automatic
        self._continue()
        self._automatic = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    # ------------------------------------------------------------ products with K
    def _choose_storage(
        self, be: Any, X: Any, kernel: Kernel, storage: str, n: int, p: int, lam: float
    ) -> str:
        """How to keep K: what fits the budget, and what its precision allows."""
        widest = str(X.dtype)
        if storage == "float64" and widest == "float32":
            raise ValueError("storage='float64' needs float64 rows; X is float32")
        if isinstance(kernel, Precomputed) or not kernel.pair:
            if storage == "none":
                raise ValueError(
                    f"{kernel!r} cannot be computed again: storage='none' is not for it"
                )
            return widest if storage == "auto" else storage
        if storage != "auto":
            return storage
        fits = [
            s
            for s in (widest, "float32")
            if krylov_bytes(be, n, X.shape[1], p, X.dtype, min(self.max_rank, 500), s)
            <= self._budget
        ]
        if widest in fits:
            return widest
        # entries rounded to float32 perturb the residual by at most 2⁻²⁴ ‖K‖ ‖c‖, ‖c‖ <= ‖t‖/λ
        size = float(kernel_diagonal(be, X, kernel).max())
        perturbation = 2.0**-24 * n * size / lam / (2.0 * lam**0.5) * (n * size) ** 0.5
        return "float32" if fits and perturbation <= 0.5 * self.tol else "none"

    def _half_of_matrix(self, X: Any) -> Any:
        """Half of a matrix that no backend computes: precomputed, or the caller's function."""
        be, xp = self.backend, self.backend.xp
        K = self._checked_matrix(X, copy=False)
        self._measure(xp.diagonal(K).astype("float64"))
        return be.half_of(K, dtype=self.storage)

    def _measure(self, diagonal: Any) -> None:
        """Scales of K_w from the diagonal of K: its largest entry, and the trace."""
        self._largest_diagonal = largest(diagonal)
        weighted = diagonal if self._root64 is None else diagonal * self._root64[:, 0] ** 2
        self._trace, self._scale_of_K = float(weighted.sum()), largest(weighted)

    def _measure_targets(self) -> None:
        """Scale of each target, and its unit: a power of two, in which the run is made.

        So targets of very different sizes are alike to it, and no square over- or underflows.
        A target that is constant but for the rounding of its mean is 0.
        """
        be, xp = self.backend, self.backend.xp
        scale = be.to_numpy(abs(self.kept(self.Y)).max(0)).astype(np.float64)
        rounding = 8.0 * float(np.finfo(np.float64).eps) * len(self.target) ** 0.5
        constant = scale <= rounding * abs(be.to_numpy(self.y_mean))
        scale[constant] = 0.0
        unit = np.exp2(np.floor(np.log2(np.where(scale > 0.0, scale, 1.0))))
        self._unit, self._scale = np.maximum(unit, 1e-300), scale / np.maximum(unit, 1e-300)
        t = self.target.astype("float64") / xp.asarray(self._unit)
        t[:, xp.asarray(constant)] = 0.0
        if self.q is not None:
            t -= self.q[:, None] * (self.q @ t)
        self._t = t  # what the run is about: centred targets in their units

    def _apply(self, V: Any, *, exactly: bool = False) -> Any:
        """K_w V on the complement of q, for V (n, b) in float64.

        ``exactly``: with the entries of K computed anew where they are kept in float32.
        """
        P = self._product(V, exactly=exactly)
        if self.q is not None:
            P -= self.q[:, None] * (self.q @ P)
        return P

    def _product(self, V: Any, *, exactly: bool = False) -> Any:
        """K_w V, (n, b)."""
        be, xp = self.backend, self.backend.xp
        U = V if self._root64 is None else V * self._root64
        if self._half is not None and not (exactly and self._rounded and self.X is not None):
            P = be.half_matmul(self._half, U)
        else:
            U = xp.ascontiguousarray(U)
            P = native_matmul(be, self.kept(self.X), None, U, self.kernel)
        return P if self._root64 is None else P * self._root64

    @property
    def _rounded(self) -> bool:
        """Whether K is kept with fewer digits than it has."""
        return bool(self.storage == "float32" and self.dtype == np.float64)

    def _keep_matrix(self) -> bool:
        """Compute and keep half of K for many products; whether that was done here."""
        if self._half is not None or self.storage == "none":
            return False
        X = self.kept(self.X)
        self._half = native_half(self.backend, X, self.kernel, dtype=self.storage)
        return True

    # ------------------------------------------------------------ the process
    def _start(self) -> None:
        """First block: an orthonormal basis of the targets."""
        xp = self.backend.xp
        self._chunks: list[Any] = []
        self._sizes: list[int] = []  # of the blocks
        self._A: list[np.ndarray] = []  # diagonal blocks of T
        self._B: list[np.ndarray] = []  # B[j] couples block j + 1 to block j
        self._norm = self.scale = self._scale_of_K  # of K_w, as seen so far
        self._last: Any = None  # block that was appended last
        self._done = False  # an invariant subspace: nothing is left to find
        self.k = 0
        self._bases: dict[int, Any] = {0: xp.zeros((0, 0))}
        block, coefficients = self._orthonormal(xp.ascontiguousarray(self._t.T), 0.0)
        block = self._widened(block)
        missing = xp.zeros((len(block) - len(coefficients), coefficients.shape[1]))
        coefficients = xp.concatenate([coefficients, missing])
        self._next = block
        self._first = self.backend.to_numpy(coefficients)
        self._first[:, self._scale == 0.0] = 0.0  # not the rounding of the others
        self._offset = None
        if self.fit_intercept:
            m = self._product(self.q.astype("float64")[:, None])[:, 0]
            self.scale = max(self.scale, float(xp.sqrt((m * m).sum())))
            self._offset = m / self.total_weight**0.5
            mean_square = float(self.q @ m) / self.total_weight  # ‖mean feature‖²
            self._feature_norm = self._largest_diagonal**0.5 + max(mean_square, 0.0) ** 0.5
        else:
            self._feature_norm = self._largest_diagonal**0.5

    def _widened(self, block: Any) -> Any:
        """The block with random vectors up to ``WIDTH`` of them."""
        xp = self.backend.xp
        count = min(WIDTH, self.max_rank) - len(block)
        if len(block) == 0 or count <= 0:
            return block
        random = np.random.default_rng(0).normal(size=(count, len(self.target)))
        W = xp.asarray(random)
        for _ in range(2):
            W -= (W @ block.T) @ block
            if self.q is not None:
                W -= (W @ self.q)[:, None] * self.q
        return xp.concatenate([block, self._orthonormal(W, 0.0)[0]])

    def _orthonormal(self, W: Any, cutoff: float) -> tuple[Any, Any]:
        """Orthonormal rows U (r, n) and coefficients C (r, b) with Wᵀ = Uᵀ C; W (b, n).

        Directions no longer than ``cutoff``, or that rounding alone separates, are dropped.
        """
        be, xp = self.backend, self.backend.xp
        eps = float(np.finfo(np.float64).eps)
        if len(W) == 1:
            norm = float(xp.sqrt((W[0] * W[0]).sum()))
            if not norm > cutoff:
                return W[:0], xp.zeros((0, 1))
            return W / norm, xp.full((1, 1), norm)
        V, s, G = be.svd(xp.ascontiguousarray(W.T))
        real = s > max(cutoff, 8.0 * eps * W.shape[1] ** 0.5 * largest(s))
        return xp.ascontiguousarray(V[:, real].T), s[real][:, None] * G[real]

    def _orthogonalise(self, W: Any) -> Any:
        """W (b, n) made orthogonal to all vectors so far and to q, in place, twice if need be."""
        be, xp = self.backend, self.backend.xp
        before = float(xp.square(W).sum(1).min()) if W.size else 0.0
        for _ in range(3):
            be.project_out(self._basis_chunks(self.k), W)
            if self.q is not None:
                W -= (W @ self.q)[:, None] * self.q
            after = float(xp.square(W).sum(1).min()) if W.size else 0.0
            if after >= _ENOUGH**2 * before:
                break
            before = after
        return W

    def _basis_chunks(self, k: int) -> Any:
        """Views of the first k basis vectors, (c, n) each."""
        for i, chunk in enumerate(self._chunks):
            rest = k - i * _CHUNK
            if rest <= 0:
                return
            yield chunk[: min(rest, _CHUNK)]

    def _append(self, block: Any) -> None:
        xp = self.backend.xp
        done = 0
        while done < len(block):
            at = self.k % _CHUNK
            if at == 0:
                self._chunks.append(xp.empty((_CHUNK, block.shape[1])))
            take = min(_CHUNK - at, len(block) - done)
            self._chunks[-1][at : at + take] = block[done : done + take]
            done += take
            self.k += take

    def _step(self) -> None:
        """Append the next block and find the one after it; all of it, or nothing."""
        k, blocks = self.k, len(self._A)
        try:
            self._extend()
        except BaseException:
            self.k = k
            del self._chunks[-(-k // _CHUNK) :]
            del self._sizes[blocks:], self._A[blocks:], self._B[blocks:]
            raise

    def _extend(self) -> None:
        be, xp = self.backend, self.backend.xp
        block = self._next
        W = xp.ascontiguousarray(self._apply(block.T).T)
        # K couples a block to itself, by A, and to the last, by B, which is known
        earlier = [] if self._last is None else [self._last]
        A = be.to_numpy(be.project_out([*earlier, block], W))[-len(block) :]
        A = 0.5 * (A + A.T)
        if not np.isfinite(A).all():
            raise ValueError(
                f"{self.kernel!r} overflows {self.dtype} on these rows: scale X down"
                + (" or use float64" if self.dtype == np.float32 else "")
            )
        self._append(block)
        self._sizes.append(len(block))
        self._A.append(A)
        self._norm = max(self._norm, float(abs(A).sum(1).max()))
        W = self._orthogonalise(W)
        eps = float(np.finfo(np.float64).eps)
        cutoff = 4.0 * eps * len(self.target) ** 0.5 * self._norm
        following, B = self._orthonormal(W, cutoff)
        lengths = np.square(be.to_numpy(B)).sum(1)  # singular values, squared
        if len(following) and lengths.min() < 1e-4 * lengths.max():
            # a short direction of W is not orthogonal to as many digits as W is
            following = self._orthogonalise(following)
            following, change = self._orthonormal(following, 0.5)
            B = change @ B
        B = be.to_numpy(B)
        self._norm = max(self._norm, float(abs(B).sum(1).max(initial=0.0)))
        self._B.append(B)
        self._last, self._next, self._done = block, following, len(following) == 0

    def _continue(self) -> None:
        """Go on until the certificate at ``lam_min`` and ``n_steps`` meets ``tol``."""
        kept = False
        try:
            if not self._done and len(self._next):
                kept = self._keep_matrix()
            before = set(self._bases)
            self._run()
            self._diagonalise()
            for k in set(self._bases) - before - {self.k}:  # nobody has seen these
                del self._bases[k]
            self._certify()
        finally:
            if kept:
                self._half = None
        self._warn()

    def _run(self) -> None:
        """Steps of the process; it is stopped by the residual of the first pure step.

        That follows from T = LDLᵀ by blocks, with Δ_j = A_j + λ − B_(j−1) Δ_(j−1)⁻¹ B_(j−1)ᵀ:
        the last block of (T + λ)⁻¹ E₁ C₀, times B_m, is ± Π_j B_j Δ_j⁻¹ C₀.
        """
        if len(self._next) == 0:
            self._done = True
        lam, small = self.lam_min, Reference()
        target = self.tol * self._scale
        goal = target * 2.0 * lam**0.5 / max(self._feature_norm, 1e-300)  # of the residual
        residual = self._first
        delta: Any = None

        def advance(j: int, residual: np.ndarray, delta: Any) -> tuple[np.ndarray, Any]:
            D = self._A[j] + lam * np.eye(len(self._A[j]))
            if j and delta is None:  # λ is below the rounding of T: go on to the end
                return residual, None
            if j:
                B = self._B[j - 1]
                D = D - B @ small.cholesky_solve(delta, B.T)
            try:
                L = small.cholesky(0.5 * (D + D.T))
            except LinAlgError:
                self._diagonalise()  # names the eigenvalue, if it is more than round-off
                return np.full_like(residual, np.inf), None
            return self._B[j] @ small.cholesky_solve(L, residual), L

        for j in range(len(self._A)):
            residual, delta = advance(j, residual, delta)
        factor = 1.0
        while not self._done and self.k + len(self._next) <= self.max_rank:
            size = np.sqrt(np.square(residual).sum(0))
            if self._A and (size <= factor * goal).all():
                bound = self._bound_by_solves(lam, self.n_steps)
                excess = float(np.max(bound / np.maximum(0.8 * target, 1e-300), initial=0.0))
                if excess <= 1.0:
                    return
                factor = min(factor, float(np.max(size / np.maximum(goal, 1e-300)))) / min(
                    excess, 1e3
                )
            self._step()
            residual, delta = advance(len(self._A) - 1, residual, delta)

    def _diagonalise(self) -> None:
        """Ritz values, vectors and rotated targets of the basis so far."""
        be, xp = self.backend, self.backend.xp
        k = self.k
        if k in self._bases and k:
            return
        theta, S = be.eigh(xp.asarray(self._projected()))
        self.scale = max(self.scale, self._norm)
        self.d = _clamped(theta, self.kernel, xp, self.rounding, len(self.target))
        S = xp.ascontiguousarray(S)
        self._bases[k] = S
        self._z = S[: len(self._first)].T @ xp.asarray(self._first)
        self.z = self._z * xp.asarray(self._unit)
        last = self._sizes[-1] if self._sizes else 0
        coupling = xp.asarray(self._B[-1]) if self._B else xp.zeros((0, 0))
        self._coupling = coupling @ S[k - last :]  # B Eᵀ S, (b, k)

    def _bound_by_solves(self, lam: float, n_steps: int) -> np.ndarray:
        """What :meth:`_recursion` says of the last step, (p,), without eigenvectors of T."""
        small = get_backend("cpu")  # blocks of four are faster in NumPy, T in LAPACK
        T = self._projected()
        T[np.diag_indices_from(T)] += lam
        L = small.cholesky(T)
        t = np.zeros((self.k, self._first.shape[1]))
        t[: len(self._first)] = self._first
        sizes = []
        for _ in range(n_steps):
            c = small.cholesky_solve(L, t)
            t = t - lam * c
            sizes.append(np.square(self._B[-1] @ c[self.k - self._sizes[-1] :]).sum(0) ** 0.5)
        bounds = _gains(lam, n_steps)[:, None, None] * np.stack(sizes)
        return _propagated(bounds)[-1] * self._feature_norm

    def _projected(self) -> np.ndarray:
        """T = QᵀKQ, block tridiagonal, (k, k)."""
        T = np.zeros((self.k, self.k))
        at = 0
        for j, A in enumerate(self._A):
            size = len(A)
            T[at : at + size, at : at + size] = A
            following = len(self._B[j])
            if at + size < self.k:
                T[at + size : at + size + following, at : at + size] = self._B[j]
                T[at : at + size, at + size : at + size + following] = self._B[j].T
            at += size
        return T

    def _ensure(self, lam: Any, n_steps: int) -> None:
        """Continue the run where ``lam`` or ``n_steps`` go beyond what it has met."""
        smallest = float(np.min(check_lam(lam, batch=True, dtype=self.dtype)))
        with self._lock:
            met = self.lam_min, self.n_steps
            if smallest >= self.lam_min and n_steps <= self.n_steps:
                return
            self.lam_min = min(smallest, self.lam_min)
            self.n_steps = max(n_steps, self.n_steps)
            try:
                bound = self._expected(self.lam_min, self.n_steps)
                if not (bound <= self.tol * self._scale).all():
                    self._continue()
            except BaseException:  # interrupted: ask again the next time
                self.lam_min, self.n_steps = met
                raise

    # ------------------------------------------------------------ certificate
    def certificate(self, lam: Any, n_steps: int) -> np.ndarray:
        """Bound of the error of each pure step, at every x with κ(x, x) <= max_i κ(x_i, x_i).

        From residuals that are computed anew, with about 2 L T p products with K; see the head
        of this module. The error of a mixed chain is at most Σ_k |c_k| times this.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T

        Returns
        -------
        bound : ndarray of shape (T, p), or (L, T, p) for a batch
            In units of y; for a stationary kernel at every x.
        """
        lam, n_steps = check_lam(lam, batch=True), check_n_steps(n_steps)
        self._ensure(lam, n_steps)
        with self._lock:
            bounds = [self._explicit(float(one), n_steps) for one in lam.reshape(-1)]
        return (np.stack(bounds) if lam.ndim else bounds[0]) * self._unit

    @property
    def certificate_(self) -> np.ndarray:
        """Bound of the error of each pure step at ``lam_min``, (T, p); computed when stale."""
        with self._lock:
            if self._certified != (self.lam_min, self.n_steps):
                self._certify()
            return self._certificate * self._unit

    def _certify(self) -> None:
        """The certificate at ``lam_min``, and from it the floor of rounding."""
        exact = self._recursion(self.lam_min, self.n_steps)
        self._certificate = self._explicit(self.lam_min, self.n_steps)
        self._floor = np.maximum(self._certificate - exact, 0.0)[-1]
        self._certified = (self.lam_min, self.n_steps)

    def _recursion(self, lam: float, n_steps: int) -> np.ndarray:
        """The certificate (T, p) from residuals of exact arithmetic, in the targets' units."""
        filters = self.backend.pure_filters(self.d.astype("float64"), np.array([lam]), n_steps)[0]
        bound = _propagated(_gains(lam, n_steps)[:, None, None] * self._exact_sizes(filters))
        return bound * self._feature_norm

    def _expected(self, lam: float, n_steps: int) -> np.ndarray:
        """What the certificate of the last step is likely to be, (p,), rounding included."""
        growth = 1.5 * (math.log(self._certified[0]) - math.log(lam))
        floor = self._floor * math.exp(min(growth, 600.0))
        return self._recursion(lam, n_steps)[-1] + floor

    def _exact_sizes(self, filters: Any) -> np.ndarray:
        """‖r_s‖ of exact arithmetic, (T, p), for pure filters (T, k)."""
        xp = self.backend.xp
        R = xp.stack([self._coupling @ (f[:, None] * self._z) for f in filters])
        return _norms(R, self.backend)

    def _explicit(self, lam: float, n_steps: int) -> np.ndarray:
        """The certificate (T, p) from residuals with K itself; few targets at a time."""
        filters = self.backend.pure_filters(self.d.astype("float64"), np.array([lam]), n_steps)[0]
        exact = self._exact_sizes(filters)
        count = max(1, _CERTIFIED * self.p // n_steps)
        parts = [slice(at, at + count) for at in range(0, self.p, count)]
        bounds = [self._explicit_of(part, lam, filters, exact[:, part]) for part in parts]
        return np.concatenate(bounds, 1)

    def _explicit_of(
        self, targets: slice, lam: float, filters: Any, exact: np.ndarray
    ) -> np.ndarray:
        """The certificate of some targets; their residuals of exact arithmetic are given."""
        xp, be = self.backend.xp, self.backend
        C = self._rows_of(filters[..., None] * self._z[:, targets])  # (T, n, p)
        T, n, p = C.shape
        dual = xp.ascontiguousarray(xp.moveaxis(C, 1, 0).reshape(n, T * p))
        KC = xp.moveaxis(self._apply(dual, exactly=True).reshape(n, T, p), 1, 0)
        R = xp.empty_like(C)
        t = self._t[:, targets]
        for s in range(T):
            R[s] = t - KC[s] - lam * C[s]
            t = t - lam * C[s]
        sizes = _norms(R, be)
        # what the basis holds of R, in Ritz coordinates, and the rest
        inside = self._ritz_coordinates(R)
        R = R - self._rows_of(inside)
        held = self._propagated_inside(inside, lam)
        rest = _norms(R, be)
        flat = xp.ascontiguousarray(xp.moveaxis(R, 1, 0).reshape(n, T * p))
        KR = xp.moveaxis(self._apply(flat).reshape(n, T, p), 1, 0)
        square = np.maximum(np.square(rest), 1e-300)
        mean = np.maximum(be.to_numpy((R * KR).sum(1)), 0.0) / square
        mean_square = np.square(_norms(KR, be)) / square
        now, later = _gains_of(mean, mean_square, lam)
        contraction = self._trace / (self._trace + lam)
        # for i >= 2 also u² (1 − u)³ u/λ <= (d/λ)² max (1 − u)³ u/λ
        with np.errstate(over="ignore"):  # for the smallest λ the second is no bound
            much_later = np.minimum(
                later * contraction, (27.0 / 256.0 * mean_square / lam) ** 0.5 / lam
            )
        outside = [now, later, *(much_later * contraction ** (i - 2) for i in range(2, T))][:T]
        bounds = np.minimum(held + rest * np.stack(outside), _gains(lam, T)[:, None, None] * sizes)
        if self._rounded and self.X is None:  # ‖ΔK‖ <= 2⁻²⁴ ‖K‖_F, and there is no other K
            lost = 2.0**-24 * self._trace * _norms(C, be)
            bounds = bounds + _gains(lam, T)[:, None, None] * lost
        # rounding may hide as much as it shows; at least that of a product with K, whose
        # entries are off by eps |κ(x_i, X)| |c| with |κ(x, X)|² <= κ ‖K‖, where K is large
        eps, K = float(np.finfo(self.dtype).eps), self._norm
        hidden = np.maximum(sizes - exact, 0.0) / np.maximum(sizes, 1e-300)
        noise = [eps * K / (K + lam)] + [eps * K / (K + lam) * (lam / (K + lam))] * (T - 1)
        bounds = bounds * (1.0 + hidden) + np.array(noise)[:, None, None] * _norms(C, be) * (
            self._largest_diagonal**0.5
        )
        # of κ(x, X)ᵀc; what a step loses its successors do not find again
        rounding = np.maximum.accumulate(2.0 * eps * be.to_numpy(abs(C).max(1)) * K**0.5)
        return (_propagated(bounds) + rounding) * self._feature_norm

    def _propagated_inside(self, u: Any, lam: float) -> np.ndarray:
        """What residuals V u do i = 0, 1, … steps later, (T, T, p), for u (T, k, p).

        ‖K^½(K + λ)⁻¹ h(K) V u‖ with h = 1 for i = 0 and λ(K + λ)⁻¹ A^(i−1) after that. Each
        factor passes V as (K + λ)⁻¹V u = V(Θ + λ)⁻¹u − (K + λ)⁻¹ Q₊BEᵀS (Θ + λ)⁻¹u.
        """
        be = self.backend
        theta = self.d.astype("float64")[:, None]
        a, cap = theta / (theta + lam), 0.5 / lam**0.5

        def leaks(u: Any) -> np.ndarray:
            return _norms(self._coupling @ (u / (theta + lam)), be) * cap

        def size(u: Any) -> np.ndarray:
            return _norms(theta**0.5 / (theta + lam) * u, be) + leaks(u)

        bounds, leaked = [size(u)], np.zeros_like(cap)
        while len(bounds) < len(u):
            leaked = leaked + leaks(u)
            bounds.append(size((1.0 - a) * u) + leaked)
            u = a * u
        return np.stack(bounds)

    def _ritz_coordinates(self, R: Any) -> Any:
        """VᵀR for R (T, n, p)."""
        xp = self.backend.xp
        parts = [xp.tensordot(Q, R, ([1], [1])) for Q in self._basis_chunks(self.k)]
        inside = xp.concatenate(parts) if parts else xp.zeros((0, R.shape[0], R.shape[2]))
        return xp.moveaxis(xp.tensordot(self._bases[self.k].T, inside, 1), 0, 1)

    def _warn(self) -> None:
        """RuntimeWarning where the run ended before its tolerance was met."""
        target = self.tol * self._scale
        bound = self._certificate[-1]
        if (bound <= target).all():
            return
        if self._automatic and not self._done and self.k + len(self._next) > self.max_rank:
            raise ShortOfTolerance
        low, high = math.log(self.lam_min), math.log(max(self.lam_min, self._norm) * 1e12)
        for _ in range(60):
            middle = 0.5 * (low + high)
            met = (self._expected(math.exp(middle), self.n_steps) <= target).all()
            low, high = (low, middle) if met else (middle, high)
        ended = (
            f"the tolerance is below rounding{' of K to float32' if self._rounded else ''}"
            if self._done or self.k + len(self._next) <= self.max_rank
            else f"max_rank={self.max_rank} was reached"
        )
        warn_caller(
            f"solver='krylov' stopped after {self.k} vectors: {ended}; its answers are to "
            f"tol={self.tol:g} only for lam >= {math.exp(high):.3g}, and at "
            f"lam={self.lam_min:g} to {float((bound * self._unit).max()):.2g}; use a larger "
            f"tol or max_rank, {'another storage, ' if self._rounded else ''}or solver='eigh'",
            RuntimeWarning,
        )

    # ------------------------------------------------------------ the protocol
    def _rows_of(self, coordinates: Any) -> Any:
        """V @ coordinates in float64; (..., k, p) may be from before the run went on."""
        xp = self.backend.xp
        lead, (k, p) = coordinates.shape[:-2], coordinates.shape[-2:]
        S = math.prod(lead)
        flat = xp.moveaxis(coordinates.reshape(S, k, p), 0, 1).reshape(k, S * p)
        flat = self._bases[k] @ flat.astype("float64")
        product = xp.zeros((len(self.target), S * p))
        at = 0
        for Q in self._basis_chunks(k):
            product += Q.T @ flat[at : at + len(Q)]
            at += len(Q)
        n = len(product)
        return xp.moveaxis(product.reshape(n, S, p), 1, 0).reshape(*lead, n, p)

    @property
    def V(self) -> Any:
        """Ritz vectors, (n, k); formed when it is asked for."""
        with self._lock:
            return self._rows_of(self.backend.xp.eye(self.k)).astype(self.dtype)

    def in_rows(self, coordinates: Any) -> Any:
        """V @ coordinates for coordinates (..., k, p), one product for all."""
        return self._rows_of(coordinates).astype(self.dtype)

    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k): κ(x, X) W^½ V, centred with an intercept.

        Parameters
        ----------
        X_new : array_like of shape (m, d)
            With a precomputed kernel K(X_new, X), (m, n).
        """
        X_new = self.check_new(X_new)
        V = V_kept = self.V
        if self._root is not None:
            V = V * self._root[:, None]
        if self.X is None:
            P = (X_new if self.rows is None else X_new[:, self.rows]) @ V
        else:
            V = self.backend.xp.ascontiguousarray(V)
            P = native_matmul(self.backend, X_new, self.kept(self.X), V, self.kernel)
        return P if self._offset is None else P - V_kept.T @ self._offset.astype(self.dtype)

    def constant(self, coordinates: Any) -> Any:
        """What a prediction adds to κ(x, X) @ dual: ȳ − r·c, (…, p)."""
        mean = self.y_mean.astype(self.dtype)
        if self._offset is None:
            shape = (*coordinates.shape[:-2], coordinates.shape[-1])
            return self.backend.xp.zeros(shape, self.dtype) + mean
        r = self.backend.xp.tensordot(self._offset, self._rows_of(coordinates), ([0], [-2]))
        return mean - r.astype(self.dtype)

    def pure_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """As for a full spectrum; a smaller λ, or more steps, continue the run."""
        with self._lock:
            self._ensure(lam if lam_steps is None else lam_steps, check_n_steps(n_steps))
            return super().pure_filters(lam, n_steps, lam_steps)

    def pure_steps(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """As for a full spectrum; a smaller λ, or more steps, continue the run."""
        with self._lock:  # filters and z of the same run, whoever continues it
            return super().pure_steps(lam, n_steps, lam_steps)

    def shrinkage(self, C: Any, lam: Any, lam_steps: Any) -> Any:
        """As for a full spectrum, but on Ritz values."""
        with self._lock:
            self._ensure(lam if lam_steps is None else lam_steps, len(C))
            return super().shrinkage(C, lam, lam_steps)

    def limit(self, lam: float, alpha: float) -> Any:
        """As for a full spectrum: one step under the ridge λ/α."""
        with self._lock:
            if alpha > 0.0:  # λ is asked for with it: continued, and warned, once
                self._ensure(min(lam, lam / alpha), self.n_steps)
            return super().limit(lam, alpha)

    def warn_below_rounding(self, lam: Any) -> None:
        """Nothing: the certificate has rounding in it, and warns."""

    def check_leave_one_out(self) -> None:
        """Always a ValueError: this spectrum holds f(K)y, never diag f(K)."""
        refuse_leave_one_out("krylov")

    def diag_powers(self, lam: Any, n_steps: int) -> Any:
        """Not available: see :meth:`check_leave_one_out`."""
        self.check_leave_one_out()

    def diagonals(self, filters: Any) -> Any:
        """Not available: see :meth:`check_leave_one_out`."""
        self.check_leave_one_out()

    def fold(self, rows: Any) -> Any:
        """Not available: see :meth:`check_leave_one_out`."""
        self.check_leave_one_out()


def _gains(lam: float, n_steps: int) -> np.ndarray:
    """g_0, g_1, … of the head of this module, (T,): what an error of i steps ago can do."""
    i = np.arange(1, n_steps)
    u = (2.0 * i - 1.0) / (2.0 * i + 2.0)
    return np.concatenate([[0.5], u ** (i - 0.5) * (1.0 - u) ** 1.5]) / lam**0.5


def _gains_of(
    mean: np.ndarray, mean_square: np.ndarray, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of ‖K^½ (K + λ)⁻¹ r‖/‖r‖, and with λ(K + λ)⁻¹ too, from two moments of r.

    These are the mean rᵀKr/‖r‖² and mean square ‖Kr‖²/‖r‖². Where the mean is below λ by
    Jensen's inequality; above it by Cantelli's, which limits how much of r lies below half the
    mean (at least λ), with the largest possible value there.
    """
    a = np.minimum(mean, lam)
    below = np.sqrt(a) / (a + lam)
    half = np.maximum(0.5 * mean, lam)
    variance = np.maximum(mean_square - mean**2, 0.0)
    share = variance / np.maximum(variance + np.maximum(mean - half, 0.0) ** 2, 1e-300)
    at_half = half**0.5 / (half + lam)  # and no square of λ, which may overflow
    now = np.sqrt(0.25 / lam * share + at_half**2)
    later = np.sqrt(27.0 / 256.0 / lam * share + (at_half * (lam / (half + lam))) ** 2)
    above = mean > half
    return (
        np.minimum(below, np.where(above, now, np.inf)),
        np.minimum(below, np.where(above, later, np.inf)),
    )


def _norms(R: Any, be: Any) -> np.ndarray:
    """‖R_sj‖, (T, p), for R (T, n, p)."""
    return be.to_numpy(be.xp.sqrt(be.xp.square(R).sum(1)))


def _propagated(bounds: np.ndarray) -> np.ndarray:
    """Σ_(s<=τ) of what r_s does τ − s steps later, (T, p), from bounds (T, T, p) by i and s."""
    steps = range(bounds.shape[1])
    return np.stack([sum(bounds[t - s, s] for s in range(t + 1)) for t in steps])


def krylov_bytes(
    be: Any, n: int, d: int, p: int, dtype: Any, rank: int, storage: str, n_steps: int = 6
) -> int:
    """Peak bytes of a run of ``rank`` vectors: half of K, the basis, and blocks of work."""
    itemsize = np.dtype(dtype).itemsize
    rank = min(rank, n)
    basis = -(-rank // _CHUNK) * _CHUNK * n * 8
    certified = max(_CERTIFIED * p, n_steps)
    blocks = 8 * n * (12 * p + 10 * certified + 16)  # of the process; of the certificate
    matrix = be.half_bytes(n, storage) if storage != "none" else 0
    return matrix + basis + blocks + 4 * n * d * itemsize + 4 * rank * rank * 8


def fitting_rank(
    budget: int,
    most: int,
    be: Any,
    n: int,
    d: int,
    p: int,
    dtype: Any,
    storage: str,
    n_steps: int,
) -> int:
    """The largest rank up to ``most`` whose :func:`krylov_bytes` fit, but at least a chunk."""
    low, high = min(_CHUNK, most), most
    while low < high:
        middle = (low + high + 1) // 2
        if krylov_bytes(be, n, d, p, dtype, middle, storage, n_steps) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def check_tol(tol: Any) -> float:
    """``tol`` as a float; ValueError unless it is between 0 and 1."""
    if isinstance(tol, bool) or not isinstance(tol, numbers.Real) or not 0.0 < float(tol) < 1.0:
        raise ValueError(f"tol must be a number between 0 and 1, got {tol!r}")
    return float(tol)
