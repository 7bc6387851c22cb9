"""The kernels κ(x, z), one frozen dataclass each.

Each class is one row of the table of kernels. It states which quantity of a pair of
rows it needs (``pair``), its formula in terms of that quantity (``of_pair``), its
diagonal κ(x, x), and whether it is positive semi-definite.

====================  =============  =============================================
class                 pair quantity  κ(x, z)
====================  =============  =============================================
``RBF``               ‖x − z‖²       exp(−γ s)
``Laplacian``         ‖x − z‖₁       exp(−γ s)
``Matern`` ν = 1/2    ‖x − z‖²       exp(−r),               r = √s / ℓ
``Matern`` ν = 3/2    ‖x − z‖²       (1 + r) exp(−r),       r = √(3s) / ℓ
``Matern`` ν = 5/2    ‖x − z‖²       (1 + r + r²/3) exp(−r), r = √(5s) / ℓ
``Matern`` ν = ∞      ‖x − z‖²       exp(−s / (2ℓ²)), that is ``RBF(1 / (2ℓ²))``
``Polynomial``        ⟨x, z⟩         (γ s + c₀)^degree
``Linear``            ⟨x, z⟩         s
``NTK``               angle(x, z)    see :class:`NTK`
``Precomputed``       —              the caller supplies K itself
``Custom``            —              the caller supplies a function of (X, Z)
``Features``          ⟨φ(x), φ(z)⟩   s, where the caller supplies φ
====================  =============  =============================================

Every backend computes exactly these kernels. ``c_spec`` is all that the C and CUDA loops
need to know about a kernel. The file is long because it holds the whole table, including
the docstring of each row.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from selfdistill_fast._backend import Array

__all__ = [
    "KERNELS",
    "NTK",
    "RBF",
    "Custom",
    "Features",
    "Kernel",
    "Laplacian",
    "Linear",
    "Matern",
    "Polynomial",
    "Precomputed",
    "as_kernel",
    "kernel_from_dict",
    "kernel_from_name",
]


def _check_real(owner: object, name: str, *, minimum: float, open_: bool) -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{type(owner).__name__}: {name} must be a real number, got {value!r}")
    value = float(value)
    bad = value <= minimum if open_ else value < minimum
    if bad or not math.isfinite(value):
        sign = ">" if open_ else ">="
        raise ValueError(
            f"{type(owner).__name__}: {name} must be finite and {sign} {minimum:g}, got {value!r}"
        )
    object.__setattr__(owner, name, value)


def _check_rates(owner: object, name: str) -> None:
    """A number > 0, or one for each feature as a tuple."""
    value = getattr(owner, name)
    if not (hasattr(value, "__len__") and not isinstance(value, str)):
        _check_real(owner, name, minimum=0.0, open_=True)
        return
    values = []
    for one in value:
        object.__setattr__(owner, name, one.item() if hasattr(one, "item") else one)
        _check_real(owner, name, minimum=0.0, open_=True)
        values.append(getattr(owner, name))
    if not values:
        raise ValueError(f"{type(owner).__name__}: {name} is empty; give one for each feature")
    object.__setattr__(owner, name, tuple(values))


def _check_count(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or float(value) % 1 != 0:
        raise TypeError(f"{type(owner).__name__}: {name} must be an integer, got {value!r}")
    count = int(float(value))
    if not 1 <= count <= 1000:
        raise ValueError(
            f"{type(owner).__name__}: {name} must be between 1 and 1000, got {value!r}"
        )
    object.__setattr__(owner, name, count)


@dataclass(frozen=True)
class Kernel:
    """Base of all kernels: a symmetric function κ(x, z) of two rows."""

    #: name used in the table, in saved files and in ``csrc/sdf.h``
    name: ClassVar[str] = ""
    #: quantity of a pair of rows: "sqeuclidean", "cityblock", "inner", "angle" or ""
    pair: ClassVar[str] = ""
    #: κ(x, x) = 1 for every x
    unit_diagonal: ClassVar[bool] = False

    @property
    def definite(self) -> bool:
        """Whether every Gram matrix is positive semi-definite by construction."""
        return True

    @property
    def c_spec(self) -> tuple[str, float, float, int]:
        """(name in the C table, two real parameters, one integer parameter)."""
        raise NotImplementedError

    def of_pair(self, xp: Any, s: Array, xx: Array, zz: Array) -> Array:
        """κ from the pair quantity ``s`` (n, m) and ‖x‖² (n, 1), ‖z‖² (1, m)."""
        raise NotImplementedError

    def diagonal(self, xp: Any, xx: Array) -> Array:
        """κ(x, x) from ‖x‖², shape (n,)."""
        return xp.ones_like(xx)

    def rows(self, X: Any, name: str = "X") -> Any:
        """The samples X as rows: X itself, or features that are made of it."""
        return X

    @property
    def scales(self) -> tuple[float, ...] | None:
        """What each feature is multiplied by before :meth:`of_pair`; None for 1."""
        return None

    def scaled(self, xp: Any, X: Array, name: str = "X") -> Array:
        """Native rows times :attr:`scales`: the rows that the pair quantity is about."""
        if self.scales is None:
            return X
        if X.shape[1] != len(self.scales):
            raise ValueError(
                f"{self!r} is for {len(self.scales)} features, but {name} has {X.shape[1]}"
            )
        X = X * xp.asarray(self.scales, X.dtype)
        if not bool(xp.isfinite(X).all()):
            raise ValueError(f"{self!r} times {name} overflows {X.dtype}: scale {name} down")
        return X

    @property
    def maps_rows(self) -> bool:
        """Whether :meth:`rows` or :meth:`scaled` change anything."""
        return self.scales is not None

    def __add__(self, other: Any) -> Kernel:
        """The kernel κ(x, z) + κ′(x, z)."""
        from selfdistill_fast.combined import Sum

        return Sum.of((1.0, self), (1.0, other)) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: Any) -> Kernel:
        """The kernel c κ(x, z) for a number c > 0, or κ(x, z) κ′(x, z)."""
        from selfdistill_fast.combined import Product, Sum

        if isinstance(other, Kernel):
            return Product.of(self, other)
        real = isinstance(other, numbers.Real) and not isinstance(other, bool)
        return Sum.of((float(other), self)) if real else NotImplemented

    __rmul__ = __mul__

    # _ranges.py uses these to keep squares and products within the range of a dtype: the first
    # two for a distance kernel, the last two for any other kernel with a pair quantity.
    @property
    def log2_rate(self) -> float:
        """log₂(1/ℓ), where ℓ is the kernel's own length scale, beyond which κ decays."""
        raise NotImplementedError

    def rescaled(self, e: int) -> Kernel:
        """The kernel κ′ with κ′(2^e x, 2^e z) = κ(x, z)."""
        raise NotImplementedError

    @property
    def core(self) -> Kernel:
        """A kernel with core(2^a x, 2^b z) = 2^(a + b) core(x, z); κ is a function of it."""
        return self

    def of_core(self, xp: Any, core: Array, e: Array) -> Array:
        """κ(x, z) from core(x, z) = ``core`` · 2^e."""
        return xp.ldexp(core, e)

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters, enough for :func:`kernel_from_dict`."""
        values = asdict(self).items()  # JSON has no infinity
        return {"name": self.name, **{k: "inf" if v == math.inf else v for k, v in values}}


def _common(rate: Any) -> float:
    """The parameter of scaled rows: 1 if there is one for each feature."""
    return 1.0 if isinstance(rate, tuple) else float(rate)


def _each(rate: Any, scale: Callable[[float], float]) -> tuple[float, ...] | None:
    return tuple(map(scale, rate)) if isinstance(rate, tuple) else None


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
        _check_rates(self, "gamma")

    @property
    def scales(self) -> tuple[float, ...] | None:
        return _each(self.gamma, math.sqrt)

    @property
    def c_spec(self) -> tuple[str, float, float, int]:
        return ("rbf", _common(self.gamma), 0.0, 0)

    @property
    def log2_rate(self) -> float:
        return 0.5 * math.log2(_common(self.gamma))

    def rescaled(self, e: int) -> RBF:
        return RBF(math.ldexp(_common(self.gamma), -2 * e))

    def of_pair(self, xp: Any, s: Array, xx: Array, zz: Array) -> Array:
        return xp.exp(-_common(self.gamma) * s)


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
        _check_rates(self, "gamma")

    @property
    def scales(self) -> tuple[float, ...] | None:
        return _each(self.gamma, float)

    @property
    def c_spec(self) -> tuple[str, float, float, int]:
        return ("laplacian", _common(self.gamma), 0.0, 0)

    @property
    def log2_rate(self) -> float:
        return math.log2(_common(self.gamma))

    def rescaled(self, e: int) -> Laplacian:
        return Laplacian(math.ldexp(_common(self.gamma), -e))

    def of_pair(self, xp: Any, s: Array, xx: Array, zz: Array) -> Array:
        return xp.exp(-_common(self.gamma) * s)


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
        _check_rates(self, "length_scale")
        if self.nu not in (0.5, 1.5, 2.5, math.inf):
            raise ValueError(
                f"Matern: nu must be one of 0.5, 1.5, 2.5 or inf, got {self.nu!r}; "
                "other values have no elementary formula"
            )
        object.__setattr__(self, "nu", float(self.nu))

    @property
    def scales(self) -> tuple[float, ...] | None:
        return _each(self.length_scale, lambda scale: 1.0 / scale)

    @property
    def c_spec(self) -> tuple[str, float, float, int]:
        scale = _common(self.length_scale)
        if self.nu == math.inf:
            return ("rbf", 0.5 / (scale * scale), 0.0, 0)
        return (f"matern{round(2 * self.nu)}2", 1.0 / scale, 0.0, 0)

    @property
    def log2_rate(self) -> float:
        return -math.log2(_common(self.length_scale))

    def rescaled(self, e: int) -> Matern:
        return Matern(math.ldexp(_common(self.length_scale), e), self.nu)

    def of_pair(self, xp: Any, s: Array, xx: Array, zz: Array) -> Array:
        scale = _common(self.length_scale)
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
        _check_count(self, "degree")
        _check_real(self, "gamma", minimum=0.0, open_=True)
        _check_real(self, "coef0", minimum=-math.inf, open_=True)

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
class Features(Linear):
    """Linear kernel κ(x, z) = ⟨φ(x), φ(z)⟩ of a feature map φ with finitely many features.

    Such as random Fourier features, the embeddings of a network, or a scikit-learn transformer.
    Every solver serves it; ``solver="primal"`` never forms K, so its cost grows linearly with
    the number of rows.

    Parameters
    ----------
    function : callable, or object with a method ``transform``
        ``function(X)`` with n samples returns their features, (n, D). X is whatever
        ``spectrum`` and ``predict`` are given (images, texts, …), or blocks of rows, where X is
        no array in memory. Each row of the result must depend on the same row of X only; a
        transformer must have been fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import Features, distill, spectrum
    >>> X = np.linspace(0, 1, 50)[:, None]
    >>> waves = Features(lambda X: np.cos(np.pi * X * np.arange(6)))
    >>> s = spectrum(X, np.cos(2 * np.pi * X[:, 0]), waves, solver="primal")
    >>> distill(s, lam=1e-3, alpha=0.5, n_steps=2).coef().round(2) + 0.0
    array([0., 0., 1., 0., 0., 0.])
    """

    function: Any
    name: ClassVar[str] = "features"

    def __post_init__(self) -> None:
        if not (callable(self.function) or hasattr(self.function, "transform")):
            raise TypeError(
                f"Features: function must be callable, or have a method transform; got "
                f"{self.function!r}"
            )

    @property
    def maps_rows(self) -> bool:
        return True

    def rows(self, X: Any, name: str = "X") -> Any:
        """φ(X), (n, D)."""
        features = getattr(self.function, "transform", self.function)(X)
        shape, n = getattr(features, "shape", None), len(X) if hasattr(X, "__len__") else None
        if shape is None or len(shape) != 2 or (n is not None and shape[0] != n):
            raise ValueError(
                f"Features: the function must return an array (n, D) for n samples; it returned "
                f"{type(features).__name__ if shape is None else f'shape {tuple(shape)}'} for "
                f"{name} with {n} samples"
            )
        return features

    def to_dict(self) -> dict[str, Any]:
        raise TypeError(
            "a feature map cannot be saved: code is not data. Use Linear() on the features, and "
            "keep the function yourself"
        )


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
        _check_count(self, "depth")

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


@dataclass(frozen=True)
class Precomputed(Kernel):
    """The caller computes K: pass K(X, X_train) wherever rows X are expected."""

    name: ClassVar[str] = "precomputed"

    @property
    def definite(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class OfSamples(Precomputed):
    """A function of (X, Z) for samples that are no rows of numbers: strings, graphs, ….

    The caller passes samples, and :meth:`rows` makes K(X, samples) of them.
    """

    function: Callable[[Any, Any], Any]
    samples: Any

    @property
    def maps_rows(self) -> bool:
        return True

    def rows(self, X: Any, name: str = "X") -> Any:
        """K(X, samples), (m, n)."""
        K = self.function(X, self.samples)
        if np.shape(K) != (len(X), len(self.samples)):
            raise ValueError(
                f"the kernel function returned shape {np.shape(K)} for {len(X)} and "
                f"{len(self.samples)} samples; it must return {(len(X), len(self.samples))}"
            )
        return np.asarray(K)

    def to_dict(self) -> dict[str, Any]:
        raise TypeError(_NO_CODE)

    def __repr__(self) -> str:
        return f"Custom(function={self.function!r})"


def has_rows(X: Any) -> bool:
    """Whether samples are rows of numbers, and not strings, graphs or other objects."""
    if hasattr(X, "dtype") or not isinstance(X, (list, tuple)):
        return getattr(getattr(X, "dtype", None), "kind", "f") not in "OUS"
    try:
        return np.asarray(X).dtype.kind not in "OUS"
    except (TypeError, ValueError, RuntimeError):  # of different lengths, or tensors
        return hasattr(X[0], "detach")


@dataclass(frozen=True)
class Custom(Kernel):
    """A kernel given as a function.

    Parameters
    ----------
    function : callable
        ``function(X, Z)`` with X (n, d) and Z (m, d) returns K of shape (n, m).
        It must be symmetric; ``function(X, X)`` is checked before it is factorised.
    """

    function: Callable[[Any, Any], Any]
    name: ClassVar[str] = "custom"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"Custom: function must be callable, got {self.function!r}")

    @property
    def definite(self) -> bool:
        return False

    def to_dict(self) -> dict[str, Any]:
        raise TypeError(_NO_CODE)


#: Every kernel that has a name, by its name.
KERNELS: dict[str, type[Kernel]] = {
    cls.name: cls for cls in (RBF, Laplacian, Matern, Polynomial, Linear, NTK, Precomputed)
}

_ALIASES = {"poly": "polynomial"}
_NO_CODE = (
    "a callable kernel cannot be saved: code is not data. Use a built-in kernel, or "
    "kernel='precomputed' and keep the function yourself"
)


def kernel_from_dict(spec: dict[str, Any]) -> Kernel:
    """Rebuild a kernel from :meth:`Kernel.to_dict`; ValueError for anything else."""
    params = {k: math.inf if v == "inf" else v for k, v in spec.items()}
    if params.get("name") in ("sum", "product"):
        from selfdistill_fast.combined import combined_from_dict

        return combined_from_dict(spec)
    cls = KERNELS.get(params.pop("name", None))  # type: ignore[arg-type]
    if cls is None or set(params) != {f.name for f in fields(cls)}:
        raise ValueError(f"not the description of a kernel: {spec!r}")
    return cls(**params)


def kernel_from_name(
    kernel: Any,
    n_features: int,
    *,
    gamma: float | None = None,
    degree: int = 3,
    coef0: float = 1,
    length_scale: float = 1.0,
    nu: float = 1.5,
) -> Kernel:
    """The kernel described by scikit-learn's string name and parameters.

    Parameters
    ----------
    kernel : str, Kernel or callable
        "rbf", "laplacian", "matern", "poly"/"polynomial", "linear", "ntk" (one hidden
        layer), "precomputed"; an instance and a callable are passed through.
    n_features : int
        ``gamma=None`` means 1 / n_features.
    """
    if not isinstance(kernel, str):
        return as_kernel(kernel)
    name = _ALIASES.get(kernel, kernel)
    if name not in KERNELS:
        raise ValueError(
            f"unknown kernel {kernel!r}; known names: {', '.join(sorted([*KERNELS, *_ALIASES]))}; "
            "or pass a kernel object such as RBF(0.1), or a function of (X, Z)"
        )
    given = {
        "gamma": 1.0 / n_features if gamma is None else gamma,
        "degree": degree,
        "coef0": coef0,
        "length_scale": length_scale,
        "nu": nu,
        "depth": 1,
    }
    cls = KERNELS[name]
    return cls(**{f.name: given[f.name] for f in fields(cls)})


def as_kernel(kernel: Any, X: Any = None) -> Kernel:
    """``kernel`` as a :class:`Kernel`: an instance, a name, or a callable.

    ``X``: samples, or their number of features, for the γ of "rbf", "laplacian" and "poly".
    """
    if isinstance(kernel, Kernel):
        return kernel
    if isinstance(kernel, str):
        shape = (0, X) if isinstance(X, int) else getattr(X, "shape", None)
        if shape is None and isinstance(X, (list, tuple)):
            shape = np.shape(X)
        if shape is None or len(shape) != 2 or not shape[1]:
            if kernel not in ("precomputed", "linear", "ntk", "matern"):
                raise TypeError(
                    f"kernel={kernel!r} means γ = 1/n_features, and X has no such number here; "
                    "write the kernel itself, such as RBF(0.1)"
                )
            shape = (0, 1)
        return kernel_from_name(kernel, int(shape[1]))
    if isinstance(kernel, type) and issubclass(kernel, Kernel):
        raise TypeError(f"kernel is the class {kernel.__name__}; write {kernel.__name__}(...)")
    if callable(kernel):
        return Custom(kernel)
    raise TypeError(
        "kernel must be a kernel object such as RBF(0.1), a function of (X, Z), or a name such as "
        f"'rbf'; got {kernel!r}"
    )
