"""The benchmark itself: every case of cases.py, ours and each peer, in one run.

``make bench`` runs it and prints the table of report.py. A peer runs in a process of its own.
"""

from __future__ import annotations

import clock
import pytest
from cases import CASES

from selfdistill_fast import _core


def peer_seconds(name: str, who: str) -> dict:
    function = next(case for case in CASES if case.name == name).rivals[who]()
    return {"seconds": clock.median(function, clock.rounds_of(function))}


@pytest.mark.parametrize(
    ("case", "who"),
    [pytest.param(case, who, id=f"{case.name}|{who}") for case in CASES for who in case.timed],
)
def test_case(request, case, who):
    if who not in ("ours", "fresh"):
        request.getfixturevalue("peer")(case.name, who, peer_seconds, case.name, who)
        return
    benchmark = request.getfixturevalue("benchmark")
    before = _core.isa()
    _core._use_isa(case.isa)
    try:
        function = case.rivals[who]()
        benchmark.group = case.group
        benchmark.extra_info.update(case=case.name, who=who)
        benchmark.pedantic(function, rounds=clock.rounds_of(function))
    finally:
        _core._use_isa(before)
