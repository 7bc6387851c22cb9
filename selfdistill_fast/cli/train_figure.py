"""``selfdistill-fast train-figure``: Figure 5 from runs of ``train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfdistill_fast.cli import console, report
from selfdistill_fast.cli.options import check_outputs

__all__ = ["train_figure"]


def train_figure(
    runs: Annotated[
        list[Path], typer.Argument(help="Directories written by train.", metavar="RUNS")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Figure (.png, .svg, .pdf). [default: figure5.png in the first run]"),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the figure.")] = "",
) -> None:
    """Draw Figure 5: accuracy over the steps, one line per α and one for α̂.

    Lines are means over the seeds; shading spans the smallest to the largest value. A run that
    is still training is drawn up to its current step.
    """
    from selfdistill_fast.plotting import figure_format, figure_training, save_figure
    from selfdistill_fast.trainer.experiment import accuracies

    out = out or runs[0] / "figure5.png"
    check_outputs(out)
    figure_format(out)
    chains = accuracies(runs)
    save_figure(figure_training(chains, title=title), out)
    report.print_chains(chains)
    console.say(f"figure written to {out}")
