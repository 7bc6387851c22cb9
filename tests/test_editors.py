"""What a type checker, and so an editor, says of a script that uses the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import selfdistill_fast
from selfdistill_fast import _names
from selfdistill_fast._solvers.solvers import SOLVERS
from selfdistill_fast.kernels import KERNELS

SCRIPT = """
import numpy as np
from selfdistill_fast import (
    RBF, SelfDistilledKernelRidge, SelfDistilledKernelRidgeClassifierCV, SelfDistilledKernelRidgeCV,
    distill, gram, leave_one_out, plan, spectrum,
)

X, y = np.zeros((3, 2)), np.zeros(3)
s = spectrum(X, y, "rbf", solver="eigh", lam=[0.1, 1.0])
path = distill(s, 0.1, "optimal", 3)
path = distill(s, 0.1, path.alphas[1:], 3)
leave_one_out(s, [0.1, 0.2], 0.5, 2)
model = SelfDistilledKernelRidge(RBF([0.1, 0.2]) + 0.5 * RBF(1.0), solver="primal")
model.fit(X, y).predict(X, step="best")
SelfDistilledKernelRidgeCV(["rbf", RBF(0.1)], lams=[0.1])
SelfDistilledKernelRidgeClassifierCV(alpha=0.5, solver="eigh")
gram(X, kernel=lambda A, B: A @ B.T)
plan(100, 3, kernel="matern")

SelfDistilledKernelRidge(solver="eighh")  # error
SelfDistilledKernelRidge(n_step=3)  # error
SelfDistilledKernelRidgeCV(alpha="best")  # error
distill(s, 0.1, "optimall", n_steps=3)  # error
distill(s, 0.1, 0.5, n_steps="4")  # error
spectrum(X, y, "rbff")  # error
spectrum(X, y, "rbf", solver="cholesk")  # error
leave_one_out(s, 0.1, "optimal", 3)  # error
selfdistill_fast_name: int = "text"  # error
"""


def test_a_type_checker_finds_the_mistakes_of_a_script_and_no_others(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "client.py").write_text(SCRIPT, encoding="utf-8")
    source = Path(selfdistill_fast.__file__).parents[1]
    extra = {} if source.name == "site-packages" else {"MYPYPATH": str(source)}
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", "--cache-dir", str(tmp_path),
         "client.py"],
        cwd=tmp_path, env=os.environ | extra, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    found = {int(n) for n in re.findall(r"^client.py:(\d+): error", result.stdout, re.MULTILINE)}
    lines = SCRIPT.splitlines()
    assert found == {i for i, line in enumerate(lines, 1) if line.endswith("# error")}, (
        result.stdout
    )


def test_names_are_those_that_exist():
    assert set(get_args(_names.SolverName)) == {"auto", *(solver.name for solver in SOLVERS)}
    assert set(get_args(_names.KernelName)) == {*KERNELS, "poly"}
