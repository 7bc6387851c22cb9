"""scikit-learn estimators on top of spectrum, distill and leave_one_out."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from selfdistill_fast.distill import distill
from selfdistill_fast.kernels import kernel_from_name
from selfdistill_fast.loo import loo_mixed
from selfdistill_fast.spectrum import check_lam, check_n_steps, spectrum

__all__ = ["SelfDistilledKernelRidge"]


class SelfDistilledKernelRidge(MultiOutputMixin, RegressorMixin, BaseEstimator):
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
        The ridge λ of (K + λI)⁻¹, in every step (scikit-learn's KernelRidge calls it
        ``alpha``). One value, not a schedule.
    alpha : "optimal", "joint", float or sequence of n_steps − 1, default="optimal"
        Ground-truth weights of the steps 2..T. "optimal" minimises the error of each step
        in turn (eq. (16)), "joint" that of the last step over all weights together; the
        error is that of exact leave-one-out, or of ``X_val, y_val`` where they are given.
    n_steps : int, default=2
        Number of steps T.
    gamma : float, optional
        γ of "rbf", "laplacian" and "poly"; None means 1 / n_features.
    degree, coef0 : int and float, default=3 and 1
        Of "poly".
    length_scale, nu : float, default=1.0 and 1.5
        Of "matern".
    fit_intercept : bool, default=False
        An unpenalised constant.
    clip : bool, default=False
        Restrict chosen α's to [0, 1].
    solver : {"auto", "eigh"}, default="auto"
    solver_options : dict, optional
        Passed to :func:`~selfdistill_fast.spectrum`, such as ``{"max_memory": 2**30}``.
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
        Of the last step.
    intercept_ : float or ndarray of shape (n_targets,)
        Of the last step; 0 without ``fit_intercept``.
    loo_mse_ : ndarray of shape (T,)
        Exact leave-one-out mean squared error of each step, weighted by ``sample_weight``
        and averaged over targets. NaN where a step does not exist.
    kernel_ : Kernel
        The kernel with its parameters filled in.
    path_ : DistillationPath
        All steps; ``path_.save(...)`` writes them without pickle.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only where X has column names.

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
            With ``kernel="precomputed"`` the matrix K, (n_samples, n_samples).
        y : array_like of shape (n_samples,) or (n_samples, n_targets)
        sample_weight : float or array_like of shape (n_samples,), optional
        X_val, y_val, sample_weight_val : optional
            Validation set on which α is chosen instead of leave-one-out.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError, numpy.linalg.LinAlgError, MemoryError
            As :func:`~selfdistill_fast.spectrum` and :func:`~selfdistill_fast.distill`.
        """
        lam = float(check_lam(self.lam, batch=False))
        check_n_steps(self.n_steps)
        X, y = validate_data(
            self, X, y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True
        )
        kernel = kernel_from_name(
            self.kernel,
            X.shape[1],
            gamma=self.gamma,
            degree=self.degree,
            coef0=self.coef0,
            length_scale=self.length_scale,
            nu=self.nu,
        )
        fitted = spectrum(
            X,
            y,
            kernel,
            solver=self.solver,
            lam=lam,
            sample_weight=sample_weight,
            fit_intercept=self.fit_intercept,
            random_state=self.random_state,
            backend=self.backend,
            **(self.solver_options or {}),
        )
        path = distill(
            fitted,
            lam,
            self.alpha,
            self.n_steps,
            X_val=X_val,
            y_val=y_val,
            sample_weight_val=sample_weight_val,
            clip=self.clip,
        )
        self.kernel_ = kernel
        self.path_ = path
        self.alphas_ = path.alphas
        self.weights_ = path.weights
        self.dual_coef_ = path.dual_coef()
        self.intercept_ = path.intercept()
        n_fitted = len(X) if fitted.rows is None else len(fitted.rows)
        if self.fit_intercept and n_fitted == 1:  # without its only row nothing is left
            self.loo_mse_ = np.full(path.n_steps, np.nan)
            return self
        errors = loo_mixed(fitted, lam, path.step_weights) - y
        mse = np.square(errors.astype(np.float64)).reshape(path.n_steps, len(X), -1).mean(2)
        self.loo_mse_ = np.average(mse, axis=1, weights=fitted.sample_weight)
        return self

    def predict(self, X: Any, step: Any = None) -> Any:
        """Predictions of one step.

        Parameters
        ----------
        X : array_like of shape (m, n_features)
            With ``kernel="precomputed"`` K(X, X_train), (m, n_samples).
        step : None, int, "all" or inf
            None: the last; 1..T; "all"; ``math.inf``: the limit, for one constant α.

        Returns
        -------
        ndarray of shape (m,) or (m, n_targets); for "all" with a leading T
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return self.path_.predict(X, step)

    def predict_path(self, X: Any) -> Any:
        """Predictions of every step, (T, m) or (T, m, n_targets)."""
        return self.predict(X, step="all")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = isinstance(self.kernel, str) and self.kernel == "precomputed"
        return tags
