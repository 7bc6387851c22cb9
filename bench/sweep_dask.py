"""A sweep of 8 γ on Dask: two worker processes of one thread each against one.

    python bench/sweep_dask.py [n]        # default n = 2000; writes results/sweep_dask.json

Medians of three runs of each, in turn, on clusters that are already there; the data are sent
anew in every run. Beside it the sweep in this process with one thread, which shows what Dask
itself costs. Results of all that ran are compared bit for bit. A cluster that fails is a row that
says how; a failure without Dask ends the run.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import child
import numpy as np
import scipy.linalg  # noqa: F401  its BLAS is limited only once it is loaded
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_limits

from selfdistill_fast import RBF, sweep
from selfdistill_fast._backend import get_backend
from selfdistill_fast._backend.host import available_cpus

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
        times = {name: [] for name in clients}
        failed, answers = {}, set()
        for number in range(ROUNDS + 1):
            for name, client in clients.items():
                if name in failed:
                    continue
                try:
                    seconds, bits = run(client)
                except Exception as error:
                    if client is None:
                        raise
                    failed[name] = child.failure(error)
                    continue
                answers.add(bits)
                if number:  # the first does imports, and whatever else is done once
                    times[name].append(seconds)
    assert len(answers) == 1, "not the same bits"
    found = {name: failed.get(name) or statistics.median(times[name]) for name in clients}
    for name, ended in found.items():
        print(f"8 γ, n = {n}, {name:10}  " + (ended if name in failed else f"{ended:6.2f} s"))
    ratio = None if failed else found["1 worker"] / found["2 workers"]
    if ratio is not None:
        print(f"2 workers against 1: {ratio:.2f}x (target 1.5x), on {available_cpus()} cores")
    results = {"n": n, "seconds": found, "ratio": ratio, "cores": available_cpus()}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
