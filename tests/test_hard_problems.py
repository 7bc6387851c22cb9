"""No wrong answer without a word: every solver on every family of hard problems.

The problems are those of tests/support/hard_problems.py. A failure prints one that can be pasted:

    from support.hard_problems import *
    inf = math.inf
    verdicts(Problem(...))

`make judge` runs thousands of them and tabulates what comes out.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import hard_problems, judge
from support.hard_problems import FAMILIES, SOLVERS, draw, verdicts

pytestmark = pytest.mark.skipif(not judge.WIDE, reason="long double is double here")


class Drawn:
    """Draws from hypothesis, which likes limits and simple numbers."""

    def __init__(self, data):
        self.draw = data.draw

    def one_of(self, choices):
        return self.draw(st.sampled_from(choices))

    def real(self, low, high):
        return self.draw(st.floats(low, high))

    def integer(self, low, high):
        return self.draw(st.integers(low, high))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=6, phases=[Phase.generate])  # to shrink a failure takes minutes
@given(data=st.data())
def test_silence_means_right(solver, family, data):
    problem = draw(Drawn(data), solver, family)
    for verdict in verdicts(problem):
        assert not verdict.fault, f"{verdict} of\n{problem}"


#: problems that were once answered wrongly without a word, refused without need, or never
#: answered, as they print themselves
FOUND = (
    (Path(__file__).parent / "data" / "hard_problems.txt").read_text(encoding="utf-8").splitlines()
)


@pytest.mark.parametrize("text", FOUND, ids=lambda text: text[8:40])
def test_faults_that_were_found(text):
    problem = eval(text, vars(hard_problems))
    for verdict in verdicts(problem):
        assert not verdict.fault, f"{verdict} of\n{problem}"
