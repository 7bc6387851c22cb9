"""Test error and time of landmark models on the two largest UCI sets, beside scikit-learn.

For keggdirected and protein (split 0 in full, X and y standardised by the training rows), an
RBF kernel and m = 1000, 2000, 4000 landmarks:

* ``scikit-learn``  Nystroem(n_components=m), then one Ridge for each λ, as a user would: one
                    step only. For α = 0 its later steps would be as many refits again, and for
                    α's as many as there are sequences;
* ``auto``          solver="nystrom": every λ and the pure steps 1..6, which answer every
                    α-sequence;
* ``rpcholesky``, ``uniform``, ``kmeans``  the same with that sampling; ``auto``, the default, is
                    one of the first and the last, by a pilot on held-out rows;
* ``krylov``        the exact answer for the same γ (once for each set), of the cells that it
                    certifies to 0.001 (y has variance 1).

Time is from the training rows to the test predictions of the whole grid: λ by scikit-learn, λ × τ
by us. RMSE is that of the best cell on the test set, for everybody; ``step 1`` is the best of the
first step alone, the same model class as scikit-learn's; ``loo`` is the cell that the exact
leave-one-out error of the training rows picks (--loo; timed by itself).

γ = scale / number of features, with the scale of the smallest error of ``auto`` on a held-out
fifth of the training rows, at m = 2000; the errors are stored with the results. Seeds 0..2,
medians.

Run ``python bench/nystrom_uci.py`` in an environment with the package; it looks for the data in
SELFDISTILL_DATA, or in ../shared/data beside the checkout, writes bench/results/nystrom_uci.json
after every model (and goes on from there when it is started again), and prints the table;
``--table`` prints it without running anything, ``--landmarks 250 500`` and ``--rows 5000`` make it
small, for a look (stored elsewhere). scikit-learn runs in a process of its own; where it fails, its
row says how. A study of real sets: without them it says where they should be, and exits with
status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import child
import numpy as np
from data import split
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge

from selfdistill_fast import RBF, spectrum
from selfdistill_fast._chain.selection import score_grid

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "nystrom_uci.json"
SETS = ("keggdirected", "protein")
LANDMARKS = (1000, 2000, 4000)
LAMS = np.logspace(-4, 2, 10)
STEPS = 6
SCALES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SAMPLINGS = ("auto", "rpcholesky", "uniform", "kmeans")
CERTIFIED = 1e-3  # error of a cell of krylov, at most
SEEDS = (0, 1, 2)


def rmse(predictions: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean((predictions - y) ** 2, axis=-1))


def load(name: str, rows: int | None) -> tuple[np.ndarray, ...]:
    """Split 0, or some rows of it."""
    X, y, X_test, y_test = split(name, 0)
    chosen = np.random.default_rng(0).permutation(len(X))[:rows] if rows else slice(None)
    return X[chosen], y[chosen], X_test, y_test


def scikit_learn(name: str, rows: int | None, gamma: float, m: int, seed: int) -> dict[str, Any]:
    X, y, X_test, y_test = load(name, rows)
    start = time.perf_counter()
    features = Nystroem(kernel="rbf", gamma=gamma, n_components=m, random_state=seed)
    Phi, Phi_test = features.fit_transform(X), features.transform(X_test)
    F = np.stack([Ridge(alpha=lam).fit(Phi, y).predict(Phi_test) for lam in LAMS])
    seconds = time.perf_counter() - start
    errors = rmse(F, y_test)
    best = int(errors.argmin())
    return {"seconds": seconds, "rmse": float(errors[best]), "lam": float(LAMS[best]), "step": 1}


def cells(
    fitted: Any, X_test: np.ndarray, y_test: np.ndarray, start: float, lams: np.ndarray = LAMS
) -> dict[str, Any]:
    """Errors of the grid of a spectrum, and the time from ``start`` to its predictions."""
    pure = fitted.pure_steps(lams, STEPS)
    F = fitted.evaluate(X_test, pure.reshape(-1, *pure.shape[2:]))[..., 0]
    seconds = time.perf_counter() - start
    errors = rmse(F, y_test).reshape(len(lams), STEPS)
    row, step = np.unravel_index(errors.argmin(), errors.shape)
    return {
        "seconds": seconds,
        "rmse": float(errors[row, step]),
        "lam": float(lams[row]),
        "step": int(step) + 1,
        "rmse_step_1": float(errors[:, 0].min()),
        "errors": errors.tolist(),
    }


def ours(
    data: tuple, gamma: float, m: int, seed: int, sampling: str, held_out: bool
) -> dict[str, Any]:
    X, y, X_test, y_test = data
    start = time.perf_counter()
    fitted = spectrum(
        X,
        y,
        RBF(gamma),
        solver="nystrom",
        n_landmarks=m,
        sampling=sampling,
        random_state=seed,
        fit_intercept=True,
    )
    fit_seconds = time.perf_counter() - start
    result = cells(fitted, X_test, y_test, start)
    result |= {"fit_seconds": fit_seconds, "approximation_error": fitted.approximation_error}
    result["sampling"] = fitted.sampling
    if held_out:
        start = time.perf_counter()
        mse = score_grid(fitted, LAMS, 0.0, STEPS)["mse"]
        row, step = np.unravel_index(mse.argmin(), mse.shape)
        result |= {
            "loo_seconds": time.perf_counter() - start,
            "loo": float(np.sqrt(mse[row, step])),
            "rmse_loo": result["errors"][row][step],
        }
    return result


def krylov(data: tuple, gamma: float) -> dict[str, Any]:
    """The best of the cells whose certificate is small enough."""
    X, y, X_test, y_test = data
    tol = CERTIFIED / float(np.abs(y - y.mean()).max())
    start = time.perf_counter()
    with warnings.catch_warnings():  # of the λ below which it is not certified: seen below
        warnings.simplefilter("ignore", RuntimeWarning)
        fitted = spectrum(
            X, y, RBF(gamma), solver="krylov", lam=LAMS, n_steps=STEPS, tol=tol, fit_intercept=True
        )
    seconds = time.perf_counter() - start
    bounds = fitted.certificate(LAMS, STEPS)[..., 0]
    certified = bounds.max(1) <= CERTIFIED
    result = cells(fitted, X_test, y_test, start, LAMS[certified])
    smallest = float(LAMS[certified].min())
    return result | {"seconds": seconds, "rank": fitted.k, "smallest_certified_lam": smallest}


def choose(data: tuple) -> dict[str, Any]:
    """γ of the least validation error, and all those errors."""
    X, y = data[:2]
    order = np.random.default_rng(0).permutation(len(X))
    held, rest = order[: len(X) // 5], order[len(X) // 5 :]
    fold = X[rest], y[rest], X[held], y[held]
    m = min(2000, len(rest) // 10)
    errors = {
        str(scale): ours(fold, scale / X.shape[1], m, 0, "auto", False)["rmse"] for scale in SCALES
    }
    scale = float(min(errors, key=errors.__getitem__))
    return {"gamma": scale / X.shape[1], "validation": errors}


def run(path: Path, args: argparse.Namespace) -> None:
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def store() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(stored, indent=1), encoding="utf-8")
        os.replace(aside, path)

    for name in SETS:
        data = load(name, args.rows)
        entry = stored.setdefault(name, {"n": len(data[0]), "d": data[0].shape[1], "models": {}})
        if "gamma" not in entry:
            entry |= choose(data)
            store()
        models = entry["models"]
        if args.krylov and "krylov" not in models:
            models["krylov"] = krylov(data, entry["gamma"])
            store()
        for m in args.landmarks:
            for seed in SEEDS[: args.seeds]:
                for method in ("scikit-learn", *SAMPLINGS):
                    key = f"{method} {m} {seed}"
                    done = models.get(key, {})
                    held_out = args.loo and method != "scikit-learn" and "loo" not in done
                    if done and "failed" not in done and not held_out:
                        continue
                    if method == "scikit-learn":
                        job = name, args.rows, entry["gamma"], m, seed
                        row = child.outcome(scikit_learn, *job)
                        row = {"failed": row} if isinstance(row, str) else row
                    else:
                        row = ours(data, entry["gamma"], m, seed, method, args.loo)
                    models[key] = row
                    store()
                    said = row.get("failed") or f"{row['rmse']:.4f}, {row['seconds']:.1f} s"
                    print(f"{name} {key}: {said}", flush=True)


def named(method: str, rows: list[dict[str, Any]]) -> str:
    """A method, with what it chose."""
    return (
        f"auto: {', '.join(sorted({row['sampling'] for row in rows}))}"
        if method == "auto"
        else method
    )


def table(path: Path) -> str:
    stored = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for name, entry in stored.items():
        models = entry["models"]
        lines += [
            f"\n**{name}**, n = {entry['n']}, d = {entry['d']}, γ = {entry['gamma']:.4g}",
            "",
            "| m | | test RMSE | step 1 | picked by loo | seconds | ratio | tr(K − K̂)/tr K |",
            "|---|---|---|---|---|---|---|---|",
        ]
        if "krylov" in models:
            row = models["krylov"]
            lines.append(
                f"| n | krylov, exact | {row['rmse']:.4f} | {row['rmse_step_1']:.4f} | – "
                f"| {row['seconds']:.1f} | – | 0 |"
            )
        for m in sorted({int(key.split()[1]) for key in models if key != "krylov"}):
            rows = {
                method: [v for k, v in models.items() if k.startswith(f"{method} {m} ")]
                for method in ("scikit-learn", *SAMPLINGS)
            }
            failed = [row["failed"] for row in rows["scikit-learn"] if "failed" in row]
            if failed:
                lines.append(f"| {m} | scikit-learn | {', '.join(failed)} | | | | | |")
                rows["scikit-learn"] = [v for v in rows["scikit-learn"] if "failed" not in v]
            times = [row["seconds"] for row in rows["scikit-learn"]]
            peer = np.median(times) if times else np.nan
            for method, own in rows.items():
                if not own:
                    continue

                def middle(field: str, own: list[dict[str, Any]] = own) -> float:
                    return float(np.median([row.get(field, np.nan) for row in own]))

                seconds = middle("seconds")
                cells = [
                    str(m),
                    named(method, own),
                    f"{middle('rmse'):.4f}",
                    f"{middle('rmse_step_1' if method in SAMPLINGS else 'rmse'):.4f}",
                    f"{middle('rmse_loo'):.4f}" if "rmse_loo" in own[0] else "–",
                    f"{seconds:.1f}",
                    f"{peer / seconds:.1f}×" if method in SAMPLINGS and times else "",
                    f"{middle('approximation_error'):.1e}" if method in SAMPLINGS else "",
                ]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the table only")
    parser.add_argument("--krylov", action="store_true", help="the exact answer, too")
    parser.add_argument(
        "--loo", action="store_true", help="exact leave-one-out of every model, too"
    )
    parser.add_argument("--landmarks", type=int, nargs="+", default=LANDMARKS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--rows", type=int, help="training rows of a small run")
    parser.add_argument("--store", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.rows and args.store == RESULTS:
        args.store = RESULTS.with_name(f"nystrom_uci_{args.rows}.json")
    if not args.table:
        run(args.store, args)
    print(table(args.store))
