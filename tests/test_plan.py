"""The plan: memory that is not exceeded, choices that are exact, and why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from selfdistill_fast import RBF, Polynomial, SelfDistilledKernelRidge, distill, plan, spectrum
from selfdistill_fast._solvers import planning
from selfdistill_fast._solvers.krylov import KrylovSpectrum
from selfdistill_fast._solvers.tridiagonal import TridiagonalSpectrum

MEASURE = textwrap.dedent(
    """
    import re, sys
    import numpy as np
    import scipy.linalg
    from selfdistill_fast import RBF, distill, plan, spectrum

    solver, n, d, p, dtype = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
    options = dict(item.split("=") for item in sys.argv[6:])
    lam = 0.5 if solver == "cholesky" else [0.5, 5.0]
    kinds = {"nystrom": {"n_landmarks": 400}}.get(solver, options)

    def job(n):
        rng = np.random.default_rng(0)
        X, Y = rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(n, p))
        return distill(spectrum(X, Y, RBF(0.1), solver=solver, lam=lam, **kinds), 0.5, 0.3, 2)

    def memory(which):
        # not getrusage: its maximum begins with that of the parent
        status = open("/proc/self/status").read()
        return 1024 * int(re.search(which + r":\\s*(\\d+) kB", status)[1])

    # modules, threads and the buffers of both BLAS, which large products fill
    job(500)
    A, B = np.eye(300), np.ones((300, 8000))
    A @ B, B @ B.T, B.T[:300] @ B, scipy.linalg.cholesky(A)
    scipy.linalg.blas.dgemm(1.0, A, B), scipy.linalg.blas.dsyrk(1.0, B)
    del A, B
    before = memory("VmRSS")
    job(n)
    used = memory("VmHWM") - before
    if "storage" in options:
        from selfdistill_fast._backend import get_backend
        from selfdistill_fast._solvers.krylov import MAX_RANK, krylov_bytes
        planned = krylov_bytes(get_backend(), n, d, p, dtype, MAX_RANK, options["storage"])
    else:
        planned = plan(n, d, p, lam=lam, dtype=dtype, n_landmarks=400)[solver].bytes
    print(used, planned)
    """
)


@pytest.mark.parametrize(
    ("solver", "n", "d", "p", "dtype", "options"),
    [
        ("eigh", 4000, 8, 1, "float64", ()),
        ("eigh", 4000, 90, 3, "float32", ()),
        ("cholesky", 5000, 8, 1, "float64", ()),
        ("tridiagonal", 4000, 8, 1, "float64", ()),
        ("krylov", 8000, 8, 1, "float64", ()),
        ("krylov", 8000, 8, 1, "float64", ("storage=none",)),
        ("krylov", 6000, 8, 12, "float64", ("storage=float32",)),
        ("nystrom", 20000, 8, 1, "float64", ()),
        ("nystrom", 20000, 60, 5, "float32", ()),
    ],
)
def test_no_solver_takes_more_memory_than_planned(solver, n, d, p, dtype, options):
    if not os.path.exists("/proc/self/status"):
        pytest.skip("peak memory is read from /proc")
    arguments = [solver, *map(str, (n, d, p)), dtype, *options]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, *arguments],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    used, planned = map(int, done.stdout.split())
    assert used <= 1.1 * planned
    if "storage=none" not in options:
        assert used >= 0.02 * planned  # something was measured


def solver_of(**problem):
    n, d = problem.pop("n"), problem.pop("d", 8)
    return plan(n, d, **problem).solver


def test_the_choice():
    assert solver_of(n=1500, lam=0.1) == "cholesky"
    assert solver_of(n=1500, lam=0.1, kernel=Polynomial(3, 1.0, -1.0)) != "cholesky"
    assert solver_of(n=1500, lam=[0.1, 1.0], leave_one_out=True) == "eigh"
    assert solver_of(n=1500, lam=[0.1, 1.0]) == "tridiagonal"
    assert solver_of(n=1500) == "tridiagonal"
    assert solver_of(n=12_000, lam=[0.1, 1.0]) == "krylov"
    assert solver_of(n=1500, lam=0.1, leave_one_out=True, n_steps=7) == "eigh"


def test_what_does_not_fit_is_not_chosen():
    p = plan(20_000, 8, lam=[0.01, 1.0], max_memory=2 << 30)
    assert p.solver == "krylov"
    assert not p["eigh"].fits
    assert "2 GiB" in p["eigh"].excluded
    assert "not stored" in plan(20_000, 8, lam=1.0, max_memory=1 << 30)["krylov"].note
    none = plan(20_000, 8, lam=[0.01, 1.0], leave_one_out=True, max_memory=2 << 30)
    assert none.solver is None
    assert "nystrom" in none.reason
    with pytest.raises(KeyError):
        p["svd"]


def test_it_can_be_printed_and_written():
    p = plan(3000, 8, lam=[0.1, 1.0])
    table = str(p)
    assert all(cost.solver in table for cost in p.costs)
    assert f"<- {p.reason}" in table
    assert json.loads(json.dumps(p.to_dict()))["solver"] == p.solver
    assert all(cost.seconds > 0 and cost.flops > 0 and cost.passes > 0 for cost in p.costs)
    assert plan(100_000, 8)["eigh"].seconds > plan(10_000, 8)["eigh"].seconds


def test_bad_input():
    for bad in (0, -1, 2.5):
        with pytest.raises(ValueError, match="n must be an integer"):
            plan(bad, 8)
    with pytest.raises(TypeError, match="d must be"):
        plan(10, "8")
    with pytest.raises(ValueError, match="float32 or float64"):
        plan(10, 8, dtype="int32")
    with pytest.raises(ValueError, match="max_memory"):
        plan(10, 8, max_memory=-1)


def test_auto_says_what_it_chose(rng, caplog):
    X, y = rng.normal(size=(60, 3)), rng.normal(size=60)
    with caplog.at_level("INFO", logger="selfdistill_fast"):
        s = spectrum(X, y, RBF(0.3), lam=[0.1, 1.0], leave_one_out=False)
    assert s.plan.solver == "tridiagonal"
    assert s.plan.reason in caplog.text
    assert spectrum(X, y, RBF(0.3), solver="eigh").plan is None


def test_auto_keeps_to_solvers_with_leave_one_out(rng):
    X, y = rng.normal(size=(60, 3)), rng.normal(size=60)
    assert spectrum(X, y, RBF(0.3), lam=[0.1, 1.0]).plan.solver == "eigh"
    assert spectrum(X, y, RBF(0.3), lam=0.1, leave_one_out=True).plan.solver == "cholesky"
    model = SelfDistilledKernelRidge(lam=0.1, n_steps=6).fit(X, y)  # beyond cholesky's steps
    assert np.isfinite(model.loo_mse_).all()


def test_auto_without_leave_one_out_where_nothing_else_fits(rng, monkeypatch):
    monkeypatch.setattr(planning, "SMALL", 100)
    X, y = rng.normal(size=(600, 3)), rng.normal(size=600)
    s = spectrum(X, y, RBF(0.3), lam=[1.0, 10.0], max_memory=2_500_000)
    assert s.plan.solver == "krylov"
    assert "none" in s.plan.reason
    with pytest.raises(MemoryError, match="nystrom"):
        spectrum(X, y, RBF(0.3), lam=[1.0], leave_one_out=True, max_memory=2_500_000)


def test_auto_is_exact_where_krylov_is_not(rng, monkeypatch):
    monkeypatch.setattr(planning, "SMALL", 100)
    monkeypatch.setattr(planning, "PROMISE", 1e9)
    monkeypatch.setattr(sys.modules[KrylovSpectrum.__module__], "MAX_RANK", 20)
    X, y = rng.normal(size=(300, 3)), rng.normal(size=300)
    s = spectrum(X, y, RBF(0.3), lam=[0.01, 1.0], leave_one_out=False)
    assert isinstance(s, TridiagonalSpectrum)  # the next cheapest, and the plan says so
    assert s.plan.solver == "tridiagonal"
    assert "krylov" in s.plan.reason
    exact = spectrum(X, y, RBF(0.3), solver="eigh")
    a = distill(exact, 0.01, 0.5, 3).predict(X, "all")
    assert np.allclose(distill(s, 0.01, 0.5, 3).predict(X, "all"), a, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lam", [1e-20, [1e-20, 1.0]])
@pytest.mark.parametrize("leave_one_out", [None, True, False])
def test_auto_serves_a_ridge_below_round_off(rng, lam, leave_one_out):
    X = np.repeat(rng.normal(size=(20, 2)), 3, 0)  # K is singular
    y = np.sin(X[:, 0])
    s = spectrum(X, y, RBF(0.3), lam=lam, leave_one_out=leave_one_out)
    assert np.allclose(distill(s, 1e-20, 0.5, 3).predict(X), y, rtol=0, atol=1e-6)
    assert s.plan.solver == "eigh"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"max_memory": np.inf}, ValueError, "max_memory"),
        ({"kernel": 3}, TypeError, "kernel"),
        ({"kernel": "rbff"}, ValueError, "kernel"),
    ],
)
def test_plan_refuses_nonsense(options, error, match):
    with pytest.raises(error, match=match):
        plan(100, 3, **options)


def test_plan_takes_every_kind_of_kernel():
    assert plan(100, 3, lam=0.1, kernel=lambda A, B: A @ B.T).solver != "cholesky"
    assert plan(100, 100, lam=0.1, kernel="precomputed").solver != "cholesky"


@pytest.mark.parametrize("options", [{"n_steps": 0}, {"tol": 2.0}])
def test_auto_checks_options_that_its_choice_does_not_need(rng, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        spectrum(rng.normal(size=(9, 2)), rng.normal(size=9), RBF(1.0), **options)


def test_the_table_of_a_plan_keeps_its_columns_apart():
    lines = str(plan(1, 1)).splitlines()
    assert all("< 1 µs" in line for line in lines[1:4])
