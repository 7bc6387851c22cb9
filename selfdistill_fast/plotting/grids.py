"""Figures of grids: a cross-validation over λ, a sweep over λ, α and steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from selfdistill_fast.plotting.style import (
    HEIGHT,
    VERMILION,
    WIDTH,
    axes_or_new,
    new_figure,
    ordered_colours,
)

__all__ = ["figure_sweep", "plot_cv"]


def plot_cv(results: Mapping[str, Any], best: int, *, ax: Any = None) -> Any:
    """Held-out error over λ at the best γ, one line for each number of steps.

    Parameters
    ----------
    results : mapping
        ``cv_results_`` of :class:`~selfdistill_fast.SelfDistilledKernelRidgeCV`: arrays
        ``gamma``, ``lam``, ``step`` and ``mse`` with one entry per cell of the grid.
    best : int
        The chosen cell, marked by a ring.
    ax : matplotlib.axes.Axes, optional
        Draw here; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes_or_new(ax)
    gamma, lam, step, mse = (np.asarray(results[key]) for key in ("gamma", "lam", "step", "mse"))
    kernel = results["param_kernel"]
    here = np.array([other == kernel[best] for other in kernel])
    steps = np.unique(step)
    for tau, colour in zip(steps, ordered_colours(len(steps)), strict=True):
        rows = np.flatnonzero(here & (step == tau))
        rows = rows[np.argsort(lam[rows])]
        ax.plot(lam[rows], mse[rows], "o-", color=colour, lw=1.6, ms=3.6, label=f"τ = {tau}")
    ax.plot(lam[best], mse[best], "o", mfc="none", mec=VERMILION, ms=11, mew=1.5, label="chosen")
    ax.set_xscale("log")
    ax.set_xlabel("λ")
    ax.set_ylabel("held-out mean squared error")
    if not np.isnan(gamma[best]):
        ax.set_title(f"γ = {gamma[best]:g}", fontsize=11)
    ax.legend(frameon=False, fontsize=9.5)
    return ax


def figure_sweep(
    dataset: Any, *, variable: str, kernel: str, alpha: str, title: str | None = None
) -> Any:
    """A sweep at one kernel: error over λ and step, and the influence of α.

    Left: a heat map of the root mean squared error (over all targets) for one entry of the
    α's; its best cell is framed. Right: the chosen α of each step over λ, if α's were chosen
    ("optimal", else "joint"); else the error over the constant α's at the best λ.

    Parameters
    ----------
    dataset : xarray.Dataset
        Of a :class:`~selfdistill_fast.SweepResult`.
    variable : {"mse_val", "mse_loo"}
    kernel, alpha : str
        Labels of the dataset.
    title : str, optional
        Default: the label of the kernel.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        The dataset does not have the label, or no error of it is known.
    """
    for name, label in (("kernel", kernel), ("alpha", alpha)):
        known = dataset[name].values.tolist()
        if label not in known:
            raise ValueError(f"no {name} {label!r} in this sweep; there are: {', '.join(known)}")
    here = dataset.sel(kernel=kernel).sortby("lam")
    rmse = np.sqrt(here[variable].mean("target"))
    lams, steps = here.lam.values, here.step.values
    labels = here.alpha.values.tolist()
    chosen = [word for word in ("optimal", "joint") if word in labels and len(steps) > 1]
    constant = sorted((float(label), label) for label in labels if _is_number(label))
    panels = 2 if chosen or constant else 1
    figure = new_figure((1.15 * panels + 0.1) * WIDTH, HEIGHT + 0.2)
    figure.suptitle(kernel if title is None else title, fontsize=11)
    left, *others = figure.subplots(1, panels, squeeze=False)[0]

    errors = rmse.sel(alpha=alpha).values  # (L, T)
    if np.isnan(errors).all():
        raise ValueError(
            f"no error of kernel {kernel!r} with alpha {alpha!r} is known (all are NaN): there is "
            "nothing to draw; choose another kernel or alpha"
        )
    least, most = np.nanmin(errors), np.nanmax(errors)
    norm = "log" if 0 < 20 * least < most else "linear"
    image = left.imshow(errors, cmap="viridis", norm=norm, aspect="auto", origin="lower")
    row, column = (int(i) for i in np.unravel_index(np.nanargmin(errors), errors.shape))
    left.add_patch(_frame(column, row))
    if errors.size <= 80:
        middle = math.sqrt(least * most) if norm == "log" else (least + most) / 2
        for (i, j), error in np.ndenumerate(errors):
            colour = "white" if error < middle else "black"
            left.text(j, i, f"{error:.3g}", ha="center", va="center", color=colour, fontsize=7.5)
    every = -(-len(lams) // 16)
    left.set_yticks(range(0, len(lams), every), [f"{lam:.3g}" for lam in lams[::every]])
    every = -(-len(steps) // 12)
    left.set_xticks(range(0, len(steps), every), [str(step) for step in steps[::every]])
    left.set_xlabel("step τ")
    left.set_ylabel("λ")
    on = {"mse_val": "validation", "mse_loo": "leave-one-out"}[variable]
    left.set_title(f"(a) {on} error, α: {alpha}", fontsize=11)
    figure.colorbar(image, ax=left, label="root mean squared error")

    for right in others:
        if chosen:
            values = here.alphas.sel(alpha=chosen[0])
            if "target" in values.dims:
                values = values.isel(target=0)
            for tau, colour in zip(steps[1:], ordered_colours(len(steps))[1:], strict=True):
                curve = values.sel(step=tau).values
                right.plot(lams, curve, "o-", color=colour, lw=1.6, ms=3.6, label=f"τ = {tau}")
            right.axhline(0.0, color="#d4d4d4", lw=0.8, zorder=0)
            if np.nanmax(np.abs(values.values), initial=0.0) > 20:
                right.set_yscale("symlog", linthresh=1.0)
            right.set_xscale("log")
            right.set_xlabel("λ")
            right.set_ylabel("α of the step")
            right.set_title(f"(b) α*, {chosen[0]}", fontsize=11)
        else:
            at = [value for value, _ in constant]
            for tau, colour in zip(steps, ordered_colours(len(steps)), strict=True):
                curve = [float(rmse.sel(alpha=label, step=tau)[row]) for _, label in constant]
                right.plot(at, curve, "o-", color=colour, lw=1.6, ms=3.6, label=f"τ = {tau}")
            right.set_xlabel("α")
            right.set_ylabel("root mean squared error")
            right.set_title(f"(b) error at λ = {lams[row]:.3g}", fontsize=11)
        right.spines[["top", "right"]].set_visible(False)
        right.legend(frameon=False, fontsize=9.5)
    return figure


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (column - 0.5, row - 0.5), 1, 1, fill=False, ec=VERMILION, lw=2.2, clip_on=False, zorder=3
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
