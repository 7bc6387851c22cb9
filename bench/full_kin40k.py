"""All 36000 training rows of kin40k: every λ and step of one γ against one Cholesky factor.

RBF γ = 0.1, λ ∈ {10, 1, 0.1, 0.01}, chains of six steps, predictions at the 4000 test rows.
Each job is a process of its own and reports its time and its peak memory beyond what importing
takes: "krylov" with half of K stored; "krylov, K not stored" within 1.5 GiB; and the peer, one
``scipy.linalg.cho_factor`` of K + λI (Fortran order, ``overwrite_a``), whose time without that
of K counts. By default the peer is run for 16000 rows and multiplied by (36000/16000)³;
``--whole`` runs it in full (11 GB).

    python bench/full_kin40k.py [--whole] [--rows 36000]

prints a table and writes bench/results/full_kin40k.json. The data is looked for as in
uci_leave_one_out.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from uci_leave_one_out import split

RESULTS = Path(__file__).parent / "results" / "full_kin40k.json"
LAMS, STEPS, GAMMA = [10.0, 1.0, 0.1, 0.01], 6, 0.1


def peak() -> int:
    """Peak bytes of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def krylov(rows: int, **options) -> dict:
    from selfdistill_fast import RBF, spectrum

    X, y, X_test, y_test = split("kin40k", 0)
    X, y = X[:rows], y[:rows]
    spectrum(X[:500], y[:500], RBF(GAMMA), solver="krylov", lam=1.0)  # modules and threads
    before, start = peak(), time.perf_counter()
    s = spectrum(X, y, RBF(GAMMA), solver="krylov", lam=LAMS, n_steps=STEPS, **options)
    fitted = time.perf_counter() - start
    F = s.evaluate(X_test, s.pure_steps(np.array(LAMS), STEPS))[..., 0]
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "fit_seconds": fitted,
        "peak": peak() - before,
        "rank": s.k,
        "storage": s.storage,
        "certificate": float(s.certificate_.max()),
        "scale": float(np.abs(y).max()),
        "rmse": np.sqrt(np.square(F - y_test).mean(-1)).min(1).tolist(),
        "checksum": F[:, ::5, ::400].tolist(),
    }


def cho_factor(rows: int) -> dict:
    from scipy.linalg import cho_factor as factor

    from selfdistill_fast import RBF, gram

    X = split("kin40k", 0)[0][:rows]
    A = gram(X, kernel=RBF(GAMMA)).T  # Fortran order; K is symmetric
    A[np.diag_indices_from(A)] += LAMS[-1]
    start = time.perf_counter()
    factor(A, lower=True, overwrite_a=True, check_finite=False)
    return {"seconds": time.perf_counter() - start, "rows": rows}


JOBS = {
    "krylov": krylov,
    "krylov, K not stored": lambda rows: krylov(rows, storage="none", max_memory=3 << 29),
    "cho_factor": cho_factor,
}


def run(job: str, rows: int) -> dict:
    command = [sys.executable, __file__, "--job", job, "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=36000)
    parser.add_argument("--whole", action="store_true", help="factorise all rows for the peer")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(JOBS[options.job](options.rows)))
        return
    load = os.getloadavg()[0]
    factor_rows = options.rows if options.whole else min(16000, options.rows)
    factor = run("cho_factor", factor_rows)
    factor["seconds_of_all_rows"] = factor["seconds"] * (options.rows / factor_rows) ** 3
    results = {"rows": options.rows, "load": load, "cho_factor": factor}
    print(
        f"cho_factor of {factor_rows} rows: {factor['seconds']:.1f} s; "
        f"of {options.rows}: {factor['seconds_of_all_rows']:.0f} s"
    )
    for job in ("krylov", "krylov, K not stored"):
        r = results[job] = run(job, options.rows)
        print(
            f"{job}: {r['seconds']:.0f} s, {factor['seconds_of_all_rows'] / r['seconds']:.2f}x "
            f"as fast; {r['rank']} vectors, storage {r['storage']}, peak "
            f"{r['peak'] / 2**30:.2f} GiB, certificate {r['certificate']:.1e} (y up to "
            f"{r['scale']:.1f}); best RMSE of each λ: " + ", ".join(f"{v:.4f}" for v in r["rmse"])
        )
    gap = np.abs(
        np.array(results["krylov"]["checksum"])
        - np.array(results["krylov, K not stored"]["checksum"])
    ).max()
    results["largest_difference"] = float(gap)
    print(f"largest difference of the two: {gap:.1e}")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
