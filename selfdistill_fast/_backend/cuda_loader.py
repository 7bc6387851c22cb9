"""CuPy and its usable devices, or what to do if there are none.

Importing this module imports neither CuPy nor CUDA.
"""

from __future__ import annotations

import importlib
from typing import Any

from selfdistill_fast._backend.cuda_libraries import install_hint

__all__ = ["GpuUnavailable", "devices", "load"]


class GpuUnavailable(RuntimeError):
    """No GPU is usable here; the message says why, and what to do."""


def load() -> Any:
    """CuPy, with a usable device.

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
    """Numbers of the usable devices; none without CuPy or a driver."""
    try:
        return list(range(load().cuda.runtime.getDeviceCount()))
    except GpuUnavailable:
        return []
