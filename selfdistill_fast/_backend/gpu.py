"""The GPU backend: CuPy's arrays, cuBLAS and cuSOLVER, and the CUDA kernels of kernels.cu.

It overrides the verbs of the reference backend; their docstrings hold. Native arrays are
CuPy arrays on one device. kernels.cu is compiled by NVRTC at first use, once per precision,
and kept in CuPy's kernel cache (``~/.cupy/kernel_cache``).

What has 64 bits and what has not: every index of our kernels; cuSOLVER's eigendecomposition,
through its 64-bit interface (the workspace of the older one overflows its 32-bit integer
beyond n = 32,000). cuBLAS and ``potrf`` take 32-bit *dimensions*, which 2³¹ rows would exceed,
but address with 64 bits; the workspace of ``potrf`` is of order n.

Importing this module imports neither CuPy nor CUDA.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast._backend import threads
from selfdistill_fast._backend.cuda_libraries import install_hint
from selfdistill_fast._backend.reference import Half, Reference, cuda_device
from selfdistill_fast._validation import plain
from selfdistill_fast.kernels import Kernel

__all__ = ["Gpu", "GpuUnavailable", "cuda_source", "devices"]

#: threads of a block, rows of a tile, targets of a pass: BLOCK, SIDE and THREADS of kernels.cu
BLOCK, SIDE, TARGETS = 256, 64, 16
#: columns of X up to which K is made in one pass by differences; beyond, cuBLAS makes the inner
#: products, since its tensor cores outrun what the second pass over K costs
FUSED_COLUMNS = 64
#: rows of K that one matrix product makes: the part above the diagonal that K(X, X) does not
#: need is then small, and the product large enough for the full rate
PANEL_ROWS = 8192
#: bytes of the part of K that a product with many columns of X forms at a time
SLAB_BYTES = 512 << 20
#: column ranges of a product with K, each with its own sums, so that few rows keep the device busy
MAX_PARTS = 16
#: blocks that are enough to keep every device busy
ENOUGH_BLOCKS = 1024
#: columns of the inverse that are solved for at a time
INVERSE_COLUMNS = 1024
#: bytes per second between the host's pageable memory and a device, and seconds until a device
#: that has not been used answers
TRANSFER, WAKE_UP = 8e9, 0.3
#: what CUDA allows in a grid
MAX_GRID = 2**31 - 1

_PAIRS = {"sqeuclidean": "squares", "cityblock": "l1", "inner": "inner", "angle": "angle"}


class GpuUnavailable(RuntimeError):
    """No GPU can be used here; the message says why, and what to do."""


def _load() -> Any:
    """CuPy, with a device that it can use.

    Raises
    ------
    GpuUnavailable
        No CuPy, no driver, a driver that is too old, no device, or CUDA libraries missing.
    """
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        missing = "is not installed" if getattr(error, "name", "") == "cupy" else f"fails: {error}"
        raise GpuUnavailable(
            f"backend='gpu' needs CuPy, which {missing}; {install_hint()}, or use backend='cpu'"
        ) from error
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        driver, needed = _versions(runtime)
        if driver == 0:
            reason = "there is no NVIDIA driver: install one, or use backend='cpu'"
        elif driver < needed:
            reason = (
                f"the NVIDIA driver is too old: it supports CUDA {_dotted(driver)}, CuPy was built "
                f"for {_dotted(needed)}. Update the driver, or {install_hint()}"
            )
        else:
            reason = f"{error}; see nvidia-smi, and CUDA_VISIBLE_DEVICES"
        raise GpuUnavailable(f"backend='gpu' finds no device: {reason}") from error
    if count == 0:
        raise GpuUnavailable(
            "backend='gpu' finds no device: CUDA reports none; see nvidia-smi, and "
            "CUDA_VISIBLE_DEVICES"
        )
    for library in ("cublas", "cusolver"):
        try:
            getattr(cupy.cuda, library)
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            raise GpuUnavailable(
                f"CuPy cannot load {library} ({error}); install the CUDA libraries: "
                f"{install_hint()}, or the CUDA toolkit"
            ) from error
    return cupy


def _versions(runtime: Any) -> tuple[int, int]:
    """CUDA versions of the driver (0: none) and of the runtime, as 1000·major + 10·minor."""
    try:
        return int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
    except runtime.CUDARuntimeError:
        return 0, 0


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def devices() -> list[int]:
    """Numbers of the devices that can be used; none where there is no CuPy or driver."""
    try:
        return list(range(_load().cuda.runtime.getDeviceCount()))
    except GpuUnavailable:
        return []


@functools.cache
def cuda_source() -> str:
    """kernels.cu with the formulas that it shares with the C loops.

    One text, not an include path: CuPy's cache knows a kernel by its text and options.
    """
    package = resources.files("selfdistill_fast")
    kernels = (package / "_backend" / "kernels.cu").read_text(encoding="utf-8")
    formulas = (package / "include" / "formulas.h").read_text(encoding="utf-8")
    return kernels.replace('#include "formulas.h"', formulas)


#: parts of kernels.cu that are compiled apart (SDF_PART): the kernels of each pair quantity, others
PARTS = ("squares", "l1", "inner", "angle", "other")


def compile_options(itemsize: int, part: str) -> tuple[str, ...]:
    """Options of NVRTC for the kernels of one part on numbers of ``itemsize`` bytes."""
    return (f"-DSDF_BITS={8 * itemsize}", f"-DSDF_PART={PARTS.index(part)}", "-std=c++14")


_kernels: dict[tuple[int, int, str], Any] = {}
_kernels_lock = threading.Lock()


def _kernel(xp: Any, name: str, itemsize: int) -> Any:
    """A compiled kernel; CuPy loads it into each device that asks."""
    key = (id(xp), itemsize, name)
    with _kernels_lock:
        if key not in _kernels:
            part = name.rpartition("_")[2]
            options = compile_options(itemsize, part if part in PARTS else "other")
            module = xp.RawModule(code=cuda_source(), options=options)  # CuPy knows it again
            _kernels[key] = module.get_function(name)
        return _kernels[key]


def _guarded(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Run a verb on the backend's device."""

    @functools.wraps(verb)
    def wrapper(self: Gpu, *args: Any, **kwargs: Any) -> Any:
        with self.on():
            return verb(self, *args, **kwargs)

    return wrapper


def _out_of_memory(error: Exception) -> bool:
    """Whether a library on the device has run out of memory; our own budgets are not meant."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return any(
        name in str(error)
        for name in (
            "cudaErrorMemoryAllocation",
            "CUDA_ERROR_OUT_OF_MEMORY",
            "CUSOLVER_STATUS_ALLOC_FAILED",
            "CUBLAS_STATUS_ALLOC_FAILED",
        )
    )


class Gpu(Reference):
    """Verbs of a backend on one CUDA device.

    Parameters
    ----------
    n_threads : int, optional
        Not used: the device has its own. For symmetry with the other backends.
    device : int, optional
        Number of the device; None: CuPy's current one.

    Raises
    ------
    GpuUnavailable
        No CuPy, no driver, no such device.

    Notes
    -----
    float64 agrees with the reference to its rounding. In float32 pair quantities and matrix
    products are float32 (without TensorFloat-32) and sums over tiles of K are double: K is good to
    about 1e-5 of its largest entry and a chain of refits to max(1e-5, 100 ε (d_max/λ) Σ|c_k|),
    relative, with ε = 1.2e-7; numbers below 1e-38 are zero.
    """

    name = "gpu"

    def __init__(self, n_threads: int | None = None, device: int | None = None) -> None:
        super().__init__(threads.check_n_threads(n_threads))
        self.xp = _load()
        count = self.xp.cuda.runtime.getDeviceCount()
        if device is None:
            device = self.xp.cuda.runtime.getDevice()
        if not 0 <= device < count:
            raise GpuUnavailable(f"there is no GPU {device}: CUDA reports {count} device(s)")
        self.device = int(device)

    def __repr__(self) -> str:
        return f"Gpu(device={self.device})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "xp"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, xp=_load())

    @contextlib.contextmanager
    def on(self) -> Any:
        """As the reference; running out of memory becomes a MemoryError with a hint."""
        with self.xp.cuda.Device(self.device):
            try:
                yield
            except Exception as error:
                if not _out_of_memory(error):
                    raise
                left = ""
                with contextlib.suppress(Exception):  # a broken device cannot do even that
                    self.free_memory()
                    left = f"; {self.available_memory():,} bytes are left"
                raise MemoryError(
                    f"GPU {self.device} ran out of memory ({error}{left}). Ways out: float32 "
                    "input, solver='krylov' or 'nystrom', which need not store K, gram_matmul, "
                    "fewer rows, or backend='cpu'"
                ) from error

    def with_threads(self, n_threads: int) -> Reference:
        """The same device."""
        return type(self)(n_threads, self.device)

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
        """As the reference. CuPy, and through DLPack others on this device, are not copied."""
        xp = self.xp
        with self.on():
            if isinstance(a, xp.ndarray):
                array = a
            elif cuda_device(a) is not None:
                array = xp.from_dlpack(plain(a, name))
            else:
                host = super().asarray(a, name, ndim=ndim, dtype=dtype, finite=finite)
                return xp.asarray(host)
            if int(array.device.id) != self.device:
                raise TypeError(
                    f"{name} is on GPU {array.device.id}, but the computation is on GPU "
                    f"{self.device}; copy it there first"
                )
            if array.dtype.kind not in "fiub":
                raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
            if dtype is None:
                single = array.dtype.kind == "f" and array.dtype.itemsize <= 4
                dtype = np.float32 if single else np.float64
            self._check_ndim(array, name, ndim)
            array = xp.ascontiguousarray(array.astype(dtype, copy=False))
            if finite and not bool(xp.isfinite(array).all()):
                where = tuple(int(i) for i in xp.asnumpy(xp.argwhere(~xp.isfinite(array)))[0])
                raise ValueError(
                    f"{name} contains NaN or infinity (first at index {where}); "
                    "drop or impute such rows"
                )
            return array

    def to_numpy(self, a: Any) -> np.ndarray:
        """A native array, copied to the host."""
        return self.xp.asnumpy(a) if isinstance(a, self.xp.ndarray) else np.asarray(a)

    def available_memory(self) -> int:
        """Free memory of the device, what CuPy's pool holds free included."""
        with self.xp.cuda.Device(self.device):
            free, _ = self.xp.cuda.runtime.memGetInfo()
            pool = self.xp.get_default_memory_pool()
            left = int(free) + int(pool.free_bytes())
            limit = int(pool.get_limit())
            return left if limit == 0 else max(0, min(left, limit - int(pool.used_bytes())))

    def rates(self, dtype: Any) -> dict[str, float] | None:
        """As the reference: measured are a matrix product and a copy, the rest follows.

        Ratios to the rate of a matrix product are those of cuSOLVER at n of 10,000 and more on
        devices of compute capability 8 and 9, roughly; small orders would say less about large.
        """
        gemm, byte = _measured(self, np.dtype(dtype).name)
        return {
            "gemm": gemm,
            "cholesky": 1.5 * gemm,
            "eigh": 25.0 * gemm,
            "tridiagonal": 25.0 * 9.0 / (4.0 / 3.0) * gemm,  # an eigendecomposition
            "byte": byte,
            "pair": np.dtype(dtype).itemsize * byte + 60.0 * gemm,
            "column": 4.0 * gemm,
        }

    def transfer_seconds(self, nbytes: float) -> float:
        """As the reference: pageable memory over PCI Express, and launching the first kernels."""
        return WAKE_UP + nbytes / TRANSFER

    def free_memory(self) -> None:
        """Give what CuPy's pool holds free back to the device."""
        with self.xp.cuda.Device(self.device):
            self.xp.get_default_memory_pool().free_all_blocks()

    def stream(self, blocks: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """As the reference: blocks go through two pinned buffers and a stream of their own.

        Device memory of a block belongs to the computing stream, on which it is freed: the copy
        waits for what that stream had to do when the memory was taken, which is the block before
        the present one, and so runs beside the present one.
        """
        xp = self.xp
        with self.xp.cuda.Device(self.device):
            copier, computing = xp.cuda.Stream(non_blocking=True), xp.cuda.get_current_stream()
        slots: list[tuple[list[Any], Any]] = [([], None), ([], None)]  # pinned memory, its event

        def send(number: int, arrays: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
            pinned, busy = slots[number % 2]
            if busy is not None:
                busy.synchronize()  # the copy out of this buffer is done
            native: list[Any] = []
            with self.xp.cuda.Device(self.device):
                pinned = pinned or [None] * len(arrays)
                for i, a in enumerate(arrays):
                    if a is None:
                        native.append(None)
                        continue
                    if pinned[i] is None or pinned[i][1] < a.nbytes:
                        pinned[i] = (xp.cuda.alloc_pinned_memory(max(a.nbytes, 1)), a.nbytes)
                    host = np.frombuffer(pinned[i][0], a.dtype, a.size).reshape(a.shape)
                    host[...] = a
                    target = xp.empty(a.shape, a.dtype)
                    copier.wait_event(computing.record())
                    target.set(host, stream=copier)
                    native.append(target)
                event = copier.record()
            slots[number % 2] = (pinned, event)
            return tuple(native), event

        ahead: tuple[tuple[Any, ...], Any] | None = None
        for number, arrays in enumerate(blocks):
            present, ahead = ahead, send(number, arrays)
            if present is not None:
                computing.wait_event(present[1])
                yield present[0]
                del present
        if ahead is not None:
            computing.wait_event(ahead[1])
            yield ahead[0]

    # --------------------------------------------------------------- helpers
    def _launch(self, name: str, dtype: Any, grid: tuple[int, ...], args: tuple[Any, ...]) -> None:
        if 0 in grid:
            return
        _kernel(self.xp, name, np.dtype(dtype).itemsize)(grid, (BLOCK,), args)

    @staticmethod
    def _kappa(kernel: Kernel) -> tuple[int, int, float, float]:
        from selfdistill_fast import _core

        name, a, b, degree = kernel.c_spec
        return _core.KERNEL_IDS[name], int(degree), float(a), float(b)

    def _packed(self, X: Any, shift: Any) -> tuple[Any, Any]:
        """Rows minus ``shift`` and their squared norms; unit rows and norms for shift None."""
        xp, (n, d) = self.xp, X.shape
        packed, norms = xp.empty_like(X), xp.empty(n, X.dtype)
        args = (X, 0 if shift is None else shift, n, d, int(shift is None), packed, norms)
        self._launch("pack_rows", X.dtype, (min(n, 1 << 20),), args)
        return packed, norms

    def _operands(self, X: Any, Z: Any, kernel: Kernel) -> tuple[Any, Any, Any, Any]:
        """Rows of X and Z as the kernels read them, with norms where they need them."""
        symmetric = Z is None
        if kernel.pair == "angle":
            U, norms_x = self._packed(X, None)
            V, norms_z = (U, norms_x) if symmetric else self._packed(Z, None)
            return U, V, norms_x, norms_z
        return X, X if symmetric else Z, 0, 0

    def _inner(self, A: Any, B: Any, out: Any) -> None:
        """out (a, b) = A Bᵀ by cuBLAS; A (a, d), B (b, d) contiguous, out with long rows."""
        cublas = self.xp.cuda.cublas
        gemm = cublas.dgemm if A.dtype == np.float64 else cublas.sgemm
        one, zero = np.ones(1, A.dtype), np.zeros(1, A.dtype)
        d = A.shape[1]
        gemm(
            self.xp.cuda.device.get_cublas_handle(), cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N,
            B.shape[0], A.shape[0], d, one.ctypes.data, B.data.ptr, d, A.data.ptr, d,
            zero.ctypes.data, out.data.ptr, out.strides[0] // out.itemsize,
        )  # fmt: skip

    def _solve(self, L: Any, B: Any, *, lower: bool, transposed: bool) -> None:
        """B ← L⁻¹ B, or L⁻ᵀ B, for triangular L; both with contiguous (long) rows."""
        if 0 in B.shape:
            return
        cublas = self.xp.cuda.cublas
        trsm = cublas.dtrsm if L.dtype == np.float64 else cublas.strsm
        one = np.ones(1, L.dtype)
        # cuBLAS reads by columns: it sees Bᵀ = Xᵀ Lᵀ, and Lᵀ where L is stored
        trsm(
            self.xp.cuda.device.get_cublas_handle(), cublas.CUBLAS_SIDE_RIGHT,
            cublas.CUBLAS_FILL_MODE_UPPER if lower else cublas.CUBLAS_FILL_MODE_LOWER,
            cublas.CUBLAS_OP_T if transposed else cublas.CUBLAS_OP_N,
            cublas.CUBLAS_DIAG_NON_UNIT, B.shape[1], B.shape[0], one.ctypes.data,
            L.data.ptr, L.strides[0] // L.itemsize, B.data.ptr, B.strides[0] // B.itemsize,
        )  # fmt: skip

    # --------------------------------------------------------------- kernels
    @_guarded
    def gram(self, X: Any, Z: Any, kernel: Kernel, out: Any = None) -> Any:
        """K(X, Z), each tile of K(X, X) made once; see :meth:`Reference.gram`."""
        xp = self.xp
        shape = (X.shape[0], (X if Z is None else Z).shape[0])
        target = out
        if out is None or not out.flags.c_contiguous or _overlap(xp, out, X, Z):
            target = xp.empty(shape, X.dtype)
        if 0 not in shape:
            self._gram(X, Z, kernel, target)
        if out is None or target is out:
            return target
        out[...] = target
        return out

    def _gram(self, X: Any, Z: Any, kernel: Kernel, out: Any) -> None:
        """out (n, m) = K(X, Z); rows of ``out`` may be longer than m."""
        pair, d = _PAIRS[kernel.pair], X.shape[1]
        n, m = out.shape
        tiles = -(-n // SIDE) * -(-m // SIDE)
        if Z is None:
            tiles = -(-n // SIDE) * (-(-n // SIDE) + 1) // 2
        sizes = (out, n, m, d, out.strides[0] // out.itemsize, int(Z is None))
        grid = (min(tiles, MAX_GRID),)
        if pair == "l1" or d <= FUSED_COLUMNS:
            args = (*self._operands(X, Z, kernel), *sizes, *self._kappa(kernel))
            self._launch(f"gram_{pair}", X.dtype, grid, args)
            return
        x, z, norms_x, norms_z = self._operands(X, Z, kernel)
        packed_x, packed_z = x, z
        if pair == "squares":
            shift = self._centre(X if Z is None else Z)
            packed_x, norms_x = self._packed(x, shift)
            packed_z, norms_z = (packed_x, norms_x) if Z is None else self._packed(z, shift)
        for start in range(0, n, PANEL_ROWS):
            stop = min(start + PANEL_ROWS, n)
            columns = stop if Z is None else m  # K(X, X): on and below the diagonal
            self._inner(packed_x[start:stop], packed_z[:columns], out[start:stop, :columns])
        args = (x, z, norms_x, norms_z, *sizes, *self._kappa(kernel))
        self._launch(f"finish_{pair}", X.dtype, grid, args)

    def _centre(self, rows: Any) -> Any:
        """The mean of at most 1024 evenly spaced rows; 0 for what is not finite."""
        mean = rows[:: max(1, rows.shape[0] // 1024)].astype("float64").mean(0).astype(rows.dtype)
        return self.xp.where(self.xp.isfinite(mean), mean, self.xp.zeros_like(mean))

    @_guarded
    def gram_matmul(self, X: Any, Z: Any, W: Any, kernel: Kernel, out: Any = None) -> Any:
        """K(X, Z) @ W, K never formed; see :meth:`Reference.gram_matmul`.

        Up to ``FUSED_COLUMNS`` columns of X, and for the Laplacian, entries of K live in registers
        only and sums over tiles are double; 64 columns of W go through one pass. Beyond, K is
        formed in slabs of ``SLAB_BYTES``, whose products are added in double.
        """
        xp, (n, d), p = self.xp, X.shape, W.shape[1]
        m = (X if Z is None else Z).shape[0]
        if W.shape[0] != m:
            raise ValueError(f"W has {W.shape[0]} rows but K has {m} columns; they must agree")
        if W.dtype not in (X.dtype, np.float64):
            raise TypeError(f"X is {X.dtype} but W is {W.dtype}; W must be that or float64")
        if out is None:
            out = xp.empty((n, p), W.dtype)
        elif out.shape != (n, p) or out.dtype != W.dtype:
            raise ValueError(
                f"out must be {W.dtype} of shape {(n, p)}, got {out.dtype} of shape {out.shape}"
            )
        if W.dtype != X.dtype:  # sums in double: so is everything else
            X, Z = X.astype(W.dtype), None if Z is None else Z.astype(W.dtype)
        if 0 in (n, m, p):
            out[...] = 0
        elif kernel.pair == "cityblock" or d <= FUSED_COLUMNS:
            out[...] = self._fused_matmul(X, Z, xp.ascontiguousarray(W), kernel)
        else:
            self._slab_matmul(X, X if Z is None else Z, W, kernel, out)
        return out

    def _fused_matmul(self, X: Any, Z: Any, W: Any, kernel: Kernel) -> Any:
        (n, d), (m, p) = X.shape, W.shape
        pair, parameters = _PAIRS[kernel.pair], self._kappa(kernel)
        operands = self._operands(X, Z, kernel)
        rows, parts = self._parts(n, m)
        sums = self.xp.empty((parts, n, p), np.float64)
        if p == 1:
            args = (*operands, W, sums, n, m, d, *parameters)
            self._launch(f"vector_{pair}", X.dtype, (rows, parts), args)
            return _total(sums)
        for q, width in _passes(p):
            what = (*operands, W, sums, n, m, d, p, q, *parameters)
            self._launch(f"product{width}_{pair}", X.dtype, (rows, parts), what)
        return _total(sums)

    @staticmethod
    def _parts(n: int, m: int) -> tuple[int, int]:
        """Rows of tiles, and into how many ranges the columns are cut: by the sizes alone."""
        rows = -(-n // SIDE)
        return rows, max(1, min(MAX_PARTS, ENOUGH_BLOCKS // rows, -(-m // SIDE)))

    def _slab_matmul(self, X: Any, Z: Any, W: Any, kernel: Kernel, out: Any) -> None:
        xp, n, m = self.xp, X.shape[0], Z.shape[0]
        width = min(m, 16384)  # entries of a row of K that are summed in the dtype of X
        height = max(1, min(n, SLAB_BYTES // (width * X.dtype.itemsize)))
        slab = xp.empty((height, width), X.dtype)
        for start in range(0, n, height):
            rows = X[start : start + height]
            total = xp.zeros((rows.shape[0], W.shape[1]), np.float64)
            for first in range(0, m, width):
                columns = Z[first : first + width]
                K = slab[: rows.shape[0], : columns.shape[0]]
                self._gram(rows, columns, kernel, K)
                total += K @ W[first : first + width]
            out[start : start + height] = total

    # ------------------------------------------------------ all of K, kept
    # Memory for the other half buys products at the full rate of cuBLAS.
    @_guarded
    def half_gram(self, X: Any, kernel: Kernel, dtype: Any = None) -> Half:
        """K(X, X) in memory, all of it; see :meth:`Reference.half_gram`."""
        dtype = self._half_dtype(X, dtype)
        if not kernel.pair:
            raise TypeError(
                f"{kernel!r} is not computed by the backend: pass its matrix to half_of"
            )
        if dtype == X.dtype:
            return Half(X.shape[0], self.gram(X, None, kernel))
        n = X.shape[0]
        K = self.xp.empty((n, n), dtype)
        height = max(1, SLAB_BYTES // max(n * X.dtype.itemsize, 1))
        for start in range(0, n, height):
            K[start : start + height] = self.gram(X[start : start + height], X, kernel)
        return Half(n, K)

    @_guarded
    def half_of(self, K: Any, dtype: Any = None) -> Half:
        """K in memory, all of it; see :meth:`Reference.half_of`."""
        if K.ndim != 2 or K.shape[0] != K.shape[1]:
            raise ValueError(f"K must be square, got shape {K.shape}")
        kept = self.xp.array(K.T, dtype=self._half_dtype(K, dtype), order="C", copy=True)
        if K.shape[0]:
            self._above_diagonal(kept, mirrored=True)  # which is what was above it in K
        return Half(K.shape[0], kept)

    @_guarded
    def half_matmul(self, half: Half, V: Any, out: Any = None) -> Any:
        """K @ V in double; see :meth:`Reference.half_matmul`."""
        out = self._half_out(half, V, out)
        K, n = half.entries, half.n
        if 0 in V.shape:
            return out
        if V.shape[1] == 1:
            rows, parts = self._parts(n, n)
            sums = self.xp.empty((parts, n, 1), np.float64)
            args = (K, n, self.xp.ascontiguousarray(V), sums, n, n)
            self._launch("stored_vector", K.dtype, (rows, parts), args)
            out[...] = _total(sums)
        elif K.dtype == np.float64:
            out[...] = K @ V
        else:
            height = max(1, SLAB_BYTES // (8 * n))
            for start in range(0, n, height):
                part = slice(start, start + height)
                out[part] = K[part].astype(np.float64) @ V
        return out

    # -------------------------------------------------------- linear algebra
    def eigh_bytes(self, n: int, dtype: Any) -> int:
        """K, in whose place V comes, and cuSOLVER's workspace, which it is asked for."""
        itemsize = np.dtype(dtype).itemsize
        try:
            workspace = self._eigh_workspace(n, np.dtype(dtype))[0]
        except Exception:  # a size that cuSOLVER refuses, or a library that cannot be asked
            workspace = (2 * n * n + 64 * n) * itemsize
        return n * n * itemsize + workspace

    def _eigh_workspace(self, n: int, dtype: np.dtype) -> tuple[int, int]:
        """Bytes on the device and on the host."""
        with self.on():
            cusolver = self.xp.cuda.cusolver
            params = cusolver.createParams()
            try:
                handle, kind = self.xp.cuda.device.get_cusolver_handle(), self._cuda_type(dtype)
                lower = self.xp.cuda.cublas.CUBLAS_FILL_MODE_LOWER
                return cusolver.xsyevd_bufferSize(
                    handle, params, cusolver.CUSOLVER_EIG_MODE_VECTOR, lower, n, kind, 0, max(n, 1),
                    kind, 0, kind,
                )  # fmt: skip
            finally:
                cusolver.destroyParams(params)

    def _cuda_type(self, dtype: Any) -> int:
        runtime = self.xp.cuda.runtime
        return runtime.CUDA_R_64F if dtype == np.float64 else runtime.CUDA_R_32F

    @_guarded
    def eigh(self, K: Any) -> tuple[Any, Any]:
        """As the reference; V is Fortran-ordered and takes the place of K."""
        xp, n = self.xp, K.shape[0]
        if n == 0:
            return xp.empty(0, K.dtype), xp.empty((0, 0), K.dtype)
        cusolver, cublas = xp.cuda.cusolver, xp.cuda.cublas
        K = xp.ascontiguousarray(K)
        d, info, kind = xp.empty(n, K.dtype), xp.zeros(1, np.int32), self._cuda_type(K.dtype)
        handle, params = xp.cuda.device.get_cusolver_handle(), cusolver.createParams()
        try:
            what = (
                handle, params, cusolver.CUSOLVER_EIG_MODE_VECTOR, cublas.CUBLAS_FILL_MODE_LOWER,
                n, kind, K.data.ptr, n, kind, d.data.ptr, kind,
            )  # fmt: skip
            on_device, on_host = cusolver.xsyevd_bufferSize(*what)
            work, host_work = xp.empty(on_device, np.int8), np.empty(on_host, np.int8)
            cusolver.xsyevd(
                *what, work.data.ptr, on_device, host_work.ctypes.data, on_host, info.data.ptr
            )
            failed = int(info[0])  # waits for the device, which reads host_work until then
        finally:
            cusolver.destroyParams(params)
        if failed:
            raise LinAlgError(f"the eigendecomposition did not converge (cuSOLVER info {failed})")
        return d, K.T

    def cholesky_bytes(self, n: int, dtype: Any) -> int:
        """K, whose place L takes, M beside it, and a workspace of columns."""
        return (2 * n + 1024) * n * np.dtype(dtype).itemsize

    @_guarded
    def cholesky(self, K: Any) -> Any:
        """As the reference, in the buffer of K."""
        xp, n = self.xp, K.shape[0]
        if n == 0:
            return K
        K = xp.ascontiguousarray(K)
        cusolver, cublas = xp.cuda.cusolver, xp.cuda.cublas
        double = K.dtype == np.float64
        size = cusolver.dpotrf_bufferSize if double else cusolver.spotrf_bufferSize
        potrf = cusolver.dpotrf if double else cusolver.spotrf
        handle, info = xp.cuda.device.get_cusolver_handle(), xp.zeros(1, np.int32)
        upper = cublas.CUBLAS_FILL_MODE_UPPER  # of the transpose, which is what cuSOLVER reads
        count = size(handle, upper, n, K.data.ptr, n)
        work = xp.empty(max(count, 1), K.dtype)
        potrf(handle, upper, n, K.data.ptr, n, work.data.ptr, count, info.data.ptr)
        failed = int(info[0])
        if failed > 0:
            raise LinAlgError(f"the leading minor of order {failed} is not positive")
        self._above_diagonal(K, mirrored=False)
        return K

    def _above_diagonal(self, K: Any, *, mirrored: bool) -> None:
        n, tiles = K.shape[0], -(-K.shape[0] // SIDE)
        grid = (min(tiles * (tiles + 1) // 2, MAX_GRID),)
        self._launch("upper_triangle", K.dtype, grid, (K, n, n, int(mirrored)))

    @_guarded
    def cholesky_solve(self, L: Any, B: Any) -> Any:
        """As the reference."""
        X = self.xp.array(B, dtype=L.dtype, order="C", copy=True)
        L = self.xp.ascontiguousarray(L)
        self._solve(L, X, lower=True, transposed=False)
        self._solve(L, X, lower=True, transposed=True)
        return X

    @_guarded
    def cholesky_inverse(self, L: Any) -> Any:
        """As the reference; 2n³/3 flops: a column of the inverse is solved for below its diagonal.

        What is above is the image of what is below.
        """
        xp, n = self.xp, L.shape[0]
        M = xp.zeros((n, n), L.dtype)
        for start in range(0, n, INVERSE_COLUMNS):
            stop = min(start + INVERSE_COLUMNS, n)
            M[start:stop, start:stop] = xp.eye(stop - start, dtype=L.dtype)
            for transposed in (False, True):
                self._solve(
                    L[start:, start:], M[start:, start:stop], lower=True, transposed=transposed
                )
        self._above_diagonal(M, mirrored=True)
        return M

    @_guarded
    def inner_product(self, P: Any) -> Any:
        """As the reference."""
        return P.T @ P

    @_guarded
    def triangular_solve(self, R: Any, B: Any, *, lower: bool) -> Any:
        """As the reference."""
        X = self.xp.array(B, dtype=R.dtype, order="C", copy=True)
        self._solve(self.xp.ascontiguousarray(R), X, lower=lower, transposed=False)
        return X

    @_guarded
    def svd(self, A: Any) -> tuple[Any, Any, Any]:
        """As the reference, of the triangular factor where A is tall."""
        linalg = self.xp.linalg
        if A.shape[0] > A.shape[1] > 0:
            Q, R = linalg.qr(A)
            U, s, G = linalg.svd(R, full_matrices=False)
            V = Q @ U
        else:
            V, s, G = linalg.svd(A, full_matrices=False)
        if not bool(self.xp.isfinite(s).all()):  # CuPy does not look at cuSOLVER's verdict
            raise LinAlgError("the singular value decomposition did not converge")
        return V, s, G

    # cuSOLVER's reduction to tridiagonal form is not in CuPy's interface, and the second half of an
    # eigendecomposition is the cheaper one here: T is diagonal, Q holds eigenvectors.
    def tridiagonal_bytes(self, n: int, dtype: Any) -> int:
        """As :meth:`eigh_bytes`."""
        return self.eigh_bytes(n, dtype)

    def tridiagonalise(self, K: Any) -> tuple[Any, Any, Any]:
        """As the reference; the off-diagonal is zero."""
        d, V = self.eigh(K)
        return d, self.xp.zeros(max(len(d) - 1, 0), d.dtype), V

    @_guarded
    def tridiagonal_rotate(self, Q: Any, B: Any, *, transpose: bool = False) -> Any:
        """As the reference."""
        return (Q.T if transpose else Q) @ B

    @_guarded
    def tridiagonal_steps(
        self, d: Any, e: Any, lam: float, t: Any, n_steps: int
    ) -> tuple[Any, Any]:
        """As the reference, for the diagonal T of :meth:`tridiagonalise`."""
        xp = self.xp
        d, current = d.astype(np.float64)[:, None], t.astype(np.float64)
        definite = bool((d > -lam).all())
        steps = xp.empty((n_steps, *t.shape), t.dtype)
        for i in range(n_steps):
            step = current / (d + lam) if definite else current * float("nan")
            current = d * step
            steps[i] = step
        return steps, current.astype(t.dtype)

    @_guarded
    def squares_matmul(self, V: Any, F: Any) -> Any:
        """(V∘V) @ F in one pass over V, whose squares live in shared memory only."""
        xp, (n, m), p = self.xp, V.shape, F.shape[1]
        if 0 in (n, m, p):
            return xp.zeros((n, p), F.dtype)
        F = xp.ascontiguousarray(F.astype(V.dtype, copy=False))
        rows, parts = self._parts(n, m)
        sums = xp.empty((parts, n, p), np.float64)
        strides = tuple(stride // V.itemsize for stride in V.strides)
        for q, width in _passes(p):
            args = (V, *strides, F, sums, n, m, p, q)
            self._launch(f"squared{width}", V.dtype, (rows, parts), args)
        return _total(sums).astype(F.dtype)

    # --------------------------------------------------------------- filters
    def _filter_grid(self, count: int) -> tuple[int]:
        return (min(-(-count // BLOCK), 1 << 20),)

    @_guarded
    def shrinkage_path(self, d: Any, lam: Any, alpha: Any) -> Any:
        """diag B^(1..T); see :meth:`Reference.shrinkage_path`."""
        xp, k, L, T = self.xp, d.shape[0], lam.shape[0], alpha.shape[0]
        d, lam, alpha = (
            xp.ascontiguousarray(xp.asarray(a, dtype=t))
            for a, t in ((d, d.dtype), (lam, np.float64), (alpha, np.float64))
        )
        B = xp.empty((L, T, k), d.dtype)
        args = (d, k, lam, L, alpha, T, B)
        self._launch("shrinkage_path", d.dtype, self._filter_grid(L * k), args)
        return B

    @_guarded
    def pure_filters(self, d: Any, lam: Any, n_steps: int) -> Any:
        """Pure-step filters; see :meth:`Reference.pure_filters`."""
        xp, k, L = self.xp, d.shape[0], lam.shape[0]
        d, lam = xp.ascontiguousarray(d), xp.ascontiguousarray(xp.asarray(lam, dtype=np.float64))
        C = xp.empty((L, n_steps, k), d.dtype)
        args = (d, k, lam, L, n_steps, C)
        self._launch("pure_filters", d.dtype, self._filter_grid(L * k), args)
        return C


_rates: dict[tuple[int, str], tuple[float, float]] = {}


def _measured(be: Gpu, dtype: str) -> tuple[float, float]:
    """Seconds per flop of a matrix product and per byte read, once for each device."""
    if (be.device, dtype) not in _rates:
        xp, n = be.xp, 2048

        def best(function: Callable[[], Any]) -> float:
            times = []
            for _ in range(4):  # the first wakes the library up
                start = time.perf_counter()
                float(function().ravel()[0])  # waits
                times.append(time.perf_counter() - start)
            return min(times)

        with be.on():
            A = xp.ones((n, n), dtype)
            gemm = best(lambda: A @ A) / (2.0 * n**3)
            byte = best(A.copy) / (2.0 * A.nbytes)
        _rates[be.device, dtype] = gemm, byte
    return _rates[be.device, dtype]


def _passes(p: int) -> Iterator[tuple[int, int]]:
    """First target and width of each pass over K."""
    q = 0
    while q < p:
        width = TARGETS if p - q <= TARGETS else 4 * TARGETS
        yield q, width
        q += width


def _total(sums: Any) -> Any:
    """Sum over the parts, in their order."""
    total = sums[0]
    for part in range(1, sums.shape[0]):
        total = total + sums[part]
    return total


def _overlap(xp: Any, out: Any, *inputs: Any) -> bool:
    return any(a is not None and bool(xp.may_share_memory(out, a)) for a in inputs)
