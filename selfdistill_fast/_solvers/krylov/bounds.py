"""The components of a Krylov certificate: gains of residuals, and rounding.

**Gains.** A residual r_s enters the error of step s through (K + λ)⁻¹, and that of step s + i
through λ(K + λ)⁻² A^(i−1); see the head of the package. ``gains`` bounds its effect for every r,
``gains_by_moments`` for given rᵀKr and ‖Kr‖².

**Rounding.** u is the unit roundoff (2⁻⁵³, float32: 2⁻²⁴). An entry κ(x, z) is computed with an
error of at most ε √κ(x, x) √κ(z, z); ``entry_rounding`` is that ε/u. A sum of m products is
computed to (2√m' + 2) u times the sum of their magnitudes, where m' is the number of successive
additions: the bound of probabilistic rounding error analysis (Higham and Mary, 2019). The worst
case is m' u; both agree up to m' = 4. Sums run over tiles or blocks, so m' is at most 256 + m/64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from selfdistill_fast.kernels import Combined, Kernel, Matern, Polynomial, Product

#: columns up to which distances may be computed from differences alone (csrc/tiles.h)
_DIRECT = 8
#: independent errors beyond which a weighted sum of them does not go, in units of the root of
#: the sum of the squared weights: in a vector of many sums; in any one of many sums
MANY, ANY = 2.0, 6.0


def gains(lam: float, n_steps: int) -> np.ndarray:
    """g_0, g_1, … of the head of the package, (T,): the gain of an error made i steps ago."""
    i = np.arange(1, n_steps)
    u = (2.0 * i - 1.0) / (2.0 * i + 2.0)
    return np.concatenate([[0.5], u ** (i - 0.5) * (1.0 - u) ** 1.5]) / lam**0.5


def gains_by_moments(
    mean: np.ndarray, root_mean_square: np.ndarray, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of ‖K^½ (K + λ)⁻¹ r‖/‖r‖, and with λ(K + λ)⁻¹ too, from two moments of r.

    These are the mean rᵀKr/‖r‖² and root mean square ‖Kr‖/‖r‖. Where the mean is below λ by
    Jensen's inequality; above it by Cantelli's, which limits how much of r lies below half the
    mean (at least λ), with the largest possible value there.
    """
    a = np.minimum(mean, lam)
    below = np.sqrt(a) / (a + lam)
    half = np.maximum(0.5 * mean, lam)
    # of eigenvalues relative to their root mean square: no square may overflow
    root = np.maximum(root_mean_square, 1e-300)
    variance = np.maximum(1.0 - (mean / root) ** 2, 0.0)
    distance = np.maximum(mean - half, 0.0) / root
    share = variance / np.maximum(variance + distance**2, 1e-300)
    at_half = half**0.5 / (half + lam)  # without λ², which may overflow
    now = np.sqrt(0.25 / lam * share + at_half**2)
    later = np.sqrt(27.0 / 256.0 / lam * share + (at_half * (lam / (half + lam))) ** 2)
    above = mean > half
    return (
        np.minimum(below, np.where(above, now, np.inf)),
        np.minimum(below, np.where(above, later, np.inf)),
    )


def propagated(bounds: np.ndarray) -> np.ndarray:
    """Σ_(s<=τ) of the effect of r_s τ − s steps later, (T, p); from bounds (T, T, p) by i and s."""
    steps = range(bounds.shape[1])
    return np.stack([sum(bounds[t - s, s] for s in range(t + 1)) for t in steps])


def sum_rounding(m: int) -> float:
    """Rounding of a sum of m products, in units of u times the sum of their magnitudes."""
    return 2.0 * math.sqrt(min(m, 256 + m / 64)) + 2.0


def magnitudes(kernel: Kernel, diagonal: Any, xx: Any) -> Any:
    """The values κ(x, x) that bound entries and their rounding, (n,)."""
    if isinstance(kernel, Polynomial) and kernel.coef0 < 0.0:
        return (
            kernel.gamma * xx - kernel.coef0
        ) ** kernel.degree  # as if there were no cancellation
    return diagonal


def entry_rounding(kernel: Kernel, d: int, square: Any) -> Any:
    """ε/u of each row of d columns, from its squared distance from the mean of all, (n,).

    The error of an entry is at most √(ε_i ε_j) √κ(x_i, x_i) √κ(x_j, x_j), and at any other x
    ε_j √κ(x, x) √κ(x_j, x_j). Entries computed by the caller are assumed to be rounded once.
    """
    if isinstance(kernel, Combined):
        # Σ w_i ε_i √κ_i(x, x) √κ_i(z, z) <= max ε_i √κ(x, x) √κ(z, z); factors of a product add up
        parts = [
            entry_rounding(part, d, square * max(part.scales or (1.0,)) ** 2) + 2.0
            for part in kernel.parts
        ]
        if isinstance(kernel, Product):
            return sum(parts) + len(parts)
        worst = parts[0]
        for part in parts[1:]:
            worst = worst + 0.5 * (part - worst + abs(part - worst))  # the larger of both
        return worst + len(parts)
    sum_ = 2.0 * math.sqrt(d) + 2.0
    constant = 1.0
    if kernel.pair == "inner":
        constant = kernel.degree * (sum_ + 4.0) if isinstance(kernel, Polynomial) else sum_
    elif kernel.pair == "angle":  # accurate to u, except where its cosine nearly cancels
        constant = (8.0 * sum_ + 10.0) * (1.0 + kernel.c_spec[3] / 8.0)
    elif kernel.pair == "cityblock" or (kernel.pair and d <= _DIRECT):
        constant = 6.0 + 0.4 * (sum_ + 1.0)  # |s κ'(s)| <= 0.54
    elif kernel.pair:
        # s = ‖x‖² + ‖z‖² − 2⟨x, z⟩ is accurate to u(‖x‖² + ‖z‖²) <= u(2 s + 3 min(‖x‖², ‖z‖²))
        return 6.0 + sum_ * (0.8 + _change(kernel, 4.0 * square))
    return constant + 0.0 * square


def _change(kernel: Kernel, s: Any) -> Any:
    """Bound of |s κ'(s)|: the largest change of κ with a squared distance, times s."""
    if isinstance(kernel, Matern) and kernel.nu != math.inf:
        scale = s * kernel.c_spec[1] ** 2
        return {0.5: 16.0 * scale**0.5, 1.5: 1.5 * scale, 2.5: 0.84 * scale}[kernel.nu]
    return kernel.c_spec[1] * s


class Bound(NamedTuple):
    """Bounds (T, p) of the parts of an error: ‖φ(x) − φ̄‖ size + √κ(x, x) point + fixed at x."""

    size: np.ndarray
    point: np.ndarray
    fixed: np.ndarray

    def at(self, feature: Any, root: Any) -> np.ndarray:
        """The bound for a feature norm and √κ(x, x), which must broadcast.

        Infinite where squares of K overflow, since nothing is then known.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            bound = self.size * feature + self.point * root + self.fixed
        return np.where(np.isnan(bound), np.inf, bound)


def joined(parts: list[Bound]) -> Bound:
    """Bounds of some targets each, side by side."""
    return Bound(*(np.concatenate(arrays, 1) for arrays in zip(*parts, strict=True)))


def norms(R: Any, be: Any) -> np.ndarray:
    """‖R_sj‖, (T, p), for R (T, n, p); no square over- or underflows."""
    xp = be.xp
    size = be.to_numpy(abs(R).max(1)) if R.size else np.zeros((R.shape[0], R.shape[2]))
    if not ((size > 1e-140) & (size < 1e140)).all():
        unit = np.where((size > 0.0) & np.isfinite(size), size, 1.0)
        return be.to_numpy(xp.sqrt(xp.square(R / xp.asarray(unit)[:, None, :]).sum(1))) * unit
    return be.to_numpy(xp.sqrt(xp.square(R).sum(1)))
