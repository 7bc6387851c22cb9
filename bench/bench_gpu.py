"""Benchmarks on a CUDA device: ours, CuPy and torch as one would write it, KeOps; its ceilings.

    python bench/bench_gpu.py                # everything; writes bench/results/gpu-<device>.json
    python bench/bench_gpu.py gram           # one group: gram, products, solvers

A row has the seconds of each rival (best of several, the device waited for), and for `gram` the
share of the ceiling that bounds it: bytes of K at the copy bandwidth (bytes written by a copy,
per second), or 2 n² d flops at the rate of a matrix product. A rival that is not installed, or runs
out of memory, says so in its place; where ours fails, the run goes on and ends with an error.
Without a device nothing is written.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import time
from pathlib import Path

import child
import numpy as np
import pytest

from selfdistill_fast._backend import GpuUnavailable
from selfdistill_fast._backend.gpu import Gpu

RESULTS = Path(__file__).resolve().parent / "results"


def best(xp, function, rounds=5, budget=20.0):
    """Seconds of the fastest round; the first one warms up."""
    function()
    xp.cuda.Device().synchronize()
    times = []
    while len(times) < rounds and sum(times) < budget:
        start = time.perf_counter()
        function()
        xp.cuda.Device().synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def timed(xp, function, **options):
    """Seconds, or why there are none."""
    gc.collect()
    xp.get_default_memory_pool().free_all_blocks()
    try:
        return best(xp, function, **options)
    except Exception as error:  # a peer's failure is a result; main() sees to ours
        return child.failure(error)


def ceilings(xp):
    """Bytes written per second by a copy of 2 GiB, flop/s of matrix products of order 8192."""
    a, b = xp.zeros(1 << 28), xp.zeros(1 << 28)
    found = {"copy": a.nbytes / best(xp, lambda a=a, b=b: xp.copyto(b, a))}
    del a, b
    for dtype in ("float64", "float32"):
        A = xp.asarray(rows(8192, 8192, dtype))
        out = xp.empty_like(A)
        seconds = best(xp, lambda A=A, out=out: xp.matmul(A, A, out=out))
        found[f"gemm {dtype}"] = 2.0 * 8192**3 / seconds
    return found


def rows(n, d, dtype, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, d)) / np.sqrt(d)).astype(dtype)


def gram_group(xp, limits):
    from selfdistill_fast import RBF, Laplacian, gram

    for n, d, dtype, kernel in (
        (50_000, 8, "float64", RBF(0.5)),
        (50_000, 784, "float64", RBF(0.5)),
        (50_000, 8, "float32", RBF(0.5)),
        (50_000, 784, "float32", RBF(0.5)),
        (50_000, 8, "float64", Laplacian(0.5)),
    ):
        X = xp.asarray(rows(n, d, dtype))
        out = xp.empty((n, n), dtype)
        row = {
            "case": f"gram {type(kernel).__name__} {dtype} {n}x{d}",
            "ours": timed(xp, lambda X=X, k=kernel, out=out: gram(X, kernel=k, out=out)),
        }
        del out
        if isinstance(row["ours"], float):
            itemsize = np.dtype(dtype).itemsize
            row["of copy bandwidth"] = itemsize * n * n / row["ours"] / limits["copy"]
            row["of gemm rate"] = 2.0 * n * n * d / row["ours"] / limits[f"gemm {dtype}"]
        if isinstance(kernel, RBF):
            row["cupy"] = timed(xp, lambda X=X, g=kernel.gamma: plain_rbf(xp, X, g))
            row["torch"] = timed(xp, lambda X=X, g=kernel.gamma: torch_rbf(X, g))
            row["cuml"] = timed(xp, lambda X=X, g=kernel.gamma: cuml_rbf(X, g))
        yield row


def plain_rbf(xp, X, gamma):
    """As one writes it: norms, a product, exp, in place where that is easy."""
    norms = (X * X).sum(1)
    K = X @ X.T
    K *= -2
    K += norms[:, None]
    K += norms[None, :]
    K *= -gamma
    return xp.exp(K, out=K)


def torch_rbf(X, gamma):
    import torch

    x = torch.from_dlpack(X)
    return torch.cdist(x, x).square_().mul_(-gamma).exp_()


def cuml_rbf(X, gamma):
    from cuml.metrics import pairwise_kernels

    return pairwise_kernels(X, metric="rbf", gamma=gamma)


def products_group(xp, limits):
    from selfdistill_fast import RBF, gram_matmul

    for n, d, p, dtype in (
        (50_000, 8, 1, "float64"),
        (50_000, 8, 16, "float64"),
        (50_000, 8, 64, "float64"),
        (50_000, 90, 1, "float64"),
        (500_000, 8, 1, "float32"),
    ):
        X, W = xp.asarray(rows(n, d, dtype)), xp.asarray(rows(n, p, dtype, 1))
        yield {
            "case": f"gram_matmul RBF {dtype} {n}x{d}, {p} target(s)",
            "ours": timed(xp, lambda X=X, W=W: gram_matmul(X, None, W, RBF(0.5))),
            "keops": timed(xp, lambda X=X, W=W: keops(X, W)),
            "cupy": timed(xp, lambda X=X, W=W: plain_rbf(xp, X, 0.5) @ W) if n <= 60_000 else None,
        }


def keops(X, W):
    import torch
    from pykeops.torch import LazyTensor

    x, w = torch.from_dlpack(X), torch.from_dlpack(W)
    K = (-0.5 * ((LazyTensor(x[:, None]) - LazyTensor(x[None])) ** 2).sum(-1)).exp()
    return K @ w


def solvers_group(xp, limits):
    """Whole jobs, transfers included: rows and targets come from the host. A CPU beside."""
    from selfdistill_fast import RBF, distill, spectrum

    def chain(n, d, dtype, solver, lams, steps, backend, **options):
        X, y = rows(n, d, dtype), rows(n, 1, dtype, 2)[:, 0]

        def run():
            lam = lams[0] if len(lams) == 1 else lams
            s = spectrum(X, y, RBF(4.0), solver=solver, lam=lam, backend=backend, **options)
            for one in lams:
                for alpha in np.linspace(0, 1, 11):
                    distill(s, one, float(alpha), steps)

        return run

    grid = [1e-2, 1e-1, 1.0, 10.0]
    for name, on_cpu, *job in (
        ("eigh float64 n=20000, 4 λ", 5000, 20_000, 8, "float64", "eigh", grid, 6),
        ("cholesky float64 n=50000, 1 λ", 8000, 50_000, 8, "float64", "cholesky", [0.1], 4),
        ("krylov float64 n=100000, 4 λ x 11 α x 6 steps", 20_000, 100_000, 8, "float64", "krylov",
         grid, 6),
        ("krylov matrix-free float32 n=500000", 20_000, 500_000, 8, "float32", "krylov", [1.0], 2),
        ("nystrom float64 n=500000, 2000 landmarks", 50_000, 500_000, 8, "float64", "nystrom", grid,
         6),
    ):  # fmt: skip
        options = {"n_landmarks": 2000, "random_state": 0} if "nystrom" in name else {}
        if "matrix-free" in name:
            options["storage"] = "none"
        small = (on_cpu, *job[1:])
        yield {
            "case": name,
            "ours": timed(xp, chain(*job, "gpu", **options), rounds=1),
            f"gpu, n={on_cpu}": timed(xp, chain(*small, "gpu", **options), rounds=1),
            f"cpu, n={on_cpu}": timed(xp, chain(*small, "cpu", **options), rounds=1),
        }


GROUPS = {"gram": gram_group, "products": products_group, "solvers": solvers_group}


def show(row):
    parts = [
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name != "case" and value is not None
    ]
    print(f"{row['case']}: {', '.join(parts)}", flush=True)


def main(names):
    gpu = Gpu()
    xp = gpu.xp
    properties = xp.cuda.runtime.getDeviceProperties(gpu.device)
    device = properties["name"].decode()
    limits = ceilings(xp)
    print(device, {name: f"{value:.3g}" for name, value in limits.items()})
    file = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": []}
    found, failed = {row["case"]: row for row in stored["rows"]}, []
    for name in names or GROUPS:
        for row in GROUPS[name](xp, limits):
            found[row["case"]] = row
            show(row)
            failed += [f"{row['case']} {row['ours']}"] if isinstance(row["ours"], str) else []
            stored = {
                "command": "python bench/bench_gpu.py", "device": device, "cupy": xp.__version__,
                "driver": xp.cuda.runtime.driverGetVersion(), "ceilings": limits,
                "rows": list(found.values()),
            }  # fmt: skip
            RESULTS.mkdir(exist_ok=True)
            file.write_text(
                json.dumps(stored, indent=1) + "\n", encoding="utf-8"
            )  # a row at a time: nothing is lost
    print(f"written: {file}")
    if failed:
        raise RuntimeError("ours failed: " + "; ".join(failed))


def test_gpu():
    """For `make bench`: the whole run, or its reason not to."""
    try:
        main([])
    except GpuUnavailable as error:
        pytest.skip(str(error))


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(GROUPS)
    if unknown:
        sys.exit(f"unknown group(s) {', '.join(sorted(unknown))}; known: {', '.join(GROUPS)}")
    try:
        main(sys.argv[1:])
    except GpuUnavailable as error:
        print(f"skipped: {error}")
