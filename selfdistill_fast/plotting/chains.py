"""Figures of chains: their solutions, shrinkage, ratios, errors and α's over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfdistill_fast._evaluation import has_limit
from selfdistill_fast.alpha import smallest
from selfdistill_fast.plotting.style import (
    BLUE,
    GREEN,
    GREY,
    HEIGHT,
    ORANGE,
    VERMILION,
    WIDTH,
    axes_or_new,
    integer_steps,
    new_figure,
    ordered_colours,
    panels,
    shared_legend,
)

__all__ = [
    "figure_constrained",
    "figure_errors",
    "figure_ratios",
    "figure_shrinkage",
    "figure_solutions",
    "plot_ratios",
    "plot_shrinkage",
    "plot_solutions",
]


def plot_solutions(
    path: Any,
    grid: Any,
    X: Any = None,
    y: Any = None,
    *,
    truth: Any = None,
    ax: Any = None,
) -> Any:
    """Draw f⁽¹⁾, …, f⁽ᵀ⁾ of a path with one feature, and its limit if there is one.

    Parameters
    ----------
    path : DistillationPath
        Fitted on one feature and one target.
    grid : (m,) or (m, 1) array
        Points at which the solutions are evaluated.
    X, y : (n,) or (n, 1) and (n,) arrays, optional
        Training points, drawn as ×.
    truth : (m,) array, optional
        The noiseless function on ``grid``.
    ax : matplotlib.axes.Axes, optional
        Draw here; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        Matplotlib is not installed.
    """
    ax = axes_or_new(ax)
    x = np.asarray(grid, dtype=float).reshape(-1)
    steps = np.asarray(path.predict(x[:, None], step="all"))
    if steps.ndim != 2:
        raise ValueError(f"solutions can be drawn for one target only, got {steps.shape[-1]}")
    if truth is not None:
        ax.plot(x, np.asarray(truth), color="#d4d4d4", lw=4, solid_capstyle="round", label="truth")
    ax.axhline(0.0, color="#e6e6e6", lw=0.8, zorder=0)
    for step, (values, colour) in enumerate(
        zip(steps, ordered_colours(len(steps)), strict=True), 1
    ):
        ax.plot(x, values, color=colour, lw=1.6, label=f"τ = {step}")
    if has_limit(path):
        limit = np.asarray(path.predict(x[:, None], step=math.inf))
        ax.plot(x, limit, color="black", lw=1.4, ls=(0, (4, 2)), label="limit τ → ∞")
    if X is not None and y is not None:
        ax.plot(
            np.asarray(X).reshape(-1),
            np.asarray(y).reshape(-1),
            "x",
            color="black",
            ms=6,
            mew=1.4,
            label="training data",
        )
    ax.set_xlabel("x")
    edge = 0.03 * float(np.ptp(x))
    ax.set_xlim(float(x.min()) - edge, float(x.max()) + edge)
    return ax


def plot_shrinkage(path: Any, *, ax: Any = None) -> Any:
    """Draw the diagonals of B⁽¹⁾, …, B⁽ᵀ⁾ as overlaid bars, smallest eigenvalue left.

    Parameters
    ----------
    path : DistillationPath
        With a spectral solver (``path.shrinkage`` exists).
    ax : matplotlib.axes.Axes, optional
        Draw here; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes_or_new(ax)
    B = np.asarray(path.shrinkage)
    index = np.arange(1, B.shape[1] + 1)
    # the larger bar is drawn first, whichever step it belongs to, so that no value is hidden
    rank = np.argsort(np.argsort(-np.abs(B), axis=0, kind="stable"), axis=0)
    for step, (values, colour) in enumerate(zip(B, ordered_colours(len(B)), strict=True), 1):
        bars = ax.bar(
            index, values, width=0.84, color=colour, ec="white", lw=0.3, label=f"τ = {step}"
        )
        for bar, place in zip(bars, rank[step - 1], strict=True):
            bar.set_zorder(2 + 0.01 * float(place))
    ax.set_xlabel("index k (eigenvalues ascending)")
    ax.set_xlim(0.4, B.shape[1] + 0.6)
    ax.set_ylim(min(0.0, float(B.min()) * 1.05), max(1.0, float(B.max())))
    integer_steps(ax)
    return ax


def plot_ratios(path: Any, *, ax: Any = None) -> Any:
    """Draw the ratios R_k⁽ᵗ⁾ = B⁽ᵗ⁾_{k+1,k+1} / B⁽ᵗ⁾_{k,k} of every step, k = 1, …, n − 1.

    Parameters
    ----------
    path : DistillationPath
        With a spectral solver (``path.shrinkage`` exists).
    ax : matplotlib.axes.Axes, optional
        Draw here; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes_or_new(ax)
    B = np.asarray(path.shrinkage, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        R = B[:, 1:] / B[:, :-1]
    index = np.arange(1, R.shape[1] + 1)
    ax.axhline(1.0, color="#d4d4d4", lw=0.8, zorder=0)
    for step, (values, colour) in enumerate(zip(R, ordered_colours(len(R)), strict=True), 1):
        ax.plot(index, values, "o-", color=colour, lw=1.4, ms=3.6, label=f"τ = {step}")
    ax.set_xlabel("index k")
    integer_steps(ax)
    return ax


def figure_solutions(
    cases: Mapping[str, Any], grid: Any, X: Any = None, y: Any = None, *, truth: Any = None
) -> Any:
    """Figure 2: the solutions of each case, and α of each step in an inset if it varies.

    Parameters
    ----------
    cases : mapping of panel title to DistillationPath
    grid, X, y, truth
        As in :func:`plot_solutions`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = panels(cases, share=True)
    for ax, path in zip(axes, cases.values(), strict=True):
        plot_solutions(path, grid, X, y, truth=truth, ax=ax)
        alphas = np.asarray(path.alphas, dtype=float)
        if alphas.ndim == 1 and len(alphas) > 2 and np.ptp(alphas[1:]) > 0:
            _alpha_inset(ax, alphas)
    axes[0].set_ylabel(r"$f^{(\tau)}(x)$")
    shared_legend(figure, axes)
    return figure


def figure_shrinkage(cases: Mapping[str, Any]) -> Any:
    """Figure 3: the diagonals of B of each case.

    Parameters
    ----------
    cases : mapping of panel title to DistillationPath

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = panels(cases, share=True)
    for ax, path in zip(axes, cases.values(), strict=True):
        plot_shrinkage(path, ax=ax)
    axes[0].set_ylabel(r"$[\mathbf{B}^{(\tau)}]_{k,k}$")
    shared_legend(figure, axes)
    return figure


def figure_ratios(cases: Mapping[str, Any]) -> Any:
    """Figure 4: the ratios R_k of each case.

    Parameters
    ----------
    cases : mapping of panel title to DistillationPath

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = panels(cases, share=False)
    for ax, path in zip(axes, cases.values(), strict=True):
        plot_ratios(path, ax=ax)
    axes[0].set_ylabel(r"$R_k^{(\tau)}$")
    shared_legend(figure, axes)
    return figure


def figure_errors(
    errors: Mapping[str, Sequence[float]],
    *,
    limits: Mapping[str, float] | None = None,
    alphas: Sequence[float] | None = None,
    ylabel: str = "root mean squared error",
    title: str = "",
) -> Any:
    """Error against step, one line per data set.

    Parameters
    ----------
    errors : mapping of name to (T,) errors of steps 1, …, T
    limits : mapping of name to the error of the limit, optional
        Drawn as dashed horizontal lines.
    alphas : (T,) sequence, optional
        α of each step (the first is not used), drawn below the errors.
    ylabel, title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    with_alphas = alphas is not None and len(alphas) > 1
    figure = new_figure(5.6, 5.0 if with_alphas else 4.0)
    if with_alphas:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    else:
        top = bottom = figure.subplots()
    styles = zip((BLUE, VERMILION, GREEN, ORANGE), ("o", "s", "^", "D"), strict=True)
    for (name, values), (colour, marker) in zip(errors.items(), styles, strict=False):
        steps = np.arange(1, len(values) + 1)
        top.plot(steps, values, marker=marker, color=colour, lw=1.6, ms=5, label=name)
        if not np.isnan(values).all():
            best = smallest(values)
            top.plot(steps[best], values[best], marker, mfc="none", mec=colour, ms=11, mew=1.2)
        if limits is not None and name in limits:
            top.axhline(limits[name], color=colour, lw=1.0, ls=(0, (4, 2)))
    handles, labels = top.get_legend_handles_labels()
    from matplotlib.lines import Line2D

    handles.append(Line2D([], [], ls="", marker="o", mfc="none", mec=GREY, ms=11, mew=1.2))
    labels.append("best step")
    if limits:
        handles.append(Line2D([], [], color=GREY, lw=1.0, ls=(0, (4, 2))))
        labels.append("limit τ → ∞")
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
    top.spines[["top", "right"]].set_visible(False)
    top.set_ylabel(ylabel)
    top.set_title(title)
    if with_alphas:
        assert alphas is not None
        _draw_alphas(bottom, np.asarray(alphas, dtype=float))
        bottom.set_ylabel("α")
    bottom.set_xlabel("step τ")
    integer_steps(bottom)
    return figure


def figure_constrained(chain: Any, fixed: Mapping[str, Sequence[float]]) -> Any:
    """Two theories side by side: λ under a constraint, and the size of every step.

    Left: λ_t of each step of a chain whose training error is held at a tolerance (Mobahi et
    al. 2020). Right: the decay of its predictions, compared with chains with a fixed λ (Borup &
    Andersen 2021), and the step at which it collapses.

    Parameters
    ----------
    chain : ConstrainedPath
        From :func:`~selfdistill_fast.constrained_path`.
    fixed : mapping of name to (T,) root mean squares of the training predictions of each step

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = new_figure(2 * WIDTH, HEIGHT + 0.4)
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, len(chain.lam_steps) + 1)
    left.plot(steps, chain.lam_steps, "o-", color=VERMILION, lw=1.6, ms=4)
    left.set_yscale("log")
    left.set_ylabel("λ of the step")
    left.set_title("(a) λ that meets the constraint", fontsize=11)
    along, norms = steps, chain.norms[1:]
    if chain.collapsed:
        along, norms = np.append(steps, steps[-1] + 1), np.append(norms, 0.0)
    right.plot(along, norms, "o-", color=VERMILION, lw=1.6, ms=4, label="constrained")
    styles = zip((BLUE, GREEN, ORANGE), ("s", "^", "D"), strict=True)
    for (name, values), (colour, marker) in zip(fixed.items(), styles, strict=False):
        along = np.arange(1, len(values) + 1)
        right.plot(along, values, marker=marker, color=colour, lw=1.4, ms=4, label=name)
    right.set_ylim(bottom=0)
    right.set_ylabel("root mean square of the predictions")
    right.set_title("(b) size of the solution", fontsize=11)
    for ax in (left, right):
        if chain.collapsed:
            ax.axvline(steps[-1] + 1, color=GREY, lw=1.0, ls=(0, (4, 2)), label="collapse to zero")
        ax.set_xlabel("step τ")
        integer_steps(ax)
    shared_legend(figure, [left, right])
    return figure


def _draw_alphas(ax: Any, alphas: np.ndarray) -> None:
    steps = np.arange(2, len(alphas) + 1)
    ax.axhline(0.0, color="#d4d4d4", lw=0.8, zorder=0)
    ax.plot(steps, alphas[1:], "o-", color="#404040", lw=1.2, ms=3.6)
    ax.margins(x=0.1, y=0.15)
    integer_steps(ax)


def _alpha_inset(ax: Any, alphas: np.ndarray) -> None:
    inset = ax.inset_axes((0.58, 0.76, 0.34, 0.23))
    _draw_alphas(inset, alphas)
    inset.set_xlabel("τ", fontsize=8.5, labelpad=1)
    inset.set_ylabel("α*", fontsize=8.5, labelpad=1)
    inset.tick_params(labelsize=7.5, length=2)
    inset.patch.set_alpha(0.9)
