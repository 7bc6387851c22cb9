"""The CUDA of this machine: what the driver supports, which NVRTC is installed and where.

CUDA libraries of two major versions may be installed side by side: torch brings those it was built
for, CuPy those of its own package. These queries create no CUDA context and import neither.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

__all__ = [
    "cupy_packages",
    "driver_version",
    "fitting_extra",
    "importable",
    "install_hint",
    "library_version",
    "nvrtc_files",
    "torch_major",
]


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver supports, (major, minor); None without a driver."""
    version = ctypes.c_int()
    try:
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        failed = library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    if failed or version.value <= 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def fitting_extra(driver: tuple[int, int] | None) -> str:
    """The extra of this package for a driver: cuda12 if it is too old for CUDA 13."""
    return "cuda12" if driver is not None and driver[0] < 13 else "cuda"


def install_hint() -> str:
    """What to install for backend="gpu" with the driver of this machine."""
    if fitting_extra(driver_version()) == "cuda12":
        return "pip install 'selfdistill_fast[cuda12]' (Linux; this driver supports CUDA 12)"
    return (
        "pip install 'selfdistill_fast[cuda]' (Linux, CUDA 13, driver 580 or later), or "
        "'selfdistill_fast[cuda12]' for an older driver"
    )


def cupy_packages() -> dict[str, int | None]:
    """Installed distributions of CuPy and the CUDA major version of each (None: unknown)."""
    majors = {"cupy": None, "cupy-cuda11x": 11, "cupy-cuda12x": 12, "cupy-cuda13x": 13}
    return {name: major for name, major in majors.items() if _distribution(name)}


def torch_major() -> int | None:
    """The CUDA major version of the installed torch; None without torch or without CUDA."""
    torch = _distribution("torch")
    if torch is None:
        return None
    local = re.search(r"\+(?:cu(\d\d))?", torch.version or "")  # such as 2.14.1+cu130 or +cpu
    if local:
        return int(local[1]) if local[1] else None
    # versions on the package index have no such part: look at the installed requirements
    required = re.finditer(r"(nvidia-[a-z-]+-cu(\d\d))\b", " ".join(torch.requires or ()))
    return next((int(found[2]) for found in required if _distribution(found[1])), None)


def importable(name: str) -> bool:
    """Whether a module can be found; no error if another module has its name."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a specification
        return False


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def nvrtc_files() -> list[Path]:
    """NVRTC libraries from pip packages, then from CUDA toolkits, conda and Debian; newest first.

    NVRTC opens its ``libnvrtc-builtins`` by name alone: load that from the same folder first.
    """
    spec = importlib.util.find_spec("nvidia") if importable("nvidia") else None
    packages = [Path(root) for root in (spec.submodule_search_locations or () if spec else ())]
    named = [os.environ.get(name) for name in ("CUDA_PATH", "CUDA_HOME", "CONDA_PREFIX")]
    toolkits = [Path(root) for root in named if root]
    toolkits += sorted(Path("/usr/local").glob("cuda*"))
    found: dict[Path, None] = {}
    for folders in (
        [lib for root in packages for lib in root.glob("*/lib")],
        [root / lib for root in toolkits for lib in ("lib64", "lib")]
        + sorted(Path("/usr/lib").glob("*-linux-gnu")),
    ):
        files = {file.resolve() for folder in folders for file in folder.glob("libnvrtc.so.*")}
        found.update(dict.fromkeys(sorted(files, key=_version, reverse=True)))
    return list(found)


def library_version(library: Path) -> str:
    """The numbers after ``.so.``, such as 12.9.86 or 12."""
    return library.name.partition(".so.")[2]


def _version(library: Path) -> tuple[tuple[int, ...], str]:
    """The numbers of its version, then its path, as a sort key."""
    return tuple(map(int, re.findall(r"\d+", library_version(library)))), str(library)
