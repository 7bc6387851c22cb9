"""Classifiers: one-hot targets of the labels, and the class of the largest prediction."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from selfdistill_fast._chain.leave_out import check_folds
from selfdistill_fast._names import AlphaLike, KernelLike, SolverName
from selfdistill_fast._validation import to_host
from selfdistill_fast.estimators.base import Distilled, following
from selfdistill_fast.estimators.cross_validated import GridOfChains
from selfdistill_fast.estimators.regressor import OneChain
from selfdistill_fast.estimators.scoring import classification_scorer

__all__ = ["SelfDistilledKernelRidgeClassifier", "SelfDistilledKernelRidgeClassifierCV"]


class Classification(ClassifierMixin, Distilled):
    """Labels to one-hot targets, and predictions to labels and probabilities.

    The targets are 1 for the class of a sample and 0 for the others, as in the paper.
    """

    class_weight: Any
    classes_: np.ndarray

    def _encoded(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, np.ndarray, Any]:
        """Checked X, one-hot targets (n, C), and weights with those of the classes."""
        X, y = self._validated("X", X, to_host(y, "y"))
        y = np.asarray(y)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class only, {self.classes_.tolist()[0]!r}: a classifier needs two"
            )
        if self.class_weight is not None:
            weights = compute_sample_weight(self.class_weight, y)
            if sample_weight is not None:
                weights = weights * _check_sample_weight(to_host(sample_weight), y)
            sample_weight = weights
        Y = np.eye(len(self.classes_))[index]
        return X, *following(X, Y=Y, sample_weight=sample_weight)

    def _one_hot(self, y: Any, name: str) -> Any:
        """Labels of a validation set as one-hot targets."""
        if y is None:
            return None
        y = np.asarray(to_host(y, name)).ravel()
        position = {label: i for i, label in enumerate(self.classes_.tolist())}
        unknown = list(dict.fromkeys(label for label in y.tolist() if label not in position))
        if unknown:
            raise ValueError(f"{name} has classes that y has not: {unknown[:5]}")
        return np.eye(len(self.classes_))[[position[label] for label in y.tolist()]]

    def decision_function(self, X: Any, step: Any = None) -> np.ndarray:
        """Least-squares predictions of the one-hot targets, eq. (13).

        Parameters
        ----------
        X : array_like of shape (m, n_features)
        step : None, int, "best", "last", "all" or inf
            As in :meth:`SelfDistilledKernelRidge.predict`.

        Returns
        -------
        ndarray of shape (m, n_classes); for two classes (m,), the second minus the first
            For "all" with a leading T.

        Raises
        ------
        TypeError, ValueError
            As for :meth:`SelfDistilledKernelRidge.predict`.
        """
        F = np.asarray(to_host(self._predictions(X, step)))
        return F[..., 1] - F[..., 0] if len(self.classes_) == 2 else F

    def predict(self, X: Any, step: Any = None) -> np.ndarray:
        """The class of the largest prediction, (m,), or (T, m) for ``step="all"``.

        Parameters
        ----------
        X : array_like of shape (m, n_features)
        step : None, int, "best", "last", "all" or inf
            As in :meth:`SelfDistilledKernelRidge.predict`.

        Raises
        ------
        TypeError, ValueError
            As for :meth:`SelfDistilledKernelRidge.predict`.
        """
        F = self.decision_function(X, step)
        chosen = (F > 0).astype(int) if len(self.classes_) == 2 else F.argmax(-1)
        return np.asarray(self.classes_[chosen])


class SelfDistilledKernelRidgeClassifier(Classification, OneChain):
    """Classifier by self-distilled kernel ridge regression of one-hot targets.

    As scikit-learn's RidgeClassifier is to Ridge; an intercept is fitted by default, unlike in the
    paper. ``predict`` uses the best step by leave-one-out, see :class:`SelfDistilledKernelRidge`.

    Parameters
    ----------
    kernel, lam, alpha, n_steps, gamma, degree, coef0, length_scale, nu, fit_intercept, clip, \
            solver, solver_options, backend, random_state
        As in :class:`SelfDistilledKernelRidge`.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, times ``sample_weight``, as in scikit-learn.
    scoring : {"squared_error", "accuracy"}, default="squared_error"
        What the best step is chosen by. α minimises the squared error in any case.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    loo_mse_, loo_accuracy_ : ndarray of shape (T,)
        Exact leave-one-out squared error of the one-hot targets (averaged over classes) and
        accuracy of each step, weighted by ``sample_weight`` and ``class_weight``. NaN, or
        computed on first access, as in :class:`SelfDistilledKernelRidge`.
    loo_decision_function_ : ndarray of shape (n_samples, n_classes)
        Leave-one-out predictions of the one-hot targets by step ``best_step_``.
    best_step_, alphas_, weights_, dual_coef_, intercept_, coef_, kernel_, path_, n_features_in_
        As in :class:`SelfDistilledKernelRidge`, with one target for each class.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import SelfDistilledKernelRidgeClassifier
    >>> X = np.linspace(0, 1, 30)[:, None]; y = np.where(X[:, 0] > 0.4, "high", "low")
    >>> model = SelfDistilledKernelRidgeClassifier(gamma=10.0, lam=0.1).fit(X, y)
    >>> model.predict([[0.1], [0.9]]).tolist()
    ['low', 'high']
    """

    def __init__(
        self,
        kernel: KernelLike = "rbf",
        *,
        lam: float = 1.0,
        alpha: AlphaLike = "optimal",
        n_steps: int = 2,
        gamma: float | None = None,
        degree: int = 3,
        coef0: float = 1,
        length_scale: float = 1.0,
        nu: float = 1.5,
        fit_intercept: bool = True,
        clip: bool = False,
        class_weight: Any = None,
        scoring: str = "squared_error",
        solver: SolverName = "auto",
        solver_options: dict[str, Any] | None = None,
        backend: Any = None,
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.lam = lam
        self.alpha = alpha
        self.n_steps = n_steps
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.length_scale = length_scale
        self.nu = nu
        self.fit_intercept = fit_intercept
        self.clip = clip
        self.class_weight = class_weight
        self.scoring = scoring
        self.solver = solver
        self.solver_options = solver_options
        self.backend = backend
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> SelfDistilledKernelRidgeClassifier:
        """Fit every step.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
        y : array_like of shape (n_samples,)
            Labels of any kind.
        sample_weight : float or array_like of shape (n_samples,), optional
        X_val, y_val, sample_weight_val : optional
            Validation set on which α and the best step are chosen, instead of by leave-one-out.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError, numpy.linalg.LinAlgError, MemoryError
            As for :class:`SelfDistilledKernelRidge`; a single class; a class that only y_val has.
        """
        if self.scoring not in ("squared_error", "accuracy"):
            raise ValueError(f"scoring must be 'squared_error' or 'accuracy', got {self.scoring!r}")
        X, Y, weights = self._encoded(X, y, sample_weight)
        held_out = {"X_val": X_val, "y_val": self._one_hot(y_val, "y_val"), "w": sample_weight_val}
        X_val, Y_val, sample_weight_val = following(X, **held_out)
        self._calibrators: dict[str, list[Any]] = {}
        self._fit_chain(X, Y, weights, X_val, Y_val, sample_weight_val)
        self._index, self._row_weight = np.argmax(to_host(Y), 1), to_host(weights)
        if self.scoring == "accuracy" and isinstance(self.alpha, str) and self.alpha == "optimal":
            if X_val is None:
                accuracy = self.loo_accuracy_
            else:
                F = self._predictions(X_val, "all")
                accuracy = self._accuracies(F, Y_val, sample_weight_val)
            if not np.isnan(accuracy).all():
                self._use(int(np.nanargmax(accuracy)) + 1)
        return self

    loo_accuracy_: np.ndarray
    _SCORES = ("loo_mse_", "loo_accuracy_", "_held_out")
    _ABSENT: ClassVar[dict[str, str]] = {
        **OneChain._ABSENT,
        "loo_decision_function_": "there are no leave-one-out predictions for this solver and "
        "number of steps; use solver='eigh', or fewer steps",
    }
    #: leave-one-out predictions of every step, (T, n, C), or None
    _held_out: np.ndarray | None

    def _set_scores(self, left_out: np.ndarray | None, y: Any, sample_weight: Any) -> None:
        super()._set_scores(left_out, y, sample_weight)
        self._held_out = left_out
        self.loo_accuracy_ = np.full(self.path_.n_steps, np.nan)
        if left_out is not None:
            self.loo_accuracy_ = self._accuracies(left_out, y, sample_weight)

    def _accuracies(self, F: Any, Y: Any, sample_weight: Any) -> np.ndarray:
        """Share of rows whose largest prediction is that of their class, for each step."""
        F = np.asarray(to_host(F))
        right = (F.argmax(2) == np.argmax(to_host(Y), 1)) & np.isfinite(F).all(2)
        return np.average(right, axis=1, weights=to_host(sample_weight))

    @property
    def loo_decision_function_(self) -> np.ndarray:
        """Leave-one-out predictions of the one-hot targets by step ``best_step_``, (n, C)."""
        check_is_fitted(self)
        if self._held_out is None:
            raise AttributeError(self._ABSENT["loo_decision_function_"])
        return self._held_out[self.best_step_ - 1]

    def predict_proba(
        self, X: Any, step: Any = None, *, calibration: str | None = None
    ) -> np.ndarray:
        """Probabilities of the classes.

        By default they are the predictions of the one-hot targets, clipped at 0 and divided by
        their sum. Least squares estimates probabilities in that sense, but they are not
        calibrated: do not read them as frequencies.

        Parameters
        ----------
        X : array_like of shape (m, n_features)
        step : None, int, "best" or "last"
        calibration : {None, "sigmoid", "isotonic"}, default=None
            "sigmoid": scikit-learn's LogisticRegression, fitted to the leave-one-out predictions
            of ``best_step_``. "isotonic": one IsotonicRegression for each class. No sample is set
            aside for that. The most probable class may differ from that of :meth:`predict`.

        Returns
        -------
        ndarray of shape (m, n_classes)

        Raises
        ------
        ValueError
            An unknown calibration; or one without leave-one-out predictions, or of another step.
        """
        check_is_fitted(self)
        if calibration not in (None, "sigmoid", "isotonic"):
            raise ValueError(
                f"calibration must be None, 'sigmoid' or 'isotonic', got {calibration!r}"
            )
        if calibration is not None and step is not None:
            raise ValueError(f"probabilities are calibrated for step {self.best_step_} only")
        F = np.asarray(to_host(self._predictions(X, step)), dtype=np.float64)
        if calibration == "sigmoid":
            return np.asarray(self._calibrated(calibration)[0].predict_proba(_contrasts(F)))
        P = np.maximum(F, 0.0)
        if calibration == "isotonic":
            maps = self._calibrated(calibration)
            P = np.stack([one.predict(f) for one, f in zip(maps, F.T, strict=True)], 1)
        total = P.sum(-1, keepdims=True)
        nothing = (F.max(-1, keepdims=True) == F).astype(np.float64)  # where none is positive
        nothing /= nothing.sum(-1, keepdims=True)
        return np.where(total > 0, P / np.where(total > 0, total, 1.0), nothing)

    def _calibrated(self, how: str) -> list[Any]:
        """What maps leave-one-out predictions to probabilities, fitted on first use."""
        if how not in self._calibrators:
            if self._held_out is None:
                raise ValueError(f"calibration={how!r}: {self._ABSENT['loo_decision_function_']}")
            F = self.loo_decision_function_
            index, w = self._index, self._row_weight
            if how == "sigmoid":
                model = LogisticRegression(C=1e4, max_iter=1000)
                self._calibrators[how] = [model.fit(_contrasts(F), index, w)]
            else:
                new = functools.partial(
                    IsotonicRegression, y_min=0.0, y_max=1.0, out_of_bounds="clip"
                )
                self._calibrators[how] = [new().fit(f, index == c, w) for c, f in enumerate(F.T)]
        return self._calibrators[how]


def _contrasts(F: np.ndarray) -> np.ndarray:
    """Predictions of the classes; of two classes their difference."""
    return F[:, 1:] - F[:, :1] if F.shape[1] == 2 else F


class SelfDistilledKernelRidgeClassifierCV(Classification, GridOfChains):
    """Classifier that selects kernel, λ, α and the number of steps by held-out predictions.

    As scikit-learn's RidgeClassifierCV is to RidgeCV; see :class:`SelfDistilledKernelRidgeCV`.

    Parameters
    ----------
    kernel, lams, gammas, length_scales, alpha, max_steps, cv, refit, degree, coef0, \
            length_scale, nu, fit_intercept, clip, solver, solver_options, backend, random_state
        As in :class:`SelfDistilledKernelRidgeCV`. A number of folds ``cv`` is stratified.
    scoring : None, str or callable, default="accuracy"
        "accuracy", "balanced_accuracy"; None or "neg_mean_squared_error", the squared error of
        the one-hot targets; or a function (y, predicted labels) whose larger values are better.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, times ``sample_weight``, as in scikit-learn.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    best_lam_, best_gamma_, best_step_, best_score_, best_index_, best_params_, cv_results_, \
            loo_mse_
        As in :class:`SelfDistilledKernelRidgeCV`.
    alphas_, weights_, dual_coef_, intercept_, coef_, kernel_, path_, n_features_in_
        Of the chosen chain.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import SelfDistilledKernelRidgeClassifierCV
    >>> X = np.linspace(0, 1, 30)[:, None]; y = np.where(X[:, 0] > 0.4, "high", "low")
    >>> model = SelfDistilledKernelRidgeClassifierCV(lams=[0.01, 0.1, 1.0]).fit(X, y)
    >>> model.predict([[0.1], [0.9]]).tolist()
    ['low', 'high']
    """

    def __init__(
        self,
        kernel: KernelLike | Sequence[KernelLike] = "rbf",
        *,
        lams: Sequence[float] | None = None,
        gammas: Sequence[float] | None = None,
        length_scales: Sequence[float] | None = None,
        alpha: AlphaLike = "optimal",
        max_steps: int = 4,
        cv: Any = None,
        scoring: Any = "accuracy",
        refit: bool = True,
        degree: int = 3,
        coef0: float = 1,
        length_scale: float | None = None,
        nu: float = 1.5,
        fit_intercept: bool = True,
        clip: bool = False,
        class_weight: Any = None,
        solver: SolverName = "auto",
        solver_options: dict[str, Any] | None = None,
        backend: Any = None,
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.lams = lams
        self.gammas = gammas
        self.length_scales = length_scales
        self.alpha = alpha
        self.max_steps = max_steps
        self.cv = cv
        self.scoring = scoring
        self.refit = refit
        self.degree = degree
        self.coef0 = coef0
        self.length_scale = length_scale
        self.nu = nu
        self.fit_intercept = fit_intercept
        self.clip = clip
        self.class_weight = class_weight
        self.solver = solver
        self.solver_options = solver_options
        self.backend = backend
        self.random_state = random_state

    def _own_params(self) -> dict[str, Any]:
        return {"class_weight": self.class_weight}

    #: one chain for all classes, so that their predictions are comparable
    per_target = False

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> SelfDistilledKernelRidgeClassifierCV:
        """Score the grid and fit the best chain.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
        y : array_like of shape (n_samples,)
            Labels of any kind.
        sample_weight : float or array_like of shape (n_samples,), optional
        X_val, y_val, sample_weight_val : optional
            Validation set to score on, instead of leaving rows out.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError, numpy.linalg.LinAlgError, MemoryError
            As for :class:`SelfDistilledKernelRidgeCV`; a single class; a class that only y_val has.
        """
        X, Y, weights = self._encoded(X, y, sample_weight)
        held_out = {
            "X_val": X_val,
            "y_val": self._one_hot(y_val, "y_val"),
            "sample_weight_val": sample_weight_val,
        }
        held_out = dict(zip(held_out, following(X, **held_out), strict=True))
        cv = self.cv
        if isinstance(cv, numbers.Real) and not isinstance(cv, bool) and float(cv).is_integer():
            cv = list(
                StratifiedKFold(int(float(cv))).split(
                    np.zeros((len(Y), 1)), np.argmax(to_host(Y), 1)
                )
            )
        folds = None if cv is None else check_folds(cv, len(Y))
        scorer = classification_scorer(self.scoring, self.classes_)
        self._fit_grid(X, Y, weights, folds, scorer, held_out)
        return self
