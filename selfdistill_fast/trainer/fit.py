"""One fit: its identity, its results, and its files."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfdistill_fast.trainer.checkpoint import read

__all__ = ["COLUMNS", "Fit", "Log", "Task", "check_same_alpha", "finished"]

#: columns of the log of a fit, with one row per epoch
COLUMNS = (
    "epoch",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "seconds",
    "images_per_second",
)


@dataclass
class Fit:
    """One trained network and its results.

    Attributes
    ----------
    step : int
        Step of the chain, from 1.
    role : "step" or "student"
        "student": the fit with α = 0 that estimates α̂ and is then discarded.
    alpha : float
        Weight of the ground truth; NaN for step 1.
    seed : int
        Seed of initial weights, order, augmentation and dropout.
    state : dict of name to tensor
        Weights and buffers after the last epoch, on the CPU; empty for a student.
    train_predictions, val_predictions : ndarray of shape (n, p) and (m, p)
        Outputs after the last epoch, without augmentation; None without validation data.
    train_loss, val_loss : float
        Mean loss against the ground truth, without the penalty.
    train_accuracy, val_accuracy : float
        NaN for regression.
    seconds : float
        Time of all epochs, excluding checkpoints.
    images_per_second : float
        Training rows divided by the time of the training passes, excluding validation.
    history : list of dict
        One row per epoch: mean objective (18) and accuracy over the training batches during the
        epoch, loss and accuracy on the validation data.
    """

    step: int
    role: str
    alpha: float
    seed: int
    train_predictions: np.ndarray
    val_predictions: np.ndarray | None
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    images_per_second: float
    history: list[dict[str, float]]
    state: dict[str, torch.Tensor] = field(repr=False, default_factory=dict)

    def stored(self) -> dict[str, Any]:
        """Tensors and plain values, for a file."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("train_predictions", "val_predictions"):
            if content[name] is not None:
                content[name] = torch.from_numpy(content[name])
        return content

    @classmethod
    def restored(cls, content: dict[str, Any]) -> Fit:
        """The inverse of :meth:`stored`."""
        for name in ("train_predictions", "val_predictions"):
            if content[name] is not None:
                content[name] = content[name].numpy()
        return cls(**content)


@dataclass(frozen=True)
class Task:
    """A fit to be made; the fields are those of :class:`Fit`.

    ``directory`` is for ``checkpoint.pt``, ``fit.pt`` (when done) and ``log.csv``, or None.
    """

    step: int
    role: str
    alpha: float
    seed: int
    directory: Path | None

    def __str__(self) -> str:
        if self.step == 1:
            return "step 1"
        what = "student with α = 0" if self.role == "student" else f"α = {self.alpha:g}"
        return f"step {self.step}, {what}"


def finished(directory: Path) -> dict[str, Any] | None:
    """The stored fit of a directory; None if it is not finished."""
    done = read(directory / "fit.pt")
    if done is not None:  # a kill may have happened between the two
        (directory / "checkpoint.pt").unlink(missing_ok=True)
    return done


def check_same_alpha(before: float, now: float, directory: Path) -> None:
    """ValueError if a directory holds a fit with another α."""
    if before != now and not (math.isnan(before) and math.isnan(now)):
        raise ValueError(
            f"{directory} holds a fit with α = {before!r}, now α = {now!r}. Use another "
            "directory, or the same settings to continue it"
        )


class Log:
    """log.csv: rewritten from the checkpoint's history, then one row per epoch."""

    def __init__(self, path: Path, history: Sequence[dict[str, float]]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writeheader()
        for row in history:
            self.add(row)

    def add(self, row: dict[str, float]) -> None:
        """Append the row of an epoch."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow({name: row[name] for name in COLUMNS})
