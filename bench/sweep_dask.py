"""A sweep of 8 γ on Dask: two worker processes of one thread each against one.

    python bench/sweep_dask.py [n]        # default n = 2000; writes results/sweep_dask.json

Medians of three runs of each, in turn, on clusters that are already there; the data are sent
anew in every run. Beside it the sweep in this process with one thread, which shows what Dask
itself costs. Results of all three are compared bit for bit.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import scipy.linalg  # noqa: F401  its BLAS is limited only once it is loaded
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_limits

from selfdistill_fast import RBF, sweep
from selfdistill_fast.backend import get_backend
from selfdistill_fast.backend.host import available_cpus

RESULTS = Path(__file__).parent / "results" / "sweep_dask.json"
ROUNDS = 3


def main(n: int = 2000) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 8))
    y = np.sin(X.sum(1)) + 0.5 * rng.normal(size=n)

    def run(client: Client | None) -> tuple[float, bytes]:
        start = time.perf_counter()
        result = sweep(
            X,
            y,
            kernels=[RBF(gamma) for gamma in np.logspace(-2, 0, 8)],
            lams=np.logspace(-3, 1, 10),
            alphas=[*np.linspace(0, 1, 11), "optimal"],
            n_steps=6,
            client=client,
            backend=get_backend("cpu", n_threads=1),
            progress=False,
        )
        return time.perf_counter() - start, result.dataset.mse_loo.values.tobytes()

    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with (
        threadpool_limits(1, user_api="blas"),
        LocalCluster(n_workers=1, **options) as one,
        LocalCluster(n_workers=2, **options) as two,
        Client(one) as first,
        Client(two) as second,
    ):
        clients = {"no cluster": None, "1 worker": first, "2 workers": second}
        for client in clients.values():
            run(client)  # imports, and whatever else is done once
        runs = [{name: run(client) for name, client in clients.items()} for _ in range(ROUNDS)]
    assert len({bits for row in runs for _, bits in row.values()}) == 1, "not the same bits"
    medians = {name: statistics.median(row[name][0] for row in runs) for name in clients}
    ratio = medians["1 worker"] / medians["2 workers"]
    for name, seconds in medians.items():
        print(f"8 γ, n = {n}, {name:10}  {seconds:6.2f} s")
    print(f"2 workers against 1: {ratio:.2f}x (target 1.5x), on {available_cpus()} cores")
    results = {"n": n, "seconds": medians, "ratio": ratio, "cores": available_cpus()}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
