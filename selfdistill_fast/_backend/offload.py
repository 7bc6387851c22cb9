"""``backend="auto"``: where a GPU pays, and the way back to the CPU when it fails.

A computation moves to the device where its seconds on the cores exceed twice those of moving the
data, and the data take less than half of the free memory. A device that fails or is full is
answered by a warning and the CPU.
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

#: flops per second of a core, for "auto"
CORE_FLOPS = 3e10

_warned: set[str] = set()


def try_gpu(n_threads: int | None = None) -> Gpu | None:
    """A GPU for ``backend="auto"``; None where there is none, with a warning the first time."""
    try:
        return Gpu(n_threads)
    except GpuUnavailable as error:
        _warn_once(f"backend='auto' computes on the CPU: {error}")
        return None


def _warn_once(message: str) -> None:
    """RuntimeWarning at the line outside of this package that led here; each message once."""
    if message not in _warned:
        _warned.add(message)
        warn_caller(message, RuntimeWarning)


def run_where_it_pays(
    be: Backend, backend: Any, flops: float, nbytes: float, function: Callable[[Any], _R]
) -> _R:
    """``function`` on ``be``, or for "auto" on a GPU where its arithmetic outweighs moving data.

    ``flops`` on the CPU and ``nbytes`` to and from the device; the rate of a core is a guess on the
    side of staying.
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
    """``function(gpu)``; where the device fails or is full, with a warning ``function(cpu)``."""
    try:
        with gpu.on():
            return function(gpu)
    except Exception as error:
        if not _of_device(error):
            raise
        message = f"backend='auto' continues on the CPU: {error}"
    with contextlib.suppress(Exception):  # a broken device cannot do even that
        gpu.free_memory()
    warn_caller(message, RuntimeWarning)
    return function(Cpu(n_threads))


def unless_it_fails(question: Callable[[], _R], otherwise: _R) -> _R:
    """The answer of a device to a question about it; ``otherwise`` where the device fails.

    With a warning, once. After an illegal access, say, every call of the process fails.
    """
    try:
        return question()
    except Exception as error:
        if not _of_device(error):
            raise
        _warn_once(f"backend='auto' computes on the CPU: {error}")
        return otherwise


def _of_device(error: Exception) -> bool:
    """Whether an error says that a device has failed or is full, not that the input is wrong."""
    cuda = type(error).__module__.partition(".")[0] in ("cupy", "cupy_backends")
    return cuda or isinstance(error, (MemoryError, GpuUnavailable))
