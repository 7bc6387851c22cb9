"""``selfdistill-fast example``: the paper's illustrative example (Section 4.5)."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from selfdistill_fast.cli import console, report

__all__ = ["example"]

#: the eleven targets of Section 4.5 (those of Mobahi et al. 2020)
TARGETS = (
    0.38476636465198066,
    1.2333967683416893,
    1.33232242218057,
    0.69201594888895180,
    -0.29756145531871736,
    -0.24189291901377769,
    -0.7964485769175675,
    -0.9616480167034174,
    -0.49672509509916934,
    -0.3469066003991437,
    0.5589512650600734,
)
GAMMA = 80.0
LAM = 0.2


class FigureFormat(StrEnum):
    """Figure formats."""

    png = "png"
    svg = "svg"
    both = "both"


def example(
    out: Annotated[Path, typer.Option(help="Directory for the figures.")] = Path("figures"),
    format: Annotated[
        FigureFormat, typer.Option(help="Format of the figures.")
    ] = FigureFormat.both,
    steps: Annotated[int, typer.Option(help="Number of steps.", min=1)] = 6,
) -> None:
    """Run the paper's illustrative example (Section 4.5): losses, α*, Figures 2, 3 and 4."""
    from selfdistill_fast import RBF, distill, spectrum

    X, y = np.arange(11)[:, None] / 10, np.array(TARGETS)
    grid = np.arange(101)[:, None] / 100
    truth = np.sin(2 * np.pi * grid[:, 0])
    fitted = spectrum(X, y, RBF(GAMMA))
    paths = {f"{alpha:g}": distill(fitted, LAM, alpha, steps) for alpha in (0, 0.25, 0.35)}
    paths["α*"] = distill(fitted, LAM, "optimal", steps, X_val=grid, y_val=truth)
    _print_losses(paths, grid, truth)

    cases = {
        "α = 0": paths["0"],
        "α = 0.25": paths["0.25"],
        "step-wise optimal α*": paths["α*"],
    }
    suffixes = ("png", "svg") if format is FigureFormat.both else (format.value,)
    _draw(cases, (grid, X, y), truth, out, suffixes)


def _print_losses(paths: dict[str, Any], grid: np.ndarray, truth: np.ndarray) -> None:
    from selfdistill_fast._evaluation import has_limit

    steps = paths["α*"].n_steps
    out = console.out()
    out.print(
        f"Section 4.5: 11 points, RBF kernel with γ = {GAMMA:g}, λ = {LAM:g}.\n"
        "Loss: mean squared distance to sin(2πx) at x = 0, 0.01, …, 1.\n"
    )
    table = report.table("α", *(str(step) for step in range(1, steps + 1)), "∞")
    for name, path in paths.items():
        losses = np.mean((path.predict(grid, step="all") - truth) ** 2, axis=1)
        last = "–"
        if has_limit(path):
            last = _loss(np.mean((path.predict(grid, step=math.inf) - truth) ** 2))
        table.add_row(name, *map(_loss, losses), last)
    out.print(table)
    if steps > 1:
        out.print("\nStep-wise optimal α*, eq. (16), on the same 101 points:\n")
        table = report.table("step", *(str(step) for step in range(2, steps + 1)))
        table.add_row("α*", *(f"{alpha:.5f}" for alpha in paths["α*"].alphas[1:]))
        out.print(table)


def _loss(value: float) -> str:
    """Five digits as the paper prints them: .16477."""
    text = f"{value:.5f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def _draw(
    cases: dict[str, Any],
    points: tuple[np.ndarray, np.ndarray, np.ndarray],
    truth: np.ndarray,
    folder: Path,
    suffixes: tuple[str, ...],
) -> None:
    from selfdistill_fast.plotting import (
        figure_ratios,
        figure_shrinkage,
        figure_solutions,
        save_figure,
    )

    figures = {
        "figure2": figure_solutions(cases, *points, truth=truth),
        "figure3": figure_shrinkage(cases),
        "figure4": figure_ratios(cases),
    }
    out = console.out()
    out.print("\nFigures 2 (solutions), 3 (diagonals of B) and 4 (ratios):")
    for name, figure in figures.items():
        written = [save_figure(figure, folder / f"{name}.{suffix}") for suffix in suffixes]
        out.print("  " + "  ".join(map(str, written)), soft_wrap=True)
