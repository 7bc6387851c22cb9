"""Filters of a chain on eigenvalues: functions of d and z, from any solver.

With K = V D Vᵀ on the span of V and z = Vᵀt, every function of K that a chain needs is stored as
its values on the eigenvalues, (k,):

    pure steps      C = (d + λ)⁻¹ a^(τ−1),   a = d/(d + λ),
    smoother        A^τ → a^τ,
    leave-one-out   (I − A) A^(τ−1) → λ a^(τ−1)/(d + λ).

Where V does not span the whole space and K is zero outside its span, a function has one more
value, at the end, for that complement: 1 for I − A, and 0 for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdistill_fast._solvers.evaluation import check_limit, mix
from selfdistill_fast._solvers.penalties import Penalties
from selfdistill_fast._validation import check_coefficients, check_lam

__all__ = ["Filters"]


@dataclass(frozen=True, eq=False)
class Filters:
    """Filters on eigenvalues; see ``Spectrum`` for parameters and shapes.

    Attributes
    ----------
    backend : backend object that holds the arrays
    d : (k,) eigenvalues, ascending and >= 0
    z : (k, p) rotated targets
    dtype : float32 or float64, of what is computed
    unknown : int
        Eigenvalues, from the first, that may be rounding alone.
    rounding : float
        The λ below which these are taken as 0.
    complement : bool
        Functions have a value on the complement of V, where K is zero.
    """

    backend: Any
    d: Any
    z: Any
    dtype: Any
    unknown: int = 0
    rounding: float = 0.0
    complement: bool = False

    def pure(self, penalties: Penalties) -> Any:
        """Filters a^(τ−1)/(d + λ) of the pure steps, (T, k); by last step and length (T, T, k)."""
        W = self.windows(penalties)
        if not penalties.scheduled:
            return W
        C = self.backend.xp.zeros_like(W)
        for j in range(len(W)):
            C[j, : j + 1] = W[j, j::-1]
        return C

    def residual(self, penalties: Penalties) -> Any:
        """Filters of (I − A) A^(τ−1), (T, k [+ 1])."""
        xp, lam = self.backend.xp, penalties.values
        R = self.windows(penalties) * xp.asarray(lam, self.dtype)[..., None, None]
        steps = xp.arange(penalties.n_steps)
        first = (steps, steps) if penalties.scheduled else (..., 0)  # the filter I − A alone
        if penalties.scheduled:
            if self._unknown_at(lam):
                R[steps, steps, : self.unknown] = 1.0
        else:
            for i in np.argwhere(lam < self.rounding) if self.unknown else ():
                R[(*map(int, i), 0, slice(self.unknown))] = 1.0
        return self._completed(R, first)

    def smoother(self, penalties: Penalties) -> Any:
        """Filters a^τ of A^τ, (T, k [+ 1])."""
        return self._completed(self.windows(penalties) * self.d)

    def steps(self, penalties: Penalties) -> Any:
        """Coordinates a^(τ−1)/(d + λ) z of the pure steps, (T, k, p)."""
        return check_coefficients(self.pure(penalties)[..., None] * self.z)

    def limit(self, lam: float, alpha: float) -> Any:
        """Coordinates α/(αd + λ) z of infinitely many steps, eq. (17), (k, p)."""
        lam = float(check_lam(lam, batch=False, dtype=self.dtype))
        d = self.d.astype("float64")
        check_limit(d, lam, alpha)
        f = alpha / (alpha * d + lam)
        if self._unknown_at(lam):
            f[: self.unknown] = 0.0
        return check_coefficients((f[:, None] * self.z).astype(self.dtype))

    def shrinkage(self, C: Any, penalties: Penalties) -> Any:
        """Diagonal of B of steps that mix the pure steps with weights C: (T, k), or (T, k, p)."""
        xp = self.backend.xp
        powers = (self.d * self.pure(penalties))[..., None]
        if C.ndim == 3:
            powers = xp.repeat(powers, C.shape[-1], -1)
        B = mix(C, powers, xp, scheduled=penalties.scheduled).astype(self.dtype)
        return B if C.ndim == 3 else B[..., 0]

    def windows(self, penalties: Penalties) -> Any:
        """Pure filters 1/(d + λ_j) Π_(s <= t < j) d/(d + λ_t) of the steps s..j, (T, T, k).

        Without a schedule they depend on j − s alone: (T, k), or (L, T, k) for a batch.
        """
        xp, T = self.backend.xp, penalties.n_steps
        penalties.check_range(self.dtype)
        if not penalties.scheduled:
            lams = penalties.values.reshape(-1)
            C = self.backend.pure_filters(self.d, lams, T)
            for i in np.flatnonzero(lams < self.rounding) if self.unknown else ():
                C[int(i), :, : self.unknown] = 0.0  # every prediction is 0 there
            return C if penalties.is_batch else C[0]
        d = self.d.astype("float64")
        W = xp.zeros((T, T, len(d)), self.dtype)
        for s in range(T):
            passed = xp.ones_like(d)
            for j in range(s, T):
                M = passed / (d + penalties.at(j))
                W[j, s] = M
                passed = M * d
        if self._unknown_at(penalties.values):
            W[..., : self.unknown] = 0.0
        return W

    def _unknown_at(self, lam: Any) -> bool:
        """Whether eigenvalues that may be rounding alone are taken as 0 for one λ, or schedule."""
        return self.unknown > 0 and bool(np.min(lam) < self.rounding)

    def _completed(self, filters: Any, ones: Any = None) -> Any:
        """Append the value on the complement: 1 at the positions ``ones``, and 0 elsewhere."""
        if not self.complement:
            return filters
        xp = self.backend.xp
        rest = xp.zeros(filters.shape[:-1], filters.dtype)
        if ones is not None:
            rest[ones] = 1.0
        return xp.concatenate([filters, rest[..., None]], -1)
