"""What is done with a block of rows.

The functions of a block are classes, so that they can be sent to a worker.
"""

from __future__ import annotations

from typing import Any

from selfdistill_fast._gram import native_gram
from selfdistill_fast._solvers.evaluation import check_values
from selfdistill_fast._solvers.nystrom.landmarks import diagonal_of
from selfdistill_fast.kernels import Kernel

__all__ = ["Basis", "Features", "OnRows", "Project", "Sums"]


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


class Sums:
    """Sums over a block of √w(φ − c), see solver.py."""

    def __init__(self, features: Features, middle: Any) -> None:
        self.features, self.middle = features, middle

    def __call__(self, X: Any, root: Any, target: Any) -> tuple[Any, ...]:
        """S, ΦᵀWy, the sum of √w(φ − c), and the traces of two kernel matrices."""
        features = self.features
        xp = features.backend.xp
        phi = features(X)
        diagonal = diagonal_of(features.backend, X, features.kernel)
        norms = xp.einsum("ij,ij->i", phi, phi)
        if self.middle is not None:
            phi -= self.middle
        if root is None:
            mean = phi.sum(0)
        else:
            phi *= root[:, None]
            kept = root > 0
            if not bool(kept.all()):  # whatever κ is there: it may even have overflowed
                phi[~kept] = 0.0
                diagonal, norms = xp.where(kept, diagonal, 0.0), xp.where(kept, norms, 0.0)
            mean = phi.T @ root
            diagonal, norms = root**2 * diagonal, root**2 * norms
        below = xp.minimum(diagonal - norms, 0.0)  # round-off, where K is semi-definite
        traces = xp.stack([diagonal.sum(), below.sum()])
        gram = features.backend.inner_product(phi)
        return gram, phi.T @ target.astype("float64"), mean, traces


class Basis:
    """The basis of the model: rows of V, and basis functions at new points."""

    def __init__(
        self, features: Features, mean: Any, G: Any, scale: Any, z: Any, total_weight: float
    ) -> None:
        self.features, self.mean, self.G, self.scale, self.z = features, mean, G, scale, z
        self.total_weight = total_weight

    def alone(self) -> Basis:
        """The same for a worker: one thread."""
        rest = (self.mean, self.G, self.scale, self.z, self.total_weight)
        return Basis(self.features.alone(), *rest)

    def centred(self, X: Any) -> Any:
        """φ(x) − μ, (b, r)."""
        phi = self.features(X)
        if self.mean is not None:
            phi -= self.mean
        return phi

    def rows(self, X: Any, root: Any) -> Any:
        """Rows of V = W^½ (φ(X) − μ) G D^−½, (b, k)."""
        phi = self.centred(X)
        if root is not None:
            phi *= root[:, None]
        V = phi @ self.G
        V /= self.scale
        return V


class Project:
    """Basis functions (φ(x) − μ) G D^½ of new rows, (b, k)."""

    def __init__(self, model: Basis, dtype: Any, block: int) -> None:
        self.model, self.dtype, self.block = model, dtype, block

    def __call__(self, X: Any) -> Any:
        """The basis functions at X."""
        model = self.model
        P = model.features.backend.xp.empty((X.shape[0], len(model.scale)), self.dtype)
        for start in range(0, X.shape[0], self.block):
            rows = slice(start, start + self.block)
            P[rows] = (model.centred(X[rows].astype(self.dtype)) @ model.G) * model.scale
        return check_values(model.features.backend, P, model.features.kernel, "projections")


class OnRows:
    """Filtered targets (S, b, p) and diagonals (S, b) of a block of training rows."""

    def __init__(self, model: Basis, applied: Any, diagonals: Any, dtype: Any) -> None:
        self.model, self.dtype = model, dtype
        self.applied, self.diagonals = (a.astype("float64") for a in (applied, diagonals))

    def __call__(self, X: Any, root: Any, target: Any) -> tuple[Any, Any]:
        """Those of the rows X."""
        model = self.model
        xp = model.features.backend.xp
        V = model.rows(X, root)
        if root is not None:
            V[root == 0] = 0.0
        target = target.astype("float64")
        b, p = target.shape
        S, k = len(self.applied), len(model.scale)
        F = xp.empty((S, b, p), self.dtype)
        if S:
            outside = target - V @ model.z
            along = xp.moveaxis(self.applied[:, :k, None] * model.z, 0, 1).reshape(k, S * p)
            inside = xp.moveaxis((V @ along).reshape(b, S, p), 1, 0)
            F[...] = inside + self.applied[:, k, None, None] * outside
        Q = xp.empty((len(self.diagonals), b), self.dtype)
        if len(Q):
            V *= V
            length = xp.ones(
                b
            )  # squared, of the unit vector e_i projected onto the complement of q
            if model.mean is not None:
                length -= (1.0 if root is None else root**2) / model.total_weight
            f, at_zero = self.diagonals, self.diagonals[:, k:]
            # columns of V for small eigenvalues are inexact; f − f(0) is small for them
            diagonals = (f[:, :k] - at_zero) @ V.T + at_zero * length
            # which lie between the smallest and the largest value of f
            Q[...] = xp.clip(diagonals, f.min(1)[:, None] * length, f.max(1)[:, None] * length)
        return F, Q
