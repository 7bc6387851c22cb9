"""How long a function takes."""

from __future__ import annotations

import statistics
import time

SECONDS = 0.5  # of rounds for one function, roughly
ROUNDS = (3, 9)


def seconds(function) -> float:
    """One round."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rounds_of(function) -> int:
    """Warms up (pages, threads, compiled formulas); how many rounds to time: one from 5 s on."""
    once = seconds(function)
    if once < 5:
        once = seconds(function)
    return max(ROUNDS[0], min(ROUNDS[1], int(SECONDS / once))) if once < 5 else 1


def median(function, rounds: int) -> float:
    """Median seconds of some rounds."""
    return statistics.median(seconds(function) for _ in range(rounds))
