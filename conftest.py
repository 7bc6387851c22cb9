"""What pytest may collect here: modules whose extra is not installed have no doctests to run."""

from __future__ import annotations

import importlib.util

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
