"""Backends: where Gram matrices, factorisations and filters are computed.

::

    solvers (_solvers/, _chain/)
        │   speak only to the verbs of a backend and to its array namespace ``xp``
        ▼
    get_backend(...)
        │
        ├─ reference.py   Reference   NumPy, one line per equation; the base class and oracle
        ├─ gpu.py         Gpu         CuPy, cuBLAS, cuSOLVER, and kernels.cu (csrc/formulas.h)
        └─ cpu.py         Cpu         overrides verbs: SciPy's LAPACK, and the C loops
              │  ├─ threads.py        cuts ranges of tiles into blocks, drives helper threads
              │  └─ host.py           memory and processors that this process may use
              ▼
           _core.pyx                  checks arrays, releases the GIL, raises
              ▼
           csrc/                      sdf.h: contract; loops.c: one source, compiled per
                                      instruction set and precision; dispatch.c: which to use

Importing this package starts no thread and loads no CUDA. A backend holds no data and may be
shared. Arrays say where a computation runs, unless ``backend`` does, and results are of the
caller's kind: NumPy for what lies on the host, else CuPy, torch, … on the device of the arguments.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from selfdistill_fast._backend import threads
from selfdistill_fast._backend.cpu import Cpu
from selfdistill_fast._backend.gpu import Gpu, GpuUnavailable, devices
from selfdistill_fast._backend.reference import Reference, cuda_device
from selfdistill_fast._validation import warn_caller

__all__ = [
    "BACKENDS",
    "Cpu",
    "Gpu",
    "GpuUnavailable",
    "Reference",
    "deliver",
    "device_of",
    "devices",
    "get_backend",
    "kind_of",
    "offload",
    "on_device",
    "try_gpu",
    "unless_it_fails",
    "with_fallback",
]

#: Every backend that has a name.
BACKENDS: dict[str, type[Reference]] = {cls.name: cls for cls in (Reference, Cpu, Gpu)}


def get_backend(
    backend: Any = None,
    arrays: Mapping[str, Any] | None = None,
    *,
    n_threads: int | None = None,
) -> Reference:
    """The backend that ``backend`` names, or that the arrays ask for.

    Parameters
    ----------
    backend : None, "auto", "cpu", "gpu", "reference" or an instance
        None: "gpu" where the arrays lie on a CUDA device, else "cpu". "auto" is the same here;
        functions that know the size of their problem may then still prefer a GPU. An instance is
        returned as it is, or, where ``n_threads`` is given, a new one of its class.
    arrays : mapping of names to array_likes, optional
        The arguments of the computation, named as error messages name them.
    n_threads : int, optional
        Threads for this library's own loops; None means all that the process may use.

    Raises
    ------
    ValueError
        Unknown name; ``n_threads`` below 1.
    TypeError
        Neither a name nor a backend; arrays on different devices, or not where the backend
        computes.
    GpuUnavailable
        "gpu", and none can be used; the message says what to do.

    Examples
    --------
    >>> get_backend("cpu", n_threads=2)
    Cpu(n_threads=2)
    """
    n_threads = threads.check_n_threads(n_threads)
    name, device = device_of(arrays or {})
    if isinstance(backend, Reference):
        chosen = backend if n_threads is None else backend.with_threads(n_threads)
    elif backend is None or backend == "auto":
        chosen = Cpu(n_threads) if device is None else Gpu(n_threads, device)
    elif not isinstance(backend, str):
        raise TypeError(
            f"backend must be a name or a backend object, got {type(backend).__name__}; "
            f"known names: auto, {', '.join(BACKENDS)}"
        )
    elif backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known names: auto, {', '.join(BACKENDS)}")
    elif backend == "gpu":
        chosen = Gpu(n_threads, device)
    else:
        chosen = BACKENDS[backend](n_threads=n_threads)
    if device is not None and getattr(chosen, "device", None) != device:
        raise TypeError(
            f"{name} is on GPU {device}, but {chosen!r} computes elsewhere: leave backend out, or "
            f"copy {name} to where it computes"
        )
    return chosen.for_caller(kind_of((arrays or {}).get(name)))


def device_of(arrays: Mapping[str, Any]) -> tuple[str, int | None]:
    """The CUDA device that all arrays lie on, None for the host, and the name of one of them.

    Numbers, lists and other sequences lie nowhere.

    Raises
    ------
    TypeError
        They lie on different devices; the message names the argument.
    """
    first, place = "", None
    for name, array in arrays.items():
        if array is None or not (hasattr(array, "dtype") or hasattr(array, "dtypes")):
            continue
        if isinstance(array, np.generic):
            continue
        device = cuda_device(array)
        if not first:
            first, place = name, device
        elif device != place:
            there, here = ("the host" if d is None else f"GPU {d}" for d in (device, place))
            raise TypeError(
                f"{name} is on {there}, but {first} is on {here}: all arrays must be on one "
                f"device; copy {name} to {here} first"
            )
    return first, place


def kind_of(array: Any) -> str:
    """What results for the owner of ``array`` are to be: "numpy", or a module with from_dlpack."""
    if cuda_device(array) is None:
        return "numpy"
    package = type(array).__module__.partition(".")[0]
    if package not in ("cupy", "torch") and hasattr(array, "__array_namespace__"):
        return array.__array_namespace__().__name__
    return "torch" if package == "torch" else "cupy"


def deliver(be: Reference, a: Any, kind: str | None = None) -> Any:
    """A native array as one of the caller's kind, or of another :func:`kind_of`."""
    kind = be.caller if kind is None else kind
    if kind == "numpy":
        return be.to_numpy(a)
    if kind == "cupy" or be.name != "gpu":
        return a
    return importlib.import_module(kind).from_dlpack(a)


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function of a spectrum where that lives: its device is the current one."""

    @functools.wraps(function)
    def wrapper(spectrum: Any, *args: Any, **kwargs: Any) -> Any:
        with spectrum.backend.on():
            return function(spectrum, *args, **kwargs)

    return wrapper


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


def offload(
    be: Reference, backend: Any, flops: float, nbytes: float, function: Callable[[Any], Any]
) -> Any:
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


def with_fallback(gpu: Gpu, function: Callable[[Any], Any], n_threads: int | None = None) -> Any:
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


def unless_it_fails(question: Callable[[], Any], otherwise: Any) -> Any:
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
