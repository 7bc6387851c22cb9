"""The CUDA kernels of kernels.cu, compiled by NVRTC at first use.

They are compiled once per precision and part, and stored in CuPy's kernel cache
(``~/.cupy/kernel_cache``).
"""

from __future__ import annotations

import functools
import threading
from importlib import resources
from typing import Any

__all__ = ["BLOCK", "PARTS", "SIDE", "TARGETS", "compile_options", "cuda_source", "kernel"]

#: threads of a block, rows of a tile, targets of a pass: BLOCK, SIDE and THREADS of kernels.cu
BLOCK, SIDE, TARGETS = 256, 64, 16


@functools.cache
def cuda_source() -> str:
    """kernels.cu with the formulas that it shares with the C loops.

    A single text, not an include path, because CuPy's cache identifies a kernel by its text and
    options.
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


def kernel(xp: Any, name: str, itemsize: int) -> Any:
    """A compiled kernel; CuPy loads it on each device that uses it."""
    key = (id(xp), itemsize, name)
    with _kernels_lock:
        if key not in _kernels:
            part = name.rpartition("_")[2]
            options = compile_options(itemsize, part if part in PARTS else "other")
            module = xp.RawModule(code=cuda_source(), options=options)  # cached by CuPy
            _kernels[key] = module.get_function(name)
        return _kernels[key]
