"""Tables from CSV and Parquet files.

A file is read without conversion; a column is converted to numbers when it is requested, so that
unused columns may hold anything. Unusable cells raise a :class:`TableError` that names file,
column and row. Rows are counted from 1, excluding the header. Numbers are parsed and written so
that a round trip is exact to the last bit.
"""

from __future__ import annotations

import csv
import difflib
import functools
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill_fast._files import replacing
from selfdistill_fast.cli.console import InputError, say

__all__ = ["Table", "TableError", "is_number", "read_table", "shorten", "write_table"]

PARQUET = (".parquet", ".pq")
#: cells that are missing values rather than text
MISSING = {"", "na", "n/a", "nan", "null", "none", "<na>", "#n/a", "-nan", "#na"}


class TableError(InputError):
    """A table that cannot be used as requested; the message says where and why."""


@dataclass(frozen=True)
class Table:
    """The columns of one file.

    Parameters
    ----------
    frame : pandas.DataFrame
    source : str
        Name of the file in error messages.
    has_names : bool
        Whether the file names its columns; else they are named "0", "1", ….
    counts : int or None
        Position of a column without a name that numbers the rows, as pandas writes its index. It
        is no feature.
    text : function of a position, or None
        The cells of a column as they stand in the file, for CSV.
    """

    frame: Any
    source: str
    has_names: bool
    counts: int | None = None
    text: Callable[[int], Any] | None = None

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
                where = ", ".join(str(j) for j, name in enumerate(names) if name == text)
                raise TableError(
                    f"{self.source} has {names.count(text)} columns named {text!r}, numbers "
                    f"{where}; rename them, or name one by its number"
                )
            return names.index(text)
        try:
            number = int(text)
        except ValueError:
            near = difflib.get_close_matches(text, names, n=1)
            raise TableError(
                f"{self.source} has no column {text!r}; "
                + (f"did you mean {near[0]!r}? " if near else "")
                + f"there are: {shorten(names)}"
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
        if cells.dtype == object:
            strange = next(
                (c for c in cells if isinstance(c, (list, tuple, dict, np.ndarray))), None
            )
            if strange is not None:
                raise TableError(
                    f"{where} holds a {type(strange).__name__} in each row, not a number; make a "
                    "column of each entry, or leave it out (--drop)"
                )
        if pd.api.types.is_numeric_dtype(cells.dtype):
            numbers = cells
        else:
            numbers = pd.to_numeric(cells, errors="coerce")
        values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isfinite(values).all():
            self._check_whole(column, numbers, values, where)
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

    def _check_whole(self, column: int, numbers: Any, values: np.ndarray, where: str) -> None:
        """TableError if integers are rounded when they become floating-point numbers."""
        large = np.flatnonzero(np.abs(values) >= 2.0**53)
        if not len(large):
            return
        cells = numbers
        if numbers.dtype.kind == "f":  # they have been rounded already, if they were integers
            if self.text is None:
                return
            cells = self.text(column)
        for row in large:
            cell = str(cells.iloc[row]).strip()
            if cell.lstrip("+-").isdigit() and int(cell) != int(values[row]):
                raise TableError(
                    f"{where}, row {row + 1}: {cell} is an integer beyond 2^53, which would be "
                    "rounded; if it is an identifier, leave it out (--drop), else write it as a "
                    "floating-point number"
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
        The file does not exist, is not readable, has no rows, or has rows of different lengths.
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
            table = _read_parquet(pd, path)
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


def _read_parquet(pd: Any, path: Path) -> Table:
    """A Parquet file, with a named index as a column; an index without a name counts rows."""
    frame = pd.read_parquet(path)
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    return Table(frame, path.name, True)


def _read_csv(pd: Any, path: Path, header: bool | None) -> Table:
    # the first lines as one cell each, read by pandas because it handles compression
    lines = pd.read_csv(
        path,
        sep="\0",
        header=None,
        nrows=2,
        dtype=str,
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        encoding="utf-8-sig",
    ).iloc[:, 0]
    line, delimiter = lines[0], _delimiter(lines.tolist())
    cells = next(csv.reader([line.strip("\r\n ")], delimiter=delimiter, skipinitialspace=True))
    if header is None:
        # not csv.Sniffer.has_header, which misses a header above text and fails for one column
        header = any(not is_number(cell) and cell.strip().lower() not in MISSING for cell in cells)
        if not header:
            header = _numbers_are_names(pd, path, cells, delimiter)
    # pandas 3.1 has a single converter, which is exact; before, it had to be requested
    before_31 = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
    exact = {"float_precision": "round_trip"} if before_31 else {}
    read = functools.partial(
        pd.read_csv,
        path,
        sep=r"\s+" if delimiter == " " else delimiter,
        header=0 if header else None,
        index_col=False,
        skipinitialspace=True,
        encoding="utf-8-sig",
        low_memory=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = read(**exact)

    def text(column: int) -> Any:
        return read(dtype=str, keep_default_na=False).iloc[:, column]

    if not header:
        return Table(frame, path.name, False, text=text)
    names = [str(name).strip() for name in frame.columns]
    given = [cell.strip() for cell in cells if delimiter != " " or cell]
    if len(given) == len(names):  # pandas renames a second "x" to "x.1"
        names = [cell or name for cell, name in zip(given, names, strict=True)]
    frame.columns = names
    counts = next((j for j, cell in enumerate(given) if not cell), None)
    if counts is not None and len(given) == len(names) and _counts_rows(frame.iloc[:, counts]):
        say(
            f"hint: column {counts} of {path.name} has no name and seems to number the rows; it "
            "is left out (give it a name to use it as a feature)",
            "yellow",
        )
        return Table(frame, path.name, True, counts, text)
    return Table(frame, path.name, True, text=text)


def _numbers_are_names(pd: Any, path: Path, cells: Sequence[str], delimiter: str) -> bool:
    """Whether a first line of consecutive whole numbers names the columns, as pandas writes them.

    It does if it starts with 0 or 1 and has at least three cells (or one without a name before
    them), or if the numbers below are not all whole.
    """
    indexed = len(cells) > 1 and not cells[0].strip()
    named = cells[1:] if indexed else cells
    if not all(is_number(cell) for cell in named):
        return False
    numbers = [float(cell) for cell in named]
    consecutive = all(b - a == 1.0 for a, b in pairwise(numbers)) and numbers[0].is_integer()
    if not consecutive or (len(named) < 2 and not indexed) or (indexed and numbers[0] != 0.0):
        return False
    try:
        below = pd.read_csv(
            path, sep=r"\s+" if delimiter == " " else delimiter, header=None, skiprows=1, nrows=50,
            dtype=str, skipinitialspace=True, encoding="utf-8-sig",
        )  # fmt: skip
    except pd.errors.EmptyDataError:
        return False  # the only line
    values = [float(cell) for cell in np.ravel(below.astype(str).values) if is_number(cell)]
    whole = all(value.is_integer() for value in values if np.isfinite(value))
    names = not whole or indexed or (len(named) > 2 and numbers[0] in (0.0, 1.0))
    line = f"the first line of {path.name}, {shorten(cells, 4)}"
    if names:
        say(f"hint: {line}, was taken as names; use --no-header if it is data", "yellow")
    else:
        say(f"hint: {line}, was taken as data; use --header if it holds names", "yellow")
    return names


def _counts_rows(cells: Any) -> bool:
    """Whether a column holds different whole numbers of the size of the number of rows.

    Such as an index in any order, also of a part of a table.
    """
    whole = cells.dtype.kind in "iu" and cells.is_unique
    return bool(whole and cells.min() >= 0 and cells.max() < 10 * len(cells))


def _delimiter(lines: Sequence[str]) -> str:
    """The delimiter of the first lines; a comma if there is none or if it is ambiguous."""
    try:
        found = csv.Sniffer().sniff(lines[0].strip(), ",;\t ").delimiter
    except csv.Error:  # a single column
        return ","
    counts = {len(line.split()) for line in lines}
    return "," if found == " " and len(counts) > 1 else found  # a name of several words


def is_number(cell: str) -> bool:
    """Whether a cell holds a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def write_table(path: str | Path | None, names: Sequence[str], values: np.ndarray) -> None:
    """Write columns as CSV or Parquet by suffix, or as CSV to standard output.

    A file is written atomically.

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


def shorten(names: Sequence[str], limit: int = 12) -> str:
    """A list of names for a message."""
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
