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

import contextlib
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from selfdistill_fast._backend import get_backend
from selfdistill_fast._backend.threads import one_blas_thread
from selfdistill_fast._validation import plain

__all__ = ["Rows", "as_rows", "in_memory", "is_dask", "map_dask"]

#: rows per chunk of a stored array that is not chunked itself
_RANGE = 65536


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
            yield start, function(block, *_cut(aligned, start, stop))
            start = stop

    def total(self, function: Callable[..., Any], size: int, *aligned: Any) -> tuple[Any, ...]:
        """Sum of the tuples function(block, …) over all blocks, in their order."""
        sums: tuple[Any, ...] = ()
        start = 0
        for block in self.blocks(size):
            stop = start + block.shape[0]
            part = function(block, *_cut(aligned, start, stop))
            sums = _add(sums, part) if sums else part
            start = stop
            del part
        return sums


class StoredRows(Rows):
    """Rows of an array in a file; X[a:b] reads only those rows."""

    streaming = True

    def __init__(self, be: Any, X: Any) -> None:
        if len(X.shape) != 2:
            raise ValueError(f"X must have 2 dimension(s), got shape {tuple(X.shape)}")
        self.backend, self._X = be, X
        self.shape = tuple(int(s) for s in X.shape)
        self.dtype = be.asarray(np.empty((0, self.shape[1]), X.dtype), "X").dtype
        chunks = getattr(X, "chunks", None)  # a memory map has none
        rows = int(chunks[0]) if chunks else max(1, min(_RANGE, (1 << 24) // max(X.shape[1], 1)))
        self._edges = [*range(0, self.shape[0], max(rows, 1)), self.shape[0]]

    def copy(self) -> Rows:
        """Return self: the file must not change."""
        return self

    def __getitem__(self, indices: Any) -> Any:
        indices = self.backend.to_numpy(indices)
        order = np.argsort(indices, kind="stable")
        result = np.empty((len(indices), self.shape[1]), self.dtype)
        bounds = np.searchsorted(indices[order], self._edges)
        for i, (lo, hi) in enumerate(_pairs(bounds)):
            if lo < hi:
                chosen = indices[order[lo:hi]]
                first, last = int(chosen[0]), int(chosen[-1])
                rows = np.asarray(self._X[first : last + 1])[chosen - first]
                result[order[lo:hi]] = _checked(
                    get_backend("reference"), rows, self._name(i), chosen, self._edges[i]
                )
        return self.backend.asarray(result)

    def blocks(self, size: int) -> Iterator[Any]:
        return _rebatched(self._chunks(), size, self.backend.xp)

    def _chunks(self) -> Iterator[Any]:
        ranges = list(zip(self._edges[:-1], self._edges[1:], strict=True))
        read: Any = ((np.asarray(self._X[start:stop]),) for start, stop in ranges)
        dtype = np.dtype(self._X.dtype)
        if dtype.kind in "fiub" and dtype.isnative and dtype.itemsize <= 8:  # as it is
            read = self.backend.stream(read)  # on a device, reads ahead of the computation
        for i, ((start, stop), (rows,)) in enumerate(zip(ranges, read, strict=True)):
            yield _checked(self.backend, rows, self._name(i), range(start, stop), start)

    def _name(self, i: int) -> str:
        return f"X, chunk {i} of {len(self._edges) - 1}"


class ChunkedRows(Rows):
    """Rows of a re-iterable of chunks of X, or of pairs (X, y), in which case y is collected."""

    streaming = True

    def __init__(self, be: Any, source: Any, y: Any = None) -> None:
        self.backend, self._source = be, source
        self._pairs: bool | None = None
        self._count: int | None = None
        self.shape, self.dtype = (0, 0), None
        targets: list[np.ndarray] = []
        n = count = 0
        for chunk, y_chunk in self._read():
            n, count = n + chunk.shape[0], count + 1
            if y_chunk is not None:
                if targets and y_chunk.shape[1:] != targets[0].shape[1:]:
                    raise ValueError(
                        f"y, chunk {count - 1}: shape {y_chunk.shape}, but the first chunk has "
                        f"{targets[0].shape}; every chunk must have the same targets"
                    )
                targets.append(y_chunk)
        self.shape, self._count = (n, self.shape[1]), count
        if self._pairs and y is not None:
            raise ValueError("the chunks are pairs (X, y), but Y is given as well: pass Y=None")
        if self._pairs is False and y is None:
            raise ValueError("Y is missing: pass it, or make every chunk a pair (X, y)")
        self.y = np.concatenate(targets) if targets else y

    def copy(self) -> Rows:
        """Return self: the source must yield the same rows every time."""
        return self

    def __getitem__(self, indices: Any) -> Any:
        xp = self.backend.xp
        indices = self.backend.to_numpy(indices)
        order = np.argsort(indices, kind="stable")
        result = xp.empty((len(indices), self.shape[1]), self.dtype)
        start = done = 0
        for chunk in self._chunks():
            stop = start + chunk.shape[0]
            upto = int(np.searchsorted(indices[order], stop))
            here = order[done:upto]
            if len(here):
                result[xp.asarray(here)] = chunk[xp.asarray(indices[here] - start)]
            start, done = stop, upto
        return result

    def blocks(self, size: int) -> Iterator[Any]:
        return _rebatched(self._chunks(), size, self.backend.xp)

    def _chunks(self) -> Iterator[Any]:
        """Read the rows again; ValueError unless there are as many as before."""
        n = 0
        for chunk, _ in self._read(targets=False):
            n += chunk.shape[0]
            if n > self.shape[0]:
                break
            yield chunk
        if n != self.shape[0]:
            raise ValueError(
                f"X yielded {self.shape[0]} rows at first and {'more' if n > self.shape[0] else n} "
                "when it was read again; it must yield the same rows every time"
            )

    def _read(self, *, targets: bool = True) -> Iterator[tuple[Any, Any]]:
        """Checked native chunks and their targets; d and dtype are those of the first one."""
        start = 0
        for i, item in enumerate(_begin(self._source)):
            of = "" if self._count is None else f" of {self._count}"
            pair = isinstance(item, tuple)
            if pair and len(item) != 2:
                raise ValueError(
                    f"X, chunk {i}{of} is a tuple of {len(item)}; a chunk is an array (rows, d) "
                    "or a pair (X, y)"
                )
            if self._pairs is None:
                self._pairs = pair
            elif pair != self._pairs:
                raise ValueError(
                    f"X, chunk {i}{of} is {'a pair (X, y)' if pair else 'not a pair (X, y)'} "
                    "unlike the chunks before it: all must be pairs, or none"
                )
            rows = item[0] if pair else item
            rows = plain(rows, f"X, chunk {i}{of}")
            rows = rows if hasattr(rows, "shape") else np.asarray(rows)
            indices = range(start, start + len(rows) if rows.ndim else start)
            chunk = _checked(self.backend, rows, f"X, chunk {i}{of}", indices, start)
            if self.dtype is None:
                self.shape, self.dtype = (0, chunk.shape[1]), chunk.dtype
            for what, here, first in (
                ("columns", chunk.shape[1], self.shape[1]),
                ("dtype", chunk.dtype, self.dtype),
            ):
                if here != first:
                    raise ValueError(
                        f"X, chunk {i}{of} (from row {start}): {what} {here}, but the first chunk "
                        f"has {first}; every chunk must have the same"
                    )
            y_chunk = None
            if pair and targets:
                y_chunk = get_backend("reference").asarray(
                    item[1], f"y, chunk {i}{of} (chunks and rows are counted from 0)", ndim=(1, 2)
                )
                if y_chunk.shape[0] != chunk.shape[0]:
                    raise ValueError(
                        f"chunk {i}{of}: X has {chunk.shape[0]} rows, but y has {y_chunk.shape[0]}"
                    )
            start += chunk.shape[0]
            yield chunk, y_chunk


class DaskRows(Rows):
    """Rows of a dask array: one thread processes each chunk on the worker that holds it."""

    streaming = True

    def __init__(self, be: Any, X: Any) -> None:
        if X.ndim != 2:
            raise ValueError(f"X must have 2 dimension(s), got shape {X.shape}")
        self._X = X = _one_column_chunk(X)
        self.backend = be
        self.shape = tuple(int(s) for s in X.shape)
        self.dtype = be.asarray(np.empty((0, self.shape[1]), X.dtype), "X").dtype
        self._edges = np.cumsum([0, *X.chunks[0]]).tolist()

    def copy(self) -> Rows:
        """Return self: the result of the graph must not change."""
        return self

    def __getitem__(self, indices: Any) -> Any:
        indices = self.backend.to_numpy(indices)
        order = np.argsort(indices, kind="stable")
        with _quiet():
            rows = self._X[indices[order]].compute()
        for i, (lo, hi) in enumerate(_pairs(np.searchsorted(indices[order], self._edges))):
            if lo < hi:
                chosen = indices[order[lo:hi]]
                _checked(self.backend, rows[lo:hi], self._name(i), chosen, self._edges[i])
        result = np.empty(rows.shape, self.dtype)
        result[order] = rows
        return self.backend.asarray(result)

    def each(self, function: Callable[..., Any], size: int, *aligned: Any) -> Iterator[Any]:
        from dask import compute

        with _quiet():
            parts = compute(*self._tasks(_each_of_chunk, function, size, aligned))
        firsts = [start for start, stop in _pairs(self._edges) if start < stop]
        for first, blocks in zip(firsts, parts, strict=True):
            for start, part in blocks:
                yield first + start, part

    def total(self, function: Callable[..., Any], size: int, *aligned: Any) -> tuple[Any, ...]:
        from dask import delayed

        parts = self._tasks(_total_of_chunk, function, size, aligned)
        add = delayed(_added, pure=False)
        while len(parts) > 1:  # a fixed order, whichever part is ready first
            parts = [
                add(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i]
                for i in range(0, len(parts), 2)
            ]
        with _quiet():
            return parts[0].compute()

    def _tasks(
        self, run: Callable[..., Any], function: Callable[..., Any], size: int, aligned: Any
    ) -> list[Any]:
        """run(function, …) of every chunk that has rows, for a worker."""
        from dask import delayed

        # the scheduler holds the function, with its landmarks, once: it survives the loss of
        # a worker
        shared = delayed(function, name=f"nystrom-{uuid.uuid4().hex}", traverse=False)
        task = delayed(run, pure=False)
        chunks = self._X.to_delayed().ravel()
        kind, name = type(self.backend), self._name
        return [
            task(shared, kind, size, chunk, name(i), start, _cut(aligned, start, stop))
            for i, (chunk, (start, stop)) in enumerate(
                zip(chunks, _pairs(self._edges), strict=True)
            )
            if start < stop
        ]

    def _name(self, i: int) -> str:
        return f"X, chunk {i} of {len(self._edges) - 1}"


# ------------------------------------------------------------------- what runs on a worker
def _rows_of_chunk(kind: Any, chunk: Any, name: str, start: int) -> Rows:
    be = kind(n_threads=1)
    chunk = np.asarray(chunk)
    return Rows(be, _checked(be, chunk, name, range(start, start + len(chunk)), start))


def _each_of_chunk(
    function: Any, kind: Any, size: int, chunk: Any, name: str, start: int, aligned: Any
) -> list[Any]:
    with one_blas_thread():
        return list(_rows_of_chunk(kind, chunk, name, start).each(function, size, *aligned))


def _total_of_chunk(
    function: Any, kind: Any, size: int, chunk: Any, name: str, start: int, aligned: Any
) -> tuple[Any, ...]:
    with one_blas_thread():
        return _rows_of_chunk(kind, chunk, name, start).total(function, size, *aligned)


def _map_of_chunk(function: Any, chunk: Any, name: str, start: int) -> Any:
    chunk = np.asarray(chunk)
    rows = _checked(get_backend("reference"), chunk, name, range(start, start + len(chunk)), start)
    with one_blas_thread():
        return function(rows)


def _added(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    # results of other tasks must not be modified: the scheduler may hand them out again
    return tuple(a + b for a, b in zip(left, right, strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask's advice on large graphs: ours hold m² reals on purpose, see ``_tasks``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
        yield


# ------------------------------------------------------------------------------ recognition
def as_rows(be: Any, X: Any, Y: Any) -> tuple[Rows, Any]:
    """(rows, Y) for any kind of X; Y comes from the chunks if they are pairs."""
    if is_dask(X):
        return DaskRows(be, X), Y
    if _is_stored(X):
        return StoredRows(be, X), Y
    if _is_chunked(X):
        rows = ChunkedRows(be, X, Y)
        return rows, rows.y
    return Rows(be, be.asarray(X, "X", ndim=2)), Y


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
        "be requested by name)"
    )
    if is_dask(X) or _is_chunked(X):
        what = "a dask array" if is_dask(X) else f"chunks of rows ({type(X).__name__})"
        whole = "X.compute()" if is_dask(X) else "np.concatenate of the chunks"
        raise TypeError(
            f"X is {what}, but solver={solver!r} needs all rows at once; {hint}; or pass {whole}"
        )
    if _is_stored(X):
        size = int(np.prod(X.shape)) * np.dtype(X.dtype).itemsize
        if size > available:
            raise MemoryError(
                f"X has {size:,} bytes, more than the {available:,} that are available, and "
                f"solver={solver!r} needs all rows at once; {hint}"
            )
    return X


def is_dask(X: Any) -> bool:
    """Whether X is a dask collection; TypeError if it is one but not an array."""
    if not hasattr(X, "__dask_graph__"):
        return False
    if not (hasattr(type(X), "chunks") and hasattr(type(X), "to_delayed")):
        raise TypeError(
            f"X is a dask {type(X).__name__}, not a dask array; "
            "convert it, for a data frame by X.to_dask_array(lengths=True)"
        )
    return True


def map_dask(
    X: Any, n_features: int, function: Callable[[Any], Any], shape: tuple[Any, ...], dtype: Any
) -> Any:
    """A lazy dask array of function(chunk) over the row chunks of a dask array.

    Parameters
    ----------
    X : dask array of shape (m, n_features)
    function : native rows (r, d) → array; must be picklable
    shape : shape of the function's result, with None for the number of rows
    dtype : dtype of the function's result
    """
    from dask import array, delayed

    if X.ndim != 2 or X.shape[1] != n_features:
        raise ValueError(
            f"X has shape {X.shape}, but the model was fitted with {n_features} features"
        )
    X = _one_column_chunk(X)
    edges = np.cumsum([0, *X.chunks[0]]).tolist()
    axis = shape.index(None)
    shared = delayed(function, name=f"predict-{uuid.uuid4().hex}", traverse=False)
    task = delayed(_map_of_chunk, pure=False)
    parts = [
        array.from_delayed(
            task(shared, chunk, f"X, chunk {i} of {len(edges) - 1}", start),
            shape=tuple(stop - start if s is None else s for s in shape),
            dtype=dtype,
        )
        for i, (chunk, (start, stop)) in enumerate(
            zip(X.to_delayed().ravel(), _pairs(edges), strict=True)
        )
    ]
    return array.concatenate(parts, axis=axis)


def _is_stored(X: Any) -> bool:
    module = type(X).__module__.split(".")[0]
    return isinstance(X, np.memmap) or (module in ("zarr", "h5py") and hasattr(X, "shape"))


def _is_chunked(X: Any) -> bool:
    """Whether X is an iterable of chunks, or a function that returns one.

    Raises
    ------
    TypeError
        It can be iterated only once.
    """
    if hasattr(X, "__array__") or hasattr(X, "shape") or isinstance(X, (str, bytes, dict, set)):
        return False
    if isinstance(X, type) or not (callable(X) or hasattr(X, "__iter__")):
        return False
    if hasattr(X, "__next__"):
        raise TypeError(
            f"X is a {type(X).__name__}, which can be read only once, but the fit needs several "
            "passes (for the landmarks, for the sums, for leave-one-out); pass the function that "
            "makes it (X=chunks or X=lambda: chunks(...), not X=chunks(...)), a list of chunks, or "
            "an object whose __iter__ restarts"
        )
    if not isinstance(X, (list, tuple)):
        return True
    first = X[0] if len(X) else None
    if isinstance(first, tuple) and len(first) == 2:
        first = first[0]
    return getattr(first, "ndim", 0) == 2


def _begin(source: Any) -> Iterable[Any]:
    return source() if callable(source) and not hasattr(source, "__iter__") else source


# ---------------------------------------------------------------------------------- helpers
def _checked(be: Any, rows: Any, name: str, indices: Any, start: int) -> Any:
    """A chunk as a native array; errors name the chunk and the row in it and overall.

    ``indices``: indices of its rows among all rows; ``start``: index of the chunk's first row.
    """
    native = be.asarray(rows, name, ndim=2, finite=False)
    finite = be.xp.isfinite(native)
    if not bool(finite.all()):
        position, column = (int(i) for i in np.argwhere(~be.to_numpy(finite))[0])
        row = int(indices[position])
        raise ValueError(
            f"{name}: row {row - start} (row {row} of all, column {column}; everything counted "
            "from 0) contains NaN or infinity; drop or impute such rows"
        )
    return native


def _rebatched(chunks: Iterator[Any], size: int, xp: Any) -> Iterator[Any]:
    """Blocks of exactly ``size`` rows, the last one smaller, for chunks of any size."""
    parts: list[Any] = []
    held = 0
    for chunk in chunks:
        start = 0
        while start < chunk.shape[0]:
            part = chunk[start : start + size - held]
            start += part.shape[0]
            held += part.shape[0]
            parts.append(part)
            if held == size:
                yield parts[0] if len(parts) == 1 else xp.concatenate(parts)
                parts, held = [], 0
    if held:
        yield parts[0] if len(parts) == 1 else xp.concatenate(parts)


def _cut(aligned: Iterable[Any], start: int, stop: int) -> tuple[Any, ...]:
    return tuple(None if a is None else a[start:stop] for a in aligned)


def _pairs(edges: Any) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in pairwise(edges)]


def _add(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pairwise sums, in the memory of the left operands."""
    for a, b in zip(left, right, strict=True):
        a += b
    return left


def _one_column_chunk(X: Any) -> Any:
    """A dask array of known chunk sizes whose chunks are whole rows."""
    if any(np.isnan(size) for sizes in X.chunks for size in sizes):
        raise ValueError("the chunk sizes of X are unknown; call X.compute_chunk_sizes() first")
    return X if len(X.chunks[1]) == 1 else X.rechunk({1: -1})
