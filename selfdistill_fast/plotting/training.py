"""The figure of chains of networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from selfdistill_fast.plotting.style import (
    HEIGHT,
    VERMILION,
    WIDTH,
    integer_steps,
    new_figure,
    ordered_colours,
    shared_legend,
)

__all__ = ["figure_training"]


def figure_training(
    chains: Mapping[str, Mapping[str, Any]], *, optimal: str = "α̂", title: str = ""
) -> Any:
    """Figure 5: training and validation accuracy over the steps, one line for each α.

    Lines are means over the seeds; shading spans their minimum to their maximum. Fixed α's have
    ordered colours; the estimated one has a distinct colour.

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
    figure = new_figure(2 * WIDTH + 0.6, HEIGHT + 0.6)
    axes = list(figure.subplots(1, 2))
    fixed = [label for label in chains if label != optimal]
    colours = dict(zip(fixed, ordered_colours(len(fixed)), strict=True))
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
        integer_steps(ax)
    if seeds > 1:
        axes[0].set_ylabel(f"mean and range over {seeds} seeds")
    if title:
        figure.suptitle(title, fontsize=11)
    shared_legend(figure, axes, ncols=6)
    return figure
