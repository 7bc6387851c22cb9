"""Data sets: the roles of a table's columns, held-out rows, standardisation.

::

    Table → Layout (features, targets, weights) → Rows → split → Scaling   =   Dataset
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill_fast._evaluation import Rows
from selfdistill_fast.cli.tables import Table, TableError, is_number, read_table, shorten

__all__ = ["Dataset", "Layout", "Scaling", "from_description"]


@dataclass(frozen=True)
class Layout:
    """The columns of a file that are features, targets and weights.

    Parameters
    ----------
    names : list of str
        All columns of the training file.
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
        """From the columns that the user names; every other column is a feature."""
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
        features = [j for j in features if j != table.counts]
        used = [names[j] for j in (*features, *chosen)]
        for j in features:
            if used.count(names[j]) > 1:
                raise TableError(
                    f"{table.source}: columns "
                    f"{' and '.join(str(k) for k, n in enumerate(names) if n == names[j])} are "
                    f"both named {names[j]!r}; rename one, or leave one out by its number "
                    f"(--drop {j})"
                )
        if not features:
            raise TableError(
                f"{table.source}: none of its {len(names)} column(s) is left as a feature"
            )
        return cls(names, table.has_names, features, chosen, weight)

    @property
    def target_names(self) -> list[str]:
        """Names of the targets."""
        return [self.names[j] for j in self.targets]

    def rows(self, table: Table) -> Rows:
        """The numbers of the training file, or of another file with all its columns."""
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
                    f"that the model needs: {shorten(missing)}"
                )
            return table.array([table.find(names[j]) for j in self.features])
        # by number: the whole file, or without its targets, or only features
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
        """Weighted means and standard deviations of the rows; the identity if not requested.

        A column that is constant to rounding has the deviation 1.
        """
        numbers: list[list[float]] = []
        for values in (rows.X, rows.Y):
            mean, std = np.zeros(values.shape[1]), np.ones(values.shape[1])
            if wanted:
                mean = np.average(values, axis=0, weights=rows.w)
                variance = np.average((values - mean) ** 2, axis=0, weights=rows.w)
                # the bound of rounding by which scikit-learn's StandardScaler knows constants
                n, eps = len(values), np.finfo(np.float64).eps
                varies = variance > n * eps * variance + (n * mean * eps) ** 2
                std = np.where(varies, np.sqrt(variance), 1.0)
            numbers += [mean.tolist(), std.tolist()]
        return cls(*numbers)

    def features(self, X: np.ndarray) -> np.ndarray:
        """Features as the model expects them."""
        return (X - np.array(self.x_mean)) / np.array(self.x_std)

    def apply(self, rows: Rows) -> Rows:
        """Rows as the model expects them."""
        Y = (rows.Y - np.array(self.y_mean)) / np.array(self.y_std)
        return Rows(self.features(rows.X), Y, rows.w)

    def original(self, predictions: np.ndarray) -> np.ndarray:
        """Predictions (…, p) in the units of the data."""
        return predictions * np.array(self.y_std) + np.array(self.y_mean)


@dataclass(frozen=True)
class Dataset:
    """Training rows, held-out rows and the scaling of a table, in the units of the data.

    Parameters
    ----------
    source : str
        Name of the data.
    layout : Layout
    train : Rows
    held : dict of name to Rows
    scaling : Scaling
        From the training rows; the identity without standardisation.
    """

    source: str
    layout: Layout
    train: Rows
    held: dict[str, Rows]
    scaling: Scaling

    @classmethod
    def of(
        cls,
        table: Table,
        targets: Sequence[str],
        weights: str | None,
        drop: Sequence[str],
        held: Mapping[str, str | None],
        *,
        seed: int = 0,
        header: bool | None = None,
        standardize: bool = False,
    ) -> Dataset:
        """From the user's options; ``held`` and ``header`` as in :func:`split`.

        Names in ``held`` may begin with the dashes of an option.
        """
        layout = Layout.choose(table, targets, weights, drop)
        train, parts = split(table, layout, held, seed=seed, header=header)
        if len(train) < 2:
            raise TableError(f"{len(train)} training row(s) are left; at least 2 are needed")
        parts = {name.strip("-"): rows for name, rows in parts.items()}
        return cls(table.source, layout, train, parts, Scaling.of(train, wanted=standardize))

    @property
    def sets(self) -> dict[str, Rows]:
        """All rows: "train" and the held-out sets."""
        return {"train": self.train, **self.held}

    def evaluation_sets(self) -> dict[str, Rows]:
        """The same with the features as the model expects them."""
        return {
            name: Rows(self.scaling.features(rows.X), rows.Y, rows.w)
            for name, rows in self.sets.items()
        }

    def describe(self) -> dict[str, Any]:
        """Layout and scaling as JSON values, to be stored with a model."""
        return {"layout": asdict(self.layout), "scaling": asdict(self.scaling)}


def from_description(description: Mapping[str, Any]) -> tuple[Layout, Scaling]:
    """Layout and scaling of what :meth:`Dataset.describe` returned."""
    return Layout(**description["layout"]), Scaling(**description["scaling"])


def split(
    table: Table,
    layout: Layout,
    wanted: Mapping[str, str | None],
    *,
    seed: int = 0,
    header: bool | None = None,
) -> tuple[Rows, dict[str, Rows]]:
    """Training rows and held-out rows.

    Parameters
    ----------
    table : Table
    layout : Layout
    wanted : mapping of a name (used in errors) to the specification of its held-out rows
        A fraction between 0 and 1: that share of all rows, drawn at random in the order of
        the mapping; ``MASKFILE:COLUMN``: the rows that have 1 there; a file: its rows, in
        addition to the table; None: nothing.
    seed : int
        Seed of the fractions.
    header : bool, optional
        Whether a file of rows has a header, as in :func:`read_table`.

    Returns
    -------
    train : Rows
    held : dict of name to Rows, for every specification that is not None
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
    if not is_number(spec):
        return None
    if not 0 < float(spec) < 1:
        raise TableError(f"{name}: a fraction must lie between 0 and 1, got {spec}")
    return float(spec)


def _mask(name: str, spec: str, table: Table) -> np.ndarray:
    """The rows that ``MASKFILE:COLUMN`` marks."""
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
