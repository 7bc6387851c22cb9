"""Frames and scikit-learn's metadata routing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import config_context
from sklearn.ensemble import StackingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tolerance import assert_close

from selfdistill_fast import (
    SelfDistilledKernelRidge,
    SelfDistilledKernelRidgeClassifier,
    SelfDistilledKernelRidgeCV,
)

pytestmark = pytest.mark.filterwarnings("ignore:the best:UserWarning")


def draw(rng, n=60):
    X = rng.normal(size=(n, 3))
    return X, np.sin(X[:, 0]) + 0.1 * rng.normal(size=n), rng.uniform(0.2, 2.0, n)


def test_weights_and_validation_data_are_routed(rng):
    X, y, w = draw(rng)
    X_val, y_val, w_val = draw(rng, 20)
    model = SelfDistilledKernelRidge(lam=0.1, n_steps=3)
    expected = SelfDistilledKernelRidge(lam=0.1, n_steps=3).fit(
        X, y, w, X_val=X_val, y_val=y_val, sample_weight_val=w_val
    )
    with config_context(enable_metadata_routing=True):
        model.set_fit_request(sample_weight=True, X_val=True, y_val=True, sample_weight_val=True)
        scaler = StandardScaler(with_mean=False, with_std=False)
        scaler.set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, model)
        pipeline.fit(X, y, sample_weight=w, X_val=X_val, y_val=y_val, sample_weight_val=w_val)
        assert_close(pipeline.predict(X), expected.predict(X), 1e-12)
        model = SelfDistilledKernelRidge(lam=0.1).set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=True)
        scores = cross_validate(model, X, y, cv=3, params={"sample_weight": w})["test_score"]
    parts = np.array_split(np.arange(60), 3)
    for test, score in zip(parts, scores, strict=True):
        train = np.setdiff1d(np.arange(60), test)
        fitted = SelfDistilledKernelRidge(lam=0.1).fit(X[train], y[train], w[train])
        assert score == pytest.approx(fitted.score(X[test], y[test], w[test]), rel=1e-10)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames(library, rng):
    frames = pytest.importorskip(library)
    X, y, w = draw(rng)
    frame = frames.DataFrame({name: X[:, j] for j, name in enumerate("abc")})
    column, weights = frames.Series(y), frames.Series(w)
    labels = frames.Series(np.where(y > 0, "up", "down").tolist())
    for model, target in (
        (SelfDistilledKernelRidge(lam=0.1), column),
        (SelfDistilledKernelRidgeCV(lams=[0.1, 1.0]), column),
        (SelfDistilledKernelRidgeClassifier(lam=0.1), labels),
    ):
        model.fit(frame, target, weights)
        np.testing.assert_array_equal(model.feature_names_in_, ["a", "b", "c"])
        with pytest.warns(UserWarning, match="X does not have valid feature names"):
            from_array = model.predict(X)
        np.testing.assert_array_equal(model.predict(frame), from_array)


def test_after_transformers_that_give_frames(rng):
    pytest.importorskip("pandas")
    X, y, _ = draw(rng)
    pipeline = make_pipeline(StandardScaler(), SelfDistilledKernelRidge(lam=0.1))
    plain = pipeline.fit(X, y).predict(X)
    pipeline.set_output(transform="pandas")
    assert_close(pipeline.fit(X, y).predict(X), plain, 1e-13)


def test_in_a_stack(rng):
    X, y, _ = draw(rng)
    stack = StackingRegressor(
        [("ours", SelfDistilledKernelRidge(lam=0.1)), ("linear", RidgeCV())], cv=3
    )
    assert stack.fit(X, y).score(X, y) > 0.8
