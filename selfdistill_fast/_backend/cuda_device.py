"""A CUDA device: its arrays, memory, transfers and rates. The verbs are in its subclasses."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import DTypeLike

from selfdistill_fast._backend import cuda_kernels, cuda_loader, threads
from selfdistill_fast._backend.arrays import (
    check_finite,
    check_ndim,
    device_number,
    host_array,
    real_dtype,
)
from selfdistill_fast._backend.base import Array, Backend
from selfdistill_fast._backend.cuda_loader import GpuUnavailable
from selfdistill_fast._validation import plain

__all__ = ["CudaDevice", "guarded"]

#: bytes per second between the host's pageable memory and a device, and start-up seconds of an
#: unused device
TRANSFER, WAKE_UP = 8e9, 0.3
_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def guarded(verb: _Verb) -> _Verb:
    """Run a verb on the backend's device."""

    @functools.wraps(verb)
    def wrapper(self: CudaDevice, *args: Any, **kwargs: Any) -> Any:
        with self.on():
            return verb(self, *args, **kwargs)

    return cast(_Verb, wrapper)


def _out_of_memory(error: Exception) -> bool:
    """Whether a library on the device ran out of memory (as opposed to a memory budget)."""
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


class CudaDevice(Backend):
    """A CUDA device: its arrays, memory and rates.

    Parameters
    ----------
    n_threads : int, optional
        Ignored, since the device has its own threads; for symmetry with the other backends.
    device : int, optional
        Number of the device; None: CuPy's current one.

    Raises
    ------
    GpuUnavailable
        No CuPy, no driver, no such device.
    """

    name = "gpu"

    def __init__(self, n_threads: int | None = None, device: int | None = None) -> None:
        super().__init__(threads.check_n_threads(n_threads))
        self.xp = cuda_loader.load()
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
        self.__dict__.update(state, xp=cuda_loader.load())

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
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
                    f"GPU {self.device} ran out of memory ({error}{left}). Remedies: float32 "
                    "input, solver='krylov' or 'nystrom', which need not store K, gram_matmul, "
                    "fewer rows, or backend='cpu'"
                ) from error

    def with_threads(self, n_threads: int) -> Backend:
        """The same device."""
        return type(self)(n_threads, self.device)

    # ---------------------------------------------------------------- arrays
    def asarray(
        self,
        a: Any,
        name: str = "array",
        *,
        ndim: int | Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        finite: bool = True,
    ) -> Array:
        """As the reference. CuPy arrays, and by DLPack others on this device, are not copied."""
        xp = self.xp
        with self.on():
            if isinstance(a, xp.ndarray):
                array = a
            elif device_number(a) is not None:
                array = xp.from_dlpack(plain(a, name))
            else:
                host = host_array(a, name, ndim=ndim, dtype=dtype, finite=finite)
                return xp.asarray(host)
            if int(array.device.id) != self.device:
                raise TypeError(
                    f"{name} is on GPU {array.device.id}, but the computation is on GPU "
                    f"{self.device}; copy it there first"
                )
            chosen = real_dtype(array, name)
            check_ndim(array, name, ndim)
            array = array.astype(chosen if dtype is None else dtype, copy=False)
            array = xp.ascontiguousarray(array)
            if finite:
                check_finite(xp, array, name)
            return array

    def to_numpy(self, a: Any) -> np.ndarray:
        """A native array, copied to the host."""
        return self.xp.asnumpy(a) if isinstance(a, self.xp.ndarray) else np.asarray(a)

    def available_memory(self) -> int:
        """Free memory of the device, including free blocks of CuPy's pool."""
        with self.xp.cuda.Device(self.device):
            free, _ = self.xp.cuda.runtime.memGetInfo()
            pool = self.xp.get_default_memory_pool()
            left = int(free) + int(pool.free_bytes())
            limit = int(pool.get_limit())
            return left if limit == 0 else max(0, min(left, limit - int(pool.used_bytes())))

    def rates(self, dtype: DTypeLike) -> dict[str, float] | None:
        """As the reference: measures a matrix product and a copy, and derives the rest.

        The ratios to the rate of a matrix product are approximately those of cuSOLVER at
        n >= 10,000 on devices of compute capability 8 and 9; measurements at small orders would
        say little about large ones.
        """
        gemm, byte = measured(self, np.dtype(dtype).name)
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
        """As the reference: pageable memory over PCI Express, plus the first kernel launches."""
        return WAKE_UP + nbytes / TRANSFER

    def free_memory(self) -> None:
        """Return free blocks of CuPy's pool to the device."""
        with self.xp.cuda.Device(self.device):
            self.xp.get_default_memory_pool().free_all_blocks()

    def stream(
        self, blocks: Iterable[tuple[Array | None, ...]]
    ) -> Iterator[tuple[Array | None, ...]]:
        """As the reference: blocks go through two pinned buffers and a separate stream.

        The device memory of a block belongs to the computing stream, on which it is freed. The
        copy waits for the work queued on that stream at the time of allocation, that is, for the
        previous block, and therefore overlaps with the current one.
        """
        xp = self.xp
        with self.xp.cuda.Device(self.device):
            copier, computing = xp.cuda.Stream(non_blocking=True), xp.cuda.get_current_stream()
        slots: list[tuple[list[Any], Any]] = [([], None), ([], None)]  # pinned memory, its event

        def send(
            number: int, arrays: tuple[Array | None, ...]
        ) -> tuple[tuple[Array | None, ...], Any]:
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

        ahead: tuple[tuple[Array | None, ...], Any] | None = None
        for number, arrays in enumerate(blocks):
            present, ahead = ahead, send(number, arrays)
            if present is not None:
                computing.wait_event(present[1])
                yield present[0]
                del present
        if ahead is not None:
            computing.wait_event(ahead[1])
            yield ahead[0]

    def _launch(
        self, name: str, dtype: DTypeLike, grid: tuple[int, ...], args: tuple[Array | None, ...]
    ) -> None:
        if 0 in grid:
            return
        cuda_kernels.kernel(self.xp, name, np.dtype(dtype).itemsize)(
            grid, (cuda_kernels.BLOCK,), args
        )


_rates: dict[tuple[int, str], tuple[float, float]] = {}


def measured(be: CudaDevice, dtype: str) -> tuple[float, float]:
    """Seconds per flop of a matrix product and per byte read, once for each device."""
    if (be.device, dtype) not in _rates:
        xp, n = be.xp, 2048

        def best(function: Callable[[], Any]) -> float:
            times = []
            for _ in range(4):  # the first call initialises the library
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
