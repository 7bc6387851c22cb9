"""The block Lanczos process: an orthonormal basis of span{t, Kt, K²t, …}, and T = QᵀKQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast._backend import Reference, get_backend
from selfdistill_fast._solvers.eigh import clamp
from selfdistill_fast._solvers.evaluation import one_product
from selfdistill_fast._solvers.krylov.bounds import gains, norms, propagated
from selfdistill_fast._solvers.krylov.memory import CHUNK, WIDTH
from selfdistill_fast._solvers.krylov.operator import KernelProduct
from selfdistill_fast._solvers.krylov.targets import Targets
from selfdistill_fast._solvers.matrix import rounding
from selfdistill_fast._validation import largest

__all__ = ["Lanczos"]

#: loss of length in an orthogonalisation up to which it need not be repeated
_ENOUGH = 0.7


class Lanczos:
    """A run of the process for given targets; it can be continued at any time.

    Attributes
    ----------
    k : int
        Number of vectors so far.
    max_rank : int
        Largest number of vectors of the run.
    done : bool
        Whether the subspace is invariant, so that the run is complete.
    norm : float
        The largest norm of K observed so far.
    next : (b, n) the block to be appended next
    d : (k,) Ritz values
    z : (k, p) rotated targets, in their units
    coupling : (b, k) B Eᵀ S, the coupling of Ritz vectors to ``next``
    """

    def __init__(self, K: KernelProduct, targets: Targets, max_rank: int) -> None:
        xp = K.backend.xp
        self.K, self.backend, self.max_rank = K, K.backend, max_rank
        self._chunks: list[Any] = []
        self._sizes: list[int] = []  # of the blocks
        self._A: list[np.ndarray] = []  # diagonal blocks of T
        self._B: list[np.ndarray] = []  # B[j] couples block j + 1 to block j
        self.norm = K.scale
        self._last: Any = None  # block that was appended last
        self.done = False
        self.k = 0
        #: S with Ritz vectors V = Q S, by k: coordinates may predate the latest continuation
        self.bases: dict[int, Any] = {0: xp.zeros((0, 0))}
        block, coefficients = self._orthonormal(xp.ascontiguousarray(targets.t.T), 0.0)
        if K.q is not None and len(block):
            # a short direction of the targets is orthogonal to q to fewer digits than the targets
            block -= (block @ K.q)[:, None] * K.q
            block, change = self._orthonormal(block, 0.5)
            coefficients = change @ coefficients
        block = self._widened(block)
        missing = xp.zeros((len(block) - len(coefficients), coefficients.shape[1]))
        coefficients = xp.concatenate([coefficients, missing])
        self.next = block
        self._first = self.backend.to_numpy(coefficients)
        self._first[:, targets.scale == 0.0] = 0.0  # not the rounding errors of the others

    @property
    def scale(self) -> float:
        """A bound of the norm of K_w before centring, as observed so far."""
        return max(self.K.scale, self.K.mean_norm, self.norm)

    @property
    def ended(self) -> bool:
        """Whether the run cannot continue."""
        return self.done or self.k + len(self.next) > self.max_rank

    def extend(self, lam: float, goal: np.ndarray, excess: Callable[[], float]) -> None:
        """Take steps of the process until ``excess()`` is at most 1.

        ``excess()`` is evaluated once the residual of the first pure step is within ``goal``, (p,).
        That residual follows from a block LDLᵀ of T, Δ_j = A_j + λ − B_(j−1) Δ_(j−1)⁻¹ B_(j−1)ᵀ:
        the last block of (T + λ)⁻¹ E₁ C₀, times B_m, is ± Π_j B_j Δ_j⁻¹ C₀.
        """
        if len(self.next) == 0:
            self.done = True
        small, residual, delta = Reference(), self._first, None

        def advance(j: int, residual: np.ndarray, delta: Any) -> tuple[np.ndarray, Any]:
            D = self._A[j] + lam * np.eye(len(self._A[j]))
            if j and delta is None:  # λ is below the rounding of T: run to the end
                return residual, None
            if j:
                B = self._B[j - 1]
                D = D - B @ small.cholesky_solve(delta, B.T)
            try:
                L = small.cholesky(0.5 * (D + D.T))
            except LinAlgError:
                self.diagonalise()  # reports the eigenvalue, if it exceeds round-off
                return np.full_like(residual, np.inf), None
            return self._B[j] @ small.cholesky_solve(L, residual), L

        for j in range(len(self._A)):
            residual, delta = advance(j, residual, delta)
        factor = 1.0
        while not self.ended:
            size = np.sqrt(np.square(residual).sum(0))
            if self._A and (size <= factor * goal).all():
                by = excess()
                if by <= 1.0:
                    return
                factor = min(factor, float(np.max(size / np.maximum(goal, 1e-300)))) / min(by, 1e3)
            self._step()
            residual, delta = advance(len(self._A) - 1, residual, delta)

    def bound_by_solves(self, lam: float, n_steps: int) -> np.ndarray:
        """The result of :meth:`_recursion`, (T, p), without eigenvectors of T."""
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
        bounds = gains(lam, n_steps)[:, None, None] * np.stack(sizes)
        return propagated(bounds) * self.K.feature_norm

    def diagonalise(self) -> None:
        """Ritz values, vectors and rotated targets of the basis so far."""
        be, xp = self.backend, self.backend.xp
        k = self.k
        if k in self.bases and k:
            return
        theta, S = be.eigh(xp.asarray(self._projected()))
        # entries stored in float32 can cause negative eigenvalues, whatever the precision of θ
        single = self.K.storage == "float32"
        limit = rounding(self.scale, np.float32 if single else self.K.dtype)
        self.d = clamp(theta, self.K.kernel, xp, limit, self.K.n)
        S = xp.ascontiguousarray(S)
        self.z = S[: len(self._first)].T @ xp.asarray(self._first)
        last = self._sizes[-1] if self._sizes else 0
        coupling = xp.asarray(self._B[-1]) if self._B else xp.zeros((0, 0))
        self.coupling = coupling @ S[k - last :]  # B Eᵀ S, (b, k)
        self.bases[k] = S  # last: from here on the update is complete

    def rows_of(self, coordinates: Any) -> Any:
        """V @ coordinates in float64; (..., k, p) may predate the run's latest continuation."""
        xp, k = self.backend.xp, coordinates.shape[-2]

        def product(a: Any) -> Any:
            a = self.bases[k] @ a.astype("float64")
            rows, at = xp.zeros((self.K.n, a.shape[1])), 0
            for Q in self._chunks_of(k):
                rows += Q.T @ a[at : at + len(Q)]
                at += len(Q)
            return rows

        return one_product(product, coordinates, xp)

    def ritz_coordinates(self, R: Any) -> Any:
        """VᵀR for R (T, n, p)."""
        xp = self.backend.xp
        parts = [xp.tensordot(Q, R, ([1], [1])) for Q in self._chunks_of(self.k)]
        inside = xp.concatenate(parts) if parts else xp.zeros((0, R.shape[0], R.shape[2]))
        return xp.moveaxis(xp.tensordot(self.bases[self.k].T, inside, 1), 0, 1)

    def _step(self) -> None:
        """Append the next block and compute the one after it; if interrupted, change nothing."""
        k, blocks = self.k, len(self._A)
        try:
            self._extend()
        except BaseException:
            self.k = k
            del self._chunks[-(-k // CHUNK) :]
            del self._sizes[blocks:], self._A[blocks:], self._B[blocks:]
            raise

    def _extend(self) -> None:
        be, xp = self.backend, self.backend.xp
        block = self.next
        W = xp.ascontiguousarray(self.K.apply(block.T).T)
        # K couples a block to itself, by A, and to the previous one, by B, which is known
        earlier = [] if self._last is None else [self._last]
        A = be.to_numpy(be.project_out([*earlier, block], W))[-len(block) :]
        A = 0.5 * (A + A.T)
        if not np.isfinite(A).all():
            raise ValueError(
                f"{self.K.kernel!r} overflows {self.K.dtype} on these rows: scale X down"
                + (" or use float64" if self.K.dtype == np.float32 else "")
            )
        self._append(block)
        self._sizes.append(len(block))
        self._A.append(A)
        self.norm = max(self.norm, float(abs(A).sum(1).max()))
        W = self._orthogonalise(W)
        eps = float(np.finfo(np.float64).eps)
        cutoff = 4.0 * eps * self.K.n**0.5 * self.norm
        following, B = self._orthonormal(W, cutoff)
        lengths = norms(B.T[None], be)  # singular values
        if len(following) and lengths.min() < 1e-2 * lengths.max():
            # a short direction of W is orthogonal to fewer digits than W
            following = self._orthogonalise(following)
            following, change = self._orthonormal(following, 0.5)
            B = change @ B
        B = be.to_numpy(B)
        self.norm = max(self.norm, float(abs(B).sum(1).max(initial=0.0)))
        self._B.append(B)
        self._last, self.next, self.done = block, following, len(following) == 0

    def _append(self, block: Any) -> None:
        xp = self.backend.xp
        done = 0
        while done < len(block):
            at = self.k % CHUNK
            if at == 0:
                self._chunks.append(xp.empty((CHUNK, block.shape[1])))
            take = min(CHUNK - at, len(block) - done)
            self._chunks[-1][at : at + take] = block[done : done + take]
            done += take
            self.k += take

    def _orthogonalise(self, W: Any) -> Any:
        """Make W (b, n) orthogonal to all vectors so far and to q, in place, twice if necessary."""
        be = self.backend
        before = self._shortest(W)
        for _ in range(3):
            be.project_out(self._chunks_of(self.k), W)
            if self.K.q is not None:
                W -= (W @ self.K.q)[:, None] * self.K.q
            after = self._shortest(W)
            if after >= _ENOUGH * before:
                break
            before = after
        return W

    def _shortest(self, W: Any) -> float:
        """Length of the shortest row of W (b, n)."""
        return float(norms(W.T[None], self.backend).min()) if W.size else 0.0

    def _orthonormal(self, W: Any, cutoff: float) -> tuple[Any, Any]:
        """Orthonormal rows U (r, n) and coefficients C (r, b) with Wᵀ = Uᵀ C; W (b, n).

        Directions no longer than ``cutoff``, or separated by rounding errors only, are dropped.
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

    def _widened(self, block: Any) -> Any:
        """The block, filled up to ``WIDTH`` vectors with random ones."""
        xp = self.backend.xp
        count = min(WIDTH, self.max_rank) - len(block)
        if len(block) == 0 or count <= 0:
            return block
        random = np.random.default_rng(0).normal(size=(count, self.K.n))
        W = xp.asarray(random)
        for _ in range(2):
            W -= (W @ block.T) @ block
            if self.K.q is not None:
                W -= (W @ self.K.q)[:, None] * self.K.q
        return xp.concatenate([block, self._orthonormal(W, 0.0)[0]])

    def _chunks_of(self, k: int) -> Any:
        """Views of the first k basis vectors, (c, n) each."""
        for i, chunk in enumerate(self._chunks):
            rest = k - i * CHUNK
            if rest <= 0:
                return
            yield chunk[: min(rest, CHUNK)]

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
