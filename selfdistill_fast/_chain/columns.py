"""Held-out predictions of the pure chain: leave-one-out, and leave-fold-out.

Leaving out a set S of rows changes every step of the chain, but linearly. If A_j is the
smoother of step j, the model without S equals the model of all rows whose targets t_S are
replaced by its own predictions u_S there. So with δ_j = u_S − t_S

    δ_j = −[(I − A_j)_SS]⁻¹ [(I − A_j) t]_S,    t ← A_j (t + E_S δ_j),    [new t]_S = u_S.

Starting with t = y and iterating,

    [(I − A_j) t]_S = [(I − A_j) A_(j−1) … A_1 y]_S + Σ_(s<j) [(I − A_j) A_(j−1) … A_s]_SS δ_s,
    u_S             = [A_j … A_1 y]_S + Σ_(s<=j) [A_j … A_s]_SS δ_s.

I − A is never computed from A, nor A from I − A: no digit is lost where A is near I (an
interpolating kernel) or near 0 (strong regularisation).
Single rows are left out for all i at once: the blocks are diagonals, from one product with
V∘V for all λ and steps. Folds are processed one after another: one Cholesky factor of |S|²
per λ, then products with V_S; no block of another step is ever formed.

The columns G_k are those of the pure chain (α = 0); a chain with any α's predicts
Σ_k c_k G_k (see alpha/). With a value λ_t for each step, the columns depend on the last step
of the chain, and there is one row of columns for each last step.

(The shortcut (y − ŷ)_i / (1 − B_ii) with the distilled smoother B is wrong for τ >= 2: it
leaves row i out of the last step only.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast._solvers import Penalties, Spectrum
from selfdistill_fast._validation import check_memory, warn_caller

__all__ = ["check_leave_one_out", "fold_columns", "loo_columns"]

#: relative error of held-out predictions, caused by unequal weights, that gives no warning
_LOST = {"float64": 1e-6, "float32": 0.1}


class _LeftOut(Protocol):
    """A set S of rows left out of every step; see the equations above."""

    def solve(self, j: int, r: Any) -> Any:
        """[(I − A_j)_SS]⁻¹ r."""

    def push(self, delta: Any) -> Any:
        """A handle for the correction δ."""

    def couple(self, j: int, start: int, handles: list[Any]) -> Any:
        """Σ_s [(I − A_j) … A_s]_SS δ_s."""

    def spread(self, j: int, start: int, handles: list[Any]) -> Any:
        """Σ_s [A_j … A_s]_SS δ_s."""


def _held_out(left: _LeftOut, E: Any, F: Any, start: int) -> tuple[Any, list[Any]]:
    """The recursion above for the pure chain of the steps start, start + 1, …, T − 1.

    E, F (…, T − start, …, p): its residuals (I − A_j) A_(j−1) … y and predictions A_j … y.
    Returns the predictions u_S of every step, shaped as F, and the handles.
    """
    handles: list[Any] = []
    G = F.copy()
    for i in range(E.shape[-3]):
        residual = E[..., i, :, :]
        if handles:
            residual = residual + left.couple(start + i, start, handles)
        handles.append(left.push(-left.solve(start + i, residual)))
        G[..., i, :, :] += left.spread(start + i, start, handles)
    return G, handles


def _check_columns_fit(spectrum: Spectrum, penalties: Penalties) -> None:
    """MemoryError before columns, their residuals and predictions, and filters are allocated."""
    lams = 1 if penalties.scheduled else penalties.values.size
    check_memory(
        spectrum.backend,
        (6 * spectrum.p + 4) * penalties.count * spectrum.n * spectrum.dtype.itemsize,
        f"held-out predictions of {spectrum.n} rows, {spectrum.p} target(s), {lams} lam "
        f"and {penalties.n_steps} steps",
        hint="use fewer lam values, steps or targets at a time",
    )


def _warn_of_weights(spectrum: Spectrum, folds: Sequence[Any] | None = None) -> None:
    """RuntimeWarning if weights leave held-out predictions too few digits.

    The relative rounding error of a row of weight w is ε √(max w / w). With an intercept it is
    also ε/s, if a share s of the total weight remains without a fold.
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


def _warned(spectrum: Spectrum, columns: Any) -> Any:
    """Return ``columns``; RuntimeWarning if some are not finite."""
    if not bool(spectrum.backend.xp.isfinite(columns).all()):
        warn_caller(
            f"some held-out predictions are NaN or infinite: they overflow {columns.dtype}, or "
            "the problem without a row is singular to rounding; use larger lam values"
            + (", or float64" if columns.dtype == np.float32 else ""),
            RuntimeWarning,
        )
    return columns


def check_leave_one_out(spectrum: Spectrum, n_steps: int) -> None:
    """ValueError if there is no leave-one-out for this many steps; names the alternatives."""
    if spectrum.fit_intercept and spectrum.target.shape[0] == 1:
        raise ValueError(
            "leave-one-out with an intercept needs at least two rows of positive weight: "
            "without the only one, nothing is left to fit"
        )
    spectrum.check_leave_one_out(n_steps)


def loo_columns(spectrum: Spectrum, penalties: Penalties, *, average: bool = False) -> Any:
    """Leave-one-out predictions of the pure chain, for the retained rows (n of them).

    G_1..G_T as (T, n, p), or (L, T, n, p) for a batch of λ. With a schedule (T, T, n, p):
    row τ − 1 holds the columns of a chain that ends with step τ. Predictions do not include
    the mean ``y_mean`` that an intercept adds to the centred targets ``spectrum.Y``.
    ``average`` replaces each diagonal by its mean: generalised cross-validation, which is
    invariant to rotations of the data, but not exact.
    """
    check_leave_one_out(spectrum, penalties.n_steps)
    spectrum.warn_below_rounding(penalties.values)
    _warn_of_weights(spectrum)
    _check_columns_fit(spectrum, penalties)
    filters = [spectrum._residual(penalties), spectrum._smoother(penalties)]
    E, F, Q, P = spectrum.applied_and_diagonals(filters)
    Q, P = Q[..., None], P[..., None]
    if spectrum.q is not None:  # every smoother preserves the mean
        P = P + (spectrum.q**2).astype(P.dtype)[:, None]
    if average:
        Q, P = Q.mean(-2, keepdims=True), P.mean(-2, keepdims=True)
    left = _SingleRows(penalties, Q, P, spectrum.backend.xp)
    chains = [
        _held_out(left, penalties.chain(E, start), penalties.chain(F, start), start)[0]
        for start in penalties.starts
    ]
    return _warned(spectrum, penalties.by_last_step(chains, spectrum.backend.xp))


class _SingleRows:
    """Every single row as a left-out set, all at once: blocks are diagonals."""

    def __init__(self, penalties: Penalties, Q: Any, P: Any, xp: Any) -> None:
        self.penalties = penalties
        # the axis of a batch of λ values comes after that of the steps
        self.Q, self.P = (xp.moveaxis(a, -3, 0) if penalties.is_batch else a for a in (Q, P))

    def solve(self, j: int, r: Any) -> Any:
        return r / self.penalties.window(self.Q, j, j)

    def push(self, delta: Any) -> Any:
        return delta

    def couple(self, j: int, start: int, handles: list[Any]) -> Any:
        return self._total(self.Q, j, start, handles)

    def spread(self, j: int, start: int, handles: list[Any]) -> Any:
        return self._total(self.P, j, start, handles)

    def _total(self, a: Any, j: int, start: int, deltas: list[Any]) -> Any:
        window = self.penalties.window
        return sum(window(a, s, j) * delta for s, delta in enumerate(deltas, start))


def fold_columns(spectrum: Spectrum, penalties: Penalties, folds: list[Any]) -> Any:
    """Leave-fold-out predictions of the pure chain, for **all** training rows (n of them).

    Otherwise as :func:`loo_columns`. ``folds`` are index arrays into all training rows.
    A row of weight 0 is also predicted by the chain without its fold. Each fold is built once
    for all λ values.
    """
    xp = spectrum.backend.xp
    is_kept = np.ones(spectrum.n, bool)  # folds are made of host indices
    if spectrum.rows is not None:
        is_kept = spectrum.backend.to_numpy(spectrum.sample_weight) > 0
    position = np.cumsum(is_kept) - 1  # of a training row among the retained ones
    spectrum.check_leave_one_out()
    spectrum.warn_below_rounding(penalties.values)
    _warn_of_weights(spectrum, folds)
    _check_columns_fit(spectrum, penalties)
    chains = [_FoldChains(spectrum, one) for one in penalties.each()]
    for indices in folds:
        dropped = xp.asarray(indices[~is_kept[indices]])
        kept = xp.asarray(indices[is_kept[indices]])
        rows = xp.asarray(position[indices[is_kept[indices]]])
        if spectrum.fit_intercept and len(rows) == len(spectrum.target):
            raise ValueError(
                "a fold holds every row of positive weight: with an intercept, nothing is left "
                "to fit without it; use more folds"
            )
        fold = spectrum.fold(rows)
        for chain in chains:
            chain.leave_out(fold, kept, dropped)
    columns = [chain.penalties.by_last_step(chain.chains, xp) for chain in chains]
    return _warned(spectrum, xp.stack(columns) if penalties.is_batch else columns[0])


class _FoldChains:
    """Held-out predictions of the pure chain for one λ or schedule, fold after fold."""

    def __init__(self, spectrum: Spectrum, penalties: Penalties) -> None:
        xp = spectrum.backend.xp
        self.spectrum, self.penalties = spectrum, penalties
        self.root = xp.ones(len(spectrum.target))
        if spectrum.sample_weight is not None:
            self.root = spectrum.kept(spectrum.sample_weight) ** 0.5
        self.root = self.root.astype(spectrum.dtype)[:, None]
        self.residual = spectrum._residual(penalties)
        self.smoother = spectrum._smoother(penalties)
        self.pure, self.steps = spectrum._pure(penalties), spectrum._steps(penalties)
        self.E, self.F = spectrum.applied(self.residual), spectrum.applied(self.smoother)
        lengths = [penalties.n_steps - start for start in penalties.starts]
        self.chains = [xp.empty((T, spectrum.n, spectrum.p), self.E.dtype) for T in lengths]

    def leave_out(self, fold: Any, kept: Any, dropped: Any) -> None:
        """Predictions at the rows of a fold, those of positive weight and the others."""
        solvers: dict[float, Any] = {}  # per fold, for every start: one factor for each λ
        for start in self.penalties.starts:
            left = _FoldOut(self, fold, solvers)
            root = self.root[fold.rows]
            E, F = (self.penalties.chain(a, start)[:, fold.rows] * root for a in (self.E, self.F))
            G, handles = _held_out(left, E, F, start)
            self.chains[start][:, kept] = G / root
            for i in range(len(G) if len(dropped) else 0):
                self.chains[start][i, dropped] = self._at_dropped(
                    left, dropped, start + i, handles[: i + 1]
                )

    def _at_dropped(self, left: _FoldOut, dropped: Any, j: int, handles: list[Any]) -> Any:
        """Predictions at rows of weight 0: the model of all rows with targets t_S + δ."""
        spectrum, ending = self.spectrum, self.penalties.ending
        pure, length = ending(self.pure, j), len(handles)
        filters = [pure[i] for i in reversed(range(length))]
        coordinates = ending(self.steps, j)[length - 1]
        coordinates = coordinates + left.fold.coordinates(filters, handles)
        predictions = spectrum.evaluate(spectrum.select(dropped), coordinates[None])[0]
        mean = sum(left.means[:length]) / spectrum.total_weight**0.5
        return predictions - spectrum.y_mean + mean


class _FoldOut:
    """One fold left out of the chain from a given step on."""

    def __init__(self, chains: _FoldChains, fold: Any, solvers: dict[float, Any]) -> None:
        self.chains, self.fold, self.solvers = chains, fold, solvers
        self.means: list[
            Any
        ] = []  # the shift of the mean by each correction; all steps preserve it

    def solve(self, j: int, r: Any) -> Any:
        key = j if self.chains.penalties.scheduled else 0
        if key not in self.solvers:
            self.solvers[key] = self._solver(j)
        return self.solvers[key](r)

    def _solver(self, j: int) -> Any:
        """r → [(I − A_j)_SS]⁻¹ r."""
        lam = self.chains.penalties.at(j)
        try:
            return self.fold.solver(lam, self._windows(self.chains.residual, j, j)[0])
        except LinAlgError:
            raise LinAlgError(
                f"a fold of {len(self.fold.rows)} rows cannot be left out at lam={lam:g}: "
                "I - A of its rows is singular to rounding; use a larger lam, or "
                "less unequal weights"
            ) from None

    def push(self, delta: Any) -> Any:
        self.means.append(0.0 if self.fold.q is None else self.fold.q @ delta)
        return self.fold.push(delta)

    def couple(self, j: int, start: int, handles: list[Any]) -> Any:
        filters = self._windows(self.chains.residual, start, j)
        return self.fold.apply(filters[: len(handles)], handles)

    def spread(self, j: int, start: int, handles: list[Any]) -> Any:
        passed = self.fold.apply(self._windows(self.chains.smoother, start, j), handles)
        if self.fold.q is None:
            return passed
        return passed + self.fold.q[:, None] * sum(self.means)

    def _windows(self, filters: Any, start: int, j: int) -> list[Any]:
        """Filters of the steps s..j for s = start, start + 1, …, j."""
        return [self.chains.penalties.window(filters, s, j) for s in range(start, j + 1)]
