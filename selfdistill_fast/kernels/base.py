"""The base of all kernels, and the checks of their parameters."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from selfdistill_fast._backend import Array

__all__ = ["Kernel", "check_count", "check_rates", "check_real", "common", "each"]


def check_real(owner: object, name: str, *, minimum: float, open_: bool) -> None:
    """Make an attribute a float; TypeError or ValueError unless it is in range."""
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


def check_rates(owner: object, name: str) -> None:
    """A number > 0, or one for each feature as a tuple."""
    value = getattr(owner, name)
    value = value.tolist() if hasattr(value, "tolist") else value  # an array, or its scalar
    object.__setattr__(owner, name, value)
    if not isinstance(value, (list, tuple)):
        check_real(owner, name, minimum=0.0, open_=True)
        return
    values = []
    for one in value:
        object.__setattr__(owner, name, one.item() if hasattr(one, "item") else one)
        check_real(owner, name, minimum=0.0, open_=True)
        values.append(getattr(owner, name))
    if not values:
        raise ValueError(f"{type(owner).__name__}: {name} is empty; give one for each feature")
    object.__setattr__(owner, name, tuple(values))


def check_count(owner: object, name: str) -> None:
    """Make an attribute an int from 1 to 1000; TypeError or ValueError otherwise."""
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
    def of_mapped_rows(self) -> Kernel:
        """The same kernel for rows that :meth:`rows` and :meth:`scaled` have made already."""
        return self

    @property
    def built_in(self) -> bool:
        """Whether the backend computes every entry itself."""
        return self.pair != ""

    @property
    def maps_rows(self) -> bool:
        """Whether :meth:`rows` or :meth:`scaled` change anything."""
        return self.scales is not None

    def __add__(self, other: Any) -> Kernel:
        """The kernel κ(x, z) + κ′(x, z)."""
        from selfdistill_fast.kernels.combined import Sum

        return Sum.of((1.0, self), (1.0, other)) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: Any) -> Kernel:
        """The kernel c κ(x, z) for a number c > 0, or κ(x, z) κ′(x, z)."""
        from selfdistill_fast.kernels.combined import Product, Sum

        if isinstance(other, Kernel):
            return Product.of(self, other)
        real = isinstance(other, numbers.Real) and not isinstance(other, bool)
        return Sum.of((float(other), self)) if real else NotImplemented

    __rmul__ = __mul__

    def __radd__(self, other: Any) -> Kernel:
        """For ``sum(kernels)``, which starts with 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

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


def common(rate: Any) -> float:
    """The parameter of scaled rows: 1 if there is one for each feature."""
    return 1.0 if isinstance(rate, tuple) else float(rate)


def each(rate: Any, scale: Callable[[float], float]) -> tuple[float, ...] | None:
    """The scale of each feature, or None if all have one parameter."""
    return tuple(map(scale, rate)) if isinstance(rate, tuple) else None
