"""The input of solvers: the training set, the request, and the sizes to plan for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from selfdistill_fast.kernels import Kernel

__all__ = ["NoOptions", "Problem", "Rates", "Request", "TrainingSet", "Unsuitable", "Work"]


@dataclass(frozen=True)
class TrainingSet:
    """Training data on one backend; unchanged from the caller until they are checked.

    Attributes
    ----------
    backend : backend object that holds the arrays
    X : (n, d) array, for a precomputed kernel K (n, n); or Rows, for a solver that streams
    y : (n,) or (n, p) array, float64
    kernel : Kernel
    sample_weight : (n,) array or None
    fit_intercept : bool
    """

    backend: Any
    X: Any
    y: Any
    kernel: Kernel
    sample_weight: Any
    fit_intercept: bool

    @property
    def n_kept(self) -> int:
        """Number of rows with positive weight."""
        w = self.sample_weight
        return int(self.X.shape[0]) if w is None else int((w > 0).sum())

    @property
    def p(self) -> int:
        """Number of targets."""
        return 1 if self.y.ndim == 1 else int(self.y.shape[1])

    @property
    def dtype(self) -> Any:
        """float32 or float64, that of the rows and of everything computed from them."""
        return self.X.dtype


@dataclass(frozen=True)
class NoOptions:
    """The options of a solver without options."""


@dataclass(frozen=True)
class Request:
    """What is requested of a solver, besides the training set.

    Attributes
    ----------
    lam : float64 array, 0-d or (L,), or None
        The λ values known so far.
    random_state : seed or generator
    max_memory : int
        Bytes that the factorisation may use; None, until it is known, for most of the memory.
    automatic : bool
        The caller did not name the solver. A solver that cannot be exact then raises
        :class:`Unsuitable`, and another one replaces it.
    options : the solver's ``Options``
    """

    lam: Any
    random_state: Any
    max_memory: Any
    automatic: bool = False
    options: Any = NoOptions()


class Unsuitable(Exception):
    """A solver that was chosen automatically cannot be exact for this training set."""


@dataclass(frozen=True)
class Problem:
    """Sizes, λ values and needs, from which each solver computes its cost.

    Attributes
    ----------
    backend : backend object
    n, d, p : int
        Rows, columns and targets.
    dtype : numpy.dtype, float32 or float64
    kernel : Kernel
    lam : float64 array, 0-d or (L,), or None where λ is not known yet
    leave_one_out : bool, or None where that is not known
    budget : int
        Bytes that may be used.
    n_steps, tol, n_landmarks
        As in :func:`~selfdistill_fast.plan`.
    """

    backend: Any
    n: int
    d: int
    p: int
    dtype: Any
    kernel: Kernel
    lam: Any
    leave_one_out: bool | None
    budget: int
    n_steps: int = 4
    tol: float | None = None
    n_landmarks: int = 1000

    @property
    def n_lams(self) -> int:
        """Number of λ values; 1 where they are not known."""
        return 1 if self.lam is None or not self.lam.ndim else len(self.lam)

    @property
    def one_lam(self) -> bool:
        """Whether λ is known, and a single value."""
        return self.lam is not None and not self.lam.ndim

    @property
    def columns(self) -> int:
        """Columns of the pure steps: λ values times steps times targets."""
        return self.n_lams * self.n_steps * self.p

    @property
    def rows_bytes(self) -> int:
        """Memory of the stored copy of the rows, and of packed rows."""
        return int(3 * self.n * self.d * self.dtype.itemsize + 16 * self.n * self.p)

    def matrix_seconds(self, rates: Rates) -> float:
        """Time to compute K."""
        return self.n * self.n * rates.entry(self.d)

    def finish_seconds(self, rates: Rates) -> float:
        """Time of one n x n product with the columns of all pure steps."""
        return 2.0 * self.n * self.n * self.columns * rates.gemm


@dataclass(frozen=True)
class Rates:
    """Seconds for one unit of each kind of work."""

    gemm: float  #: per flop of a matrix product
    cholesky: float  #: per flop of a factor, counted as n³/3
    eigh: float  #: per flop, counted as 9 n³
    tridiagonal: float  #: per flop, counted as 4/3 n³
    byte: float  #: per byte read from memory
    pair: float  #: per entry of K, for any number of columns
    column: float  #: per entry of K and column of X

    def entry(self, d: int) -> float:
        """Per entry of K for rows of d columns."""
        return self.pair + d * self.column


class Work(NamedTuple):
    """What one solver would take for a :class:`Problem`: leading terms in n."""

    bytes: int  #: peak memory, the copy of the rows included
    flops: float
    seconds: float
    passes: int = 1  #: passes over K (for a landmark model: over the rows)
    note: str = ""
