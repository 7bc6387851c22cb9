"""What the CV estimators choose from, by what, and with which solver."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import mean_absolute_error
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks
from tolerance import assert_close

from selfdistill_fast import (
    RBF,
    Features,
    Laplacian,
    Linear,
    Matern,
    SelfDistilledKernelRidge,
    SelfDistilledKernelRidgeCV,
    leave_one_out,
    spectrum,
)
from selfdistill_fast.estimators.grids import kernel_grid, lam_grid
from selfdistill_fast.kernels import KERNELS

pytestmark = pytest.mark.filterwarnings(
    "ignore:the best:UserWarning", "ignore:joint weights:RuntimeWarning"
)
NOT_REPETITION = "a grid is scored by leave-one-out, where a row of two copies is not left out"


@parametrize_with_checks(
    [
        SelfDistilledKernelRidgeCV(),
        SelfDistilledKernelRidgeCV(lams=[0.1, 1.0], solver="cholesky", max_steps=3),
        SelfDistilledKernelRidgeCV(["linear", "rbf"], lams=[0.1, 1.0], scoring="r2", cv=3),
    ],
    expected_failed_checks=lambda e: (
        {"check_sample_weight_equivalence_on_dense_data": NOT_REPETITION}
    ),
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def draw(rng, n=40, p=1):
    X = rng.uniform(-1, 2, (n, 3))
    y = np.sin(2 * X[:, :1]) * np.linspace(1.0, 0.3, p) + 0.2 * rng.standard_normal((n, p))
    return X, y[:, 0] if p == 1 else y


# ------------------------------------------------------------------ natural grids


def test_kernels_around_the_median_heuristic(rng):
    X, _ = draw(rng)
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(X) for b in X[:i]]
    factors = np.array([1 / 16, 1 / 4, 1, 4, 16])
    none = {"gammas": None, "length_scales": None, "degree": 3, "coef0": 1, "nu": 1.5}
    rbf = kernel_grid("rbf", X, **none)
    assert_close(np.array([k.gamma for k in rbf]), factors / np.median(gaps) ** 2, 1e-12)
    matern = kernel_grid("matern", X, **none)
    assert_close(np.array([k.length_scale for k in matern]), factors * np.median(gaps), 1e-12)
    city = [np.abs(a - b).sum() for i, a in enumerate(X) for b in X[:i]]
    laplacian = kernel_grid("laplacian", X, **none)
    assert_close(np.array([k.gamma for k in laplacian]), factors / np.median(city), 1e-12)
    assert kernel_grid("linear", X, **none) == [Linear()]
    mixed = kernel_grid([RBF(0.3), "matern", "ntk"], X, **{**none, "length_scales": [2.0]})
    assert mixed == [RBF(0.3), Matern(2.0, 1.5), KERNELS["ntk"](1)]


def test_rows_that_are_all_equal_have_a_scale():
    none = {"gammas": None, "length_scales": None}
    kernels = kernel_grid("rbf", np.ones((5, 4)), **none)
    assert [k.gamma for k in kernels] == [0.25 * f for f in (1 / 16, 1 / 4, 1, 4, 16)]
    assert lam_grid(np.zeros((3, 2)), Linear(), None, None)[-1] == 1.0


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_lams_relative_to_the_norm(dtype, rng):
    X = draw(rng)[0].astype(dtype)
    K = np.exp(-0.5 * np.square(X[:, None] - X).sum(2))
    lams = lam_grid(X, RBF(0.5), np.full(len(X), 2.0), None)
    assert lams[-1] == pytest.approx(2 * np.linalg.eigvalsh(K)[-1], rel=1e-5)
    assert lams[-1] / lams[0] == pytest.approx(1e9 if dtype == "float64" else 1e4)
    ratios = lams[1:] / lams[:-1]
    assert_close(ratios, np.full(18, 10 ** (9 / 18 if dtype == "float64" else 4 / 18)), 1e-9)


def test_the_defaults_beat_fixed_parameters_on_scaled_data(rng):
    """γ and λ follow the units of the features and the size of the data."""
    X, y = draw(rng, n=80)
    X_new, y_new = draw(rng, n=80)
    errors = [
        np.mean((SelfDistilledKernelRidgeCV().fit(s * X, y).predict(s * X_new) - y_new) ** 2)
        for s in (1e-3, 1.0, 1e3)
    ]
    assert_close(np.array(errors), np.full(3, errors[1]), 1e-6)
    fixed = SelfDistilledKernelRidge().fit(1e3 * X, y).predict(1e3 * X_new)
    assert errors[2] < 0.5 * np.mean((fixed - y_new) ** 2)


# ------------------------------------------------------------------ what is scored


def test_a_list_of_kernels(rng):
    X, y = draw(rng)
    kernels = [RBF(0.5), Laplacian(0.5), Linear()]
    model = SelfDistilledKernelRidgeCV(kernels, lams=[0.01, 0.1, 1.0], max_steps=2).fit(X, y)
    results = model.cv_results_
    assert len(results["mse"]) == 3 * 3 * 2
    for kernel in kernels:
        s = spectrum(X, y, kernel, solver="eigh")
        mine = [k == kernel and t == 1 for k, t in zip(results["param_kernel"], results["step"],
                                                       strict=True)]  # fmt: skip
        expected = np.square(leave_one_out(s, [0.01, 0.1, 1.0], 0.5, 1)[:, 0] - y).mean(1)
        assert_close(results["mse"][mine], expected, 1e-10)
    best = int(np.argmin(results["mse"]))
    assert model.kernel_ == results["param_kernel"][best] == model.best_params_["kernel"]
    assert results["params"][best] == {
        "kernel": model.kernel_, "lam": model.best_lam_, "n_steps": model.best_step_
    }  # fmt: skip
    assert_close(model.loo_mse_, results["mse"][best // 2 * 2 : best // 2 * 2 + 2], 1e-12)


@pytest.mark.parametrize("scoring", ["neg_mean_absolute_error", "r2", "function"])
@pytest.mark.parametrize("cv", [None, 4])
def test_scoring(scoring, cv, rng):
    X, y = draw(rng)

    def negative_mae(y, predictions):
        return -mean_absolute_error(y, predictions)

    model = SelfDistilledKernelRidgeCV(
        lams=[0.01, 1.0], gammas=[0.5], max_steps=2, alpha=0.4, cv=cv,
        scoring=negative_mae if scoring == "function" else scoring,
    ).fit(X, y)  # fmt: skip
    folds = list(KFold(cv or len(X)).split(X))
    single = SelfDistilledKernelRidge(gamma=0.5, alpha=0.4, n_steps=2, solver="eigh")
    for lam, step, score in zip(*(model.cv_results_[k] for k in ("lam", "step", "score")),
                                strict=True):  # fmt: skip
        F = np.empty(len(X))
        for train, test in folds:
            F[test] = single.set_params(lam=lam).fit(X[train], y[train]).predict(X[test], step)
        if scoring == "r2":
            expected = 1 - np.square(F - y).sum() / np.square(y - y.mean()).sum()
        else:
            expected = -np.abs(F - y).mean()
        assert score == pytest.approx(expected, rel=1e-9)
    assert model.best_index_ == model.cv_results_["score"].argmax()


def test_scores_are_weighted_and_uncentred(rng):
    X, y = draw(rng)
    w = rng.uniform(0.2, 2.0, len(X))
    model = SelfDistilledKernelRidgeCV(
        "linear", lams=[0.3], max_steps=1, fit_intercept=True, scoring="neg_mean_absolute_error"
    ).fit(X, y + 10, w)
    s = spectrum(X, y + 10, Linear(), fit_intercept=True, sample_weight=w)
    errors = np.abs(leave_one_out(s, 0.3, 0.5, 1)[0] - y - 10)
    assert model.best_score_ == pytest.approx(-np.average(errors, weights=w), rel=1e-10)


def test_unknown_scoring(rng):
    with pytest.raises(ValueError, match=r"unknown scoring 'mse'; known: 'neg_mean_squared"):
        SelfDistilledKernelRidgeCV(scoring="mse").fit(*draw(rng))


def test_without_refit_there_is_no_model(rng):
    X, y = draw(rng)
    model = SelfDistilledKernelRidgeCV(refit=False, lams=[0.1, 1.0]).fit(X, y)
    full = SelfDistilledKernelRidgeCV(lams=[0.1, 1.0]).fit(X, y)
    assert model.best_params_["lam"] == full.best_lam_
    assert not hasattr(model, "path_")
    with pytest.raises(Exception, match=r"refit|fitted|path_"):
        model.predict(X)


# ------------------------------------------------------------------ with which solver


@pytest.mark.parametrize("solver", ["eigh", "cholesky", "nystrom", "primal"])
def test_every_solver_with_leave_one_out(solver, rng):
    X, y = draw(rng)
    grid = {"lams": [0.01, 0.1, 1.0], "max_steps": 3}
    kernel = "linear" if solver == "primal" else RBF(0.5)
    options = {"n_landmarks": len(X)} if solver == "nystrom" else None
    model = SelfDistilledKernelRidgeCV(kernel, solver=solver, solver_options=options, **grid)
    model.fit(X, y)
    reference = SelfDistilledKernelRidgeCV(kernel, solver="eigh", **grid).fit(X, y)
    assert_close(model.cv_results_["mse"], reference.cv_results_["mse"], 1e-8)
    assert_close(model.predict(X), reference.predict(X), 1e-8)
    again = SelfDistilledKernelRidge(**model.best_params_).fit(X, y)
    assert_close(again.predict(X), model.predict(X), 1e-8)


@pytest.mark.parametrize("solver", ["krylov", "tridiagonal"])
def test_solvers_without_leave_one_out_need_a_validation_set(solver, rng):
    X, y = draw(rng)
    model = SelfDistilledKernelRidgeCV(RBF(0.5), lams=[0.1, 1.0], solver=solver)
    with pytest.raises(ValueError, match="choose on a validation set"):
        model.fit(X, y)
    model.fit(X[10:], y[10:], X_val=X[:10], y_val=y[:10])
    reference = SelfDistilledKernelRidgeCV(RBF(0.5), lams=[0.1, 1.0], solver="eigh")
    reference.fit(X[10:], y[10:], X_val=X[:10], y_val=y[:10])
    assert_close(model.cv_results_["mse"], reference.cv_results_["mse"], 1e-6)
    assert not hasattr(model, "loo_mse_")


def test_per_target(rng):
    X, Y = draw(rng, p=3)
    own = SelfDistilledKernelRidgeCV(RBF(0.5), lams=[1.0], per_target=True, max_steps=3).fit(X, Y)
    one = SelfDistilledKernelRidgeCV(RBF(0.5), lams=[1.0], max_steps=3).fit(X, Y)
    assert own.alphas_.shape == (own.best_step_, 3)
    assert own.best_score_ >= one.best_score_


# ------------------------------------------------------------------ errors that say what to do


def test_splitters_that_need_labels_say_so(rng):
    X, y = draw(rng)
    for splitter in (StratifiedKFold(3), GroupKFold(3)):
        with pytest.raises(ValueError, match=r"pass the group labels themselves as folds \(cv\)"):
            SelfDistilledKernelRidgeCV(cv=splitter).fit(X, y)
    groups = np.arange(len(X)) % 4
    by_labels = SelfDistilledKernelRidgeCV(cv=groups, lams=[0.1]).fit(X, y)
    splits = list(GroupKFold(4).split(X, y, groups))
    by_splits = SelfDistilledKernelRidgeCV(cv=splits, lams=[0.1]).fit(X, y)
    assert_close(by_labels.cv_results_["mse"], by_splits.cv_results_["mse"], 1e-12)


def test_parameters_that_no_kernel_has(rng):
    X, y = draw(rng)
    with pytest.raises(ValueError, match="no gamma to choose"):
        SelfDistilledKernelRidgeCV("matern", gammas=[0.1]).fit(X, y)
    with pytest.raises(ValueError, match="length_scales are for kernel='matern'"):
        SelfDistilledKernelRidgeCV(["rbf", "ntk"], length_scales=[0.1]).fit(X, y)
    with pytest.raises(ValueError, match="must not be empty"):
        SelfDistilledKernelRidgeCV([]).fit(X, y)


# ------------------------------------------------------------------ found by review


def test_an_object_is_not_taken_for_a_name(rng):
    X, y = draw(rng)
    kernels = ["rbf", RBF(1 / 3), "matern", Matern()]
    model = SelfDistilledKernelRidgeCV(kernels, gammas=[7, 8], length_scales=[3], lams=[0.1])
    model.fit(X, y)
    tried = model.cv_results_["param_kernel"][::4]
    assert list(tried) == [RBF(7.0), RBF(8.0), RBF(1 / 3), Matern(3.0), Matern()]


def test_best_params_make_the_chosen_model_again(rng):
    X, y = draw(rng)
    model = SelfDistilledKernelRidgeCV(
        solver="nystrom", solver_options={"n_landmarks": 10}, random_state=5, lams=[0.1, 1.0]
    ).fit(X, y)
    again = SelfDistilledKernelRidge(**model.best_params_).fit(X, y)
    assert_close(again.predict(X), model.predict(X), 1e-9)


def test_fitting_without_refit_forgets_the_model_before(rng):
    X, y = draw(rng)
    model = SelfDistilledKernelRidgeCV(lams=[0.1, 1.0]).fit(X, y)
    model.set_params(refit=False).fit(X, y)
    for name in ("kernel_", "path_", "alphas_", "weights_", "dual_coef_", "intercept_"):
        assert not hasattr(model, name)
    with pytest.raises(NotFittedError, match="refit=False"):
        model.predict(X)


def test_grids_of_parameters_for_each_feature(rng):
    X, y = draw(rng)
    gammas = [[0.1, 1.0, 2.0], [1.0, 1.0, 1.0]]
    model = SelfDistilledKernelRidgeCV(gammas=gammas, lams=[0.1, 1.0]).fit(X, y)
    assert model.kernel_ in [RBF(gamma) for gamma in gammas]
    one = SelfDistilledKernelRidgeCV("matern", length_scale=[0.1, 1.0, 2.0], lams=[0.1])
    assert one.fit(X, y).kernel_ == Matern([0.1, 1.0, 2.0])


def test_kernels_whose_features_have_another_dtype(rng):
    X, y = draw(rng)
    kernels = [Features(lambda A: np.c_[A, A**2].astype("f8")), "linear"]
    model = SelfDistilledKernelRidgeCV(kernels, max_steps=2).fit(X.astype("f4"), y)
    assert np.isfinite(model.cv_results_["mse"]).all()


@pytest.mark.filterwarnings("error:the best gamma:UserWarning")
def test_a_grid_of_one_value_has_no_edge(rng):
    SelfDistilledKernelRidgeCV(gammas=[1.0, 1.0], lams=[0.1]).fit(*draw(rng))
