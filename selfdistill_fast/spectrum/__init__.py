"""Spectra: what is left of a training set once its kernel matrix has been factorised.

Every solver answers the same questions; everything after it (filters, leave-one-out, α,
predictions) is written on these answers alone:

* ``project(X)`` (m, k): the basis functions at new points;
* ``pure_steps(lam, n_steps)`` (T, k, p): coordinates with F_τ = project(X) @ pure_steps[τ−1],
  the predictions after τ pure steps (α = 0);
* ``diag_powers(lam, n_steps)`` (T, n): the diagonals of A, A², …; and with them
  ``diag_residuals`` and ``residual_steps``, the same information without cancellation,
  which is what leave-one-out needs;
* ``dual(coordinates)`` (…, n, p): dual coefficients, so that predictions are
  κ(x, X) @ dual + constant(coordinates) and need no basis.

A spectral solver also has eigenvalues ``d`` (k,) and rotated targets ``z`` = Vᵀy (k, p).
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from selfdistill_fast.backend import get_backend
from selfdistill_fast.gram import native_matmul
from selfdistill_fast.kernels import Kernel, Precomputed, as_kernel

__all__ = ["Spectrum", "check_lam", "check_n_steps", "spectrum"]

SOLVERS = ("eigh",)


class Spectrum:
    """A factorised training set: the part that all solvers share.

    Attributes
    ----------
    kernel : Kernel
    backend : backend object that holds the arrays
    X : (n, d) training rows; for a precomputed kernel None
    Y : (n, p) targets, centred by ``y_mean`` where there is an intercept
    n, k, p : int
        Training rows, coordinates, targets.
    d : (k,) eigenvalues, ascending and >= 0
    z : (k, p) rotated targets Vᵀ W^½ y
    sample_weight : (n,) or None
    rows : index array of the rows with positive weight, or None for all
    y_mean : (p,) the intercept's share of every prediction; 0 without an intercept
    one_target : bool
        y was one-dimensional, and so are predictions.
    """

    kernel: Kernel
    backend: Any
    X: Any
    Y: Any
    n: int
    d: Any
    z: Any
    sample_weight: Any
    rows: Any
    y_mean: Any
    one_target: bool
    fit_intercept: bool

    @property
    def k(self) -> int:
        """Number of coordinates."""
        return int(self.d.shape[0])

    @property
    def p(self) -> int:
        """Number of targets."""
        return int(self.Y.shape[1])

    @property
    def dtype(self) -> Any:
        """float32 or float64."""
        return self.Y.dtype

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.kernel!r}, n={self.n}, k={self.k}, p={self.p}, "
            f"dtype={self.dtype}, backend={self.backend.name!r})"
        )

    # The questions; see the head of this module.
    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k)."""
        raise NotImplementedError

    def pure_steps(self, lam: Any, n_steps: int) -> Any:
        """Coordinates of the pure steps, (T, k, p); with lam (L,) a leading L."""
        raise NotImplementedError

    def pure_filters(self, lam: Any, n_steps: int) -> Any:
        """Filters of the pure steps on the eigenvalues, (T, k); with lam (L,) a leading L."""
        raise NotImplementedError

    def limit(self, lam: float, alpha: float) -> Any:
        """Coordinates (k, p) of infinitely many steps with one α, eq. (17)."""
        raise NotImplementedError

    def diag_powers(self, lam: Any, n_steps: int) -> Any:
        """diag(A^τ), τ = 1..T, of the training rows of positive weight, (T, n)."""
        raise NotImplementedError

    def diag_residuals(self, lam: Any, n_steps: int) -> Any:
        """diag((I − A) A^(τ−1)), τ = 1..T, without cancellation, (T, n)."""
        raise NotImplementedError

    def residual_steps(self, lam: Any, n_steps: int) -> Any:
        """(I − A) A^(τ−1) y, τ = 1..T, without cancellation, (T, n, p)."""
        raise NotImplementedError

    def dual(self, coordinates: Any) -> Any:
        """Dual coefficients (…, n, p) of coordinates (…, k, p)."""
        raise NotImplementedError

    def dropped(self) -> tuple[Any, Any]:
        """Indices of the training rows of weight 0, and those rows for :meth:`evaluate`."""
        raise NotImplementedError

    def constant(self, coordinates: Any) -> Any:
        """What a prediction adds to κ(x, X) @ dual: (…, p)."""
        raise NotImplementedError

    def evaluate(self, X_new: Any, coordinates: Any) -> Any:
        """Predictions (S, m, p) at new points from coordinates (S, k, p).

        ``X_new`` is native; with a precomputed kernel it is K(X_new, X), (m, n).
        """
        return evaluate(
            self.backend,
            X_new,
            self.X,
            self.kernel,
            self.dual(coordinates),
            self.constant(coordinates),
        )

    def check_new(self, X_new: Any, name: str = "X") -> Any:
        """New points as a native array with the right number of columns."""
        n_features = self.n if self.X is None else int(self.X.shape[1])
        return check_new(self.backend, X_new, n_features, self.dtype, self.kernel, name)


def check_new(
    be: Any, X_new: Any, n_features: int, dtype: Any, kernel: Kernel, name: str = "X"
) -> Any:
    """New points as a native array (m, n_features) of ``dtype``; ValueError where they are not."""
    X_new = be.asarray(X_new, name, ndim=2, dtype=dtype)
    if X_new.shape[1] != n_features:
        if isinstance(kernel, Precomputed):
            raise ValueError(
                f"{name} must be K({name}, X_train) with {n_features} columns, one for each "
                f"training row, got shape {X_new.shape}"
            )
        raise ValueError(
            f"{name} has {X_new.shape[1]} features, but the model was fitted with {n_features}"
        )
    return X_new


def evaluate(be: Any, X_new: Any, X: Any, kernel: Kernel, dual: Any, constant: Any) -> Any:
    """κ(X_new, X) @ dual + constant for S models at once, K never formed.

    X_new (m, d), X (n, d), dual (S, n, p), constant (S, p) → (S, m, p).
    """
    S, n, p = dual.shape
    W = be.xp.ascontiguousarray(be.xp.moveaxis(dual, 0, 1).reshape(n, S * p))
    F = native_matmul(be, X_new, X, W, kernel) if p else W[:0]
    F = be.xp.moveaxis(F.reshape(X_new.shape[0], S, p), 1, 0)
    return F + constant[:, None, :]


def check_lam(lam: Any, *, batch: bool) -> Any:
    """``lam`` as float64: a 0-d value, or with ``batch`` possibly a 1-D array (L,).

    Raises
    ------
    TypeError, ValueError
        Not a number, not finite, not > 0, or an array where one value is wanted.
    """
    try:
        value = np.asarray(lam)
        if value.dtype.kind not in "fiu":
            raise TypeError
        value = value.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"lam must be a real number, got {lam!r}") from None
    if value.ndim > (1 if batch else 0):
        raise ValueError(
            f"lam must be a scalar{' or one-dimensional (a batch of values)' if batch else ''}, "
            f"got shape {value.shape}"
            + ("" if batch else "; a 1-D lam is a batch of ridges, never one for each step")
        )
    if not (np.isfinite(value) & (value > 0)).all():
        raise ValueError(f"lam must be finite and > 0 (the ridge λ of (K + λI)⁻¹), got {lam!r}")
    return value


def check_n_steps(n_steps: Any, name: str = "n_steps") -> int:
    """``n_steps`` as an int >= 1; TypeError or ValueError otherwise."""
    if isinstance(n_steps, (bool, np.bool_)) or not isinstance(n_steps, numbers.Real):
        raise TypeError(f"{name} must be an integer >= 1, got {n_steps!r}")
    value = float(n_steps)
    if not (math.isfinite(value) and value % 1 == 0 and value >= 1):
        raise ValueError(f"{name} must be an integer >= 1 (steps count from 1), got {n_steps!r}")
    return int(value)


def check_targets(be: Any, y: Any, n: int, dtype: Any, name: str = "y") -> Any:
    """Targets as a native (n,) or (n, p) array with p > 0; ValueError where they are not."""
    y = be.asarray(y, name, ndim=(1, 2), dtype=dtype)
    if y.shape[0] != n:
        raise ValueError(f"X has {n} rows, but {name} has {y.shape[0]}")
    if y.ndim == 2 and y.shape[1] == 0:
        raise ValueError(f"{name} has no targets: shape {y.shape}")
    return y


def check_sample_weight(be: Any, sample_weight: Any, n: int, name: str = "sample_weight") -> Any:
    """Weights as a native float64 (n,) array, or None; ValueError where they are not."""
    if sample_weight is None:
        return None
    w = be.asarray(sample_weight, name, ndim=(0, 1), dtype=np.float64)
    if w.ndim == 0:
        w = be.xp.full(n, float(w))
    if w.shape[0] != n:
        raise ValueError(f"{name} has {w.shape[0]} entries for {n} rows")
    if bool((w < 0).any()):
        raise ValueError(f"{name} must be >= 0, got {float(w.min())}")
    if not bool((w > 0).any()):
        raise ValueError(f"{name} is zero for every row: nothing is left to fit")
    return w


def spectrum(
    X: Any,
    Y: Any,
    kernel: Any,
    *,
    solver: str = "auto",
    lam: Any = None,
    sample_weight: Any = None,
    fit_intercept: bool = False,
    random_state: Any = None,
    backend: Any = None,
    max_memory: int | None = None,
    **options: Any,
) -> Spectrum:
    """Factorise a training set once, for every λ, α and number of steps.

    Parameters
    ----------
    X : array_like of shape (n, d)
        For ``kernel="precomputed"`` the matrix K, (n, n).
    Y : array_like of shape (n,) or (n, p)
    kernel : Kernel or callable
        Such as ``RBF(0.1)``; "precomputed"; or a function of (X, Z).
    solver : {"auto", "eigh"}
        "eigh": K = V D Vᵀ in full; exact, n² memory, O(n³) time.
    lam : float or sequence, optional
        The ridges that will be asked for. A full eigendecomposition serves them all and
        only checks them; a sequence is a batch, never a schedule over the steps.
    sample_weight : array_like of shape (n,), optional
        Weights of the squared errors, >= 0. Rows of weight 0 drop out of the fit.
    fit_intercept : bool
        An unpenalised constant, refitted in every step.
    random_state : optional
        For randomised solvers; "eigh" uses no random numbers.
    backend : {None, "cpu", "reference"} or a backend object, optional
    max_memory : int, optional
        Bytes that the factorisation may take; default 80 % of what is available.

    Returns
    -------
    Spectrum
        With ``.d`` (k,), ``.z`` (k, p) and ``.project(X_new)`` (m, k); see
        :func:`~selfdistill_fast.distill`. Everything is float32 if X is, else float64.

    Raises
    ------
    TypeError, ValueError
        Sparse or non-numeric input, wrong shapes, NaN, infinity, empty arrays, a
        precomputed K that is not symmetric, an unknown solver.
    numpy.linalg.LinAlgError
        K is not positive semi-definite; the message names the eigenvalue.
    MemoryError
        The factorisation does not fit; the message gives the bytes and the ways out.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, distill, spectrum
    >>> X = np.linspace(0, 1, 20)[:, None]; y = np.sin(6 * X[:, 0])
    >>> s = spectrum(X, y, RBF(10.0))
    >>> path = distill(s, lam=0.1, alpha=0.5, n_steps=3)
    >>> path.predict(X, step="all").shape
    (3, 20)
    """
    if solver not in ("auto", *SOLVERS):
        raise ValueError(f"unknown solver {solver!r}; known: auto, {', '.join(SOLVERS)}")
    if options:
        raise TypeError(f"solver {solver!r} has no option {', '.join(sorted(options))}")
    if lam is not None:
        check_lam(lam, batch=True)
    if max_memory is not None and (
        isinstance(max_memory, bool) or not isinstance(max_memory, numbers.Real) or max_memory <= 0
    ):
        raise ValueError(f"max_memory must be a positive number of bytes, got {max_memory!r}")
    be = get_backend(backend)
    kernel = as_kernel(kernel)
    X = be.asarray(X, "X", ndim=2)
    n, n_features = X.shape
    if n == 0 or n_features == 0:
        raise ValueError(f"X is empty: shape {X.shape}; expected at least one row and one feature")
    if isinstance(kernel, Precomputed) and n != n_features:
        raise ValueError(f"a precomputed K must be square, got shape {X.shape}")
    y = check_targets(be, Y, n, X.dtype, "Y")
    w = check_sample_weight(be, sample_weight, n)
    from selfdistill_fast.spectrum.eigh import EighSpectrum

    return EighSpectrum(
        be, X, y, kernel, w, bool(fit_intercept), None if max_memory is None else int(max_memory)
    )
