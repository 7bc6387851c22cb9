"""The reference backend: NumPy, one line per equation, every sum in double.

It is the oracle that the fast backends are tested against, and the base class whose
verbs they override one by one. Solver code uses these verbs and ``xp``, nothing else.

A backend holds no data. Arrays that it takes are *native*: made by :meth:`asarray`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdistill_fast._backend import blocked, host
from selfdistill_fast._validation import plain
from selfdistill_fast.kernels import Kernel

__all__ = ["Half", "Reference", "cuda_device"]


@dataclass(frozen=True, eq=False)
class Half:
    """A symmetric matrix of order n, kept for :meth:`Reference.half_matmul`.

    ``entries`` is laid out as its backend likes; the reference keeps the whole matrix.
    """

    n: int
    entries: Any

    @property
    def dtype(self) -> np.dtype:
        """Precision of what is kept."""
        return np.dtype(self.entries.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return int(self.entries.nbytes)


class Reference:
    """Verbs of a backend, in NumPy.

    Parameters
    ----------
    n_threads : int, optional
        Threads for this library's own loops; None means as many as the process may
        use. The reference backend has no loops of its own and ignores it.
    """

    name = "reference"
    xp: Any = np
    #: kind of the arrays that the caller has and gets: "numpy", "cupy", "torch", …
    caller = "numpy"

    def __init__(self, n_threads: int | None = None) -> None:
        self.n_threads = n_threads

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_threads={self.n_threads})"

    def on(self) -> Any:
        """Context in which solver code runs: where the arrays live is the current device."""
        return contextlib.nullcontext()

    def with_threads(self, n_threads: int) -> Reference:
        """The same backend with another number of threads."""
        return type(self)(n_threads)

    def for_caller(self, kind: str) -> Reference:
        """This backend, or a copy, for a caller with arrays of another kind."""
        if kind == self.caller:
            return self
        bound = copy.copy(self)
        bound.caller = kind
        return bound

    # ---------------------------------------------------------------- arrays
    def asarray(
        self,
        a: Any,
        name: str = "array",
        *,
        ndim: int | Sequence[int] | None = None,
        dtype: Any = None,
        finite: bool = True,
    ) -> Any:
        """``a`` as a C-contiguous native-endian float32 or float64 array of this backend.

        float16 and bfloat16 become float32; integers, booleans and everything else real become
        float64. The input is never modified, and copied only where it must be. A tensor of
        torch is detached: no gradient flows through this library.

        Parameters
        ----------
        a : array_like
        name : str
            What error messages call it.
        ndim : int or sequence of int, optional
            Allowed numbers of dimensions.
        dtype : dtype, optional
            Convert to this dtype instead of choosing one.
        finite : bool
            Refuse NaN and infinity.

        Raises
        ------
        TypeError
            Sparse, complex, string or object arrays; quantised or nested tensors, and those
            of the meta device.
        ValueError
            Wrong number of dimensions; NaN or infinity.
        """
        if cuda_device(a) is not None:
            raise TypeError(
                f"{name} is on GPU {cuda_device(a)}, but backend={self.name!r} computes on the "
                f"host: copy {name} there, or leave backend out"
            )
        if hasattr(a, "toarray") and hasattr(a, "nnz"):
            raise TypeError(
                f"{name} is sparse; this library works on dense arrays: pass {name}.toarray()"
            )
        if np.ma.is_masked(a):
            raise TypeError(f"{name} has masked entries; fill or drop them first")
        a = plain(a, name)
        try:
            array = np.asarray(a)
        except ValueError as error:
            raise ValueError(f"{name} is not a rectangular array: {error}") from None
        except (TypeError, RuntimeError) as error:  # of the object's own conversion
            raise TypeError(f"{name} cannot be read as an array: {error}") from error
        if array.dtype.kind == "O":
            try:
                array = array.astype(np.float64)
            except (TypeError, ValueError) as error:
                raise TypeError(f"{name} must hold real numbers: {error}") from None
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
        if dtype is None:
            dtype = np.float32 if array.dtype.kind == "f" and array.itemsize <= 4 else np.float64
        self._check_ndim(array, name, ndim)
        with np.errstate(over="ignore"):  # what overflows float32 is refused as infinity below
            array = np.asarray(array, dtype=dtype, order="C")
        if finite and not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise ValueError(
                f"{name} contains NaN or infinity (first at index {where}); "
                "drop or impute such rows"
            )
        return array

    @staticmethod
    def _check_ndim(array: Any, name: str, ndim: int | Sequence[int] | None) -> None:
        if ndim is None:
            return
        allowed = (ndim,) if isinstance(ndim, int) else tuple(ndim)
        if array.ndim not in allowed:
            raise ValueError(
                f"{name} must have {' or '.join(map(str, allowed))} dimension(s), "
                f"got shape {array.shape}"
                + ("; reshape a single feature to (n, 1)" if allowed == (2,) else "")
            )

    def to_numpy(self, a: Any) -> np.ndarray:
        """A native array as NumPy."""
        return np.asarray(a)

    def available_memory(self) -> int:
        """Bytes that can still be allocated where this backend's arrays live."""
        return host.available_memory()

    def rates(self, dtype: Any) -> dict[str, float] | None:
        """Seconds per unit of work, for plan; None: they are to be measured with the verbs."""
        return None

    def transfer_seconds(self, nbytes: float) -> float:
        """Time to move bytes from the host to where the arrays live, or back."""
        return 0.0

    def free_memory(self) -> None:
        """Give back what is kept for reuse, so that others may have it."""

    def stream(self, blocks: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Native arrays of each tuple of NumPy arrays in turn; None stays None.

        A device gets the next block while it computes with the one before: results must not keep
        a block, and what comes from it is to be used before the one after the next is asked for.
        """
        for arrays in blocks:
            yield tuple(None if a is None else self.xp.asarray(a) for a in arrays)

    # --------------------------------------------------------------- kernels
    def gram(self, X: Any, Z: Any, kernel: Kernel, out: Any = None) -> Any:
        """K(X, Z), shape (n, m).

        Parameters
        ----------
        X : (n, d)
        Z : (m, d) of the same dtype, or None for K(X, X): exactly symmetric, with the
            kernel's exact diagonal.
        kernel : Kernel
            One with a ``pair`` quantity.
        out : (n, m) C-contiguous, optional
        """
        xp = self.xp
        A = X.astype(np.float64)
        B = A if Z is None else Z.astype(np.float64)
        with np.errstate(over="ignore", under="ignore"):
            xx = (A * A).sum(1)[:, None]
            zz = (B * B).sum(1)[None, :]
            K = kernel.of_pair(xp, self._pair(A, B, kernel.pair), xx, zz)
            if Z is None:
                K = 0.5 * (K + K.T)
                K[np.diag_indices_from(K)] = kernel.diagonal(xp, xx[:, 0])
            if out is None:
                return K.astype(X.dtype, copy=False)
            out[...] = K
        return out

    @staticmethod
    def _pair(A: np.ndarray, B: np.ndarray, pair: str) -> np.ndarray:
        """The pair quantity of all rows of A and B, without cancellation."""
        from scipy.spatial.distance import cdist

        if pair == "inner":
            return blocked.inner_product(A.T) if A is B else A @ B.T
        if pair == "angle":
            # θ = 2 atan2(‖u − v‖, ‖u + v‖) on unit rows keeps all digits at 0 and π
            U, V = (
                M / np.maximum(np.linalg.norm(M, axis=1, keepdims=True), 1e-300) for M in (A, B)
            )
            return 2.0 * np.arctan2(cdist(U, V), cdist(U, -V))
        if 0 in (A.shape[0], B.shape[0]):
            return np.zeros((A.shape[0], B.shape[0]))
        return cdist(A, B, pair)

    def gram_matmul(self, X: Any, Z: Any, W: Any, kernel: Kernel, out: Any = None) -> Any:
        """K(X, Z) @ W, shape (n, p), in row blocks: K is never formed.

        Parameters
        ----------
        X : (n, d)
        Z : (m, d) or None for X
        W : (m, p) of the same dtype, or float64: the result has the dtype of W
        out : (n, p) C-contiguous, optional; must not overlap W
        """
        other = X if Z is None else Z
        if out is None:
            out = self.xp.empty((X.shape[0], W.shape[1]), dtype=W.dtype)
        block = max(1, (1 << 22) // max(other.shape[0], 1))
        for start in range(0, X.shape[0], block):
            rows = slice(start, start + block)
            K = self.gram(X[rows].astype(np.float64), other.astype(np.float64), kernel)
            out[rows] = K @ W.astype(np.float64)
        return out

    def half_bytes(self, n: int, dtype: Any) -> int:
        """Bytes that :meth:`half_gram` and :meth:`half_of` keep for order n.

        Filling takes besides what :meth:`gram` needs beyond ``out``; a product some copies of its
        result.
        """
        return n * n * np.dtype(dtype).itemsize

    def half_gram(self, X: Any, kernel: Kernel, dtype: Any = None) -> Half:
        """K(X, X) kept in memory for :meth:`half_matmul`, half of it where that is enough.

        Parameters
        ----------
        X : (n, d)
        kernel : Kernel
            One with a ``pair`` quantity; for others there is :meth:`half_of`.
        dtype : float32 or float64, optional
            Precision of what is kept, at most that of X, which is the default. The
            entries are computed in the dtype of X.
        """
        dtype = self._half_dtype(X, dtype)
        if not kernel.pair:
            raise TypeError(
                f"{kernel!r} is not computed by the backend: pass its matrix to half_of"
            )
        return Half(X.shape[0], self.gram(X, None, kernel).astype(dtype, copy=False))

    def half_of(self, K: Any, dtype: Any = None) -> Half:
        """The same from a symmetric matrix K (n, n), of which the upper triangle is read.

        K may be freed afterwards.
        """
        if K.ndim != 2 or K.shape[0] != K.shape[1]:
            raise ValueError(f"K must be square, got shape {K.shape}")
        upper = self.xp.triu(K)
        upper += self.xp.triu(K, 1).T
        return Half(K.shape[0], upper.astype(self._half_dtype(K, dtype), copy=False))

    def half_matmul(self, half: Half, V: Any, out: Any = None) -> Any:
        """K @ V in double, whatever the precision of K.

        Parameters
        ----------
        half : handle of :meth:`half_gram` or :meth:`half_of`
        V : (n, p) float64
        out : (n, p) float64, optional; must not overlap V

        Returns
        -------
        (n, p) float64
        """
        out = self._half_out(half, V, out)
        block = max(1, (1 << 22) // max(half.n, 1))
        for start in range(0, half.n, block):
            rows = slice(start, start + block)
            out[rows] = half.entries[rows].astype(np.float64) @ V
        return out

    def project_out(self, basis: Iterable[Any], W: Any) -> Any:
        """A pass of Gram-Schmidt: W −= W Qᵀ Q in place, Q the rows of ``basis`` together.

        Parameters
        ----------
        basis : iterable of (c, n) float64, C-contiguous
            Rows that are nearly orthonormal: later ones may see what earlier ones have left.
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
    def _half_dtype(a: Any, dtype: Any) -> np.dtype:
        kept = np.dtype(a.dtype if dtype is None else dtype)
        if kept not in (np.float32, np.float64) or kept.itemsize > a.dtype.itemsize:
            allowed = "float32" if a.dtype.itemsize == 4 else "float32 or float64"
            raise TypeError(f"half of K from {a.dtype} can be kept in {allowed}, not in {kept}")
        return kept

    def _half_out(self, half: Half, V: Any, out: Any) -> Any:
        """Where the product goes; the arguments are checked."""
        if V.ndim != 2 or V.shape[0] != half.n:
            raise ValueError(f"V must have shape ({half.n}, p), got {V.shape}")
        if V.dtype != np.float64:
            raise TypeError(f"V must be float64, whatever the precision of K; got {V.dtype}")
        if out is None:
            return self.xp.empty(V.shape, dtype=np.float64)
        if out.shape != V.shape or out.dtype != np.float64:
            raise ValueError(
                f"out must be float64 of shape {V.shape}, got {out.dtype} of shape {out.shape}"
            )
        return out

    def gram_sweep(
        self, X: Any, Z: Any, kernels: Sequence[Kernel], out: Any = None
    ) -> Iterator[Any]:
        """K(X, Z) of each kernel in turn, all written into the one buffer ``out``."""
        for kernel in kernels:
            out = self.gram(X, Z, kernel, out=out)
            yield out

    # -------------------------------------------------------- linear algebra
    def eigh_bytes(self, n: int, dtype: Any) -> int:
        """Peak bytes of an eigendecomposition of order n: K, V and LAPACK's workspace."""
        return 4 * n * n * np.dtype(dtype).itemsize

    def eigh(self, K: Any) -> tuple[Any, Any]:
        """Eigenvalues (n,), ascending, and eigenvectors (n, n) of symmetric K.

        K may be destroyed.
        """
        return np.linalg.eigh(K)

    def cholesky_bytes(self, n: int, dtype: Any) -> int:
        """Peak bytes of a Cholesky factorisation of order n and its inverse."""
        return 4 * n * n * np.dtype(dtype).itemsize

    def cholesky(self, K: Any) -> Any:
        """Lower factor L of symmetric positive definite K = L Lᵀ; K may be destroyed."""
        if len(K) > blocked.SYRK_ROWS:
            return blocked.cholesky(np.array(K, order="C"))
        return np.linalg.cholesky(K)

    def cholesky_solve(self, L: Any, B: Any) -> Any:
        """(L Lᵀ)⁻¹ B for L from :meth:`cholesky` and B (n, p)."""
        return np.linalg.solve(L.T, np.linalg.solve(L, B))

    def cholesky_inverse(self, L: Any) -> Any:
        """(L Lᵀ)⁻¹ in full for L from :meth:`cholesky`, which may be destroyed."""
        return blocked.inner_product(np.linalg.inv(L))

    def inner_product(self, P: Any) -> Any:
        """PᵀP, (k, k) and exactly symmetric, of P (n, k)."""
        return blocked.inner_product(P)

    def triangular_solve(self, R: Any, B: Any, *, lower: bool) -> Any:
        """R⁻¹ B for triangular R, which is lower or upper."""
        return np.linalg.solve(R, B)

    def svd(self, A: Any) -> tuple[Any, Any, Any]:
        """Thin singular value decomposition A = V diag(s) G: V (n, r), s (r,), G (r, m).

        A (n, m) may be destroyed; r = min(n, m).
        """
        return np.linalg.svd(A, full_matrices=False)

    def tridiagonal_bytes(self, n: int, dtype: Any) -> int:
        """Peak bytes of a reduction of order n to tridiagonal form."""
        return 4 * n * n * np.dtype(dtype).itemsize

    def tridiagonalise(self, K: Any) -> tuple[Any, Any, Any]:
        """Diagonal (n,) and off-diagonal (n − 1,) of T, and a handle of Q, with K = Q T Qᵀ.

        K is symmetric and may be destroyed.
        """
        from scipy.linalg import hessenberg

        T, Q = hessenberg(K, calc_q=True)
        return np.diagonal(T).copy(), np.diagonal(T, -1).copy(), Q

    def tridiagonal_rotate(self, Q: Any, B: Any, *, transpose: bool = False) -> Any:
        """Q B, or Qᵀ B, for the handle of Q from :meth:`tridiagonalise` and B (n, m)."""
        return (Q.T if transpose else Q) @ B

    def tridiagonal_steps(
        self, d: Any, e: Any, lam: float, t: Any, n_steps: int
    ) -> tuple[Any, Any]:
        """(T + λ)⁻¹ A^(τ−1) t for τ = 1..n_steps, (n_steps, n, p), and A^n_steps t, (n, p).

        Computed in double, in the dtype of ``t``. NaN where T + λ is not positive definite.

        Parameters
        ----------
        d, e : (n,) diagonal and (n − 1,) off-diagonal of T
        lam : float
        t : (n, p)
        n_steps : int
        """
        d64, e64 = d.astype(np.float64), e.astype(np.float64)
        T = np.diag(d64) + np.diag(e64, 1) + np.diag(e64, -1)
        strong = lam > np.abs(T).sum(1).max(initial=0.0)
        M = np.full_like(T, np.nan)
        if np.linalg.eigvalsh(T).min(initial=0.0) > -lam:
            M = np.linalg.inv(T + lam * np.eye(len(T)))
        steps, current = [], t.astype(np.float64)
        for _ in range(n_steps):
            steps.append(M @ current)
            current = T @ steps[-1] if strong else current - lam * steps[-1]
        return np.stack(steps).astype(t.dtype), current.astype(t.dtype)

    def squares_matmul(self, V: Any, F: Any) -> Any:
        """(V∘V) @ F in row blocks: V∘V is never a second n² array. V (n, k), F (k, q)."""
        out = self.xp.empty((V.shape[0], F.shape[1]), dtype=F.dtype)
        block = max(1, (1 << 20) // max(V.shape[1], 1))
        for start in range(0, V.shape[0], block):
            rows = slice(start, start + block)
            out[rows] = self.xp.square(V[rows]) @ F
        return out

    # --------------------------------------------------------------- filters
    def shrinkage_path(self, d: Any, lam: Any, alpha: Any) -> Any:
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
        xp = self.xp
        d64 = d.astype(np.float64)
        A = d64 / (d64 + lam[:, None])
        B = xp.empty((lam.shape[0], alpha.shape[0], d.shape[0]), dtype=d.dtype)
        previous = xp.ones_like(A)
        for t in range(alpha.shape[0]):
            weight = 0.0 if t == 0 else float(alpha[t])
            previous = A * ((1.0 - weight) * previous + weight)
            B[:, t] = previous
        return B

    def pure_filters(self, d: Any, lam: Any, n_steps: int) -> Any:
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
        xp = self.xp
        d64 = d.astype(np.float64)
        M = 1.0 / (d64 + lam[:, None])
        C = xp.empty((lam.shape[0], n_steps, d.shape[0]), dtype=d.dtype)
        for t in range(n_steps):
            C[:, t] = M
            M = M * d64 / (d64 + lam[:, None])
        return C


def cuda_device(a: Any) -> int | None:
    """Number of the CUDA device that ``a`` lies on, by DLPack's protocol; None: on the host."""
    if isinstance(a, np.ndarray) or not hasattr(a, "__dlpack_device__"):
        return None
    try:
        kind, number = a.__dlpack_device__()
    except Exception:  # some arrays refuse for what DLPack has no type for
        return None
    return int(number) if int(kind) in (2, 13) else None  # kDLCUDA, kDLCUDAManaged
