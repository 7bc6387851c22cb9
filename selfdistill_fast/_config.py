"""What this installation runs on: instruction sets, BLAS, threads, memory, GPU, versions.

:func:`show_config` answers the two questions that decide speed on a CPU: which of the package's
C loops were chosen, and which kernels the BLAS behind NumPy and SciPy picked. A BLAS that
does not recognise the processor (because it is newer than the library, or a virtual machine
hides its family) silently uses an older processor's kernels and loses half its speed or more.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

from selfdistill_fast import _core
from selfdistill_fast._backend import cuda_libraries, host
from selfdistill_fast._backend.blocked import SYRK_ROWS

__all__ = ["Config", "installed_version", "show_config"]

#: packages whose versions are reported where they are installed
PACKAGES = (
    "numpy",
    "scipy",
    "scikit-learn",
    "torch",
    "cupy",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "pandas",
    "pyarrow",
    "matplotlib",
    "typer",
    "rich",
    "xarray",
    "zarr",
    "dask",
)

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

#: level of an x86 instruction set, and the /proc/cpuinfo flags that it requires
_X86_LEVELS = {
    "avx512": (3, {"avx512f", "avx512cd", "avx512dq", "avx512bw", "avx512vl"}),
    "avx2": (2, {"avx2", "fma"}),
    "avx": (1, {"avx"}),
    "sse": (0, set()),
}

#: kernels that OpenBLAS and BLIS name (lower case) -> the x86 instruction set they use
_X86_KERNELS = {
    **dict.fromkeys(
        ("skylakex", "cooperlake", "sapphirerapids", "skx", "knl", "zen4", "zen5"), "avx512"
    ),
    **dict.fromkeys(("haswell", "zen", "zen2", "zen3", "excavator"), "avx2"),
    **dict.fromkeys(("sandybridge", "bulldozer", "piledriver", "steamroller"), "avx"),
    **dict.fromkeys(
        ("prescott", "core2", "penryn", "dunnington", "nehalem", "atom", "opteron",
         "opteron_sse3", "barcelona", "bobcat", "nano", "generic", "katmai", "northwood"),
        "sse",
    ),
}  # fmt: skip

#: the environment variable that makes a library use the kernels of an instruction set
_CURE = {
    "openblas": (
        "OPENBLAS_CORETYPE",
        {"avx512": "SkylakeX", "avx2": "Haswell", "avx": "Sandybridge"},
    ),
    "blis": ("BLIS_ARCH_TYPE", {"avx512": "skx", "avx2": "haswell", "avx": "sandybridge"}),
}


#: bytes of OpenBLAS's buffer per thread, and columns of a panel that its syrk stores there (GEMM_Q
#: of float64), by the instruction set of the kernels
_SYRK_BUFFER = 2**25
_SYRK_COLUMNS = {"avx512": 384, "avx2": 256}


class Config(dict[str, Any]):
    """The report of :func:`show_config`: a plain dictionary that prints itself."""

    def __str__(self) -> str:
        notes = [f"note: {text}" for text in self["notes"]]
        return "\n\n".join(
            [self.table(), *notes, *(f"warning: {text}" for text in self["warnings"])]
        )

    __repr__ = __str__

    def table(self) -> str:
        """The report without notes and warnings, one line per item."""
        isa, cpu, gpu = self["isa"], self["cpu"], self["gpu"]
        rows: list[tuple[str, str]] = [
            ("selfdistill_fast", self["version"]),
            ("", ""),
            ("our C loops", isa["chosen"]),
            ("  available", ", ".join(isa["available"])),
            ("  SDF_ISA", isa["SDF_ISA"] or "not set"),
            ("processor", cpu["model"]),
            ("  widest vectors", cpu["isa"] or "unknown"),
        ]
        for blas in self["blas"]:
            rows.append((f"{blas['library']} {blas['version'] or ''}".strip(), ""))
            rows.append(("  kernels", blas["kernels"] or "not reported by this library"))
            rows.append(("  threads", str(blas["threads"])))
            rows.append(("  file", blas["file"]))
        if not self["blas"]:
            rows.append(("BLAS", "none found by threadpoolctl"))
        rows.append(("processors to use", str(self["threads"]["available_cpus"])))
        rows += [
            (f"  {name}", value) for name, value in self["threads"].items()
            if name in THREAD_VARIABLES and value
        ]  # fmt: skip
        rows.append(("memory available", _bytes(self["memory_available"])))
        rows.append(("GPU", gpu["status"]))
        rows += [
            (f"  device {i}", f"{d['name']}, {_bytes(d['memory'])}")
            for i, d in enumerate(gpu["devices"])
        ]
        rows.append(("  CUDA of the driver", gpu["driver"] or "no driver"))
        rows.append(("  CUDA of CuPy", gpu["runtime"] or "none"))
        rows.append(("  CUDA of torch", gpu["torch"] or "none"))
        rows += [("  NVRTC " + found["version"], found["file"]) for found in gpu["nvrtc"]]
        if not gpu["nvrtc"]:
            rows.append(("  NVRTC", "not found"))
        rows.append(("", ""))
        rows += list(self["versions"].items())
        return "\n".join(f"{name:<20} {value}".rstrip() for name, value in rows)


def show_config() -> Config:
    """Report instruction sets, BLAS libraries, threads, memory, GPU and versions.

    Returns
    -------
    Config
        A dictionary that prints as a table. Keys: ``version``; ``isa`` (``chosen``,
        ``available``, ``SDF_ISA``); ``cpu`` (``model``, ``isa``); ``blas`` (one
        entry per library that is loaded: ``library``, ``version``, ``kernels``, ``isa``,
        ``threads``, ``file``); ``threads``; ``memory_available`` in bytes; ``gpu``
        (``status``, ``devices``, the CUDA of ``driver``, ``runtime`` and ``torch``,
        ``nvrtc``); ``versions``; ``notes`` (known faults of the libraries here, which this
        package avoids); ``warnings`` (each says what is slow or wrong, and what to do).

    Examples
    --------
    >>> config = show_config()
    >>> config["threads"]["available_cpus"] >= 1
    True
    >>> print(config)
    selfdistill_fast     ...
    """
    cpu = _processor()
    blas = _blas()
    report = Config(
        version=installed_version("selfdistill_fast") or "not installed",
        isa=_own_isa(),
        cpu=cpu,
        blas=blas,
        threads={
            "available_cpus": host.available_cpus(),
            **{name: os.environ.get(name) for name in THREAD_VARIABLES},
        },
        memory_available=host.available_memory(),
        gpu=_gpu(),
        versions={
            "python": f"{platform.python_version()} ({sys.platform}, {platform.machine()})",
            **{name: found for name in PACKAGES if (found := installed_version(name))},
        },
    )
    report["notes"] = _notes(report)
    report["warnings"] = _warnings(report) + _cuda_warnings(report["gpu"])
    return report


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _own_isa() -> dict[str, Any]:
    """Instruction set of the C loops."""
    return {
        "chosen": _core.isa(),
        "available": list(_core.isa_available()),
        "SDF_ISA": os.environ.get("SDF_ISA"),
    }


def _processor() -> dict[str, Any]:
    """Model name and widest x86 instruction set of the processor (None elsewhere)."""
    model = platform.processor() or platform.machine()
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
                break
    except OSError:
        pass
    isa = None
    if flags:
        isa = next(name for name, (_, needed) in _X86_LEVELS.items() if needed <= flags)
    return {"model": model, "isa": isa}


def _blas() -> list[dict[str, Any]]:
    """Every BLAS that NumPy and SciPy have loaded, and the kernels it picked."""
    import scipy.linalg  # noqa: F401  (loads SciPy's own BLAS beside NumPy's)
    from threadpoolctl import threadpool_info

    found = []
    for pool in threadpool_info():
        if pool.get("user_api") != "blas":
            continue
        kernels = pool.get("architecture")
        found.append(
            {
                "library": pool["internal_api"],
                "version": pool.get("version"),
                "kernels": kernels,
                "isa": _X86_KERNELS.get((kernels or "").lower()),
                "threads": pool.get("num_threads"),
                "file": pool.get("filepath", ""),
            }
        )
    return sorted(found, key=lambda blas: blas["file"])


def _gpu() -> dict[str, Any]:
    """What CuPy sees, and all installed CUDA versions; never fails, creates no CUDA context."""
    driver = cuda_libraries.driver_version()
    torch = cuda_libraries.torch_major()
    found: dict[str, Any] = {
        "status": "",
        "devices": [],
        "driver": None if driver is None else f"{driver[0]}.{driver[1]}",
        "runtime": None,
        "torch": None if torch is None else str(torch),
        "cupy": cuda_libraries.cupy_packages(),
        "nvrtc": [
            {"version": cuda_libraries.library_version(file), "file": str(file)}
            for file in cuda_libraries.nvrtc_files()
        ],
    }
    if not found["cupy"] and not cuda_libraries.importable("cupy"):
        found["status"] = "CuPy is not installed"
        if driver is not None:
            found["status"] += f"; there is an NVIDIA driver: {cuda_libraries.install_hint()}"
        return found
    try:
        runtime = importlib.import_module("cupy").cuda.runtime
        version = int(runtime.runtimeGetVersion())
        found["runtime"] = f"{version // 1000}.{version % 1000 // 10}"
        for device in range(runtime.getDeviceCount()):
            properties = runtime.getDeviceProperties(device)
            name = properties["name"]
            found["devices"].append(
                {
                    "name": name.decode() if isinstance(name, bytes) else str(name),
                    "memory": int(properties["totalGlobalMem"]),
                }
            )
        found["status"] = f"{len(found['devices'])} device(s)"
    except Exception as error:
        found["status"] = f"CuPy is installed, but no device can be used: {error}"
    return found


def _notes(report: Config) -> list[str]:
    """BLAS libraries that are known to crash, and the number of rows from which they do."""
    found: dict[str, list[str]] = {}
    for blas in report["blas"]:
        columns = _SYRK_COLUMNS.get(blas["isa"])
        threads = blas["threads"] or 1
        if blas["library"] != "openblas" or columns is None or threads < 2:
            continue
        # a thread's share of the rows is at most n / √threads; its panel overruns the buffer
        rows = int(math.sqrt(threads) * _SYRK_BUFFER / (8 * columns))
        text = (
            f"openblas {blas['version'] or ''} with its {blas['kernels']} kernels and {threads} "
            f"threads is known to crash above about {rows:,} rows in syrk, float64: NumPy's "
            "A @ A.T and SciPy's cholesky and cho_factor. selfdistill_fast never gives it more "
            f"than {SYRK_ROWS:,} rows; for calls of your own, set OPENBLAS_NUM_THREADS=1"
        )
        found.setdefault(text, []).append(os.path.basename(blas["file"]))
    return [f"{text} ({', '.join(files)})." for text, files in found.items()]


def _cuda_warnings(gpu: dict[str, Any]) -> list[str]:
    """Two CUDA major versions where one would do, or one that the driver does not support."""
    found = []
    packages = gpu["cupy"]
    if len(packages) > 1:
        found.append(
            f"{' and '.join(packages)} are both installed and overwrite each other: uninstall "
            f"all of them, then {cuda_libraries.install_hint()}."
        )
        return found
    driver = None if gpu["driver"] is None else int(gpu["driver"].partition(".")[0])
    for name, major in packages.items():
        if driver is not None and major is not None and driver < major:
            found.append(
                f"{name} is for CUDA {major}, and the driver supports CUDA {gpu['driver']}: "
                f"update the driver, or pip uninstall {name} and {cuda_libraries.install_hint()}."
            )
        elif major is not None and gpu["torch"] is not None and int(gpu["torch"]) != major:
            text = (
                f"CUDA of two majors: {name} is for CUDA {major}, torch for CUDA {gpu['torch']}. "
            )
            text += "They work side by side, but take gigabytes more than one"
            if driver is not None and driver < int(gpu["torch"]):
                text += f"; the driver supports CUDA {gpu['driver']}, so torch cannot use it"
            elif gpu["torch"] in ("12", "13"):
                text += f"; the extra cuda{gpu['torch']} goes with this torch"
            found.append(text + ".")
    return found


def _warnings(report: Config) -> list[str]:
    found = []
    isa, best = report["isa"], report["cpu"]["isa"]
    if isa["SDF_ISA"] and len(isa["available"]) > 1 and isa["chosen"] == "generic":
        found.append(f"SDF_ISA={isa['SDF_ISA']} restricts the package's C loops: unset it.")
    slower: dict[tuple[str, str, str], list[str]] = {}
    for blas in report["blas"]:
        if None in (best, blas["isa"]) or _X86_LEVELS[blas["isa"]][0] >= _X86_LEVELS[best][0]:
            continue
        key = (blas["library"], blas["kernels"], blas["isa"])
        slower.setdefault(key, []).append(os.path.basename(blas["file"]))
    for (library, kernels, used), files in slower.items():
        text = (
            f"{library} ({', '.join(files)}) picked its {kernels} kernels ({used}) on a "
            f"processor that has {best}."
        )
        variable, values = _CURE.get(library, ("", {}))
        if best in values:
            text += f" Set {variable}={values[best]} in the environment before Python starts"
            given = os.environ.get(variable)
            text += f" (it is now set to {given})." if given else "."
        found.append(text)
    return found
