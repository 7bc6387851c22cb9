"""The classifiers among scikit-learn's tools, and their numbers against refits."""

from __future__ import annotations

import pickle

import numpy as np
import oracle
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from tolerance import assert_close

from selfdistill_fast import (
    RBF,
    Laplacian,
    SelfDistilledKernelRidgeClassifier,
    SelfDistilledKernelRidgeClassifierCV,
)

pytestmark = pytest.mark.filterwarnings("ignore:the best:UserWarning")

NOT_REPETITION = (
    "α or the grid is chosen by leave-one-out, where leaving a row out is not leaving out one of "
    "its two copies"
)


def expected_failures(estimator):
    if isinstance(estimator.alpha, str):
        return {"check_sample_weight_equivalence_on_dense_data": NOT_REPETITION}
    return {}


@parametrize_with_checks(
    [
        SelfDistilledKernelRidgeClassifier(),
        SelfDistilledKernelRidgeClassifier(alpha=0.4, n_steps=3, solver="eigh"),
        SelfDistilledKernelRidgeClassifier(scoring="accuracy", kernel="linear"),
        SelfDistilledKernelRidgeClassifierCV(lams=[0.1, 1.0], max_steps=2),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def draw(rng, n=24, classes=("cat", "dog", "emu")):
    X = rng.normal(size=(n, 3))
    noisy = X[:, 0] + 0.4 * rng.normal(size=n)
    y = np.array(classes)[np.digitize(noisy, [-0.4, 0.4][: len(classes) - 1])]
    return X, y


def one_hot(y):
    return (y[:, None] == np.unique(y)).astype(float)


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("classes", [("no", "yes"), ("cat", "dog", "emu")], ids=["two", "three"])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_leave_one_out_accuracy_equals_refits(classes, intercept, weighted, rng):
    X, y = draw(rng, classes=classes)
    w = rng.uniform(0.2, 2.0, len(X)) if weighted else None
    model = SelfDistilledKernelRidgeClassifier(
        gamma=0.7, lam=0.2, alpha=[0.4, -0.2], n_steps=3, fit_intercept=intercept
    ).fit(X, y, w)
    Y = one_hot(y)
    K = oracle.kernel_matrix(RBF(0.7), X)
    left_out = oracle.leave_one_out(K, Y, 0.2, [np.nan, 0.4, -0.2], w, intercept)
    right = left_out.argmax(2) == Y.argmax(1)
    assert_close(model.loo_accuracy_, np.average(right, axis=1, weights=w), 1e-12)
    mse = np.average(np.square(left_out - Y).mean(2), axis=1, weights=w)
    assert_close(model.loo_mse_, mse, 1e-10)
    assert_close(model.loo_decision_function_, left_out[-1], 1e-9)
    # and the predictions are those of the refits
    models = oracle.chain(K, Y, 0.2, [np.nan, 0.4, -0.2], w, intercept)
    X_new = rng.normal(size=(9, 3))
    F = oracle.predict(models, oracle.kernel_matrix(RBF(0.7), X_new, X))
    expected = F[..., 1] - F[..., 0] if len(classes) == 2 else F
    assert_close(model.decision_function(X_new, step="all"), expected, 1e-9)
    np.testing.assert_array_equal(model.predict(X_new, step=2), np.unique(y)[F[1].argmax(1)])
    assert model.predict(X_new, step="all").shape == (3, 9)
    assert model.score(X, y) == np.mean(model.predict(X) == y)


def test_first_step_is_that_of_ridge_classifier(rng):
    X, y = draw(rng, n=60)
    ours = SelfDistilledKernelRidgeClassifier("linear", lam=0.7, alpha=0.5).fit(X, y)
    ridge = RidgeClassifier(alpha=0.7).fit(X, y)  # targets -1 and 1
    assert_close(2 * ours.decision_function(X, step=1) - 1, ridge.decision_function(X), 1e-10)


@pytest.mark.parametrize("kind", [int, bool, str, object])
def test_labels_of_any_kind(kind, rng):
    X, y = draw(rng, classes=("a", "b"))
    labels = {int: [7, -3], bool: [False, True], str: ["x", "y"], object: ["p", "q"]}[kind]
    y = np.array(labels, dtype=kind if kind is not str else None)[(y == "b").astype(int)]
    model = SelfDistilledKernelRidgeClassifier().fit(X, y)
    assert set(model.predict(X)) <= set(y)
    np.testing.assert_array_equal(model.classes_, np.unique(y))


def test_class_weights_are_sample_weights(rng):
    X, y = draw(rng)
    w = rng.uniform(0.5, 2.0, len(X))
    by_class = {"cat": 2.0, "dog": 1.0, "emu": 0.5}
    ours = SelfDistilledKernelRidgeClassifier(class_weight=by_class).fit(X, y, w)
    plain = SelfDistilledKernelRidgeClassifier().fit(X, y, w * [by_class[label] for label in y])
    assert_close(ours.decision_function(X), plain.decision_function(X), 1e-12)
    balanced = SelfDistilledKernelRidgeClassifier(class_weight="balanced").fit(X, y)
    count = np.array([np.sum(y == label) for label in y])
    again = SelfDistilledKernelRidgeClassifier().fit(X, y, len(y) / (3 * count))
    assert_close(balanced.decision_function(X), again.decision_function(X), 1e-12)


def test_the_best_step_by_accuracy(rng):
    X, y = draw(rng, n=40)
    model = SelfDistilledKernelRidgeClassifier(n_steps=4, lam=5.0, scoring="accuracy").fit(X, y)
    assert model.best_step_ == model.loo_accuracy_.argmax() + 1
    by_error = clone(model).set_params(scoring="squared_error").fit(X, y)
    assert by_error.best_step_ == by_error.loo_mse_.argmin() + 1
    X_val, y_val = draw(rng, n=30)
    model.fit(X, y, X_val=X_val, y_val=y_val)
    accuracies = [np.mean(model.predict(X_val, step=t) == y_val) for t in (1, 2, 3, 4)]
    assert model.best_step_ == np.argmax(accuracies) + 1


# ------------------------------------------------------------------ probabilities


@pytest.mark.parametrize("classes", [("no", "yes"), ("cat", "dog", "emu")], ids=["two", "three"])
@pytest.mark.parametrize("calibration", [None, "sigmoid", "isotonic"])
def test_probabilities(classes, calibration, rng):
    X, y = draw(rng, n=60, classes=classes)
    model = SelfDistilledKernelRidgeClassifier(lam=0.1).fit(X, y)
    X_new = rng.normal(size=(20, 3))
    P = model.predict_proba(X_new, calibration=calibration)
    assert P.shape == (20, len(classes))
    assert (P >= 0).all()
    assert_close(P.sum(1), np.ones(20), 1e-12)
    F = np.asarray(model.path_.predict(X_new))
    held_out, Y = model.loo_decision_function_, one_hot(y)
    if calibration is None:
        clipped = np.maximum(F, 0)
        assert_close(P, clipped / clipped.sum(1, keepdims=True), 1e-12)
        np.testing.assert_array_equal(model.classes_[P.argmax(1)], model.predict(X_new))
    elif calibration == "isotonic":
        maps = [
            IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(f, t)
            for f, t in zip(held_out.T, Y.T, strict=True)
        ]
        raw = np.stack([m.predict(f) for m, f in zip(maps, F.T, strict=True)], 1)
        assert_close(P, raw / raw.sum(1, keepdims=True), 1e-12)
    else:
        if len(classes) == 2:
            held_out, F = held_out[:, 1:] - held_out[:, :1], F[:, 1:] - F[:, :1]
        logistic = LogisticRegression(C=1e4, max_iter=1000).fit(held_out, Y.argmax(1))
        assert_close(P, logistic.predict_proba(F), 1e-12)


def test_calibration_helps_where_predictions_are_too_small(rng):
    """Strong regularisation shrinks predictions to the mean, and calibration undoes that."""
    X, y = draw(rng, n=300, classes=("no", "yes"))
    X_new, y_new = draw(rng, n=300, classes=("no", "yes"))
    model = SelfDistilledKernelRidgeClassifier(lam=300.0, alpha=1.0).fit(X, y)
    raw, calibrated = (
        log_loss(y_new, model.predict_proba(X_new, calibration=how)) for how in (None, "sigmoid")
    )
    assert calibrated < 0.9 * raw


def test_probabilities_where_no_prediction_is_positive(rng):
    X, y = draw(rng)
    model = SelfDistilledKernelRidgeClassifier(fit_intercept=False).fit(X, y)
    P = model.predict_proba(np.full((2, 3), 1e3))  # the kernel is 0 there
    assert_close(P, np.full((2, 3), 1 / 3), 1e-12)


def test_what_calibration_cannot_do(rng):
    X, y = draw(rng)
    model = SelfDistilledKernelRidgeClassifier(alpha=0.5, solver="tridiagonal").fit(X, y)
    with pytest.raises(ValueError, match=r"no leave-one-out predictions.*solver='eigh'"):
        model.predict_proba(X, calibration="sigmoid")
    with pytest.raises(ValueError, match="must be None, 'sigmoid' or 'isotonic'"):
        model.predict_proba(X, calibration="platt")
    with pytest.raises(ValueError, match="for step 2 only"):
        model.predict_proba(X, step=1, calibration="sigmoid")


# ------------------------------------------------------------------ errors


def test_labels_that_cannot_be_learnt(rng):
    X, y = draw(rng)
    with pytest.raises(ValueError, match="one class only, 'cat'"):
        SelfDistilledKernelRidgeClassifier().fit(X, np.full(len(X), "cat"))
    with pytest.raises(ValueError, match=r"y_val has classes that y has not: \['fox'\]"):
        SelfDistilledKernelRidgeClassifier().fit(X, y, X_val=X[:2], y_val=["cat", "fox"])
    with pytest.raises(ValueError, match="Unknown label type"):
        SelfDistilledKernelRidgeClassifier().fit(X, rng.normal(size=len(X)))
    with pytest.raises(ValueError, match="'squared_error' or 'accuracy'"):
        SelfDistilledKernelRidgeClassifier(scoring="auc").fit(X, y)
    with pytest.raises(ValueError, match="unknown scoring 'r2'"):
        SelfDistilledKernelRidgeClassifierCV(scoring="r2").fit(X, y)


# ------------------------------------------------------------------ the grid


@pytest.mark.parametrize("cv", [None, 4])
def test_cv_chooses_by_accuracy(cv, rng):
    X, y = draw(rng, n=40)
    grid = {"lams": [0.01, 1.0, 30.0], "gammas": [0.1, 1.0], "max_steps": 3}
    model = SelfDistilledKernelRidgeClassifierCV(cv=cv, alpha=0.6, **grid).fit(X, y)
    Y, results = one_hot(y), model.cv_results_
    folds = np.arange(len(X))
    if cv is not None:
        for i, (_, test) in enumerate(StratifiedKFold(cv).split(X, y)):
            folds[test] = i
    for cell in range(len(results["lam"])):
        K = oracle.kernel_matrix(RBF(results["gamma"][cell]), X)
        alphas = [np.nan, 0.6, 0.6]
        left_out = oracle.leave_out(folds, K, Y, results["lam"][cell], alphas, None, True)
        right = left_out[results["step"][cell] - 1].argmax(1) == Y.argmax(1)
        assert results["score"][cell] == pytest.approx(right.mean(), abs=1e-12)
    best = results["score"].argmax()
    assert model.best_index_ == best
    assert model.best_score_ == results["score"][best] == results["mean_test_score"][best]
    assert model.best_step_ == results["step"][best]
    single = SelfDistilledKernelRidgeClassifier(**model.best_params_).fit(X, y)
    assert_close(single.decision_function(X), model.decision_function(X), 1e-10)


# ------------------------------------------------------------------ among scikit-learn's tools


def test_pipelines_and_searches():
    X, y = load_iris(return_X_y=True)
    y = np.array(["setosa", "versicolor", "virginica"])[y]
    pipeline = make_pipeline(StandardScaler(), SelfDistilledKernelRidgeClassifier(lam=0.1))
    assert np.mean(cross_val_predict(pipeline, X, y, cv=3) == y) > 0.9
    kernels = [RBF(0.1), RBF(1.0), Laplacian(0.3)]
    step = "selfdistilledkernelridgeclassifier__kernel"
    search = GridSearchCV(pipeline, {step: kernels}, cv=3).fit(X, y)
    assert search.best_params_[step] in kernels
    assert search.best_score_ > 0.9
    calibrated = CalibratedClassifierCV(pipeline, cv=3).fit(X, y)
    assert calibrated.score(X, y) > 0.9


def test_pickle_and_frames(rng):
    pd = pytest.importorskip("pandas")
    X, y = draw(rng)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = SelfDistilledKernelRidgeClassifier().fit(frame, pd.Series(y))
    np.testing.assert_array_equal(model.feature_names_in_, ["a", "b", "c"])
    back = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(back.predict(frame), model.predict(frame))
    assert_close(back.predict_proba(frame, calibration="sigmoid").sum(1), np.ones(len(X)), 1e-12)


def test_digits():
    X, y = load_digits(return_X_y=True)
    train = np.arange(len(X)) % 3 > 0
    model = SelfDistilledKernelRidgeClassifierCV(max_steps=2).fit(X[train] / 16, y[train])
    assert model.score(X[~train] / 16, y[~train]) > 0.98


def test_options_that_are_arrays_or_floats(rng):
    X, y = draw(rng, n=30)
    model = SelfDistilledKernelRidgeClassifier(
        alpha=np.array([0.5, 0.2]), n_steps=3, scoring="accuracy"
    ).fit(X, y)
    assert model.best_step_ == 3
    order = np.argsort(y)
    grids = (SelfDistilledKernelRidgeClassifierCV(lams=[0.1, 1.0], cv=cv) for cv in (3, 3.0))
    scores = [grid.fit(X[order], y[order]).best_score_ for grid in grids]
    assert scores[0] == scores[1]


def test_labels_of_a_validation_set_that_cannot_be_ordered(rng):
    X, y = draw(rng)
    with pytest.raises(ValueError, match=r"y_val has classes that y has not: \[None, 3\]"):
        SelfDistilledKernelRidgeClassifier().fit(
            X, y.astype(object), X_val=X[:3], y_val=np.array([None, 3, None], dtype=object)
        )
