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
        self._K_dropped: Any = X[w == 0] if precomputed and self.rows is not None else None
        n = self.n if self.rows is None else len(self.rows)
        _check_fits(be, n, X.dtype, max_memory)

        K = self._gram(X, precomputed)
        root = None if w is None else xp.sqrt(self.kept(w))
        if not kernel.definite:
            _check_symmetric(K, xp)
        if root is not None:
            scale = root.astype(K.dtype)
            K *= scale[:, None]
            K *= scale[None, :]

        Y = y.reshape(self.n, -1).astype("float64")
        q = None
        if fit_intercept:
            weights = xp.ones(n) if w is None else self.kept(w)
            self.y_mean = weights @ self.kept(Y) / weights.sum()
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
        target = self.kept(Y) if root is None else root[:, None] * self.kept(Y)
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
            K = native_gram(self.backend, X_new, self.kept(self.X), self.kernel)
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
    def pure_steps(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """Coordinates a^(τ−1)/(d + λ) z of the pure steps.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T
        lam_steps : array of shape (T,), optional
            A ridge for each step; ``lam`` is not used then.

        Returns
        -------
        ndarray of shape (T, k, p), or (L, T, k, p) for a batch; for a schedule
        (T, T, k, p), where [τ − 1, i − 1] is the pure chain of the last i of the steps 1..τ
        """
        return self.pure_filters(lam, n_steps, lam_steps)[..., None] * self.z

    def pure_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """Filters a^(τ−1)/(d + λ) of the pure steps; d times them is diag A^τ.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T
        lam_steps : array of shape (T,), optional
            A ridge for each step; ``lam`` is not used then.

        Returns
        -------
        ndarray of shape (T, k), or (L, T, k) for a batch; for a schedule (T, T, k), where
        [τ − 1, i − 1] is the pure chain of the last i of the steps 1..τ
        """
        if lam_steps is not None:
            W = self._windows(lam_steps)
            C = self.backend.xp.zeros_like(W)
            for j in range(len(W)):
                C[j, : j + 1] = W[j, j::-1]
            return C
        lam = check_lam(lam, batch=True)
        C = self.backend.pure_filters(self.d, lam.reshape(-1), check_n_steps(n_steps))
        return C if lam.ndim else C[0]

    def residual_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """Filters of (I − A) A^(τ−1), or of (I − A_j) A_(j−1) … A_s under a ridge for each step.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T
        lam_steps : array of shape (T,), optional
            The schedule; ``lam`` is not used then.

        Returns
        -------
        ndarray of shape (T, k), or (L, T, k) for a batch: λ a^(τ−1)/(d + λ); for a schedule
        (T, T, k) with [j, s] = λ_j/(d + λ_j) Π_(s <= t < j) d/(d + λ_t), zero for s > j
        """
        if lam_steps is not None:
            return self._windows(lam_steps) * lam_steps.astype(self.dtype)[:, None, None]
        lam = check_lam(lam, batch=True)
        return self.pure_filters(lam, n_steps) * lam.astype(self.dtype)[..., None, None]

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
        powers = self.diagonals(self.d * self.pure_filters(lam, n_steps))
        return powers if self._q is None else powers + (self._q**2).astype(self.dtype)

    def diagonals(self, filters: Any) -> Any:
        """diag(V f Vᵀ) of the kept training rows: filters (…, k) → (…, n), one product for all."""
        F = filters.reshape(-1, self.k).T
        return self.backend.squares_matmul(self.V, F).T.reshape(*filters.shape[:-1], -1)

    def applied(self, filters: Any) -> Any:
        """W^−½ V f z, a filtered y at the kept training rows: filters (…, k) → (…, n, p)."""
        return self._unweighted(self._in_basis(filters[..., None] * self.z))

    def block(self, filter_: Any, rows: Any) -> Any:
        """V_S f V_Sᵀ for a set S of kept rows and one filter (k,): (|S|, |S|)."""
        V = self.V[rows]
        return (V * filter_) @ V.T

    def block_matmul(self, filter_: Any, rows: Any, t: Any) -> Any:
        """V_S f V_Sᵀ t for one filter (k,) and t (|S|, p), without forming the block."""
        V = self.V[rows]
        return V @ (filter_[:, None] * (V.T @ t))

    def impulse(self, filter_: Any, rows: Any, t: Any) -> tuple[Any, Any]:
        """Coordinates (k, p) and mean (p,) of a filtered weighted target, t on S and else 0."""
        coordinates = filter_[:, None] * (self.V[rows].T @ t)
        if self._q is None:
            return coordinates, 0.0
        weights = 1.0 if self._root is None else self._root**2
        total = (weights * self.backend.xp.ones(len(self._q))).sum()
        return coordinates, self._q[rows] @ t / total**0.5

    def select(self, dropped: Any) -> Any:
        """Training rows of weight 0, as :meth:`evaluate` takes them."""
        if self.X is not None:
            return self.X[dropped]
        position = self.backend.xp.cumsum(self.sample_weight == 0) - 1
        return self._K_dropped[position[dropped]]

    # -------------------------------------------------------------- helpers
    def _unweighted(self, a: Any) -> Any:
        return a if self._root is None else a / self._root.astype(a.dtype)[:, None]

    def _windows(self, lam_steps: Any) -> Any:
        """Pure filters 1/(d + λ_j) Π_(s <= t < j) d/(d + λ_t) of the steps s..j: (T, T, k)."""
        xp = self.backend.xp
        d = self.d.astype("float64")
        T = len(lam_steps)
        W = xp.zeros((T, T, self.k), self.dtype)
        for s in range(T):
            passed = xp.ones_like(d)
            for j in range(s, T):
                M = passed / (d + float(lam_steps[j]))
                W[j, s] = M
                passed = M * d
        return W

    def _gram(self, X: Any, precomputed: bool) -> Any:
        """K of the rows of positive weight, in memory that may be destroyed."""
        if precomputed:
            return X.copy() if self.rows is None else X[self.rows][:, self.rows]
        K = native_gram(self.backend, self.kept(X), None, self.kernel)
        return K if self.kernel.pair else K.copy()  # the caller may keep its function's result

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
