"""Backends: where Gram matrices, factorisations and filters are computed.

::

    solvers (_solvers/, _chain/)
        │   speak only to the verbs of a backend and to its array namespace ``xp``
        ▼
    get_backend(...)
        │
        │  base.py        Backend     the verbs; Array
        ├─ reference.py   Reference   NumPy, one line per equation: the oracle
        ├─ gpu.py         Gpu         CuPy, cuBLAS, cuSOLVER, and kernels.cu (csrc/formulas.h)
        └─ cpu.py         Cpu         overrides the reference: LAPACK (lapack.py), the C loops
              │  ├─ threads.py        cuts ranges of tiles into blocks, drives helper threads
              │  └─ host.py           memory and processors that this process may use
              ▼
           _core.pyx                  checks arrays, releases the GIL, raises
              ▼
           csrc/                      sdf.h: contract; loops compiled per instruction set and
                                      precision; dispatch.c: which to use

    offload.py                        backend="auto": where the GPU pays, and the way back

Importing this package starts no thread and loads no CUDA. A backend holds no data and may be
shared. A computation runs where its arrays are, unless ``backend`` says otherwise. Results are of
the caller's kind: NumPy for arrays on the host, else CuPy, torch, … on the arguments' device.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numpy as np

from selfdistill_fast._backend import threads
from selfdistill_fast._backend.arrays import device_number
from selfdistill_fast._backend.base import Array, Backend, Half
from selfdistill_fast._backend.cpu import Cpu
from selfdistill_fast._backend.cuda_loader import GpuUnavailable, devices
from selfdistill_fast._backend.gpu import Gpu
from selfdistill_fast._backend.offload import (
    run_where_it_pays,
    try_gpu,
    unless_it_fails,
    with_fallback,
)
from selfdistill_fast._backend.reference import Reference

__all__ = [
    "BACKENDS",
    "Array",
    "Backend",
    "Cpu",
    "Gpu",
    "GpuUnavailable",
    "Half",
    "Reference",
    "deliver",
    "device_of",
    "devices",
    "get_backend",
    "kind_of",
    "on_device",
    "run_where_it_pays",
    "try_gpu",
    "unless_it_fails",
    "with_fallback",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: All backends, by name.
BACKENDS: dict[str, type[Backend]] = {cls.name: cls for cls in (Reference, Cpu, Gpu)}


def get_backend(
    backend: Any = None,
    arrays: Mapping[str, Any] | None = None,
    *,
    n_threads: int | None = None,
) -> Backend:
    """The backend named by ``backend``, or else the one where the arrays are.

    Parameters
    ----------
    backend : None, "auto", "cpu", "gpu", "reference" or an instance
        None: "gpu" if the arrays are on a CUDA device, else "cpu". "auto" is the same here;
        functions that know the size of their problem may then still prefer a GPU. An instance is
        returned unchanged, or, if ``n_threads`` is given, a new instance of its class.
    arrays : mapping of names to array_likes, optional
        The arguments of the computation, by their names in error messages.
    n_threads : int, optional
        Threads for this library's own loops; None: as many as the process may use.

    Raises
    ------
    ValueError
        Unknown name; ``n_threads`` below 1.
    TypeError
        Neither a name nor a backend; arrays on different devices, or on another device than the
        backend.
    GpuUnavailable
        "gpu", but no GPU is usable; the message says what to do.

    Examples
    --------
    >>> get_backend("cpu", n_threads=2)
    Cpu(n_threads=2)
    """
    n_threads = threads.check_n_threads(n_threads)
    name, device = device_of(arrays or {})
    if isinstance(backend, Backend):
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
            f"{name} is on GPU {device}, but {chosen!r} computes elsewhere: omit backend, or "
            f"copy {name} to where it computes"
        )
    return chosen.for_caller(kind_of((arrays or {}).get(name)))


def device_of(arrays: Mapping[str, Any]) -> tuple[str, int | None]:
    """The name of one of the arrays, and the CUDA device of all of them (None: the host).

    Numbers, lists and other sequences belong to no device.

    Raises
    ------
    TypeError
        They are on different devices; the message names the argument.
    """
    first, place = "", None
    for name, array in arrays.items():
        if array is None or not (hasattr(array, "dtype") or hasattr(array, "dtypes")):
            continue
        if isinstance(array, np.generic):
            continue
        device = device_number(array)
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
    """The kind of results for the owner of ``array``: "numpy", or a module with from_dlpack."""
    if device_number(array) is None:
        return "numpy"
    package = type(array).__module__.partition(".")[0]
    if package not in ("cupy", "torch") and hasattr(array, "__array_namespace__"):
        return str(array.__array_namespace__().__name__)
    return "torch" if package == "torch" else "cupy"


def deliver(be: Backend, a: Array, kind: str | None = None) -> Array:
    """A native array converted to the caller's kind, or to another :func:`kind_of`."""
    kind = be.caller if kind is None else kind
    if kind == "numpy":
        return be.to_numpy(a)
    if kind == "cupy" or be.name != "gpu":
        return a
    return importlib.import_module(kind).from_dlpack(a)


def on_device(function: _Function) -> _Function:
    """Run a function of a spectrum with the spectrum's device as the current one."""

    @functools.wraps(function)
    def wrapper(spectrum: Any, *args: Any, **kwargs: Any) -> Any:
        with spectrum.backend.on():
            return function(spectrum, *args, **kwargs)

    return cast(_Function, wrapper)
