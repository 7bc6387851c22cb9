"""Common elements of all figures: size, colours, panels, the legend, and files.

Steps are ordered, so they have ordered colours, from dark violet (τ = 1) to yellow-green. The
scale is even in lightness and keeps its order for colour-blind readers and in greyscale print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "HEIGHT",
    "ORANGE",
    "VERMILION",
    "WIDTH",
    "axes_or_new",
    "figure_format",
    "integer_steps",
    "new_figure",
    "ordered_colours",
    "panels",
    "save_figure",
    "shared_legend",
]

#: colours that colour-blind readers can distinguish (Okabe and Ito 2008)
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
GREY = "#8a8a8a"
WIDTH, HEIGHT = 3.9, 3.5  # inches of one panel


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
    """Format given by the suffix of a path: "png", "svg" or "pdf"; else ValueError."""
    _matplotlib()
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in ("png", "svg", "pdf"):
        raise ValueError(f"cannot tell a figure format from {str(path)!r}; use .png, .svg or .pdf")
    return suffix


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib; install the extra: pip install 'selfdistill_fast[cli]'"
        ) from error
    return matplotlib


def new_figure(width: float, height: float) -> Any:
    """A figure of a given size in inches, without a window; it shows itself in a notebook."""
    _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from selfdistill_fast.plotting.notebook import ShownFigure

    figure = ShownFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def axes_or_new(ax: Any) -> Any:
    """The axes, or those of a new figure, which show it in a notebook."""
    if ax is None:
        figure = new_figure(WIDTH + 0.6, HEIGHT)
        from selfdistill_fast.plotting.notebook import ShownAxes

        ax = figure.add_subplot(axes_class=ShownAxes)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def panels(cases: Mapping[str, Any], *, share: bool) -> tuple[Any, list[Any]]:
    """A figure with a lettered panel for each case, and its axes."""
    if not cases:
        raise ValueError("no cases to draw: give at least one panel title and its path")
    figure = new_figure(WIDTH * len(cases), HEIGHT + 0.4)
    axes = list(figure.subplots(1, len(cases), sharey=share, squeeze=False)[0])
    for letter, ax, title in zip("abcdefghijklmnopqrstuvwxyz", axes, cases, strict=False):
        ax.set_title(f"({letter}) {title}", fontsize=11)
    return figure, axes


def shared_legend(figure: Any, axes: Sequence[Any], ncols: int = 9) -> None:
    """One legend below all panels, with the entries of all of them."""
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


def ordered_colours(count: int) -> list[Any]:
    """Colours for an ordered sequence, dark first."""
    viridis = _matplotlib().colormaps["viridis"]
    return [viridis(0.88 * i / max(count - 1, 1)) for i in range(count)]


def integer_steps(ax: Any) -> None:
    """Ticks of the x axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    ax.spines[["top", "right"]].set_visible(False)
