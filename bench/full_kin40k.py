"""All 36000 training rows of kin40k: every λ and step of one γ against one Cholesky factor.

RBF γ = 0.1, λ ∈ {10, 1, 0.1, 0.01}, chains of six steps, predictions at the 4000 test rows.
Each job is a process of its own and reports its time and its peak memory beyond what importing
takes: "krylov" with half of K stored; "krylov, K not stored" within 1.5 GiB; and the peer, one
``scipy.linalg.cho_factor`` of K + λI (Fortran order, ``overwrite_a``), whose time without that
of K counts. By default the peer is run for 16000 rows and multiplied by (36000/16000)³;
``--whole`` runs it in full (11 GB). Where it fails, which OpenBLAS does on some processors, its
row says how, and the largest of 16000, 12000 and 8000 rows that works takes its place.

    python bench/full_kin40k.py [--whole] [--rows 36000]

prints a table and writes bench/results/full_kin40k.json. Where kin40k is absent its stand-in
takes its place (data.py), which the table and the results say.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path

import child
import data
import numpy as np

RESULTS = Path(__file__).parent / "results" / "full_kin40k.json"
LAMS, STEPS, GAMMA = [10.0, 1.0, 0.1, 0.01], 6, 0.1


def peak() -> int:
    """Peak bytes of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def krylov(rows: int, options: dict) -> dict:
    from selfdistill_fast import RBF, spectrum

    X, y, X_test, y_test = data.kin40k()
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

    X = data.kin40k()[0][:rows]
    A = gram(X, kernel=RBF(GAMMA)).T  # Fortran order; K is symmetric
    A[np.diag_indices_from(A)] += LAMS[-1]
    start = time.perf_counter()
    factor(A, lower=True, overwrite_a=True, check_finite=False)
    return {"seconds": time.perf_counter() - start, "rows": rows}


KRYLOV = {"krylov": {}, "krylov, K not stored": {"storage": "none", "max_memory": 3 << 29}}
SIZES = (16000, 12000, 8000)


def peer(rows: int, whole: bool) -> dict:
    """The factor of as many rows as work, and how it failed for more."""
    failed = {}
    first = rows if whole else min(rows, SIZES[0])
    for size in [first, *(size for size in SIZES if size < first)]:
        ended = child.outcome(cho_factor, size)
        if not isinstance(ended, str):
            seconds = ended["seconds"] * (rows / size) ** 3
            return ended | {"seconds_of_all_rows": seconds, "failed": failed}
        failed[str(size)] = ended
        print(f"cho_factor of {size} rows {ended}")
    return {"failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=36000)
    parser.add_argument("--whole", action="store_true", help="factorise all rows for the peer")
    options = parser.parse_args()
    load, which = os.getloadavg()[0], data.kin40k_or_stand_in()
    print(f"data: {which}, {options.rows} rows")
    factor = peer(options.rows, options.whole)
    whole = factor.get("seconds_of_all_rows")
    results = {"data": which, "rows": options.rows, "load": load, "cho_factor": factor}
    if whole is not None:
        print(
            f"cho_factor of {factor['rows']} rows: {factor['seconds']:.1f} s; "
            f"of {options.rows}: {whole:.0f} s"
        )
    for job, keywords in KRYLOV.items():
        r = results[job] = child.run(krylov, options.rows, keywords)
        ratio = f"{whole / r['seconds']:.2f}x as fast" if whole is not None else "no peer"
        print(
            f"{job}: {r['seconds']:.0f} s, {ratio}; {r['rank']} vectors, storage "
            f"{r['storage']}, peak {r['peak'] / 2**30:.2f} GiB, certificate "
            f"{r['certificate']:.1e} (y up to {r['scale']:.1f}); best RMSE of each λ: "
            + ", ".join(f"{v:.4f}" for v in r["rmse"])
        )
    first, second = (np.array(results[job]["checksum"]) for job in KRYLOV)
    results["largest_difference"] = float(np.abs(first - second).max())
    print(f"largest difference of the two: {results['largest_difference']:.1e}")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
