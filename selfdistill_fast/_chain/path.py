"""Self-distillation of a factorised training set: spectrum + α's → predictions.

The chain of steps 1..T with weights α_2..α_T has, by Theorem 4.1, the predictions
f^(τ) = Σ_k c_k F_k (alpha/), so its coordinates are the same mixture of the pure steps'
coordinates, and its dual coefficients those coordinates in the training rows. A
:class:`DistillationPath` holds the dual coefficients and forgets the n² of the spectrum.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from selfdistill_fast._backend import deliver, get_backend, kind_of, on_device
from selfdistill_fast._chain import io
from selfdistill_fast._chain.explosion import alarm_of
from selfdistill_fast._chain.selection import HeldOut, choose, held_out
from selfdistill_fast._solvers import (
    NoLimit,
    Spectrum,
    check_new,
    evaluate,
    is_dask,
    map_dask,
    mix,
)
from selfdistill_fast._validation import (
    check_coefficients,
    check_lam,
    check_lam_steps,
    check_memory,
    check_n_steps,
    warn_caller,
)
from selfdistill_fast.alpha import check_alphas, step_weights
from selfdistill_fast.kernels import Kernel

__all__ = [
    "DistillationPath",
    "distill",
    "load",
]


class DistillationPath:
    """A chain of self-distilled models, one for each step; made by :func:`distill`.

    Attributes
    ----------
    kernel : Kernel
    lam : float or None
        The ridge λ of every step; None where each has its own.
    lam_steps : ndarray of shape (T,) or None
        The ridge of each step, where they differ.
    alphas : ndarray of shape (T,) or (T, p)
        Ground-truth weight of each step; ``alphas[0]`` is NaN. All NaN for a joint
        optimum that no α-sequence has.
    weights : ndarray of shape (T,) or (T, p)
        Weights c of the pure steps in the last step; they sum to 1.
    step_weights : ndarray of shape (T, T) or (T, T, p)
        The same for every step, in rows.
    shrinkage : ndarray of shape (T, k) or (T, k, p)
        diag B^(τ): the filter of each step on the eigenvalues. A ValueError where the solver
        has no eigenvalues.
    n_steps : int
    selection : dict or None
        What chose the α's of "optimal" and "joint": ``on`` ("leave-one-out",
        "leave-fold-out" or "validation"), its ``mse`` (T,) at every step, and ``best_step``: a
        greedy chain can get worse with more steps. For "joint" also what
        :func:`~selfdistill_fast.alpha.joint_report` says; ``mse[τ − 1]`` is then that of the
        best weights of τ steps.
    metadata : dict
        What :meth:`save` was given; JSON values.
    alarm : str or None
        The warning that :func:`distill` gave about a step that looks exploded; not saved.
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
        alarm: str | None = None,
    ) -> None:
        self.alarm = alarm
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
    def n_features_in(self) -> int:
        """Columns that :meth:`predict` expects."""
        return int(self._duals.shape[1] if self._X is None else self._X.shape[1])

    def __repr__(self) -> str:
        return (
            f"DistillationPath({self.kernel!r}, lam={self.lam}, n_steps={self.n_steps}, "
            f"n={self._duals.shape[1]}, p={self._duals.shape[2]}, dtype={self._duals.dtype})"
        )

    def _select(self, step: Any) -> tuple[Any, Any]:
        """Dual coefficients (S, n, p) and constants (S, p) of a step, "all" or inf."""
        if isinstance(step, str):
            if step != "all":
                raise ValueError(
                    f"step must be None, 1..{self.n_steps}, 'all' or inf; got {step!r}"
                )
            chosen = slice(None)
        elif step is None:
            chosen = slice(self.n_steps - 1, None)
        elif isinstance(step, float) and math.isinf(step) and step > 0:
            if isinstance(self._limit, str):
                raise NoLimit(self._limit)
            return self._limit[0][None], self._limit[1][None]
        else:
            tau = check_n_steps(step, "step")
            if tau > self.n_steps:
                raise ValueError(
                    f"step must be 1..{self.n_steps}, 'all', inf or None; got {step!r}"
                )
            chosen = slice(tau - 1, tau)
        if np.isnan(self.step_weights[chosen]).any():
            raise ValueError(
                "this joint optimum has no alpha-sequence, so its earlier steps do not exist; "
                f"only step {self.n_steps} (or None) does"
            )
        return self._duals[chosen], self._constants[chosen]

    def predict(self, X: Any, step: Any = None) -> Any:
        """Predictions of one step or of all, eq. (13).

        Parameters
        ----------
        X : array_like or dask array of shape (m, d)
            With a precomputed kernel K(X, X_train), (m, n).
        step : None, int, "all" or inf
            None: the last step; 1..T; "all": every step in one pass over K(X, X_train),
            which is never formed; ``math.inf``: the limit of infinitely many steps, for a
            path with one constant α.

        Returns
        -------
        ndarray of shape (m,) or (m, p); for "all" (T, m) or (T, m, p)
            Of a dask array a lazy one, chunk by chunk.

        Raises
        ------
        TypeError, ValueError
            Bad X; a step that is not there; a limit that does not exist.
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
                one_target=self._one_target,
                one_step=not isinstance(step, str),
            )
            if is_dask(X):
                shape = model.shape(None)
                return map_dask(X, self.n_features_in, model.alone(), shape, duals.dtype)
            X = check_new(be, X, self.n_features_in, duals.dtype, self.kernel)
            return deliver(be, model(X), kind)

    def dual_coef(self, step: Any = None) -> Any:
        """Dual coefficients of a step: its predictions are κ(x, X) @ dual_coef (+ intercept).

        Parameters
        ----------
        step : None, int, "all" or inf
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
        return deliver(self._backend, duals if isinstance(step, str) else duals[0])

    def intercept(self, step: Any = None) -> Any:
        """Constant of a step, () or (p,); for "all" with a leading T. 0 without an intercept."""
        constants = check_coefficients(self._select(step)[1])
        if self._one_target:
            constants = constants[..., 0]
        return deliver(self._backend, constants if isinstance(step, str) else constants[0])

    def save(self, path: Any, *, metadata: dict[str, Any] | None = None) -> None:
        """Write the path to one ``.npz`` file: arrays and a JSON header, no pickle.

        The file appears under its name only when it is complete; an existing one is
        replaced in one step.

        Parameters
        ----------
        path : str or path-like
            Used as it is; no suffix is added.
        metadata : dict, optional
            JSON values to keep with it; default :attr:`metadata`.

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
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Parameters
        ----------
        path : str or path-like
        backend : optional
            Where the model is to run; as in :func:`~selfdistill_fast.gram`.

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


class _Predictor:
    """Predictions at native rows; a class, so that it can be sent to a worker."""

    def __init__(
        self,
        be: Any,
        X: Any,
        kernel: Kernel,
        duals: Any,
        constants: Any,
        *,
        one_target: bool,
        one_step: bool,
    ) -> None:
        self.model = (be, X, kernel, duals, constants)
        self.one_target, self.one_step = one_target, one_step

    def alone(self) -> _Predictor:
        """The same for a worker: one thread."""
        be, X, kernel, duals, constants = self.model
        return _Predictor(
            type(be)(n_threads=1),
            X,
            kernel,
            duals,
            constants,
            one_target=self.one_target,
            one_step=self.one_step,
        )

    def shape(self, m: Any) -> tuple[Any, ...]:
        """Shape of the predictions at m rows."""
        S, _, p = self.model[3].shape
        steps = () if self.one_step else (S,)
        return (*steps, m) if self.one_target else (*steps, m, p)

    def __call__(self, X_new: Any) -> Any:
        be, X, kernel, duals, constants = self.model
        F = evaluate(be, X_new.astype(duals.dtype, copy=False), X, kernel, duals, constants)
        if self.one_target:
            F = F[..., 0]
        return F[0] if self.one_step else F


def load(path: Any, *, backend: Any = None) -> DistillationPath:
    """Read a saved path; see :meth:`DistillationPath.load`."""
    return DistillationPath.load(path, backend=backend)


def distill(
    spectrum: Spectrum,
    lam: float | None,
    alpha: Any,
    n_steps: int,
    *,
    lam_steps: Any = None,
    X_val: Any = None,
    y_val: Any = None,
    sample_weight_val: Any = None,
    clip: bool = False,
    per_target: bool = False,
) -> DistillationPath:
    """Self-distil a factorised training set for ``n_steps`` steps.

    Parameters
    ----------
    spectrum : Spectrum
        From :func:`~selfdistill_fast.spectrum`.
    lam : float
        The ridge λ of (K + λI)⁻¹, the same in every step (scikit-learn's KernelRidge calls
        it ``alpha``). One value: a sequence would be a batch, which this function does not
        take; for a schedule there is ``lam_steps``.
    alpha : float, sequence of T − 1, "optimal" or "joint"
        Ground-truth weights α_2..α_T, any real numbers (or a path's ``.alphas``).
        "optimal": eq. (16) step by step (Algorithm 1). "joint": the weights of all pure
        steps that are best for the last step. Both are chosen on ``X_val, y_val`` where
        they are given, else by exact leave-one-out.
    n_steps : int
        Number of steps T >= 1; step 1 is ordinary kernel ridge regression.
    lam_steps : sequence of T floats, optional
        A ridge λ_t for each step t; ``lam`` is not used then and may be None. ỹ⁽¹⁾ of
        eq. (16) is then, at step τ, the one-step fit under λ_τ.
    X_val : array_like of shape (m, d), optional
        With a precomputed kernel K(X_val, X_train), (m, n).
    y_val : array_like of shape (m,) or (m, p), optional
    sample_weight_val : array_like of shape (m,), optional
    clip : bool
        Restrict chosen α's to [0, 1] ("joint": c to the simplex).
    per_target : bool
        Choose α's for each target separately instead of shared ones.

    Returns
    -------
    DistillationPath

    Warns
    -----
    RuntimeWarning
        A step looks exploded: Σ_k |c_k| a^k with a = d_max/(d_max + λ) is above 1000, its
        degrees of freedom exceed the number of rows ("eigh" and "nystrom" know them), or its
        training RMSE is above ten times that of step 1 and twice that of no model.

    Raises
    ------
    TypeError, ValueError
        Bad λ, α, number of steps or validation data.
    MemoryError
        The dual coefficients of all steps do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, distill, spectrum
    >>> x = np.linspace(0, 1, 20); y = np.sin(6 * x)
    >>> path = distill(spectrum(x[:, None], y, RBF(10.0)), 0.1, "optimal", n_steps=2)
    >>> path.alphas.shape, path.predict(x[:3, None]).shape
    ((2,), (3,))
    """
    validation = {"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val}
    options: dict[str, Any] = {"lam_steps": lam_steps, "clip": clip, "per_target": per_target}
    return distilled(spectrum, lam, alpha, n_steps, **options, **validation)[0]


@on_device
def distilled(
    spectrum: Spectrum,
    lam: float | None,
    alpha: Any,
    n_steps: int,
    *,
    lam_steps: Any = None,
    clip: bool = False,
    per_target: bool = False,
    **validation: Any,
) -> tuple[DistillationPath, HeldOut | None]:
    """:func:`distill`, with what α's were chosen on, where they were chosen."""
    n_steps = check_n_steps(n_steps)
    scheduled = lam_steps is not None
    if scheduled:
        lam, lam_steps = None, check_lam_steps(lam_steps, n_steps)
    else:
        lam = float(check_lam(lam, batch=False))
    columns = n_steps**2 if scheduled else n_steps
    rows = spectrum.n if spectrum.basis is None else spectrum.basis.shape[0]
    check_memory(
        spectrum.backend,
        2 * (n_steps * rows + columns * spectrum.k) * spectrum.p * spectrum.dtype.itemsize
        + 16 * n_steps**2,
        f"the coefficients of {n_steps} steps and {spectrum.p} target(s)",
        hint="use fewer steps (step=inf needs none), or fewer targets at a time",
    )
    chosen = isinstance(alpha, str)
    if chosen and alpha not in ("optimal", "joint"):
        raise ValueError(
            f"alpha must be a number, a sequence of {n_steps - 1} numbers, 'optimal' or 'joint'; "
            f"got {alpha!r}"
        )
    X_val = validation["X_val"]
    if (X_val is None) != (validation["y_val"] is None):
        raise ValueError("X_val and y_val go together: give both or neither")
    if validation["sample_weight_val"] is not None and X_val is None:
        raise ValueError("sample_weight_val weighs X_val and y_val, which are missing")
    held = selection = None
    if chosen:
        held = held_out(spectrum, lam, n_steps, lam_steps, **validation)
        alphas, C, selection = choose(
            held, alpha, n_steps, scheduled=scheduled, clip=clip, per_target=per_target
        )
    else:
        alphas = check_alphas(alpha, n_steps, spectrum.p)
        C = step_weights(alphas)
    path = assemble(
        spectrum,
        lam,
        C,
        alphas,
        lam_steps=lam_steps,
        limit=limit_of(spectrum, lam, alpha, alphas),
        selection=selection,
        joint=chosen and alpha == "joint",
    )
    if path.alarm:
        warn_caller(path.alarm, RuntimeWarning)
    return path, held


@on_device
def assemble(
    spectrum: Spectrum,
    lam: float | None,
    C: np.ndarray,
    alphas: np.ndarray,
    *,
    limit: Any,
    lam_steps: Any = None,
    selection: dict[str, Any] | None = None,
    joint: bool = False,
) -> DistillationPath:
    """The path whose steps mix the pure steps with the weights C, (T, T) or (T, T, p).

    ``joint``: C was chosen for the last step alone, and the earlier ones mean nothing.
    """
    xp = spectrum.backend.xp
    n_steps, scheduled = len(C), lam_steps is not None
    native_C = xp.asarray(C)
    spectrum.warn_below_rounding(lam_steps if scheduled else lam)
    pure = spectrum.pure_steps(lam, n_steps, lam_steps)
    shrinkage = spectrum.shrinkage(native_C, lam, lam_steps)
    alarm = alarm_of(
        spectrum,
        lam,
        lam_steps,
        C,
        alphas,
        pure,
        shrinkage,
        first=n_steps if joint else 1,
        chosen=selection is not None,
    )
    coordinates = mix(native_C, pure, xp, scheduled=scheduled).astype(spectrum.dtype)
    return DistillationPath(
        kernel=spectrum.kernel,
        X=spectrum.basis,
        lam=lam,
        lam_steps=lam_steps,
        step_weights=C,
        alphas=alphas,
        shrinkage=shrinkage,
        duals=spectrum.dual(coordinates),
        constants=spectrum.constant(coordinates),
        limit=limit,
        one_target=spectrum.one_target,
        backend=spectrum.backend,
        selection=selection,
        alarm=alarm,
    )


@on_device
def limit_of(spectrum: Spectrum, lam: float | None, alpha: Any, alphas: np.ndarray) -> Any:
    """Dual coefficients and constant of the limit, or why there is none."""
    if lam is None:
        return "a limit exists only for one ridge; this path has one for each step"
    if isinstance(alpha, str):
        return (
            "a limit exists only for one constant alpha, given as a number; this path chose its own"
        )
    constant = float(alpha) if np.ndim(alpha) == 0 else None
    if constant is None and len(alphas) > 1 and (alphas[1:] == alphas.flat[-1]).all():
        constant = float(alphas.flat[-1])
    if constant is None:
        return "a limit exists only for one constant alpha; this path has different ones"
    try:
        coordinates = spectrum.limit(lam, constant)
    except NoLimit as error:
        return str(error)
    except ValueError:  # it exists, and its coefficients overflow: an error where it is used
        rows = spectrum.n if spectrum.basis is None else spectrum.basis.shape[0]
        infinite = spectrum.backend.xp.full((rows, spectrum.p), math.inf, spectrum.dtype)
        return infinite, infinite[0]
    return spectrum.dual(coordinates), spectrum.constant(coordinates)


def held_out_columns(
    spectrum: Spectrum, lam: Any, n_steps: int, lam_steps: Any, X: Any, y: Any, w: Any
) -> Any:
    """What sweeps still call: :func:`held_out` as a tuple."""
    held = held_out(spectrum, lam, n_steps, lam_steps, X_val=X, y_val=y, sample_weight_val=w)
    return held.y, held.F, held.weight
