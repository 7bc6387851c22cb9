"""The benchmark itself: every case of cases.py, ours and each peer, in one run.

``make bench`` runs it and prints the table of report.py.
"""

from __future__ import annotations

import time

import pytest
from cases import CASES

from selfdistill_fast import _core

SECONDS = 0.5  # of rounds for one function, roughly
ROUNDS = (3, 9)


@pytest.mark.parametrize(
    ("case", "who"),
    [pytest.param(case, who, id=f"{case.name}|{who}") for case in CASES for who in case.timed],
)
def test_case(benchmark, case, who):
    if case.isa not in _core.isa_available():
        pytest.skip(f"this processor or this build has no {case.isa}")
    before = _core.isa()
    _core._use_isa(case.isa)
    try:
        function = case.rivals[who]()
        start = time.perf_counter()
        function()  # warms up: pages, threads, compiled formulas
        once = time.perf_counter() - start
        if once < 5:
            start = time.perf_counter()
            function()
            once = time.perf_counter() - start
        benchmark.group = case.group
        benchmark.extra_info.update(case=case.name, who=who)
        rounds = max(ROUNDS[0], min(ROUNDS[1], int(SECONDS / once))) if once < 5 else 1
        benchmark.pedantic(function, rounds=rounds)
    finally:
        _core._use_isa(before)
