"""A sweep described by a TOML file: what ``selfdistill-fast sweep`` reads.

::

    [data]                        # file or sklearn; all else is optional
    file = "data.csv"             # CSV or Parquet, relative to this file
    sklearn = "diabetes"          # or a data set that comes with scikit-learn
    target = "y"                  # a column or several [the last]
    weights = "w"                 # a column of sample weights
    drop = ["id"]                 # columns to leave out
    header = true                 # whether a CSV has one [detected]
    validation = 0.2              # a fraction, a file, or "MASKFILE:COLUMN" [leave-one-out]
    seed = 0                      # seed of that fraction
    standardize = true            # features and targets, by the training rows [false]

    [[kernels]]                   # as often as wanted; a list stands for one kernel each
    name = "rbf"
    gamma = [0.01, 0.1]           # or { from = 0.01, to = 1, count = 5 }, evenly on a log scale

    [grid]
    lams = { from = 1e-3, to = 10, count = 10 }
    alphas = [0, 0.25, "optimal", "joint"]
    steps = 6
    leave_one_out = true          # besides a validation set [only without one]
    intercept = false
    clip = false

    [solver]                      # optional
    name = "auto"
    random_state = 0
    max_memory = 8e9
    options = { n_landmarks = 500 }

    [output]                      # optional
    store = "sweep.zarr"
    figure = "sweep.png"

Any other key is an error.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from selfdistill_fast.cli.console import InputError
from selfdistill_fast.cli.dataset import Dataset
from selfdistill_fast.cli.options import kernels_from
from selfdistill_fast.cli.tables import Table, is_number, read_table

__all__ = ["ConfigError", "SweepConfig"]

SKLEARN = ("breast_cancer", "diabetes", "digits", "iris", "wine")


class ConfigError(InputError):
    """A configuration that cannot be used; the message names the file and the key."""


# ------------------------------------------------------------- what a file holds
class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Range(_Section):
    low: float = Field(alias="from", gt=0, allow_inf_nan=False)
    high: float = Field(alias="to", gt=0, allow_inf_nan=False)
    count: int = Field(ge=1)


def _values(value: Any) -> list[Any]:
    """Numbers: a list, one number, or evenly on a log scale."""
    if isinstance(value, dict):
        try:
            found = _Range.model_validate(value)
        except ValidationError as error:
            if {e["type"] for e in error.errors()} & {"missing", "extra_forbidden"}:
                raise ValueError(f"must have from, to and count, got {value!r}") from None
            raise ValueError(
                f": from and to must be finite and > 0 and count >= 1, got {value!r}"
            ) from None
        numbers = np.geomspace(found.low, found.high, found.count)
        return [float(f"{number:.12g}") for number in numbers]
    value = value if isinstance(value, list) else [value]
    for number in value:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ValueError(f"must hold numbers, got {number!r}")
    return value


def _names(value: Any) -> list[str]:
    return [str(name) for name in (value if isinstance(value, list) else [value])]


Values = Annotated[list[Any], BeforeValidator(_values)]
#: a column by name or number; a fraction, a file or a mask
Text = Annotated[str, BeforeValidator(str)]
Names = Annotated[list[str], BeforeValidator(_names)]


class _Data(_Section):
    file: str | None = None
    sklearn: Literal[SKLEARN] | None = None  # type: ignore[valid-type]
    target: Names = ["-1"]
    weights: Text | None = None
    drop: Names = []
    header: bool | None = None
    validation: Text | None = None
    seed: int = Field(0, ge=0)
    standardize: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> _Data:
        if (self.file is None) == (self.sklearn is None):
            raise ValueError("needs either file or sklearn")
        return self


class _Kernels(_Section):
    name: str
    gamma: Values | None = None
    degree: Values | None = None
    coef0: Values | None = None
    length_scale: Values | None = None
    nu: Values | None = None
    depth: Values | None = None


class _Grid(_Section):
    lams: Values
    alphas: list[Any]
    steps: int
    leave_one_out: bool | None = None
    intercept: bool = False
    clip: bool = False


class _Solver(_Section):
    name: str = "auto"
    random_state: int | None = None
    max_memory: float | None = None
    options: dict[str, Any] | None = None


class _Output(_Section):
    store: str | None = None
    figure: str | None = None


class _File(_Section):
    data: _Data
    kernels: list[_Kernels]
    grid: _Grid
    solver: _Solver = _Solver()
    output: _Output = _Output()


TABLES: dict[str, type[BaseModel]] = {
    "data": _Data, "kernels": _Kernels, "grid": _Grid, "solver": _Solver, "output": _Output,
}  # fmt: skip
#: what a value should have been, by pydantic's name of the error
EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "a list",
    "string_type": "text",
}


def _mistake(error: Any) -> str:
    """One error of pydantic in terms of the file."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    table, *keys = (part for part in error["loc"] if isinstance(part, str))
    if kind == "extra_forbidden":
        key = keys[0] if keys else table
        known = [*(TABLES[table].model_fields if keys else TABLES)]
        near = difflib.get_close_matches(key, known, n=1)
        return (
            (f"[{table}]: " if keys else "")
            + f"unknown key {key!r}; known: {', '.join(known)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    if kind == "missing":
        return f"[{table}] needs {keys[0]}" if keys else f"[{table}] is missing"
    if kind == "value_error":
        message = str(context["error"])
    elif kind == "literal_error":
        message = f"must be one of {', '.join(SKLEARN)}; got {value!r}"
    elif kind == "greater_than_equal":
        message = f"must be >= {context['ge']}, got {value!r}"
    elif not keys:
        return f"{table} must be a table, [{'[kernels]' if table == 'kernels' else table}]"
    else:
        message = f"must be {EXPECTED.get(kind, kind)}, got {value!r}"
    where = " ".join([f"[{table}]", *keys])
    return where + message if message.startswith(":") else f"{where} {message}"


# ------------------------------------------------------------- its request
@dataclass(frozen=True)
class SweepConfig:
    """The request of a file, including the data.

    Attributes
    ----------
    data : Dataset
    options : dict
        Keyword arguments of :func:`~selfdistill_fast.sweep`, with ``X`` and ``y``.
    store, figure : Path or None
    """

    data: Dataset
    options: dict[str, Any]
    store: Path | None
    figure: Path | None

    @classmethod
    def read(cls, path: Path) -> SweepConfig:
        """Read a file and the data it refers to.

        Raises
        ------
        ConfigError, TableError
            Not TOML, an unknown or missing key, a value of the wrong kind; unusable data.
        """
        try:
            with path.open("rb") as stream:
                content = tomllib.load(stream)
            file = _File.model_validate(content)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: {error}") from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except ValidationError as error:
            # an unknown key explains what is missing
            first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
            raise ConfigError(f"{path}: {_mistake(first)}") from None
        data = _dataset(file.data, path.parent)
        try:
            kernels = [
                kernel
                for part, given in zip(file.kernels, content["kernels"], strict=True)
                for kernel in kernels_from(
                    part.name,
                    # in the order of the file
                    {name: getattr(part, name) for name in given if name != "name"},
                    len(data.layout.features),
                    what="kernel",
                )
            ]
        except InputError as error:
            raise ConfigError(f"{path}: [[kernels]] {error}") from None
        rows = data.scaling.apply(data.train)
        options: dict[str, Any] = {
            "X": rows.X,
            "y": rows.Y,
            "sample_weight": rows.w,
            "kernels": kernels,
            "lams": file.grid.lams,
            "alphas": file.grid.alphas,
            "n_steps": file.grid.steps,
            "leave_one_out": file.grid.leave_one_out,
            "fit_intercept": file.grid.intercept,
            "clip": file.grid.clip,
            "solver": file.solver.name,
            "solver_options": file.solver.options,
            "random_state": file.solver.random_state,
            "max_memory": file.solver.max_memory,
        }
        for held in data.held.values():
            scaled = data.scaling.apply(held)
            options |= {"X_val": scaled.X, "y_val": scaled.Y, "sample_weight_val": scaled.w}
        store, figure = (
            None if name is None else path.parent / name
            for name in (file.output.store, file.output.figure)
        )
        return cls(data, options, store, figure)


def _dataset(data: _Data, folder: Path) -> Dataset:
    """The rows that [data] names; paths are relative to the folder."""
    if data.file is not None:
        table = read_table(folder / data.file, header=data.header)
    else:  # comes with scikit-learn; the last column is the target
        from sklearn import datasets

        frame = getattr(datasets, f"load_{data.sklearn}")(as_frame=True).frame
        table = Table(frame, f"sklearn {data.sklearn}", True)
    held = data.validation
    if held is not None and not is_number(held):  # a file, with or without a column
        held = str(folder / held)
    return Dataset.of(
        table,
        data.target,
        data.weights,
        data.drop,
        {"validation": held},
        seed=data.seed,
        header=data.header,
        standardize=data.standardize,
    )
