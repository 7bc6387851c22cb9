"""The estimator of one chain: λ, the number of steps and α, or how α is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from selfdistill_fast._chain.assembly import distilled
from selfdistill_fast._chain.leave_out import mixed_held_out
from selfdistill_fast._chain.path import DistillationPath
from selfdistill_fast._names import AlphaLike, KernelLike, SolverName
from selfdistill_fast._solvers import Penalties, Spectrum, spectrum, with_steps
from selfdistill_fast._validation import check_lam, check_n_steps, to_host
from selfdistill_fast.estimators.base import Distilled, Regression, following
from selfdistill_fast.kernels import kernel_from_name


class OneChain(Distilled):
    """The fit of one chain to targets, with the parameters of :class:`SelfDistilledKernelRidge`."""

    lam: float
    alpha: Any
    n_steps: int
    gamma: float | None
    degree: int
    coef0: float
    length_scale: float
    nu: float
    fit_intercept: bool
    clip: bool
    solver: SolverName
    solver_options: dict[str, Any] | None
    backend: Any
    random_state: Any

    def _fit_chain(
        self, X: Any, y: Any, sample_weight: Any, X_val: Any, y_val: Any, sample_weight_val: Any
    ) -> None:
        """Fit every step to checked X and y, and set the scores of :meth:`_set_scores`."""
        lam = float(check_lam(self.lam, batch=False))
        check_n_steps(self.n_steps)
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
        for name in self._SCORES:  # of an earlier fit
            self.__dict__.pop(name, None)
        self._loo_later = None
        if lone or path.n_steps > fitted.max_loo_steps:
            self._set_scores(None, y, fitted.sample_weight)
        elif held is not None and X_val is None:
            self._set_scores(_left_out(fitted, path, held.F), y, fitted.sample_weight)
        elif fitted.one_lam and fitted.X is not None:  # it would take longer than the fit
            self._loo_later = _Later(
                fitted.backend, fitted.name, y.copy(), fitted.sample_weight, self.fit_intercept
            )
        else:
            self._set_scores(_left_out(fitted, path), y, fitted.sample_weight)

    loo_mse_: np.ndarray
    #: attributes that come from leave-one-out predictions
    _SCORES: tuple[str, ...] = ("loo_mse_",)

    def _set_scores(self, left_out: np.ndarray | None, y: Any, sample_weight: Any) -> None:
        """Set ``_SCORES`` from leave-one-out predictions (T, n[, p]), or to NaN from None."""
        T, w = self.path_.n_steps, to_host(sample_weight, "sample_weight")
        self.loo_mse_ = np.full(T, np.nan)
        if left_out is not None:
            errors = left_out - to_host(y, "y")
            mse = (errors * errors).reshape(T, len(y), -1).mean(2)
            self.loo_mse_ = np.average(mse, axis=1, weights=w)

    if not TYPE_CHECKING:  # a type checker would take any name for an attribute

        def __getattr__(self, name: str) -> Any:
            """The scores on first access after a fit that did not need them."""
            later = vars(self).get("_loo_later")
            if name in self._ABSENT:  # the property has raised
                raise AttributeError(self._ABSENT[name])
            if name not in self._SCORES or later is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            self._set_scores(later.left_out(self.path_), later.y, later.sample_weight)
            self._loo_later = None
            return getattr(self, name)


class SelfDistilledKernelRidge(Regression, OneChain):
    """Self-distilled kernel ridge regression.

    ``predict`` uses the step of the smallest held-out error, if α is chosen ("optimal"), and else
    the last one. A chain of optimal α's can get worse with more steps: each step is only certain
    to be no worse than step 1 on the data that α is chosen on. On ten UCI sets the best step was
    at least as good as the last one on average (`bench/README.md`, "Which step predicts").

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
    solver : {"auto", "eigh", "cholesky", "tridiagonal", "krylov", "primal", "nystrom"}, \
            default="auto"
        As in :func:`~selfdistill_fast.spectrum`. "auto" is exact: "primal" for a linear kernel
        and fewer features than rows; else "cholesky" if it has leave-one-out (``n_steps`` <= 4
        and a positive semi-definite kernel), else "eigh".
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
    best_step_ : int
        The step that ``predict`` uses.
    alphas_ : ndarray of shape (T,)
        Ground-truth weight of each step; ``alphas_[0]`` is NaN.
    weights_ : ndarray of shape (T,)
        Weights of the pure steps in step ``best_step_``.
    dual_coef_ : ndarray of shape (n_samples,) or (n_samples, n_targets)
        Dual coefficients of step ``best_step_``; with "nystrom" one for each landmark,
        with "primal" one for each feature.
    intercept_ : float or ndarray of shape (n_targets,)
        Constant of step ``best_step_``; 0 without ``fit_intercept``.
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
        fit_intercept: bool = False,
        clip: bool = False,
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
        y, *others = following(
            X,
            y=y,
            sample_weight=sample_weight,
            X_val=X_val,
            y_val=y_val,
            sample_weight_val=sample_weight_val,
        )
        X, y = self._validated("X", X, y)
        self._fit_chain(X, y, *others)
        return self


@dataclass(frozen=True, eq=False)
class _Later:
    """The inputs for a leave-one-out error after the fit, without the fit's n² memory."""

    backend: Any
    solver: Any
    y: Any
    sample_weight: Any
    fit_intercept: bool

    def left_out(self, path: DistillationPath) -> np.ndarray:
        """As :func:`_left_out`, from a recomputed factorisation."""
        with self.backend.on():
            y = self.backend.asarray(self.y, "y")  # where the rows are
        fitted = spectrum(
            path._X,
            y,
            path.kernel.of_mapped_rows,
            solver=self.solver,
            lam=path.lam,
            sample_weight=self.sample_weight,
            fit_intercept=self.fit_intercept,
            backend=self.backend,
        )
        return _left_out(fitted, path)


def _left_out(fitted: Spectrum, path: DistillationPath, columns: Any = None) -> np.ndarray:
    """Leave-one-out predictions of each step, (T, n[, p]); ``columns`` if they are known."""
    be = fitted.backend
    with be.on():
        penalties = Penalties.of(path.lam, path.n_steps)
        left_out = mixed_held_out(fitted, penalties, path.step_weights, columns=columns)
        return np.asarray(be.to_numpy(left_out.astype("float64")))
