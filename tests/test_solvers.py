"""A solver is added by one class in one list, and everything sees it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import tolerance
from typer.testing import CliRunner

from selfdistill_fast import (
    RBF,
    SelfDistilledKernelRidge,
    distill,
    leave_one_out,
    plan,
    spectrum,
    sweep,
)
from selfdistill_fast._solvers.base import Spectrum
from selfdistill_fast._solvers.problem import Work
from selfdistill_fast._solvers.solvers import SOLVERS
from selfdistill_fast._solvers.spectral import Filters
from selfdistill_fast.cli import app

LAM, STEPS = 0.1, 3


@dataclasses.dataclass(frozen=True)
class ToyOptions:
    power: int = 1

    def __post_init__(self):
        if self.power != 1:
            raise ValueError("power must be 1")


class Toy(Spectrum):
    """Eigendecomposition by NumPy, in float64 on the host."""

    name = "toy"
    Options = ToyOptions
    max_loo_steps = math.inf

    @classmethod
    def serves(cls, problem):
        return None if problem.n < 1000 else "is a toy"

    @classmethod
    def cost(cls, problem, rates):
        return Work(bytes=24 * problem.n**2, flops=1.0, seconds=0.0)

    def __init__(self, training, request):
        self._prepare(training, request, needed=24 * training.n_kept**2)
        d, self.V = np.linalg.eigh(self._kernel_matrix(training.X, shift=-1.0))
        self.k = len(d)
        d = np.maximum(d, 0.0)
        self.filters = Filters(self.backend, d, self.V.T @ self.target, self.dtype)

    def project(self, X_new):
        return self._weighted_gram(X_new) @ self.V

    def in_rows(self, coordinates):
        return self.V @ coordinates

    def diagonals(self, filters):
        return filters @ (self.V**2).T


@pytest.fixture(autouse=True)
def toy():
    SOLVERS.append(Toy)
    yield
    SOLVERS.remove(Toy)


@pytest.fixture
def data(rng):
    X = rng.normal(size=(40, 2))
    return X, np.sin(X[:, 0]) + 0.1 * rng.normal(size=40)


def close(found: Any, expected: Any, d_max: float) -> None:
    allowed = tolerance.chain(d_max, LAM) * abs(np.asarray(expected)).max()
    assert np.allclose(found, expected, rtol=0, atol=allowed)


def test_spectrum_sees_a_new_solver(data):
    X, y = data
    exact = spectrum(X, y, RBF(0.5), solver="eigh")
    s = spectrum(X, y, RBF(0.5), solver="toy")
    assert isinstance(s, Toy)
    d_max = float(exact.d[-1])
    paths = [distill(one, LAM, "optimal", STEPS) for one in (s, exact)]
    close(*(path.predict(X[:5] + 0.1, "all") for path in paths), d_max)
    close(*(path.shrinkage for path in paths), d_max)
    close(*(leave_one_out(one, LAM, 0.3, STEPS) for one in (s, exact)), d_max)
    second = s.project(X[:3]) @ s.pure_steps(LAM, STEPS)[1]
    close(second[:, 0], distill(exact, LAM, 0.0, 2).predict(X[:3]), d_max)


def test_its_options_are_checked_before_any_work(data, monkeypatch):
    monkeypatch.setattr(Toy, "__init__", None)  # calling it would be a TypeError
    with pytest.raises(ValueError, match="power must be 1"):
        spectrum(*data, RBF(0.5), solver="toy", power=2)
    with pytest.raises(TypeError, match="solver 'toy' has no option tol"):
        spectrum(*data, RBF(0.5), solver="toy", tol=0.1)
    with pytest.raises(ValueError, match=r"unknown solver 'svd'; known: auto, .*nystrom, toy"):
        spectrum(*data, RBF(0.5), solver="svd")
    monkeypatch.setattr(Toy, "max_loo_steps", 2)
    with pytest.raises(ValueError, match="solver='toy' has leave-one-out for at most 2 steps"):
        sweep(*data, kernels=RBF(0.5), lams=[LAM], n_steps=3, solver="toy", progress=False)


def test_plan_and_auto_see_it(data):
    p = plan(500, 2, lam=LAM)
    assert p["toy"].bytes == 24 * 500**2
    assert p.solver == "toy"  # it says that it takes no time
    assert "toy" in str(p)
    assert plan(5000, 2, lam=LAM)["toy"].excluded == "is a toy"
    assert plan(5000, 2, lam=LAM).solver != "toy"
    s = spectrum(*data, RBF(0.5), lam=LAM)
    assert isinstance(s, Toy)
    assert s.plan.solver == "toy"


def test_sweep_sees_it(data):
    grid = {"kernels": RBF(0.5), "lams": [LAM, 1.0], "n_steps": STEPS, "progress": False}
    result = sweep(*data, solver="toy", **grid)
    assert set(result.dataset.solver.values) == {"toy"}
    expected = sweep(*data, solver="eigh", **grid).dataset.mse_loo.values
    close(result.dataset.mse_loo.values, expected, len(data[0]))


def test_the_estimator_sees_it(data):
    X, y = data
    options = {"gamma": 0.5, "lam": LAM, "n_steps": STEPS}
    model, expected = (
        SelfDistilledKernelRidge(solver=solver, **options).fit(X, y) for solver in ("toy", "eigh")
    )
    close(model.predict(X), expected.predict(X), len(X))
    close(model.loo_mse_, expected.loo_mse_, len(X))


def test_the_command_sees_it(data, tmp_path):
    file, report = tmp_path / "data.csv", tmp_path / "report.json"
    np.savetxt(file, np.column_stack(data), delimiter=",")
    arguments = ["fit", str(file), "--no-header", "--solver", "toy", "--report", str(report)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(report.read_text(encoding="utf-8"))["solver"] == "toy"
    shown = CliRunner().invoke(app, ["plan", "100", "2"])
    assert "toy" in shown.output
