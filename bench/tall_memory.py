"""Peak memory of solver="primal" on 1,000,000 x 256 float32 samples in a memory map.

``python bench/tall_memory.py`` makes the file (1 GB, in a temporary folder), fits with an
intercept, computes leave-one-out of four steps, and prints seconds and the resident peak with the
pages of the file and without them. Linux only.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from selfdistill_fast import Linear, leave_one_out, spectrum

N, D, LAM, STEPS = 1_000_000, 256, 1e5, 4


def status(name: str) -> float:
    """A line of /proc/self/status, in GiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "X.npy"
        X = np.lib.format.open_memmap(file, "w+", np.float32, (N, D))
        for start in range(0, N, 50_000):
            X[start : start + 50_000] = rng.standard_normal((50_000, D), dtype=np.float32)
        y = X[:, 0] + rng.standard_normal(N, dtype=np.float32)
        del X
        X = np.load(file, mmap_mode="r")
        start = time.perf_counter()
        s = spectrum(X, y, Linear(), solver="primal", fit_intercept=True)
        fitted = time.perf_counter()
        leave_one_out(s, LAM, 0.5, STEPS)
        done = time.perf_counter()
        print(f"fit {fitted - start:.1f} s, leave-one-out of {STEPS} steps {done - fitted:.1f} s")
        print(f"resident peak {status('VmHWM'):.2f} GiB, now {status('RssAnon'):.2f} GiB beside "
              f"{status('RssFile'):.2f} GiB of files")  # fmt: skip


if __name__ == "__main__":
    main()
