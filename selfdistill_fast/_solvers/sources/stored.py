"""Rows of an array in a file: a NumPy memory map, zarr, h5py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from selfdistill_fast._backend import get_backend
from selfdistill_fast._solvers.sources.blocks import checked, pairs, rebatched
from selfdistill_fast._solvers.sources.memory import StreamedRows

#: rows per chunk of a stored array that is not chunked itself
_RANGE = 65536


class StoredRows(StreamedRows):
    """Rows of an array in a file; X[a:b] reads only those rows."""

    def __init__(self, be: Any, X: Any) -> None:
        if len(X.shape) != 2:
            raise ValueError(f"X must have 2 dimension(s), got shape {tuple(X.shape)}")
        self.backend, self._X = be, X
        self.shape = tuple(int(s) for s in X.shape)
        self.dtype = be.asarray(np.empty((0, self.shape[1]), X.dtype), "X").dtype
        chunks = getattr(X, "chunks", None)  # a memory map has none
        rows = int(chunks[0]) if chunks else max(1, min(_RANGE, (1 << 24) // max(X.shape[1], 1)))
        self._edges = [*range(0, self.shape[0], max(rows, 1)), self.shape[0]]

    def __getitem__(self, indices: Any) -> Any:
        indices = self.backend.to_numpy(indices)
        order = np.argsort(indices, kind="stable")
        result = np.empty((len(indices), self.shape[1]), self.dtype)
        bounds = np.searchsorted(indices[order], self._edges)
        for i, (lo, hi) in enumerate(pairs(bounds)):
            if lo < hi:
                chosen = indices[order[lo:hi]]
                first, last = int(chosen[0]), int(chosen[-1])
                rows = np.asarray(self._X[first : last + 1])[chosen - first]
                result[order[lo:hi]] = checked(
                    get_backend("reference"), rows, self._name(i), chosen, self._edges[i]
                )
        return self.backend.asarray(result)

    def blocks(self, size: int) -> Iterator[Any]:
        return rebatched(self._chunks(), size, self.backend.xp)

    def _chunks(self) -> Iterator[Any]:
        ranges = list(zip(self._edges[:-1], self._edges[1:], strict=True))
        read: Any = ((np.asarray(self._X[start:stop]),) for start, stop in ranges)
        dtype = np.dtype(self._X.dtype)
        if dtype.kind in "fiub" and dtype.isnative and dtype.itemsize <= 8:  # as it is
            read = self.backend.stream(read)  # on a device, reads ahead of the computation
        for i, ((start, stop), (rows,)) in enumerate(zip(ranges, read, strict=True)):
            yield checked(self.backend, rows, self._name(i), range(start, stop), start)

    def _name(self, i: int) -> str:
        return f"X, chunk {i} of {len(self._edges) - 1}"


def is_stored(X: Any) -> bool:
    module = type(X).__module__.split(".")[0]
    return isinstance(X, np.memmap) or (module in ("zarr", "h5py") and hasattr(X, "shape"))
