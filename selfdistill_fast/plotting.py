"""Figures: solutions, shrinkage and ratios of a distillation path; errors over its steps.

Figures 2, 3 and 4 of the paper are :func:`figure_solutions`, :func:`figure_shrinkage` and
:func:`figure_ratios` of the three cases α = 0, α = 0.25 and step-wise α*. Each has a panel
per path; the single panels are ``plot_solutions``, ``plot_shrinkage`` and ``plot_ratios``.
:func:`figure_errors` draws error against step, :func:`figure_sweep` a grid of λ and steps,
:func:`figure_training` (Figure 5) the accuracies of chains of networks.

Matplotlib (the ``cli`` extra) is imported inside the functions, through its object-oriented
interface only: no window, no global state, safe without a display. The functions return the
figure or the axes that they drew; :func:`save_figure` writes a file.

Steps are ordered, so they take ordered colours, from dark violet (τ = 1) to yellow-green;
the scale is even in lightness and keeps its order for colour-blind readers and in grey print.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill_fast._solvers import NoLimit
from selfdistill_fast.alpha import smallest

__all__ = [
    "figure_constrained",
    "figure_errors",
    "figure_format",
    "figure_ratios",
    "figure_shrinkage",
    "figure_solutions",
    "figure_sweep",
    "figure_training",
    "plot_cv",
    "plot_ratios",
    "plot_shrinkage",
    "plot_solutions",
    "save_figure",
]

#: colours that stay apart for colour-blind readers (Okabe and Ito 2008)
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
GREY = "#8a8a8a"
WIDTH, HEIGHT = 3.9, 3.5  # inches of one panel


def plot_solutions(
    path: Any,
    grid: Any,
    X: Any = None,
    y: Any = None,
    *,
    truth: Any = None,
    ax: Any = None,
) -> Any:
    """Draw f⁽¹⁾, …, f⁽ᵀ⁾ of a path with one feature, and its limit where there is one.

    Parameters
    ----------
    path : DistillationPath
        Fitted on one feature and one target.
    grid : (m,) or (m, 1) array
        Where the solutions are evaluated.
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
    ax = _axes(ax)
    x = np.asarray(grid, dtype=float).reshape(-1)
    steps = np.asarray(path.predict(x[:, None], step="all"))
    if steps.ndim != 2:
        raise ValueError(f"solutions can be drawn for one target only, got {steps.shape[-1]}")
    if truth is not None:
        ax.plot(x, np.asarray(truth), color="#d4d4d4", lw=4, solid_capstyle="round", label="truth")
    ax.axhline(0.0, color="#e6e6e6", lw=0.8, zorder=0)
    for step, (values, colour) in enumerate(zip(steps, _colours(len(steps)), strict=True), 1):
        ax.plot(x, values, color=colour, lw=1.6, label=f"τ = {step}")
    limit = _limit(path, x[:, None])
    if limit is not None:
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
    ax = _axes(ax)
    B = np.asarray(path.shrinkage)
    index = np.arange(1, B.shape[1] + 1)
    # the larger bar goes behind, whichever step it belongs to: no value is hidden
    rank = np.argsort(np.argsort(-np.abs(B), axis=0, kind="stable"), axis=0)
    for step, (values, colour) in enumerate(zip(B, _colours(len(B)), strict=True), 1):
        bars = ax.bar(
            index, values, width=0.84, color=colour, ec="white", lw=0.3, label=f"τ = {step}"
        )
        for bar, place in zip(bars, rank[step - 1], strict=True):
            bar.set_zorder(2 + 0.01 * float(place))
    ax.set_xlabel("index k (eigenvalues ascending)")
    ax.set_xlim(0.4, B.shape[1] + 0.6)
    ax.set_ylim(min(0.0, float(B.min()) * 1.05), max(1.0, float(B.max())))
    _integers(ax)
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
    ax = _axes(ax)
    B = np.asarray(path.shrinkage, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        R = B[:, 1:] / B[:, :-1]
    index = np.arange(1, R.shape[1] + 1)
    ax.axhline(1.0, color="#d4d4d4", lw=0.8, zorder=0)
    for step, (values, colour) in enumerate(zip(R, _colours(len(R)), strict=True), 1):
        ax.plot(index, values, "o-", color=colour, lw=1.4, ms=3.6, label=f"τ = {step}")
    ax.set_xlabel("index k")
    _integers(ax)
    return ax


def figure_solutions(
    cases: Mapping[str, Any], grid: Any, X: Any = None, y: Any = None, *, truth: Any = None
) -> Any:
    """Figure 2: the solutions of each case, and α of each step in an inset where it varies.

    Parameters
    ----------
    cases : mapping of panel title to DistillationPath
    grid, X, y, truth
        As in :func:`plot_solutions`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _panels(cases, share=True)
    for ax, path in zip(axes, cases.values(), strict=True):
        plot_solutions(path, grid, X, y, truth=truth, ax=ax)
        alphas = np.asarray(path.alphas, dtype=float)
        if alphas.ndim == 1 and len(alphas) > 2 and np.ptp(alphas[1:]) > 0:
            _alpha_inset(ax, alphas)
    axes[0].set_ylabel(r"$f^{(\tau)}(x)$")
    _legend(figure, axes)
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
    figure, axes = _panels(cases, share=True)
    for ax, path in zip(axes, cases.values(), strict=True):
        plot_shrinkage(path, ax=ax)
    axes[0].set_ylabel(r"$[\mathbf{B}^{(\tau)}]_{k,k}$")
    _legend(figure, axes)
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
    figure, axes = _panels(cases, share=False)
    for ax, path in zip(axes, cases.values(), strict=True):
        plot_ratios(path, ax=ax)
    axes[0].set_ylabel(r"$R_k^{(\tau)}$")
    _legend(figure, axes)
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
    figure = _figure(5.6, 5.0 if with_alphas else 4.0)
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
    _integers(bottom)
    return figure


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
    ax = _axes(ax)
    gamma, lam, step, mse = (np.asarray(results[key]) for key in ("gamma", "lam", "step", "mse"))
    here = (gamma == gamma[best]) | np.isnan(gamma)
    steps = np.unique(step)
    for tau, colour in zip(steps, _colours(len(steps)), strict=True):
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
    """A sweep at one kernel: error over λ and step, and how α bears on it.

    Left a heat map of the root mean squared error (over all targets) of one entry of the
    α's; its best cell is framed. Right the chosen α of each step over λ, where the α's were
    chosen ("optimal", else "joint"); else the error over the constant α's at the best λ.

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
        A label that the dataset does not have; no error of it is known.
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
    figure = _figure((1.15 * panels + 0.1) * WIDTH, HEIGHT + 0.2)
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
            for tau, colour in zip(steps[1:], _colours(len(steps))[1:], strict=True):
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
            for tau, colour in zip(steps, _colours(len(steps)), strict=True):
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


def figure_constrained(chain: Any, fixed: Mapping[str, Sequence[float]]) -> Any:
    """Two theories side by side: λ under a constraint, and the size of every step.

    Left: λ_t of each step of a chain whose training error is held at a tolerance (Mobahi et
    al. 2020). Right: how fast its predictions shrink, beside chains with a fixed λ (Borup &
    Andersen 2021), and where it collapses.

    Parameters
    ----------
    chain : ConstrainedPath
        From :func:`~selfdistill_fast.constrained_path`.
    fixed : mapping of name to (T,) root mean squares of the training predictions of each step

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = _figure(2 * WIDTH, HEIGHT + 0.4)
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, len(chain.lam_steps) + 1)
    left.plot(steps, chain.lam_steps, "o-", color=VERMILION, lw=1.6, ms=4)
    left.set_yscale("log")
    left.set_ylabel("λ of the step")
    left.set_title("(a) ridge that meets the constraint", fontsize=11)
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
        _integers(ax)
    _legend(figure, [left, right])
    return figure


def figure_training(
    chains: Mapping[str, Mapping[str, Any]], *, optimal: str = "α̂", title: str = ""
) -> Any:
    """Figure 5: training and validation accuracy over the steps, one line for each α.

    Lines are means over the seeds, shades reach from their minimum to their maximum. Fixed
    α's have ordered colours, the estimated one stands out.

    Parameters
    ----------
    chains : mapping of label to mapping
        ``"train"`` and ``"val"``: (seeds, T) accuracies in [0, 1], NaN where a step is missing.
        The mapping is in the order of α.
    optimal : str
        Label of the chain whose α is estimated.
    title : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        There is no chain.
    """
    if not chains:
        raise ValueError("no chains to draw: give at least one label and its accuracies")
    figure = _figure(2 * WIDTH + 0.6, HEIGHT + 0.6)
    axes = list(figure.subplots(1, 2))
    fixed = [label for label in chains if label != optimal]
    colours = dict(zip(fixed, _colours(len(fixed)), strict=True))
    seeds = max(len(np.atleast_2d(chain["val"])) for chain in chains.values())
    for ax, key, name in zip(axes, ("train", "val"), ("training", "validation"), strict=True):
        for label, chain in chains.items():
            table = np.ma.masked_invalid(100 * np.atleast_2d(np.asarray(chain[key], dtype=float)))
            steps = np.arange(1, table.shape[1] + 1)
            chosen = label == optimal
            style: dict[str, Any] = {"color": colours.get(label, VERMILION), "label": label}
            style |= (
                {"lw": 2.4, "ms": 6, "marker": "D"}
                if chosen
                else {"lw": 1.4, "ms": 4, "marker": "o"}
            )
            if len(table) > 1:
                ax.fill_between(
                    steps,
                    table.min(axis=0),
                    table.max(axis=0),
                    color=style["color"],
                    alpha=0.2 if chosen else 0.12,
                    lw=0,
                )
            ax.plot(steps, table.mean(axis=0), zorder=3 if chosen else 2, **style)
        ax.set_title(f"{name} accuracy in %", fontsize=11)
        ax.set_xlabel("step τ")
        _integers(ax)
    if seeds > 1:
        axes[0].set_ylabel(f"mean and range over {seeds} seeds")
    if title:
        figure.suptitle(title, fontsize=11)
    _legend(figure, axes, ncols=6)
    return figure


def save_figure(figure: Any, path: str | Path, *, dpi: int = 160) -> Path:
    """Write a figure as PNG, SVG or PDF by suffix; the same figure gives the same bytes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : path
        Missing directories are created.
    dpi : int
        Dots per inch of a PNG.

    Returns
    -------
    pathlib.Path
        Where it was written.
    """
    matplotlib = _matplotlib()
    path = Path(path)
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(figure_format(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "selfdistill_fast"}):
        figure.savefig(path, dpi=dpi, metadata=undated)
    return path


def figure_format(path: str | Path) -> str:
    """Format that the suffix of a path names: "png", "svg" or "pdf"; else ValueError."""
    _matplotlib()
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in ("png", "svg", "pdf"):
        raise ValueError(f"cannot tell a figure format from {str(path)!r}; use .png, .svg or .pdf")
    return suffix


# ------------------------------------------------------------------ shared pieces
def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib; install the extra: pip install 'selfdistill_fast[cli]'"
        ) from error
    return matplotlib


def _figure(width: float, height: float) -> Any:
    _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(ax: Any) -> Any:
    if ax is None:
        ax = _figure(WIDTH + 0.6, HEIGHT).subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _panels(cases: Mapping[str, Any], *, share: bool) -> tuple[Any, list[Any]]:
    if not cases:
        raise ValueError("no cases to draw: give at least one panel title and its path")
    figure = _figure(WIDTH * len(cases), HEIGHT + 0.4)
    axes = list(figure.subplots(1, len(cases), sharey=share, squeeze=False)[0])
    for letter, ax, title in zip("abcdefghijklmnopqrstuvwxyz", axes, cases, strict=False):
        ax.set_title(f"({letter}) {title}", fontsize=11)
    return figure, axes


def _legend(figure: Any, axes: Sequence[Any], ncols: int = 9) -> None:
    """One legend below all panels, from whatever any of them shows."""
    entries: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(len(entries), ncols),
        frameon=False,
        fontsize=9.5,
        handlelength=1.6,
        columnspacing=1.4,
    )


def _colours(count: int) -> list[Any]:
    viridis = _matplotlib().colormaps["viridis"]
    return [viridis(0.88 * i / max(count - 1, 1)) for i in range(count)]


def _integers(ax: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    ax.spines[["top", "right"]].set_visible(False)


def _limit(path: Any, grid: Any) -> Any:
    """The limiting solution on the grid, or None where there is none (α varies)."""
    try:
        path.dual_coef(step=math.inf)
    except NoLimit:
        return None
    return np.asarray(path.predict(grid, step=math.inf))


def _draw_alphas(ax: Any, alphas: np.ndarray) -> None:
    steps = np.arange(2, len(alphas) + 1)
    ax.axhline(0.0, color="#d4d4d4", lw=0.8, zorder=0)
    ax.plot(steps, alphas[1:], "o-", color="#404040", lw=1.2, ms=3.6)
    ax.margins(x=0.1, y=0.15)
    _integers(ax)


def _alpha_inset(ax: Any, alphas: np.ndarray) -> None:
    inset = ax.inset_axes((0.58, 0.76, 0.34, 0.23))
    _draw_alphas(inset, alphas)
    inset.set_xlabel("τ", fontsize=8.5, labelpad=1)
    inset.set_ylabel("α*", fontsize=8.5, labelpad=1)
    inset.tick_params(labelsize=7.5, length=2)
    inset.patch.set_alpha(0.9)
