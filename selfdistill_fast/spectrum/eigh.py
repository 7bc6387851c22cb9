"""Exact spectra: one symmetric eigendecomposition serves every λ, α and step.

With weights W and q = √w/‖√w‖ the matrix that is factorised is

    K_w = W^½ K W^½ = V D Vᵀ,               without an intercept,
    H K_w H = V D Vᵀ,  H = I − qqᵀ,  V ⟂ q,  with one,

and with U = W^½ V, z = Vᵀ W^½ (y − ȳ) the basis functions are
project(x) = κ(x, X) U − r, where r = Uᵀ k̄ and k̄_j = Σ_i w_i κ(x_i, x_j) / Σ_i w_i (zero
without an intercept). Then F_τ(x) = ȳ + project(x) C z, C = (D + λI)⁻¹ A^(τ−1).
"""

from __future__ import annotations

from typing import Any

from selfdistill_fast.gram import check_memory, native_gram
from selfdistill_fast.kernels import Kernel, Precomputed
from selfdistill_fast.spectrum import Spectrum, check_lam, check_n_steps

__all__ = ["EighSpectrum"]

#: rows of K that one step of a blocked O(n²) pass touches
_BLOCK = 256


class EighSpectrum(Spectrum):
    """Full eigendecomposition of a kernel matrix; made by :func:`~selfdistill_fast.spectrum`."""

    def __init__(
        self,
        be: Any,
        X: Any,
        y: Any,
        kernel: Kernel,
        w: Any,
        fit_intercept: bool,
        max_memory: int | None,
    ) -> None:
        xp = be.xp
        precomputed = isinstance(kernel, Precomputed)
        self.backend, self.kernel = be, kernel
        self.X = None if precomputed else X
        self.n = X.shape[0]
        self.one_target = y.ndim == 1
        self.fit_intercept = fit_intercept
        self.sample_weight = w
        self.rows = None if w is None or bool((w > 0).all()) else xp.nonzero(w > 0)[0]
        # a precomputed K is not kept, but for what it says of the rows of weight 0
        self._K_dropped = X[w == 0] if precomputed and self.rows is not None else None
        n = self.n if self.rows is None else len(self.rows)
        _check_fits(be, n, X.dtype, max_memory)

        K = self._gram(X, precomputed)
        root = None if w is None else xp.sqrt(self._kept(w))
        if not kernel.definite:
            _check_symmetric(K, xp)
        if root is not None:
            scale = root.astype(K.dtype)
            K *= scale[:, None]
            K *= scale[None, :]

        Y = y.reshape(self.n, -1).astype("float64")
        q = None
        if fit_intercept:
            weights = xp.ones(n) if w is None else self._kept(w)
            self.y_mean = weights @ self._kept(Y) / weights.sum()
            q = xp.sqrt(weights / weights.sum())
            d, V, self._offset = _centred_eigh(be, K, q)
            self._offset = self._offset / xp.sqrt(weights.sum())
        else:
            self.y_mean = xp.zeros(Y.shape[1])
            d, V = be.eigh(K)
            self._offset = None
        del K
        self.d = _clamped(d, n, kernel, xp)
        self.V, self._root, self._q = V, root, q
        Y = Y - self.y_mean
        target = self._kept(Y) if root is None else root[:, None] * self._kept(Y)
        self.Y = Y.astype(X.dtype)
        self.z = V.T @ target.astype(X.dtype)

    # ------------------------------------------------------------ new points
    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k): κ(x, X) W^½ V, centred with an intercept.

        Parameters
        ----------
        X_new : array_like of shape (m, d)
            With a precomputed kernel K(X_new, X), (m, n).
        """
        X_new = self.check_new(X_new)
        if self.X is None:
            K = X_new if self.rows is None else X_new[:, self.rows]
        else:
            K = native_gram(self.backend, X_new, self._kept(self.X), self.kernel)
        if self._root is not None:
            K = K * self._root.astype(K.dtype)
        P = K @ self.V
        return P if self._offset is None else P - self._offset.astype(P.dtype)

    def dual(self, coordinates: Any) -> Any:
        """Dual coefficients U @ coordinates, (…, n, p); zero for rows of weight 0."""
        xp = self.backend.xp
        kept = self._in_basis(coordinates)
        if self._root is not None:
            kept = kept * self._root.astype(kept.dtype)[:, None]
        if self.rows is None:
            return kept
        full = xp.zeros((*coordinates.shape[:-2], self.n, coordinates.shape[-1]), kept.dtype)
        full[..., self.rows, :] = kept
        return full

    def constant(self, coordinates: Any) -> Any:
        """ȳ − r @ coordinates, (…, p)."""
        xp = self.backend.xp
        mean = self.y_mean.astype(self.dtype)
        if self._offset is None:
            return xp.zeros((*coordinates.shape[:-2], 1), self.dtype) + mean
        return mean - xp.einsum("k,...kp->...p", self._offset.astype(self.dtype), coordinates)

    # --------------------------------------------------------------- filters
    def pure_steps(self, lam: Any, n_steps: int) -> Any:
        """Coordinates a^(τ−1)/(d + λ) z of the pure steps.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T

        Returns
        -------
        ndarray of shape (T, k, p), or (L, T, k, p) for a batch
        """
        return self.pure_filters(lam, n_steps)[..., None] * self.z

    def pure_filters(self, lam: Any, n_steps: int) -> Any:
        """Filters a^(τ−1)/(d + λ) of the pure steps; d times them is diag A^τ.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T

        Returns
        -------
        ndarray of shape (T, k), or (L, T, k) for a batch
        """
        lam = check_lam(lam, batch=True)
        C = self.backend.pure_filters(self.d, lam.reshape(-1), check_n_steps(n_steps))
        return C if lam.ndim else C[0]

    def limit(self, lam: float, alpha: float) -> Any:
        """Coordinates α/(αd + λ) z of infinitely many steps, eq. (17), (k, p)."""
        return ((alpha / (alpha * self.d.astype("float64") + lam))[:, None] * self.z).astype(
            self.dtype
        )

    # --------------------------------------------------------- training rows
    def diag_powers(self, lam: Any, n_steps: int) -> Any:
        """diag(A^τ) = (V∘V) a^τ (+ q² with an intercept), τ = 1..T.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T

        Returns
        -------
        ndarray of shape (T, n), or (L, T, n) for a batch; n counts rows of positive weight
        """
        powers = self._diagonals(self.d * self.pure_filters(lam, n_steps))
        return powers if self._q is None else powers + (self._q**2).astype(self.dtype)

    def diag_residuals(self, lam: Any, n_steps: int) -> Any:
        """diag((I − A) A^(τ−1)) = (V∘V) λ a^(τ−1)/(d + λ); shapes as :meth:`diag_powers`."""
        return self._diagonals(self._scaled_filters(lam, n_steps))

    def residual_steps(self, lam: Any, n_steps: int) -> Any:
        """(I − A) A^(τ−1) y = W^−½ V λ a^(τ−1)/(d + λ) z: (T, n, p) or (L, T, n, p)."""
        residuals = self._in_basis(self._scaled_filters(lam, n_steps)[..., None] * self.z)
        return self._unweighted(residuals)

    def dropped(self) -> tuple[Any, Any]:
        """Indices of the training rows of weight 0, and those rows for :meth:`evaluate`."""
        index = self.backend.xp.nonzero(self.sample_weight == 0)[0]
        return index, self._K_dropped if self.X is None else self.X[index]

    # -------------------------------------------------------------- helpers
    def _kept(self, a: Any) -> Any:
        return a if self.rows is None else a[self.rows]

    def _unweighted(self, a: Any) -> Any:
        return a if self._root is None else a / self._root.astype(a.dtype)[:, None]

    def _gram(self, X: Any, precomputed: bool) -> Any:
        """K of the rows of positive weight, in memory that may be destroyed."""
        if precomputed:
            return X.copy() if self.rows is None else X[self.rows][:, self.rows]
        K = native_gram(self.backend, self._kept(X), None, self.kernel)
        return K if self.kernel.pair else K.copy()  # the caller may keep its function's result

    def _scaled_filters(self, lam: Any, n_steps: int) -> Any:
        """λ a^(τ−1)/(d + λ), the filter of (I − A) A^(τ−1)."""
        lam = check_lam(lam, batch=True)
        return self.pure_filters(lam, n_steps) * lam.astype(self.dtype)[..., None, None]

    def _diagonals(self, filters: Any) -> Any:
        """(V∘V) f for filters f (..., k) → (..., n), one product for all."""
        F = filters.reshape(-1, self.k).T
        return self.backend.squares_matmul(self.V, F).T.reshape(*filters.shape[:-1], -1)

    def _in_basis(self, coordinates: Any) -> Any:
        """V @ coordinates for coordinates (..., k, p), one product for all."""
        xp = self.backend.xp
        lead, p = coordinates.shape[:-2], coordinates.shape[-1]
        flat = xp.moveaxis(coordinates.reshape(-1, self.k, p), 0, 1).reshape(self.k, -1)
        product = (self.V @ flat).reshape(self.V.shape[0], -1, p)
        return xp.moveaxis(product, 1, 0).reshape(*lead, self.V.shape[0], p)


def _check_fits(be: Any, n: int, dtype: Any, max_memory: int | None) -> None:
    """MemoryError before anything of size n² is allocated."""
    limit = int(0.8 * be.available_memory()) if max_memory is None else max_memory
    check_memory(
        be,
        be.eigh_bytes(n, dtype),
        f"solver='eigh' for {n} rows in {dtype}",
        limit,
        "ways out: float32 input (half of it), fewer training rows, or a larger max_memory",
    )


def _check_symmetric(K: Any, xp: Any) -> None:
    """ValueError unless K equals its transpose up to round-off."""
    scale = float(abs(K).max()) if K.size else 0.0
    tolerance = xp.finfo(K.dtype).eps ** (2 / 3) * scale
    for start in range(0, K.shape[0], _BLOCK):
        rows = slice(start, start + _BLOCK)
        gap = float(abs(K[rows] - K[:, rows].T).max())
        if gap > tolerance:
            raise ValueError(
                f"K is not symmetric: |K - K^T| reaches {gap:g} where max |K| is {scale:g}; "
                "a kernel is a symmetric function"
            )


def _clamped(d: Any, n: int, kernel: Kernel, xp: Any) -> Any:
    """Eigenvalues with round-off below zero removed: the only place where that is done.

    Raises
    ------
    numpy.linalg.LinAlgError
        One is clearly below round-off and the kernel is not definite by construction.
    """
    if d.shape[0] == 0:
        return d
    lowest, largest = float(d[0]), float(abs(d).max())
    if not kernel.definite and lowest < -10.0 * n * float(xp.finfo(d.dtype).eps) * largest:
        raise xp.linalg.LinAlgError(
            f"K is not positive semi-definite: its smallest eigenvalue is {lowest:g} (the largest "
            f"is {largest:g}), far below round-off; use a positive semi-definite kernel, or add "
            f"at least {-lowest:g} to the diagonal of K"
        )
    return xp.maximum(d, 0.0).astype(d.dtype)


def _centred_eigh(be: Any, K: Any, q: Any) -> tuple[Any, Any, Any]:
    """Eigenpairs of HKH on the complement of the unit vector q, and Vᵀ K q. Destroys K.

    HKH has the eigenvector q with eigenvalue 0, which a degenerate null space would mix
    with others; so q is first moved to the eigenvalue −trace/n, below all others, and then
    dropped. K ← HKH + shift qqᵀ = K − q mᵀ − (m − (qᵀm + shift) q) qᵀ with m = Kq.

    Returns
    -------
    d : (n − 1,), V : (n, n − 1) with Vᵀq = 0, Vᵀ K q : (n − 1,) float64
    """
    xp = be.xp
    n = K.shape[0]
    qt = q.astype(K.dtype)
    m = K @ qt
    qm = float(q @ m.astype("float64"))
    trace = float(xp.trace(K, dtype="float64")) - qm
    shift = -trace / n if trace > 0.0 else -1.0
    left = (m.astype("float64") - (qm + shift) * q).astype(K.dtype)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        K[rows] -= qt[rows, None] * m[None, :]
        K[rows] -= left[rows, None] * qt[None, :]
    d, V = be.eigh(K)
    along = qt @ V
    if n > 1 and int(abs(along).argmax()) != 0:  # only an indefinite K has anything below q
        raise xp.linalg.LinAlgError(
            f"K is not positive semi-definite: centred, it has the eigenvalue {float(d[0]):g}"
        )
    d, V, along = d[1:], V[:, 1:], along[1:]
    for start in range(0, n, _BLOCK):  # V ⟂ q to the last digit
        rows = slice(start, start + _BLOCK)
        V[rows] -= qt[rows, None] * along[None, :]
    return d, V, (V.T @ m).astype("float64")
