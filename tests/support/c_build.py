"""Builds and runs tests/c/test_sdf.c, by any compiler and for any processor.

Another compiler, a cross compiler with an emulator to run what it made, fewer instruction sets:

    python tests/support/c_build.py --cc clang
    python tests/support/c_build.py --cc aarch64-linux-gnu-gcc --isas generic \\
        --runner qemu-aarch64 -- -static
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c11", "-O2", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
#: of each instruction set beyond the baseline: those of meson.build
ISA_FLAGS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        "-mavx512f",
        "-mavx512vl",
        "-mavx512dq",
        "-mavx512bw",
        "-mfma",
        "-mprefer-vector-width=512",
    ],
}


def compiler() -> str | None:
    """The C compiler of $CC, or the usual ones; None where there is none."""
    return shutil.which(os.environ.get("CC", "cc").split()[0]) or shutil.which("gcc")


def build(folder: Path, isas: list[str], cc: str, flags: list[str]) -> Path:
    """Compile the loops of every instruction set and the tests; the program.

    Raises
    ------
    subprocess.CalledProcessError
        With the compiler's messages in ``stderr``.
    """

    windows = os.name == "nt" or "mingw" in cc
    always = [*FLAGS, *(["-Wa,-muse-unaligned-vector-move"] if windows else []), *flags]

    def run(*arguments: str) -> None:
        command = [cc, *always, *arguments]
        subprocess.run(command, check=True, capture_output=True, encoding="utf-8")

    def loops(isa: str, bits: str, source: Path) -> str:
        made = str(folder / f"{source.stem}-{isa}{bits}.o")
        defines = [f"-DSDF_BITS={bits}", f"-DSDF_ISA_ID={isa.upper()}"]
        run(*ISA_FLAGS[isa], *defines, "-c", str(source), "-o", made)
        return made

    sources = [path for path in (ROOT / "csrc").glob("*.c") if path.name != "dispatch.c"]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(loops, *zip(*product(isas, ("32", "64"), sources), strict=True)))
    program = folder / "test_sdf.exe"
    sources = [ROOT / "csrc" / "dispatch.c", ROOT / "tests" / "c" / "test_sdf.c"]
    have = [f"-DSDF_HAVE_{isa.upper()}" for isa in isas]
    run(*have, *map(str, sources), *made, "-o", str(program), "-lm")
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cc", default=compiler())
    parser.add_argument("--isas", default="generic,avx2,avx512", help="compiled; all run that can")
    parser.add_argument(
        "--runner", default="", help="what starts the program, such as qemu-aarch64"
    )
    parser.add_argument("flags", nargs="*", help="flags for the compiler, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = build(Path(folder), given.isas.split(","), given.cc, given.flags)
        except subprocess.CalledProcessError as error:
            sys.exit(error.stderr)
        sys.exit(subprocess.run([*shlex.split(given.runner), program], check=False).returncode)


if __name__ == "__main__":
    main()
