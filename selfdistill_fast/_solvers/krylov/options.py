"""Options of a run, and how K is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdistill_fast._gram import native_diagonal
from selfdistill_fast._solvers.problem import TrainingSet
from selfdistill_fast._validation import check_lam, check_n_steps, check_tol
from selfdistill_fast.kernels import Kernel

__all__ = ["KrylovOptions", "automatic_storage", "check_storage"]

#: how K is stored: packed in one of two precisions, or not at all
STORAGES = ("auto", "float64", "float32", "none")


@dataclass(frozen=True)
class KrylovOptions:
    """Options of "krylov"; see :func:`~selfdistill_fast.spectrum`."""

    lam_min: Any = None
    n_steps: Any = 6
    tol: Any = None
    max_rank: Any = None
    storage: str = "auto"

    def __post_init__(self) -> None:
        if self.lam_min is not None:
            check_lam(self.lam_min, batch=False)
        check_n_steps(self.n_steps)
        if self.tol is not None:
            check_tol(self.tol)
        if self.max_rank is not None:
            check_n_steps(self.max_rank, "max_rank")
        if self.storage not in STORAGES:
            raise ValueError(f"unknown storage {self.storage!r}; known: {', '.join(STORAGES)}")


def check_storage(storage: str, kernel: Kernel, dtype: Any) -> None:
    """ValueError for a storage that rows of ``dtype``, or a kernel, cannot have."""
    if storage == "float64" and dtype == np.float32:
        raise ValueError("storage='float64' needs float64 rows; X is float32")
    if storage == "none" and not kernel.pair:
        raise ValueError(f"{kernel!r} cannot be recomputed: use a storage other than 'none'")


def automatic_storage(training: TrainingSet, fits: list[str], lam: float, tol: float) -> str:
    """How to store K: the first of ``fits`` (within the budget) whose precision suffices."""
    widest = str(training.dtype)
    if widest in fits or not training.kernel.pair:
        return widest
    # entries rounded to float32 perturb the residual by at most 2⁻²⁴ ‖K‖ ‖c‖, ‖c‖ <= ‖t‖/λ
    n = training.n_kept
    size = float(native_diagonal(training.backend, training.X, training.kernel).max())
    perturbation = 2.0**-24 * n * size / lam / (2.0 * lam**0.5) * (n * size) ** 0.5
    return "float32" if fits and perturbation <= 0.5 * tol else "none"
