"""Nyström spectra: kernel ridge regression on the functions κ(·, L) of m landmark rows L.

With the pivoted Cholesky factor K_LL = RᵀR, cut where its pivots fall below round-off, the
landmark model is ridge regression on the features φ(x) = κ(x, L) R⁻¹: the kernel is replaced
by φ(x)·φ(z). With weights W and an intercept (base.py), and the thin singular value
decomposition

    Φ = H W^½ φ(X) = V D^½ Gᵀ,

everything is as for a full spectrum, with k <= m eigenvalues instead of n, and a complement of
V (and q) where the model's kernel matrix is zero: A = V a Vᵀ there, and I − A is the identity
outside of V. A filter is held as its values on the eigenvalues and, last, on that complement:
(k + 1,). project(x) = φ(x) G D^½, centred.

Leave-one-out and leave-fold-out are exact for this model with its landmarks held fixed: a
row that is left out of the fit may still be a landmark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from selfdistill_fast.gram import native_gram, native_matmul
from selfdistill_fast.kernels import Kernel
from selfdistill_fast.spectrum.base import Fold, check_n_steps, largest
from selfdistill_fast.spectrum.eigh import EighSpectrum

__all__ = ["NystromSpectrum"]

SAMPLINGS = ("rpcholesky", "uniform")

#: landmarks that are drawn at a time
_BATCH = 64


class NystromSpectrum(EighSpectrum):
    """Spectrum of a landmark model; made by :func:`~selfdistill_fast.spectrum`.

    Attributes
    ----------
    landmarks : (m,) indices of the landmark rows
    """

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
        n_landmarks: Any = None,
        sampling: str = "rpcholesky",
        random_state: Any = None,
    ) -> None:
        xp = be.xp
        m = check_n_steps(1000 if n_landmarks is None else n_landmarks, "n_landmarks")
        m = min(m, X.shape[0])
        if sampling not in SAMPLINGS:
            raise ValueError(f"unknown sampling {sampling!r}; known: {', '.join(SAMPLINGS)}")
        self._prepare(
            be,
            X,
            y,
            kernel,
            w,
            fit_intercept,
            # Φ, its copy inside the decomposition and V, and a few m²
            needed=(3 * X.shape[0] + 8 * m) * m * X.dtype.itemsize,
            max_memory=max_memory,
            cure="fewer landmarks (n_landmarks)",
        )
        rows = self.kept(X)
        random = np.random.default_rng(random_state)
        m = min(m, rows.shape[0])
        if sampling == "uniform":
            chosen = xp.asarray(random.permutation(rows.shape[0])[:m])
        else:
            chosen = _rpcholesky(be, rows, kernel, m, random)
        K = native_gram(be, rows[chosen], None, kernel)
        order, R = _pivoted_cholesky(K, xp)
        chosen = chosen[order]
        self.landmarks = chosen if self.rows is None else self.rows[chosen]
        self.basis = rows[chosen]
        # φ(x) = κ(x, L) R⁻¹; the inverse of a triangle of pivots above round-off
        inverse = be.triangular_solve(R, xp.eye(R.shape[0], dtype=R.dtype), lower=False)
        features = native_matmul(be, rows, self.basis, inverse, kernel)
        if self._root is not None:
            features *= self._root[:, None]
        mean = None
        if self.q is not None:
            qt = self.q.astype(features.dtype)
            mean = qt @ features
            features -= qt[:, None] * mean[None, :]
        V, singular, G = be.svd(features)
        del features
        real = singular > len(singular) * float(xp.finfo(V.dtype).eps) * largest(singular)
        self.V, singular = xp.ascontiguousarray(V[:, real]), singular[real]
        self.d = (singular.astype("float64") ** 2).astype(V.dtype)
        self.k = int(self.d.shape[0])
        self.z = self.V.T @ self.target
        self._map = inverse @ G[real].T * singular  # project(x) = κ(x, L) @ _map, uncentred
        self._shift = None
        if mean is not None:
            self._shift = (mean @ G[real].T) * singular / self.total_weight**0.5
        rest = 1.0 - (self.V.astype("float64") ** 2).sum(1)
        if self.q is not None:
            rest -= self.q**2
        self._complement = xp.maximum(rest, 0.0).astype(V.dtype)
        self._perpendicular = self.target - self.V @ self.z

    # ------------------------------------------------------------ new points
    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k): φ(x) G D^½, centred with an intercept.

        Parameters
        ----------
        X_new : array_like of shape (m, d)
        """
        P = native_matmul(self.backend, self.check_new(X_new), self.basis, self._map, self.kernel)
        return P if self._shift is None else P - self._shift

    def dual(self, coordinates: Any) -> Any:
        """Dual coefficients of the landmarks, (…, m, p)."""
        return self._map @ coordinates

    def constant(self, coordinates: Any) -> Any:
        """What a prediction adds to κ(x, L) @ dual, (…, p)."""
        shape = (*coordinates.shape[:-2], coordinates.shape[-1])
        mean = self.backend.xp.zeros(shape, self.dtype) + self.y_mean.astype(self.dtype)
        return mean if self._shift is None else mean - self._shift @ coordinates

    # ------------------------------------------- filters, with the complement
    def residual_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """As for a full spectrum; on the complement 1 for I − A itself and 0 for all others."""
        filters = super().residual_filters(lam, n_steps, lam_steps)
        xp = self.backend.xp
        rest = xp.zeros((*filters.shape[:-1], 1), filters.dtype)
        if lam_steps is None:
            rest[..., 0, :] = 1.0
        else:
            rest[xp.arange(n_steps), xp.arange(n_steps)] = 1.0
        return xp.concatenate([filters, rest], -1)

    def smoother_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """As for a full spectrum; 0 on the complement."""
        filters = super().smoother_filters(lam, n_steps, lam_steps)
        xp = self.backend.xp
        return xp.concatenate([filters, xp.zeros((*filters.shape[:-1], 1), filters.dtype)], -1)

    def diag_powers(self, lam: Any, n_steps: int) -> Any:
        """diag(A^τ) (+ q² with an intercept) of the landmark model; as for a full spectrum."""
        powers = self.diagonals(self.smoother_filters(lam, n_steps))
        return powers if self.q is None else powers + (self.q**2).astype(self.dtype)

    def diagonals(self, filters: Any) -> Any:
        """Diagonals at the kept training rows: filters (…, k + 1) → (…, n)."""
        return super().diagonals(filters[..., :-1]) + filters[..., -1:] * self._complement

    def applied(self, filters: Any) -> Any:
        """Filtered targets at the kept training rows: filters (…, k + 1) → (…, n, p)."""
        outside = filters[..., -1:, None] * self._perpendicular
        return super().applied(filters[..., :-1]) + self.unweighted(outside)

    def fold(self, rows: Any) -> Fold:
        """A set S of kept rows to leave out."""
        return _NystromFold(self, rows)


class _NystromFold(Fold):
    """Blocks V_S f V_Sᵀ + f(0) (I − V_S V_Sᵀ − q_S q_Sᵀ); a correction is held with V_Sᵀ δ."""

    def __init__(self, spectrum: NystromSpectrum, rows: Any) -> None:
        super().__init__(spectrum, rows)
        self.V = spectrum.V[rows]

    def solver(self, lam: float, filter_: Any) -> Callable[[Any], Any]:
        """By a factor of the block."""
        be, xp = self.spectrum.backend, self.spectrum.backend.xp
        block = (self.V * (filter_[:-1] - filter_[-1])) @ self.V.T
        block[xp.arange(len(block)), xp.arange(len(block))] += filter_[-1]
        if self.q is not None:
            block -= filter_[-1] * self.q[:, None] * self.q[None, :]
        L = be.cholesky(block)
        return lambda r: be.cholesky_solve(L, r)

    def push(self, delta: Any) -> Any:
        """(V_Sᵀ δ, δ)."""
        return self.V.T @ delta, delta

    def apply(self, filters: list[Any], handles: list[Any]) -> Any:
        """Σ_s f_s(K)_SS δ_s on the complement of q."""
        result = 0.0 * handles[0][1]
        for f, (inside, delta) in zip(filters, handles, strict=True):
            result = result + self.V @ ((f[:-1] - f[-1])[:, None] * inside) + f[-1] * delta
            if self.q is not None:
                result = result - f[-1] * self.q[:, None] * (self.q @ delta)
        return result

    def coordinates(self, filters: list[Any], handles: list[Any]) -> Any:
        """Σ_s f_s V_Sᵀ δ_s, for filters without a complement (those of ``pure_filters``)."""
        return sum(f[:, None] * inside for f, (inside, _) in zip(filters, handles, strict=True))


def _rpcholesky(be: Any, X: Any, kernel: Kernel, m: int, random: np.random.Generator) -> Any:
    """Indices of at most m landmarks by randomly pivoted Cholesky (Chen et al. 2023).

    A row is drawn with probability proportional to what the landmarks so far leave of
    κ(x, x). Rows are proposed in batches and thinned so that the law is that of one at a time.
    """
    xp = be.xp
    diagonal = _diagonal(be, X, kernel)
    left = diagonal.copy()
    factor = xp.zeros((X.shape[0], m), X.dtype)
    chosen: list[int] = []
    floor = 10.0 * float(xp.finfo(X.dtype).eps) * largest(diagonal)
    while len(chosen) < m:
        weights = be.to_numpy(xp.maximum(left, 0.0)).astype(np.float64)
        weights[weights <= floor] = 0.0
        if not weights.any():
            break  # the landmarks span everything
        batch = min(_BATCH, m - len(chosen), int(np.count_nonzero(weights)))
        proposed = random.choice(len(weights), size=batch, replace=True, p=weights / weights.sum())
        done = len(chosen)
        at = xp.asarray(proposed)
        G = be.to_numpy(native_gram(be, X[at], None, kernel)).astype(np.float64)
        F = be.to_numpy(factor[at, :done]).astype(np.float64)
        G = G - F @ F.T
        start = weights[proposed]
        accepted: list[int] = []
        triangle = np.zeros((batch, batch))
        for i in range(batch):
            rest = G[i, i] - triangle[i] @ triangle[i]
            if rest > floor and random.uniform() * start[i] <= rest:
                column = len(accepted)
                rest_column = G[:, i] - triangle @ triangle[i]
                triangle[:, column] = rest_column / np.sqrt(rest)
                accepted.append(i)
        if not accepted:
            continue
        rows = xp.asarray(proposed[accepted])
        L = np.tril(triangle[accepted][:, : len(accepted)])
        new = native_gram(be, X, X[rows], kernel)
        new = new - factor[:, :done] @ factor[rows, :done].T
        new = be.triangular_solve(xp.asarray(L, dtype=X.dtype), new.T, lower=True).T
        factor[:, done : done + len(rows)] = new
        left = left - (new.astype("float64") ** 2).sum(1)
        left[rows] = 0.0
        chosen.extend(proposed[accepted].tolist())
    return xp.asarray(chosen, dtype="int64")


def _diagonal(be: Any, X: Any, kernel: Kernel) -> Any:
    """κ(x, x) of every row, float64."""
    if kernel.pair:
        return kernel.diagonal(be.xp, (X.astype("float64") ** 2).sum(1))
    values = [native_gram(be, X[i : i + 1], None, kernel)[0, 0] for i in range(X.shape[0])]
    return be.xp.asarray(values, dtype="float64")


def _pivoted_cholesky(K: Any, xp: Any) -> tuple[Any, Any]:
    """Order and upper factor R (r, r) with K[order][:, order] = RᵀR; pivots above round-off."""
    m = K.shape[0]
    left = xp.diagonal(K).astype("float64").copy()
    floor = 10.0 * m * float(xp.finfo(K.dtype).eps) * largest(left)
    R = xp.zeros((m, m), "float64")
    order: list[int] = []
    for i in range(m):
        pivot = int(left.argmax())
        if not float(left[pivot]) > floor:
            break
        row = K[pivot].astype("float64") - R[:i, pivot] @ R[:i]
        R[i] = row / float(left[pivot]) ** 0.5
        left = left - R[i] ** 2
        left[pivot] = 0.0
        order.append(pivot)
    chosen = xp.asarray(order, dtype="int64")
    return chosen, xp.triu(R[: len(order)][:, chosen]).astype(K.dtype)
