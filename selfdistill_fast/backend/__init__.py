"""Backends: where Gram matrices, factorisations and filters are computed.

::

    solvers (spectrum/, filters.py, loo.py, ...)
        │   speak only to the verbs of a backend and to its array namespace ``xp``
        ▼
    get_backend(...)
        │
        ├─ reference.py   Reference   NumPy, one line per equation; the base class and oracle
        └─ cpu.py         Cpu         overrides verbs: SciPy's LAPACK, and the C loops
              │  ├─ threads.py        cuts ranges of tiles into blocks, drives helper threads
              │  └─ host.py           memory and processors that this process may use
              ▼
           _core.pyx                  checks arrays, releases the GIL, raises
              ▼
           csrc/                      sdf.h: contract; loops.c: one source, compiled per
                                      instruction set and precision; dispatch.c: which to use

Importing this package starts no thread. A backend holds no data and may be shared.
"""

from __future__ import annotations

from typing import Any

from selfdistill_fast.backend.cpu import Cpu
from selfdistill_fast.backend.reference import Reference

__all__ = ["BACKENDS", "Cpu", "Reference", "get_backend"]

#: Every backend that has a name.
BACKENDS: dict[str, type[Reference]] = {cls.name: cls for cls in (Reference, Cpu)}


def get_backend(backend: Any = None, *, n_threads: int | None = None) -> Reference:
    """The backend that ``backend`` names.

    Parameters
    ----------
    backend : None, "auto", "cpu", "reference" or an instance
        None and "auto" choose the fastest for NumPy arrays: "cpu". An instance is
        returned as it is, or, where ``n_threads`` is given, a new one of its class.
    n_threads : int, optional
        Threads for this library's own loops; None means all that the process may use.

    Raises
    ------
    ValueError
        Unknown name; ``n_threads`` below 1.
    TypeError
        Neither a name nor a backend.

    Examples
    --------
    >>> get_backend("cpu", n_threads=2)
    Cpu(n_threads=2)
    """
    from selfdistill_fast.backend import threads

    n_threads = threads.check_n_threads(n_threads)
    if isinstance(backend, Reference):
        return backend if n_threads is None else type(backend)(n_threads=n_threads)
    if backend is None or backend == "auto":
        return Cpu(n_threads=n_threads)
    if not isinstance(backend, str):
        raise TypeError(
            f"backend must be a name or a backend object, got {type(backend).__name__}; "
            f"known names: auto, {', '.join(BACKENDS)}"
        )
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known names: auto, {', '.join(BACKENDS)}")
    return BACKENDS[backend](n_threads=n_threads)
