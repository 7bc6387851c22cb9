"""SelfDistilledKernelRidge among scikit-learn's tools, and its numbers against refits."""

from __future__ import annotations

import math
import pickle

import numpy as np
import oracle
import pytest
import tolerance
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from tolerance import assert_close

from selfdistill_fast import (
    NTK,
    RBF,
    Features,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
    SelfDistilledKernelRidge,
    SelfDistilledKernelRidgeCV,
    leave_one_out,
    spectrum,
)
from selfdistill_fast._chain import leave_out, selection
from selfdistill_fast._chain.selection import score_grid
from selfdistill_fast.estimators import cross_validated, regressor

pytestmark = pytest.mark.filterwarnings("ignore:joint weights:RuntimeWarning")

NOT_REPETITION = (
    "with alpha='optimal' α is chosen by leave-one-out, where leaving a row out is not "
    "leaving out one of its two copies"
)


def expected_failures(estimator):
    if isinstance(estimator.alpha, str):
        return {"check_sample_weight_equivalence_on_dense_data": NOT_REPETITION}
    return {}


@parametrize_with_checks(
    [
        SelfDistilledKernelRidge(),
        SelfDistilledKernelRidge(alpha="joint", n_steps=3),
        SelfDistilledKernelRidge(alpha=0.4, n_steps=3),
        SelfDistilledKernelRidge(alpha=[0.4, -0.5], n_steps=3, fit_intercept=True, lam=0.1),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def draw(rng, n=20, p=2):
    X = rng.uniform(-1, 2, (n, 3))
    return X, np.sin(2 * X[:, :1]) * [[1.0, 0.5][:p]] + 0.3 * rng.standard_normal((n, p))


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_default_alpha_is_by_exact_leave_one_out(backend, rng, intercept, weighted):
    X, Y = draw(rng, n=14)
    weight = rng.uniform(0.2, 2.0, len(X)) if weighted else None
    model = SelfDistilledKernelRidge(
        "rbf", gamma=0.7, lam=0.2, n_steps=4, fit_intercept=intercept, backend=backend
    ).fit(X, Y, weight)
    K = oracle.kernel_matrix(RBF(0.7), X)

    def student(alphas):
        return oracle.leave_one_out(K, Y, 0.2, alphas, weight, intercept)[-1]

    alphas = oracle.algorithm_1(student([np.nan]), student, Y, 4, weight=weight)
    assert np.isnan(model.alphas_[0])
    assert_close(model.alphas_[1:], alphas[1:], 1e-8)
    left_out = oracle.leave_one_out(K, Y, 0.2, model.alphas_, weight, intercept)
    errors = np.square(left_out - Y).mean(2)
    expected = np.average(errors, axis=1, weights=weight)
    assert_close(model.loo_mse_, expected, 1e-10)
    best = int(expected.argmin()) + 1
    assert model.best_step_ == best
    assert_close(model.weights_[:best], oracle.weights_of(model.alphas_[:best]), 1e-12)
    assert not model.weights_[best:].any()
    # then the model itself: refits with those α's
    models = oracle.chain(K, Y, 0.2, model.alphas_, weight, intercept)
    X_new = rng.uniform(-1, 2, (5, 3))
    refits = oracle.predict(models, oracle.kernel_matrix(RBF(0.7), X_new, X))
    assert_close(model.predict_path(X_new), refits, 1e-10)
    assert_close(model.predict(X_new), refits[best - 1], 1e-10)
    assert_close(model.predict(X_new, step="best"), refits[best - 1], 1e-10)
    assert_close(model.predict(X_new, step="last"), refits[-1], 1e-10)
    assert_close(model.predict(X_new, step=2), refits[1], 1e-10)
    assert model.dual_coef_.shape == Y.shape
    assert model.n_features_in_ == 3


def test_alpha_on_a_validation_set(backend, rng):
    X, Y = draw(rng)
    X_val, Y_val = draw(rng, n=11)
    weight = rng.uniform(0.2, 2.0, len(X_val))
    model = SelfDistilledKernelRidge(gamma=0.7, lam=0.2, n_steps=3, backend=backend)
    model.fit(X, Y, X_val=X_val, y_val=Y_val, sample_weight_val=weight)
    K, K_val = oracle.kernel_matrix(RBF(0.7), X), oracle.kernel_matrix(RBF(0.7), X_val, X)

    def student(alphas):
        return oracle.predict(oracle.chain(K, Y, 0.2, alphas), K_val)[-1]

    expected = oracle.algorithm_1(student([np.nan]), student, Y_val, 3, weight=weight)
    assert_close(model.alphas_[1:], expected[1:], 1e-8)


def test_clip(backend):
    rng = np.random.default_rng(0)
    X, y = rng.uniform(-1, 2, (20, 3)), rng.standard_normal(20)
    # pure noise: leave-one-out wants less than no ground truth
    free = SelfDistilledKernelRidge(lam=0.1, backend=backend).fit(X, y)
    clipped = SelfDistilledKernelRidge(lam=0.1, clip=True, backend=backend).fit(X, y)
    assert free.alphas_[1] < 0
    assert clipped.alphas_[1] == 0.0


def test_fixed_alpha_and_the_limit(backend, rng):
    X, Y = draw(rng)
    model = SelfDistilledKernelRidge(alpha=0.25, lam=0.2, n_steps=3, backend=backend).fit(X, Y)
    ridge = KernelRidge(alpha=0.8, kernel="rbf").fit(X, Y)
    assert_close(model.predict(X, step=math.inf), ridge.predict(X), 1e-11)
    assert_close(model.predict(X, step="all"), model.predict_path(X), 1e-15)


def test_step_one_is_kernel_ridge_for_every_name(backend, rng):
    """scikit-learn's names and its gamma=None -> 1/n_features."""
    X, Y = draw(rng)
    for name, options in (
        ("rbf", {}),
        ("rbf", {"gamma": 0.3}),
        ("laplacian", {}),
        ("poly", {"degree": 2, "coef0": 0.5}),
        ("polynomial", {}),
        ("linear", {}),
    ):
        model = SelfDistilledKernelRidge(name, lam=0.3, n_steps=1, backend=backend, **options)
        ridge = KernelRidge(alpha=0.3, kernel=name, **options)
        assert_close(model.fit(X, Y).predict(X), ridge.fit(X, Y).predict(X), 1e-10, what=name)


def test_names_mean_the_kernel_objects(rng):
    X, Y = draw(rng)
    for name, options, kernel in (
        ("rbf", {}, RBF(1 / 3)),
        ("rbf", {"gamma": 2.0}, RBF(2.0)),
        ("laplacian", {}, Laplacian(1 / 3)),
        ("matern", {"length_scale": 0.7, "nu": 2.5}, Matern(0.7, 2.5)),
        ("poly", {}, Polynomial(3, 1 / 3, 1)),
        ("linear", {}, Linear()),
        ("ntk", {}, NTK(1)),
    ):
        named = SelfDistilledKernelRidge(name, lam=0.3, **options).fit(X, Y)
        given = SelfDistilledKernelRidge(kernel, lam=0.3).fit(X, Y)
        np.testing.assert_array_equal(named.predict(X), given.predict(X))
    function = SelfDistilledKernelRidge(lambda A, B: A @ B.T, lam=0.3).fit(X, Y)
    named = SelfDistilledKernelRidge("linear", lam=0.3).fit(X, Y)
    assert_close(function.predict(X), named.predict(X), 1e-10)


@pytest.mark.parametrize("alpha", ["optimal", "joint", 0.4])
@pytest.mark.parametrize("intercept", [False, True])
def test_weight_zero_is_dropping_the_row(backend, rng, alpha, intercept):
    X, Y = draw(rng)
    weight = rng.uniform(0.2, 2.0, len(X))
    weight[[2, 9]] = 0
    Y[[2, 9]] = 1e3
    keep = weight > 0
    model = SelfDistilledKernelRidge(
        alpha=alpha, n_steps=3, lam=0.2, fit_intercept=intercept, backend=backend
    )
    whole = clone(model).fit(X, Y, weight)
    kept = clone(model).fit(X[keep], Y[keep], weight[keep])
    assert_close(whole.predict_path(X), kept.predict_path(X), 1e-9)
    assert_close(whole.weights_, kept.weights_, 1e-8)
    assert_close(whole.loo_mse_, kept.loo_mse_, 1e-9)
    assert whole.dual_coef_.shape == Y.shape
    assert (whole.dual_coef_[~keep] == 0).all()


def test_a_scalar_weight_scales_lam(rng):
    X, Y = draw(rng)
    scaled = SelfDistilledKernelRidge(lam=0.4, alpha=0.3).fit(X, Y, np.full(len(X), 2.0))
    plain = SelfDistilledKernelRidge(lam=0.2, alpha=0.3).fit(X, Y)
    assert_close(scaled.predict(X), plain.predict(X), 1e-12)


def test_float32_in_float32_out(backend, rng):
    X, Y = (a.astype(np.float32) for a in draw(rng))
    model = SelfDistilledKernelRidge(lam=0.3, alpha=0.4, n_steps=3, backend=backend).fit(X, Y)
    assert model.predict(X).dtype == np.float32
    assert model.dual_coef_.dtype == np.float32
    double = SelfDistilledKernelRidge(lam=0.3, alpha=0.4, n_steps=3, backend=backend)
    double.fit(X.astype(float), Y.astype(float))
    rtol = tolerance.chain(oracle.d_max(oracle.kernel_matrix(RBF(1 / 3), X)), 0.3, 1, np.float32)
    assert_close(model.predict_path(X), double.predict_path(X.astype(float)), rtol)
    assert double.predict(X.astype(float)).dtype == np.float64


def test_shapes_of_targets(backend, rng):
    X, Y = draw(rng)
    column = SelfDistilledKernelRidge(backend=backend).fit(X, Y[:, :1])
    flat = SelfDistilledKernelRidge(backend=backend).fit(X, Y[:, 0])
    assert column.predict(X).shape == (len(X), 1)
    assert flat.predict(X).shape == (len(X),)
    assert flat.dual_coef_.shape == (len(X),)
    assert column.predict_path(X).shape == (2, len(X), 1)
    np.testing.assert_array_equal(column.predict(X)[:, 0], flat.predict(X))


def test_classification_by_one_hot_targets(backend):
    X, labels = load_iris(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    train = np.arange(len(X)) % 2 == 0
    model = SelfDistilledKernelRidge(lam=0.1, n_steps=3, backend=backend)
    model.fit(X[train], np.eye(3)[labels[train]])
    scores = model.predict(X[~train])
    assert scores.shape == (75, 3)
    assert (scores.argmax(1) == labels[~train]).sum() >= 69


# ------------------------------------------------------------------ among scikit-learn's tools


def test_tags():
    tags = get_tags(SelfDistilledKernelRidge())
    assert tags.target_tags.multi_output
    assert tags.estimator_type == "regressor"
    assert not tags.input_tags.pairwise
    assert not tags.input_tags.sparse
    assert get_tags(SelfDistilledKernelRidge("precomputed")).input_tags.pairwise


def test_clone_and_parameters():
    model = SelfDistilledKernelRidge(RBF(0.3), lam=0.2, alpha=[0.1, 0.2], n_steps=3, clip=True)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert set(model.get_params()) == {
        "kernel", "lam", "alpha", "n_steps", "gamma", "degree", "coef0", "length_scale", "nu",
        "fit_intercept", "clip", "solver", "solver_options", "backend", "random_state",
    }  # fmt: skip
    assert copy.set_params(lam=3.0, alpha="joint").lam == 3.0
    with pytest.raises(TypeError):
        SelfDistilledKernelRidge("rbf", 1.0)  # keyword only


def test_pipeline_with_weights(rng):
    X, Y = draw(rng)
    weight = rng.uniform(0.2, 2.0, len(X))
    pipeline = make_pipeline(StandardScaler(), SelfDistilledKernelRidge(lam=0.2))
    pipeline.fit(X, Y, selfdistilledkernelridge__sample_weight=weight)
    scaled = StandardScaler().fit_transform(X)
    by_hand = SelfDistilledKernelRidge(lam=0.2).fit(scaled, Y, weight)
    np.testing.assert_array_equal(pipeline.predict(X), by_hand.predict(scaled))
    assert pipeline.score(X, Y) == by_hand.score(scaled, Y)


def test_grid_search(rng):
    X, Y = draw(rng, n=30)
    grid = {"lam": [0.01, 1.0], "n_steps": [1, 3], "kernel": ["rbf", Laplacian(0.5)]}
    search = GridSearchCV(SelfDistilledKernelRidge(), grid, cv=3).fit(X, Y)
    scores = [
        cross_val_score(SelfDistilledKernelRidge(**p), X, Y, cv=3).mean()
        for p in search.cv_results_["params"]
    ]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], scores, rtol=1e-12)
    assert search.best_estimator_.predict(X).shape == Y.shape


def test_precomputed_is_split_by_rows_and_columns(backend, rng):
    X, Y = draw(rng, n=24)
    K = oracle.kernel_matrix(RBF(1 / 3), X)
    cv = KFold(4)
    pairwise = SelfDistilledKernelRidge("precomputed", lam=0.2, n_steps=3, backend=backend)
    plain = SelfDistilledKernelRidge("rbf", lam=0.2, n_steps=3, backend=backend)
    expected = cross_val_predict(plain, X, Y, cv=cv)
    assert_close(cross_val_predict(pairwise, K, Y, cv=cv), expected, 1e-9)
    search = GridSearchCV(pairwise, {"lam": [0.01, 0.2]}, cv=cv).fit(K, Y)
    named = GridSearchCV(plain, {"lam": [0.01, 0.2]}, cv=cv).fit(X, Y)
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], named.cv_results_["mean_test_score"], rtol=1e-9
    )


def test_pickle(backend, rng):
    X, Y = draw(rng)
    model = SelfDistilledKernelRidge(lam=0.2, n_steps=3, backend=backend).fit(X, Y)
    back = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(back.predict_path(X), model.predict_path(X))


def test_reprs():
    model = SelfDistilledKernelRidge(lam=0.2)
    assert repr(model) == "SelfDistilledKernelRidge(lam=0.2)"
    assert "SelfDistilledKernelRidge" in model._repr_html_()


def test_predict_before_fit():
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        SelfDistilledKernelRidge().predict(np.ones((2, 2)))


def test_refitting_forgets(rng):
    X, Y = draw(rng)
    model = SelfDistilledKernelRidge(n_steps=4).fit(X, Y)
    model.set_params(n_steps=2).fit(X[:9, :2], Y[:9, 0])
    fresh = SelfDistilledKernelRidge(n_steps=2).fit(X[:9, :2], Y[:9, 0])
    np.testing.assert_array_equal(model.predict_path(X[:, :2]), fresh.predict_path(X[:, :2]))


@pytest.mark.filterwarnings("ignore:the best:UserWarning")
@pytest.mark.parametrize("validated", [False, True])
def test_cv_takes_the_options_of_auto(rng, validated, monkeypatch):
    """They went to solver="eigh", which has none; and "auto" was not told the steps."""
    X, y = draw(rng, n=30)
    held_out = {"X_val": X[:10], "y_val": y[:10]} if validated else {}
    seen = []

    def spied(*args, **options):
        seen.append(options)
        return spectrum(*args, **options)

    monkeypatch.setattr(cross_validated, "spectrum", spied)
    options = {"tol": 1e-7, "max_memory": 2**28}
    grid = {"lams": [0.01, 0.1, 1.0], "max_steps": 7}
    given = SelfDistilledKernelRidgeCV(**grid, solver_options=options).fit(X, y, **held_out)
    plain = SelfDistilledKernelRidgeCV(**grid).fit(X, y, **held_out)
    assert_close(given.cv_results_["mse"], plain.cv_results_["mse"], 1e-6)
    assert seen[0]["solver"] == "auto"
    names = ("tol", "max_memory", "n_steps")
    assert {k: v for k, v in seen[0].items() if k in names} == {**options, "n_steps": 7}
    again = SelfDistilledKernelRidge(**given.best_params_).fit(X, y)
    assert_close(again.predict(X), given.predict(X), 1e-6)
    model = SelfDistilledKernelRidgeCV(solver_options={"n_landmarks": 5})
    with pytest.raises(TypeError, match="solver 'auto' has no option n_landmarks"):
        model.fit(X, y, **held_out)


@pytest.mark.filterwarnings("ignore:the best:UserWarning")
@pytest.mark.parametrize("kernel", [0, 1])
def test_cv_leaves_errors_out_that_are_not_known(rng, kernel, monkeypatch):
    """A NaN was taken for the smallest error, and its whole kernel for worse than all others."""
    X, y = draw(rng, n=30)
    calls = []

    def spoilt(*args, **options):
        scores = score_grid(*args, **options)
        if len(calls) == kernel:
            scores["mse"][np.unravel_index(scores["mse"].argmax(), scores["mse"].shape)] = np.nan
        calls.append(scores)
        return scores

    monkeypatch.setattr(cross_validated, "score_grid", spoilt)
    grid = {"lams": [0.01, 0.1, 1.0], "max_steps": 3, "gammas": [0.3, 3.0]}
    model = SelfDistilledKernelRidgeCV(**grid).fit(X, y)
    known = np.nan_to_num(model.cv_results_["mse"], nan=np.inf)
    assert np.isinf(known).sum() == 1
    assert model.best_index_ == known.argmin()
    assert model.best_score_ == -known.min()
    assert model.cv_results_["rank"].tolist() == rankdata(known, "min").astype(int).tolist()


def test_cv_of_errors_that_are_all_unknown_is_refused(rng, monkeypatch):
    X, y = draw(rng, n=10)

    def spoilt(*args, **options):
        scores = score_grid(*args, **options)
        scores["mse"][:] = np.nan
        return scores

    monkeypatch.setattr(cross_validated, "score_grid", spoilt)
    with pytest.raises(ValueError, match="no held-out error is finite"):
        SelfDistilledKernelRidgeCV().fit(X, y)


@pytest.mark.parametrize("given", ["alpha", "validation"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_leave_one_out_error_that_chose_nothing_is_computed_when_it_is_read(
    given, weighted, monkeypatch, rng
):
    """With "cholesky" leave-one-out takes longer than the fit. A model keeps no n × n matrix."""
    X, y = rng.normal(size=(40, 2)), rng.normal(size=40)
    w = rng.uniform(0.5, 2.0, 40) if weighted else None
    fixed = SelfDistilledKernelRidge(lam=0.1, alpha=0.3, n_steps=3, solver="cholesky")
    held = {}
    if given == "validation":
        fixed.set_params(alpha="optimal")
        held = {"X_val": X[:9] + 0.1, "y_val": y[:9]}
    calls = []
    original = regressor.mixed_held_out

    def counted(*args, **options):
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr(regressor, "mixed_held_out", counted)
    targets = y.copy()
    fixed.fit(X, targets, w, **held)
    targets[:] = 0.0  # the caller's
    assert not calls
    assert len(pickle.dumps(fixed)) < 40 * 40 * 8
    copy = pickle.loads(pickle.dumps(fixed))
    fixed.set_params(lam=7.0, fit_intercept=True)  # of the next fit
    full = spectrum(X, y, fixed.kernel_, sample_weight=w)
    errors = leave_one_out(full, 0.1, fixed.alphas_, 3) - y
    for model in (fixed, copy):
        assert_close(model.loo_mse_, np.average(errors**2, axis=1, weights=w), 1e-10)
        assert model.loo_mse_ is model.loo_mse_
    assert len(calls) == 2
    fixed.set_params(solver="eigh").fit(X, y, **held)
    assert "loo_mse_" in vars(fixed)
    fixed.set_params(solver="cholesky").fit(X, y, **held)
    assert "loo_mse_" not in vars(fixed)  # that of the fit before is gone
    with pytest.raises(AttributeError, match="loo_mse_"):
        _ = SelfDistilledKernelRidge().loo_mse_


def test_the_leave_one_out_that_chooses_is_computed_once(monkeypatch, rng):
    X, y = rng.normal(size=(40, 2)), rng.normal(size=40)
    calls = []
    for module in (selection, leave_out):
        original = module.loo_columns
        monkeypatch.setattr(
            module, "loo_columns", lambda *args, f=original: calls.append(args) or f(*args)
        )
    SelfDistilledKernelRidge(lam=0.1, n_steps=3).fit(X, y)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("kernel", "parameters", "solver"),
    [
        ("rbf", {"gamma": [0.3, 2.0, 1.0]}, "cholesky"),
        (Matern([0.3, 2.0, 1.0]), {}, "cholesky"),
        (Features(lambda A: np.c_[A, np.sin(A), A**2]), {}, "cholesky"),
        (0.5 * RBF([0.3, 2.0, 1.0]) + Linear(), {}, "cholesky"),
    ],
    ids=["by name", "Matern", "Features", "sum"],
)
@pytest.mark.parametrize("validated", [False, True])
def test_later_leave_one_out_of_kernels_that_map_rows(kernel, parameters, solver, validated, rng):
    """The rows of a model are mapped already, and were mapped a second time."""
    X, Y = draw(rng, n=24, p=1)
    held = {"X_val": X[:6] + 0.1, "y_val": Y[:6, 0]} if validated else {}
    alpha = "optimal" if validated else 0.4
    options = {"lam": 0.1, "alpha": alpha, "n_steps": 3, **parameters}
    later, at_once = (
        SelfDistilledKernelRidge(kernel, solver=name, **options).fit(X, Y[:, 0], **held)
        for name in (solver, "eigh")
    )
    assert "loo_mse_" not in vars(later)
    assert_close(later.loo_mse_, at_once.loo_mse_, 1e-9)
