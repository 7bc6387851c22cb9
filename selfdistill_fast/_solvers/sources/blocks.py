"""Blocks of rows: checked, cut to one size, and beside them what belongs to the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np


def checked(be: Any, rows: Any, name: str, indices: Any, start: int) -> Any:
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


def rebatched(chunks: Iterator[Any], size: int, xp: Any) -> Iterator[Any]:
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


def cut(aligned: Iterable[Any], start: int, stop: int) -> tuple[Any, ...]:
    return tuple(None if a is None else a[start:stop] for a in aligned)


def pairs(edges: Any) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in pairwise(edges)]
