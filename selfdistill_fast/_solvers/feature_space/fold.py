"""Rows that are left out of a model in feature space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfdistill_fast._solvers.fold import Fold
from selfdistill_fast._validation import check_memory

__all__ = ["FeatureFold"]


class FeatureFold(Fold):
    """Blocks V_S f V_Sᵀ + f(0) (I − V_S V_Sᵀ − q_S q_Sᵀ); a correction is held with V_Sᵀ δ."""

    def __init__(self, spectrum: Any, rows: Any) -> None:
        super().__init__(spectrum, rows)
        size, order = len(rows), min(len(rows), spectrum.k + 1)
        check_memory(
            spectrum.backend,
            8 * (3 * size * spectrum.k + 2 * order**2),
            f"a fold of {size} rows in {spectrum.k} coordinates",
            hint="use more folds, or " + spectrum.memory_hint,
        )
        everywhere = rows if spectrum.rows is None else spectrum.rows[rows]
        root, _ = spectrum._aligned
        self.V = spectrum._model.rows(
            spectrum.X[everywhere], None if root is None else root[everywhere]
        )

    def solver(self, lam: float, filter_: Any) -> Callable[[Any], Any]:
        """By a factor of the block I − U Uᵀ, U = [V_S a^½, q_S], or of I − Uᵀ U if smaller.

        The second has the inverse I + U (I − UᵀU)⁻¹ Uᵀ (Woodbury) and the same smallest
        eigenvalue.
        """
        be, xp = self.spectrum.backend, self.spectrum.backend.xp
        f = filter_.astype("float64")
        U = self.V * xp.sqrt(xp.maximum(f[-1] - f[:-1], 0.0) / f[-1])
        if self.q is not None:
            U = xp.concatenate([U, self.q.astype("float64")[:, None]], 1)
        small = U.shape[1] < U.shape[0]
        block = -be.inner_product(U if small else U.T)
        block[xp.arange(len(block)), xp.arange(len(block))] += 1.0
        L = be.cholesky(block)

        def solve(r: Any) -> Any:
            r64 = r.astype("float64")
            x = r64 + U @ be.cholesky_solve(L, U.T @ r64) if small else be.cholesky_solve(L, r64)
            return (x / f[-1]).astype(r.dtype)

        return solve

    def push(self, delta: Any) -> Any:
        """(V_Sᵀ δ, δ)."""
        return self.V.T @ delta, delta

    def apply(self, filters: list[Any], handles: list[Any]) -> Any:
        """Σ_s f_s(K)_SS δ_s on the complement of q."""
        result = 0.0 * handles[0][1]
        inner = sum((f[:-1] - f[-1])[:, None] * h for f, (h, _) in _zip(filters, handles))
        for f, (_, delta) in _zip(filters, handles):
            result = result + f[-1] * delta
            if self.q is not None:
                result = result - f[-1] * self.q[:, None] * (self.q @ delta)
        return (result + self.V @ inner).astype(self.spectrum.dtype)

    def coordinates(self, filters: list[Any], handles: list[Any]) -> Any:
        """Σ_s f_s V_Sᵀ δ_s, for filters without a complement (those of ``pure_filters``)."""
        return sum(f[:, None] * inside for f, (inside, _) in _zip(filters, handles))


def _zip(filters: list[Any], handles: list[Any]) -> Any:
    return zip(filters, handles, strict=True)
