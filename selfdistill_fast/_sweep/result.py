"""The result of a sweep: an xarray.Dataset of errors and α's, built from one group per kernel."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill_fast._html import number, table
from selfdistill_fast._sweep.grid import SCORES, Job
from selfdistill_fast._sweep.store import group_names, read_group, read_manifest
from selfdistill_fast.alpha import step_weights
from selfdistill_fast.alpha.weights import alphas_or_nan
from selfdistill_fast.kernels import Kernel, kernel_from_dict

__all__ = ["SweepResult", "dataset_of", "joined", "need"]


class SweepResult:
    """Scores of a sweep; made by :func:`sweep`, or from its store by :meth:`load`.

    Attributes
    ----------
    dataset : xarray.Dataset
        ``mse_val`` and/or ``mse_loo`` (kernel, lam, alpha, step, target), mean squared errors
        on the validation set and by exact leave-one-out; ``alphas`` (kernel, lam, alpha, step),
        the α of each step (NaN for step 1), for "joint" that of the last step's optimum (NaN
        if it has no α-sequence), with a last axis of targets if they differ;
        ``joint_weights`` (kernel, lam, step, pure_step), the weights of the joint optimum of
        each number of steps. Labels: ``kernel`` and ``alpha`` are text, ``sel(alpha="0.25")``;
        the parameters of the kernels and the ``solver`` used are further coordinates.
        ``attrs["chosen_on"]`` names the data on which "optimal" and "joint" were chosen.
    kernels : list of Kernel
        In the order of ``dataset.kernel``.
    """

    def __init__(self, dataset: Any, kernels: Sequence[Kernel]) -> None:
        self.dataset = dataset
        self.kernels = list(kernels)

    def __repr__(self) -> str:
        sizes = " × ".join(f"{size} {name}" for name, size in self._scores()[1].sizes.items())
        return f"SweepResult({sizes}, scored by {', '.join(self.scores)})"

    def _repr_html_(self) -> str:
        """The ten best cells."""
        score, variable = self._scores()
        frame = self.to_dataframe().nsmallest(10, SCORES[score])
        names = ["kernel", "lam", "alpha", "step", SCORES[score]]
        rows = [
            [number(value) if isinstance(value, float) else value for value in row]
            for row in frame[names].itertuples(index=False)
        ]
        head = ["kernel", "λ", "α", "step", f"{score} error"]
        return table(f"{self!r}: the best of {variable.size} cells", head, rows)

    @property
    def scores(self) -> list[str]:
        """The data on which errors are measured: "validation", "leave-one-out" or both."""
        return [name for name, variable in SCORES.items() if variable in self.dataset]

    def _scores(self, score: str | None = None) -> tuple[str, Any]:
        """Name and errors of a score; by default of the one on which α's were chosen."""
        score = self.dataset.attrs["chosen_on"] if score is None else score
        if score not in self.scores:
            raise ValueError(f"score must be {' or '.join(self.scores)} here, got {score!r}")
        return score, self.dataset[SCORES[score]]

    @classmethod
    def load(cls, store: Any) -> SweepResult:
        """The contents of a store so far, finished or not.

        Parameters
        ----------
        store : path
            As given to :func:`sweep`.

        Raises
        ------
        FileNotFoundError, ValueError
            The store does not exist, no kernel is finished, or a file is damaged.
        """
        need("xarray", "zarr")
        manifest, names = read_manifest(store)
        if not names:
            raise ValueError(f"no kernel of the sweep in {store} is finished yet")
        described = dict(
            zip(group_names(len(manifest["kernels"])), manifest["kernels"], strict=True)
        )
        kernels = [kernel_from_dict(described[name]) for name in names]
        return cls(joined([read_group(Path(store) / name) for name in names]), kernels)

    def best(self, score: str | None = None, *, target: Any = None) -> dict[str, Any]:
        """The cell with the smallest error.

        Parameters
        ----------
        score : {"validation", "leave-one-out"}, optional
            Default: the data on which the α's were chosen.
        target : label, optional
            Error of one target; default: the mean over targets.

        Returns
        -------
        dict
            ``kernel`` (a Kernel), ``lam``, ``alpha`` (its label), ``step``, ``mse``; ``alphas``
            (τ[, p]) of the chain with that many steps, as :func:`~selfdistill_fast.distill`
            accepts them, NaN for joint weights without an α-sequence; ``weights`` (τ[, p]) of
            its pure steps.

        Raises
        ------
        ValueError
            No such score; no error is finite.
        """
        errors = self._scores(score)[1]
        errors = errors.mean("target") if target is None else errors.sel(target=target)
        values = errors.values
        if not np.isfinite(values).any():
            raise ValueError("no held-out error is finite: the targets or predictions overflow")
        i, j, a, t = np.unravel_index(np.nanargmin(values), values.shape)
        cell = self.dataset.isel(kernel=i, lam=j, alpha=a)
        if str(cell.alpha.item()) == "joint":
            weights = cell.joint_weights.values[t, : t + 1]
            alphas = alphas_or_nan(weights)
        else:
            alphas = cell.alphas.values[: t + 1]
            weights = step_weights(alphas)[-1]
        return {
            "kernel": self.kernels[i],
            "lam": float(cell.lam),
            "alpha": str(cell.alpha.item()),
            "step": int(errors.step[t]),
            "mse": float(values[i, j, a, t]),
            "alphas": alphas,
            "weights": weights,
        }

    def to_dataframe(self) -> Any:
        """One row for each kernel, λ, α, step and target, as a pandas.DataFrame.

        Columns: the five labels, the kernels' parameters, the solver, the errors, and ``alphas``,
        the α of that step.
        """
        names = [SCORES[score] for score in self.scores]
        return self.dataset[[*names, "alphas"]].to_dataframe().reset_index()

    def plot(
        self, *, kernel: Any = None, alpha: str | None = None, score: str | None = None
    ) -> Any:
        """Heat map of the error over λ and step, and α curves.

        Parameters
        ----------
        kernel : label or Kernel, optional
            Default: that of the best cell.
        alpha : label, optional
            Default: that of the best cell.
        score : {"validation", "leave-one-out"}, optional

        Returns
        -------
        matplotlib.figure.Figure
            As :func:`~selfdistill_fast.plotting.figure_sweep` draws it.
        """
        from selfdistill_fast.plotting import figure_sweep

        score, _ = self._scores(score)
        best = self.best(score)
        return figure_sweep(
            self.dataset,
            variable=SCORES[score],
            kernel=repr(best["kernel"]) if kernel is None else str(kernel),
            alpha=best["alpha"] if alpha is None else alpha,
        )


def dataset_of(job: Job, kernels: list[Kernel], i: int, scores: dict[str, Any]) -> Any:
    """The scores of kernel i as an xarray.Dataset."""
    import xarray

    p = scores[SCORES[job.scores[0]]].shape[-1]
    grid = ("kernel", "lam", "alpha", "step", "target")
    own = grid if scores["alphas"].ndim == 4 else grid[:-1]
    variables: dict[str, Any] = {
        SCORES[score]: (grid, scores[SCORES[score]][None]) for score in job.scores
    }
    variables["alphas"] = (own, scores["alphas"][None])
    if "joint_weights" in scores:
        axes = ("kernel", "lam", "step", "pure_step", *own[4:])
        variables["joint_weights"] = (axes, scores["joint_weights"][None])
    steps = np.arange(1, job.n_steps + 1)
    coordinates: dict[str, Any] = {
        "kernel": [repr(kernels[i])],
        "lam": job.lams,
        "alpha": job.labels,
        "step": steps,
        "target": np.arange(p),
        "solver": ("kernel", [scores["solver"]]),
    }
    if "joint_weights" in scores:
        coordinates["pure_step"] = steps
    for name in {f.name: None for kernel in kernels for f in fields(kernel)}:
        values = [getattr(kernel, name, math.nan) for kernel in kernels]
        if all(isinstance(value, numbers.Real) for value in values):
            coordinates[name] = ("kernel", [float(values[i])])
    return xarray.Dataset(variables, coordinates, {"chosen_on": job.scores[0]})


def joined(groups: list[Any]) -> Any:
    """The groups of all kernels as one xarray.Dataset."""
    import xarray

    return xarray.concat(
        groups,
        "kernel",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )


def need(*modules: str) -> None:
    """The module, or an ImportError that names the extra to install."""
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(
                f"sweeps need {name}; install the extra: pip install 'selfdistill_fast[sweep]'"
            ) from error
