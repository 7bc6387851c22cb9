"""Runs the tests under other Pythons, processors and compilers; keeps the last result of each leg.

    python tools/matrix.py                    every leg: an hour or two
    python tools/matrix.py python3.13 clang   some legs
    python tools/matrix.py --table            only writes the table into CONTRIBUTING.md

Each leg sets itself up in .matrix/, from a clean copy of HEAD, and needs what LEGS says of it. The
results are kept in tools/matrix.json. Ends with 1 if a leg failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".matrix"
RESULTS = ROOT / "tools" / "matrix.json"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- matrix: written by tools/matrix.py -->", "<!-- matrix: end -->"

#: tests without torch: it has no release for some of these, and gigabytes for the others
NOTHING = "no test ran"
MAKE_TEST = "make test EXTRAS=test-core"
#: what meets the compiled code first
COMPILED = "tests/backend tests/test_gram.py"
C_TESTS = "python3 tests/support/c_build.py"


class CannotRun(RuntimeError):
    """What a leg needs is not here."""


@dataclass(frozen=True)
class Leg:
    """A command for a copy of HEAD; ``setup(copy, command)``: what a shell is to run for it."""

    name: str
    what: str
    command: str
    setup: Callable[[Path, str], str]


def interpreter(version: str) -> Callable[[Path, str], str]:
    """The variable PYTHON with a CPython of this machine, pyenv's included."""

    def setup(copy: Path, command: str) -> str:
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
        found = [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")]
        for python in filter(None, found):
            if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
                return f"PYTHON={python} {command}"
        raise CannotRun(f"no python{version} on PATH or of pyenv")

    return setup


def needs(*programs: str, variables: str = "") -> Callable[[Path, str], str]:
    """Programs that must be there, and variables for the command."""

    def setup(copy: Path, command: str) -> str:
        for program in programs:
            if shutil.which(program) is None:
                raise CannotRun(f"needs {program}")
        return f"{variables} {command}"

    return setup


def has_isa(name: str) -> Callable[[Path, str], str]:
    """An instruction set that this processor must have."""

    def setup(copy: Path, command: str) -> str:
        flags = re.search(
            r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
        )
        needed = {"generic": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512dq"}}
        if not needed[name] <= set(flags[1].split() if flags else ()):
            raise CannotRun(f"not available on this processor ({processor()})")
        return f"SDF_ISA={name} {command}"

    return setup


def debian(free_threaded: bool) -> Callable[[Path, str], str]:
    """A folder with Debian's newest suite, and the copy of HEAD in it."""

    def setup(copy: Path, command: str) -> str:
        folder = WORK / "sid"
        packages = "build-essential python3-dev python3-venv libssl-dev zlib1g-dev libffi-dev "
        packages += "libbz2-dev liblzma-dev libsqlite3-dev"
        run_or_stop(["sh", "tools/debian.sh", "sid", str(folder), *packages.split()])
        python, variables = "python3.14", ""
        if free_threaded:
            run_or_stop(["sh", "tools/free_threaded.sh", str(folder)])
            python, variables = "/opt/python3.14t/bin/python3.14t", "PYTHON_GIL=0"
        inside = folder / "src" / copy.name
        shutil.rmtree(inside, ignore_errors=True)
        shutil.copytree(copy, inside)
        script = f"cd /src/{copy.name} && {variables} HOME=/root PYTHON={python} {command}"
        # mounts of its own, which end with it
        mounts = "".join(f"mount --bind /{name} {folder}/{name} && " for name in ("proc", "dev"))
        script = f"{mounts} exec chroot {folder} sh -c {shlex.quote(script)}"
        return f"unshare --mount sh -c {shlex.quote(script)}"

    return setup


LEGS = [
    Leg("python3.11", "CPython 3.11", MAKE_TEST, interpreter("3.11")),
    Leg("python3.12", "CPython 3.12", MAKE_TEST, interpreter("3.12")),
    Leg("python3.13", "CPython 3.13", MAKE_TEST, interpreter("3.13")),
    Leg("python3.14", "CPython 3.14, Debian sid", MAKE_TEST, debian(free_threaded=False)),
    Leg("python3.14t", "CPython 3.14 without a GIL", MAKE_TEST, debian(free_threaded=True)),
    Leg("generic", "C loops without SIMD extensions", MAKE_TEST, has_isa("generic")),
    Leg("avx2", "C loops for AVX2", MAKE_TEST, has_isa("avx2")),
    Leg("avx512", "C loops for AVX-512", MAKE_TEST, has_isa("avx512")),
    Leg("clang", "compiled by clang", f"{MAKE_TEST} ARGS='{COMPILED}'",
        needs("clang", variables="CC=clang")),
    Leg("c-clang", "C tests by clang", f"{C_TESTS} --cc clang", needs("clang")),
    Leg("c-aarch64", "C tests for aarch64 (NEON), emulated",
        f"{C_TESTS} --cc aarch64-linux-gnu-gcc --isas generic --runner qemu-aarch64 -- -static",
        needs("aarch64-linux-gnu-gcc", "qemu-aarch64")),
    Leg("c-mingw", "C tests for Windows, under wine",
        f"{C_TESTS} --cc x86_64-w64-mingw32-gcc --runner wine -- -static",
        needs("x86_64-w64-mingw32-gcc", "wine", variables="WINEDEBUG=-all")),
]  # fmt: skip


def run_or_stop(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise CannotRun(said[-1] if said else f"{command[0]} ended with {done.returncode}")


def processor() -> str:
    """The model of this machine's processor."""
    model = re.search(
        r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
    )
    return model[1].strip() if model else "unknown processor"


def run(leg: Leg) -> dict[str, object]:
    """The leg's result; its output is in .matrix/NAME.log."""
    result: dict[str, object] = {
        "date": datetime.date.today().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD"),
        "processor": processor(),
    }
    copy = WORK / leg.name
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", copy], input=archive.stdout, check=True)
    start = time.monotonic()
    try:
        command = leg.setup(copy, leg.command)
    except CannotRun as error:
        return {**result, "status": "not run", "why": str(error)}
    # what an outer make or environment says is not for this one
    inherited = {
        name: value for name, value in os.environ.items()
        if not name.startswith(("MAKE", "MFLAGS", "VIRTUAL_ENV"))
    }  # fmt: skip
    log = WORK / f"{leg.name}.log"
    with open(log, "w", encoding="utf-8") as stream:
        done = subprocess.run(
            command, shell=True, cwd=copy, env=inherited, stdout=stream,
            stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    said = log.read_text(encoding="utf-8", errors="replace")
    result["counts"] = counts(said)
    passed = done.returncode == 0 and result["counts"] != NOTHING
    result["status"] = "passed" if passed else "failed"
    result["minutes"] = round((time.monotonic() - start) / 60, 1)
    return result


def counts(said: str) -> str:
    """What pytest's last line says, or how many parts of the C tests passed."""
    summary = re.findall(r"^=*\s*((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s", said, re.MULTILINE)
    if summary:
        return ", ".join(
            f"{number} {word}"
            for number, word in re.findall(
                r"(\d+) (passed|failed|skipped|xfailed|xpassed|error)", summary[-1]
            )
        )
    parts = [
        f"{isa} {kind}" for isa, kind in re.findall(r"^(\w+) (f\d\d): done", said, re.MULTILINE)
    ]
    return ", ".join(parts) or NOTHING


def git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    return done.stdout.strip()


def table(results: dict[str, dict[str, object]]) -> str:
    """The results in Markdown."""
    lines = ["| leg | what | last result | date, commit | machine |", "|---|---|---|---|---|"]
    for leg in LEGS:
        found = results.get(leg.name)
        if found is None:
            lines.append(f"| `{leg.name}` | {leg.what} | never run | | |")
            continue
        outcome = found["why"] if found["status"] == "not run" else found["counts"]
        minutes = f", {found['minutes']} min" if "minutes" in found else ""
        lines.append(
            f"| `{leg.name}` | {leg.what} | {found['status']}: {outcome}{minutes} "
            f"| {found['date']}, {found['commit']} | {found['processor']} |"
        )
    commands = [f"make matrix ARGS={leg.name}".ljust(34) + f"# {leg.command}" for leg in LEGS]
    return "\n".join([*lines, "", "```sh", *commands, "```"])


def write_table(results: dict[str, dict[str, object]]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(results)}\n\n{END}{tail}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "legs", nargs="*", help="all by default: " + ", ".join(leg.name for leg in LEGS)
    )
    parser.add_argument("--table", action="store_true", help="only write the table")
    given = parser.parse_args()
    unknown = set(given.legs) - {leg.name for leg in LEGS}
    if unknown:
        parser.error(f"unknown legs {', '.join(sorted(unknown))}; see --help")
    failed = False
    for leg in [] if given.table else LEGS:
        if given.legs and leg.name not in given.legs:
            continue
        print(f"{leg.name} …", flush=True)
        result = run(leg)
        print(f"{leg.name}: {result['status']}: {result.get('counts') or result.get('why')}")
        failed |= result["status"] == "failed"
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results[leg.name] = result
        RESULTS.write_text(
            json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    write_table(json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
