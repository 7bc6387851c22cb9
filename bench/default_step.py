"""Which step should predict? Test error of the last step, the best one and the joint optimum.

For each of ten UCI sets and each of its ten splits, with X and y standardised by the training rows
(of which at most 1500 are used), a chain of four steps with an RBF kernel is fitted

* ``tuned``    with the γ and λ that are best for one step by exact leave-one-out;
* ``default``  with the estimator's γ = 1 / (number of features) and λ = 1.

``last`` is the fourth step of alpha="optimal", ``best`` its step of the smallest leave-one-out
error, ``joint`` the last step of alpha="joint", and ``joint best`` its number of steps by
leave-one-out. Everything is relative to the first step, ridge regression.

Run ``python bench/default_step.py`` in an environment with the package; it looks for the data in
SELFDISTILL_DATA, or in ../shared/data beside the checkout, writes bench/results/default_step.json
after every split (and continues from there when it is started again), and prints the table;
``--table`` prints it without running anything.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from data import split

from selfdistill_fast import RBF, distill, spectrum
from selfdistill_fast._chain.selection import score_grid

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "default_step.json"
SETS = (
    "yacht", "housing", "energy", "concrete", "airfoil", "skillcraft", "sml", "pol", "elevators",
    "kin40k",
)  # fmt: skip
LAMS = np.logspace(-4, 2, 10)
SCALES = (0.04, 0.2, 1.0, 5.0, 25.0)  # γ = scale / number of features
STEPS, ROWS = 4, 1500
METHODS = ("last", "best", "joint", "joint best")


def tuned(X: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """γ and λ of the smallest leave-one-out error of one step."""
    best = (np.inf, 0.0, 0.0)
    for scale in SCALES:
        gamma = scale / X.shape[1]
        mse = score_grid(spectrum(X, y, RBF(gamma), solver="eigh"), LAMS, 0.0, 1)["mse"][:, 0]
        best = min(best, (float(mse.min()), gamma, float(LAMS[mse.argmin()])))
    return best[1:]


def errors(X, y, X_test, y_test, gamma: float, lam: float) -> dict[str, float]:
    """Test RMSE of the first step and of each method, and the best steps."""
    s = spectrum(X, y, RBF(gamma), solver="eigh")
    greedy, joint = (distill(s, lam, alpha, STEPS) for alpha in ("optimal", "joint"))
    few = joint.selection["best_step"]
    fewer = joint if few == STEPS else distill(s, lam, "joint", few)
    models = {
        "first": (greedy, 1),
        "last": (greedy, STEPS),
        "best": (greedy, greedy.selection["best_step"]),
        "joint": (joint, STEPS),
        "joint best": (fewer, few),
    }
    found = {
        name: float(np.sqrt(np.mean((path.predict(X_test, step=step) - y_test) ** 2)))
        for name, (path, step) in models.items()
    }
    return {**found, "best step": greedy.selection["best_step"], "joint best step": few}


def run() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    done = {(row["set"], row["fold"]) for row in rows}
    for name in SETS:
        for fold in range(10):
            if (name, fold) in done:
                continue
            X, y, X_test, y_test = split(name, fold)
            chosen = np.random.default_rng(fold).permutation(len(X))[:ROWS]
            X, y = X[chosen], y[chosen]
            row = {"set": name, "fold": fold, "n": len(X), "d": X.shape[1]}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joint weights whose gain is noise
                row["tuned"] = errors(X, y, X_test, y_test, *tuned(X, y))
                row["default"] = errors(X, y, X_test, y_test, 1.0 / X.shape[1], 1.0)
            rows.append(row)
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(name, fold, flush=True)


def table() -> str:
    """Change of the test RMSE against one step, in per cent, with its standard error."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = [
        "| γ, λ | set | n | first | " + " | ".join(METHODS) + " |",
        "|---|---|--:|--:|" + "--:|" * len(METHODS),
    ]
    for setting in ("tuned", "default"):
        means = []
        for name in SETS:
            own = [row for row in rows if row["set"] == name]
            if not own:
                continue
            first = np.array([row[setting]["first"] for row in own])
            gains = np.array([[row[setting][method] for method in METHODS] for row in own])
            gains = 100.0 * (gains - first[:, None]) / first.mean()
            se = gains.std(0, ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else gains[0] * np.nan
            means.append(gains.mean(0))
            cells = [f"{g:+.2f} ± {e:.2f} %" for g, e in zip(gains.mean(0), se, strict=True)]
            lines.append(
                f"| {setting} | {name} | {own[0]['n']} | {first.mean():.4f} | "
                + " | ".join(cells)
                + " |"
            )
        mean = " | ".join(f"{m:+.2f} %" for m in np.mean(means, 0))
        lines.append(f"| {setting} | mean | | | {mean} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the table only")
    if not parser.parse_args().table:
        run()
    print(table())
