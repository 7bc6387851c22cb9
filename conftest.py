"""What pytest may collect here: modules whose extra is not installed have no doctests to run."""

from __future__ import annotations

import importlib.util
import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is already one test process per processor. More OpenMP threads (torch's) would only
    # wait for each other. BLAS keeps its threads, because tests rely on them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(os.cpu_count()))
    os.environ.setdefault("OMP_NUM_THREADS", "1")

#: rooms that import their extra at the top, and that extra's package
NEEDS = {"selfdistill_fast/trainer/*": "torch"}
MISSING = {
    path: package for path, package in NEEDS.items() if importlib.util.find_spec(package) is None
}
collect_ignore_glob = list(MISSING)


def pytest_report_header(config):  # noqa: D103
    return [
        f"{package} is not installed: no doctests of {path}" for path, package in MISSING.items()
    ]
