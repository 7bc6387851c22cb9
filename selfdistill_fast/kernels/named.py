"""The kernels of rows: functions of a distance, an inner product or an angle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from selfdistill_fast.kernels.base import (
    Kernel,
    check_count,
    check_rates,
    check_real,
    common,
    each,
)

if TYPE_CHECKING:
    from selfdistill_fast._backend import Array

__all__ = ["NTK", "RBF", "Laplacian", "Linear", "Matern", "Polynomial"]


@dataclass(frozen=True)
class RBF(Kernel):
    """Radial basis function kernel κ(x, z) = exp(−γ‖x − z‖²).

    Parameters
    ----------
    gamma : float > 0, or a sequence of them
        Inverse squared width, as in scikit-learn (γ = 1/(2σ²)). A sequence has one for each
        feature: κ(x, z) = exp(−Σ_j γ_j (x_j − z_j)²).
    """

    gamma: Any = 1.0
    name: ClassVar[str] = "rbf"
    pair: ClassVar[str] = "sqeuclidean"
    unit_diagonal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rates(self, "gamma")

    @property
    def scales(self) -> tuple[float, ...] | None:
        return each(self.gamma, math.sqrt)

    @property
    def of_mapped_rows(self) -> RBF:
        return RBF() if self.scales else self

    @property
    def c_spec(self) -> tuple[str, float, float, int]:
        return ("rbf", common(self.gamma), 0.0, 0)

    @property
    def log2_rate(self) -> float:
        return 0.5 * math.log2(common(self.gamma))

    def rescaled(self, e: int) -> RBF:
        return RBF(math.ldexp(common(self.gamma), -2 * e))

    def of_pair(self, xp: Any, s: Array, xx: Array, zz: Array) -> Array:
        return xp.exp(-common(self.gamma) * s)


@dataclass(frozen=True)
class Laplacian(Kernel):
    """Laplacian kernel κ(x, z) = exp(−γ‖x − z‖₁) (the L1 distance, as in scikit-learn).

    Parameters
    ----------
    gamma : float > 0, or a sequence of them
        Inverse width. A sequence has one for each feature.
    """

    gamma: Any = 1.0
    name: ClassVar[str] = "laplacian"
    pair: ClassVar[str] = "cityblock"
    unit_diagonal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rates(self, "gamma")

    @property
    def scales(self) -> tuple[float, ...] | None:
        return each(self.gamma, float)

    @property
    def of_mapped_rows(self) -> Laplacian:
        return Laplacian() if self.scales else self

    @property
    def c_spec(self) -> tuple[str, float, float, int]:
        return ("laplacian", common(self.gamma), 0.0, 0)

    @property
    def log2_rate(self) -> float:
        return math.log2(common(self.gamma))

    def rescaled(self, e: int) -> Laplacian:
        return Laplacian(math.ldexp(common(self.gamma), -e))

    def of_pair(self, xp: Any, s: Array, xx: Array, zz: Array) -> Array:
        return xp.exp(-common(self.gamma) * s)


@dataclass(frozen=True)
class Matern(Kernel):
    """Matérn kernel of half-integer smoothness ν, as in scikit-learn's GP kernels.

    Parameters
    ----------
    length_scale : float > 0, or a sequence of them
        ℓ in the table at the head of this module. A sequence has one for each feature: then r
        is that of x_j/ℓ_j.
    nu : {0.5, 1.5, 2.5, inf}
        Smoothness. ν = ∞ is the RBF kernel with γ = 1/(2ℓ²).
    """

    length_scale: Any = 1.0
    nu: float = 1.5
    name: ClassVar[str] = "matern"
    pair: ClassVar[str] = "sqeuclidean"
    unit_diagonal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rates(self, "length_scale")
        if self.nu not in (0.5, 1.5, 2.5, math.inf):
            raise ValueError(
                f"Matern: nu must be one of 0.5, 1.5, 2.5 or inf, got {self.nu!r}; "
                "other values have no elementary formula"
            )
        object.__setattr__(self, "nu", float(self.nu))

    @property
    def scales(self) -> tuple[float, ...] | None:
        return each(self.length_scale, lambda scale: 1.0 / scale)

    @property
    def of_mapped_rows(self) -> Matern:
        return Matern(nu=self.nu) if self.scales else self

    @property
    def c_spec(self) -> tuple[str, float, float, int]:
        scale = common(self.length_scale)
        if self.nu == math.inf:
            return ("rbf", 0.5 / (scale * scale), 0.0, 0)
        return (f"matern{round(2 * self.nu)}2", 1.0 / scale, 0.0, 0)

    @property
    def log2_rate(self) -> float:
        return -math.log2(common(self.length_scale))

    def rescaled(self, e: int) -> Matern:
        return Matern(math.ldexp(common(self.length_scale), e), self.nu)

    def of_pair(self, xp: Any, s: Array, xx: Array, zz: Array) -> Array:
        scale = common(self.length_scale)
        if self.nu == math.inf:
            return xp.exp(s * (-0.5 / (scale * scale)))
        r = xp.sqrt(s) * (math.sqrt(2.0 * self.nu) / scale)
        r = xp.minimum(r, 1e3)  # κ is 0 long before; ∞ · 0 would be NaN
        if self.nu == 0.5:
            return xp.exp(-r)
        if self.nu == 1.5:
            return (1.0 + r) * xp.exp(-r)
        return (1.0 + r + r * r / 3.0) * xp.exp(-r)


@dataclass(frozen=True)
class Polynomial(Kernel):
    """Polynomial kernel κ(x, z) = (γ⟨x, z⟩ + c₀)^degree.

    Parameters
    ----------
    degree : int >= 1
    gamma : float > 0
    coef0 : float
        c₀. A negative value makes the kernel indefinite in general. Factorising a Gram
        matrix that is not positive semi-definite is an error.
    """

    degree: int = 3
    gamma: float = 1.0
    coef0: float = 1.0
    name: ClassVar[str] = "polynomial"
    pair: ClassVar[str] = "inner"

    def __post_init__(self) -> None:
        check_count(self, "degree")
        check_real(self, "gamma", minimum=0.0, open_=True)
        check_real(self, "coef0", minimum=-math.inf, open_=True)

    @property
    def definite(self) -> bool:
        return self.coef0 >= 0.0

    @property
    def c_spec(self) -> tuple[str, float, float, int]:
        return ("polynomial", self.gamma, self.coef0, self.degree)

    def of_pair(self, xp: Any, s: Array, xx: Array, zz: Array) -> Array:
        return (self.gamma * s + self.coef0) ** self.degree

    def diagonal(self, xp: Any, xx: Array) -> Array:
        return (self.gamma * xx + self.coef0) ** self.degree

    @property
    def core(self) -> Kernel:
        return Linear()

    def of_core(self, xp: Any, core: Array, e: Array) -> Array:
        mantissa, exponent = math.frexp(self.gamma)
        return (mantissa * xp.ldexp(core, e + exponent) + self.coef0) ** self.degree


@dataclass(frozen=True)
class Linear(Kernel):
    """Linear kernel κ(x, z) = ⟨x, z⟩."""

    name: ClassVar[str] = "linear"
    pair: ClassVar[str] = "inner"

    @property
    def c_spec(self) -> tuple[str, float, float, int]:
        return ("linear", 0.0, 0.0, 0)

    def of_pair(self, xp: Any, s: Array, xx: Array, zz: Array) -> Array:
        return s

    def diagonal(self, xp: Any, xx: Array) -> Array:
        return xx


@dataclass(frozen=True)
class NTK(Kernel):
    """Neural tangent kernel of an infinitely wide fully connected ReLU network.

    With θ the angle between x and z, ρ₀ = cos θ, and the arc-cosine functions
    κ₀(ρ) = (π − arccos ρ)/π and κ₁(ρ) = (ρ(π − arccos ρ) + √(1 − ρ²))/π, the recursion

        t₀ = ρ₀,   t_h = t_{h−1} κ₀(ρ_{h−1}) + κ₁(ρ_{h−1}),   ρ_h = κ₁(ρ_{h−1})

    gives κ(x, z) = ‖x‖ ‖z‖ t_depth.

    *Scaling.* NTK parametrisation without biases, standard normal weights, layers
    scaled by √(2/fan-in) (He), so that the covariance Σ⁽ʰ⁾(x, x) = ‖x‖² at every
    layer; the first layer's covariance is ⟨x, z⟩ itself, not divided by the
    number of features. Hence κ(x, x) = (depth + 1)‖x‖².

    Parameters
    ----------
    depth : int >= 1
        Number of hidden (ReLU) layers; the network has ``depth + 1`` weight matrices.
    """

    depth: int = 1
    name: ClassVar[str] = "ntk"
    pair: ClassVar[str] = "angle"

    def __post_init__(self) -> None:
        check_count(self, "depth")

    @property
    def c_spec(self) -> tuple[str, float, float, int]:
        return ("ntk", 0.0, 0.0, self.depth)

    def of_pair(self, xp: Any, s: Array, xx: Array, zz: Array) -> Array:
        angle = s
        t = xp.cos(angle)
        for _ in range(self.depth):
            # h = 1 − κ₁(cos θ), which keeps the digits of a small angle; ρ_h = 1 − h
            h = 2.0 * xp.sin(0.5 * angle) ** 2
            h = xp.maximum(h - (xp.sin(angle) - angle * xp.cos(angle)) / math.pi, 0.0)
            t = t * (1.0 - angle / math.pi) + (1.0 - h)
            angle = 2.0 * xp.arcsin(xp.sqrt(0.5 * h))
        return xp.sqrt(xx) * xp.sqrt(zz) * t

    def diagonal(self, xp: Any, xx: Array) -> Array:
        return (self.depth + 1.0) * xx
