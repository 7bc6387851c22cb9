"""``backend="auto"``: when a GPU is worthwhile, and the fallback to the CPU when it fails.

A computation moves to the device if its seconds on the cores exceed twice those of moving the
data, and the data take less than half of the free memory. If the device fails or is full, a
warning is issued and the CPU is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from selfdistill_fast._backend import threads
from selfdistill_fast._backend.base import Backend
from selfdistill_fast._backend.cpu import Cpu
from selfdistill_fast._backend.cuda_loader import GpuUnavailable
from selfdistill_fast._backend.gpu import Gpu
from selfdistill_fast._validation import warn_caller

__all__ = ["run_where_it_pays", "try_gpu", "unless_it_fails", "with_fallback"]

_R = TypeVar("_R")

#: assumed flops per second of a core, for "auto"
CORE_FLOPS = 3e10

_warned: set[str] = set()


def try_gpu(n_threads: int | None = None) -> Gpu | None:
    """A GPU for ``backend="auto"``; None if there is none, with a warning the first time."""
    try:
        return Gpu(n_threads)
    except GpuUnavailable as error:
        _warn_once(f"backend='auto' computes on the CPU: {error}")
        return None


def _warn_once(message: str) -> None:
    """RuntimeWarning at the line outside this package that led here; each message once."""
    if message not in _warned:
        _warned.add(message)
        warn_caller(message, RuntimeWarning)


def run_where_it_pays(
    be: Backend, backend: Any, flops: float, nbytes: float, function: Callable[[Any], _R]
) -> _R:
    """``function`` on ``be``, or for "auto" on a GPU if the arithmetic outweighs moving the data.

    ``flops`` on the CPU and ``nbytes`` to and from the device; the assumed rate of a core favours
    the CPU.
    """
    if isinstance(backend, str) and backend == "auto" and be.name == "cpu":
        gpu = try_gpu(be.n_threads)
        seconds = flops / (CORE_FLOPS * threads.n_threads_now(be.n_threads))
        if (
            gpu is not None
            and seconds > 2.0 * gpu.transfer_seconds(nbytes)
            and unless_it_fails(lambda: nbytes < 0.5 * gpu.available_memory(), False)
        ):
            return with_fallback(gpu, function, be.n_threads)
    with be.on():
        return function(be)


def with_fallback(gpu: Gpu, function: Callable[[Any], _R], n_threads: int | None = None) -> _R:
    """``function(gpu)``; if the device fails or is full, a warning and ``function(cpu)``."""
    try:
        with gpu.on():
            return function(gpu)
    except Exception as error:
        if not _of_device(error):
            raise
        message = f"backend='auto' continues on the CPU: {error}"
    with contextlib.suppress(Exception):  # even that fails on a broken device
        gpu.free_memory()
    warn_caller(message, RuntimeWarning)
    return function(Cpu(n_threads))


def unless_it_fails(question: Callable[[], _R], otherwise: _R) -> _R:
    """The result of a query of a device; ``otherwise``, with one warning, if the device fails.

    After an illegal access, for example, every later call of the process fails.
    """
    try:
        return question()
    except Exception as error:
        if not _of_device(error):
            raise
        _warn_once(f"backend='auto' computes on the CPU: {error}")
        return otherwise


def _of_device(error: Exception) -> bool:
    """Whether an error means that a device failed or is full, rather than that input is invalid."""
    cuda = type(error).__module__.partition(".")[0] in ("cupy", "cupy_backends")
    return cuda or isinstance(error, (MemoryError, GpuUnavailable))
