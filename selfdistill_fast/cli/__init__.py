"""The command ``selfdistill-fast``: example, fit, predict, plan, sweep, train, train-figure, info.

Results go to standard output, everything else (progress, hints, warnings, errors) to
standard error, so that output can be piped. What a user can do wrong ends in one line and
exit code 2 (bad input) or 1 (could not be done), never in a traceback.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from selfdistill_fast.cli.tables import (
    Layout,
    Rows,
    Scaling,
    TableError,
    describe,
    from_description,
    read_table,
    split,
    write_table,
)

__all__ = ["app", "run"]

app = typer.Typer(
    name="selfdistill-fast",
    help="Exact self-distilled kernel ridge regression.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: The eleven targets of the paper's Section 4.5 (those of Mobahi et al. 2020).
EXAMPLE_TARGETS = (
    0.38476636465198066,
    1.2333967683416893,
    1.33232242218057,
    0.69201594888895180,
    -0.29756145531871736,
    -0.24189291901377769,
    -0.7964485769175675,
    -0.9616480167034174,
    -0.49672509509916934,
    -0.3469066003991437,
    0.5589512650600734,
)
EXAMPLE_GAMMA = 80.0
EXAMPLE_LAM = 0.2

#: what errors are called, in JSON and in words
SETS = {"train": "training", "loo": "leave-one-out", "val": "validation", "test": "test"}


class InputError(ValueError):
    """An option that cannot be used as given."""


class FigureFormat(StrEnum):
    """Figure formats."""

    png = "png"
    svg = "svg"
    both = "both"


# ------------------------------------------------------------------ conduct
def run() -> None:
    """Entry point: the application with the streams made safe for any locale."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app(prog_name="selfdistill-fast")


def _out() -> Console:
    """Standard output; lines are not folded where it is not a terminal."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 160))
    return console


def _err() -> Console:
    return Console(stderr=True, highlight=False)


def _say(text: str, style: str | None = None) -> None:
    """One line on standard error, not folded."""
    _err().print(Text(" ".join(text.split()), style=style or ""), soft_wrap=True)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Turn what a user can do wrong into one red line and an exit code."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                function(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output went away: not our failure
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (InputError, TableError) as error:
            _say(f"error: {error}", "bold red")
            raise typer.Exit(2) from None
        except (ValueError, np.linalg.LinAlgError) as error:
            _say(f"error: {error}", "bold red")
            raise typer.Exit(1) from None
        except (OSError, ImportError, MemoryError) as error:
            _say(f"error: {error or type(error).__name__}", "bold red")
            raise typer.Exit(1) from None

    return wrapped


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    """Not those for the developers of a dependency, whatever filter lets them through."""
    if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning)):
        _say(f"warning: {message}", "yellow")


@contextmanager
def _progress(text: str) -> Iterator[None]:
    """A spinner with the elapsed time, only where standard error is a terminal."""
    console = _err()
    if not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(text, total=None)
        yield


def _version(wanted: bool) -> None:
    if wanted:
        from selfdistill_fast._config import installed_version

        print(installed_version("selfdistill_fast") or "not installed")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Exact self-distilled kernel ridge regression."""


# ------------------------------------------------------------------ example
@app.command()
@_command
def example(
    out: Annotated[Path, typer.Option(help="Directory for the figures.")] = Path("figures"),
    format: Annotated[
        FigureFormat, typer.Option(help="Format of the figures.")
    ] = FigureFormat.both,
    steps: Annotated[int, typer.Option(help="Number of steps.", min=1)] = 6,
) -> None:
    """Run the paper's illustrative example (Section 4.5): losses, α*, Figures 2, 3 and 4."""
    from selfdistill_fast import RBF, distill, spectrum
    from selfdistill_fast.plotting import (
        figure_ratios,
        figure_shrinkage,
        figure_solutions,
        save_figure,
    )

    X, y = np.arange(11)[:, None] / 10, np.array(EXAMPLE_TARGETS)
    grid = np.arange(101)[:, None] / 100
    truth = np.sin(2 * np.pi * grid[:, 0])
    fitted = spectrum(X, y, RBF(EXAMPLE_GAMMA))
    paths = {f"{alpha:g}": distill(fitted, EXAMPLE_LAM, alpha, steps) for alpha in (0, 0.25, 0.35)}
    paths["α*"] = distill(fitted, EXAMPLE_LAM, "optimal", steps, X_val=grid, y_val=truth)

    console = _out()
    console.print(
        f"Section 4.5: 11 points, RBF kernel with γ = {EXAMPLE_GAMMA:g}, λ = {EXAMPLE_LAM:g}.\n"
        "Loss: mean squared distance to sin(2πx) at x = 0, 0.01, …, 1.\n"
    )
    table = _table("α", *(str(step) for step in range(1, steps + 1)), "∞")
    for name, path in paths.items():
        losses = np.mean((path.predict(grid, step="all") - truth) ** 2, axis=1)
        limit = _limit(path, grid)
        last = "–" if limit is None else _loss(np.mean((limit - truth) ** 2))
        table.add_row(name, *map(_loss, losses), last)
    console.print(table)
    if steps > 1:
        console.print("\nStep-wise optimal α*, eq. (16), on the same 101 points:\n")
        table = _table("step", *(str(step) for step in range(2, steps + 1)))
        table.add_row("α*", *(f"{alpha:.5f}" for alpha in paths["α*"].alphas[1:]))
        console.print(table)

    cases = {
        "α = 0": paths["0"],
        "α = 0.25": paths["0.25"],
        "step-wise optimal α*": paths["α*"],
    }
    figures = {
        "figure2": figure_solutions(cases, grid, X, y, truth=truth),
        "figure3": figure_shrinkage(cases),
        "figure4": figure_ratios(cases),
    }
    suffixes = ("png", "svg") if format is FigureFormat.both else (format.value,)
    console.print("\nFigures 2 (solutions), 3 (diagonals of B) and 4 (ratios):")
    for name, figure in figures.items():
        written = [save_figure(figure, out / f"{name}.{suffix}") for suffix in suffixes]
        console.print("  " + "  ".join(map(str, written)), soft_wrap=True)


def _loss(value: float) -> str:
    """Five digits as the paper prints them: .16477."""
    text = f"{value:.5f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def _table(*columns: str) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _limit(path: Any, X: np.ndarray) -> Any:
    """Predictions of the limit, or None where there is no limit."""
    from selfdistill_fast._solvers import NoLimit

    try:
        path.dual_coef(step=math.inf)
    except NoLimit:
        return None
    return path.predict(X, step=math.inf)


# ---------------------------------------------------------------------- fit
@app.command()
@_command
def fit(
    data: Annotated[Path, typer.Argument(help="CSV (also .gz) or Parquet file.", metavar="DATA")],
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
    lam: Annotated[float, typer.Option(help="Ridge λ of (K + λI)⁻¹.")] = 1.0,
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
    clip: Annotated[bool, typer.Option("--clip", help="Keep chosen α in [0, 1].")] = False,
    standardize: Annotated[
        bool,
        typer.Option(
            "--standardize",
            help="Bring features and targets to mean 0 and deviation 1 by the training rows; "
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
        str | None, typer.Option(help="Rows that are only scored; given like --val.")
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
    header: Annotated[
        bool | None,
        typer.Option("--header/--no-header", help="Whether a CSV has one. [default: found out]"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with all digits instead of the table.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write that JSON to a file as well.", metavar="FILE")
    ] = None,
) -> None:
    """Fit a chain of self-distilled models and print the error of every step.

    α is chosen by exact leave-one-out on the training rows, or on --val where it is given.
    Every number of the table is a root mean squared error over rows and targets, weighted
    where there is a column of weights, in the units of the data.
    """
    from selfdistill_fast import distill, spectrum
    from selfdistill_fast._solvers import with_steps
    from selfdistill_fast.plotting import figure_format

    if not (math.isfinite(lam) and lam > 0):
        raise InputError(f"--lam must be a positive number, got {lam:g}")
    weight = _parse_alpha(alpha, steps)
    _check_outputs(save, report, figure)
    if figure is not None:
        figure_format(figure)
    table = read_table(data, header=header)
    layout = Layout.choose(table, target or ["-1"], weights, drop or [])
    train, held = split(table, layout, {"--test": test, "--val": val}, seed=seed, header=header)
    n = len(train)
    if n < 2:
        raise InputError(f"{n} training row(s) are left; at least 2 are needed")
    parameters = {
        "gamma": gamma,
        "degree": degree,
        "coef0": coef0,
        "length_scale": length_scale,
        "nu": nu,
        "depth": depth,
    }
    chosen = _make_kernel(kernel, train.X.shape[1], parameters)
    if not standardize:
        _hint_at_scales(train, [table.names[j] for j in layout.features])
    scaling = Scaling.of(train, wanted=standardize)
    scaled = scaling.apply(train)
    chooses = val is not None and isinstance(weight, str)
    on = scaling.apply(held["--val"]) if chooses else None

    def factorise(ridge: float) -> Any:
        with _progress(f"factorising the {n} × {n} kernel matrix"):
            return spectrum(
                scaled.X,
                scaled.Y,
                chosen,
                solver=solver,
                lam=ridge,
                sample_weight=scaled.w,
                fit_intercept=intercept,
                random_state=seed,
                leave_one_out=True if isinstance(weight, str) and not chooses else None,
                **with_steps(solver, None, steps),
            )

    fitted = factorise(lam)
    with _progress(f"{steps} steps of distillation"):
        path = distill(
            fitted,
            lam,
            weight,
            steps,
            X_val=None if on is None else on.X,
            y_val=None if on is None else on.Y,
            sample_weight_val=None if on is None else on.w,
            clip=clip,
        )
        sets = {"train": train, **{name.strip("-"): rows for name, rows in held.items()}}
        scores = _score(fitted, path, sets, scaling)
    used = fitted.name
    # without eigenvalues it serves one λ, and leave-one-out of the limit has another
    spectral = fitted if hasattr(fitted, "d") or fitted.max_loo_steps == 0 else None
    del fitted
    scores["limit"] = _score_limit(
        lambda ridge: spectral or factorise(ridge), path, lam, weight, sets, scaling
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
        "n_features": len(layout.features),
        "targets": layout.target_names,
        **{f"n_{name}": len(rows) for name, rows in sets.items()},
        **scores,
    }
    if save is not None:
        path.save(save, metadata=describe(layout, scaling))
    if figure is not None:
        _draw(figure, results)
    text = json.dumps(_jsonable(results), indent=2, allow_nan=False, ensure_ascii=False)
    if report is not None:
        report.write_text(text + "\n", encoding="utf-8")
    if as_json:
        print(text)
    else:
        _print_fit(results, chosen)
    for what, where in (("model", save), ("report", report), ("figure", figure)):
        if where is not None:
            _say(f"{what} written to {where}")


def _check_outputs(*paths: Path | None) -> None:
    """Refuse at once what could not be written after a long computation."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a directory")
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no directory {path.parent}")


def _parse_alpha(text: str, steps: int) -> Any:
    """``--alpha``: a name, a number, or steps − 1 numbers."""
    if text in ("optimal", "joint"):
        return text
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            "--alpha must be 'optimal', 'joint', a number, or numbers separated by commas; "
            f"got {text!r}"
        ) from None
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"--alpha must be finite, got {text!r}")
    if len(numbers) == 1 and "," not in text:
        return numbers[0]
    if len(numbers) != steps - 1:
        raise InputError(
            f"--alpha lists {len(numbers)} numbers, but --steps {steps} needs {steps - 1}: one for "
            "each step from the second on"
        )
    return numbers


def _make_kernel(name: str, n_features: int, parameters: dict[str, Any]) -> Any:
    """The kernel; a parameter that it does not have is an error, not ignored."""
    from selfdistill_fast.kernels import KERNELS, NTK, kernel_from_name

    names = [known for known in KERNELS if known != "precomputed"]
    if name == "poly":
        name = "polynomial"
    if name not in names:
        raise InputError(f"unknown --kernel {name!r}; known: {', '.join(names)}")
    given = {key: value for key, value in parameters.items() if value is not None}
    known = {field.name: "--" + field.name.replace("_", "-") for field in fields(KERNELS[name])}
    for key in given:
        if key not in known:
            option = "--" + key.replace("_", "-")
            raise InputError(
                f"{option} has no meaning for the kernel {name}, which takes "
                + (", ".join(known.values()) or "no parameters")
            )
    try:
        return NTK(**given) if name == "ntk" else kernel_from_name(name, n_features, **given)
    except ValueError as error:
        raise InputError(str(error)) from None


def _hint_at_scales(train: Rows, names: list[str]) -> None:
    std = train.X.std(axis=0)
    varying = np.flatnonzero(std > 0)
    if varying.size < 2:
        return
    small, large = varying[std[varying].argmin()], varying[std[varying].argmax()]
    if std[large] > 1000 * std[small]:
        _say(
            f"hint: feature {names[large]!r} varies {std[large] / std[small]:.2g} times as much as "
            f"{names[small]!r}; --standardize puts them on one scale",
            "yellow",
        )


def _score(fitted: Any, path: Any, sets: dict[str, Rows], scaling: Scaling) -> dict[str, Any]:
    """Errors of every step on each set, in the units of the data."""
    T = path.n_steps
    exists = ~np.isnan(path.step_weights.reshape(T, -1)).any(axis=1)
    errors = {}
    for name, rows in sets.items():
        X = scaling.features(rows.X)
        if exists.all():
            F = path.predict(X, step="all").reshape(T, *rows.Y.shape)
        else:  # a joint optimum without an α-sequence has a last step only
            F = np.full((T, *rows.Y.shape), np.nan)
            F[-1] = path.predict(X).reshape(rows.Y.shape)
        errors[name] = rows.rmse(scaling.original(F))
    missing = _why_no_leave_one_out(fitted, T)
    if missing is None:
        errors["loo"], dof = _on_training_rows(
            fitted, path.lam, path.step_weights, sets["train"], scaling
        )
    else:  # α has been chosen by now: the table is still worth having
        _say(f"no leave-one-out column: {missing}", "yellow")
        errors["loo"] = dof = np.full(T, np.nan)
    best = {name: int(np.nanargmin(e)) + 1 for name, e in errors.items() if not np.isnan(e).all()}
    return {
        "alphas": path.alphas.tolist(),
        "weights": path.weights.tolist(),
        "best_step_by_loo": best.get("loo"),
        "best_step_by_val": best.get("val"),
        "steps": [
            {
                "step": t + 1,
                "alpha": path.alphas[t].tolist(),
                **{f"{name}_rmse": float(errors[name][t]) for name in SETS if name in errors},
                "dof": float(dof[t]),
            }
            for t in range(T)
        ],
    }


def _why_no_leave_one_out(fitted: Any, n_steps: int) -> str | None:
    """Why the solver or the data have no leave-one-out of so many steps; None where they do."""
    from selfdistill_fast._chain.leave_out import check_leave_one_out

    try:
        check_leave_one_out(fitted, n_steps)
    except ValueError as error:
        return str(error)
    return None


def _on_training_rows(
    fitted: Any, lam: float, C: np.ndarray, train: Rows, scaling: Scaling
) -> tuple[np.ndarray, np.ndarray]:
    """Leave-one-out error and effective degrees of freedom of chains with step weights C."""
    from selfdistill_fast._chain.leave_out import mixed_held_out
    from selfdistill_fast._solvers import Penalties

    G = mixed_held_out(fitted, Penalties.of(lam, len(C)), C).reshape(len(C), *train.Y.shape)
    # the trace of a chain's smoother, an intercept included
    return train.rmse(scaling.original(G)), C @ fitted.diag_powers(lam, len(C)).sum(axis=1)


def _score_limit(
    factorise: Callable[[float], Any],
    path: Any,
    lam: float,
    alpha: Any,
    sets: dict[str, Rows],
    scaling: Scaling,
) -> dict[str, float] | None:
    """The same of infinitely many steps; None where they have no limit."""
    X = {name: scaling.features(rows.X) for name, rows in sets.items()}
    if _limit(path, X["train"][:1]) is None:
        return None
    limit = {}
    for name, rows in sets.items():
        F = path.predict(X[name], step=math.inf).reshape(1, *rows.Y.shape)
        limit[f"{name}_rmse"] = float(rows.rmse(scaling.original(F))[0])
    constant = float(np.ravel(alpha)[-1])
    if constant > 0:  # without any row, too, the limit is kernel ridge regression with λ/α
        ridge = lam / constant
        fitted = factorise(ridge)
        if _why_no_leave_one_out(fitted, 1) is not None:
            return limit
        loo, dof = _on_training_rows(fitted, ridge, np.ones((1, 1)), sets["train"], scaling)
        limit |= {"loo_rmse": float(loo[0]), "dof": float(dof[0])}
    return limit


def _jsonable(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, become null."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _print_fit(results: dict[str, Any], kernel: Any) -> None:
    console = _out()
    counts = [f"{results['n_train']} training rows"]
    counts += [
        f"{results[key]} {word} rows"
        for key, word in (("n_val", "validation"), ("n_test", "test"))
        if key in results
    ]
    names = results["targets"]
    console.print(
        f"{results['data']}: {', '.join(counts)}, {results['n_features']} features; "
        f"target{'s' if len(names) > 1 else ''} {', '.join(names)}",
        markup=False,
        soft_wrap=True,
    )
    chosen_on = "validation rows" if "n_val" in results else "exact leave-one-out"
    about = f", α chosen on {chosen_on}" if isinstance(results["alpha"], str) else ""
    console.print(
        f"{kernel!r}, λ = {results['lam']:g}{about}; solver {results['solver']}\n",
        markup=False,
        soft_wrap=True,
    )

    sets = [(f"{name}_rmse", word) for name, word in SETS.items()]
    sets = [(key, word) for key, word in sets if key in results["steps"][0]]
    table = _table("step", "α", *(word for _, word in sets), "eff. dof")
    best = results["best_step_by_loo"]
    for row in results["steps"]:
        table.add_row(
            str(row["step"]),
            _alpha(row["alpha"]),
            *(_error(row[key]) for key, _ in sets),
            _error(row["dof"], 5),
            style="bold" if row["step"] == best else None,
        )
    limit = results["limit"]
    if limit is not None:
        errors = (_error(limit.get(key)) for key, _ in sets)
        table.add_row("∞", "", *errors, _error(limit.get("dof"), 5))
    console.print(table)
    summary = "\nRoot mean squared errors."
    if best is not None:
        summary += f" Best step by leave-one-out: {best}."
    if results["best_step_by_val"] is not None:
        summary += f" Best step on the validation rows: {results['best_step_by_val']}."
    console.print(summary)
    if best is not None and best != results["n_steps"]:
        console.print(f"predict uses the last step; predict --step {best} asks for that one.")
    if results["alpha"] == "joint":
        console.print(
            f"joint is optimal at step {results['n_steps']}; the steps before only lead there."
        )


def _alpha(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_alpha, value))
    return "–" if value is None or math.isnan(value) else f"{value:.5g}"


def _error(value: float | None, digits: int = 7) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:#.{digits}g}".rstrip(".")


def _draw(figure: Path, results: dict[str, Any]) -> None:
    from selfdistill_fast.plotting import figure_errors, save_figure

    steps, limit = results["steps"], results["limit"] or {}
    errors = {
        word: [row[f"{name}_rmse"] for row in steps]
        for name, word in SETS.items()
        if not math.isnan(steps[-1].get(f"{name}_rmse", math.nan))
    }
    limits = {word: limit[f"{name}_rmse"] for name, word in SETS.items() if f"{name}_rmse" in limit}
    title = "/".join(Path(results["data"]).parts[-2:])
    save_figure(figure_errors(errors, limits=limits, alphas=results["alphas"], title=title), figure)


# ------------------------------------------------------------------ predict
@app.command()
@_command
def predict(
    model: Annotated[Path, typer.Argument(help="What fit --save wrote.", metavar="MODEL")],
    data: Annotated[Path, typer.Argument(help="CSV (also .gz) or Parquet file.", metavar="DATA")],
    out: Annotated[
        Path | None,
        typer.Option(help="CSV (also .gz) or Parquet file. [default: CSV on standard output]"),
    ] = None,
    step: Annotated[
        str, typer.Option(help="Which step: a number, 'last', 'all' or 'inf' (the limit).")
    ] = "last",
    header: Annotated[
        bool | None,
        typer.Option("--header/--no-header", help="Whether a CSV has one. [default: found out]"),
    ] = None,
) -> None:
    """Predict the rows of a file with a saved model.

    Columns are found by name where both files have names, otherwise by number; the target
    may be present or not. Predictions are in the units of the training data.
    """
    from selfdistill_fast import load

    if out is not None:
        _check_outputs(out)
    if not model.exists():
        raise InputError(f"no such file: {model}")
    if model.is_dir():
        raise InputError(f"{model} is a directory, not a saved model")
    path = load(model)
    try:
        layout, scaling = from_description(path.metadata)
    except (KeyError, TypeError):
        raise InputError(
            f"{model} was not saved by 'selfdistill-fast fit --save' and does not say which "
            "columns it needs; use selfdistill_fast.load in Python"
        ) from None
    wanted = _parse_step(step, path.n_steps)
    X = scaling.features(layout.features_of(read_table(data, header=header)))
    with _progress(f"predicting {len(X)} rows"):
        F = np.asarray(path.predict(X, step=wanted))
    F = scaling.original(F.reshape(-1, len(X), len(layout.targets)))  # (steps, m, targets)
    names = layout.target_names
    if not layout.has_names:
        names = [f"prediction{j}" for j in layout.targets] if len(names) > 1 else ["prediction"]
    if wanted == "all":
        names = [f"{name}_step{t}" for t in range(1, len(F) + 1) for name in names]
    write_table(out, names, np.moveaxis(F, 0, 1).reshape(len(X), -1))
    if out is not None:
        _say(f"{len(X)} predictions written to {out}")


def _parse_step(text: str, n_steps: int) -> Any:
    if text in ("last", "all", "inf"):
        return {"last": None, "all": "all", "inf": math.inf}[text]
    try:
        step = int(text)
    except ValueError:
        step = 0
    if not 1 <= step <= n_steps:
        raise InputError(f"--step must be 1 to {n_steps}, 'last', 'all' or 'inf'; got {text!r}")
    return step


# -------------------------------------------------------------------- train
@app.command()
@_command
def train(
    out: Annotated[
        Path,
        typer.Option(help="Directory of the run; killed and started again, it continues there."),
    ],
    model: Annotated[str, typer.Option(help="cnn, resnet18, resnet34 or resnet50.")] = "cnn",
    data: Annotated[
        str,
        typer.Option(
            help="digits (scikit-learn's), cifar10 (torchvision's, downloaded) or the path of a "
            "tree train/CLASS/*.jpg and val/CLASS/*.jpg (or test/).",
            metavar="digits|cifar10|PATH",
        ),
    ] = "digits",
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            help="Weight of the ground truth: 'optimal' (α̂, step by step), one number, or numbers "
            "for the steps 2, 3, … separated by commas. Repeat for several chains, which share "
            "their first fit. [default: optimal]"
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of steps.", min=1)] = 5,
    epochs: Annotated[int, typer.Option(help="Epochs of each fit.", min=1)] = 75,
    seeds: Annotated[
        str, typer.Option(help="How many seeds (0, 1, …), or the seeds separated by commas.")
    ] = "1",
    batch_size: Annotated[int, typer.Option(help="Rows of a batch, in each process.", min=1)] = 128,
    optimizer: Annotated[str, typer.Option(help="adam or sgd.")] = "adam",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    lam: Annotated[float, typer.Option(help="λ of eq. (18): weight decay of λ/n.")] = 1e-4,
    clip: Annotated[bool, typer.Option("--clip", help="Keep α̂ in [0, 1].")] = False,
    teacher: Annotated[
        str,
        typer.Option(
            help="augmented: the teacher sees the augmented batch; cached: its outputs on the "
            "images as they are."
        ),
    ] = "augmented",
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment", help="Random crops and flips. [default: of colour images]"
        ),
    ] = None,
    data_root: Annotated[Path, typer.Option(help="Where cifar10 is kept.")] = Path("data"),
    n_train: Annotated[
        int | None, typer.Option(help="Use so many training images only.", min=1)
    ] = None,
    n_val: Annotated[
        int | None, typer.Option(help="Use so many validation images only.", min=1)
    ] = None,
    device: Annotated[str | None, typer.Option(help="[default: a GPU where there is one]")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="float32, float64 or bf16. [default: bf16 on a GPU, else float32]"),
    ] = None,
    compile: Annotated[
        str | None,
        typer.Option(
            help="torch.compile the networks: default, reduce-overhead (CUDA graphs) or "
            "max-autotune.",
            metavar="MODE",
        ),
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits again on the same GPU.")
    ] = False,
) -> None:
    """Train chains of self-distilled networks (Section 5); needs the extra 'torch'.

    Each step t ≥ 2 of a chain with --alpha optimal fits a student with α = 0, estimates α̂ from
    its predictions on the validation set by eq. (16), and fits the step itself with it. Every
    epoch is kept: the same command continues where it was killed. More --alpha, --seeds and
    --steps may be given to a run later. Several GPUs: torchrun -m selfdistill_fast train …
    """
    chains = [_parse_alpha(text, steps) for text in alpha or ["optimal"]]
    if "joint" in chains:
        raise InputError(
            "--alpha joint has no meaning for networks; 'optimal' estimates each step's"
        )
    from selfdistill_fast.trainer import experiment

    options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "lr": lr,
        "lam": lam,
        "clip": clip,
        "teacher": teacher,
        "device": device,
        "precision": precision,
        "compile": True if compile == "default" else compile or False,
        "deterministic": deterministic,
    }
    display = experiment.Display(_err())
    try:
        with display:
            experiment.run(
                out,
                model=model,
                data=data,
                alphas=chains,
                n_steps=steps,
                seeds=_parse_seeds(seeds),
                root=data_root,
                n_train=n_train,
                n_val=n_val,
                augment=augment,
                callbacks=[display],
                **options,
            )
    except KeyboardInterrupt:
        _say("interrupted; the same command continues after the last whole epoch", "yellow")
        raise typer.Exit(130) from None
    except (FloatingPointError, RuntimeError) as error:  # the latter are torch's own
        _say(f"error: {error}", "bold red")
        raise typer.Exit(1) from None
    if display.speaks:
        _print_chains(experiment.accuracies([out]))
        _say(f"run kept in {out}; 'selfdistill-fast train-figure {out}' draws it")


def _parse_seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or ("," not in text and numbers[0] < 1):
        raise InputError(f"--seeds must be a count, or seeds separated by commas; got {text!r}")
    return numbers if "," in text else list(range(numbers[0]))


def _print_chains(chains: dict[str, dict[str, np.ndarray]]) -> None:
    """Mean over the seeds of every step of every chain."""
    table = _table("chain", "seeds", "step", "α", "training accuracy", "validation accuracy")
    for name, chain in chains.items():
        for t in range(chain["val"].shape[1]):
            there = ~np.isnan(chain["val"][:, t])
            alpha, train, val = (chain[key][there, t].mean() for key in ("alpha", "train", "val"))
            table.add_row(
                name if t == 0 else "",
                str(there.sum()),
                str(t + 1),
                _alpha(float(alpha)),
                f"{train:.4f}",
                f"{val:.4f}",
            )
    _out().print(table)


@app.command("train-figure")
@_command
def train_figure(
    runs: Annotated[
        list[Path], typer.Argument(help="Directories that train wrote.", metavar="RUNS")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Figure (.png, .svg, .pdf). [default: figure5.png in the first run]"),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the figure.")] = "",
) -> None:
    """Draw Figure 5: accuracy over the steps, one line per α and one for α̂.

    Lines are means over the seeds, shades reach from the smallest to the largest. A run that is
    still being trained is drawn as far as it is.
    """
    from selfdistill_fast.plotting import figure_format, figure_training, save_figure
    from selfdistill_fast.trainer.experiment import accuracies

    out = out or runs[0] / "figure5.png"
    _check_outputs(out)
    figure_format(out)
    chains = accuracies(runs)
    save_figure(figure_training(chains, title=title), out)
    _print_chains(chains)
    _say(f"figure written to {out}")


# -------------------------------------------------------------------- sweep
@app.command("sweep")
@_command
def _sweep(
    config: Annotated[Path, typer.Argument(help="TOML file.", metavar="CONFIG")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start afresh where the store exists.")
    ] = False,
    dask: Annotated[
        str | None,
        typer.Option(help="Compute on the cluster of this Dask scheduler.", metavar="ADDRESS"),
    ] = None,
    top: Annotated[int, typer.Option(help="Cells in the table.", min=1)] = 10,
) -> None:
    """Score a grid of kernels, λ, α and steps that a TOML file describes.

    The file has the tables data, kernels, grid, solver and output; paths are relative to it.
    Interrupted and started again, it goes on with what is missing in the store. Errors are
    printed and drawn as root mean squared errors in the units of the data.
    """
    from selfdistill_fast import SweepResult, sweep
    from selfdistill_fast.cli.sweep_file import ConfigError, SweepConfig
    from selfdistill_fast.plotting import figure_format, save_figure

    try:
        asked = SweepConfig.read(config)
    except ConfigError as error:
        raise InputError(str(error)) from None
    _check_outputs(asked.figure)
    if asked.figure is not None:
        figure_format(asked.figure)
    client = None
    if dask is not None:
        from distributed import Client

        client = Client(dask)
    try:
        result = sweep(**asked.options, store=asked.store, overwrite=overwrite, client=client)
    except KeyboardInterrupt as interrupt:
        _say("; ".join(getattr(interrupt, "__notes__", ["interrupted"])), "yellow")
        raise typer.Exit(130) from None
    except TypeError as error:  # a value of the wrong kind in the file
        raise InputError(f"{config}: {error}") from error
    finally:
        if client is not None:
            client.close()
    dataset = result.dataset.assign_coords(target=asked.layout.target_names)
    units = np.square(asked.scaling.y_std)  # of errors in the units of the data
    errors = {name: dataset[name] * units for name in ("mse_val", "mse_loo") if name in dataset}
    result = SweepResult(dataset.assign(errors), result.kernels)
    counts = [f"{len(asked.train)} training rows"]
    if asked.validation is not None:
        counts.append(f"{len(asked.validation)} validation rows")
    _print_sweep(result, f"{asked.source}: {', '.join(counts)}", top)
    if asked.figure is not None:
        save_figure(result.plot(), asked.figure)
        _say(f"figure written to {asked.figure}")
    if asked.store is not None:
        scaled = any(std != 1.0 for std in asked.scaling.y_std)
        _say(
            f"store written to {asked.store}"
            + ("; its errors are those of standardised targets" if scaled else "")
        )


def _print_sweep(result: Any, about: str, top: int) -> None:
    """The best cells; the first step once, since it has no α."""
    frame = result.to_dataframe()
    columns = {"mse_val": "validation", "mse_loo": "leave-one-out"}
    columns = {name: word for name, word in columns.items() if name in frame}
    chosen_on = result.dataset.attrs["chosen_on"]
    ranked = next(name for name, word in columns.items() if word == chosen_on)
    cells = frame.groupby(["kernel", "lam", "alpha", "step"], sort=False)
    cells = cells[[*columns, "alphas"]].mean().reset_index()
    first = cells.step == 1
    cells.loc[first, "alpha"] = "–"
    cells = cells.drop_duplicates(["kernel", "lam", "alpha", "step"])
    cells = cells.sort_values(ranked, kind="stable")
    console = _out()
    sizes = result.dataset.sizes
    console.print(
        f"{about}; {sizes['kernel']} kernels × {sizes['lam']} λ × {sizes['alpha']} α × "
        f"{sizes['step']} steps, solver {', '.join(sorted(set(result.dataset.solver.values)))}\n",
        markup=False,
        soft_wrap=True,
    )
    table = _table("kernel", "λ", "α", "step", "its α", *columns.values())
    table.columns[0].justify, table.columns[0].no_wrap = "left", False  # gives way first
    for row in cells.head(top).itertuples():
        errors = (_error(math.sqrt(getattr(row, name))) for name in columns)
        table.add_row(
            row.kernel, f"{row.lam:.4g}", row.alpha, str(row.step), _alpha(row.alphas), *errors
        )
    console.print(table)
    console.print(
        f"\nRoot mean squared errors, ranked by {chosen_on}; {len(cells)} different cells."
    )
    best, lams = result.best(), result.dataset.lam.values
    if len(lams) > 1 and best["lam"] in (lams.min(), lams.max()):
        _say(
            f"hint: the best λ, {best['lam']:g}, lies on the edge of the grid; a smaller error may "
            "lie beyond",
            "yellow",
        )


# --------------------------------------------------------------------- info
@app.command()
@_command
def plan(
    n: Annotated[int, typer.Argument(help="Training rows.", metavar="N")],
    d: Annotated[int, typer.Argument(help="Features.", metavar="D")],
    p: Annotated[int, typer.Argument(help="Targets.", metavar="[P]")] = 1,
    lam: Annotated[
        list[float] | None,
        typer.Option(help="A ridge that will be asked for; repeat it for a grid. [default: any]"),
    ] = None,
    steps: Annotated[int, typer.Option(help="Distillation steps.")] = 2,
    loo: Annotated[bool, typer.Option("--loo", help="Leave-one-out is needed.")] = False,
    float32: Annotated[bool, typer.Option("--float32", help="Rows in single precision.")] = False,
    tol: Annotated[float | None, typer.Option(help="Tolerance of solver krylov.")] = None,
    landmarks: Annotated[int, typer.Option(help="Landmarks of solver nystrom.")] = 1000,
    max_memory: Annotated[
        float | None, typer.Option(help="GiB allowed. [default: 80 % of what is available]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what each solver would take for N rows of D features, and which to use.

    Memory, floating-point operations, passes over the kernel matrix, and the time on this
    machine, from rates that are measured in about a second.
    """
    from selfdistill_fast import plan as planned

    if lam is None or len(lam) != 1:
        lams: Any = lam or None
    else:
        lams = lam[0]
    try:
        with _progress("measuring this machine"):
            result = planned(
                n,
                d,
                p,
                lam=lams,
                leave_one_out=loo,
                dtype="float32" if float32 else "float64",
                max_memory=None if max_memory is None else int(max_memory * 2**30),
                n_steps=steps,
                tol=tol,
                n_landmarks=landmarks,
            )
    except ValueError as error:
        raise InputError(str(error)) from None
    if as_json:
        print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
        return
    _out().print(str(result), markup=False, soft_wrap=True, highlight=False)


@app.command()
@_command
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Test the main calls of each backend; exit status 1 on a fault."
        ),
    ] = False,
) -> None:
    """Show what this installation runs on: instruction sets, BLAS, threads, GPU, versions."""
    from selfdistill_fast._config import show_config

    config = show_config()
    checks: list[Any] = []
    if not as_json:
        _out().print(config.table(), markup=False, soft_wrap=True)
        for note in config["notes"]:
            _out().print(f"\nnote: {note}", markup=False, soft_wrap=True)
        for caution in config["warnings"]:
            _say(f"warning: {caution}", "yellow")
    if check:
        checks = _self_check(show=not as_json)
    if as_json:
        report = dict(config)
        if check:
            report["check"] = [asdict(one) for one in checks]
        print(json.dumps(report, indent=2, ensure_ascii=False))
    if any(one.fault is not None for one in checks):
        raise typer.Exit(1)


def _self_check(show: bool) -> list[Any]:
    """Every check of :func:`~selfdistill_fast._check.self_check`, a line for each as it ends."""
    from selfdistill_fast._check import self_check

    if show:
        _out().print()
    done = []
    for one in self_check():
        done.append(one)
        if show:
            line = f"{one.backend:<10} {one.call:<32} {one.seconds:6.2f} s  "
            line += "ok" if one.fault is None else f"FAULT: {one.fault}"
            _out().print(Text(line, style="" if one.fault is None else "bold red"), soft_wrap=True)
    faults = sum(one.fault is not None for one in done)
    if show and faults:
        _say(f"{faults} of {len(done)} checks failed", "bold red")
    elif show:
        _out().print(f"{len(done)} checks passed")
    return done
