"""Accuracy of the classifiers beside scikit-learn's on the tables that scikit-learn ships.

Five stratified splits of each table, features standardised by the training rows (pixels of digits
divided by 16). All choose by the training rows alone:

* ``ours``         SelfDistilledKernelRidgeClassifierCV: γ, λ, α and 1..4 steps by exact
                   leave-one-out accuracy;
* ``one step``     the same with one step: kernel ridge regression of one-hot targets;
* ``KernelRidge``  scikit-learn's, on one-hot targets, GridSearchCV over the same γ and λ, cv=5;
* ``SVC``          GridSearchCV over the same γ and C = 1 / λ, cv=5;
* ``RidgeClassifierCV``  scikit-learn's linear one, λ by leave-one-out.

Run ``python bench/classifiers.py``; it writes bench/results/classifiers.json and prints the table
(``--table`` prints it without running anything).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from selfdistill_fast import SelfDistilledKernelRidgeClassifierCV

RESULTS = Path(__file__).resolve().parent / "results" / "classifiers.json"
TABLES = {
    "digits": load_digits,
    "breast cancer": load_breast_cancer,
    "wine": load_wine,
    "iris": load_iris,
}
LAMS = np.logspace(-4, 1, 6)
SCALES = (0.1, 0.3, 1.0, 3.0)  # γ = scale / (number of features · their variance)


def by_class(y: np.ndarray, F: np.ndarray) -> float:
    """Accuracy of one-hot predictions."""
    return float(np.mean(y.argmax(1) == F.argmax(1)))


def methods(gammas):
    grid = {"kernel": "rbf", "lams": LAMS, "gammas": gammas}
    search = {"gamma": gammas}
    yield "ours", SelfDistilledKernelRidgeClassifierCV(**grid), False
    yield "one step", SelfDistilledKernelRidgeClassifierCV(max_steps=1, **grid), False
    yield (
        "KernelRidge",
        GridSearchCV(
            KernelRidge(kernel="rbf"),
            {**search, "alpha": LAMS},
            scoring=make_scorer(by_class),
            cv=5,
        ),
        True,
    )
    yield "SVC", GridSearchCV(SVC(), {**search, "C": 1.0 / LAMS}, cv=5), False
    yield "RidgeClassifierCV", RidgeClassifierCV(alphas=np.logspace(-4, 4, 9)), False


def run() -> None:
    rows = []
    for name, load in TABLES.items():
        X, y = load(return_X_y=True)
        for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(X, y):
            if name == "digits":
                A, B = X[train] / 16, X[test] / 16
            else:
                scale = StandardScaler().fit(X[train])
                A, B = scale.transform(X[train]), scale.transform(X[test])
            row = {"table": name, "n": len(A)}
            gammas = [s / (X.shape[1] * A.var()) for s in SCALES]
            for method, model, one_hot in methods(gammas):
                targets = np.eye(y.max() + 1)[y[train]] if one_hot else y[train]
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # optima on the grid's edge, the same for all
                    start = time.perf_counter()
                    model.fit(A, targets)
                    seconds = time.perf_counter() - start
                predicted = model.predict(B)
                predicted = predicted.argmax(1) if one_hot else predicted
                row[method] = {"accuracy": float(np.mean(predicted == y[test])), "seconds": seconds}
            rows.append(row)
            print(name, flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def table() -> str:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    names = [name for name in rows[0] if name not in ("table", "n")]
    lines = [
        "| table | n | " + " | ".join(names) + " | seconds: " + " / ".join(names) + " |",
        "|---|--:|" + "--:|" * len(names) + "---|",
    ]
    for name in TABLES:
        own = [row for row in rows if row["table"] == name]
        cells, seconds = [], []
        for method in names:
            scores = np.array([row[method]["accuracy"] for row in own])
            cells.append(f"{scores.mean():.4f} ± {scores.std(ddof=1) / np.sqrt(len(own)):.4f}")
            seconds.append(f"{np.median([row[method]['seconds'] for row in own]):.2g}")
        lines.append(
            f"| {name} | {own[0]['n']} | " + " | ".join(cells) + f" | {' / '.join(seconds)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the table only")
    if not parser.parse_args().table:
        run()
    print(table())
