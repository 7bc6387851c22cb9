"""Rows of an array in memory, and what rows elsewhere have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from selfdistill_fast._backend import deliver
from selfdistill_fast._solvers.sources.blocks import cut
from selfdistill_fast.kernels import Features, Kernel


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

    def total(
        self, function: Callable[..., Any], size: int, *aligned: Any, pairwise: bool = False
    ) -> tuple[Any, ...]:
        """Sum of the tuples function(block, …) over all blocks, in their order.

        ``pairwise``: by pairs of blocks, pairs of pairs, and so on. That is the order of dask
        chunks, and needs the memory of log₂(number of blocks) sums.
        """
        sums: list[tuple[int, tuple[Any, ...]]] = []  # (rank, sum of 2^rank blocks), falling ranks
        for _, part in self.each(function, size, *aligned):
            rank = 0
            while sums and (sums[-1][0] == rank or not pairwise):
                rank, left = sums.pop()
                part, rank = _add(left, part), rank + 1
            sums.append((rank, part))
            del part
        result = sums.pop()[1]
        while sums:
            result = _add(sums.pop()[1], result)
        return result


class StreamedRows(Rows):
    """Rows that are not in memory; they must not change while a model uses them."""

    streaming = True

    def copy(self) -> Rows:
        """Return self: nothing is copied."""
        return self


class MappedRows(StreamedRows):
    """Features of rows that are not in memory, made block by block."""

    def __init__(self, rows: Rows, kernel: Kernel) -> None:
        self.backend, self._rows, self._kernel = rows.backend, rows, kernel
        one = self[self.backend.xp.zeros(1, dtype=int)]
        self.shape, self.dtype = (rows.shape[0], one.shape[1]), one.dtype

    @classmethod
    def of(cls, rows: Rows, kernel: Kernel) -> Rows:
        """The rows themselves, or their features for a kernel that makes some."""
        return cls(rows, kernel) if kernel.maps_rows else rows

    def __getitem__(self, indices: Any) -> Any:
        return self._features(self._rows[indices])

    def blocks(self, size: int) -> Iterator[Any]:
        return (self._features(block) for block in self._rows.blocks(size))

    def _features(self, block: Any) -> Any:
        if isinstance(self._kernel, Features):
            block = self._kernel.rows(deliver(self.backend, block))
            block = self.backend.asarray(block, "the features", ndim=2)
        return self._kernel.scaled(self.backend.xp, block)


def _add(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pairwise sums, in the memory of the left operands."""
    for a, b in zip(left, right, strict=True):
        a += b
    return left
