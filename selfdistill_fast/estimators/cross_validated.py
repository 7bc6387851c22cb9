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
from selfdistill_fast._names import AlphaLike, KernelLike, SolverName
from selfdistill_fast._solvers import (
    Penalties,
    Spectrum,
    check_solver,
    solver_named,
    spectrum,
    with_steps,
)
from selfdistill_fast._validation import check_lam, check_n_steps, warn_caller
from selfdistill_fast.alpha import smallest
from selfdistill_fast.alpha.weights import alphas_or_nan
from selfdistill_fast.estimators.base import Distilled, Regression, following
from selfdistill_fast.estimators.grids import kernel_grid, lam_grid
from selfdistill_fast.estimators.scoring import Scorer, regression_scorer
from selfdistill_fast.kernels import Kernel


class GridOfChains(Distilled):
    """The choice of kernel, λ, α and number of steps for targets; see the subclasses."""

    kernel: Any
    lams: Any
    gammas: Any
    length_scales: Any
    alpha: Any
    max_steps: int
    cv: Any
    scoring: Any
    refit: bool
    per_target: bool
    degree: int
    coef0: float
    length_scale: float | None
    nu: float
    fit_intercept: bool
    clip: bool
    solver: SolverName
    solver_options: dict[str, Any] | None
    backend: Any
    random_state: Any

    def _fit_grid(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        folds: list[np.ndarray] | None,
        scorer: Scorer | None,
        held_out: dict[str, Any],
    ) -> None:
        """Score every cell for checked X and y, and keep the best chain."""
        max_steps = check_n_steps(self.max_steps, "max_steps")
        if isinstance(self.alpha, str) and self.alpha not in ("optimal", "joint"):
            raise ValueError(f"alpha must be numbers, 'optimal' or 'joint', got {self.alpha!r}")
        kernels = self._kernels(X)
        given = None if self.lams is None else np.atleast_1d(check_lam(self.lams, batch=True))
        if len(kernels) == 0 or (given is not None and len(given) == 0):
            raise ValueError("lams, gammas and kernels must not be empty")
        validated = held_out["X_val"] is not None
        if validated:
            held_out = {**held_out, "X_val": self._validated("X_val", held_out["X_val"])}
        options = with_steps(self.solver, self.solver_options, max_steps)
        check_solver(self.solver, {k: v for k, v in options.items() if k != "max_memory"})
        tables: list[dict[str, Any]] = []
        lowest, best = np.inf, None
        for kernel in kernels:
            lams = given
            if lams is None:
                lams = lam_grid(X, kernel, sample_weight, self.backend)
            named = solver_named(self.solver)
            # a solver for one λ factorises for each; a single λ is a number, not a batch
            batches = [lams] if named is None or not named.one_lam else lams[:, None]
            parts = []
            for batch in batches:
                fitted = spectrum(
                    X,
                    y,
                    kernel,
                    solver=self.solver,
                    lam=batch if len(batches) == 1 and len(batch) != 1 else float(batch[0]),
                    leave_one_out=not validated,
                    sample_weight=sample_weight,
                    fit_intercept=self.fit_intercept,
                    random_state=self.random_state,
                    backend=self.backend,
                    **options,
                )
                scores = score_grid(
                    fitted,
                    batch,
                    self.alpha,
                    max_steps,
                    folds=folds,
                    clip=self.clip,
                    per_target=self.per_target,
                    scorer=scorer,
                    **held_out,
                )
                loss = scores["mse"] if scorer is None else -scores["score"]
                row, step = divmod(smallest(loss), max_steps)
                if loss[row, step] < lowest:
                    lowest = loss[row, step]
                    path = None
                    if self.refit:
                        path = self._chain(fitted, float(batch[row]), scores, row, step + 1)
                    chosen = scores["alphas"][row][: step + 1], scores["mse"][row]
                    best = (kernel, path, float(batch[row]), step + 1, chosen)
                parts.append(scores)
                del fitted
            tables.append({"lam": lams, **_joined(parts)})
        if best is None:
            raise ValueError("no held-out error is finite: the targets or predictions overflow")
        kernel, path, lam, step, (alphas, mse) = best
        self.best_lam_, self.best_step_ = lam, step
        self.best_gamma_ = getattr(kernel, "gamma", None)
        self.best_score_ = -float(lowest)
        fitted_before = "path_", "kernel_", "alphas_", "weights_", "dual_coef_", "intercept_"
        for name in ("loo_mse_", *fitted_before):
            self.__dict__.pop(name, None)
        if not validated and folds is None:
            self.loo_mse_ = mse
        if path is not None:
            if path.alarm:
                warn_caller(path.alarm, RuntimeWarning)
            self._keep(kernel, path)
            self._use(step)
            alphas = path.alphas
        self._tabulate(kernels, tables, scorer)
        known = not np.isnan(alphas[1:]).any()  # some joint weights have no alphas
        self.best_params_ = {
            "kernel": kernel,
            "lam": self.best_lam_,
            "n_steps": step,
            "alpha": alphas[1:].tolist() if known else self.alpha,
            "fit_intercept": self.fit_intercept,
            "clip": self.clip,
            **({} if self.solver == "auto" else {"solver": self.solver}),
            "solver_options": self.solver_options,
            "backend": self.backend,
            **({} if self.random_state is None else {"random_state": self.random_state}),
            **self._own_params(),
        }
        self._warn_at_edges(kernels, tables)

    def _own_params(self) -> dict[str, Any]:
        """What ``best_params_`` has besides, for a subclass."""
        return {}

    def _kernels(self, X: Any) -> list[Kernel]:
        """The kernels to choose from."""
        scales = self.length_scales
        if scales is None and self.length_scale is not None:
            given = self.kernel if isinstance(self.kernel, (list, tuple)) else [self.kernel]
            if any(isinstance(kernel, str) and kernel == "matern" for kernel in given):
                scales = [self.length_scale]
        return kernel_grid(
            self.kernel,
            X,
            gammas=self.gammas,
            length_scales=scales,
            degree=self.degree,
            coef0=self.coef0,
            nu=self.nu,
        )

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

    def _tabulate(
        self, kernels: list[Kernel], tables: list[dict[str, Any]], scorer: Scorer | None
    ) -> None:
        """Set ``cv_results_`` and ``best_index_``; kernels vary slowest, the step fastest."""
        mse = np.stack([scores["mse"] for scores in tables])
        alphas = np.stack([scores["alphas"] for scores in tables])
        if alphas.ndim == 4:  # one for each target
            alphas = np.full(mse.shape, np.nan)
        shape, T = mse.shape, mse.shape[2]
        every = [getattr(kernel, "gamma", np.nan) for kernel in kernels]
        gammas = np.array([np.nan if isinstance(gamma, tuple) else gamma for gamma in every])
        columns: dict[str, Any] = {
            "gamma": np.broadcast_to(gammas[:, None, None], shape),
            "lam": np.broadcast_to(np.stack([s["lam"] for s in tables])[..., None], shape),
            "step": np.broadcast_to(np.arange(1, T + 1), shape),
            "alpha": alphas,
            "mse": mse,
            "se": np.stack([scores["se"] for scores in tables]),
        }
        score = -mse if scorer is None else np.stack([s["score"] for s in tables])
        if scorer is not None:
            columns["score"] = score
        flat = {name: np.array(column).ravel() for name, column in columns.items()}
        loss = np.nan_to_num(-score.ravel(), nan=np.inf)
        self.best_index_ = smallest(-score)
        rank = rankdata(loss, method="min").astype(int)
        repeated = np.repeat(np.array(kernels, dtype=object), shape[1] * T)
        names = ("kernel", repeated), ("lam", flat["lam"]), ("n_steps", flat["step"])
        cells = {f"param_{name}": a for name, a in names}
        self.cv_results_: dict[str, Any] = {
            **flat,
            "rank": rank,
            **cells,
            "params": [
                dict(zip(("kernel", "lam", "n_steps"), cell, strict=True))
                for cell in zip(*(a.tolist() for a in cells.values()), strict=True)
            ],
            "mean_test_score": score.ravel(),
            "std_test_score": flat["se"],
            "rank_test_score": rank,
        }

    def _warn_at_edges(self, kernels: list[Kernel], tables: list[dict[str, Any]]) -> None:
        """UserWarning if the best λ or γ is the first or last value of its grid."""
        row = self.best_index_ // tables[0]["mse"].size
        grids: dict[str, Any] = {"lam": (self.best_lam_, tables[row]["lam"])}
        if self.gammas is not None and np.ndim(self.gammas) == 1:
            grids["gamma"] = (self.best_gamma_, np.asarray(self.gammas).tolist())
        for name, (best, grid) in grids.items():
            if best is not None and len(set(grid)) > 1 and best in (min(grid), max(grid)):
                warnings.warn(
                    f"the best {name} {best:g} is at the edge of its grid "
                    f"[{min(grid):g}, {max(grid):g}]; the optimum may lie outside: widen {name}s",
                    UserWarning,
                    stacklevel=4,
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


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The scores of batches of λ values as those of one batch."""
    names = [name for name in parts[0] if name not in ("on", "weights")]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


class SelfDistilledKernelRidgeCV(Regression, GridOfChains):
    """Self-distilled kernel ridge regression that selects γ, λ, α and the number of steps.

    One factorisation for each γ scores every λ, step and α exactly: by leave-one-out
    (default), by folds, or on a validation set.

    Parameters
    ----------
    kernel : str, Kernel or callable, default="rbf"
        As in :class:`SelfDistilledKernelRidge`.
        Or a list of them, of which one is chosen.
    lams : sequence of float, optional
        λ values to choose from. None: 19 values from 1e-9 (float32: 1e-4) times the norm of the
        kernel matrix to that norm.
    gammas : sequence of float, optional
        Values of γ to choose from ("rbf", "laplacian", "poly"). None: five values around the
        median heuristic 1/median ‖x − z‖² (for "laplacian" 1/median ‖x − z‖₁, for "poly"
        1 / n_features alone).
    length_scales : sequence of float, optional
        Values of ℓ to choose from ("matern"). None: five around the median of ‖x − z‖.
    alpha : "optimal", "joint", float or sequence of max_steps − 1, default="optimal"
        Chosen for each λ and γ on the same held-out predictions that score them.
    max_steps : int, default=4
        The chain has 1..max_steps steps; the best number is selected.
    cv : None, int, splitter or array_like of group labels
        None: exact leave-one-out. Otherwise exact leave-fold-out, see
        :func:`~selfdistill_fast.leave_fold_out`. Ignored if ``fit`` receives ``X_val``.
    scoring : None, str or callable, default=None
        None or "neg_mean_squared_error": the squared error. "r2", "neg_mean_absolute_error",
        "neg_median_absolute_error"; or a function (y, predictions) whose larger values are
        better (with ``sample_weight`` as a keyword, if there are weights). α is chosen by the
        squared error in any case.
    refit : bool, default=True
        Whether to keep the best chain, for predictions.
    per_target : bool, default=False
        Choose separate α's for each target.
    solver : str, default="auto"
        As in :func:`~selfdistill_fast.spectrum`, one that has leave-one-out unless ``fit``
        receives ``X_val``. A solver for one λ factorises once for each.
    solver_options : dict, optional
        As in :class:`SelfDistilledKernelRidge`; ``n_steps`` is ``max_steps`` by default.
    length_scale : float, optional
        The single ℓ of "matern", instead of ``length_scales``.
    degree, coef0, nu, fit_intercept, clip, backend, random_state
        As in :class:`SelfDistilledKernelRidge`.

    Attributes
    ----------
    best_lam_, best_gamma_ : float
        ``best_gamma_`` is None if the kernel has no γ to choose.
    best_step_ : int
        Number of steps of the chosen chain.
    best_score_ : float
        Its held-out score, by default the negative mean squared error: larger is better.
    loo_mse_ : ndarray of shape (max_steps,)
        Leave-one-out error of each step at the best kernel and λ; only with leave-one-out.
    best_index_ : int
        Its row in ``cv_results_``.
    best_params_ : dict
        ``SelfDistilledKernelRidge(**best_params_)`` is the chosen chain (except that "joint"
        weights without α's are chosen again, by leave-one-out).
    cv_results_ : dict of ndarray
        One entry for each kernel, λ and step, ready for ``pandas.DataFrame``: ``gamma``, ``lam``,
        ``step``, ``alpha`` (of that step; NaN for the first and for "joint"), ``mse``,
        ``se`` (standard error of mse over rows), ``score`` (with ``scoring``), ``rank``; and
        as scikit-learn's searches name them ``params``, ``param_kernel``, ``param_lam``,
        ``param_n_steps``, ``mean_test_score``, ``std_test_score`` (``se``), ``rank_test_score``.
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
        kernel: KernelLike | Sequence[KernelLike] = "rbf",
        *,
        lams: Sequence[float] | None = None,
        gammas: Sequence[float] | None = None,
        length_scales: Sequence[float] | None = None,
        alpha: AlphaLike = "optimal",
        max_steps: int = 4,
        cv: Any = None,
        scoring: Any = None,
        refit: bool = True,
        per_target: bool = False,
        degree: int = 3,
        coef0: float = 1,
        length_scale: float | None = None,
        nu: float = 1.5,
        fit_intercept: bool = False,
        clip: bool = False,
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
        self.per_target = per_target
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
        y, sample_weight = following(X, y=y, sample_weight=sample_weight)
        held_out = {"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val}
        held_out = dict(zip(held_out, following(X, **held_out), strict=True))
        X, y = self._validated("X", X, y)
        folds = None if self.cv is None else check_folds(self.cv, len(X))
        scorer = regression_scorer(self.scoring)
        self._fit_grid(X, y, sample_weight, folds, scorer, held_out)
        return self
