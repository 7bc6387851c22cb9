"""The names that arguments may have, for editors and type checkers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from selfdistill_fast.kernels import Kernel

__all__ = ["AlphaLike", "HasArray", "KernelLike", "KernelName", "Numbers", "SolverName"]

SolverName = Literal["auto", "eigh", "cholesky", "tridiagonal", "krylov", "primal", "nystrom"]
KernelName = Literal[
    "rbf", "laplacian", "matern", "poly", "polynomial", "linear", "ntk", "precomputed"
]


class HasArray(Protocol):
    """An array of any library."""

    def __array__(self) -> Any:
        """As a NumPy array."""


KernelLike = Kernel | KernelName | Callable[[Any, Any], Any]
Numbers = float | Sequence[float] | HasArray
AlphaLike = Numbers | Literal["optimal", "joint"]
