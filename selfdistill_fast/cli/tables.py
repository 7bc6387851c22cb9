"""Tables from CSV and Parquet files: columns, rows that are held out, standardisation.

What the command line does between a file and the arrays of a fit::

    read_table → Table → Layout (which columns are what) → Rows → split → Scaling

A file is read as it is; a column is turned into numbers when it is asked for, so that
columns nobody uses may hold anything. What cannot be used is a :class:`TableError` that
names file, column and row. Rows are counted from 1, the header not included. Numbers are
parsed and written so that they survive a round trip to the last bit.
"""

from __future__ import annotations

import difflib
import sys
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill_fast._files import replacing

__all__ = [
    "Layout",
    "Rows",
    "Scaling",
    "Table",
    "TableError",
    "describe",
    "from_description",
    "read_table",
    "split",
    "write_table",
]

PARQUET = (".parquet", ".pq")
#: cells that are missing values rather than text
MISSING = {"", "na", "n/a", "nan", "null", "none", "<na>", "#n/a", "-nan", "#na"}


class TableError(ValueError):
    """A table that cannot be used as asked; the message says where and why."""


@dataclass(frozen=True)
class Table:
    """The columns of one file.

    Parameters
    ----------
    frame : pandas.DataFrame
    source : str
        What error messages call the file.
    has_names : bool
        Whether the columns have names of their own; else they are called "0", "1", ….
    """

    frame: Any
    source: str
    has_names: bool

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def names(self) -> list[str]:
        """Names of all columns."""
        return [str(name) for name in self.frame.columns]

    def find(self, column: str | int) -> int:
        """Position of a column given by name, or by number (negative: from the end)."""
        names, text = self.names, str(column)
        if text in names:
            if names.count(text) > 1:
                raise TableError(f"{self.source} has {names.count(text)} columns named {text!r}")
            return names.index(text)
        try:
            number = int(text)
        except ValueError:
            near = difflib.get_close_matches(text, names, n=1)
            raise TableError(
                f"{self.source} has no column {text!r}; "
                + (f"did you mean {near[0]!r}? " if near else "")
                + f"there are: {_shorten(names)}"
                + ("" if self.has_names else " (it has no header)")
            ) from None
        if not -len(names) <= number < len(names):
            raise TableError(
                f"{self.source} has no column {number}: it has {len(names)} columns, "
                f"numbered from 0 to {len(names) - 1}"
            )
        return number % len(names)

    def array(self, columns: Sequence[int]) -> np.ndarray:
        """The given columns as float64 (n, len(columns)), C-contiguous.

        Raises
        ------
        TableError
            A cell that is text, missing or infinite; the message names column and row.
        """
        out = np.empty((len(self.frame), len(columns)))
        for j, column in enumerate(columns):
            out[:, j] = self._numbers(column)
        return out

    def _numbers(self, column: int) -> np.ndarray:
        import pandas as pd

        cells = self.frame.iloc[:, column]
        where = f"{self.source}, column {self.names[column]!r}"
        if pd.api.types.is_datetime64_any_dtype(cells.dtype) or cells.dtype.kind == "m":
            raise TableError(
                f"{where} holds dates, not numbers; encode it or leave it out (--drop)"
            )
        if pd.api.types.is_numeric_dtype(cells.dtype):
            numbers = cells
        else:
            numbers = pd.to_numeric(cells, errors="coerce")
        values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isfinite(values).all():
            return values
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        cell = cells.iloc[row]
        count = int((~np.isfinite(values)).sum())
        more = f" (and {count - 1} more in this column)" if count > 1 else ""
        if np.isinf(values[row]):
            raise TableError(f"{where}, row {row + 1}: infinite value{more}")
        if pd.isna(cell) or str(cell).strip().lower() in MISSING:
            raise TableError(
                f"{where}, row {row + 1}: missing value{more}; drop or impute such rows first"
            )
        raise TableError(
            f"{where}, row {row + 1}: {str(cell)!r} is not a number{more}; "
            "encode the column or leave it out (--drop)"
        )


def read_table(path: str | Path, *, header: bool | None = None) -> Table:
    """Read a CSV (optionally compressed, by suffix) or Parquet file.

    Parameters
    ----------
    path : path
        ``.parquet`` or ``.pq`` is Parquet; everything else is CSV. The separator is a
        comma, or else a semicolon, tab or white space, whichever the first line has.
    header : bool, optional
        Whether the first line of a CSV holds names. By default it does if any of its
        cells is neither a number nor empty.

    Returns
    -------
    Table

    Raises
    ------
    TableError
        No such file, not readable, no rows, or rows of different lengths.
    """
    pd = _pandas()
    path = Path(path)
    name = path.name
    if path.is_dir():
        raise TableError(f"{path} is a directory, not a data file")
    if not path.exists():
        raise TableError(f"no such file: {path}")
    try:
        if path.suffix.lower() in PARQUET:
            table = Table(pd.read_parquet(path), name, True)
        else:
            table = _read_csv(pd, path, header)
    except TableError:
        raise
    except pd.errors.EmptyDataError:
        raise TableError(f"{name} is empty") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        raise TableError(f"{name}: rows of different lengths, or not a table: {reason}") from None
    except UnicodeDecodeError:
        raise TableError(f"{name} is not a text file in UTF-8; expected CSV or Parquet") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise TableError(f"cannot read {path}: {error}") from None
    if len(table) == 0:
        raise TableError(f"{name} has no rows")
    return table


def _read_csv(pd: Any, path: Path, header: bool | None) -> Table:
    separator = ","
    first = _first_line(pd, path, separator)
    if len(first) == 1:
        for found, wanted in ((";", ";"), ("\t", "\t"), (" ", r"\s+")):
            if found in first[0].strip():
                separator = wanted
                first = _first_line(pd, path, separator)
                break
    if header is None:
        header = any(not _is_number(cell) and cell.strip().lower() not in MISSING for cell in first)
    # pandas 3.1 has one converter, which is exact; before, one had to ask for it
    before_31 = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
    exact = {"float_precision": "round_trip"} if before_31 else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            path,
            sep=separator,
            header=0 if header else None,
            index_col=False,
            skipinitialspace=True,
            encoding="utf-8-sig",
            low_memory=False,
            **exact,
        )
    if header:
        frame.columns = [str(name).strip() for name in frame.columns]
    return Table(frame, path.name, bool(header))


def _first_line(pd: Any, path: Path, separator: str) -> list[str]:
    frame = pd.read_csv(
        path,
        sep=separator,
        header=None,
        nrows=1,
        dtype=str,
        keep_default_na=False,
        index_col=False,
        skipinitialspace=True,
        encoding="utf-8-sig",
    )
    return [str(cell) for cell in frame.iloc[0]]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def write_table(path: str | Path | None, names: Sequence[str], values: np.ndarray) -> None:
    """Write columns as CSV or Parquet by suffix, or as CSV to standard output.

    A file appears complete or not at all.

    Parameters
    ----------
    path : path or None
        None writes to standard output.
    names : sequence of str, one per column
    values : (n, len(names)) array
    """
    frame = _pandas().DataFrame(np.asarray(values), columns=list(names))
    if path is None:
        frame.to_csv(sys.stdout, index=False)
        return
    path = Path(path)
    if not path.parent.is_dir():
        raise TableError(f"cannot write {path}: there is no directory {path.parent}")
    with replacing(path) as aside:  # with the same suffixes: pandas compresses by them
        if path.suffix.lower() in PARQUET:
            frame.to_parquet(aside, index=False)
        else:
            frame.to_csv(aside, index=False)


# ------------------------------------------------------------- columns and rows
@dataclass(frozen=True)
class Rows:
    """Rows of a data set: features X (m, d), targets Y (m, p), weights w (m,) or None."""

    X: np.ndarray
    Y: np.ndarray
    w: np.ndarray | None

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, chosen: np.ndarray) -> Rows:
        return Rows(self.X[chosen], self.Y[chosen], None if self.w is None else self.w[chosen])

    def rmse(self, predictions: np.ndarray) -> np.ndarray:
        """Weighted root mean squared error of predictions (T, m, p), over m and p: (T,)."""
        squares = np.mean((predictions - self.Y) ** 2, axis=2)
        return np.sqrt(np.average(squares, axis=1, weights=self.w))


@dataclass(frozen=True)
class Layout:
    """Which columns of a file are features, targets and weights.

    Parameters
    ----------
    names : list of str
        All columns of the file that was fitted on.
    has_names : bool
        As in :class:`Table`.
    features, targets : list of int
    weights : int or None
    """

    names: list[str]
    has_names: bool
    features: list[int]
    targets: list[int]
    weights: int | None

    @classmethod
    def choose(
        cls, table: Table, targets: Sequence[str], weights: str | None, drop: Sequence[str]
    ) -> Layout:
        """From what the user names; every other column is a feature."""
        chosen = [table.find(name) for name in targets]
        names = table.names
        if len(set(chosen)) < len(chosen):
            raise TableError("the same column is named twice as a target")
        weight = None if weights is None else table.find(weights)
        if weight is not None and weight in chosen:
            raise TableError(f"column {names[weight]!r} is named both as target and as weights")
        dropped = {table.find(name) for name in drop}
        for j in dropped & {*chosen, weight}:
            raise TableError(f"column {names[j]!r} is to be dropped, but is target or weights")
        features = [j for j in range(len(names)) if j not in {*chosen, weight, *dropped}]
        if not features:
            raise TableError(
                f"{table.source}: none of its {len(names)} column(s) is left as feature"
            )
        return cls(names, table.has_names, features, chosen, weight)

    @property
    def target_names(self) -> list[str]:
        """Names of the targets."""
        return [self.names[j] for j in self.targets]

    def rows(self, table: Table) -> Rows:
        """The numbers of the file that was fitted on, or of another one with all its columns."""
        if self.has_names and table.has_names:
            place = {j: table.find(self.names[j]) for j in (*self.features, *self.targets)}
            weights = None if self.weights is None else table.find(self.names[self.weights])
        elif len(table.names) == len(self.names):
            place = {j: j for j in range(len(self.names))}
            weights = self.weights
        else:
            raise TableError(
                f"{table.source} has {len(table.names)} columns, expected {len(self.names)}"
            )
        X = table.array([place[j] for j in self.features])
        Y = table.array([place[j] for j in self.targets])
        w = None if weights is None else table.array([weights])[:, 0]
        if w is not None and (w < 0).any():
            raise TableError(
                f"{table.source}, column {self.names[self.weights or 0]!r}, "
                f"row {int(np.argmax(w < 0)) + 1}: a weight must not be negative"
            )
        return Rows(X, Y, w)

    def features_of(self, table: Table) -> np.ndarray:
        """Features (m, d) of a file in which targets and weights may be missing."""
        names = self.names
        if self.has_names and table.has_names:
            present = set(table.names)
            missing = [names[j] for j in self.features if names[j] not in present]
            if missing:
                raise TableError(
                    f"{table.source} lacks {len(missing)} of the {len(self.features)} columns "
                    f"that the model needs: {_shorten(missing)}"
                )
            return table.array([table.find(names[j]) for j in self.features])
        # by number: the whole file, or without its targets, or features and nothing else
        everything = list(range(len(names)))
        targets, weights = set(self.targets), {self.weights}
        for left_out in (set(), targets, targets | weights, set(everything) - set(self.features)):
            there = [j for j in everything if j not in left_out]
            if len(there) == len(table.names):
                return table.array([there.index(j) for j in self.features])
        raise TableError(
            f"{table.source} has {len(table.names)} columns; the model was fitted on "
            f"{len(self.features)} features of a file with {len(names)} columns"
        )


@dataclass(frozen=True)
class Scaling:
    """Standardisation: (X − x_mean) / x_std, and the same for the targets.

    Parameters
    ----------
    x_mean, x_std : list of d floats
    y_mean, y_std : list of p floats
    """

    x_mean: list[float]
    x_std: list[float]
    y_mean: list[float]
    y_std: list[float]

    @classmethod
    def of(cls, rows: Rows, *, wanted: bool) -> Scaling:
        """Means and standard deviations (0 → 1) of the rows; the identity if not wanted."""
        numbers: list[list[float]] = []
        for values in (rows.X, rows.Y):
            mean, std = values.mean(axis=0), values.std(axis=0)
            if not wanted:
                mean, std = np.zeros_like(mean), np.ones_like(std)
            numbers += [mean.tolist(), np.where(std > 0, std, 1.0).tolist()]
        return cls(*numbers)

    def features(self, X: np.ndarray) -> np.ndarray:
        """Features as the model takes them."""
        return (X - np.array(self.x_mean)) / np.array(self.x_std)

    def apply(self, rows: Rows) -> Rows:
        """Rows as the model takes them."""
        Y = (rows.Y - np.array(self.y_mean)) / np.array(self.y_std)
        return Rows(self.features(rows.X), Y, rows.w)

    def original(self, predictions: np.ndarray) -> np.ndarray:
        """Predictions (…, p) in the units of the data."""
        return predictions * np.array(self.y_std) + np.array(self.y_mean)


def describe(layout: Layout, scaling: Scaling) -> dict[str, Any]:
    """Layout and scaling as JSON values, to be stored with a model."""
    return {"layout": asdict(layout), "scaling": asdict(scaling)}


def from_description(description: Mapping[str, Any]) -> tuple[Layout, Scaling]:
    """What :func:`describe` was given."""
    return Layout(**description["layout"]), Scaling(**description["scaling"])


def split(
    table: Table,
    layout: Layout,
    wanted: Mapping[str, str | None],
    *,
    seed: int = 0,
    header: bool | None = None,
) -> tuple[Rows, dict[str, Rows]]:
    """Training rows, and rows that are held out.

    Parameters
    ----------
    table : Table
    layout : Layout
    wanted : mapping of a name (used in errors) to what that name holds out
        A fraction between 0 and 1: that share of all rows, drawn at random in the order of
        the mapping; ``MASKFILE:COLUMN``: the rows that have 1 there; a file: its rows, in
        addition to the table; None: nothing.
    seed : int
        Of the fractions.
    header : bool, optional
        Whether a file of rows has a header, as in :func:`read_table`.

    Returns
    -------
    train : Rows
    held : dict of name to Rows, for what is not None
    """
    rng = np.random.default_rng(seed)
    owner = np.full(len(table), "", dtype=object)
    others: dict[str, Rows] = {}
    for name, spec in wanted.items():
        if spec is None:
            continue
        fraction = _fraction(name, spec)
        if fraction is not None:
            free = np.flatnonzero(owner == "")
            count = max(1, round(fraction * len(table)))
            if count >= len(free):
                raise TableError(
                    f"{name} {spec} takes {count} of {len(free)} rows; none is left to train on"
                )
            owner[rng.permutation(free)[:count]] = name
        elif Path(spec).exists() or ":" not in spec:
            others[name] = layout.rows(read_table(spec, header=header))
        else:
            marked = _mask(name, spec, table)
            both = np.flatnonzero(marked & (owner != ""))
            if both.size:
                raise TableError(f"row {both[0] + 1} is held out by {owner[both[0]]} and by {name}")
            owner[marked] = name
    if not (owner == "").any():
        raise TableError(f"all {len(table)} rows are held out; none is left to train on")
    rows = layout.rows(table)
    held = {name: others.get(name) or rows[owner == name] for name, spec in wanted.items() if spec}
    return rows[owner == ""], held


def _fraction(name: str, spec: str) -> float | None:
    if not _is_number(spec):
        return None
    if not 0 < float(spec) < 1:
        raise TableError(f"{name}: a fraction must lie between 0 and 1, got {spec}")
    return float(spec)


def _mask(name: str, spec: str, table: Table) -> np.ndarray:
    """Which rows ``MASKFILE:COLUMN`` marks."""
    file, _, column = spec.rpartition(":")
    masks = read_table(file)
    if len(masks) != len(table):
        raise TableError(
            f"{name}: {masks.source} has {len(masks)} rows, {table.source} has {len(table)}"
        )
    values = masks.array([masks.find(column)])[:, 0]
    bad = np.flatnonzero(~np.isin(values, (0.0, 1.0)))
    if bad.size:
        raise TableError(
            f"{name}: {masks.source}, column {column!r}, row {bad[0] + 1}: "
            f"a mask holds 0 and 1, got {values[bad[0]]:g}"
        )
    if not values.any():
        raise TableError(f"{name}: {masks.source}, column {column!r} marks no row")
    return values == 1.0


def _shorten(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(names[:limit])
    return f"{shown}, … ({len(names)} in all)" if len(names) > limit else shown


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "reading tables needs pandas and pyarrow; install the extra: "
            "pip install 'selfdistill_fast[cli]'"
        ) from error
    return pandas
