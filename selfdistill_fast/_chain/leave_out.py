"""Exact leave-one-out and leave-fold-out of a whole chain of distillation steps.

Leaving a set S of rows out changes every step of the chain, but linearly. If A_j is the
smoother of step j, the model without S is the model of all rows with the targets t_S
replaced by its own predictions u_S there. So with δ_j = u_S − t_S

    δ_j = −[(I − A_j)_SS]⁻¹ [(I − A_j) t]_S,    t ← A_j (t + E_S δ_j),    [new t]_S = u_S.

Starting with t = y and iterating,

    [(I − A_j) t]_S = [(I − A_j) A_(j−1) … A_1 y]_S + Σ_(s<j) [(I − A_j) A_(j−1) … A_s]_SS δ_s,
    u_S             = [A_j … A_1 y]_S + Σ_(s<=j) [A_j … A_s]_SS δ_s.

I − A is never computed from A, nor A from I − A: no digit is lost where A is near I (an
interpolating kernel) or near 0 (strong regularisation).
Single rows are done for every i at once: the blocks are diagonals, one product with V∘V
for all λ and steps. Folds are done one after the other: one Cholesky factor of |S|² per λ
and then products with V_S, no block of another step is ever formed.

The columns G_k are those of the pure chain (α = 0); a chain with any α's predicts
Σ_k c_k G_k (see alpha/). With a ridge λ_t for each step they depend on the step that the
chain ends with, and there is a row of columns for each.

(The shortcut (y − ŷ)_i / (1 − B_ii) with the distilled smoother B is wrong for τ >= 2: it
leaves row i out of the last step only.)
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast._backend import deliver
from selfdistill_fast._solvers import Spectrum, mix
from selfdistill_fast._validation import (
    check_lam,
    check_lam_steps,
    check_memory,
    check_n_steps,
    to_host,
    warn_caller,
)
from selfdistill_fast.alpha import check_alphas, step_weights

__all__ = [
    "check_folds",
    "check_leave_one_out",
    "fold_columns",
    "leave_fold_out",
    "leave_one_out",
    "loo_columns",
    "mixed_held_out",
]

#: relative error of held-out predictions that unequal weights may cause in silence
_LOST = {"float64": 1e-6, "float32": 0.1}


def _held_out(
    E: Any,
    F: Any,
    solve: Callable[[int, Any], Any],
    push: Callable[[Any], Any],
    couple: Callable[[int, list[Any]], Any],
    spread: Callable[[int, list[Any]], Any],
    start: int = 0,
) -> tuple[Any, list[Any]]:
    """The recursion above for the pure chain of the steps start, start + 1, …, T − 1.

    E, F (…, T − start, …, p): its residuals (I − A_j) A_(j−1) … y and predictions A_j … y;
    ``solve(j, r)`` is [(I − A_j)_SS]⁻¹ r, ``couple(j, handles)`` Σ_s [(I − A_j) … A_s]_SS δ_s
    and ``spread(j, handles)`` Σ_s [A_j … A_s]_SS δ_s, with ``push(δ)`` for handles.
    Returns the predictions u_S of every step, shaped as F, and the handles.
    """
    handles: list[Any] = []
    G = F.copy()
    for i in range(E.shape[-3]):
        residual = E[..., i, :, :]
        if handles:
            residual = residual + couple(start + i, handles)
        handles.append(push(-solve(start + i, residual)))
        G[..., i, :, :] += spread(start + i, handles)
    return G, handles


def _by_last_step(chains: list[Any], xp: Any) -> Any:
    """Columns (T, T, n, p) by last step and length from chains[start] (T − start, n, p)."""
    columns = xp.zeros((len(chains), *chains[0].shape), chains[0].dtype)
    for start, chain in enumerate(chains):
        for i in range(len(chain)):
            columns[start + i, i] = chain[i]
    return columns


def _check_columns_fit(spectrum: Spectrum, lam: Any, n_steps: int, lam_steps: Any) -> None:
    """MemoryError before columns, their residuals and predictions, and filters are allocated."""
    count = n_steps**2 if lam_steps is not None else n_steps * max(1, np.size(lam))
    check_memory(
        spectrum.backend,
        (6 * spectrum.p + 4) * count * spectrum.n * spectrum.dtype.itemsize,
        f"held-out predictions of {spectrum.n} rows, {spectrum.p} target(s), {np.size(lam)} lam "
        f"and {n_steps} steps",
        hint="use fewer lams, steps or targets at a time",
    )


def _warn_of_weights(spectrum: Spectrum, folds: list[Any] | None = None) -> None:
    """RuntimeWarning where weights leave held-out predictions too few digits.

    The rounding of a row of weight w is ε √(max w / w) of its prediction; and with an intercept
    ε/s, where only a share s of all weight is left without a fold.
    """
    xp, growth = spectrum.backend.xp, 1.0
    if spectrum.sample_weight is not None:
        w = spectrum.kept(spectrum.sample_weight)
        growth = float(w.max() / w.min()) ** 0.5
        if spectrum.fit_intercept and folds is None:
            growth = max(growth, 1.0 / max(1.0 - float(w.max()) / spectrum.total_weight, 1e-300))
        elif spectrum.fit_intercept and folds is not None:
            sums = [float(spectrum.sample_weight[xp.asarray(rows)].sum()) for rows in folds]
            left = (float(sum(sums[:i]) + sum(sums[i + 1 :])) for i in range(len(sums)))
            growth = max(growth, spectrum.total_weight / max(min(left), 1e-300))
    error = 100.0 * float(np.finfo(spectrum.dtype).eps) * growth
    if error > _LOST[str(spectrum.dtype)]:
        warn_caller(
            f"the weights are so different that held-out predictions lose digits in "
            f"{spectrum.dtype}: the relative error may reach {min(error, 1.0):.2g}; give rows of "
            "negligible weight the weight 0, or use more folds",
            RuntimeWarning,
        )


def check_leave_one_out(spectrum: Spectrum, n_steps: int) -> None:
    """ValueError where a training set has no leave-one-out of so many steps; says what has."""
    if spectrum.fit_intercept and spectrum.target.shape[0] == 1:
        raise ValueError(
            "leave-one-out with an intercept needs at least two rows of positive weight: "
            "without the only one nothing is left to fit"
        )
    spectrum.check_leave_one_out(n_steps)


def loo_columns(
    spectrum: Spectrum,
    lam: Any,
    n_steps: int,
    lam_steps: Any = None,
    *,
    average: bool = False,
) -> Any:
    """Leave-one-out predictions of the pure chain, for the kept rows (n of them).

    G_1..G_T as (T, n, p), or (L, T, n, p) for a batch of λ. With ``lam_steps`` (T, T, n, p):
    row τ − 1 holds the columns of a chain that ends with step τ. Predictions are without
    the mean ``y_mean`` that an intercept adds to the centred targets ``spectrum.Y``.
    ``average`` puts the mean of each diagonal in its place: generalised cross-validation,
    which is invariant to rotations of the data, and not exact.
    """
    xp = spectrum.backend.xp
    check_leave_one_out(spectrum, n_steps)
    spectrum.warn_below_rounding(lam if lam_steps is None else lam_steps)
    _warn_of_weights(spectrum)
    _check_columns_fit(spectrum, lam, n_steps, lam_steps)
    residual = spectrum.residual_filters(lam, n_steps, lam_steps)
    smoother = spectrum.smoother_filters(lam, n_steps, lam_steps)
    E, F, Q, P = spectrum.applied_and_diagonals([residual, smoother])
    Q, P = Q[..., None], P[..., None]
    if spectrum.q is not None:  # every smoother passes the mean through
        P = P + (spectrum.q**2).astype(P.dtype)[:, None]
    if average:
        Q, P = Q.mean(-2, keepdims=True), P.mean(-2, keepdims=True)

    def window(a: Any, s: int, j: int) -> Any:
        return a[..., j - s, :, :] if lam_steps is None else a[j, s]

    def chain(E: Any, F: Any, start: int) -> Any:
        def total(a: Any, j: int, deltas: list[Any]) -> Any:
            return sum(window(a, s, j) * delta for s, delta in enumerate(deltas, start))

        return _held_out(
            E,
            F,
            lambda j, r: r / window(Q, j, j),
            lambda delta: delta,
            lambda j, deltas: total(Q, j, deltas),
            lambda j, deltas: total(P, j, deltas),
            start,
        )[0]

    if lam_steps is None:
        return chain(E, F, 0)
    chains = [chain(E[start:, start], F[start:, start], start) for start in range(n_steps)]
    return _by_last_step(chains, xp)


def fold_columns(
    spectrum: Spectrum, lam: Any, n_steps: int, folds: list[Any], lam_steps: Any = None
) -> Any:
    """Leave-fold-out predictions of the pure chain, for **all** training rows (n of them).

    Otherwise as :func:`loo_columns`. ``folds`` are index arrays into all training rows.
    A row of weight 0 is predicted by the chain without its fold, too. Each fold is built once,
    whatever the number of λ.
    """
    xp = spectrum.backend.xp
    is_kept = np.ones(spectrum.n, bool)  # folds are made of host indices
    if spectrum.rows is not None:
        is_kept = spectrum.backend.to_numpy(spectrum.sample_weight) > 0
    position = np.cumsum(is_kept) - 1  # of a training row among the kept ones
    spectrum.check_leave_one_out()
    spectrum.warn_below_rounding(lam if lam_steps is None else lam_steps)
    _warn_of_weights(spectrum, folds)
    _check_columns_fit(spectrum, lam, n_steps, lam_steps)
    batch = lam_steps is None and np.ndim(lam) == 1
    chains = [_FoldChains(spectrum, one, n_steps, lam_steps) for one in (lam if batch else [lam])]
    for indices in folds:
        dropped = xp.asarray(indices[~is_kept[indices]])
        kept = xp.asarray(indices[is_kept[indices]])
        rows = xp.asarray(position[indices[is_kept[indices]]])
        if spectrum.fit_intercept and len(rows) == len(spectrum.target):
            raise ValueError(
                "a fold holds every row of positive weight: with an intercept nothing is left "
                "to fit without it; use more folds"
            )
        fold = spectrum.fold(rows)
        for chain in chains:
            chain.leave_out(fold, kept, dropped)
    columns = [chain.columns() for chain in chains]
    return xp.stack(columns) if batch else columns[0]


class _FoldChains:
    """Held-out predictions of the pure chain under one λ or schedule, fold after fold."""

    def __init__(self, spectrum: Spectrum, lam: Any, n_steps: int, lam_steps: Any) -> None:
        xp = spectrum.backend.xp
        self.spectrum, self.lam, self.lam_steps = spectrum, lam, lam_steps
        self.root = xp.ones(len(spectrum.target))
        if spectrum.sample_weight is not None:
            self.root = spectrum.kept(spectrum.sample_weight) ** 0.5
        self.root = self.root.astype(spectrum.dtype)[:, None]
        self.residual = spectrum.residual_filters(lam, n_steps, lam_steps)
        self.smoother = spectrum.smoother_filters(lam, n_steps, lam_steps)
        self.pure = spectrum.pure_filters(lam, n_steps, lam_steps)
        self.steps = spectrum.pure_steps(lam, n_steps, lam_steps)
        self.E, self.F = spectrum.applied(self.residual), spectrum.applied(self.smoother)
        starts = range(1 if lam_steps is None else n_steps)
        shape = (spectrum.n, spectrum.p)
        self.chains = [xp.empty((n_steps - start, *shape), self.E.dtype) for start in starts]

    def columns(self) -> Any:
        """What :func:`fold_columns` returns, once every fold has been left out."""
        if self.lam_steps is None:
            return self.chains[0]
        return _by_last_step(self.chains, self.spectrum.backend.xp)

    def leave_out(self, fold: Any, kept: Any, dropped: Any) -> None:
        """Predictions at the rows of a fold, those of positive weight and the others."""
        solvers: dict[int, Any] = {}  # of a fold, for every start
        for start in range(len(self.chains)):
            self._leave_out(fold, kept, dropped, start, solvers)

    def _windows(self, filters: Any, count: int, j: int, start: int) -> list[Any]:
        """Filters of the steps s..j for s = start, start + 1, …"""
        steps = range(start, start + count)
        return [filters[j - s] if self.lam_steps is None else filters[j, s] for s in steps]

    def _solver(self, fold: Any, j: int) -> Any:
        """r → [(I − A_j)_SS]⁻¹ r."""
        ridge = float(self.lam if self.lam_steps is None else self.lam_steps[j])
        try:
            return fold.solver(ridge, self._windows(self.residual, 1, j, j)[0])
        except LinAlgError:
            raise LinAlgError(
                f"a fold of {len(fold.rows)} rows cannot be left out at lam={ridge:g}: "
                "I - A of its rows is singular to rounding; use a larger lam, or "
                "weights that are less different"
            ) from None

    def _leave_out(
        self, fold: Any, kept: Any, dropped: Any, start: int, solvers: dict[int, Any]
    ) -> None:
        """The same for the chain that starts with one step."""
        scheduled, root = self.lam_steps is not None, self.root[fold.rows]
        means: list[Any] = []  # what each correction adds to the mean, which all steps keep

        def solve(j: int, r: Any) -> Any:
            key = j if scheduled else 0  # one λ, one factor
            if key not in solvers:
                solvers[key] = self._solver(fold, j)
            return solvers[key](r)

        def push(delta: Any) -> Any:
            means.append(0.0 if fold.q is None else fold.q @ delta)
            return fold.push(delta)

        def couple(j: int, handles: list[Any]) -> Any:
            return fold.apply(self._windows(self.residual, len(handles), j, start), handles)

        def spread(j: int, handles: list[Any]) -> Any:
            passed = fold.apply(self._windows(self.smoother, len(handles), j, start), handles)
            return passed if fold.q is None else passed + fold.q[:, None] * sum(means)

        E, F = (
            (a[start:, start] if scheduled else a)[:, fold.rows] * root for a in (self.E, self.F)
        )
        G, handles = _held_out(E, F, solve, push, couple, spread, start)
        self.chains[start][:, kept] = G / root
        for i in range(len(G) if len(dropped) else 0):
            # the model without the fold: that of all rows with targets t_S + δ
            j = start + i
            filters = [
                self.pure[j, j - s] if scheduled else self.pure[j - s] for s in range(start, j + 1)
            ]
            coordinates = self.steps[j, i] if scheduled else self.steps[i]
            coordinates = coordinates + fold.coordinates(filters, handles[: i + 1])
            spectrum = self.spectrum
            predictions = spectrum.evaluate(spectrum.select(dropped), coordinates[None])[0]
            mean = sum(means[: i + 1]) / spectrum.total_weight**0.5
            self.chains[start][i, dropped] = predictions - spectrum.y_mean + mean


def check_folds(folds: Any, n: int) -> list[np.ndarray]:
    """Folds as index arrays that hold every row once; ValueError or TypeError otherwise.

    ``folds``: a number k of contiguous folds (scikit-learn's ``KFold(k)``), an array of n
    group labels, a scikit-learn splitter, or its list of (train, test) index pairs, where
    the training set of each fold must be all the other rows.
    """
    from sklearn.model_selection import KFold

    folds = to_host(folds, "folds")
    if isinstance(folds, (bool, np.bool_, str)):
        raise TypeError(f"folds must be a number, group labels or a splitter, got {folds!r}")
    if isinstance(folds, numbers.Real):
        k = check_n_steps(folds, "folds")
        if not 2 <= k <= n:
            raise ValueError(f"folds must be between 2 and the number of rows ({n}), got {k}")
        folds = KFold(k)
    if hasattr(folds, "split"):
        folds = list(folds.split(np.zeros((n, 1))))
    elif hasattr(folds, "__next__"):
        folds = list(folds)
    every = np.arange(n)
    if isinstance(folds, (list, tuple)) and len(folds) and isinstance(folds[0], (list, tuple)):
        parts = [np.asarray(test) for _, test in folds]
        for train, test in folds:
            if not np.array_equal(np.unique(train), np.setdiff1d(every, test)):
                raise ValueError("every fold must be trained on all the other rows")
    else:
        labels = np.asarray(folds)
        if labels.shape != (n,):
            raise ValueError(f"group labels must have shape ({n},), got {labels.shape}")
        _, group = np.unique(labels, return_inverse=True)
        parts = [np.flatnonzero(group == g) for g in range(group.max() + 1)]
    if not np.array_equal(np.sort(np.concatenate(parts)), every):
        raise ValueError("every row must be in exactly one fold: the test sets overlap")
    return parts


def mixed_held_out(
    spectrum: Spectrum,
    lam: Any,
    C: Any,
    *,
    folds: Any = None,
    lam_steps: Any = None,
    columns: Any = None,
) -> Any:
    """Held-out predictions of chains given by their step weights C, (T, T) or (T, T, p).

    ``folds`` None: leave-one-out; else what :func:`check_folds` returns. ``columns``: those of
    :func:`loo_columns`, where they are known.
    """
    xp = spectrum.backend.xp
    T = len(C)
    C = xp.asarray(C)
    scheduled = lam_steps is not None
    if folds is not None:
        G = mix(C, fold_columns(spectrum, lam, T, folds, lam_steps), xp, scheduled=scheduled)
        G = G + spectrum.y_mean
    else:
        G = loo_columns(spectrum, lam, T, lam_steps) if columns is None else columns
        G = mix(C, G, xp, scheduled=scheduled)
        G = G + spectrum.y_mean
        if spectrum.rows is not None:
            kept, G = G, xp.empty((*G.shape[:-2], spectrum.n, spectrum.p), G.dtype)
            G[..., spectrum.rows, :] = kept
            dropped = xp.nonzero(spectrum.sample_weight == 0)[0]
            pure = spectrum.pure_steps(lam, T, lam_steps)
            pure = mix(C, pure, xp, scheduled=scheduled).astype(spectrum.dtype)
            G[..., dropped, :] = spectrum.evaluate(spectrum.select(dropped), pure)
    G = G.astype(spectrum.dtype)
    return G[..., 0] if spectrum.one_target else G


def leave_one_out(
    spectrum: Spectrum, lam: Any, alpha: Any, n_steps: int, *, lam_steps: Any = None
) -> Any:
    """Leave-one-out predictions of every step of the chain, exactly.

    Equal to n chains of refits, each without one row, evaluated at that row.

    Parameters
    ----------
    spectrum : Spectrum
        From :func:`~selfdistill_fast.spectrum`.
    lam : float, or array_like of shape (L,)
        The ridge λ of (K + λI)⁻¹. A 1-D array is a batch of ridges, never a schedule.
    alpha : float or sequence of T − 1, or ``path.alphas``
        Ground-truth weights of the steps 2..T, the same in every refit.
    n_steps : int
        Number of steps T >= 1.
    lam_steps : sequence of T floats, optional
        A ridge for each step; ``lam`` is not used then and may be None.

    Returns
    -------
    predictions : ndarray of shape (T, n), or (T, n, p) for 2-D targets; leading L for a batch
        An intercept is refitted too. Rows of weight 0 are in no fit: theirs are the
        predictions of the full chain.

    Raises
    ------
    TypeError, ValueError
        Bad λ, α or number of steps; an intercept and a single row.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, leave_one_out, spectrum
    >>> X = np.linspace(0, 1, 20)[:, None]; y = np.sin(6 * X[:, 0])
    >>> s = spectrum(X, y, RBF(10.0))
    >>> leave_one_out(s, 0.1, 0.5, 3).shape
    (3, 20)
    """
    lam, C, lam_steps = _check(spectrum, lam, alpha, n_steps, lam_steps)
    with spectrum.backend.on():
        held_out = mixed_held_out(spectrum, lam, C, lam_steps=lam_steps)
        return deliver(spectrum.backend, held_out)


def leave_fold_out(
    spectrum: Spectrum, lam: Any, alpha: Any, n_steps: int, folds: Any, *, lam_steps: Any = None
) -> Any:
    """Leave-fold-out predictions of every step of the chain, exactly.

    Equal to one chain of refits for each fold, without its rows, evaluated at them.

    Parameters
    ----------
    spectrum, lam, alpha, n_steps, lam_steps
        As in :func:`leave_one_out`.
    folds : int, array_like of shape (n,), or splitter
        A number of contiguous folds, as scikit-learn's ``KFold``; a label for each row, for
        groups that are left out together; or a scikit-learn splitter.

    Returns
    -------
    predictions : ndarray of shape (T, n), or (T, n, p) for 2-D targets; leading L for a batch
        A row of weight 0 is predicted by the chain without its fold.

    Raises
    ------
    TypeError, ValueError
        As :func:`leave_one_out`; folds that do not hold every row once; with an intercept,
        a fold that holds every row of positive weight.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, leave_fold_out, spectrum
    >>> X = np.linspace(0, 1, 20)[:, None]; y = np.sin(6 * X[:, 0])
    >>> s = spectrum(X, y, RBF(10.0))
    >>> leave_fold_out(s, 0.1, 0.5, 3, folds=5).shape
    (3, 20)
    """
    lam, C, lam_steps = _check(spectrum, lam, alpha, n_steps, lam_steps)
    folds = check_folds(folds, spectrum.n)
    with spectrum.backend.on():
        held_out = mixed_held_out(spectrum, lam, C, folds=folds, lam_steps=lam_steps)
        return deliver(spectrum.backend, held_out)


def _check(
    spectrum: Spectrum, lam: Any, alpha: Any, n_steps: int, lam_steps: Any
) -> tuple[Any, Any, Any]:
    """λ, step weights and schedule of a chain."""
    n_steps = check_n_steps(n_steps)
    if lam_steps is None:
        lam = check_lam(lam, batch=True)
    else:
        lam_steps = check_lam_steps(lam_steps, n_steps)
    return lam, step_weights(check_alphas(alpha, n_steps, spectrum.p)), lam_steps
