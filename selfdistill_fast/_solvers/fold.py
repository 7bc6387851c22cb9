"""A set of rows left out of a factorised training set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Fold"]


class Fold:
    """A left-out set S of retained rows, for leave_out.py; all in weighted coordinates.

    A correction δ (|S|, p) of the targets in S is pushed once and then used through its
    handle, whose form is up to the solver.
    """

    def __init__(self, spectrum: Any, rows: Any) -> None:
        self.spectrum, self.rows = spectrum, rows
        self.q = None if spectrum.q is None else spectrum.q[rows].astype(spectrum.dtype)

    def solver(self, lam: float, filter_: Any) -> Callable[[Any], Any]:
        """r → [(I − A)_SS]⁻¹ r; the filter is that of I − A at λ."""
        raise NotImplementedError

    def push(self, delta: Any) -> Any:
        """A handle for the correction δ."""
        raise NotImplementedError

    def apply(self, filters: list[Any], handles: list[Any]) -> Any:
        """Σ_s f_s(K)_SS δ_s on the complement of q, (|S|, p)."""
        raise NotImplementedError

    def coordinates(self, filters: list[Any], handles: list[Any]) -> Any:
        """Coordinates (k, p) of the target Σ_s f_s(K) E_S δ_s."""
        raise NotImplementedError
