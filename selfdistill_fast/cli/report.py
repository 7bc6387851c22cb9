"""The output of the commands: tables for the console, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from selfdistill_fast._files import replacing
from selfdistill_fast.cli import console

__all__ = ["SETS", "print_chains", "print_fit", "print_sweep", "table", "to_json", "write_text"]

#: what errors are called, in JSON and in words
SETS = {"train": "training", "loo": "leave-one-out", "val": "validation", "test": "test"}


def table(*columns: str) -> Table:
    """An empty table of right-justified columns."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    return made


def _alpha(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_alpha, value))
    return "–" if value is None or math.isnan(value) else f"{value:.5g}"


def _number(value: float | None, digits: int = 7) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:#.{digits}g}".rstrip(".")


# --------------------------------------------------------------------- JSON
def to_json(results: dict[str, Any]) -> str:
    """Results as JSON; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_jsonable(results), indent=2, allow_nan=False, ensure_ascii=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------- tables
def print_fit(results: dict[str, Any], kernel: Any) -> None:
    """The results of ``fit``: a row for each step, in bold the best by leave-one-out."""
    out = console.out()
    counts = [
        f"{results[f'n_{key}']} {SETS[key]} rows"
        for key in ("train", "val", "test")
        if f"n_{key}" in results
    ]
    names = results["targets"]
    out.print(
        f"{results['data']}: {', '.join(counts)}, {results['n_features']} features; "
        f"target{'s' if len(names) > 1 else ''} {', '.join(names)}",
        markup=False,
        soft_wrap=True,
    )
    chosen_on = "validation rows" if "n_val" in results else "exact leave-one-out"
    about = f", α chosen on {chosen_on}" if isinstance(results["alpha"], str) else ""
    out.print(
        f"{kernel!r}, λ = {results['lam']:g}{about}; solver {results['solver']}\n",
        markup=False,
        soft_wrap=True,
    )

    sets = [(f"{name}_rmse", word) for name, word in SETS.items()]
    sets = [(key, word) for key, word in sets if key in results["steps"][0]]
    rows = table("step", "α", *(word for _, word in sets), "eff. dof")
    best = results["best_step_by_loo"]
    for row in results["steps"]:
        rows.add_row(
            str(row["step"]),
            _alpha(row["alpha"]),
            *(_number(row[key]) for key, _ in sets),
            _number(row["dof"], 5),
            style="bold" if row["step"] == best else None,
        )
    limit = results["limit"]
    if limit is not None:
        errors = (_number(limit.get(key)) for key, _ in sets)
        rows.add_row("∞", "", *errors, _number(limit.get("dof"), 5))
    out.print(rows)
    summary = "\nRoot mean squared errors."
    if best is not None:
        summary += f" Best step by leave-one-out: {best}."
    if results["best_step_by_val"] is not None:
        summary += f" Best step on the validation rows: {results['best_step_by_val']}."
    out.print(summary)
    used = results["default_step"]
    if best is not None and best != used:
        out.print(f"predict uses step {used}; use predict --step {best} for the best one.")
    elif used != results["n_steps"]:
        out.print(f"predict uses step {used}.")
    if results["alpha"] == "joint":
        out.print(
            f"joint is optimal at step {results['n_steps']}; the steps before only lead there."
        )


def print_sweep(result: Any, about: str, top: int) -> None:
    """The best cells of a sweep; the first step once, since it has no α."""
    frame = result.to_dataframe()
    columns = {"mse_val": "validation", "mse_loo": "leave-one-out"}
    columns = {name: word for name, word in columns.items() if name in frame}
    chosen_on = result.dataset.attrs["chosen_on"]
    ranked = next(name for name, word in columns.items() if word == chosen_on)
    cells = frame.groupby(["kernel", "lam", "alpha", "step"], sort=False)
    cells = cells[[*columns, "alphas"]].mean().reset_index()
    cells.loc[cells.step == 1, "alpha"] = "–"
    cells = cells.drop_duplicates(["kernel", "lam", "alpha", "step"])
    cells = cells.sort_values(ranked, kind="stable")
    out = console.out()
    sizes = result.dataset.sizes
    out.print(
        f"{about}; {sizes['kernel']} kernels × {sizes['lam']} λ × {sizes['alpha']} α × "
        f"{sizes['step']} steps, solver {', '.join(sorted(set(result.dataset.solver.values)))}\n",
        markup=False,
        soft_wrap=True,
    )
    rows = table("kernel", "λ", "α", "step", "its α", *columns.values())
    rows.columns[0].justify, rows.columns[0].no_wrap = "left", False  # gives way first
    for row in cells.head(top).itertuples():
        errors = (_number(math.sqrt(getattr(row, name))) for name in columns)
        rows.add_row(
            row.kernel, f"{row.lam:.4g}", row.alpha, str(row.step), _alpha(row.alphas), *errors
        )
    out.print(rows)
    out.print(f"\nRoot mean squared errors, ranked by {chosen_on}; {len(cells)} different cells.")
    best, lams = result.best(), result.dataset.lam.values
    if len(lams) > 1 and best["lam"] in (lams.min(), lams.max()):
        console.say(
            f"hint: the best λ, {best['lam']:g}, is at the edge of the grid; a smaller error may "
            "lie beyond",
            "yellow",
        )


def print_chains(chains: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Chains of networks: the mean over the seeds of every step."""
    rows = table("chain", "seeds", "step", "α", "training accuracy", "validation accuracy")
    for name, chain in chains.items():
        for t in range(chain["val"].shape[1]):
            there = ~np.isnan(chain["val"][:, t])
            alpha, train, val = (chain[key][there, t].mean() for key in ("alpha", "train", "val"))
            rows.add_row(
                name if t == 0 else "",
                str(there.sum()),
                str(t + 1),
                _alpha(float(alpha)),
                f"{train:.4f}",
                f"{val:.4f}",
            )
    console.out().print(rows)
