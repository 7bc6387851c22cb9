"""Memory of a landmark model, and the sizes that it follows from."""

from __future__ import annotations

from typing import Any

import numpy as np

from selfdistill_fast._backend.threads import n_threads_now
from selfdistill_fast._solvers.feature_space import block_rows

__all__ = ["BATCH", "nystrom_bytes", "pilot_rows", "pool_rows"]

#: landmarks that are drawn at a time, and columns of R that are computed at a time
BATCH = 128
#: randomly pivoted Cholesky and k-means see a uniform sample of at most this many rows for
#: each landmark; of rows in memory at least so many
_POOL, _POOL_ROWS = 10, 32_768
#: "auto" decides by models of a quarter of the landmarks (at least so many) on so many rows at
#: least and at most, of which a quarter is held out
_PILOT_LANDMARKS, _PILOT_ROWS = 16, (4096, 32_768)
#: bytes that the C library keeps of blocks that were freed, and that BLAS packs blocks into on
#: each of its threads; and what scikit-learn's clustering takes when it is imported
_RESERVE, _PACKED, _CLUSTERING = 16 << 20, 16 << 20, 144 << 20


def pool_rows(n: int, m: int, streaming: bool) -> int:
    """Rows that landmarks are chosen from."""
    return min(n, _POOL * m if streaming else max(_POOL * m, _POOL_ROWS))


def pilot_rows(pool: int, m: int) -> int:
    """Rows of the pilot of "auto"; 0 where there is none."""
    rows = min(pool, _PILOT_ROWS[1])
    return rows if rows >= _PILOT_ROWS[0] and m // 4 >= _PILOT_LANDMARKS else 0


def nystrom_bytes(
    be: Any,
    n: int,
    d: int,
    p: int,
    m: int,
    dtype: Any,
    *,
    streaming: bool = False,
    sampling: str = "auto",
    block: int | None = None,
) -> int:
    """Peak bytes of a landmark model's factorisation, beside the caller's X and Y.

    Parameters
    ----------
    be : backend
    n, d, p, m : int
        Rows, features, targets, landmarks.
    dtype : dtype of X
    streaming : bool
        X is no array in memory, and is not copied.
    sampling, block
        As in :func:`~selfdistill_fast.spectrum`.
    """
    size, m = np.dtype(dtype).itemsize, min(n, m)
    pool = pool_rows(n, m, streaming)
    rows = min(n, block_rows(block, m))
    held = (0 if streaming else n * d * size) + n * (p * (24 + 2 * size) + 8) + m * d * size
    stages = [0]
    if sampling in ("rpcholesky", "auto"):  # rows, factor, a batch of columns and its copies
        stages.append(pool * (d * (size + 8) + m * size + 6 * BATCH * size + 48))
    if sampling in ("kmeans", "auto"):
        stages.append(pool * (d * (2 * size + 8) + 32) + 3 * m * d * size)
    if sampling == "auto" and pilot_rows(pool, m):
        pilot = be, pilot_rows(pool, m), d, p, m // 4, dtype
        smaller = nystrom_bytes(*pilot, sampling="rpcholesky", block=block)
        stages.append(2 * pool * d * size + smaller)
    landmarks = max(stages)
    triangle = m * m * (size + 32)
    cast = 8 if size < 8 else 0
    copy = d * size if streaming else 0  # a block that is joined from chunks
    one_pass = 24 * m * m + rows * (m * (size + 8 + cast) + 2 * copy + 8 * (2 * d + p)) + 8 * m * d
    solve = 8 * m * m + be.eigh_bytes(m, np.float64)
    reserve = _RESERVE + _PACKED * n_threads_now()
    if sampling == "kmeans" or (sampling == "auto" and pilot_rows(pool, m)):
        reserve += _CLUSTERING
    return int(reserve + held + max(landmarks, triangle, one_pass, solve))
