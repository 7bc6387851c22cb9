"""What this machine can do at best: the ceilings that the floors of the table follow from.

* copy, fill and read bandwidth: the best of several ways through 512 MB of pages that exist;
* matrix products: the best rate of NumPy's BLAS as it is and with the kernels that it can be
  told to use (OPENBLAS_CORETYPE), each in a process of its own;
* exponentials: our own exp on data that stays in the cache, on every thread at once.

``python bench/ceilings.py`` prints them.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import child
import numpy as np

#: OPENBLAS_CORETYPE whose kernels stand for the peak of an instruction set
CORETYPES = {"avx512": ("", "SkylakeX"), "avx2": ("Haswell", "Zen")}


def best_of(function, rounds=7):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def gemm_seconds():
    """Seconds of a matrix product of order 3000 in float64 and in float32."""
    found = []
    for dtype in (np.float64, np.float32):
        A = np.random.default_rng(0).normal(size=(3000, 3000)).astype(dtype)
        B, C = A.T.copy(), np.empty_like(A)
        found.append(best_of(functools.partial(np.matmul, A, B, out=C), rounds=6))
    return found


def gemm_rates(coretype):
    """(float64, float32) flop/s of NumPy's matrix product, 0 where it fails."""
    env = {"OPENBLAS_CORETYPE": coretype} if coretype else None
    try:
        return [2 * 3000**3 / seconds for seconds in child.run(gemm_seconds, env=env)]
    except child.ChildFailed:
        return [0.0, 0.0]


def bandwidths(threads):
    """Bytes per second written by fill and by copy, and read, best way of each."""
    size = 512 << 20
    a, b = np.ones(size // 8), np.ones(size // 8)
    edges = [len(a) * t // threads for t in range(threads + 1)]
    parts = [slice(*pair) for pair in itertools.pairwise(edges)]

    def memset(part):
        ctypes.memset(a[part].ctypes.data, 1, a[part].nbytes)

    def memmove(part):
        ctypes.memmove(a[part].ctypes.data, b[part].ctypes.data, a[part].nbytes)

    with ThreadPoolExecutor(threads) as pool:

        def on_all(function):
            return best_of(lambda: list(pool.map(function, parts)))

        fill = min(on_all(memset), on_all(lambda part: a[part].fill(2.0)), _streamed(a))
        copy = min(on_all(memmove), on_all(lambda part: np.copyto(a[part], b[part])))
        read = min(
            on_all(lambda part: np.dot(a[part], a[part])),
            on_all(lambda part: a[part].max()),
        )
    return size / fill, size / copy, size / read


def _streamed(a):
    """Seconds of our own streaming stores of a matrix of zeros: a Gram matrix of no columns."""
    from selfdistill_fast import Linear
    from selfdistill_fast._backend import get_backend

    side = int(len(a) ** 0.5) // 64 * 64
    out, X = a[: side * side].reshape(side, side), np.empty((side, 0))
    return (
        best_of(lambda: get_backend("cpu").gram(X, X.copy(), Linear(), out=out)) * len(a) / side**2
    )


def exp_rates(threads):
    """(float64, float32) exponentials per second of the instruction set in use."""
    from selfdistill_fast import _core

    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for dtype in (np.float64, np.float32):
            x = np.linspace(-20, 0, 1 << 15).astype(dtype)

            def repeat(_, x=x):
                for _ in range(100):
                    _core.exp(x)

            seconds = best_of(lambda repeat=repeat: list(pool.map(repeat, range(threads))))
            rates.append(threads * 100 * len(x) / seconds)
    return rates


def measure():
    """All ceilings, as plain numbers: bytes/s, flop/s and exp/s per instruction set."""
    from selfdistill_fast import _core
    from selfdistill_fast._backend.threads import n_threads_now

    threads = n_threads_now()
    fill, copy, read = bandwidths(threads)
    found = {"threads": threads, "fill": fill, "copy": copy, "read": read, "gemm": {}, "exp": {}}
    found["load_before"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    before = _core.isa()
    for isa in _core.isa_available():
        if isa not in (before, *CORETYPES):
            continue  # no case is held against it
        rates = {core or "as found": gemm_rates(core) for core in CORETYPES.get(isa, ("",))}
        best = [max(rate[i] for rate in rates.values()) for i in (0, 1)]
        found["gemm"][isa] = {"float64": best[0], "float32": best[1], "by_coretype": rates}
        _core._use_isa(isa)
        found["exp"][isa] = dict(zip(("float64", "float32"), exp_rates(threads), strict=True))
    _core._use_isa(before)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
