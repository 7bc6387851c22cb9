"""scikit-learn estimators on top of spectrum, distill and leave_one_out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import _check_n_features, check_is_fitted, validate_data

from selfdistill_fast._backend import device_of
from selfdistill_fast._chain.assembly import assemble, distilled, limit_of
from selfdistill_fast._chain.leave_out import check_folds, mixed_held_out
from selfdistill_fast._chain.path import DistillationPath
from selfdistill_fast._chain.selection import score_grid, summary
from selfdistill_fast._solvers import Penalties, Spectrum, check_solver, spectrum, with_steps
from selfdistill_fast._validation import (
    check_lam,
    check_n_steps,
    is_tensor,
    plain,
    to_host,
    warn_caller,
)
from selfdistill_fast.alpha import smallest
from selfdistill_fast.alpha.weights import alphas_or_nan
from selfdistill_fast.kernels import Kernel, Precomputed, kernel_from_name

__all__ = ["SelfDistilledKernelRidge", "SelfDistilledKernelRidgeCV"]


class _Distilled(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Methods of a fitted chain, independent of how its parameters were chosen."""

    kernel: Any
    path_: DistillationPath

    def _keep(self, kernel: Kernel, path: DistillationPath) -> None:
        """Set the attributes that describe a fitted chain."""
        self.kernel_ = kernel
        self.path_ = path
        self.alphas_ = path.alphas
        self.weights_ = path.weights
        self.dual_coef_ = path.dual_coef()
        self.intercept_ = path.intercept()

    def predict(self, X: Any, step: Any = None) -> Any:
        """Predictions of one step.

        Parameters
        ----------
        X : array_like of shape (m, n_features)
            With ``kernel="precomputed"``, K(X, X_train), (m, n_samples).
        step : None, int, "all" or inf
            None: the last step. 1..T: that step. "all": every step. ``math.inf``: the limit,
            for one constant α.

        Returns
        -------
        ndarray of shape (m,) or (m, n_targets); for "all" with a leading T
            On the device of X, if X is on one. For X on the host: with scikit-learn's option
            ``array_api_dispatch`` an array of X's library, else a NumPy array. No gradient
            flows through it.
        """
        check_is_fitted(self)
        predictions = self.path_.predict(self._validated("X", X), step)
        return _dispatched(predictions, X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R² of the last step's predictions.

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

    def _validated(self, name: str, X: Any, *y: Any) -> Any:
        """X, or X and y, checked by scikit-learn, which does not support arrays on a device.

        Device arrays are checked where they are used; only their number of columns is stored here.
        """
        X, y = plain(X, name), tuple(plain(targets, "y") for targets in y)
        on_host = device_of({name: X, "y": y[0] if y else None})[1] is None
        if on_host:
            options: dict[str, Any] = {"dtype": (np.float64, np.float32), "reset": bool(y)}
            if y:
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

    def predict_path(self, X: Any) -> Any:
        """Predictions of every step, (T, m) or (T, m, n_targets)."""
        return self.predict(X, step="all")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = isinstance(self.kernel, Precomputed) or (
            isinstance(self.kernel, str) and self.kernel == "precomputed"
        )
        return tags


def _dispatched(predictions: Any, X: Any) -> Any:
    """NumPy's predictions as an array of X's library, where scikit-learn's dispatch is on."""
    if not get_config()["array_api_dispatch"] or not isinstance(predictions, np.ndarray):
        return predictions
    if is_tensor(X):
        return import_module("torch").from_dlpack(predictions)
    if hasattr(X, "__array_namespace__") and not isinstance(X, np.ndarray):
        return X.__array_namespace__().from_dlpack(predictions)
    return predictions


class SelfDistilledKernelRidge(_Distilled):
    """Self-distilled kernel ridge regression.

    Step 1 is kernel ridge regression; each later step is fitted to α times the targets
    plus (1 − α) times the predictions of the step before (Borup & Andersen 2021, eq. (3)).

    Parameters
    ----------
    kernel : str, Kernel or callable, default="rbf"
        "rbf", "laplacian", "matern", "poly", "linear", "ntk" or "precomputed" with the
        parameters below; a kernel object such as ``RBF(0.1)``, which ignores them; or a
        function of (X, Z) that returns the matrix of shape (n, m).
    lam : float, default=1.0
        λ of (K + λI)⁻¹, in every step (scikit-learn's KernelRidge calls it ``alpha``). A single
        value, not a schedule.
    alpha : "optimal", "joint", float or sequence of n_steps − 1, default="optimal"
        Ground-truth weights of the steps 2..T. "optimal" minimises the error of each step
        in turn (eq. (16)); "joint" minimises that of the last step over all weights together.
        The error is that of exact leave-one-out, or of ``X_val, y_val`` if given.
    n_steps : int, default=2
        Number of steps T.
    gamma : float, optional
        γ of "rbf", "laplacian" and "poly"; None means 1 / n_features.
    degree, coef0 : int and float, default=3 and 1
        Of "poly".
    length_scale, nu : float, default=1.0 and 1.5
        Of "matern".
    fit_intercept : bool, default=False
        Whether to fit an unpenalised constant.
    clip : bool, default=False
        Restrict chosen α's to [0, 1].
    solver : {"auto", "eigh", "cholesky", "tridiagonal", "krylov", "nystrom"}, default="auto"
        As in :func:`~selfdistill_fast.spectrum`. "auto" is exact: "cholesky" if it has
        leave-one-out (``n_steps`` <= 4 and a positive semi-definite kernel), else "eigh".
        "tridiagonal" and "krylov" have no leave-one-out: give α, or ``X_val``.
    solver_options : dict, optional
        Passed to :func:`~selfdistill_fast.spectrum`, such as ``{"max_memory": 2**30}`` or
        ``{"n_landmarks": 500}``.
    backend : optional
        As in :func:`~selfdistill_fast.gram`.
    random_state : optional
        For randomised solvers.

    Attributes
    ----------
    alphas_ : ndarray of shape (T,)
        Ground-truth weight of each step; ``alphas_[0]`` is NaN.
    weights_ : ndarray of shape (T,)
        Weights of the pure steps in the last step.
    dual_coef_ : ndarray of shape (n_samples,) or (n_samples, n_targets)
        Dual coefficients of the last step; with "nystrom" one for each landmark.
    intercept_ : float or ndarray of shape (n_targets,)
        Constant of the last step; 0 without ``fit_intercept``.
    loo_mse_ : ndarray of shape (T,)
        Exact leave-one-out mean squared error of each step, weighted by ``sample_weight``
        and averaged over targets. NaN if a step does not exist, or if there is no
        leave-one-out: a single row with an intercept; ``solver="cholesky"`` with more than
        four steps; "tridiagonal" and "krylov". With "cholesky" it takes longer than the fit,
        and is therefore computed on first access unless α was chosen by it.
    kernel_ : Kernel
        The kernel with its parameters filled in.
    path_ : DistillationPath
        All steps; ``path_.save(...)`` writes them without pickle.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only if X has column names.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import SelfDistilledKernelRidge
    >>> rng = np.random.default_rng(0)
    >>> X = rng.uniform(size=(60, 1)); y = np.sin(6 * X[:, 0]) + 0.3 * rng.normal(size=60)
    >>> model = SelfDistilledKernelRidge(gamma=10.0, lam=0.1, n_steps=3).fit(X, y)
    >>> model.predict_path(X[:4]).shape
    (3, 4)
    >>> bool(model.loo_mse_[1] <= model.loo_mse_[0])
    True
    """

    def __init__(
        self,
        kernel: Any = "rbf",
        *,
        lam: float = 1.0,
        alpha: Any = "optimal",
        n_steps: int = 2,
        gamma: float | None = None,
        degree: int = 3,
        coef0: float = 1,
        length_scale: float = 1.0,
        nu: float = 1.5,
        fit_intercept: bool = False,
        clip: bool = False,
        solver: str = "auto",
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
    ) -> SelfDistilledKernelRidge:
        """Fit every step.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            With ``kernel="precomputed"``, the matrix K, (n_samples, n_samples).
        y : array_like of shape (n_samples,) or (n_samples, n_targets)
        sample_weight : float or array_like of shape (n_samples,), optional
        X_val, y_val, sample_weight_val : optional
            Validation set on which α is chosen, instead of by leave-one-out.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError, numpy.linalg.LinAlgError, MemoryError
            As for :func:`~selfdistill_fast.spectrum` and :func:`~selfdistill_fast.distill`.
        """
        lam = float(check_lam(self.lam, batch=False))
        check_n_steps(self.n_steps)
        X, y = self._validated("X", X, y)
        kernel = kernel_from_name(
            self.kernel,
            X.shape[1],
            gamma=self.gamma,
            degree=self.degree,
            coef0=self.coef0,
            length_scale=self.length_scale,
            nu=self.nu,
        )
        choosing = isinstance(self.alpha, str) and X_val is None and self.n_steps > 1
        options = with_steps(self.solver, self.solver_options, self.n_steps)
        fitted = spectrum(
            X,
            y,
            kernel,
            solver=self.solver,
            lam=lam,
            leave_one_out=True if choosing else None,
            sample_weight=sample_weight,
            fit_intercept=self.fit_intercept,
            random_state=self.random_state,
            backend=self.backend,
            **options,
        )
        if X_val is not None:
            X_val = self._validated("X_val", X_val)
        path, held = distilled(
            fitted,
            lam,
            self.alpha,
            self.n_steps,
            X_val=X_val,
            y_val=y_val,
            sample_weight_val=sample_weight_val,
            clip=self.clip,
        )
        self._keep(kernel, path)
        n_fitted = len(X) if fitted.rows is None else len(fitted.rows)
        lone = self.fit_intercept and n_fitted == 1  # without its only row, nothing is left
        self.__dict__.pop("loo_mse_", None)  # of an earlier fit
        self._loo_later = None
        if lone or path.n_steps > fitted.max_loo_steps:
            self.loo_mse_ = np.full(path.n_steps, np.nan)
        elif held is not None and X_val is None:
            self.loo_mse_ = _leave_one_out_mse(fitted, path, y, held.F)
        elif fitted.one_lam and fitted.X is not None:  # it would take longer than the fit
            self._loo_later = _Later(
                fitted.backend, fitted.name, y.copy(), fitted.sample_weight, self.fit_intercept
            )
        else:
            self.loo_mse_ = _leave_one_out_mse(fitted, path, y)
        return self

    def __getattr__(self, name: str) -> Any:
        """``loo_mse_`` on first access after a fit that did not need it."""
        later = vars(self).get("_loo_later")
        if name != "loo_mse_" or later is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.loo_mse_ = later.mse(self.path_)
        self._loo_later = None
        return self.loo_mse_


@dataclass(frozen=True, eq=False)
class _Later:
    """The inputs for a leave-one-out error after the fit, without the fit's n² memory."""

    backend: Any
    solver: str
    y: Any
    sample_weight: Any
    fit_intercept: bool

    def mse(self, path: DistillationPath) -> np.ndarray:
        """As :func:`_leave_one_out_mse`, from a recomputed factorisation."""
        with self.backend.on():
            y = self.backend.asarray(self.y, "y")  # where the rows are
        fitted = spectrum(
            path._X,
            y,
            path.kernel,
            solver=self.solver,
            lam=path.lam,
            sample_weight=self.sample_weight,
            fit_intercept=self.fit_intercept,
            backend=self.backend,
        )
        return _leave_one_out_mse(fitted, path, y)


def _leave_one_out_mse(
    fitted: Spectrum, path: DistillationPath, y: Any, columns: Any = None
) -> np.ndarray:
    """Weighted leave-one-out error of each step, (T,); ``columns`` if they are known."""
    be = fitted.backend
    with be.on():
        penalties = Penalties.of(path.lam, path.n_steps)
        left_out = mixed_held_out(fitted, penalties, path.step_weights, columns=columns)
        errors = (left_out - be.asarray(y, "y")).astype("float64")
        mse = be.to_numpy((errors * errors).reshape(path.n_steps, fitted.n, -1).mean(2))
    w = fitted.sample_weight
    return np.average(mse, axis=1, weights=None if w is None else be.to_numpy(w))


class SelfDistilledKernelRidgeCV(_Distilled):
    """Self-distilled kernel ridge regression that selects γ, λ, α and the number of steps.

    One factorisation for each γ scores every λ, step and α exactly: by leave-one-out
    (default), by folds, or on a validation set.

    Parameters
    ----------
    kernel : str, Kernel or callable, default="rbf"
        As in :class:`SelfDistilledKernelRidge`.
    lams : sequence of float
        λ values to choose from.
    gammas : sequence of float, optional
        Values of γ to choose from ("rbf", "laplacian", "poly"); None: 1 / n_features.
    alpha : "optimal", "joint", float or sequence of max_steps − 1, default="optimal"
        Chosen for each λ and γ on the same held-out predictions that score them.
    max_steps : int, default=4
        The chain has 1..max_steps steps; the best number is selected.
    cv : None, int, splitter or array_like of group labels
        None: exact leave-one-out. Otherwise exact leave-fold-out, see
        :func:`~selfdistill_fast.leave_fold_out`. Ignored if ``fit`` receives ``X_val``.
    solver_options : dict, optional
        ``max_memory`` of :func:`~selfdistill_fast.spectrum`, and ``tol`` and ``n_steps``
        (default ``max_steps``) of its ``solver="auto"``, which is used with ``X_val``.
        Leave-one-out and folds use ``solver="eigh"``, which is exact to rounding for any ``tol``.
    degree, coef0, length_scale, nu, fit_intercept, clip, backend, random_state
        As in :class:`SelfDistilledKernelRidge`.

    Attributes
    ----------
    best_lam_, best_gamma_ : float
        ``best_gamma_`` is None if the kernel has no γ to choose.
    best_step_ : int
        Number of steps of the chosen chain.
    best_score_ : float
        Its held-out score, the negative mean squared error: larger is better.
    best_index_ : int
        Its row in ``cv_results_``.
    best_params_ : dict
        ``SelfDistilledKernelRidge(**best_params_)`` is the chosen chain (except that "joint"
        weights without α's are chosen again, by leave-one-out).
    cv_results_ : dict of ndarray
        One entry for each γ, λ and step, ready for ``pandas.DataFrame``: ``gamma``, ``lam``,
        ``step``, ``alpha`` (of that step; NaN for the first and for "joint"), ``mse``,
        ``se`` (standard error of mse over rows), ``rank``.
    alphas_, weights_, dual_coef_, intercept_, kernel_, path_, n_features_in_
        Of the chosen chain, as in :class:`SelfDistilledKernelRidge`.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import SelfDistilledKernelRidgeCV
    >>> rng = np.random.default_rng(0)
    >>> X = rng.uniform(size=(60, 1)); y = np.sin(6 * X[:, 0]) + 0.3 * rng.normal(size=60)
    >>> model = SelfDistilledKernelRidgeCV(lams=[1e-3, 0.01, 0.1], gammas=[1, 10, 100]).fit(X, y)
    >>> model.best_lam_, model.best_gamma_
    (0.01, 10.0)
    """

    def __init__(
        self,
        kernel: Any = "rbf",
        *,
        lams: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0),
        gammas: Sequence[float] | None = None,
        alpha: Any = "optimal",
        max_steps: int = 4,
        cv: Any = None,
        degree: int = 3,
        coef0: float = 1,
        length_scale: float = 1.0,
        nu: float = 1.5,
        fit_intercept: bool = False,
        clip: bool = False,
        solver_options: dict[str, Any] | None = None,
        backend: Any = None,
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.lams = lams
        self.gammas = gammas
        self.alpha = alpha
        self.max_steps = max_steps
        self.cv = cv
        self.degree = degree
        self.coef0 = coef0
        self.length_scale = length_scale
        self.nu = nu
        self.fit_intercept = fit_intercept
        self.clip = clip
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
    ) -> SelfDistilledKernelRidgeCV:
        """Score the grid and fit the best chain.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            With ``kernel="precomputed"``, the matrix K, (n_samples, n_samples).
        y : array_like of shape (n_samples,) or (n_samples, n_targets)
        sample_weight : float or array_like of shape (n_samples,), optional
        X_val, y_val, sample_weight_val : optional
            Validation set to score on, instead of leaving rows out.

        Returns
        -------
        self

        Warns
        -----
        UserWarning
            The best λ or γ is the first or last of its grid: the optimum may lie outside.

        Raises
        ------
        TypeError, ValueError, numpy.linalg.LinAlgError, MemoryError
            As for :class:`SelfDistilledKernelRidge`; an empty grid; γ's for a kernel without γ.
        """
        lams = np.atleast_1d(check_lam(self.lams, batch=True))
        max_steps = check_n_steps(self.max_steps, "max_steps")
        X, y = self._validated("X", X, y)
        kernels = self._kernels(X.shape[1])
        if len(lams) == 0 or len(kernels) == 0:
            raise ValueError("lams and gammas must not be empty")
        folds = None if self.cv is None else check_folds(self.cv, len(X))
        held_out = {"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val}
        if X_val is not None:
            held_out["X_val"] = X_val = self._validated("X_val", X_val)
        if isinstance(self.alpha, str) and self.alpha not in ("optimal", "joint"):
            raise ValueError(f"alpha must be numbers, 'optimal' or 'joint', got {self.alpha!r}")
        solver, options = self._solver(max_steps, validated=X_val is not None)
        tables: list[dict[str, Any]] = []
        lowest, best = np.inf, None
        for kernel in kernels:
            fitted = spectrum(
                X,
                y,
                kernel,
                solver=solver,
                lam=lams,
                leave_one_out=X_val is None,
                sample_weight=sample_weight,
                fit_intercept=self.fit_intercept,
                random_state=self.random_state,
                backend=self.backend,
                **options,
            )
            scores = score_grid(
                fitted, lams, self.alpha, max_steps, folds=folds, clip=self.clip, **held_out
            )
            tables.append(scores)
            row, step = divmod(smallest(scores["mse"]), max_steps)
            if scores["mse"][row, step] < lowest:
                lowest = scores["mse"][row, step]
                path = self._chain(fitted, float(lams[row]), scores, row, step + 1)
                best = (kernel, path, lams[row], step + 1)
            del fitted
        if best is None:
            raise ValueError("no held-out error is finite: the targets or predictions overflow")
        kernel, path, lam, step = best
        if path.alarm:
            warn_caller(path.alarm, RuntimeWarning)
        self._keep(kernel, path)
        self.best_lam_, self.best_step_ = float(lam), step
        self.best_gamma_ = getattr(kernel, "gamma", None)
        self.best_score_ = -float(lowest)
        self._tabulate(kernels, lams, tables)
        chosen = not np.isnan(path.alphas[1:]).any()  # some joint weights have no alphas
        self.best_params_ = {
            "kernel": kernel,
            "lam": self.best_lam_,
            "n_steps": step,
            "alpha": path.alphas[1:].tolist() if chosen else self.alpha,
            "fit_intercept": self.fit_intercept,
            "clip": self.clip,
            "solver_options": self.solver_options,
            "backend": self.backend,
        }
        self._warn_at_edges(kernels, lams)
        return self

    def _solver(self, max_steps: int, *, validated: bool) -> tuple[str, dict[str, Any]]:
        """The solver, and the options passed to it."""
        options = dict(self.solver_options or {})
        check_solver("auto", options.keys() - {"max_memory"})
        if validated:
            return "auto", {"n_steps": max_steps, **options}
        return "eigh", {name: options[name] for name in options if name == "max_memory"}

    def _kernels(self, n_features: int) -> list[Kernel]:
        """The kernels to choose from: one for each γ."""
        parameters: dict[str, Any] = {
            "degree": self.degree,
            "coef0": self.coef0,
            "length_scale": self.length_scale,
            "nu": self.nu,
        }
        if self.gammas is None:
            return [kernel_from_name(self.kernel, n_features, **parameters)]
        if self.kernel not in ("rbf", "laplacian", "poly", "polynomial"):
            raise ValueError(
                "gammas are for kernel='rbf', 'laplacian' or 'poly'; "
                f"kernel={self.kernel!r} has no gamma to choose"
            )
        return [
            kernel_from_name(self.kernel, n_features, gamma=gamma, **parameters)
            for gamma in np.atleast_1d(self.gammas).tolist()
        ]

    def _chain(
        self, fitted: Spectrum, lam: float, scores: dict[str, Any], row: int, n_steps: int
    ) -> DistillationPath:
        """The chain of ``n_steps`` steps that row ``row`` of the scores describes."""
        C = scores["weights"][row][:n_steps, :n_steps]
        alphas = scores["alphas"][row][:n_steps]
        if isinstance(self.alpha, str) and self.alpha == "joint":
            alphas = alphas_or_nan(C[-1])
        limit = limit_of(fitted, lam, self.alpha, alphas)
        selection = summary(scores["mse"][row][:n_steps], scores["on"])
        penalties = Penalties.of(lam, n_steps)
        return assemble(fitted, penalties, C, alphas, limit=limit, selection=selection)

    def _tabulate(self, kernels: list[Kernel], lams: Any, tables: list[dict[str, Any]]) -> None:
        """Set ``cv_results_`` and ``best_index_``; γ varies slowest, the step fastest."""
        mse = np.stack([scores["mse"] for scores in tables])
        alphas = np.stack([scores["alphas"] for scores in tables])
        if alphas.ndim == 4:  # one for each target
            alphas = np.full(mse.shape, np.nan)
        gammas = [getattr(kernel, "gamma", np.nan) for kernel in kernels]
        gamma, lam, step = np.meshgrid(gammas, lams, np.arange(1, mse.shape[2] + 1), indexing="ij")
        self.best_index_ = smallest(mse)
        self.cv_results_ = {
            "gamma": gamma.ravel(),
            "lam": lam.ravel(),
            "step": step.ravel(),
            "alpha": alphas.ravel(),
            "mse": mse.ravel(),
            "se": np.stack([scores["se"] for scores in tables]).ravel(),
            "rank": rankdata(np.nan_to_num(mse.ravel(), nan=np.inf), method="min").astype(int),
        }

    def _warn_at_edges(self, kernels: list[Kernel], lams: Any) -> None:
        """UserWarning if the best λ or γ is the first or last value of its grid."""
        grids: dict[str, Any] = {"lam": (self.best_lam_, lams)}
        if self.gammas is not None:
            grids["gamma"] = (self.best_gamma_, np.atleast_1d(self.gammas).tolist())
        for name, (best, grid) in grids.items():
            if len(grid) > 1 and best in (min(grid), max(grid)):
                warnings.warn(
                    f"the best {name} {best:g} is at the edge of its grid "
                    f"[{min(grid):g}, {max(grid):g}]; the optimum may lie outside: widen {name}s",
                    UserWarning,
                    stacklevel=3,
                )

    def plot(self, ax: Any = None) -> Any:
        """Held-out error over λ, one line for each number of steps, at the best γ.

        Parameters
        ----------
        ax : matplotlib Axes, optional

        Returns
        -------
        matplotlib Axes
        """
        from selfdistill_fast.plotting import plot_cv

        check_is_fitted(self)
        return plot_cv(self.cv_results_, self.best_index_, ax=ax)
