"""Figures: solutions, shrinkage and ratios of a distillation path; errors over its steps.

Figures 2, 3 and 4 of the paper are :func:`figure_solutions`, :func:`figure_shrinkage` and
:func:`figure_ratios` of the three cases α = 0, α = 0.25 and step-wise α*. Each has a panel
per path; the single panels are ``plot_solutions``, ``plot_shrinkage`` and ``plot_ratios``.
:func:`figure_errors` draws error against step, :func:`figure_sweep` a grid of λ and steps,
:func:`figure_training` (Figure 5) the accuracies of chains of networks.

Matplotlib (the ``cli`` extra) is imported inside the functions, through its object-oriented
interface only: no window, no global state, safe without a display. The functions return the
figure or the axes that they drew; :func:`save_figure` writes a file.
"""

from __future__ import annotations

from selfdistill_fast.plotting.chains import (
    figure_constrained,
    figure_errors,
    figure_ratios,
    figure_shrinkage,
    figure_solutions,
    plot_ratios,
    plot_shrinkage,
    plot_solutions,
)
from selfdistill_fast.plotting.grids import figure_sweep, plot_cv
from selfdistill_fast.plotting.style import figure_format, save_figure
from selfdistill_fast.plotting.training import figure_training

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
