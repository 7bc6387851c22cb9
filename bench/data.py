"""Data of the benchmarks: UCI sets where they are, and a stand-in for kin40k where they are not.

The UCI sets are looked for in SELFDISTILL_DATA, or in ../shared/data beside the checkout.

kin40k is a robot arm of eight links: eight joint angles, uniform, and one distance. So is the
stand-in, an arm in the plane with links of length 1 whose joints turn by θ_j ∈ [-π/2, π/2]:

    y = ‖(Σ_k cos(θ_1 + … + θ_k), Σ_k sin(θ_1 + … + θ_k), 0) − (2, 2, 1)‖ + noise,

the noise with 2 % of the deviation of y. README.md says how well the two agree.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def uci_folder() -> Path:
    """Where the UCI sets should be."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("SELFDISTILL_DATA", beside)) / "uci"


def split(name: str, fold: int) -> tuple[np.ndarray, ...]:
    """X, y, X_test, y_test of a UCI set; exits with what to do where it is absent."""
    folder = uci_folder() / name
    if not folder.is_dir():
        raise SystemExit(
            f"no data in {folder}: set SELFDISTILL_DATA to the folder that holds uci/{name}/ "
            "with data.csv.gz (target last) and test_mask.csv.gz (a column for each split)"
        )
    table = np.loadtxt(folder / "data.csv.gz", delimiter=",")
    test = np.loadtxt(folder / "test_mask.csv.gz", delimiter=",")[:, fold] == 1
    return standardised(table, test)


def kin40k_or_stand_in() -> str:
    """Which of the two kin40k() gives, in words for tables and results."""
    return "kin40k" if (uci_folder() / "kin40k").is_dir() else "stand-in for kin40k"


def kin40k() -> tuple[np.ndarray, ...]:
    """X, y, X_test, y_test of split 0 of kin40k, or of its stand-in."""
    return split("kin40k", 0) if kin40k_or_stand_in() == "kin40k" else stand_in()


def stand_in() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    angles = rng.uniform(-np.pi / 2, np.pi / 2, size=(40000, 8))
    links = np.cumsum(angles, axis=1)  # the direction of each
    x, y = np.cos(links).sum(1), np.sin(links).sum(1)
    distance = np.sqrt((x - 2) ** 2 + (y - 2) ** 2 + 1)
    distance += 0.02 * distance.std() * rng.normal(size=len(distance))
    test = np.arange(len(distance)) >= 36000
    return standardised(np.column_stack([angles, distance]), test)


def standardised(table: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, ...]:
    """By the mean and the deviation of the training rows."""
    mean, std = table[~test].mean(0), table[~test].std(0)
    table = (table - mean) / np.where(std > 0, std, 1.0)
    return table[~test, :-1], table[~test, -1], table[test, :-1], table[test, -1]
