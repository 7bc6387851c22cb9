"""Adds to a run of the benchmarks the machine's ceilings and the tables of what ran."""

from __future__ import annotations

import bench_large_n
import bench_leave_one_out
import ceilings
import child
import pytest
import report

PEERS = pytest.StashKey[dict]()  # (group or case, name) -> seconds, or how the peer failed


@pytest.fixture
def peer(request):
    """peer(group, name, function, *arguments): a peer's result, from a process of its own.

    The result is a dictionary with "seconds". Where the peer fails, the test is skipped with how,
    which the tables say as well.
    """
    found = request.config.stash.setdefault(PEERS, {})

    def run(group, name, function, *arguments):
        ended = child.outcome(function, *arguments)
        failed = isinstance(ended, str)
        found[group, name] = ended if failed else ended["seconds"]
        if failed:
            pytest.skip(ended)
        return ended

    return run


def pytest_terminal_summary(terminalreporter, config):
    """After pytest-benchmark's own statistics."""
    session = getattr(config, "_benchmarksession", None)
    ran = [b for b in getattr(session, "benchmarks", []) if b and not b.has_error]
    peers = config.stash.get(PEERS, {})
    for (group, name), ended in peers.items():
        if isinstance(ended, str) and ended != "absent":
            terminalreporter.write_line(f"peer {name} of {group} {ended}")
    for module in (bench_leave_one_out, bench_large_n):
        group = module.__name__.removeprefix("bench_")
        medians = {b.name: b["median"] for b in ran if b.group == group}
        medians |= {name: ended for (of, name), ended in peers.items() if of == group}
        if len(medians) == module.TIMINGS:
            terminalreporter.write_line(module.summary(medians))
    cases = [b for b in ran if "case" in b.extra_info]
    if cases:
        medians = {(b.extra_info["case"], b.extra_info["who"]): b["median"] for b in cases}
        report.write(ceilings.measure(), medians | peers)
