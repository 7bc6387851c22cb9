"""Self-distillation of a factorised training set: spectrum + α's → predictions.

The chain of steps 1..T with weights α_2..α_T has, by Theorem 4.1, the predictions
f^(τ) = Σ_k c_k F_k (alpha.py), so its coordinates are the same mixture of the pure steps'
coordinates, and its dual coefficients those coordinates in the training rows. A
:class:`DistillationPath` holds the dual coefficients and forgets the n² of the spectrum.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill_fast.alpha import (
    check_alphas,
    greedy_alphas,
    joint_weights,
    step_weights,
    weights_to_alphas,
)
from selfdistill_fast.backend import get_backend
from selfdistill_fast.filters import check_limit
from selfdistill_fast.gram import check_memory
from selfdistill_fast.kernels import Kernel, kernel_from_dict
from selfdistill_fast.loo import loo_columns, mix
from selfdistill_fast.spectrum import (
    Spectrum,
    check_lam,
    check_n_steps,
    check_new,
    check_sample_weight,
    check_targets,
    evaluate,
)

__all__ = ["DistillationPath", "distill", "load"]

_FORMAT = "selfdistill_fast.DistillationPath"
_VERSION = 1


class DistillationPath:
    """A chain of self-distilled models, one for each step; made by :func:`distill`.

    Attributes
    ----------
    kernel : Kernel
    lam : float
        The ridge λ of every step.
    alphas : ndarray of shape (T,) or (T, p)
        Ground-truth weight of each step; ``alphas[0]`` is NaN. All NaN for a joint
        optimum that no α-sequence has.
    weights : ndarray of shape (T,) or (T, p)
        Weights c of the pure steps in the last step; they sum to 1.
    step_weights : ndarray of shape (T, T) or (T, T, p)
        The same for every step, in rows.
    shrinkage : ndarray of shape (T, k) or (T, k, p)
        diag B^(τ): the filter of each step on the eigenvalues.
    n_steps : int
    metadata : dict
        What :meth:`save` was given; JSON values.
    """

    def __init__(
        self,
        *,
        kernel: Kernel,
        X: Any,
        lam: float,
        step_weights: np.ndarray,
        alphas: np.ndarray,
        shrinkage: Any,
        duals: Any,
        constants: Any,
        limit: tuple[Any, Any] | str,
        one_target: bool,
        backend: Any,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.kernel, self.lam, self.alphas = kernel, lam, alphas
        self.step_weights, self.shrinkage = step_weights, shrinkage
        self.metadata = dict(metadata or {})
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
    def n_features_in(self) -> int:
        """Columns that :meth:`predict` expects."""
        return int(self._duals.shape[1] if self._X is None else self._X.shape[1])

    def __repr__(self) -> str:
        return (
            f"DistillationPath({self.kernel!r}, lam={self.lam:g}, n_steps={self.n_steps}, "
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
                raise ValueError(self._limit)
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
        X : array_like of shape (m, d)
            With a precomputed kernel K(X, X_train), (m, n).
        step : None, int, "all" or inf
            None: the last step; 1..T; "all": every step in one pass over K(X, X_train),
            which is never formed; ``math.inf``: the limit of infinitely many steps, for a
            path with one constant α.

        Returns
        -------
        ndarray of shape (m,) or (m, p); for "all" (T, m) or (T, m, p)

        Raises
        ------
        TypeError, ValueError
            Bad X; a step that is not there; a limit that does not exist.
        """
        duals, constants = self._select(step)
        be = self._backend
        X = check_new(be, X, self.n_features_in, self._duals.dtype, self.kernel)
        F = evaluate(be, X, self._X, self.kernel, duals, constants)
        if self._one_target:
            F = F[..., 0]
        return F if isinstance(step, str) else F[0]

    def dual_coef(self, step: Any = None) -> Any:
        """Dual coefficients of a step: its predictions are κ(x, X) @ dual_coef (+ intercept).

        Parameters
        ----------
        step : None, int, "all" or inf
            As in :meth:`predict`.

        Returns
        -------
        ndarray of shape (n,) or (n, p); for "all" (T, n) or (T, n, p)
        """
        duals = self._select(step)[0]
        if self._one_target:
            duals = duals[..., 0]
        return duals if isinstance(step, str) else duals[0]

    def intercept(self, step: Any = None) -> Any:
        """Constant of a step, () or (p,); for "all" with a leading T. 0 without an intercept."""
        constants = self._select(step)[1]
        if self._one_target:
            constants = constants[..., 0]
        return constants if isinstance(step, str) else constants[0]

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
            "one_target": self._one_target,
            "limit": self._limit if isinstance(self._limit, str) else None,
            "metadata": self.metadata if metadata is None else metadata,
        }
        try:
            text = json.dumps(header, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"metadata must be JSON values: {error}") from None
        arrays = {
            "alphas": self.alphas,
            "step_weights": self.step_weights,
            "shrinkage": self.shrinkage,
            "duals": self._duals,
            "constants": self._constants,
        }
        if self._X is not None:
            arrays["X"] = self._X
        if not isinstance(self._limit, str):
            arrays["limit_dual"], arrays["limit_constant"] = self._limit
        # alongside, so that the rename stays within one file system
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent or "."
        )
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(
                    file,
                    header=np.frombuffer(text.encode(), dtype=np.uint8),
                    **{name: be.to_numpy(array) for name, array in arrays.items()},
                )
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

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
        """
        path = Path(path)
        be = get_backend(backend)
        try:
            return cls._read(path, be)
        except (OSError, _Refused) as error:
            if isinstance(error, OSError):
                raise
            raise ValueError(f"{path}: {error}") from None
        except Exception as error:
            raise ValueError(
                f"{path} is damaged and cannot be read as a saved model "
                f"({type(error).__name__}: {error}); save it again from the fitted model"
            ) from error

    @classmethod
    def _read(cls, path: Path, be: Any) -> DistillationPath:
        with path.open("rb") as file:
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
            "shrinkage": (T, shapes["shrinkage"][1], *targets),
            "duals": (T, n, p),
        }
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
        if dtype not in (np.float32, np.float64):
            raise _Refused(f"damaged: dual coefficients of dtype {dtype}")
        native = {
            name: be.asarray(array, name, dtype=dtype, finite=False)
            for name, array in arrays.items()
            if name not in ("alphas", "step_weights")
        }
        limit: Any = header["limit"]
        if limit is None:
            limit = (native["limit_dual"], native["limit_constant"])
        return cls(
            kernel=kernel,
            X=native.get("X"),
            lam=float(header["lam"]),
            step_weights=arrays["step_weights"],
            alphas=arrays["alphas"],
            shrinkage=native["shrinkage"],
            duals=native["duals"],
            constants=native["constants"],
            limit=limit,
            one_target=bool(header["one_target"]),
            backend=be,
            metadata=header["metadata"],
        )


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


def distill(
    spectrum: Spectrum,
    lam: float,
    alpha: Any,
    n_steps: int,
    *,
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
        take.
    alpha : float, sequence of T − 1, "optimal" or "joint"
        Ground-truth weights α_2..α_T, any real numbers (or a path's ``.alphas``).
        "optimal": eq. (16) step by step (Algorithm 1). "joint": the weights of all pure
        steps that are best for the last step. Both are chosen on ``X_val, y_val`` where
        they are given, else by exact leave-one-out.
    n_steps : int
        Number of steps T >= 1; step 1 is ordinary kernel ridge regression.
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
    be = spectrum.backend
    xp = be.xp
    lam = float(check_lam(lam, batch=False))
    n_steps = check_n_steps(n_steps)
    check_memory(
        be,
        2 * n_steps * (spectrum.n + spectrum.k) * spectrum.p * spectrum.dtype.itemsize,
        f"the coefficients of {n_steps} steps and {spectrum.p} target(s)",
        cure="use fewer steps (step=inf needs none), or fewer targets at a time",
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
    pure = spectrum.pure_steps(lam, n_steps)

    if chosen:
        y, F, w = _columns(spectrum, lam, pure, X_val, y_val, sample_weight_val)
        options = {"sample_weight": w, "clip": clip, "per_target": per_target}
        if n_steps == 1:
            C, alphas = np.ones((1, 1)), np.array([np.nan])
        elif alpha == "optimal":
            alphas = greedy_alphas(y, F, **options)
            C = step_weights(alphas)
        else:
            C, alphas = _joint(joint_weights(y, F, **options))
    else:
        alphas = check_alphas(alpha, n_steps, spectrum.p)
        C = step_weights(alphas)

    native_C = xp.asarray(C)
    coordinates = mix(native_C, pure, xp).astype(spectrum.dtype)
    powers = (spectrum.d * spectrum.pure_filters(lam, n_steps))[..., None]
    shrinkage = mix(native_C, xp.repeat(powers, C.shape[-1], 2) if C.ndim == 3 else powers, xp)
    return DistillationPath(
        kernel=spectrum.kernel,
        X=spectrum.X,
        lam=lam,
        step_weights=C,
        alphas=alphas,
        shrinkage=(shrinkage if C.ndim == 3 else shrinkage[..., 0]).astype(spectrum.dtype),
        duals=spectrum.dual(coordinates),
        constants=spectrum.constant(coordinates),
        limit=_limit(spectrum, lam, alpha, alphas),
        one_target=spectrum.one_target,
        backend=be,
    )


def _columns(
    spectrum: Spectrum, lam: float, pure: Any, X_val: Any, y_val: Any, sample_weight_val: Any
) -> tuple[Any, Any, Any]:
    """Targets (m, p), pure-step predictions (T, m, p) and weights that α is chosen on."""
    be = spectrum.backend
    if X_val is None:
        rows = slice(None) if spectrum.rows is None else spectrum.rows
        w = spectrum.sample_weight
        return (
            spectrum.Y[rows],
            loo_columns(spectrum, lam, len(pure)),
            None if w is None else w[rows],
        )
    X_val = spectrum.check_new(X_val, "X_val")
    if X_val.shape[0] == 0:
        raise ValueError("X_val is empty: no row to choose alpha on")
    y_val = check_targets(be, y_val, X_val.shape[0], spectrum.dtype, "y_val")
    y_val = y_val.reshape(X_val.shape[0], -1)
    if y_val.shape[1] != spectrum.p:
        raise ValueError(f"y_val has {y_val.shape[1]} target(s), the training set {spectrum.p}")
    w = check_sample_weight(be, sample_weight_val, X_val.shape[0], "sample_weight_val")
    return y_val, spectrum.evaluate(X_val, pure), w


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


def _limit(spectrum: Spectrum, lam: float, alpha: Any, alphas: np.ndarray) -> Any:
    """Dual coefficients and constant of the limit, or why there is none."""
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
        check_limit(spectrum.d.astype("float64"), lam, constant)
    except ValueError as error:
        return str(error)
    coordinates = spectrum.limit(lam, constant)
    return spectrum.dual(coordinates), spectrum.constant(coordinates)
