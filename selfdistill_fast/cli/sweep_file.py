"""A sweep described by a TOML file: what ``selfdistill-fast sweep`` reads.

::

    [data]                        # file or sklearn; all else is optional
    file = "data.csv"             # CSV or Parquet, relative to this file
    sklearn = "diabetes"          # or a data set that comes with scikit-learn
    target = "y"                  # a column or several [the last]
    weights = "w"                 # a column of sample weights
    drop = ["id"]                 # columns to leave out
    header = true                 # whether a CSV has one [found out]
    validation = 0.2              # a fraction, a file, or "MASKFILE:COLUMN" [leave-one-out]
    seed = 0                      # of that fraction
    standardize = true            # features and targets, by the training rows [false]

    [[kernels]]                   # as often as wanted; a list stands for one kernel each
    name = "rbf"
    gamma = [0.01, 0.1]           # or { from = 0.01, to = 1, count = 5 }, evenly on a log scale

    [grid]
    lams = { from = 1e-3, to = 10, count = 10 }
    alphas = [0, 0.25, "optimal", "joint"]
    steps = 6
    leave_one_out = true          # beside a validation set [only without one]
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

A key that is not there above is an error.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill_fast.cli.tables import Layout, Rows, Scaling, Table, read_table, split
from selfdistill_fast.kernels import KERNELS, NTK, Kernel, kernel_from_name

__all__ = ["ConfigError", "SweepConfig"]

KEYS: dict[str, tuple[str, ...]] = {
    "data": (
        "file", "sklearn", "target", "weights", "drop", "header", "validation", "seed",
        "standardize",
    ),
    "kernels": ("name", "gamma", "degree", "coef0", "length_scale", "nu", "depth"),
    "grid": ("lams", "alphas", "steps", "leave_one_out", "intercept", "clip"),
    "solver": ("name", "random_state", "max_memory", "options"),
    "output": ("store", "figure"),
}  # fmt: skip
REQUIRED = {"kernels": ("name",), "grid": ("lams", "alphas", "steps")}
SKLEARN = ("breast_cancer", "diabetes", "digits", "iris", "wine")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file and the key."""


@dataclass(frozen=True)
class SweepConfig:
    """What a file asks for, data included.

    Attributes
    ----------
    source : str
        What the data are called.
    layout : Layout
    train, validation : Rows
        In the units of the data; validation may be None.
    scaling : Scaling
    options : dict
        Keyword arguments of :func:`~selfdistill_fast.sweep`, with ``X`` and ``y``.
    store, figure : Path or None
    """

    source: str
    layout: Layout
    train: Rows
    validation: Rows | None
    scaling: Scaling
    options: dict[str, Any]
    store: Path | None
    figure: Path | None

    @classmethod
    def read(cls, path: Path) -> SweepConfig:
        """Read a file and the data that it names.

        Raises
        ------
        ConfigError, TableError
            Not TOML, an unknown or missing key, a value of the wrong kind; data that cannot
            be used.
        """
        try:
            with path.open("rb") as file:
                content = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: {error}") from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        tables = _Tables(path, content)
        table, layout, train, validation = _data(tables)
        scaling = Scaling.of(train, wanted=tables.get("data", "standardize", bool, False))
        rows = scaling.apply(train)
        options: dict[str, Any] = {
            "X": rows.X,
            "y": rows.Y,
            "sample_weight": rows.w,
            "kernels": _kernels(tables, rows.X.shape[1]),
            "lams": tables.values("grid", "lams"),
            "alphas": tables.get("grid", "alphas", list),
            "n_steps": tables.get("grid", "steps", int),
            "leave_one_out": tables.get("grid", "leave_one_out", bool),
            "fit_intercept": tables.get("grid", "intercept", bool, False),
            "clip": tables.get("grid", "clip", bool, False),
            "solver": tables.get("solver", "name", str, "auto"),
            "solver_options": tables.get("solver", "options", dict),
            "random_state": tables.get("solver", "random_state", int),
            "max_memory": tables.get("solver", "max_memory", float),
        }
        if validation is not None:
            scaled = scaling.apply(validation)
            options |= {"X_val": scaled.X, "y_val": scaled.Y, "sample_weight_val": scaled.w}
        return cls(
            table.source,
            layout,
            train,
            validation,
            scaling,
            options,
            tables.path("output", "store"),
            tables.path("output", "figure"),
        )


class _Tables:
    """The tables of a file, checked for unknown keys, and typed access to their values."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.file = path
        self.content = content
        self._known(content, KEYS, "")
        for name in ("data", "kernels", "grid"):
            if name not in content:
                raise ConfigError(f"{path}: [{name}] is missing")
        for name, table in content.items():
            several = name == "kernels"
            parts: list[Any] = table if several and isinstance(table, list) else [table]
            if isinstance(table, list) != several or not all(isinstance(p, dict) for p in parts):
                raise ConfigError(
                    f"{path}: {name} must be a table, [{'[kernels]' if several else name}]"
                )
            for part in parts:
                self._known(part, KEYS[name], f"[{name}]: ")
                for key in REQUIRED.get(name, ()):
                    if key not in part:
                        raise ConfigError(f"{path}: [{name}] needs {key}")

    def _known(self, table: dict[str, Any], known: Any, where: str) -> None:
        for key in table:
            if key not in known:
                raise ConfigError(
                    f"{self.file}: {where}unknown key {key!r}; known: {', '.join(known)}"
                )

    def get(self, table: str, key: str, kind: type, default: Any = None) -> Any:
        """A value of the kind, or the default."""
        value = self.content.get(table, {}).get(key)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return value
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            names = {bool: "true or false", int: "an integer", str: "text", list: "a list",
                     dict: "a table", float: "a number"}  # fmt: skip
            raise ConfigError(f"{self.file}: [{table}] {key} must be {names[kind]}, got {value!r}")
        return value

    def path(self, table: str, key: str) -> Path | None:
        """A path relative to the file."""
        value = self.get(table, key, str)
        return None if value is None else self.file.parent / value

    def values(self, table: str, key: str, value: Any = None) -> list[Any]:
        """Numbers: a list, one number, or evenly on a log scale."""
        value = self.content[table][key] if value is None else value
        if isinstance(value, dict):
            where = f"{self.file}: [{table}] {key}"
            if set(value) != {"from", "to", "count"}:
                raise ConfigError(f"{where} must have from, to and count, got {value!r}")
            low, high, count = value["from"], value["to"], value["count"]
            numbers = all(type(v) in (int, float) and 0 < v < math.inf for v in (low, high))
            if not (numbers and type(count) is int and count >= 1):
                raise ConfigError(
                    f"{where}: from and to must be finite and > 0 and count >= 1, got {value!r}"
                )
            return [float(f"{number:.12g}") for number in np.geomspace(low, high, count)]
        value = value if isinstance(value, list) else [value]
        for number in value:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise ConfigError(f"{self.file}: [{table}] {key} must hold numbers, got {number!r}")
        return value


def _data(tables: _Tables) -> tuple[Table, Layout, Rows, Rows | None]:
    """The table, its layout, training rows and validation rows."""
    data, folder = tables.content["data"], tables.file.parent
    if ("file" in data) == ("sklearn" in data):
        raise ConfigError(f"{tables.file}: [data] needs either file or sklearn")
    header = tables.get("data", "header", bool)
    if "file" in data:
        table = read_table(folder / tables.get("data", "file", str), header=header)
    else:
        table = _sklearn_table(tables)
    weights = data.get("weights")
    layout = Layout.choose(
        table,
        _names(data.get("target", "-1")),
        None if weights is None else str(weights),
        _names(data.get("drop", [])),
    )
    held = data.get("validation")
    if isinstance(held, str):  # a file, with or without a column
        held = str(folder / held)
    spec = None if held is None else str(held)
    seed = tables.get("data", "seed", int, 0)
    if seed < 0:
        raise ConfigError(f"{tables.file}: [data] seed must be >= 0, got {seed}")
    train, parts = split(
        table,
        layout,
        {"validation": spec},
        seed=seed,
        header=header,
    )
    if len(train) < 2:
        raise ConfigError(f"{len(train)} training row(s) are left; at least 2 are needed")
    return table, layout, train, parts.get("validation")


def _names(value: Any) -> list[str]:
    return [str(name) for name in (value if isinstance(value, list) else [value])]


def _sklearn_table(tables: _Tables) -> Table:
    """A data set that scikit-learn brings along; the last column is the target."""
    from sklearn import datasets

    name = tables.get("data", "sklearn", str)
    if name not in SKLEARN:
        raise ConfigError(
            f"{tables.file}: [data] sklearn must be one of {', '.join(SKLEARN)}; got {name!r}"
        )
    frame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    return Table(frame, f"sklearn {name}", True)


def _kernels(tables: _Tables, n_features: int) -> list[Kernel]:
    """Every combination of the parameters of every [[kernels]] table."""
    found: list[Kernel] = []
    for part in tables.content["kernels"]:
        name = "polynomial" if part["name"] == "poly" else part["name"]
        names = [known for known in KERNELS if known != "precomputed"]
        if name not in names:
            raise ConfigError(
                f"{tables.file}: [[kernels]] unknown kernel {name!r}; known: {', '.join(names)}"
            )
        known = [field.name for field in fields(KERNELS[name])]
        grid: dict[str, Sequence[Any]] = {}
        for key, value in part.items():
            if key == "name":
                continue
            if key not in known:
                raise ConfigError(
                    f"{tables.file}: [[kernels]] {key} has no meaning for the kernel {name}, which "
                    f"takes {', '.join(known) or 'no parameters'}"
                )
            grid[key] = tables.values("kernels", key, value)
        for values in itertools.product(*grid.values()):
            given = dict(zip(grid, values, strict=True))
            try:
                kernel = (
                    NTK(**given) if name == "ntk" else kernel_from_name(name, n_features, **given)
                )
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{tables.file}: [[kernels]] {error}") from None
            found.append(kernel)
    return found
