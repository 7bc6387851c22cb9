"""Products with K on the complement of q, and their rounding errors."""

from __future__ import annotations

from typing import Any

import numpy as np

from selfdistill_fast._gram import native_half, native_matmul
from selfdistill_fast._solvers.krylov.bounds import entry_rounding, magnitudes, norms, sum_rounding
from selfdistill_fast._solvers.matrix import check_weighted
from selfdistill_fast._validation import largest
from selfdistill_fast.kernels import Kernel

__all__ = ["KernelProduct"]

#: unit roundoff of the sums with K
UNIT = 2.0**-53
#: number of different rows from which the rounding of a product with K is judged by measurement
_SEEN = 64


class KernelProduct:
    """K_w of the retained rows as an operator, in float64, and its scales.

    Attributes
    ----------
    X : (n, d) retained rows, or None for a precomputed kernel
    n : int
    root : (n, 1) square roots of the weights, or None. In float64 even if predictions are float32:
        with fewer digits than q, K_w would mix with the direction that an intercept removes.
    q : (n,) the unit vector that an intercept removes, or None
    dtype : float32 or float64, of the rows and of predictions
    storage : "float64", "float32" (in both cases packed symmetric storage of K) or "none"
    largest_diagonal, trace, scale : the largest entry of diag K; of K_w the trace, and that entry
    magnitude : (n,) m with |K_w| <= m_i m_j
    off, off_elsewhere : (n,)
        Errors of entries of K_w are at most off_i off_j; of κ(x, X), √κ(x, x) off_elsewhere_j.
    entry, largest_magnitude : the largest rounding of an entry, and κ(x, x)
    mean_norm : ‖K_w q‖, 0 without an intercept
    offset : K_w q / √Σw, or None
    mean_feature, mean_root, mean_length : ‖φ̄‖, the root of Σ_i q_i² m_i², and ‖K^½q‖
    feature_norm : the largest ‖φ(x) − φ̄‖
    slack : rounding of K as an operator
    centred_trace : on the complement of q
    many_rows : whether there are enough different rows to judge rounding by measurement
    """

    def __init__(
        self,
        be: Any,
        kernel: Kernel,
        X: Any,
        root: Any,
        q: Any,
        dtype: Any,
        storage: str,
    ) -> None:
        self.backend, self.kernel, self.X = be, kernel, X
        self.root, self.q, self.dtype, self.storage = root, q, dtype, storage
        self._half: Any = None

    def measure(self, diagonal: Any) -> None:
        """Scales of K_w from the diagonal of K, and the rounding of its entries."""
        xp = self.backend.xp
        self.n = len(diagonal)
        self.largest_diagonal = largest(diagonal)
        weight = 1.0 if self.root is None else self.root[:, 0] ** 2
        weighted = diagonal * weight
        self.trace, self.scale = float(weighted.sum()), largest(weighted)
        check_weighted(largest(abs(weighted)), self.dtype)
        size, eps = diagonal, xp.ones_like(diagonal)
        if self.X is not None:
            X = self.X.astype("float64")
            size = magnitudes(self.kernel, diagonal, xp.square(X).sum(1))
            square = xp.square(X - X.mean(0)).sum(1)
            eps = entry_rounding(self.kernel, X.shape[1], square)
        elsewhere = self.unit_roundoff * eps
        half = (self.rounded and self.X is None) or (self.single and not self.kernel.pair)
        eps = (2.0**-24 if half else UNIT) * eps  # of the entries in an exact _product
        size = xp.maximum(size, 0.0)
        self.largest_magnitude = largest(size)
        # entries of K_w are at most m_i m_j, with errors e_i e_j; errors of κ(x, X): a_j √κ(x, x)
        self.magnitude = xp.sqrt(size * weight)
        self.off, self.off_elsewhere = self.magnitude * xp.sqrt(eps), self.magnitude * elsewhere
        self.entry = largest(elsewhere)

    def measure_mean(self, total_weight: float) -> None:
        """Scales of the part of K along q, and of the remainder."""
        xp = self.backend.xp
        self.offset: Any = None
        self.mean_norm = self.mean_feature = self.mean_root = along = 0.0
        if self.q is not None:
            m = self.product(self.q.astype("float64")[:, None], exactly=True)[:, 0]
            self.mean_norm = float(norms(m[None, :, None], self.backend)[0, 0])
            self.offset = m / total_weight**0.5
            along = max(float(self.q @ m), 0.0)
            self.mean_feature = (along / total_weight) ** 0.5
            self.mean_root = float(xp.square(self.magnitude).sum() / total_weight) ** 0.5
        self.mean_length = along**0.5
        self.feature_norm = self.largest_diagonal**0.5 + self.mean_feature
        self.slack = sum_rounding(self.n) * UNIT * self.trace
        self.slack += float((self.magnitude * self.off_elsewhere).sum())
        self.slack += 2.0**-24 * self.trace if self.rounded else 0.0
        self.centred_trace = max(self.trace - along, 0.0)
        self.many_rows = self._different_rows() >= _SEEN

    def keep(self, K: Any) -> None:
        """Pack a matrix that no backend computes: precomputed, or from the caller's function."""
        self.measure(self.backend.xp.diagonal(K).astype("float64"))
        self._half = self.backend.half_of(K, dtype=self.storage)

    def keep_matrix(self) -> bool:
        """Compute K in packed symmetric storage for many products; whether that was done here."""
        if self._half is not None or self.storage == "none":
            return False
        self._half = native_half(self.backend, self.X, self.kernel, dtype=self.storage)
        return True

    def forget_matrix(self) -> None:
        """Release the matrix computed by :meth:`keep_matrix`."""
        self._half = None

    def apply(self, V: Any) -> Any:
        """K_w V on the complement of q, for V (n, b) in float64."""
        return self.centred(self.product(V))

    def centred(self, P: Any) -> Any:
        """Project P (n, b) off q, in place; twice, since little of P may remain."""
        if self.q is not None:
            for _ in range(2):
                P -= self.q[:, None] * (self.q @ P)
        return P

    def product(self, V: Any, *, exactly: bool = False) -> Any:
        """K_w V, (n, b). ``exactly``: with float64 entries of K, if the package computes them."""
        be, xp = self.backend, self.backend.xp
        U = V if self.root is None else V * self.root
        ours = self.kernel.pair != ""
        anew = exactly and self.X is not None and (self.rounded or (self.single and ours))
        if self._half is not None and not anew:
            P = be.half_matmul(self._half, U)
        else:
            X = self.X
            if anew and ours:
                X = X.astype("float64")
            P = native_matmul(be, X, None, xp.ascontiguousarray(U), self.kernel)
        return P if self.root is None else P * self.root

    @property
    def single(self) -> bool:
        """Whether rows and predictions are float32."""
        return bool(self.dtype == np.float32)

    @property
    def unit_roundoff(self) -> float:
        """Unit roundoff of the entries of K and of the predictions."""
        return 0.5 * float(np.finfo(self.dtype).eps)

    @property
    def rounded(self) -> bool:
        """Whether K is stored with fewer digits than it has."""
        return bool(self.storage == "float32" and self.dtype == np.float64)

    def _different_rows(self) -> int:
        """Number of rows not (nearly) equal to others, whose rounding would be the same."""
        xp, n = self.backend.xp, self.n
        width = n if self.X is None else self.X.shape[1]
        g = xp.asarray(np.random.default_rng(0).normal(size=(width, 1)))
        if self.X is not None:
            v = self.X.astype("float64") @ g
        elif self.root is None:
            v = self.product(g)
        else:
            v = self.product(g / self.root) / self.root
        v = np.sort(self.backend.to_numpy(v[:, 0]))
        return 1 + int((np.diff(v) > 1e-9 * (v[-1] - v[0])).sum())

    def lost_by_single(self, dual: Any, values: Any) -> np.ndarray:
        """The largest error of float32 predictions at a training row, over √κ(x, x), (b,).

        It includes the rounding of ``dual`` itself, which is the same for all rows and therefore
        not a measure for other rows. Computed from the exact ``values`` K_w dual (n, b); inf if
        that is not possible.
        """
        be, xp = self.backend, self.backend.xp
        n = len(dual)
        if not (self.single and self.kernel.pair and self.many_rows):
            return np.full(dual.shape[1], np.inf)
        root = xp.ones((n, 1)) if self.root is None else self.root
        X, W = self.X, xp.ascontiguousarray((dual * root).astype(self.dtype))
        found = native_matmul(be, X, X, W, self.kernel).astype("float64")
        size = xp.maximum(self.magnitude[:, None], 1e-300)  # of a row of zeros
        return be.to_numpy((abs(found * root - values) / size).max(0))
