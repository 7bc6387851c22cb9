"""Rows of an array in memory, and what rows that are not do alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from selfdistill_fast._solvers.sources.blocks import cut


class Rows:
    """Rows of a native array.

    Attributes
    ----------
    backend : backend object
    shape : (n, d)
    dtype : float32 or float64
    """

    #: the rows belong to the caller and are read again when needed
    streaming = False

    def __init__(self, be: Any, X: Any) -> None:
        self.backend, self._X = be, X
        self.shape, self.dtype = X.shape, X.dtype

    def copy(self) -> Rows:
        """Rows that no change of the caller's array affects, if they are in memory."""
        return type(self)(self.backend, self._X.copy())

    def __getitem__(self, indices: Any) -> Any:
        """Some rows, native (len(indices), d), in the order of the indices."""
        return self._X[indices]

    def blocks(self, size: int) -> Iterator[Any]:
        """All rows in native blocks of ``size``, the last one smaller."""
        for start in range(0, self.shape[0], size):
            yield self._X[start : start + size]

    def each(self, function: Callable[..., Any], size: int, *aligned: Any) -> Iterator[Any]:
        """(first row, function(block, …)) for every block in order.

        The function receives the matching rows of each array in ``aligned`` (n, …); None stays
        None. The function must be picklable.
        """
        start = 0
        for block in self.blocks(size):
            stop = start + block.shape[0]
            yield start, function(block, *cut(aligned, start, stop))
            start = stop

    def total(self, function: Callable[..., Any], size: int, *aligned: Any) -> tuple[Any, ...]:
        """Sum of the tuples function(block, …) over all blocks, in their order."""
        sums: tuple[Any, ...] = ()
        start = 0
        for block in self.blocks(size):
            stop = start + block.shape[0]
            part = function(block, *cut(aligned, start, stop))
            sums = _add(sums, part) if sums else part
            start = stop
            del part
        return sums


class StreamedRows(Rows):
    """Rows that are not in memory; they must not change while a model uses them."""

    streaming = True

    def copy(self) -> Rows:
        """The same: nothing is copied."""
        return self


def _add(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pairwise sums, in the memory of the left operands."""
    for a, b in zip(left, right, strict=True):
        a += b
    return left
