"""Sums and products of kernels: ``RBF(0.1) + Linear()``, ``0.5 * RBF(0.1)``, ``RBF() * Linear()``.

Both are positive semi-definite if their parts are. Every part is computed by the backend's own
loops; a product of K with a matrix of weights needs no K where the kernel is a sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from selfdistill_fast.kernels.base import Kernel
from selfdistill_fast.kernels.given import Features, Precomputed
from selfdistill_fast.kernels.named import Polynomial

__all__ = ["Combined", "Product", "Sum"]


@dataclass(frozen=True)
class Combined(Kernel):
    """Base of sums and products."""

    parts: tuple[Kernel, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if isinstance(part, (Precomputed, Features)):
                raise TypeError(
                    f"{type(part).__name__} cannot be part of a sum or product: combine the "
                    "matrices, or the features, themselves"
                )
            if isinstance(part, Polynomial) and not part.definite:
                raise ValueError(
                    f"{part!r} is indefinite, and cannot be part of a sum or product of kernels"
                )

    @property
    def definite(self) -> bool:
        """Whether every part is."""
        return all(part.definite for part in self.parts)

    @property
    def built_in(self) -> bool:
        """Whether every part is."""
        return all(part.built_in for part in self.parts)

    def combined(self, values: Any) -> Any:
        """κ from an iterator of those of the parts, whose arrays may be overwritten."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sum(Combined):
    """Weighted sum of kernels, Σ_i w_i κ_i(x, z); made by ``+`` and by products with numbers.

    Parameters
    ----------
    parts : tuple of Kernel
    weights : tuple of float > 0
    """

    weights: tuple[float, ...]
    name: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts or len(self.parts) != len(self.weights):
            raise ValueError("Sum needs one weight for each of its parts, and at least one part")
        if not all(0.0 < w < math.inf for w in self.weights):
            raise ValueError(f"the weights of kernels must be finite and > 0, got {self.weights}")

    @classmethod
    def of(cls, *terms: tuple[float, Kernel]) -> Self:
        """A sum without nested sums."""
        flat = [
            (weight * own, part)
            for weight, kernel in terms
            for own, part in (
                zip(kernel.weights, kernel.parts, strict=True)
                if isinstance(kernel, Sum)
                else [(1.0, kernel)]
            )
        ]
        return cls(tuple(part for _, part in flat), tuple(weight for weight, _ in flat))

    def combined(self, values: Any) -> Any:
        """Σ w_i κ_i."""
        total = None
        for weight, value in zip(self.weights, values, strict=True):
            if weight != 1.0:
                value *= weight
            if total is None:
                total = value
            else:
                total += value
        return total

    def to_dict(self) -> dict[str, Any]:
        """The descriptions of the parts; TypeError if one is a function."""
        parts = [part.to_dict() for part in self.parts]
        return {"name": self.name, "parts": parts, "weights": list(self.weights)}

    def __repr__(self) -> str:
        terms = (
            f"{'' if w == 1.0 else f'{w!r} * '}{part!r}"
            for w, part in zip(self.weights, self.parts, strict=True)
        )
        return " + ".join(terms)


def _overflows(a: Any) -> bool:
    return bool(a.size) and not (float(a.max()) < math.inf and float(a.min()) > -math.inf)


@dataclass(frozen=True)
class Product(Combined):
    """Product of kernels, Π_i κ_i(x, z); made by ``*``.

    Parameters
    ----------
    parts : tuple of Kernel
    """

    name: ClassVar[str] = "product"

    @classmethod
    def of(cls, *kernels: Kernel) -> Self:
        """A product without nested products."""
        parts = (kernel.parts if isinstance(kernel, Product) else (kernel,) for kernel in kernels)
        return cls(tuple(part for group in parts for part in group))

    def combined(self, values: Any) -> Any:
        """Π κ_i; 0 wins against a factor that overflows."""
        total = None
        for value in values:
            if total is None:
                total = value
                continue
            zero = None
            if _overflows(total) or _overflows(value):
                zero = (total == 0.0) | (value == 0.0)
            with np.errstate(over="ignore", invalid="ignore"):  # infinite entries stay infinite
                total *= value
            if zero is not None:
                total[zero] = 0.0
        return total

    def to_dict(self) -> dict[str, Any]:
        """The descriptions of the parts; TypeError if one is a function."""
        return {"name": self.name, "parts": [part.to_dict() for part in self.parts]}

    def __repr__(self) -> str:
        return " * ".join(
            f"({part!r})" if isinstance(part, Sum) else repr(part) for part in self.parts
        )
