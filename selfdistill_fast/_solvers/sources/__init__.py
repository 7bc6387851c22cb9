"""Training rows wherever they are stored: in memory, in a file, in chunks, on a Dask cluster.

A solver that passes over its rows in blocks needs four things: their ``shape`` and ``dtype``;
some rows by index, ``rows[indices]``; the sum of a function over all blocks; and the result of a
function for each block, in order.

====================  ===============================  =====================================
X                     class                            read
====================  ===============================  =====================================
array_like            :class:`Rows`                    held in memory
NumPy memory map,     :class:`StoredRows`              a range of rows at a time, never whole
zarr, h5py
re-iterable of        :class:`ChunkedRows`             once from end to end for every pass, and
chunks                                                 once to count and to collect y
dask.array            :class:`DaskRows`                by the workers, where the chunks lie
====================  ===============================  =====================================

Except on Dask, the blocks have the same size however the rows arrive: chunks are split and
joined, so results agree to the last bit. On Dask, each chunk is summed separately and the sums
are added in a fixed order, so the result does not depend on the scheduling.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from selfdistill_fast._solvers.sources.chunked import ChunkedRows, is_chunked
from selfdistill_fast._solvers.sources.dask import DaskRows, is_dask, map_dask
from selfdistill_fast._solvers.sources.memory import MappedRows, Rows
from selfdistill_fast._solvers.sources.stored import StoredRows, is_stored
from selfdistill_fast.kernels import Features, Kernel

__all__ = ["Rows", "as_rows", "features_of", "in_memory", "is_dask", "map_dask"]


def as_rows(be: Any, X: Any, Y: Any, kernel: Kernel) -> tuple[Rows, Any]:
    """(rows, Y) for any kind of X; Y comes from the chunks if they are pairs."""
    if is_dask(X):
        return DaskRows(be, features_of(X, kernel)), Y
    if is_stored(X):
        return MappedRows.of(StoredRows(be, X), kernel), Y
    if is_chunked(X):
        rows = ChunkedRows(be, X, Y)
        return MappedRows.of(rows, kernel), rows.y
    X = be.asarray(kernel.rows(X), "X", ndim=2)
    return Rows(be, kernel.scaled(be.xp, X) if X.size else X), Y


def features_of(X: Any, kernel: Kernel) -> Any:
    """The rows that a kernel's pair quantity is about; lazy for a dask array."""
    if not is_dask(X):
        return kernel.rows(X)
    if kernel.scales is not None:
        kernel.scaled(np, np.zeros((0, X.shape[1])))  # or an error
        return X * np.asarray(kernel.scales, X.dtype)
    if not isinstance(kernel, Features):
        return X
    one = kernel.rows(np.zeros((1, *X.shape[1:]), X.dtype))
    return X.map_blocks(
        kernel.rows,
        dtype=one.dtype,
        chunks=(X.chunks[0], (one.shape[1],)),
        drop_axis=[*range(2, X.ndim)],
        meta=one[:0],
    )


def in_memory(X: Any, solver: str, available: int) -> Any:
    """X itself, if a solver that needs all rows at once can use it.

    Raises
    ------
    TypeError
        Chunks or a dask array.
    MemoryError
        A stored array of more than ``available`` bytes.
    """
    hint = (
        "solver='nystrom' accepts it as it is (the landmark model, an approximation, so it must "
        "be requested by name), and for Linear() and Features(...) solver='primal', which is exact"
    )
    if is_dask(X) or is_chunked(X):
        what = "a dask array" if is_dask(X) else f"chunks of rows ({type(X).__name__})"
        whole = "X.compute()" if is_dask(X) else "np.concatenate of the chunks"
        raise TypeError(
            f"X is {what}, but solver={solver!r} needs all rows at once; {hint}; or pass {whole}"
        )
    if is_stored(X):
        size = int(np.prod(X.shape)) * np.dtype(X.dtype).itemsize
        if size > available:
            raise MemoryError(
                f"X has {size:,} bytes, more than the {available:,} that are available, and "
                f"solver={solver!r} needs all rows at once; {hint}"
            )
    return X
