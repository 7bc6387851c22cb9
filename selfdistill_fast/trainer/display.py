"""Progress of a run on a console."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

__all__ = ["Display"]

_QUIET = 30.0  # seconds between lines, without a terminal


class Display:
    """Progress of a run on a console: a bar with the time left, or lines without a terminal.

    Parameters
    ----------
    console : rich.console.Console

    Attributes
    ----------
    speaks : bool
        Whether this process is the one that reports.
    """

    def __init__(self, console: Any) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console, self.said = console, 0.0
        self.speaks = int(os.environ.get("RANK", "0")) == 0
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            # epochs have similar lengths, so the estimate uses a long history
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=3600,
        )
        self.task: Any = None

    def __enter__(self) -> Display:
        if self.speaks and self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def __call__(self, about: dict[str, Any]) -> None:
        """Show an event of :func:`~selfdistill_fast.trainer.experiment.run`."""
        event = about["event"]
        if event == "plan":
            self.task = self.progress.add_task("", total=about["fits"] * about["epochs"])
            return
        where = f"seed {about['seed']} {about['chain']} step {about['step']}"
        if about["role"] == "student":
            where += " (α = 0)"
        if event == "begin" and about["history"]:
            self._line(f"{where}: continues after epoch {len(about['history'])}")
        if event in ("begin", "restored"):
            self.progress.advance(self.task, len(about["history"]))
        if event in ("batch", "epoch"):
            text = f"epoch {about['epoch']}/{about['epochs']}  loss {about['loss']:.4f}"
            if event == "batch":
                text += f"  batch {about['batch']}/{about['batches']}"
            else:
                text += (
                    f"  accuracy {about['accuracy']:.3f}, validation {about['val_accuracy']:.3f}"
                )
                self.progress.advance(self.task)
            text += f"  {about['images_per_second']:.0f} img/s"
            self.progress.update(self.task, description=f"{where}  {text}")
            last = event == "epoch" and about["epoch"] == about["epochs"]
            if last or (not self.console.is_terminal and time.monotonic() - self.said > _QUIET):
                self._line(f"{where}  {text}")

    def _line(self, text: str) -> None:
        self.said = time.monotonic()
        if not self.progress.finished and self.task is not None:
            left = self.progress.tasks[self.task].time_remaining
            if left is not None and not self.console.is_terminal:
                text += f"  {timedelta(seconds=round(left))} left"
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
