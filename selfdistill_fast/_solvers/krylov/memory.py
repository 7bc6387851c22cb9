"""The cost of a Krylov run: memory, vectors, time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from selfdistill_fast._solvers.problem import Problem, Rates, Work

__all__ = ["fitting_rank", "krylov_bytes", "krylov_rank", "krylov_work"]

#: vectors that are allocated at a time
CHUNK = 64
#: least number of vectors in a block: a product with this many takes hardly longer than with one,
#: and random vectors added to the targets capture the large eigenvalues, which halves the number
#: of products
WIDTH = 4
#: columns of a certificate processed at a time, for each target (at least all steps of one)
CERTIFIED = 3


def krylov_bytes(
    be: Any, n: int, d: int, p: int, dtype: Any, rank: int, storage: str, n_steps: int = 6
) -> int:
    """Peak bytes of a run of ``rank`` vectors: packed K, the basis, and work blocks."""
    itemsize = np.dtype(dtype).itemsize
    rank = min(rank, n)
    basis = -(-rank // CHUNK) * CHUNK * n * 8
    certified = max(CERTIFIED * p, n_steps)
    blocks = 8 * n * (12 * p + 10 * certified + 16)  # of the process; of the certificate
    matrix = be.half_bytes(n, storage) if storage != "none" else 0
    rows = n * d * (2 * itemsize + 16)  # as given and in float64, and packed
    return matrix + basis + blocks + rows + 4 * rank * rank * 8


def fitting_rank(
    budget: int,
    most: int,
    be: Any,
    n: int,
    d: int,
    p: int,
    dtype: Any,
    storage: str,
    n_steps: int,
) -> int:
    """The largest rank up to ``most`` whose :func:`krylov_bytes` fit, but at least one chunk."""
    low, high = min(CHUNK, most), most
    while low < high:
        middle = (low + high + 1) // 2
        if krylov_bytes(be, n, d, p, dtype, middle, storage, n_steps) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def krylov_rank(n: int, lam: float, tol: float) -> int:
    """Expected number of vectors of a run; the actual number depends on the data.

    22 (n/λ)^¼ for eight digits, and proportionally for others: fitted to smooth kernels of a few
    columns, in blocks of four vectors.
    """
    digits = -math.log10(tol) / 8.0
    return max(1, min(n, math.ceil(22.0 * max(n**0.25 / lam**0.25, 1.0) * max(digits, 0.25))))


def krylov_work(problem: Problem, rates: Rates, tol: float, max_rank: int) -> Work:
    """Leading terms: 2 n² r flops in r/4 passes over packed K, which is stored if it fits.

    A run may have ``max_rank`` vectors if they fit, and needs room for 50 % more than expected.
    """
    be, dtype, budget = problem.backend, problem.dtype, problem.budget
    n, p, n_steps = problem.n, problem.p, problem.n_steps
    sizes = (be, n, problem.d, p, dtype)
    smallest = 1e-2 if problem.lam is None else float(np.min(problem.lam))
    width = max(p, WIDTH)
    rank = min(krylov_rank(n, smallest, tol) * max(1, round((width / WIDTH) ** 0.5)), n)
    storage, most = "none", min(n, max_rank)
    for storage in (dtype.name, "none"):
        needed = krylov_bytes(*sizes, min(n, 3 * rank // 2 + 1), storage, n_steps)
        if needed <= budget:
            needed = max(needed, min(krylov_bytes(*sizes, most, storage, n_steps), budget))
            break
    stored = storage != "none"
    passes = rank / width + 2.0 * n_steps * p / width
    one_pass = (
        be.half_bytes(n, dtype) * rates.byte if stored else 0.5 * n * n * rates.entry(problem.d)
    )
    return Work(
        bytes=needed,
        flops=2.0 * n * n * rank + 4.0 * n * rank**2,
        seconds=(0.5 * problem.matrix_seconds(rates) if stored else 0.0)
        + passes * (one_pass + 2.0 * n * n * width * rates.gemm)
        + 16.0 * n * rank**2 * rates.byte
        + 2.0 * n * rank * problem.columns * rates.gemm,
        passes=math.ceil(passes),
        note="" if stored else "K is not stored",
    )
