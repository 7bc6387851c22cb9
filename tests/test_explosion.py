"""A chain whose weights have run away says so, with the figures; ordinary chains say nothing."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from tolerance import host

from selfdistill_fast import (
    RBF,
    Linear,
    SelfDistilledKernelRidge,
    SelfDistilledKernelRidgeCV,
    constrained_path,
    distill,
    spectrum,
)
from selfdistill_fast.diagnostics import effective_dof

SOLVERS = ["eigh", "cholesky", "tridiagonal", "krylov", "nystrom"]
OPTIONS = {"nystrom": {"n_landmarks": 20}, "krylov": {"n_steps": 4, "lam_min": 0.1}}


@pytest.fixture
def problem(rng):
    X = rng.normal(size=(40, 2))
    return X, np.sin(2 * X[:, 0]) + 0.3 * rng.normal(size=40)


def factorise(problem, solver="eigh", lam=0.1, kernel=None, **options):
    X, y = problem
    options = OPTIONS.get(solver, {}) | options
    return spectrum(X, y, kernel or RBF(0.5), solver=solver, lam=lam, random_state=0, **options)


def explosions(function):
    """The result and the texts of the warnings about an explosion."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    texts = [str(w.message) for w in caught if "looks exploded" in str(w.message)]
    for w in caught:
        if "looks exploded" in str(w.message):
            assert issubclass(w.category, RuntimeWarning)
            assert w.filename == __file__
    return result, texts


def figure(text, pattern):
    return float(re.search(pattern, text)[1])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_figures_are_those_of_the_fit(solver, intercept, weighted, backend, problem, rng):
    X, y = problem
    w = rng.uniform(0.2, 2.0, len(X)) if weighted else None
    if weighted:
        w[:3] = 0
    s = factorise(
        (X, 1e3 * y),
        solver,
        sample_weight=w,
        fit_intercept=intercept,
        backend=backend,
    )
    path, texts = explosions(lambda: distill(s, 0.1, [0.3, 71271.0], 3))
    (text,) = texts  # one for a fit
    assert "step 3" in text
    assert "α = 0.3, 71271" in text
    assert "alpha='optimal' with clip=True" in text
    size = np.abs(path.weights).sum()
    assert figure(text, r"Σ\|c\| = (\S+),") == pytest.approx(size, rel=1e-2)
    F = host(path.predict(X, step="all"))
    error = np.sqrt(np.average((F - 1e3 * y) ** 2, axis=1, weights=w))
    assert figure(text, r"training RMSE (\S+) \(") == pytest.approx(error[2], rel=1e-2)
    assert figure(text, r"RMSE \S+ \((\S+) at step 1") == pytest.approx(error[0], rel=1e-2)
    if solver in ("eigh", "nystrom"):
        dof = effective_dof(host(s.d), 0.1, path.alphas, 3)[2] + intercept
        assert figure(text, r"(\S+) degrees of freedom") == pytest.approx(dof, rel=1e-2)
        assert f"of {37 if weighted else 40} rows" in text
    else:
        assert "degrees" not in text


@pytest.mark.parametrize("targets", [1, 3])
def test_one_target_that_explodes_is_enough(targets, problem):
    X, y = problem
    Y = np.stack([y, 1e-6 * y**2, 1e6 * y], axis=1)
    alphas = np.full((1, 3), 0.5)
    alphas[0, targets - 1] = -3000.0
    _, texts = explosions(lambda: distill(factorise((X, Y)), 0.1, alphas, 2))
    (text,) = texts
    assert "α = -3000" in text


def test_alphas_that_were_chosen(problem):
    """Held-out targets far from anything that the steps can reach: α* is in the thousands."""
    X, y = problem
    s = factorise(problem)
    grid = np.linspace(-1, 1, 7)[:, None] * np.ones(2)
    for alpha in ("optimal", "joint"):
        choice = {"X_val": grid, "y_val": np.full(7, 1e5)}
        path, texts = explosions(lambda alpha=alpha, c=choice: distill(s, 0.1, alpha, 2, **c))
        (text,) = texts
        assert np.abs(path.weights).sum() > 1e3
        assert "clip=True" in text
        clipped = lambda alpha=alpha, c=choice: distill(s, 0.1, alpha, 2, clip=True, **c)  # noqa: E731
        assert explosions(clipped)[1] == []
    model = SelfDistilledKernelRidge(lam=0.1, gamma=0.5)
    assert len(explosions(lambda: model.fit(X, y, **choice))[1]) == 1
    model = SelfDistilledKernelRidgeCV(lams=[0.1, 1.0], gammas=[0.5, 0.6])
    assert len(explosions(lambda: model.fit(X, y, **choice))[1]) == 1


def test_the_earlier_steps_of_a_joint_optimum_do_not_count(problem):
    """c = (0.999, 1, −0.999) is harmless, but its chain goes through α_2 = 1000."""
    from selfdistill_fast._chain.assembly import assemble
    from selfdistill_fast.alpha import step_weights, weights_to_alphas

    alphas = weights_to_alphas([0.999, 1.0, -0.999])
    assert alphas[1] > 900
    s, C = factorise(problem), step_weights(alphas)
    given, joint = (assemble(s, 0.1, C, alphas, limit="none", joint=j) for j in (False, True))
    assert "step 2" in given.alarm
    assert joint.alarm is None


def test_a_joint_optimum_without_alphas_shows_its_weights(problem):
    """c = (10⁵, …): there is no α to name."""
    from selfdistill_fast._chain.assembly import assemble

    C = np.full((3, 3), np.nan)
    C[2] = [1e5 + 1.0, 0.0, -1e5]
    path = assemble(factorise(problem), 0.1, C, np.full(3, np.nan), limit="none")
    assert "step 3" in path.alarm
    assert "c = 100001, 0, -100000" in path.alarm


@pytest.mark.parametrize("alpha", [-1.0, -0.4, 0.0, 0.3, 1.0, 1.3, 2.0, [4.0, -1.0, 0.2]])
@pytest.mark.parametrize("lam", [1e-10, 0.1, 1e3])
@pytest.mark.parametrize("solver", ["eigh", "cholesky"])
def test_ordinary_chains_say_nothing(alpha, lam, solver, problem):
    for intercept in (False, True):
        s = factorise(problem, solver, lam=lam, fit_intercept=intercept)
        assert explosions(lambda s=s: distill(s, lam, alpha, 4))[1] == []


@pytest.mark.parametrize("solver", ["eigh", "nystrom", "tridiagonal", "cholesky"])
@pytest.mark.filterwarnings("ignore:lam=:RuntimeWarning")
def test_weights_that_undo_a_strong_ridge_say_nothing(solver, problem):
    """F_k is of size (d_max/λ)^k there, so α* is of size λ/d_max, and the fit is good."""
    lam = 1e10
    alphas = distill(factorise(problem), lam, "optimal", 3).alphas
    s = factorise(problem, solver, lam=lam)
    path, texts = explosions(lambda: distill(s, lam, alphas, 3))
    assert np.abs(path.weights).sum() > 1e17
    assert texts == []


def test_degrees_of_freedom_beyond_the_rows_are_enough():
    """d = 3λ for all: B = a (α + (1 − α) a) is 9/8 at α = 3."""
    s = spectrum(3.0 * np.eye(20), np.ones(20), "precomputed")
    _, texts = explosions(lambda: distill(s, 1.0, 3.0, 2))
    (text,) = texts
    assert "22.5 degrees of freedom of 20 rows" in text
    assert "RMSE" not in text
    assert "Σ|c|" not in text


def test_a_schedule_of_ridges(problem):
    _, texts = explosions(
        lambda: distill(factorise(problem), None, [0.5, 5e4], 3, lam_steps=[0.1, 0.2, 0.3])
    )
    assert len(texts) == 1
    assert "step 3" in texts[0]
    assert explosions(lambda: constrained_path(factorise(problem), 0.1))[1] == []


def test_zero_targets_and_one_step(problem):
    X, y = problem
    assert explosions(lambda: distill(factorise((X, 0 * y)), 0.1, 0.5, 3))[1] == []
    assert explosions(lambda: distill(factorise((X, y)), 0.1, 0.5, 1))[1] == []


def test_float32_with_targets_whose_squares_overflow(problem):
    X, y = problem
    data = X.astype("float32"), (1e25 * y).astype("float32")
    assert explosions(lambda: distill(factorise(data), 0.1, 0.5, 3))[1] == []
    (text,) = explosions(lambda: distill(factorise(data), 0.1, 2000.0, 2))[1]
    assert np.isfinite(figure(text, r"training RMSE (\S+) \("))


def test_a_saved_path_that_is_loaded_says_nothing_more(problem, tmp_path):
    path, _ = explosions(lambda: distill(factorise(problem, kernel=Linear()), 0.1, 5000.0, 2))
    path.save(tmp_path / "path.npz")
    assert explosions(lambda: type(path).load(tmp_path / "path.npz"))[1] == []
