"""Choosing α, λ, γ and steps without a validation set: held-out errors and their optima."""

from __future__ import annotations

import warnings

import numpy as np
import oracle
import pandas as pd
import pytest
import tolerance
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from sklearn.model_selection import GroupKFold, KFold
from tolerance import assert_close

from selfdistill_fast import (
    RBF,
    SelfDistilledKernelRidge,
    SelfDistilledKernelRidgeCV,
    constrained_path,
    distill,
    leave_fold_out,
    leave_one_out,
    load,
    spectrum,
)
from selfdistill_fast._chain.columns import loo_columns
from selfdistill_fast._chain.selection import gcv_alphas, score_grid
from selfdistill_fast._solvers import Penalties
from selfdistill_fast.alpha import joint_report

EXAMPLE_Y = np.array(
    [0.38476636465198066, 1.2333967683416893, 1.33232242218057, 0.69201594888895180,
     -0.29756145531871736, -0.24189291901377769, -0.7964485769175675, -0.9616480167034174,
     -0.49672509509916934, -0.3469066003991437, 0.5589512650600734]
)  # fmt: skip


def noisy(rng, n=40, d=2, p=None):
    X = rng.uniform(-2, 2, size=(n, d))
    signal = np.sin(2 * X[:, 0]) * np.cos(X[:, 1])
    noise = 0.4 * rng.standard_normal((n,) if p is None else (n, p))
    return X, signal + noise if p is None else signal[:, None] + noise


# ---------------------------------------------------------------- exactness


@given(data=st.data())
def test_held_out_predictions_equal_refits_for_drawn_problems(data, backend):
    """Every combination: sizes, α, λ, duplicates, targets, weights, intercept, folds, schedules."""
    n = data.draw(st.integers(2, 60), label="n")
    p = data.draw(st.integers(1, 3), label="p")
    T = data.draw(st.integers(1, 6), label="steps")
    alphas = data.draw(st.lists(st.floats(-2, 3), min_size=T - 1, max_size=T - 1), label="alphas")
    exponents = st.floats(-4, 2)
    scheduled = data.draw(st.booleans(), label="scheduled")
    lam_steps = None
    if scheduled:
        lam_steps = 10.0 ** np.array(data.draw(st.lists(exponents, min_size=T, max_size=T)))
    lam = 10.0 ** data.draw(exponents, label="log10 lam")
    intercept = data.draw(st.booleans(), label="intercept")
    weighted = data.draw(st.sampled_from(["no", "positive", "some zero"]), label="weights")
    kind = data.draw(st.sampled_from(["rows", "folds", "groups"]), label="left out")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    X, Y = rng.standard_normal((n, 2)), rng.standard_normal((n, p)) + 1.0
    if data.draw(st.booleans(), label="duplicates"):
        X[n // 2 :] = X[: n - n // 2]
    weight = None if weighted == "no" else rng.uniform(0.2, 3.0, n)
    if weighted == "some zero":
        weight[2::3] = 0.0
    labels = np.arange(n)
    if kind == "folds":
        labels = np.arange(n) * min(n, 4) // n
    elif kind == "groups":
        labels = rng.integers(0, 3, n)
        labels[:2] = 0, 1  # two at least, with a row of positive weight each
    kernel = RBF(0.7)
    s = spectrum(
        X,
        Y,
        kernel,
        solver="eigh",
        sample_weight=weight,
        fit_intercept=intercept,
        backend=backend,
    )
    if kind == "rows":
        actual = leave_one_out(s, lam, alphas, T, lam_steps=lam_steps)
    else:
        actual = leave_fold_out(s, lam, alphas, T, labels, lam_steps=lam_steps)

    K = oracle.kernel_matrix(kernel, X)
    ridges = lam if lam_steps is None else lam_steps
    every = np.concatenate([[np.nan], alphas])
    expected = oracle.leave_out(labels, K, Y, ridges, every, weight, intercept)
    pure = oracle.leave_out(labels, K, Y, ridges, np.zeros(T), weight, intercept)
    for t in range(T):
        c = oracle.weights_of(every[: t + 1])
        rtol = tolerance.chain(oracle.d_max(K, weight), np.min(ridges), c)
        scale = max(np.abs(pure).max(), np.abs(Y).max())
        assert_close(actual[t], expected[t], rtol, scale, f"step {t + 1}")


@pytest.mark.parametrize("solver", ["eigh", "cholesky"])
def test_two_folds_and_ten_take_different_routes_to_the_same_answer(backend, solver, rng):
    """Large folds are refits in disguise, small ones blocks; both are exact."""
    X, y = noisy(rng)
    weight = rng.uniform(0.5, 2.0, len(X))
    s = spectrum(X, y, RBF(1.0), solver=solver, lam=0.1, sample_weight=weight, backend=backend)
    for k in (2, 3, 10):
        labels = np.arange(len(X)) * k // len(X)
        expected = oracle.leave_out(
            labels,
            oracle.kernel_matrix(RBF(1.0), X),
            y[:, None],
            0.1,
            np.array([np.nan, 0.3]),
            weight,
        )
        assert_close(leave_fold_out(s, 0.1, 0.3, 2, k), expected[..., 0], 1e-11)


def test_folds_may_be_a_number_labels_a_splitter_or_its_splits(rng):
    X, y = noisy(rng)
    s = spectrum(X, y, RBF(1.0))
    by_number = leave_fold_out(s, 0.1, 0.3, 3, 5)
    labels = np.arange(len(X)) * 5 // len(X)
    for folds in (labels, labels.astype(str), KFold(5), list(KFold(5).split(X))):
        assert_close(leave_fold_out(s, 0.1, 0.3, 3, folds), by_number, 1e-12)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (1, "between 2"),
        (41, "between 2"),
        (2.5, "integer"),
        (True, "folds"),
        ("five", "folds"),
        (np.zeros(7), r"\(40,\)"),
        ([([0], [1]), ([1], [0])], "all the other rows"),
    ],
)
def test_bad_folds(folds, message, rng):
    X, y = noisy(rng)
    with pytest.raises((TypeError, ValueError), match=message):
        leave_fold_out(spectrum(X, y, RBF(1.0)), 0.1, 0.3, 2, folds)


def test_an_empty_training_fold_with_an_intercept_is_an_error(rng):
    X, y = noisy(rng)
    s = spectrum(X, y, RBF(1.0), fit_intercept=True)
    with pytest.raises(ValueError, match="intercept"):
        leave_fold_out(s, 0.1, 0.3, 2, np.zeros(len(X)))
    without = spectrum(X, y, RBF(1.0))
    np.testing.assert_allclose(leave_fold_out(without, 0.1, 0.3, 2, np.zeros(len(X))), 0, atol=1e-9)


def test_a_ridge_below_round_off_is_said_to_leave_no_digit(rng):
    X, y = noisy(rng)
    s = spectrum(X, y, RBF(0.01))
    with pytest.warns(RuntimeWarning, match="no correct digit"):
        leave_one_out(s, 1e-18, 0.5, 2)


# ---------------------------------------------------------------- optimality


@pytest.mark.parametrize("where", ["leave-one-out", "validation"])
@pytest.mark.parametrize("lam_steps", [None, [0.3, 0.1, 0.05, 0.2]], ids=["one lam", "schedule"])
def test_greedy_alphas_minimise_each_step_given_the_ones_before(where, lam_steps, rng):
    X, y = noisy(rng)
    weight = rng.uniform(0.5, 2.0, len(X))
    s = spectrum(X, y, RBF(1.0), sample_weight=weight)
    X_val, y_val = noisy(rng, 25)
    held = {} if where == "leave-one-out" else {"X_val": X_val, "y_val": y_val}
    path = distill(s, 0.1, "optimal", 4, lam_steps=lam_steps, **held)

    def error(alphas):
        T = len(alphas) + 1
        steps = None if lam_steps is None else lam_steps[:T]
        if where == "leave-one-out":
            return np.average(
                (leave_one_out(s, 0.1, alphas, T, lam_steps=steps)[-1] - y) ** 2, weights=weight
            )
        model = distill(s, 0.1, alphas, T, lam_steps=steps)
        return np.mean((model.predict(X_val) - y_val) ** 2)

    for t in range(1, 4):
        before = path.alphas[1:t]
        best = minimize_scalar(lambda a: error([*before, a])).fun  # noqa: B023
        assert error([*before, path.alphas[t]]) <= best * (1 + 1e-8)
        assert path.selection["mse"][t] == pytest.approx(best, rel=1e-8)
    assert path.selection["on"] == where


@pytest.mark.parametrize("clip", [False, True])
def test_joint_weights_minimise_the_last_step(clip, rng):
    X, y = noisy(rng)
    s = spectrum(X, y, RBF(1.0))
    T, lam = 3, 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # three steps are more than is useful
        path = distill(s, lam, "joint", T, clip=clip)
    G = loo_columns(s, Penalties.of(lam, T))[..., 0]

    def error(c):
        return np.mean((c @ G - y) ** 2)

    found = error(path.weights)
    if clip:
        assert (path.weights >= 0).all()
        numeric = minimize(
            lambda b: error(np.array([1 - b.sum(), *b])),
            np.full(T - 1, 1 / T),
            bounds=[(0, 1)] * (T - 1),
            constraints={"type": "ineq", "fun": lambda b: 1 - b.sum()},
            method="SLSQP",
            options={"ftol": 1e-15},
        ).fun
    else:
        numeric = minimize(
            lambda b: error(np.array([1 - b.sum(), *b])), np.zeros(T - 1), tol=1e-12
        ).fun
    assert found <= numeric * (1 + 1e-8)

    greedy = distill(s, lam, "optimal", T, clip=clip)
    assert found <= error(greedy.weights) * (1 + 1e-12)
    for alpha in np.linspace(0, 1, 11) if clip else np.linspace(-1, 2, 31):
        assert found <= error(distill(s, lam, alpha, T).weights) * (1 + 1e-12)


def test_greedy_that_worsens_is_reported():
    """In §4.5 the loss is best at step 2 and grows from there."""
    X, grid = np.arange(11)[:, None] / 10, np.arange(101)[:, None] / 100
    s = spectrum(X, EXAMPLE_Y, RBF(80.0))
    path = distill(s, 0.2, "optimal", 6, X_val=grid, y_val=np.sin(2 * np.pi * grid[:, 0]))
    assert path.selection["best_step"] == 2
    assert [f"{loss:.5f}" for loss in path.selection["mse"][[1, 5]]] == ["0.14834", "0.14950"]


def test_joint_report_names_the_steps_beyond_which_the_gain_is_noise(rng):
    X, y = noisy(rng, 60)
    s = spectrum(X, y, RBF(1.0))
    with pytest.warns(RuntimeWarning, match="beyond step count") as caught:
        path = distill(s, 0.1, "joint", 6)
    report = joint_report(y, loo_columns(s, Penalties.of(0.1, 6))[..., 0])
    assert caught[0].filename == __file__  # points at the caller
    assert 1 <= report["useful_steps"] < 6
    assert report["useful_steps"] == path.selection["useful_steps"]
    assert (np.diff(report["mse"]) <= 1e-12).all()
    assert (np.diff(report["condition"]) >= 0).all()
    gain = -np.diff(report["mse"])
    np.testing.assert_allclose(report["gain"][1:], gain, rtol=1e-9, atol=1e-14)


def test_selection_survives_saving(tmp_path, rng):
    X, y = noisy(rng)
    path = distill(spectrum(X, y, RBF(1.0)), 0.1, "optimal", 3)
    path.save(tmp_path / "m.npz")
    again = load(tmp_path / "m.npz").selection
    assert again["best_step"] == path.selection["best_step"]
    np.testing.assert_array_equal(again["mse"], path.selection["mse"])


@pytest.mark.parametrize("intercept", [False, True])
def test_gcv_of_one_step_is_the_textbook_formula(intercept, rng):
    X, y = noisy(rng)
    s = spectrum(X, y, RBF(1.0), fit_intercept=intercept)
    leverage = s.diag_powers(0.1, 1)[0]
    fitted = distill(s, 0.1, 0.5, 1).predict(X)
    expected = y - (y - fitted) / (1 - leverage.mean())
    G = loo_columns(s, Penalties.of(0.1, 1), average=True)[0, :, 0] + s.y_mean
    assert_close(G, expected, 1e-11)
    alphas = gcv_alphas(s, 0.1, 3)
    exact = distill(s, 0.1, "optimal", 3).alphas
    assert alphas.shape == (3,)
    assert abs(alphas[1] - exact[1]) < 0.5  # another criterion, of the same thing


# ---------------------------------------------------------------- the grid and its estimator


@pytest.mark.parametrize("alpha", ["optimal", "joint", 0.3, [0.2, -0.4]])
@pytest.mark.parametrize("intercept", [False, True])
def test_score_grid_is_leave_one_out_of_each_cell(alpha, intercept, rng):
    X, Y = noisy(rng, p=2)
    weight = rng.uniform(0.5, 2.0, len(X))
    s = spectrum(X, Y, RBF(1.0), sample_weight=weight, fit_intercept=intercept)
    lams = np.array([0.01, 0.1, 1.0])
    scores = score_grid(s, lams, alpha, 3)
    for i, lam in enumerate(lams):
        for t in (1, 2, 3):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                if isinstance(alpha, list):
                    path = distill(s, lam, alpha, 3)
                    G = leave_one_out(s, lam, path.alphas, 3)[t - 1]
                else:
                    path = distill(s, lam, alpha, t)
                    pure = [leave_one_out(s, lam, np.zeros(k), k + 1)[-1] for k in range(t)]
                    G = np.tensordot(path.weights, np.array(pure), 1)
            mse = np.average(np.mean((G - Y) ** 2, axis=1), weights=weight)
            assert scores["mse"][i, t - 1] == pytest.approx(mse, rel=1e-9)


def test_cv_picks_what_leave_one_out_says(backend, rng):
    X, y = noisy(rng, 60)
    lams, gammas = [1e-3, 1e-2, 1e-1, 1.0, 10.0], [0.05, 0.5, 5.0]
    model = SelfDistilledKernelRidgeCV(
        "rbf", lams=lams, gammas=gammas, max_steps=3, backend=backend
    ).fit(X, y)
    table = pd.DataFrame(model.cv_results_)
    assert len(table) == 5 * 3 * 3
    best = table.loc[table.mse.idxmin()]
    assert (best.lam, best.gamma, best.step) == (
        model.best_lam_,
        model.best_gamma_,
        model.best_step_,
    )
    assert table["rank"][model.best_index_] == 1
    assert model.best_score_ == -best.mse
    for row in table.itertuples():
        one = SelfDistilledKernelRidge(
            gamma=row.gamma, lam=row.lam, n_steps=row.step, solver="eigh", backend=backend
        ).fit(X, y)
        assert row.mse == pytest.approx(one.loo_mse_[-1], rel=1e-9)
        if row.step > 1:
            assert row.alpha == pytest.approx(one.alphas_[-1], rel=1e-6, abs=1e-9)
    again = SelfDistilledKernelRidge(**model.best_params_, solver="eigh").fit(X, y)
    assert_close(model.predict(X), again.predict(X), tolerance.floor())
    assert model.predict_path(X).shape == (model.best_step_, 60)


@pytest.mark.parametrize("alpha", ["optimal", "joint", 0.4])
@pytest.mark.parametrize("cv", [None, 4, KFold(3, shuffle=True, random_state=0)], ids=str)
def test_cv_scores_are_those_of_refits(alpha, cv, rng):
    X, y = noisy(rng, 30)
    model = SelfDistilledKernelRidgeCV(
        "rbf", lams=[0.01, 0.1, 1.0], gammas=[0.5], alpha=alpha, max_steps=2, cv=cv
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, y)
    labels = np.arange(len(X))
    if cv is not None:
        for label, (_, test) in enumerate((KFold(4) if cv == 4 else cv).split(X)):
            labels[test] = label
    K = oracle.kernel_matrix(RBF(0.5), X)
    pure = oracle.leave_out(labels, K, y[:, None], model.best_lam_, np.array([np.nan, 0.0]))
    G = np.tensordot(model.weights_, pure[: model.best_step_, :, 0], 1)
    assert -model.best_score_ == pytest.approx(np.mean((G - y) ** 2), rel=1e-8)


def test_cv_on_a_validation_set(rng):
    X, y = noisy(rng, 60)
    X_val, y_val = noisy(rng, 40)
    model = SelfDistilledKernelRidgeCV("rbf", lams=[0.01, 0.1, 1.0], gammas=[0.2, 1.0, 5.0])
    model.fit(X, y, X_val=X_val, y_val=y_val)
    error = np.mean((model.predict(X_val) - y_val) ** 2)
    assert -model.best_score_ == pytest.approx(error, rel=1e-9)


def test_cv_warns_at_the_edge_of_its_grid(rng):
    X, y = noisy(rng)
    with pytest.warns(UserWarning, match="edge") as caught:
        SelfDistilledKernelRidgeCV(lams=[1e3, 1e4], gammas=[0.5]).fit(X, y)
    assert "lam" in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lams": []}, "empty"),
        ({"lams": [0.1, -1.0]}, "lam"),
        ({"gammas": [], "lams": [1.0]}, "empty"),
        ({"kernel": "linear", "gammas": [1.0]}, "gamma"),
        ({"max_steps": 0}, "max_steps"),
        ({"alpha": "best"}, "alpha"),
        ({"cv": 1}, "folds"),
    ],
)
def test_cv_bad_parameters(parameters, message, rng):
    X, y = noisy(rng)
    with pytest.raises((TypeError, ValueError), match=message):
        SelfDistilledKernelRidgeCV(**parameters).fit(X, y)


def test_cv_with_groups_targets_and_weights(rng):
    X, Y = noisy(rng, 30, p=3)
    groups = np.arange(30) // 3
    weight = np.where(np.arange(30) % 7 == 0, 0.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_labels = SelfDistilledKernelRidgeCV(cv=groups, fit_intercept=True).fit(X, Y, weight)
        splits = list(GroupKFold(10).split(X, Y, groups))
        by_splits = SelfDistilledKernelRidgeCV(cv=splits, fit_intercept=True).fit(X, Y, weight)
    assert by_labels.best_score_ == pytest.approx(by_splits.best_score_, rel=1e-10)
    assert by_labels.predict(X).shape == (30, 3)


def test_cv_plot_draws_a_line_for_each_step(rng):
    X, y = noisy(rng)
    model = SelfDistilledKernelRidgeCV(lams=[0.01, 0.1, 1.0], gammas=[0.2, 1.0], max_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, y)
    axes = model.plot()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[:3] == ["τ = 1", "τ = 2", "τ = 3"]


# ---------------------------------------------------------------- Mobahi et al.


def test_constrained_path_meets_its_tolerance_until_it_collapses(backend, rng):
    X, y = noisy(rng)
    s = spectrum(X, y, RBF(1.0), solver="eigh", backend=backend)
    tol = 0.15 * np.mean(y**2)
    chain = constrained_path(s, tol)
    F = chain.path.predict(X, step="all")
    targets = np.vstack([y, F[:-1]])
    np.testing.assert_allclose(
        np.mean((F - targets) ** 2, axis=1), tol, rtol=10 * tolerance.floor()
    )
    assert chain.collapsed
    assert len(F) > 1
    assert np.mean(F[-1] ** 2) <= tol < np.mean(F[-2] ** 2)
    assert (np.diff(chain.lam_steps) > 0).all()
    assert_close(chain.norms, np.sqrt([np.mean(y**2), *np.mean(F**2, axis=1)]), tolerance.floor())
    # every step is ridge regression on the predictions of the one before
    K = oracle.kernel_matrix(RBF(1.0), X)
    for target, lam, prediction in zip(targets, chain.lam_steps, F, strict=True):
        again = K @ np.linalg.solve(K + lam * np.eye(len(K)), target)
        assert_close(prediction, again, 1e-9)


def test_constrained_path_with_weights_and_an_intercept(rng):
    X, y = noisy(rng)
    weight = rng.uniform(0.5, 2.0, len(X))
    s = spectrum(X, y + 5.0, RBF(1.0), sample_weight=weight, fit_intercept=True)
    tol = 0.1 * np.average(y**2, weights=weight)
    chain = constrained_path(s, tol, max_steps=1)
    F = chain.path.predict(X, step="all")
    error = np.average((F[0] - y - 5.0) ** 2, weights=weight)
    assert error == pytest.approx(tol, rel=10 * tolerance.floor())
    assert len(chain.lam_steps) == 1
    assert not chain.collapsed


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_constrained_path_of_landmarks_that_do_not_reach_every_target(
    dtype, intercept, weighted, rng
):
    """Part of the targets lies outside V: no λ changes it, and step 1 has it as an error."""
    X, y = noisy(rng)
    Y = np.stack([y, rng.normal(size=len(y))], 1)
    weight = rng.uniform(0.5, 2.0, len(X)) if weighted else None
    options = {"sample_weight": weight, "fit_intercept": intercept, "random_state": 0}
    s = spectrum(X.astype(dtype), Y, RBF(1.0), solver="nystrom", n_landmarks=6, **options)
    z = s.z.astype(np.float64)
    total = len(X) * 2 if weight is None else weight.sum() * 2
    outside = (np.square(s.target.astype(np.float64)).sum() - np.square(z).sum()) / total
    inside = np.square(z).sum() / total
    assert outside > 0.1 * inside
    tol = outside + 0.2 * inside
    chain = constrained_path(s, tol, max_steps=3)
    F = chain.path.predict(X.astype(dtype), step="all").astype(np.float64)
    targets = np.concatenate([Y[None], F[:-1]])
    errors = np.average(np.square(F - targets).mean(2), axis=1, weights=weight)
    np.testing.assert_allclose(errors, tol, rtol=10 * tolerance.floor(dtype))
    centre = np.average(Y, axis=0, weights=weight) if intercept else 0.0
    sizes = np.square(np.concatenate([targets, F[-1:]]) - centre).mean(2)
    norms = np.sqrt(np.average(sizes, axis=1, weights=weight))
    np.testing.assert_allclose(chain.norms, norms, rtol=10 * tolerance.floor(dtype))
    assert chain.collapsed == (chain.norms[-1] ** 2 <= tol)
    with pytest.raises(ValueError, match=r"outside.*larger tol.*landmarks"):
        constrained_path(s, 0.9 * outside)
    with pytest.raises(ValueError, match="already met by the zero function"):
        constrained_path(s, 1.01 * (inside + outside))


def test_constrained_path_of_a_landmark_model_with_negligible_directions(rng):
    """k counts directions that are raised to rounding and reach hardly any target."""
    X = np.repeat(rng.normal(size=(6, 2)), 2, axis=0) + 1e-7 * rng.normal(size=(12, 2))
    y = rng.normal(size=12)
    s = spectrum(X, y, RBF(1.0), solver="nystrom", n_landmarks=12, random_state=0)
    inside = np.square(s.z).sum() / 12
    outside = np.square(s.target).sum() / 12 - inside
    tol = outside + 0.3 * inside
    F = constrained_path(s, tol, max_steps=1).path.predict(X)
    # the energy in raised directions is known to the root of rounding only
    np.testing.assert_allclose(np.square(F - y).mean(), tol, rtol=1e-3)


@pytest.mark.parametrize(
    ("tol", "message"),
    [(0.0, "tol"), (-1, "tol"), (np.nan, "tol"), ("a", "tol"), (1e3, "already met by the zero")],
)
def test_constrained_path_bad_tolerance(tol, message, rng):
    X, y = noisy(rng)
    with pytest.raises(ValueError, match=message):
        constrained_path(spectrum(X, y, RBF(1.0)), tol)


def test_constrained_path_that_no_function_meets(rng):
    X, y = noisy(rng)
    X[20:] = X[:20]
    s = spectrum(X, y, RBF(1.0))
    with pytest.raises(ValueError, match="singular"):
        constrained_path(s, 1e-6)
    with pytest.raises(ValueError, match="eigh"):
        constrained_path(spectrum(X, y, RBF(1.0), solver="cholesky", lam=1.0), 0.1)


# ---------------------------------------------------------------- what a review found


def test_round_off_between_equal_predictions_is_no_difference(rng):
    """K = I to rounding: every step predicts 0 for a row left out, and α must not divide by it."""
    X, y = noisy(rng)
    with pytest.warns(RuntimeWarning, match="coincide") as caught:
        model = SelfDistilledKernelRidge(gamma=1e6, lam=0.1, n_steps=3).fit(X, y)
    assert all(warning.filename == __file__ for warning in caught)
    np.testing.assert_array_equal(model.alphas_[1:], 1.0)
    assert np.abs(model.predict(X)).max() <= np.abs(y).max()
    with pytest.warns(RuntimeWarning):
        joint = distill(spectrum(np.zeros((40, 40)), y, "precomputed"), 0.1, "joint", 3)
    np.testing.assert_array_equal(joint.weights, [1.0, 0.0, 0.0])


@pytest.mark.parametrize("scale", [1e-200, 1e155])
def test_joint_weights_do_not_depend_on_the_scale_of_y(scale, rng):
    X, y = noisy(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = (distill(spectrum(X, f * y, RBF(1.0)), 0.1, "joint", 3) for f in (1.0, scale))
    assert_close(other.weights, one.weights, 1e-6)


@pytest.mark.parametrize("lam", [1e4, 1e6, 1e8, 1e10])
def test_the_default_solver_keeps_its_digits_under_a_strong_ridge(lam, rng):
    X, y = noisy(rng)
    default = SelfDistilledKernelRidge(lam=lam, n_steps=3).fit(X, y)
    exact = SelfDistilledKernelRidge(lam=lam, n_steps=3, solver="eigh").fit(X, y)
    assert_close(default.predict(X), exact.predict(X), 1e-9)
    assert_close(default.loo_mse_, exact.loo_mse_, 1e-9)


@pytest.mark.parametrize("factor", [1e-160, 1e-150, 1.0, 1e150])
@pytest.mark.parametrize("alpha", [1e-3, 0.25, 1.5])
def test_the_limit_without_eigenvalues(alpha, factor, rng):
    X, y = noisy(rng)
    s = spectrum(X, factor * y, RBF(1.0), solver="cholesky", lam=0.1)
    exact = spectrum(X, factor * y, RBF(1.0), solver="eigh")
    a, b = (distill(m, 0.1, alpha, 2).predict(X, step=np.inf) for m in (s, exact))
    assert_close(a, b, 1e-9)


def test_a_limit_that_does_not_converge_is_an_error_not_a_guess(rng):
    X = rng.standard_normal((200, 3))
    s = spectrum(X, X[:, 0], RBF(0.5), solver="cholesky", lam=1e-8)
    with pytest.raises(ValueError, match="eigh"):
        distill(s, 1e-8, 1e-12, 2).predict(X, step=np.inf)


def test_an_overflowing_kernel_is_an_error(rng):
    X, y = noisy(rng)
    from selfdistill_fast import Linear, Polynomial

    for solver in ("eigh", "cholesky"):
        with pytest.raises(ValueError, match="overflows"):
            spectrum(1e160 * X, y, Linear(), solver=solver, lam=0.1)
    with pytest.raises(ValueError, match="float64"):
        spectrum((200 * X).astype(np.float32), y, Polynomial(30))


def test_a_cholesky_spectrum_may_be_shared_by_threads(rng):
    """The inverse takes the place of the factor while other threads solve with it."""
    import sys
    from concurrent.futures import ThreadPoolExecutor

    X = rng.standard_normal((300, 3))
    expected = leave_one_out(spectrum(X, X[:, 0], RBF(0.5), solver="eigh"), 0.1, 0.5, 3)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            s = spectrum(X, X[:, 0], RBF(0.5), solver="cholesky", lam=0.1)
            with ThreadPoolExecutor(4) as pool:
                jobs = [pool.submit(leave_one_out, s, 0.1, 0.5, 3) for _ in range(8)]
                jobs += [pool.submit(distill, s, 0.1, 0.5, 3) for _ in range(8)]
                for job in jobs[:8]:
                    assert_close(job.result(), expected, tolerance.floor())
                for job in jobs[8:]:
                    assert np.isfinite(job.result().dual_coef()).all()
    finally:
        sys.setswitchinterval(interval)


def test_one_dominant_weight_with_an_intercept(rng):
    X, y = noisy(rng, 30)
    weight = np.ones(30)
    weight[0] = 1e10
    s = spectrum(X, y, RBF(1.0), solver="eigh", sample_weight=weight, fit_intercept=True)
    K = oracle.kernel_matrix(RBF(1.0), X)
    expected = oracle.leave_out(
        np.arange(30), K, y[:, None], 0.1, np.array([np.nan, 0.3]), weight, True
    )
    assert_close(leave_one_out(s, 0.1, 0.3, 2), expected[..., 0], 1e-9)


def test_masked_entries_are_refused(rng):
    X, y = noisy(rng)
    with pytest.raises(TypeError, match="masked"):
        spectrum(np.ma.masked_greater(X, 1.0), y, RBF(1.0))


def test_cholesky_with_more_steps_than_it_has_leave_one_out_of(rng):
    X, y = noisy(rng)
    model = SelfDistilledKernelRidge(solver="cholesky", alpha=0.5, n_steps=6).fit(X, y)
    assert np.isnan(model.loo_mse_).all()
    assert model.predict_path(X).shape == (6, 40)


@pytest.mark.parametrize("cv", [None, 5])
@pytest.mark.parametrize("alpha", ["optimal", [0.5, 0.3, 0.9]])
def test_best_params_are_the_chosen_chain(cv, alpha, rng):
    X, y = noisy(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SelfDistilledKernelRidgeCV(
            alpha=alpha, cv=cv, gammas=[0.2, 1.0], fit_intercept=True
        ).fit(X, y)
        again = SelfDistilledKernelRidge(**model.best_params_).fit(X, y)
    assert_close(again.predict(X), model.predict(X), 1e-9)
    assert model.path_.selection["mse"][-1] == -model.best_score_
