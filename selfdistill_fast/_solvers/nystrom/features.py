"""The features of a landmark model, and the sums that only this model needs."""

from __future__ import annotations

from typing import Any

from selfdistill_fast._gram import native_diagonal, native_gram
from selfdistill_fast._solvers.feature_space import Sums
from selfdistill_fast.kernels import Kernel

__all__ = ["Features", "TracedSums"]


class Features:
    """φ(x) = κ(x, L) R⁻¹ of a block of rows, float64 (b, r)."""

    def __init__(self, be: Any, kernel: Kernel, basis: Any, R: Any) -> None:
        self.backend, self.kernel, self.basis, self.R = be, kernel, basis, R

    def __call__(self, X: Any) -> Any:
        """φ of the rows X."""
        if len(self.R) == 0:
            return self.backend.xp.zeros((X.shape[0], 0))
        K = native_gram(self.backend, X, self.basis, self.kernel)
        K = K.astype("float64", copy=False)
        return self.backend.triangular_solve(self.R.T, K.T, lower=True).T

    def alone(self) -> Features:
        """The same for a worker: one thread."""
        return Features(type(self.backend)(n_threads=1), self.kernel, self.basis, self.R)


class TracedSums(Sums):
    """Also the traces of the given kernel matrix, and of what the model's lies above it."""

    def traces(self, X: Any, phi: Any, root: Any) -> Any:
        """Σ w κ(x, x), and Σ w min(κ(x, x) − ‖φ‖², 0)."""
        be = self.features.backend
        xp = be.xp
        diagonal = native_diagonal(be, X, self.features.kernel)
        below = xp.minimum(diagonal - xp.einsum("ij,ij->i", phi, phi), 0.0)  # round-off
        return xp.stack([_weighted(a, root, xp).sum() for a in (diagonal, below)])


def _weighted(a: Any, root: Any, xp: Any) -> Any:
    """w a, and 0 where w is, whatever a is there."""
    return a if root is None else xp.where(root > 0, root**2 * a, 0.0)
