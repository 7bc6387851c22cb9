"""The CUDA source without a device: compiled by NVRTC, and run on the host by a C++ compiler."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from selfdistill_fast._backend import cuda_libraries

HERE = Path(__file__).resolve().parents[1] / "cuda"
PAIRS = ("squares", "l1", "inner", "angle")

#: a library has one set of coroutines
_one_at_a_time = threading.Lock()

#: every entry point of kernels.cu
ENTRIES = [
    *(f"{what}_{pair}" for what in ("gram", "vector", "product16", "product64") for pair in PAIRS),
    *(f"finish_{pair}" for pair in PAIRS if pair != "l1"),
    "stored_vector",
    "squared16", "squared64", "pack_rows", "upper_triangle", "shrinkage_path", "pure_filters",
]  # fmt: skip


def compiler():
    """A C++ compiler, or None."""
    return shutil.which("g++") or shutil.which("clang++")


@functools.cache
def nvrtc():
    """The first NVRTC that compiles, by the package's own order; None where there is none."""
    for file in cuda_libraries.nvrtc_files():
        library = load_nvrtc(file)
        if library is not None and compile_cuda("__global__ void probe() {}", [], library)[0]:
            return library
    return None


def load_nvrtc(file):
    """An NVRTC with its own builtins, whatever else is loaded or on the loader's path; or None."""
    try:
        for builtins in sorted(file.parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(builtins)
        return ctypes.CDLL(file)
    except OSError:
        return None


def compile_cuda(source, options, library=None):
    """(whether NVRTC takes it, its log, the binary)."""
    lib, program, size = library or nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = lib.nvrtcCompileProgram(program, len(options), array)
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    binary = ctypes.create_string_buffer(0)
    if not failed:
        lib.nvrtcGetCUBINSize(program, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        lib.nvrtcGetCUBIN(program, binary)
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    return not failed, log.value.decode(), binary.raw


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory(prefix="kernels_on_host_")


@functools.cache
def host_library(source, bits):
    """``source`` for numbers of ``bits`` bits, as C++ for the host: a ctypes library."""
    name = hashlib.sha256(source.encode()).hexdigest()[:12]
    folder = Path(_folder().name)
    exports = "\n".join(f"HOST_EXPORT({entry})" for entry in ENTRIES)
    file = folder / f"{name}_{bits}.cpp"
    exports += """
extern "C" void host_place(long long tile, long long tiles_z, int symmetric, long long *at) {
  const place found = place_of(tile, tiles_z, symmetric != 0);
  at[0] = found.i;
  at[1] = found.j;
}"""
    file.write_text(f'#include "host.h"\n{source}\n{exports}\n', encoding="utf-8")
    library = file.with_suffix(".so")
    done = subprocess.run(
        [compiler(), "-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-w", "-shared", "-fPIC",
         f"-DSDF_BITS={bits}", f"-I{HERE}", str(file), "-o", str(library)],
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(library))


def run_on_host(source, bits, name, grid, block, words):
    """Run one kernel: ``words`` are its arguments as 64-bit integers."""
    function = getattr(host_library(source, bits), f"host_{name}")
    gx, gy = (*grid, 1)[:2]
    array = (ctypes.c_longlong * len(words))(*words)
    with _one_at_a_time:
        outcome = function(array, ctypes.c_size_t(len(words)), gx, gy, block)
    assert outcome >= 0, f"{name} does not take {len(words)} arguments"
    assert outcome == 0, f"{name}: some threads of a block wait for others that have finished"


def place_of(source):
    """place_of of kernels.cu: (tile, tiles_z, symmetric) -> first row and column."""
    function = host_library(source, 64).host_place

    def place(tile, tiles_z, symmetric):
        at = (ctypes.c_longlong * 2)()
        function(ctypes.c_longlong(tile), ctypes.c_longlong(tiles_z), int(symmetric), at)
        return tuple(at)

    return place
