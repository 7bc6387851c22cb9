"""Scores of held-out predictions, by which a grid is chosen: larger is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import metrics

__all__ = ["Scorer", "classification_scorer", "regression_scorer"]

#: y (m, p), predictions (T, m, p) and weights (m,) or None → scores (T,)
Scorer = Callable[[Any, Any, Any], np.ndarray]

_REGRESSION: dict[str, Any] = {
    "r2": metrics.r2_score,
    "neg_mean_absolute_error": lambda *a, **o: -metrics.mean_absolute_error(*a, **o),
    "neg_median_absolute_error": lambda *a, **o: -metrics.median_absolute_error(*a, **o),
}
_CLASSIFICATION: dict[str, Any] = {
    "accuracy": metrics.accuracy_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
}
_SQUARED = (None, "neg_mean_squared_error", "neg_root_mean_squared_error")


def regression_scorer(scoring: Any) -> Scorer | None:
    """The scorer of a name, or of a function (y, predictions, sample_weight=None) → float.

    None for the squared error, which needs no predictions of cells.
    """
    metric = _metric(scoring, _REGRESSION)
    return None if metric is None else lambda y, F, w: _each(metric, y, F, w)


def classification_scorer(scoring: Any, classes: np.ndarray) -> Scorer | None:
    """As :func:`regression_scorer`, for a metric of labels and one-hot targets."""
    metric = _metric(scoring, _CLASSIFICATION)
    if metric is None:
        return None

    def labels(F: Any) -> np.ndarray:
        return np.asarray(classes[np.argmax(F, axis=-1)])

    return lambda y, F, w: _each(metric, labels(y), labels(F), w)


def _metric(scoring: Any, known: dict[str, Any]) -> Any:
    if callable(scoring):
        return scoring
    if scoring in _SQUARED:
        return None
    if scoring not in known:
        names = ", ".join(map(repr, [*_SQUARED[1:], *known]))
        raise ValueError(
            f"unknown scoring {scoring!r}; known: {names}, or a function (y, predictions) whose "
            "larger values are better"
        )
    return known[scoring]


def _each(metric: Any, y: Any, F: Any, w: Any) -> np.ndarray:
    """The metric of every step; NaN where predictions are not finite."""
    options = {} if w is None else {"sample_weight": w}
    finite = [F_step.dtype.kind not in "fc" or np.isfinite(F_step).all() for F_step in F]
    return np.array(
        [metric(y, f, **options) if ok else np.nan for f, ok in zip(F, finite, strict=True)]
    )
