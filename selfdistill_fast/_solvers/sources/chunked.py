"""Rows of a re-iterable of chunks, with or without their targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from selfdistill_fast._backend import get_backend
from selfdistill_fast._solvers.sources.blocks import checked, rebatched
from selfdistill_fast._solvers.sources.memory import StreamedRows
from selfdistill_fast._validation import plain


class ChunkedRows(StreamedRows):
    """Rows of a re-iterable of chunks of X, or of pairs (X, y), in which case y is collected."""

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
            if done == len(order):
                break
        return result

    def blocks(self, size: int) -> Iterator[Any]:
        return rebatched(self._chunks(), size, self.backend.xp)

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
            chunk = checked(self.backend, rows, f"X, chunk {i}{of}", indices, start)
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


def is_chunked(X: Any) -> bool:
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
