"""Rows of a dask array, and the lazy result of a function for each of its chunks."""

from __future__ import annotations

import contextlib
import functools
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from selfdistill_fast._backend import get_backend
from selfdistill_fast._backend.threads import one_blas_thread
from selfdistill_fast._solvers.sources.blocks import checked, cut, pairs
from selfdistill_fast._solvers.sources.memory import Rows, StreamedRows


class DaskRows(StreamedRows):
    """Rows of a dask array: one thread processes each chunk on the worker that holds it."""

    def __init__(self, be: Any, X: Any) -> None:
        if X.ndim != 2:
            raise ValueError(f"X must have 2 dimension(s), got shape {X.shape}")
        self._X = X = _one_column_chunk(X)
        self.backend = be
        self.shape = tuple(int(s) for s in X.shape)
        self.dtype = be.asarray(np.empty((0, self.shape[1]), X.dtype), "X").dtype
        self._edges = np.cumsum([0, *X.chunks[0]]).tolist()

    def __getitem__(self, indices: Any) -> Any:
        indices = self.backend.to_numpy(indices)
        order = np.argsort(indices, kind="stable")
        with _quiet():
            rows = self._X[indices[order]].compute()
        for i, (lo, hi) in enumerate(pairs(np.searchsorted(indices[order], self._edges))):
            if lo < hi:
                chosen = indices[order[lo:hi]]
                checked(self.backend, rows[lo:hi], self._name(i), chosen, self._edges[i])
        result = np.empty(rows.shape, self.dtype)
        result[order] = rows
        return self.backend.asarray(result)

    def each(self, function: Callable[..., Any], size: int, *aligned: Any) -> Iterator[Any]:
        from dask import compute

        with _quiet():
            parts = compute(*self._tasks(_each_of_chunk, function, size, aligned))
        firsts = [start for start, stop in pairs(self._edges) if start < stop]
        for first, blocks in zip(firsts, parts, strict=True):
            for start, part in blocks:
                yield first + start, part

    def total(
        self, function: Callable[..., Any], size: int, *aligned: Any, pairwise: bool = False
    ) -> tuple[Any, ...]:
        from dask import delayed

        run = functools.partial(_total_of_chunk, pairwise)
        parts = self._tasks(run, function, size, aligned)
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
            task(shared, kind, size, chunk, name(i), start, cut(aligned, start, stop))
            for i, (chunk, (start, stop)) in enumerate(zip(chunks, pairs(self._edges), strict=True))
            if start < stop
        ]

    def _name(self, i: int) -> str:
        return f"X, chunk {i} of {len(self._edges) - 1}"


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
            zip(X.to_delayed().ravel(), pairs(edges), strict=True)
        )
    ]
    return array.concatenate(parts, axis=axis)


def _one_column_chunk(X: Any) -> Any:
    """A dask array of known chunk sizes whose chunks are whole rows."""
    if any(np.isnan(size) for sizes in X.chunks for size in sizes):
        raise ValueError("the chunk sizes of X are unknown; call X.compute_chunk_sizes() first")
    return X if len(X.chunks[1]) == 1 else X.rechunk({1: -1})


# ------------------------------------------------------------------- what runs on a worker
def _rows_of_chunk(kind: Any, chunk: Any, name: str, start: int) -> Rows:
    be = kind(n_threads=1)
    chunk = np.asarray(chunk)
    return Rows(be, checked(be, chunk, name, range(start, start + len(chunk)), start))


def _each_of_chunk(
    function: Any, kind: Any, size: int, chunk: Any, name: str, start: int, aligned: Any
) -> list[Any]:
    with one_blas_thread():
        return list(_rows_of_chunk(kind, chunk, name, start).each(function, size, *aligned))


def _total_of_chunk(
    pairwise: bool,
    function: Any,
    kind: Any,
    size: int,
    chunk: Any,
    name: str,
    start: int,
    aligned: Any,
) -> tuple[Any, ...]:
    with one_blas_thread():
        return _rows_of_chunk(kind, chunk, name, start).total(
            function, size, *aligned, pairwise=pairwise
        )


def _map_of_chunk(function: Any, chunk: Any, name: str, start: int) -> Any:
    chunk = np.asarray(chunk)
    rows = checked(get_backend("reference"), chunk, name, range(start, start + len(chunk)), start)
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
