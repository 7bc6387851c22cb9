"""Which BLAS and LAPACK calls survive at 16000 to 20000 rows: each in a process of its own.

    python tools/lapack_survey.py [--rows 16000 20000] [--threads 2] [CALL...]

Prints a Markdown table. OpenBLAS's threaded syrk writes beyond its buffer from some size on, see
docs/large-n.md; this asks whether anything else that the package calls does so, too. Most of an
hour; 8 to 12 GB.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

import numpy as np

COLUMNS = 512


def symmetric(n: int) -> np.ndarray:
    """Positive definite, in Fortran's order."""
    K = np.zeros((n, n), order="F")
    i = np.arange(n)
    for k in range(-3, 4):  # a band suffices: which code runs depends on the sizes alone
        rows = i[max(0, -k) : n - max(0, k)]
        K[rows, rows + k] = 0.5 ** abs(k)
    K[i, i] += 1.0
    return K


def tall(n: int, columns: int = COLUMNS) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, columns))


def lapack(name: str):
    from scipy.linalg import get_lapack_funcs

    return get_lapack_funcs(name, (np.zeros((2, 2)),))


def blas(name: str):
    from scipy.linalg import get_blas_funcs

    return get_blas_funcs(name, (np.zeros((2, 2)),))


def sytrd_then_ormqr(n: int) -> None:
    """Of solver tridiagonal: K = Q T Q', and products with Q."""
    reflectors, _, _, tau, info = lapack("sytrd")(symmetric(n), lower=1, overwrite_a=1)
    assert info == 0
    *_, info = lapack("ormqr")("L", "N", reflectors[1:, :-1], tau, tall(n - 1, 8), 64 * n)
    assert info == 0


def geqrf_then_ormqr(n: int) -> None:
    qr, tau, _, info = lapack("geqrf")(np.asfortranarray(tall(n, 2000)))
    assert info == 0
    *_, info = lapack("ormqr")("L", "T", qr, tau, np.asfortranarray(tall(n)), 64 * 2000)
    assert info == 0


CALLS = {
    "gemm": lambda n: tall(n) @ np.random.default_rng(1).normal(size=(COLUMNS, n)),
    "syrk: NumPy's P @ P.T": lambda n: (lambda P: P @ P.T)(tall(n)),
    "trsm": lambda n: blas("trsm")(1.0, symmetric(n), np.asfortranarray(tall(n)), lower=1),
    "potrs": lambda n: lapack("potrs")(symmetric(n), tall(n, 8), lower=1),
    "trtri": lambda n: lapack("trtri")(symmetric(n), lower=1, overwrite_c=1),
    "potrf": lambda n: lapack("potrf")(symmetric(n), lower=1, overwrite_a=1),
    "lauum": lambda n: lapack("lauum")(symmetric(n), lower=1, overwrite_c=1),
    "gesdd, n × 1000": lambda n: np.linalg.svd(tall(n, 1000), full_matrices=False),
    "geqrf, ormqr, n × 2000": geqrf_then_ormqr,
    "sytrd, ormqr": sytrd_then_ormqr,
    "syevd": lambda n: np.linalg.eigh(symmetric(n)),
}
#: n³ flops at the speed of memory: at the smaller size only
SLOW = ("syevd", "sytrd, ormqr")


def outcome(call: str, n: int, threads: int) -> str:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, "--child", call, "--rows", str(n)],
        env=environment, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    seconds = time.monotonic() - start
    if done.returncode < 0:
        return f"**{signal.strsignal(-done.returncode)}**"
    if done.returncode:
        return f"**{done.stderr.strip().splitlines()[-1]}**"
    return f"works ({seconds:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("calls", nargs="*", help=f"some of: {'; '.join(CALLS)}")
    parser.add_argument("--rows", type=int, nargs="+", default=[16000, 20000])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        CALLS[given.child](given.rows[0])
        return
    print("| call | " + " | ".join(f"n = {n}" for n in given.rows) + " |")
    print("|---|" + "---|" * len(given.rows), flush=True)
    for call in given.calls or CALLS:
        cells = [
            "not tried" if call in SLOW and n > min(given.rows) else outcome(call, n, given.threads)
            for n in given.rows
        ]
        print(f"| {call} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
