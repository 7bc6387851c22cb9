"""The operations ("verbs") of a backend, as abstract methods.

Solver code uses only these verbs and the array namespace ``xp``. A backend holds no data. The
arrays that it accepts are *native*: made by :meth:`Backend.asarray`.
"""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from selfdistill_fast.kernels import Kernel

__all__ = ["Array", "Backend", "Half"]

#: A native array of a backend: numpy.ndarray, or cupy.ndarray on a device. CuPy is optional and
#: untyped, and the two have no common type to check against. The name documents the intent; the
#: docstrings state the shapes.
Array: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class Half:
    """A symmetric matrix of order n in packed storage, for :meth:`Backend.half_matmul`.

    The layout of ``entries`` is up to the backend; the reference stores the whole matrix.
    """

    n: int
    entries: Array

    @property
    def dtype(self) -> np.dtype:
        """Precision of the stored entries."""
        stored: np.dtype = self.entries.dtype
        return stored

    @property
    def nbytes(self) -> int:
        """Bytes of the stored entries."""
        return int(self.entries.nbytes)


class Backend(ABC):
    """Verbs of a backend.

    Parameters
    ----------
    n_threads : int, optional
        Threads for this library's own loops; None: as many as the process may use.
    """

    name: ClassVar[str]
    #: namespace of the native arrays: NumPy or CuPy
    xp: Any
    #: kind of the caller's arrays, and so of results: "numpy", "cupy", "torch", …
    caller = "numpy"

    def __init__(self, n_threads: int | None = None) -> None:
        self.n_threads = n_threads

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_threads={self.n_threads})"

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Context in which solver code runs: the arrays' device is the current one."""
        yield

    def with_threads(self, n_threads: int) -> Backend:
        """The same backend with another number of threads."""
        return type(self)(n_threads)

    def for_caller(self, kind: str) -> Backend:
        """This backend, or a copy, for a caller with arrays of another kind."""
        if kind == self.caller:
            return self
        bound = copy.copy(self)
        bound.caller = kind
        return bound

    # ---------------------------------------------------------------- arrays
    @abstractmethod
    def asarray(
        self,
        a: Any,
        name: str = "array",
        *,
        ndim: int | Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        finite: bool = True,
    ) -> Array:
        """``a`` as a C-contiguous native-endian float32 or float64 array of this backend.

        float16 and bfloat16 become float32; integers, booleans and everything else real become
        float64. The input is never modified, and copied only if necessary. A torch tensor is
        detached: no gradient flows through this library.

        Parameters
        ----------
        a : array_like
        name : str
            Its name in error messages.
        ndim : int or sequence of int, optional
            Allowed numbers of dimensions.
        dtype : dtype, optional
            Convert to this dtype instead of choosing one.
        finite : bool
            Whether to reject NaN and infinity.

        Raises
        ------
        TypeError
            Sparse, complex, string or object arrays; quantised or nested tensors, and tensors
            on the meta device.
        ValueError
            Wrong number of dimensions; NaN or infinity.
        """

    @abstractmethod
    def to_numpy(self, a: Any) -> np.ndarray:
        """A native array as NumPy."""

    @abstractmethod
    def available_memory(self) -> int:
        """Bytes that can still be allocated on this backend's device."""

    def rates(self, dtype: DTypeLike) -> dict[str, float] | None:
        """Seconds per unit of work, for plan; None: plan measures them with the verbs."""
        return None

    def transfer_seconds(self, nbytes: float) -> float:
        """Time to move bytes from the host to the arrays' device, or back."""
        return 0.0

    def free_memory(self) -> None:  # noqa: B027 - not every backend caches memory
        """Release memory that is cached for reuse, so that others can use it."""

    def stream(
        self, blocks: Iterable[tuple[Array | None, ...]]
    ) -> Iterator[tuple[Array | None, ...]]:
        """Native arrays of each tuple of NumPy arrays in turn; None stays None.

        A device receives the next block while it computes with the previous one. Results must
        not hold on to a block, and must be used before the block after the next is requested.
        """
        for arrays in blocks:
            yield tuple(None if a is None else self.xp.asarray(a) for a in arrays)

    # --------------------------------------------------------------- kernels
    @abstractmethod
    def gram(self, X: Array, Z: Array, kernel: Kernel, out: Array = None) -> Array:
        """K(X, Z), shape (n, m).

        Parameters
        ----------
        X : (n, d)
        Z : (m, d) of the same dtype, or None for K(X, X): exactly symmetric, with the
            kernel's exact diagonal.
        kernel : Kernel
            A kernel with a ``pair`` quantity.
        out : (n, m) C-contiguous, optional
        """

    @abstractmethod
    def gram_matmul(self, X: Array, Z: Array, W: Array, kernel: Kernel, out: Array = None) -> Array:
        """K(X, Z) @ W, shape (n, p), in row blocks, without forming K.

        Parameters
        ----------
        X : (n, d)
        Z : (m, d) or None for X
        W : (m, p) of the same dtype, or float64: the result has the dtype of W
        out : (n, p) C-contiguous, optional; must not overlap W
        """

    def _matmul_out(self, X: Array, Z: Array, W: Array, out: Array) -> Array:
        """The array that receives K(X, Z) @ W; the arguments are checked."""
        shape, m = (X.shape[0], W.shape[1]), (X if Z is None else Z).shape[0]
        if W.shape[0] != m:
            raise ValueError(f"W has {W.shape[0]} rows but K has {m} columns; they must agree")
        if W.dtype not in (X.dtype, np.float64):
            raise TypeError(f"X is {X.dtype} but W is {W.dtype}; W must be that or float64")
        if out is None:
            return self.xp.empty(shape, dtype=W.dtype)
        if out.shape != shape or out.dtype != W.dtype:
            raise ValueError(
                f"out must be {W.dtype} of shape {shape}, got {out.dtype} of shape {out.shape}"
            )
        return out

    # --------------------------------------- packed storage of K(X, X), for products
    def half_bytes(self, n: int, dtype: DTypeLike) -> int:
        """Bytes that :meth:`half_gram` and :meth:`half_of` store for order n.

        Filling also needs the memory that :meth:`gram` needs beyond ``out``; a product needs some
        copies of its result.
        """
        return n * n * np.dtype(dtype).itemsize

    @abstractmethod
    def half_gram(self, X: Array, kernel: Kernel, dtype: DTypeLike | None = None) -> Half:
        """K(X, X) stored for :meth:`half_matmul`, in packed symmetric storage if possible.

        Parameters
        ----------
        X : (n, d)
        kernel : Kernel
            A kernel with a ``pair`` quantity; for others use :meth:`half_of`.
        dtype : float32 or float64, optional
            Precision of the stored entries, at most that of X, which is the default. The
            entries are computed in the dtype of X.
        """

    @abstractmethod
    def half_of(self, K: Array, dtype: DTypeLike | None = None) -> Half:
        """The same from a symmetric matrix K (n, n); only its upper triangle is read.

        K may be freed afterwards.
        """

    @abstractmethod
    def half_matmul(self, half: Half, V: Array, out: Array = None) -> Array:
        """K @ V in double, for any precision of K.

        Parameters
        ----------
        half : handle of :meth:`half_gram` or :meth:`half_of`
        V : (n, p) float64
        out : (n, p) float64, optional; must not overlap V

        Returns
        -------
        (n, p) float64
        """

    def project_out(self, basis: Iterable[Array], W: Array) -> Array:
        """A pass of Gram-Schmidt: W −= W Qᵀ Q in place, Q the rows of ``basis`` together.

        Parameters
        ----------
        basis : iterable of (c, n) float64, C-contiguous
            Nearly orthonormal rows: later ones may be applied to the result of earlier ones.
        W : (p, n) float64, C-contiguous

        Returns
        -------
        (k, p) float64
            Q Wᵀ, one row for each row of the basis.
        """
        parts = [self.xp.zeros((0, len(W)))]
        for Q in basis:
            parts.append(Q @ W.T)
            W -= parts[-1].T @ Q
        return self.xp.concatenate(parts)

    @staticmethod
    def _check_half_kernel(kernel: Kernel) -> None:
        if not kernel.pair:
            raise TypeError(
                f"{kernel!r} is not computed by the backend: pass its matrix to half_of"
            )

    @staticmethod
    def _check_square(K: Array) -> None:
        if K.ndim != 2 or K.shape[0] != K.shape[1]:
            raise ValueError(f"K must be square, got shape {K.shape}")

    @staticmethod
    def _half_dtype(a: Array, dtype: DTypeLike | None) -> np.dtype:
        stored = np.dtype(a.dtype if dtype is None else dtype)
        if stored not in (np.float32, np.float64) or stored.itemsize > a.dtype.itemsize:
            allowed = "float32" if a.dtype.itemsize == 4 else "float32 or float64"
            raise TypeError(f"K from {a.dtype} can be stored in {allowed}, not in {stored}")
        return stored

    def _half_out(self, half: Half, V: Array, out: Array) -> Array:
        """The array that receives the product; the arguments are checked."""
        if V.ndim != 2 or V.shape[0] != half.n:
            raise ValueError(f"V must have shape ({half.n}, p), got {V.shape}")
        if V.dtype != np.float64:
            raise TypeError(f"V must be float64, for any precision of K; got {V.dtype}")
        if out is None:
            return self.xp.empty(V.shape, dtype=np.float64)
        if out.shape != V.shape or out.dtype != np.float64:
            raise ValueError(
                f"out must be float64 of shape {V.shape}, got {out.dtype} of shape {out.shape}"
            )
        return out

    def gram_sweep(
        self, X: Array, Z: Array, kernels: Sequence[Kernel], out: Array = None
    ) -> Iterator[Array]:
        """K(X, Z) of each kernel in turn, each written to the same buffer ``out``."""
        for kernel in kernels:
            out = self.gram(X, Z, kernel, out=out)
            yield out

    # -------------------------------------------------------- linear algebra
    @abstractmethod
    def eigh_bytes(self, n: int, dtype: DTypeLike) -> int:
        """Peak bytes of an eigendecomposition of order n: K, V and LAPACK's workspace."""

    @abstractmethod
    def eigh(self, K: Array) -> tuple[Array, Array]:
        """Eigenvalues (n,), ascending, and eigenvectors (n, n) of symmetric K.

        K may be overwritten.
        """

    @abstractmethod
    def cholesky_bytes(self, n: int, dtype: DTypeLike) -> int:
        """Peak bytes of a Cholesky factorisation of order n and its inverse."""

    @abstractmethod
    def cholesky(self, K: Array) -> Array:
        """Lower factor L of symmetric positive definite K = L Lᵀ; K may be overwritten."""

    @abstractmethod
    def cholesky_solve(self, L: Array, B: Array) -> Array:
        """(L Lᵀ)⁻¹ B for L from :meth:`cholesky` and B (n, p)."""

    @abstractmethod
    def cholesky_inverse(self, L: Array) -> Array:
        """(L Lᵀ)⁻¹ in full for L from :meth:`cholesky`, which may be overwritten."""

    @abstractmethod
    def inner_product(self, P: Array) -> Array:
        """PᵀP, (k, k) and exactly symmetric, of P (n, k)."""

    @abstractmethod
    def triangular_solve(self, R: Array, B: Array, *, lower: bool) -> Array:
        """R⁻¹ B for lower or upper triangular R."""

    @abstractmethod
    def svd(self, A: Array) -> tuple[Array, Array, Array]:
        """Thin singular value decomposition A = V diag(s) G: V (n, r), s (r,), G (r, m).

        A (n, m) may be overwritten; r = min(n, m).
        """

    @abstractmethod
    def tridiagonal_bytes(self, n: int, dtype: DTypeLike) -> int:
        """Peak bytes of a reduction of order n to tridiagonal form."""

    @abstractmethod
    def tridiagonalise(self, K: Array) -> tuple[Array, Array, Array]:
        """Diagonal (n,) and off-diagonal (n − 1,) of T, and a handle of Q, with K = Q T Qᵀ.

        K is symmetric and may be overwritten.
        """

    @abstractmethod
    def tridiagonal_rotate(self, Q: Any, B: Array, *, transpose: bool = False) -> Array:
        """Q B, or Qᵀ B, for the handle of Q from :meth:`tridiagonalise` and B (n, m)."""

    @abstractmethod
    def tridiagonal_steps(
        self, d: Array, e: Array, lam: float, t: Array, n_steps: int
    ) -> tuple[Array, Array]:
        """(T + λ)⁻¹ A^(τ−1) t for τ = 1..n_steps, (n_steps, n, p), and A^n_steps t, (n, p).

        Computed in double, returned in the dtype of ``t``. NaN if T + λ is not positive definite.

        Parameters
        ----------
        d, e : (n,) diagonal and (n − 1,) off-diagonal of T
        lam : float
        t : (n, p)
        n_steps : int
        """

    @abstractmethod
    def squares_matmul(self, V: Array, F: Array) -> Array:
        """(V∘V) @ F in row blocks, without a second n² array for V∘V. V (n, k), F (k, q)."""

    # --------------------------------------------------------------- filters
    @abstractmethod
    def shrinkage_path(self, d: Array, lam: Array, alpha: Array) -> Array:
        """diag B^(1..T) by the recursion (12): B^(τ) = A((1 − α_τ) B^(τ−1) + α_τ I).

        Parameters
        ----------
        d : (k,) eigenvalues >= 0
        lam : (L,) float64, > 0
        alpha : (T,) float64; ``alpha[0]`` is not used since B^(0) = I

        Returns
        -------
        B : (L, T, k) in the dtype of d
        """

    @abstractmethod
    def pure_filters(self, d: Array, lam: Array, n_steps: int) -> Array:
        """Pure-step filters a^(τ−1)/(d + λ), τ = 1..T, with a = d/(d + λ).

        Parameters
        ----------
        d : (k,) eigenvalues >= 0
        lam : (L,) float64, > 0
        n_steps : int T

        Returns
        -------
        C : (L, T, k) in the dtype of d; d·C are the diagonals of A^τ
        """
