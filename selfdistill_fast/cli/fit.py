"""``selfdistill-fast fit``: a chain of self-distilled models of a table."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from selfdistill_fast.cli import console
from selfdistill_fast.cli import report as reports
from selfdistill_fast.cli.dataset import Dataset
from selfdistill_fast.cli.options import Data, Header, check_outputs, kernels_from, parse_alpha
from selfdistill_fast.cli.tables import read_table

__all__ = ["fit"]


def fit(
    data: Data,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Target column: name or number (negative: from the end). Repeat for several. "
            "[default: the last column]"
        ),
    ] = None,
    kernel: Annotated[
        str, typer.Option(help="rbf, laplacian, matern, polynomial, linear or ntk.")
    ] = "rbf",
    lam: Annotated[float, typer.Option(help="λ of (K + λI)⁻¹.")] = 1.0,
    alpha: Annotated[
        str,
        typer.Option(
            help="Weight of the ground truth: 'optimal' (step by step), 'joint' (all steps "
            "together), one number, or numbers for the steps 2, 3, … separated by commas."
        ),
    ] = "optimal",
    steps: Annotated[int, typer.Option(help="Number of steps.", min=1)] = 4,
    gamma: Annotated[
        float | None,
        typer.Option(help="γ of rbf, laplacian, polynomial. [default: 1 / number of features]"),
    ] = None,
    degree: Annotated[int | None, typer.Option(help="Of polynomial. [default: 3]")] = None,
    coef0: Annotated[float | None, typer.Option(help="Of polynomial. [default: 1]")] = None,
    length_scale: Annotated[float | None, typer.Option(help="Of matern. [default: 1]")] = None,
    nu: Annotated[
        float | None, typer.Option(help="Of matern: 0.5, 1.5, 2.5 or inf. [default: 1.5]")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Hidden layers of ntk. [default: 1]")] = None,
    intercept: Annotated[bool, typer.Option("--intercept", help="Fit an intercept.")] = False,
    clip: Annotated[bool, typer.Option("--clip", help="Restrict chosen α to [0, 1].")] = False,
    standardize: Annotated[
        bool,
        typer.Option(
            "--standardize",
            help="Scale features and targets to mean 0 and deviation 1 on the training rows; "
            "errors are still in the units of the data.",
        ),
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help="Column of sample weights.", metavar="COLUMN")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Column to leave out. Repeat for several.")
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Rows to choose α on instead of exact leave-one-out: a data file, a fraction "
            "of DATA, or MASKFILE:COLUMN where 1 marks them."
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Rows that are only scored; specified like --val.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the fractions and of solver nystrom.", min=0)
    ] = 0,
    save: Annotated[
        Path | None, typer.Option(help="Write the model here.", metavar="MODEL")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw error over steps (.png, .svg, .pdf).")
    ] = None,
    solver: Annotated[
        str,
        typer.Option(
            help="How K is factorised: auto, eigh, cholesky, or without leave-one-out tridiagonal "
            "or krylov; or the model of landmarks, nystrom."
        ),
    ] = "auto",
    header: Header = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with all digits instead of the table.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write that JSON to a file as well.", metavar="FILE")
    ] = None,
) -> None:
    """Fit a chain of self-distilled models and print the error of every step.

    α is chosen by exact leave-one-out on the training rows, or on --val if given. Every number
    of the table is a root mean squared error over rows and targets, weighted if there is a
    column of weights, in the units of the data.
    """
    from selfdistill_fast.plotting import figure_format

    if not (math.isfinite(lam) and lam > 0):
        raise console.InputError(f"--lam must be a positive number, got {lam:g}")
    weight = parse_alpha(alpha, steps)
    check_outputs(save, report, figure)
    if figure is not None:
        figure_format(figure)
    dataset = Dataset.of(
        read_table(data, header=header),
        target or ["-1"],
        weights,
        drop or [],
        {"--test": test, "--val": val},
        seed=seed,
        header=header,
        standardize=standardize,
    )
    parameters = {"gamma": gamma, "degree": degree, "coef0": coef0, "length_scale": length_scale,
                  "nu": nu, "depth": depth}  # fmt: skip
    (chosen,) = kernels_from(
        kernel,
        {name: [value] for name, value in parameters.items() if value is not None},
        len(dataset.layout.features),
        what="--kernel",
        spell=lambda name: "--" + name.replace("_", "-"),
    )
    if not standardize:
        _hint_at_scales(dataset)
    path, used, scores = _fit(
        dataset,
        chosen,
        lam,
        weight,
        steps,
        clip=clip,
        solver=solver,
        intercept=intercept,
        seed=seed,
    )
    results = {
        "data": str(data),
        "kernel": chosen.to_dict(),
        "lam": lam,
        "alpha": weight,
        "n_steps": steps,
        "fit_intercept": intercept,
        "clip": clip,
        "standardize": standardize,
        "solver": used,
        "n_features": len(dataset.layout.features),
        "targets": dataset.layout.target_names,
        **{f"n_{name}": len(rows) for name, rows in dataset.sets.items()},
        **scores,
    }
    if save is not None:
        path.save(save, metadata=dataset.describe())
    if figure is not None:
        _draw(figure, results)
    if report is not None:
        reports.write_text(report, reports.to_json(results) + "\n")
    if as_json:
        print(reports.to_json(results))
    else:
        reports.print_fit(results, chosen)
    for what, where in (("model", save), ("report", report), ("figure", figure)):
        if where is not None:
            console.say(f"{what} written to {where}")


def _hint_at_scales(dataset: Dataset) -> None:
    names = [dataset.layout.names[j] for j in dataset.layout.features]
    std = dataset.train.X.std(axis=0)
    varying = np.flatnonzero(std > 0)
    if varying.size < 2:
        return
    small, large = varying[std[varying].argmin()], varying[std[varying].argmax()]
    if std[large] > 1000 * std[small]:
        console.say(
            f"hint: feature {names[large]!r} varies {std[large] / std[small]:.2g} times as much as "
            f"{names[small]!r}; --standardize puts them on one scale",
            "yellow",
        )


def _fit(
    dataset: Dataset,
    kernel: Any,
    lam: float,
    alpha: Any,
    steps: int,
    *,
    clip: bool,
    solver: Any,  # the command's text; spectrum checks it
    intercept: bool,
    seed: int,
) -> tuple[Any, str, dict[str, Any]]:
    """The fitted chain, its solver's name, and its scores."""
    from selfdistill_fast import distill, spectrum
    from selfdistill_fast._evaluation import evaluate_limit, evaluate_steps
    from selfdistill_fast._solvers import with_steps

    chooses, val = isinstance(alpha, str), dataset.sets.get("val")
    scaled = dataset.scaling.apply(dataset.train)
    factorise = functools.partial(
        spectrum,
        scaled.X,
        scaled.Y,
        kernel,
        solver=solver,
        sample_weight=scaled.w,
        fit_intercept=intercept,
        random_state=seed,
        leave_one_out=True if chooses and val is None else None,
        **with_steps(solver, None, steps),
    )
    validation: dict[str, Any] = {}
    if chooses and val is not None:
        on = dataset.scaling.apply(val)
        validation = {"X_val": on.X, "y_val": on.Y, "sample_weight_val": on.w}
    doing = f"factorising the {len(scaled)} × {len(scaled)} kernel matrix"
    with console.progress(doing):
        fitted = factorise(lam=lam)
    sets, restore = dataset.evaluation_sets(), dataset.scaling.original
    with console.progress(f"{steps} steps of distillation"):
        path = distill(fitted, lam, alpha, steps, clip=clip, **validation)
        if path.selection is not None:
            path.default_step = path.best_step
        scores = evaluate_steps(fitted, path, sets, restore)
    if scores.no_leave_one_out is not None:  # α has been chosen: the table is still useful
        console.say(f"no leave-one-out column: {scores.no_leave_one_out}", "yellow")
    used = fitted.name
    # without eigenvalues it serves one λ, and leave-one-out of the limit needs another
    spectral = fitted if hasattr(fitted, "d") or fitted.max_loo_steps == 0 else None
    del fitted

    def for_limit(ridge: float) -> Any:
        if spectral is not None:
            return spectral
        with console.progress(doing):
            return factorise(lam=ridge)

    limit = evaluate_limit(for_limit, path, lam, alpha, sets, restore)
    return path, used, {**_described(path, scores), "limit": limit}


def _described(path: Any, scores: Any) -> dict[str, Any]:
    """α's, weights and scores of the steps as JSON values."""
    return {
        "alphas": path.alphas.tolist(),
        "weights": path.weights.tolist(),
        "default_step": path.default_step,
        "best_step_by_loo": scores.best_step("loo"),
        "best_step_by_val": scores.best_step("val"),
        "steps": [
            {
                "step": t + 1,
                "alpha": path.alphas[t].tolist(),
                **{
                    f"{name}_rmse": float(scores.errors[name][t])
                    for name in reports.SETS
                    if name in scores.errors
                },
                "dof": float(scores.dof[t]),
            }
            for t in range(path.n_steps)
        ],
    }


def _draw(figure: Path, results: dict[str, Any]) -> None:
    from selfdistill_fast.plotting import figure_errors, save_figure

    steps, limit = results["steps"], results["limit"] or {}
    errors = {
        word: [row[f"{name}_rmse"] for row in steps]
        for name, word in reports.SETS.items()
        if not math.isnan(steps[-1].get(f"{name}_rmse", math.nan))
    }
    limits = {
        word: limit[f"{name}_rmse"]
        for name, word in reports.SETS.items()
        if f"{name}_rmse" in limit
    }
    title = "/".join(Path(results["data"]).parts[-2:])
    save_figure(figure_errors(errors, limits=limits, alphas=results["alphas"], title=title), figure)
