"""Test error on UCI sets: what tuning without a validation set buys, and what it costs.

For each data set and each of its ten splits, with X and y standardised by the training rows,
one grid of γ × λ is tuned by

* ``krr loo``      kernel ridge regression (one step), exact leave-one-out;
* ``greedy loo``   self-distillation of 1..4 steps, optimal α's, exact leave-one-out;
* ``joint loo``    the same with joint weights;
* ``greedy val``   the same with α's, γ, λ and steps chosen on a fifth of the training rows,
                   which the model is then not fitted to;
* ``sklearn cv5``  GridSearchCV(KernelRidge, cv=5), one step.

Run ``python bench/uci_leave_one_out.py`` in an environment with the package; it looks for the
data in SELFDISTILL_DATA, or in ../shared/data beside the checkout, writes
bench/results/uci_leave_one_out.json after every split (and goes on from there when it is
started again), and prints the table; ``--table`` prints it without running anything. A study of
real sets: without them it says where they should be, and exits with status 1.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from data import split
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV

from selfdistill_fast import SelfDistilledKernelRidgeCV

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "uci_leave_one_out.json"
SETS = ("yacht", "housing", "energy", "concrete", "airfoil", "skillcraft")
LAMS = np.logspace(-4, 2, 10)
SCALES = (0.04, 0.2, 1.0, 5.0, 25.0)  # γ = scale / number of features
STEPS = 4
METHODS = ("krr loo", "greedy loo", "joint loo", "greedy val", "sklearn cv5")


def fit(method: str, X: np.ndarray, y: np.ndarray, seed: int):
    gammas = [scale / X.shape[1] for scale in SCALES]
    if method == "sklearn cv5":
        grid = {"alpha": LAMS, "gamma": gammas}
        search = GridSearchCV(
            KernelRidge(kernel="rbf"), grid, cv=5, scoring="neg_mean_squared_error"
        )
        return search.fit(X, y)
    model = SelfDistilledKernelRidgeCV(
        "rbf",
        lams=LAMS,
        gammas=gammas,
        alpha="joint" if method == "joint loo" else "optimal",
        max_steps=1 if method == "krr loo" else STEPS,
    )
    if method != "greedy val":
        return model.fit(X, y)
    order = np.random.default_rng(seed).permutation(len(X))
    val, rest = order[: len(X) // 5], order[len(X) // 5 :]
    return model.fit(X[rest], y[rest], X_val=X[val], y_val=y[val])


def run() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    done = {(row["set"], row["fold"]) for row in rows}
    for name in SETS:
        for fold in range(10):
            if (name, fold) in done:
                continue
            X, y, X_test, y_test = split(name, fold)
            row = {"set": name, "fold": fold, "n": len(X), "d": X.shape[1]}
            for method in METHODS:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # optima on the grid's edge, the same for all
                    start = time.perf_counter()
                    model = fit(method, X, y, fold)
                    seconds = time.perf_counter() - start
                error = float(np.sqrt(np.mean((model.predict(X_test) - y_test) ** 2)))
                row[method] = {"rmse": error, "seconds": seconds}
                if hasattr(model, "best_step_"):
                    row[method]["steps"] = model.best_step_
            rows.append(row)
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(rows, indent=1), encoding="utf-8")
            print(name, fold, flush=True)


def table() -> str:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = [
        "| set | n | " + " | ".join(METHODS) + " | seconds: " + " / ".join(METHODS) + " |",
        "|---|---|" + "---|" * (len(METHODS) + 1),
    ]
    for name in SETS:
        own = [row for row in rows if row["set"] == name]
        if not own:
            continue
        base = np.array([row["krr loo"]["rmse"] for row in own])
        cells = []
        for method in METHODS:
            errors = np.array([row[method]["rmse"] for row in own])
            gain = errors - base  # paired over splits
            cell = f"{errors.mean():.4f}"
            if method != "krr loo":
                se = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.nan
                cell += (
                    f" ({100 * gain.mean() / base.mean():+.1f} ± {100 * se / base.mean():.1f} %)"
                )
            cells.append(cell)
        seconds = " / ".join(
            f"{np.median([row[method]['seconds'] for row in own]):.2g}" for method in METHODS
        )
        lines.append(f"| {name} | {own[0]['n']} | " + " | ".join(cells) + f" | {seconds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the table only")
    if not parser.parse_args().table:
        run()
    print(table())
