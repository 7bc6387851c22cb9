"""What is done with a block of rows, given the features φ of the model.

The functions of a block are classes, so that they can be sent to a worker.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

from selfdistill_fast._solvers.evaluation import check_values
from selfdistill_fast.kernels import Kernel

__all__ = ["Basis", "FeatureMap", "OnRows", "Project", "Sums", "block_rows"]

#: rows of a block: as many as make a block of features this large, within the limits
_BLOCK_REALS, _BLOCK_ROWS = 1 << 23, (256, 4096)


def block_rows(block: Any, m: int) -> int:
    """Rows of a block of features."""
    if block is not None:
        return int(block)
    return min(max(_BLOCK_REALS // max(m, 1), _BLOCK_ROWS[0]), _BLOCK_ROWS[1])


class FeatureMap(Protocol):
    """φ of a block of rows."""

    backend: Any
    kernel: Kernel

    def __call__(self, X: Any) -> Any:
        """φ of the rows X, float64 (b, r), in memory that may be overwritten."""

    def alone(self) -> Self:
        """The same for a worker: one thread."""


class Sums:
    """Sums over a block of √w(φ − c), see spectrum.py."""

    def __init__(self, features: FeatureMap, middle: Any) -> None:
        self.features, self.middle = features, middle

    def __call__(self, X: Any, root: Any, target: Any) -> tuple[Any, ...]:
        """S, ΦᵀWy, the sum of √w(φ − c), and :meth:`traces`."""
        be = self.features.backend
        phi = self.features(X)
        traces = self.traces(X, phi, root)
        if self.middle is not None:
            phi -= self.middle
        if root is None:
            mean = phi.sum(0)
        else:
            phi *= root[:, None]
            kept = root > 0
            if not bool(kept.all()):  # whatever κ is there: it may even have overflowed
                phi[~kept] = 0.0
            mean = phi.T @ root
        return be.inner_product(phi), phi.T @ target.astype("float64"), mean, traces

    def traces(self, X: Any, phi: Any, root: Any) -> Any:
        """Numbers of the model that are added up beside the sums, (t,); φ before centring."""
        raise NotImplementedError


class Basis:
    """The basis of the model: rows of V, and basis functions at new points."""

    def __init__(
        self, features: FeatureMap, mean: Any, G: Any, scale: Any, z: Any, total_weight: float
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
            length = xp.ones(b)  # squared, of e_i projected onto the complement of q
            if model.mean is not None:
                length -= (1.0 if root is None else root**2) / model.total_weight
            f, at_zero = self.diagonals, self.diagonals[:, k:]
            # columns of V for small eigenvalues are inexact; f − f(0) is small for them
            diagonals = (f[:, :k] - at_zero) @ V.T + at_zero * length
            # which lie between the smallest and the largest value of f
            Q[...] = xp.clip(diagonals, f.min(1)[:, None] * length, f.max(1)[:, None] * length)
        return F, Q
