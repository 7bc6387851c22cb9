"""The estimator that chooses γ, λ, α and the number of steps by held-out error."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.utils.validation import check_is_fitted

from selfdistill_fast._chain.assembly import assemble, limit_of
from selfdistill_fast._chain.leave_out import check_folds
from selfdistill_fast._chain.path import DistillationPath
from selfdistill_fast._chain.selection import score_grid, summary
from selfdistill_fast._solvers import Penalties, Spectrum, check_solver, spectrum
from selfdistill_fast._validation import check_lam, check_n_steps, warn_caller
from selfdistill_fast.alpha import smallest
from selfdistill_fast.alpha.weights import alphas_or_nan
from selfdistill_fast.estimators.base import Distilled
from selfdistill_fast.kernels import Kernel, kernel_from_name


class SelfDistilledKernelRidgeCV(Distilled):
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
