"""Self-distillation of a factorised training set: spectrum + α's → predictions.

The chain of steps 1..T with weights α_2..α_T has, by Theorem 4.1, the predictions
f^(τ) = Σ_k c_k F_k (alpha.py), so its coordinates are the same mixture of the pure steps'
coordinates, and its dual coefficients those coordinates in the training rows. A
:class:`DistillationPath` holds the dual coefficients and forgets the n² of the spectrum.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill_fast._backend import deliver, device_of, get_backend, kind_of, on_device
from selfdistill_fast._chain.leave_out import fold_columns, loo_columns
from selfdistill_fast._files import is_damage, replacing
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
    check_sample_weight,
    check_targets,
    warn_caller,
)
from selfdistill_fast.alpha import (
    cell_losses,
    chain_weights,
    check_alphas,
    greedy_alphas,
    joint_report,
    joint_weights,
    mixture_losses,
    smallest,
    step_weights,
    weights_to_alphas,
)
from selfdistill_fast.kernels import Kernel, kernel_from_dict

__all__ = [
    "DistillationPath",
    "distill",
    "gcv_alphas",
    "held_out_columns",
    "load",
    "score_grid",
]

#: a step looks exploded from this Σ_k |c_k| a^k on, a = d_max/(d_max + λ)
LARGE_WEIGHTS = 1e3
#: its training error: this many times that of step 1, and of the targets themselves
LARGE_ERROR, LARGE_FUNCTION = 10.0, 2.0
_FORMAT = "selfdistill_fast.DistillationPath"
_VERSION = 1


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

    # ---------------------------------------------------------------- files
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
        path = Path(path)
        be = self._backend
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "package_version": _package_version(),
            "kernel": self.kernel.to_dict(),
            "lam": self.lam,
            "lam_steps": None if self.lam_steps is None else self.lam_steps.tolist(),
            "one_target": self._one_target,
            "limit": self._limit if isinstance(self._limit, str) else None,
            "selection": _listed(self.selection),
            "metadata": self.metadata if metadata is None else metadata,
        }
        try:
            text = json.dumps(header, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"metadata must be JSON values: {error}") from None
        arrays = {
            "alphas": self.alphas,
            "step_weights": self.step_weights,
            "duals": self._duals,
            "constants": self._constants,
        }
        if self._shrinkage is not None:
            arrays["shrinkage"] = self._shrinkage
        if self._X is not None:
            arrays["X"] = self._X
        if not isinstance(self._limit, str):
            arrays["limit_dual"], arrays["limit_constant"] = self._limit
        with replacing(path) as aside, aside.open("wb") as file:
            np.savez(
                file,
                header=np.frombuffer(text.encode(), dtype=np.uint8),
                **{name: be.to_numpy(array) for name, array in arrays.items()},
            )

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
        path = Path(path)
        be = get_backend(backend)
        with path.open("rb") as file:
            try:
                values, arrays = cls._read(file)
            except _Refused as error:
                raise ValueError(f"{path}: {error}") from None
            except Exception as error:
                if not is_damage(error):
                    raise
                raise ValueError(
                    f"{path} is damaged and cannot be read as a saved model "
                    f"({type(error).__name__}: {error}); save it again from the fitted model"
                ) from error
        with be.on():
            native = {
                name: be.asarray(array, name, dtype=arrays["duals"].dtype, finite=False)
                for name, array in arrays.items()
            }
        limit = values.pop("limit")
        if limit is None:
            limit = (native["limit_dual"], native["limit_constant"])
        return cls(
            X=native.get("X"),
            shrinkage=native.get("shrinkage"),
            duals=native["duals"],
            constants=native["constants"],
            limit=limit,
            backend=be,
            **values,
        )

    @staticmethod
    def _read(file: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Arguments of the constructor: those for the host, and arrays for the backend."""
        if not zipfile.is_zipfile(file):
            raise _Refused("not a saved model (not an .npz file, or cut short)")
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise _Refused(f"damaged: the checksum of {damaged} is wrong")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            if "header" not in archive:
                raise _Refused("not a saved model: an .npz file of something else")
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes().decode())
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise _Refused("not a saved model: its header names another format")
        if header["version"] != _VERSION:
            raise _Refused(
                f"written in format version {header['version']} by selfdistill_fast "
                f"{header.get('package_version')}; this version reads {_VERSION}. "
                "Install a matching version"
            )
        T, n, p = arrays["duals"].shape
        shapes = {name: array.shape for name, array in arrays.items()}
        targets = shapes["alphas"][1:]
        expected: dict[str, Any] = {
            "alphas": (T, *targets),
            "step_weights": (T, T, *targets),
            "constants": (T, p),
            "duals": (T, n, p),
        }
        if "shrinkage" in arrays:
            expected["shrinkage"] = (T, shapes["shrinkage"][1], *targets)
        if "X" in arrays:
            expected["X"] = (n, shapes["X"][1])
        if header["limit"] is None:
            expected |= {"limit_dual": (n, p), "limit_constant": (p,)}
        if shapes != expected or targets not in ((), (p,)):
            raise _Refused(f"damaged: its arrays do not belong together ({shapes})")
        kernel = kernel_from_dict(header["kernel"])
        if ("X" in arrays) == (kernel.name == "precomputed"):
            raise _Refused("damaged: training rows and kernel do not belong together")
        dtype = arrays["duals"].dtype
        doubles = (arrays["alphas"].dtype, arrays["step_weights"].dtype)
        if dtype not in (np.float32, np.float64) or set(doubles) != {np.dtype(np.float64)}:
            raise _Refused(f"damaged: coefficients of dtype {dtype}, weights of {doubles}")
        strange = sorted(name for name, array in arrays.items() if array.dtype.kind != "f")
        if strange:
            raise _Refused(f"damaged: {', '.join(strange)} must hold floating-point numbers")
        lam, lam_steps = header["lam"], header["lam_steps"]
        if (lam is None) == (lam_steps is None):
            raise _Refused("damaged: one of lam and lam_steps must be there")
        values = {
            "kernel": kernel,
            "lam": None if lam is None else float(check_lam(lam, batch=False)),
            "lam_steps": None if lam_steps is None else check_lam_steps(lam_steps, T),
            "step_weights": arrays.pop("step_weights"),
            "alphas": arrays.pop("alphas"),
            "limit": header["limit"],
            "one_target": bool(header["one_target"]),
            "selection": _arrays(header["selection"]),
            "metadata": header["metadata"],
        }
        return values, arrays


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


def _listed(selection: dict[str, Any] | None) -> dict[str, Any] | None:
    """Arrays as lists, infinite condition numbers as None: strict JSON."""
    if selection is None:
        return None
    return {
        name: [x if math.isfinite(x) else None for x in value.tolist()]
        if isinstance(value, np.ndarray)
        else value
        for name, value in selection.items()
    }


def _arrays(selection: dict[str, Any] | None) -> dict[str, Any] | None:
    """The reverse of :func:`_listed`."""
    if selection is None:
        return None
    return {
        name: np.array([math.inf if x is None else x for x in value])
        if isinstance(value, list)
        else value
        for name, value in selection.items()
    }


class _Refused(Exception):
    """A file that is not a saved model; the message is for the user."""


def _package_version() -> str:
    try:
        return version("selfdistill_fast")
    except PackageNotFoundError:
        return "unknown"


def load(path: Any, *, backend: Any = None) -> DistillationPath:
    """Read a saved path; see :meth:`DistillationPath.load`."""
    return DistillationPath.load(path, backend=backend)


@on_device
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
    if (X_val is None) != (y_val is None):
        raise ValueError("X_val and y_val go together: give both or neither")
    if sample_weight_val is not None and X_val is None:
        raise ValueError("sample_weight_val weighs X_val and y_val, which are missing")
    selection = None
    if chosen:
        y, F, w = held_out_columns(
            spectrum, lam, n_steps, lam_steps, X_val, y_val, sample_weight_val
        )
        options = {"sample_weight": w, "clip": clip, "per_target": per_target}
        if n_steps == 1:
            C, alphas = np.ones((1, 1)), np.array([np.nan])
        elif alpha == "optimal":
            alphas = greedy_alphas(y, list(F) if scheduled else F, **options)
            C = step_weights(alphas)
        else:
            C, alphas = _joint(joint_weights(y, F[-1] if scheduled else F, **options))
        selection = _selection(alpha, y, F, C, options, scheduled)
        selection["on"] = "leave-one-out" if X_val is None else "validation"
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
    return path


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
    errors = _training_errors(spectrum, C, pure, shrinkage, lam)
    alarm = _alarm(
        spectrum,
        lam if lam is not None else lam_steps.min(),
        C,
        alphas,
        shrinkage,
        errors,
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


def _training_errors(
    spectrum: Spectrum, C: np.ndarray, pure: Any, shrinkage: Any, lam: float | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Training RMSE of every step (T, p), and that of the constant function (p,).

    With eigenvalues the residual is (1 − B) z. Without them: the coefficients c_k of pure step k
    solve (K + λI) c_k = F_(k−1), so F_(k−1) − F_k = λ c_k, and y − Σ_k C_k F_k is
    λ Σ_s c_s Σ_(k>=s) C_k; None for a schedule of ridges. No product with K in either case.
    """
    xp, to_numpy = spectrum.backend.xp, spectrum.backend.to_numpy
    scale = max(1e-300, float(abs(spectrum.target).max()))

    def squares(a: Any) -> np.ndarray:
        scaled = a.astype("float64") / scale
        return to_numpy((scaled * scaled).sum(-2))

    size = squares(spectrum.target)
    if shrinkage is not None:
        B = shrinkage if shrinkage.ndim == 3 else shrinkage[..., None]
        outside = np.maximum(size - squares(spectrum.z), 0.0)
        residual = squares((1.0 - B) * spectrum.z) + outside
    elif lam is not None:
        tails = np.cumsum(C[:, ::-1], axis=1)[:, ::-1]
        residual = squares(lam * mix(xp.asarray(tails.copy()), pure, xp))
        round_off = 100.0 * float(np.finfo(spectrum.dtype).eps) * np.abs(tails).sum(1)
        residual = np.maximum(residual - round_off.reshape(len(C), -1) ** 2 * size, 0.0)
    else:
        return None
    rows = spectrum.total_weight
    return scale * np.sqrt(residual / rows), scale * np.sqrt(size / rows)


def _alarm(
    spectrum: Spectrum,
    lam: float,
    C: np.ndarray,
    alphas: np.ndarray,
    shrinkage: Any,
    errors: tuple[np.ndarray, np.ndarray] | None,
    *,
    first: int,
    chosen: bool,
) -> str | None:
    """The warning about a step that looks exploded, the earliest from ``first`` on, or None."""
    T = len(C)

    def by_target(a: np.ndarray) -> np.ndarray:
        return np.broadcast_to(a.reshape(T, -1), (T, spectrum.p))

    weights = by_target(np.abs(C).sum(1))
    # a strong ridge makes F_k as small as a^k, and weights as large are right then
    d = getattr(spectrum, "d", None)  # else a bound, ‖K‖ before centring
    largest = spectrum.scale if d is None else float(max(d[-1:], default=0.0))
    terms = (largest / (largest + lam)) ** np.arange(1, T + 1)
    reasons: list[tuple[np.ndarray, Callable[[int, int], str]]] = [
        (
            by_target(np.tensordot(terms, np.abs(C), (0, 1))) > LARGE_WEIGHTS,
            lambda t, j: f"Σ|c| = {weights[t, j]:.3g}",
        )
    ]
    if shrinkage is not None and spectrum.max_loo_steps > 0:  # Ritz values have another trace
        traces = spectrum.backend.to_numpy(shrinkage.sum(1, dtype="float64"))
        dof = by_target(traces) + spectrum.fit_intercept
        n = spectrum.target.shape[0]
        reasons.append(
            (abs(dof) > 1.01 * n, lambda t, j: f"{dof[t, j]:.3g} degrees of freedom of {n} rows")
        )
    if errors is not None:
        rmse, size = errors
        reasons.append(
            (
                (rmse > LARGE_ERROR * rmse[0]) & (rmse > LARGE_FUNCTION * size),
                lambda t, j: (
                    f"training RMSE {rmse[t, j]:.3g} ({rmse[0, j]:.3g} at step 1, "
                    f"{size[j]:.3g} without a model)"
                ),
            )
        )
    places = np.argwhere(np.any([far for far, _ in reasons], axis=0)[first - 1 :])
    if not len(places):
        return None
    t, j = places[0] + (first - 1, 0)
    figures = ", ".join(text(t, j) for far, text in reasons if far[t, j])
    own = alphas if alphas.ndim == 1 else alphas[:, j]
    c = C[t] if C.ndim == 2 else C[t, :, j]
    name, values = ("c", c) if np.isnan(own[1:]).any() else ("α", own[1 : t + 1])
    listed = "… " * (len(values) > 6) + ", ".join(f"{value:.6g}" for value in values[-6:])
    hint = (
        "clip=True keeps chosen α's in [0, 1]; a validation set (X_val, y_val), fewer steps or a "
        "larger lam may do better"
        if chosen
        else "take α's nearer to [0, 1], or alpha='optimal' with clip=True"
    )
    return (
        f"the chain looks exploded at step {t + 1} ({name} = {listed}): {figures}. "
        f"Its predictions may be far from the targets; {hint}"
    )


def _selection(
    alpha: str, y: Any, F: Any, C: np.ndarray, options: dict[str, Any], scheduled: bool
) -> dict[str, Any]:
    """How well the chosen α's do on the data that chose them, see ``DistillationPath``."""
    T = len(C)
    if alpha == "joint" and T > 1:
        report = joint_report(y, F[-1] if scheduled else F, **options)
        if report["useful_steps"] < T:
            warn_caller(
                f"joint weights of {T} steps: beyond step count {report['useful_steps']} the gain "
                "is within two standard errors of zero (condition number "
                f"{report['condition'][-1]:.2g}); see path.selection",
                RuntimeWarning,
            )
        return {**report, "best_step": smallest(report["mse"]) + 1}
    w = options["sample_weight"]
    losses = [mixture_losses(y, F[t] if scheduled else F, C[t : t + 1], w)[0] for t in range(T)]
    mse = np.mean(losses, axis=1)
    return {"mse": mse, "best_step": smallest(mse) + 1}


def held_out_columns(
    spectrum: Spectrum,
    lam: Any,
    n_steps: int,
    lam_steps: Any,
    X_val: Any,
    y_val: Any,
    sample_weight_val: Any,
) -> tuple[Any, Any, Any]:
    """Targets (m, p), pure-step predictions (T, m, p) and weights that α is chosen on.

    On the validation set, or by leave-one-out where there is none. With lam (L,) the
    predictions have a leading L; with a schedule they are (T, T, m, p), by last step and length.
    """
    be = spectrum.backend
    if X_val is None:
        w = spectrum.sample_weight
        F = loo_columns(spectrum, lam, n_steps, lam_steps)
        return spectrum.kept(spectrum.Y), F, None if w is None else spectrum.kept(w)
    device_of({"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val})
    X_val = spectrum.check_new(X_val, "X_val")
    if X_val.shape[0] == 0:
        raise ValueError("X_val is empty: no row to choose alpha on")
    y_val = check_targets(be, y_val, X_val.shape[0], spectrum.dtype, "y_val")
    y_val = y_val.reshape(X_val.shape[0], -1)
    if y_val.shape[1] != spectrum.p:
        raise ValueError(f"y_val has {y_val.shape[1]} target(s), the training set {spectrum.p}")
    w = check_sample_weight(be, sample_weight_val, X_val.shape[0], "sample_weight_val")
    spectrum.warn_below_rounding(lam if lam_steps is None else lam_steps)
    return y_val, spectrum.evaluate(X_val, spectrum.pure_steps(lam, n_steps, lam_steps)), w


def _joint(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Step weights and α's of the joint optimum c; NaN where no α-sequence exists."""
    try:
        alphas = weights_to_alphas(c)
        C = step_weights(alphas)
    except ValueError:
        alphas = np.full(c.shape, np.nan)
        C = np.full((len(c), *c.shape), np.nan)
    C[-1] = c
    return C, alphas


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


@on_device
def score_grid(
    spectrum: Spectrum,
    lams: Any,
    alpha: Any,
    n_steps: int,
    *,
    folds: Any = None,
    X_val: Any = None,
    y_val: Any = None,
    sample_weight_val: Any = None,
    clip: bool = False,
    per_target: bool = False,
) -> dict[str, Any]:
    """Held-out error of every ridge and step of one kernel, from one factorisation.

    Parameters
    ----------
    spectrum : Spectrum
    lams : array_like of shape (L,)
        Ridges: a batch, never a schedule.
    alpha : float, sequence of T − 1, "optimal" or "joint"
        "optimal" and "joint" are chosen for each λ on the same held-out predictions that are
        scored; "joint" for each number of steps separately.
    n_steps : int T
    folds : list of index arrays, optional
        From :func:`~selfdistill_fast._chain.leave_out.check_folds`; default leave-one-out.
    X_val, y_val, sample_weight_val : optional
        A validation set to score on instead.
    clip, per_target : bool

    Returns
    -------
    scores : dict
        ``mse`` (L, T); ``se`` (L, T), the standard error of the mean over rows; ``weights``
        (L, T, T[, p]), step weights of each; ``alphas`` (L, T[, p]), NaN for "joint".

    Raises
    ------
    TypeError, ValueError, MemoryError
        As :func:`distill` and :func:`~selfdistill_fast.leave_one_out`.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, spectrum
    >>> x = np.linspace(0, 1, 20)
    >>> s = spectrum(x[:, None], np.sin(6 * x), RBF(10.0))
    >>> score_grid(s, [0.1, 1.0], "optimal", 3)["mse"].shape
    (2, 3)
    """
    lams = np.atleast_1d(check_lam(lams, batch=True))
    n_steps = check_n_steps(n_steps)
    if folds is not None and X_val is None:
        F, y = fold_columns(spectrum, lams, n_steps, folds), spectrum.Y
        w = spectrum.sample_weight
    else:
        y, F, w = held_out_columns(spectrum, lams, n_steps, None, X_val, y_val, sample_weight_val)
    options: dict[str, Any] = {"sample_weight": w, "clip": clip, "per_target": per_target}
    alphas, C = map(np.stack, zip(*(chain_weights(y, f, alpha, **options) for f in F), strict=True))
    # the standard error is of fourth order: it needs the rows
    losses = np.stack([mixture_losses(y, f, c, w) for f, c in zip(F, C, strict=True)])
    return {
        "mse": cell_losses(y, F, C, sample_weight=w).mean(-1),
        "se": losses.std(2) / math.sqrt(losses.shape[2]),
        "weights": C,
        "alphas": alphas,
    }


@on_device
def gcv_alphas(
    spectrum: Spectrum, lam: float, n_steps: int, *, clip: bool = False, per_target: bool = False
) -> np.ndarray:
    """Greedy α's by generalised cross-validation instead of exact leave-one-out.

    Every diagonal in the leave-one-out recursion is replaced by its mean, which for one
    step is the usual GCV residual (y − ŷ)_i / (1 − tr A / n). One shot, and cheaper by the
    product with V∘V, but not exact; for comparison with alpha="optimal".

    Parameters
    ----------
    spectrum : Spectrum
    lam : float
        The ridge λ.
    n_steps : int T
    clip, per_target : bool

    Returns
    -------
    alphas : ndarray of shape (T,) or (T, p)
        To be given to :func:`distill` as ``alpha``.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, spectrum
    >>> x = np.linspace(0, 1, 20)
    >>> gcv_alphas(spectrum(x[:, None], np.sin(6 * x), RBF(10.0)), 0.1, 3).shape
    (3,)
    """
    lam = float(check_lam(lam, batch=False))
    F = loo_columns(spectrum, lam, check_n_steps(n_steps), average=True)
    w = spectrum.sample_weight
    return greedy_alphas(
        spectrum.kept(spectrum.Y),
        F,
        sample_weight=None if w is None else spectrum.kept(w),
        clip=clip,
        per_target=per_target,
    )
