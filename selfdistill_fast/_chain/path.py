"""A chain of self-distilled models: predictions of every step, dual coefficients, files.

A :class:`DistillationPath` holds the dual coefficients. It does not hold the spectrum from which
assembly.py made it, nor its n² memory.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from selfdistill_fast._backend import deliver, get_backend, kind_of
from selfdistill_fast._chain import io
from selfdistill_fast._html import number, table
from selfdistill_fast._solvers import (
    NoLimit,
    check_new,
    evaluate,
    features_of,
    is_dask,
    linear_coefficients,
    map_dask,
)
from selfdistill_fast._validation import check_coefficients, check_n_steps
from selfdistill_fast.kernels import Kernel, Linear

__all__ = ["DistillationPath", "load"]


class DistillationPath:
    """A chain of self-distilled models, one for each step; made by :func:`distill`.

    Attributes
    ----------
    kernel : Kernel
    lam : float or None
        λ of every step; None if each step has its own.
    lam_steps : ndarray of shape (T,) or None
        λ of each step, if they differ.
    alphas : ndarray of shape (T,) or (T, p)
        Ground-truth weight of each step; ``alphas[0]`` is NaN. All NaN for a joint
        optimum without an α-sequence.
    weights : ndarray of shape (T,) or (T, p)
        Weights c of the pure steps in the last step; they sum to 1.
    step_weights : ndarray of shape (T, T) or (T, T, p)
        The same for every step, in rows.
    shrinkage : ndarray of shape (T, k) or (T, k, p)
        diag B^(τ): the filter of each step on the eigenvalues. Raises ValueError if the solver
        has no eigenvalues.
    n_steps : int
    default_step : int
        The step of ``step=None``: the last one, unless it is set; saved. Estimators and the
        command line set it to the best step, where α was chosen on held-out data.
    selection : dict or None
        How the α's of "optimal" and "joint" were chosen: ``on`` ("leave-one-out",
        "leave-fold-out" or "validation"), its ``mse`` (T,) at every step, and ``best_step``: a
        greedy chain can get worse with more steps. For "joint" also the entries of
        :func:`~selfdistill_fast.alpha.joint_report`; ``mse[τ − 1]`` is then that of the
        best weights of τ steps.
    metadata : dict
        The metadata given to :meth:`save`; JSON values.
    alarm : str or None
        The warning of :func:`distill` about a step that looks exploded; not saved.
    """

    def __init__(
        self,
        *,
        kernel: Kernel,
        X: Any,
        lam: float | None,
        lam_steps: np.ndarray | None,
        step_weights: np.ndarray,
        alphas: np.ndarray,
        shrinkage: Any,
        duals: Any,
        constants: Any,
        limit: tuple[Any, Any] | str,
        one_target: bool,
        backend: Any,
        selection: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        default_step: int | None = None,
        alarm: str | None = None,
    ) -> None:
        self.alarm = alarm
        self.default_step = len(alphas) if default_step is None else default_step
        self.kernel, self.lam, self.lam_steps, self.alphas = kernel, lam, lam_steps, alphas
        self.step_weights, self._shrinkage = step_weights, shrinkage
        self.selection, self.metadata = selection, dict(metadata or {})
        self._X, self._duals, self._constants = X, duals, constants
        self._limit, self._one_target, self._backend = limit, one_target, backend

    @property
    def n_steps(self) -> int:
        """Number of steps T."""
        return len(self.alphas)

    @property
    def weights(self) -> np.ndarray:
        """Weights c of the pure steps in the last step."""
        return self.step_weights[-1]

    @property
    def shrinkage(self) -> Any:
        """diag B^(τ) of each step, (T, k) or (T, k, p)."""
        if self._shrinkage is None:
            raise ValueError(
                "shrinkage is not available: this solver has no eigenvalues; "
                "use spectrum(..., solver='eigh')"
            )
        return deliver(self._backend, self._shrinkage)

    @property
    def best_step(self) -> int:
        """The step of the smallest held-out error; the last one for "joint", which is chosen whole.

        Raises
        ------
        ValueError
            Nothing was chosen on held-out data.
        """
        if self.selection is None:
            raise ValueError(
                "there is no best step: the α's were given, not chosen on held-out data; give the "
                "number of a step, or compare leave_one_out of all steps"
            )
        return self.n_steps if "condition" in self.selection else int(self.selection["best_step"])

    @property
    def n_features_in(self) -> int:
        """Number of columns that :meth:`predict` expects."""
        return int(self._duals.shape[1] if self._X is None else self._X.shape[1])

    def __repr__(self) -> str:
        return (
            f"DistillationPath({self.kernel!r}, lam={self.lam}, n_steps={self.n_steps}, "
            f"n={self._duals.shape[1]}, p={self._duals.shape[2]}, dtype={self._duals.dtype})"
        )

    def _repr_html_(self) -> str:
        mse = None if self.selection is None else self.selection["mse"]
        weights = np.abs(self.step_weights).sum(1).reshape(self.n_steps, -1).max(1)
        rows = [
            (
                t + 1,
                ", ".join(map(number, np.ravel(self.alphas[t]))),
                number(weights[t]),
                *(() if mse is None else (number(mse[t]),)),
            )
            for t in range(self.n_steps)
        ]
        head = ["step", "α", "Σ|c|"]
        if self.selection is not None:
            head.append(f"{self.selection['on']} error")
        lam = "λ for each step" if self.lam is None else f"λ = {self.lam:g}"
        caption = f"{self.kernel!r}, {lam}, {self._duals.shape[2]} target(s)"
        return table(caption, head, rows, bold=self.default_step - 1)

    def _select(self, step: Any) -> tuple[Any, Any]:
        """Dual coefficients (S, n, p) and constants (S, p) of a step, "all" or inf."""
        known = f"None, 1..{self.n_steps}, 'best', 'last', 'all' or inf"
        if step is None:
            step = self.default_step
        elif isinstance(step, str) and step == "best":
            step = self.best_step
        elif isinstance(step, str) and step == "last":
            step = self.n_steps
        if isinstance(step, str):
            if step != "all":
                raise ValueError(f"step must be {known}; got {step!r}")
            chosen = slice(None)
        elif isinstance(step, numbers.Real) and float(step) == math.inf:
            if isinstance(self._limit, str):
                raise NoLimit(self._limit)
            return self._limit[0][None], self._limit[1][None]
        else:
            tau = check_n_steps(step, "step")
            if tau > self.n_steps:
                raise ValueError(f"step must be {known}; got {step!r}")
            chosen = slice(tau - 1, tau)
        if np.isnan(self.step_weights[chosen]).any():
            raise ValueError(
                "this joint optimum has no alpha-sequence, so its earlier steps do not exist; "
                f"use step={self.n_steps} (or None)"
            )
        return self._duals[chosen], self._constants[chosen]

    def predict(self, X: Any, step: Any = None) -> Any:
        """Predictions of one step or of all steps, eq. (13).

        Parameters
        ----------
        X : array_like or dask array of shape (m, d)
            With a precomputed kernel, K(X, X_train), (m, n).
        step : None, int, "best", "last", "all" or inf
            None: ``default_step``. 1..T: that step. "best": ``best_step``. "last": step T.
            "all": every step in one pass over K(X, X_train), which is never formed. ``math.inf``:
            the limit of infinitely many steps, for a path with one constant α.

        Returns
        -------
        ndarray of shape (m,) or (m, p); for "all" (T, m) or (T, m, p)
            For a dask array, a lazy dask array with the same row chunks.

        Raises
        ------
        TypeError, ValueError
            Invalid X; a step or a limit that does not exist.
        """
        be, kind = self._backend, kind_of(X)
        with be.on():
            duals, constants = self._select(step)
            model = _Predictor(
                be,
                self._X,
                self.kernel,
                duals,
                constants,
                self._one_target,
                not _is_all(step),
            )
            if is_dask(X):
                X = features_of(X, self.kernel)
                shape = model.shape(None)
                return map_dask(X, self.n_features_in, model.alone(), shape, duals.dtype)
            X = check_new(be, X, self.n_features_in, duals.dtype, self.kernel)
            return deliver(be, model(X), kind)

    def dual_coef(self, step: Any = None) -> Any:
        """Dual coefficients of a step: its predictions are κ(x, X) @ dual_coef (+ intercept).

        Parameters
        ----------
        step : None, int, "best", "last", "all" or inf
            As in :meth:`predict`.

        Returns
        -------
        ndarray of shape (n,) or (n, p); for "all" (T, n) or (T, n, p)

        Raises
        ------
        ValueError
            They overflow the dtype of the spectrum.
        """
        duals = check_coefficients(self._select(step)[0])
        if self._one_target:
            duals = duals[..., 0]
        return deliver(self._backend, duals if _is_all(step) else duals[0])

    def coef(self, step: Any = None) -> Any:
        """Coefficients β of a linear model: its predictions are x·β (+ intercept), eq. (3).

        For the kernel ``Linear()``; with ``Features``, β belongs to the features φ(x).

        Parameters
        ----------
        step : None, int, "best", "last", "all" or inf
            As in :meth:`predict`.

        Returns
        -------
        ndarray of shape (D,) or (D, p); for "all" (T, D) or (T, D, p)

        Raises
        ------
        ValueError
            The kernel is not linear; as for :meth:`predict`; they overflow the dtype.

        Examples
        --------
        >>> import numpy as np
        >>> from selfdistill_fast import Linear, distill, spectrum
        >>> X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> path = distill(spectrum(X, X @ [2.0, -1.0], Linear()), lam=1e-9, alpha=0.5, n_steps=2)
        >>> path.coef().round(3)
        array([ 2., -1.])
        """
        if not isinstance(self.kernel, Linear):
            raise ValueError(
                f"coef needs a linear model, kernel Linear() or Features(...); {self.kernel!r} "
                "has no finite list of coefficients: use dual_coef"
            )
        be = self._backend
        with be.on():
            duals, _ = self._select(step)
            beta = be.xp.stack([linear_coefficients(self._X, c, be.xp) for c in duals])
            beta = check_coefficients(beta.astype(duals.dtype))
            if self._one_target:
                beta = beta[..., 0]
            return deliver(be, beta if _is_all(step) else beta[0])

    def intercept(self, step: Any = None) -> Any:
        """Constant of a step, () or (p,); for "all" with a leading T. 0 without an intercept."""
        constants = check_coefficients(self._select(step)[1])
        if self._one_target:
            constants = constants[..., 0]
        return deliver(self._backend, constants if _is_all(step) else constants[0])

    def save(self, path: Any, *, metadata: dict[str, Any] | None = None) -> None:
        """Write the path to one ``.npz`` file: arrays and a JSON header, no pickle.

        The file appears under its name only once it is complete; an existing file is
        replaced atomically.

        Parameters
        ----------
        path : str or path-like
            Used unchanged; no suffix is added.
        metadata : dict, optional
            JSON values to save with it; default :attr:`metadata`.

        Raises
        ------
        TypeError
            The kernel is a function, or metadata is not JSON.
        OSError
            The file cannot be written.
        """
        endless = isinstance(self._limit, str)
        header = {
            "kernel": self.kernel,
            "lam": self.lam,
            "lam_steps": self.lam_steps,
            "one_target": self._one_target,
            "limit": self._limit if endless else None,
            "selection": self.selection,
            "default_step": self.default_step,
            "metadata": self.metadata if metadata is None else metadata,
        }
        arrays = {
            "alphas": self.alphas,
            "step_weights": self.step_weights,
            "duals": self._duals,
            "constants": self._constants,
            "shrinkage": self._shrinkage,
            "X": self._X,
            "limit_dual": None if endless else self._limit[0],
            "limit_constant": None if endless else self._limit[1],
        }
        to_numpy = self._backend.to_numpy
        io.write(path, header, {k: to_numpy(a) for k, a in arrays.items() if a is not None})

    @classmethod
    def load(cls, path: Any, *, backend: Any = None) -> DistillationPath:
        """Read a file written by :meth:`save`; nothing in it is executed.

        Parameters
        ----------
        path : str or path-like
        backend : optional
            Where the model runs; as in :func:`~selfdistill_fast.gram`.

        Raises
        ------
        FileNotFoundError
        ValueError
            The file is corrupt, truncated, of another kind, or of a later version.
        MemoryError, OSError
            The model does not fit in memory, or the system cannot read the file.
        """
        be = get_backend(backend)
        values, arrays = io.read(path)
        values |= {name: arrays.pop(name) for name in ("alphas", "step_weights")}
        dtype = arrays["duals"].dtype
        with be.on():
            for name, array in arrays.items():
                values[name] = be.asarray(array, name, dtype=dtype, finite=False)
        if values["limit"] is None:
            values["limit"] = (values.pop("limit_dual"), values.pop("limit_constant"))
        return cls(**{"X": None, "shrinkage": None, **values}, backend=be)


def _is_all(step: Any) -> bool:
    return isinstance(step, str) and step == "all"


@dataclass(frozen=True, eq=False)
class _Predictor:
    """Predictions at native rows; a class, so that it can be pickled for a worker."""

    backend: Any
    X: Any
    kernel: Kernel
    duals: Any
    constants: Any
    one_target: bool
    one_step: bool

    def alone(self) -> _Predictor:
        """The same function for a worker: one thread."""
        return replace(self, backend=type(self.backend)(n_threads=1))

    def shape(self, m: Any) -> tuple[Any, ...]:
        """Shape of the predictions at m rows."""
        S, _, p = self.duals.shape
        steps = () if self.one_step else (S,)
        return (*steps, m) if self.one_target else (*steps, m, p)

    def __call__(self, X_new: Any) -> Any:
        X_new = X_new.astype(self.duals.dtype, copy=False)
        F = evaluate(self.backend, X_new, self.X, self.kernel, self.duals, self.constants)
        if self.one_target:
            F = F[..., 0]
        return F[0] if self.one_step else F


def load(path: Any, *, backend: Any = None) -> DistillationPath:
    """Read a saved path; see :meth:`DistillationPath.load`."""
    return DistillationPath.load(path, backend=backend)
