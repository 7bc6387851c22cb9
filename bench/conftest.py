"""Adds to a run of the benchmarks the machine's ceilings and the tables of what ran."""

from __future__ import annotations

import bench_large_n
import bench_leave_one_out
import ceilings
import report


def pytest_terminal_summary(terminalreporter, config):
    """After pytest-benchmark's own statistics."""
    session = getattr(config, "_benchmarksession", None)
    ran = [b for b in getattr(session, "benchmarks", []) if b and not b.has_error]
    for module in (bench_leave_one_out, bench_large_n):
        group = module.__name__.removeprefix("bench_")
        medians = {b.name: b["median"] for b in ran if b.group == group}
        if len(medians) == module.TIMINGS:
            terminalreporter.write_line(module.summary(medians))
    cases = [b for b in ran if "case" in b.extra_info]
    if cases:
        medians = {(b.extra_info["case"], b.extra_info["who"]): b["median"] for b in cases}
        report.write(ceilings.measure(), medians)
