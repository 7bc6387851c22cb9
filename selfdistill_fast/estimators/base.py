"""What all estimators share: predictions, scores, and the checks that scikit-learn asks for."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.utils.validation import _check_n_features, check_is_fitted, validate_data

from selfdistill_fast._backend import device_of, get_backend
from selfdistill_fast._chain.path import DistillationPath
from selfdistill_fast._validation import is_tensor, plain, to_host
from selfdistill_fast.kernels import Kernel, Linear, Precomputed


class Distilled(BaseEstimator):
    """What a fitted chain has, however its parameters were chosen and its predictions are used."""

    kernel: Any
    path_: DistillationPath
    kernel_: Kernel

    #: why a property does not exist for a fitted model
    _ABSENT: ClassVar[dict[str, str]] = {
        "coef_": "coef_ exists only for a linear kernel; use dual_coef_"
    }

    def _keep(self, kernel: Kernel, path: DistillationPath) -> None:
        """Set the attributes that describe a fitted chain."""
        self.kernel_ = kernel
        self.path_ = path
        self._use(path.default_step if path.selection is None else path.best_step)
        self.alphas_ = path.alphas

    def _use(self, step: int) -> None:
        """Let ``step`` be the one that predicts."""
        path = self.path_
        self.best_step_ = path.default_step = step
        self.weights_ = path.step_weights[step - 1]
        self.dual_coef_ = path.dual_coef()
        self.intercept_ = path.intercept()

    @property
    def coef_(self) -> Any:
        """Coefficients β of ``best_step_``, (D,) or (D, n_targets); only of a linear kernel."""
        check_is_fitted(self)
        if not isinstance(getattr(self, "kernel_", None), Linear):
            raise AttributeError(self._ABSENT["coef_"])
        return self.path_.coef()

    def _predictions(self, X: Any, step: Any) -> Any:
        """Predictions of the chain where X is, from X as the caller gives it."""
        check_is_fitted(self)
        if not hasattr(self, "path_"):
            raise NotFittedError(
                f"this {type(self).__name__} was fitted with refit=False, so it has no model; fit "
                "with refit=True, or SelfDistilledKernelRidge(**best_params_)"
            )
        return self.path_.predict(self._validated("X", X), step)

    def _validated(self, name: str, X: Any, *y: Any) -> Any:
        """X, or X and y, checked by scikit-learn, which does not support arrays on a device.

        Device arrays are checked where they are used; only their number of columns is stored here.
        """
        X, y = plain(X, name), tuple(plain(targets, "y") for targets in y)
        if device_of({name: X})[1] is None:
            options: dict[str, Any] = {"dtype": (np.float64, np.float32), "reset": bool(y)}
            if y and is_regressor(self):
                options |= {"multi_output": True, "y_numeric": True}
            with config_context(array_api_dispatch=False):  # NumPy arrays are needed
                return validate_data(self, X, *y, **options)
        if not y:
            _check_n_features(self, X, reset=False)
            return X
        if len(X.shape) != 2:
            raise ValueError(f"X must have 2 dimensions, got shape {tuple(X.shape)}")
        _check_n_features(self, X, reset=True)
        return X, *y

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = isinstance(self.kernel, Precomputed) or (
            isinstance(self.kernel, str) and self.kernel == "precomputed"
        )
        return tags


class Regression(MultiOutputMixin, RegressorMixin, Distilled):
    """Methods of a chain whose predictions are the answer."""

    def predict(self, X: Any, step: Any = None) -> Any:
        """Predictions of one step.

        Parameters
        ----------
        X : array_like of shape (m, n_features)
            With ``kernel="precomputed"``, K(X, X_train), (m, n_samples).
        step : None, int, "best", "last", "all" or inf
            None: ``best_step_``. 1..T: that step. "best": the step of the smallest held-out
            error, if α was chosen on held-out data. "last": step T. "all": every step.
            ``math.inf``: the limit, for one constant α.

        Returns
        -------
        ndarray of shape (m,) or (m, n_targets); for "all" with a leading T
            On the device of X, if X is on one. For X on the host: with scikit-learn's option
            ``array_api_dispatch`` an array of X's library, else a NumPy array. No gradient
            flows through it.
        """
        return _dispatched(self._predictions(X, step), X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R² of the predictions of ``best_step_``.

        Parameters
        ----------
        X : array_like of shape (m, n_features)
        y : array_like of shape (m,) or (m, n_targets)
        sample_weight : array_like of shape (m,), optional

        Returns
        -------
        float
            1 − Σ w (y − f)² / Σ w (y − ȳ)², averaged over targets. The best value is 1; a constant
            function scores at most 0.

        Raises
        ------
        TypeError, ValueError
            As for :meth:`predict`; shapes that do not match.

        Examples
        --------
        >>> import numpy as np
        >>> from selfdistill_fast import SelfDistilledKernelRidge
        >>> X = np.arange(8.0)[:, None]
        >>> model = SelfDistilledKernelRidge(lam=1e-3, alpha=0.5).fit(X, X[:, 0])
        >>> bool(model.score(X, X[:, 0]) > 0.99)
        True
        """
        predictions = self.predict(X)
        arrays = {"y": y, "predictions": predictions, "sample_weight": sample_weight}
        y, predictions, sample_weight = (to_host(array, name) for name, array in arrays.items())
        with config_context(array_api_dispatch=False):  # all are NumPy arrays
            return float(r2_score(y, predictions, sample_weight=sample_weight))

    def predict_path(self, X: Any) -> Any:
        """Predictions of every step, (T, m) or (T, m, n_targets)."""
        return self.predict(X, step="all")


def following(X: Any, **others: Any) -> tuple[Any, ...]:
    """The other arrays on the device of X, or on the host if X is there; scikit-learn's rule.

    None, numbers and lists stay as they are.
    """
    place = device_of({"X": X})[1]
    moved = []
    for name, array in others.items():
        if hasattr(array, "dtype") and device_of({name: array})[1] != place:
            if place is None:
                array = to_host(array, name)
            else:
                be = get_backend(None, {"X": X})
                with be.on():
                    array = be.asarray(array, name)
        moved.append(array)
    return tuple(moved)


def _dispatched(predictions: Any, X: Any) -> Any:
    """NumPy's predictions as an array of X's library, where scikit-learn's dispatch is on."""
    if not get_config()["array_api_dispatch"] or not isinstance(predictions, np.ndarray):
        return predictions
    if is_tensor(X):
        return import_module("torch").from_dlpack(predictions)
    if hasattr(X, "__array_namespace__") and not isinstance(X, np.ndarray):
        return X.__array_namespace__().from_dlpack(predictions)
    return predictions
