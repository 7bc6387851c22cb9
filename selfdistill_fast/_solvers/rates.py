"""Rates of this machine, measured when first needed."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from selfdistill_fast._solvers.problem import Rates
from selfdistill_fast.kernels import RBF

__all__ = ["NOMINAL", "calibrated"]

#: of one core of a server of the 2020s, in double; only ratios matter
NOMINAL = Rates(3e-11, 4e-11, 9e-11, 1.2e-10, 5e-11, 1e-9, 6e-11)

_rates: dict[tuple[str, int | None, str], Rates] = {}


def calibrated(be: Any, dtype: np.dtype) -> Rates:
    """Rates of this machine, measured on the first call, in under a second."""
    key = (be.name, be.n_threads, dtype.name)
    if key not in _rates:
        _rates[key] = _measured(be, dtype)
    return _rates[key]


def _measured(be: Any, dtype: np.dtype) -> Rates:
    """The best of three runs of each kind of work, or the rates that the backend provides."""
    known = be.rates(dtype)
    if known is not None:
        return Rates(**known)
    xp = be.xp
    random = np.random.default_rng(0)

    def rate(work: float, function: Any, *prepare: Any) -> float:
        best = math.inf
        for _ in range(3):
            arguments = [make() for make in prepare]
            start = time.perf_counter()
            be.to_numpy(function(*arguments))  # waits for the device
            best = min(best, time.perf_counter() - start)
        return best / work

    n = 768
    A = xp.asarray(random.normal(size=(n, n)).astype(dtype))
    K = A @ A.T + n * xp.eye(n, dtype=dtype)
    n3 = float(n) ** 3
    gemm = rate(2.0 * n3, lambda: A @ A)
    cholesky = rate(n3 / 3.0, be.cholesky, K.copy)
    eigh = rate(9.0 * n3, lambda K: be.eigh(K)[0], K.copy)
    tridiagonal = rate(4.0 / 3.0 * n3, lambda K: be.tridiagonalise(K)[0], K.copy)
    rows = 1500
    times = []
    for d in (4, 68):
        X = xp.asarray(random.normal(size=(rows, d)).astype(dtype))
        times.append(
            rate(float(rows) ** 2, lambda X: be.gram(X, None, RBF(0.1))[:1], lambda X=X: X)
        )
    column = max(times[1] - times[0], 0.0) / 64.0
    memory = xp.zeros(1 << 23)  # 64 MiB
    byte = rate(2.0 * memory.nbytes, lambda: memory.copy()[:1])
    return Rates(gemm, cholesky, eigh, tridiagonal, byte, max(times[0] - 4 * column, 1e-12), column)
