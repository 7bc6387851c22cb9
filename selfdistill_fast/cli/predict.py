"""``selfdistill-fast predict``: predictions of a saved model for the rows of a table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from selfdistill_fast.cli import console
from selfdistill_fast.cli.dataset import from_description
from selfdistill_fast.cli.options import Data, Header, check_outputs
from selfdistill_fast.cli.tables import read_table, write_table

__all__ = ["predict"]


def predict(
    model: Annotated[Path, typer.Argument(help="A model written by fit --save.", metavar="MODEL")],
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option(help="CSV (also .gz) or Parquet file. [default: CSV on standard output]"),
    ] = None,
    step: Annotated[
        str,
        typer.Option(
            help="Which step: 'best' (the smallest held-out error, where α was chosen; else the "
            "last), 'last', a number, 'all' or 'inf' (the limit)."
        ),
    ] = "best",
    header: Header = None,
) -> None:
    """Predict the rows of a file with a saved model.

    Columns are matched by name if both files have names, otherwise by number; the target
    column is optional. Predictions are in the units of the training data.
    """
    from selfdistill_fast import load

    check_outputs(out)
    if not model.exists():
        raise console.InputError(f"no such file: {model}")
    if model.is_dir():
        raise console.InputError(f"{model} is a directory, not a saved model")
    path = load(model)
    try:
        layout, scaling = from_description(path.metadata)
    except (KeyError, TypeError):
        raise console.InputError(
            f"{model} was not saved by 'selfdistill-fast fit --save' and does not say which "
            "columns it needs; use selfdistill_fast.load in Python"
        ) from None
    wanted = _parse_step(step, path.n_steps)
    X = scaling.features(layout.features_of(read_table(data, header=header)))
    with console.progress(f"predicting {len(X)} rows"):
        F = np.asarray(path.predict(X, step=wanted))
    F = scaling.original(F.reshape(-1, len(X), len(layout.targets)))  # (steps, m, targets)
    names = layout.target_names
    if not layout.has_names:
        names = [f"prediction{j}" for j in layout.targets] if len(names) > 1 else ["prediction"]
    if wanted == "all":
        names = [f"{name}_step{t}" for t in range(1, len(F) + 1) for name in names]
    write_table(out, names, np.moveaxis(F, 0, 1).reshape(len(X), -1))
    if out is not None:
        console.say(f"{len(X)} predictions written to {out}")


def _parse_step(text: str, n_steps: int) -> Any:
    words = {"best": None, "last": "last", "all": "all", "inf": math.inf}
    if text in words:
        return words[text]
    try:
        step = int(text)
    except ValueError:
        step = 0
    if not 1 <= step <= n_steps:
        raise console.InputError(
            f"--step must be 1 to {n_steps}, 'best', 'last', 'all' or 'inf'; got {text!r}"
        )
    return step
